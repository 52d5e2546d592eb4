"""A channel with LDK, each scenario both ways round: open, pay, be paid, come back, close together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channeld.lab import DaemonProcess
from channeld.v1 import channels_pb2, payments_pb2, peers_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer

pytestmark = pytest.mark.interop
SUCCEEDED = payments_pb2.PAYMENT_STATE_SUCCEEDED
ANCHORS, STATIC_REMOTEKEY = "401000", "1000"
CAPACITY_SAT = 1_000_000


async def we_open(lab: MixedLab, alice: DaemonProcess, ldk: LdkPeer, **fields: Any) -> channels_pb2.Channel:
    """Our daemon opens to LDK; usable on both sides."""
    await lab.fund(alice, 2 * CAPACITY_SAT)
    await connect(alice, ldk)
    request = channels_pb2.OpenChannelRequest(node_id=ldk.node_id, amount_sat=CAPACITY_SAT, private=True, **fields)
    channel = (await alice.client.channels.Open(request)).channel
    await lab.mine(6)
    await ldk.wait("ChannelReady")
    return await alice.wait_channel(channel.channel_id)


async def ldk_opens(
    lab: MixedLab, ldk: LdkPeer, alice: DaemonProcess, *, push_msat: int = 0, **wishes: Any
) -> channels_pb2.Channel:
    """LDK opens to our daemon; usable on both sides."""
    await lab.connect_ldk(ldk, alice)
    await ldk.call("open", node_id=alice.node_id.hex(), amount_sat=CAPACITY_SAT, push_msat=push_msat, channels=wishes)
    pending = await ldk.wait("ChannelPending")
    await lab.mine(6)
    await ldk.wait("ChannelReady")
    return await alice.wait_channel(bytes.fromhex(pending["channel_id"]))


async def connect(alice: DaemonProcess, ldk: LdkPeer) -> None:
    """Our daemon dials LDK."""
    request = peers_pb2.ConnectPeerRequest(node_id=ldk.node_id, host="127.0.0.1", port=ldk.port)
    await alice.client.peers.Connect(request)


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


async def test_we_open_to_ldk(lab: MixedLab) -> None:
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk")
    channel = await we_open(lab, alice, ldk, push_msat=200_000_000)
    assert any("anchors" in name for name in channel.channel_type)
    for amount_msat in (1_000_000, 50_000_000, 123_456_789):
        await pay_ldk(alice, ldk, amount_msat)
    await ldk_pays(ldk, alice, 33_000_000)
    local_msat = await balances_agree(alice, ldk, channel.channel_id)
    assert local_msat == 800_000_000 - 1_000_000 - 50_000_000 - 123_456_789 + 33_000_000

    before_sat = (await alice.balance()).confirmed_sat
    mark = ldk.mark()
    await alice.close_channel(channel.channel_id)
    await closed_on_chain(lab, alice, ldk, channel.channel_id, mark)
    gained_sat = (await alice.balance()).confirmed_sat - before_sat
    assert 0 <= local_msat // 1000 - gained_sat < 20_000  # the closing fee, which the opener pays


@pytest.mark.parametrize(("anchors", "channel_type"), [(True, ANCHORS), (False, STATIC_REMOTEKEY)])
async def test_ldk_opens_to_us(lab: MixedLab, anchors: bool, channel_type: str) -> None:
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk")
    channel = await ldk_opens(lab, ldk, alice, push_msat=100_000_000, anchors=anchors)
    (theirs,) = await ldk.call("channels")
    assert theirs["channel_type"] == channel_type
    await ldk_pays(ldk, alice, 250_000_000)
    await pay_ldk(alice, ldk, 60_000_000)
    assert await balances_agree(alice, ldk, channel.channel_id) == 290_000_000
    mark = ldk.mark()
    await ldk.call("close", channel_id=channel.channel_id.hex())
    await closed_on_chain(lab, alice, ldk, channel.channel_id, mark)
    assert (await alice.balance()).confirmed_sat == 290_000  # LDK opened: it pays the closing fee


async def test_both_come_back(lab: MixedLab) -> None:
    """kill -9 of our daemon, then of LDK: the channel goes on each time."""
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk")
    channel = await we_open(lab, alice, ldk, push_msat=200_000_000)
    await pay_ldk(alice, ldk, 10_000_000)

    await alice.kill()
    await alice.start()
    await alice.wait_channel(channel.channel_id)
    await pay_ldk(alice, ldk, 20_000_000)
    await ldk_pays(ldk, alice, 5_000_000)
    await balances_agree(alice, ldk, channel.channel_id)

    await ldk.crash()
    await ldk.start()
    await alice.wait_channel(channel.channel_id)
    await ldk_pays(ldk, alice, 5_000_000)
    await pay_ldk(alice, ldk, 1_000_000)
    assert await balances_agree(alice, ldk, channel.channel_id) == 800_000_000 - 31_000_000 + 10_000_000


async def test_many_at_once_and_dust(lab: MixedLab) -> None:
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk")
    channel = await we_open(lab, alice, ldk, push_msat=400_000_000)
    amounts_msat = [1_000 * (number + 1) if number % 2 else 2_000_000 + number for number in range(20)]
    await asyncio.gather(
        *(pay_ldk(alice, ldk, amount_msat) for amount_msat in amounts_msat),
        *(ldk_pays(ldk, alice, amount_msat + 7) for amount_msat in amounts_msat),
    )
    assert await balances_agree(alice, ldk, channel.channel_id) == 600_000_000 + 7 * len(amounts_msat)


async def test_failures_are_told(lab: MixedLab) -> None:
    """What LDK does not want comes back as a failure that we can read, and nothing is lost."""
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk", auto={"claim": False})
    channel = await we_open(lab, alice, ldk)
    mark = ldk.mark()
    invoice = await ldk.call("invoice", amount_msat=9_000_000, description="refused")
    paying = asyncio.ensure_future(alice.pay(invoice))
    claimable = await ldk.wait("PaymentClaimable", mark)
    await ldk.call("fail", payment_hash=claimable["payment_hash"])
    payment = await paying
    assert payment.state == payments_pb2.PAYMENT_STATE_FAILED
    assert payment.failure
    assert await balances_agree(alice, ldk, channel.channel_id) == CAPACITY_SAT * 1000
