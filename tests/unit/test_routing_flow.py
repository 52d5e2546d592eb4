"""Payments in parts: the sum, the limits, the reliability; beside every split there is, on small networks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from channeld.routing import (
    CostModel,
    EdgeKey,
    Graph,
    LocalChannel,
    NoRoute,
    Policy,
    Route,
    RouteRequest,
    Scorer,
    find_flow,
    find_route,
)
from tests.mainnet import mainnet
from tests.mainnet import node_id as mainnet_node
from tests.routing_support import NOW, Link, all_ways, build, check_route, links, node, policy, scid

FAST = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
ONLY_NATS = CostModel(lock_ppb_per_block=0, hop_msat=0, online_probability=1.0)


def split(graph: Graph, request: RouteRequest, max_parts: int = 16, scorer: Scorer | None = None) -> tuple[Route, ...]:
    routes = find_flow(graph, scorer or Scorer(), request, NOW, max_parts)
    assert not isinstance(routes, NoRoute), routes.reason
    return routes


def check_parts(
    graph: Graph,
    request: RouteRequest,
    routes: tuple[Route, ...],
    max_parts: int,
    extra: dict[EdgeKey, Policy] | None = None,
) -> dict[EdgeKey, int]:
    """Sum, fees, and that no channel carries more than it has; what each carries."""
    assert 1 <= len(routes) <= max_parts
    assert sum(route.amount_msat for route in routes) == request.amount_msat
    assert sum(route.total_fee_msat for route in routes) <= request.fee_limit_msat
    carried: dict[EdgeKey, int] = {}
    for route in routes:
        check_route(graph, request, route, extra)
        for hop in route.hops:
            carried[hop.key] = carried.get(hop.key, 0) + hop.amount_msat
    for key, amount_msat in carried.items():
        if (channel := graph.channel(key.short_channel_id)) is not None:
            assert amount_msat <= channel.capacity_sat * 1000
    return carried


@FAST
@given(
    links(most_links=16),
    st.sampled_from([1, 1_000, 30_000_001, 60_000_000, 150_000_000]),
    st.sampled_from([1, 2, 5, 16]),
    st.sampled_from([None, 0, 200_000]),
)
def test_parts_keep_all_limits(network: list[Link], amount_msat: int, max_parts: int, fee: int | None) -> None:
    graph = build(*network)
    request = RouteRequest(source=node(0), destination=node(1), amount_msat=amount_msat, max_fee_msat=fee)
    single = find_route(graph, Scorer(), request, NOW)
    routes = find_flow(graph, Scorer(), request, NOW, max_parts)
    if isinstance(routes, NoRoute):
        assert isinstance(single, NoRoute)
        return
    carried = check_parts(graph, request, routes, max_parts)
    # the parts' probabilities are conditional: their product is the chance that every channel has what it carries
    chance = 1.0
    for key, used_msat in carried.items():
        channel = graph.channel(key.short_channel_id)
        assert channel is not None
        chance *= (channel.capacity_sat * 1000 - used_msat + 1) / (channel.capacity_sat * 1000 + 1)
    later_hops = sum(len(route.hops) - 1 for route in routes)
    chance *= request.model.online_probability**later_hops
    assert math.prod(route.probability for route in routes) == pytest.approx(chance, rel=1e-6)
    if isinstance(single, Route):
        extra = request.model.hop_msat * (len(routes) - 1)
        assert sum(route.cost_msat for route in routes) + extra <= single.cost_msat * (1 + 1e-9) + 1e-6


@FAST
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([1, 2, 3, 5, 9])), min_size=1, max_size=7)
)
def test_no_split_of_four_units_is_more_reliable(shape: list[tuple[int, int, int]]) -> None:
    free = policy(0, 0, 0)
    unit = 1_000_000_000
    network = [Link(min(a, b), max(a, b), free, free, size * unit // 990) for a, b, size in shape if a != b]
    graph = build(*network)
    one = RouteRequest(source=node(0), destination=node(3), amount_msat=unit, model=ONLY_NATS)
    ways = [way.keys for way in all_ways(graph, Scorer(), one)]
    assume(1 <= len(ways) <= 8)
    best = max(_chance(graph, ways, picks, unit) for picks in itertools.combinations_with_replacement(ways, 4))
    answer = find_flow(graph, Scorer(), replace(one, amount_msat=4 * unit), NOW, 4)
    if isinstance(answer, NoRoute):
        assert best == 0.0
        return
    chance = math.prod(route.probability for route in answer)
    assert chance >= min(0.9, best * (1 - 1e-6))


def _chance(graph: Graph, ways: list[tuple[EdgeKey, ...]], picks: tuple[tuple[EdgeKey, ...], ...], unit: int) -> float:
    used: dict[EdgeKey, int] = {}
    for key in itertools.chain.from_iterable(picks):
        used[key] = used.get(key, 0) + unit
    chance = 1.0
    for key, amount_msat in used.items():
        channel = graph.channel(key.short_channel_id)
        assert channel is not None
        capacity = channel.capacity_sat * 1000
        chance *= max(0.0, (capacity - amount_msat + 1) / (capacity + 1))
    return chance


def test_one_part_where_that_is_enough() -> None:
    graph = build(Link(0, 1), Link(1, 2), Link(0, 3), Link(2, 3))
    request = RouteRequest(source=node(0), destination=node(2), amount_msat=1_000_000)
    assert len(split(graph, request)) == 1


def test_alike_channels_share_alike() -> None:
    middle = [Link(0, number, capacity_sat=1_000_000) for number in range(1, 5)]
    graph = build(*middle, *(Link(number, 9, capacity_sat=1_000_000) for number in range(1, 5)))
    request = RouteRequest(source=node(0), destination=node(9), amount_msat=2_000_000_000)
    routes = split(graph, request)
    check_parts(graph, request, routes, 16)
    assert sorted(route.amount_msat for route in routes) == [500_000_000] * 4


def test_fees_that_do_not_fit_are_routed_around() -> None:
    # two channels of exactly half the amount: the fee of what follows them does not fit into the first of them
    graph = build(
        Link(0, 1, capacity_sat=500_000),
        Link(1, 9, policy(0, 1000), capacity_sat=500_000),
        Link(0, 2, capacity_sat=600_000),
        Link(2, 9, policy(0, 1000), capacity_sat=600_000),
        Link(0, 3, capacity_sat=600_000),
        Link(3, 9, policy(0, 90_000), capacity_sat=600_000),
    )
    request = RouteRequest(source=node(0), destination=node(9), amount_msat=1_000_000_000)
    routes = split(graph, request, 2)
    check_parts(graph, request, routes, 2)


def test_own_balances_are_shared_by_the_parts() -> None:
    graph = build(*(Link(number, 9, policy(1000, 10)) for number in range(1, 4)))
    mine = tuple(LocalChannel(scid(50 + number), node(number), 40_000_000 * number) for number in range(1, 4))
    extra = {EdgeKey(channel.short_channel_id, 0): policy(0, 0, 0) for channel in mine}
    request = RouteRequest(source=node(0), destination=node(9), amount_msat=200_000_000, local_channels=mine)
    routes = split(graph, request)
    carried = check_parts(graph, request, routes, 16, extra)
    for channel in mine:
        assert carried.get(EdgeKey(channel.short_channel_id, 0), 0) <= channel.spendable_msat
    answer = find_flow(graph, Scorer(), replace(request, amount_msat=240_000_001), NOW)
    assert isinstance(answer, NoRoute)
    assert "all ways together can carry about" in answer.reason


def test_a_payment_larger_than_every_htlc_limit() -> None:
    tight = policy(most=100_000_000)
    graph = build(Link(0, 1, tight, tight), Link(1, 2, tight, tight))
    request = RouteRequest(source=node(0), destination=node(2), amount_msat=350_000_000)
    assert isinstance(find_route(graph, Scorer(), request, NOW), NoRoute)
    routes = split(graph, request)
    check_parts(graph, request, routes, 16)
    assert len(routes) >= 4
    assert isinstance(find_flow(graph, Scorer(), request, NOW, 3), NoRoute)


def test_what_was_learnt_and_what_is_in_flight_count() -> None:
    graph, scorer = build(Link(0, 1), Link(1, 3), Link(0, 2), Link(2, 3)), Scorer()
    scorer.stuck(graph, EdgeKey(scid(1), 0), 4_000_000_000, NOW)
    busy = {EdgeKey(scid(3), 0): 9_000_000_000}
    request = RouteRequest(source=node(0), destination=node(3), amount_msat=4_500_000_000, in_flight=busy)
    carried = check_parts(graph, request, split(graph, request, 16, scorer), 16)
    assert carried[EdgeKey(scid(1), 0)] < 4_000_000_000
    assert carried[EdgeKey(scid(3), 0)] <= 1_000_000_000


def test_the_fee_limit_holds_for_the_sum() -> None:
    sizes = 1_001_000
    graph = build(
        Link(0, 1, capacity_sat=sizes),
        Link(1, 9, policy(0, 0), capacity_sat=sizes),
        Link(0, 2, capacity_sat=9 * sizes),
        Link(2, 9, policy(0, 10_000), capacity_sat=9 * sizes),
    )
    request = RouteRequest(source=node(0), destination=node(9), amount_msat=1_000_000_000)
    free = sum(route.total_fee_msat for route in split(graph, request))
    assert free > 0
    limited = replace(request, max_fee_msat=free - 1)
    check_parts(graph, limited, split(graph, limited), 16)


def test_removed_channels_carry_nothing() -> None:
    """They leave a gap in the tables, which the solver must not be shown: it would take the process down."""
    small = [Link(0, 1, capacity_sat=1_000_000), Link(1, 2, capacity_sat=1_000_000)]
    graph = build(*small, *small)
    graph.remove_channel(scid(2))
    graph.remove_channel(scid(3))
    local = LocalChannel(scid(0), node(1), 900_000_000, 1)
    request = RouteRequest(
        source=node(0), destination=node(2), amount_msat=1_500_000_000, local_channels=(local,), max_fee_msat=10_000_000
    )
    assert isinstance(find_flow(graph, Scorer(), request, NOW), NoRoute)


def test_bad_arguments() -> None:
    graph = build(Link(0, 1))
    request = RouteRequest(source=node(0), destination=node(1), amount_msat=5)
    with pytest.raises(ValueError, match="at least one part"):
        find_flow(graph, Scorer(), request, NOW, 0)
    circle = replace(request, destination=node(0))
    assert isinstance(find_flow(graph, Scorer(), circle, NOW), NoRoute)
    assert isinstance(find_flow(graph, Scorer(), replace(request, destination=node(8)), NOW), NoRoute)


def test_mainnet_tenth_of_a_bitcoin() -> None:
    graph = mainnet()
    for source, target in ((0, 418), (816, 0), (10, 816)):
        request = RouteRequest(
            source=mainnet_node(source), destination=mainnet_node(target), amount_msat=10_000_000_000
        )
        routes = split(graph, request)
        check_parts(graph, request, routes, 16)


def _circle(*locals_: LocalChannel, back: tuple[int, ...], **fields: Any) -> RouteRequest:
    """From node 0 to itself: it comes back from some nodes only."""
    incoming = frozenset(node(number) for number in back)
    return RouteRequest(
        source=node(0),
        destination=node(0),
        local_channels=locals_,
        incoming_nodes=incoming,
        max_fee_msat=10**6,
        **fields,
    )


def test_a_circular_payment_is_split_if_no_channel_is_first_and_last() -> None:
    # 0 - 1, then to 2 and to 3, each of which leads back to 0
    graph = build(Link(0, 1), Link(1, 2), Link(1, 3), Link(0, 2), Link(0, 3))
    first = LocalChannel(scid(0), node(1), 9_000_000_000)
    known = {EdgeKey(scid(3), 1): (4_000_000_000,) * 2, EdgeKey(scid(4), 1): (3_500_000_000,) * 2}
    request = _circle(first, back=(2, 3), amount_msat=7_000_000_000, liquidity=known)
    routes = split(graph, request)
    carried = check_parts(graph, request, routes, 16)
    for key, (_, most_msat) in known.items():
        assert carried[key] <= most_msat
    assert {route.hops[0].short_channel_id for route in routes} == {scid(0)}
    assert {route.hops[-1].node_id for route in routes} == {node(0)}
    assert {len(route.hops) for route in routes} == {3}
    too_much = find_flow(graph, Scorer(), replace(request, amount_msat=7_600_000_000), NOW)
    assert isinstance(too_much, NoRoute)


def test_a_circular_payment_that_might_turn_round_is_one_part() -> None:
    graph = build(Link(0, 1), Link(1, 2), Link(0, 2), Link(1, 3), Link(0, 3))
    firsts = LocalChannel(scid(0), node(1), 9_000_000_000), LocalChannel(scid(2), node(2), 9_000_000_000)
    request = _circle(*firsts, back=(2, 3), amount_msat=7_000_000_000)
    (route,) = split(graph, request)
    assert route.hops[0].short_channel_id != route.hops[-1].short_channel_id
    whole = find_flow(graph, Scorer(), replace(request, amount_msat=12_000_000_000), NOW)
    assert isinstance(whole, NoRoute)


@pytest.mark.parametrize(
    ("least", "most", "passes"), [(0, 10**9, True), (0, 10**9 - 1, False), (2 * 10**9, 3 * 10**9, True)]
)
def test_what_the_payer_knows_for_certain_cuts_what_was_learnt(least: int, most: int, passes: bool) -> None:
    graph = build(Link(0, 1), Link(1, 2))
    key = EdgeKey(scid(1), 0)
    scorer = Scorer()
    if least:
        scorer.stuck(graph, key, 1_000, NOW)
    request = RouteRequest(source=node(0), destination=node(2), amount_msat=10**9, liquidity={key: (least, most)})
    assert isinstance(find_route(graph, scorer, request, NOW), Route) is passes
    assert isinstance(find_flow(graph, scorer, request, NOW), NoRoute) is not passes
