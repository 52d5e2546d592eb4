"""Sessions: who may store how much until when. All are in memory; what changes goes to the database first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from wallet.bitcoin.secp import is_valid_pubkey, sign
from wallet.db import Store, Write
from watchtower.appointment import Mode
from watchtower.messages import CLOCK_TOLERANCE_SECONDS, SessionTerms, create_digest, is_signed
from watchtower.rpc.errors import Refusal
from watchtower.tower import tables

GRACE_BLOCKS = 144
"""So many blocks after its end a session's appointments are still watched for."""
_REMOVED_AT_ONCE = 2_000


class Policy(Struct, frozen=True):
    """What the tower offers. Rates are per session, but for `sessions_per_minute`, which is per network address."""

    reward_permille: int = 0
    reward_script: bytes = b""
    session_appointments: int = 1_000_000
    session_bytes: int = 4 << 30
    session_blocks: int = 52_560
    max_sessions: int = 100_000
    max_total_bytes: int = 100 << 30
    max_blob_bytes: int = 512 << 10
    max_batch: int = 500
    appointments_per_second: float = 500.0
    appointments_burst: float = 5_000.0
    sessions_per_minute: float = 60.0
    sessions_burst: float = 1_000.0


class Session:
    """One session and what is used of it."""

    __slots__ = ("appointments", "bytes", "created_seconds", "key", "lock", "terms", "used_seconds", "waiting")

    def __init__(
        self, key: int, terms: SessionTerms, appointments: int, size: int, created_seconds: int, used_seconds: int
    ) -> None:
        self.key = key
        self.terms = terms
        self.appointments = appointments
        self.bytes = size
        self.created_seconds = created_seconds
        self.used_seconds = used_seconds
        self.lock: asyncio.Lock | None = None
        self.waiting = 0


def read_sessions(connection: Connection) -> list[tuple[Session, bool]]:
    """All of them, and whether they have ended."""
    decoder = msgspec.msgpack.Decoder(SessionTerms)
    return [
        (
            Session(r.session_key, decoder.decode(r.terms), r.appointments, r.bytes, r.created_seconds, r.used_seconds),
            r.ended,
        )
        for r in connection.execute(select(tables.sessions))
    ]


