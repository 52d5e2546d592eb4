"""What a watchtower costs the node that uses it: payments between daemons with a tower and without, in turns.

Two pairs of daemons on one layer 1, one pair with a tower on both sides; each round pays over the one and then over the
other, so that both meet the same noise. CPU is over both daemons of a pair, the tower's and the payer's left out.

`python -m tests.bench.tower_cost [own|blind] [ROUNDS] [PAYMENTS]`
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console

from channeld.lab import DaemonProcess, Lab
from channeld.lab.tower import start, tower_process
from channeld.v1 import towers_pb2
from tests.bench.bars import Bar, bar_table
from tests.bench.payments import CAPACITY_SAT, IN_FLIGHT, invoices, pay_all
from watchtower.appointment import Mode
from watchtower.tower.paths import tower_paths

DRAIN_SECONDS = 600.0


class Load(NamedTuple):
    """One round over one pair: CPU seconds a payment while it ran, and with all that came after."""

    per_second: float
    cpu_seconds: float
    drained_cpu_seconds: float
    backlog: int
    drain_seconds: float


class TowerCost(NamedTuple):
    """Medians over the rounds: `throughput` and the CPU shares are those with a tower over those without."""

    mode: Mode
    plain_per_second: float
    throughput: float
    cpu: float
    cpu_drained: float
    backlog: float
    drain_seconds: float
    revoked_per_payment: float


Pair = tuple[DaemonProcess, DaemonProcess]


def _cpu(pair: Pair) -> float:
    return sum(daemon.cpu_seconds() for daemon in pair)


async def _status(daemon: DaemonProcess) -> tuple[int, int]:
    """(commitments that were revoked, those that the towers lack)."""
    answer = await daemon.client.towers.List(towers_pb2.ListTowersRequest())
    revoked = sum(channel.revoked for tower in answer.towers for channel in tower.channels)
    return revoked, sum(tower.backlog for tower in answer.towers)


async def _backlog(pair: Pair) -> int:
    return sum([(await _status(daemon))[1] for daemon in pair])


async def _drained(pair: Pair) -> None:
    async with asyncio.timeout(DRAIN_SECONDS):
        while await _backlog(pair):  # noqa: ASYNC110  # in other processes
            await asyncio.sleep(0.1)


async def _load(pair: Pair, payments: int) -> Load:
    payer, payee = pair
    bolt11s = await invoices(payee, payments)
    cpu, began = _cpu(pair), time.perf_counter()
    await pay_all(payer, bolt11s, IN_FLIGHT)
    seconds, busy_cpu = time.perf_counter() - began, _cpu(pair) - cpu
    backlog = await _backlog(pair)
    await _drained(pair)
    drained = time.perf_counter() - began - seconds
    return Load(payments / seconds, busy_cpu / payments, (_cpu(pair) - cpu) / payments, backlog, drained)


async def _measure(lab: Lab, mode: Mode, rounds: int, payments: int) -> TowerCost:
    directory = lab.directory / "tower"
    process = tower_process(lab, directory, "--appointments-per-second", "100000", "--appointments-burst", "1000000")
    uri = await start(process, tower_paths("regtest", directory))
    try:
        alice, bob, carol, dave = await lab.daemons("alice", "bob", "carol", "dave")
        plain, towered = (alice, bob), (carol, dave)
        for payer, payee in (plain, towered):
            await lab.fund(payer, CAPACITY_SAT + 1_000_000)
            await lab.open_channel(payer, payee, CAPACITY_SAT, push_msat=CAPACITY_SAT * 100)
        for daemon in towered:
            await daemon.client.towers.Add(towers_pb2.AddTowerRequest(uri=str(uri), own=mode == "own"))
        for pair in (plain, towered):
            await _load(pair, 200)
        first = await _status(towered[0])
        found = [(await _load(plain, payments), await _load(towered, payments)) for _ in range(rounds)]
        revoked = (await _status(towered[0]))[0] - first[0]
    finally:
        await process.terminate()
    return TowerCost(
        mode,
        median(without.per_second for without, _ in found),
        median(given.per_second / without.per_second for without, given in found),
        median(given.cpu_seconds / without.cpu_seconds for without, given in found),
        median(given.drained_cpu_seconds / without.drained_cpu_seconds for without, given in found),
        median(given.backlog for _, given in found),
        median(given.drain_seconds for _, given in found),
        revoked / (rounds * payments),
    )


async def measure_tower_cost(mode: Mode, rounds: int = 5, payments: int = 800) -> TowerCost:
    """Runs everything."""
    with tempfile.TemporaryDirectory(prefix="channeld-bench-") as folder:
        async with Lab(Path(folder)) as lab:
            return await _measure(lab, mode, rounds, payments)


def main() -> None:
    """Prints the figures."""
    modes: list[Mode] = ["blind" if sys.argv[1] == "blind" else "own"] if len(sys.argv) > 1 else ["own", "blind"]
    rounds, payments = (int(given) for given in (sys.argv[2:4] + ["5", "800"][len(sys.argv[2:4]) :]))
    console = Console()
    for mode in modes:
        cost = asyncio.run(measure_tower_cost(mode, rounds, payments))
        title = f"With a tower in {mode} mode on both sides: medians of {rounds} rounds of {payments} payments"
        console.print(bar_table(title, bars(cost)))
        console.print(f"{cost.backlog:.0f} commitments were left behind, for {cost.drain_seconds:.1f} s")


def bars(cost: TowerCost) -> list[Bar]:
    """At most a tenth of throughput. What comes after the load is the price of every state; it has no bar."""
    return [
        Bar("payments a second", 100 * cost.throughput, ">=", 90, "%", f"without: {cost.plain_per_second:.0f}/s"),
        Bar(
            "CPU a payment, under load",
            100 * cost.cpu,
            "<=",
            110,
            "%",
            f"with what comes after: {100 * cost.cpu_drained:.1f}%; "
            f"{cost.revoked_per_payment:.3f} revoked commitments a payment and side",
        ),
    ]


if __name__ == "__main__":
    main()
