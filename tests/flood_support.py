"""What a flood does to a node: memory, and how long honest payments take, before it and while it goes on."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from channeld.lab import DaemonProcess
from channeld.lab.processes import ManagedProcess
from tests.bad_input_support import SUCCEEDED, Net

MEGABYTE = 1 << 20


class Effect(NamedTuple):
    """`sent` and `ended` are of the flooder: messages or connections, and connections that the node did not want."""

    before_ms: float
    during_ms: float
    worst_ms: float
    memory_before_mb: float
    memory_peak_mb: float
    sockets_peak: int
    peers_peak: int
    openings_peak: int
    sent: dict[str, int]
    ended: dict[str, int]
    node_cpu: float
    """Of one core."""
    seconds: float

    @property
    def grown_mb(self) -> float:
        """What the flood cost, in memory."""
        return self.memory_peak_mb - self.memory_before_mb


@asynccontextmanager
async def flooder(victim: DaemonProcess, log: Path, *kinds: str) -> AsyncIterator[ManagedProcess]:
    """Floods under way."""
    command = [sys.executable, "-m", "tests.flooder", f"{victim.node_id.hex()}@{victim.address}", *kinds]
    process = ManagedProcess("flooder", command, log)
    await process.start()
    try:
        await process.wait_line("flooding")
        yield process
    finally:
        await process.terminate()


def sockets_of(daemon: DaemonProcess) -> int:
    """How many sockets a process has open."""
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    found = 0
    for entry in folder.iterdir():
        try:
            found += os.readlink(entry).startswith("socket:")
        except FileNotFoundError:  # closed in the meantime
            continue
    return found


async def pay(net: Net) -> float:
    """Alice pays Bob, the flooded one, and he her; milliseconds for both."""
    spent = 0.0
    for payer, payee in ((net.alice, net.bob), (net.bob, net.alice)):
        invoice = await payee.invoice(7_000)
        began = time.perf_counter()
        payment = await payer.pay(invoice.bolt11)
        spent += time.perf_counter() - began
        assert payment.state == SUCCEEDED, payment.failure
    return spent * 1000


async def under(net: Net, log: Path, *kinds: str, rounds: int = 5, at_least_seconds: float = 0.0) -> Effect:
    """Pays before, and while the floods go on against Bob: `rounds` times, and for `at_least_seconds`."""
    before = [await pay(net) for _ in range(rounds)]
    memory_before = net.bob.memory_bytes() / MEGABYTE
    memory = [memory_before]
    sockets = [sockets_of(net.bob)]
    during: list[float] = []
    peers, openings = [0], [0]
    async with flooder(net.bob, log, *kinds) as process:
        began, cpu = time.monotonic(), net.bob.cpu_seconds()
        while len(during) < rounds or time.monotonic() - began < at_least_seconds:
            during.append(await pay(net))
            memory.append(net.bob.memory_bytes() / MEGABYTE)
            sockets.append(sockets_of(net.bob))
            peers.append((await net.bob.info()).num_peers)
            openings.append(len(await net.bob.channels()) - 1)
        seconds = time.monotonic() - began
        node_cpu = (net.bob.cpu_seconds() - cpu) / seconds
    tallies = json.loads(process.output.splitlines()[-1])
    return Effect(
        statistics.median(before),
        statistics.median(during),
        max(during),
        memory_before,
        max(memory),
        max(sockets),
        max(peers),
        max(openings),
        {kind: tally["sent"] for kind, tally in tallies.items()},
        {kind: tally["ended"] for kind, tally in tallies.items()},
        node_cpu,
        seconds,
    )
