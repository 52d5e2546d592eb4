"""Small graphs, and path finding by trying everything: slow, obvious, and sharing no code with the product's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from hypothesis import strategies as st

from channeld.routing.graph import Graph
from channeld.routing.scoring import Scorer
from channeld.routing.values import EdgeKey, Policy, Route, RouteRequest

NOW = 1_000_000.0
FIRST_SCID = 800_000 << 40


def node(number: int) -> bytes:
    """A node id; in the order of the numbers."""
    return b"\x03" + number.to_bytes(32, "big")


def scid(number: int) -> int:
    """A short_channel_id."""
    return FIRST_SCID + (number << 16)


def policy(
    base: int = 0, ppm: int = 0, delta: int = 40, least: int = 0, most: int = 10**12, enabled: bool = True
) -> Policy:
    """A policy with the fields that matter first."""
    return Policy(
        enabled=enabled,
        htlc_minimum_msat=least,
        htlc_maximum_msat=most,
        fee_base_msat=base,
        fee_proportional_millionths=ppm,
        cltv_expiry_delta=delta,
    )


class Link(NamedTuple):
    """A channel between two numbered nodes, `first` < `second`; capacity in sat."""

    first: int
    second: int
    forth: Policy | None = policy()
    back: Policy | None = policy()
    capacity_sat: int = 10_000_000


def build(*links: Link) -> Graph:
    """A graph whose channel numbers are the links' positions."""
    graph = Graph()
    for number, link in enumerate(links):
        assert graph.add_channel(scid(number), node(link.first), node(link.second), link.capacity_sat)
        for direction, said in enumerate((link.forth, link.back)):
            if said is not None:
                assert graph.update_channel(scid(number), direction, said)
    return graph


policies = st.builds(
    policy,
    base=st.sampled_from([0, 0, 1, 1000, 20_000]),
    ppm=st.sampled_from([0, 0, 1, 333, 5000, 90_000, 1_000_000]),
    delta=st.sampled_from([0, 18, 40, 144, 900]),
    least=st.sampled_from([0, 1, 1000, 40_500_000]),
    most=st.sampled_from([1_000_000, 41_000_000, 10**9, 10**9, 10**12]),
    enabled=st.sampled_from([True, True, True, True, False]),
)


@st.composite
def links(draw: st.DrawFn, most_nodes: int = 6, most_links: int = 12) -> list[Link]:
    """Random small networks: parallel channels, loops, free and absurd fees, limits near the amounts."""
    count = draw(st.integers(2, most_nodes))
    found = []
    for _ in range(draw(st.integers(1, most_links))):
        first = draw(st.integers(0, count - 2))
        second = draw(st.integers(first + 1, count - 1))
        capacity_sat = draw(st.sampled_from([20_000, 40_001, 100_000, 10_000_000]))
        found.append(Link(first, second, draw(st.none() | policies), draw(policies), capacity_sat))
    return found


class Way(NamedTuple):
    """A path and its exact numbers: amounts by edge, the first HTLC's amount and blocks, and the cost."""

    keys: tuple[EdgeKey, ...]
    amounts: tuple[int, ...]
    total_msat: int
    blocks: int
    cost_msat: float


def all_ways(graph: Graph, scorer: Scorer, request: RouteRequest) -> Iterator[Way]:
    """Every loop-free path that keeps all limits. Without local channels and hints."""
    for keys in _paths(graph, request):
        way = _evaluate(graph, scorer, request, keys)
        if way is not None:
            yield way


def _paths(graph: Graph, request: RouteRequest) -> Iterator[tuple[EdgeKey, ...]]:
    out: dict[bytes, list[tuple[EdgeKey, bytes]]] = {}
    for channel in graph.channels():
        ends = channel.node_id_1, channel.node_id_2
        for direction in (0, 1):
            key = EdgeKey(channel.short_channel_id, direction)
            if channel.policies[direction] is not None:
                out.setdefault(ends[direction], []).append((key, ends[1 - direction]))

    def walk(at: bytes, seen: frozenset[bytes], so_far: tuple[EdgeKey, ...]) -> Iterator[tuple[EdgeKey, ...]]:
        for key, target in out.get(at, []):
            longer = (*so_far, key)
            if target == request.destination:
                if not (request.source == target and longer[0].short_channel_id == key.short_channel_id):
                    yield longer
            elif target not in seen and len(longer) < request.max_hops:
                yield from walk(target, seen | {target}, longer)

    yield from walk(request.source, frozenset({request.source}), ())


