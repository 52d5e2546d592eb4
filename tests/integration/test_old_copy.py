"""A node that is started from an old copy of its database: nothing of what it believes may be published."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.node.interface import ChannelView, NodeError
from tests.integration.world import TestNode, World, told, world_in


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


def database(node: TestNode) -> Path:
    return node.world.directory / node.name / "test.sqlite"


async def test_an_old_copy_loses_nothing(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 2_000_000)
    channel_id = await world.open(alice, bob, 1_000_000, push_msat=200_000_000)
    await bob.stop()
    shutil.copy(database(bob), database(bob).with_suffix(".copy"))
    await bob.start()
    await alice.connect(bob)
    await asyncio.gather(*(node.wait_active(channel_id) for node in (alice, bob)))
    for number in range(3):
        invoice = await bob.api.create_invoice(10_000_000, f"goods {number}")
        assert (await alice.api.pay(invoice.bolt11)).state == "succeeded"
    await bob.wait_no_htlcs(channel_id)
    driver = alice.runtime.channels.by_id(channel_id)
    assert driver is not None
    await alice.wait_no_htlcs(channel_id)

    # Bob starts from the copy. Its peer says nothing but that the channel is unknown.
    await bob.stop()
    alice.runtime.channels._forget(driver)
    for suffix in ("-wal", "-shm"):
        database(bob).with_name(database(bob).name + suffix).unlink(missing_ok=True)
    shutil.copy(database(bob).with_suffix(".copy"), database(bob))
    await bob.start()
    await alice.connect(bob)
    assert "unknown here" in (await told(bob, "channel.unconfirmed")).sentence
    view = await bob.channel(channel_id)
    assert isinstance(view, ChannelView)
    assert view.phase == "normal"
    assert "not compared with the peer" in view.status
    with pytest.raises(NodeError, match="--even-if-outdated"):
        await bob.api.close_channel(channel_id, force=True)
    await world.mine(3)
    assert await world.rpc.call("getrawmempool") == []

    # The peer is itself again: it proves that Bob lost state, and closes for it.
    await alice.restart()
    await alice.connect(bob)

    async def closing() -> bool:
        found = await bob.channel(channel_id)
        return found is not None and found.phase in ("waiting_for_remote_close", "closing")

    await bob.until(closing)
    with pytest.raises(NodeError, match="outdated"):
        await bob.api.close_channel(channel_id, force=True, even_if_outdated=True)

    async def published() -> bool:
        found = await alice.channel(channel_id)
        return found is not None and found.phase == "closing"

    await alice.until(published)
    await alice.runtime.monitor.wait_idle()
    await world.mine(1)
    await bob.runtime.monitor.wait_idle()
    closed = await bob.api.closed_channel(channel_id)
    assert [(o.amount_sat, o.status) for o in closed.outputs if o.kind == "to_remote"] == [(230_000, "pending")]


async def test_the_operator_may_close_all_the_same(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 2_000_000)
    channel_id = await world.open(alice, bob, 1_000_000, push_msat=200_000_000)
    await alice.stop()
    world.nodes.remove(alice)
    await bob.restart()
    with pytest.raises(NodeError, match="--even-if-outdated"):
        await bob.api.close_channel(channel_id, force=True)
    view = await bob.api.close_channel(channel_id, force=True, even_if_outdated=True)
    assert view.phase == "closing"
    assert view.closing_txid is not None
    assert view.closing_txid[::-1].hex() in await world.rpc.call("getrawmempool")
