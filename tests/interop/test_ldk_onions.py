"""Onion features with LDK: offers paid through us, keysend, a payment that is held."""

from __future__ import annotations

import os
from hashlib import sha256

import pytest

from channeld.lab import DaemonProcess
from channeld.v1 import channels_pb2, invoices_pb2, peers_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer
from tests.interop.test_ldk_channel import CAPACITY_SAT, ldk_opens

pytestmark = pytest.mark.interop
AMOUNT_MSAT = 25_000_000


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
    payment_hash = sha256(preimage).digest()
    create = invoices_pb2.CreateInvoiceRequest(amount_msat=AMOUNT_MSAT, description="held", payment_hash=payment_hash)
    created = (await alice.client.invoices.Create(create)).invoice
    await ldk.call("pay", bolt11=created.bolt11)

    async def accepted() -> bool:
        request = invoices_pb2.GetInvoiceRequest(payment_hash=payment_hash)
        invoice = (await alice.client.invoices.Get(request)).invoice
        return bool(invoice.state == invoices_pb2.INVOICE_STATE_ACCEPTED)

    await alice.wait_until(accepted)
    return payment_hash
