"""Single paths: the best of all, exact, within limits; hints, own channels, circles, traps, reasons for none."""

from __future__ import annotations

import subprocess
import sys
from math import inf
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from channeld.bolt.invoice import RoutingHop
from channeld.bolt.primitives import format_short_channel_id
from channeld.routing import (
    FEES_ONLY,
    BlindedPathTerms,
    CostModel,
    EdgeKey,
    ExtraEdge,
    Graph,
    LocalChannel,
    NoRoute,
    Route,
    RouteRequest,
    Scorer,
    blinded_edges,
    costs,
    explain,
    find_route,
    hint_edges,
    prices,
)
from channeld.routing.hints import BLINDED_DESTINATION
from channeld.routing.scoring import ScorerConfig
from tests.mainnet import mainnet
from tests.mainnet import node_id as mainnet_node
from tests.routing_support import NOW, Link, Way, all_ways, build, check_route, links, node, policy, scid

FAST = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

requests = st.builds(
    RouteRequest,
    source=st.just(node(0)),
    destination=st.sampled_from([node(1), node(2), node(0)]),
    amount_msat=st.sampled_from([1, 999, 1_000_000, 20_000_000, 40_000_000]),
    max_fee_msat=st.sampled_from([None, None, 0, 1500, 30_000, 3_000_000]),
    max_cltv_blocks=st.sampled_from([2016, 2016, 18, 200]),
    max_hops=st.sampled_from([20, 20, 1, 2, 3]),
    model=st.sampled_from([CostModel(), CostModel(), FEES_ONLY, CostModel(lock_ppb_per_block=10_000)]),
)
lessons = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 1), st.booleans(), st.sampled_from([500, 10**6, 30 * 10**6])),
    max_size=6,
)


def ask(graph: Graph, request: RouteRequest, scorer: Scorer | None = None) -> Route:
    route = find_route(graph, scorer or Scorer(), request, NOW)
    assert isinstance(route, Route), route
    return route


def refusal(graph: Graph, request: RouteRequest, scorer: Scorer | None = None) -> str:
    answer = find_route(graph, scorer or Scorer(), request, NOW)
    assert isinstance(answer, NoRoute), answer
    return answer.reason


def teach(graph: Graph, scorer: Scorer, taught: list[tuple[int, int, bool, int]], channels: int) -> None:
    for number, direction, passed, amount in taught:
        if number < channels:
            (scorer.passed if passed else scorer.stuck)(graph, EdgeKey(scid(number), direction), amount, NOW - 7200)


def pay(target: int = 2, amount_msat: int = 1_000_000, source: int = 0) -> RouteRequest:
    return RouteRequest(source=node(source), destination=node(target), amount_msat=amount_msat)


def is_lifted(way: Way, network: list[Link], amount_msat: int) -> bool:
    """Whether only the fees on the way lift the amount above some channel's minimum."""
    for key in way.keys:
        link = network[(key.short_channel_id - scid(0)) >> 16]
        said = link.back if key.direction else link.forth
        assert said is not None
        if said.htlc_minimum_msat > amount_msat:
            return True
    return False


@FAST
@given(links(), requests, lessons, st.dictionaries(st.integers(0, 11), st.sampled_from([1, 10**7]), max_size=2))
def test_no_path_is_better_than_the_one_found(
    network: list[Link], request: RouteRequest, taught: list[tuple[int, int, bool, int]], busy: dict[int, int]
) -> None:
    graph, scorer = build(*network), Scorer()
    teach(graph, scorer, taught, len(network))
    request = replace(
        request,
        in_flight={EdgeKey(scid(number), 0): amount for number, amount in busy.items()},
        ignored_channels=frozenset({EdgeKey(scid(number), 1) for number in busy}),
    )
    ways = list(all_ways(graph, scorer, request))
    plain = [way.cost_msat for way in ways if not is_lifted(way, network, request.amount_msat)]
    answer = find_route(graph, scorer, request, NOW)
    if isinstance(answer, NoRoute):
        assert not plain, answer.reason
        return
    check_route(graph, request, answer)
    assert answer.total_fee_msat <= request.fee_limit_msat
    best = min(way.cost_msat for way in ways)
    is_best = answer.cost_msat == pytest.approx(best, rel=1e-9, abs=1e-6)
    assert is_best or best < answer.cost_msat <= min(plain, default=inf)
    mine = next(way for way in ways if way.keys == tuple(hop.key for hop in answer.hops))
    assert mine.amounts == tuple(hop.amount_msat for hop in answer.hops)
    assert (mine.total_msat, mine.blocks) == (answer.total_amount_msat, answer.total_cltv_blocks)


