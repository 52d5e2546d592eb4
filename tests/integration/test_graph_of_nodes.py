"""The network as running nodes tell it: found routes are what payments take; private channels stay private; what was
learnt can be taken along."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from channeld.node.graph_views import RouteQuery
from channeld.node.interface import NodeError
from tests.integration.test_forwarding import Net
from tests.integration.world import TestNode, world_in

AMOUNT_MSAT = 50_000_123


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with world_in(tmp_path) as world:
        yield Net(world)


async def scids(node: TestNode) -> dict[int, int]:
    """The channels a node tells of, and their capacities."""
    return {
        channel.short_channel_id: channel.capacity_sat
        async for page in node.api.graph.pages()
        for channel in page.channels
    }


async def is_named(node: TestNode, other: TestNode, alias: str) -> bool:
    """Whether a node knows the other's alias."""
    return (await node.api.graph.node(other.node_id)).alias == alias


async def test_a_route_that_is_found_costs_what_the_payment_costs(net: Net) -> None:
    await net.make("ab", "bc")
    await net.make("ad", announce=False)
    await net.know(2)
    alice, bob, carol, dave = (net[name] for name in "abcd")
    (private,) = [channel for channel in await alice.api.list_channels() if channel.peer_id == dave.node_id]
    assert private.scid is not None
    for node in (alice, bob, carol, dave):
        told = await scids(node)
        assert len(told) == 2
        assert private.scid not in told
        assert private.alias_scid_local not in told
        with pytest.raises(NodeError, match="not public"):
            await node.api.graph.channel(private.scid)
    info = await alice.api.graph.info()
    assert (info.num_own_public_channels, info.num_own_private_channels) == (1, 1)
    # Her announcement may come after her channels.
    await bob.until(partial(is_named, bob, carol, "c"))
    assert "keysend" in (await bob.api.graph.node(carol.node_id)).features

    invoice = await carol.api.create_invoice(AMOUNT_MSAT, "tea")
    found = await alice.api.graph.find_routes(RouteQuery(bolt11=invoice.bolt11))
    (route,) = found.routes
    assert [hop.target for hop in route.hops] == [bob.node_id, carol.node_id]
    over_private = await alice.api.graph.find_routes(RouteQuery(destination=dave.node_id, amount_msat=AMOUNT_MSAT))
    assert [(hop.short_channel_id, hop.is_private) for hop in over_private.routes[0].hops] == [(private.scid, True)]
    as_bob = RouteQuery(source=bob.node_id, destination=dave.node_id, amount_msat=AMOUNT_MSAT)
    assert (await alice.api.graph.find_routes(as_bob)).routes == ()  # what only alice knows is not told as if bob did

    payment = await alice.api.pay(invoice.bolt11)
    assert payment.state == "succeeded", payment.failure
    assert payment.fee_msat == found.total_fee_msat

    channels, _ = await alice.api.graph.export_scores()
    assert {known.short_channel_id for known in channels} == set(await scids(alice))
    assert await alice.api.graph.reset_scores() == (2, 0)
    assert await alice.api.graph.import_scores(channels, ()) == (2, 0)
    await alice.restart()
    # Gossip begins anew here, so that no channel is public yet.
    assert await alice.api.graph.export_scores() == ([], [])
    assert await alice.api.graph.export_scores(include_private=True) == (channels, [])
