"""Several parts: the cheapest reliable flow.

The amount is cut into equal units, no more of them than parts are allowed. What a channel costs grows convexly with
the units it carries: fees and lock risk linearly, improbability as -ln(1 - units / liquidity), which is replaced by a
few straight pieces. A min-cost flow of units from payer to destination is then the most reliable cheap way to split
(Pickhardt and Richter, "Optimally Reliable & Cheap Payment Flows on the Lightning Network"); OR-Tools finds it.
Paths are taken out of the flow, priced to the msat with the search's own arithmetic, each knowing what the parts
before it have reserved; what does not fit exactly (a fee too much for a channel) is routed again by `solve`.

Only a corridor of edges is looked at: those on the cheapest ways for one unit. If they are too few, the edges of some
flow that is large enough are added to them.

Amounts in msat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from ortools.graph.python.max_flow import SimpleMaxFlow
from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

from channeld.routing.costs import Problem, lay_out
from channeld.routing.graph import Floats, Graph, Indices, Ints
from channeld.routing.prices import Table
from channeld.routing.scoring import Scorer
from channeld.routing.search import edges_of, price, solve
from channeld.routing.values import MAX_PARTS, CostModel, NoRoute, Route, RouteRequest

_RELIABLE = 0.9
"""A single path at least so probable is taken without looking for a split."""

_CORRIDOR = 4_000
_PIECES = np.array([0.0, 0.25, 0.5, 0.75, 0.9, 1.0])
_FEW_UNITS = 16
_TYPICAL_PARTS = 4
"""What a hop costs once, whatever the amount (base fees, being online), is spread over parts of this share."""

_DEAREST_MSAT = 10**13
"""No unit costs more: the solver's integers have an end."""

_FRUGAL = 10
"""How much fees weigh when the first answer exceeds the fee limit."""

_FINER = 4
_HEADROOM = 1.005
"""Fees make what a channel carries exceed the units; without room for them the exact routes would not fit."""

_MOST_HALVINGS = 3


@dataclass(frozen=True, slots=True)
class _Part:
    edges: list[int]
    amount_msat: int


def find_flow(
    graph: Graph, scorer: Scorer, request: RouteRequest, now_seconds: float, max_parts: int = MAX_PARTS
) -> tuple[Route, ...] | NoRoute:
    """The parts whose sum is the amount, best in all by the request's model; one part where that is enough.

    `max_fee_msat` limits the sum of fees. A circular payment is one part unless no channel may be both its first and
    its last. The parts' probabilities are conditional on the parts before them: their product is that of the whole
    payment.
    Raises ValueError for an amount or number of parts that make no sense.
    """
    if max_parts < 1:
        raise ValueError("a payment has at least one part")
    problem = lay_out(graph, scorer, request, now_seconds)
    single = solve(problem)
    reliable = isinstance(single, Route) and single.probability >= _RELIABLE
    if max_parts == 1 or reliable or problem.target_index < 0 or _turns_back(problem):
        return (single,) if isinstance(single, Route) else single
    split = _split(problem, max_parts)
    if isinstance(split, NoRoute):
        return (single,) if isinstance(single, Route) else split
    if isinstance(single, Route):
        part_msat = request.model.hop_msat * (len(split) - 1)
        if single.cost_msat <= sum(route.cost_msat for route in split) + part_msat:
            return (single,)
    return split


def _turns_back(problem: Problem) -> bool:
    """Whether a flow might come back to the payer by the channel that it left by: it cannot tell."""
    if problem.request.source != problem.request.destination:
        return False
    usable = np.concatenate([problem.base.allowed, problem.extra.allowed])
    firsts, lasts = (
        {problem.key(edge).short_channel_id for edge in np.nonzero(there & usable)[0].tolist()}
        for there in (problem.sources == problem.root, problem.targets == problem.target_index)
    )
    return not firsts.isdisjoint(lasts)


def _split(problem: Problem, max_parts: int) -> tuple[Route, ...] | NoRoute:
    """Coarse units first: few parts; finer ones where channels are nearly drained; then with an eye on fees."""
    request = problem.request
    answer: tuple[Route, ...] | NoRoute = NoRoute("no way to split the payment was found")
    before = problem.base.used.copy(), problem.extra.used.copy()
    for fineness in (1, _FINER, _FINER**2):
        for weight in (1, _FRUGAL):
            problem.base.used[:], problem.extra.used[:] = before
            model = replace(request.model, fee_weight=request.model.fee_weight * weight)
            parts = _flow(problem, model, max_parts * fineness)
            if isinstance(parts, NoRoute):
                answer = parts
                break  # whether it flows at all does not depend on what fees weigh
            if len(parts) > max_parts:
                answer = NoRoute(f"{request.amount_msat:,} msat would need {len(parts)} parts, {max_parts} are allowed")
                break
            answer = _settle(problem, parts, max_parts)
            if not isinstance(answer, NoRoute):
                return answer
    return answer


