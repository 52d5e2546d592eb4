"""An invoice as it is stored: what was asked for, what came, and by which HTLCs.

A payment that nobody asked for (keysend) has a record too, settled from the start.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from channeld.node.circuits import HtlcKey
from channeld.node.interface import InvoiceView
from channeld.storage import Write, rows, tables

InvoiceKind = Literal["bolt11", "keysend", "blinded"]
"""How it is asked for: by an invoice with a `payment_secret`, not at all, or over blinded paths whose `path_id` is that
secret."""


class InvoiceRecord(Struct, frozen=True, kw_only=True):
    """`htlcs` are those that wait for `settle` (accepted), or that settled it.

    `payment_preimage` is None while only the owner of a hold invoice knows it. `deadline_height`: once accepted, the
    height at which the first of its HTLCs expires.
    """

    payment_hash: bytes
    payment_preimage: bytes | None
    payment_secret: bytes
    bolt11: str
    description: str
    amount_msat: int | None
    created_seconds: int
    expiry_seconds: int
    min_final_cltv_expiry_delta_blocks: int
    state: Literal["open", "accepted", "settled", "canceled"] = "open"
    received_msat: int = 0
    settled_seconds: int | None = None
    htlcs: tuple[HtlcKey, ...] = ()
    hold: bool = False
    kind: InvoiceKind = "bolt11"
    custom_records: tuple[tuple[int, bytes], ...] = ()
    accepted_ms: int | None = None
    """When the last of the HTLCs of a hold invoice came, Unix time in milliseconds."""
    deadline_height: int | None = None

    def is_expired(self, now: float) -> bool:
        """Open, but too old to be paid."""
        return self.state == "open" and now > self.created_seconds + self.expiry_seconds

    def view(self, now: float) -> InvoiceView:
        """What the API shows. The preimage is shown to nobody before the money is ours."""
        return InvoiceView(
            payment_hash=self.payment_hash,
            bolt11=self.bolt11,
            state="expired" if self.is_expired(now) else self.state,
            amount_msat=self.amount_msat,
            received_msat=self.received_msat,
            description=self.description,
            created_seconds=self.created_seconds,
            expiry_seconds=self.expiry_seconds,
            settled_seconds=self.settled_seconds,
            payment_preimage=self.payment_preimage if self.state == "settled" else None,
            is_hold=self.hold,
            kind=self.kind,
            custom_records=self.custom_records,
            deadline_height=self.deadline_height if self.state == "accepted" else None,
        )


_encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(InvoiceRecord).decode


def save(record: InvoiceRecord) -> Write:
    """The record's row."""
    return rows.SAVE_INVOICE(record.payment_hash, record.created_seconds, record.state, _encode(record))


def find(connection: Connection, payment_hash: bytes) -> InvoiceRecord | None:
    """The stored record of a payment hash."""
    table = tables.invoices
    found = connection.execute(select(table.c.record).where(table.c.payment_hash == payment_hash)).scalar()
    return None if found is None else decode(found)
