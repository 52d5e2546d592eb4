"""One path: exact backward search, guided by a bound.

Fees compound, so what an edge carries is known only from the destination backwards. The search goes that way with
exact amounts (A*): a label is a way from some node to the destination, with its cost, amount, lock time and hops; one
label is dropped for another at the same node only if it is no better in any of them, so the result is optimal, loops
and zero-fee cycles die at once, and the fee, lock time and hop limits cannot hide a way that keeps them. Only a channel
whose `htlc_minimum_msat` is above the payment can: a dearer way to the payee, whose fees lift the amount above it, is
not kept beside a cheaper one.

What makes it fast is the guide: one Dijkstra in C forward from the payer, with every edge priced at the amount that
arrives. Amounts only grow towards the payer, and so do prices: the guide never overestimates, and is off by the
compounding alone. A few dozen labels are enough on the public network.

Source: BOLT 7, "HTLC Fees"; BOLT 4, "Payload Format".
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from channeld.routing import prices
from channeld.routing.costs import Problem, lay_out
from channeld.routing.graph import Floats, Graph
from channeld.routing.prices import Column, Pricing, Table, Terms, quote
from channeld.routing.scoring import Scorer
from channeld.routing.values import FEES_ONLY, CostModel, Hop, NoRoute, Route, RouteRequest

_SLACKS = (1.02, 1.5, math.inf)
"""How much worse than the guide promises a route may be, tried in order: a tight bound keeps the queue short."""

_SLACK_MSAT = 1000
_QUICK_LABELS = 100
_PATIENT_LABELS = 400
_SHORTEST = CostModel(fee_weight=0, lock_ppb_per_block=10**9, failure_base_msat=0, failure_ppm=0, hop_msat=1)


class GaveUpError(Exception):
    """More labels than allowed."""


class Guides(NamedTuple):
    """The least that is missing from the payer to each node: fees (msat), blocks, hops."""

    fee_msat: Floats
    blocks: Floats
    hops: Floats


@dataclass(slots=True)
class _Labels:
    """The labels that were taken from the queue."""

    node: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    edge: list[int] = field(default_factory=list)
    frontier: dict[tuple[int, int], list[tuple[float, int, int, int]]] = field(default_factory=dict)

    def add(self, node: int, parent: int, edge: int) -> int:
        self.node.append(node)
        self.parent.append(parent)
        self.edge.append(edge)
        return len(self.node) - 1

    def beaten(self, place: tuple[int, int], merits: tuple[float, int, int, int]) -> bool:
        """Whether a label there is at least as good in everything; if not, these merits are noted."""
        there = self.frontier.setdefault(place, [])
        cost, amount, blocks, hops = merits
        for other in there:
            if other[0] <= cost and other[1] <= amount and other[2] <= blocks and other[3] <= hops:
                return True
        there.append(merits)
        return False

    def edges(self, label: int) -> list[int]:
        """The edges from the label's node to the destination."""
        found = []
        while (edge := self.edge[label]) >= 0:
            found.append(edge)
            label = self.parent[label]
        return found


def find_route(graph: Graph, scorer: Scorer, request: RouteRequest, now_seconds: float) -> Route | NoRoute:
    """The cheapest way by the request's model that keeps all its limits, or why there is none.

    Raises ValueError for an amount that makes no sense.
    """
    return solve(lay_out(graph, scorer, request, now_seconds))


def solve(problem: Problem, model: CostModel | None = None) -> Route | NoRoute:
    """`find_route` on a problem that is laid out; `model` replaces the request's."""
    request = problem.request
    model = model or request.model
    if problem.target_index < 0:
        return NoRoute("the destination is not in the graph, and no hint leads to it")
    guide = problem.distances(problem.floor(model))
    least = float(guide[problem.target_index])
    if math.isinf(least):
        return NoRoute(_unreachable(problem))
    try:
        if edges := _search(problem, model, guide, least * _SLACKS[0] + _SLACK_MSAT, _QUICK_LABELS, None):
            return price(problem, edges)
    except GaveUpError:
        pass
    return _with_care(problem, model)


