"""Payments that we make: durable before an HTLC is offered, decided in the transaction that decides the HTLC.

A payment is never made twice: at most one per payment hash is alive or succeeded (also a unique index). It is never
called failed while one of its HTLCs may still be claimed. What is missing is tried again until the payment's limits are
reached, also after a restart: all that it takes is in its record.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from msgspec.structs import replace
from sqlalchemy import Connection, func, select

from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.state import Funded, Live, Normal
from channeld.node import payment_progress as progress
from channeld.node.bus import EventBus
from channeld.node.interface import ErrorKind, NodeError, PaymentView
from channeld.node.payment_lessons import failed_part, lessons_of, settled_part
from channeld.node.payment_orders import Draft, Orders
from channeld.node.payment_plan import MOST_PARTS, Planner
from channeld.node.payment_record import (
    PAYMENT_ORIGIN,
    PROBE_STATE,
    PartRecord,
    PaymentRecord,
    attempt_view,
    decode,
    origin_of,
    part_of,
    save,
)
from channeld.node.payment_views import AttemptView, PaymentOrder, PaymentUpdate
from channeld.node.router import AGAIN_SECONDS, Planned, Router
from channeld.storage import Store, StoreFailed, Write, rows, tables

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

__all__ = ["PAYMENT_ORIGIN", "Payments"]

log = structlog.get_logger(__name__)
RECONNECT_SECONDS = 20.0
"""So long a payment waits for a channel of ours to come back, after a part was lost with its connection."""
PROBES_KEPT = 100
_MAY_HELP = ("channel.usable", "graph.changed")
"""Events after which there may be a way where there was none."""
CANCELED = "it was canceled"
Extra = Callable[[int], Sequence[Write]]


class Payments:
    """All payments that we make, and probes."""

    def __init__(
        self,
        store: Store,
        bus: EventBus,
        channels: Channels,
        router: Router,
        orders: Orders,
        planner: Planner,
        chain_hash: bytes,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._bus = bus
        self._channels = channels
        self._router = router
        self._orders = orders
        self._planner = planner
        self._chain_hash = chain_hash
        self._now = now
        self._live: dict[bytes, progress.Live] = {}
        self._by_id: dict[int, progress.Live] = {}
        self._written: dict[bytes, PaymentRecord] = {}
        """By origin: the record that is on its way to the database with a part's end."""
        self._probes: OrderedDict[bytes, PaymentRecord] = OrderedDict()
        """The last ones that are over, for who asked for them: the database keeps none."""
        self._next_id = 1
        self._ended = 0
        """How many have left `_live`."""
        self._background: set[asyncio.Task[None]] = set()

    # --- start and end

    def load(self, connection: Connection) -> None:
        """Payments in flight, and probes."""
        table = tables.payments
        self._next_id = (connection.execute(select(func.max(table.c.payment_id))).scalar() or 0) + 1
        query = select(table.c.record).where(table.c.state.in_(("in_flight", PROBE_STATE)))
        for row in connection.execute(query):
            record = decode(row.record)
            if record.is_probe:  # nobody waits for its answer any more
                record = replace(record, canceled=True)
            self._enter(progress.Live(record, stored=True, resumed=True))
        succeeded = table.c.state == "succeeded", table.c.payment_id.in_(self._ids_in_channels())
        for row in connection.execute(select(table.c.record).where(*succeeded)):
            record = decode(row.record)
            if not record.is_over:  # the other parts' outcomes are still to be noted
                live = progress.Live(record, stored=True, resumed=True)
                live.finish(record)
                self._enter(live)

    def _ids_in_channels(self) -> set[int]:
        """The payments of which channels have HTLCs."""
        states = [driver.state for driver in self._channels.all()]
        origins = [o for state in states if isinstance(state, Funded) for o in state.commitments.origins.values()]
        return {part_of(origin)[0] for origin in origins if origin[:1] == PAYMENT_ORIGIN}

    def resume(self) -> None:
        """Go on with what was loaded; once, after the channels were loaded."""
        for live in list(self._live.values()):
            self._fail_unsent(live)
            if live.record.is_over and live.record.state == "in_flight" and (reason := self._why_stop(live.record)):
                live.record = self._failed(live.record, reason)
            if live.record.given_up:
                self._spawn(self._orders.forget(live.record))
            self._save(live)

    def _fail_unsent(self, live: progress.Live) -> None:
        """Parts that we stopped before offering: an outcome is stored with the HTLC's end, so a part in flight that its
        channel does not know never went out."""
        for index, part in enumerate(live.record.parts):
            driver = self._channels.by_key(part.channel_key)
            known = driver is not None and isinstance(driver.state, Funded)
            origins = driver.state.commitments.origins.values() if known else ()  # type: ignore[union-attr]
            if part.state == "in_flight" and origin_of(live.record.payment_id, index) not in origins:
                failure = "the node stopped before it was sent"
                self._part_ended(live, index, replace(part, state="failed", end="stopped", failure=failure))

    def close(self) -> None:
        """No more attempts."""
        for live in self._live.values():
            if live.retry is not None:
                live.retry.cancel()

    def _enter(self, live: progress.Live) -> None:
        self._live[live.record.payment_hash] = self._by_id[live.record.payment_id] = live
        for part in live.record.parts:
            if part.state == "in_flight":
                self._router.began(part)

    def _leave(self, live: progress.Live) -> None:
        self._ended += 1
        self._live.pop(live.record.payment_hash, None)
        self._by_id.pop(live.record.payment_id, None)
        if live.record.state == "failed" and live.record.kind == "rebalance":
            self._spawn(self._orders.forget(live.record))
        if live.record.is_probe:
            self._probes[live.record.payment_hash] = live.record
            if len(self._probes) > PROBES_KEPT:
                self._probes.popitem(last=False)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # --- paying

    async def pay(self, order: PaymentOrder, timeout_seconds: float, extra: Extra = lambda _: ()) -> PaymentView:
        """Pay and wait for the outcome, `timeout_seconds` at most once it exists (then it is still in flight).
        `extra(payment_id)`: rows for the transaction that makes the payment exist. Raises NodeError if there is no
        payment."""
        return await (await self._begin(order, extra)).wait(timeout_seconds)

    async def start(self, order: PaymentOrder, extra: Extra = lambda _: ()) -> PaymentView:
        """The same, but returns when the payment exists. Raises NodeError if there is none."""
        live = await self._begin(order, extra)
        return (await live.exists()).view()

    async def _begin(self, order: PaymentOrder, extra: Extra) -> progress.Live:
        draft = await self._orders.draft(order)
        try:
            return await self._launch(draft, extra)
        except BaseException:
            if draft.record.kind == "rebalance":  # the caller may be gone: the invoice is withdrawn all the same
                await asyncio.shield(self._spawn(self._orders.forget(draft.record)))
            raise

    async def _launch(self, draft: Draft, extra: Extra) -> progress.Live:
        record, invoice = draft
        self._check_not_paid(record.payment_hash)
        ended = self._ended
        plan = await self._planner.plan(record, invoice)
        self._check_not_paying(record.payment_hash)
        if self._ended != ended:
            self._check_not_paid(record.payment_hash)
        payment_id, self._next_id = self._next_id, self._next_id + 1
        live = progress.Live(replace(record, payment_id=payment_id), invoice=invoice)
        parts = self._parts(live, plan)
        live.extra = extra(payment_id)
        self._enter(live)
        self._send(live, parts)
        return live

    async def wait(self, payment_id: int, timeout_seconds: float) -> PaymentView:
        """The outcome of a payment that was started before."""
        live = self._by_id.get(payment_id)
        return await live.wait(timeout_seconds) if live is not None else (await self._started(payment_id)).view()

    async def find(self, payment_id: int) -> PaymentView:
        """A payment that was started before, as it is."""
        live = self._by_id.get(payment_id)
        return (await live.exists() if live is not None else await self._started(payment_id)).view()

    async def _started(self, payment_id: int) -> PaymentRecord:
        table = tables.payments
        query = select(table.c.record).where(table.c.payment_id == payment_id)
        record = await self._store.read(lambda c: c.execute(query).scalar())
        if record is None:
            raise NodeError("failed_precondition", "the first call with this key came to nothing: nothing was paid")
        return decode(record)

    def _check_not_paying(self, payment_hash: bytes) -> None:
        if payment_hash in self._live:
            raise NodeError("already_exists", "this invoice is being paid right now")

    def _check_not_paid(self, payment_hash: bytes) -> None:
        self._check_not_paying(payment_hash)
        if ("succeeded",) in self._store.lookup(rows.FIND_PAYMENTS, payment_hash):
            raise NodeError("already_exists", "this invoice has been paid already")

    # --- parts

    def _parts(self, live: progress.Live, plan: Sequence[Planned]) -> list[tuple[Driver, PartRecord, ev.AddHtlc]]:
        return [(planned.driver, *self._planner.part(live.record, live.invoice, planned)) for planned in plan]

    def _send(self, live: progress.Live, parts: Sequence[tuple[Driver, PartRecord, ev.AddHtlc]]) -> None:
        """More parts: all of them are in the record before the first one is offered."""
        first = len(live.record.parts)
        record = replace(live.record, parts=(*live.record.parts, *(part for _, part, _ in parts)))
        if record.missing_msat < 0 or record.fee_msat > record.max_fee_msat:
            raise AssertionError("all parts that are out would be more than the amount, or cost more than the limit")
        live.record = record
        for _, part, _ in parts:
            self._router.began(part)
        for index, (driver, _, add) in enumerate(parts, first):
            writes = _StartRows(live)
            offer = replace(add, origin=origin_of(live.record.payment_id, index))
            driver.post(offer, writes, partial(self._offered, live, index, writes))

    def _offered(self, live: progress.Live, index: int, writes: _StartRows, error: Exception | None) -> None:
        """A part is in its channel, durably, or the channel refused it."""
        if error is None:
            assert writes.record is not None
            self._confirmed(live, writes.record)
            return
        if isinstance(error, StoreFailed):
            return  # the node stops; whether the part is out is known at the next start
        code = error.code if isinstance(error, ev.CommandRejected) else "not_ready"
        live.refusal = live.refusal or _refused(error)
        part = live.record.parts[index]
        refused = replace(
            part, state="failed", end="refused", reject_code=code, failure=f"our channel refused it: {error}"
        )
        self._part_ended(live, index, refused)
        # The channel is in the middle of a batch, with an older record in it perhaps: that comes first.
        asyncio.get_running_loop().call_soon(self._save, live)

    def _commit(self, live: progress.Live, then: Callable[[], None] = lambda: None) -> None:
        """Store the record as it is; `then` follows when it is durable."""
        record = live.record

        def done(failure: StoreFailed | None) -> None:
            if failure is None:
                self._confirmed(live, record)
                then()

        self._store.submit([save(record)], done)

    def _save(self, live: progress.Live) -> None:
        """After parts were refused or missing. Of a payment that no channel has taken nothing is stored: if it is over,
        there is no payment at all."""
        record = live.record
        if live.stored:
            self._commit(live)
        elif record.state == "failed":
            self._leave(live)
            live.give_up(live.refusal or NodeError("failed_precondition", f"nothing was paid: {record.failure}"))
        else:
            self._try_again(live)

    # --- trying again

    def _why_stop(self, record: PaymentRecord) -> str:
        """Why nothing more is tried; empty if something may be."""
        if record.given_up:
            return record.given_up
        if stop := lessons_of(record).stop:
            return stop
        if record.canceled:
            return CANCELED
        if self._now() >= record.deadline_seconds:
            return "the time for trying is over"
        if len(record.parts) >= MOST_PARTS:
            return f"{MOST_PARTS} parts were tried"
        return ""

    def _failed(self, record: PaymentRecord, reason: str) -> PaymentRecord:
        """All parts failed, and nothing more is tried."""
        last = next((part.failure for part in reversed(record.parts) if not _is_own_word(record, part)), "")
        told = reason if not last or last == reason else f"{last}; {reason}"
        return replace(record, state="failed", failure=told, ended_seconds=int(self._now()))

    def _try_again(self, live: progress.Live) -> None:
        """If something of a payment is missing, look for other ways."""
        record = live.record
        if live.retry is None and record.state == "in_flight" and record.missing_msat > 0 and not record.given_up:
            live.retry = asyncio.get_running_loop().create_task(self._retry(live))

    async def _retry(self, live: progress.Live) -> None:
        reason, this = "", asyncio.current_task()
        try:
            while not reason and live.record.state == "in_flight" and live.record.missing_msat > 0:
                reason = self._why_stop(live.record) or await self._attempt(live)
        except Exception:
            log.critical("looking for a way stumbled over a bug", exc_info=True)
            reason = "an internal error stopped the search for ways"
        finally:
            if live.retry is this:
                live.retry = None
        if live.record.state == "in_flight" and live.record.is_over:
            live.record = self._failed(live.record, reason)
            self._save(live)
        elif live.record.state == "in_flight" and reason and live.record.kind == "rebalance":
            self._give_up(live, reason)

    def _give_up(self, live: progress.Live, reason: str) -> None:
        """Nothing more is tried of a payment to ourselves: what has come is given back at once, not when the time for
        all parts to come is over."""
        if not live.stored:
            return  # none of its channels has taken a part yet: this is asked again when one has
        record = live.record = replace(live.record, given_up=reason)

        def withdraw() -> None:
            self._spawn(self._orders.forget(record))

        self._commit(live, withdraw)

    async def _attempt(self, live: progress.Live) -> str:
        """Parts for what is missing now; why there are none. While others are out, the payee holds what has come, and
        what is missing may find a way for so long as there is time."""
        record, seen = live.record, self._bus.sequence
        live.moved.clear()
        if any(part_of(origin)[0] == record.payment_id for origin in self._written):
            await live.moved.wait()  # a part's end counts once it is durable: nothing is sent in its place before
            return ""
        if self._planner.room(record) <= 0:
            return "as many parts are out as are allowed"
        if live.invoice is None:
            live.invoice = self._orders.invoice_of(record)
        try:
            found = await self._planner.plan(record, live.invoice)
            if live.record is record:  # else something happened meanwhile: look again
                self._send(live, self._parts(live, found))
            return ""
        except NodeError as error:
            until = self._worth_waiting(live)
            if live.moved.is_set() or (until > self._now() and await self._something_changed(live, seen, until)):
                return ""
            return f"no other way was found: {error.sentence.removeprefix('no way to the payee was found: ')}"

    def _worth_waiting(self, live: progress.Live) -> float:
        """Until when (Unix time) ways may come up: after a restart peers and the network have to be met again, a
        connection that was lost may come back, and what is out binds the payment anyway, unless we are the payee."""
        record = live.record
        if live.resumed or not (record.is_over or record.kind == "rebalance"):
            return record.deadline_seconds
        lost = [part for part in record.parts if part.end == "never_sent" or part.reject_code == "not_ready"]
        if not any(self._is_away(part.channel_key) for part in lost):
            return 0.0
        last = max(part.ended_seconds or part.started_seconds for part in lost)
        return min(record.deadline_seconds, last + RECONNECT_SECONDS)

    def _is_away(self, channel_key: int) -> bool:
        """Whether a channel would be usable if its peer were there."""
        driver = self._channels.by_key(channel_key)
        state = driver.state if driver is not None else None
        return isinstance(state, Normal) and not isinstance(state.link, Live)

    async def _something_changed(self, live: progress.Live, since_sequence: int, until: float) -> bool:
        """Until a part of the payment ended, a channel or the graph changed since then, or some time passed, which may
        help too; False if that was not before `until`."""
        waiting = {
            asyncio.ensure_future(live.moved.wait()),
            asyncio.ensure_future(self._news(since_sequence)),
        }
        try:
            seconds = min(AGAIN_SECONDS, until - self._now())
            done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return bool(done) or self._now() < until
        finally:
            for each in waiting:
                each.cancel()

    async def _news(self, since_sequence: int) -> None:
        """Until something happened after which there may be a way where there was none; or the node stops."""
        async for event in self._bus.stream(since_sequence):
            if event.kind in _MAY_HELP:
                return
        await asyncio.Event().wait()

    # --- cancelling

    async def cancel(self, payment_hash: bytes) -> PaymentView:
        """Nothing more is tried; durable when this returns. Raises NodeError if it is over or does not exist."""
        live = self._live.get(payment_hash)
        if live is None:
            state = (await self._newest(payment_hash)).state
            raise NodeError("failed_precondition", f"there is nothing to cancel: the payment {state}")
        if live.retry is not None:
            live.retry.cancel()
            live.retry = None
        live.record = replace(live.record, canceled=live.record.canceled or live.record.state == "in_flight")
        if not live.stored and live.record.state == "in_flight" and live.record.is_over:
            live.record = self._failed(live.record, CANCELED)
            self._save(live)  # no channel has taken any of it: there is no payment at all
            return live.record.view()
        await live.exists()
        if live.record.state == "in_flight":
            record = replace(live.record, given_up=CANCELED) if live.record.kind == "rebalance" else live.record
            live.record = self._failed(record, self._why_stop(record)) if record.is_over else record
        record = live.record
        view = record.view()
        stored = asyncio.Event()
        self._commit(live, stored.set)
        await stored.wait()
        if record.kind == "rebalance" and record.state == "in_flight":
            await self._orders.forget(record)
        return view

    # --- outcomes

    def settled(self, effect: fx.HtlcSettled) -> list[Write]:
        """The preimage is known: the payment succeeded."""
        live, index = self._of(effect.origin)
        if live is None:
            return []
        part = settled_part(live.record.parts[index], effect.attribution_data, self._now())
        return self._ended_with(live, index, part, effect.origin, effect.payment_preimage)

    def failed(self, effect: fx.HtlcFailed) -> list[Write]:
        """A part failed for good; with the last one, the payment, unless there is something left to try."""
        live, index = self._of(effect.origin)
        if live is None:
            return []
        part = failed_part(
            live.record.parts[index],
            effect,
            live.record.is_probe,
            self._chain_hash,
            self._router.known_timestamp,
            self._now(),
        )
        return self._ended_with(live, index, part, effect.origin)

    def _ended_with(
        self, live: progress.Live, index: int, part: PartRecord, origin: bytes, preimage: bytes | None = None
    ) -> list[Write]:
        """What is committed with the end of an HTLC."""
        if not self._part_ended(live, index, part, preimage):
            return []
        self._router.learn(part)
        self._written[origin] = live.record
        return [save(live.record)]

    def _part_ended(self, live: progress.Live, index: int, part: PartRecord, preimage: bytes | None = None) -> bool:
        """Whether that is new. A probe has succeeded when all of it arrived."""
        record = live.record
        parts = list(record.parts)
        if parts[index].state != "in_flight":
            return False
        self._router.ended(part)
        parts[index] = part
        record = replace(record, parts=tuple(parts))
        ended = int(self._now())
        if record.state == "in_flight":
            if preimage is not None:
                record = replace(record, state="succeeded", payment_preimage=preimage, ended_seconds=ended)
            elif record.is_probe and record.is_over and record.missing_msat <= 0:
                record = replace(record, state="succeeded", ended_seconds=ended)
            elif record.is_over and (reason := self._why_stop(record)):
                record = self._failed(record, reason)
        live.record = record
        live.moved.set()
        return True

    def durable(self, origin: bytes) -> None:
        """What `settled` or `failed` returned for this HTLC is in the database."""
        record = self._written.pop(origin, None)
        live, _ = self._of(origin)
        if live is not None and record is not None:
            self._confirmed(live, record)

    def _confirmed(self, live: progress.Live, record: PaymentRecord) -> None:
        """This record is in the database: if that ended the payment, tell who waits."""
        live.confirm(record)
        live.moved.set()
        if record.state == "in_flight":
            self._try_again(live)
            return
        if live.finish(record) and not record.is_probe:
            self._announce(record)
        if record.is_over:
            self._leave(live)

    def _announce(self, record: PaymentRecord) -> None:
        what = f"{record.amount_msat:,} msat to {record.destination.hex()}"
        data = {"payment_hash": record.payment_hash.hex(), "amount_msat": record.amount_msat, "sort": record.kind}
        if record.state == "succeeded":
            self._bus.publish("payment.succeeded", f"paid {what}", **data)
        else:
            self._bus.publish("payment.failed", f"could not pay {what}: {record.failure}", **data)

    def _of(self, origin: bytes) -> tuple[progress.Live | None, int]:
        payment_id, index = part_of(origin)
        return self._by_id.get(payment_id), index

    # --- views

    async def views(self, limit: int, offset: int) -> list[PaymentView]:
        """The newest first, without probes."""
        table = tables.payments
        query = select(table.c.record).where(table.c.state != PROBE_STATE).order_by(table.c.payment_id.desc())
        query = query.limit(limit).offset(offset)
        found = await self._store.read(lambda c: [row.record for row in c.execute(query)])
        return [decode(record).view() for record in found]

    async def get(self, payment_hash: bytes) -> PaymentView:
        """The last payment for this hash. Raises NodeError if there is none."""
        return (await self._newest(payment_hash)).view()

    async def attempts(self, payment_hash: bytes) -> list[AttemptView]:
        """All its attempts. Raises NodeError if there is none."""
        record = await self._newest(payment_hash)
        return [attempt_view(record, index) for index in range(len(record.parts))]

    async def track(self, payment_hash: bytes) -> AsyncIterator[PaymentUpdate]:
        """What became of it, and what becomes of it until its end. Raises NodeError if there is none."""
        live = self._live.get(payment_hash)
        if live is None:
            for update in progress.updates_of(await self._newest(payment_hash)):
                yield update
            return
        async for update in live.updates():
            yield update

    async def _newest(self, payment_hash: bytes) -> PaymentRecord:
        live = self._live.get(payment_hash)
        if live is not None:
            return live.record
        if payment_hash in self._probes:
            return self._probes[payment_hash]
        table = tables.payments
        query = select(table.c.record).where(table.c.payment_hash == payment_hash).order_by(table.c.payment_id.desc())
        record = await self._store.read(lambda c: c.execute(query.limit(1)).scalar())
        if record is None:
            raise NodeError("not_found", f"there is no payment with the hash {payment_hash.hex()}")
        return decode(record)