@FAST
@given(links(), requests, st.booleans())
def test_few_edges_are_as_far_as_many(network: list[Link], request: RouteRequest, backward: bool) -> None:
    problem = costs.lay_out(build(*network), Scorer(), request, NOW)
    if problem.target_index < 0:
        return
    weights = problem.floor(request.model)
    assert len(weights) <= costs._FEW_EDGES
    few = problem.distances(weights, backward=backward)
    with mock.patch.object(costs, "_FEW_EDGES", 0):
        assert few == pytest.approx(problem.distances(weights, backward=backward), rel=1e-12)
        answer = find_route(build(*network), Scorer(), request, NOW)
    assert isinstance(answer, NoRoute) == isinstance(find_route(build(*network), Scorer(), request, NOW), NoRoute)


@settings(FAST, max_examples=50)
@given(links(), requests, lessons, st.booleans())
def test_edges_cost_the_same_one_by_one_and_together(
    network: list[Link], request: RouteRequest, taught: list[tuple[int, int, bool, int]], bimodal: bool
) -> None:
    graph = build(*network)
    scorer = Scorer(ScorerConfig(distribution="bimodal" if bimodal else "uniform"))
    teach(graph, scorer, taught, len(network))
    answers = []
    for few in (0, 1_000):
        with mock.patch.object(prices, "FEW_EDGES", few):
            problem = costs.lay_out(graph, scorer, request, NOW)
            answers.append((problem.floor(request.model).tolist(), find_route(graph, scorer, request, NOW)))
    assert answers[0] == answers[1]


def test_the_example_of_bolt_7() -> None:
    # BOLT 7, "Routing Example": A - B - C and A - D - C, all channels alike but for their fees; shadow route of 42
    graph = build(
        Link(1, 2, policy(100, 1000, 10), policy(200, 2000, 20)),  # A -> B is direction 0
        Link(1, 4, policy(100, 1000, 10), policy(400, 4000, 40)),
        Link(2, 3, policy(200, 2000, 20), policy(300, 3000, 30)),
        Link(3, 4, policy(300, 3000, 30), policy(400, 4000, 40)),
    )
    request = RouteRequest(
        source=node(1), destination=node(3), amount_msat=4_999_999, final_cltv_expiry_delta=9 + 42, block_height=700_000
    )
    by_b = ask(graph, request)
    assert [hop.node_id for hop in by_b.hops] == [node(2), node(3)]
    assert by_b.hops[0].amount_msat == 5_010_198
    assert by_b.hops[0].cltv_expiry == 700_000 + 20 + 9 + 42
    assert (by_b.hops[0].amt_to_forward_msat, by_b.hops[0].outgoing_cltv_value) == (4_999_999, 700_000 + 9 + 42)
    by_d = ask(graph, replace(request, ignored_nodes=frozenset({node(2)})))
    assert by_d.hops[0].amount_msat == 5_020_398
    assert by_d.hops[0].cltv_expiry == 700_000 + 40 + 9 + 42


def test_free_loops_and_parallel_channels_do_no_harm() -> None:
    free = policy(0, 0, 0)
    ring = [Link(first, second, free, free) for first in range(1, 8) for second in range(first + 1, 8)]
    graph = build(Link(0, 1), *ring, *ring, Link(7, 8, policy(1000), policy()))
    for model in (CostModel(), FEES_ONLY):
        route = ask(graph, replace(pay(8), model=model))
        assert [hop.node_id for hop in route.hops] == [node(1), node(7), node(8)]