def _evaluate(graph: Graph, scorer: Scorer, request: RouteRequest, keys: tuple[EdgeKey, ...]) -> Way | None:
    amount, blocks, cost = request.amount_msat, request.final_cltv_expiry_delta, 0.0
    amounts = []
    model = request.model
    for position in range(len(keys) - 1, -1, -1):
        key = keys[position]
        channel, said = graph.channel(key.short_channel_id), graph.policy(key)
        assert channel is not None
        assert said is not None
        lower, upper = scorer.bounds(graph, key, NOW) or (0, channel.capacity_sat * 1000)
        used = request.in_flight.get(key, 0)
        if key in request.ignored_channels or not said.enabled or used + amount > upper:
            return None
        if not said.htlc_minimum_msat <= amount <= said.htlc_maximum_msat:
            return None
        known = max(lower, used)
        nats = math.log((upper - known + 1) / (upper - max(known, used + amount) + 1))
        fee, delta = 0, 0
        if position:
            fee = said.fee_base_msat + amount * said.fee_proportional_millionths // 10**6
            delta = said.cltv_expiry_delta
            nats -= math.log(model.online_probability)
        cost += fee + amount * delta * model.lock_ppb_per_block / 1e9 + model.hop_msat
        cost += nats * (model.failure_base_msat + request.amount_msat * model.failure_ppm / 1e6)
        amounts.append(amount)
        amount += fee
        blocks += delta
    limit = max(request.amount_msat, 1_000_000) if request.max_fee_msat is None else request.max_fee_msat
    if amount - request.amount_msat > limit or blocks > request.max_cltv_blocks or len(keys) > request.max_hops:
        return None
    return Way(keys, tuple(reversed(amounts)), amount, blocks, cost)


def check_route(graph: Graph, request: RouteRequest, route: Route, extra: dict[EdgeKey, Policy] | None = None) -> None:
    """Walks a route as its HTLCs would: every node gets exactly its fee and its blocks, nothing exceeds a limit."""
    first = route.hops[0]
    assert first.amount_msat == route.total_amount_msat
    assert first.cltv_expiry == request.block_height + route.total_cltv_blocks
    assert route.total_fee_msat == route.total_amount_msat - route.amount_msat
    assert route.total_cltv_blocks <= request.max_cltv_blocks
    assert len(route.hops) <= request.max_hops
    at = route.source
    visited = []
    for hop, following in zip(route.hops, (*route.hops[1:], None), strict=True):
        said = (extra or {}).get(hop.key) or graph.policy(hop.key)
        assert said is not None
        assert said.enabled
        assert said.htlc_minimum_msat <= hop.amount_msat <= said.htlc_maximum_msat
        if (channel := graph.channel(hop.short_channel_id)) is not None:
            assert (at, hop.node_id) == (channel.node_id_1, channel.node_id_2)[:: -1 if hop.direction else 1]
            assert hop.amount_msat <= channel.capacity_sat * 1000
        if following is None:
            assert hop.node_id == request.destination
            assert hop.amt_to_forward_msat == hop.amount_msat
            assert hop.outgoing_cltv_value == hop.cltv_expiry == request.block_height + request.final_cltv_expiry_delta
            assert hop.fee_msat == hop.cltv_expiry_delta == 0
        else:
            onward = (extra or {}).get(following.key) or graph.policy(following.key)
            assert onward is not None
            # BOLT 7, "HTLC Fees"; BOLT 4, "Payload Format"
            fee = onward.fee_base_msat + following.amount_msat * onward.fee_proportional_millionths // 1_000_000
            assert hop.amount_msat - following.amount_msat == fee == hop.fee_msat
            assert hop.cltv_expiry - following.cltv_expiry == onward.cltv_expiry_delta == hop.cltv_expiry_delta
            assert hop.amt_to_forward_msat == following.amount_msat
            assert hop.outgoing_cltv_value == following.cltv_expiry
        visited.append(hop.node_id)
        at = hop.node_id
    assert len(set(visited)) == len(visited)
    assert route.source not in visited[:-1]
