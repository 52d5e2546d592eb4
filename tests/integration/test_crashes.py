"""kill -9 at every commit boundary of either side, in every phase of a channel: nothing lost, nothing paid twice.

A crash is made by the store's hook: right before a commit (nothing of it is kept) or right after (it is kept, but the
node never learns of it). Then the node starts again on its database, as after a kill.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from pathlib import Path
from typing import Literal, TypeVar

import pytest

from channeld.node.interface import NodeError, PaymentView
from channeld.storage import StoreFailed
from tests.integration.world import TestNode, World, world_in

T = TypeVar("T")
When = Literal["before", "after"]
FUNDS_SAT = 100_000_000
CHANNEL_SAT = 500_000
PUSH_SAT = 150_000
MOST_COMMITS = 12
"""No payment takes a node more commits than this."""
LAST_COMMIT_OF_OPENING = 8
"""Opening and closing take about as many; those after are for blocks."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


class Story:
    """Two nodes, one of which (the victim) crashes at a given commit of whatever is being done."""

    def __init__(self, world: World, alice: TestNode, bob: TestNode, victim: TestNode, when: When) -> None:
        self.world, self.alice, self.bob = world, alice, bob
        self.victim, self.when = victim, when
        self.crashes = 0

    def arm(self, commit: int) -> None:
        self.victim.hook.arm(commit, self.when)

    async def disarm(self) -> None:
        """No crash from here on; if one is just happening, it is survived."""
        self.victim.hook.disarm()
        try:
            await self.victim.flush()
        except StoreFailed:
            await self.crashed()

    async def crashed(self) -> bool:
        """Whether the victim has crashed; then it runs again."""
        if not self.victim.has_crashed:
            return False
        self.crashes += 1
        await self.victim.restart()
        return True

    async def survive(self, node: TestNode, call: Callable[[], Awaitable[T]]) -> T | None:
        """The answer of a call to `node`, or None if a crash of the victim cut it off; the victim runs again then."""
        task = asyncio.ensure_future(call())
        stopped = asyncio.ensure_future(self.victim.runtime.stopped.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED, timeout=60)
            if await self.crashed() and node is self.victim and not task.done():
                task.cancel()
                return None
            return await asyncio.wait_for(task, 60)
        except (StoreFailed, NodeError):
            await self.crashed()
            return None
        finally:
            stopped.cancel()

    async def mine(self, blocks: int) -> None:
        await self.world.mine(blocks)
        if await self.crashed():
            await self.world.mine(1)
            await self.crashed()

    # --- parts of a channel's life

    async def open(self) -> bytes:
        """A channel that both can use, however many attempts that takes."""
        alice, bob = self.alice, self.bob
        known = {channel.channel_id for channel in await alice.api.list_channels()}
        for _ in range(5):
            await self.survive(alice, lambda: alice.connect(bob))
            await self.survive(
                alice,
                lambda: alice.api.open_channel(bob.node_id, CHANNEL_SAT, push_msat=PUSH_SAT * 1000, announce=False),
            )
            await self.mine(3)
            await self.mine(3)
            fresh = [c for c in await alice.api.list_channels() if c.channel_id not in known and c.phase != "opening"]
            if fresh:
                assert len(fresh) == 1
                await self.both_active(fresh[0].channel_id)
                return fresh[0].channel_id
        raise AssertionError("no channel in five attempts")

    async def both_active(self, channel_id: bytes) -> None:
        while True:
            await self.survive(self.alice, lambda: self.alice.connect(self.bob))
            both = asyncio.gather(self.alice.wait_active(channel_id), self.bob.wait_active(channel_id))
            stopped = asyncio.ensure_future(self.victim.runtime.stopped.wait())
            await asyncio.wait((both, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not await self.crashed():
                await both
                return
            both.cancel()
            await asyncio.gather(both, return_exceptions=True)

    async def pay(self, payer: TestNode, payee: TestNode, channel_id: bytes, amount_msat: int) -> PaymentView:
        """The outcome of a payment that is asked for with the same key until it is known."""
        invoice = None
        while invoice is None:
            invoice = await self.survive(payee, lambda: payee.api.create_invoice(amount_msat, "story"))
        bolt11, key = invoice.bolt11, invoice.payment_hash.hex()
        payment = None
        while payment is None or payment.state == "in_flight":
            await self.both_active(channel_id)
            payment = await self.survive(payer, lambda: payer.api.pay(bolt11, idempotency_key=key, timeout_seconds=5))
        await self.both_active(channel_id)
        settled = (await payee.api.get_invoice(invoice.payment_hash)).state == "settled"
        assert settled == (payment.state == "succeeded"), payment
        if payment.state == "failed":
            assert "before the payment was sent" in payment.failure
        return payment

    async def close(self, channel_id: bytes) -> None:
        for _ in range(5):
            await self.survive(self.alice, lambda: self.alice.connect(self.bob))
            await self.survive(self.alice, lambda: self.alice.api.close_channel(channel_id))
            await self.mine(3)
            await self.mine(5)
            if await self.alice.channel(channel_id) is None and await self.bob.channel(channel_id) is None:
                return
        raise AssertionError("not closed in five attempts")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("victim", ["alice", "bob"])
async def test_a_payment_survives_a_crash_at_any_commit(world: World, victim: str, when: When) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, FUNDS_SAT)
    story = Story(world, alice, bob, alice if victim == "alice" else bob, when)
    channel_id = await world.open(alice, bob, CHANNEL_SAT, push_msat=PUSH_SAT * 1000)
    paid_msat = 0
    for payer, payee, sign in ((alice, bob, 1), (bob, alice, -1)):
        for commit in range(1, MOST_COMMITS):
            before = story.crashes
            story.arm(commit)
            amount_msat = 1_000_000 + commit
            payment = await story.pay(payer, payee, channel_id, amount_msat)
            paid_msat += sign * amount_msat if payment.state == "succeeded" else 0
            await story.disarm()
            if story.crashes == before:
                break
        else:
            raise AssertionError(f"a payment takes more than {MOST_COMMITS} commits")
    assert story.crashes >= 6
    await _check_balances(alice, bob, channel_id, paid_msat)
    await story.close(channel_id)
    await _check_books(world, alice, bob)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("victim", ["alice", "bob"])
async def test_opening_and_closing_survive_a_crash_at_any_commit(world: World, victim: str, when: When) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, FUNDS_SAT)
    story = Story(world, alice, bob, alice if victim == "alice" else bob, when)
    for commit in range(1, LAST_COMMIT_OF_OPENING + 1):
        story.arm(commit)
        channel_id = await story.open()
        assert (await alice.wait_active(channel_id)).local_msat == (CHANNEL_SAT - PUSH_SAT) * 1000
        story.arm(commit)
        await story.close(channel_id)
        await story.disarm()
    assert story.crashes == 2 * LAST_COMMIT_OF_OPENING
    await _check_books(world, alice, bob)


