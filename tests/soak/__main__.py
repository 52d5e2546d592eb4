"""`python -m tests.soak network|kills`: the long versions of what CI runs short.

network: ten daemons, a thousand random payments between random pairs, random deaths.
kills: three daemons in a line under constant load, and 200 times kill -9.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from rich.console import Console

from tests.soak.accounts import Lost
from tests.soak.load import Load
from tests.soak.members import Shape
from tests.soak.run import Result, soak


def _plan(arguments: argparse.Namespace) -> tuple[Shape, Load]:
    if arguments.what == "network":
        shape = Shape(arguments.daemons or 10, 8, (1_000_000, 6_000_000), slow_disk_seconds=arguments.slow_disk)
        amounts, kills = (1_000, 100_000_000), arguments.kills or 50
        return shape, Load(arguments.payments or 1000, workers=16, kills=kills, amount_msat=amounts, blocks=5)
    capacity_sat, slow_disk = (3_000_000, 6_000_000), arguments.slow_disk
    shape = Shape(arguments.daemons or 3, 1, capacity_sat, is_line=True, slow_disk_seconds=slow_disk)
    kills = arguments.kills or 200
    payments = arguments.payments or kills * 60
    return shape, Load(payments, workers=30, kills=kills, away_seconds=0.2, amount_msat=(1_000, 20_000_000), blocks=5)


def _tell(console: Console, result: Result) -> None:
    found = result.reckoning
    console.print(
        f"[green]nothing is lost[/]: {found.payments} payments asked for, {found.succeeded} succeeded "
        f"({found.paid_msat / 1000:,.3f} sat, {found.fees_msat / 1000:,.3f} sat of fees in {found.forwards} forwards), "
        f"{result.kills} kills, {result.seconds:.1f} s",
        highlight=False,
    )
    if result.closing_fees_sat is not None:
        console.print(f"all channels are closed, every satoshi is on chain; miners got {result.closing_fees_sat:,}")
    for reason, times in found.failures.most_common(12):
        console.print(f"  {times:5} not made: {reason}", highlight=False)


def main() -> int:
    """The exit status: 0 if every satoshi is where it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("what", choices=("network", "kills"))
    parser.add_argument("--seed", type=int, help="repeats a run's choices (default: a new one)")
    parser.add_argument("--daemons", type=int)
    parser.add_argument("--payments", type=int)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--slow-disk", type=float, default=0.0, metavar="SECONDS", help="what a commit takes on top")
    arguments = parser.parse_args()
    console = Console()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    console.print(f"seed {seed}", highlight=False)
    shape, load = _plan(arguments)
    try:
        told = soak(shape, load, seed, lambda sentence: console.print(sentence, highlight=False), closes=True)
        result = asyncio.run(told)
    except Lost as lost:
        console.print(f"[bold red]lost:[/] {lost}", highlight=False, markup=True)
        return 1
    _tell(console, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
