"""A peer with a channel floods it with HTLCs: the same onion again and again, as many as there is room for, more than
there is room for. The other channel pays as before, and nothing is lost or remembered for ever."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from channeld.bolt.invoice import decode_invoice
from channeld.bolt.onion.payment import final_payload
from channeld.bolt.onion.sphinx import build_onion
from channeld.channel import events as ev
from channeld.node import switch, views
from channeld.node.channels import Driver
from tests.integration.world import TestNode, World, world_in

CHANNEL_SAT = 2_000_000
HTLC_MSAT = 1_000_000
REPLAYS = 100
FULL = 120
"""How many HTLCs Bob accepts at a time: fewer than usual, so that it does not take long."""


class Trio:
    """Alice is honest, Mallory is not; both have a channel with Bob."""

    def __init__(self, world: World, alice: TestNode, bob: TestNode, mallory: TestNode, channels: list[bytes]) -> None:
        self.world, self.alice, self.bob, self.mallory = world, alice, bob, mallory
        self.honest, self.evil = channels

    @property
    def evil_driver(self) -> Driver:
        driver = self.mallory.runtime.channels.by_id(self.evil)
        assert driver is not None
        return driver

    async def honest_payments(self) -> None:
        """Both ways, one after the other."""
        for payer, payee in ((self.alice, self.bob), (self.bob, self.alice)):
            invoice = await payee.api.create_invoice(7_000, "honest")
            payment = await payer.api.pay(invoice.bolt11)
            assert payment.state == "succeeded", payment.failure

    def onion_to_bob(self, payment_hash: bytes, session: bytes, expiry: int, secret: bytes) -> bytes:
        payload = final_payload(HTLC_MSAT, expiry, secret, HTLC_MSAT).to_bytes()
        return build_onion([(self.bob.node_id, payload)], session, payment_hash).packet

    async def owned(self) -> list[int]:
        channels = [await node.channel(self.evil) for node in (self.bob, self.mallory)]
        return [channel.local_msat for channel in channels if channel is not None]


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    async with world_in(tmp_path) as world:
        alice, bob, mallory = [await world.node(name) for name in ("alice", "bob", "mallory")]
        policy = bob.runtime.channels.policy
        bob.runtime.channels.policy = replace(policy, max_accepted_htlcs=FULL)
        await world.fund(alice, 100_000_000)
        await world.fund(mallory, 100_000_000)
        channels = [
            await world.open(node, bob, CHANNEL_SAT, push_msat=500_000_000, announce=False) for node in (alice, mallory)
        ]
        yield Trio(world, alice, bob, mallory, channels)


def secret_of(bolt11: str) -> bytes:
    secret = decode_invoice(bolt11).payment_secret
    assert secret is not None
    return secret


def offer(trio: Trio, onion: bytes, payment_hash: bytes, expiry: int) -> None:
    trio.evil_driver.post(ev.AddHtlc(HTLC_MSAT, payment_hash, expiry, onion, b"?flood"))


def remembered_of_mallory(trio: Trio) -> int:
    """How many onions of hers Bob remembers."""
    channels = trio.bob.runtime.channels
    driver = channels.by_id(trio.evil)
    assert driver is not None
    known = sum(channel_key == driver.channel_key for channel_key, _, _ in channels.switch._onions.values())
    assert channels.switch._remembered[driver.channel_key] == known
    return known


async def test_onion_replays(trio: Trio) -> None:
    """The first one pays an invoice; all others are told that the onion was seen before, and cost Bob no memory."""
    expiry = (await trio.bob.api.info()).block_height + 50
    invoice = await trio.bob.api.create_invoice(HTLC_MSAT, "once")
    onion = trio.onion_to_bob(invoice.payment_hash, os.urandom(32), expiry, secret_of(invoice.bolt11))
    before = await trio.owned()
    for _ in range(REPLAYS):
        offer(trio, onion, invoice.payment_hash, expiry)
    await trio.honest_payments()
    await trio.mallory.wait_no_htlcs(trio.evil)
    await trio.bob.wait_no_htlcs(trio.evil)
    assert await trio.owned() == [before[0] + HTLC_MSAT, before[1] - HTLC_MSAT]
    assert (await trio.bob.api.get_invoice(invoice.payment_hash)).received_msat == HTLC_MSAT
    assert remembered_of_mallory(trio) == 1
    await trio.honest_payments()


async def test_more_onions_than_are_remembered(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTLCs that fail at once leave an onion each, until they expire: so many of a channel, and no more; that channel
    pays again then, and others never stopped."""
    monkeypatch.setattr(switch, "MAX_ONIONS_PER_CHANNEL", 10)
    height = (await trio.bob.api.info()).block_height
    expiry = height + 30
    for _ in range(50):
        payment_hash = os.urandom(32)
        offer(trio, trio.onion_to_bob(payment_hash, os.urandom(32), expiry, bytes(32)), payment_hash, expiry)
    await trio.honest_payments()
    await trio.mallory.wait_no_htlcs(trio.evil)
    await trio.bob.wait_no_htlcs(trio.evil)
    assert remembered_of_mallory(trio) == 10
    invoice = await trio.bob.api.create_invoice(HTLC_MSAT, "mallory's own")
    assert "temporary_node_failure" in (await trio.mallory.api.pay(invoice.bolt11, timeout_seconds=5)).failure
    await trio.bob.restart()
    assert remembered_of_mallory(trio) == 10
    await trio.world.mine(expiry + 1 - height)
    assert remembered_of_mallory(trio) == 0
    await trio.mallory.wait_active(trio.evil)
    assert (await trio.mallory.api.pay((await trio.bob.api.create_invoice(HTLC_MSAT, "")).bolt11)).state == "succeeded"


async def test_a_jammed_channel(trio: Trio) -> None:
    """Mallory's payments to Bob's own hold invoices fill all slots of her channel, and one more finds none. Only that
    channel is jammed; when the invoices are canceled it is as it was."""
    expiry = (await trio.bob.api.info()).block_height + 200
    before = await trio.owned()
    hashes = [hashlib.sha256(b"%d" % number).digest() for number in range(FULL + 1)]
    for payment_hash in hashes:
        made = await trio.bob.api.create_invoice(HTLC_MSAT, "held", hold=True, payment_hash=payment_hash)
        onion = trio.onion_to_bob(payment_hash, os.urandom(32), expiry, secret_of(made.bolt11))
        offer(trio, onion, payment_hash, expiry)

    async def full() -> bool:
        return trio.bob.runtime.bus.counts["invoice.accepted"] == FULL

    await trio.bob.until(full)
    assert len(views.htlcs(trio.evil_driver.state)) == FULL
    await trio.honest_payments()
    await asyncio.gather(*(trio.bob.api.cancel_invoice(payment_hash) for payment_hash in hashes))
    await trio.mallory.wait_no_htlcs(trio.evil)
    await trio.bob.wait_no_htlcs(trio.evil)
    assert await trio.owned() == before
    await trio.honest_payments()
