"""A payment is one durable object: its payer dies at every commit of an attempt that fails and of the next one, and the
payment goes on where it stood."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from channeld.node.interface import PaymentView
from channeld.node.payment_views import InvoiceOrder, KeysendOrder, PaymentLimits, PaymentOrder
from tests.integration.test_forwarding import AMOUNT_MSAT, Net
from tests.integration.world import world_in

MOST_COMMITS = 20
CHANNELS = 4
PATIENT = PaymentLimits(timeout_seconds=120.0)


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with world_in(tmp_path) as world:
        yield Net(world)


async def _diamond(net: Net) -> None:
    """Two ways from a to d; the one over b is cheaper, but b has too little on its channel to d."""
    await net.make("ab", "ac", "bd", "cd")
    await net.know(CHANNELS)
    b = net["b"]
    await net["c"].api.set_policy(net.channels["cd"], fee_base_msat=3_000)

    async def told() -> bool:
        policies = [policy for channel in net["a"].runtime.gossip.graph.channels() for policy in channel.policies]
        return any(policy is not None and policy.fee_base_msat == 3_000 for policy in policies)

    await net["a"].until(told)
    channel = await b.wait_active(net.channels["bd"])
    drain = await net["d"].api.create_invoice(channel.available_to_send_msat - AMOUNT_MSAT // 2, "drained")
    assert (await b.api.pay(drain.bolt11)).state == "succeeded"
    await net.quiet()


async def paid(net: Net, order: PaymentOrder, key: str, public: int) -> tuple[PaymentView, bool]:
    """The outcome of a payment that is asked for with the same key until it is known; whether its payer died. `public`:
    how many channels everybody knows."""
    payer = net["a"]
    died = False
    while True:
        calling = asyncio.ensure_future(payer.api.send(order, key))
        stopped = asyncio.ensure_future(payer.runtime.stopped.wait())
        await asyncio.wait((calling, stopped), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        stopped.cancel()
        if not payer.has_crashed:
            return await asyncio.wait_for(calling, 60), died
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        died = True
        await payer.restart()
        await net.active()
        await payer.until(partial(net.knows, payer, public))  # its gossip was in a temporary file


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_payer_dies_at_every_commit_of_two_attempts(net: Net, when: str) -> None:
    await _diamond(net)
    payer = net["a"]
    crashes = 0
    for commit in range(1, MOST_COMMITS):
        payer.runtime.router.scorer.reset()
        before = {name: await net.owns(name) for name in "abcd"}
        invoice = await net["d"].api.create_invoice(AMOUNT_MSAT, "the payer dies")
        payer.hook.arm(commit, when)  # type: ignore[arg-type]
        payment, died = await paid(net, InvoiceOrder(invoice.bolt11, None, PATIENT), f"{when} {commit}", CHANNELS)
        died = await net.restarted(payer) or died
        crashes += died
        assert payment.state == "succeeded", payment.failure
        assert (await net["d"].api.get_invoice(invoice.payment_hash)).received_msat == invoice.amount_msat
        await net.active()
        await payer.until(partial(net.knows, payer, CHANNELS))
        await net.quiet()
        gained = {name: await net.owns(name) - before[name] for name in "abcd"}
        assert gained == {
            "a": -payment.amount_msat - payment.fee_msat,
            "b": 0,
            "c": payment.fee_msat,
            "d": payment.amount_msat,
        }
        if not died:
            break
    assert crashes >= 4
    assert await payer.api.list_payments(1) == [payment]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_payer_dies_at_every_commit_of_a_keysend(net: Net, when: str) -> None:
    await net.make("ab", announce=False)
    payer, payee = net["a"], net["b"]
    began_with = await net.owns("b")
    for commit in range(1, MOST_COMMITS):
        payer.hook.arm(commit, when)  # type: ignore[arg-type]
        order = KeysendOrder(payee.node_id, AMOUNT_MSAT, ((65_537, b"x"),), PATIENT)
        payment, died = await paid(net, order, f"{when} {commit}", 0)
        died = await net.restarted(payer) or died
        assert payment.state == "succeeded", payment.failure
        await net.active()
        await net.quiet()
        assert await net.owns("b") - began_with == commit * AMOUNT_MSAT
        if not died:
            break
    assert commit > 2
    assert len(await payer.api.list_payments()) == len(await payee.api.list_invoices()) == commit
