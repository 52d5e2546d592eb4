"""What a stranger says of money that is not there, or not its own, must not touch ours: a channel without a funding
transaction costs its opener nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from channeld.bolt.messages import FundingSigned, Message, OpenChannel, decode
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.state import NegotiatingSimple
from channeld.node import channel_verbs
from channeld.node.peer import PeerLink
from tests.integration.world import STEP_SECONDS, TestNode, World, world_in
from tests.machine.harness import FEATURES, NODE_IDS, Peer, open_params, script_of, seed_secrets
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import REGTEST


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


class Named(Tx):
    """A funding transaction of which only an output is named, which may be anybody's."""

    named: OutPoint

    def outpoint(self, vout: int) -> OutPoint:
        return self.named


class Stranger:
    """A peer of `node` with a channel that it never funds: the real machine, which believes what it says."""

    def __init__(self, node: TestNode, number: int = 0) -> None:
        self.node = node
        self.node_id = NODE_IDS["alice"]
        self.remote_features = FEATURES
        self.number = number
        self.opener = Peer("alice", seed_secrets("alice", number))

    def send(self, data: bytes) -> None:
        self.opener.receive(data)

    def send_message(self, message: Message) -> None:
        raise AssertionError(f"refused: {message}")

    def close(self, reason: str) -> None:
        raise AssertionError(f"disconnected: {reason}")

    async def talk(self) -> None:
        """Until nobody has anything to say."""
        for _ in range(20):
            while self.opener.outbox:
                raw = self.opener.outbox.popleft()
                self.node.runtime.channels.peer_message(cast(PeerLink, self), decode(raw), raw)
            await self.node.flush()
            await self.node.flush()
        assert not self.node.has_crashed

    async def open(self, funding: OutPoint, **wanted: Any) -> None:
        """A channel over an output that it names."""
        temporary_id = bytes([self.number + 1]) * 32
        params = open_params(
            Peer("bob", seed_secrets("bob")),
            chain_hash=REGTEST.chain_hash,
            temporary_channel_id=temporary_id,
            announce=False,
            **wanted,
        )
        self.opener.height = self.node.runtime.wallet.height
        self.opener.take(machine.initiate(params, self.opener.env()))
        assert isinstance(decode(self.opener.outbox[0]), OpenChannel)
        await self.talk()
        (need,) = self.opener.logged(fx.NeedFunding)
        output = TxOut(need.amount_sat, need.script_pubkey)
        tx = Named(2, (TxIn(OutPoint(b"\x66" * 32, self.number)),), (output,), 0)
        tx.named = funding
        self.opener.step(ev.FundingTxReady(tx, 0))
        await self.talk()

    async def close_together(self) -> None:
        """Without waiting for the funding transaction, as BOLT 2 allows."""
        self.opener.step(ev.CloseChannel(script_of("alice"), 0))
        await self.talk()
        assert isinstance(self.opener.state, NegotiatingSimple)
        assert self.opener.state.closing_txs


async def test_a_coin_that_a_stranger_names_as_its_funding_stays_ours(world: World) -> None:
    bob = await world.node("bob")
    await world.fund(bob, 1_000_000)
    wallet = bob.runtime.wallet
    (coin,) = wallet.coins()
    before = wallet.balance()
    stranger = Stranger(bob)
    await stranger.open(coin.outpoint, push_msat=300_000_000)
    await stranger.close_together()
    assert wallet.balance() == before
    assert [c.outpoint for c in wallet.coins()] == [coin.outpoint]

    async def no_channels() -> bool:
        return not list(bob.runtime.channels.all())

    await bob.api.send_coins(await bob.api.new_address("p2tr"), 500_000, 300)
    await world.mine(2)
    await bob.runtime.monitor.wait_idle()
    assert wallet.balance().confirmed_sat > 999_000
    assert bob.runtime.wallet.reservations() == {}
    await bob.until(no_channels)
    assert bob.runtime.bus.counts["onchain.unknown"] == 0, "no keys have leaked"
    assert await bob.api.list_channels(include_closed=True) == [], "nothing stays of it"


async def test_money_that_a_stranger_only_promises_is_not_in_the_balance(world: World) -> None:
    bob = await world.node("bob")
    await world.fund(bob, 1_000_000)
    before = bob.runtime.wallet.balance()
    stranger = Stranger(bob)
    await stranger.open(OutPoint(b"\x77" * 32, 0), push_msat=300_000_000)
    await stranger.close_together()
    assert bob.runtime.wallet.balance() == before


async def test_strangers_do_not_use_up_the_scripts_that_a_seed_brings_back(world: World) -> None:
    bob = await world.node("bob")
    book = bob.runtime.wallet._ledger.book
    before = sum(path.child for path in book.cursors())
    for number in range(3):
        stranger = Stranger(bob, number)
        await stranger.open(OutPoint(bytes([number + 100]) * 32, 0), push_msat=300_000_000)
        await stranger.close_together()
    assert sum(path.child for path in book.cursors()) == before + 1


async def test_an_opening_that_nobody_waits_for_frees_its_coins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that accepts a channel and then says nothing, and a caller who goes away."""
    monkeypatch.setattr(channel_verbs, "OPEN_TIMEOUT_SECONDS", 0.1)
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(bob, 4_000_000)
    await bob.connect(alice)
    link = alice.runtime.peers.link(bob.node_id)
    assert link is not None
    send, silent = link.send, asyncio.Event()

    def withhold(data: bytes) -> None:
        if isinstance(decode(data), FundingSigned):
            silent.set()
        else:
            send(data)

    link.send = withhold  # type: ignore[method-assign]
    call = asyncio.create_task(bob.api.open_channel(alice.node_id, 500_000))
    await asyncio.wait_for(silent.wait(), STEP_SECONDS)
    (driver,) = bob.runtime.channels.of_peer(alice.node_id)
    assert bob.runtime.wallet.reservations()
    call.cancel()
    assert await bob.runtime.channels.wait_until(driver, lambda d: d.is_over, 5)
    await bob.runtime.coins.close()
    assert bob.runtime.wallet.reservations() == {}