def price(problem: Problem, edges: Sequence[int], amount_msat: int | None = None) -> Route:
    """The route over these edges, exact to the msat, whatever its limits. Source: BOLT 7, "HTLC Fees"."""
    request = problem.request
    amount = request.amount_msat if amount_msat is None else amount_msat
    arriving = amount
    blocks = request.final_cltv_expiry_delta
    kept_msat, kept_blocks, next_htlc = 0, 0, (amount, blocks)
    hops: list[Hop] = []
    pricing = problem.pricing()
    cost = 0.0
    for edge in reversed(edges):
        table, index = problem.place(edge)
        terms = table.of_one(index)
        found = quote(terms, amount, pricing)
        cost += found.cost_msat
        key = problem.key(edge)
        hops.append(
            Hop(
                short_channel_id=key.short_channel_id,
                direction=key.direction,
                node_id=problem.node_id(problem.ends(edge)[1]),
                amount_msat=amount,
                cltv_expiry=request.block_height + blocks,
                amt_to_forward_msat=next_htlc[0],
                outgoing_cltv_value=request.block_height + next_htlc[1],
                fee_msat=kept_msat,
                cltv_expiry_delta=kept_blocks,
                probability=float(np.exp(-found.nats)),
            )
        )
        next_htlc = amount, blocks
        kept_msat, kept_blocks = found.fee_msat, terms.cltv_expiry_delta
        amount += kept_msat
        blocks += kept_blocks
    if kept_msat or kept_blocks:
        raise AssertionError("a first hop is free")
    return Route(
        source=request.source,
        hops=tuple(reversed(hops)),
        total_amount_msat=amount,
        total_fee_msat=amount - arriving,
        total_cltv_blocks=blocks,
        probability=math.prod(hop.probability for hop in hops),
        cost_msat=cost,
    )


def edges_of(problem: Problem, route: Route) -> list[int]:
    """The edges of a route in this problem. Raises KeyError if it has others."""
    extra = {key: problem.base_edges + index for index, key in enumerate(problem.extra_keys)}
    edges = []
    for hop in route.hops:
        edge = extra.get(hop.key)
        edge = problem.graph.edge(hop.key) if edge is None else edge
        if edge is None:
            raise KeyError(hop.key)
        edges.append(edge)
    return edges


def least_amounts(problem: Problem) -> Floats:
    """What each edge carries at least: the amount and the least fees from its end on; 10^18 if it leads nowhere."""
    fees = problem.floor(FEES_ONLY) - FEES_ONLY.hop_msat
    onward: Floats = problem.request.amount_msat + problem.distances(fees, backward=True)
    return np.minimum(onward, 1e18)[problem.targets]


def guides(problem: Problem, least_msat: Floats) -> Guides:
    """What the payer's side of a route adds at least, by node."""
    open_to = problem.open_to(least_msat)
    blocks = np.concatenate([table.edges.cltv_expiry_delta for table in (problem.base, problem.extra)])
    return Guides(
        problem.distances(problem.floor(FEES_ONLY, least_msat) - FEES_ONLY.hop_msat),
        problem.distances(np.where(open_to, blocks, np.inf)),
        problem.distances(np.where(open_to, 1.0, np.inf)),
    )


def _with_care(problem: Problem, model: CostModel) -> Route | NoRoute:
    """The search with sight of the limits, and of the fees that channels must carry besides the amount; then others
    that aim at the limits alone."""
    request, target = problem.request, problem.target_index
    least_msat = least_amounts(problem)
    missing = guides(problem, least_msat)
    if missing.fee_msat[target] > request.fee_limit_msat:
        if math.isinf(missing.fee_msat[target]):
            return NoRoute(
                f"the channels on every way are too small for {request.amount_msat:,} msat and the fees on top"
            )
        least = math.ceil(missing.fee_msat[target])
        return NoRoute(
            f"the cheapest way costs at least {least:,} msat in fees, the limit is {request.fee_limit_msat:,} msat"
        )
    blocks = int(missing.blocks[target]) + request.final_cltv_expiry_delta
    if blocks > request.max_cltv_blocks:
        return NoRoute(f"every way locks funds for at least {blocks} blocks, the limit is {request.max_cltv_blocks}")
    if missing.hops[target] > request.max_hops:
        return NoRoute(f"every way has at least {int(missing.hops[target])} hops, the limit is {request.max_hops}")
    for attempt, labels in ((model, _PATIENT_LABELS), (FEES_ONLY, _QUICK_LABELS), (_SHORTEST, _QUICK_LABELS)):
        guide = problem.distances(problem.floor(attempt, least_msat))
        try:
            for slack in _SLACKS:
                bound = float(guide[target]) * slack + _SLACK_MSAT
                if edges := _search(problem, attempt, guide, bound, labels, missing):
                    return price(problem, edges)
        except GaveUpError:
            continue
        return NoRoute("no way keeps the limits of fee, lock time, hops and channels at once")
    return NoRoute("no way within the limits was found in the time that a search may take: raise the fee limit")


class _Step(NamedTuple):
    """A label that one edge makes of another: what it promises to cost in all, its own cost, amount and blocks."""

    edge: int
    source: int
    promised: float
    cost: float
    amount: int
    blocks: int