class Sessions:
    """All sessions of the tower. `tower_secret` signs terms."""

    def __init__(
        self,
        store: Store,
        tower_secret: bytes,
        tower_id: bytes,
        policy: Policy,
        known: Iterable[tuple[Session, bool]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._secret = tower_secret
        self._tower_id = tower_id
        self._clock = clock
        self.policy = policy
        everything = list(known)
        self._by_id = {session.terms.session_id: session for session, ended in everything if not ended}
        self._by_key = {session.key: session for session, _ in everything}
        self._ended = [session for session, ended in everything if ended]
        self._wake = asyncio.Event()
        self._removed = asyncio.Event()
        self._next_key = max(self._by_key, default=0) + 1
        self.total_appointments = sum(session.appointments for session, _ in everything)
        self.total_bytes = sum(session.bytes for session, _ in everything)

    def __len__(self) -> int:
        return len(self._by_id)

    def newest(self, limit: int) -> list[Session]:
        """The newest first."""
        return sorted(self._by_id.values(), key=lambda session: -session.key)[:limit]

    def by_key(self, key: int) -> Session | None:
        """Also one that has ended, while its appointments are removed."""
        return self._by_key.get(key)

    def get(self, session_id: bytes) -> Session:
        """Raises Refusal."""
        session = self._by_id.get(session_id)
        if session is None:
            raise Refusal("not_found", "The tower has no such session, or it has ended; create one.")
        return session

    def check_request(self, session_id: bytes, digest: bytes, time_seconds: float, signature: bytes) -> Session:
        """The session, if the request is its key's and of now. Raises Refusal."""
        self._check_time(time_seconds)
        session = self.get(session_id)
        if not is_signed(session_id, digest, signature):
            raise Refusal("unauthenticated", "The request is not signed by the session's key.")
        return session

    def _check_time(self, time_seconds: float) -> None:
        if not abs(time_seconds - self._clock()) <= CLOCK_TOLERANCE_SECONDS:
            raise Refusal("invalid_argument", "The request is of another time: set your clock, or the tower's.")

    async def create(
        self,
        session_id: bytes,
        mode: Mode,
        wanted: tuple[int, int],
        max_reward_permille: int,
        time_seconds: float,
        signature: bytes,
        height: int,
    ) -> SessionTerms:
        """A new session, or more for an old one: it never shrinks. Durable when this returns. Raises Refusal."""
        policy = self.policy
        self._check_time(time_seconds)
        if not is_valid_pubkey(session_id):
            raise Refusal("invalid_argument", "The session's id must be a public key of 33 bytes.")
        if min(*wanted, max_reward_permille) < 0 or max(*wanted, max_reward_permille) >= 1 << 63:
            raise Refusal("invalid_argument", "Amounts are out of range.")
        digest = create_digest(self._tower_id, session_id, mode, wanted, max_reward_permille, time_seconds)
        if not is_signed(session_id, digest, signature, once=True):
            raise Refusal("unauthenticated", "The request is not signed by the session's key.")
        if max_reward_permille < policy.reward_permille:
            raise Refusal(
                "failed_precondition",
                f"The tower asks for a share of {policy.reward_permille} permille; {max_reward_permille} is offered.",
            )
        if any(ended.terms.session_id == session_id for ended in self._ended):
            raise Refusal("failed_precondition", "The session with this key has ended; create one with another key.")
        old = self._by_id.get(session_id)
        if old is not None and old.terms.mode != mode:
            raise Refusal("failed_precondition", "The session has another mode; create one with another key.")
        if old is None and len(self._by_id) >= policy.max_sessions:
            raise Refusal("resource_exhausted", "The tower takes no more sessions.")
        terms = self._terms(session_id, mode, wanted, height, old.terms if old else None)
        now = int(self._clock())
        if old is not None:
            old.terms = terms
            await self._store.commit([tables.UPDATE_TERMS(msgspec.msgpack.encode(terms), False, old.key)])
            return terms
        session = Session(self._next_key, terms, 0, 0, now, now)
        self._next_key += 1
        self._by_id[session_id] = self._by_key[session.key] = session
        encoded = msgspec.msgpack.encode(terms)
        await self._store.commit([tables.INSERT_SESSION(session.key, session_id, encoded, 0, 0, now, now, False)])
        return terms

    def _terms(
        self, session_id: bytes, mode: Mode, wanted: tuple[int, int], height: int, old: SessionTerms | None
    ) -> SessionTerms:
        """An old session keeps its reward: its blobs were made for it."""
        policy = self.policy
        appointments, size = (
            min(asked or most, most)
            for asked, most in zip(wanted, (policy.session_appointments, policy.session_bytes), strict=True)
        )
        unsigned = SessionTerms(
            self._tower_id,
            session_id,
            mode,
            max(appointments, old.max_appointments if old else 0),
            max(size, old.max_bytes if old else 0),
            policy.max_blob_bytes,
            old.reward_permille if old else policy.reward_permille,
            old.reward_script if old else policy.reward_script,
            max(height + policy.session_blocks, old.expires_height if old else 0),
        )
        return msgspec.structs.replace(unsigned, signature=sign(self._secret, unsigned.digest()))

    def use(self, session: Session, count: int, size: int) -> Write:
        """Books appointments in memory; the row to commit with them."""
        session.appointments += count
        session.bytes += size
        session.used_seconds = int(self._clock())
        self.total_appointments += count
        self.total_bytes += size
        return tables.UPDATE_USE(session.appointments, session.bytes, session.used_seconds, session.key)

    async def end(self, session: Session) -> None:
        """From now on the session does not exist; its appointments go bit by bit (`run`)."""
        if self._by_id.pop(session.terms.session_id, None) is not None:
            self._ended.append(session)
            self._removed.clear()
            await self._store.commit([tables.UPDATE_TERMS(msgspec.msgpack.encode(session.terms), True, session.key)])
            self._wake.set()

    def expired(self, height: int) -> list[Session]:
        """Sessions whose time and grace are over."""
        return [s for s in self._by_id.values() if height >= s.terms.expires_height + GRACE_BLOCKS]

    async def run(self) -> None:
        """Removes the appointments of ended sessions, for ever."""
        while True:
            await self._remove_ended()
            self._removed.set()
            await self._wake.wait()
            self._wake.clear()

    async def wait_removed(self) -> None:
        """Until nothing is left of ended sessions."""
        await self._removed.wait()

    async def _remove_ended(self) -> None:
        """A few thousand in a transaction, so that nobody waits long."""
        while self._ended:
            session = self._ended[-1]
            key = session.key
            await self._store.commit(())  # what was taken just before the end is there to be found
            ids = await self._store.read(partial(tables.ids_of_session, session_key=key, limit=_REMOVED_AT_ONCE))
            if ids:
                await self._store.commit(tables.delete_appointments(ids))
                continue
            self._ended.remove(session)
            await self._store.commit([tables.DELETE_SESSION(key)])
            del self._by_key[key]
            self.total_appointments -= session.appointments
            self.total_bytes -= session.bytes
