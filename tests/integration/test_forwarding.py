"""Payments over nodes between: fees to the msat, failures with their codes, crashes with HTLCs in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from channeld.bolt.onion import failures as f
from channeld.node.interface import NodeError, PaymentView
from channeld.storage import StoreFailed
from tests.integration.world import TestNode, World, world_in

CHANNEL_SAT = 1_000_000
AMOUNT_MSAT = 50_000_123
DEFAULT_FEE_MSAT = 1000 + AMOUNT_MSAT // 1_000_000
MOST_COMMITS = 20
LEAST_COMMITS = 5
"""Forwarding takes a node at least so many commits."""


class Net:
    """Nodes by name, and their channels by the names of both ends."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: dict[str, TestNode] = {}
        self.channels: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> TestNode:
        return self.nodes[name]

    async def make(self, *links: str, **options: Any) -> None:
        """Each link is "ab" for a channel from node a to node b."""
        for name in sorted({name for link in links for name in link} - set(self.nodes)):
            self.nodes[name] = await self.world.node(name)
            await self.world.fund(self.nodes[name], 20_000_000)
        for link in links:
            opener, other = (self.nodes[name] for name in link)
            self.channels[link] = await self.world.open(opener, other, CHANNEL_SAT, **options)

    async def know(self, count: int) -> None:
        """Until every node knows `count` public channels with both policies."""
        await self.world.mine(6)
        await asyncio.gather(*(node.until(partial(self.knows, node, count)) for node in self.nodes.values()))

    async def knows(self, node: TestNode, count: int) -> bool:
        graph = node.runtime.gossip.graph
        policies = [policy for channel in graph.channels() for policy in channel.policies]
        return len(policies) == 2 * count and all(policy is not None and policy.enabled for policy in policies)

    async def quiet(self) -> None:
        """Until no HTLC is left anywhere."""
        for node in self.nodes.values():
            for channel in await node.api.list_channels():
                await node.wait_no_htlcs(channel.channel_id)

    async def active(self) -> None:
        for link, channel_id in self.channels.items():
            await asyncio.gather(*(self.nodes[name].wait_active(channel_id) for name in link))

    async def restarted(self, node: TestNode) -> bool:
        """No crash from here on. Whether there was one; then the node runs again."""
        node.hook.disarm()
        try:
            await node.flush()
        except StoreFailed:
            await node.runtime.stopped.wait()
        if not node.has_crashed:
            return False
        await node.restart()
        return True

    async def owns(self, name: str) -> int:
        """What a node has in its channels, msat."""
        return sum(channel.local_msat for channel in await self.nodes[name].api.list_channels())


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with world_in(tmp_path) as world:
        yield Net(world)


