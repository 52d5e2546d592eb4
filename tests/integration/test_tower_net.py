"""Bob cheats while Alice is off: her tower has what it takes, made of what her database keeps anyway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from channeld.channel import events as ev
from tests.onchain_net import Net, preimage, second_stages
from tests.tower_support import running_tower, states, tower_config, until_searched
from wallet.bitcoin import Tx
from wallet.bitcoin.address import REGTEST, address_of
from wallet.bitcoind import BitcoindChainSource, BitcoindConfig
from wallet.rpc import RpcConfig
from watchtower.appointment import Mode
from watchtower.client.connection import TowerUri
from watchtower.tower.daemon import Tower


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with Net(tmp_path) as net:
        await net.open_channel()
        yield net


@asynccontextmanager
async def guarded(net: Net, mode: Mode) -> AsyncIterator[Tower]:
    """A tower that Alice uses."""
    user, password = net.server.auth
    config = BitcoindConfig(
        RpcConfig(net.server.url, user, password), retry_seconds=(0.05,), fallback_feerate_sat_per_kw=1_000
    )
    async with running_tower(tower_config(net.directory / "tower"), BitcoindChainSource(config, REGTEST)) as tower:
        await net.alice.runtime.towers.all.add(TowerUri(tower.tower_id, tower.server.address), mode)
        yield tower


async def backed_up(net: Net) -> None:
    """Until the tower has everything that Alice knows of."""
    async with asyncio.timeout(60):
        await net.alice.runtime.towers.all.wait_idle()
    (status,) = net.alice.runtime.towers.all.statuses()
    assert (status.backlog, status.problem) == (0, "")
    (check,) = await net.alice.runtime.towers.all.check(net.height)
    assert check.up_to_date, check.reasons


async def old_state_with_htlcs(net: Net) -> None:
    """HTLCs both ways, in a state that is then revoked."""
    await net.add(net.alice, 50_000_000, 1)
    await net.add(net.bob, 60_000_000, 2)


async def go_on(net: Net) -> None:
    """Later states."""
    await net.add(net.alice, 10_000_000, 3)
    await net.add(net.bob, 10_000_000, 4)


async def mine(net: Net, tower: Tower, count: int = 1) -> None:
    for _ in range(count):
        await net.mine(1)
        await until_searched(tower, net.height)


@pytest.mark.parametrize("mode", ["blind", "own"])
async def test_the_tower_takes_it_all_while_alice_is_off(net: Net, mode: Mode) -> None:
    async with guarded(net, mode) as tower:
        await old_state_with_htlcs(net)
        cheater = net.bob.state
        cheat = net.bob.commitment(cheater)
        await go_on(net)
        await backed_up(net)
        (script,) = net.alice.runtime.towers.backups._scripts.values()
        await net.alice.stop()
        await net.mine(1, txs=[cheat])
        await until_searched(tower, net.height)
        await mine(net, tower)
        assert states(tower) == ["saved"] * 4
        await net.alice.start()
        await net.settle()
        fees = sum(attempt.fee_sat for attempt in next(iter(tower.watcher.breaches.values())).attempts)
        taken = sum(output.value_sat for output in cheat.outputs if output.value_sat > 330)
        address = address_of(script, REGTEST)
        coins = [coin for coin in net.alice.runtime.wallet.coins() if coin.address == address]
        assert sum(coin.value_sat for coin in coins) == taken - fees


async def old_commitment(net: Net) -> Tx:
    """One that Bob revoked, and Alice's tower knows."""
    await old_state_with_htlcs(net)
    cheat = net.bob.commitment()
    await go_on(net)
    await backed_up(net)
    return cheat


def penalties_in_mempool(net: Net, cheat: Tx) -> set[bytes]:
    """What takes the cheater's outputs (the largest of its commitment is Alice's own)."""
    txid = cheat.txid()
    places = {vout for vout, output in enumerate(cheat.outputs) if output.value_sat > 330}
    own = max(places, key=lambda vout: cheat.outputs[vout].value_sat)
    txs = [entry.tx for entry in net.server.node.mempool.pool.entries.values()]
    return {tx.txid() for tx in txs for i in tx.inputs if i.outpoint.txid == txid and i.outpoint.vout in places - {own}}


