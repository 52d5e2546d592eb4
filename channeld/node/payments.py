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

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, func, select

from channeld.bolt.features import Feature, unknown_required
from channeld.bolt.invoice import SUPPORTED_FEATURES, Invoice, InvoiceError, decode_invoice
from channeld.bolt.onion.failures import decode_failure
from channeld.bolt.onion.payment import build_payment_onion, final_payload
from channeld.bolt.onion.returns import ReturnPacket, read_failure
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.state import Funded
from channeld.node import failures
from channeld.node.bus import EventBus
from channeld.node.interface import ErrorKind, NodeError, PaymentView
from channeld.storage import Store, Write, rows, tables
from wallet.bitcoin.address import Network

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

PAYMENT_ORIGIN = b"P"
MAX_PARTS = 16


class PartRecord(Struct, frozen=True, array_like=True):
    """One HTLC of a payment. `shared_secrets`: what reads the error that may come back."""

    channel_key: int
    amount_msat: int
    cltv_expiry: int
    shared_secrets: tuple[bytes, ...]
    state: Literal["in_flight", "settled", "failed"] = "in_flight"
    failure: str = ""


class PaymentRecord(Struct, frozen=True, kw_only=True):
    """A payment as stored."""

    payment_id: int
    payment_hash: bytes
    bolt11: str
    destination: bytes
    amount_msat: int
    created_seconds: int
    parts: tuple[PartRecord, ...]
    state: Literal["in_flight", "succeeded", "failed"] = "in_flight"
    ended_seconds: int | None = None
    payment_preimage: bytes | None = None
    failure: str = ""

    def view(self) -> PaymentView:
        """What the API shows."""
        sent_msat = sum(part.amount_msat for part in self.parts)
        return PaymentView(
            payment_hash=self.payment_hash,
            state=self.state,
            amount_msat=self.amount_msat,
            fee_msat=max(0, sent_msat - self.amount_msat) if self.state != "failed" else 0,
            destination=self.destination,
            bolt11=self.bolt11,
            created_seconds=self.created_seconds,
            ended_seconds=self.ended_seconds,
            payment_preimage=self.payment_preimage,
            failure=self.failure,
            parts=len(self.parts),
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PaymentRecord).decode


def save(record: PaymentRecord) -> Write:
    """The record's row."""
    live_hash = None if record.state == "failed" else record.payment_hash
    return rows.SAVE_PAYMENT(record.payment_id, record.payment_hash, live_hash, record.state, _encode(record))


class _Live:
    """A payment in memory, from its start until its outcome is durable. `stored`: its rows are in the database, or on
    the way there with a part that its channel took."""

    __slots__ = ("outcome", "record", "stored")

    def __init__(self, record: PaymentRecord, stored: bool = False) -> None:
        self.record = record
        self.stored = stored
        self.outcome: asyncio.Future[PaymentRecord] = asyncio.get_running_loop().create_future()


class _StartRows:
    """What must be durable with each part, made when its channel takes it: another part may have been refused by
    then, and an older record must not be written over a newer one."""

    __slots__ = ("_extra", "_live")

    def __init__(self, live: _Live, extra: Sequence[Write]) -> None:
        self._live = live
        self._extra = extra

    def __iter__(self) -> Iterator[Write]:
        self._live.stored = True
        yield save(self._live.record)
        yield from self._extra


