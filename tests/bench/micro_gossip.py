"""What gossip costs. `cases()` names functions for the runner to time; run as a module it measures intake against the
machine's rate of signature checks, and loading a store of the public network's size:

    python -m tests.bench.micro_gossip
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from channeld.__main__ import collect_garbage_rarely
from channeld.bolt.messages import SignedGossip, decode
from channeld.gossip.checksums import update_checksums
from channeld.gossip.intake import Intake
from channeld.gossip.interface import GossipConfig, Refusal
from channeld.gossip.store import CHANNEL, CHANNEL_HEAD, NODE, UPDATE, GossipStore
from channeld.gossip.verify import SignatureChecker, check, signature_jobs
from channeld.gossip.view import NetworkView
from channeld.node.gossip import GraphFeed
from tests.gossip_support import (
    CAPACITY_SAT,
    CHAIN_HASH,
    NOW,
    FakeFunding,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    node_id_of,
    scid_of,
)

PEER = b"\x02" + b"p" * 32


class IntakeFigures(NamedTuple):
    """Signatures a second on all cores, by the clock (the best round of each) and by processor time (the same, which
    a busy machine disturbs less)."""

    messages: int
    signatures: int
    raw_rate: float
    intake_rate: float
    cpu_ratio: float

    @property
    def ratio(self) -> float:
        return self.intake_rate / self.raw_rate


class Listener:
    """Like the relay, as far as time goes: one entry for each thing."""

    def __init__(self) -> None:
        self.taken: dict[bytes, set[bytes]] = {}

    def accepted(self, message: SignedGossip, origins: set[bytes]) -> None:
        self.taken[message.raw] = origins

    def refused(self, message: SignedGossip, origins: set[bytes], refusal: Refusal) -> None:
        raise AssertionError(refusal.reason)

    def unknown_channel(self, scid: int, origin: bytes) -> None:
        raise AssertionError("every channel is announced")


def make_network(nodes: int, channels: int, seed: int = 1) -> tuple[list[SignedGossip], FakeFunding]:
    """Announcements, then both updates of each, then the nodes: proportions of the public network are 1 to 3."""
    rng = random.Random(seed)
    funding = FakeFunding()
    pairs = [tuple(rng.sample(range(nodes), 2)) for _ in range(channels)]
    messages: list[SignedGossip] = []
    for number, (first, second) in enumerate(pairs):
        scid = scid_of(1000 + number)
        funding.outputs[scid] = funding_of(scid)
        messages.append(make_announcement(scid, first, second))
    for number, (first, second) in enumerate(pairs):
        messages += [make_update(scid_of(1000 + number), *ends) for ends in ((first, second), (second, first))]
    messages += [make_node(number) for number in sorted({node for pair in pairs for node in pair})]
    return messages, funding


def measure_intake(nodes: int = 700, channels: int = 2000, rounds: int = 5) -> IntakeFigures:
    """Wire bytes in, view and store filled, against nothing but the same signatures checked by as many threads; the
    garbage collector is set as in the daemon."""
    messages, funding = make_network(nodes, channels)
    wire = [message.raw for message in messages]
    jobs = [job for message in messages for job in signature_jobs(message, message.raw, node_id_of(0))]
    collect_garbage_rarely()
    raw, intake = [], []
    for _ in range(rounds):  # in turns, so that both see the same machine
        raw.append(_timed(lambda: _raw_seconds(jobs)))
        intake.append(_timed(lambda: asyncio.run(_intake_seconds(wire, funding))))
    (raw_wall, raw_cpu), (wall, cpu) = ((min(w for w, _ in runs), min(c for _, c in runs)) for runs in (raw, intake))
    return IntakeFigures(len(wire), len(jobs), len(jobs) / raw_wall, len(jobs) / wall, raw_cpu / cpu)


def _timed(run: Callable[[], float]) -> tuple[float, float]:
    """The seconds that `run` says, and the processor seconds it took."""
    before = time.process_time()
    return run(), time.process_time() - before


def _raw_seconds(jobs: list) -> float:  # type: ignore[type-arg]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, [jobs[:64], jobs[:64]]))
        started = time.perf_counter()
        half = len(jobs) // 2
        list(pool.map(check, [jobs[:half], jobs[half:]]))
        return time.perf_counter() - started


async def _intake_seconds(wire: list[bytes], funding: FakeFunding) -> float:
    with tempfile.TemporaryDirectory() as folder:
        view = NetworkView(GossipStore(Path(folder) / "gossip", CHAIN_HASH))
        checker = SignatureChecker()
        intake = Intake(
            view, funding, checker, Listener(), CHAIN_HASH, GossipConfig(), lambda: float(NOW), lambda: 1_000_000
        )
        tasks = [asyncio.create_task(intake.run()), asyncio.create_task(intake.run_funding())]
        started = time.perf_counter()
        for position in range(0, len(wire), 100):
            for data in wire[position : position + 100]:
                message = decode(data)
                assert isinstance(message, SignedGossip)
                intake.offer(message, PEER)
            await asyncio.sleep(0)
        await intake.idle()
        spent = time.perf_counter() - started
        for task in tasks:
            task.cancel()
        assert len(view.topology) == len(funding.outputs)
        assert all(view.topology.update[direction][row] for direction in (0, 1) for row in view.topology.rows.values())
        checker.close()
        view.store.close()
        return spent


def fill_store(path: Path, channels: int = 50_808, nodes: int = 17_324) -> None:
    """A store of the public network's size; the signatures are empty, since loading does not look at them."""
    rng = random.Random(1)
    store = GossipStore(path, CHAIN_HASH)
    ids = [b"\x02" + rng.randbytes(32) for _ in range(nodes)]
    announcement, update, node = make_announcement(scid_of(1), 1, 2), make_update(scid_of(1), 1, 2), make_node(1)
    for number in range(channels):
        scid = scid_of(500_000 + number, rng.randrange(3000), rng.randrange(3))
        first, second = sorted(rng.sample(ids, 2))
        raw = announcement.raw
        raw = raw[:292] + scid.to_bytes(8, "big") + first + second + raw[366:]
        store.append(CHANNEL, CHANNEL_HEAD.pack(rng.randbytes(32), CAPACITY_SAT, NOW) + raw)
        for direction in (0, 1):
            raw = update.raw
            raw = raw[:98] + scid.to_bytes(8, "big") + raw[106:111] + bytes((direction,)) + raw[112:]
            store.append(UPDATE, raw)
    for node_id in ids:
        raw = node.raw
        store.append(NODE, raw[:72] + node_id + raw[105:] + bytes(80))
    store.close()


