"""The service `Invoices`."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from channeld.api import convert
from channeld.api.background import Background
from channeld.node.interface import NodeError, NodeService
from channeld.v1 import invoices_pb2, invoices_pb2_grpc


class InvoicesServicer(invoices_pb2_grpc.InvoicesServicer):
    """See proto/channeld/v1/invoices.proto."""

    def __init__(self, node: NodeService, background: Background) -> None:
        self._node = node
        self._background = background

    async def Create(
        self, request: invoices_pb2.CreateInvoiceRequest, context: Any
    ) -> invoices_pb2.CreateInvoiceResponse:
        view = await self._background.run(
            self._node.create_invoice(
                convert.amount_msat(request.amount_msat, "An invoice's amount")
                if request.HasField("amount_msat")
                else None,
                request.description,
                expiry_seconds=_expiry_seconds(request),
                description_hash=convert.optional_hash32(request, "description_hash", "a description hash"),
                payment_preimage=convert.optional_hash32(request, "payment_preimage", "a payment preimage"),
                min_final_cltv_expiry_delta=(
                    request.min_final_cltv_expiry_delta_blocks
                    if request.HasField("min_final_cltv_expiry_delta_blocks")
                    else None
                ),
                idempotency_key=convert.idempotency_key(request.idempotency_key),
                hold=request.hold,
                payment_hash=convert.optional_hash32(request, "payment_hash", "a payment hash"),
            )
        )
        return invoices_pb2.CreateInvoiceResponse(invoice=convert.invoice(view))

    async def List(self, request: invoices_pb2.ListInvoicesRequest, context: Any) -> invoices_pb2.ListInvoicesResponse:
        limit, offset = convert.page(request)
        views = await self._node.list_invoices(limit, offset)
        return invoices_pb2.ListInvoicesResponse(invoices=[convert.invoice(view) for view in views])

    async def Get(self, request: invoices_pb2.GetInvoiceRequest, context: Any) -> invoices_pb2.GetInvoiceResponse:
        view = await self._node.get_invoice(convert.hash32(request.payment_hash, "a payment hash"))
        return invoices_pb2.GetInvoiceResponse(invoice=convert.invoice(view))

    async def Cancel(
        self, request: invoices_pb2.CancelInvoiceRequest, context: Any
    ) -> invoices_pb2.CancelInvoiceResponse:
        payment_hash = convert.hash32(request.payment_hash, "a payment hash")
        view = await self._background.run(self._node.cancel_invoice(payment_hash))
        return invoices_pb2.CancelInvoiceResponse(invoice=convert.invoice(view))

    async def Settle(
        self, request: invoices_pb2.SettleInvoiceRequest, context: Any
    ) -> invoices_pb2.SettleInvoiceResponse:
        preimage = convert.optional_hash32(request, "payment_preimage", "a payment preimage")
        payment_hash = convert.optional_hash32(request, "payment_hash", "a payment hash")
        if preimage is not None and payment_hash is None:
            payment_hash = sha256(preimage).digest()
        elif preimage is not None or payment_hash is None:
            raise NodeError("invalid_argument", "Give the payment preimage or the payment hash, one of the two.")
        view = await self._background.run(self._node.settle_invoice(payment_hash, preimage))
        return invoices_pb2.SettleInvoiceResponse(invoice=convert.invoice(view))


def _expiry_seconds(request: invoices_pb2.CreateInvoiceRequest) -> int:
    if not request.HasField("expiry_seconds"):
        return convert.DEFAULT_INVOICE_EXPIRY_SECONDS
    if not 1 <= request.expiry_seconds < 2**32:
        raise NodeError(
            "invalid_argument",
            f"An invoice must be payable for 1 to 4,294,967,295 seconds, not {request.expiry_seconds:,}.",
        )
    return request.expiry_seconds
