"""Private paths, we - LDK - we - LDK: what the one in the middle passes on or refuses, and what payers learn."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

import pytest
import pytest_asyncio

from channeld.bolt.invoice import decode_invoice
from channeld.lab import DaemonProcess
from channeld.lab.daemon import LOOK_SECONDS
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2
from tests.interop.conftest import MixedLab
from tests.interop.knife import ADD, HMAC_BYTE, KEY_BYTE, VERSION_BYTE, Knife
from tests.interop.ldk_peer import WAIT_SECONDS, Event, LdkPeer
from tests.interop.steps import (
    FAILED,
    FEE_INSUFFICIENT,
    INCORRECT_CLTV_EXPIRY,
    INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS,
    INVALID_ONION_HMAC,
    INVALID_ONION_KEY,
    INVALID_ONION_VERSION,
    SUCCEEDED,
    TEMPORARY_CHANNEL_FAILURE,
    UNKNOWN_NEXT_PEER,
    attempts,
    hold_invoice,
    ldk_opens,
    ldk_refused,
    pay_ldk,
    refused,
    reworded,
    settle,
    wait_accepted,
    we_hold,
    we_open,
)

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]
AMOUNT_MSAT = 20_000_000
LDK_FEE_MSAT = 1000
LDK_DELTA_BLOCKS = 72
SPOILED = ((VERSION_BYTE, INVALID_ONION_VERSION), (KEY_BYTE, INVALID_ONION_KEY), (HMAC_BYTE, INVALID_ONION_HMAC))


@dataclass
class Line:
    """Alice and Bob are daemons of ours, Lena and Ludwig are LDK nodes: Alice - Lena - Bob - Ludwig."""

    lab: MixedLab
    alice: DaemonProcess
    lena: LdkPeer
    knife: Knife
    ludwig: LdkPeer

    @property
    def bob(self) -> DaemonProcess:
        """Who can spoil what goes through him."""
        return self.knife.daemon

    async def mend(self) -> None:
        """Whoever an earlier test left dead lives again, and all can use their channels."""
        dead = [daemon for daemon in (self.alice, self.bob) if not daemon.process.is_running]
        gone = [peer for peer in (self.lena, self.ludwig) if not peer.is_running]
        await asyncio.gather(*(daemon.start() for daemon in dead), *(peer.start() for peer in gone))
        for peer, daemon in ((self.lena, self.alice), (self.lena, self.bob), (self.ludwig, self.bob)):
            if peer in gone or daemon in dead:
                await self.lab.connect_ldk(peer, daemon)
        if dead or gone:
            for daemon in (self.alice, self.bob):
                for channel in await daemon.channels():
                    await daemon.wait_channel(channel.channel_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def short_line(lab: MixedLab) -> Line:
    """Alice has no channel yet."""
    alice, knife = lab.add_daemon("alice"), Knife(lab, "bob")
    lena, ludwig, *_ = await asyncio.gather(lab.ldk("lena"), lab.ldk("ludwig"), alice.start(), knife.daemon.start())
    line = Line(lab, alice, lena, knife, ludwig)
    await ldk_opens(lab, lena, line.bob, push_msat=300_000_000)
    await we_open(lab, line.bob, ludwig)
    return line


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_line(short_line: Line) -> Line:
    await short_line.mend()
    await we_open(short_line.lab, short_line.alice, short_line.lena, push_msat=200_000_000)
    await _usual_terms(short_line)
    return short_line


@pytest_asyncio.fixture(loop_scope="module")
async def line(whole_line: Line) -> Line:
    """All are there, whichever tests came before: test processes share a file's tests among them as they come."""
    await whole_line.mend()
    return whole_line


async def _usual_terms(line: Line) -> None:
    """Until all invoices of ours say what Lena asks for."""
    for daemon in (line.alice, line.bob):
        await _hint(line, daemon, fee_base_msat=LDK_FEE_MSAT, cltv_expiry_delta=LDK_DELTA_BLOCKS)


