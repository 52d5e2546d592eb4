"""Two daemons, one channel, durable commits: latency alone, throughput with 100 in flight, CPU, memory, start.

Runs real processes on a regtest chain. Invoices are made before the clock runs, as a payer meets them.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

from channeld.lab import DaemonProcess, Lab
from channeld.v1 import payments_pb2
from tests.bench.bars import Bar, Section
from tests.bench.floor import Floor

CAPACITY_SAT = 10_000_000
AMOUNT_MSAT = 1_000_000
IN_FLIGHT = 100
CORE_LIGHTNING_PER_SECOND = 191
CORE_LIGHTNING_ALONE_SECONDS = 0.033
CORE_LIGHTNING_CPU_SECONDS = 0.0057


class PaymentFigures(NamedTuple):
    """What was measured. CPU is over both daemons, the client's left out; memory is resident."""

    start_seconds: float
    idle_memory_bytes: int
    alone_p50_seconds: float
    alone_p95_seconds: float
    alone_cpu_seconds: float
    busy_per_second: float
    busy_cpu_seconds: float
    busy_memory_bytes: int
    payments: int


async def measure_payments(alone: int = 200, busy: int = 2_000) -> PaymentFigures:
    """Runs everything."""
    with tempfile.TemporaryDirectory(prefix="channeld-bench-") as folder:
        async with Lab(Path(folder)) as lab:
            return await _measure(lab, alone, busy)


async def _measure(lab: Lab, alone: int, busy: int) -> PaymentFigures:
    alice, bob = await lab.daemons("alice", "bob")
    # The second start is measured: the first one also makes a seed, keys and a database.
    await alice.stop()
    began = time.perf_counter()
    await alice.start()
    start_seconds = time.perf_counter() - began
    await lab.wait_synced()
    idle_memory_bytes = max(alice.memory_bytes(), bob.memory_bytes())
    await lab.fund(alice, CAPACITY_SAT + 1_000_000)
    await lab.open_channel(alice, bob, CAPACITY_SAT, push_msat=CAPACITY_SAT * 100)
    await timed([alice, bob], 20, 1)  # warm
    quiet = await timed([alice, bob], alone, 1)
    cuts = quantiles(quiet.latencies, n=20)
    loaded = await timed([alice, bob], busy, IN_FLIGHT)
    return PaymentFigures(
        start_seconds,
        idle_memory_bytes,
        cuts[9],
        cuts[18],
        sum(quiet.cpu_seconds) / alone,
        busy / loaded.seconds,
        sum(loaded.cpu_seconds) / busy,
        max(alice.memory_bytes(), bob.memory_bytes()),
        busy,
    )


class Timed(NamedTuple):
    """Latencies of each payment, CPU of each daemon and wall time of all, in seconds."""

    latencies: list[float]
    cpu_seconds: list[float]
    seconds: float


async def timed(line: Sequence[DaemonProcess], count: int, in_flight: int) -> Timed:
    """Payments from the first daemon to the last, never more than `in_flight` at a time."""
    bolt11s = await invoices(line[-1], count)
    before = [daemon.cpu_seconds() for daemon in line]
    began = time.perf_counter()
    latencies = await pay_all(line[0], bolt11s, in_flight)
    seconds = time.perf_counter() - began
    used = [daemon.cpu_seconds() - cpu for daemon, cpu in zip(line, before, strict=True)]
    return Timed(latencies, used, seconds)


async def invoices(payee: DaemonProcess, count: int) -> list[str]:
    """So many, of `AMOUNT_MSAT`."""
    return [(await payee.invoice(AMOUNT_MSAT, f"goods {number}")).bolt11 for number in range(count)]


async def pay_all(payer: DaemonProcess, bolt11s: list[str], in_flight: int) -> list[float]:
    """Pays over one stream, never more than `in_flight` at a time; the latency of each. Every payment must succeed."""
    room = asyncio.Semaphore(in_flight)
    sent: dict[int, float] = {}
    latencies: list[float] = []

    async def requests() -> AsyncIterator[payments_pb2.PayStreamRequest]:
        for number, bolt11 in enumerate(bolt11s):
            await room.acquire()
            sent[number] = time.perf_counter()
            yield payments_pb2.PayStreamRequest(request_id=number, pay=payments_pb2.PayRequest(bolt11=bolt11))

    async for response in payer.client.payments.PayStream(requests()):
        latencies.append(time.perf_counter() - sent.pop(response.request_id))
        room.release()
        if response.payment.state != payments_pb2.PAYMENT_STATE_SUCCEEDED:
            reason = response.payment.failure or response.error.sentence
            raise RuntimeError(f"payment {response.request_id} of {len(bolt11s)} failed: {reason}")
    return latencies


def _bars(figures: PaymentFigures, floor: Floor) -> list[Bar]:
    """Against their bars, with ratios to the floor and to Core Lightning."""
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


SECTION = Section(
    "payments",
    "Two daemons, one channel, durable commits",
    lambda floor, payments: _bars(asyncio.run(measure_payments(busy=payments)), floor),
)
