"""What `FakeNode` takes for invoices: fields as JSON, in letters that look like BOLT 11."""

from __future__ import annotations

import base64
import json
import time

from channeld.node.interface import DecodedInvoice, NodeError

PEER_ID = bytes.fromhex("03" + "22" * 32)
_PREFIX = "lnbcrt1fake"


def make_bolt11(
    amount_msat: int | None,
    description: str,
    payment_hash: bytes,
    *,
    payee: bytes = PEER_ID,
    network: str = "regtest",
    expiry_seconds: int = 3600,
    created_seconds: int | None = None,
) -> str:
    """What this fake takes for an invoice."""
    fields = {
        "amount_msat": amount_msat,
        "description": description,
        "payment_hash": payment_hash.hex(),
        "payee": payee.hex(),
        "network": network,
        "expiry_seconds": expiry_seconds,
        "created_seconds": int(time.time()) if created_seconds is None else created_seconds,
    }
    return _PREFIX + base64.b32encode(json.dumps(fields).encode()).decode().rstrip("=").lower()


def decode_bolt11(text: str) -> DecodedInvoice:
    """The reverse."""
    try:
        encoded = text.lower().removeprefix(_PREFIX).upper()
        fields = json.loads(base64.b32decode(encoded + "=" * (-len(encoded) % 8)))
        if not isinstance(fields, dict) or "payment_hash" not in fields:
            raise ValueError("no fields")
    except ValueError:
        raise NodeError("invalid_argument", "This is no invoice: the checksum is wrong.") from None
    return DecodedInvoice(
        network=fields["network"],
        amount_msat=fields["amount_msat"],
        payment_hash=bytes.fromhex(fields["payment_hash"]),
        payee=bytes.fromhex(fields["payee"]),
        description=fields["description"],
        description_hash=None,
        created_seconds=fields["created_seconds"],
        expiry_seconds=fields["expiry_seconds"],
        expired=fields["created_seconds"] + fields["expiry_seconds"] < time.time(),
        min_final_cltv_expiry_delta=18,
        fallback_addresses=(),
        route_hints=(
            (
                {
                    "node_id": PEER_ID,
                    "short_channel_id": 103 << 40 | 1 << 16,
                    "fee_base_msat": 1000,
                    "fee_proportional_millionths": 100,
                    "cltv_expiry_delta": 80,
                },
            ),
        ),
        features=("payment_secret", "basic_mpp"),
        payment_metadata=None,
    )