class Payments:
    """All payments that we make."""

    def __init__(
        self,
        store: Store,
        network: Network,
        node_id: bytes,
        bus: EventBus,
        channels: Channels,
        height: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._network = network
        self._node_id = node_id
        self._bus = bus
        self._channels = channels
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
            live = _Live(_decode(row.record), stored=True)
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
    ) -> PaymentView:
        """Pay and wait for the outcome, `timeout_seconds` at most (then it is still in flight). `extra(payment_id)`:
        rows for the transaction that makes the payment exist. Raises NodeError if there is no payment."""
        invoice = self._check_invoice(bolt11)
        amount = _amount(invoice, amount_msat)
        self._check_not_paid(invoice.payment_hash)
        plan = self._plan(invoice, amount)
        live = self._start(invoice, bolt11, amount, plan, extra)
        return await self._wait(live, timeout_seconds)

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
        return _decode(record).view()

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
        self,
        invoice: Invoice,
        bolt11: str,
        amount_msat: int,
        plan: Sequence[tuple[Driver, int]],
        extra: Callable[[int], Sequence[Write]],
    ) -> _Live:
        payment_id, self._next_id = self._next_id, self._next_id + 1
        # A few blocks more than asked for: blocks are found meanwhile, and the recipient cannot tell the last hop.
        expiry = self._height() + invoice.min_final_cltv_expiry_delta + 1 + os.urandom(1)[0] % 6
        offers: list[tuple[Driver, ev.AddHtlc]] = []
        parts = []
        for index, (driver, part_msat) in enumerate(plan):
            payload = final_payload(part_msat, expiry, invoice.payment_secret, amount_msat, invoice.payment_metadata)
            onion = build_payment_onion([(invoice.payee, payload)], os.urandom(32), invoice.payment_hash)
            parts.append(PartRecord(driver.channel_key, part_msat, expiry, onion.shared_secrets))
            origin = _origin(payment_id, index)
            offers.append((driver, ev.AddHtlc(part_msat, invoice.payment_hash, expiry, onion.packet, origin)))
        record = PaymentRecord(
            payment_id=payment_id,
            payment_hash=invoice.payment_hash,
            bolt11=bolt11.strip(),
            destination=invoice.payee,
            amount_msat=amount_msat,
            created_seconds=int(self._now()),
            parts=tuple(parts),
        )
        live = _Live(record)
        self._enter(live)
        writes = _StartRows(live, extra(payment_id))
        for index, (driver, add) in enumerate(offers):
            driver.post(add, writes, partial(self._offered, live, index))
        return live

    def _offered(self, live: _Live, index: int, error: Exception | None) -> None:
        """A part is in its channel, durably, or the channel refused it."""
        if error is None:
            return
        writes = self._part_ended(live, index, "failed", f"our channel refused it: {error}")
        record = live.record
        if not live.stored:
            if record.state == "failed":  # nothing was stored: there is no payment at all
                self._leave(live)
                live.outcome.set_exception(_refused(error))
            return
        self._store.submit(writes, lambda failure: self.durable(record.payment_hash) if failure is None else None)

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
        return self._part_ended(live, index, "settled", "", effect.payment_preimage)

    def failed(self, effect: fx.HtlcFailed) -> list[Write]:
        """A part failed for good; with the last one, the payment."""
        live, index = self._of(effect.origin)
        if live is None:
            return []
        return self._part_ended(live, index, "failed", self._explain(live.record.parts[index], effect))

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
        elif record.state == "in_flight" and all(part.state == "failed" for part in parts):
            record = replace(record, state="failed", failure=failure, ended_seconds=ended)
        live.record = record
        return [save(record)]

    def durable(self, payment_hash: bytes) -> None:
        """The record in memory is in the database: if that ended the payment, tell who waits."""
        live = self._live.get(payment_hash)
        if live is None or live.record.state == "in_flight":
            return
        record = live.record
        if not live.outcome.done():
            live.outcome.set_result(record)
            self._announce(record)
        if all(part.state != "in_flight" for part in record.parts):
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

    def _explain(self, part: PartRecord, effect: fx.HtlcFailed) -> str:
        if effect.never_sent:
            return "the connection was lost before the payment was sent; nothing was paid"
        if effect.failure_code is not None:
            return failures.explain_code(effect.failure_code)
        if effect.reason is None:
            return "the channel was closed, and the payment with it"
        found = read_failure(part.shared_secrets, ReturnPacket(effect.reason, effect.attribution_data))
        if found.erring_hop is None:
            return "it failed, and the reason that came back cannot be read"
        return failures.explain(decode_failure(found.failure_message))

    # --- views

    async def views(self, limit: int, offset: int) -> list[PaymentView]:
        """The newest first."""
        table = tables.payments
        query = select(table.c.record).order_by(table.c.payment_id.desc()).limit(limit).offset(offset)
        found = await self._store.read(lambda c: [row.record for row in c.execute(query)])
        return [_decode(record).view() for record in found]

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
        return _decode(record).view()


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
