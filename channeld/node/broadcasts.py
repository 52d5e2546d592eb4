"""Transactions that must reach the chain: published at once, again after each block, until buried or beaten."""

from __future__ import annotations

import asyncio
import time

import structlog
from msgspec import Struct, field
from sqlalchemy import Connection, select

from channeld.node.bus import EventBus
from channeld.storage import Write, rows, tables
from wallet.bitcoin import OutPoint, Tx
from wallet.chain import BroadcastResult, ChainSource, ChainUnavailable

log = structlog.get_logger(__name__)
BURIED_BLOCKS = 6
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)


class _Entry(Struct):
    tx: Tx
    raw: bytes
    label: str
    channel_key: int | None
    created_seconds: int
    confirmed_height: int | None = None
    beaten_height: int | None = None
    """Where another transaction took one of its inputs."""
    durable: bool = False
    """Its row is in the database: before, it must not be published."""
    last_answer: str = ""
    offered: asyncio.Event = field(default_factory=asyncio.Event)
    """Layer 1 was asked, whatever it said, or is away; or it need not be asked."""

    @property
    def is_settled(self) -> bool:
        """It is in a block, or cannot be any more: it is not published, unless the chain is reorganised."""
        return self.confirmed_height is not None or self.beaten_height is not None


class Broadcasts:
    """The list, kept in the database, and the one task that publishes from it."""

    def __init__(self, source: ChainSource, bus: EventBus) -> None:
        self._source = source
        self._bus = bus
        self._entries: dict[bytes, _Entry] = {}
        self._spends: dict[OutPoint, set[bytes]] = {}
        self._due: dict[bytes, None] = {}
        self._wake = asyncio.Event()

    def load(self, connection: Connection) -> None:
        """What was not buried when the node stopped; `publish_all` publishes it again."""
        for row in connection.execute(select(tables.broadcasts)):
            entry = _Entry(Tx.parse(row.raw), row.raw, row.label, row.channel_key, row.created_seconds)
            entry.confirmed_height, entry.beaten_height, entry.durable = row.confirmed_height, row.beaten_height, True
            self._insert(row.txid, entry)

    # --- before the commit: memory and rows

    def add(self, tx: Tx, label: str, channel_key: int | None) -> list[Write]:
        """Rows that make the broadcast survive a crash; call `publish` once they are durable, not before."""
        txid = tx.txid()
        if txid in self._entries:
            return []
        entry = _Entry(tx, tx.serialize(), label, channel_key, int(time.time()))
        self._insert(txid, entry)
        return [self._row(txid, entry)]

    def _insert(self, txid: bytes, entry: _Entry) -> None:
        self._entries[txid] = entry
        if entry.is_settled:
            entry.offered.set()
        for txin in entry.tx.inputs:
            self._spends.setdefault(txin.outpoint, set()).add(txid)

    def _row(self, txid: bytes, entry: _Entry) -> Write:
        return rows.SAVE_BROADCAST(
            txid,
            entry.raw,
            entry.label,
            entry.channel_key,
            entry.created_seconds,
            entry.confirmed_height,
            entry.beaten_height,
        )

    def scan(self, tx: Tx, txid: bytes, height: int) -> list[Write]:
        """A transaction is in the block at `height`."""
        changed = {rival for txin in tx.inputs for rival in self._spends.get(txin.outpoint, ())}
        for rival in changed - {txid}:
            self._entries[rival].beaten_height = height
        if txid in self._entries:
            self._entries[txid].confirmed_height = height
        for settled in changed:
            self._entries[settled].offered.set()
        return [self._row(rival, self._entries[rival]) for rival in sorted(changed)]

    def disconnected(self, height: int) -> list[Write]:
        """The block at `height` left the chain."""
        writes = []
        for txid, entry in self._entries.items():
            if max(entry.beaten_height or -1, entry.confirmed_height or -1) < height:
                continue
            if entry.beaten_height is not None and entry.beaten_height >= height:
                entry.beaten_height = None
            if entry.confirmed_height is not None and entry.confirmed_height >= height:
                entry.confirmed_height = None
            writes.append(self._row(txid, entry))
        return writes

    def bury(self, height: int) -> list[Write]:
        """Let go of what is six deep at this height, or beaten by what is."""
        writes = []
        for txid, entry in list(self._entries.items()):
            settled = entry.confirmed_height or entry.beaten_height
            if settled is not None and height - settled + 1 >= BURIED_BLOCKS:
                writes.append(self._forget(txid, entry))
        return writes

    def of_channel(self, channel_key: int) -> list[bytes]:
        """Ids of what is published for a channel and not buried."""
        return [txid for txid, entry in self._entries.items() if entry.channel_key == channel_key]

    def channel_over(self, channel_key: int) -> list[Write]:
        """What was published for a channel is buried, or will never be mined."""
        return [self._forget(txid, self._entries[txid]) for txid in self.of_channel(channel_key)]

    def _forget(self, txid: bytes, entry: _Entry) -> Write:
        del self._entries[txid]
        self._due.pop(txid, None)
        entry.offered.set()
        for txin in entry.tx.inputs:
            self._spends[txin.outpoint].discard(txid)
            if not self._spends[txin.outpoint]:
                del self._spends[txin.outpoint]
        return rows.FORGET_BROADCAST(txid)

    # --- publishing

    def publish(self, txid: bytes) -> None:
        """Publish now (its rows are durable)."""
        entry = self._entries.get(txid)
        if entry is not None:
            entry.durable = True
            self._due[txid] = None
            self._wake.set()

    def publish_all(self) -> None:
        """Publish everything that is not in a block: after each block, and when layer 1 is back."""
        for txid, entry in self._entries.items():
            if entry.durable and not entry.is_settled:
                self._due[txid] = None
        self._wake.set()

    async def wait_offered(self, txid: bytes) -> None:
        """Until layer 1 was asked to take the transaction (or could not, or need not be asked)."""
        entry = self._entries.get(txid)
        if entry is None:
            return
        if entry.durable and not entry.offered.is_set():
            self.publish(txid)  # since a restart nobody may have asked
        await entry.offered.wait()

    async def run(self) -> None:
        """Publishes what is due, in order, for ever. While layer 1 is away it tries again after a while, and at once
        when `publish_all` says that it is back."""
        failures = 0
        while True:
            waiting = RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1] if failures and self._due else None
            try:
                async with asyncio.timeout(waiting):
                    await self._wake.wait()
            except TimeoutError:
                pass  # the next try
            self._wake.clear()
            while self._due:
                txid = next(iter(self._due))
                del self._due[txid]
                entry = self._entries.get(txid)
                if entry is None or entry.is_settled:
                    continue
                try:
                    result = await self._source.broadcast(entry.tx)
                except ChainUnavailable as error:
                    entry.offered.set()
                    log.warning("cannot broadcast now", txid=entry.tx.txid_hex, label=entry.label, reason=str(error))
                    self._due[txid] = None
                    failures += 1
                    break
                failures = 0
                entry.offered.set()
                self._report(entry, result)

    def _report(self, entry: _Entry, result: BroadcastResult) -> None:
        answer = f"{result.outcome.value} {result.reason}".strip()
        if answer == entry.last_answer:
            return
        entry.last_answer = answer
        what = f"{entry.label} transaction {entry.tx.txid_hex}"
        if result.ok:
            self._bus.publish(
                "chain.broadcast", f"{what}: {answer}", txid=entry.tx.txid_hex, label=entry.label, outcome=answer
            )
        else:
            log.warning("broadcast refused", txid=entry.tx.txid_hex, label=entry.label, reason=result.reason)
