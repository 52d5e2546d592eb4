"""What strangers do over and over is told a few times: events and log are for what matters."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from channeld.bolt.messages import AcceptChannel, ErrorMessage, Init, encode
from channeld.node import transport
from channeld.node.notes import OF_STRANGERS_BURST, Notes
from channeld.node.peer import PeerLink
from channeld.node.peers import MAX_STARTING_PER_PEER
from tests.integration.test_channel_ids import Stranger
from tests.integration.world import STEP_SECONDS, TestNode, World, world_in

PROPOSALS = 60
"""Each of them has two events or more: the channel's end is told twice."""
CONNECTIONS = OF_STRANGERS_BURST + 20


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        yield made


def stop_clock(node: TestNode) -> None:
    """No stranger is forgiven anything while the test runs."""
    runtime = node.runtime
    runtime.channels._notes = Notes(runtime.channels.has_stake, lambda: 0.0)
    runtime.peers._notes = Notes(runtime.channels.has_stake, lambda: 0.0)


def told(node: TestNode, prefix: str) -> int:
    return sum(count for kind, count in node.runtime.bus.counts.items() if kind.startswith(prefix))


async def test_proposals_that_come_to_nothing(world: World) -> None:
    bob = await world.node("bob")
    stop_clock(bob)
    stranger = Stranger(bob)
    for number in range(PROPOSALS):
        proposal = stranger.proposal(number.to_bytes(32, "little").replace(b"\0", b"\x07"))
        assert isinstance(await stranger.says(proposal), AcceptChannel)
        gives_up = ErrorMessage(proposal.temporary_channel_id, b"never mind")
        bob.runtime.channels.peer_error(cast(PeerLink, stranger), gives_up)
        await bob.flush()
        await bob.flush()
    assert not bob.runtime.channels.of_peer(stranger.node_id)
    assert told(bob, "channel.") == OF_STRANGERS_BURST

    alice = await world.node("alice")
    await world.fund(alice, 10_000_000)
    await world.open(alice, bob, 1_000_000)
    assert told(bob, "channel.") > OF_STRANGERS_BURST, "what becomes of a real channel is told all the same"


async def test_connections_that_come_and_go(world: World) -> None:
    bob = await world.node("bob")
    stop_clock(bob)
    alice = await world.node("alice")
    for _ in range(CONNECTIONS):
        await come_and_go(bob)
    assert told(bob, "peer.connected") == OF_STRANGERS_BURST
    assert told(bob, "peer.disconnected") == OF_STRANGERS_BURST
    await bob.connect(alice)
    assert told(bob, "peer.connected") == OF_STRANGERS_BURST + 1, "whom we call is no stranger"


async def test_a_peer_with_a_channel_has_few_connections_that_say_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are not kept out by them, and they do not use up all sockets; the newest are the ones that count."""
    bob = await world.node("bob")
    monkeypatch.setattr(bob.runtime.channels, "has_stake", lambda node_id: True)
    secret = os.urandom(32)
    silent = []
    for _ in range(4 * MAX_STARTING_PER_PEER):
        silent.append(await transport.connect("127.0.0.1", bob.port, secret, bob.node_id))
        silent[-1].set_receiver(lambda data: None)
    over = silent[:-MAX_STARTING_PER_PEER]
    async with asyncio.timeout(STEP_SECONDS):
        await asyncio.gather(*(connection.wait_closed() for connection in over))
    assert len(bob.runtime.peers._starting) == MAX_STARTING_PER_PEER
    silent[-1].send(encode(Init(b"", b"\x02\xaa\xa2", networks=None)))

    async def connected() -> bool:
        return bob.runtime.peers.num_connected() == 1

    await bob.until(connected)
    for connection in silent:
        connection.abort("the test is over")


async def come_and_go(bob: TestNode) -> None:
    """`init` goes both ways, then the connection ends."""
    connection = await transport.connect("127.0.0.1", bob.port, os.urandom(32), bob.node_id)
    connection.set_receiver(lambda data: connection.close() if connection.close_reason is None else None)
    connection.send(encode(Init(b"", b"\x02\xaa\xa2", networks=None)))
    await connection.wait_closed()
