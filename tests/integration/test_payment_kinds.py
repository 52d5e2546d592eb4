"""Keysend, rebalancing, probes and cancelling over real nodes, and what is told of every attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from channeld.bolt.onion import failures as f
from channeld.node.channels import Driver
from channeld.node.interface import NodeError
from channeld.node.payment_views import (
    AttemptView,
    InvoiceOrder,
    KeysendOrder,
    PaymentLimits,
    PaymentOrder,
    PaymentUpdate,
    ProbeOrder,
    RebalanceOrder,
)
from channeld.storage import tables
from tests.integration.test_forwarding import AMOUNT_MSAT, DEFAULT_FEE_MSAT, Net
from tests.integration.world import TestNode, world_in


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with world_in(tmp_path) as world:
        yield Net(world)


async def _rows(node: TestNode) -> int:
    """Payments and probes in the database."""
    assert node._store is not None
    query = select(func.count()).select_from(tables.payments)
    return await node._store.read(lambda c: int(c.execute(query).scalar() or 0))


async def _drain(net: Net, link: str) -> None:
    """Too little for a payment is left on the opener's side of a channel."""
    first, second = link[0], link[1]
    channel = await net[first].wait_active(net.channels[link])
    amount_msat = channel.available_to_send_msat - AMOUNT_MSAT // 2
    invoice = await net[second].api.create_invoice(amount_msat, "drained")
    assert (await net[first].api.pay(invoice.bolt11)).state == "succeeded"
    await net.quiet()


async def _updates(node: TestNode, payment_hash: bytes) -> list[PaymentUpdate]:
    return [update async for update in node.api.track_payment(payment_hash)]


def _attempts(updates: list[PaymentUpdate]) -> list[AttemptView]:
    return [update.attempt for update in updates if update.attempt is not None]


async def _scid(net: Net, link: str) -> int:
    channel = await net[link[0]].channel(net.channels[link])
    assert channel is not None
    assert channel.scid is not None
    return channel.scid


async def test_keysend_and_probes_over_a_line(net: Net) -> None:
    await net.make("ab", "bc")
    await net.know(2)
    a, c = net["a"], net["c"]
    probed = await a.api.send(ProbeOrder(c.node_id, "", AMOUNT_MSAT))
    assert (probed.kind, probed.state) == ("probe", "succeeded"), probed.failure
    assert (probed.fee_msat, probed.arriving_msat) == (DEFAULT_FEE_MSAT, AMOUNT_MSAT)
    assert (await a.api.list_payments(), await _rows(a)) == ([], 0)
    (arrived,) = _attempts(await _updates(a, probed.payment_hash))
    assert (arrived.state, [hop.node_id for hop in arrived.hops]) == ("arrived", [net["b"].node_id, c.node_id])
    with pytest.raises(NodeError, match="fees, the limit is 10 msat"):
        await a.api.send(ProbeOrder(c.node_id, "", AMOUNT_MSAT, PaymentLimits(max_fee_msat=10)))
    with pytest.raises(NodeError, match="no idempotency key"):
        await a.api.send(ProbeOrder(c.node_id, "", AMOUNT_MSAT), "key")

    records = ((65_537, b"for tea"), (7_629_169, b"\x00\x01"))
    paid = await a.api.send(KeysendOrder(c.node_id, AMOUNT_MSAT, records), "once")
    assert (paid.kind, paid.state, paid.fee_msat) == ("keysend", "succeeded", DEFAULT_FEE_MSAT), paid.failure
    assert await a.api.send(KeysendOrder(c.node_id, AMOUNT_MSAT, records), "once") == paid
    (received,) = await c.api.list_invoices()
    assert (received.received_msat, received.custom_records) == (AMOUNT_MSAT, records)
    direct = await a.api.send(KeysendOrder(net["b"].node_id, 1_000))
    assert (direct.state, direct.fee_msat) == ("succeeded", 0)
    assert [payment.kind for payment in await a.api.list_payments()] == ["keysend", "keysend"]

    await net.quiet()
    await _drain(net, "bc")
    probed = await a.api.send(ProbeOrder(c.node_id, "", AMOUNT_MSAT))
    assert (probed.state, probed.arriving_msat) == ("failed", 0)
    assert f"code {f.TemporaryChannelFailure.CODE}]" in probed.failure
    invoice = await c.api.create_invoice(AMOUNT_MSAT, "too dear for b")
    probed = await a.api.send(ProbeOrder(b"", invoice.bolt11))
    assert probed.state == "failed"
    assert (await c.api.get_invoice(invoice.payment_hash)).state == "open"


