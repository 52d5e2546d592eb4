"""HTLCs that end here: checked against BOLT 4 and the invoice, collected into sets, settled all together or failed.

The set of a hold invoice is accepted when it is complete: it waits, across restarts, until somebody calls `settle` or
`cancel`, or its HTLCs come too near to their expiry. Payments that nobody asked for bring their preimage (keysend).

Source: BOLT 4, "Failure Messages" (the final node), "Basic Multi-Part Payments"; bLIP 3 (keysend).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from msgspec.structs import replace

from channeld.bolt.onion.failures import Failure, IncorrectOrUnknownPaymentDetails, MppTimeout, TemporaryNodeFailure
from channeld.bolt.onion.payment import OnionContext, Receive
from channeld.bolt.transactions import Htlc
from channeld.channel import events as ev
from channeld.channel.normal import is_unfunded
from channeld.channel.state import Normal, ShuttingDown
from channeld.node.bus import EventBus
from channeld.node.circuits import HtlcKey
from channeld.node.driver import Reaction
from channeld.node.interface import InvoiceView, NodeError
from channeld.node.invoice_record import InvoiceRecord
from channeld.node.invoices import BLOCKS_UNDER_WAY, LATEST_BLOCKS, InvoiceBook
from channeld.node.refusals import fulfill_event, hold_time, refusal_event, refuse
from channeld.storage import Store, StoreFailed, Write

if TYPE_CHECKING:
    from channeld.node.channels import Driver

MPP_TIMEOUT_SECONDS = 60.0
MOST_STALE_SECONDS = 600.0
"""So long HTLCs are still settled by a height that layer 1 does not renew: their expiry may be near without our
knowing, and they could not be claimed."""
WARN_BLOCKS = 12
"""So many blocks before an accepted invoice is canceled by itself, its owner is warned."""
FIRST_CUSTOM_TYPE = 65_536


@dataclass(frozen=True, slots=True)
class _Part:
    driver: Driver
    htlc: Htlc
    amt_to_forward_msat: int
    context: OnionContext
    received: float

    @property
    def key(self) -> HtlcKey:
        return self.driver.channel_key, self.htlc.id


@dataclass(slots=True)
class _Set:
    """Parts of one payment that wait for the rest."""

    record: InvoiceRecord
    total_msat: int
    timer: asyncio.TimerHandle
    parts: list[_Part] = field(default_factory=list)

    def received_msat(self) -> int:
        return sum(part.amt_to_forward_msat for part in self.parts)


class Receiver:
    """Decides about HTLCs whose onion says that we are the recipient. `knows_height`: layer 1 was caught up with since
    the start; before, an HTLC that no decision was made about waits. `stale_seconds`: for how long layer 1 has been
    away since."""

    def __init__(
        self,
        store: Store,
        book: InvoiceBook,
        bus: EventBus,
        height: Callable[[], int],
        knows_height: Callable[[], bool],
        now: Callable[[], float],
        accept_keysend: bool = True,
        stale_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._store = store
        self._book = book
        self._bus = bus
        self._height = height
        self._knows_height = knows_height
        self._now = now
        self._accept_keysend = accept_keysend
        self._stale_seconds = stale_seconds
        self._sets: dict[bytes, _Set] = {}
        self._held: dict[bytes, list[_Part]] = {}
        self._early: list[tuple[Driver, Htlc, Receive]] = []
        self._unannounced: set[bytes] = set()
        self._warned: set[bytes] = set()

    # --- HTLCs

    def receive(self, driver: Driver, htlc: Htlc, onion: Receive) -> Reaction:
        """What to do about an HTLC: settle it (with its set), keep it waiting (no events), or fail it."""
        part = _Part(driver, htlc, onion.amt_to_forward, onion.context, self._now())
        record = self._book.lookup(htlc.payment_hash)
        if record is not None and record.state != "open":
            return self._decided(record, part)
        if not self._knows_height():
            self._early.append((driver, htlc, onion))
            return Reaction()
        if self._stale_seconds() > MOST_STALE_SECONDS:
            return refuse(driver, htlc.id, onion.context.refusal(TemporaryNodeFailure(), "layer 1 is away"))
        if _is_unfunded(driver):  # now: it was not, when this HTLC was locked in before a restart
            return refuse(driver, htlc.id, onion.context.refusal(TemporaryNodeFailure(), "the funding left the chain"))
        waiting = self._sets.get(htlc.payment_hash)
        if record is None:
            record = waiting.record if waiting is not None else self._unasked(htlc, onion)
        if record is None or not self._is_acceptable(record, htlc, onion):
            return self._unknown(part)
        if waiting is None:
            record = replace(record, custom_records=_custom(onion))
        if waiting is not None and any(p.key == part.key for p in waiting.parts):
            return Reaction()
        if waiting is not None and waiting.total_msat != onion.total_msat:
            self._fail_set(htlc.payment_hash, None)
            return self._unknown(part)
        if waiting is None and onion.amt_to_forward >= onion.total_msat:
            return self._complete(record, [part])
        if waiting is None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(MPP_TIMEOUT_SECONDS, self._fail_set, htlc.payment_hash, MppTimeout())
            waiting = self._sets[htlc.payment_hash] = _Set(record, onion.total_msat, timer)
        waiting.parts.append(part)
        if waiting.received_msat() < waiting.total_msat:
            return Reaction()
        latest = self._height() + LATEST_BLOCKS
        if any(p.htlc.cltv_expiry < latest or _is_unfunded(p.driver) for p in waiting.parts):
            # They were good when they came, which may be long ago: we may have been off, without layer 1 at hand.
            self._fail_set(htlc.payment_hash, MppTimeout())
            return Reaction()
        waiting.timer.cancel()
        del self._sets[htlc.payment_hash]
        return self._complete(waiting.record, waiting.parts)

    def is_bound(self, payment_hash: bytes, key: HtlcKey) -> bool:
        """Whether an HTLC is part of a set that was settled or accepted: then its answer is that of the set."""
        record = self._book.lookup(payment_hash)
        return record is not None and key in record.htlcs

    def height_known(self) -> None:
        """Layer 1 was caught up with: what came early is decided about now."""
        early, self._early = self._early, []
        for driver, htlc, onion in early:
            reaction = self.receive(driver, htlc, onion)
            payment_hash, writes = htlc.payment_hash, tuple(reaction.writes)

            def done(error: Exception | None, payment_hash: bytes = payment_hash) -> None:
                if error is None:
                    self.announce(payment_hash)

            # Before any channel of the set learns of it, in whose commit these rows are not: the others must find them.
            if writes:
                self._store.submit(writes, done)
            for event in reaction.events:
                driver.post(event)

    def _decided(self, record: InvoiceRecord, part: _Part) -> Reaction:
        """An HTLC of an invoice that is not open: one that belongs to it was handed out again after a restart."""
        if part.key not in record.htlcs:
            return self._unknown(part)
        if record.state == "settled":
            return Reaction(events=[self._fulfillment(record, part)])
        held = self._held.setdefault(record.payment_hash, [])
        if not any(p.key == part.key for p in held):
            received = part.received if record.accepted_ms is None else record.accepted_ms / 1000
            held.append(_Part(part.driver, part.htlc, part.amt_to_forward_msat, part.context, received))
        return Reaction()

    def _unasked(self, htlc: Htlc, onion: Receive) -> InvoiceRecord | None:
        """The record of a payment without an invoice, if it is one that we take: bLIP 3. Parts are told apart from a
        stranger's by the `payment_secret` that the payer chose; without one there is only one part."""
        preimage = onion.keysend_preimage
        if preimage is None or not self._accept_keysend or onion.path_id is not None:
            return None
        if sha256(preimage).digest() != htlc.payment_hash or self._book.is_known(htlc.payment_hash):
            return None
        if onion.payment_secret is None and onion.amt_to_forward < onion.total_msat:
            return None
        return InvoiceRecord(
            payment_hash=htlc.payment_hash,
            payment_preimage=preimage,
            payment_secret=onion.payment_secret or b"",
            bolt11="",
            description="",
            amount_msat=None,
            created_seconds=int(self._now()),
            expiry_seconds=3600,
            min_final_cltv_expiry_delta_blocks=LATEST_BLOCKS + BLOCKS_UNDER_WAY,
            kind="keysend",
        )

    def _is_acceptable(self, record: InvoiceRecord, htlc: Htlc, onion: Receive) -> bool:
        """BOLT 4: secret, amount (from the invoice's to twice that) and expiry must fit the invoice."""
        # BOLT 4, "MAY store private data in `encrypted_data_tlv[r].path_id` to verify that the route is used in the
        # right context and was created by them"
        if (onion.path_id is not None) != (record.kind == "blinded"):
            return False
        secret = onion.payment_secret if onion.path_id is None else onion.path_id
        if record.kind == "keysend":
            if (secret or b"") != record.payment_secret or onion.keysend_preimage != record.payment_preimage:
                return False
        elif secret != record.payment_secret or record.is_expired(self._now()):
            return False
        wanted = record.amount_msat
        if wanted is not None and not wanted <= onion.total_msat <= 2 * wanted:
            return False
        soonest = max(record.min_final_cltv_expiry_delta_blocks - BLOCKS_UNDER_WAY, LATEST_BLOCKS)
        return htlc.cltv_expiry >= self._height() + soonest

    # --- complete sets

    def _complete(self, record: InvoiceRecord, parts: list[_Part]) -> Reaction:
        record = replace(
            record,
            received_msat=sum(part.htlc.amount_msat for part in parts),
            htlcs=tuple(part.key for part in parts),
        )
        self._unannounced.add(record.payment_hash)
        return self._accept(record, parts) if record.hold else self._settle(record, parts)

    def _accept(self, record: InvoiceRecord, parts: list[_Part]) -> Reaction:
        """The owner decides: until then the HTLCs stay as they are."""
        first = min(part.htlc.cltv_expiry for part in parts)
        accepted = replace(record, state="accepted", accepted_ms=int(self._now() * 1000), deadline_height=first)
        self._held[record.payment_hash] = parts
        return Reaction([self._book.put(accepted)])

    def _settle(self, record: InvoiceRecord, parts: list[_Part]) -> Reaction:
        """Settle all: the last part's channel in this batch, the others after it (their commits come no earlier)."""
        write = self._book.put(replace(record, state="settled", settled_seconds=int(self._now())))
        *others, last = parts
        for part in others:
            part.driver.post(self._fulfillment(record, part))
        return Reaction([write], [self._fulfillment(record, last)])

    def _fulfillment(self, record: InvoiceRecord, part: _Part) -> ev.FulfillHtlc:
        assert record.payment_preimage is not None
        held = hold_time(self._now() - part.received)
        return fulfill_event(part.htlc.id, record.payment_preimage, part.context, held)

    # --- hold invoices: what their owner decides

    async def settle(self, payment_hash: bytes, payment_preimage: bytes | None = None) -> InvoiceView:
        """Take the money of an accepted invoice; doing it twice is no error. Raises NodeError.

        The preimage may be left out if this node knows it. It is durable before a peer learns it.
        """
        record = await self._book.find(payment_hash)
        preimage = payment_preimage or record.payment_preimage
        if preimage is None:
            raise NodeError("invalid_argument", "this node does not know the invoice's preimage: give it")
        if sha256(preimage).digest() != payment_hash:
            raise NodeError("invalid_argument", "this is not the preimage of the invoice's payment hash")
        if record.state == "settled":
            return record.view(self._now())
        if record.state == "open":
            raise NodeError("failed_precondition", "the invoice is not paid yet: it can be settled once it is accepted")
        if record.state == "canceled":
            raise NodeError("failed_precondition", "the invoice was canceled and its payment returned: make a new one")
        if not self._knows_height() or self._stale_seconds() > 0:
            raise NodeError("unavailable", "layer 1 is away: nobody knows whether there is time left; try again later")
        assert record.deadline_height is not None
        if record.deadline_height < self._height() + LATEST_BLOCKS:
            raise NodeError("failed_precondition", "the payment is about to expire: taking it now might lose it")
        if any(_is_unfunded(part.driver) for part in self._held.get(payment_hash, ())):
            raise NodeError("failed_precondition", "the channel's funding left the chain: wait until it is there again")
        settled = replace(
            record, state="settled", payment_preimage=preimage, settled_seconds=int(self._now()), deadline_height=None
        )
        parts = self._held.pop(payment_hash, [])
        self._unannounced.add(payment_hash)
        await self._after(self._book.put(settled), lambda: self._take(settled, parts))
        return settled.view(self._now())

    def _take(self, record: InvoiceRecord, parts: Sequence[_Part]) -> None:
        for part in parts:
            part.driver.post(self._fulfillment(record, part))
        self.announce(record.payment_hash)

    async def cancel(self, payment_hash: bytes) -> InvoiceView:
        """An open invoice will not be paid any more, an accepted payment goes back. Raises NodeError."""
        record = await self._book.find(payment_hash)
        if record.state == "settled":
            raise NodeError("failed_precondition", "this invoice was paid; it cannot be canceled")
        if record.state != "canceled":
            await self._give_back(record, "an invoice was canceled")
            record = await self._book.find(payment_hash)
        return record.view(self._now())

    def _give_back(self, record: InvoiceRecord, sentence: str) -> asyncio.Future[None]:
        """Durable before an HTLC is failed: half of a set that is settled after a crash would be lost."""
        payment_hash = record.payment_hash
        parts = self._held.pop(payment_hash, [])
        waiting = self._sets.pop(payment_hash, None)
        if waiting is not None:
            waiting.timer.cancel()
            parts = [*parts, *waiting.parts]
        self._warned.discard(payment_hash)

        def give_back() -> None:
            self._book.forget(payment_hash)
            for part in parts:
                self._fail(part, self._details(part.htlc.amount_msat))
            self._bus.publish("invoice.canceled", sentence, payment_hash=payment_hash.hex())

        return self._after(self._book.cancel(record), give_back)

    def _after(self, write: Write, then: Callable[[], None]) -> asyncio.Future[None]:
        """`then` follows as soon as the row is durable, whether or not anybody still waits for it."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: StoreFailed | None) -> None:
            if error is None:
                then()
            if durable.done():
                return
            if error is None:
                durable.set_result(None)
            else:
                durable.set_exception(NodeError("internal", str(error)))

        self._store.submit([write], done)
        return durable

    def expire(self, height: int) -> None:
        """A block came: what nobody decided about in time goes back, after a warning."""
        for record in self._book.accepted():
            assert record.deadline_height is not None
            left = record.deadline_height - height - LATEST_BLOCKS
            if left < 0:
                self._give_back(record, "an accepted invoice was canceled: its payment was about to expire")
            elif left <= WARN_BLOCKS and record.payment_hash not in self._warned:
                self._warned.add(record.payment_hash)
                self._bus.publish(
                    "invoice.expiring",
                    f"an accepted invoice will be canceled in {left + 1} blocks: settle or cancel it",
                    payment_hash=record.payment_hash.hex(),
                    blocks_left=left + 1,
                )

    # --- refusals

    def _details(self, amount_msat: int) -> Failure:
        return IncorrectOrUnknownPaymentDetails(amount_msat, self._height())

    def _unknown(self, part: _Part) -> Reaction:
        refusal = part.context.refusal(self._details(part.htlc.amount_msat))
        return Reaction(events=[refusal_event(part.htlc.id, refusal)])

    def _fail(self, part: _Part, failure: Failure) -> None:
        held = hold_time(self._now() - part.received)
        part.driver.post(refusal_event(part.htlc.id, part.context.refusal(failure), held))

    def _fail_set(self, payment_hash: bytes, failure: Failure | None) -> None:
        """None: the details are wrong, which each part hears with its own amount."""
        waiting = self._sets.pop(payment_hash, None)
        if waiting is None:
            return
        waiting.timer.cancel()
        for part in waiting.parts:
            self._fail(part, failure or self._details(part.htlc.amount_msat))

    # --- afterwards

    def announce(self, payment_hash: bytes) -> None:
        """What was decided about this hash is durable: if it was paid, tell the world, once."""
        if payment_hash not in self._unannounced:
            return
        self._unannounced.discard(payment_hash)
        record = self._book.lookup(payment_hash)
        if record is None or record.state not in ("accepted", "settled"):
            return
        what = f"{record.received_msat:,} msat for {record.description or 'an invoice'!r}"
        if record.kind == "keysend":
            what = f"{record.received_msat:,} msat that nobody asked for (keysend)"
        self._bus.publish(
            "invoice.settled" if record.state == "settled" else "invoice.accepted",
            f"received {what}" if record.state == "settled" else f"accepted {what}: settle or cancel it",
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


def _is_unfunded(driver: Driver) -> bool:
    """Whether what comes over a channel might be taken back."""
    return isinstance(driver.state, Normal | ShuttingDown) and is_unfunded(driver.state)


def _custom(onion: Receive) -> tuple[tuple[int, bytes], ...]:
    """The payer's own records: BOLT 1 leaves types from 65536 on to everybody."""
    return tuple((tlv_type, value) for tlv_type, value in onion.custom_records if tlv_type >= FIRST_CUSTOM_TYPE)
