"""Path finding on the public network: `cases` for the table of `make bench`, and percentiles, load time and memory.

python -m tests.bench.micro_routing [--pairs 300]
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

FLOW_SAT = 10_000_000
_MEMORY = """
import sys
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
import channeld.bolt.invoice, channeld.routing
start = resident()
from channeld.routing import Graph, RouteRequest, Scorer, find_flow, find_route
graph = Graph.from_bytes(open(sys.argv[1], "rb").read())
node = lambda number: b"\\x02" + number.to_bytes(32, "big")
scorer = Scorer()
find_route(graph, scorer, RouteRequest(source=node(0), destination=node(418), amount_msat=10**8), 0.0)
route = resident()
find_flow(graph, scorer, RouteRequest(source=node(0), destination=node(418), amount_msat=10**10), 0.0)
print(route - start, resident() - start)
"""


class Figures(NamedTuple):
    """Milliseconds of many searches."""

    name: str
    pairs: int
    p50: float
    p95: float
    worst: float


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Names and operations; milliseconds each."""
    from channeld.routing import Graph, LocalChannel, RouteRequest, Scorer, explain, find_flow, find_route
    from tests import routing_support as small_world
    from tests.mainnet import mainnet, node_id

    graph, scorer = mainnet(), Scorer()
    stored = graph.to_bytes()
    small = RouteRequest(source=node_id(0), destination=node_id(1500), amount_msat=100_000_000)
    large = RouteRequest(source=node_id(0), destination=node_id(418), amount_msat=FLOW_SAT * 1000)
    line = small_world.build(small_world.Link(0, 1), small_world.Link(1, 2))
    ours = LocalChannel(small_world.scid(0), small_world.node(1), spendable_msat=10**9)
    second = RouteRequest(
        source=small_world.node(0), destination=small_world.node(2), amount_msat=10**6, local_channels=(ours,)
    )
    spare = Graph.from_bytes(stored)
    scids = itertools.count(800_000 << 40)

    def another_channel() -> None:
        spare.add_channel(next(scids), node_id(0), node_id(1), 1_000_000)
        spare.topology()

    return [
        ("graph load, mainnet", lambda: Graph.from_bytes(stored).topology()),
        ("graph order after a new channel, mainnet", another_channel),
        ("route, 1k sat, three nodes in a line", lambda: find_route(line, scorer, second, 0.0)),
        ("route, 100k sat, mainnet", lambda: find_route(graph, scorer, small, 0.0)),
        ("flow, 0.1 BTC, mainnet", lambda: find_flow(graph, scorer, large, 0.0)),
        ("explain, 100k sat, mainnet", lambda: explain(graph, scorer, small, 0.0)),
    ]


@cache
def _payers(amount_sat: int) -> tuple[int, ...]:
    """Nodes that can send and receive: without them most searches of a random pair end before they begin."""
    import numpy as np

    from tests.mainnet import mainnet

    edges = mainnet().topology().edges
    good = np.ones(mainnet().node_count, np.bool_)
    for end in (edges.source, edges.target):
        used = end[edges.enabled]
        good &= np.bincount(used, edges.capacity_msat[edges.enabled], len(good)) >= 2000 * amount_sat
    return tuple(np.nonzero(good)[0].tolist())


def percentiles(pairs: int) -> Iterator[Figures]:
    """Single paths of 10k to 1M sat and flows of 0.1 BTC between random nodes."""
    from channeld.routing import RouteRequest, Scorer, find_flow, find_route
    from tests.mainnet import mainnet, node_id

    graph, scorer, rnd = mainnet(), Scorer(), random.Random(1)
    find_flow(graph, scorer, RouteRequest(source=node_id(0), destination=node_id(418), amount_msat=10**10), 0.0)

    def time_all(
        name: str, call: Callable[[RouteRequest], object], amounts_sat: tuple[int, ...], count: int
    ) -> Figures:
        spent = []
        for number in range(count):
            amount_sat = amounts_sat[number % len(amounts_sat)]
            payer, payee = rnd.sample(_payers(amount_sat), 2)
            request = RouteRequest(source=node_id(payer), destination=node_id(payee), amount_msat=amount_sat * 1000)
            started = time.perf_counter()
            call(request)
            spent.append((time.perf_counter() - started) * 1e3)
        spent.sort()
        return Figures(name, count, spent[count // 2], spent[int(count * 0.95)], spent[-1])

    single = (10_000, 100_000, 1_000_000)
    yield time_all("single path, 10k to 1M sat", lambda ask: find_route(graph, scorer, ask, 0.0), single, pairs)
    yield time_all("flow, 0.1 BTC", lambda ask: find_flow(graph, scorer, ask, 0.0), (FLOW_SAT,), max(20, pairs // 2))


def memory_megabytes(stored: Path) -> tuple[float, float]:
    """What the graph and all libraries add to a process: after a single path, and after a flow."""
    out = subprocess.run([sys.executable, "-c", _MEMORY, str(stored)], check=True, capture_output=True, text=True)
    single, flow = out.stdout.split()
    return float(single), float(flow)


def main() -> None:
    """Prints it all."""
    import tempfile

    from channeld.routing import Graph
    from tests.mainnet import load_csv

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=300)
    pairs = parser.parse_args().pairs
    started = time.perf_counter()
    graph = load_csv()
    csv_seconds = time.perf_counter() - started
    stored = graph.to_bytes()
    started = time.perf_counter()
    Graph.from_bytes(stored).topology()
    print(f"load: {(time.perf_counter() - started) * 1e3:.0f} ms stored ({len(stored) / 1e6:.1f} MB), "
          f"{csv_seconds * 1e3:.0f} ms from the CSV file")  # fmt: skip
    with tempfile.NamedTemporaryFile() as file:
        file.write(stored)
        file.flush()
        single, flow = memory_megabytes(Path(file.name))
    print(f"memory: {single:.0f} MB with numpy and scipy after a path, {flow:.0f} MB with OR-Tools after a flow; "
          f"the arrays alone {graph.nbytes / 1e6:.1f} MB")  # fmt: skip
    for figures in percentiles(pairs):
        print(f"{figures.name}: p50 {figures.p50:.1f} ms, p95 {figures.p95:.1f} ms, "
              f"worst {figures.worst:.0f} ms ({figures.pairs} pairs)")  # fmt: skip


if __name__ == "__main__":
    main()
