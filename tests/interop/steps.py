"""What the scenarios with LDK are made of: open a channel, pay, compare, close."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from hashlib import sha256
from typing import Any

from channeld.bolt.invoice import decode_invoice, encode_invoice
from channeld.lab import DaemonProcess
from channeld.lab.daemon import LOOK_SECONDS
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2, peers_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import WAIT_SECONDS, LdkPeer

SUCCEEDED = payments_pb2.PAYMENT_STATE_SUCCEEDED
FAILED = payments_pb2.PAYMENT_STATE_FAILED
CAPACITY_SAT = 1_000_000
# BOLT 4, "Failure Messages"
INVALID_ONION_VERSION, INVALID_ONION_HMAC, INVALID_ONION_KEY = 0xC004, 0xC005, 0xC006
TEMPORARY_CHANNEL_FAILURE = 0x1007
UNKNOWN_NEXT_PEER = 0x400A
FEE_INSUFFICIENT, INCORRECT_CLTV_EXPIRY = 0x100C, 0x100D
INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS = 0x400F


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


async def set_layer1_feerate(lab: MixedLab, per_kw: int) -> None:
    """What layer 1 says that a transaction costs, in sat per 1000 weight units, from the next block on."""
    await lab.rpc.call("setestimatedfee", f"{per_kw * 4 / 1e8:.8f}")


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


async def settle(alice: DaemonProcess, preimage: bytes) -> None:
    """We take what waits for this preimage."""
    await alice.client.invoices.Settle(invoices_pb2.SettleInvoiceRequest(payment_preimage=preimage))


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


async def we_hold(alice: DaemonProcess, ldk: LdkPeer, amount_msat: int, delta_blocks: int = 40) -> bytes:
    """LDK pays us, and it waits here for the preimage, which is returned. The HTLC expires `delta_blocks` from now, or
    a little later."""
    preimage = os.urandom(32)
    invoice = await hold_invoice(alice, amount_msat, preimage, min_final_cltv_expiry_delta_blocks=delta_blocks)
    # LDK adds some blocks, so that nobody can tell who the payee is, but no more than this in all.
    await ldk.call("pay", bolt11=invoice.bolt11, most_blocks=delta_blocks + 6)
    await wait_accepted(alice, invoice.payment_hash)
    return preimage


async def reworded(payee: LdkPeer, bolt11: str, **changes: Any) -> str:
    """An invoice of LDK's that says something else, with its signature."""
    secret = bytes.fromhex(await payee.call("secret"))
    return encode_invoice(replace(decode_invoice(bolt11), **changes), secret)


async def refused(alice: DaemonProcess, bolt11: str, code: int, failing_hop: int = 0) -> None:
    """Our payment fails; its first part came back with this code from this hop."""
    started = await alice.pay(bolt11, max_parts=1, timeout_seconds=0.5)  # nothing is gained by other ways
    payment = await alice.wait_payment(started.payment_hash)
    assert payment.state == FAILED
    assert payment.failure
    first = (await attempts(alice, payment.payment_hash))[0]
    assert (hex(first.failure_code), first.failing_hop) == (hex(code), failing_hop)


async def ldk_refused(payer: LdkPeer, refuser: bytes, code: int, command: str = "pay", **arguments: Any) -> None:
    """A payment of LDK's fails, and it reads this code from this node."""
    mark = payer.mark()
    payment_id = await payer.call(command, retries=0, **arguments)
    told = await payer.wait("onion_error", mark)
    assert (told["from"], hex(told["code"])) == (refuser.hex(), hex(code))
    await payer.wait("PaymentFailed", mark, lambda event: event["payment_hash"] in (payment_id, None))


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

    async with asyncio.timeout(WAIT_SECONDS):
        while True:  # each round asks both over the network; the last revocation is no event for either
            (ours,) = [channel for channel in await alice.channels() if channel.channel_id == channel_id]
            (theirs,) = [c for c in await ldk.call("channels") if c["channel_id"] == channel_id.hex()]
            if not ours.htlcs and not theirs["htlcs"]:
                break
            await asyncio.sleep(LOOK_SECONDS)
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