class _StartRows:
    """What must be durable with a part, made when its channel takes it: another part may have been refused by then, and
    an older record must not be written over a newer one."""

    __slots__ = ("_live", "record")

    def __init__(self, live: progress.Live) -> None:
        self._live = live
        self.record: PaymentRecord | None = None

    def __iter__(self) -> Iterator[Write]:
        self._live.stored = True
        self.record = self._live.record
        yield save(self.record)
        yield from self._live.extra


def _is_own_word(record: PaymentRecord, part: PartRecord) -> bool:
    """Whether a part that failed was refused by ourselves as payee: that is no reason, but what followed from one."""
    return bool(record.back_over) and part.end == "told" and part.failing_key is None


_REFUSALS: dict[ev.RejectCode, ErrorKind] = {
    "insufficient_balance": "resource_exhausted",
    "in_flight_limit": "resource_exhausted",
    "too_many_htlcs": "resource_exhausted",
    "dust_exposure": "resource_exhausted",
    "not_ready": "unavailable",
    "amount_below_minimum": "invalid_argument",
}


def _refused(error: Exception) -> NodeError:
    """Our own channel did not take the payment."""
    if isinstance(error, ev.CommandRejected):
        return NodeError(_REFUSALS.get(error.code, "failed_precondition"), f"nothing was paid: {error.sentence}")
    return NodeError("internal", f"nothing was paid: {error}")
