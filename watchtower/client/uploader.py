"""Bringing one tower up to date, for ever: one task, in the background, that no payment waits for.

What the tower needs is the difference between the daemon's revoked commitments and the count that the tower has
confirmed. So nothing can be lost in a queue, a tower that was away is brought up to date when it is back, and a new one
gets everything from the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import structlog

from wallet.db import StorageError, Write
from watchtower.appointment import DEFAULT_LADDER_PER_KW, Appointment, fit_appointment
from watchtower.client import tables
from watchtower.client.connection import Connection, TowerAway, TowerLies, TowerRefuses
from watchtower.client.pace import Pace
from watchtower.client.values import (
    Backups,
    ChannelBackup,
    Check,
    KitMaker,
    KnownSession,
    KnownTower,
    NewsKind,
    Storage,
    TowerStatus,
    session_secret,
)
from watchtower.messages import Receipt

BATCH = 64
BATCH_BYTES = 1 << 20
CHANNELS_AT_ONCE = 4
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0
RENEW_BLOCKS = 1_008
"""A session that ends so soon gets more time."""
GATHER_SECONDS = 0.5
"""How long what is revoked next may wait for company, after a call: one for each would cost more than the blobs."""
LOOK_SECONDS = 60.0
"""How often a tower is looked after when nothing is revoked."""
LOOK_SOON_SECONDS = 5.0
"""The same where something was wrong."""
SPARE_KEYS = 8
"""So many keys are tried for a new session: the tower may know some, in another mode, from before it was removed."""
LEAST_BLOB_BYTES = 64 << 10
"""A tower that takes only smaller ones cannot have what a busy channel needs."""
STALE_BLOCKS = 3
"""A tower whose last block is so much older than ours is not up to date."""

_log = structlog.get_logger(__name__)


class Behind:
    """How far a tower is with one channel. `since` is when it fell behind."""

    __slots__ = ("acknowledged_seconds", "count", "since")

    def __init__(self, count: int = 0, acknowledged_seconds: float = 0.0) -> None:
        self.count = count
        self.acknowledged_seconds = acknowledged_seconds
        self.since: float | None = None


class Rest(NamedTuple):
    """Why nothing is sent for a channel, and until when (since 1970)."""

    until_seconds: float
    failures: int
    problem: str


class Uploader:
    """One tower's. `progress` and `sessions` (by channel and number) are what the database knows. `on_news` hears when
    the tower stops working and when it works again."""

    def __init__(
        self,
        tower: KnownTower,
        master: bytes,
        storage: Storage,
        backups: Backups,
        progress: dict[bytes, Behind],
        sessions: dict[bytes, dict[int, KnownSession]],
        pace: Pace,
        clock: Callable[[], float] = time.time,
        on_news: Callable[[NewsKind, str], None] = lambda kind, sentence: None,
    ) -> None:
        self.tower = tower
        self._master = master
        self._storage = storage
        self._backups = backups
        self.progress = progress
        self._sessions = sessions
        self._pace = pace
        self._clock = clock
        self._on_news = on_news
        self._connection = Connection(tower.uri, tower.token, clock)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._failures = 0
        self.retry_seconds = FIRST_RETRY_SECONDS
        self.gather_seconds = GATHER_SECONDS
        self.look_seconds = LOOK_SECONDS
        self._look_again = 0.0
        self._unproven: dict[bytes, int] = {}
        """By channel, a session that replaced one that was refused, and has taken nothing yet."""
        self._problem = ""
        self._problem_since = 0.0
        self._resting: dict[bytes, Rest] = {}
        """Channels that something failed for, until it is tried again."""
        self._found = ""
        """What was wrong when the tower was looked after last: it would punish nothing, or refused to be asked. It is
        given everything all the same."""
        self.sent = 0
        self._seen: set[tuple[bytes, int]] = set()
        """Sessions (channel, number) that the tower was seen to have, with all that it confirmed."""
        self._too_large: dict[bytes, set[int]] = {}
        """By channel, commitments that the tower cannot take."""

    # --- what the daemon does

    def notify(self) -> None:
        """Something was revoked."""
        self._wake.set()
        self._idle.clear()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._wake.clear()
            try:
                busy = await self._round()
                if not 0.0 < self._until_look() <= self.look_seconds:
                    await self._look()
                self._failures = 0
                self._say(self._found or next((rest.problem for rest in self._resting.values()), ""))
            except (TowerAway, TowerLies) as error:
                self._trouble(error)
                await self._pause()
                continue
            except StorageError:
                raise  # the daemon stops
            except Exception as error:
                self._bug(error)
                self._trouble(error)
                await self._pause()
                continue
            if not busy:
                if not self._wake.is_set() and not self._resting:
                    self._idle.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min([self._until_look(), *map(self._rests, self._resting)])):
                        await self._wake.wait()

    def _until_look(self) -> float:
        """More than `look_seconds` if the clock was set back."""
        return self._look_again - self._clock()

    async def wait_idle(self) -> None:
        """Until the tower has everything."""
        await self._idle.wait()

    async def close(self) -> None:
        """Close the connection; `run` must have been cancelled."""
        await self._connection.close()

    def _trouble(self, error: Exception) -> None:
        self._failures += 1
        self._say(str(error) or repr(error))

    def _say(self, problem: str) -> None:
        """What is wrong now; empty: nothing."""
        if problem and not self._problem:
            self._problem_since = self._clock()
            self._on_news("tower.trouble", f"the tower {self.tower.uri} does not work: {problem}")
        elif self._problem and not problem:
            self._problem_since = 0.0
            self._on_news("tower.works", f"the tower {self.tower.uri} works again")
        self._problem = problem

    def _bug(self, error: Exception) -> None:
        """It is heard, and tried again, and other channels and towers go on."""
        _log.critical("backing up failed", tower=str(self.tower.uri), exc_info=error)

    def _delay_seconds(self, failures: int) -> float:
        """Longer after each failure. New backups do not shorten it: busy nodes must not hammer a tower that is down."""
        longest = min(LAST_RETRY_SECONDS, self.retry_seconds * 2.0 ** min(failures - 1, 20))
        return longest * random.uniform(0.5, 1.0)

    async def _pause(self) -> None:
        await asyncio.sleep(self._delay_seconds(self._failures))

    def _rest(self, channel: bytes, error: Exception) -> None:
        """What is refused for one channel is asked for again later; the others need not wait for that."""
        if not isinstance(error, TowerRefuses):
            self._bug(error)
        failures = self._resting[channel].failures + 1 if channel in self._resting else 1
        until = self._clock() + self._delay_seconds(failures)
        self._resting[channel] = Rest(until, failures, str(error) or repr(error))

    def _rests(self, channel: bytes) -> float:
        """For so many seconds; 0 if it is its turn, or the clock was set back."""
        rest = self._resting.get(channel)
        left = rest.until_seconds - self._clock() if rest is not None else 0.0
        return left if 0.0 < left <= LAST_RETRY_SECONDS else 0.0

    # --- the work

    def _behind(self) -> list[tuple[bytes, int, int]]:
        """(channel, what the tower has, what there is), where they differ."""
        now = self._clock()
        found = []
        for channel, newest in self._backups.counts().items():
            behind = self.progress.get(channel)
            if behind is None:
                behind = self.progress[channel] = Behind()
            if behind.count < newest:
                behind.since = behind.since or now
                found.append((channel, behind.count, newest))
        return found

    async def _round(self) -> bool:
        """A batch for each channel that needs one and does not rest; whether that changed anything."""
        behind = self._behind()
        for gone in self._resting.keys() - {channel for channel, *_ in behind}:
            del self._resting[gone]
        work = [each for each in behind if not self._rests(each[0])]
        if not work:
            return False
        busy = False
        for start in range(0, len(work), CHANNELS_AT_ONCE):
            some = work[start : start + CHANNELS_AT_ONCE]
            results = await asyncio.gather(*(self._upload(*each) for each in some), return_exceptions=True)
            for (channel, *_), result in zip(some, results, strict=True):
                if isinstance(result, TowerAway | TowerLies | StorageError):
                    raise result
                if isinstance(result, Exception):
                    self._rest(channel, result)
                elif isinstance(result, BaseException):
                    raise result
                else:
                    self._resting.pop(channel, None)
                    busy = busy or result
            await self._pace.repay()
        if all(newest - count < BATCH for _, count, newest in work):
            await asyncio.sleep(self.gather_seconds)
        return busy

    async def _upload(self, channel: bytes, first: int, newest: int) -> bool:
        """One call's worth; False if the channel turns out to be gone."""
        make_kits = await self._backups.kits(channel, first, min(BATCH, newest - first))
        if make_kits is None:
            self.progress.pop(channel, None)
            return False
        session = await self._session(channel)
        secret = session_secret(self._master, self.tower.uri.tower_id, channel, session.number)
        made, too_large, seconds = await asyncio.to_thread(_make, make_kits, session)
        self._pace.spend(seconds)
        self._lacks(channel, [first + place for place in too_large])
        batch = [(first + place, each) for place, each in enumerate(made) if each is not None]
        receipts: list[Receipt] = []
        if batch:
            try:
                receipts = await self._connection.add(secret, [each for _, each in batch])
            except TowerRefuses as error:
                await self._refused(channel, session, error)
                return True
        await self._acknowledged(channel, first + len(made), session, [n for n, _ in batch], receipts)
        return True

    def _lacks(self, channel: bytes, numbers: Sequence[int]) -> None:
        """Later commitments are not held up by one that the tower cannot take, but it must be heard."""
        known = self._too_large.setdefault(channel, set()) if numbers else set()
        for number in set(numbers) - known:
            known.add(number)
            sentence = f"commitment {number} of channel {channel.hex()} is too large for the tower {self.tower.uri}"
            self._on_news("tower.trouble", f"{sentence}: use another one, or mode own, as well")

    async def _acknowledged(
        self, channel: bytes, count: int, session: KnownSession, numbers: Sequence[int], receipts: Sequence[Receipt]
    ) -> None:
        now = self._clock()
        key = self.tower.key
        writes: list[Write] = [tables.SAVE_BACKUP(key, channel, count, int(now * 1000))]
        writes += [
            tables.SAVE_RECEIPT(
                key, channel, number, session.number, r.locator, r.blob_hash, r.accepted_height, r.signature
            )
            for number, r in zip(numbers, receipts, strict=True)
        ]
        await self._storage.commit(writes)
        behind = self.progress.setdefault(channel, Behind())
        behind.count, behind.acknowledged_seconds = count, now
        behind.since = None if count >= self._backups.counts().get(channel, 0) else now
        if receipts:
            self._unproven.pop(channel, None)
        self.sent += len(receipts)

    async def _look(self) -> None:
        """Raises TowerAway, TowerLies."""
        try:
            self._found = await self._look_after()
        except TowerRefuses as error:
            self._found = str(error)
        pause = min(self.look_seconds, LOOK_SOON_SECONDS) if self._found else self.look_seconds
        self._look_again = self._clock() + pause

    async def _look_after(self) -> str:
        """What is wrong, empty if nothing is.

        Is the tower there, and does it have what it confirmed? And more time for sessions that end soon: also for those
        of channels that rest, and for those that are full. With a session's end the tower forgets what it holds, and
        one that is asked for under its old key is a new and empty one: so whether it is there comes first.
        """
        info = await self._connection.get_info()
        counts = self._backups.counts()
        for channel, numbers in list(self._sessions.items()):
            for number, session in list(numbers.items()) if channel in counts else ():
                ends = session.terms.expires_height - info.block_height < RENEW_BLOCKS
                if (ends or (channel, number) not in self._seen) and not await self._is_there(channel, session):
                    await self._forgotten(channel)
                    break
                self._seen.add((channel, number))
                if ends:
                    await self._new_session(channel, number)
        if info.synced_to_chain:
            return ""
        return f"it is not in step with the chain: it has searched blocks to height {info.block_height}"

    async def _is_there(self, channel: bytes, session: KnownSession) -> bool:
        """Whether the tower has a session, and as many appointments in it as it confirmed."""
        secret = session_secret(self._master, self.tower.uri.tower_id, channel, session.number)
        key, number = self.tower.key, session.number
        confirmed = await self._storage.read(lambda c: tables.count_receipts(c, key, channel, number))
        try:
            return int((await self._connection.get_session(secret)).appointments) >= confirmed
        except TowerRefuses as error:
            if error.kind != "not_found":
                raise
            return False

    async def _forgotten(self, channel: bytes) -> None:
        """What the tower confirmed is gone: it gets everything of the channel again."""
        _log.error("the tower has forgotten a session", tower=str(self.tower.uri), channel=channel.hex())
        self._on_news("tower.trouble", f"the tower {self.tower.uri} has forgotten what it confirmed: it is sent again")
        old = self._sessions.get(channel, {})
        another = await self._another_session(channel, max(old) + 1)
        gone = [
            msgspec.structs.replace(session, gone=True) for number, session in old.items() if number < another.number
        ]
        writes: list[Write] = [tables.SAVE_BACKUP(self.tower.key, channel, 0, 0)]
        writes += [tables.SAVE_SESSION(self.tower.key, channel, s.number, msgspec.msgpack.encode(s)) for s in gone]
        await self._storage.commit(writes)
        self._sessions[channel] = {another.number: another}
        self._unproven[channel] = another.number
        self.progress[channel] = Behind()
        self.notify()

    async def _session(self, channel: bytes) -> KnownSession:
        numbers = self._sessions.get(channel)
        return numbers[max(numbers)] if numbers else await self._another_session(channel, 0)

    async def _another_session(self, channel: bytes, first: int) -> KnownSession:
        """One with the first key from this number on that the tower takes."""
        for number in range(first, first + SPARE_KEYS):
            try:
                return await self._new_session(channel, number)
            except TowerRefuses as error:
                if error.kind != "failed_precondition":
                    raise
                refusal = error
        raise refusal

    async def _new_session(self, channel: bytes, number: int) -> KnownSession:
        """Created, or given more time. With terms that take back what was agreed a tower could make what it signed for
        the blobs that it has worthless as a proof: they are not taken."""
        secret = session_secret(self._master, self.tower.uri.tower_id, channel, number)
        terms = await self._connection.create_session(secret, self.tower.mode, self.tower.max_reward_permille)
        known = self._sessions.get(channel, {}).get(number)
        if known is not None and (
            terms.expires_height < known.terms.expires_height
            or terms.reward_permille != known.terms.reward_permille
            or terms.reward_script != known.terms.reward_script
        ):
            raise TowerLies("the tower takes back what it agreed to: a session's time or the reward")
        session = KnownSession(number, terms, DEFAULT_LADDER_PER_KW)
        encoded = msgspec.msgpack.encode(session)
        await self._storage.commit([tables.SAVE_SESSION(self.tower.key, channel, number, encoded)])
        self._sessions.setdefault(channel, {})[number] = session
        return session

    async def _refused(self, channel: bytes, session: KnownSession, error: TowerRefuses) -> None:
        """A session that is full, over or forgotten: the next one. Raises TowerRefuses where that does not help: where
        the next one has not taken anything either, it is not the session that is full."""
        if self._unproven.get(channel) == session.number:
            raise error
        if error.kind == "not_found":
            await self._forgotten(channel)
            return
        if error.kind in ("failed_precondition", "already_exists"):
            self._unproven[channel] = (await self._another_session(channel, session.number + 1)).number
            return
        raise error

    async def forget(self, channel: bytes) -> None:
        """The channel is over for good: the tower need not keep anything of it. If it is not reachable now, the session
        ends by itself."""
        numbers = self._sessions.pop(channel, {})
        self.progress.pop(channel, None)
        await self._storage.commit([statement(self.tower.key, channel) for statement in tables.DELETE_OF_CHANNEL])
        for number in numbers:
            await self.end_session(channel, number)

    async def end_session(self, channel: bytes, number: int) -> None:
        """Best effort."""
        secret = session_secret(self._master, self.tower.uri.tower_id, channel, number)
        try:
            await self._connection.delete_session(secret)
        except (TowerAway, TowerRefuses, TowerLies) as error:
            _log.info("a session at the tower could not be ended", tower=str(self.tower.uri), reason=str(error))

    @property
    def sessions(self) -> dict[bytes, dict[int, KnownSession]]:
        """Those of each channel, by their numbers."""
        return self._sessions

    # --- what there is to see

    def status(self) -> TowerStatus:
        """Now."""
        now = self._clock()
        counts = self._backups.counts()
        self._behind()
        channels = tuple(
            ChannelBackup(
                channel,
                newest,
                behind.count,
                now - behind.since if behind.since is not None else 0.0,
                behind.acknowledged_seconds,
            )
            for channel, newest in counts.items()
            if (behind := self.progress.get(channel)) is not None
        )
        return TowerStatus(
            self.tower,
            not self._problem,
            self._problem,
            self._problem_since,
            channels,
            self.sent,
            sum(map(len, self._sessions.values())),
        )

    async def check(self, height: int) -> Check:
        """Asks the tower itself, over a connection of its own: it must be there, in step with the chain at `height`,
        and really have the last appointment of every channel that it confirmed."""
        connection = Connection(self.tower.uri, self.tower.token, self._clock)
        reasons = []
        if self.tower.state == "paused":
            reasons.append("it is paused")
        try:
            info = await connection.get_info()
            if not info.synced_to_chain or info.block_height + STALE_BLOCKS < height:
                reasons.append(f"it has searched blocks to height {info.block_height} only, we are at {height}")
            reasons += [reason for channel in list(self.progress) if (reason := await self._audit(connection, channel))]
        except (TowerAway, TowerRefuses, TowerLies) as error:
            reasons.append(str(error))
        finally:
            await connection.close()
        lacking = sum(len(self._too_large.get(channel, ())) for channel in self._backups.counts())
        if lacking:
            reasons.append(f"{lacking} commitments were too large for it")
        least = min(
            (s.terms.max_blob_bytes for numbers in self._sessions.values() for s in numbers.values()), default=None
        )
        if least is not None and least < LEAST_BLOB_BYTES:
            reasons.append(f"it takes blobs of {least} bytes at most: commitments with many HTLCs may be missing")
        behind = [channel for channel in self.status().channels if channel.backlog]
        if behind:
            backlog = sum(channel.backlog for channel in behind)
            reasons.append(f"it lacks {backlog} commitments of {len(behind)} channels")
        return Check(self.tower, tuple(reasons))

    async def _audit(self, connection: Connection, channel: bytes) -> str:
        """What is wrong with what the tower has of a channel."""
        count = self.progress[channel].count
        rows = self._storage.lookup(tables.FIND_RECEIPT, self.tower.key, channel, count - 1) if count else []
        if not rows:
            return ""
        number, locator, blob_hash, *_ = rows[0]
        secret = session_secret(self._master, self.tower.uri.tower_id, channel, number)
        try:
            found = await connection.get_appointment(secret, locator)
        except TowerRefuses as error:
            return f"it does not have commitment {count - 1} of channel {channel.hex()}, which it confirmed: {error}"
        if found.receipt.blob_hash != blob_hash:
            return f"it has something else under the locator of commitment {count - 1} of channel {channel.hex()}"
        return ""


def _make(make_kits: KitMaker, session: KnownSession) -> tuple[list[Appointment | None], list[int], float]:
    """As many as one call may carry, the places of those that are too large, and the processor's seconds that they
    took."""
    began = time.thread_time()
    made: list[Appointment | None] = []
    too_large: list[int] = []
    size = 0
    for kit in make_kits():
        appointment = None
        if kit is not None:
            try:
                appointment = fit_appointment(kit, session.blob_terms, session.terms.max_blob_bytes)
            except ValueError as error:
                _log.error("a commitment cannot be backed up", txid=kit.txid[::-1].hex(), reason=str(error))
        size += len(appointment.blob) if appointment else 0
        if made and (size > BATCH_BYTES or len(made) == session.terms.max_appointments):
            break
        if kit is not None and appointment is None:
            too_large.append(len(made))
        made.append(appointment)
    return made, too_large, time.thread_time() - began
