"""The wallet's last coin is in the child of a commitment that can wait, and another channel cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.channel import events as ev
from channeld.channel.state import Closing
from channeld.node.channels import Driver
from channeld.onchain.plans import Attempt
from tests.integration.test_onchain_close import keep_one_coin
from tests.onchain_net import Net, preimage
from wallet.bitcoin import Tx

FORCE = ev.ForceClose("test")


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with Net(tmp_path) as net:
        await net.open_channel()
        yield net


def attempts(net: Net, driver: Driver) -> tuple[Attempt, ...]:
    """Alice's, for one of her channels."""
    return net.alice.runtime.monitor._stored[driver.channel_key].resolution.attempts


async def two_channels(net: Net) -> tuple[Driver, Driver]:
    """Alice has one coin, and two channels: in the first she claims an HTLC, the second has none."""
    id = await net.add(net.bob, 100_000_000, 3)
    first = net.alice.driver
    await net.alice.node.open_channel(net.bob.runtime.identity.node_id, 1_000_000, 400_000_000, announce=False)
    await net.mine(3)
    (second,) = [driver for driver in net.alice.runtime.channels.all() if driver is not first]
    await net.disconnect()
    await net.alice.runtime.channels.command(first, ev.FulfillHtlc(id, preimage(3)))
    await keep_one_coin(net)
    net.alice.set_feerate(2_000)
    await net.mine(1)
    return first, second


async def lazy_child(net: Net, driver: Driver) -> Attempt:
    """The channel is closed, and a child of its commitment has the coin."""
    await net.alice.runtime.channels.command(driver, FORCE)
    await net.settle()
    (child,) = attempts(net, driver)
    assert child.group == "anchor"
    return child


def check(net: Net, first: Driver, second: Driver, group: str) -> Attempt:
    """The first channel has the coin, and the second has nothing."""
    (urgent,) = attempts(net, first)
    assert urgent.group == group
    assert attempts(net, second) == ()
    assert urgent.txid in net.server.node.mempool.pool.entries
    reservations = net.alice.runtime.wallet.reservations()
    assert set(reservations) == {urgent.reservation} == net.alice.runtime.monitor.reservations()
    return urgent


async def test_a_child_that_nobody_keeps_gives_its_coin_to_a_commitment_with_a_deadline(net: Net) -> None:
    """Whoever has channels with us could have them all closed while fees are low, and let children wait with our coins
    as fees rise: nothing would be left for an HTLC that is about to expire."""
    first, second = await two_channels(net)
    lazy = await lazy_child(net, second)
    pool = net.server.node.mempool.pool
    pool.remove([lazy.txid], "test")
    await net.alice.runtime.channels.command(first, FORCE)
    await net.settle()
    urgent = check(net, first, second, "anchor")
    await net.mine(1, txs=[])
    assert urgent.txid in pool.entries, "it keeps the coin"
    await net.mine(3)
    assert net.bob.held.settled_ids


async def test_a_child_in_the_mempool_gives_its_coin_to_an_htlc(net: Net) -> None:
    first, second = await two_channels(net)
    lazy = await lazy_child(net, second)
    await net.alice.runtime.channels.command(first, FORCE)
    await net.settle()
    pool = net.server.node.mempool.pool
    assert attempts(net, second) == (lazy,), "a child cannot replace that of another commitment (BIP 125, rule 2)"
    assert lazy.txid in pool.entries
    state = first.state
    assert isinstance(state, Closing)
    await net.mine(1, txs=[Tx.parse(state.local_tx)])
    urgent = check(net, first, second, "htlc")
    assert lazy.txid not in pool.entries
    assert urgent.fee_sat > lazy.fee_sat
    await net.mine(1)
    assert net.bob.held.settled_ids
