"""The watchtower under load, as separate processes: appointments a second from ten clients; and with a million stored,
the time to start, memory, bytes on disk, and a block of 4,000 transactions.

`python -m tests.bench.tower [APPOINTMENTS]`
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import secrets
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
from rich.console import Console

from channeld.lab.lab import Lab
from channeld.lab.processes import ManagedProcess
from channeld.lab.tower import start, tower_process
from tests.bench.bars import Bar, bar_table
from wallet.bitcoin import Block, BlockHeader, OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.secp import pubkey_of
from wallet.chain import BlockConnected
from wallet.db import Store, make_engine
from watchtower.appointment import Appointment
from watchtower.client.connection import Connection, TowerUri
from watchtower.messages import SessionTerms
from watchtower.tower import tables
from watchtower.tower.alerts import Alerts
from watchtower.tower.index import prefix_of, to_column
from watchtower.tower.paths import tower_paths
from watchtower.tower.watcher import Watcher, load

CLIENTS = 10
BLOB_BYTES = 28 + 768
"""What an own-mode appointment of a channel with a few HTLCs takes."""
BLOCK_TXS = 4_000
RATE_BAR = 1_500
SHIPPED_BATCH = 16
"""What a client gathers between two calls while payments are under way; up to 64 when it catches up."""
MATCHES = 5


class Intake(NamedTuple):
    """How fast appointments were accepted, each durable before it was confirmed."""

    batch: int
    appointments: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.appointments / self.seconds


class Million(NamedTuple):
    """A tower with many appointments."""

    appointments: int
    bytes_each: float
    index_seconds: float
    start_seconds: float
    memory_bytes: int
    block_seconds: float
    """Everything: txids, matching, the database's look-ups for what matched, the commit."""
    match_seconds: float


# --- intake -------------------------------------------------------------------------------------------------------


async def _client(uri: TowerUri, seconds: float, batch: int, in_flight: int) -> int:
    connection = Connection(uri)
    sent = 0
    stop = time.monotonic() + seconds

    async def send() -> None:
        nonlocal sent
        secret = secrets.token_bytes(32)
        await connection.create_session(secret, "own", 0)
        while time.monotonic() < stop:
            random = secrets.token_bytes((16 + BLOB_BYTES) * batch)
            parts = [random[at : at + 16 + BLOB_BYTES] for at in range(0, len(random), 16 + BLOB_BYTES)]
            await connection.add(secret, [Appointment(part[:16], part[16:]) for part in parts])
            sent += batch

    await asyncio.gather(*(send() for _ in range(in_flight)))
    await connection.close()
    return sent


def _clients(uri: TowerUri, clients: int, seconds: float, batch: int, results: multiprocessing.Queue[int]) -> None:
    async def run() -> int:
        return sum(await asyncio.gather(*(_client(uri, seconds, batch, 1) for _ in range(clients))))

    results.put(asyncio.run(run()))


async def measure_intake(uri: TowerUri, batch: int, seconds: float = 4.0) -> Intake:
    """Ten clients in a process of their own, each waiting for its receipts before it sends more."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=_clients, args=(uri, CLIENTS, seconds, batch, results))
    process.start()
    sent = await asyncio.to_thread(results.get)
    await asyncio.to_thread(process.join)
    return Intake(batch, sent, seconds)


def memory_bytes(process: ManagedProcess) -> int:
    """Resident."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no memory")


# --- a million ----------------------------------------------------------------------------------------------------


def fill(path: Path, count: int, locators: Sequence[bytes] = ()) -> None:
    """Random appointments, as many as there were; and for the last ones the given locators."""
    session = pubkey_of(b"\x01" * 32)
    terms = SessionTerms(session, session, "own", count, 1 << 40, 1 << 20, 0, b"", 1 << 30)
    engine = make_engine(f"sqlite:///{path}")
    tables.open_database(engine, "regtest")
    with engine.begin() as connection:
        now = int(time.time())
        row = tables.sessions.insert().values(
            session_key=1,
            session_id=session,
            terms=msgspec.msgpack.encode(terms),
            appointments=count,
            bytes=count * BLOB_BYTES,
            created_seconds=now,
            used_seconds=now,
            ended=False,
        )
        connection.execute(row)
    engine.dispose()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA cache_size=-200000")
    insert = (
        "INSERT INTO appointments (appointment_id, session_key, locator_prefix, locator, accepted_height, blob) "
        "VALUES (?, 1, ?, ?, 100, ?)"
    )
    for start_at in range(0, count, 50_000):
        here = range(start_at, min(count, start_at + 50_000))
        given = {count - 1 - place: locator for place, locator in enumerate(locators)}
        names = [given.get(place) or secrets.token_bytes(16) for place in here]
        raw.executemany(
            insert,
            [
                (place + 1, to_column(prefix_of(name)), name, os.urandom(BLOB_BYTES))
                for place, name in zip(here, names, strict=True)
            ],
        )
        raw.commit()
    raw.close()


