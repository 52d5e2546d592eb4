"""The service `Payments`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from channeld.api import convert
from channeld.api import payment_convert as pay
from channeld.api.background import Background
from channeld.api.errors import to_status
from channeld.api.streams import until_set
from channeld.node.interface import NodeService
from channeld.node.payment_views import PaymentOrder
from channeld.v1 import payments_pb2, payments_pb2_grpc

MAX_STREAMED_UNANSWERED = 1000
PROBE_REST_SECONDS = 30.0
"""A probe's HTLCs are awaited so much longer than new ways are tried."""


class PaymentsServicer(payments_pb2_grpc.PaymentsServicer):
    """See proto/channeld/v1/payments.proto. `stopping` is set when the streams are to end."""

    def __init__(self, node: NodeService, background: Background, stopping: asyncio.Event) -> None:
        self._node = node
        self._stopping = stopping
        self._background = background

    async def Decode(self, request: payments_pb2.DecodeRequest, context: Any) -> payments_pb2.DecodeResponse:
        return convert.decoded_invoice(await self._node.decode(pay.without_scheme(request.invoice)))

    async def Pay(self, request: payments_pb2.PayRequest, context: Any) -> payments_pb2.PayResponse:
        return payments_pb2.PayResponse(payment=await self._background.run(self._pay(request)))

    async def PayStream(
        self, request_iterator: AsyncIterator[payments_pb2.PayStreamRequest], context: Any
    ) -> AsyncIterator[payments_pb2.PayStreamResponse]:
        answers: asyncio.Queue[payments_pb2.PayStreamResponse | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_STREAMED_UNANSWERED)

        async def read() -> int:
            count = 0
            try:
                async for request in request_iterator:
                    await room.acquire()
                    self._background.start(self._answer(request, answers))
                    count += 1
            finally:
                answers.put_nowait(None)
            return count

        reader = asyncio.create_task(read())
        try:
            asked: int | None = None
            answered = 0
            while asked is None or answered < asked:
                answer = await answers.get()
                if answer is None:
                    asked = await reader
                    continue
                yield answer
                answered += 1
                room.release()
        finally:
            reader.cancel()

    async def Keysend(self, request: payments_pb2.KeysendRequest, context: Any) -> payments_pb2.KeysendResponse:
        order, key = pay.keysend_order(request), convert.idempotency_key(request.idempotency_key)
        return payments_pb2.KeysendResponse(payment=await self._background.run(self._send(order, key)))

    async def Rebalance(self, request: payments_pb2.RebalanceRequest, context: Any) -> payments_pb2.RebalanceResponse:
        order, key = pay.rebalance_order(request), convert.idempotency_key(request.idempotency_key)
        return payments_pb2.RebalanceResponse(payment=await self._background.run(self._send(order, key)))

    async def Probe(self, request: payments_pb2.ProbeRequest, context: Any) -> payments_pb2.ProbeResponse:
        order = pay.probe_order(request)
        started = await self._background.run(self._node.start_payment(order))
        answer = payments_pb2.ProbeResponse()
        attempts: dict[int, payments_pb2.Attempt] = {}
        with contextlib.suppress(TimeoutError):  # then it is still in flight
            async with asyncio.timeout(order.limits.timeout_seconds + PROBE_REST_SECONDS):
                async for update in self._node.track_payment(started.payment_hash):
                    answer.probe.CopyFrom(pay.payment(update.payment))
                    if update.attempt is not None:
                        attempts[update.attempt.index] = pay.attempt(update.attempt)
        answer.attempts.extend(attempts[index] for index in sorted(attempts))
        return answer

    async def Send(
        self, request: payments_pb2.SendPaymentRequest, context: Any
    ) -> AsyncIterator[payments_pb2.PaymentUpdate]:
        order, key = pay.order(request)
        started = await self._background.run(self._node.start_payment(order, key))
        async for update in self._updates(started.payment_hash):
            yield update

    async def Track(
        self, request: payments_pb2.TrackPaymentRequest, context: Any
    ) -> AsyncIterator[payments_pb2.PaymentUpdate]:
        async for update in self._updates(convert.hash32(request.payment_hash, "a payment hash")):
            yield update

    async def Cancel(
        self, request: payments_pb2.CancelPaymentRequest, context: Any
    ) -> payments_pb2.CancelPaymentResponse:
        payment_hash = convert.hash32(request.payment_hash, "a payment hash")
        view = await self._background.run(self._node.cancel_payment(payment_hash))
        return payments_pb2.CancelPaymentResponse(payment=pay.payment(view))

    async def List(self, request: payments_pb2.ListPaymentsRequest, context: Any) -> payments_pb2.ListPaymentsResponse:
        limit, offset = convert.page(request)
        views = await self._node.list_payments(limit, offset)
        return payments_pb2.ListPaymentsResponse(payments=[pay.payment(view) for view in views])

    async def Get(self, request: payments_pb2.GetPaymentRequest, context: Any) -> payments_pb2.GetPaymentResponse:
        payment_hash = convert.hash32(request.payment_hash, "a payment hash")
        view = await self._node.get_payment(payment_hash)
        attempts = await self._node.list_attempts(payment_hash)
        return payments_pb2.GetPaymentResponse(
            payment=pay.payment(view), attempts=[pay.attempt(attempt) for attempt in attempts]
        )

    async def _pay(self, request: payments_pb2.PayRequest) -> payments_pb2.Payment:
        return await self._send(pay.invoice_order(request), convert.idempotency_key(request.idempotency_key))

    async def _send(self, order: PaymentOrder, key: str) -> payments_pb2.Payment:
        return pay.payment(await self._node.send(order, key))

    async def _updates(self, payment_hash: bytes) -> AsyncIterator[payments_pb2.PaymentUpdate]:
        """Until the payment's end, or the daemon's."""
        updates = self._node.track_payment(payment_hash)
        async for update in until_set(updates, self._stopping):
            yield pay.update(update)

    async def _answer(
        self, request: payments_pb2.PayStreamRequest, answers: asyncio.Queue[payments_pb2.PayStreamResponse | None]
    ) -> None:
        """Never raises: each request of a stream gets an answer of its own."""
        try:
            answer = payments_pb2.PayStreamResponse(request_id=request.request_id, payment=await self._pay(request.pay))
        except Exception as error:
            code, sentence, _ = to_status(error, "PayStream")
            number: int = code.value[0]
            answer = payments_pb2.PayStreamResponse(
                request_id=request.request_id, error=payments_pb2.PayError(code=number, sentence=sentence)
            )
        answers.put_nowait(answer)