async def _check_balances(alice: TestNode, bob: TestNode, channel_id: bytes, paid_msat: int) -> None:
    await asyncio.gather(alice.wait_no_htlcs(channel_id), bob.wait_no_htlcs(channel_id))
    alices, bobs = await alice.wait_active(channel_id), await bob.wait_active(channel_id)
    assert alices.local_msat == bobs.remote_msat == (CHANNEL_SAT - PUSH_SAT) * 1000 - paid_msat
    assert alices.remote_msat == bobs.local_msat == PUSH_SAT * 1000 + paid_msat


async def _check_books(world: World, alice: TestNode, bob: TestNode) -> None:
    """What both own on chain and every fee that was paid add up to what there was."""
    owned_sat = fees_sat = 0
    for node in (alice, bob):
        balance = await node.api.balance()
        # Bob may remember a channel whose funding Alice forgot before she broadcast it: nothing is in that.
        assert balance.reserved_sat == balance.unconfirmed_sat == 0
        owned_sat += balance.confirmed_sat
    txs = [tx for node in (alice, bob) for tx in await node.api.transactions()]
    own = {tx.txid for tx in txs}
    for txid in {tx.txid for tx in txs if tx.confirmations}:
        fees_sat += await _fee_sat(world, txid, own)
    channels = [(c.channel_id.hex()[:8], c.phase, c.status) for c in await alice.api.list_channels(True)]
    assert owned_sat + fees_sat == FUNDS_SAT, channels


async def _fee_sat(world: World, txid: bytes, own: Container[bytes]) -> int:
    """Of a transaction that only the two nodes paid for (the faucet's own are free to them)."""
    tx = await world.rpc.call("getrawtransaction", txid[::-1].hex(), 2)
    if not all(bytes.fromhex(txin["txid"])[::-1] in own for txin in tx["vin"]):
        return 0
    return round(float(tx["fee"]) * 100_000_000)
