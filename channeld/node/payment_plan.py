"""How a payment's next parts go: straight to the payee over our channels with it, else along what the router finds; and
what each part's onion says.

Amounts in msat, expiries in block heights. Source: BOLT 4, "`payload` format".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from channeld.bolt.features import Feature
from channeld.bolt.invoice import Invoice, RoutingHop
from channeld.bolt.onion.payment import (
    PaymentPayload,
    build_payment_onion,
    final_payload,
    forward_payload,
    keysend_payload,
)
from channeld.channel import events as ev
from channeld.node.interface import NodeError
from channeld.node.payment_lessons import Lessons, lessons_of
from channeld.node.payment_record import PartRecord, PaymentRecord
from channeld.node.router import Planned, Router, Wish
from channeld.routing.values import NoRoute, Route

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

MOST_PARTS = 128
"""Parts that one payment may have, failed ones included."""


class Planner:
    """Plans parts and builds them. `invoice` is that of the record, None for a keysend or a node that is probed.
    `knows_height`: layer 1 was caught up with since the start; before, nobody can say when an HTLC should expire."""

    def __init__(
        self,
        node_id: bytes,
        channels: Channels,
        router: Router,
        height: Callable[[], int],
        knows_height: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        self._node_id = node_id
        self._channels = channels
        self._router = router
        self._height = height
        self._knows_height = knows_height
        self._now = now

    async def plan(self, record: PaymentRecord, invoice: Invoice | None) -> list[Planned]:
        """Parts for what is missing. Raises NodeError if there is no way."""
        if not self._knows_height():
            raise NodeError("unavailable", "this node is catching up with layer 1: try again in a while")
        lessons = lessons_of(record)
        hints = self._hints(invoice)
        try:
            return self._direct(record, invoice, lessons, self._router.knows_ways(hints))
        except _NotDirectly as direct:
            found = await self._router.find(self._wish(record, invoice, lessons, hints))
            if not isinstance(found, NoRoute):
                return found
            if direct.whole is not None:
                return direct.whole
            if direct.error is not None and self._channels.of_peer(record.destination):
                raise direct.error from None
            raise NodeError("failed_precondition", f"no way to the payee was found: {found.reason}") from None

    def room(self, record: PaymentRecord) -> int:
        """How many more parts may go out now."""
        under_way = sum(part.state == "in_flight" for part in record.parts)
        return min(record.max_parts - under_way, MOST_PARTS - len(record.parts))

    def _hints(self, invoice: Invoice | None) -> list[tuple[RoutingHop, ...]]:
        """Hints that do not begin at this very node: our own channels we know better."""
        if invoice is None or invoice.payee == self._node_id:
            return []
        return [hint for hint in invoice.routing_hints if hint and hint[0].pubkey != self._node_id]

    def _wish(
        self,
        record: PaymentRecord,
        invoice: Invoice | None,
        lessons: Lessons,
        hints: Sequence[tuple[RoutingHop, ...]],
    ) -> Wish:
        incoming = tuple(driver for key in record.back_over if (driver := self._channels.by_key(key)) is not None)
        if record.back_over and not incoming:
            raise NodeError("failed_precondition", "the channel that it should come back over is closed")
        return Wish(
            destination=record.destination,
            amount_msat=record.missing_msat,
            max_fee_msat=record.max_fee_msat - record.fee_msat,
            final_delta_blocks=record.final_delta_blocks,
            max_cltv_blocks=record.max_cltv_blocks,
            max_parts=self.room(record) if self._splits(record, invoice) else 1,
            hints=hints,
            parts=record.good_parts,
            lessons=lessons,
            outgoing_keys=record.outgoing_keys,
            last_hops=record.last_hops,
            incoming=incoming,
            payment_hash=record.payment_hash,
        )

    def _splits(self, record: PaymentRecord, invoice: Invoice | None) -> bool:
        """Whether the payee takes parts, as far as we know."""
        if invoice is not None:
            return invoice.has(Feature.basic_mpp)
        return record.is_probe and self._router.takes_parts(record.destination)

    # --- straight to the payee

    def _direct(
        self, record: PaymentRecord, invoice: Invoice | None, lessons: Lessons, elsewhere: bool
    ) -> list[Planned]:
        """Over channels with the payee. Raises NodeError if these will not do and there is nothing else, _NotDirectly
        if there may be other ways."""
        if record.last_hops or record.destination == self._node_id:
            raise _NotDirectly
        try:
            parts = self._plan(record, self._splits(record, invoice), lessons)
        except NodeError as error:
            if elsewhere:
                raise _NotDirectly(error=error) from error
            raise
        plan = [Planned(driver, part_msat) for driver, part_msat in parts]
        if elsewhere and any(self._channels.available_msat(part.driver) < part.amount_msat for part in plan):
            raise _NotDirectly(whole=plan)
        return plan

    def _plan(self, record: PaymentRecord, splits: bool, lessons: Lessons) -> list[tuple[Driver, int]]:
        """Which channel carries how much: one if one can, else several if the payee allows it."""
        amount_msat = record.missing_msat
        candidates = self._channels.usable_with(record.destination)
        if not candidates:
            raise NodeError("failed_precondition", self._channels.why_unreachable(record.destination))
        if record.outgoing_keys:
            candidates = [driver for driver in candidates if driver.channel_key in record.outgoing_keys]
            if not candidates:
                raise NodeError("failed_precondition", "the channels that the payment may leave by are not usable now")
        most = lessons.most_msat
        if len(candidates) == 1 and candidates[0].channel_key not in most:
            return [(candidates[0], amount_msat)]  # the channel itself says if it is too much
        room = [
            (driver, min(self._channels.available_msat(driver), most.get(driver.channel_key, amount_msat)))
            for driver in candidates
        ]
        room.sort(key=lambda choice: choice[1])
        for driver, available_msat in room:
            if available_msat >= amount_msat:
                return [(driver, amount_msat)]
        total_msat = sum(available_msat for _, available_msat in room)
        parts = _split(room[::-1], amount_msat)
        if total_msat < amount_msat or not splits or len(parts) > self.room(record):
            raise NodeError(
                "resource_exhausted",
                f"not enough money on our side of the channels with the payee: {room[-1][1]:,} msat can be sent over "
                f"one channel ({total_msat:,} msat over all), {amount_msat:,} msat are wanted",
            )
        return parts

    # --- parts

    def part(self, record: PaymentRecord, invoice: Invoice | None, planned: Planned) -> tuple[PartRecord, ev.AddHtlc]:
        """The record of a part, and what its channel is asked (with an `origin` to be filled in). Raises NodeError if
        it does not fit an onion."""
        route = planned.route
        expiry = self._height() + record.final_delta_blocks if route is None else route.hops[0].cltv_expiry
        if route is None:
            hops = [(record.destination, _final(record, invoice, planned.amount_msat, expiry))]
        else:
            hops = _payloads(record, invoice, route)
        try:
            onion = build_payment_onion(hops, os.urandom(32), record.payment_hash)
        except ValueError as error:
            raise NodeError("invalid_argument", f"what the payment carries does not fit an onion: {error}") from error
        part = PartRecord(
            planned.driver.channel_key,
            planned.amount_msat,
            expiry,
            onion.shared_secrets,
            route=route,
            started_seconds=self._now(),
        )
        return part, ev.AddHtlc(planned.amount_msat, record.payment_hash, expiry, onion.packet, b"")


class _NotDirectly(Exception):
    """Not over our channels with the payee alone. `whole`: they might still do if nothing else does; `error`: why they
    will not."""

    def __init__(self, whole: list[Planned] | None = None, error: NodeError | None = None) -> None:
        super().__init__()
        self.whole = whole
        self.error = error


def _payloads(record: PaymentRecord, invoice: Invoice | None, route: Route) -> list[tuple[bytes, PaymentPayload]]:
    """What the onion says to each hop."""
    relays = [
        (hop.node_id, forward_payload(hop.amt_to_forward_msat, hop.outgoing_cltv_value, after.short_channel_id))
        for hop, after in pairwise(route.hops)
    ]
    last = route.hops[-1]
    return [*relays, (last.node_id, _final(record, invoice, last.amt_to_forward_msat, last.outgoing_cltv_value))]


def _final(record: PaymentRecord, invoice: Invoice | None, amount_msat: int, expiry: int) -> PaymentPayload:
    """What the payee is told."""
    if record.own_preimage is not None:
        return keysend_payload(amount_msat, expiry, record.own_preimage, record.custom_records)
    if record.payment_secret is not None:  # a probe: nothing in it is the invoice's
        return final_payload(amount_msat, expiry, record.payment_secret, record.amount_msat)
    assert invoice is not None
    return final_payload(amount_msat, expiry, invoice.payment_secret, record.amount_msat, invoice.payment_metadata)


def _split(room: Sequence[tuple[Driver, int]], amount_msat: int) -> list[tuple[Driver, int]]:
    """The amount over several channels, the roomiest first."""
    plan: list[tuple[Driver, int]] = []
    for driver, available_msat in room:
        part_msat = min(amount_msat, available_msat)
        if part_msat:
            plan.append((driver, part_msat))
            amount_msat -= part_msat
    return plan
