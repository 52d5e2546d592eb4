"""Payments between the node's values and the API's messages: see `convert`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from channeld.api import convert
from channeld.node import payment_views as views
from channeld.node.interface import NodeError
from channeld.v1 import invoices_pb2, payments_pb2

DEFAULT_TIMEOUT_SECONDS = 60.0

_STATES = {
    "in_flight": payments_pb2.PAYMENT_STATE_IN_FLIGHT,
    "succeeded": payments_pb2.PAYMENT_STATE_SUCCEEDED,
    "failed": payments_pb2.PAYMENT_STATE_FAILED,
}
_KINDS = {
    "invoice": payments_pb2.PAYMENT_KIND_INVOICE,
    "keysend": payments_pb2.PAYMENT_KIND_KEYSEND,
    "rebalance": payments_pb2.PAYMENT_KIND_REBALANCE,
    "probe": payments_pb2.PAYMENT_KIND_PROBE,
}
_ATTEMPTS = {
    "in_flight": payments_pb2.ATTEMPT_STATE_IN_FLIGHT,
    "settled": payments_pb2.ATTEMPT_STATE_SETTLED,
    "failed": payments_pb2.ATTEMPT_STATE_FAILED,
    "arrived": payments_pb2.ATTEMPT_STATE_ARRIVED,
}


def payment(view: views.PaymentView) -> payments_pb2.Payment:
    return payments_pb2.Payment(
        payment_hash=view.payment_hash,
        state=_STATES[view.state],
        amount_msat=view.amount_msat,
        fee_msat=view.fee_msat,
        destination=view.destination,
        bolt11=view.bolt11,
        created_seconds=view.created_seconds,
        ended_seconds=view.ended_seconds,
        payment_preimage=view.payment_preimage,
        failure=view.failure,
        parts=view.parts,
        kind=_KINDS[view.kind],
        max_fee_msat=view.max_fee_msat,
        arriving_msat=view.arriving_msat,
        attempts=view.attempts,
        canceled=view.canceled,
        deadline_seconds=view.deadline_seconds,
        custom_records=[invoices_pb2.CustomRecord(type=number, value=value) for number, value in view.custom_records],
    )


def attempt(view: views.AttemptView) -> payments_pb2.Attempt:
    return payments_pb2.Attempt(
        index=view.index,
        state=_ATTEMPTS[view.state],
        amount_msat=view.amount_msat,
        fee_msat=view.fee_msat,
        hops=[_hop(hop) for hop in view.hops],
        started_seconds=view.started_seconds,
        ended_seconds=view.ended_seconds,
        failure=view.failure,
        failure_code=view.failure_code,
        failing_hop=view.failing_hop,
        learnt=view.learnt,
    )


def _hop(view: views.AttemptHop) -> payments_pb2.AttemptHop:
    return payments_pb2.AttemptHop(
        node_id=view.node_id,
        short_channel_id=view.short_channel_id,
        amount_msat=view.amount_msat,
        fee_msat=view.fee_msat,
        cltv_expiry=view.cltv_expiry,
        hold_time_ms=view.hold_time_ms,
    )


def update(value: views.PaymentUpdate) -> payments_pb2.PaymentUpdate:
    return payments_pb2.PaymentUpdate(
        payment=payment(value.payment), attempt=None if value.attempt is None else attempt(value.attempt)
    )


# What requests hold


def order(request: payments_pb2.SendPaymentRequest) -> tuple[views.PaymentOrder, str]:
    """Whatever is asked for, and its idempotency key."""
    match request.WhichOneof("order"):
        case "pay":
            return invoice_order(request.pay), convert.idempotency_key(request.pay.idempotency_key)
        case "keysend":
            return keysend_order(request.keysend), convert.idempotency_key(request.keysend.idempotency_key)
        case "rebalance":
            return rebalance_order(request.rebalance), convert.idempotency_key(request.rebalance.idempotency_key)
        case "probe":
            return probe_order(request.probe), ""
        case _:
            raise NodeError("invalid_argument", "Say what to pay: an invoice, a node or a channel.")


def invoice_order(request: payments_pb2.PayRequest) -> views.InvoiceOrder:
    return views.InvoiceOrder(without_scheme(request.bolt11), _optional_amount(request), _limits(request))


def keysend_order(request: payments_pb2.KeysendRequest) -> views.KeysendOrder:
    records = tuple((record.type, record.value) for record in request.custom_records)
    amount_msat = convert.amount_msat(request.amount_msat, "The amount")
    return views.KeysendOrder(convert.node_id(request.node_id), amount_msat, records, _limits(request))


def rebalance_order(request: payments_pb2.RebalanceRequest) -> views.RebalanceOrder:
    return views.RebalanceOrder(
        convert.amount_msat(request.amount_msat, "The amount"),
        _channel_ids(request.outgoing_channel_ids),
        _channel_ids(request.incoming_channel_ids),
        _limits(request),
    )


def probe_order(request: payments_pb2.ProbeRequest) -> views.ProbeOrder:
    if bool(request.node_id) is bool(request.bolt11):
        raise NodeError("invalid_argument", "Name a node or an invoice to probe for, one of the two.")
    return views.ProbeOrder(
        convert.node_id(request.node_id) if request.node_id else b"",
        without_scheme(request.bolt11) if request.bolt11 else "",
        _optional_amount(request),
        _limits(request),
    )


def _optional_amount(request: Any) -> int | None:
    return convert.amount_msat(request.amount_msat, "The amount") if request.HasField("amount_msat") else None


def _channel_ids(channel_ids: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(convert.hash32(channel_id, "a channel id") for channel_id in channel_ids)


def _limits(request: Any) -> views.PaymentLimits:
    """The limits that a request has fields for."""
    names = request.DESCRIPTOR.fields_by_name
    timeout = request.timeout_seconds if request.HasField("timeout_seconds") else DEFAULT_TIMEOUT_SECONDS
    is_way_limit = "outgoing_channel_ids" in names and "last_hops" in names
    last_hops = request.last_hops if "last_hops" in names else ()
    return views.PaymentLimits(
        max_fee_msat=request.max_fee_msat if request.HasField("max_fee_msat") else None,
        timeout_seconds=convert.seconds(timeout, "The time to wait"),
        max_cltv_blocks=request.max_cltv_blocks if request.HasField("max_cltv_blocks") else None,
        max_parts=request.max_parts if "max_parts" in names and request.HasField("max_parts") else None,
        outgoing_channel_ids=_channel_ids(request.outgoing_channel_ids) if is_way_limit else (),
        last_hops=tuple(convert.node_id(node_id) for node_id in last_hops),
    )


def without_scheme(text: str) -> str:
    """`text` as it stands in a QR code, a link or a mail, without what is no part of the invoice: spaces, line breaks,
    `lightning:` (BOLT 11), or the rest of a `bitcoin:` address with `lightning=` in it (BIP 21). Raises NodeError."""
    text = "".join(text.split())
    scheme, colon, rest = text.partition(":")
    if colon and scheme.lower() == "lightning":
        text = rest.removeprefix("//")
    elif colon and scheme.lower() == "bitcoin":
        parameters = (pair.partition("=") for pair in rest.partition("?")[2].split("&"))
        text = next((value for name, _, value in parameters if name.lower() == "lightning"), "")
        if not text:
            raise NodeError(
                "invalid_argument", "That is an address on chain, without an invoice: `wallet send` pays it."
            )
    if not text:
        raise NodeError("invalid_argument", "The invoice is missing.")
    return text
