"""Payments in several parts when not all of them get out: nothing is left in flight that no channel carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.bolt.onion.failures import MppTimeout
from channeld.channel import events as ev
from channeld.node import receive
from channeld.node.channels import Driver
from channeld.node.interface import NodeError
from channeld.node.payment_record import PaymentRecord
from channeld.node.payment_views import InvoiceOrder
from tests.integration.world import STEP_SECONDS, TestNode, World, world_in

CHANNEL_SAT = 1_000_000
NOTHING_MSAT = 0
"""No channel takes an HTLC of nothing."""


class Filled(dict[bytes, object]):
    """What waits for more parts; `event`: something does."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()

    def __setitem__(self, key: bytes, value: object) -> None:
        super().__setitem__(key, value)
        self.event.set()


class Twice:
    """Two channels from alice to bob."""

    def __init__(self, alice: TestNode, bob: TestNode) -> None:
        self.alice, self.bob = alice, bob

    def drivers(self) -> tuple[Driver, Driver]:
        first, second = self.alice.runtime.channels.all()
        return first, second

    def plan(self, monkeypatch: pytest.MonkeyPatch, *amounts_msat: int) -> None:
        parts = list(zip(self.drivers(), amounts_msat, strict=True))

        def plan(record: PaymentRecord, *_: object) -> list[tuple[Driver, int]]:
            if record.parts:
                raise NodeError("failed_precondition", "nothing else is planned")
            return parts

        monkeypatch.setattr(self.alice.runtime.payments._planner, "_plan", plan)

    async def begin(self, bolt11: str) -> bytes:
        """Returns the payment hash as soon as the payment exists."""
        started = await self.alice.api.start_payment(InvoiceOrder(bolt11))
        assert started.state == "in_flight"
        return started.payment_hash

    async def wait_part_failed(self, payment_hash: bytes) -> None:
        async with asyncio.timeout(STEP_SECONDS):
            async for update in self.alice.api.track_payment(payment_hash):
                if update.attempt is not None and update.attempt.state == "failed":
                    return
        raise AssertionError("the payment is over")

    async def wait_failed(self, payment_hash: bytes) -> str:
        async def failed() -> str:
            payment = await self.alice.api.get_payment(payment_hash)
            assert payment.state != "succeeded"
            return payment.failure if payment.state == "failed" else ""

        return str(await self.alice.until(failed))


@pytest.fixture
async def twice(tmp_path: Path) -> AsyncIterator[Twice]:
    async with world_in(tmp_path) as world:
        alice, bob = await world.node("alice"), await world.node("bob")
        await world.fund(alice, 100_000_000)
        await _open_both(world, alice, bob)
        yield Twice(alice, bob)


async def _open_both(world: World, alice: TestNode, bob: TestNode) -> None:
    for _ in range(2):
        await world.open(alice, bob, CHANNEL_SAT, announce=False)


async def test_a_payment_that_no_channel_took_can_be_made_again(twice: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    invoice = await twice.bob.api.create_invoice(1_000_000, "refused twice")
    twice.plan(monkeypatch, NOTHING_MSAT, NOTHING_MSAT)
    with pytest.raises(NodeError, match="nothing was paid"):
        await twice.alice.api.pay(invoice.bolt11)
    assert await twice.alice.api.list_payments() == []
    monkeypatch.undo()
    assert (await twice.alice.api.pay(invoice.bolt11)).state == "succeeded"


async def test_a_refused_part_stays_refused_after_a_restart(twice: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    invoice = await twice.bob.api.create_invoice(1_000_000, "half of it comes")
    twice.plan(monkeypatch, NOTHING_MSAT, 500_000)
    receiver = twice.bob.runtime.receiver
    filled = Filled()
    monkeypatch.setattr(receiver, "_sets", filled)
    payment_hash = await twice.begin(invoice.bolt11)
    async with asyncio.timeout(STEP_SECONDS):
        await filled.event.wait()
    await twice.wait_part_failed(payment_hash)
    await twice.alice.restart()
    # Only now: it would store the refusal, too.
    assert (await twice.alice.api.cancel_payment(payment_hash)).state == "in_flight"
    receiver._fail_set(invoice.payment_hash, MppTimeout())
    assert await twice.wait_failed(invoice.payment_hash)


async def test_a_part_that_never_reached_its_channel_is_failed_at_the_next_start(
    twice: Twice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "MPP_TIMEOUT_SECONDS", 0.1)
    invoice = await twice.bob.api.create_invoice(1_000_000, "half of it comes")
    twice.plan(monkeypatch, 500_000, 500_000)
    _, second = twice.drivers()
    post = second.post

    def lost(event: ev.Event, *rest: object) -> None:
        if not isinstance(event, ev.AddHtlc):
            post(event, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(second, "post", lost)
    payment_hash = await twice.begin(invoice.bolt11)
    await twice.wait_part_failed(payment_hash)  # the one that did reach its channel
    assert (await twice.alice.api.cancel_payment(payment_hash)).state == "in_flight"
    await twice.alice.restart()
    assert await twice.wait_failed(invoice.payment_hash)
    for driver in twice.drivers():
        await twice.alice.wait_active(driver.channel_id)
    assert (await twice.alice.api.pay(invoice.bolt11)).state == "succeeded"
