"""What the API asks of payments: each order once per idempotency key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from channeld.node.idempotency import Idempotency, Mark
from channeld.node.interface import NodeError, PaymentView
from channeld.node.invoices import InvoiceBook, InvoiceRequest
from channeld.node.payment_views import (
    AttemptView,
    InvoiceOrder,
    KeysendOrder,
    PaymentLimits,
    PaymentOrder,
    PaymentUpdate,
    ProbeOrder,
    RebalanceOrder,
)
from channeld.node.payments import Extra, Payments
from channeld.node.receive import Receiver


class PaymentVerbs:
    """The verbs of `NodeService` that pay."""

    def __init__(self, payments: Payments, idempotency: Idempotency) -> None:
        self._payments = payments
        self._idempotency = idempotency

    async def send(self, order: PaymentOrder, key: str) -> PaymentView:
        """Pay, and wait for the outcome."""
        timeout_seconds = order.limits.timeout_seconds

        async def first(mark: Mark) -> PaymentView:
            return await self._payments.pay(order, timeout_seconds, _rows(mark))

        async def again(reference: bytes) -> PaymentView:
            return await self._payments.wait(int.from_bytes(reference, "big"), timeout_seconds)

        return await self._idempotency.once(key, *_said(order, key), first, again)

    async def start(self, order: PaymentOrder, key: str) -> PaymentView:
        """Pay, and return as soon as the payment exists."""

        async def first(mark: Mark) -> PaymentView:
            return await self._payments.start(order, _rows(mark))

        async def again(reference: bytes) -> PaymentView:
            return await self._payments.find(int.from_bytes(reference, "big"))

        return await self._idempotency.once(key, *_said(order, key), first, again)

    def track(self, payment_hash: bytes) -> AsyncIterator[PaymentUpdate]:
        """See Payments."""
        return self._payments.track(payment_hash)

    async def cancel(self, payment_hash: bytes) -> PaymentView:
        """See Payments."""
        return await self._payments.cancel(payment_hash)

    async def attempts(self, payment_hash: bytes) -> list[AttemptView]:
        """See Payments."""
        return await self._payments.attempts(payment_hash)


class InvoicesToOurselves:
    """`OwnInvoices` over the invoice book."""

    def __init__(self, book: InvoiceBook, receiver: Receiver) -> None:
        self._book = book
        self._receiver = receiver

    async def make(self, amount_msat: int, description: str, expiry_seconds: int) -> str:
        """See OwnInvoices."""
        return (await self._book.create(InvoiceRequest(amount_msat, description, expiry_seconds))).bolt11

    async def withdraw(self, payment_hash: bytes) -> None:
        """See OwnInvoices."""
        await self._receiver.cancel(payment_hash)


def _rows(mark: Mark) -> Extra:
    return lambda payment_id: mark(payment_id.to_bytes(8, "big"))


def _said(order: PaymentOrder, key: str) -> tuple[str, tuple[Any, ...]]:
    """The verb and arguments that a key stands for; how long to wait is none of them."""
    match order:
        case InvoiceOrder():
            said = (order.bolt11.strip(), order.amount_msat, order.limits.max_fee_msat)
            return "pay", (*said, *_route_limits(order.limits))
        case KeysendOrder():
            return "keysend", (order.node_id, order.amount_msat, order.custom_records, *_all_limits(order.limits))
        case RebalanceOrder():
            channels = (_alone(order.outgoing_channel_ids), _alone(order.incoming_channel_ids))
            return "rebalance", (order.amount_msat, *channels, *_all_limits(order.limits))
        case ProbeOrder():
            if key:
                raise NodeError("invalid_argument", "a probe moves no money and takes no idempotency key")
            return "probe", ()


def _alone(channel_ids: tuple[bytes, ...]) -> bytes | tuple[bytes, ...]:
    """One channel as before there could be several."""
    return channel_ids[0] if len(channel_ids) == 1 else channel_ids


def _all_limits(limits: PaymentLimits) -> tuple[Any, ...]:
    return (limits.max_fee_msat, *_route_limits(limits))


def _route_limits(limits: PaymentLimits) -> tuple[Any, ...]:
    """Nothing where nothing was said, as before there were such limits."""
    said = (limits.max_cltv_blocks, limits.max_parts, limits.outgoing_channel_ids, limits.last_hops)
    return () if said == (None, None, (), ()) else said