async def test_a_line_forwards_for_fees_exact_to_the_msat(net: Net) -> None:
    await net.make("ab", "bc", "cd")
    await net.know(3)
    before = {name: await net.owns(name) for name in "abcd"}
    invoice = await net["d"].api.create_invoice(AMOUNT_MSAT, "tea")
    payment = await net["a"].api.pay(invoice.bolt11)
    assert payment.state == "succeeded", payment.failure
    inner = AMOUNT_MSAT + DEFAULT_FEE_MSAT
    fees = {"c": DEFAULT_FEE_MSAT, "b": 1000 + inner // 1_000_000}
    assert payment.fee_msat == sum(fees.values())
    await net.quiet()
    after = {name: await net.owns(name) for name in "abcd"}
    gains = {name: after[name] - before[name] for name in "abcd"}
    assert gains == {"a": -AMOUNT_MSAT - payment.fee_msat, "d": AMOUNT_MSAT, **fees}
    for name, links in (("b", ("ab", "bc")), ("c", ("bc", "cd"))):
        (forward,) = await net[name].api.list_forwards()
        assert forward.fee_msat == fees[name]
        assert (forward.incoming_channel_id, forward.outgoing_channel_id) == tuple(net.channels[k] for k in links)
        assert forward.payment_hash == invoice.payment_hash


async def test_a_changed_policy_is_told_and_held(net: Net) -> None:
    await net.make("ab", "bc")
    await net.know(2)
    (policy,) = await net["b"].api.set_policy(net.channels["bc"], fee_base_msat=7, fee_proportional_millionths=2_000)
    assert (policy.fee_base_msat, policy.fee_proportional_millionths) == (7, 2_000)

    async def told() -> bool:
        graph = net["a"].runtime.gossip.graph
        return any(p is not None and p.fee_base_msat == 7 for channel in graph.channels() for p in channel.policies)

    await net["a"].until(told)
    invoice = await net["c"].api.create_invoice(AMOUNT_MSAT, "dearer")
    payment = await net["a"].api.pay(invoice.bolt11)
    assert (payment.state, payment.fee_msat) == ("succeeded", 7 + AMOUNT_MSAT * 2_000 // 1_000_000)
    cheap = await net["c"].api.create_invoice(AMOUNT_MSAT, "too dear")
    with pytest.raises(NodeError, match="no way to the payee"):
        await net["a"].api.pay(cheap.bolt11, max_fee_msat=1_000)
    await net["b"].restart()
    (kept,) = await net["b"].api.set_policy(net.channels["bc"])
    assert kept == policy
    for wrong in ({"cltv_expiry_delta": 5}, {"fee_base_msat": -1}, {"htlc_minimum_msat": 10**12}):
        with pytest.raises(NodeError):
            await net["b"].api.set_policy(net.channels["bc"], **wrong)


async def test_failures_on_the_way_have_their_codes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    await net.make("ab", "bc")
    await net.know(2)
    b = net["b"].runtime

    async def failure() -> str:
        invoice = await net["c"].api.create_invoice(AMOUNT_MSAT, "fails")
        payment = await net["a"].api.pay(invoice.bolt11)
        assert payment.state == "failed"
        assert net["b"].node_id.hex() in payment.failure
        net["a"].runtime.router.scorer.reset()
        return payment.failure

    dear = b.policies.of(b.channels.by_id(net.channels["bc"]))._replace(fee_base_msat=1_000_000)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(b.policies, "accepted", lambda _: (dear,))
        assert f"code {f.FeeInsufficient.CODE}]" in await failure()
        patch.setattr(b.policies, "accepted", lambda _: (dear._replace(fee_base_msat=0, cltv_expiry_delta=99),))
        assert f"code {f.IncorrectCltvExpiry.CODE}]" in await failure()
        patch.setattr(b.policies, "accepted", lambda _: (dear._replace(htlc_minimum_msat=AMOUNT_MSAT + 1),))
        assert f"code {f.AmountBelowMinimum.CODE}]" in await failure()
    drain = await net["c"].api.create_invoice(960_000_000, "nearly all that b has")
    assert (await net["b"].api.pay(drain.bolt11)).state == "succeeded"
    await net.quiet()
    assert f"code {f.TemporaryChannelFailure.CODE}]" in await failure()
    with monkeypatch.context() as patch:
        patch.setattr(b.forwarder, "_asked", lambda _: None)
        assert f"code {f.UnknownNextPeer.CODE}]" in await failure()
    b.chain.waiting("a test says so")
    assert f"code {f.TemporaryNodeFailure.CODE}]" in await failure()
    b.chain._back()
    assert f"code {f.TemporaryChannelFailure.CODE}]" in await failure()
    b.chain.waiting("again")
    await net.world.mine()
    assert f"code {f.TemporaryChannelFailure.CODE}]" in await failure()
    await net.quiet()
    assert await net["b"].api.list_forwards() == []


async def test_another_way_is_taken_where_the_first_is_drained(net: Net) -> None:
    await net.make("ab", "ac", "bd", "cd")
    await net.know(4)
    await net["c"].api.set_policy(net.channels["cd"], fee_base_msat=9_000)
    drain = await net["d"].api.create_invoice(960_000_000, "b is left with little")
    assert (await net["b"].api.pay(drain.bolt11)).state == "succeeded"
    await net.quiet()
    invoice = await net["d"].api.create_invoice(AMOUNT_MSAT, "the other way")
    payment = await net["a"].api.pay(invoice.bolt11)
    assert payment.state == "succeeded", payment.failure
    (forward,) = await net["c"].api.list_forwards()
    assert forward.payment_hash == invoice.payment_hash


async def test_a_payment_in_parts_over_both_sides_of_a_diamond(net: Net) -> None:
    await net.make("ab", "ac", "bd", "cd")
    await net.know(4)
    amount_msat = 1_400_000_000
    invoice = await net["d"].api.create_invoice(amount_msat, "more than one channel has")
    payment = await net["a"].api.pay(invoice.bolt11)
    assert payment.state == "succeeded", payment.failure
    assert payment.parts >= 2
    assert (await net["d"].api.get_invoice(invoice.payment_hash)).received_msat == amount_msat
    await net.quiet()
    earned = 0
    for name in "bc":
        forwards = await net[name].api.list_forwards()
        assert forwards
        earned += sum(forward.fee_msat for forward in forwards)
    assert earned == payment.fee_msat


async def test_a_payee_with_a_private_channel_is_found_by_its_hint(net: Net) -> None:
    await net.make("ab")
    await net.make("bc", announce=False)
    await net.know(1)
    invoice = await net["c"].api.create_invoice(AMOUNT_MSAT, "hidden")
    hinted = (await net["a"].api.decode(invoice.bolt11)).route_hints
    channel = await net["b"].channel(net.channels["bc"])
    assert channel is not None
    assert hinted[0][0]["short_channel_id"] == channel.alias_scid_local
    payment = await net["a"].api.pay(invoice.bolt11)
    assert payment.state == "succeeded", payment.failure
    assert len(await net["b"].api.list_forwards()) == 1


class Story:
    """A line a-b-c, whose middle crashes at a given commit of a payment."""

    def __init__(self, net: Net) -> None:
        self.net = net

    async def pay(self, commit: int, when: str, pays: bool) -> bool:
        """A payment (that the payee refuses, unless `pays`) with a crash of the middle; whether there was one. Then
        everything is settled, and all money is where it belongs."""
        net = self.net
        middle = net["b"]
        before = {name: await net.owns(name) for name in "abc"}
        invoice = await net["c"].api.create_invoice(AMOUNT_MSAT, "crash")
        if not pays:
            await net["c"].api.cancel_invoice(invoice.payment_hash)
        middle.hook.arm(commit, when)  # type: ignore[arg-type]
        paying = asyncio.ensure_future(net["a"].api.pay(invoice.bolt11))
        stopped = asyncio.ensure_future(middle.runtime.stopped.wait())
        await asyncio.wait((paying, stopped), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        crashed = await net.restarted(middle)
        stopped.cancel()
        payment = await asyncio.wait_for(paying, 60)
        if not crashed:
            crashed = await net.restarted(middle)
        await net.active()
        await net.quiet()
        settled = (await net["c"].api.get_invoice(invoice.payment_hash)).state == "settled"
        assert settled is (payment.state == "succeeded")
        assert pays or not settled
        fee_msat = DEFAULT_FEE_MSAT if settled else 0
        amount_msat = AMOUNT_MSAT if settled else 0
        gains = {"a": -amount_msat - fee_msat, "b": fee_msat, "c": amount_msat}
        assert {name: await net.owns(name) - before[name] for name in "abc"} == gains
        hashes = [forward.payment_hash for forward in await middle.api.list_forwards()]
        assert hashes.count(invoice.payment_hash) == int(settled)
        return crashed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("pays", [True, False])
async def test_the_middle_dies_at_every_commit(net: Net, when: str, pays: bool) -> None:
    await net.make("ab", "bc")
    await net.know(2)
    story = Story(net)
    crashes = 0
    for commit in range(1, MOST_COMMITS):
        net["a"].runtime.router.scorer.reset()
        crashed = await story.pay(commit, when, pays)
        crashes += crashed
        if not crashed:
            break
    assert crashes >= LEAST_COMMITS


async def _outcome_of(net: Net, bolt11: str, payment_hash: bytes, key: str) -> PaymentView | None:
    """What became of a payment whose payer may die meanwhile; None if it never began."""
    payer = net["a"]
    while True:
        calling = asyncio.ensure_future(payer.api.pay(bolt11, idempotency_key=key))
        stopped = asyncio.ensure_future(payer.runtime.stopped.wait())
        await asyncio.wait((calling, stopped), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        stopped.cancel()
        if not payer.has_crashed:
            try:
                return await asyncio.wait_for(calling, 60)
            except NodeError as refusal:
                if "came to nothing" in refusal.sentence:
                    return None
                raise
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await payer.restart()
        await net.active()
        await payer.until(partial(net.knows, payer, 2))  # its gossip was in a temporary file


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_payer_dies_at_every_commit_of_a_routed_payment(net: Net, when: str) -> None:
    await net.make("ab", "bc")
    await net.know(2)
    for commit in range(1, MOST_COMMITS):
        payer = net["a"]
        before = {name: await net.owns(name) for name in "abc"}
        invoice = await net["c"].api.create_invoice(AMOUNT_MSAT, "the payer dies")
        payer.hook.arm(commit, when)  # type: ignore[arg-type]
        payment = await _outcome_of(net, invoice.bolt11, invoice.payment_hash, f"{when} {commit}")
        is_over = payer.hook.is_armed
        await net.restarted(payer)
        await net.active()
        await payer.until(partial(net.knows, payer, 2))
        await net.quiet()
        settled = (await net["c"].api.get_invoice(invoice.payment_hash)).state == "settled"
        assert settled is (payment is not None and payment.state == "succeeded")
        amount_msat, fee_msat = (AMOUNT_MSAT, DEFAULT_FEE_MSAT) if settled else (0, 0)
        gains = {"a": -amount_msat - fee_msat, "b": fee_msat, "c": amount_msat}
        assert {name: await net.owns(name) - before[name] for name in "abc"} == gains
        if is_over:
            break
    assert commit > 2
