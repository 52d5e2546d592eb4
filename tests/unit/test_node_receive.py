"""Sets of HTLCs for one invoice, with a recipient whose clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from msgspec.structs import replace

from channeld.bolt.onion.failures import Failure, IncorrectOrUnknownPaymentDetails, decode_failure
from channeld.bolt.onion.payment import BlindedRole, OnionContext, Receive
from channeld.bolt.onion.returns import ReturnPacket, read_failure
from channeld.bolt.transactions import Htlc
from channeld.channel import events as ev
from channeld.channel.normal import is_unfunded
from channeld.channel.state import State
from channeld.node.bus import EventBus
from channeld.node.driver import Reaction
from channeld.node.invoice_record import InvoiceRecord
from channeld.node.invoices import LATEST_BLOCKS, InvoiceBook
from channeld.node.receive import MOST_STALE_SECONDS, Receiver
from tests.machine.harness import open_pair

HASH = bytes(range(32))
SECRET = bytes(32)


class FakeBook:
    """One invoice of 1,000 msat, open."""

    def __init__(self) -> None:
        self.record = InvoiceRecord(
            payment_hash=HASH,
            payment_preimage=bytes(32),
            payment_secret=SECRET,
            bolt11="",
            description="",
            amount_msat=1000,
            created_seconds=0,
            expiry_seconds=3600,
            min_final_cltv_expiry_delta_blocks=42,
        )

    def lookup(self, payment_hash: bytes) -> InvoiceRecord:
        return self.record

    def put(self, record: InvoiceRecord) -> str:
        self.record = record
        return "the row"

    @property
    def settled(self) -> bool:
        return self.record.state == "settled"


class FakeStore:
    """What is committed, in order: rows, and what a channel makes of an event in the next turn of the event loop."""

    def __init__(self) -> None:
        self.committed: list[object] = []

    def submit(self, writes: Iterable[object], done: Callable[[None], None]) -> None:
        self.committed += writes
        asyncio.get_running_loop().call_soon(done, None)


class FakeDriver:
    def __init__(self, store: FakeStore, channel_key: int) -> None:
        self.store = store
        self.channel_key = channel_key
        self.state: State | None = None
        self.posted: list[ev.Event] = []

    def post(self, event: ev.Event, writes: Iterable[object] = (), *_: object) -> None:
        self.posted.append(event)
        asyncio.get_running_loop().call_soon(self.store.committed.extend, (*writes, type(event)))


class Recipient:
    """A receiver at a height of the test's choice, and two channels."""

    def __init__(self) -> None:
        self.book = FakeBook()
        self.height = 100
        self.knows_height = True
        self.stale_seconds = 0.0
        self.store = FakeStore()
        self.drivers = FakeDriver(self.store, 0), FakeDriver(self.store, 1)
        book = cast(InvoiceBook, self.book)
        self.receiver = Receiver(
            cast(Any, self.store),
            book,
            EventBus(),
            lambda: self.height,
            lambda: self.knows_height,
            lambda: 1.0,
            stale_seconds=lambda: self.stale_seconds,
        )

    def part(self, channel: int, cltv_expiry: int, amount_msat: int = 500, total_msat: int = 1000) -> Reaction:
        htlc = Htlc(7, amount_msat, HASH, cltv_expiry, False)
        context = OnionContext(bytes(32), bytes(32), BlindedRole.NONE)
        onion = Receive(amount_msat, cltv_expiry, total_msat, SECRET, None, None, None, (), context)
        return self.receiver.receive(cast(Any, self.drivers[channel]), htlc, onion)


async def test_parts_in_time_are_settled_together() -> None:
    recipient = Recipient()
    assert recipient.part(0, 145) == Reaction()
    reaction = recipient.part(1, 145)
    assert [type(event) for event in reaction.events] == [ev.FulfillHtlc]
    assert [type(event) for event in recipient.drivers[0].posted] == [ev.FulfillHtlc]
    assert recipient.book.settled


async def test_no_preimage_for_a_part_that_is_about_to_expire() -> None:
    # BOLT 2, "An offering node ... fulfillment deadline": the rest may come long after the first part, if we were off
    recipient = Recipient()
    assert recipient.part(0, 145) == Reaction()
    recipient.height = 145 - LATEST_BLOCKS + 1
    assert recipient.part(1, recipient.height + 45) == Reaction()
    assert not recipient.book.settled
    for driver in recipient.drivers:
        assert [type(event) for event in driver.posted] == [ev.FailHtlc]