async def test_what_cannot_be_sent_is_refused_with_a_sentence(net: Net) -> None:
    await net.make("ab", announce=False)
    a, b = net["a"], net["b"]
    nobody = b"\x02" * 33
    unknown = bytes(32)
    own = (await a.api.create_invoice(1_000, "own")).bolt11
    known = net.channels["ab"]
    cases: list[tuple[PaymentOrder, str, str]] = [
        (KeysendOrder(b.node_id, 0), "invalid_argument", "more than zero"),
        (KeysendOrder(b.node_id, 10**16), "invalid_argument", "at most"),
        (KeysendOrder(a.node_id, 1), "invalid_argument", "this very node"),
        (KeysendOrder(nobody, 1), "failed_precondition", "open one first"),
        (KeysendOrder(b.node_id, 1, ((5, b""),)), "invalid_argument", "from 65536 on"),
        (KeysendOrder(b.node_id, 1, ((5_482_373_484, b""),)), "invalid_argument", "made here"),
        (KeysendOrder(b.node_id, 1, ((65_537, b""), (65_537, b""))), "invalid_argument", "twice"),
        (KeysendOrder(b.node_id, 1, ((65_537, bytes(1_001)),)), "invalid_argument", "at most 1000 bytes"),
        (ProbeOrder(b.node_id), "invalid_argument", "how much"),
        (ProbeOrder(a.node_id, "", 1), "invalid_argument", "this very node"),
        (ProbeOrder(b"", own), "invalid_argument", "this very node"),
        (ProbeOrder(nobody, "", 1), "failed_precondition", "open one first"),
        (InvoiceOrder(own), "invalid_argument", "`rebalance`"),
        (RebalanceOrder(1, (unknown,), (known,)), "not_found", "to leave by"),
        (RebalanceOrder(1, (known,), (unknown,)), "not_found", "to come back over"),
        (RebalanceOrder(1, (known,), (known,)), "invalid_argument", "same channel"),
        (RebalanceOrder(1, (), (known,)), "invalid_argument", "to leave by"),
        (RebalanceOrder(1, (known,), ()), "invalid_argument", "to come back over"),
    ]
    limits = [
        (PaymentLimits(max_fee_msat=-1), "invalid_argument", "fee limit"),
        (PaymentLimits(max_parts=0), "invalid_argument", "parts is at least 1"),
        (PaymentLimits(max_cltv_blocks=0), "invalid_argument", "at least 1"),
        (PaymentLimits(outgoing_channel_ids=(unknown,)), "not_found", "to leave by"),
        (PaymentLimits(last_hops=(nobody,)), "failed_precondition", "no way"),
    ]
    cases += [(KeysendOrder(b.node_id, 1, (), limit), kind, words) for limit, kind, words in limits]
    for order, kind, words in cases:
        with pytest.raises(NodeError, match=words) as caught:
            await a.api.send(order)
        assert caught.value.kind == kind, order
    assert await _rows(a) == 0


async def test_a_circle_moves_money_between_our_channels(net: Net) -> None:
    await net.make("ab", "bc", "ca")
    await net.know(3)
    a = net["a"]
    out, back = net.channels["ab"], net.channels["ca"]
    with pytest.raises(NodeError, match="can receive"):
        await a.api.send(RebalanceOrder(AMOUNT_MSAT, (back,), (out,)))
    order = RebalanceOrder(AMOUNT_MSAT, (out,), (back,))
    moved = await a.api.send(order, "circle")
    assert (moved.kind, moved.state) == ("rebalance", "succeeded"), moved.failure
    assert await a.api.send(order, "circle") == moved
    await net.quiet()
    left, came = await a.channel(out), await a.channel(back)
    assert left is not None
    assert came is not None
    assert came.local_msat == AMOUNT_MSAT
    assert left.local_msat == left.capacity_sat * 1000 - AMOUNT_MSAT - moved.fee_msat
    assert moved.fee_msat == sum([fw.fee_msat for name in "bc" for fw in await net[name].api.list_forwards()]) > 0
    (made,) = await a.api.list_invoices()
    assert made.state == "settled"

    await _drain(net, "bc")
    failed = await a.api.send(order)
    assert failed.state == "failed"

    with pytest.raises(NodeError, match="no way"):
        await a.api.send(RebalanceOrder(AMOUNT_MSAT, (out,), (back,), PaymentLimits(max_fee_msat=0)))

    async def withdrawn() -> bool:
        states = sorted(invoice.state for invoice in await a.api.list_invoices())
        return states == ["canceled", "canceled", "settled"]

    assert await a.until(withdrawn)


