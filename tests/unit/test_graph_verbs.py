"""What the node says of the public network, of ways through it, and of what payments have taught."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from channeld.bolt.invoice import Invoice, RoutingHop, encode_invoice
from channeld.node import graph as graph_module
from channeld.node.graph_views import RouteQuery
from channeld.node.interface import NodeError
from channeld.routing.knowledge import ChannelKnowledge, NodeKnowledge
from channeld.routing.scoring import Scorer
from channeld.routing.values import EdgeKey
from tests.fake_graph import (
    BOB,
    BOB_DAVE,
    CAROL,
    CAROL_DAVE,
    DAVE,
    DAVE_ERIN,
    ERIN,
    OWN,
    OWN_BOB,
    PRIVATE,
    FakeGraph,
)
from tests.gossip_support import NOW, node_id_of, scid_of, secret_of
from wallet.bitcoin.address import REGTEST

AMOUNT_MSAT = 100_000_000
HINTED = scid_of(17_000_000 - 2**20)


@pytest.fixture
def verbs() -> Iterator[FakeGraph]:
    graph = FakeGraph()
    yield graph
    graph.network.close()


async def test_pages_hold_everything_once(verbs: FakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "PAGE_NODES", 2)
    monkeypatch.setattr(graph_module, "PAGE_CHANNELS", 3)
    found = [page async for page in verbs.pages()]
    assert [(len(page.nodes), len(page.channels)) for page in found] == [(2, 0), (2, 0), (1, 0), (0, 3), (0, 1)]
    nodes = {node.node_id: node for page in found for node in page.nodes}
    assert {node.alias for node in nodes.values()} == {"us", "bob", "carol", "dave", "erin"}
    assert (nodes[node_id_of(DAVE)].num_channels, nodes[node_id_of(DAVE)].capacity_sat) == (3, 3_000_000)
    assert [node.alias for node in nodes.values() if node.is_own] == ["us"]
    channels = [channel for page in found for channel in page.channels]
    assert [channel.short_channel_id for channel in channels] == [OWN_BOB, BOB_DAVE, CAROL_DAVE, DAVE_ERIN]
    assert [channel.is_own for channel in channels] == [True, False, False, False]
    assert [page.nodes async for page in verbs.pages(nodes=False)] == [(), ()]


async def test_what_goes_while_pages_are_read_is_left_out(verbs: FakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "PAGE_CHANNELS", 2)
    found = []
    async for page in verbs.pages(nodes=False):
        found += [channel.short_channel_id for channel in page.channels]
        if len(found) == 2:
            verbs.network.view.forget(DAVE_ERIN)
    assert found == [OWN_BOB, BOB_DAVE, CAROL_DAVE]


async def test_private_channels_are_nowhere_in_the_graph(verbs: FakeGraph) -> None:
    shown = [channel.short_channel_id async for page in verbs.pages() for channel in page.channels]
    shown += [channel.short_channel_id for channel in await verbs.node_channels(node_id_of(OWN))]
    shown += [channel.short_channel_id for channel in await verbs.node_channels(node_id_of(CAROL))]
    assert PRIVATE not in shown
    with pytest.raises(NodeError, match="not public") as error:
        await verbs.channel(PRIVATE)
    assert error.value.kind == "not_found"
    assert (await verbs.info()).num_own_private_channels == 1


async def test_the_network_in_numbers(verbs: FakeGraph) -> None:
    info = await verbs.info()
    assert (info.num_nodes, info.num_announced_nodes, info.num_channels) == (5, 5, 4)
    assert (info.total_capacity_sat, info.median_channel_sat, info.max_node_channels) == (4_000_000, 1_000_000, 3)
    assert (info.median_fee_base_msat, info.median_cltv_expiry_delta) == (1000, 40)
    assert (info.num_own_public_channels, info.num_unusable_channels) == (1, 0)


async def test_an_empty_network_in_numbers(verbs: FakeGraph) -> None:
    for scid in (OWN_BOB, BOB_DAVE, CAROL_DAVE, DAVE_ERIN):
        verbs.network.view.forget(scid)
    info = await verbs.info()
    assert (info.num_nodes, info.num_channels, info.total_capacity_sat, info.median_channel_sat) == (0, 0, 0, 0)
    assert [page async for page in verbs.pages()] == []
    with pytest.raises(NodeError, match="no public channel"):
        await verbs.node(node_id_of(BOB))


async def test_a_channel_with_what_was_learnt_of_it(verbs: FakeGraph) -> None:
    assert (await verbs.channel(BOB_DAVE)).known == (None, None)
    verbs.ways.scorer.stuck(verbs.network.graph, EdgeKey(BOB_DAVE, 0), 250_000_001, float(NOW))
    found = await verbs.channel(BOB_DAVE)
    assert found.known == ((0, 250_000_000), (750_000_000, 1_000_000_000))
    policy = found.channel.policies[0]
    assert policy is not None
    assert (policy.fee_base_msat, policy.fee_proportional_millionths) == (5_000, 300)


async def test_a_route_uses_private_channels_with_their_real_balance(verbs: FakeGraph) -> None:
    found = await verbs.find_routes(RouteQuery(destination=node_id_of(ERIN), amount_msat=AMOUNT_MSAT))
    (route,) = found.routes
    assert [hop.short_channel_id for hop in route.hops] == [PRIVATE, CAROL_DAVE, DAVE_ERIN]
    assert [hop.is_private for hop in route.hops] == [True, False, False]
    assert [hop.fee_msat for hop in route.hops] == [0, 1000 + 5_000 + 0, 1000 + 10_000]
    assert route.hops[0].probability == 1
    assert found.total_fee_msat == 17_000
    assert {found.aliases[hop.target] for hop in route.hops} == {"carol", "dave", "erin"}
    # The other way, and why not:
    assert any([hop.short_channel_id for hop in way.hops] == [OWN_BOB, BOB_DAVE, DAVE_ERIN] for way in found.runners_up)
    assert all(way.reason for way in (*found.cheaper, *found.runners_up))


async def test_whoever_else_pays_knows_nothing_of_our_private_channels(verbs: FakeGraph) -> None:
    """Asked as if another node paid, ways through what only we know would tell it."""
    query = RouteQuery(source=node_id_of(BOB), destination=node_id_of(CAROL), amount_msat=AMOUNT_MSAT)
    found = await verbs.find_routes(query)
    assert [hop.short_channel_id for hop in found.routes[0].hops] == [BOB_DAVE, CAROL_DAVE]
    used = {hop.short_channel_id for way in (*found.cheaper, *found.runners_up) for hop in way.hops}
    assert PRIVATE not in used


async def test_limits_are_kept_and_named(verbs: FakeGraph) -> None:
    query = RouteQuery(destination=node_id_of(ERIN), amount_msat=AMOUNT_MSAT)
    over_bob = await verbs.find_routes(
        RouteQuery(destination=node_id_of(ERIN), amount_msat=AMOUNT_MSAT, via_nodes=frozenset({node_id_of(BOB)}))
    )
    assert over_bob.routes[0].hops[0].short_channel_id == OWN_BOB
    for limits in (
        {"via_scids": frozenset({OWN_BOB})},
        {"avoid_scids": frozenset({CAROL_DAVE})},
        {"avoid_nodes": frozenset({node_id_of(CAROL)})},
        {"max_cltv_blocks": 150},
    ):
        found = await verbs.find_routes(replace(query, **limits))
        assert [hop.short_channel_id for hop in found.routes[0].hops] == [OWN_BOB, BOB_DAVE, DAVE_ERIN], limits
    none = await verbs.find_routes(replace(query, max_fee_msat=10_000))
    assert none.routes == ()
    assert "fees" in none.reason
    assert none.probability == 0
    assert any("the limit is 10,000 msat" in way.reason for way in none.cheaper)
    last = await verbs.find_routes(replace(query, last_hop_nodes=frozenset({node_id_of(BOB)})))
    assert last.routes == ()


async def test_more_than_one_channel_can_send_goes_in_parts(verbs: FakeGraph) -> None:
    query = RouteQuery(destination=node_id_of(ERIN), amount_msat=500_000_000)
    alone = await verbs.find_routes(query)
    assert alone.routes == ()
    assert "the most is 400,000,000 msat" in alone.reason
    found = await verbs.find_routes(replace(query, max_parts=4))
    assert {view.route.hops[0].short_channel_id for view in found.routes} == {OWN_BOB, PRIVATE}
    assert sum(view.route.amount_msat for view in found.routes) == 500_000_000
    assert found.why_split.startswith("As one part it does not go: ")
    assert 0 < found.probability < 1


def hinted_invoice(hint: bool) -> str:
    """Of a node that nobody knows, behind a private channel with erin."""
    invoice = Invoice(
        network=REGTEST,
        timestamp=NOW,
        payment_hash=bytes(32),
        payment_secret=bytes(32),
        payee=node_id_of(50),
        amount_msat=AMOUNT_MSAT,
        description="hinted",
        min_final_cltv_expiry_delta=30,
        features=frozenset({8, 14}),
        routing_hints=((RoutingHop(node_id_of(ERIN), HINTED, 7_000, 0, 20),),) if hint else (),
    )
    return encode_invoice(invoice, secret_of(50))


async def test_an_invoice_says_who_how_much_how_long_and_over_what(verbs: FakeGraph) -> None:
    found = await verbs.find_routes(RouteQuery(bolt11=hinted_invoice(True)))
    (route,) = found.routes
    assert [hop.short_channel_id for hop in route.hops] == [PRIVATE, CAROL_DAVE, DAVE_ERIN, HINTED]
    assert route.hops[-1].fee_msat == 7_000
    assert (found.destination, found.amount_msat) == (node_id_of(50), AMOUNT_MSAT)
    assert route.route.total_cltv_blocks == 30 + 20 + 40 + 144
    unknown = await verbs.find_routes(RouteQuery(bolt11=hinted_invoice(False)))
    assert unknown.routes == ()
    assert "not in the graph" in unknown.reason
    for query, match in (
        (RouteQuery(bolt11=hinted_invoice(True), destination=node_id_of(BOB)), "leave one of them out"),
        (RouteQuery(bolt11="lnbc1"), "invoice"),
    ):
        with pytest.raises(NodeError, match=match):
            await verbs.find_routes(query)


@pytest.mark.parametrize(
    ("query", "kind", "match"),
    [
        (RouteQuery(amount_msat=1), "invalid_argument", "who is to be paid"),
        (RouteQuery(destination=node_id_of(ERIN)), "invalid_argument", "how much"),
        (RouteQuery(destination=node_id_of(ERIN), amount_msat=10**17), "invalid_argument", "At most"),
        (RouteQuery(destination=node_id_of(ERIN), amount_msat=1, max_parts=17), "invalid_argument", "1 to 16 parts"),
        (
            RouteQuery(destination=node_id_of(ERIN), amount_msat=1, via_scids=frozenset({BOB_DAVE})),
            "invalid_argument",
            "no channel over which",
        ),
        (
            RouteQuery(destination=node_id_of(ERIN), amount_msat=1, via_nodes=frozenset({node_id_of(DAVE)})),
            "invalid_argument",
            "no channel with",
        ),
        (RouteQuery(destination=node_id_of(ERIN), amount_msat=1, source=node_id_of(9)), "not_found", "who would pay"),
    ],
)
async def test_questions_that_make_no_sense(verbs: FakeGraph, query: RouteQuery, kind: str, match: str) -> None:
    with pytest.raises(NodeError, match=match) as error:
        await verbs.find_routes(query)
    assert error.value.kind == kind


async def test_without_a_channel_nobody_can_be_paid(verbs: FakeGraph) -> None:
    verbs.ways.channels = ()
    with pytest.raises(NodeError, match="no channel that is open") as error:
        await verbs.find_routes(RouteQuery(destination=node_id_of(ERIN), amount_msat=1))
    assert error.value.kind == "failed_precondition"


async def test_exported_scores_say_nothing_of_private_channels(verbs: FakeGraph) -> None:
    scorer, graph = verbs.ways.scorer, verbs.network.graph
    scorer.stuck(graph, EdgeKey(BOB_DAVE, 0), 1_000_000, float(NOW))
    scorer.stuck(graph, EdgeKey(PRIVATE, 0), 1_000_000, float(NOW))
    for node_id in (node_id_of(DAVE), node_id_of(77)):
        scorer.node_failed(node_id, float(NOW))
    channels, nodes = await verbs.export_scores()
    assert [known.short_channel_id for known in channels] == [BOB_DAVE]
    assert [known.node_id for known in nodes] == [node_id_of(DAVE)]
    channels, nodes = await verbs.export_scores(include_private=True)
    assert (len(channels), len(nodes)) == (2, 2)


async def test_imported_scores_are_merged_or_replace_and_are_durable(verbs: FakeGraph) -> None:
    scorer, graph = verbs.ways.scorer, verbs.network.graph
    scorer.stuck(graph, EdgeKey(BOB_DAVE, 0), 1_000_000, float(NOW))
    older = ChannelKnowledge(BOB_DAVE, 5, 6, 1_000_000_000, NOW - 10.0)
    other = ChannelKnowledge(CAROL_DAVE, 5, 6, 1_000_000_000, NOW - 10.0)
    node = NodeKnowledge(node_id_of(DAVE), 3.0, NOW - 10.0)
    assert await verbs.import_scores([older, other], [node]) == (1, 1)
    kept = Scorer()
    kept.import_(verbs.saved)
    assert kept.knowledge() == scorer.knowledge()
    assert {known.short_channel_id: known.upper_msat for known in kept.knowledge()[0]} == {
        BOB_DAVE: 999_999,
        CAROL_DAVE: 6,
    }
    assert await verbs.import_scores([older], [], replace=True) == (1, 0)
    assert scorer.knowledge() == ([older], [])


async def test_knowledge_from_the_future_counts_as_of_now(verbs: FakeGraph) -> None:
    """Else it would never fade, nor give way to what is learnt here."""
    await verbs.import_scores([ChannelKnowledge(BOB_DAVE, 5, 6, 10, NOW + 1e9)], [])
    assert verbs.ways.scorer.knowledge()[0][0].learnt_seconds == NOW


@pytest.mark.parametrize(
    "wrong",
    [
        ChannelKnowledge(BOB_DAVE, 7, 6, 10, NOW),
        ChannelKnowledge(BOB_DAVE, 1, 11, 10, NOW),
        ChannelKnowledge(BOB_DAVE, 1, 2, 2**63, NOW),
        ChannelKnowledge(BOB_DAVE, 1, 2, 3, float("nan")),
        NodeKnowledge(b"short", 1.0, NOW),
        NodeKnowledge(node_id_of(DAVE), float("inf"), NOW),
        NodeKnowledge(node_id_of(DAVE), -1.0, NOW),
    ],
)
async def test_scores_that_cannot_be_change_nothing(verbs: FakeGraph, wrong: ChannelKnowledge | NodeKnowledge) -> None:
    good = ChannelKnowledge(CAROL_DAVE, 5, 6, 10, NOW)
    channels = [good, wrong] if isinstance(wrong, ChannelKnowledge) else [good]
    nodes = [wrong] if isinstance(wrong, NodeKnowledge) else []
    verbs.ways.scorer.stuck(verbs.network.graph, EdgeKey(BOB_DAVE, 0), 1_000_000, float(NOW))
    with pytest.raises(NodeError, match="nothing was imported"):
        await verbs.import_scores(channels, nodes, replace=True)
    assert [known.short_channel_id for known in verbs.ways.scorer.knowledge()[0]] == [BOB_DAVE]
    assert verbs.saved == b""


async def test_a_reset_is_durable(verbs: FakeGraph) -> None:
    verbs.ways.scorer.stuck(verbs.network.graph, EdgeKey(BOB_DAVE, 0), 1_000_000, float(NOW))
    verbs.ways.scorer.node_failed(node_id_of(DAVE), float(NOW))
    assert await verbs.reset_scores() == (1, 1)
    kept = Scorer()
    kept.import_(verbs.saved)
    assert kept.knowledge() == ([], [])
