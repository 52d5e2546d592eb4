"""Following the chain: every block's transactions against the locators, and what spends the breaches under way.

A block and all that follows from it are one transaction of the database; only then is anything published. Whatever is
interrupted is found again at the next start: the chain is followed from the last block stored, and justice is planned
anew from what is in the database.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sqlalchemy import Connection, select

from wallet.bitcoin import Block, OutPoint, Tx
from wallet.chain import (
    BlockConnected,
    BlockDisconnected,
    BlockRef,
    ChainError,
    ChainEvent,
    ChainSource,
    ChainUnavailable,
    SourceBack,
    SourceLost,
    Synced,
)
from wallet.db import StorageError, Store, Write
from watchtower.blob import Undecipherable, locator_of, unseal
from watchtower.justice import InvalidJustice, check, decode
from watchtower.tower import breach as breaches
from watchtower.tower import tables
from watchtower.tower.alerts import Alert, Alerts
from watchtower.tower.breach import Breach, Spend
from watchtower.tower.index import (
    LocatorIndex,
    Prefixes,
    from_columns,
    prefix_of,
    prefixes_of_txids,
    to_column,
    txids_of,
)
from watchtower.tower.intake import Stored, read_stored
from watchtower.tower.publisher import Publisher

KEPT_BLOCKS = 220
"""More than a reorganisation can be deep."""
RECENT_BLOCKS = 72
"""An appointment whose breach is in one of the last blocks is acted on at once."""
_SEARCHED_AFTER_BLOCKS = 6
"""Blocks that come so long after an appointment was accepted were searched with it in the index."""
_IN_THREAD_FROM = 200
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Breach)


class SearchedBlock(NamedTuple):
    """A block of the chain that was searched."""

    ref: BlockRef
    prefixes: Prefixes


class Loaded(NamedTuple):
    """What the database knows at start."""

    locators: LocatorIndex
    blocks: list[SearchedBlock]
    breaches: list[Breach]
    next_appointment_id: int


def load(connection: Connection) -> Loaded:
    """The index comes sorted from the database, whose own index it is."""
    cursor: Any = connection.connection.cursor()  # a million rows: SQLAlchemy's own would take longer
    cursor.execute("SELECT locator_prefix FROM appointments ORDER BY locator_prefix")
    prefixes = from_columns(np.fromiter(chain.from_iterable(cursor), dtype=np.int64))
    cursor.close()
    blocks = [
        SearchedBlock(BlockRef(row.height, row.hash), np.frombuffer(row.prefixes, dtype=np.uint64))
        for row in connection.execute(select(tables.blocks).order_by(tables.blocks.c.height))
    ]
    known = [_decoder.decode(row.record) for row in connection.execute(select(tables.breaches))]
    newest = select(tables.appointments.c.appointment_id).order_by(tables.appointments.c.appointment_id.desc()).limit(1)
    last = max([connection.execute(newest).scalar() or 0, *(known_breach.breach_id for known_breach in known)])
    return Loaded(LocatorIndex(prefixes), blocks, known, last + 1)


class Watcher:
    """The one who searches blocks. `on_block` is told each new height; `on_spend` counts for the metrics."""

    def __init__(
        self,
        store: Store,
        source: ChainSource,
        loaded: Loaded,
        alerts: Alerts,
        on_block: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._source = source
        self._alerts = alerts
        self._on_block = on_block
        self._clock = clock
        self.index = loaded.locators
        self._blocks: deque[SearchedBlock] = deque(loaded.blocks)
        self._recent: Prefixes | None = None
        self.breaches: dict[int, Breach] = {breach.breach_id: breach for breach in loaded.breaches}
        self._watched: defaultdict[OutPoint, set[int]] = defaultdict(set)
        for breach in self.open_breaches:
            self._watch(breach)
        self._lock = asyncio.Lock()
        self._late: list[Stored] = []
        """Appointments whose breach may be in a recent block, until that was looked into."""
        self._doubtful = True
        """There may be more of them in the database."""
        self._late_tasks: set[asyncio.Task[None]] = set()
        self.synced = False
        self.status = "has not looked for layer 1 yet"
        self.block_searched_seconds = 0.0
        self.block_time_seconds = 0.0
        self.undecipherable = 0
        self.last_match_seconds = 0.0
        self.publisher = Publisher(store, source, alerts, self._save, clock)
        self.synced_event = asyncio.Event()
        self._change = asyncio.Event()

    # --- facts

    @property
    def tip(self) -> BlockRef | None:
        """The last block that was searched."""
        return self._blocks[-1].ref if self._blocks else None

    @property
    def height(self) -> int:
        """Its height; 0 before the first."""
        return self._blocks[-1].ref.height if self._blocks else 0

    @property
    def open_breaches(self) -> list[Breach]:
        """Those that are not irrevocably over."""
        return [breach for breach in self.breaches.values() if not breach.resolved]

    # --- following

    async def run(self) -> None:
        """For ever. Raises ChainError when the chain cannot be followed."""
        async for event in self._source.follow([block.ref for block in self._blocks] or None):
            await self.process(event)

    async def changed(self) -> None:
        """Until something was done: an event of the chain, or an appointment that came late."""
        await self._change.wait()

    def _done(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def process(self, event: ChainEvent) -> None:
        """One event of the chain, and what follows from it."""
        await self._process(event)
        self._done()

    async def _process(self, event: ChainEvent) -> None:
        async with self._lock:
            match event:
                case BlockConnected():
                    self.synced = False
                    await self._connect(event)
                case BlockDisconnected():
                    self.synced = False
                    await self._disconnect(event.height)
                case Synced():
                    await self._synced(BlockRef(event.height, event.hash))
                case SourceLost(reason=reason):
                    self.synced, self.status = False, reason
                    await self._tell(self._alerts.make("chain.lost", reason))
                case SourceBack():
                    self.status = "follows the chain"
                    await self._tell(self._alerts.make("chain.back", "Layer 1 answers again."))
                    await self._search_late()
                    await self._act()

    async def _synced(self, tip: BlockRef) -> None:
        if not self._blocks:
            await self._store.commit([tables.SAVE_BLOCK(tip.height, tip.hash, b"")])
            self._blocks.append(SearchedBlock(tip, np.empty(0, np.uint64)))
        await self._search_late()
        await self._act()
        self.synced, self.status = True, "follows the chain"
        self.synced_event.set()

    async def _tell(self, alert: Alert) -> None:
        await self._store.commit(self._alerts.writes([alert]))
        self._alerts.publish([alert])

    # --- blocks

    async def _connect(self, event: BlockConnected) -> None:
        block = event.block
        big = len(block.txs) >= _IN_THREAD_FROM
        txids = await asyncio.to_thread(txids_of, block) if big else txids_of(block)
        started = time.perf_counter()
        prefixes = prefixes_of_txids(txids)
        hits = self.index.matches(prefixes)
        self.last_match_seconds = time.perf_counter() - started
        changed: dict[int, Breach] = {}
        news: list[Alert] = []
        for place in hits:
            for row in self._appointments(txids[place]):
                self._breach(row, block.txs[place], txids[place], event.height, changed, news)
        if self._watched:
            for txid, tx in zip(txids, block.txs, strict=True):
                self._spends(txid, tx, event.height, changed, news)
        writes: list[Write] = [tables.SAVE_BLOCK(event.height, event.hash, prefixes.tobytes())]
        if event.height >= KEPT_BLOCKS:
            writes.append(tables.DELETE_BLOCKS_BELOW(event.height - KEPT_BLOCKS + 1))
        for breach in self.open_breaches:
            current = changed.get(breach.breach_id, breach)
            if breaches.is_resolved(current, event.height):
                changed[breach.breach_id] = msgspec.structs.replace(current, resolved=True)
                news.append(self._resolved(current))
        await self._commit(writes, changed, news)
        self._blocks.append(SearchedBlock(BlockRef(event.height, event.hash), prefixes))
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popleft()
        self._recent = None
        self.block_searched_seconds = self._clock()
        self.block_time_seconds = float(block.header.time)
        self._on_block(event.height)

    def _appointments(self, txid: bytes) -> Iterator[Stored]:
        """One after the other: together they may be more than fits into memory."""
        found = self._store.lookup(tables.FIND_APPOINTMENTS, to_column(prefix_of(txid)))
        for appointment_id, _, locator in found:
            row = read_stored(self._store, appointment_id) if locator == locator_of(txid) else None
            if row is not None:
                yield row

    def _breach(
        self, row: Stored, tx: Tx, txid: bytes, height: int, changed: dict[int, Breach], news: list[Alert]
    ) -> None:
        """An appointment's locator is a transaction's: open the blob, or say why that is not possible."""
        facts: dict[str, Any] = {"txid": txid[::-1].hex(), "height": height, "locator": row.locator.hex()}
        known = changed.get(row.appointment_id) or self.breaches.get(row.appointment_id)
        if known is not None and known.txid == txid:
            changed[known.breach_id] = msgspec.structs.replace(known, height=height)
            return
        try:
            justice = decode(unseal(txid, row.blob))
            check(justice, tx)
        except Undecipherable as error:
            self.undecipherable += 1
            news.append(self._alerts.make("breach.undecipherable", f"A locator matched, but {error}.", **facts))
            return
        except InvalidJustice as error:
            self.undecipherable += 1
            news.append(self._alerts.make("breach.unusable", f"A breach cannot be punished: {error}.", **facts))
            return
        breach = Breach(row.appointment_id, row.session_key, txid, tx.serialize(), justice, height, self._clock())
        changed[breach.breach_id] = breach
        self._watch(breach)
        total_sat = sum(penalty.amount_sat for penalty in justice.outputs)
        sentence = f"A revoked commitment was published in block {height}: {total_sat} sat are at stake."
        news.append(self._alerts.make("breach.seen", sentence, amount_sat=total_sat, **facts))

    def _watch(self, breach: Breach) -> None:
        for outpoint in breaches.watched_outpoints(breach):
            self._watched[outpoint].add(breach.breach_id)

    def _unwatch(self, breach: Breach) -> None:
        for outpoint in breaches.watched_outpoints(breach):
            keys = self._watched.get(outpoint, set())
            keys.discard(breach.breach_id)
            if not keys:
                self._watched.pop(outpoint, None)

    def _spends(self, txid: bytes, tx: Tx, height: int, changed: dict[int, Breach], news: list[Alert]) -> None:
        """Parents come before children in a block, so that one walk finds the cheater's second stage, too."""
        concerned: set[int] = set()
        for txin in tx.inputs:
            concerned |= self._watched.get(txin.outpoint, set())
        for key in concerned:
            before = changed.get(key) or self.breaches[key]
            after = breaches.with_spend(before, Spend(txid, height, tx.serialize()))
            changed[key] = after
            self._watch(after)
            news += self._news_of(after, txid, height)

    def _news_of(self, breach: Breach, txid: bytes, height: int) -> list[Alert]:
        took = [t for t in breaches.targets(breach) if t.spent is not None and t.spent.txid == txid]
        facts = {"breach_txid": breach.txid[::-1].hex(), "txid": txid[::-1].hex(), "height": height}
        kinds = {
            "saved": ("justice.confirmed", "Justice is in block {height}: it took {sat} sat back."),
            "client": ("output.client", "The client itself took {sat} sat in block {height}."),
            "second stage": ("output.second_stage", "The cheater moved an HTLC of {sat} sat on in block {height}."),
            "lost": ("output.lost", "The cheater got away with {sat} sat in block {height}."),
        }
        found = []
        for state, (kind, sentence) in kinds.items():
            amount_sat = sum(target.penalty.amount_sat for target in took if target.state == state)
            if any(target.state == state for target in took):
                text = sentence.format(height=height, sat=amount_sat)
                found.append(self._alerts.make(kind, text, amount_sat=amount_sat, **facts))
        return found

    def _resolved(self, breach: Breach) -> Alert:
        saved_sat = sum(t.penalty.amount_sat for t in breaches.targets(breach) if t.state == "saved")
        sentence = f"A breach is over for good: {saved_sat} sat were taken back."
        return self._alerts.make("breach.resolved", sentence, txid=breach.txid[::-1].hex(), saved_sat=saved_sat)

    async def _disconnect(self, height: int) -> None:
        changed = {}
        news = []
        for breach in self.breaches.values():
            undone = breaches.without_blocks_from(breach, height)
            if undone is not breach:
                changed[breach.breach_id] = undone
                self._watch(undone)
                sentence = f"Block {height} left the chain, and with it something of a breach; it is followed on."
                news.append(self._alerts.make("breach.reorganised", sentence, txid=breach.txid[::-1].hex()))
        await self._commit([tables.DELETE_BLOCK(height)], changed, news)
        if self._blocks and self._blocks[-1].ref.height == height:
            self._blocks.pop()
        self._recent = None

    async def _commit(self, writes: list[Write], changed: dict[int, Breach], news: list[Alert]) -> None:
        await self._store.commit([*writes, *map(breach_row, changed.values()), *self._alerts.writes(news)])
        self.breaches.update(changed)
        for breach in changed.values():
            if breach.resolved:
                self._unwatch(breach)
        self._alerts.publish(news)

    async def _save(self, breach: Breach, news: list[Alert]) -> None:
        await self._commit([], {breach.breach_id: breach}, news)

    # --- appointments that come late

    def on_stored(self, rows: Sequence[Stored]) -> list[bytes]:
        """New appointments are durable and in the index. The locators whose breach is in a recent block: it is acted on
        in a task of its own."""
        if self._recent is None:
            latest = [block.prefixes for block in list(self._blocks)[-RECENT_BLOCKS:]]
            self._recent = np.sort(np.concatenate(latest)) if latest else np.empty(0, np.uint64)
        if not len(self._recent):
            return []
        wanted = np.array([prefix_of(row.locator) for row in rows], dtype=np.uint64)
        places = np.searchsorted(self._recent, wanted)
        places[places == len(self._recent)] = 0
        late = [row for row, hit in zip(rows, self._recent[places] == wanted, strict=True) if hit]
        if late:
            waiting = bool(self._late)
            self._late += late
            if not waiting:
                task = asyncio.create_task(self._act_late())
                self._late_tasks.add(task)
                task.add_done_callback(self._late_tasks.discard)
        return [row.locator for row in late]

    async def _act_late(self) -> None:
        async with self._lock:
            await self._search_late()
            await self._act()
        self._done()

    async def _search_late(self) -> None:
        """All appointments that came late until now, together: each recent block is asked for once, however many there
        are, so that nobody can keep the tower from new blocks with them. While layer 1 is away they wait."""
        if self._doubtful:
            known = {row.appointment_id for row in self._late}
            self._late += [row for row in await self._unsearched() if row.appointment_id not in known]
        rows, self._late, self._doubtful = self._late, [], False
        changed: dict[int, Breach] = {}
        news: list[Alert] = []
        try:
            await self._search_recent(rows, changed, news)
            if changed:
                await self._spends_since(min(breach.height or 0 for breach in changed.values()), changed, news)
        except ChainUnavailable as error:
            for breach in changed.values():
                if breach.breach_id not in self.breaches:
                    self._unwatch(breach)
            self._late, self._doubtful = rows + self._late, True
            sentence = f"A breach may be in one of the last blocks, which layer 1 does not give now: {error}"
            changed, news = {}, [self._alerts.make("breach.unreachable", sentence, appointments=len(rows))]
        await self._commit([], changed, news)

    async def _search_recent(self, rows: Sequence[Stored], changed: dict[int, Breach], news: list[Alert]) -> None:
        wanted = np.array([prefix_of(row.locator) for row in rows], dtype=np.uint64)
        for searched in list(self._blocks)[-RECENT_BLOCKS:] if rows else ():
            hits = np.isin(wanted, searched.prefixes).tolist()
            some = [row for row, hit in zip(rows, hits, strict=True) if hit]
            try:
                if some:
                    await self._search_again(some, searched.ref, changed, news)
            except ChainUnavailable:
                raise
            except ChainError as error:
                news.append(self._not_given(searched.ref, error))

    def _not_given(self, ref: BlockRef, error: ChainError) -> Alert:
        sentence = f"A breach may be in block {ref}, which layer 1 does not have any more: {error}"
        return self._alerts.make("breach.unreachable", sentence, height=ref.height)

    async def _unsearched(self) -> list[Stored]:
        """Appointments that came late when the tower was stopped, before it could act."""
        found: dict[int, Stored] = {}
        for searched in list(self._blocks)[-RECENT_BLOCKS:]:
            for place in self.index.matches(searched.prefixes):
                ids = self._store.lookup(tables.FIND_APPOINTMENTS, to_column(int(searched.prefixes[place])))
                for appointment_id in {key for key, *_ in ids} - self.breaches.keys() - found.keys():
                    row = read_stored(self._store, appointment_id)
                    if row is not None and row.accepted_height + _SEARCHED_AFTER_BLOCKS >= searched.ref.height:
                        found[row.appointment_id] = row
        return list(found.values())

    async def _search_again(
        self, rows: Sequence[Stored], ref: BlockRef, changed: dict[int, Breach], news: list[Alert]
    ) -> None:
        """A block that was searched before the appointments came. It is had as a whole: to ask for each transaction
        would leave it to clients how long layer 1 is kept busy."""
        block = await self._source.get_block(ref.hash)
        txids = await asyncio.to_thread(txids_of, block)
        by_locator = {locator_of(txid): (txid, tx) for txid, tx in zip(txids, block.txs, strict=True)}
        for row in rows:
            if (found := by_locator.get(row.locator)) is not None:
                self._breach(row, found[1], found[0], ref.height, changed, news)

    async def _spends_since(self, height: int, changed: dict[int, Breach], news: list[Alert]) -> None:
        """What was done since with the outputs of breaches that were found late."""
        for searched in list(self._blocks):
            if searched.ref.height < height:
                continue
            try:
                later: Block = await self._source.get_block(searched.ref.hash)
            except ChainUnavailable:
                raise
            except ChainError as error:
                news.append(self._not_given(searched.ref, error))
                continue
            for txid, tx in zip(txids_of(later), later.txs, strict=True):
                self._spends(txid, tx, searched.ref.height, changed, news)

    async def _act(self) -> None:
        for breach in breaches.in_turn(self.open_breaches):
            try:
                await self.publisher.act(breach, self.height)
            except StorageError:
                raise
            except Exception as error:
                # A bug with one breach must not keep the others waiting, and must be heard.
                sentence = f"Justice for {breach.txid[::-1].hex()} failed: {error!r}; it is tried again."
                await self._tell(self._alerts.make("justice.failed", sentence, txid=breach.txid[::-1].hex()))

    async def wait_late(self) -> None:
        """Until appointments that came late were acted on."""
        await asyncio.gather(*self._late_tasks, return_exceptions=True)


def breach_row(breach: Breach) -> Write:
    """To commit."""
    return tables.SAVE_BREACH(breach.breach_id, breach.txid, breach.resolved, _encoder.encode(breach))