class _Aim(NamedTuple):
    """What a search is looking for: costs within `bound`, of which `guide` is missing at least; see `_search`."""

    problem: Problem
    pricing: Pricing
    guide: Floats
    bound: float
    missing: Guides | None

    def steps(
        self, table: Table, index: NDArray[np.integer], cost: float, amount: int, blocks: int, hops: int
    ) -> Iterator[_Step]:
        """The labels before one of this cost, by some edges into its node."""
        sources = table.edges.source
        if len(index) > prices.FEW_EDGES:
            ends = sources[index]
            keep, *columns = self._before(table.of(index), ends, cost, amount, blocks, hops)
            kept = np.nonzero(keep)[0]
            yield from map(_Step, index[kept].tolist(), ends[kept].tolist(), *(each[kept].tolist() for each in columns))
            return
        for at in index.tolist():
            terms = table.of_one(at)
            if terms.allowed:
                end = sources.item(at)
                keep, promised, *others = self._before(terms, end, cost, amount, blocks, hops)
                if keep:
                    yield _Step(at, end, float(promised), *others)

    def _before(
        self, terms: Terms, source: Column, cost: float, amount: int, blocks: int, hops: int
    ) -> tuple[Column, Column, Column, Column, Column]:
        """Whether it is worth while, what is promised, and the cost, amount and blocks; for one edge, or for many."""
        found = quote(terms, amount, self.pricing)
        total = found.cost_msat + cost
        promised = total + self.guide[source]
        carried = found.fee_msat + amount
        locked = terms.cltv_expiry_delta + blocks
        request, most_msat, missing = self.problem.request, self.problem.most_msat, self.missing
        keep = (promised <= self.bound) & (promised < math.inf)
        if missing is None:
            keep &= (carried <= most_msat) & (locked <= request.max_cltv_blocks)
        else:
            keep &= carried + missing.fee_msat[source] <= most_msat + 1e-3
            keep &= locked + missing.blocks[source] <= request.max_cltv_blocks
            keep &= missing.hops[source] + hops + 1 <= request.max_hops
        return keep, promised, total, carried, locked


def _search(
    problem: Problem, model: CostModel, guide: Floats, bound: float, most_labels: int, missing: Guides | None
) -> list[int]:
    """The edges of the cheapest way whose cost is within `bound`; none if there is no such way.

    Raises GaveUpError after `most_labels`.
    """
    request = problem.request
    circular = request.source == request.destination
    aim = _Aim(problem, problem.pricing(model), guide, bound, missing)
    labels = _Labels()
    counter = 0
    start = (0.0, 0, 0.0, request.amount_msat, request.final_cltv_expiry_delta, 0, problem.target_index, -1, -1, -1)
    queue: list[tuple[float, int, float, int, int, int, int, int, int, int]] = [start]
    while queue:
        _, _, cost, amount, blocks, hops, node, parent, edge, last = heapq.heappop(queue)
        # In a circle the first channel must not be the last one: ways with different last channels do not compete.
        if labels.beaten((node, last if circular else -1), (cost, amount, blocks, hops)):
            continue
        label = labels.add(node, parent, edge)
        if node == problem.root:
            return labels.edges(label)
        if label > most_labels:
            raise GaveUpError
        if hops == request.max_hops:
            continue
        for table, index, offset in problem.into(node):
            for step in aim.steps(table, index, cost, amount, blocks, hops):
                taken = step.edge + offset
                scid = problem.key(taken).short_channel_id if circular else -1
                if circular and scid == last:
                    continue
                counter -= 1
                entry = (step.promised, counter, step.cost, step.amount, step.blocks, hops + 1)
                heapq.heappush(queue, (*entry, step.source, label, taken, scid if edge < 0 else last))
    return []


def _unreachable(problem: Problem) -> str:
    """Why no edge sequence leads to the destination at all."""
    request = problem.request
    amount = request.amount_msat
    first = problem.extra.open_to(amount, problem.most_msat) & (problem.extra.edges.source == problem.root)
    if not first.any():
        starts = problem.extra.edges.source == problem.root
        if not starts.any():
            return "the source has no usable channel"
        most = problem.extra.upper[starts & problem.extra.allowed].max(initial=0)
        return f"no channel of the source can send {amount:,} msat at once; the most is {int(most):,} msat"
    most = 0.0
    usable = False
    for table in (problem.base, problem.extra):
        entering = (table.edges.target == problem.target_index) & table.allowed
        usable |= bool((table.open_to(amount, problem.most_msat) & entering).any())
        able = np.minimum(table.upper, table.edges.htlc_maximum_msat)
        most = max(most, float(able[entering].max(initial=0)))
    if not usable and most:
        return f"no channel into the destination can carry {amount:,} msat at once; the most is {int(most):,} msat"
    if not usable:
        return "the destination has no usable channel"
    return f"no way for {amount:,} msat connects the source with the destination"
