"""`make bench`: speed and memory, beside the floor that this machine's cryptography and disk set in the same run.

Machines are noisy: read the ratios. The watchtower has benches of its own, which take minutes: `tests.bench.tower` and
`tests.bench.tower_cost`. `--micro NAME` runs some microbenchmarks alone, `--json` prints it for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from rich.console import Console
from rich.table import Table

from tests.bench.bars import Bar, bar_table
from tests.bench.floor import Floor, measure_floor
from tests.bench.micro import run_micro
from tests.bench.payments import IN_FLIGHT, PaymentFigures, measure_payments
from tests.bench.timing import Timing

CORE_LIGHTNING_PER_SECOND = 191
CORE_LIGHTNING_ALONE_SECONDS = 0.033
CORE_LIGHTNING_CPU_SECONDS = 0.0057


def bars(figures: PaymentFigures, floor: Floor) -> list[Bar]:
    """The figures of the daemons against their bars, with ratios to the floor and to Core Lightning."""
    alone_ms, batched_ms = floor.payment_alone_seconds * 1e3, floor.payment_batched_seconds * 1e3
    p50_ms, cpu_ms = figures.alone_p50_seconds * 1e3, figures.busy_cpu_seconds * 1e3
    cln_ms = CORE_LIGHTNING_ALONE_SECONDS * 1e3
    per_second = figures.busy_per_second
    return [
        Bar(
            "payment alone, p50",
            p50_ms,
            "<=",
            12,
            "ms",
            f"{p50_ms / alone_ms:.1f} x floor, {p50_ms / cln_ms:.2f} x CLN",
        ),
        Bar("payment alone, p95", figures.alone_p95_seconds * 1e3, "<=", 24, "ms"),
        Bar(
            f"payments with {IN_FLIGHT} in flight",
            per_second,
            ">=",
            250,
            "/s",
            f"{per_second / CORE_LIGHTNING_PER_SECOND:.1f} x CLN",
        ),
        Bar(
            "CPU a payment, both daemons",
            cpu_ms,
            "<=",
            3,
            "ms",
            f"{cpu_ms / batched_ms:.1f} x floor, {cpu_ms / 1e3 / CORE_LIGHTNING_CPU_SECONDS:.2f} x CLN",
        ),
        Bar("CPU a payment alone", figures.alone_cpu_seconds * 1e3, "<=", 12, "ms"),
        Bar("idle memory of a daemon", figures.idle_memory_bytes / 1e6, "<=", 120, "MB"),
        Bar("memory after the load", figures.busy_memory_bytes / 1e6, "<=", 240, "MB"),
        Bar("start to ready", figures.start_seconds, "<=", 1.5, "s"),
    ]


def _timing_table(title: str, timings: list[Timing]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("operation")
    table.add_column("best", justify="right")
    table.add_column("median", justify="right")
    for timing in timings:
        table.add_row(timing.name, *(f"{seconds * 1e6:,.1f} us" for seconds in timing[1:]))
    return table


def main() -> None:
    """Runs what was asked for and prints it. Never fails because of a figure: machines are noisy."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--micro", metavar="NAME", help="only the microbenchmarks with NAME in their name ('' for all)")
    parser.add_argument("--payments", type=int, default=2_000, help="how many payments under load (default: 2000)")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    floor = measure_floor()
    console.print(_timing_table("The floor: this machine's cryptography and disk", floor.timings))
    micro = run_micro(arguments.micro or "")
    console.print(_timing_table("Microbenchmarks", micro))
    rows: list[Bar] = []
    if arguments.micro is None:
        rows = bars(asyncio.run(measure_payments(busy=arguments.payments)), floor)
        console.print(bar_table("Two daemons, one channel, durable commits", rows))
    if arguments.json:
        seconds = {timing.name: timing.best_seconds for timing in (*floor.timings, *micro)}
        print(json.dumps({"seconds": seconds, "bars": [{**row._asdict(), "met": row.met} for row in rows]}))


if __name__ == "__main__":
    main()
