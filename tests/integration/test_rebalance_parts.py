"""Rebalancing in several parts: exact to the msat, all or nothing, also when a part is lost or the node dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from channeld.node.interface import NodeError
from channeld.node.payment_views import PaymentLimits, RebalanceOrder
from tests.integration.test_forwarding import CHANNEL_SAT, Net
from tests.integration.test_payment_lost_part import drain
from tests.integration.test_payment_restarts import paid
from tests.integration.world import STEP_SECONDS, world_in

CHANNELS = 5
AMOUNT_MSAT = 600_000_000
BACK_MSAT = 500_000_000
"""What is moved back again: more than each of two channels has then."""
LEFT_MSAT = 250_000_000
"""What b can send to c: less than half of the amount."""
OUT, BACK = ("ab",), ("ca", "da")


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    """Two circles with the same first channel: a - b - c - a and a - b - d - a."""
    async with world_in(tmp_path) as world:
        net = Net(world)
        await net.make("ab", "bc", "bd", "ca", "da")
        await net.know(CHANNELS)
        yield net


def order_of(
    net: Net, out: tuple[str, ...], back: tuple[str, ...], amount_msat: int, limits: PaymentLimits = PaymentLimits()
) -> RebalanceOrder:
    outgoing, incoming = (tuple(net.channels[link] for link in links) for links in (out, back))
    return RebalanceOrder(amount_msat, outgoing, incoming, limits)


async def local_msat(net: Net, *links: str) -> int:
    """What node a has in some of its channels."""
    found = [await net["a"].channel(net.channels[link]) for link in links]
    return sum(channel.local_msat for channel in found if channel is not None)


async def forwarded_fees(net: Net) -> int:
    return sum([forward.fee_msat for name in "bcd" for forward in await net[name].api.list_forwards()])


async def test_a_lost_part_goes_the_other_way_and_what_cannot_be_moved_comes_back_at_once(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = net["a"]
    await drain(net, "bc", LEFT_MSAT)
    with pytest.raises(NodeError, match="limit is 0 msat"):
        await a.api.send(order_of(net, OUT, BACK, AMOUNT_MSAT, PaymentLimits(max_fee_msat=0)))
    order = order_of(net, OUT, BACK, AMOUNT_MSAT)
    moved = await a.api.send(order, "once")
    assert (moved.kind, moved.state) == ("rebalance", "succeeded"), moved.failure
    attempts = await a.api.list_attempts(moved.payment_hash)
    arrived = [attempt for attempt in attempts if attempt.state != "failed"]
    assert (len(arrived), sum(attempt.amount_msat for attempt in arrived)) == (moved.parts, AMOUNT_MSAT)
    assert len(attempts) > moved.parts >= 2
    assert {attempt.hops[-1].node_id for attempt in attempts} == {a.node_id}
    await net.quiet()
    assert await local_msat(net, *BACK) == AMOUNT_MSAT
    assert await local_msat(net, *OUT) == CHANNEL_SAT * 1000 - AMOUNT_MSAT - moved.fee_msat
    assert moved.fee_msat == sum(attempt.fee_msat for attempt in arrived) == await forwarded_fees(net) > 0
    assert await a.api.send(order, "once") == moved
    settled = [invoice for invoice in await a.api.list_invoices() if invoice.state == "settled"]
    assert [invoice.received_msat for invoice in settled] == [AMOUNT_MSAT]

    await drain(net, "bd", LEFT_MSAT // 10)
    a.runtime.router.scorer.reset()
    before = await local_msat(net, *OUT), await local_msat(net, *BACK)
    too_much = order_of(net, OUT, BACK, AMOUNT_MSAT // 2)
    async with asyncio.timeout(STEP_SECONDS):  # a set of parts is waited for much longer
        failed = await a.api.send(too_much)
    assert (failed.state, failed.parts > 1, "no other way" in failed.failure) == ("failed", True, True), failed.failure

    resting = asyncio.Event()
    monkeypatch.setattr(a.runtime.payments, "_give_up", lambda *_: resting.set())
    a.runtime.router.scorer.reset()
    started = await a.api.start_payment(too_much)
    async with asyncio.timeout(STEP_SECONDS):
        await resting.wait()
    canceled = await a.api.cancel_payment(started.payment_hash)
    assert (canceled.state, canceled.canceled) == ("in_flight", True)
    last = [update async for update in a.api.track_payment(started.payment_hash)][-1]
    assert (last.payment.state, "canceled" in last.payment.failure) == ("failed", True), last.payment.failure
    await net.quiet()
    assert (await local_msat(net, *OUT), await local_msat(net, *BACK)) == before


async def test_the_node_dies_while_it_moves_money_in_parts(net: Net) -> None:
    a = net["a"]
    await drain(net, "bc", LEFT_MSAT)
    limits = PaymentLimits(timeout_seconds=120.0)
    forth, again = order_of(net, OUT, BACK, AMOUNT_MSAT, limits), order_of(net, BACK, OUT, BACK_MSAT, limits)
    crashes: list[tuple[int, Literal["before", "after"], RebalanceOrder, tuple[str, ...]]] = [
        (3, "before", forth, BACK),
        (6, "after", again, OUT),
    ]
    for commit, when, order, back in crashes:
        a.runtime.router.scorer.reset()
        before = await net.owns("a"), await local_msat(net, *back)
        a.hook.arm(commit, when)
        moved, died = await paid(net, order, f"{when} {commit}", CHANNELS)
        assert await net.restarted(a) or died
        await net.active()
        await a.until(partial(net.knows, a, CHANNELS))
        await net.quiet()
        assert moved.state == "succeeded", moved.failure
        assert await local_msat(net, *back) - before[1] == order.amount_msat
        assert await net.owns("a") - before[0] == -moved.fee_msat
