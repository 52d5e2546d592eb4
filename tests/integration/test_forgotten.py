"""A channel that never held anything of ours is forgotten while the chain has transactions of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.bolt.messages import ErrorMessage
from channeld.channel import chain
from channeld.channel.state import AwaitingFunding
from tests.integration.world import World, world_in


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


async def test_an_error_between_a_block_and_its_news(world: World) -> None:
    """Funding and first commitment are in one block. Its rows are stored; before the channel hears of it, the peer
    says `error`, and there is nothing at stake for us."""
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 4_000_000)
    await alice.connect(bob)
    opened = await alice.api.open_channel(bob.node_id, 500_000)
    driver = alice.runtime.channels.by_id(opened.channel_id)
    assert driver is not None
    assert isinstance(driver.state, AwaitingFunding)
    commitment = chain.signed_local_commitment(driver.state, alice.runtime.channels.env(driver))
    await world.rpc.call("sendrawtransaction", commitment.serialize().hex())
    refresh, link = bob.runtime.feerates.refresh, bob.runtime.peers.link(alice.node_id)
    assert link is not None

    async def error_first() -> None:
        bob.runtime.channels.peer_error(link, ErrorMessage(opened.channel_id, b"never mind"))
        await bob.flush()
        await bob.flush()
        await refresh()

    bob.runtime.feerates.refresh = error_first  # type: ignore[method-assign]
    await world.mine(2)
    await bob.flush()
    assert not bob.has_crashed, bob.runtime.failure
    assert await bob.api.list_channels(include_closed=True) == []
    await world.mine(2)
    assert not bob.has_crashed, bob.runtime.failure
    await bob.restart()
