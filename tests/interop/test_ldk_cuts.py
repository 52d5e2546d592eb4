"""The connection with LDK breaks at every message of the commitment dance, either way: everything arrives once."""

from __future__ import annotations

import asyncio

import grpc
import pytest
import pytest_asyncio

from channeld.lab import DaemonProcess
from channeld.lab.daemon import LOOK_SECONDS
from channeld.v1 import invoices_pb2, payments_pb2
from tests.interop.conftest import MixedLab
from tests.interop.knife import ADD, HMAC_BYTE, KEY_BYTE, VERSION_BYTE, Knife
from tests.interop.ldk_peer import WAIT_SECONDS, LdkPeer
from tests.interop.steps import (
    INVALID_ONION_HMAC,
    INVALID_ONION_KEY,
    INVALID_ONION_VERSION,
    balances_agree,
    closed_on_chain,
    connect,
    ldk_holds,
    ldk_opens,
    ldk_pays,
    pay_ldk,
    refused,
    set_layer1_feerate,
    we_open,
)

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]
READY, SHUTDOWN, CLOSING_SIGNED = 36, 38, 39
FULFILL, FAIL, SIGNED, REVOKE, FEE, REESTABLISH = 130, 131, 132, 133, 134, 136
PAID_BY_US = [
    ("out", ADD, 1),
    ("out", SIGNED, 1),
    ("in", REVOKE, 1),
    ("in", SIGNED, 1),
    ("out", REVOKE, 1),
    ("in", FULFILL, 1),
    ("in", SIGNED, 2),
    ("out", REVOKE, 2),
    ("out", SIGNED, 2),
    ("in", REVOKE, 2),
]
PAID_BY_LDK = [("in" if way == "out" else "out", kind, nth) for way, kind, nth in PAID_BY_US]
"""The same dance with the parts exchanged."""


class Cuts(Knife):
    """Our daemon, whose connection can be cut at a message, and LDK."""

    ldk: LdkPeer

    async def mend(self) -> None:
        """Connects again. LDK may not be done with the last connection yet, and end the new one with it."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    return await connect(self.daemon, self.ldk)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                await asyncio.sleep(LOOK_SECONDS)

    async def fell(self) -> None:
        """Until the cut was made; connects again."""
        await self.made()
        await self.mend()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def knife(lab: MixedLab) -> Cuts:
    knife = Cuts(lab, "alice")
    knife.ldk, _ = await asyncio.gather(lab.ldk("ldk"), knife.daemon.start())
    await lab.wait_synced()
    return knife


async def test_cut_at_every_message(lab: MixedLab, knife: Cuts) -> None:
    alice, ldk = knife.daemon, knife.ldk
    channel = await we_open(lab, alice, ldk, push_msat=400_000_000)
    expected_msat = 600_000_000
    for number, cut in enumerate(PAID_BY_US):
        knife.at(*cut)
        amount_msat = 3_000_000 + number
        await asyncio.gather(knife.fell(), pay_ldk(alice, ldk, amount_msat))
        expected_msat -= amount_msat
        await alice.wait_channel(channel.channel_id)
        # Also at rest: the next cut is not to meet the end of this dance.
        assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat, cut
    for number, cut in enumerate(PAID_BY_LDK):
        knife.at(*cut)
        amount_msat = 2_000_000 + number
        await asyncio.gather(knife.fell(), ldk_pays(ldk, alice, amount_msat))
        expected_msat += amount_msat
        await alice.wait_channel(channel.channel_id)
        # Also at rest: the next cut is not to meet the end of this dance.
        assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat, cut
    await _onions_are_spoiled(knife)
    await _refusal_is_lost(knife)
    await _fee_is_lost(lab, knife)
    await _reestablish_is_lost(knife)
    await pay_ldk(alice, ldk, 1_000_000)
    assert await balances_agree(alice, ldk, channel.channel_id) == expected_msat - 1_000_000
    await _closing_is_cut(lab, knife, channel.channel_id)


async def _onions_are_spoiled(knife: Cuts) -> None:
    """What cannot be peeled is given back with `update_fail_malformed_htlc`, either way round."""
    alice, ldk = knife.daemon, knife.ldk
    wrong = ((VERSION_BYTE, INVALID_ONION_VERSION), (KEY_BYTE, INVALID_ONION_KEY), (HMAC_BYTE, INVALID_ONION_HMAC))
    for place, code in wrong:
        knife.at("out", ADD, spoil=place)
        await refused(alice, await ldk.call("invoice", amount_msat=4_000_000), code)
        knife.at("in", ADD, spoil=place)
        mark, invoice = ldk.mark(), await alice.invoice(4_000_000)
        await ldk.call("pay", bolt11=invoice.bolt11)
        failed = await ldk.wait("PaymentFailed", mark)  # LDK does not tell the code that its own peer gave
        assert failed["payment_hash"] == invoice.payment_hash.hex()
        assert (await alice.received(invoice.payment_hash)).state == invoices_pb2.INVOICE_STATE_OPEN


async def _refusal_is_lost(knife: Cuts) -> None:
    """`update_fail_htlc` of LDK's does not arrive, then it does."""
    await knife.ldk.call("set", auto={"claim": False})
    paying, payment_hash, _ = await ldk_holds(knife.daemon, knife.ldk, 5_000_000)
    knife.at("in", FAIL)
    await knife.ldk.call("fail", payment_hash=payment_hash.hex())
    await knife.fell()
    assert (await paying).state == payments_pb2.PAYMENT_STATE_FAILED
    await knife.ldk.call("set", auto={"claim": True})


