"""The service `Payments`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from channeld.api import convert
from channeld.api.background import Background
from channeld.api.errors import to_status
from channeld.node.interface import NodeError, NodeService
from channeld.v1 import payments_pb2, payments_pb2_grpc

MAX_STREAMED_UNANSWERED = 1000
DEFAULT_TIMEOUT_SECONDS = 60.0


class PaymentsServicer(payments_pb2_grpc.PaymentsServicer):
    """See proto/channeld/v1/payments.proto."""

    def __init__(self, node: NodeService, background: Background) -> None:
        self._node = node
        self._background = background

    async def Decode(self, request: payments_pb2.DecodeRequest, context: Any) -> payments_pb2.DecodeResponse:
        return convert.decoded_invoice(await self._node.decode(_without_scheme(request.invoice)))

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

    async def List(self, request: payments_pb2.ListPaymentsRequest, context: Any) -> payments_pb2.ListPaymentsResponse:
        limit, offset = convert.page(request)
        views = await self._node.list_payments(limit, offset)
        return payments_pb2.ListPaymentsResponse(payments=[convert.payment(view) for view in views])

    async def Get(self, request: payments_pb2.GetPaymentRequest, context: Any) -> payments_pb2.GetPaymentResponse:
        view = await self._node.get_payment(convert.hash32(request.payment_hash, "a payment hash"))
        return payments_pb2.GetPaymentResponse(payment=convert.payment(view))

    async def _pay(self, request: payments_pb2.PayRequest) -> payments_pb2.Payment:
        timeout_seconds = request.timeout_seconds if request.HasField("timeout_seconds") else DEFAULT_TIMEOUT_SECONDS
        view = await self._node.pay(
            _without_scheme(request.bolt11),
            convert.amount_msat(request.amount_msat, "The amount") if request.HasField("amount_msat") else None,
            request.max_fee_msat if request.HasField("max_fee_msat") else None,
            convert.seconds(timeout_seconds, "The time to wait"),
            convert.idempotency_key(request.idempotency_key),
        )
        return convert.payment(view)

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


def _without_scheme(text: str) -> str:
    """`text` as it stands in a QR code or a link, without what is no part of the invoice (BOLT 11, "lightning:")."""
    text = text.strip()
    if text[:10].lower() == "lightning:":
        text = text[10:].removeprefix("//")
    if not text:
        raise NodeError("invalid_argument", "The invoice is missing.")
    return text
