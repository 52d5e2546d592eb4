"""Sequences of gossip from three peers: true messages in any order, bent ones, invented ones, time, and disconnects.

Whatever comes, the view holds only what was signed by whom it is about and funded on layer 1, timestamps never go back,
what goes out can be read, and the file holds the same as memory.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from channeld.bolt.messages import MESSAGES, DecodeError, Message, SignedGossip, UnknownMessage, decode, encode
from channeld.gossip.intake import MAX_ORPHANS
from channeld.gossip.interface import GossipConfig
from channeld.gossip.own import NodeProfile
from channeld.gossip.service import GOSSIP_MESSAGES, Gossip
from channeld.gossip.verify import Signed, check_messages
from tests.fuzz.target import Reader, target
from tests.gossip_support import (
    CHAIN_HASH,
    NOW,
    FakeFunding,
    FakePort,
    contents,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    scid_of,
    secret_of,
)
from wallet.bitcoin import secp

US, PEERS = 0, (10, 11, 12)
CHANNELS = ((scid_of(100), 1, 2), (scid_of(101), 2, 3), (scid_of(101, 2), 1, 3), (scid_of(102), 3, 4))
MEMORY = Path("/dev/shm")
"""The file is not about disks."""
UNFUNDED = scid_of(103)
TYPES = sorted(type_ for type_, kind in MESSAGES.items() if issubclass(kind, GOSSIP_MESSAGES))


@cache
def _true() -> tuple[bytes, ...]:
    """Every kind, good as it is; and an announcement without an output."""
    made: list[Message] = [make_announcement(UNFUNDED, 1, 2)]
    for scid, first, second in CHANNELS:
        made.append(make_announcement(scid, first, second))
        for signer, other in ((first, second), (second, first)):
            made += [make_update(scid, signer, other, NOW + age) for age in (0, 100)]
        made.append(make_update(scid, first, second, NOW + 200, disabled=True))
    made += [make_node(number, NOW + age) for number in (1, 2, 3, 4) for age in (0, 50)]
    return tuple(encode(message) for message in made)


class Inline:
    """Signatures checked on the spot: no threads to wait for."""

    async def check(self, signed: Sequence[Signed]) -> list[bool]:
        return check_messages(signed)

    def close(self) -> None:
        """Nothing to do."""


class Storm:
    """One sequence."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader = reader
        self.now = float(NOW + 300)
        self.height = 1000
        self.path = folder / "gossip"
        funding = FakeFunding()
        funding.outputs = {scid: funding_of(scid) for scid, _, _ in CHANNELS}
        self.gossip = Gossip(
            new_view(self.path),
            funding,
            self,
            node_id_of(US),
            CHAIN_HASH,
            GossipConfig(),
            lambda: self.now,
            lambda: self.height,
            random.Random(1),
        )
        self.gossip.intake._checker = Inline()  # type: ignore[assignment]
        self.gossip.own.set_profile(NodeProfile("us", b"\x01\x02\x03", (), b"\x02"))
        self.ports: dict[int, FakePort] = {}
        self.newest: dict[tuple[int, int], int] = {}

    def sign_as_node(self, digest: bytes) -> bytes:
        return secp.sign(secret_of(US), digest)

    def sign_as_funder(self, channel_id: bytes, digest: bytes) -> bytes:
        raise AssertionError("there is no channel of ours")

    async def run(self) -> None:
        """Until the input ends."""
        tasks = [asyncio.ensure_future(runner()) for runner in self.gossip.runners()]
        actions = (self.true, self.true, self.true, self.bent, self.invented, self.time, self.connection)
        try:
            while self.reader.left:
                actions[self.reader.below(len(actions))]()
                await self.rest(tasks)
                self.check()
            await self.gossip.intake.idle()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            known = contents(self.gossip.view)
            self.gossip.close()
        again = new_view(self.path)
        assert contents(again) == known
        again.store.close()

    async def rest(self, tasks: list[asyncio.Task[None]]) -> None:
        """The tasks take what was offered."""
        for _ in range(5):
            await asyncio.sleep(0)
        for task in tasks:
            assert not task.done(), task

    def hear(self, raw: bytes) -> None:
        """A message from one of the peers, if it is connected."""
        number = PEERS[self.reader.below(len(PEERS))]
        if number not in self.ports:
            self.ports[number] = FakePort(number)
            self.gossip.peer_connected(self.ports[number])
        try:
            message = decode(raw)
        except (DecodeError, UnknownMessage):
            return
        if isinstance(message, GOSSIP_MESSAGES):
            self.gossip.peer_message(self.ports[number], message)

    def true(self) -> None:
        self.hear(_true()[self.reader.below(len(_true()))])

    def bent(self) -> None:
        """A true one with some bytes changed."""
        raw = bytearray(_true()[self.reader.below(len(_true()))])
        place = self.reader.number(2) % len(raw)
        new = self.reader.take(1 + self.reader.below(8))
        raw[place : place + len(new)] = new
        self.hear(bytes(raw))

    def invented(self) -> None:
        """Any type, with our chain's hash where most of them have it."""
        type_ = TYPES[self.reader.below(len(TYPES))].to_bytes(2, "big")
        start = b"" if self.reader.below(4) == 0 else CHAIN_HASH
        self.hear(type_ + start + self.reader.chunk())

    def time(self) -> None:
        """Seconds to months go by."""
        self.now += (0, 1, 61, 3600, 86_400, 40 * 86_400)[self.reader.below(6)]
        self.height += self.reader.below(3)
        self.gossip.tick()
        self.gossip.flush()
        for _ in range(3):
            self.gossip.pump()

    def connection(self) -> None:
        """A peer goes, stops reading, or reads again."""
        port = self.ports.get(PEERS[self.reader.below(len(PEERS))])
        if port is None:
            return
        if self.reader.below(2):
            port.is_congested = not port.is_congested
            return
        self.gossip.peer_disconnected(port)
        del self.ports[next(number for number, one in self.ports.items() if one is port)]

    def check(self) -> None:
        """What must be true of the view."""
        view, intake = self.gossip.view, self.gossip.intake
        assert set(view.topology.rows) <= {scid for scid, _, _ in CHANNELS}
        assert len(intake._orphans) <= MAX_ORPHANS
        for scid, row in view.topology.rows.items():
            ids = view.topology.node_ids_of(row)
            self.is_signed(view.announcement(scid), None)
            for direction in (0, 1):
                self.is_signed(view.update(scid, direction), ids[direction])
                timestamp = view.topology.timestamp[direction][row]
                assert timestamp >= self.newest.get((scid, direction), 0)
                self.newest[scid, direction] = timestamp
        self.newest = {key: value for key, value in self.newest.items() if key[0] in view.topology.rows}
        for node_id in view.topology.node_index:
            self.is_signed(view.node(node_id), None)

    def is_signed(self, raw: bytes | None, signer: bytes | None) -> None:
        """By whom it should be, if there is one."""
        if raw is None or raw in _true():
            return
        message = decode(raw)
        assert isinstance(message, SignedGossip)
        assert check_messages([(message, raw, signer)]) == [True]


def _seeds() -> Iterator[bytes]:
    everything = b"".join(bytes((0, index, 0)) for index in range(len(_true())))
    yield everything
    yield everything + bytes((5, 4, 1)) + everything
    yield bytes((0, 3, 1, 0, 1, 0, 3, 2, 0, 9, 3, 1, 2, 3, 4, 0, 5, 2, 0, 6, 0, 0))
    for index in range(len(TYPES)):
        yield (
            everything[:30] + bytes((4, index, 1, 0, 9)) + b"\x00\x00\x00\x00\xff\xff\xff\xff\x03" + bytes((1, 5, 1, 0))
        )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@target("gossip", _seeds, 600)
def gossip(data: bytes) -> None:
    """See the module."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        _loop().run_until_complete(_play(Reader(data), Path(folder)))


async def _play(reader: Reader, folder: Path) -> None:
    await Storm(reader, folder).run()
