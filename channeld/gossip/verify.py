"""Signatures of gossip, many at once, on all cores: the library's calls release the interpreter's lock."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from wallet.bitcoin.secp import InvalidKey, verify, verify_once

_MIN_BATCH = 16
"""Handing fewer signatures than this to another thread costs more than it saves."""


SignatureJob = tuple[bytes, bytes, bytes, bool]
"""Public key, digest, signature, and whether the key comes again (a node's), so that its parsed form is worth keeping.
A plain tuple: there are two for each message."""


def check(jobs: Sequence[SignatureJob]) -> list[bool]:
    """Whether each signature is valid; a key that is no point makes it invalid."""
    results = []
    for pubkey, digest, signature, kept_key in jobs:
        try:
            results.append(verify(pubkey, digest, signature) if kept_key else verify_once(pubkey, digest, signature))
        except InvalidKey:
            results.append(False)
    return results


class SignatureChecker:
    """A pool of one thread a core."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="gossip-signatures")

    async def check(self, jobs: Sequence[SignatureJob]) -> list[bool]:
        """The result of each job, in order; computed in the pool, so that the event loop goes on."""
        loop = asyncio.get_running_loop()
        if not jobs:
            return []
        size = max(_MIN_BATCH, -(-len(jobs) // self._threads))
        parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        results = await asyncio.gather(*(loop.run_in_executor(self._pool, check, part) for part in parts))
        return [result for part in results for result in part]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