def test_a_cheap_trap_behind_absurd_fees() -> None:
    graph = build(
        Link(0, 1), Link(1, 2, policy(0, 1_000_000, 1)), Link(2, 3), Link(1, 3, policy(2**32 - 1, 2**32 - 1, 65535))
    )
    route = ask(graph, pay(3))
    assert route.total_fee_msat == 1_000_000  # half of what node 1 gets is its fee, and allowed by default
    assert "fees" in refusal(graph, replace(pay(3), max_fee_msat=999_999))


def test_balances_of_our_own_channels_decide_the_first_hop() -> None:
    graph = build(Link(0, 1), Link(0, 2), Link(1, 3, policy(5000)), Link(2, 3))
    mine = LocalChannel(scid(0), node(1), 2_000_000), LocalChannel(scid(1), node(2), 999_999)
    request = replace(pay(3), local_channels=mine)
    route = ask(graph, request)
    assert [hop.short_channel_id for hop in route.hops] == [scid(0), scid(2)]
    assert route.hops[0].probability == 1.0
    assert route.total_fee_msat == 5000
    small = ask(graph, replace(request, amount_msat=500_000))
    assert [hop.short_channel_id for hop in small.hops] == [scid(1), scid(3)]
    assert (
        refusal(graph, replace(request, amount_msat=2_000_001))
        == "no channel of the source can send 2,000,001 msat at once; the most is 2,000,000 msat"
    )
    assert refusal(graph, replace(request, local_channels=())) == "the source has no usable channel"


def test_an_unannounced_payer_and_an_unannounced_payee_with_hints() -> None:
    graph = build(Link(1, 2), Link(2, 3, policy(1000, 100)))
    hop = RoutingHop(
        pubkey=node(3),
        short_channel_id=scid(77),
        fee_base_msat=7,
        fee_proportional_millionths=3,
        cltv_expiry_delta=14,
    )
    beyond = RoutingHop(
        pubkey=node(50),
        short_channel_id=scid(78),
        fee_base_msat=11,
        fee_proportional_millionths=0,
        cltv_expiry_delta=6,
    )
    edges = hint_edges(node(99), [(hop, beyond)])
    assert [(edge.source, edge.target) for edge in edges] == [(node(3), node(50)), (node(50), node(99))]
    request = RouteRequest(
        source=node(98),
        destination=node(99),
        amount_msat=10_000_000,
        local_channels=(LocalChannel(scid(76), node(1), 20_000_000),),
        extra_edges=edges,
    )
    route = ask(graph, request)
    first = EdgeKey(scid(76), 1)
    check_route(graph, request, route, {first: policy(0, 0, 0)} | {_key(edge): edge.policy for edge in edges})
    assert [hop.node_id for hop in route.hops] == [node(1), node(2), node(3), node(50), node(99)]
    scorer = Scorer()
    scorer.stuck(graph, _key(edges[0]), 10_000_000, NOW)
    assert isinstance(find_route(graph, scorer, request, NOW), NoRoute)
    assert isinstance(find_route(graph, scorer, replace(request, amount_msat=1_000_000), NOW), Route)
    assert "not in the graph" in refusal(graph, replace(request, extra_edges=()))


def _key(edge: ExtraEdge) -> EdgeKey:
    return EdgeKey(edge.short_channel_id, int(edge.source > edge.target))


def test_a_hint_can_be_a_shortcut_between_public_nodes() -> None:
    graph = build(Link(0, 1), Link(1, 2, policy(9000)), Link(2, 3))
    shortcut = ExtraEdge(scid(40), node(1), node(2), policy(1))
    assert ask(graph, pay(3)).total_fee_msat == 9000
    route = ask(graph, replace(pay(3), extra_edges=(shortcut,)))
    assert route.total_fee_msat == 1
    assert [hop.short_channel_id for hop in route.hops] == [scid(0), scid(40), scid(2)]