def big_block(txs: int = BLOCK_TXS) -> Block:
    """Transactions with one input and two outputs."""
    body = tuple(
        Tx(
            2,
            (TxIn(OutPoint(secrets.token_bytes(32), 0), b"", 0, (bytes(72), bytes(33))),),
            (TxOut(1_000, b"\x00\x14" + bytes(20)), TxOut(2_000, b"\x00\x14" + bytes(20))),
            0,
        )
        for _ in range(txs)
    )
    return Block(BlockHeader(4, bytes(32), bytes(32), int(time.time()), 0, 0), body)


class _NoSource:
    """The bench's block leads to no justice: the blobs are noise."""


async def measure_block(path: Path, block: Block) -> tuple[float, float, float]:
    """(seconds to read the index, for the block, for matching alone)."""
    store = Store(make_engine(f"sqlite:///{path}"), lambda error: None)
    began = time.perf_counter()
    loaded = await store.read(load)
    index_seconds = time.perf_counter() - began
    watcher = Watcher(store, _NoSource(), loaded, Alerts([]))  # type: ignore[arg-type]
    samples = []
    for height in range(200, 205):
        began = time.perf_counter()
        await watcher.process(BlockConnected(height, secrets.token_bytes(32), block))
        samples.append(time.perf_counter() - began)
    assert watcher.undecipherable == MATCHES * len(samples)
    await store.close()
    return index_seconds, sorted(samples)[len(samples) // 2], watcher.last_match_seconds


async def measure_million(lab: Lab, directory: Path, count: int) -> Million:
    """Fills a database, measures a block in this process, then starts a tower on it."""
    paths = tower_paths("regtest", directory)
    paths.directory.mkdir(parents=True)
    block = big_block()
    await asyncio.to_thread(fill, paths.database, count, [tx.txid()[:16] for tx in block.txs[:MATCHES]])
    size = paths.database.stat().st_size
    copy = directory / "copy.sqlite"
    await asyncio.to_thread(copy.write_bytes, await asyncio.to_thread(paths.database.read_bytes))
    index_seconds, block_seconds, match_seconds = await measure_block(copy, block)
    copy.unlink()
    paths.identity.write_text("01" * 32 + "\n")
    process = tower_process(lab, directory)
    began = time.perf_counter()
    await start(process, paths)
    seconds = time.perf_counter() - began
    memory = memory_bytes(process)
    await process.terminate()
    return Million(count, size / count, index_seconds, seconds, memory, block_seconds, match_seconds)


async def run(count: int = 1_000_000, seconds: float = 4.0) -> tuple[list[Intake], Million]:
    """Everything."""
    with tempfile.TemporaryDirectory() as folder:
        async with Lab(Path(folder)) as lab:
            directory = Path(folder) / "intake"
            limits = ("--appointments-per-second", "100000", "--appointments-burst", "1000000")
            process = tower_process(lab, directory, *limits)
            uri = await start(process, tower_paths("regtest", directory))
            intakes = [await measure_intake(uri, batch, seconds) for batch in (1, 4, 16, 64)]
            await process.terminate()
            return intakes, await measure_million(lab, Path(folder) / "million", count)


def bars(intakes: list[Intake], million: Million) -> list[Bar]:
    """The figures against their bars. The rate is one for batches, which is how the client sends what was revoked while
    a call was under way; appointments one by one are limited by what a call costs, on both sides."""
    return [
        *(
            Bar(f"{CLIENTS} clients, {each.batch} a call, durable", each.per_second, ">=", RATE_BAR, "/s")
            for each in intakes
            if each.batch >= SHIPPED_BATCH
        ),
        Bar("start until ready", million.start_seconds, "<=", 5, "s", f"the index: {million.index_seconds:.2f} s"),
        Bar("memory", million.memory_bytes / 1e6, "<=", 300, "MB"),
        Bar(
            f"block of {BLOCK_TXS:,} transactions, with the database",
            million.block_seconds * 1e3,
            "<=",
            50,
            "ms",
            f"matching alone: {million.match_seconds * 1e3:.1f} ms",
        ),
    ]


def main() -> None:
    """Prints the figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    intakes, million = asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
    console = Console()
    title = f"A tower; from the start on with {million.appointments:,} appointments of {BLOB_BYTES} bytes"
    console.print(bar_table(title, bars(intakes, million)))
    few = [f"{each.batch} a call {each.per_second:,.0f}/s" for each in intakes if each.batch < SHIPPED_BATCH]
    console.print(f"{', '.join(few)}; on disk {million.bytes_each:.0f} bytes each")


if __name__ == "__main__":
    main()