async def _fee_is_lost(lab: MixedLab, knife: Cuts) -> None:
    """Our `update_fee` does not arrive: it is made again, and LDK signs for it."""
    knife.at("out", FEE)
    await set_layer1_feerate(lab, 1000)
    await lab.mine(1)
    await knife.fell()
    await wait_feerate(knife.daemon, knife.ldk, 1000)


async def wait_feerate(alice: DaemonProcess, ldk: LdkPeer, per_kw: int) -> None:
    """Until the channel's commitments pay this on both sides."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:  # no event tells; each round asks both
            (ours,) = await alice.channels()
            (theirs,) = await ldk.call("channels")
            if ours.feerate_per_kw == theirs["feerate_per_kw"] == per_kw:
                return
            await asyncio.sleep(LOOK_SECONDS)


async def _reestablish_is_lost(knife: Cuts) -> None:
    """Even `channel_reestablish` is lost, once each way."""
    for way in ("in", "out"):
        knife.at(way, REESTABLISH)
        await knife.ldk.call("disconnect", node_id=knife.daemon.node_id.hex())
        await knife.mend()
        await knife.fell()
    (channel,) = await knife.daemon.channels()
    await knife.daemon.wait_channel(channel.channel_id)


async def _closing_is_cut(lab: MixedLab, knife: Cuts, channel_id: bytes) -> None:
    """The cooperative close begins again as often as it is cut (BOLT 2, "Closing Negotiation")."""
    mark = knife.ldk.mark()
    knife.at("out", SHUTDOWN)
    await asyncio.gather(knife.daemon.close_channel(channel_id), knife.made())
    for way, kind in (("in", SHUTDOWN), ("out", CLOSING_SIGNED), ("in", CLOSING_SIGNED)):
        knife.at(way, kind)  # before the connection is back: the whole close takes no time
        await knife.mend()
        await knife.made()
    await knife.mend()
    await closed_on_chain(lab, knife.daemon, knife.ldk, channel_id, mark)


async def test_ldk_opens_and_channel_ready_is_lost(lab: MixedLab, knife: Cuts) -> None:
    """`channel_ready` is lost both ways; then LDK, the opener, changes the feerate, and that is cut, too."""
    ldk = knife.ldk
    knife.at("in", READY)
    opening = asyncio.ensure_future(ldk_opens(lab, ldk, knife.daemon, push_msat=300_000_000))
    await knife.fell()
    channel = await opening
    cuts = [("in", FEE), ("in", SIGNED), ("out", REVOKE), ("out", SIGNED), ("in", REVOKE)]
    for per_kw, cut in zip(range(1000, 6000, 1000), cuts, strict=True):  # LDK follows small steps upwards only
        knife.at(*cut)
        await ldk.call("set", fees={"normal": per_kw})
        await ldk.call("tick")
        await knife.fell()
        await knife.daemon.wait_channel(channel.channel_id)
        await ldk.call("tick")
        await wait_feerate(knife.daemon, ldk, per_kw)
    await pay_ldk(knife.daemon, ldk, 10_000_000)
    await ldk_pays(ldk, knife.daemon, 20_000_000)
    assert await balances_agree(knife.daemon, ldk, channel.channel_id) == 310_000_000
    await _feerate_falls(knife)
    mark = ldk.mark()
    await knife.daemon.close_channel(channel.channel_id)
    await closed_on_chain(lab, knife.daemon, ldk, channel.channel_id, mark)
    await ldk.call("set", fees={"normal": 253})


async def _feerate_falls(knife: Cuts) -> None:
    """LDK, the opener, asks for less again, and we sign for that, too."""
    await knife.ldk.call("set", fees={"normal": 1500})  # LDK follows downwards only when it is halved
    await knife.ldk.call("tick")
    await wait_feerate(knife.daemon, knife.ldk, 1500)
    await pay_ldk(knife.daemon, knife.ldk, 10_000_000)
    await ldk_pays(knife.ldk, knife.daemon, 10_000_000)