def test_blinded_paths_are_last_edges() -> None:
    graph = build(Link(0, 1), Link(0, 2))
    paths = BlindedPathTerms(node(1), 500, 100, 60), BlindedPathTerms(node(2), 300, 100, 90, 1000, 10_000_000)
    request = RouteRequest(
        source=node(0),
        destination=BLINDED_DESTINATION,
        amount_msat=1_000_000,
        final_cltv_expiry_delta=0,
        extra_edges=blinded_edges(paths),
    )
    route = ask(graph, request)
    assert route.hops[-1].short_channel_id == 1
    assert route.hops[0].amount_msat == 1_000_000 + 300 + 100
    assert route.total_cltv_blocks == 90
    assert ask(graph, replace(request, amount_msat=10_000_001)).hops[-1].short_channel_id == 0
    scorer = Scorer()
    scorer.route_failed(graph, route, 1, NOW)
    assert len(scorer) == 1  # the real channel; a path's index says nothing of the next invoice


def test_circular_payments_leave_and_come_back_by_different_channels() -> None:
    graph = build(Link(0, 1), Link(0, 2, policy(), policy(10)), Link(1, 2, policy(5)), Link(0, 1, None, policy(1)))
    request = pay(0)
    back = ask(graph, request)
    assert [hop.short_channel_id for hop in back.hops] in ([scid(0), scid(3)], [scid(3), scid(0)])
    far = ask(graph, replace(request, outgoing_scids=frozenset({scid(0)}), incoming_nodes=frozenset({node(2)})))
    assert [hop.short_channel_id for hop in far.hops] == [scid(0), scid(2), scid(1)]
    assert far.total_fee_msat == 15
    check_route(graph, request, far)
    lonely = build(Link(0, 1), Link(1, 2))
    assert isinstance(find_route(lonely, Scorer(), pay(0), NOW), NoRoute)


def test_a_fee_limit_that_the_best_route_breaks_finds_another() -> None:
    # the improbable way is free, the likely one costs 3000 msat
    graph = build(
        Link(0, 1), Link(1, 2, policy(0, 0), capacity_sat=1100), Link(0, 3), Link(2, 3, policy(), policy(3000))
    )
    assert ask(graph, pay()).total_fee_msat == 3000
    assert ask(graph, replace(pay(), max_fee_msat=2999)).total_fee_msat == 0


def test_many_competing_labels_still_end_within_the_limits() -> None:
    # a ladder of forks, each rung either dear or slow: the limits decide which combinations are left
    rungs = []
    for number in range(12):
        rungs += [Link(number, number + 1, policy(1000 + number, 0, 0)), Link(number, number + 1, policy(0, 0, 150))]
    graph = build(*rungs)
    model = CostModel(failure_base_msat=0, failure_ppm=0, lock_ppb_per_block=1)
    request = replace(pay(12), model=model, max_fee_msat=4400, max_cltv_blocks=18 + 150 * 8)
    route = ask(graph, request)
    check_route(graph, request, route)
    assert route.total_fee_msat <= 4400
    reason = refusal(graph, replace(request, max_fee_msat=3000))
    assert "limit" in reason


def test_terms_for_one_search_alone() -> None:
    graph = build(Link(0, 1), Link(1, 2, policy(100)), Link(1, 2, policy(200)))
    request = RouteRequest(source=node(0), destination=node(2), amount_msat=1_000_000)
    assert ask(graph, request).hops[1].short_channel_id == scid(1)
    dearer = {EdgeKey(scid(1), 0): policy(300, delta=50)}
    assert ask(graph, replace(request, policies=dearer)).total_fee_msat == 200
    only = replace(request, policies=dearer, ignored_channels=frozenset({EdgeKey(scid(2), 0)}))
    assert (ask(graph, only).total_fee_msat, ask(graph, only).hops[0].cltv_expiry_delta) == (300, 50)
    closed = replace(only, policies={EdgeKey(scid(1), 0): policy(enabled=False)})
    assert refusal(graph, closed)
    assert ask(graph, request).total_fee_msat == 100


