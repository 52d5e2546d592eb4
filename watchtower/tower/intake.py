"""Taking appointments in: checked, stored durably, confirmed with a receipt each.

A session's batches are taken one after another, so that what one client sends at once cannot crowd out the others, and
a batch that was interrupted can be repeated: what is there already is confirmed again, with the same receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wallet.bitcoin.encoding import sha256
from wallet.db import Store, Write
from watchtower.appointment import Appointment
from watchtower.blob import LOCATOR_BYTES, OVERHEAD_BYTES
from watchtower.messages import Receipt, batch_digest, is_signed
from watchtower.rpc.errors import Refusal
from watchtower.tower import tables
from watchtower.tower.index import LocatorIndex, prefix_of, to_column
from watchtower.tower.limits import TokenBucket
from watchtower.tower.sessions import Session, Sessions

MAX_WAITING_BATCHES = 4
MAX_PENDING_BYTES = 64 << 20


class Stored(NamedTuple):
    """A row of the table of appointments."""

    appointment_id: int
    session_key: int
    locator: bytes
    accepted_height: int
    blob: bytes


def read_stored(store: Store, appointment_id: int) -> Stored | None:
    """A row, if it is still there."""
    return next((Stored(*row) for row in store.lookup(tables.READ_APPOINTMENT, appointment_id)), None)


class Intake:
    """`height` tells the last block that was searched; `on_stored` hears of new appointments after they are durable and
    in the index, and returns the locators whose breach is in the chain already."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        index: LocatorIndex,
        identity: tuple[bytes, bytes],
        next_id: int,
        height: Callable[[], int],
        on_stored: Callable[[Sequence[Stored]], list[bytes]],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._index = index
        self._secret, self._tower_id = identity
        self._next_id = next_id
        self._height = height
        self._on_stored = on_stored
        self._clock = clock
        self._buckets: dict[int, TokenBucket] = {}
        self._pending_bytes = 0
        self.accepted = 0
        self.refused = 0

    async def add(
        self, session_id: bytes, batch: Sequence[Appointment], signature: bytes
    ) -> tuple[list[Receipt], list[bytes]]:
        """Receipts in order, and locators of which the breach is in the chain. Raises Refusal: then nothing of the
        batch was taken."""
        try:
            session = self._sessions.get(session_id)
            self._check(session, batch)
            if session.waiting >= MAX_WAITING_BATCHES:
                raise Refusal("resource_exhausted", "Too many calls of this session at once; wait for answers.")
            session.waiting += 1
            taking = asyncio.ensure_future(self._take(session, batch, signature))
            taking.add_done_callback(lambda done: done.cancelled() or done.exception())
            # Who hangs up does not undo it: the next call must not come before this one is over.
            return await asyncio.shield(taking)
        except Refusal:
            self.refused += len(batch)
            raise

    async def _take(
        self, session: Session, batch: Sequence[Appointment], signature: bytes
    ) -> tuple[list[Receipt], list[bytes]]:
        session.lock = session.lock or asyncio.Lock()
        try:
            async with session.lock:
                return await self._add(session, batch, signature)
        finally:
            session.waiting -= 1

    def _check(self, session: Session, batch: Sequence[Appointment]) -> None:
        policy = self._sessions.policy
        if not 1 <= len(batch) <= policy.max_batch:
            raise Refusal("invalid_argument", f"A call takes 1 to {policy.max_batch} appointments.")
        if self._height() >= session.terms.expires_height:
            raise Refusal("failed_precondition", "The session's time is over; ask for more with CreateSession.")
        for locator, blob in batch:
            if len(locator) != LOCATOR_BYTES:
                raise Refusal("invalid_argument", f"A locator has {LOCATOR_BYTES} bytes, not {len(locator)}.")
            if not OVERHEAD_BYTES < len(blob) <= policy.max_blob_bytes:
                raise Refusal(
                    "invalid_argument",
                    f"A blob has more than {OVERHEAD_BYTES} and at most {policy.max_blob_bytes} bytes, "
                    f"not {len(blob)}.",
                )

    async def _add(
        self, session: Session, batch: Sequence[Appointment], signature: bytes
    ) -> tuple[list[Receipt], list[bytes]]:
        session_id = session.terms.session_id
        if self._sessions.get(session_id) is not session:
            raise Refusal("not_found", "The session has ended.")
        self._take_rate(session, len(batch))
        if not is_signed(session_id, batch_digest(self._tower_id, session_id, batch), signature):
            raise Refusal("unauthenticated", "The appointments are not signed by the session's key for this tower.")
        stored, fresh = self._sort_out(session, batch)
        breached: list[bytes] = []
        size = sum(len(row.blob) for row in fresh)
        self._check_room(session, len(fresh), size)
        if fresh:
            self._pending_bytes += size
            try:
                writes: list[Write] = [self._sessions.use(session, len(fresh), size)]
                writes += [
                    tables.INSERT_APPOINTMENT(
                        row.appointment_id,
                        row.session_key,
                        to_column(prefix_of(row.locator)),
                        row.locator,
                        row.accepted_height,
                        row.blob,
                    )
                    for row in fresh
                ]
                breached = await self._commit(writes, fresh)
            finally:
                self._pending_bytes -= size
        return [self.receipt(session_id, row) for row in stored], breached

    async def _commit(self, writes: Sequence[Write], fresh: Sequence[Stored]) -> list[bytes]:
        """Nothing is awaited before, so that a session that ends in the next moment cannot overtake it; and nothing
        after the commit: a block is searched either before, and then `on_stored` knows it, or after, and then the index
        has the locators."""
        await self._store.commit(writes)
        self._index.add(prefix_of(row.locator) for row in fresh)
        self.accepted += len(fresh)
        return self._on_stored(fresh)

    def receipt(self, session_id: bytes, row: Stored) -> Receipt:
        """Always the same for a row."""
        unsigned = Receipt(self._tower_id, session_id, row.locator, sha256(row.blob), row.accepted_height)
        return unsigned.signed(self._secret)

    def find(self, session: Session, locator: bytes) -> Stored | None:
        """What a session has stored under a locator."""
        prefix = prefix_of(locator)
        if prefix not in self._index:
            return None
        for appointment_id, session_key, other in self._store.lookup(tables.FIND_APPOINTMENTS, to_column(prefix)):
            if (session_key, other) == (session.key, locator):
                return read_stored(self._store, appointment_id)
        return None

    def _sort_out(self, session: Session, batch: Sequence[Appointment]) -> tuple[list[Stored], list[Stored]]:
        """(a row for each appointment, those rows that are new). Raises Refusal if a locator has another blob."""
        rows: list[Stored] = []
        fresh: dict[bytes, Stored] = {}
        height = self._height()
        for locator, blob in batch:
            row = fresh.get(locator) or self.find(session, locator)
            if row is None:
                row = fresh[locator] = Stored(self._next_id, session.key, locator, height, blob)
                self._next_id += 1
            elif row.blob != blob:
                raise Refusal(
                    "already_exists",
                    f"There is another blob under the locator {locator.hex()}: appointments are never replaced.",
                )
            rows.append(row)
        return rows, list(fresh.values())

    def _take_rate(self, session: Session, count: int) -> None:
        policy, now = self._sessions.policy, self._clock()
        bucket = self._buckets.get(session.key)
        if bucket is None:
            if len(self._buckets) > 10_000:
                self._buckets = {key: kept for key, kept in self._buckets.items() if not kept.is_full(now)}
            bucket = TokenBucket(policy.appointments_per_second, policy.appointments_burst, now)
            self._buckets[session.key] = bucket
        wait = bucket.take(count, now)
        if wait:
            raise Refusal(
                "resource_exhausted",
                f"This session may send {policy.appointments_per_second:g} appointments a second; "
                f"try again in {wait:.1f} seconds.",
            )

    def _check_room(self, session: Session, count: int, size: int) -> None:
        terms = session.terms
        if session.appointments + count > terms.max_appointments or session.bytes + size > terms.max_bytes:
            raise Refusal(
                "failed_precondition",
                f"The session is full: it has {session.appointments} of {terms.max_appointments} appointments "
                f"and {session.bytes} of {terms.max_bytes} bytes. Create another.",
            )
        if self._sessions.total_bytes + size > self._sessions.policy.max_total_bytes:
            raise Refusal("resource_exhausted", "The tower is full: its operator has to give it more room.")
        if self._pending_bytes + size > MAX_PENDING_BYTES:
            raise Refusal("resource_exhausted", "The tower is busy; try again.")
