"""Closing transactions that nobody mines, or that a reorganisation took away: what the operator hears, and the ways
out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.channel import events as ev
from channeld.channel.state import Closing, NegotiatingSimple, ShuttingDown
from channeld.node import monitor_warnings
from channeld.node.event_kinds import EventKind
from channeld.node.interface import NodeError
from tests.onchain_net import STRANGER, Net, TestNode
from wallet.bitcoin.address import REGTEST, address_of


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with Net(tmp_path) as net:
        await net.open_channel()
        yield net


def pays_to_stranger(net: Net) -> bool:
    """Whether the one closing transaction that waits does."""
    (txid,) = waiting(net)
    return any(output.script_pubkey == STRANGER for output in net.server.node.mempool.pool.entries[txid].tx.outputs)


def waiting(net: Net) -> list[bytes]:
    """What layer 1 has to spend the funding output."""
    funding = net.alice.state.params.funding_outpoint
    pool = net.server.node.mempool.pool.entries
    return [txid for txid, entry in pool.items() if any(txin.outpoint == funding for txin in entry.tx.inputs)]


async def close(node: TestNode, *, force: bool = False, feerate_per_kw: int | None = None, address: str = "") -> None:
    await node.node.close_channel(node.channel_id, force=force, feerate_per_kw=feerate_per_kw, address=address)


async def test_a_close_that_nobody_mines(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the peer, it can pay more; without, our commitment competes with it."""
    monkeypatch.setattr(monitor_warnings, "STUCK_CLOSE_BLOCKS", 2)
    heard: list[str] = []
    publish = net.alice.runtime.bus.publish

    def listen(kind: EventKind, sentence: str, **details: object) -> None:
        if kind == "channel.close_stuck":
            heard.append(sentence)
        publish(kind, sentence, **details)

    monkeypatch.setattr(net.alice.runtime.bus, "publish", listen)
    before = net.alice.balance_sat()
    await close(net.alice, feerate_per_kw=300)
    (first,) = waiting(net)
    for _ in range(4):
        await net.mine(1, txs=[])
    (sentence,) = heard
    assert f"close {net.alice.channel_id.hex()} --feerate" in sentence
    assert "--force" in sentence
    await close(net.alice, feerate_per_kw=1_000)
    (second,) = waiting(net)
    assert second != first
    assert isinstance(net.alice.state, NegotiatingSimple)
    await net.disconnect()
    with pytest.raises(NodeError, match="not connected: try again when it is back, or close by force"):
        await close(net.alice, feerate_per_kw=2_000)
    net.alice.set_feerate(5_000)
    await net.mine(1, txs=[])
    await close(net.alice, force=True)
    await net.settle()
    assert waiting(net) == [net.alice.commitment().txid()]
    await net.mine(1)
    await net.skip(20)
    await net.mine(1)
    assert net.alice.report().kind == "local"
    assert 585_000 < net.alice.balance_sat() - before < 600_000


async def test_a_mutual_close_that_leaves_the_chain_for_good(net: Net) -> None:
    """Nobody mines it again: our commitment may, and whichever is mined is explained."""
    before = net.alice.balance_sat()
    await close(net.alice)
    await net.mine(2)
    with pytest.raises(NodeError, match="nothing is left to force"):
        await close(net.alice, force=True)
    await net.disconnect()
    await net.bob.stop()
    await net.reorganise(2, forget=True)
    await net.mine(1, txs=[])
    assert isinstance(net.alice.state, Closing)
    assert net.alice.state.confirmed_height is None
    net.alice.set_feerate(5_000)
    await net.mine(1, txs=[])
    await close(net.alice, force=True)
    await net.settle()
    assert waiting(net) == [net.alice.commitment().txid()]
    await net.restart(net.alice)
    await net.mine(1)
    await net.skip(20)
    await net.mine(1)
    assert net.alice.report().kind == "local"
    assert 585_000 < net.alice.balance_sat() - before < 600_000


async def test_the_fee_rate_follows_layer_1_while_htlcs_hold_a_close_up(net: Net) -> None:
    """Who opened the channel pays for our commitment, which an HTLC's deadline may yet ask for."""
    await net.add(net.bob, 50_000_000, 1)
    await net.alice.command(ev.CloseChannel(STRANGER, 300))
    assert isinstance(net.alice.state, ShuttingDown)
    net.alice.set_feerate(2_000)
    await net.mine(1)
    for node in net.nodes:
        await node.until(lambda node=node: node.state.commitments.local.spec.feerate_per_kw == 2_000)  # type: ignore[misc]
    await net.alice.command(ev.FailHtlc(0, bytes(292)))
    await net.alice.until(lambda: isinstance(net.alice.state, NegotiatingSimple))
    net.alice.set_feerate(1_000)
    await net.mine(1)
    assert net.alice.state.commitments.local.spec.feerate_per_kw == 2_000


async def test_a_close_that_pays_more_goes_where_the_first_one_went(net: Net) -> None:
    """What the warning about a stuck close says to do names no address."""
    address = address_of(STRANGER, REGTEST)
    assert address is not None
    await close(net.alice, feerate_per_kw=300, address=address)
    assert pays_to_stranger(net)
    (first,) = waiting(net)
    await close(net.alice, feerate_per_kw=1_000)
    assert waiting(net) != [first]
    assert pays_to_stranger(net)


async def test_a_channel_with_a_fixed_address_is_closed_without_naming_it(tmp_path: Path) -> None:
    address = address_of(STRANGER, REGTEST)
    assert address is not None
    async with Net(tmp_path) as net:
        await net.open_channel(close_to_address=address)
        await close(net.alice, feerate_per_kw=300)
        assert pays_to_stranger(net)


async def test_who_cannot_pay_the_whole_fee_rate_pays_what_it_can(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        await net.open_channel(push_msat=987_500_000)
        net.alice.set_feerate(2_400)
        await net.mine(1)
        # 12,500 sat without the reserve of 10,000 and two anchors, over 1,124 weight units and four HTLCs to come
        for node in net.nodes:
            await node.until(lambda node=node: node.state.commitments.local.spec.feerate_per_kw == 1_015)  # type: ignore[misc]
        await net.mine(1)
        await net.quiet()
        assert net.alice.state.commitments.local.index == 1
