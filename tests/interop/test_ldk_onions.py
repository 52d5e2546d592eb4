"""Onion features with LDK: offers paid through us, keysend, a payment that is held."""

from __future__ import annotations

import os
from hashlib import sha256

import pytest

from channeld.lab import DaemonProcess
from channeld.v1 import channels_pb2, invoices_pb2, peers_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer
from tests.interop.steps import CAPACITY_SAT, hold_invoice, ldk_opens, pay_ldk, wait_accepted

pytestmark = pytest.mark.interop
AMOUNT_MSAT = 25_000_000
INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS = 0x400F
TEMPORARY_CHANNEL_FAILURE = 0x1007
UNKNOWN_NEXT_PEER = 0x400A


async def _to_payee(lab: MixedLab, alice: DaemonProcess, payee: LdkPeer) -> None:
    """A private channel from us to an LDK that gets paid, and LDK has our terms for it."""
    await lab.fund(alice, 2 * CAPACITY_SAT)
    await alice.client.peers.Connect(
        peers_pb2.ConnectPeerRequest(node_id=payee.node_id, host="127.0.0.1", port=payee.port)
    )
    request = channels_pb2.OpenChannelRequest(node_id=payee.node_id, amount_sat=CAPACITY_SAT, private=True)
    channel = (await alice.client.channels.Open(request)).channel
    await lab.mine(6)
    await payee.wait("ChannelReady")
    await alice.wait_channel(channel.channel_id)


async def test_onion_features_with_ldk(lab: MixedLab) -> None:
    (alice,) = await lab.daemons("alice")
    payer, payee = await lab.ldk("payer"), await lab.ldk("payee")
    channel = await ldk_opens(lab, payer, alice, push_msat=100_000_000)
    await _to_payee(lab, alice, payee)
    await _offer_through_us(alice, payer, payee)
    await _failures_through_us(alice, payer, payee)
    await _keysend(alice, payer)
    settled, canceled = os.urandom(32), os.urandom(32)
    held = {preimage: await _held(alice, payer, preimage) for preimage in (settled, canceled)}
    await alice.kill()
    await alice.start()
    await lab.wait_synced()
    await lab.connect_ldk(payer, alice)
    await alice.wait_channel(channel.channel_id)
    mark = payer.mark()
    await alice.client.invoices.Settle(invoices_pb2.SettleInvoiceRequest(payment_preimage=settled))
    assert (await payer.wait("PaymentSent", mark))["preimage"] == settled.hex()
    await alice.client.invoices.Cancel(invoices_pb2.CancelInvoiceRequest(payment_hash=held[canceled]))
    assert (await payer.wait("PaymentFailed", mark))["payment_hash"] == held[canceled].hex()


async def _offer_through_us(alice: DaemonProcess, payer: LdkPeer, payee: LdkPeer) -> None:
    """BOLT 12 over our onion messages, then a payment over a blinded path whose introduction node we are."""
    offer = await payee.call("offer")
    mark, heard = payer.mark(), payee.mark()
    await payer.call("pay_offer", offer=offer, amount_msat=AMOUNT_MSAT, id=os.urandom(32).hex())
    sent = await payer.wait("PaymentSent", mark)
    claimed = await payee.wait("PaymentClaimed", heard)
    assert (claimed["payment_hash"], claimed["amount_msat"]) == (sent["payment_hash"], AMOUNT_MSAT)
    (forward,) = await alice.forwards()
    assert forward.outgoing_msat == AMOUNT_MSAT
    assert forward.fee_msat == 1000 + AMOUNT_MSAT // 1_000_000


async def _keysend(alice: DaemonProcess, ldk: LdkPeer) -> None:
    preimage = os.urandom(32)
    mark = ldk.mark()
    await ldk.call("keysend", node_id=alice.node_id.hex(), amount_msat=AMOUNT_MSAT, preimage=preimage.hex())
    assert (await ldk.wait("PaymentSent", mark))["preimage"] == preimage.hex()
    request = invoices_pb2.GetInvoiceRequest(payment_hash=sha256(preimage).digest())
    invoice = (await alice.client.invoices.Get(request)).invoice
    assert (invoice.kind, invoice.received_msat) == (invoices_pb2.INVOICE_KIND_KEYSEND, AMOUNT_MSAT)


async def _held(alice: DaemonProcess, ldk: LdkPeer, preimage: bytes) -> bytes:
    """A payment of LDK's that is accepted; its hash."""
    created = await hold_invoice(alice, AMOUNT_MSAT, preimage)
    await ldk.call("pay", bolt11=created.bolt11)
    await wait_accepted(alice, created.payment_hash)
    return bytes(created.payment_hash)


async def _failures_through_us(alice: DaemonProcess, payer: LdkPeer, payee: LdkPeer) -> None:
    """LDK pays LDK through us, and learns who refused and why (BOLT 4, "Failure Messages")."""
    at_the_end = await payee.call("invoice", amount_msat=AMOUNT_MSAT, description="refused")
    mark, heard = payer.mark(), payee.mark()
    await payee.call("set", auto={"claim": False})
    await payer.call("pay", bolt11=at_the_end)
    claimable = await payee.wait("PaymentClaimable", heard)
    await payee.call("fail", payment_hash=claimable["payment_hash"])
    await payee.call("set", auto={"claim": True})
    told = await payer.wait("onion_error", mark)
    assert (told["from"], told["code"]) == (payee.node_id.hex(), INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS)
    await payer.wait("PaymentFailed", mark)

    mark = payer.mark()  # what went to the payee does not come back: we cannot pass on this much
    in_the_middle = await payee.call("invoice", amount_msat=750_000_000, description="too much for us")
    await _drain(alice, payee)
    await payer.call("pay", bolt11=in_the_middle)
    told = await payer.wait("onion_error", mark)
    assert (told["from"], told["code"]) == (alice.node_id.hex(), TEMPORARY_CHANNEL_FAILURE)
    await payer.wait("PaymentFailed", mark)

    mark = payer.mark()
    to_nobody = await payee.call("invoice", amount_msat=AMOUNT_MSAT, description="away")
    await payee.crash()
    await payer.call("pay", bolt11=to_nobody)
    told = await payer.wait("onion_error", mark)
    assert told["from"] == alice.node_id.hex()
    assert told["code"] in (TEMPORARY_CHANNEL_FAILURE, UNKNOWN_NEXT_PEER)
    await payer.wait("PaymentFailed", mark)


async def _drain(alice: DaemonProcess, payee: LdkPeer) -> None:
    """We pay the payee, so that little is left for what we forward to it."""
    await pay_ldk(alice, payee, 300_000_000)
