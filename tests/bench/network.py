"""The section of `make bench` about the public network: path finding on the real graph, and gossip coming in."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench import micro_gossip, micro_routing
from tests.bench.bars import Bar, Section
from tests.bench.floor import Floor

PAIRS = 200


def measure(floor: Floor, payments: int) -> list[Bar]:
    """The figures against their bars. `payments` does not matter here."""
    from channeld.routing import Graph
    from tests.mainnet import mainnet

    single, flow = micro_routing.percentiles(PAIRS)
    stored = mainnet().to_bytes()
    started = time.perf_counter()
    Graph.from_bytes(stored).topology()
    arrays_seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph"
        file.write_bytes(stored)
        _, flow_megabytes = micro_routing.memory_megabytes(file)
        store = Path(folder) / "gossip"
        micro_gossip.fill_store(store)
        load = micro_gossip.measure_load(store)
    intake = micro_gossip.measure_intake()
    verify_seconds = next(timing.best_seconds for timing in floor.timings if timing.name == "ECDSA verify")
    start_seconds = load.view_seconds + load.graph_seconds
    return [
        Bar("single path, p50", single.p50, "<=", 15, "ms", f"{single.p50 / 1e3 / verify_seconds:,.0f} x ECDSA verify"),
        Bar("single path, p95", single.p95, "<=", 40, "ms", f"of {single.pairs} random pairs, 10k to 1M sat"),
        Bar("flow in parts, 0.1 BTC, p95", flow.p95, "<=", 600, "ms", f"of {flow.pairs}; p50 {flow.p50:,.0f} ms"),
        Bar("graph load at the start", start_seconds, "<=", 2, "s", f"from gossip; {arrays_seconds:.2f} s from arrays"),
        Bar("memory of the graph", flow_megabytes, "<=", 120, "MB", "with numpy, scipy and OR-Tools"),
        Bar(
            "gossip intake",
            intake.ratio,
            ">=",
            0.7,
            "x raw",
            f"{intake.intake_rate:,.0f} of {intake.raw_rate:,.0f} signatures/s; by CPU time {intake.cpu_ratio:.2f}",
        ),
    ]


SECTION = Section("network", "The public network: 50,808 channels between 17,324 nodes", measure)
