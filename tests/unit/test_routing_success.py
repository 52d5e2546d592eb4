"""A small run of the success simulation: parts deliver more than one path, and no outcome breaks its own rules."""

from __future__ import annotations

from channeld.routing import EdgeKey, RouteRequest, Scorer, find_route
from channeld.routing.values import Route
from tests.bench.routing_success import FEE_LIMIT_PPM, METHODS, MOST_ROUNDS, World, pay
from tests.mainnet import mainnet


def test_parts_deliver_what_single_paths_cannot() -> None:
    world = World(mainnet(), 7)
    amount_msat = 5_000_000_000
    pairs = list(world.pairs(amount_msat, 10))
    assert pairs == list(World(mainnet(), 7).pairs(amount_msat, 10))
    delivered = {}
    for method in METHODS:
        outcomes = [pay(world, method, *pair, amount_msat) for pair in pairs]
        for outcome in outcomes:
            assert outcome.rounds <= MOST_ROUNDS
            assert outcome.fee_msat <= amount_msat * FEE_LIMIT_PPM // 1_000_000
            assert outcome.attempts >= outcome.delivered
        delivered[method.name] = sum(outcome.delivered for outcome in outcomes)
    possible = sum(world.possible(*pair, amount_msat) for pair in pairs)
    assert delivered["cheapest path"] < delivered["parts"] <= possible


def test_a_hidden_balance_stops_what_it_cannot_carry() -> None:
    world = World(mainnet(), 7)
    payer, payee = next(world.pairs(1_000_000_000, 1))
    request = RouteRequest(source=payer, destination=payee, amount_msat=1_000_000)
    route = find_route(world.graph, Scorer(), request, 0.0)
    assert isinstance(route, Route)
    assert world.fails_at(route, {}) is None
    hop = route.hops[-1]
    edge = world.graph.edge(EdgeKey(hop.short_channel_id, hop.direction))
    assert edge is not None
    assert world.fails_at(route, {hop.key: world.balance[edge] - hop.amount_msat}) is None
    assert world.fails_at(route, {hop.key: world.balance[edge] - hop.amount_msat + 1}) == len(route.hops) - 1
