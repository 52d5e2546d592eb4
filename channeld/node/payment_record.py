"""A payment that we make, as stored: one durable object with its parts."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from channeld.node.interface import PaymentView
from channeld.routing.values import Route
from channeld.storage import Write, rows


class PartRecord(Struct, frozen=True, array_like=True):
    """One HTLC of a payment: `amount_msat` and `cltv_expiry` are the first channel's. `shared_secrets`: what reads the
    error that may come back. Without a `route` it goes to the payee over one channel."""

    channel_key: int
    amount_msat: int
    cltv_expiry: int
    shared_secrets: tuple[bytes, ...]
    state: Literal["in_flight", "settled", "failed"] = "in_flight"
    failure: str = ""
    route: Route | None = None

    @property
    def delivered_msat(self) -> int:
        """What arrives."""
        return self.amount_msat if self.route is None else self.route.amount_msat


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

    @property
    def good_parts(self) -> list[PartRecord]:
        """Those that are under way or arrived."""
        return [part for part in self.parts if part.state != "failed"]

    @property
    def missing_msat(self) -> int:
        """What no part carries."""
        return self.amount_msat - sum(part.delivered_msat for part in self.good_parts)

    @property
    def fee_msat(self) -> int:
        """What the good parts cost besides."""
        return sum(part.amount_msat - part.delivered_msat for part in self.good_parts)

    @property
    def is_over(self) -> bool:
        """No HTLC of it is out."""
        return all(part.state != "in_flight" for part in self.parts)

    def view(self) -> PaymentView:
        """What the API shows."""
        return PaymentView(
            payment_hash=self.payment_hash,
            state=self.state,
            amount_msat=self.amount_msat,
            fee_msat=self.fee_msat if self.state != "failed" else 0,
            destination=self.destination,
            bolt11=self.bolt11,
            created_seconds=self.created_seconds,
            ended_seconds=self.ended_seconds,
            payment_preimage=self.payment_preimage,
            failure=self.failure,
            parts=len(self.good_parts) or len(self.parts),
        )


_encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(PaymentRecord).decode


def save(record: PaymentRecord) -> Write:
    """The record's row."""
    live_hash = None if record.state == "failed" else record.payment_hash
    return rows.SAVE_PAYMENT(record.payment_id, record.payment_hash, live_hash, record.state, _encode(record))
