"""A connection that is held: TCP slows the peer down, nothing is lost, and its silence is not its fault."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from channeld.bolt.messages import ErrorMessage, Message, Ping, UpdateFee, WarningMessage
from channeld.node import transport
from channeld.node.peer import PeerLink
from wallet.bitcoin.secp import pubkey_of

SECONDS = 60
FEATURES: frozenset[int] = frozenset()
CHAIN = b"\x06" * 32
ALICE, BOB = b"\x11" * 32, b"\x21" * 32


class Ear:
    """What a side hears."""

    def __init__(self) -> None:
        self.is_ready = asyncio.Event()
        self.heard: list[Message] = []
        self.complete = asyncio.Event()
        self.expected = -1
        self.over = ""

    def ready(self, link: PeerLink) -> None:
        self.is_ready.set()

    def message(self, link: PeerLink, message: Message, raw: bytes) -> None:
        self.heard.append(message)
        if len(self.heard) == self.expected:
            self.complete.set()

    def error(self, link: PeerLink, message: ErrorMessage) -> None:
        raise AssertionError(message)

    def warning(self, link: PeerLink, message: WarningMessage) -> None:
        raise AssertionError(message)

    def closed(self, link: PeerLink, reason: str) -> None:
        self.over = reason

    async def hears(self, count: int) -> None:
        self.expected = count
        if len(self.heard) < count:
            await asyncio.wait_for(self.complete.wait(), SECONDS)


class Pair:
    def __init__(self, ours: PeerLink, theirs: PeerLink, ear: Ear) -> None:
        self.ours, self.theirs, self.ear = ours, theirs, ear


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two ends, after `init`; `theirs` is the one that is slow to take."""
    accepted: asyncio.Queue[transport.Connection] = asyncio.Queue()
    listener = await transport.listen("127.0.0.1", 0, BOB, accepted.put_nowait)
    called = await transport.connect("127.0.0.1", listener.port, ALICE, pubkey_of(BOB))
    ears = Ear(), Ear()
    links = [
        PeerLink(connection, ear, FEATURES, CHAIN)
        for connection, ear in zip((called, await accepted.get()), ears, strict=True)
    ]
    for link in links:
        link.start()
    for ear in ears:
        await asyncio.wait_for(ear.is_ready.wait(), SECONDS)
    yield Pair(links[0], links[1], ears[1])
    for link in links:
        link.close("the test is over")
    await asyncio.gather(*(link.wait_closed() for link in links), listener.close())


async def test_nothing_is_lost_and_all_holders_count(pair: Pair) -> None:
    fees = [UpdateFee(bytes(32), number) for number in range(50)]
    pair.theirs.hold("one channel")
    pair.theirs.hold("another")
    pair.theirs.hold("another")
    for fee in fees:
        pair.ours.send_message(fee)
    pair.theirs.let_go("another")
    for _ in range(20):
        await asyncio.sleep(0)
    assert pair.theirs.is_held
    assert pair.ear.heard == []
    pair.theirs.let_go("one channel")
    await pair.ear.hears(len(fees))
    assert pair.ear.heard == fees


async def test_the_peer_feels_it(pair: Pair) -> None:
    """Without anybody's memory growing: what it writes is not taken from it any more."""
    pair.theirs.hold("a channel")
    sent = 0
    while not pair.ours.is_congested:
        pair.ours.send_message(Ping(0, os.urandom(60_000)))
        sent += 1
        await asyncio.sleep(0)
        assert sent < 2_000
    assert len(pair.theirs._connection._receiving.raw) <= 1024 * 1024
    pair.ours.send_message(UpdateFee(bytes(32), 1))
    pair.theirs.let_go("a channel")
    await pair.ear.hears(1)


@pytest.mark.parametrize("is_held", [True, False])
async def test_whom_we_do_not_listen_to_may_be_silent(pair: Pair, is_held: bool) -> None:
    """A pong that we did not read is not one that did not come."""
    keep_alive = pair.theirs._keep_alive
    if is_held:
        pair.theirs.hold("a channel")
    keep_alive._pinged = time.monotonic() + 1
    keep_alive._check_pong()
    assert pair.theirs.is_closed == (not is_held)
    if is_held:
        keep_alive._pinged = time.monotonic()
        pair.theirs.let_go("a channel")
        keep_alive._check_pong()
        assert not pair.theirs.is_closed, "there was no time yet to read what waits"


async def test_a_held_connection_that_ends(pair: Pair) -> None:
    pair.theirs.hold("a channel")
    pair.theirs.close("we have had enough")
    pair.theirs.let_go("a channel")
    await asyncio.wait_for(pair.theirs.wait_closed(), SECONDS)
    assert pair.ear.over == "we have had enough"
