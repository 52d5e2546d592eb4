"""A channel with LDK, each scenario both ways round: open, pay, be paid, come back, close together."""

from __future__ import annotations

import asyncio
import os

import pytest

from channeld.v1 import invoices_pb2, payments_pb2
from tests.interop.conftest import MixedLab
from tests.interop.steps import (
    CAPACITY_SAT,
    balances_agree,
    closed_on_chain,
    hold_invoice,
    ldk_holds,
    ldk_opens,
    ldk_pays,
    pay_ldk,
    wait_accepted,
    we_open,
)

pytestmark = pytest.mark.interop
ANCHORS, STATIC_REMOTEKEY = "401000", "1000"


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
    """kill -9 of our daemon, then of LDK, with an HTLC pending each way: the channel goes on, both arrive once."""
    (alice,) = await lab.daemons("alice")
    ldk = await lab.ldk("ldk", auto={"claim": False})
    channel = await we_open(lab, alice, ldk, push_msat=200_000_000)
    expected_msat = 800_000_000
    for victim in ("we", "ldk"):
        paying, payment_hash, preimage = await ldk_holds(alice, ldk, 20_000_000)
        held = os.urandom(32)
        invoice = await hold_invoice(alice, 5_000_000, held)
        await ldk.call("pay", bolt11=invoice.bolt11)
        await wait_accepted(alice, invoice.payment_hash)
        if victim == "we":
            await alice.kill()
            await asyncio.gather(paying, return_exceptions=True)
            await alice.start()
        else:
            await ldk.crash()
            await ldk.start()
        await alice.wait_channel(channel.channel_id)
        mark = ldk.mark()
        await ldk.call("claim", preimage=preimage.hex())
        assert (await alice.wait_payment(payment_hash)).payment_preimage == preimage
        await alice.client.invoices.Settle(invoices_pb2.SettleInvoiceRequest(payment_preimage=held))
        assert (await ldk.wait("PaymentSent", mark))["preimage"] == held.hex()
        expected_msat += 5_000_000 - 20_000_000
        assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat
    await asyncio.gather(paying, return_exceptions=True)
    await ldk.call("set", auto={"claim": True})
    await ldk_pays(ldk, alice, 5_000_000)
    await pay_ldk(alice, ldk, 1_000_000)
    assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat + 4_000_000


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
