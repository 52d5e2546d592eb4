"""Payments as the API sees them: what may be asked for, and what is told of it. See `interface` for the conventions."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

PaymentKind = Literal["invoice", "keysend", "rebalance", "probe"]


class PaymentView(Struct, frozen=True):
    """A payment, or a probe: that is no payment, and `succeeded` says that one would arrive."""

    payment_hash: bytes
    state: Literal["in_flight", "succeeded", "failed"]
    amount_msat: int
    fee_msat: int
    destination: bytes
    bolt11: str
    created_seconds: int
    ended_seconds: int | None
    payment_preimage: bytes | None
    failure: str
    """A sentence, when failed."""
    parts: int
    kind: PaymentKind = "invoice"
    max_fee_msat: int = 0
    arriving_msat: int = 0
    """What is under way or arrived."""
    attempts: int = 0
    """Parts that were tried, failed ones included."""
    canceled: bool = False
    """Nothing more is tried; what is out is awaited."""
    deadline_seconds: float = 0.0
    """Unix time from which on nothing new is tried."""
    custom_records: tuple[tuple[int, bytes], ...] = ()
    """Type and value, in a keysend."""


class AttemptHop(Struct, frozen=True):
    """A channel of an attempt and the node at its end. `short_channel_id` is None for our channel with the payee."""

    node_id: bytes
    short_channel_id: int | None
    amount_msat: int
    """Of the HTLC on this channel."""
    fee_msat: int
    """What `node_id` keeps."""
    cltv_expiry: int
    hold_time_ms: int | None
    """How long `node_id` says that it held the HTLC (a multiple of 100)."""


class AttemptView(Struct, frozen=True):
    """One part of a payment on one way."""

    index: int
    state: Literal["in_flight", "settled", "failed", "arrived"]
    """`arrived`: a probe reached its destination, and came back."""
    amount_msat: int
    """What arrives."""
    fee_msat: int
    hops: tuple[AttemptHop, ...]
    started_seconds: float
    ended_seconds: float | None
    failure: str
    failure_code: int | None
    """BOLT 4, "Failure Messages"."""
    failing_hop: int | None
    """The hop whose node said so, counted from 0."""
    learnt: str
    """What the payment does differently now, as a sentence."""


class PaymentUpdate(Struct, frozen=True):
    """Something happened: to `attempt`, or (None) to the payment as a whole."""

    payment: PaymentView
    attempt: AttemptView | None


class PaymentLimits(Struct, frozen=True):
    """What a payment may cost and where it may go; None and empty: whatever is sensible.

    `timeout_seconds`: so long new ways are tried, also after a restart. `max_cltv_blocks`: from now to the expiry of
    the first HTLC. `max_parts`: HTLCs at a time. `outgoing_channel_ids`: the first channel is one of these.
    `last_hops`: the last node before the payee is one of these.
    """

    max_fee_msat: int | None = None
    timeout_seconds: float = 60.0
    max_cltv_blocks: int | None = None
    max_parts: int | None = None
    outgoing_channel_ids: tuple[bytes, ...] = ()
    last_hops: tuple[bytes, ...] = ()


class InvoiceOrder(Struct, frozen=True):
    """Pay an invoice. `amount_msat`: where it leaves that open."""

    bolt11: str
    amount_msat: int | None = None
    limits: PaymentLimits = PaymentLimits()


class KeysendOrder(Struct, frozen=True):
    """Pay a node that did not ask for it. `custom_records`: types from 65536 on, and their values."""

    node_id: bytes
    amount_msat: int
    custom_records: tuple[tuple[int, bytes], ...] = ()
    limits: PaymentLimits = PaymentLimits()


class RebalanceOrder(Struct, frozen=True):
    """Pay ourselves: each part leaves by one of `outgoing_channel_ids`, and comes back over one of
    `incoming_channel_ids`; no channel is among both."""

    amount_msat: int
    outgoing_channel_ids: tuple[bytes, ...]
    incoming_channel_ids: tuple[bytes, ...]
    limits: PaymentLimits = PaymentLimits()


class ProbeOrder(Struct, frozen=True):
    """Find out whether a payment would arrive, and what it would cost, without paying: to a node, or (`bolt11`) to
    who made an invoice."""

    node_id: bytes = b""
    bolt11: str = ""
    amount_msat: int | None = None
    limits: PaymentLimits = PaymentLimits()


PaymentOrder = InvoiceOrder | KeysendOrder | RebalanceOrder | ProbeOrder