def _flow(problem: Problem, model: CostModel, units: int) -> list[_Part] | NoRoute:
    """Paths of the min-cost flow in the corridor."""
    amount = problem.request.amount_msat
    unit = -(-amount // units)
    units = -(-amount // unit)
    cost = problem.part(unit, problem.request.fee_limit_msat).floor(model)
    source, target = problem.sources, problem.targets
    detour = problem.distances(cost)[source] + cost + problem.distances(cost, backward=True)[target]
    useful = np.nonzero(np.isfinite(detour) & (source >= 0))[0]  # a removed channel leaves a gap: from -1 to -1
    if not len(useful):
        return NoRoute(f"no way for parts of {unit:,} msat connects the source with the destination")
    kept = useful if len(useful) <= _CORRIDOR else useful[np.argpartition(detour[useful], _CORRIDOR)[:_CORRIDOR]]
    flow = _min_cost(problem, model, kept, source[kept], target[kept], unit, units)
    if flow is None:
        most, needed = _any_flow(problem, useful, source[useful], target[useful], unit, units)
        if most < units:
            return NoRoute(f"all ways together can carry about {most * unit:,} msat of {amount:,} msat")
        kept = np.union1d(kept, needed)
        flow = _min_cost(problem, model, kept, source[kept], target[kept], unit, units)
    if flow is None:
        raise AssertionError("edges that can carry a flow have one of least cost")
    return _paths(problem, dict(zip(kept.tolist(), flow.tolist(), strict=True)), unit, units)


def _room(table: Table, index: Ints, unit: int, units: int) -> Floats:
    """Whole units that some edges can carry, with something left for fees on top."""
    return np.clip(np.floor((table.upper[index] - table.used[index]) / (unit * _HEADROOM)), 0, units)


def _any_flow(
    problem: Problem, kept: Ints, source: Indices, target: Indices, unit: int, units: int
) -> tuple[int, Ints]:
    """How many of the units can flow at all, and the edges of such a flow."""
    solver = SimpleMaxFlow()
    base = kept < problem.base_edges
    room = np.zeros(len(kept), np.int64)
    room[base] = _room(problem.base, kept[base], unit, units)
    room[~base] = _room(problem.extra, kept[~base] - problem.base_edges, unit, units)
    arcs = solver.add_arcs_with_capacity(source.astype(np.int32), target.astype(np.int32), room)
    gate = problem.nodes
    solver.add_arc_with_capacity(gate, problem.root, units)
    if solver.solve(gate, problem.target_index) != solver.OPTIMAL:
        raise AssertionError("maximal flow found no answer")
    return int(solver.optimal_flow()), kept[solver.flows(arcs) > 0]


def _min_cost(
    problem: Problem, model: CostModel, kept: Ints, source: Indices, target: Indices, unit: int, units: int
) -> Ints | None:
    """Units on each kept edge; None if these edges cannot carry all."""
    room, slopes = _pieces(problem, model, kept, unit, units)
    arc_edge, arc_piece = np.nonzero(room)
    ends = np.concatenate([source, target, [problem.root, problem.target_index]])
    nodes, places = np.unique(ends, return_inverse=True)
    solver = SimpleMinCostFlow()
    count = len(kept)
    arcs = solver.add_arcs_with_capacity_and_unit_cost(
        places[:count][arc_edge].astype(np.int32),
        places[count : 2 * count][arc_edge].astype(np.int32),
        room[arc_edge, arc_piece],
        slopes[arc_edge, arc_piece],
    )
    supplies = np.zeros(len(nodes), np.int64)
    supplies[places[-2]], supplies[places[-1]] = units, -units
    solver.set_nodes_supplies(np.arange(len(nodes), dtype=np.int32), supplies)
    status = solver.solve()
    if status == solver.INFEASIBLE:
        return None
    if status != solver.OPTIMAL:
        raise AssertionError(f"min-cost flow ended with {status}")
    return np.bincount(arc_edge, weights=solver.flows(arcs), minlength=count).astype(np.int64)


def _pieces(problem: Problem, model: CostModel, kept: Ints, unit: int, units: int) -> tuple[Ints, Ints]:
    """For each edge and piece: how many units, and what each costs (msat). Each unit is a piece if there are few."""
    base = kept < problem.base_edges
    exact = units <= _FEW_UNITS
    places = (problem.base, kept[base]), (problem.extra, kept[~base] - problem.base_edges)
    pairs = [_pieces_of(problem, model, table, index, unit, units, exact) for table, index in places]
    room, slopes = (np.zeros((len(kept), pairs[0][0].shape[1]), np.int64) for _ in range(2))
    for where, (some_room, some_slopes) in zip((base, ~base), pairs, strict=True):
        room[where], slopes[where] = some_room, some_slopes
    return room, slopes


def _pieces_of(
    problem: Problem, model: CostModel, table: Table, index: Ints, unit: int, units: int, exact: bool
) -> tuple[Ints, Ints]:
    edges = table.edges
    once = _TYPICAL_PARTS / max(units, _TYPICAL_PARTS)
    nat_msat = model.nat_msat(problem.whole_msat)
    straight = edges.fee_proportional_millionths[index] * (unit / 1e6) + edges.fee_base_msat[index] * once
    straight *= model.fee_weight
    straight += edges.cltv_expiry_delta[index] * (unit * model.lock_ppb_per_block / 1e9)
    straight += (model.hop_msat + table.fixed_nats[index] * nat_msat) * once
    lower, upper, used = table.lower[index], table.upper[index], table.used[index]
    room = _room(table, index, unit, units)[:, None]
    ends = np.minimum(room, np.arange(units + 1.0)) if exact else np.floor(room * _PIECES)
    nats = np.stack([
        problem.distribution.nats(lower, upper, used, end * unit, table.capacity[index]) for end in ends.T
    ]).T  # fmt: skip
    room = np.diff(ends)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(room > 0, np.diff(nats) / room, 0.0) * nat_msat
    slopes = np.maximum.accumulate(slopes, axis=1) + straight[:, None]
    return room.astype(np.int64), np.minimum(slopes, _DEAREST_MSAT).astype(np.int64) + 1


def _paths(problem: Problem, flow: dict[int, int], unit: int, units: int) -> list[_Part]:
    """Takes the flow apart, always along the edge with most left. It has no cycle: every edge costs something."""
    leaving: dict[int, list[int]] = {}
    for edge, count in flow.items():
        if count:
            leaving.setdefault(problem.ends(edge)[0], []).append(edge)
    parts = []
    left = units
    while left:
        path: list[int] = []
        node = problem.root
        while node != problem.target_index:
            edge = max((edge for edge in leaving[node] if flow[edge]), key=flow.__getitem__)
            path.append(edge)
            node = problem.ends(edge)[1]
        largest = min(problem.policy(edge).htlc_maximum_msat for edge in path) // unit
        taken = min(max(1, largest), *(flow[edge] for edge in path))
        for edge in path:
            flow[edge] -= taken
        parts.append(_Part(path, taken * unit))
        left -= taken
    parts.sort(key=lambda part: -part.amount_msat)
    too_much = units * unit - problem.request.amount_msat
    parts[0] = _Part(parts[0].edges, parts[0].amount_msat - too_much)
    return parts


def _settle(problem: Problem, parts: list[_Part], max_parts: int) -> tuple[Route, ...] | NoRoute:
    """Exact routes for the parts; those that do not fit as the flow has them are searched again."""
    request = problem.request
    routes: list[Route] = []
    homeless: list[tuple[int, int]] = []
    for part in parts:
        route = price(problem, part.edges, part.amount_msat)
        keeps = route.total_cltv_blocks <= request.max_cltv_blocks and len(route.hops) <= request.max_hops
        if keeps and math.isfinite(route.cost_msat):
            _reserve(problem, part.edges, route)
            routes.append(route)
        else:
            homeless.append((part.amount_msat, 0))
    while homeless:
        amount, halvings = homeless.pop()
        fee_left = request.fee_limit_msat - sum(route.total_fee_msat for route in routes)
        found = solve(problem.part(amount, max(0, fee_left)))
        if isinstance(found, Route):
            _reserve(problem, edges_of(problem, found), found)
            routes.append(found)
        elif halvings < _MOST_HALVINGS and amount > 1:
            homeless += [(amount // 2, halvings + 1), (amount - amount // 2, halvings + 1)]
        else:
            return found
        if len(routes) + len(homeless) > max_parts:
            return NoRoute(f"no way to send {request.amount_msat:,} msat in {max_parts} parts was found")
    fee = sum(route.total_fee_msat for route in routes)
    if fee > request.fee_limit_msat:
        return NoRoute(f"the way in parts costs {fee:,} msat in fees, the limit is {request.fee_limit_msat:,} msat")
    return tuple(routes)


def _reserve(problem: Problem, edges: list[int], route: Route) -> None:
    for edge, hop in zip(edges, route.hops, strict=True):
        problem.reserve(edge, hop.amount_msat)
