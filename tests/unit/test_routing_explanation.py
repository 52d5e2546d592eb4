"""Explanations: the numbers add up, and each candidate lost for the reason that is given."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from channeld.routing import EdgeKey, Graph, LocalChannel, NoRoute, Route, RouteRequest, Scorer, explain, find_route
from channeld.routing.explanation import Explanation, Rule
from tests.mainnet import mainnet
from tests.mainnet import node_id as mainnet_node
from tests.routing_support import NOW, Link, build, node, policy, scid

AMOUNT_MSAT = 100_000_000
REQUEST = RouteRequest(source=node(0), destination=node(9), amount_msat=AMOUNT_MSAT)


def two_ways(cheap: Link) -> Graph:
    """A sure way over node 1 for 5000 msat (channel 1), and `cheap` (channel 3) over node 2."""
    return build(Link(0, 1), Link(1, 9, policy(5000)), Link(0, 2), cheap)


def lost(graph: Graph, request: RouteRequest = REQUEST, scorer: Scorer | None = None) -> tuple[Explanation, set[Rule]]:
    told = explain(graph, scorer or Scorer(), request, NOW)
    found = {
        obstacle.rule
        for candidate in told.cheaper
        for obstacle in candidate.obstacles
        if obstacle.key is None or obstacle.key.short_channel_id == scid(3)
    }
    return told, found


@pytest.mark.parametrize(
    ("cheap", "rule", "words"),
    [
        (Link(2, 9, policy(10, enabled=False)), Rule.DISABLED, "800000x3x0 is disabled in this direction"),
        (Link(2, 9, policy(10, least=AMOUNT_MSAT + 1)), Rule.HTLC_MINIMUM, "at least 100,000,001 msat"),
        (Link(2, 9, policy(10, most=AMOUNT_MSAT - 1)), Rule.HTLC_MAXIMUM, "at most 99,999,999 msat"),
        (Link(2, 9, policy(10, delta=3000)), Rule.LOCK_TIME, "locks funds for 3018 blocks, the limit is 2016"),
        (Link(2, 9, policy(10), capacity_sat=110_000), Rule.COST, "improbability"),
        (Link(2, 9, policy(3000, delta=1990)), Rule.COST, "saves 2,000 msat of fees but adds 2,925 msat of lock"),
    ],
)
def test_why_the_cheaper_way_lost(cheap: Link, rule: Rule, words: str) -> None:
    told, rules = lost(two_ways(cheap))
    assert isinstance(told.route, Route)
    assert told.route.hops[-1].short_channel_id == scid(1)
    assert rules == {rule}
    assert any(words in candidate.reason for candidate in told.cheaper), [each.reason for each in told.cheaper]
    assert all(candidate.fee_msat < 5000 for candidate in told.cheaper)


def test_channels_that_were_excluded_failed_or_are_empty() -> None:
    graph = two_ways(Link(2, 9, policy(10)))
    excluded = replace(REQUEST, ignored_channels=frozenset({EdgeKey(scid(3), 0)}))
    assert lost(graph, excluded)[1] == {Rule.EXCLUDED}
    scorer = Scorer()
    scorer.stuck(graph, EdgeKey(scid(3), 0), 50_000_000, NOW)
    told, rules = lost(graph, REQUEST, scorer)
    assert rules == {Rule.BALANCE}
    assert "can send at most 49,999,999 msat as far as we know" in told.cheaper[0].reason
    graph.set_node_features(node(1), 1 << 38)
    assert lost(graph, replace(REQUEST, required_features=1 << 38))[1] == {Rule.FEATURES}


def test_too_small_channels_are_no_candidates() -> None:
    told = explain(two_ways(Link(2, 9, policy(10), capacity_sat=99_999)), Scorer(), REQUEST, NOW)
    assert told.cheaper == ()
    assert told.runners_up == ()


def test_why_there_is_no_route() -> None:
    graph = build(Link(0, 1), Link(1, 9, policy(5000)))
    told = explain(graph, Scorer(), replace(REQUEST, max_fee_msat=4000), NOW)
    assert isinstance(told.route, NoRoute)
    assert [str(obstacle) for obstacle in told.cheaper[0].obstacles] == [
        "the way costs 5,000 msat in fees, the limit is 4,000 msat"
    ]
    mine = (LocalChannel(scid(0), node(1), AMOUNT_MSAT - 1),)
    told = explain(graph, Scorer(), replace(REQUEST, local_channels=mine), NOW)
    assert isinstance(told.route, NoRoute)
    assert explain(graph, Scorer(), replace(REQUEST, destination=node(77)), NOW).cheaper == ()


def test_a_better_route_is_the_runner_up_of_none() -> None:
    graph = two_ways(Link(2, 9, policy(10)))
    told, rules = lost(graph)
    assert isinstance(told.route, Route)
    assert told.route.total_fee_msat == 10
    assert rules == set()
    assert [way.fee_msat for way in told.runners_up] == [5000]
    assert "adds 4,990 msat of fees" in told.runners_up[0].reason


def test_mainnet_costs_add_up_and_the_answer_is_that_of_find_route() -> None:
    graph, scorer = mainnet(), Scorer()
    request = RouteRequest(source=mainnet_node(0), destination=mainnet_node(1500), amount_msat=AMOUNT_MSAT)
    told = explain(graph, scorer, request, NOW)
    assert isinstance(told.route, Route)
    assert told.route == find_route(graph, scorer, request, NOW)
    assert sum(hop.fee_msat for hop in told.hops) == told.route.total_fee_msat
    blocks = sum(hop.lock_blocks for hop in told.hops) + request.final_cltv_expiry_delta
    assert blocks == told.route.total_cltv_blocks
    cost = sum(hop.cost_msat for hop in told.hops) + request.model.hop_msat * len(told.hops)
    assert cost == pytest.approx(told.route.cost_msat)
    assert told.runners_up
    for way in told.runners_up:
        assert way.cost_msat >= told.route.cost_msat
    for candidate in told.cheaper:
        assert candidate.reason
        if candidate.obstacles[0].rule is Rule.COST:
            assert candidate.fee_msat < told.route.total_fee_msat