class LoadFigures(NamedTuple):
    """Seconds and bytes (resident, more than before)."""

    channels: int
    view_seconds: float
    graph_seconds: float
    view_bytes: int
    plan_seconds: float
    """How long a compaction holds up the event loop."""


def measure_load(path: Path) -> LoadFigures:
    """A store from disk to a view, and from there to a graph."""
    gc.collect()
    before = _resident_bytes()
    started = time.perf_counter()
    view = NetworkView(GossipStore(path, CHAIN_HASH))
    view.load()
    loaded = time.perf_counter()
    gc.collect()
    memory = _resident_bytes() - before
    filled = time.perf_counter()
    GraphFeed().load(view)
    graph = time.perf_counter()
    plan = view.store.plan_compaction(view.topology)
    planned = time.perf_counter() - graph
    plan.copy()
    finishing = time.perf_counter()
    view.store.finish_compaction(plan, view.topology)
    planned += time.perf_counter() - finishing
    view.store.close()
    return LoadFigures(len(view.topology), loaded - started, graph - filled, memory, planned)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Names and functions; each call of a function does what its name says once."""
    updates = [make_update(scid_of(number), 1, 2).raw for number in range(1000)]
    announcement = make_announcement(scid_of(1), 1, 2)
    wire = announcement.raw
    return [
        ("gossip: checksums of 1,000 channel_updates", lambda: update_checksums(updates)),
        ("gossip: decode channel_announcement", lambda: decode(wire)),
        ("gossip: check four signatures", lambda: check(signature_jobs(announcement, wire))),
    ]


def main() -> None:
    figures = measure_intake()
    print(
        f"intake: {figures.messages} messages, {figures.signatures} signatures: {figures.intake_rate:,.0f}/s; "
        f"raw {figures.raw_rate:,.0f}/s; ratio {figures.ratio:.2f}, by processor time {figures.cpu_ratio:.2f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gossip"
        fill_store(path)
        load = measure_load(path)
        print(
            f"load: {load.channels} channels, {path.stat().st_size / 1e6:.0f} MB: view {load.view_seconds:.2f} s, "
            f"{load.view_bytes / 1e6:.0f} MB; graph {load.graph_seconds:.2f} s; compaction holds up the loop "
            f"for {load.plan_seconds * 1000:.0f} ms"
        )


if __name__ == "__main__":
    main()