async def test_alice_comes_back_and_leaves_it_to_her_tower(net: Net) -> None:
    """She would only outbid her own money."""
    async with guarded(net, "blind") as tower:
        cheat = await old_commitment(net)
        await net.alice.stop()
        await net.mine(1, txs=[cheat])
        await until_searched(tower, net.height)
        waiting = penalties_in_mempool(net, cheat)
        assert len(waiting) == 1
        await net.alice.start()
        net.alice.set_feerate(1_000)
        await net.mine(1, txs=[])
        await until_searched(tower, net.height)
        assert penalties_in_mempool(net, cheat) == waiting
        assert [attempt for attempt in net.alice.attempts() if attempt.group == "penalty"] == []
        assert net.alice.runtime.bus.counts["onchain.left_to_tower"] == 1
        # Where that pays too little all of a sudden, she does not rely on the tower.
        net.alice.set_feerate(5_000)
        await net.mine(1, txs=[])
        assert penalties_in_mempool(net, cheat).isdisjoint(waiting)
        await mine(net, tower)
        assert sorted(states(tower)) == ["client", "saved", "saved", "saved"]


async def test_the_tower_leaves_it_to_alice(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    async with guarded(net, "own") as tower:
        cheat = await old_commitment(net)
        net.alice.set_feerate(1_000)
        with monkeypatch.context() as patch:
            patch.setattr(tower.watcher.publisher, "act", nothing)
            await net.mine(1, txs=[cheat])
            await until_searched(tower, net.height)
        await net.alice.until(lambda: bool(penalties_in_mempool(net, cheat)))
        waiting = penalties_in_mempool(net, cheat)
        await net.mine(1, txs=[])
        await until_searched(tower, net.height)
        assert penalties_in_mempool(net, cheat) == waiting
        (known,) = tower.watcher.breaches.values()
        assert known.attempts == ()
        await mine(net, tower)
        assert sorted(states(tower)) == ["client", "saved", "saved", "saved"]


async def nothing(*_: object) -> None:
    """Is done."""


async def test_the_tower_takes_what_the_cheater_moved_on(net: Net) -> None:
    """Own mode: HTLC-success and HTLC-timeout transactions of the cheater are no way out."""
    async with guarded(net, "own") as tower:
        await old_state_with_htlcs(net)
        cheater = net.bob.state
        stages = second_stages(net.bob, cheater, {1: preimage(1)})
        await go_on(net)
        await backed_up(net)
        await net.alice.stop()
        await net.mine(1, txs=[net.bob.commitment(cheater)])
        await until_searched(tower, net.height)
        await net.mine(1, txs=[stages["success"]])
        await until_searched(tower, net.height)
        await mine(net, tower)
        assert sorted(states(tower)) == ["saved", "saved", "saved", "saved", "second stage"]


async def test_a_new_tower_gets_the_whole_past_and_a_closed_channel_is_forgotten(net: Net) -> None:
    await old_state_with_htlcs(net)
    cheater = net.bob.state
    await go_on(net)
    async with guarded(net, "blind") as tower:
        await backed_up(net)
        assert tower.sessions.total_appointments == net.alice.state.commitments.remote_secrets.count
        await net.disconnect()
        await net.mine(1, txs=[net.bob.commitment(cheater)])
        await until_searched(tower, net.height)
        # Alice is there and takes it herself, or the tower does: nobody else.
        await mine(net, tower, 2)
        assert set(states(tower)) <= {"saved", "client"}
        await net.skip(110)
        await net.alice.until(lambda: not list(net.alice.runtime.channels.all()))
        await net.alice.until(lambda: len(tower.sessions) == 0)


async def test_kits_are_none_for_what_was_never_revocable(net: Net) -> None:
    backups = net.alice.runtime.towers.backups
    await net.alice.command(ev.UpdateFee(3_000))
    await net.quiet()
    ((channel, count),) = backups.counts().items()
    make_kits, again = await backups.kits(channel, 0, 100), await backups.kits(channel, 0, 100)
    assert make_kits is not None
    assert again is not None
    first = make_kits()
    assert len(first) == count
    assert first == again()
    assert all(kit is not None for kit in first)
    assert await backups.kits(bytes(31) + b"\x63", 0, 1) is None
