"""A disk that hangs, and a peer that goes on talking: what waits for a commit stays bounded, other peers' connections
are served, and afterwards everything goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from channeld.channel import events as ev
from channeld.node import driver as drivers
from channeld.node.channels import Driver
from channeld.node.peer import PeerLink, _KeepAlive
from tests.integration.world import CrashHook, TestNode, World, world_in

SECONDS = 60
LIMIT_BYTES = 200 * drivers.MESSAGE_BYTES
FEES = 1_000
"""Proposed one after the other, which BOLT 2 allows."""


class HangingDisk(CrashHook):
    """Commits wait while it hangs."""

    def __init__(self) -> None:
        super().__init__()
        self._works = threading.Event()
        self._works.set()

    def hang(self) -> None:
        self._works.clear()

    def work(self) -> None:
        self._works.set()

    def before(self) -> None:
        assert self._works.wait(4 * SECONDS), "the test has forgotten the disk"
        super().before()


class Trio:
    """Bob's disk hangs; Mallory talks; Alice is another peer of Bob's."""

    def __init__(self, bob: TestNode, alice: TestNode, mallory: TestNode, disk: HangingDisk) -> None:
        self.bob, self.alice, self.mallory, self.disk = bob, alice, mallory, disk

    def driver(self, node: TestNode, channel_id: bytes) -> Driver:
        found = node.runtime.channels.by_id(channel_id)
        assert found is not None
        return found

    def link(self, peer: TestNode) -> PeerLink:
        """Bob's end."""
        found = self.bob.runtime.peers.link(peer.node_id)
        assert found is not None
        return found


def noting(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> asyncio.Event:
    """Set once a method was called."""
    called, original = asyncio.Event(), getattr(kind, name)

    def noted(*arguments: Any) -> Any:
        called.set()
        return original(*arguments)

    monkeypatch.setattr(kind, name, noted)
    return called


async def pays(payer: TestNode, payee: TestNode) -> None:
    payment = await payer.api.pay((await payee.api.create_invoice(7_000, "")).bolt11)
    assert payment.state == "succeeded", payment.failure


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        yield made


async def test_a_peer_that_talks_while_the_disk_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "MAX_WAITING_BYTES", LIMIT_BYTES)
    bob, alice, mallory = [await world.node(name) for name in ("bob", "alice", "mallory")]
    disk = bob.hook = HangingDisk()
    await bob.restart()
    trio = Trio(bob, alice, mallory, disk)
    await world.fund(mallory, 100_000_000)
    await world.fund(alice, 100_000_000)
    options = {"push_msat": 500_000_000, "announce": False}
    flooded, quiet = [await world.open(mallory, bob, 2_000_000, **options) for _ in range(2)]
    await world.open(alice, bob, 2_000_000, **options)

    held = noting(monkeypatch, PeerLink, "hold")
    disk.hang()
    try:
        talker, listener = trio.driver(mallory, flooded), trio.driver(bob, flooded)
        for number in range(FEES):
            talker.post(ev.UpdateFee(1_000 + number % 2))
        await asyncio.wait_for(held.wait(), SECONDS)
        assert trio.link(mallory).is_held
        assert len(listener._inbox) <= LIMIT_BYTES // drivers.MESSAGE_BYTES + 1
        assert not trio.driver(bob, quiet)._inbox

        answered = noting(monkeypatch, _KeepAlive, "pong")
        for link in (trio.link(alice), alice.runtime.peers.link(bob.node_id)):
            assert link is not None
            answered.clear()
            link._keep_alive._ping()
            await asyncio.wait_for(answered.wait(), SECONDS)
    finally:
        disk.work()

    await pays(alice, bob)
    for payer, payee in ((mallory, bob), (bob, mallory)):
        await pays(payer, payee)
    assert not trio.link(mallory).is_held
    for channel_id in (flooded, quiet):
        for node in (bob, mallory):
            await node.wait_no_htlcs(channel_id)
            await node.wait_active(channel_id)
            assert trio.driver(node, channel_id).failure is None
