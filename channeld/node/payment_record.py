"""A payment that we make, as stored: one durable object with its parts, and all that it takes to go on after a restart.

What a payment has taught is nowhere but in its parts: see `payment_lessons`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from channeld.node.payment_views import AttemptHop, AttemptView, PaymentKind, PaymentView
from channeld.routing.values import EdgeKey, Policy, Route
from channeld.storage import Write, rows

PAYMENT_ORIGIN = b"P"
HOLD_TIME_UNIT_MS = 100
MAX_PARTS = 16
"""Parts that are out at a time, unless the payer says less."""
MAX_CLTV_BLOCKS = 2000
"""Others take HTLCs of up to 2016 blocks; blocks are found meanwhile."""

PartEnd = Literal["", "refused", "stopped", "never_sent", "on_chain", "malformed", "unreadable", "told"]
"""How a part failed: our own channel refused it; the node stopped before it was offered; it was offered but never
committed to; its channel was closed; the first node could not read the onion; nobody's words came back; a node told."""


class PartRecord(Struct, frozen=True, array_like=True):
    """One HTLC of a payment: `amount_msat` and `cltv_expiry` are the first channel's. `shared_secrets`: what reads the
    error that may come back. Without a `route` it goes to the payee over one channel.

    `failing_hop` counts from 0, the first node after us. `policy`: what the failing node said that its channel asks
    for, by its signature; for this payment alone. `hold_times`: as attributed, in 100 ms, from the first node on.
    `unproven_hop`: the first whose attribution was wrong. `reject_code`: why our own channel refused it.
    """

    channel_key: int
    amount_msat: int
    cltv_expiry: int
    shared_secrets: tuple[bytes, ...]
    state: Literal["in_flight", "settled", "failed", "arrived"] = "in_flight"
    """`arrived`: a probe's part reached its destination, and came back."""
    failure: str = ""
    route: Route | None = None
    end: PartEnd = ""
    failing_hop: int | None = None
    failure_code: int | None = None
    policy: Policy | None = None
    hold_times: tuple[int, ...] = ()
    unproven_hop: int | None = None
    reject_code: str = ""
    started_seconds: float = 0.0
    ended_seconds: float | None = None

    @property
    def delivered_msat(self) -> int:
        """What arrives."""
        return self.amount_msat if self.route is None else self.route.amount_msat

    @property
    def last_hop(self) -> int:
        """The payee's place in the route, counted as `failing_hop` is."""
        return 0 if self.route is None else len(self.route.hops) - 1

    @property
    def failing_key(self) -> EdgeKey | None:
        """The channel that the failing node could not or would not use; None for the payee, or if nobody is known."""
        if self.route is None or self.failing_hop is None or self.failing_hop >= self.last_hop:
            return None
        return self.route.hops[self.failing_hop + 1].key


class PaymentRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A payment as stored.

    `deadline_seconds`: Unix time from which on nothing new is tried. `outgoing_keys`: the first channel is one of these
    (`channel_key`); `incoming_keys` and `last_hops`: the last channel, and its sender (`incoming_key`: of rows that
    earlier versions stored). `own_preimage`: a keysend's. `payment_secret`: a probe's, which no invoice has.
    `given_up`: why the invoice of a payment to ourselves was withdrawn while parts were out.
    """

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
    kind: PaymentKind = "invoice"
    max_fee_msat: int = 0
    deadline_seconds: float = 0.0
    final_delta_blocks: int = 18
    max_cltv_blocks: int = MAX_CLTV_BLOCKS
    max_parts: int = MAX_PARTS
    outgoing_keys: tuple[int, ...] = ()
    last_hops: tuple[bytes, ...] = ()
    incoming_key: int | None = None
    own_preimage: bytes | None = None
    payment_secret: bytes | None = None
    custom_records: tuple[tuple[int, bytes], ...] = ()
    canceled: bool = False
    incoming_keys: tuple[int, ...] = ()
    given_up: str = ""

    @property
    def back_over(self) -> tuple[int, ...]:
        """The channels that a payment to ourselves may come back over (`channel_key`)."""
        return self.incoming_keys or (() if self.incoming_key is None else (self.incoming_key,))

    @property
    def good_parts(self) -> list[PartRecord]:
        """Those that are under way or arrived."""
        return [part for part in self.parts if part.state != "failed"]

    @property
    def missing_msat(self) -> int:
        """What no part carries."""
        return self.amount_msat - self.arriving_msat

    @property
    def arriving_msat(self) -> int:
        """What the good parts carry to the payee."""
        return sum(part.delivered_msat for part in self.good_parts)

    @property
    def fee_msat(self) -> int:
        """What the good parts cost besides."""
        return sum(part.amount_msat - part.delivered_msat for part in self.good_parts)

    @property
    def is_over(self) -> bool:
        """No HTLC of it is out."""
        return all(part.state != "in_flight" for part in self.parts)

    @property
    def is_probe(self) -> bool:
        """Nobody can settle it."""
        return self.kind == "probe"

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
            kind=self.kind,
            max_fee_msat=self.max_fee_msat,
            arriving_msat=self.arriving_msat,
            attempts=len(self.parts),
            canceled=self.canceled,
            deadline_seconds=self.deadline_seconds,
            custom_records=self.custom_records,
        )


_encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(PaymentRecord).decode
PROBE_STATE = "probe"
"""What the column `state` says of a probe: it is no payment, and is kept only while its HTLCs are out."""


def save(record: PaymentRecord) -> Write:
    """The record's row; none is left of a probe that is over."""
    if record.is_probe:
        if record.state != "in_flight" and record.is_over:
            return rows.FORGET_PAYMENT(record.payment_id)
        return rows.SAVE_PAYMENT(record.payment_id, record.payment_hash, None, PROBE_STATE, _encode(record))
    live_hash = None if record.state == "failed" else record.payment_hash
    return rows.SAVE_PAYMENT(record.payment_id, record.payment_hash, live_hash, record.state, _encode(record))


def origin_of(payment_id: int, index: int) -> bytes:
    """What the HTLC of a part is known by in its channel."""
    return PAYMENT_ORIGIN + payment_id.to_bytes(8, "big") + bytes((index,))


def part_of(origin: bytes) -> tuple[int, int]:
    """(payment_id, index) of an origin."""
    return int.from_bytes(origin[1:9], "big"), origin[9]


def attempt_view(record: PaymentRecord, index: int) -> AttemptView:
    """One part, as the API shows it."""
    from channeld.node.payment_lessons import learnt_from

    part = record.parts[index]
    return AttemptView(
        index=index,
        state=part.state,
        amount_msat=part.delivered_msat,
        fee_msat=part.amount_msat - part.delivered_msat,
        hops=tuple(_hops(record, part)),
        started_seconds=part.started_seconds,
        ended_seconds=part.ended_seconds,
        failure=part.failure,
        failure_code=part.failure_code,
        failing_hop=part.failing_hop,
        learnt=learnt_from(part),
    )


def _hops(record: PaymentRecord, part: PartRecord) -> list[AttemptHop]:
    held = [units * HOLD_TIME_UNIT_MS for units in part.hold_times]
    if part.route is None:
        hold = held[0] if held else None
        return [AttemptHop(record.destination, None, part.amount_msat, 0, part.cltv_expiry, hold)]
    return [
        AttemptHop(
            hop.node_id,
            hop.short_channel_id,
            hop.amount_msat,
            hop.fee_msat,
            hop.cltv_expiry,
            held[place] if place < len(held) else None,
        )
        for place, hop in enumerate(part.route.hops)
    ]