def test_reasons() -> None:
    graph = build(
        Link(0, 1, capacity_sat=2000),
        Link(1, 2, policy(5000, 0, 500), capacity_sat=1500),
        Link(3, 4),
        Link(2, 5, policy(enabled=False), None),
    )
    graph.set_node_features(node(77), 0)
    assert refusal(graph, pay(9)) == "the destination is not in the graph, and no hint leads to it"
    assert refusal(graph, pay(77)) == "the destination has no usable channel"
    assert refusal(graph, pay(2, 1_600_000)) == (
        "no channel into the destination can carry 1,600,000 msat at once; the most is 1,500,000 msat"
    )
    assert refusal(graph, pay(4)) == "no way for 1,000,000 msat connects the source with the destination"
    assert refusal(graph, pay(5)) == "the destination has no usable channel"
    assert refusal(graph, replace(pay(), max_fee_msat=4999)) == (
        "the cheapest way costs at least 5,000 msat in fees, the limit is 4,999 msat"
    )
    assert refusal(graph, replace(pay(), max_cltv_blocks=517)) == (
        "every way locks funds for at least 518 blocks, the limit is 517"
    )
    assert refusal(graph, replace(pay(), max_hops=1)) == "every way has at least 2 hops, the limit is 1"
    with pytest.raises(ValueError, match="between 1 and"):
        find_route(graph, Scorer(), pay(2, 0), NOW)


def test_required_features_of_forwarding_nodes() -> None:
    graph = build(Link(0, 1), Link(1, 3), Link(0, 2), Link(2, 3, policy(100)))
    wanted = 1 << 38
    graph.set_node_features(node(2), 1 << 39)
    assert ask(graph, pay(3)).total_fee_msat == 0
    assert ask(graph, replace(pay(3), required_features=wanted)).total_fee_msat == 100


def test_nodes_that_require_what_we_do_not_know_forward_nothing() -> None:
    """BOLT 7, "if `features` field contains _unknown even bits_: [...] MUST NOT route a payment _through_ the node"."""
    graph = build(Link(0, 1), Link(1, 3), Link(0, 2), Link(2, 3, policy(100)))
    for harmless in (1 << 1001, 1 << 9, 0):  # odd, known, none
        graph.set_node_features(node(1), harmless)
        assert ask(graph, pay(3)).total_fee_msat == 0
    graph.set_node_features(node(1), 1 << 1000)
    assert ask(graph, pay(3)).total_fee_msat == 100
    assert ask(graph, pay(1)).total_fee_msat == 0  # it may be paid: its invoice says what it wants
    assert ask(graph.copy(), pay(3)).total_fee_msat == 100
    assert ask(Graph.from_bytes(graph.to_bytes()), pay(3)).total_fee_msat == 100
    assert ask(graph, replace(pay(3), source=node(1))).total_fee_msat == 0  # whoever pays forwards nothing
    reasons = explain(graph, Scorer(), pay(3), NOW).cheaper
    assert [str(obstacle) for way in reasons for obstacle in way.obstacles] == [
        f"channel {format_short_channel_id(scid(1))} belongs to a node without the features that are needed, or with "
        "some that are not known here"
    ]
    graph.set_node_features(node(2), 1 << 1000)
    assert isinstance(find_route(graph, Scorer(), pay(3), NOW), NoRoute)
    graph.set_node_features(node(1), 0)
    assert ask(graph, pay(3)).total_fee_msat == 0
    graph.remove_node(node(2))
    assert graph.unfit_nodes() == []


def test_mainnet_routes_are_exact_and_beat_the_cheapest_path_in_cost() -> None:
    graph = mainnet()
    for target, amount_msat in ((816, 10_000_000), (418, 123_456_789), (1500, 1_000_000_000)):
        request = RouteRequest(source=mainnet_node(0), destination=mainnet_node(target), amount_msat=amount_msat)
        route = ask(graph, request)
        check_route(graph, request, route)
        plain = ask(graph, replace(request, model=FEES_ONLY))
        check_route(graph, request, plain)
        assert plain.total_fee_msat <= route.total_fee_msat
        assert plain.probability <= route.probability


def test_numpy_waits_until_the_graph_is_used() -> None:
    code = (
        "import sys, channeld.node, channeld.routing\n"
        "channeld.routing.RouteRequest\n"
        "assert not {'numpy', 'scipy', 'ortools'} & set(sys.modules)\n"
        "channeld.routing.Graph\n"
        "assert 'numpy' in sys.modules and 'scipy' not in sys.modules and 'ortools' not in sys.modules\n"
        "channeld.routing.find_route\n"
        "assert 'scipy' in sys.modules and 'ortools' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
