"""The funding transaction of a channel in use leaves the chain, and comes back or is double-spent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.channel import events as ev
from channeld.channel.state import Closing
from tests.onchain_net import STRANGER, Net, TestNode
from wallet.bitcoin import Tx, TxIn, TxOut


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with Net(tmp_path) as net:
        yield net


def double_spend(net: Net, node: TestNode, funding: Tx) -> Tx:
    """The same coins of `node`'s, to somebody else."""
    chain = net.server.node.chain
    mined = {tx.txid(): tx for block in chain.tip.ancestors() for tx in chain.block(block).txs}
    spent = [mined[outpoint.txid].outputs[outpoint.vout] for outpoint in funding.spends()]
    value_sat = sum(output.value_sat for output in spent) - 5_000
    tx = Tx(2, tuple(TxIn(outpoint) for outpoint in funding.spends()), (TxOut(value_sat, STRANGER),), 0)
    return node.runtime.wallet.sign(tx, spent)


async def test_a_double_spent_funding_ends_the_channel(net: Net) -> None:
    await net.open_channel()
    scid = net.bob.state.scid
    assert scid is not None
    rival = double_spend(net, net.alice, Tx.parse(net.alice.state.funding_tx))
    await net.reorganise(net.height - (scid >> 40) + 1, first=[rival], forget=True)
    for node in net.nodes:
        assert node.state.double_spent_by == rival.txid()
        view = await node.node.get_channel(node.channel_id)
        assert not view.active
        assert "double-spent" in view.status
        with pytest.raises(Exception, match="not deep enough"):
            await node.command(ev.AddHtlc(1_000_000, bytes(32), net.height + 60, bytes(1366), b"test"))
    await net.alice.command(ev.ForceClose("no"))
    await net.restart(net.bob)
    assert net.bob.state.double_spent_by == rival.txid()
    assert isinstance(net.alice.state, Closing)
    await net.skip(100)
    for node in net.nodes:
        assert list(node.runtime.channels.all()) == []
        view = await node.node.get_channel(node.channel_id)
        assert (view.phase, view.closing_txid) == ("closed", rival.txid())
        assert "nothing can be claimed" in view.status


async def test_a_funding_that_comes_back_is_used_again(net: Net) -> None:
    await net.open_channel()
    scid = net.bob.state.scid
    assert scid is not None
    depth = net.height - (scid >> 40) + 1
    await net.reorganise(depth)
    assert net.bob.state.is_deep
    assert (await net.bob.node.get_channel(net.bob.channel_id)).active


async def closed_over_a_lost_funding(net: Net) -> tuple[Tx, int]:
    """The child of Alice's commitment keeps a coin of her wallet's. Returns what spends the funding's coins once the
    blocks since then are replaced, and how many these are."""
    await net.open_channel()
    scid = net.alice.state.scid
    assert scid is not None
    rival = double_spend(net, net.alice, Tx.parse(net.alice.state.funding_tx))
    net.alice.set_feerate(3_000)
    await net.mine(1)
    await net.disconnect()
    await net.alice.command(ev.ForceClose("test"))
    await net.settle()
    assert [attempt.group for attempt in net.alice.attempts()] == ["anchor"]
    assert net.alice.runtime.wallet.reservations()
    return rival, net.height - (scid >> 40) + 1


async def test_no_coin_is_kept_for_a_commitment_that_cannot_be_mined(net: Net) -> None:
    """A funding that leaves the chain, or that a peer never broadcast, must not cost us the use of our coins."""
    rival, depth = await closed_over_a_lost_funding(net)
    await net.reorganise(depth, first=[rival], forget=True)
    assert isinstance(net.alice.state, Closing)
    for _ in range(2):
        assert net.alice.attempts() == ()
        assert net.alice.runtime.wallet.reservations() == {}
        await net.mine(1)


async def test_a_child_is_made_once_the_funding_is_back(net: Net) -> None:
    _, depth = await closed_over_a_lost_funding(net)
    funding = Tx.parse(net.alice.state.funding_tx)
    await net.reorganise(depth, forget=True)
    await net.mine(1, txs=[funding])
    await net.mine(1, txs=[])
    (child,) = net.alice.attempts()
    assert child.txid in net.server.node.mempool.pool.entries


async def test_a_channel_that_came_to_nothing_while_we_were_off_frees_its_coins(net: Net) -> None:
    rival, depth = await closed_over_a_lost_funding(net)
    await net.alice.stop()
    await net.reorganise(depth, first=[rival], forget=True)
    await net.skip(100)
    await net.alice.start()
    await net.settle()
    for _ in range(2):
        assert (await net.alice.node.get_channel(net.alice.channel_id)).phase == "closed"
        assert net.alice.runtime.monitor.reservations() == set()
        assert net.alice.runtime.wallet.reservations() == {}
        await net.restart(net.alice)


async def test_a_close_that_will_never_be_mined_is_not_in_the_balance_any_more(net: Net) -> None:
    await net.open_channel()
    scid = net.bob.state.scid
    assert scid is not None
    rival = double_spend(net, net.alice, Tx.parse(net.alice.state.funding_tx))
    before = net.bob.runtime.wallet.balance().unconfirmed_sat
    await net.bob.node.close_channel(net.bob.channel_id)
    await net.settle()
    assert net.bob.runtime.wallet.balance().unconfirmed_sat > before
    await net.reorganise(net.height - (scid >> 40) + 1, first=[rival], forget=True)
    await net.skip(100)
    for _ in range(2):
        assert list(net.bob.runtime.channels.all()) == []
        assert net.bob.runtime.wallet.balance().unconfirmed_sat == before
        await net.restart(net.bob)
