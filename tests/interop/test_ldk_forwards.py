"""LDK between two of our daemons: what it forwards, what it refuses, and what the payer learns of that."""

from __future__ import annotations

import asyncio
import os

import pytest

from channeld.lab import DaemonProcess
from channeld.v1 import invoices_pb2, payments_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer
from tests.interop.steps import SUCCEEDED, attempts, hold_invoice, ldk_opens, wait_accepted, we_open

pytestmark = pytest.mark.interop
FAILED = payments_pb2.PAYMENT_STATE_FAILED
AMOUNT_MSAT = 20_000_000
LDK_FEE_MSAT = 1000
LDK_DELTA_BLOCKS = 72
INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS = 0x400F
TEMPORARY_CHANNEL_FAILURE = 0x1007
UNKNOWN_NEXT_PEER = 0x400A


async def test_ldk_between_us(lab: MixedLab) -> None:
    alice, bob = await lab.daemons("alice", "bob")
    ldk = await lab.ldk("ldk")
    await we_open(lab, alice, ldk, push_msat=200_000_000)
    await ldk_opens(lab, ldk, bob, push_msat=500_000_000)
    for daemon in (alice, bob):
        await _knows_terms(daemon)
    await _forwarded(alice, bob, ldk)
    await _forwarded(bob, alice, ldk)
    await _refused_at_the_end(alice, bob)
    await _refused_in_the_middle(alice, bob)
    await _held_over_a_kill(lab, alice, bob, ldk)
    await _nobody_there(alice, bob)


async def _knows_terms(daemon: DaemonProcess) -> None:
    """Until LDK's `channel_update` is here, so that our invoices say what LDK asks for."""
    async with asyncio.timeout(30):
        while True:  # no event tells; each round asks the daemon
            invoice = await daemon.invoice(AMOUNT_MSAT, "what does the hint say?")
            decoded = await daemon.client.payments.Decode(payments_pb2.DecodeRequest(invoice=invoice.bolt11))
            (hint,) = decoded.route_hints
            if hint.hops[0].fee_base_msat == LDK_FEE_MSAT and hint.hops[0].cltv_expiry_delta_blocks == LDK_DELTA_BLOCKS:
                return


async def _forwarded(payer: DaemonProcess, payee: DaemonProcess, ldk: LdkPeer) -> None:
    """Over the hint in the invoice; LDK gets its fee, and does not attribute (BOLT 4): nobody says how long it took."""
    mark = ldk.mark()
    amount_msat = AMOUNT_MSAT if payer.name == "alice" else AMOUNT_MSAT // 4
    invoice = await payee.invoice(amount_msat, "through LDK")
    payment = await payer.pay(invoice.bolt11)
    assert payment.state == SUCCEEDED, payment.failure
    assert payment.fee_msat == LDK_FEE_MSAT
    assert (await ldk.wait("PaymentForwarded", mark))["fee_msat"] == LDK_FEE_MSAT
    (attempt,) = await attempts(payer, invoice.payment_hash)
    assert [hop.node_id for hop in attempt.hops] == [ldk.node_id, payee.node_id]
    assert not any(hop.HasField("hold_time_ms") for hop in attempt.hops)
    received = await payee.received(invoice.payment_hash)
    assert (received.state, received.received_msat) == (invoices_pb2.INVOICE_STATE_SETTLED, amount_msat)


async def _refused_at_the_end(alice: DaemonProcess, bob: DaemonProcess) -> None:
    """Bob does not want it: his words come back through LDK."""
    invoice = await hold_invoice(bob, AMOUNT_MSAT, os.urandom(32))
    paying = asyncio.ensure_future(alice.pay(invoice.bolt11))
    await wait_accepted(bob, invoice.payment_hash)
    await bob.client.invoices.Cancel(invoices_pb2.CancelInvoiceRequest(payment_hash=invoice.payment_hash))
    payment = await paying
    assert payment.state == FAILED
    (attempt,) = await attempts(alice, invoice.payment_hash)
    assert (attempt.failure_code, attempt.failing_hop) == (INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, 1)


async def _refused_in_the_middle(alice: DaemonProcess, bob: DaemonProcess) -> None:
    """LDK has less on its side of Bob's channel than Alice could send."""
    invoice = await bob.invoice(600_000_000, "too much for LDK")
    payment = await alice.pay(invoice.bolt11, max_parts=1, timeout_seconds=5)
    assert payment.state == FAILED
    first = (await attempts(alice, invoice.payment_hash))[0]
    assert (first.failure_code, first.failing_hop) == (TEMPORARY_CHANNEL_FAILURE, 0)


async def _held_over_a_kill(lab: MixedLab, alice: DaemonProcess, bob: DaemonProcess, ldk: LdkPeer) -> None:
    """The payer is killed (-9) while its payment is held at the far end, then LDK: the payment arrives once."""
    preimage = os.urandom(32)
    invoice = await hold_invoice(bob, AMOUNT_MSAT, preimage)
    paying = asyncio.ensure_future(alice.pay(invoice.bolt11))
    await wait_accepted(bob, invoice.payment_hash)
    await alice.kill()
    await asyncio.gather(paying, return_exceptions=True)
    await alice.start()
    await ldk.crash()
    await ldk.start()
    await bob.client.invoices.Settle(invoices_pb2.SettleInvoiceRequest(payment_preimage=preimage))
    for daemon in (alice, bob):
        await lab.connect_ldk(ldk, daemon)
    payment = await alice.wait_payment(invoice.payment_hash)
    assert (payment.state, payment.payment_preimage) == (SUCCEEDED, preimage)


async def _nobody_there(alice: DaemonProcess, bob: DaemonProcess) -> None:
    """Bob is away: LDK says so."""
    invoice = await bob.invoice(AMOUNT_MSAT, "away")
    await bob.kill()
    payment = await alice.pay(invoice.bolt11, timeout_seconds=5)
    assert payment.state == FAILED
    first = (await attempts(alice, invoice.payment_hash))[0]
    assert first.failure_code in (TEMPORARY_CHANNEL_FAILURE, UNKNOWN_NEXT_PEER)
    assert first.failing_hop == 0
