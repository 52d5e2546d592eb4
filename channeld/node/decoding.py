"""Invoices as the operator sees them before paying."""

from __future__ import annotations

from channeld.bolt.features import describe
from channeld.bolt.invoice import InvoiceError, decode_invoice
from channeld.node.interface import DecodedInvoice, NodeError


def decoded_invoice(text: str, now: float) -> DecodedInvoice:
    """What a BOLT 11 invoice says, whatever its network. Raises NodeError."""
    try:
        invoice = decode_invoice(text)
    except InvoiceError as error:
        raise NodeError("invalid_argument", str(error)) from error
    return DecodedInvoice(
        network=invoice.network.name,
        amount_msat=invoice.amount_msat,
        payment_hash=invoice.payment_hash,
        payee=invoice.payee,
        description=invoice.description or "",
        description_hash=invoice.description_hash,
        created_seconds=invoice.timestamp,
        expiry_seconds=invoice.expiry_seconds,
        expired=invoice.is_expired(now),
        min_final_cltv_expiry_delta=invoice.min_final_cltv_expiry_delta,
        fallback_addresses=invoice.fallback_addresses,
        route_hints=tuple(
            tuple(
                {
                    "node_id": hop.pubkey,
                    "short_channel_id": hop.short_channel_id,
                    "fee_base_msat": hop.fee_base_msat,
                    "fee_proportional_millionths": hop.fee_proportional_millionths,
                    "cltv_expiry_delta": hop.cltv_expiry_delta,
                }
                for hop in hint
            )
            for hint in invoice.routing_hints
        ),
        features=describe(invoice.features),
        payment_metadata=invoice.payment_metadata,
    )
