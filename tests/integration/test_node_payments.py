"""Payments between two nodes: what succeeds, what is refused before it begins, what fails and why."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channeld.bolt.invoice import DEFAULT_FEATURES, Invoice, encode_invoice
from channeld.channel import events as ev
from channeld.node import receive
from channeld.node.channels import Driver
from channeld.node.interface import NodeError
from channeld.node.metrics import LoopLag, NodeCollector
from channeld.node.payment_progress import Live
from channeld.node.payment_record import PaymentRecord
from channeld.node.payment_views import KeysendOrder, PaymentLimits
from tests.integration.world import TestNode, World, world_in
from wallet.bitcoin.address import REGTEST, TESTNET, Network
from wallet.bitcoin.secp import pubkey_of

CHANNEL_SAT = 1_000_000
PUSH_MSAT = 300_000_000


class Pair:
    def __init__(self, world: World, alice: TestNode, bob: TestNode, channel_id: bytes) -> None:
        self.world, self.alice, self.bob, self.channel_id = world, alice, bob, channel_id

    async def refused(self, bolt11: str, amount_msat: int | None = None) -> NodeError:
        """Alice does not even begin to pay; nothing is noted."""
        before = await self.alice.api.list_payments()
        with pytest.raises(NodeError) as caught:
            await self.alice.api.pay(bolt11, amount_msat)
        assert await self.alice.api.list_payments() == before
        return caught.value


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with world_in(tmp_path) as world:
        alice, bob = await world.node("alice"), await world.node("bob")
        await world.fund(alice, 100_000_000)
        channel_id = await world.open(alice, bob, CHANNEL_SAT, push_msat=PUSH_MSAT, announce=False)
        yield Pair(world, alice, bob, channel_id)


def send_half(payer: TestNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payer sends half of what is asked for, once, and knows no other way."""

    def half(record: PaymentRecord, *_: object) -> list[tuple[Driver, int]]:
        if record.parts:
            raise NodeError("failed_precondition", "half is enough")
        (driver,) = payer.runtime.channels.all()
        return [(driver, record.missing_msat // 2)]

    monkeypatch.setattr(payer.runtime.payments._planner, "_plan", half)


def foreign_invoice(
    secret: bytes,
    network: Network = REGTEST,
    amount_msat: int | None = 1_000_000,
    features: frozenset[int] = DEFAULT_FEATURES,
) -> str:
    """An invoice that no node of the test knows, by the owner of `secret`."""
    invoice = Invoice(
        network=network,
        payment_hash=hashlib.sha256(os.urandom(32)).digest(),
        payment_secret=os.urandom(32),
        payee=pubkey_of(secret),
        timestamp=1_900_000_000,
        amount_msat=amount_msat,
        description="never made",
        features=features,
    )
    return encode_invoice(invoice, secret)


def counts(node: TestNode) -> dict[str, float]:
    """What a scraper reads of the node, of all that has no labels."""
    collector = NodeCollector(node.api, node.runtime._store, LoopLag())
    return {sample.name: sample.value for metric in collector._of_work() for sample in metric.samples}


async def test_paying_both_ways_and_what_is_told_about_it(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    invoice = await bob.api.create_invoice(5_000_000, "tea")
    payment = await alice.api.pay(invoice.bolt11)
    assert (payment.state, payment.amount_msat, payment.fee_msat) == ("succeeded", 5_000_000, 0)
    assert payment.payment_preimage is not None
    assert hashlib.sha256(payment.payment_preimage).digest() == invoice.payment_hash
    settled = await bob.api.get_invoice(invoice.payment_hash)
    assert (settled.state, settled.received_msat) == ("settled", 5_000_000)
    assert settled.payment_preimage == payment.payment_preimage
    assert (await alice.api.get_payment(invoice.payment_hash)).state == "succeeded"
    anything = await alice.api.create_invoice(None, "as you like")
    assert (await bob.api.pay(anything.bolt11, amount_msat=1)).state == "succeeded"
    for node in (alice, bob):
        counted = counts(node)
        paid, received = (f"channeld_{name}_total" for name in ("payments_succeeded", "invoices_paid"))
        assert (counted[paid], counted[received]) == (1, 1)


async def test_what_cannot_be_paid_is_refused_with_a_sentence(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = pair.alice, pair.bob
    bobs = bob.runtime.identity.node_secret
    anything = (await bob.api.create_invoice(None, "any amount")).bolt11
    fixed = (await bob.api.create_invoice(1_000, "fixed")).bolt11
    dear = (await bob.api.create_invoice(900_000_000, "too dear")).bolt11
    own = (await alice.api.create_invoice(1_000, "own")).bolt11
    with monkeypatch.context() as patch:  # nobody here makes such invoices
        patch.setattr("channeld.bolt.invoice._check_features", lambda _: None)
        unknown = foreign_invoice(bobs, features=DEFAULT_FEATURES | {1_000})
    both = foreign_invoice(b"\7" * 32, features=DEFAULT_FEATURES | {14, 15, 16, 17})  # optional and required at once
    changed = fixed[:-1] + ("q" if fixed[-1] != "q" else "p")
    cases = [
        (await pair.refused("hello"), "invalid_argument", "not a Lightning invoice"),
        (await pair.refused(changed), "invalid_argument", "checksum is wrong"),
        (await pair.refused(foreign_invoice(bobs, TESTNET)), "invalid_argument", "for testnet"),
        (await pair.refused(unknown), "invalid_argument", "requires a feature that this node does not know"),
        (await pair.refused(both), "failed_precondition", "open one first"),
        (await pair.refused(anything), "invalid_argument", "say how much"),
        (await pair.refused(anything, 0), "invalid_argument", "more than zero"),
        (await pair.refused(fixed, 2_000), "invalid_argument", "is for 1,000 msat"),
        (await pair.refused(dear), "resource_exhausted", "are missing"),
        (await pair.refused(own), "invalid_argument", "this very node"),
        (await pair.refused(foreign_invoice(b"\7" * 32)), "failed_precondition", "open one first"),
    ]
    for error, kind, words in cases:
        assert error.kind == kind, error.sentence
        assert words in error.sentence


async def test_an_expired_invoice_is_refused(pair: Pair) -> None:
    invoice = await pair.bob.api.create_invoice(1_000, "gone", expiry_seconds=1)
    pair.alice.runtime.payments._orders._now = lambda: invoice.created_seconds + 2.0  # time passes for Alice
    assert "has expired" in (await pair.refused(invoice.bolt11)).sentence


async def test_a_paid_invoice_is_not_paid_twice(pair: Pair) -> None:
    invoice = await pair.bob.api.create_invoice(1_000, "once")
    results = await asyncio.gather(*(pair.alice.api.pay(invoice.bolt11) for _ in range(5)), return_exceptions=True)
    assert sum(not isinstance(result, NodeError) for result in results) == 1
    assert (await pair.refused(invoice.bolt11)).kind == "already_exists"
    await pair.alice.restart()
    assert "has been paid already" in (await pair.refused(invoice.bolt11)).sentence


async def test_the_same_key_pays_once_and_answers_the_same(pair: Pair) -> None:
    invoice = await pair.bob.api.create_invoice(1_000, "once")
    answers = await asyncio.gather(
        *(pair.alice.api.pay(invoice.bolt11, idempotency_key="k") for _ in range(5)),
    )
    assert len({answer.payment_preimage for answer in answers}) == 1
    await pair.alice.restart()
    assert await pair.alice.api.pay(invoice.bolt11, idempotency_key="k") == answers[0]
    with pytest.raises(NodeError, match="used before, for something else"):
        await pair.alice.api.pay(foreign_invoice(b"\7" * 32), idempotency_key="k")
    assert len(await pair.alice.api.list_payments()) == 1


async def test_a_key_is_kept_until_the_payment_is_in_the_database(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # the channel is slow to take the part, the caller's time is over, and it asks again
    (driver,) = pair.alice.runtime.channels.all()
    order = KeysendOrder(pair.bob.runtime.identity.node_id, 1_000, (), PaymentLimits(timeout_seconds=0.01))
    with monkeypatch.context() as patch:
        offered = asyncio.Event()
        patch.setattr(driver, "_begin", offered.set)
        calls = [asyncio.create_task(pair.alice.api.send(order, "k"))]
        await offered.wait()
        for _ in range(2):
            await asyncio.wait(calls, timeout=0.1)  # an answer now would be too early
            calls.append(asyncio.create_task(pair.alice.api.send(order, "k")))
    driver._begin()
    answers = await asyncio.wait_for(asyncio.gather(*calls), 60)
    assert len({answer.payment_hash for answer in answers}) == 1
    assert len(await pair.alice.api.list_payments()) == 1


async def test_a_payment_that_waits_for_its_first_channel_is_canceled_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, (driver,) = pair.alice, pair.alice.runtime.channels.all()
    payments, link = alice.runtime.payments, driver.link
    assert link is not None
    posted, waits = asyncio.Event(), asyncio.Event()
    post, look = driver.post, payments._something_changed

    def heard(event: ev.Event, *rest: Any) -> None:
        post(event, *rest)
        if isinstance(event, ev.AddHtlc):
            posted.set()

    async def looked(live: Live, since_sequence: int, until: float) -> bool:
        waits.set()
        return await look(live, since_sequence, until)

    monkeypatch.setattr(payments, "_something_changed", looked)
    invoice = await pair.bob.api.create_invoice(1_000, "later")
    with monkeypatch.context() as patch:  # the connection is lost before the channel takes the part
        patch.setattr(driver, "_begin", lambda: None)
        patch.setattr(driver, "post", heard)
        driver.post_disconnected(link)
        paying = asyncio.create_task(alice.api.pay(invoice.bolt11))
        await asyncio.wait_for(posted.wait(), 60)
    driver._begin()
    await asyncio.wait_for(waits.wait(), 60)
    canceled = await asyncio.wait_for(alice.api.cancel_payment(invoice.payment_hash), 10)
    assert (canceled.state, canceled.canceled) == ("failed", True)
    with pytest.raises(NodeError, match="nothing was paid"):
        await paying
    assert await alice.api.list_payments() == []
    with pytest.raises(NodeError, match="there is no payment"):
        await alice.api.cancel_payment(invoice.payment_hash)


async def test_nothing_is_paid_before_the_height_is_known(pair: Pair) -> None:
    # a peer may call before layer 1 was caught up with; an HTLC by the old height would be over when it is offered
    synced = pair.alice.runtime._first_sync
    invoice = await pair.bob.api.create_invoice(1_000, "tea")
    synced.clear()
    assert (await pair.refused(invoice.bolt11)).kind == "unavailable"
    synced.set()
    assert (await pair.alice.api.pay(invoice.bolt11)).state == "succeeded"


async def test_the_recipient_refuses_what_it_does_not_know(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    canceled = await bob.api.create_invoice(1_000, "canceled")
    await bob.api.cancel_invoice(canceled.payment_hash)
    for bolt11 in (foreign_invoice(bob.runtime.identity.node_secret), canceled.bolt11, canceled.bolt11):
        payment = await alice.api.pay(bolt11)
        assert payment.state == "failed"
        assert "incorrect_or_unknown_payment_details, code 16399" in payment.failure
    assert len(await alice.api.list_payments()) == 3  # a failed one may be tried again
    view = await alice.wait_active(pair.channel_id)
    assert view.local_msat == CHANNEL_SAT * 1000 - PUSH_MSAT


async def test_an_amount_that_does_not_fit_the_invoice_is_refused(pair: Pair) -> None:
    book = pair.bob.runtime.invoices
    invoice = await pair.bob.api.create_invoice(1_000_000, "exactly")
    record = book.lookup(invoice.payment_hash)
    assert record is not None
    for wanted_msat in (1_000_001, 499_999):  # too little paid, and more than twice the amount
        book._live[invoice.payment_hash] = replace(record, amount_msat=wanted_msat)
        assert "incorrect_or_unknown" in (await pair.alice.api.pay(invoice.bolt11)).failure
    book._live[invoice.payment_hash] = record
    assert (await pair.alice.api.pay(invoice.bolt11)).state == "succeeded"


async def test_a_peer_that_is_away_is_told(pair: Pair) -> None:
    invoice = await pair.bob.api.create_invoice(1_000, "away")
    await pair.bob.stop()

    async def gone() -> bool:
        return (await pair.alice.api.info()).num_peers == 0

    await pair.alice.until(gone)
    assert "is not connected" in (await pair.refused(invoice.bolt11)).sentence
    await pair.bob.start()
    await pair.alice.wait_active(pair.channel_id)
    assert (await pair.alice.api.pay(invoice.bolt11)).state == "succeeded"


async def test_a_payment_over_two_channels(pair: Pair) -> None:
    await pair.world.open(pair.alice, pair.bob, CHANNEL_SAT, announce=False)
    invoice = await pair.bob.api.create_invoice(1_400_000_000, "more than one channel has")
    payment = await pair.alice.api.pay(invoice.bolt11)
    assert (payment.state, payment.parts) == ("succeeded", 2), payment.failure
    settled = await pair.bob.api.get_invoice(invoice.payment_hash)
    assert settled.received_msat == 1_400_000_000


async def test_parts_that_stay_alone_are_failed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "MPP_TIMEOUT_SECONDS", 0.05)
    send_half(pair.alice, monkeypatch)
    invoice = await pair.bob.api.create_invoice(1_000_000, "half of it comes")
    payment = await pair.alice.api.pay(invoice.bolt11)
    assert payment.state == "failed"
    assert "mpp_timeout, code 23" in payment.failure
    assert (await pair.bob.api.get_invoice(invoice.payment_hash)).state == "open"
    monkeypatch.undo()
    assert (await pair.alice.api.pay(invoice.bolt11)).state == "succeeded"


async def test_an_onion_is_taken_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    payments = pair.alice.runtime.payments
    secret = os.urandom(32)
    monkeypatch.setattr("channeld.node.payment_plan.os.urandom", lambda size: secret[:size])
    invoice = await pair.bob.api.create_invoice(1_000_000, "replayed")
    await pair.bob.api.cancel_invoice(invoice.payment_hash)
    assert "incorrect_or_unknown" in (await pair.alice.api.pay(invoice.bolt11)).failure
    assert "temporary_node_failure" in (await pair.alice.api.pay(invoice.bolt11)).failure
    await pair.bob.restart()
    await pair.alice.wait_active(pair.channel_id)
    assert "temporary_node_failure" in (await pair.alice.api.pay(invoice.bolt11)).failure
    assert payments is pair.alice.runtime.payments


async def test_a_payment_that_takes_longer_goes_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "MPP_TIMEOUT_SECONDS", 0.2)
    send_half(pair.alice, monkeypatch)
    invoice = await pair.bob.api.create_invoice(1_000_000, "slow")
    payment = await pair.alice.api.pay(invoice.bolt11, timeout_seconds=0.01, idempotency_key="slow")
    assert payment.state == "in_flight"
    with pytest.raises(NodeError, match="is being paid right now"):
        await pair.alice.api.pay(invoice.bolt11)
    assert (await pair.alice.api.pay(invoice.bolt11, idempotency_key="slow")).state == "failed"
