"""A channel with LDK, each scenario both ways round: open, pay, be paid, come back, close together."""

from __future__ import annotations

import asyncio
import os

import grpc
import pytest
import pytest_asyncio

from channeld.lab import DaemonProcess
from channeld.v1 import channels_pb2
from tests.interop.conftest import MixedLab
from tests.interop.ldk_peer import LdkPeer
from tests.interop.steps import (
    FAILED,
    INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS,
    SUCCEEDED,
    attempts,
    balances_agree,
    closed_on_chain,
    ldk_holds,
    ldk_opens,
    ldk_pays,
    ldk_refused,
    pay_ldk,
    refused,
    reworded,
    settle,
    we_hold,
    we_open,
)

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]
STATIC_REMOTEKEY_BIT, ANCHORS_BIT = 12, 22
MANY = 50


class Pair:
    """Our daemon and an LDK node."""

    def __init__(self, lab: MixedLab, alice: DaemonProcess, ldk: LdkPeer) -> None:
        self.lab = lab
        self.alice = alice
        self.ldk = ldk

    async def open(self, opener: str, push_msat: int, *, anchors: bool = True) -> channels_pb2.Channel:
        """Either opens the channel, the only one."""
        if opener == "we":
            return await we_open(self.lab, self.alice, self.ldk, push_msat=push_msat)
        return await ldk_opens(self.lab, self.ldk, self.alice, push_msat=push_msat, anchors=anchors)

    async def close(self, closer: str, channel_id: bytes) -> asyncio.Task[object]:
        """Either asks for the close; the task of asking."""
        if closer == "we":
            return asyncio.ensure_future(self.alice.close_channel(channel_id))
        return asyncio.ensure_future(self.ldk.call("close", channel_id=channel_id.hex()))

    async def end(self, channel_id: bytes) -> None:
        """Closed together, so that the next test is alone."""
        await self.alice.close_channel(channel_id)
        await self.lab.mine(6)
        await self.alice.wait_closed(channel_id)

    async def agree(self, channel_id: bytes) -> int:
        """Both count the same; our msat."""
        return await balances_agree(self.alice, self.ldk, channel_id)

    async def confirmed_sat(self) -> int:
        """In our wallet."""
        return int((await self.alice.balance()).confirmed_sat)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(lab: MixedLab) -> Pair:
    ldk, (alice,) = await asyncio.gather(lab.ldk("ldk"), lab.daemons("alice"))
    return Pair(lab, alice, ldk)


@pytest.mark.parametrize(
    ("opener", "anchors", "closer", "waiting"),
    [("we", True, "we", False), ("ldk", True, "ldk", False), ("we", True, "ldk", True), ("ldk", False, "we", True)],
)
async def test_a_channels_life(pair: Pair, opener: str, anchors: bool, closer: str, waiting: bool) -> None:
    """Until it is closed together; where something is `waiting`, with an HTLC each way still under way then."""
    alice, ldk = pair.alice, pair.ldk
    channel = await pair.open(opener, push_msat=300_000_000, anchors=anchors)
    (theirs,) = await ldk.call("channels")
    bits = int(theirs["channel_type"], 16)
    assert bool(bits >> ANCHORS_BIT & 1) == anchors
    assert bits >> STATIC_REMOTEKEY_BIT & 1
    for amount_msat in (1_000, 353_999, 354_000, 50_000_000, 123_456_789):  # with and without an output of its own
        await pay_ldk(alice, ldk, amount_msat)
        await ldk_pays(ldk, alice, amount_msat + 7)
    expected_msat = (700_000_000 if opener == "we" else 300_000_000) + 35
    assert await pair.agree(channel.channel_id) == expected_msat
    before_sat = await pair.confirmed_sat()
    mark = ldk.mark()
    if waiting:
        await _close_over_htlcs(pair, closer, channel.channel_id)
        expected_msat += 5_000_000 - 20_000_000
    else:
        await (await pair.close(closer, channel.channel_id))
    await closed_on_chain(pair.lab, alice, ldk, channel.channel_id, mark)
    paid_sat = expected_msat // 1000 - (await pair.confirmed_sat() - before_sat)
    assert 0 < paid_sat < 20_000 if opener == "we" else paid_sat == 0  # the opener pays the closing fee