async def _hint(line: Line, daemon: DaemonProcess, **terms: int) -> invoices_pb2.Invoice:
    """Until our invoices say that Lena asks for this; such an invoice."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:  # no event tells; each round asks the daemon
            invoice = await daemon.invoice(AMOUNT_MSAT, "what does the hint say?")
            hops = [hop for (hop,) in decode_invoice(invoice.bolt11).routing_hints if hop.pubkey == line.lena.node_id]
            if hops and all(getattr(hops[0], name) == value for name, value in terms.items()):
                return invoice
            await asyncio.sleep(LOOK_SECONDS)


# --- what the one in the middle passes on


async def test_offer_through_bob(short_line: Line) -> None:
    """BOLT 12 over our onion messages, then a payment over a blinded path whose introduction node we are. LDK makes
    reply paths over peers that are not public only while it has no other peer: Alice comes later."""
    await short_line.mend()
    if await short_line.alice.channels():
        await short_line.alice.kill()  # another test was first
    offer = await short_line.ludwig.call("offer")
    mark, heard = short_line.lena.mark(), short_line.ludwig.mark()
    before = len(await short_line.bob.forwards())
    await short_line.lena.call("pay_offer", offer=offer, amount_msat=AMOUNT_MSAT, id=os.urandom(32).hex())
    sent = await short_line.lena.wait("PaymentSent", mark)
    claimed = await short_line.ludwig.wait("PaymentClaimed", heard)
    assert (claimed["payment_hash"], claimed["amount_msat"]) == (sent["payment_hash"], AMOUNT_MSAT)
    forward = await _newest_forward(short_line.bob, before)
    assert forward.outgoing_msat == AMOUNT_MSAT
    assert forward.fee_msat == 1000 + AMOUNT_MSAT // 1_000_000


async def test_lena_forwards_between_us(line: Line) -> None:
    """Over the hint in the invoice; LDK gets its fee, and does not attribute (BOLT 4): nobody says how long it took."""
    for payer, payee, amount_msat in ((line.alice, line.bob, AMOUNT_MSAT), (line.bob, line.alice, AMOUNT_MSAT // 4)):
        mark = line.lena.mark()
        invoice = await payee.invoice(amount_msat, "through LDK")
        payment = await payer.pay(invoice.bolt11)
        assert payment.state == SUCCEEDED, payment.failure
        assert payment.fee_msat == LDK_FEE_MSAT
        assert (await line.lena.wait("PaymentForwarded", mark))["fee_msat"] == LDK_FEE_MSAT
        (attempt,) = await attempts(payer, invoice.payment_hash)
        assert [hop.node_id for hop in attempt.hops] == [line.lena.node_id, payee.node_id]
        assert not any(hop.HasField("hold_time_ms") for hop in attempt.hops)
        received = await payee.received(invoice.payment_hash)
        assert (received.state, received.received_msat) == (invoices_pb2.INVOICE_STATE_SETTLED, amount_msat)


async def test_bob_forwards_between_ldk(line: Line) -> None:
    """Ludwig's invoice has a hint with our terms; then the same backwards."""
    for payer, payee in ((line.lena, line.ludwig), (line.ludwig, line.lena)):
        mark = payer.mark()
        before = len(await line.bob.forwards())
        amount_msat = AMOUNT_MSAT if payee is line.ludwig else AMOUNT_MSAT // 4
        bolt11 = await payee.call("invoice", amount_msat=amount_msat)
        payment_hash = await payer.call("pay", bolt11=bolt11)
        await payer.wait("PaymentSent", mark, partial(_is_of, payment_hash))
        forward = await _newest_forward(line.bob, before)
        assert (forward.outgoing_msat, forward.fee_msat) == (amount_msat, 1000 + amount_msat // 1_000_000)


def _is_of(payment_hash: str, event: Event) -> bool:
    return bool(event["payment_hash"] == payment_hash)


async def _newest_forward(bob: DaemonProcess, before: int) -> channels_pb2.Forward:
    """The forward that followed `before` others, as soon as it is over."""

    async def there() -> channels_pb2.Forward | None:
        found = await bob.forwards()
        return found[0] if len(found) > before else None

    found = await bob.wait_until(there)
    assert isinstance(found, channels_pb2.Forward)
    return found


# --- what is refused (BOLT 4, "Failure Messages")


async def test_lena_refuses(line: Line) -> None:
    """We pay us through LDK: code and hop of what is refused at the end, and in the middle."""
    alice, bob = line.alice, line.bob
    invoice = await hold_invoice(bob, AMOUNT_MSAT, os.urandom(32))
    paying = asyncio.ensure_future(alice.pay(invoice.bolt11))
    await wait_accepted(bob, invoice.payment_hash)
    await bob.client.invoices.Cancel(invoices_pb2.CancelInvoiceRequest(payment_hash=invoice.payment_hash))
    assert (await paying).state == FAILED
    (attempt,) = await attempts(alice, invoice.payment_hash)
    assert (attempt.failure_code, attempt.failing_hop) == (INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, 1)

    (has,) = [each for each in await line.lena.call("channels") if each["peer"] == bob.node_id.hex()]
    too_much = await bob.invoice(has["outbound_msat"] + 30_000_000, "Alice could send it, Lena has less")
    await refused(alice, too_much.bolt11, TEMPORARY_CHANNEL_FAILURE)
    for place, code in SPOILED:
        line.knife.at("in", ADD, spoil=place)
        invoice = await bob.invoice(AMOUNT_MSAT, "Lena turns Bob's update_fail_malformed_htlc into a failure")
        await refused(alice, invoice.bolt11, code)


async def test_lena_has_new_terms(line: Line) -> None:
    """Invoices with her old ones are refused; Bob hears of the new ones, and tells them."""
    changes: tuple[tuple[dict[str, int], int], ...] = (
        ({"fee_base_msat": 2 * LDK_FEE_MSAT}, FEE_INSUFFICIENT),
        ({"cltv_expiry_delta": LDK_DELTA_BLOCKS + 20}, INCORRECT_CLTV_EXPIRY),
    )
    for change, code in changes:
        old = await line.bob.invoice(AMOUNT_MSAT, "made before")
        await line.lena.call("policy", **change)
        for _ in range(6):  # so long LDK grants its old terms
            await line.lena.call("tick")
        await refused(line.alice, old.bolt11, code)
        new = await _hint(line, line.bob, **change)
        assert (await line.alice.pay(new.bolt11)).state == SUCCEEDED
    await line.lena.call("policy", fee_base_msat=LDK_FEE_MSAT, cltv_expiry_delta=LDK_DELTA_BLOCKS)
    await _usual_terms(line)


async def test_bob_refuses(line: Line) -> None:
    """LDK pays LDK through us: who refused, and why, as LDK reads it."""
    lena, bob, ludwig = line.lena, line.bob, line.ludwig
    heard = ludwig.mark()
    await ludwig.call("set", auto={"claim": False})
    at_the_end = await ludwig.call("invoice", amount_msat=AMOUNT_MSAT, description="refused")
    refusing = asyncio.ensure_future(
        ldk_refused(lena, ludwig.node_id, INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, bolt11=at_the_end)
    )
    claimable = await ludwig.wait("PaymentClaimable", heard)
    await ludwig.call("fail", payment_hash=claimable["payment_hash"])
    await refusing
    await ludwig.call("set", auto={"claim": True})

    wrong_hints: tuple[tuple[dict[str, Any], int], ...] = (
        ({"fee_base_msat": 0, "fee_proportional_millionths": 0}, FEE_INSUFFICIENT),
        ({"cltv_expiry_delta": 5}, INCORRECT_CLTV_EXPIRY),
        ({"short_channel_id": 7 << 40 | 7 << 16}, UNKNOWN_NEXT_PEER),
    )
    for change, code in wrong_hints:
        bolt11 = await ludwig.call("invoice", amount_msat=AMOUNT_MSAT)
        ((hop,),) = decode_invoice(bolt11).routing_hints
        changed = await reworded(ludwig, bolt11, routing_hints=((replace(hop, **change),),))
        await ldk_refused(lena, bob.node_id, code, bolt11=changed)
    for place, code in SPOILED:
        line.knife.at("out", ADD, spoil=place)
        bolt11 = await ludwig.call("invoice", amount_msat=AMOUNT_MSAT)
        await ldk_refused(lena, bob.node_id, code, bolt11=bolt11)

    await pay_ldk(bob, ludwig, 700_000_000)
    too_much = await ludwig.call("invoice", amount_msat=400_000_000, description="Bob has less")
    await ldk_refused(lena, bob.node_id, TEMPORARY_CHANNEL_FAILURE, bolt11=too_much)


# --- what is held, and who goes away


async def test_keysend_and_hold_invoices(line: Line) -> None:
    """LDK pays us without an invoice, and into hold invoices that are settled or canceled after a kill -9 of ours."""
    lena, bob = line.lena, line.bob
    preimage, mark = os.urandom(32), lena.mark()
    await lena.call("keysend", node_id=bob.node_id.hex(), amount_msat=AMOUNT_MSAT, preimage=preimage.hex())
    assert (await lena.wait("PaymentSent", mark))["preimage"] == preimage.hex()
    received = await bob.received(sha256(preimage).digest())
    assert (received.kind, received.received_msat) == (invoices_pb2.INVOICE_KIND_KEYSEND, AMOUNT_MSAT)

    settled, canceled = [await we_hold(bob, lena, AMOUNT_MSAT) for _ in range(2)]
    await bob.kill()
    await bob.start()
    await line.lab.connect_ldk(lena, bob)
    mark = lena.mark()
    await settle(bob, settled)
    assert (await lena.wait("PaymentSent", mark))["preimage"] == settled.hex()
    payment_hash = sha256(canceled).digest()
    await bob.client.invoices.Cancel(invoices_pb2.CancelInvoiceRequest(payment_hash=payment_hash))
    assert (await lena.wait("PaymentFailed", mark))["payment_hash"] == payment_hash.hex()


async def test_held_over_kills(line: Line) -> None:
    """The payer is killed (-9) while its payment is held at the far end, then LDK: the payment arrives once."""
    preimage = os.urandom(32)
    invoice = await hold_invoice(line.bob, AMOUNT_MSAT, preimage)
    paying = asyncio.ensure_future(line.alice.pay(invoice.bolt11))
    await wait_accepted(line.bob, invoice.payment_hash)
    await line.alice.kill()
    await asyncio.gather(paying, return_exceptions=True)
    await line.alice.start()
    await line.lena.crash()
    await line.lena.start()
    await settle(line.bob, preimage)
    for daemon in (line.alice, line.bob):
        await line.lab.connect_ldk(line.lena, daemon)
    payment = await line.alice.wait_payment(invoice.payment_hash)
    assert (payment.state, payment.payment_preimage) == (SUCCEEDED, preimage)


async def test_nobody_there(line: Line) -> None:
    """The last hop is away: whoever is before it says so."""
    to_nobody = await line.ludwig.call("invoice", amount_msat=AMOUNT_MSAT, description="away")
    await line.ludwig.crash()
    await ldk_refused(line.lena, line.bob.node_id, TEMPORARY_CHANNEL_FAILURE, bolt11=to_nobody)

    invoice = await line.bob.invoice(AMOUNT_MSAT, "away")
    await line.bob.kill()
    payment = await line.alice.pay(invoice.bolt11, timeout_seconds=0.5)
    payment = await line.alice.wait_payment(payment.payment_hash)
    assert payment.state == payments_pb2.PAYMENT_STATE_FAILED
    first = (await attempts(line.alice, invoice.payment_hash))[0]
    assert first.failure_code in (TEMPORARY_CHANNEL_FAILURE, UNKNOWN_NEXT_PEER)
    assert first.failing_hop == 0
