"""Three daemons in a line, durable commits: what the one between costs and how much goes through it.

Runs real processes on a regtest chain, as `payments` does. `python -m tests.bench.forwarding` measures this alone;
`--profile FILE` writes a profile of the daemon between.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

from channeld.lab import Lab
from tests.bench.bars import Bar, Section
from tests.bench.floor import Floor
from tests.bench.payments import IN_FLIGHT, timed

CAPACITY_SAT = 10_000_000
CORE_LIGHTNING_PER_SECOND = 111
CORE_LIGHTNING_ALONE_SECONDS = 0.086
PROFILED = "tests.bench.profiled_daemon"


class ForwardingFigures(NamedTuple):
    """What was measured. CPU is a payment's: of all three daemons, or of the one between."""

    alone_p50_seconds: float
    alone_p95_seconds: float
    alone_cpu_seconds: float
    busy_per_second: float
    busy_cpu_seconds: float
    forwarder_cpu_seconds: float
    forwarder_memory_bytes: int
    payments: int


async def measure_forwarding(alone: int = 200, busy: int = 1_500, profile: Path | None = None) -> ForwardingFigures:
    """Runs everything."""
    with tempfile.TemporaryDirectory(prefix="channeld-bench-") as folder:
        async with Lab(Path(folder)) as lab:
            return await _measure(lab, alone, busy, profile)


async def _measure(lab: Lab, alone: int, busy: int, profile: Path | None) -> ForwardingFigures:
    alice, carol = await lab.daemons("alice", "carol")
    if profile is None:
        (bob,) = await lab.daemons("bob")
    else:
        bob = lab.add_daemon("bob", module=PROFILED, env={"PROFILE_FILE": str(profile)})
        await bob.start()
    line = [alice, bob, carol]
    await lab.fund_all({alice: CAPACITY_SAT + 1_000_000, bob: CAPACITY_SAT + 1_000_000})
    channels = [
        await lab.open_channel(alice, bob, CAPACITY_SAT, push_msat=CAPACITY_SAT * 100),
        await lab.open_channel(bob, carol, CAPACITY_SAT, push_msat=CAPACITY_SAT * 100),
    ]
    await lab.wait_graph(*channels)
    await timed(line, 20, 1)  # warm
    quiet = await timed(line, alone, 1)
    cuts = quantiles(quiet.latencies, n=20)
    loaded = await timed(line, busy, IN_FLIGHT)
    return ForwardingFigures(
        cuts[9],
        cuts[18],
        sum(quiet.cpu_seconds) / alone,
        busy / loaded.seconds,
        sum(loaded.cpu_seconds) / busy,
        loaded.cpu_seconds[1] / busy,
        bob.memory_bytes(),
        busy,
    )


def _bars(figures: ForwardingFigures, floor: Floor) -> list[Bar]:
    """Against their bars. The floor is that of a payment over two channels, one after the other."""
    alone_ms, batched_ms = 2 * floor.payment_alone_seconds * 1e3, 2 * floor.payment_batched_seconds * 1e3
    p50_ms, cpu_ms = figures.alone_p50_seconds * 1e3, figures.busy_cpu_seconds * 1e3
    cln_ms = CORE_LIGHTNING_ALONE_SECONDS * 1e3
    per_second = figures.busy_per_second
    return [
        Bar(
            "forwarded payment alone, p50",
            p50_ms,
            "<=",
            25,
            "ms",
            f"{p50_ms / alone_ms:.1f} x floor, {p50_ms / cln_ms:.2f} x CLN",
        ),
        Bar("forwarded payment alone, p95", figures.alone_p95_seconds * 1e3, "<=", 50, "ms"),
        Bar(
            f"forwarded with {IN_FLIGHT} in flight",
            per_second,
            ">=",
            120,
            "/s",
            f"{per_second / CORE_LIGHTNING_PER_SECOND:.1f} x CLN",
        ),
        Bar("CPU a payment, three daemons", cpu_ms, "<=", 8, "ms", f"{cpu_ms / batched_ms:.1f} x floor"),
        Bar("CPU a payment, the one between", figures.forwarder_cpu_seconds * 1e3, "<=", 3, "ms"),
        Bar("CPU a payment alone", figures.alone_cpu_seconds * 1e3, "<=", 30, "ms"),
        Bar("memory of the one between", figures.forwarder_memory_bytes / 1e6, "<=", 240, "MB"),
    ]


SECTION = Section(
    "forwarding",
    "Three daemons in a line, durable commits",
    lambda floor, payments: _bars(asyncio.run(measure_forwarding(busy=payments)), floor),
)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.forwarding", description=__doc__)
    parser.add_argument("--payments", type=int, default=1_500, help="how many under load (default: 1500)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write what the daemon between spends its time on")
    arguments = parser.parse_args()
    figures = asyncio.run(measure_forwarding(busy=arguments.payments, profile=arguments.profile))
    for name, value in figures._asdict().items():
        print(f"{name:24} {value:,.4f}")


if __name__ == "__main__":
    main()