async def test_every_attempt_is_told_and_the_next_way_is_taken(net: Net) -> None:
    await net.make("ab", "ac", "bd", "cd")
    await net.know(4)
    a, b = net["a"], net["b"]
    await net["c"].api.set_policy(net.channels["cd"], fee_base_msat=9_000)

    async def told() -> bool:
        policies = [policy for channel in a.runtime.gossip.graph.channels() for policy in channel.policies]
        return any(policy is not None and policy.fee_base_msat == 9_000 for policy in policies)

    await a.until(told)
    await _drain(net, "bd")
    invoice = await net["d"].api.create_invoice(AMOUNT_MSAT, "told")
    started = await a.api.start_payment(InvoiceOrder(invoice.bolt11), "told")
    assert (await a.api.start_payment(InvoiceOrder(invoice.bolt11), "told")).payment_hash == started.payment_hash
    updates = await _updates(a, started.payment_hash)
    assert updates[0].attempt is None
    assert (updates[-1].attempt, updates[-1].payment.state) == (None, "succeeded")
    ended = [attempt for attempt in _attempts(updates) if attempt.state != "in_flight"]
    assert [attempt.state for attempt in ended] == ["failed"] * (len(ended) - 1) + ["settled"]
    first = ended[0]
    assert (first.failing_hop, first.failure_code) == (0, f.TemporaryChannelFailure.CODE)
    assert b.node_id.hex() in first.learnt
    scid = await _scid(net, "bd")
    assert f"{scid >> 40}x" in first.learnt
    assert [hop.short_channel_id for hop in first.hops] == [await _scid(net, "ab"), scid]
    assert await a.api.list_attempts(started.payment_hash) == ended
    again = await _updates(a, started.payment_hash)
    assert (_attempts(again), again[-1]) == (ended, updates[-1])
    with pytest.raises(NodeError, match="there is no payment"):
        await _updates(a, bytes(32))

    only = PaymentLimits(outgoing_channel_ids=(net.channels["ac"],), last_hops=(net["c"].node_id,), max_parts=1)
    over_c = await net["d"].api.create_invoice(1_000_000, "over c")
    paid = await a.api.send(InvoiceOrder(over_c.bolt11, None, only))
    assert (paid.state, paid.fee_msat, paid.attempts) == ("succeeded", 9_001, 1), paid.failure
    over_b = PaymentLimits(outgoing_channel_ids=(net.channels["ab"],), last_hops=(b.node_id,))
    refused = await net["d"].api.create_invoice(AMOUNT_MSAT, "over b alone")
    assert (await a.api.send(InvoiceOrder(refused.bolt11, None, over_b))).state == "failed"


async def test_a_canceled_payment_tries_nothing_more(net: Net) -> None:
    await net.make("ab", "bc")
    await net.know(2)
    a, c = net["a"], net["c"]
    held = await c.api.create_invoice(AMOUNT_MSAT, "held", hold=True)
    started = await a.api.start_payment(InvoiceOrder(held.bolt11))

    async def accepted() -> bool:
        return (await c.api.get_invoice(held.payment_hash)).state == "accepted"

    await c.until(accepted)
    canceled = await a.api.cancel_payment(started.payment_hash)
    assert (canceled.state, canceled.canceled) == ("in_flight", True)
    await a.restart()
    await net.active()
    assert (await a.api.get_payment(started.payment_hash)).canceled
    await c.api.cancel_invoice(held.payment_hash)
    updates = await _updates(a, started.payment_hash)
    assert updates[-1].payment.state == "failed"
    with pytest.raises(NodeError, match="nothing to cancel"):
        await a.api.cancel_payment(started.payment_hash)
    with pytest.raises(NodeError, match="there is no payment"):
        await a.api.cancel_payment(bytes(32))
    kept = await c.api.create_invoice(AMOUNT_MSAT, "kept", hold=True)
    started = await a.api.start_payment(InvoiceOrder(kept.bolt11))
    await a.api.cancel_payment(started.payment_hash)

    async def here() -> bool:
        return (await c.api.get_invoice(kept.payment_hash)).state == "accepted"

    await c.until(here)
    await c.api.settle_invoice(kept.payment_hash)
    assert (await _updates(a, started.payment_hash))[-1].payment.state == "succeeded"


async def test_a_direct_payment_falls_back_to_other_ways(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    await net.make("ab", "ac", "cb")
    await net.know(3)
    a = net["a"]
    channels = a.runtime.channels
    direct = channels.by_id(net.channels["ab"])
    assert direct is not None
    really = channels.available_msat

    def boasting(driver: Driver) -> int:
        return really(driver) + (AMOUNT_MSAT if driver is direct else 0)

    monkeypatch.setattr(channels, "available_msat", boasting)
    amount_msat = really(direct) + AMOUNT_MSAT // 2
    invoice = await net["b"].api.create_invoice(amount_msat, "more than the channel has")
    paid = await a.api.pay(invoice.bolt11)
    assert (paid.state, paid.parts > 1) == ("succeeded", True), paid.failure
    refused, *others = await a.api.list_attempts(invoice.payment_hash)
    assert (refused.state, refused.learnt) == ("failed", "our channel gets smaller parts")
    assert "our channel refused it" in refused.failure
    over = {attempt.hops[0].node_id for attempt in others if attempt.state != "failed"}
    assert over == {net["b"].node_id, net["c"].node_id}
