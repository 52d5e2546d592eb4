"""Hold invoices and payments that nobody asked for, between nodes that restart and crash."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

from channeld.bolt.onion import failures as f
from channeld.bolt.onion.payment import PaymentData, PaymentPayload, final_payload, keysend_payload
from channeld.node.interface import InvoiceView, NodeError, PaymentView
from channeld.node.invoices import LATEST_BLOCKS, LEAST_DELTA_BLOCKS
from channeld.node.receive import WARN_BLOCKS
from channeld.storage import StoreFailed
from tests.integration.world import TestNode, World, world_in
from tests.onion_support import RawPayer

CHANNEL_SAT = 2_000_000
PARTS_MSAT = 2_600_000_000
"""More than one channel has."""
AMOUNT_MSAT = 20_000_000
MOST_COMMITS = 8
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Two:
    """Alice pays Bob."""

    def __init__(self, world: World, alice: TestNode, bob: TestNode) -> None:
        self.world = world
        self.alice = alice
        self.bob = bob
        self.channels: list[bytes] = []
        self.payments: list[asyncio.Task[PaymentView]] = []

    async def open(self) -> None:
        self.channels.append(await self.world.open(self.alice, self.bob, CHANNEL_SAT))

    def pay(self, invoice: InvoiceView) -> asyncio.Task[PaymentView]:
        self.payments.append(asyncio.ensure_future(self.alice.api.pay(invoice.bolt11, timeout_seconds=30)))
        return self.payments[-1]

    async def wait_state(self, payment_hash: bytes, state: str) -> InvoiceView:
        async def reached() -> InvoiceView | None:
            view = await self.bob.api.get_invoice(payment_hash)
            return view if view.state == state else None

        found = await self.bob.until(reached)
        assert isinstance(found, InvoiceView)
        return found

    async def accepted(self, payment_preimage: bytes, **options: Any) -> InvoiceView:
        payment_hash = sha256(payment_preimage).digest()
        invoice = await self.bob.api.create_invoice(AMOUNT_MSAT, "held", payment_hash=payment_hash, **options)
        self.pay(invoice)
        return await self.wait_state(payment_hash, "accepted")

    async def bob_owns(self) -> int:
        """At rest, in msat."""
        await self.quiet()
        return sum(channel.local_msat for channel in await self.bob.api.list_channels())

    async def bob_restarts(self) -> None:
        await self.bob.restart()
        for channel in self.channels:
            await self.bob.wait_active(channel)
            await self.alice.wait_active(channel)

    async def quiet(self) -> None:
        for node in (self.alice, self.bob):
            for channel in self.channels:
                await node.wait_no_htlcs(channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    async with world_in(Path(tmp_path_factory.mktemp("hold"))) as world:
        two = Two(world, await world.node("alice"), await world.node("bob"))
        await world.fund(two.alice, 10_000_000)
        for _ in range(2):
            await two.open()
        yield two


@pytest_asyncio.fixture(loop_scope="module")
async def two(shared: Two) -> AsyncIterator[Two]:
    """The same two nodes for all tests; each begins with no payment under way."""
    shared.payments.clear()
    yield shared
    for payment in shared.payments:
        payment.cancel()
    await asyncio.gather(*shared.payments, return_exceptions=True)


async def test_a_payment_waits_across_restarts_until_it_is_settled(two: Two) -> None:
    preimage = os.urandom(32)
    before = await two.bob_owns()
    accepted = await two.accepted(preimage)
    assert accepted.is_hold
    assert accepted.received_msat == AMOUNT_MSAT
    assert accepted.payment_preimage is None
    payment_hash = accepted.payment_hash
    await two.bob_restarts()
    assert (await two.bob.api.get_invoice(payment_hash)).state == "accepted"
    with pytest.raises(NodeError, match="does not know"):
        await two.bob.api.settle_invoice(payment_hash)
    with pytest.raises(NodeError, match="not the preimage"):
        await two.bob.api.settle_invoice(payment_hash, bytes(32))
    settled = await two.bob.api.settle_invoice(payment_hash, preimage)
    assert (settled.state, settled.payment_preimage) == ("settled", preimage)
    paid = await two.payments[0]
    assert (paid.state, paid.payment_preimage) == ("succeeded", preimage)
    assert (await two.bob.api.settle_invoice(payment_hash, preimage)).state == "settled"  # once more is no error
    with pytest.raises(NodeError, match="was paid"):
        await two.bob.api.cancel_invoice(payment_hash)
    assert await two.bob_owns() == before + AMOUNT_MSAT


async def test_what_was_accepted_is_not_refused_after_a_restart(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    # what counts as too much dust changes with fee rates; half of a set must not go back while the other half is taken
    preimage = os.urandom(32)
    accepted = await two.accepted(preimage)
    monkeypatch.setattr("channeld.channel.limits.exceeds_dust_exposure", lambda *_: True)
    await two.bob_restarts()
    assert (await two.bob.api.get_invoice(accepted.payment_hash)).state == "accepted"
    await two.bob.api.settle_invoice(accepted.payment_hash, preimage)
    assert (await two.payments[0]).state == "succeeded"


async def test_a_canceled_payment_goes_back(two: Two) -> None:
    preimage = os.urandom(32)
    before = await two.bob_owns()
    accepted = await two.accepted(preimage)
    again = two.pay(accepted)
    with pytest.raises(NodeError):  # one payment of a hash at a time
        await again
    assert (await two.bob.api.cancel_invoice(accepted.payment_hash)).state == "canceled"
    failed = await two.payments[0]
    assert failed.state == "failed"
    assert "incorrect_or_unknown_payment_details" in failed.failure
    with pytest.raises(NodeError, match="canceled"):
        await two.bob.api.settle_invoice(accepted.payment_hash, preimage)
    assert await two.bob_owns() == before


async def test_a_preimage_that_is_kept_back_settles_by_its_hash(two: Two) -> None:
    invoice = await two.bob.api.create_invoice(None, "any amount", hold=True)
    with pytest.raises(NodeError, match="not paid yet"):
        await two.bob.api.settle_invoice(invoice.payment_hash)
    paying = asyncio.ensure_future(two.alice.api.pay(invoice.bolt11, AMOUNT_MSAT))
    await two.wait_state(invoice.payment_hash, "accepted")
    settled = await two.bob.api.settle_invoice(invoice.payment_hash)
    assert (await paying).payment_preimage == settled.payment_preimage


async def test_a_payment_in_two_parts_is_accepted_when_both_are_here(two: Two) -> None:
    before = await two.bob_owns()
    preimage = os.urandom(32)
    payment_hash = sha256(preimage).digest()
    invoice = await two.bob.api.create_invoice(PARTS_MSAT, "in parts", payment_hash=payment_hash)
    two.pay(invoice)
    await two.wait_state(payment_hash, "accepted")
    await two.bob_restarts()
    await two.bob.api.settle_invoice(payment_hash, preimage)
    paid = await two.payments[0]
    assert (paid.state, paid.parts) == ("succeeded", 2)
    assert await two.bob_owns() == before + PARTS_MSAT


async def test_what_nobody_decides_goes_back_before_it_expires(two: Two) -> None:
    preimage = os.urandom(32)
    before, since = await two.bob_owns(), two.bob.runtime.bus._sequence
    accepted = await two.accepted(preimage, min_final_cltv_expiry_delta=LEAST_DELTA_BLOCKS)
    assert accepted.deadline_height is not None
    height = (await two.bob.api.info()).block_height
    left = accepted.deadline_height - LATEST_BLOCKS - height
    assert 0 <= left <= WARN_BLOCKS
    await two.world.mine(left)
    assert (await two.bob.api.get_invoice(accepted.payment_hash)).state == "accepted"
    await two.world.mine()
    assert (await two.wait_state(accepted.payment_hash, "canceled")).received_msat == AMOUNT_MSAT
    failed = await two.payments[0]
    assert failed.state == "failed"
    with pytest.raises(NodeError, match="canceled"):
        await two.bob.api.settle_invoice(accepted.payment_hash, preimage)
    told: list[str] = []
    async for event in two.bob.runtime.bus.stream(since):
        if event.kind.startswith("invoice."):
            told.append(event.kind)
        if event.kind == "invoice.canceled":
            break
    assert told == ["invoice.created", "invoice.accepted", "invoice.expiring", "invoice.canceled"]
    assert await two.bob_owns() == before
    assert all([(await two.bob.wait_active(channel)).phase == "normal" for channel in two.channels])


async def _crashed(node: TestNode) -> bool:
    node.hook.disarm()
    try:
        await node.flush()
    except StoreFailed:
        await node.runtime.stopped.wait()
    return node.has_crashed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("decision", ["settle", "cancel"])
async def test_the_recipient_dies_at_every_commit_of_a_decision(
    two: Two, when: Literal["before", "after"], decision: str
) -> None:
    owned = await two.bob_owns()
    for commit in range(1, MOST_COMMITS):
        preimage = os.urandom(32)
        accepted = await two.accepted(preimage)
        two.bob.hook.arm(commit, when)
        verb = two.bob.api.settle_invoice if decision == "settle" else two.bob.api.cancel_invoice
        arguments = (accepted.payment_hash, preimage) if decision == "settle" else (accepted.payment_hash,)
        deciding = asyncio.ensure_future(verb(*arguments))
        stopped = asyncio.ensure_future(two.bob.runtime.stopped.wait())
        await asyncio.wait({two.payments[-1], stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        crashed = await _crashed(two.bob)
        await asyncio.gather(deciding, return_exceptions=True)
        if crashed:
            await two.bob_restarts()
            await (two.bob.api.settle_invoice if decision == "settle" else two.bob.api.cancel_invoice)(*arguments)
        paid = await asyncio.wait_for(two.payments[-1], 60)
        assert paid.state == ("succeeded" if decision == "settle" else "failed")
        owned += AMOUNT_MSAT if decision == "settle" else 0
        assert await two.bob_owns() == owned
        if not crashed:
            break
    assert commit > 1, "no commit of the decision was hit"


# --- keysend ------------------------------------------------------------------------------------------------------


async def _send(
    two: Two, payer: RawPayer, payload: PaymentPayload, preimage: bytes, msat: int = AMOUNT_MSAT
) -> f.Failure | None:
    height = (await two.bob.api.info()).block_height
    hops = [(two.bob.node_id, payload)]
    outcome = await payer.pay(two.channels[0], hops, sha256(preimage).digest(), msat, height + 42)
    if outcome.failure is None:
        assert outcome.preimage == preimage
        assert outcome.attribution is not None
        assert outcome.attribution.unproven_hop is None
    return outcome.failure


async def test_a_payment_that_nobody_asked_for(two: Two) -> None:
    payer = RawPayer(two.alice)
    height = (await two.bob.api.info()).block_height
    preimage = os.urandom(32)
    records = ((65_537, b"for you"), (7_629_169, b"{}"))
    assert await _send(two, payer, keysend_payload(AMOUNT_MSAT, height + 42, preimage, records), preimage) is None
    shown = await two.bob.api.get_invoice(sha256(preimage).digest())
    assert (shown.state, shown.kind, shown.received_msat) == ("settled", "keysend", AMOUNT_MSAT)
    assert shown.custom_records == records
    assert (shown.payment_preimage, shown.bolt11) == (preimage, "")
    again = await _send(two, payer, keysend_payload(AMOUNT_MSAT, height + 42, preimage), preimage)
    assert again == f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, height)
    await two.bob_restarts()
    again = await _send(two, payer, keysend_payload(AMOUNT_MSAT, height + 42, preimage), preimage)
    assert again == f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, height)


async def test_payments_that_are_no_keysend(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = RawPayer(two.alice)
    height = (await two.bob.api.info()).block_height
    preimage = os.urandom(32)
    unknown = f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, height)
    wrong = keysend_payload(AMOUNT_MSAT, height + 42, os.urandom(32))
    assert await _send(two, payer, wrong, preimage) == unknown
    even = keysend_payload(AMOUNT_MSAT, height + 42, preimage, ((65_536, b"even"),))
    refused = await _send(two, payer, even, preimage)
    assert isinstance(refused, f.InvalidOnionPayload)
    assert refused.type == 65_536
    part = PaymentPayload(AMOUNT_MSAT, height + 42, total_amount_msat=2 * AMOUNT_MSAT, keysend_preimage=preimage)
    assert await _send(two, payer, part, preimage) == unknown
    asked = await two.bob.api.create_invoice(AMOUNT_MSAT, "asked for", payment_preimage=preimage)
    assert await _send(two, payer, keysend_payload(AMOUNT_MSAT, height + 42, preimage), preimage) == unknown
    assert (await two.bob.api.get_invoice(asked.payment_hash)).state == "open"
    await two.bob.api.cancel_invoice(asked.payment_hash)
    assert await _send(two, payer, keysend_payload(AMOUNT_MSAT, height + 42, preimage), preimage) == unknown
    monkeypatch.setattr(two.bob.runtime.receiver, "_accept_keysend", False)
    other = os.urandom(32)
    assert await _send(two, payer, keysend_payload(AMOUNT_MSAT, height + 42, other), other) == unknown


async def test_a_keysend_in_two_parts_with_a_secret_of_the_payers(two: Two) -> None:
    payer = RawPayer(two.alice)
    height = (await two.bob.api.info()).block_height
    preimage, secret = os.urandom(32), os.urandom(32)
    payload = PaymentPayload(
        AMOUNT_MSAT, height + 42, payment_data=PaymentData(secret, 2 * AMOUNT_MSAT), keysend_preimage=preimage
    )
    hops = [(two.bob.node_id, payload)]
    payment_hash = sha256(preimage).digest()
    first = payer.offer(two.channels[0], hops, payment_hash, AMOUNT_MSAT, height + 42)
    stranger = final_payload(AMOUNT_MSAT, height + 42, os.urandom(32), 2 * AMOUNT_MSAT)
    refused = await payer.pay(two.channels[0], [(two.bob.node_id, stranger)], payment_hash, AMOUNT_MSAT, height + 42)
    assert refused.failure == f.IncorrectOrUnknownPaymentDetails(AMOUNT_MSAT, height)
    assert not first.done()
    second = await payer.pay(two.channels[0], hops, payment_hash, AMOUNT_MSAT, height + 42)
    assert (await first).preimage == second.preimage == preimage
    assert (await two.bob.api.get_invoice(payment_hash)).received_msat == 2 * AMOUNT_MSAT


async def test_two_invoices_of_one_preimage_at_once(two: Two) -> None:
    preimage = os.urandom(32)
    made = await asyncio.gather(
        *(two.bob.api.create_invoice(1_000, name, payment_preimage=preimage) for name in "ab"), return_exceptions=True
    )
    (refusal,) = [each for each in made if isinstance(each, NodeError)]
    assert refusal.kind == "already_exists"
    (view,) = [each for each in made if isinstance(each, InvoiceView)]
    assert (await two.alice.api.pay(view.bolt11)).state == "succeeded"


async def test_an_invoice_may_not_ask_for_too_little_time(two: Two) -> None:
    for delta in (LEAST_DELTA_BLOCKS - 1, 1009):
        with pytest.raises(NodeError, match="between"):
            await two.bob.api.create_invoice(1_000, "soon", min_final_cltv_expiry_delta=delta)


# --- on chain: last, for it takes a channel -----------------------------------------------------------------------


async def test_a_payment_whose_channel_was_closed_is_settled_on_chain(two: Two) -> None:
    preimage = os.urandom(32)
    accepted = await two.accepted(preimage)
    (closed,) = [c.channel_id for c in await two.alice.api.list_channels() if c.htlcs]
    await two.alice.api.close_channel(closed, force=True)
    await two.world.mine(2)
    assert (await two.bob.api.get_invoice(accepted.payment_hash)).state == "accepted"
    settled = await two.bob.api.settle_invoice(accepted.payment_hash, preimage)
    assert settled.state == "settled"
    for _ in range(8):  # Bob's transaction takes the HTLC, and Alice finds the preimage in it
        await two.world.mine()
    paid = await two.payments[0]
    assert (paid.state, paid.payment_preimage) == ("succeeded", preimage)
