"""Why a route is the one: what each hop costs, and why those that looked cheaper were not taken.

Candidates are of two kinds. Some keep all rules and have less fee: they lost on lock time or probability. Others would
cost less in all, were it not for a rule that can change by the next minute (a channel is disabled, limits of HTLCs,
what we believe of balances, the request's own exclusions and limits); channels with too little capacity are no
candidates. Of each kind the best is found, what stopped it is taken out, and the next is looked for. The runners-up
are the best ways without one of the route's channels.

Amounts and costs in msat, lock times in blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from enum import StrEnum

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from channeld.bolt.primitives import format_short_channel_id
from channeld.routing.costs import Problem, lay_out
from channeld.routing.graph import Graph
from channeld.routing.prices import Table
from channeld.routing.scoring import Scorer
from channeld.routing.search import edges_of, price, solve
from channeld.routing.values import FEES_ONLY, MAX_AMOUNT_MSAT, EdgeKey, HopCost, NoRoute, Route, RouteRequest

MOST_CANDIDATES = 3
"""Of each kind."""

MOST_RUNNERS_UP = 3


class Rule(StrEnum):
    """What keeps a candidate from being used."""

    DISABLED = "disabled"
    EXCLUDED = "excluded"
    HTLC_MINIMUM = "htlc_minimum_msat"
    HTLC_MAXIMUM = "htlc_maximum_msat"
    BALANCE = "balance"
    FEATURES = "features"
    FEE = "fee_limit"
    LOCK_TIME = "lock_time_limit"
    COST = "cost"


class Obstacle(Struct, frozen=True):
    """A rule that a candidate breaks; of one channel, or of the whole way (then `key` is None). Units as the rule's:
    msat, blocks for the lock time. `wanted` is what the way needs, `limit` what there is."""

    rule: Rule
    key: EdgeKey | None
    wanted: int
    limit: int

    def __str__(self) -> str:
        where = "the way" if self.key is None else f"channel {format_short_channel_id(self.key.short_channel_id)}"
        match self.rule:
            case Rule.DISABLED:
                return f"{where} is disabled in this direction"
            case Rule.EXCLUDED:
                return f"{where} was excluded by the request"
            case Rule.FEATURES:
                return (
                    f"{where} belongs to a node without the features that are needed, or with some that are not known "
                    "here"
                )
            case Rule.HTLC_MINIMUM:
                return f"{where} takes at least {self.limit:,} msat, not {self.wanted:,} msat"
            case Rule.HTLC_MAXIMUM:
                return f"{where} takes at most {self.limit:,} msat, not {self.wanted:,} msat"
            case Rule.BALANCE:
                return f"{where} can send at most {self.limit:,} msat as far as we know, not {self.wanted:,} msat"
            case Rule.FEE:
                return f"{where} costs {self.wanted:,} msat in fees, the limit is {self.limit:,} msat"
            case Rule.LOCK_TIME:
                return f"{where} locks funds for {self.wanted} blocks, the limit is {self.limit}"
            case Rule.COST:
                return f"{where} costs {self.wanted:,} msat in all, the route taken {self.limit:,} msat"


class Candidate(Struct, frozen=True):
    """A way that was not taken, what it would have cost, and all that stands against it.

    Probability and cost are those it would have if the rules that it breaks were not. `more_...`: in comparison with
    the route that was taken, if there is one.
    """

    hops: tuple[HopCost, ...]
    fee_msat: int
    lock_blocks: int
    probability: float
    cost_msat: float
    obstacles: tuple[Obstacle, ...]
    more_fee_msat: int = 0
    more_lock_cost_msat: float = 0.0
    more_improbability_cost_msat: float = 0.0

    @property
    def reason(self) -> str:
        """One sentence."""
        if self.obstacles[0].rule is not Rule.COST:
            return "; ".join(str(obstacle) for obstacle in self.obstacles)
        gains = {
            "fees": self.more_fee_msat,
            "lock time": self.more_lock_cost_msat,
            "improbability": self.more_improbability_cost_msat,
        }
        saved = [f"{-gain:,.0f} msat of {name}" for name, gain in gains.items() if gain <= -0.5]
        lost = [f"{gain:,.0f} msat of {name}" for name, gain in gains.items() if gain >= 0.5]
        parts = [f"{verb} {' and '.join(what)}" for verb, what in (("saves", saved), ("adds", lost)) if what]
        return " but ".join(parts) or "costs the same"


class Explanation(Struct, frozen=True):
    """The answer of `find_route` and the reasons for it. `cheaper`: candidates with less fee, or less cost
    if a rule were not; by fee. `runners_up`: the next best in cost."""

    route: Route | NoRoute
    hops: tuple[HopCost, ...]
    cheaper: tuple[Candidate, ...]
    runners_up: tuple[Candidate, ...]


def explain(graph: Graph, scorer: Scorer, request: RouteRequest, now_seconds: float) -> Explanation:
    """`find_route` with reasons; takes about ten times as long. Raises ValueError as it does."""
    problem = lay_out(graph, scorer, request, now_seconds)
    answer = solve(problem)
    if problem.target_index < 0:
        return Explanation(answer, (), (), ())
    chosen = edges_of(problem, answer) if isinstance(answer, Route) else []
    hops = hop_costs(problem, answer) if isinstance(answer, Route) else ()
    frugal = tuple(_frugal(problem, answer)) if isinstance(answer, Route) else ()
    cheaper = sorted((*frugal, *_stopped(problem, answer)), key=lambda candidate: candidate.fee_msat)
    return Explanation(answer, hops, tuple(cheaper), _runners_up(problem, answer, chosen))


def hop_costs(problem: Problem, route: Route) -> tuple[HopCost, ...]:
    """What each channel of a route costs."""
    model = problem.request.model
    costs = []
    source = route.source
    for edge, hop in zip(edges_of(problem, route), route.hops, strict=True):
        policy = problem.policy(edge)
        nats = max(0.0, -math.log(hop.probability)) if hop.probability else math.inf
        costs.append(
            HopCost(
                key=hop.key,
                source=source,
                target=hop.node_id,
                amount_msat=hop.amount_msat,
                fee_msat=policy.fee_msat(hop.amount_msat),
                lock_blocks=policy.cltv_expiry_delta,
                lock_cost_msat=hop.amount_msat * policy.cltv_expiry_delta * model.lock_ppb_per_block / 1e9,
                probability=hop.probability,
                improbability_cost_msat=nats * problem.nat_msat if problem.nat_msat else 0.0,
            )
        )
        source = hop.node_id
    return tuple(costs)


def _frugal(problem: Problem, answer: Route) -> Iterable[Candidate]:
    """Ways that keep all rules and have less fee than the route."""
    freed: list[tuple[Table, int]] = []
    for _ in range(MOST_CANDIDATES):
        cheapest = solve(problem, FEES_ONLY)
        if isinstance(cheapest, NoRoute) or cheapest.total_fee_msat >= answer.total_fee_msat:
            break
        edges = edges_of(problem, cheapest)
        candidate = _candidate(problem, problem, edges, answer)
        yield candidate
        worst = max(range(len(edges)), key=lambda at: candidate.hops[at].cost_msat - candidate.hops[at].fee_msat)
        place = problem.place(edges[worst])
        place[0].allowed[place[1]] = False
        freed.append(place)
    for table, index in freed:
        table.allowed[index] = True


def _stopped(problem: Problem, answer: Route | NoRoute) -> Iterable[Candidate]:
    """Ways that would cost less than the route, or be one at all, if a rule did not stand against them."""
    lawless = _lawless(problem, answer)
    for _ in range(MOST_CANDIDATES):
        best = solve(lawless)
        if isinstance(best, NoRoute):
            return
        edges = edges_of(lawless, best)
        candidate = _candidate(problem, lawless, edges, answer)
        if candidate.obstacles[0].rule is Rule.COST:
            return  # keeps all rules: then none that breaks one is better
        yield candidate
        stopping = {obstacle.key for obstacle in candidate.obstacles if obstacle.key is not None}
        if not stopping:
            stopping = {max(candidate.hops, key=lambda hop: hop.cost_msat).key}
        for edge in edges:
            if problem.key(edge) in stopping:
                table, index = lawless.place(edge)
                table.allowed[index] = False


def _runners_up(problem: Problem, answer: Route | NoRoute, chosen: list[int]) -> tuple[Candidate, ...]:
    ways: dict[tuple[int, ...], Candidate] = {}
    for edge in chosen:
        table, index = problem.place(edge)
        table.allowed[index] = False
        other = solve(problem)
        table.allowed[index] = True
        if isinstance(other, Route):
            edges = edges_of(problem, other)
            ways[tuple(edges)] = _candidate(problem, problem, edges, answer)
    return tuple(sorted(ways.values(), key=lambda way: way.cost_msat)[:MOST_RUNNERS_UP])


def _candidate(problem: Problem, as_if: Problem, edges: list[int], answer: Route | NoRoute) -> Candidate:
    """A way with the price it would have in `as_if`, and what stands against it in `problem`."""
    route = price(as_if, edges)
    hops = hop_costs(as_if, route)
    request = problem.request
    obstacles = [obstacle for edge, hop in zip(edges, hops, strict=True) for obstacle in _obstacles(problem, edge, hop)]
    if route.total_fee_msat > request.fee_limit_msat:
        obstacles.append(Obstacle(Rule.FEE, None, route.total_fee_msat, request.fee_limit_msat))
    if route.total_cltv_blocks > request.max_cltv_blocks:
        obstacles.append(Obstacle(Rule.LOCK_TIME, None, route.total_cltv_blocks, request.max_cltv_blocks))
    cost_msat = sum(hop.cost_msat for hop in hops) + request.model.hop_msat * len(hops)
    if not obstacles:
        least = answer.cost_msat if isinstance(answer, Route) else 0
        obstacles.append(Obstacle(Rule.COST, None, math.ceil(cost_msat), int(least)))
    taken = hop_costs(problem, answer) if isinstance(answer, Route) else ()
    return Candidate(
        hops=hops,
        fee_msat=route.total_fee_msat,
        lock_blocks=route.total_cltv_blocks,
        probability=math.prod(hop.probability for hop in hops),
        cost_msat=cost_msat,
        obstacles=tuple(obstacles),
        more_fee_msat=sum(hop.fee_msat for hop in hops) - sum(hop.fee_msat for hop in taken),
        more_lock_cost_msat=sum(hop.lock_cost_msat for hop in hops) - sum(hop.lock_cost_msat for hop in taken),
        more_improbability_cost_msat=sum(hop.improbability_cost_msat for hop in hops)
        - sum(hop.improbability_cost_msat for hop in taken),
    )


def _obstacles(problem: Problem, edge: int, hop: HopCost) -> Iterable[Obstacle]:
    """What stands against one channel."""
    table, index = problem.place(edge)
    policy = problem.policy(edge)
    if not policy.enabled:
        yield Obstacle(Rule.DISABLED, hop.key, 1, 0)
    elif not table.allowed[index]:
        rule = Rule.FEATURES if _lacks_features(problem, hop) else Rule.EXCLUDED
        yield Obstacle(rule, hop.key, 1, 0)
    if hop.amount_msat < policy.htlc_minimum_msat:
        yield Obstacle(Rule.HTLC_MINIMUM, hop.key, hop.amount_msat, policy.htlc_minimum_msat)
    if hop.amount_msat > policy.htlc_maximum_msat:
        yield Obstacle(Rule.HTLC_MAXIMUM, hop.key, hop.amount_msat, policy.htlc_maximum_msat)
    room = int(table.upper[index] - table.used[index])
    if policy.htlc_maximum_msat >= hop.amount_msat > room:
        yield Obstacle(Rule.BALANCE, hop.key, hop.amount_msat, max(0, room))


def _lacks_features(problem: Problem, hop: HopCost) -> bool:
    wanted = problem.request.required_features
    have = problem.graph.node_features(hop.source) or 0
    return bool(wanted & ~(have | (have >> 1))) or problem.graph.node_index(hop.source) in problem.graph.unfit_nodes()


def _lawless(problem: Problem, answer: Route | NoRoute) -> Problem:
    """The same without rules, but for a price on every channel that breaks one, so that few are broken."""
    request = problem.request
    price_msat = answer.cost_msat / 5 if isinstance(answer, Route) else request.model.nat_msat(request.amount_msat)
    nats = price_msat / problem.nat_msat if problem.nat_msat else 0.0
    tables = [_without_rules(table, request.amount_msat, nats) for table in (problem.base, problem.extra)]
    if (source := problem.graph.node_index(request.source)) is not None:
        topology = problem.topology
        tables[0].allowed[topology.out_edges[topology.out_start[source] : topology.out_start[source + 1]]] = False
    free = replace(request, max_fee_msat=None, max_cltv_blocks=10**6)
    return dataclasses.replace(problem, base=tables[0], extra=tables[1], request=free)


def _without_rules(table: Table, amount_msat: int, broken_nats: float) -> Table:
    size = len(table.edges.source)
    edges = dataclasses.replace(
        table.edges,
        htlc_minimum_msat=np.zeros(size, np.int64),
        htlc_maximum_msat=np.full(size, MAX_AMOUNT_MSAT, np.int64),
    )
    lawful = table.open_to(amount_msat, amount_msat)
    return Table(
        edges,
        np.where(lawful, table.lower, 0.0),
        np.where(lawful, table.upper, table.capacity),
        table.capacity,
        np.where(lawful, table.used, 0.0),
        np.where(lawful, table.fixed_nats, table.fixed_nats + broken_nats),
        table.edges.known & (table.capacity >= amount_msat),
    )
