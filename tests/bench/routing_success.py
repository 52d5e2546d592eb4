"""How often payments arrive on the public network when nobody knows the balances: writes the table of docs/routing.md.

    python -m tests.bench.routing_success [--payments 150] [--seed 1] [--write]

Every channel's balance is drawn uniformly between its two sides and hidden; only the payer's own channels are known to
the payer. Each payment starts with the same balances. A round sends what the path finding proposes; each HTLC runs
until a channel lacks the amount, and what that teaches goes into the next round. Parts that arrived hold their
liquidity until all have.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from ortools.graph.python.max_flow import SimpleMaxFlow

from channeld.routing import (
    FEES_ONLY,
    CostModel,
    EdgeKey,
    Graph,
    LocalChannel,
    NoRoute,
    Route,
    RouteRequest,
    Scorer,
    find_flow,
    find_route,
)
from tests.mainnet import load_csv

AMOUNTS_SAT = (10_000, 100_000, 1_000_000, 10_000_000)
MOST_ROUNDS = 30
MOST_PARTS = 16
FEE_LIMIT_PPM = 50_000
LEAST_CHANNELS = 3
LEAST_TIMES = 2
NOTE = Path(__file__).parents[2] / "docs" / "routing.md"
BEGIN, END = "<!-- success table -->", "<!-- end of success table -->"


@dataclass(slots=True)
class Outcome:
    """One payment: whether it arrived, HTLCs sent, rounds, fees of what arrived (msat)."""

    delivered: bool
    attempts: int
    rounds: int
    fee_msat: int


@dataclass
class World:
    """The network with its hidden balances (msat, by edge)."""

    graph: Graph
    seed: int
    balance: list[int] = field(init=False)

    def __post_init__(self) -> None:
        rnd = random.Random(self.seed)
        capacity = self.graph.topology().edges.capacity_msat[::2].astype(np.int64).tolist()
        self.balance = []
        for msat in capacity:
            here = rnd.randint(0, msat)
            self.balance += [here, msat - here]

    def fails_at(self, route: Route, held: dict[EdgeKey, int]) -> int | None:
        """The first hop whose channel lacks the amount."""
        for index, hop in enumerate(route.hops):
            edge = self.graph.edge(hop.key)
            assert edge is not None
            if self.balance[edge] - held.get(hop.key, 0) < hop.amount_msat:
                return index
        return None

    def own_channels(self, node_id: bytes, held: dict[EdgeKey, int]) -> tuple[LocalChannel, ...]:
        """The payer's channels with what they can send now."""
        channels = []
        for channel in self.graph.node_channels(node_id):
            direction = int(channel.node_id_2 == node_id)
            said = channel.policies[direction]
            edge = self.graph.edge(EdgeKey(channel.short_channel_id, direction))
            if said is None or edge is None or not said.enabled:
                continue
            left = self.balance[edge] - held.get(EdgeKey(channel.short_channel_id, direction), 0)
            peer = channel.node_id_1 if direction else channel.node_id_2
            channels.append(
                LocalChannel(channel.short_channel_id, peer, left, htlc_maximum_msat=said.htlc_maximum_msat)
            )
        return tuple(channels)

    def pairs(self, amount_msat: int, count: int) -> Iterator[tuple[bytes, bytes]]:
        """Payers and payees with a few channels, whose capacities sum up to twice the amount both ways."""
        edges = self.graph.topology().edges
        nodes = self.graph.node_count
        good = np.ones(nodes, np.bool_)
        for end in (edges.source, edges.target):
            used = end[edges.enabled]
            good &= np.bincount(used, minlength=nodes) >= LEAST_CHANNELS
            good &= np.bincount(used, edges.capacity_msat[edges.enabled], nodes) >= LEAST_TIMES * amount_msat
        choice = np.nonzero(good)[0].tolist()
        rnd = random.Random(f"{self.seed} {amount_msat}")
        for _ in range(count):
            payer, payee = rnd.sample(choice, 2)
            yield self.graph.node_id(payer), self.graph.node_id(payee)

    @cached_property
    def _all_balances(self) -> SimpleMaxFlow:
        edges = self.graph.topology().edges
        usable = np.nonzero(edges.enabled)[0]
        solver = SimpleMaxFlow()
        capacity = np.array(self.balance, np.int64)[usable]
        solver.add_arcs_with_capacity(edges.source[usable], edges.target[usable], capacity)
        return solver

    def possible(self, payer: bytes, payee: bytes, amount_msat: int) -> bool:
        """Whether all balances together could carry the amount, fees and HTLC limits aside."""
        source, target = self.graph.node_index(payer), self.graph.node_index(payee)
        solver = self._all_balances
        if solver.solve(source, target) != solver.OPTIMAL:
            raise AssertionError("no maximal flow")
        return bool(solver.optimal_flow() >= amount_msat)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to pay: a cost model, in how many parts, and whether failures teach more than to avoid the channel."""

    name: str
    model: CostModel
    most_parts: int
    learns: bool


METHODS = (
    Method("cheapest path", FEES_ONLY, 1, learns=False),
    Method("one path", CostModel(), 1, learns=True),
    Method("parts", CostModel(), MOST_PARTS, learns=True),
)


def pay(world: World, method: Method, payer: bytes, payee: bytes, amount_msat: int) -> Outcome:
    """One payment with its retries."""
    scorer = Scorer()
    held: dict[EdgeKey, int] = {}
    failed: set[EdgeKey] = set()
    left, fee, attempts, parts = amount_msat, 0, 0, 0
    limit = amount_msat * FEE_LIMIT_PPM // 1_000_000
    for number in range(1, MOST_ROUNDS + 1):
        request = RouteRequest(
            source=payer,
            destination=payee,
            amount_msat=left,
            max_fee_msat=limit - fee,
            local_channels=world.own_channels(payer, held),
            in_flight=held,
            ignored_channels=frozenset(failed),
            model=method.model,
        )
        proposed = _propose(world.graph, scorer, request, method.most_parts - parts)
        if not proposed:
            break
        for route in proposed:
            attempts += 1
            failing = world.fails_at(route, held)
            if method.learns:
                scorer.route_failed(world.graph, route, len(route.hops) if failing is None else failing, 0.0, held)
            elif failing is not None:
                failed.add(route.hops[failing].key)
            if failing is None:
                for hop in route.hops:
                    held[hop.key] = held.get(hop.key, 0) + hop.amount_msat
                left -= route.amount_msat
                fee += route.total_fee_msat
                parts += 1
        if left == 0:
            return Outcome(True, attempts, number, fee)
    return Outcome(False, attempts, number, 0)


def _propose(graph: Graph, scorer: Scorer, request: RouteRequest, most_parts: int) -> Sequence[Route]:
    if most_parts < 1:
        return ()
    if most_parts == 1:
        route = find_route(graph, scorer, request, 0.0)
        return () if isinstance(route, NoRoute) else (route,)
    routes = find_flow(graph, scorer, request, 0.0, most_parts)
    return () if isinstance(routes, NoRoute) else routes


def row(world: World, amount_sat: int, payments: int) -> list[str]:
    """The table's rows for one amount."""
    amount_msat = amount_sat * 1000
    pairs = list(world.pairs(amount_msat, payments))
    possible = sum(world.possible(*pair, amount_msat) for pair in pairs)
    rows = []
    for method in METHODS:
        outcomes = [pay(world, method, *pair, amount_msat) for pair in pairs]
        good = [outcome for outcome in outcomes if outcome.delivered]
        count = max(1, len(good))
        cells = (
            f"{amount_sat:,}",
            method.name,
            f"{len(good) / len(pairs):.1%}",
            f"{possible / len(pairs):.1%}",
            f"{sum(outcome.attempts for outcome in good) / count:.1f}",
            f"{sum(outcome.rounds for outcome in good) / count:.1f}",
            f"{sum(outcome.fee_msat for outcome in good) / count / amount_msat * 1e6:,.0f}",
            f"{np.median([float(outcome.fee_msat) for outcome in good] or [math.nan]) / amount_msat * 1e6:,.0f}",
        )
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    return rows


def table(payments: int, seed: int) -> str:
    """The whole table, as Markdown."""
    world = World(load_csv(), seed)
    head = "| amount (sat) | method | delivered | possible | HTLCs | rounds | fees, mean (ppm) | fees, median (ppm) |"
    print(head, flush=True)
    rows = [cells for amount_sat in AMOUNTS_SAT for cells in row(world, amount_sat, payments)]
    return "\n".join([head, "|---:|---|---:|---:|---:|---:|---:|---:|", *rows])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--payments", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into docs/routing.md")
    options = parser.parse_args()
    text = table(options.payments, options.seed)
    if options.write:
        note = NOTE.read_text()
        before, rest = note.split(BEGIN)
        after = rest.split(END)[1]
        command = f"`python -m tests.bench.routing_success --payments {options.payments} --seed {options.seed} --write`"
        NOTE.write_text(f"{before}{BEGIN}\n{text}\n\nMade by {command}.\n{END}{after}")


if __name__ == "__main__":
    main()
