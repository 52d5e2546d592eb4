"""`make bench`: speed and memory, beside the floor that this machine's cryptography and disk set in the same run.

Machines are noisy: read the ratios. The watchtower has benches of its own, which take minutes: `tests.bench.tower` and
`tests.bench.tower_cost`. `--only NAME` measures one section, `--micro NAME` runs some microbenchmarks alone, `--json`
prints it for programs.
"""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table

from tests.bench import forwarding, network, payments
from tests.bench.bars import Bar, Section, bar_table
from tests.bench.floor import measure_floor
from tests.bench.micro import run_micro
from tests.bench.timing import Timing

SECTIONS: tuple[Section, ...] = (payments.SECTION, forwarding.SECTION, network.SECTION)
"""What is measured, in order."""


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
    names = [section.name for section in SECTIONS]
    parser.add_argument("--only", choices=names, action="append", help="only this section (may be repeated)")
    parser.add_argument("--payments", type=int, default=2_000, help="how many payments under load (default: 2000)")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    floor = measure_floor()
    console.print(_timing_table("The floor: this machine's cryptography and disk", floor.timings))
    micro = run_micro(arguments.micro or "") if arguments.only is None else []
    if micro:
        console.print(_timing_table("Microbenchmarks", micro))
    rows: list[Bar] = []
    if arguments.micro is None:
        for section in SECTIONS:
            if arguments.only is None or section.name in arguments.only:
                measured = section.measure(floor, arguments.payments)
                console.print(bar_table(section.title, measured))
                rows += measured
    if arguments.json:
        seconds = {timing.name: timing.best_seconds for timing in (*floor.timings, *micro)}
        print(json.dumps({"seconds": seconds, "bars": [{**row._asdict(), "met": row.met} for row in rows]}))


if __name__ == "__main__":
    main()
