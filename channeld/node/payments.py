"""Payments that we make: durable before an HTLC is offered, decided in the transaction that decides the HTLC.

A payment is never made twice: at most one per payment hash is alive or succeeded (also a unique index). It is never
called failed while one of its HTLCs may still be claimed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import structlog
from msgspec.structs import replace
from sqlalchemy import Connection, func, select

from channeld.bolt.features import Feature, unknown_required
from channeld.bolt.invoice import SUPPORTED_FEATURES, Invoice, InvoiceError, decode_invoice
from channeld.bolt.onion.payment import build_payment_onion, final_payload
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.state import Funded
from channeld.node.bus import EventBus
from channeld.node.interface import ErrorKind, NodeError, PaymentView
from channeld.node.payment_record import PartRecord, PaymentRecord, decode, save
from channeld.node.router import MAX_PARTS, Planned, Router, Session, read
from channeld.routing.values import NoRoute, default_fee_limit_msat
from channeld.storage import Store, StoreFailed, Write, rows, tables
from wallet.bitcoin.address import Network

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

log = structlog.get_logger(__name__)
PAYMENT_ORIGIN = b"P"
MOST_PARTS = 128
"""Parts that one payment may have, failed ones included."""


class _Live:
    """A payment in memory, from its start until its outcome is durable. `stored`: its rows are in the database, or on
    the way there with a part that its channel took. With a `session` it is tried again, by the task `retry`."""

    __slots__ = ("extra", "outcome", "record", "retry", "session", "stored")

    def __init__(
        self,
        record: PaymentRecord,
        stored: bool = False,
        session: Session | None = None,
        extra: Sequence[Write] = (),
    ) -> None:
        self.record = record
        self.stored = stored
        self.session = session
        self.extra = extra
        self.retry: asyncio.Task[None] | None = None
        self.outcome: asyncio.Future[PaymentRecord] = asyncio.get_running_loop().create_future()

    @property
    def gives_up(self) -> bool:
        """Whether nothing more is tried once all parts have failed."""
        return self.session is None or bool(self.session.stopped)


class _StartRows:
    """What must be durable with each part, made when its channel takes it: another part may have been refused by
    then, and an older record must not be written over a newer one."""

    __slots__ = ("_live",)

    def __init__(self, live: _Live) -> None:
        self._live = live

    def __iter__(self) -> Iterator[Write]:
        self._live.stored = True
        yield save(self._live.record)
        yield from self._live.extra


class Payments:
    """All payments that we make."""

    def __init__(
        self,
        store: Store,
        network: Network,
        node_id: bytes,
        bus: EventBus,
        channels: Channels,
        router: Router,
        height: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._network = network
        self._node_id = node_id
        self._bus = bus
        self._channels = channels
        self._router = router
        self._height = height
        self._now = now
        self._live: dict[bytes, _Live] = {}
        self._by_id: dict[int, _Live] = {}
        self._next_id = 1

    def load(self, connection: Connection) -> None:
        """Payments in flight."""
        table = tables.payments
        self._next_id = (connection.execute(select(func.max(table.c.payment_id))).scalar() or 0) + 1
        for row in connection.execute(select(table.c.record).where(table.c.state == "in_flight")):
            live = _Live(decode(row.record), stored=True)
            self._enter(live)
            self._fail_unsent(live)

    def _fail_unsent(self, live: _Live) -> None:
        """Parts that we stopped before offering: an outcome is stored with the HTLC's end, so a part in flight that its
        channel does not know never went out."""
        writes: list[Write] = []
        for index, part in enumerate(live.record.parts):
            driver = self._channels.by_key(part.channel_key)
            known = driver is not None and isinstance(driver.state, Funded)
            origins = driver.state.commitments.origins.values() if known else ()  # type: ignore[union-attr]
            if part.state == "in_flight" and _origin(live.record.payment_id, index) not in origins:
                writes += self._part_ended(live, index, "failed", "the node stopped before it was sent")
        if live.record.state == "in_flight" and not live.record.good_parts:  # stopped between two attempts
            writes += self._end(live, f"{live.record.parts[-1].failure}; the node stopped before it tried again")
        if writes:
            payment_hash = live.record.payment_hash
            self._store.submit(writes, lambda failure: self.durable(payment_hash) if failure is None else None)

    def _enter(self, live: _Live) -> None:
        self._live[live.record.payment_hash] = self._by_id[live.record.payment_id] = live

    def _leave(self, live: _Live) -> None:
        self._live.pop(live.record.payment_hash, None)
        self._by_id.pop(live.record.payment_id, None)

    # --- paying

    async def pay(
        self,
        bolt11: str,
        amount_msat: int | None,
        timeout_seconds: float,
        extra: Callable[[int], Sequence[Write]] = lambda _: (),
        max_fee_msat: int | None = None,
    ) -> PaymentView:
        """Pay and wait for the outcome, `timeout_seconds` at most (then it is still in flight, and what fails is not
        tried again). `extra(payment_id)`: rows for the transaction that makes the payment exist. `max_fee_msat`: for
        all parts together. Raises NodeError if there is no payment."""
        invoice = self._check_invoice(bolt11)
        amount = _amount(invoice, amount_msat)
        self._check_not_paid(invoice.payment_hash)
        if max_fee_msat is None:
            max_fee_msat = default_fee_limit_msat(amount)
        # A few blocks more than asked for: blocks are found meanwhile, and the recipient cannot tell the last hop.
        final_delta = invoice.min_final_cltv_expiry_delta + 1 + os.urandom(1)[0] % 6
        session = Session(invoice, amount, max_fee_msat, self._now() + timeout_seconds, final_delta)
        plan = self._direct(invoice, amount)
        if plan is None:
            plan = await self._routed(session)
            self._check_not_paid(invoice.payment_hash)
        live = self._start(session, bolt11, plan, extra)
        return await self._wait(live, timeout_seconds)

    def _direct(self, invoice: Invoice, amount_msat: int) -> list[Planned] | None:
        """Over channels with the payee; None if there may be other ways and these will not do."""
        elsewhere = self._router.knows_ways(invoice)
        try:
            plan = [Planned(driver, part_msat) for driver, part_msat in self._plan(invoice, amount_msat)]
        except NodeError:
            if elsewhere:
                return None
            raise
        if elsewhere and any(self._channels.available_msat(part.driver) < part.amount_msat for part in plan):
            return None
        return plan

    async def _routed(self, session: Session) -> list[Planned]:
        """Over channels of others, or if there is no such way, whatever the direct channels say."""
        found = await self._router.find(session, session.amount_msat, session.max_fee_msat, (), MAX_PARTS)
        if not isinstance(found, NoRoute):
            return found
        if self._channels.of_peer(session.invoice.payee):
            return [Planned(*part) for part in self._plan(session.invoice, session.amount_msat)]
        raise NodeError("failed_precondition", f"no way to the payee was found: {found.reason}")

    async def wait(self, payment_id: int, timeout_seconds: float) -> PaymentView:
        """The outcome of a payment that was started before."""
        live = self._by_id.get(payment_id)
        if live is not None:
            return await self._wait(live, timeout_seconds)
        table = tables.payments
        query = select(table.c.record).where(table.c.payment_id == payment_id)
        record = await self._store.read(lambda c: c.execute(query).scalar())
        if record is None:
            raise NodeError("failed_precondition", "the first call with this key came to nothing: nothing was paid")
        return decode(record).view()

    def _check_invoice(self, bolt11: str) -> Invoice:
        try:
            invoice = decode_invoice(bolt11, self._network)
        except InvoiceError as error:
            raise NodeError("invalid_argument", str(error)) from error
        if invoice.is_expired(self._now()):
            raise NodeError("failed_precondition", "the invoice has expired: ask for a new one")
        if unknown_required(invoice.features, SUPPORTED_FEATURES):
            raise NodeError("failed_precondition", "the invoice requires a feature that this node does not know")
        if invoice.payee == self._node_id:
            raise NodeError("invalid_argument", "this is an invoice of this very node")
        return invoice

    def _check_not_paid(self, payment_hash: bytes) -> None:
        if payment_hash in self._live:
            raise NodeError("already_exists", "this invoice is being paid right now")
        if ("succeeded",) in self._store.lookup(rows.FIND_PAYMENTS, payment_hash):
            raise NodeError("already_exists", "this invoice has been paid already")

    def _plan(self, invoice: Invoice, amount_msat: int) -> list[tuple[Driver, int]]:
        """Which channel carries how much: one if one can, else several if the invoice allows it."""
        candidates = self._channels.usable_with(invoice.payee)
        if not candidates:
            raise NodeError("failed_precondition", self._channels.why_unreachable(invoice.payee))
        if len(candidates) == 1:
            return [(candidates[0], amount_msat)]  # the channel itself says if it is too much
        room = [(driver, self._channels.available_msat(driver)) for driver in candidates]
        room.sort(key=lambda choice: choice[1])
        for driver, available_msat in room:
            if available_msat >= amount_msat:
                return [(driver, amount_msat)]
        total_msat = sum(available_msat for _, available_msat in room)
        if total_msat < amount_msat or not invoice.has(Feature.basic_mpp):
            raise NodeError(
                "resource_exhausted",
                f"not enough money on our side of the channels with the payee: {room[-1][1]} msat can be sent over "
                f"one channel ({total_msat} msat over all), {amount_msat} msat are wanted",
            )
        return _split(room[::-1], amount_msat)

    def _start(
        self, session: Session, bolt11: str, plan: Sequence[Planned], extra: Callable[[int], Sequence[Write]]
    ) -> _Live:
        payment_id, self._next_id = self._next_id, self._next_id + 1
        invoice = session.invoice
        record = PaymentRecord(
            payment_id=payment_id,
            payment_hash=invoice.payment_hash,
            bolt11=bolt11.strip(),
            destination=invoice.payee,
            amount_msat=session.amount_msat,
            created_seconds=int(self._now()),
            parts=(),
        )
        is_routed = any(part.route is not None for part in plan)
        live = _Live(record, session=session if is_routed else None, extra=extra(payment_id))
        self._enter(live)
        self._send(live, session, plan)
        return live

    def _send(self, live: _Live, session: Session, plan: Sequence[Planned]) -> None:
        """More parts: all of them are in the record before the first one is offered."""
        first = len(live.record.parts)
        offers: list[tuple[Driver, ev.AddHtlc]] = []
        parts = list(live.record.parts)
        for index, planned in enumerate(plan, first):
            part, packet = self._part(session, planned)
            parts.append(part)
            origin = _origin(live.record.payment_id, index)
            add = ev.AddHtlc(part.amount_msat, session.invoice.payment_hash, part.cltv_expiry, packet, origin)
            offers.append((planned.driver, add))
        live.record = replace(live.record, parts=tuple(parts))
        writes = _StartRows(live)
        for index, (driver, add) in enumerate(offers, first):
            driver.post(add, writes, partial(self._offered, live, index))

    def _part(self, session: Session, planned: Planned) -> tuple[PartRecord, bytes]:
        """The record of a part, and its onion."""
        invoice, route = session.invoice, planned.route
        if route is None:
            expiry = self._height() + session.final_delta
            amounts = (planned.amount_msat, expiry, invoice.payment_secret, session.amount_msat)
            hops = [(invoice.payee, final_payload(*amounts, invoice.payment_metadata))]
        else:
            expiry = route.hops[0].cltv_expiry
            hops = self._router.payloads(session, route)
        onion = build_payment_onion(hops, os.urandom(32), invoice.payment_hash)
        part = PartRecord(
            planned.driver.channel_key, planned.amount_msat, expiry, onion.shared_secrets, route=planned.route
        )
        return part, onion.packet

    def _offered(self, live: _Live, index: int, error: Exception | None) -> None:
        """A part is in its channel, durably, or the channel refused it."""
        if error is None or isinstance(error, StoreFailed):
            return  # after StoreFailed the node stops; whether the part is out is known at the next start
        if live.session is not None:
            self._router.refused(live.session, live.record.parts[index])
        writes = self._part_ended(live, index, "failed", f"our channel refused it: {error}")
        record = live.record
        if not live.stored:
            if record.state == "failed":  # nothing was stored: there is no payment at all
                self._leave(live)
                live.outcome.set_exception(_refused(error))
            else:
                self._try_again(live)
            return
        self._store.submit(writes, lambda failure: self.durable(record.payment_hash) if failure is None else None)

    # --- trying again

    def _try_again(self, live: _Live) -> None:
        """If something of a payment is missing, look for other ways."""
        if live.session is None or live.retry is not None or live.record.state != "in_flight":
            return
        if live.record.missing_msat > 0:
            live.retry = asyncio.get_running_loop().create_task(self._retry(live, live.session))

    async def _retry(self, live: _Live, session: Session) -> None:
        try:
            while not session.stopped and live.record.state == "in_flight" and live.record.missing_msat > 0:
                await self._attempt(live, session)
        except Exception:
            log.critical("looking for a way stumbled over a bug", exc_info=True)
            session.stopped = "an internal error stopped the search for ways"
        finally:
            live.retry = None
        if live.record.state != "in_flight" or live.record.good_parts:
            return
        last = live.record.parts[-1].failure
        reason = session.stopped if session.stopped == last else f"{last}; {session.stopped}"
        writes = self._end(live, reason)
        payment_hash = live.record.payment_hash
        if live.stored:
            self._store.submit(writes, lambda failure: self.durable(payment_hash) if failure is None else None)
        else:
            self._leave(live)
            live.outcome.set_exception(NodeError("failed_precondition", f"nothing was paid: {reason}"))

    async def _attempt(self, live: _Live, session: Session) -> None:
        """Parts for what is missing now, or the end of all attempts."""
        record = live.record
        room = min(MAX_PARTS, MOST_PARTS - len(record.parts))
        if self._now() >= session.deadline or room <= 0:
            session.stopped = "the time for trying is over" if room > 0 else f"{MOST_PARTS} parts were tried"
            return
        under_way = [part for part in record.parts if part.state == "in_flight"]
        left_msat = session.max_fee_msat - record.fee_msat
        found = await self._router.find(session, record.missing_msat, left_msat, under_way, room)
        if live.record is not record:
            return  # something happened meanwhile: look again
        if isinstance(found, NoRoute):
            session.stopped = f"no other way was found: {found.reason}"
        else:
            self._send(live, session, found)

    def _end(self, live: _Live, reason: str) -> list[Write]:
        """All parts failed, and nothing more is tried."""
        live.record = replace(live.record, state="failed", failure=reason, ended_seconds=int(self._now()))
        return [save(live.record)]

    def close(self) -> None:
        """No more attempts."""
        for live in self._live.values():
            if live.retry is not None:
                live.retry.cancel()

    async def _wait(self, live: _Live, timeout_seconds: float) -> PaymentView:
        try:
            async with asyncio.timeout(timeout_seconds):
                return (await asyncio.shield(live.outcome)).view()
        except TimeoutError:
            return live.record.view()

    # --- outcomes

    def settled(self, effect: fx.HtlcSettled) -> list[Write]:
        """The preimage is known: the payment succeeded."""
        live, index = self._of(effect.origin)
        if live is None:
            return []
        self._router.succeeded(live.record.parts[index])
        return self._part_ended(live, index, "settled", "", effect.payment_preimage)

    def failed(self, effect: fx.HtlcFailed) -> list[Write]:
        """A part failed for good; with the last one, the payment."""
        live, index = self._of(effect.origin)
        if live is None:
            return []
        part = live.record.parts[index]
        reading = read(part, effect)
        if live.session is not None:
            self._router.failed(live.session, part, effect, reading)
        return self._part_ended(live, index, "failed", reading.sentence)

    def _part_ended(
        self,
        live: _Live,
        index: int,
        state: Literal["settled", "failed"],
        failure: str,
        preimage: bytes | None = None,
    ) -> list[Write]:
        record = live.record
        parts = list(record.parts)
        if parts[index].state != "in_flight":
            return []
        parts[index] = replace(parts[index], state=state, failure=failure)
        record = replace(record, parts=tuple(parts))
        ended = int(self._now())
        if preimage is not None and record.state == "in_flight":
            record = replace(record, state="succeeded", payment_preimage=preimage, ended_seconds=ended)
        elif record.state == "in_flight" and not record.good_parts and live.gives_up:
            record = replace(record, state="failed", failure=failure, ended_seconds=ended)
        live.record = record
        return [save(record)]

    def durable(self, payment_hash: bytes) -> None:
        """The record in memory is in the database: if that ended the payment, tell who waits."""
        live = self._live.get(payment_hash)
        if live is None:
            return
        if live.record.state == "in_flight":
            self._try_again(live)
            return
        record = live.record
        if not live.outcome.done():
            live.outcome.set_result(record)
            self._announce(record)
        if record.is_over:
            self._leave(live)

    def _announce(self, record: PaymentRecord) -> None:
        what = f"{record.amount_msat} msat to {record.destination.hex()}"
        data = {"payment_hash": record.payment_hash.hex(), "amount_msat": record.amount_msat}
        if record.state == "succeeded":
            self._bus.publish("payment.succeeded", f"paid {what}", **data)
        else:
            self._bus.publish("payment.failed", f"could not pay {what}: {record.failure}", **data)

    def _of(self, origin: bytes) -> tuple[_Live | None, int]:
        return self._by_id.get(int.from_bytes(origin[1:9], "big")), origin[9]

    # --- views

    async def views(self, limit: int, offset: int) -> list[PaymentView]:
        """The newest first."""
        table = tables.payments
        query = select(table.c.record).order_by(table.c.payment_id.desc()).limit(limit).offset(offset)
        found = await self._store.read(lambda c: [row.record for row in c.execute(query)])
        return [decode(record).view() for record in found]

    async def get(self, payment_hash: bytes) -> PaymentView:
        """The last attempt for this hash. Raises NodeError if there is none."""
        live = self._live.get(payment_hash)
        if live is not None:
            return live.record.view()
        table = tables.payments
        query = select(table.c.record).where(table.c.payment_hash == payment_hash).order_by(table.c.payment_id.desc())
        record = await self._store.read(lambda c: c.execute(query.limit(1)).scalar())
        if record is None:
            raise NodeError("not_found", f"there is no payment with the hash {payment_hash.hex()}")
        return decode(record).view()


def _origin(payment_id: int, index: int) -> bytes:
    """What the HTLC of a part is known by in its channel."""
    return PAYMENT_ORIGIN + payment_id.to_bytes(8, "big") + bytes((index,))


def _split(room: Sequence[tuple[Driver, int]], amount_msat: int) -> list[tuple[Driver, int]]:
    """The amount over several channels, the roomiest first."""
    plan: list[tuple[Driver, int]] = []
    for driver, available_msat in room:
        part_msat = min(amount_msat, available_msat)
        if part_msat:
            plan.append((driver, part_msat))
            amount_msat -= part_msat
    return plan


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


def _amount(invoice: Invoice, amount_msat: int | None) -> int:
    if invoice.amount_msat is None:
        if amount_msat is None:
            raise NodeError("invalid_argument", "the invoice leaves the amount to you: say how much to pay")
        if amount_msat <= 0:
            raise NodeError("invalid_argument", "the amount must be more than zero")
        return amount_msat
    if amount_msat is not None and amount_msat != invoice.amount_msat:
        raise NodeError(
            "invalid_argument", f"the invoice is for {invoice.amount_msat} msat: leave the amount out, or give that one"
        )
    return invoice.amount_msat