async def _close_over_htlcs(pair: Pair, closer: str, channel_id: bytes) -> None:
    """Nothing new is taken once `shutdown` was said; what is under way still arrives (BOLT 2, "Channel Close")."""
    await pair.ldk.call("set", auto={"claim": False})
    paying, _, preimage = await ldk_holds(pair.alice, pair.ldk, 20_000_000)
    held = await we_hold(pair.alice, pair.ldk, 5_000_000)
    mark = pair.ldk.mark()
    closing = await pair.close(closer, channel_id)

    async def said() -> bool:
        (channel,) = await pair.alice.channels()
        return bool(channel.phase == "shutting_down")

    await pair.alice.wait_until(said)
    late = await pair.ldk.call("invoice", amount_msat=1_000_000)
    with pytest.raises(grpc.aio.AioRpcError, match="closing together"):
        await pair.alice.pay(late)
    (channel,) = await pair.alice.channels()
    assert len(channel.htlcs) == 2
    await pair.ldk.call("claim", preimage=preimage.hex())
    assert (await paying).state == SUCCEEDED
    await settle(pair.alice, held)
    assert (await pair.ldk.wait("PaymentSent", mark))["preimage"] == held.hex()
    await closing
    await pair.ldk.call("set", auto={"claim": True})


async def test_both_come_back(pair: Pair) -> None:
    """kill -9 of our daemon, then of LDK, with an HTLC pending each way: the channel goes on, both arrive once."""
    alice, ldk = pair.alice, pair.ldk
    channel = await pair.open("we", push_msat=200_000_000)
    expected_msat = 800_000_000
    for victim in ("we", "ldk"):
        await ldk.call("set", auto={"claim": False})
        paying, payment_hash, preimage = await ldk_holds(alice, ldk, 20_000_000)
        held = await we_hold(alice, ldk, 5_000_000)
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
        await settle(alice, held)
        assert (await ldk.wait("PaymentSent", mark))["preimage"] == held.hex()
        expected_msat += 5_000_000 - 20_000_000
        assert await pair.agree(channel.channel_id) == expected_msat
    await asyncio.gather(paying, return_exceptions=True)
    await ldk_pays(ldk, alice, 5_000_000)
    await pay_ldk(alice, ldk, 1_000_000)
    assert await pair.agree(channel.channel_id) == expected_msat + 4_000_000
    await pair.end(channel.channel_id)


async def test_many_at_once(pair: Pair) -> None:
    """A hundred, half of them each way, half of these too small for an output on the commitments."""
    channel = await pair.open("ldk", push_msat=400_000_000)
    amounts_msat = [1_000 * (number + 1) if number % 2 else 1_000_000 + number for number in range(MANY)]
    await asyncio.gather(
        *(pay_ldk(pair.alice, pair.ldk, amount_msat) for amount_msat in amounts_msat),
        *(ldk_pays(pair.ldk, pair.alice, amount_msat + 7) for amount_msat in amounts_msat),
    )
    assert await pair.agree(channel.channel_id) == 400_000_000 + 7 * MANY
    await pair.end(channel.channel_id)


async def test_failures_are_told(pair: Pair) -> None:
    """What either does not want comes back as a failure that the other can read, and nothing is lost."""
    alice, ldk = pair.alice, pair.ldk
    channel = await pair.open("we", push_msat=300_000_000)
    await ldk.call("set", auto={"claim": False})
    paying, payment_hash, _ = await ldk_holds(alice, ldk, 9_000_000)
    await ldk.call("fail", payment_hash=payment_hash.hex())
    assert (await paying).state == FAILED
    (attempt,) = await attempts(alice, payment_hash)
    assert (attempt.failure_code, attempt.failing_hop) == (INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, 0)
    await ldk.call("set", auto={"claim": True})
    for change in ({"payment_secret": os.urandom(32)}, {"payment_hash": os.urandom(32)}, {"amount_msat": 1_000_000}):
        bolt11 = await ldk.call("invoice", amount_msat=9_000_000)
        await refused(alice, await reworded(ldk, bolt11, **change), INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS)

    for wrong in ({"secret": os.urandom(32).hex()}, {"underpay_msat": 1_000}):
        bolt11 = (await alice.invoice(9_000_000)).bolt11
        await ldk_refused(ldk, alice.node_id, INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, bolt11=bolt11, **wrong)
    unasked = {"node_id": alice.node_id.hex(), "amount_msat": 9_000_000, "preimage": os.urandom(32).hex()}
    soon = {"final_delta": 4, "most_blocks": 5}
    await ldk_refused(ldk, alice.node_id, INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, "keysend", **unasked, **soon)
    assert await pair.agree(channel.channel_id) == 700_000_000
    await pair.end(channel.channel_id)
