"""Gossip with LDK: it signs announcements with us, each learns the network from the other, and both find ways in it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channeld.lab import DaemonProcess
from channeld.lab.daemon import LOOK_SECONDS
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2
from tests.integration.test_gossip_lab import wait_known
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import WAIT_SECONDS, LdkPeer
from tests.interop.steps import SUCCEEDED, attempts, connect, ldk_opens, we_open

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]
AMOUNT_MSAT = 20_000_000


async def test_the_network_and_ways_in_it(lab: MixedLab) -> None:
    """Alice - Lena - Bob - Ludwig: daemons of ours and LDK nodes in turn; all channels are public."""
    alice, bob = lab.add_daemon("alice"), lab.add_daemon("bob")
    lena, ludwig, *_ = await asyncio.gather(lab.ldk("lena"), lab.ldk("ludwig"), alice.start(), bob.start())
    middle = await ldk_opens(lab, lena, bob, push_msat=300_000_000, announce=True)
    await bob.wait_graph([middle.short_channel_id])
    await ldk_knows(lena, {middle.short_channel_id})
    await connect(bob, ludwig)
    await ldk_knows(ludwig, {middle.short_channel_id})  # asks us for what was said before it came
    await connect(alice, lena)
    await alice.wait_graph([middle.short_channel_id])  # asks LDK
    last = await we_open(lab, bob, ludwig, private=False, push_msat=300_000_000)
    first = await we_open(lab, alice, lena, private=False, push_msat=300_000_000)
    scids = {channel.short_channel_id for channel in (first, middle, last)}
    for ldk in (lena, ludwig):
        await ldk_knows(ldk, scids)
        await ldk.call("announce", alias="ldk")  # before its channel is known, nobody would take it
    for daemon in (alice, bob):
        channels = await wait_known(daemon, 3, 4)
        assert set(channels) == scids
        assert all(policy and policy.usable for channel in channels.values() for policy in channel.policies)
    ends = channels[middle.short_channel_id]
    assert {ends.node_id_1, ends.node_id_2} == {lena.node_id, bob.node_id}

    await _we_pay(alice, lena, bob)
    await _ldk_pays(lena, ludwig)
    await _across(alice, ludwig)
    await _new_terms(alice, bob, lena, ludwig, middle)


async def ldk_knows(ldk: LdkPeer, scids: set[int]) -> dict[int, list[Any]]:
    """Until LDK's graph is these channels, which both sides let others use; their policies."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:  # each round asks LDK, which tells of its graph only when asked
            graph = {int(channel["scid"]): channel["policies"] for channel in await ldk.call("graph")}
            policies = [policy for both in graph.values() for policy in both]
            if graph.keys() == scids and all(policy and policy["enabled"] for policy in policies):
                return graph
            await asyncio.sleep(LOOK_SECONDS)


async def _we_pay(alice: DaemonProcess, lena: LdkPeer, bob: DaemonProcess) -> None:
    """We pay us, through LDK."""
    invoice = await bob.invoice(AMOUNT_MSAT, "without a hint")
    payment = await alice.pay(invoice.bolt11)
    assert payment.state == SUCCEEDED, payment.failure
    (attempt,) = await attempts(alice, invoice.payment_hash)
    assert [hop.node_id for hop in attempt.hops] == [lena.node_id, bob.node_id]
    assert (await bob.received(invoice.payment_hash)).state == invoices_pb2.INVOICE_STATE_SETTLED


async def _ldk_pays(payer: LdkPeer, payee: LdkPeer) -> None:
    """LDK pays LDK, along what it has heard from us."""
    bolt11 = await payee.call("invoice", amount_msat=AMOUNT_MSAT)
    assert (await payee.call("decode", bolt11=bolt11))["route_hints"] == 0
    mark = payer.mark()
    payment_hash = await payer.call("pay", bolt11=bolt11)
    await payer.wait("PaymentSent", mark, lambda event: event["payment_hash"] == payment_hash)


async def _across(alice: DaemonProcess, ludwig: LdkPeer) -> None:
    """From one end to the other, and back; with and without an invoice."""
    payment = await alice.pay(await ludwig.call("invoice", amount_msat=AMOUNT_MSAT))
    assert payment.state == SUCCEEDED, payment.failure
    request = payments_pb2.KeysendRequest(node_id=ludwig.node_id, amount_msat=AMOUNT_MSAT)
    payment = (await alice.client.payments.Keysend(request)).payment
    assert payment.state == SUCCEEDED, payment.failure
    assert len((await attempts(alice, payment.payment_hash))[-1].hops) == 3
    mark = ludwig.mark()
    invoice = await alice.invoice(AMOUNT_MSAT, "from the other end")
    await ludwig.call("pay", bolt11=invoice.bolt11)
    await ludwig.wait("PaymentSent", mark, lambda event: event["payment_hash"] == invoice.payment_hash.hex())


async def _new_terms(
    alice: DaemonProcess, bob: DaemonProcess, lena: LdkPeer, ludwig: LdkPeer, middle: channels_pb2.Channel
) -> None:
    """What one asks for changes: those at the other ends hear of it, and pay that."""
    await lena.call("policy", fee_base_msat=3_000)

    async def heard() -> bool:
        policies = alice.network().channels[middle.short_channel_id].policies
        return any(policy and policy.fee_base_msat == 3_000 for policy in policies)

    await alice.wait_until(heard)
    payment = await alice.pay((await bob.invoice(AMOUNT_MSAT, "dearer")).bolt11)
    assert (payment.state, payment.fee_msat) == (SUCCEEDED, 3_000)
    mark = ludwig.mark()
    request = channels_pb2.SetPolicyRequest(channel_id=middle.channel_id, fee_base_msat=4_000)
    await bob.client.channels.SetPolicy(request)
    async with asyncio.timeout(WAIT_SECONDS):
        while True:  # each round asks LDK
            graph = await ludwig.call("graph")
            if any(policy["fee_base_msat"] == 4_000 for channel in graph for policy in channel["policies"]):
                break
            await asyncio.sleep(LOOK_SECONDS)
    before = len(await bob.forwards())
    invoice = await lena.call("invoice", amount_msat=AMOUNT_MSAT)
    payment_hash = await ludwig.call("pay", bolt11=invoice)
    await ludwig.wait("PaymentSent", mark, lambda event: event["payment_hash"] == payment_hash)

    async def forwarded() -> bool:
        return len(await bob.forwards()) > before

    await bob.wait_until(forwarded)
    assert (await bob.forwards())[0].fee_msat == 4_000 + AMOUNT_MSAT // 1_000_000
