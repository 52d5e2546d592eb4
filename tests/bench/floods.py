"""What strangers can do to a node: honest payments, memory and sockets before and during each flood, in processes.

`python -m tests.bench.floods [SECONDS] [FLOOD...]`: so long for each (default: 5), all of `tests.flooder` by default.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bad_input_support import net_in
from tests.flood_support import Effect, under
from tests.flooder import FLOODS

HEADINGS = (
    "flood",
    "connections",
    "sent a second",
    "ended",
    "payments before (ms)",
    "during (ms)",
    "worst (ms)",
    "memory before (MB)",
    "at most (MB)",
    "sockets at most",
    "processor",
)


def _row(kind: str, effect: Effect) -> list[str]:
    return [
        kind,
        str(FLOODS[kind][1]),
        f"{effect.sent[kind] / effect.seconds:,.0f}",
        f"{effect.ended[kind]:,}",
        f"{effect.before_ms:.0f}",
        f"{effect.during_ms:.0f}",
        f"{effect.worst_ms:.0f}",
        f"{effect.memory_before_mb:.0f}",
        f"{effect.memory_peak_mb:.0f}",
        str(effect.sockets_peak),
        f"{effect.node_cpu:.0%}",
    ]


async def measure(seconds: float, kinds: list[str]) -> Table:
    """One flood after the other, against the same daemon."""
    table = Table(title=f"{seconds:g} s each; payments are one there and one back; load {os.getloadavg()[0]:.1f}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "flood" else "right")
    with tempfile.TemporaryDirectory(prefix="floods-") as directory:
        async with net_in(Path(directory)) as net:
            for kind in kinds:
                effect = await under(net, Path(directory) / "flooder.log", kind, rounds=10, at_least_seconds=seconds)
                table.add_row(*_row(kind, effect))
    return table


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    seconds = float(arguments.pop(0)) if arguments and arguments[0] not in FLOODS else 5.0
    Console(width=170).print(asyncio.run(measure(seconds, arguments or list(FLOODS))))


if __name__ == "__main__":
    main()
