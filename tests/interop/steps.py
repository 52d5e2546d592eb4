"""What the scenarios with LDK are made of: open a channel, pay, compare, close."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

from channeld.lab import DaemonProcess
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2, peers_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer

SUCCEEDED = payments_pb2.PAYMENT_STATE_SUCCEEDED
CAPACITY_SAT = 1_000_000


async def we_open(
    lab: MixedLab, alice: DaemonProcess, ldk: LdkPeer, *, private: bool = True, **fields: Any
) -> channels_pb2.Channel:
    """Our daemon opens to LDK; usable on both sides. Mines."""
    await lab.fund(alice, 2 * CAPACITY_SAT)
    await connect(alice, ldk)
    mark = ldk.mark()
    request = channels_pb2.OpenChannelRequest(node_id=ldk.node_id, amount_sat=CAPACITY_SAT, private=private, **fields)
    channel = (await alice.client.channels.Open(request)).channel
    await lab.mine(6)
    await ldk.wait("ChannelReady", mark)
    return await alice.wait_channel(channel.channel_id)


async def ldk_opens(
    lab: MixedLab, ldk: LdkPeer, alice: DaemonProcess, *, push_msat: int = 0, **wishes: Any
) -> channels_pb2.Channel:
    """LDK opens to our daemon; usable on both sides. Mines."""
    await lab.connect_ldk(ldk, alice)
    mark = ldk.mark()
    await ldk.call("open", node_id=alice.node_id.hex(), amount_sat=CAPACITY_SAT, push_msat=push_msat, channels=wishes)
    pending = await ldk.wait("ChannelPending", mark)
    await lab.mine(6)
    await ldk.wait("ChannelReady", mark)
    return await alice.wait_channel(bytes.fromhex(pending["channel_id"]))


async def connect(alice: DaemonProcess, ldk: LdkPeer) -> None:
    """Our daemon dials LDK."""
    request = peers_pb2.ConnectPeerRequest(node_id=ldk.node_id, host="127.0.0.1", port=ldk.port)
    await alice.client.peers.Connect(request)


async def hold_invoice(alice: DaemonProcess, amount_msat: int, preimage: bytes, **fields: Any) -> invoices_pb2.Invoice:
    """An invoice of ours whose payment waits for a word."""
    return await alice.invoice(amount_msat, "held", payment_hash=sha256(preimage).digest(), **fields)


async def wait_accepted(alice: DaemonProcess, payment_hash: bytes) -> None:
    """Until the payment of a hold invoice of ours is here."""

    async def accepted() -> bool:
        return bool((await alice.received(payment_hash)).state == invoices_pb2.INVOICE_STATE_ACCEPTED)

    await alice.wait_until(accepted)


async def ldk_holds(alice: DaemonProcess, ldk: LdkPeer, amount_msat: int) -> tuple[asyncio.Task[Any], bytes, bytes]:
    """We pay LDK, which (with auto.claim off) has not claimed yet: our waiting call, the hash and the preimage."""
    mark = ldk.mark()
    bolt11 = await ldk.call("invoice", amount_msat=amount_msat, description="held")
    paying = asyncio.ensure_future(alice.pay(bolt11))
    claimable = await ldk.wait("PaymentClaimable", mark)
    return paying, bytes.fromhex(claimable["payment_hash"]), bytes.fromhex(claimable["preimage"])


async def attempts(alice: DaemonProcess, payment_hash: bytes) -> list[payments_pb2.Attempt]:
    """How our daemon tried to make a payment."""
    request = payments_pb2.GetPaymentRequest(payment_hash=payment_hash)
    return list((await alice.client.payments.Get(request)).attempts)


async def pay_ldk(alice: DaemonProcess, ldk: LdkPeer, amount_msat: int) -> None:
    """We pay an invoice of LDK's."""
    mark = ldk.mark()
    payment = await alice.pay(await ldk.call("invoice", amount_msat=amount_msat, description="goods"))
    assert payment.state == SUCCEEDED, payment.failure
    payment_hash = payment.payment_hash.hex()
    await ldk.wait("PaymentClaimed", mark, lambda event: event["payment_hash"] == payment_hash)


async def ldk_pays(ldk: LdkPeer, alice: DaemonProcess, amount_msat: int) -> None:
    """LDK pays an invoice of ours."""
    mark = ldk.mark()
    invoice = await alice.invoice(amount_msat, "goods")
    await ldk.call("pay", bolt11=invoice.bolt11)
    payment_hash = invoice.payment_hash.hex()
    await ldk.wait("PaymentSent", mark, lambda event: event["payment_hash"] == payment_hash)


async def balances_agree(alice: DaemonProcess, ldk: LdkPeer, channel_id: bytes) -> int:
    """Both sides count the same once nothing is under way; our msat."""

    async with asyncio.timeout(20):
        while True:  # each round asks both over the network; the last revocation is no event for either
            (ours,) = [channel for channel in await alice.channels() if channel.channel_id == channel_id]
            (theirs,) = [c for c in await ldk.call("channels") if c["channel_id"] == channel_id.hex()]
            if not ours.htlcs and not theirs["htlcs"]:
                break
    reserve_msat = (theirs["reserve_sat"] or 0) * 1000
    assert ours.local_msat + ours.remote_msat == theirs["capacity_sat"] * 1000
    # LDK shows what it may send: its balance less its reserve and, if it is the opener, less fees and anchors.
    assert theirs["outbound_msat"] <= ours.remote_msat
    assert theirs["outbound_msat"] + reserve_msat >= min(ours.remote_msat, reserve_msat)
    return int(ours.local_msat)


async def closed_on_chain(lab: MixedLab, alice: DaemonProcess, ldk: LdkPeer, channel_id: bytes, mark: int) -> None:
    """The mutual close is mined, our wallet has its share, LDK sweeps its own."""
    closed = await ldk.wait("ChannelClosed", mark)
    assert "CooperativeClosure" in closed["reason"], closed
    await lab.mine(6)
    await alice.wait_closed(channel_id)
    await ldk.wait("SpendableOutputs", mark, lambda event: event["swept"])
