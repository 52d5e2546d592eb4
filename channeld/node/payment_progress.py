"""A payment while it lives: who waits for its outcome, and who follows its attempts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from channeld.bolt.invoice import Invoice
from channeld.node.interface import NodeError, PaymentView
from channeld.node.payment_record import PaymentRecord, attempt_view
from channeld.node.payment_views import PaymentUpdate
from channeld.storage import Write

REST_SECONDS = 2.0
"""After the payment's end its last parts are awaited so long by those who follow it: the payee settles all at once."""


class Live:
    """A payment in memory, from its start until no HTLC of it is out.

    `record` is ahead of the database, `confirmed` is what is in it. `stored`: its rows are there, or on the way there
    with a part that its channel took. `resumed`: it was begun before the last restart. `refusal`: what our own channel
    said to its first part. `moved`: a part of it ended, in memory or durably. `extra`: rows for the transaction that
    makes it exist.
    """

    __slots__ = (
        "_exists",
        "_followers",
        "_outcome",
        "confirmed",
        "extra",
        "invoice",
        "moved",
        "record",
        "refusal",
        "resumed",
        "retry",
        "stored",
    )

    def __init__(
        self, record: PaymentRecord, invoice: Invoice | None = None, stored: bool = False, resumed: bool = False
    ) -> None:
        self.record = record
        self.confirmed: PaymentRecord | None = record if stored else None
        self.invoice = invoice
        self.stored = stored
        self.resumed = resumed
        self.refusal: NodeError | None = None
        self.extra: Sequence[Write] = ()
        self.retry: asyncio.Task[None] | None = None
        self.moved = asyncio.Event()
        self._followers: set[asyncio.Event] = set()
        self._exists: asyncio.Event | None = None
        self._outcome: asyncio.Future[PaymentRecord] = asyncio.get_running_loop().create_future()

    # --- what happens to it

    def confirm(self, record: PaymentRecord) -> None:
        """`record` is in the database."""
        self.confirmed = record
        if self._exists is not None:
            self._exists.set()
        for follower in self._followers:
            follower.set()

    def finish(self, record: PaymentRecord) -> bool:
        """It succeeded or failed, durably; whether that is news."""
        if self._outcome.done():
            return False
        self._outcome.set_result(record)
        return True

    def give_up(self, error: NodeError) -> None:
        """It never came to be."""
        if self._outcome.done():
            return
        self._outcome.set_exception(error)
        self._outcome.exception()  # nobody may be waiting
        if self._exists is not None:
            self._exists.set()

    # --- who wants to know

    async def wait(self, timeout_seconds: float) -> PaymentView:
        """The outcome, or how it stands after `timeout_seconds`, but no sooner than it is durable: until then its
        idempotency key is only in memory, kept by who waits. Raises NodeError if it never came to be."""
        await asyncio.wait((self._outcome,), timeout=timeout_seconds)
        if not self._outcome.done():
            await self.exists()
        return (self._outcome.result() if self._outcome.done() else self.record).view()

    async def exists(self) -> PaymentRecord:
        """As soon as it is durable. Raises NodeError if it never came to be."""
        if self.confirmed is None and not self._outcome.done():
            self._exists = self._exists or asyncio.Event()
            await self._exists.wait()
        return self.confirmed if self.confirmed is not None else self._outcome.result()

    async def updates(self) -> AsyncIterator[PaymentUpdate]:
        """What became of it so far, and all that becomes of it, durable things only. Raises NodeError if it never came
        to be."""
        await self.exists()
        wakeup = asyncio.Event()
        self._followers.add(wakeup)
        told: list[str] = []
        try:
            is_first = True
            while True:
                wakeup.clear()
                record = self.confirmed
                assert record is not None
                if is_first and record.state == "in_flight":
                    yield PaymentUpdate(record.view(), None)
                is_first = False
                for index in _news(record, told):
                    yield PaymentUpdate(record.view(), attempt_view(record, index))
                ended = record.state != "in_flight"
                if ended and record.is_over:
                    break
                try:
                    async with asyncio.timeout(REST_SECONDS if ended else None):
                        await wakeup.wait()
                except TimeoutError:
                    break
            yield PaymentUpdate(record.view(), None)
        finally:
            self._followers.discard(wakeup)


def updates_of(record: PaymentRecord) -> list[PaymentUpdate]:
    """All that there is to tell of a payment that is over: its attempts, itself."""
    attempts = [PaymentUpdate(record.view(), attempt_view(record, index)) for index in range(len(record.parts))]
    return [*attempts, PaymentUpdate(record.view(), None)]


def _news(record: PaymentRecord, told: list[str]) -> list[int]:
    """Which parts are new or have ended since `told`, which is brought up to date."""
    states = [part.state for part in record.parts]
    news = [index for index, state in enumerate(states) if index >= len(told) or told[index] != state]
    told[:] = states
    return news