def told(event: object) -> Failure:
    """What the payer reads."""
    assert isinstance(event, ev.FailHtlc)
    return decode_failure(read_failure([bytes(32)], ReturnPacket(event.reason)).failure_message)


async def test_parts_that_disagree_about_the_total_each_hear_their_own_amount() -> None:
    # BOLT 4, "SHOULD fail the entire HTLC set if `total_msat` is not the same for all HTLCs in the set"; the failure
    # tells "the amount of the final HTLC"
    recipient = Recipient()
    assert recipient.part(0, 145, amount_msat=300) == Reaction()
    (refusal,) = recipient.part(1, 145, amount_msat=700, total_msat=1001).events
    assert told(refusal) == IncorrectOrUnknownPaymentDetails(700, recipient.height)
    (posted,) = recipient.drivers[0].posted
    assert told(posted) == IncorrectOrUnknownPaymentDetails(300, recipient.height)
    assert not recipient.book.settled


async def test_nothing_is_decided_before_the_height_is_known() -> None:
    # after a restart what the database says of the height may be old, and the HTLC about to expire
    recipient = Recipient()
    recipient.knows_height = False
    assert recipient.part(0, 145) == recipient.part(1, 145) == Reaction()
    recipient.receiver.height_known()
    assert [driver.posted for driver in recipient.drivers] == [[], []], "not yet"
    recipient.knows_height = True
    recipient.receiver.height_known()
    for driver in recipient.drivers:
        assert [type(event) for event in driver.posted] == [ev.FulfillHtlc]
    assert recipient.book.settled


async def test_what_came_early_is_settled_in_the_books_before_any_channel_tells_its_preimage() -> None:
    # dying between the commits of two channels must leave who fulfils the other part: BOLT 4, "MUST fulfill the entire
    # HTLC set."
    recipient = Recipient()
    recipient.knows_height = False
    recipient.part(0, 145)
    recipient.part(1, 145)
    recipient.knows_height = True
    recipient.receiver.height_known()
    await asyncio.sleep(0)
    assert recipient.store.committed == ["the row", ev.FulfillHtlc, ev.FulfillHtlc]


async def test_what_came_early_and_is_late_by_now_is_failed() -> None:
    recipient = Recipient()
    recipient.knows_height = False
    recipient.part(0, 145)
    recipient.part(1, 145)
    recipient.knows_height, recipient.height = True, 145 - 38
    recipient.receiver.height_known()
    assert not recipient.book.settled
    for driver in recipient.drivers:
        assert [type(event) for event in driver.posted] == [ev.FailHtlc]


async def test_no_preimage_for_a_part_whose_channel_may_be_taken_back() -> None:
    bob: Any = open_pair().bob.funded
    unfunded = replace(bob, funding_depth=0)
    assert is_unfunded(unfunded) > is_unfunded(bob)
    recipient = Recipient()
    first, last = recipient.drivers
    first.state = last.state = bob
    assert recipient.part(0, 145) == Reaction()
    first.state = unfunded  # a reorganisation, while the rest is on its way
    assert recipient.part(1, 145) == Reaction()
    assert not recipient.book.settled
    for driver in recipient.drivers:
        assert [type(event) for event in driver.posted] == [ev.FailHtlc]
    recipient.knows_height = False
    recipient.part(0, 145, amount_msat=1000)  # or before a restart, and that is told only now
    recipient.knows_height = True
    recipient.receiver.height_known()
    assert not recipient.book.settled
    assert [type(event) for event in first.posted] == [ev.FailHtlc, ev.FailHtlc]


async def test_no_preimage_for_long_by_a_height_that_nobody_renews() -> None:
    recipient = Recipient()
    recipient.stale_seconds = MOST_STALE_SECONDS
    assert recipient.part(0, 145) == Reaction()
    recipient.stale_seconds += 1
    assert [type(event) for event in recipient.part(1, 145).events] == [ev.FailHtlc]
    assert not recipient.book.settled
    recipient.stale_seconds = 0.0
    assert [type(event) for event in recipient.part(1, 145).events] == [ev.FulfillHtlc]
    assert [type(event) for event in recipient.drivers[0].posted] == [ev.FulfillHtlc]
