"""HTLCs that end here: checked against BOLT 4 and the invoice, collected into sets, settled all together or failed.

Source: BOLT 4, "Failure Messages" (the final node), "Basic Multi-Part Payments".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from channeld.bolt.onion.failures import Failure, IncorrectOrUnknownPaymentDetails, MppTimeout
from channeld.bolt.onion.payment import OnionContext, Receive
from channeld.bolt.transactions import Htlc
from channeld.channel import events as ev
from channeld.node.bus import EventBus
from channeld.node.driver import Reaction
from channeld.node.invoices import MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS, InvoiceBook, InvoiceRecord
from channeld.node.refusals import refusal_event

if TYPE_CHECKING:
    from channeld.node.channels import Driver

MPP_TIMEOUT_SECONDS = 60.0
BLOCKS_UNDER_WAY = 3
"""Blocks that may be found while an HTLC travels; the invoice's delta has room for them."""
LATEST_BLOCKS = MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS // 2 - BLOCKS_UNDER_WAY
"""A preimage is given away no later than so many blocks before an HTLC expires."""


@dataclass(frozen=True, slots=True)
class _Part:
    driver: Driver
    htlc: Htlc
    amt_to_forward_msat: int
    context: OnionContext


@dataclass(slots=True)
class _Set:
    """Parts of one payment that wait for the rest."""

    total_msat: int
    timer: asyncio.TimerHandle
    parts: list[_Part] = field(default_factory=list)

    def received_msat(self) -> int:
        return sum(part.amt_to_forward_msat for part in self.parts)


class Receiver:
    """Decides about HTLCs whose onion says that we are the recipient."""

    def __init__(self, book: InvoiceBook, bus: EventBus, height: Callable[[], int], now: Callable[[], float]) -> None:
        self._book = book
        self._bus = bus
        self._height = height
        self._now = now
        self._sets: dict[bytes, _Set] = {}
        self._unannounced: set[bytes] = set()

    def receive(self, driver: Driver, htlc: Htlc, onion: Receive) -> Reaction:
        """What to do about an HTLC: settle it (with its set), keep it waiting (no reaction), or fail it."""
        part = _Part(driver, htlc, onion.amt_to_forward, onion.context)
        record = self._book.lookup(htlc.payment_hash)
        if record is not None and record.state == "settled":
            if (driver.channel_key, htlc.id) in record.htlcs:  # decided before a reconnection or a restart
                return Reaction(events=[ev.FulfillHtlc(htlc.id, record.payment_preimage)])
            return self._unknown(part)
        if record is None or not self._is_acceptable(record, htlc, onion):
            return self._unknown(part)
        waiting = self._sets.get(htlc.payment_hash)
        if waiting is not None and any(p.driver is driver and p.htlc.id == htlc.id for p in waiting.parts):
            return Reaction()
        if waiting is not None and waiting.total_msat != onion.total_msat:
            self._fail_set(htlc.payment_hash, self._details(htlc.amount_msat))
            return self._unknown(part)
        if waiting is None and onion.amt_to_forward >= onion.total_msat:
            return self._settle(record, [part])
        if waiting is None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(MPP_TIMEOUT_SECONDS, self._fail_set, htlc.payment_hash, MppTimeout())
            waiting = self._sets[htlc.payment_hash] = _Set(onion.total_msat, timer)
        waiting.parts.append(part)
        if waiting.received_msat() < waiting.total_msat:
            return Reaction()
        if any(p.htlc.cltv_expiry < self._height() + LATEST_BLOCKS for p in waiting.parts):
            # They were in time when they came, which may be long ago: we may have been off, without layer 1 at hand.
            self._fail_set(htlc.payment_hash, MppTimeout())
            return Reaction()
        waiting.timer.cancel()
        del self._sets[htlc.payment_hash]
        return self._settle(record, waiting.parts)

    def _is_acceptable(self, record: InvoiceRecord, htlc: Htlc, onion: Receive) -> bool:
        """BOLT 4: secret, amount (from the invoice's to twice that) and expiry must fit the invoice."""
        if onion.payment_secret != record.payment_secret or record.state != "open" or record.is_expired(self._now()):
            return False
        wanted = record.amount_msat
        if wanted is not None and not wanted <= onion.total_msat <= 2 * wanted:
            return False
        soonest = self._height() + record.min_final_cltv_expiry_delta_blocks - BLOCKS_UNDER_WAY
        return htlc.cltv_expiry >= soonest

    def _settle(self, record: InvoiceRecord, parts: list[_Part]) -> Reaction:
        """Settle all: the last part's channel in this batch, the others after it (their commits come no earlier)."""
        received_msat = sum(part.htlc.amount_msat for part in parts)
        keys = tuple((part.driver.channel_key, part.htlc.id) for part in parts)
        write = self._book.settle(record, received_msat, keys)
        self._unannounced.add(record.payment_hash)
        last = parts[-1]
        for part in parts[:-1]:
            part.driver.post(ev.FulfillHtlc(part.htlc.id, record.payment_preimage))
        return Reaction([write], [ev.FulfillHtlc(last.htlc.id, record.payment_preimage)])

    def _details(self, amount_msat: int) -> Failure:
        return IncorrectOrUnknownPaymentDetails(amount_msat, self._height())

    def _unknown(self, part: _Part) -> Reaction:
        refusal = part.context.refusal(self._details(part.htlc.amount_msat))
        return Reaction(events=[refusal_event(part.htlc.id, refusal)])

    def _fail_set(self, payment_hash: bytes, failure: Failure) -> None:
        waiting = self._sets.pop(payment_hash, None)
        if waiting is None:
            return
        waiting.timer.cancel()
        for part in waiting.parts:
            part.driver.post(refusal_event(part.htlc.id, part.context.refusal(failure)))

    def announce(self, payment_hash: bytes) -> None:
        """What was decided about this hash is durable: if it was paid, tell the world, once."""
        if payment_hash not in self._unannounced:
            return
        self._unannounced.discard(payment_hash)
        record = self._book.lookup(payment_hash)
        if record is not None:
            self._bus.publish(
                "invoice.settled",
                f"received {record.received_msat} msat for {record.description or 'an invoice'!r}",
                payment_hash=payment_hash.hex(),
                received_msat=record.received_msat,
            )

    def htlc_removed(self, driver: Driver, htlc_id: int) -> None:
        """An incoming HTLC is gone from both commitments."""
        self._book.htlc_removed((driver.channel_key, htlc_id))

    def close(self) -> None:
        """No more timers; waiting parts are handed out again after the next start."""
        for waiting in self._sets.values():
            waiting.timer.cancel()
