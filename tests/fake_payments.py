"""The paying verbs of `FakeNode`: one attempt over the channel that has the money, decided by whether the preimage is
known."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import structs

from channeld.node.interface import ChannelView, DecodedInvoice, HtlcView, NodeError, NodeEvent, NodeInfo, PaymentView
from channeld.node.payment_views import (
    AttemptHop,
    AttemptView,
    InvoiceOrder,
    KeysendOrder,
    PaymentLimits,
    PaymentOrder,
    PaymentUpdate,
    ProbeOrder,
    RebalanceOrder,
)

T = TypeVar("T")
NODE_FAILURE = 0x2002


class FakePayments:
    """A part of `FakeNode`: see there."""

    payments: dict[bytes, PaymentView]
    probes: dict[bytes, PaymentView]
    orders: list[PaymentOrder]
    """What was asked for, in order."""
    preimages: dict[bytes, bytes]
    pay_gate: asyncio.Event
    paying: asyncio.Event
    changed: asyncio.Event
    channels: dict[bytes, ChannelView]
    height: int
    _answers: dict[str, tuple[Any, asyncio.Future[Any]]]

    if TYPE_CHECKING:  # the rest of `FakeNode`

        def emit(self, kind: str, sentence: str, **data: Any) -> NodeEvent: ...
        async def info(self) -> NodeInfo: ...
        async def decode(self, text: str) -> DecodedInvoice: ...
        async def get_channel(self, channel_id: bytes) -> ChannelView: ...
        def _called(self, verb: str) -> None: ...
        def _id(self, what: str) -> bytes: ...
        def _set(self, channel: ChannelView, **changes: Any) -> ChannelView: ...

    async def pay(
        self,
        bolt11: str,
        amount_msat: int | None = None,
        max_fee_msat: int | None = None,
        timeout_seconds: float = 60,
        idempotency_key: str = "",
    ) -> PaymentView:
        limits = PaymentLimits(max_fee_msat, timeout_seconds)
        return await self.send(InvoiceOrder(bolt11, amount_msat, limits), idempotency_key)

    async def send(self, order: PaymentOrder, idempotency_key: str = "") -> PaymentView:
        self._called("pay")
        started, task = await self._start(order, idempotency_key)
        done, _ = await asyncio.wait((task,), timeout=order.limits.timeout_seconds)
        return task.result() if done else self._view(started.payment_hash)

    async def start_payment(self, order: PaymentOrder, idempotency_key: str = "") -> PaymentView:
        self._called("pay")
        started, _ = await self._start(order, idempotency_key)
        return started

    async def track_payment(self, payment_hash: bytes) -> AsyncIterator[PaymentUpdate]:
        if self._view(payment_hash).state == "in_flight":
            yield PaymentUpdate(self._view(payment_hash), None)
        while True:
            view = self._view(payment_hash)
            self.changed.clear()
            yield PaymentUpdate(view, _attempt(view))
            if view.state != "in_flight":
                yield PaymentUpdate(view, None)
                return
            await self.changed.wait()

    async def cancel_payment(self, payment_hash: bytes) -> PaymentView:
        view = self._view(payment_hash)
        if view.state != "in_flight":
            raise NodeError("failed_precondition", f"There is nothing to cancel: the payment {view.state}.")
        return self._put(structs.replace(view, canceled=True))

    async def list_attempts(self, payment_hash: bytes) -> list[AttemptView]:
        return [_attempt(self._view(payment_hash))]

    async def list_payments(self, limit: int = 100, offset: int = 0) -> list[PaymentView]:
        return list(reversed(self.payments.values()))[offset : offset + limit]

    async def get_payment(self, payment_hash: bytes) -> PaymentView:
        return self._view(payment_hash)

    # Inside

    def _view(self, payment_hash: bytes) -> PaymentView:
        payment = self.payments.get(payment_hash) or self.probes.get(payment_hash)
        if payment is None:
            raise NodeError("not_found", f"There is no payment {payment_hash.hex()}.")
        return payment

    def _put(self, view: PaymentView) -> PaymentView:
        (self.probes if view.kind == "probe" else self.payments)[view.payment_hash] = view
        self.changed.set()
        return view

    async def _start(self, order: PaymentOrder, key: str) -> tuple[PaymentView, asyncio.Future[PaymentView]]:
        """The payment as it begins, and its outcome."""
        begun: asyncio.Future[PaymentView] = asyncio.get_running_loop().create_future()

        async def pay() -> PaymentView:
            self.orders.append(order)
            view = await self._new_view(order)
            channel = self._channel_for(view.amount_msat)
            if channel is None:
                raise NodeError("resource_exhausted", f"No channel can send {view.amount_msat:,} msat now.")
            self._put(view)
            begun.set_result(view)
            htlc = HtlcView(0, False, view.amount_msat, view.payment_hash, self.height + 18)
            self._set(channel, htlcs=(htlc,))
            self.paying.set()
            await self.pay_gate.wait()
            return self._decide(self._view(view.payment_hash), channel.channel_id)

        task = self._begin(key, ("pay", order), pay)
        await asyncio.wait((task, begun), return_when=asyncio.FIRST_COMPLETED)
        return (task.result() if task.done() else begun.result()), task

    async def _new_view(self, order: PaymentOrder) -> PaymentView:
        payment_hash, destination, bolt11, amount_msat = hashlib.sha256(self._id("keysend")).digest(), b"", "", 0
        kind: Any = "invoice"
        match order:
            case InvoiceOrder():
                invoice = await self.decode(order.bolt11)
                self._check_payable(invoice, order.amount_msat)
                payment_hash, destination, bolt11 = invoice.payment_hash, invoice.payee, order.bolt11
                amount_msat = order.amount_msat or invoice.amount_msat or 0
            case KeysendOrder():
                kind, destination, amount_msat = "keysend", order.node_id, order.amount_msat
                self.preimages[payment_hash] = bytes(32)
            case RebalanceOrder():
                kind, amount_msat = "rebalance", order.amount_msat
                destination = (await self.info()).node_id
                for channel_id in order.incoming_channel_ids:
                    await self.get_channel(channel_id)
                self.preimages[payment_hash] = bytes(32)
            case ProbeOrder():
                kind, destination, amount_msat = "probe", order.node_id, order.amount_msat or 0
                if order.bolt11:
                    invoice = await self.decode(order.bolt11)
                    destination, amount_msat = invoice.payee, order.amount_msat or invoice.amount_msat or 0
        return PaymentView(
            payment_hash=payment_hash,
            state="in_flight",
            amount_msat=amount_msat,
            fee_msat=0,
            destination=destination,
            bolt11=bolt11,
            created_seconds=int(time.time()),
            ended_seconds=None,
            payment_preimage=None,
            failure="",
            parts=1,
            kind=kind,
            max_fee_msat=order.limits.max_fee_msat or 0,
            arriving_msat=amount_msat,
            attempts=1,
            custom_records=order.custom_records if isinstance(order, KeysendOrder) else (),
        )

    def _check_payable(self, invoice: DecodedInvoice, amount_msat: int | None) -> None:
        if invoice.network != "regtest":
            raise NodeError("invalid_argument", f"The invoice is for {invoice.network}, this node is on regtest.")
        if invoice.expired:
            raise NodeError("failed_precondition", "The invoice has expired; ask for a new one.")
        if invoice.amount_msat is None and amount_msat is None:
            raise NodeError("invalid_argument", "The invoice leaves the amount open; say how much to pay.")
        earlier = self.payments.get(invoice.payment_hash)
        if earlier is not None and earlier.state == "succeeded":
            raise NodeError("already_exists", "This invoice is paid already; nothing was sent again.")

    def _channel_for(self, amount_msat: int) -> ChannelView | None:
        usable = (channel for channel in self.channels.values() if channel.active)
        return next((channel for channel in usable if channel.available_to_send_msat >= amount_msat), None)

    def _decide(self, view: PaymentView, channel_id: bytes) -> PaymentView:
        channel = self.channels[channel_id]
        preimage = self.preimages.get(view.payment_hash)
        now = int(time.time())
        if view.kind == "probe":
            self._set(channel, htlcs=())
            reaches = view.destination != bytes.fromhex("02" + "99" * 32)
            failure = "" if reaches else "no way to the payee was found"
            state: Any = "succeeded" if reaches else "failed"
            return self._put(structs.replace(view, state=state, ended_seconds=now, fee_msat=1_234, failure=failure))
        if preimage is None:
            self._set(channel, htlcs=())
            ended = structs.replace(
                view, state="failed", ended_seconds=now, failure="The payee does not know this payment hash."
            )
        else:
            self._set(
                channel,
                htlcs=(),
                local_msat=channel.local_msat - view.amount_msat,
                remote_msat=channel.remote_msat + view.amount_msat,
                available_to_send_msat=channel.available_to_send_msat - view.amount_msat,
            )
            ended = structs.replace(view, state="succeeded", ended_seconds=now, payment_preimage=preimage)
        self._put(ended)
        self.emit(f"payment.{ended.state}", f"A payment {ended.state}.", payment_hash=view.payment_hash.hex())
        return ended

    def _begin(self, key: str, arguments: Any, verb: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        """The idempotency of money-moving verbs: the same key is the same answer."""
        if key in self._answers:
            earlier, task = self._answers[key]
            if earlier != arguments:
                raise NodeError("aborted", f"The idempotency key {key} was used with other arguments.")
        else:
            task = asyncio.ensure_future(verb())
            if key:
                self._answers[key] = (arguments, task)
        return task


def _attempt(view: PaymentView) -> AttemptView:
    """The only one."""
    states: dict[str, Any] = {"succeeded": "arrived" if view.kind == "probe" else "settled", "failed": "failed"}
    failed = view.state == "failed"
    return AttemptView(
        index=0,
        state=states.get(view.state, "in_flight"),
        amount_msat=view.amount_msat,
        fee_msat=view.fee_msat,
        hops=(
            AttemptHop(bytes.fromhex("03" + "22" * 32), 120 << 40 | 1 << 16, view.amount_msat, view.fee_msat, 200, 300),
            AttemptHop(view.destination, 121 << 40 | 1 << 16, view.amount_msat, 0, 160, None),
        ),
        started_seconds=float(view.created_seconds),
        ended_seconds=float(view.ended_seconds) if view.ended_seconds is not None else None,
        failure=view.failure,
        failure_code=NODE_FAILURE if failed else None,
        failing_hop=0 if failed else None,
        learnt="the node is left alone" if failed else "",
    )
