"""All kinds of channels with LDK side by side, and payments that need several of them."""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256

import pytest

from channeld.bolt.features import decode_features
from channeld.lab import DaemonProcess
from channeld.lab.daemon import LOOK_SECONDS
from channeld.node.features import LOCAL_FEATURES
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2, peers_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import WAIT_SECONDS, LdkPeer
from tests.interop.steps import (
    CAPACITY_SAT,
    SUCCEEDED,
    balances_agree,
    connect,
    ldk_opens,
    ldk_pays,
    pay_ldk,
    we_open,
)

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]


async def test_channels_of_all_kinds(lab: MixedLab) -> None:
    ldk = await lab.ldk("ldk", auto={"zero_conf": True})
    alice = lab.add_daemon("alice", "--zero-conf-peers", ldk.node_id.hex())
    await alice.start()
    await connect(alice, ldk)
    await _features(alice, ldk)
    hidden = await _ldk_opens_zero_conf(lab, alice, ldk)
    zero_conf = await _zero_conf(lab, alice, ldk)
    await ldk.call("set", auto={"zero_conf": False})
    public = await ldk_opens(lab, ldk, alice, push_msat=400_000_000, announce=True)
    ours = await we_open(lab, alice, ldk, private=False, push_msat=600_000_000)
    await _announced(alice, ldk, public, ours)
    await ldk_pays(ldk, alice, 1_000_000)
    channels = (zero_conf, hidden, public, ours)
    before_msat = [await balances_agree(alice, ldk, channel.channel_id) for channel in channels]
    # More than any one channel has: 1,200,000 of about 1,640,000 sat there, 1,700,000 of about 2,000,000 back.
    await pay_ldk(alice, ldk, 1_200_000_000)
    await ldk_pays(ldk, alice, 1_700_000_000)
    after_msat = [await balances_agree(alice, ldk, channel.channel_id) for channel in channels]
    assert sum(after_msat) == sum(before_msat) + 500_000_000
    await _keysend_to_ldk(alice, ldk)
    await _keysend_in_parts(alice, ldk)


async def _ldk_opens_zero_conf(lab: MixedLab, alice: DaemonProcess, ldk: LdkPeer) -> channels_pb2.Channel:
    """LDK, which we trust, opens with option_scid_alias: both pay before any block, and when it is confirmed."""
    mark = ldk.mark()
    wishes = {"scid_privacy": True}
    await ldk.call("open", node_id=alice.node_id.hex(), amount_sat=CAPACITY_SAT, push_msat=400_000_000, channels=wishes)
    ready = await ldk.wait("ChannelReady", mark)
    channel = await alice.wait_channel(bytes.fromhex(ready["channel_id"]))
    assert "option_scid_alias (required)" in channel.channel_type
    assert channel.HasField("local_alias_short_channel_id")
    assert not channel.HasField("short_channel_id")
    await pay_ldk(alice, ldk, 70_000_000)
    await ldk_pays(ldk, alice, 20_000_000)
    await lab.mine(6)
    await _confirmed(alice, channel.channel_id)
    await pay_ldk(alice, ldk, 1_000_000)
    await ldk_pays(ldk, alice, 1_000_000)
    assert await balances_agree(alice, ldk, channel.channel_id) == 350_000_000
    return channel


async def _confirmed(alice: DaemonProcess, channel_id: bytes) -> None:
    """Until our daemon knows where the funding transaction is, and can use the channel."""

    async def confirmed() -> bool:
        (found,) = [channel for channel in await alice.channels() if channel.channel_id == channel_id]
        return bool(found.HasField("short_channel_id") and found.active)

    await alice.wait_until(confirmed)


async def _features(alice: DaemonProcess, ldk: LdkPeer) -> None:
    """Each sees what the other offers (BOLT 9)."""
    told = (await ldk.call("features"))[alice.node_id.hex()]
    assert decode_features(bytes.fromhex(told)) == LOCAL_FEATURES
    (peer,) = (await alice.client.peers.List(peers_pb2.ListPeersRequest())).peers
    offered = {name.partition("/")[0] for name in peer.features}
    expected = {"option_anchors", "option_route_blinding", "option_onion_messages"}
    assert expected | {"option_scid_alias", "option_zeroconf", "option_shutdown_anysegwit"} <= offered
    # Not in this LDK: what depends on these is not used with it.
    assert not offered & {"option_attribution_data", "option_simple_close", "option_dual_fund", "option_quiesce"}


async def _zero_conf(lab: MixedLab, alice: DaemonProcess, ldk: LdkPeer) -> channels_pb2.Channel:
    """Paid over before any block, known by aliases; goes on when it is confirmed."""
    await lab.fund(alice, 2 * CAPACITY_SAT)
    mark = ldk.mark()
    request = channels_pb2.OpenChannelRequest(
        node_id=ldk.node_id, amount_sat=CAPACITY_SAT, push_msat=500_000_000, private=True, zero_conf=True
    )
    channel_id = (await alice.client.channels.Open(request)).channel.channel_id
    await ldk.wait("ChannelReady", mark)
    channel = await alice.wait_channel(channel_id)
    assert "option_zeroconf (required)" in channel.channel_type
    assert channel.HasField("local_alias_short_channel_id")
    assert channel.HasField("remote_alias_short_channel_id")
    assert not channel.HasField("short_channel_id")
    await pay_ldk(alice, ldk, 70_000_000)
    await ldk_pays(ldk, alice, 20_000_000)
    await lab.mine(6)
    await _confirmed(alice, channel_id)
    return channel


async def _announced(alice: DaemonProcess, ldk: LdkPeer, *channels: channels_pb2.Channel) -> None:
    """Both know of the public channels, whoever opened them, and only of these."""
    scids = {channel.short_channel_id for channel in channels}
    await alice.wait_graph(scids)
    assert set(alice.network().channels) == scids
    async with asyncio.timeout(WAIT_SECONDS):
        while {int(channel["scid"]) for channel in await ldk.call("graph")} != scids:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)  # LDK tells of its graph only when asked


async def _keysend_to_ldk(alice: DaemonProcess, ldk: LdkPeer) -> None:
    """We pay LDK without an invoice."""
    mark = ldk.mark()
    request = payments_pb2.KeysendRequest(node_id=ldk.node_id, amount_msat=12_345_678)
    payment = (await alice.client.payments.Keysend(request)).payment
    assert payment.state == SUCCEEDED, payment.failure
    assert sha256(payment.payment_preimage).digest() == payment.payment_hash
    claimed = await ldk.wait("PaymentClaimed", mark)
    assert (claimed["payment_hash"], claimed["amount_msat"]) == (payment.payment_hash.hex(), 12_345_678)


async def _keysend_in_parts(alice: DaemonProcess, ldk: LdkPeer) -> None:
    """LDK pays us without an invoice, more than it has in any one channel."""
    largest_msat = max(channel["outbound_msat"] for channel in await ldk.call("channels"))
    amount_msat = largest_msat + 10_000_000
    preimage, mark = os.urandom(32), ldk.mark()
    unasked = {"node_id": alice.node_id.hex(), "amount_msat": amount_msat, "preimage": preimage.hex()}
    await ldk.call("keysend", **unasked, secret=os.urandom(32).hex())
    assert (await ldk.wait("PaymentSent", mark))["preimage"] == preimage.hex()
    received = await alice.received(sha256(preimage).digest())
    assert (received.kind, received.received_msat) == (invoices_pb2.INVOICE_KIND_KEYSEND, amount_msat)
