"""What is learnt of liquidity, how it fades, what it says of the next payment, and how it is kept."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channeld.bolt.invoice import RoutingHop
from channeld.routing import EdgeKey, Route, RouteRequest, Scorer, find_route
from channeld.routing.hints import hint_edges
from channeld.routing.scoring import Distribution, ScorerConfig
from channeld.routing.values import Hop
from tests.routing_support import NOW, Link, build, node, scid

CAPACITY_MSAT = 10_000_000_000
FORTH, BACK = EdgeKey(scid(0), 0), EdgeKey(scid(0), 1)
HALF_LIFE_SECONDS = ScorerConfig().liquidity_half_life_seconds


@given(
    st.integers(0, CAPACITY_MSAT),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, CAPACITY_MSAT), st.integers(0, 10**5)), max_size=12),
)
def test_bounds_never_exclude_the_truth(balance_msat: int, probes: list[tuple[int, int, int]]) -> None:
    graph, scorer, now = build(Link(0, 1)), Scorer(), NOW
    for direction, amount_msat, pause_seconds in probes:
        now += pause_seconds
        have = CAPACITY_MSAT - balance_msat if direction else balance_msat
        (scorer.passed if amount_msat <= have else scorer.stuck)(graph, EdgeKey(scid(0), direction), amount_msat, now)
        forth, back = scorer.bounds(graph, FORTH, now), scorer.bounds(graph, BACK, now)
        assert forth is not None
        assert back is not None
        assert 0 <= forth[0] <= balance_msat <= forth[1] <= CAPACITY_MSAT
        assert back == (CAPACITY_MSAT - forth[1], CAPACITY_MSAT - forth[0])


def test_knowledge_fades_by_half() -> None:
    graph, scorer = build(Link(0, 1)), Scorer()
    scorer.passed(graph, FORTH, 2_000_000_000, NOW)
    scorer.stuck(graph, FORTH, 4_000_000_001, NOW)
    assert scorer.bounds(graph, FORTH, NOW) == (2_000_000_000, 4_000_000_000)
    assert scorer.bounds(graph, FORTH, NOW + HALF_LIFE_SECONDS) == (1_000_000_000, 7_000_000_000)
    assert scorer.bounds(graph, FORTH, NOW - 100) == (2_000_000_000, 4_000_000_000)  # a clock that was set back
    assert scorer.forget_old(NOW + 11 * HALF_LIFE_SECONDS) == 0
    assert scorer.forget_old(NOW + 13 * HALF_LIFE_SECONDS) == 1
    assert scorer.bounds(graph, FORTH, NOW) is None


def test_the_newest_word_wins_when_words_contradict() -> None:
    graph, scorer = build(Link(0, 1)), Scorer()
    scorer.passed(graph, FORTH, 3_000, NOW)
    scorer.stuck(graph, FORTH, 2_000, NOW)
    assert scorer.bounds(graph, FORTH, NOW) == (1_999, 1_999)
    scorer.passed(graph, FORTH, 5_000, NOW)
    assert scorer.bounds(graph, FORTH, NOW) == (5_000, 5_000)


def test_a_settled_payment_moves_the_balance() -> None:
    graph, scorer = build(Link(0, 1), Link(1, 2)), Scorer()
    request = RouteRequest(source=node(0), destination=node(2), amount_msat=1_000_000_000)
    route = find_route(graph, scorer, request, NOW)
    assert isinstance(route, Route)
    scorer.route_succeeded(graph, route, NOW)
    assert scorer.bounds(graph, FORTH, NOW) == (0, CAPACITY_MSAT - 1_000_000_000)
    assert scorer.bounds(graph, BACK, NOW) == (1_000_000_000, CAPACITY_MSAT)


@pytest.mark.parametrize("direction", [0, 1])
def test_what_passed_a_hinted_channel_is_no_limit_of_it(direction: int) -> None:
    """Nobody knows its capacity: only what failed there counts, until more than that passes."""
    graph, scorer, assumed_msat = build(Link(0, 1)), Scorer(), 10**12
    hop = Hop(scid(7), direction, node(9), 20_000, 100, 20_000, 100, 0, 0, 1.0)
    route = Route(node(1), (hop,), 20_000, 0, 100, 1.0, 0.0)
    scorer.route_succeeded(graph, route, NOW)
    assert scorer.extra_bounds(hop.key, assumed_msat, NOW) == (assumed_msat, assumed_msat)
    scorer.stuck(graph, hop.key, 50_000, NOW)
    assert scorer.extra_bounds(hop.key, assumed_msat, NOW)[1] == 49_999
    scorer.route_succeeded(graph, route, NOW)  # what was sent is on the other side
    assert scorer.extra_bounds(hop.key, assumed_msat, NOW)[1] == 29_999
    scorer.passed(graph, hop.key, 60_000, NOW)
    assert scorer.extra_bounds(hop.key, assumed_msat, NOW) == (assumed_msat, assumed_msat)


def test_a_failure_teaches_of_every_hop_up_to_it() -> None:
    graph, scorer = build(Link(0, 1), Link(1, 2), Link(2, 3)), Scorer()
    request = RouteRequest(source=node(0), destination=node(3), amount_msat=1_000_000)
    route = find_route(graph, scorer, request, NOW)
    assert isinstance(route, Route)
    scorer.route_failed(graph, route, 1, NOW, in_flight={route.hops[0].key: 500})
    assert scorer.bounds(graph, EdgeKey(scid(0), 0), NOW) == (1_000_500, CAPACITY_MSAT)
    assert scorer.bounds(graph, EdgeKey(scid(1), 0), NOW) == (0, 999_999)
    assert scorer.bounds(graph, EdgeKey(scid(2), 0), NOW) is None
    scorer.route_failed(graph, route, 3, NOW)
    assert scorer.bounds(graph, EdgeKey(scid(2), 0), NOW) == (1_000_000, CAPACITY_MSAT)


def test_a_hint_that_names_a_channel_of_others_teaches_nothing_of_it() -> None:
    # else whoever makes an invoice could have any channel avoided, by the name of one that fails
    graph, scorer = build(Link(0, 1), Link(1, 2), Link(3, 4)), Scorer()
    victim = scid(2)
    edges = hint_edges(node(9), [(RoutingHop(node(2), victim, 0, 0, 0),)])
    request = RouteRequest(source=node(0), destination=node(9), amount_msat=1_000_000, extra_edges=edges)
    route = find_route(graph, scorer, request, NOW)
    assert isinstance(route, Route)
    assert route.hops[2].short_channel_id == victim
    scorer.route_failed(graph, route, 2, NOW)
    assert scorer.bounds(graph, route.hops[1].key, NOW) is not None
    scorer.route_passed(graph, route, 3, NOW)
    scorer.route_succeeded(graph, route, NOW)
    assert scorer.bounds(graph, route.hops[2].key, NOW) is None


def test_nodes_that_fail_are_avoided_for_a_while() -> None:
    graph, scorer = build(Link(0, 1), Link(1, 3), Link(0, 2), Link(2, 3)), Scorer()
    request = RouteRequest(source=node(0), destination=node(3), amount_msat=1_000_000)
    first = find_route(graph, scorer, request, NOW)
    assert isinstance(first, Route)
    scorer.node_failed(first.hops[0].node_id, NOW)
    other = find_route(graph, scorer, request, NOW)
    assert isinstance(other, Route)
    assert other.hops[0].node_id != first.hops[0].node_id
    scorer.node_failed(other.hops[0].node_id, NOW + 7200)
    later = find_route(graph, scorer, request, NOW + 7200)
    assert isinstance(later, Route)
    assert later.hops[0].node_id == first.hops[0].node_id


@given(
    st.sampled_from([None, 1e5, 3e8]),
    st.integers(1, 10**9),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_probabilities_are_those_of_a_distribution(
    scale: float | None, capacity: int, parts: tuple[float, float, float, float]
) -> None:
    lower, used, middle, upper = (math.floor(part * capacity) for part in sorted(parts))
    distribution = Distribution(scale)

    def nats(used_msat: int, amount_msat: int) -> float:
        low, high, busy, whole = (np.array([float(value)]) for value in (lower, upper, used_msat, capacity))
        return float(distribution.nats(low, high, busy, float(amount_msat), whole)[0])

    whole = nats(0, middle)
    assert whole >= -1e-9
    assert whole >= nats(0, used) - 1e-9  # more is never more probable
    assert nats(0, used) + nats(used, middle - used) == pytest.approx(whole, abs=1e-6)  # parts multiply
    assert nats(0, lower) == 0.0
    assert nats(0, upper + 1) == math.inf
    assert nats(0, upper) < math.inf


def test_uniform_probability_is_the_share_that_is_left() -> None:
    nats = Distribution().nats(np.zeros(1), np.array([1e9 - 1]), np.zeros(1), 250_000_000.0, np.array([1e9 - 1]))
    assert math.exp(-nats[0]) == pytest.approx(0.75)
    bimodal = Distribution(1e7).nats(np.zeros(1), np.array([1e9]), np.zeros(1), 250_000_000.0, np.array([1e9]))
    assert math.exp(-bimodal[0]) == pytest.approx(0.5, abs=0.01)


def test_export_import_reset() -> None:
    graph, scorer = build(Link(0, 1), Link(1, 2)), Scorer()
    scorer.passed(graph, FORTH, 1_000, NOW)
    scorer.stuck(graph, EdgeKey(scid(1), 1), 2_000, NOW)
    scorer.node_failed(node(1), NOW)
    saved = scorer.export()
    other = Scorer()
    assert other.import_(saved) == 2
    assert other.export() == saved
    assert other.import_(saved) == 0
    scorer.passed(graph, FORTH, 9_000, NOW + 1)
    assert other.import_(scorer.export()) == 1
    assert other.bounds(graph, FORTH, NOW + 1) == scorer.bounds(graph, FORTH, NOW + 1)
    assert scorer.import_(saved) == 0  # older news
    other.reset([scid(0), scid(55)])
    assert other.bounds(graph, FORTH, NOW) is None
    assert other.bounds(graph, EdgeKey(scid(1), 1), NOW) == (0, 1_999)
    other.reset()
    assert len(other) == 0
    assert other.export() == Scorer().export()


def test_what_a_hinted_alias_taught_is_read_again() -> None:
    # aliases are random numbers of 64 bits, or lie at heights beyond any block: LND's and ours begin at 16,000,000
    graph, scorer = build(Link(0, 1)), Scorer()
    scorer.passed(graph, FORTH, 1_000, NOW)
    for alias in (16_000_000 << 40 | 5, (1 << 64) - 1):
        scorer.stuck(graph, EdgeKey(alias, 1), 2_000, NOW)
    other = Scorer()
    assert other.import_(scorer.export()) == 3
    assert other.export() == scorer.export()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"hello",
        msgspec.msgpack.encode([2, [], []]),
        msgspec.msgpack.encode([1, [[5, 9, 3, 10, 0.0]], []]),
    ],
)
def test_other_bytes_are_no_scores(data: bytes) -> None:
    scorer = Scorer()
    with pytest.raises(ValueError):
        scorer.import_(data)
    assert len(scorer) == 0


def test_scores_outlive_changes_of_the_graph() -> None:
    graph, scorer = build(Link(0, 1), Link(1, 2), Link(0, 2)), Scorer()
    for number in range(3):
        scorer.stuck(graph, EdgeKey(scid(number), 0), 1_000_000, NOW)
    graph.remove_channel(scid(1))
    graph.add_channel(scid(9), node(0), node(3), 500)
    request = RouteRequest(source=node(0), destination=node(2), amount_msat=1_000_000)
    assert not isinstance(find_route(graph, scorer, request, NOW), Route)
    liquidity = scorer.liquidity(graph, graph.topology(), NOW)
    known = {int(edge): value for edge, value in enumerate(liquidity.upper.tolist()) if value == 999_999}
    assert {graph.edge_key(edge) for edge in known} == {EdgeKey(scid(0), 0), EdgeKey(scid(2), 0)}


def test_a_copy_is_independent() -> None:
    graph, scorer = build(Link(0, 1)), Scorer()
    scorer.passed(graph, FORTH, 1_000, NOW)
    other = scorer.copy()
    other.passed(graph, FORTH, 5_000, NOW)
    assert scorer.bounds(graph, FORTH, NOW) == (1_000, CAPACITY_MSAT)
