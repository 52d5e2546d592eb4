"""All towers of a client: added, removed, paused, brought up to date, asked how they are."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from sqlalchemy import Connection, select

from watchtower.appointment import Mode, fit_appointment
from watchtower.client import tables
from watchtower.client.connection import TowerUri
from watchtower.client.pace import Pace
from watchtower.client.uploader import Behind, Uploader
from watchtower.client.values import (
    Backups,
    Check,
    KnownSession,
    KnownTower,
    NewsKind,
    Storage,
    TowerState,
    TowerStatus,
)
from watchtower.messages import Receipt
from watchtower.proof import Evidence

_session_decoder = msgspec.msgpack.Decoder(KnownSession)
_log = structlog.get_logger(__name__)


class TowersError(Exception):
    """The text is a sentence for the user."""


class Towers:
    """Use `open`; then `start`. `master` is 32 secret bytes that sessions' keys are derived from."""

    def __init__(
        self, storage: Storage, backups: Backups, master: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        self._storage = storage
        self._backups = backups
        self._master = master
        self._clock = clock
        self._uploaders: dict[int, Uploader] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._next_key = 1
        self._started = False
        self._changing = asyncio.Lock()
        """Of which towers there are: one after the other, or two calls would add the same one."""
        self.pace = Pace()
        self.on_news: Callable[[NewsKind, str], None] = _log_news

    @classmethod
    async def open(
        cls, storage: Storage, backups: Backups, master: bytes, clock: Callable[[], float] = time.time
    ) -> Towers:
        """With what the database knows."""
        towers = cls(storage, backups, master, clock)
        known, progress, sessions = await storage.read(_read)
        for tower in known:
            towers._uploaders[tower.key] = towers._uploader(tower, progress[tower.key], sessions[tower.key])
        towers._next_key = max((tower.key for tower in known), default=0) + 1
        return towers

    def _uploader(
        self, tower: KnownTower, progress: dict[bytes, Behind], sessions: dict[bytes, dict[int, KnownSession]]
    ) -> Uploader:
        return Uploader(
            tower,
            self._master,
            self._storage,
            self._backups,
            progress,
            sessions,
            self.pace,
            self._clock,
            self._news,
        )

    def _news(self, kind: NewsKind, sentence: str) -> None:
        self.on_news(kind, sentence)

    def start(self) -> None:
        """Begin to bring towers up to date."""
        self._started = True
        for uploader in self._uploaders.values():
            self._run(uploader)

    def _run(self, uploader: Uploader) -> None:
        if self._started and uploader.tower.state == "active" and uploader.tower.key not in self._tasks:
            task = asyncio.create_task(uploader.run(), name=f"tower {uploader.tower.uri.address}")
            task.add_done_callback(_log_failure)
            self._tasks[uploader.tower.key] = task

    async def _halt(self, uploader: Uploader) -> None:
        task = self._tasks.pop(uploader.tower.key, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await uploader.close()

    async def close(self) -> None:
        """Stop; what is missing is sent after the next start."""
        self._started = False
        await asyncio.gather(*(self._halt(uploader) for uploader in list(self._uploaders.values())))

    def notify(self) -> None:
        """A commitment was revoked and that is durable. Costs next to nothing, and never waits."""
        self.pace.revoked()
        for uploader in self._uploaders.values():
            uploader.notify()

    # --- towers

    @property
    def all(self) -> list[KnownTower]:
        """In the order in which they were added."""
        return [uploader.tower for uploader in self._uploaders.values()]

    def _find(self, tower_id: bytes) -> Uploader:
        for uploader in self._uploaders.values():
            if uploader.tower.uri.tower_id == tower_id:
                return uploader
        raise TowersError(f"there is no tower {tower_id.hex()}")

    async def add(
        self, uri: TowerUri, mode: Mode = "blind", max_reward_permille: int = 0, token: str = ""
    ) -> KnownTower:
        """It gets everything that is revoked, from the beginning. Adding a tower again changes its address and token.
        Raises TowersError."""
        async with self._changing:
            for uploader in self._uploaders.values():
                if uploader.tower.uri.tower_id == uri.tower_id:
                    return await self._move(uploader, uri, mode, token)
            return await self._add(uri, mode, max_reward_permille, token)

    async def _add(self, uri: TowerUri, mode: Mode, max_reward_permille: int, token: str) -> KnownTower:
        tower = KnownTower(self._next_key, uri, mode, max_reward_permille, token, "active", int(self._clock()))
        self._next_key += 1
        row = tables.INSERT_TOWER(
            tower.key, uri.tower_id, uri.address, mode, max_reward_permille, token, "active", tower.added_seconds
        )
        await self._storage.commit([row])
        self._uploaders[tower.key] = self._uploader(tower, {}, {})
        self._run(self._uploaders[tower.key])
        return tower

    async def _move(self, uploader: Uploader, uri: TowerUri, mode: Mode, token: str) -> KnownTower:
        if mode != uploader.tower.mode:
            raise TowersError(f"the tower is used in mode {uploader.tower.mode}: remove it first")
        await self._storage.commit([tables.UPDATE_ADDRESS(uri.address, token, uploader.tower.key)])
        return await self._replace(uploader, uri=uri, token=token)

    async def _replace(self, uploader: Uploader, **changes: Any) -> KnownTower:
        await self._halt(uploader)
        tower: KnownTower = msgspec.structs.replace(uploader.tower, **changes)
        successor = self._uploader(tower, uploader.progress, uploader.sessions)
        self._uploaders[tower.key] = successor
        self._run(successor)
        return tower

    async def set_state(self, tower_id: bytes, state: TowerState) -> KnownTower:
        """Pause a tower, or use it again. Raises TowersError."""
        async with self._changing:
            uploader = self._find(tower_id)
            await self._storage.commit([tables.UPDATE_STATE(state, uploader.tower.key)])
            return await self._replace(uploader, state=state)

    async def remove(self, tower_id: bytes, end_sessions: bool = True) -> None:
        """Forget a tower and its receipts; it is asked to forget too, if it is there. Raises TowersError."""
        async with self._changing:
            uploader = self._find(tower_id)
            await self._halt(uploader)
            del self._uploaders[uploader.tower.key]
            key = uploader.tower.key
            await self._storage.commit([*(each(key) for each in tables.DELETE_OF_TOWER), tables.DELETE_TOWER(key)])
        if end_sessions and not uploader.status().problem:
            for channel, numbers in uploader.sessions.items():
                for number in numbers:
                    await uploader.end_session(channel, number)
        await uploader.close()

    async def forget_channel(self, channel: bytes) -> None:
        """A channel is over for good."""
        for uploader in list(self._uploaders.values()):
            await uploader.forget(channel)

    # --- what there is to see

    def statuses(self) -> list[TowerStatus]:
        """Of all towers."""
        return [uploader.status() for uploader in self._uploaders.values()]

    async def check(self, height: int) -> list[Check]:
        """Asks every tower; `height` is that of our own chain."""
        return list(await asyncio.gather(*(uploader.check(height) for uploader in self._uploaders.values())))

    async def wait_idle(self) -> None:
        """Until all active towers have everything."""
        active = [uploader for uploader in self._uploaders.values() if uploader.tower.state == "active"]
        await asyncio.gather(*(uploader.wait_idle() for uploader in active))

    async def evidence(self, tower_id: bytes, channel: bytes, commitment: int) -> Evidence:
        """What the tower has signed for a commitment, with the blob made again: half of a proof that it failed.
        Raises TowersError."""
        uploader = self._find(tower_id)
        rows = self._storage.lookup(tables.FIND_RECEIPT, uploader.tower.key, channel, commitment)
        make_kits = await self._backups.kits(channel, commitment, 1)
        kit = make_kits()[0] if make_kits is not None and rows else None
        if kit is None:
            raise TowersError("the tower has confirmed no such commitment")
        number, locator, blob_hash, accepted_height, signature = rows[0]
        session = await self._storage.read(lambda c: _read_session(c, uploader.tower.key, channel, number))
        made = fit_appointment(kit, session.blob_terms, session.terms.max_blob_bytes)
        receipt = Receipt(tower_id, session.terms.session_id, locator, blob_hash, accepted_height, signature)
        return Evidence(session.terms, receipt, made.blob)


def _log_news(kind: NewsKind, sentence: str) -> None:
    _log.warning(kind, sentence=sentence)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a tower's backups have stopped", exc_info=error)


_Progress = defaultdict[int, dict[bytes, Behind]]
_Sessions = defaultdict[int, dict[bytes, dict[int, KnownSession]]]


def _read(connection: Connection) -> tuple[list[KnownTower], _Progress, _Sessions]:
    rows = connection.execute(select(tables.towers).order_by(tables.towers.c.tower_key))
    known = [
        KnownTower(
            row.tower_key,
            TowerUri(row.tower_id, row.address),
            row.mode,
            row.max_reward_permille,
            row.token,
            row.state,
            row.added_seconds,
        )
        for row in rows
    ]
    table = tables.tower_backups.c
    backups = select(table.tower_key, table.channel, table["count"].label("saved"), table.milliseconds)
    progress: _Progress = defaultdict(dict)
    for row in connection.execute(backups):
        progress[row.tower_key][row.channel] = Behind(row.saved, row.milliseconds / 1000)
    sessions: _Sessions = defaultdict(dict)
    for row in connection.execute(select(tables.tower_sessions).order_by(tables.tower_sessions.c.number)):
        session = _session_decoder.decode(row.terms)
        if not session.gone:
            sessions[row.tower_key].setdefault(row.channel, {})[row.number] = session
    return known, progress, sessions


def _read_session(connection: Connection, tower_key: int, channel: bytes, number: int) -> KnownSession:
    table = tables.tower_sessions
    query = select(table.c.terms).where(
        table.c.tower_key == tower_key, table.c.channel == channel, table.c.number == number
    )
    return _session_decoder.decode(connection.execute(query).scalar_one())
