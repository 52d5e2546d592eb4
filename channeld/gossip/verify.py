"""Signatures of gossip, many at once, on all cores: the library's calls release the interpreter's lock."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from channeld.bolt.messages import ChannelAnnouncement, ChannelUpdate, NodeAnnouncement, SignedGossip
from wallet.bitcoin.secp import InvalidKey, verify, verify_once

_MIN_BATCH = 8
"""Handing fewer messages than this to another thread costs more than it saves."""


SignatureJob = tuple[bytes, bytes, bytes, bool]
"""Public key, digest, signature, and whether the key comes again (a node's), so that its parsed form is worth keeping.
A plain tuple: there are two for each message."""

Signed = tuple[SignedGossip, bytes, bytes | None]
"""A message, its wire form, and who should have signed it, if it is a `channel_update`."""


def check(jobs: Sequence[SignatureJob]) -> list[bool]:
    """Whether each signature is valid; a key that is no point makes it invalid."""
    results = []
    for pubkey, digest, signature, kept_key in jobs:
        try:
            results.append(verify(pubkey, digest, signature) if kept_key else verify_once(pubkey, digest, signature))
        except InvalidKey:
            results.append(False)
    return results


def signature_jobs(message: SignedGossip, raw: bytes, node_id: bytes | None = None) -> list[SignatureJob]:
    """All signatures of a message, whose wire form is `raw`; `node_id` is who should have signed a `channel_update`."""
    if isinstance(message, ChannelUpdate):
        assert node_id is not None
        digest = sha256(sha256(raw[ChannelUpdate.SIGNED_FROM :]).digest()).digest()
        return [(node_id, digest, message.signature, True)]
    if isinstance(message, ChannelAnnouncement):
        return announcement_jobs(message, raw)
    assert isinstance(message, NodeAnnouncement)
    digest = sha256(sha256(raw[NodeAnnouncement.SIGNED_FROM :]).digest()).digest()
    return [(message.node_id, digest, message.signature, True)]


def announcement_jobs(message: ChannelAnnouncement, raw: bytes) -> list[SignatureJob]:
    """The four signatures."""
    # BOLT 7, "MUST verify the integrity AND authenticity of the message by verifying the signatures."
    digest = sha256(sha256(raw[ChannelAnnouncement.SIGNED_FROM :]).digest()).digest()
    return [
        (message.node_id_1, digest, message.node_signature_1, True),
        (message.node_id_2, digest, message.node_signature_2, True),
        (message.bitcoin_key_1, digest, message.bitcoin_signature_1, False),
        (message.bitcoin_key_2, digest, message.bitcoin_signature_2, False),
    ]


def check_messages(signed: Sequence[Signed]) -> list[bool]:
    """Whether all signatures of each message are valid."""
    return [all(check(signature_jobs(*one))) for one in signed]


class SignatureChecker:
    """A pool of one thread a core."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="gossip-signatures")

    async def check(self, signed: Sequence[Signed]) -> list[bool]:
        """For each message, in order, whether its signatures are good. Hashing goes on in the pool, too: there the
        Python of one thread runs while the library computes for another, and the event loop is free."""
        if not signed:
            return []
        loop = asyncio.get_running_loop()
        threads = min(self._threads, -(-len(signed) // _MIN_BATCH))
        parts = [signed[first::threads] for first in range(threads)]  # not in runs: announcements have four signatures
        found = await asyncio.gather(*(loop.run_in_executor(self._pool, check_messages, part) for part in parts))
        results = [False] * len(signed)
        for first, part in enumerate(found):
            results[first::threads] = part
        return results

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
