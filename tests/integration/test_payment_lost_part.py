"""A payment in several parts loses one of them while the payee holds the others: what is missing goes another way, as
soon as there is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.node.payment_views import AttemptView, InvoiceOrder, PaymentLimits, PaymentUpdate
from tests.integration.test_forwarding import CHANNEL_SAT, Net
from tests.integration.world import STEP_SECONDS, TestNode, world_in

LEFT_MSAT = 40_000_000
"""What the drained channel can still send."""


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with world_in(tmp_path) as world:
        yield Net(world)


async def drain(net: Net, link: str, left_msat: int) -> None:
    """The opener's side of a channel can send so much and no more, and nobody else knows."""
    opener, other = net[link[0]], net[link[1]]
    channel = await opener.wait_active(net.channels[link])
    invoice = await other.api.create_invoice(channel.available_to_send_msat - left_msat, "drained")
    assert (await opener.api.pay(invoice.bolt11)).state == "succeeded"
    await net.quiet()


class Watch:
    """A payment's updates as they come."""

    def __init__(self, node: TestNode, payment_hash: bytes) -> None:
        self._updates = node.api.track_payment(payment_hash)
        self.seen: list[PaymentUpdate] = []

    async def until_failed(self) -> AttemptView:
        """Until a part failed; which."""
        async with asyncio.timeout(STEP_SECONDS):
            async for update in self._updates:
                self.seen.append(update)
                if update.attempt is not None and update.attempt.state == "failed":
                    return update.attempt
        raise AssertionError("the payment is over")

    async def until_over(self) -> PaymentUpdate:
        async with asyncio.timeout(STEP_SECONDS):
            self.seen += [update async for update in self._updates]
        return self.seen[-1]


async def test_what_is_missing_goes_by_a_channel_that_comes_up_while_the_payee_holds_the_rest(net: Net) -> None:
    await net.make("ab", "ad", "bd")
    await net.know(3)
    a, d = net["a"], net["d"]
    await drain(net, "bd", LEFT_MSAT)
    amount_msat = CHANNEL_SAT * 1000 + 400_000_000
    invoice = await d.api.create_invoice(amount_msat, "over both, but one has too little")
    started = await a.api.start_payment(InvoiceOrder(invoice.bolt11, None, PaymentLimits(max_parts=2)))
    watch = Watch(a, started.payment_hash)
    lost = await watch.until_failed()
    refused = await watch.until_failed()  # by our own channel: there is no other way now
    assert (len(lost.hops), len(refused.hops)) == (2, 1)
    await net.world.open(a, d, CHANNEL_SAT, announce=False)
    ended = await watch.until_over()
    assert ended.payment.state == "succeeded", ended.payment.failure
    assert (await d.api.get_invoice(invoice.payment_hash)).received_msat == amount_msat
    assert all(update.payment.arriving_msat <= amount_msat for update in watch.seen)
    assert ended.payment.parts == 2


async def test_the_payer_dies_while_a_lost_part_is_made_up_for(net: Net) -> None:
    await net.make("ab", "ac", "bd", "cd")
    await net.know(4)
    a, d = net["a"], net["d"]
    await drain(net, "bd", LEFT_MSAT)
    amount_msat = CHANNEL_SAT * 600  # more than is likely to go one way
    before = {name: await net.owns(name) for name in "abcd"}
    invoice = await d.api.create_invoice(amount_msat, "in parts")
    limits = PaymentLimits(timeout_seconds=50.0)
    started = await a.api.start_payment(InvoiceOrder(invoice.bolt11, None, limits))
    lost = await Watch(a, started.payment_hash).until_failed()
    a.hook.arm(1, "after")
    async with asyncio.timeout(STEP_SECONDS):
        await a.runtime.stopped.wait()
    await a.restart()
    ended = await Watch(a, started.payment_hash).until_over()
    assert ended.payment.state == "succeeded", ended.payment.failure
    assert await net.restarted(a) is False
    await net.active()
    await net.quiet()
    attempts = await a.api.list_attempts(started.payment_hash)
    arrived = [attempt for attempt in attempts if attempt.state == "settled"]
    assert lost.index not in {attempt.index for attempt in arrived}
    assert sum(attempt.amount_msat for attempt in arrived) == amount_msat
    fee_msat = sum(attempt.fee_msat for attempt in arrived)
    gained = {name: await net.owns(name) - before[name] for name in "abcd"}
    assert (gained["a"], gained["d"]) == (-amount_msat - fee_msat, amount_msat)
    assert gained["b"] + gained["c"] == fee_msat == ended.payment.fee_msat
