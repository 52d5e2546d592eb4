"""Channels that end on chain, between two nodes over a regtest layer 1 with Bitcoin Core's engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from channeld.bolt.transactions import Htlc
from channeld.channel import events as ev
from channeld.channel.state import Closing, Normal
from channeld.node import monitor
from channeld.node.channels import Driver
from channeld.node.driver import Reaction
from channeld.node.interface import NodeError
from tests.onchain_net import STRANGER, Net, TestNode, preimage, second_stages
from wallet.bitcoin import OutPoint, Tx
from wallet.bitcoin.address import REGTEST, address_of


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with Net(tmp_path) as net:
        await net.open_channel()
        yield net


async def four_htlcs(net: Net) -> dict[str, int]:
    """Two HTLCs each way, 50,000 sat each: one whose preimage its receiver knows, one that nobody knows."""
    ids = {
        "alice claimed": await net.add(net.alice, 50_000_000, 1),
        "alice timeout": await net.add(net.alice, 51_000_000, 2),
        "bob claimed": await net.add(net.bob, 52_000_000, 3),
        "bob timeout": await net.add(net.bob, 53_000_000, 4),
    }
    await net.disconnect()
    await net.bob.command(ev.FulfillHtlc(ids["alice claimed"], preimage(1)))
    await net.alice.command(ev.FulfillHtlc(ids["bob claimed"], preimage(3)))
    return ids


def gained(net: Net, node: TestNode, before: dict[str, int]) -> int:
    return node.balance_sat() - before[node.name]


def statuses(node: TestNode, kind: str) -> list[str]:
    return sorted(output.status for output in node.outputs(kind))


@pytest.mark.bolt5("local.to_local", "local.delay")
async def test_force_close_without_htlcs(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    await net.disconnect()
    await net.alice.command(ev.ForceClose("test"))
    await net.mine(1)
    assert net.alice.report().kind == "local"
    assert net.bob.report().kind == "remote_current"
    await net.mine(1)
    assert statuses(net.bob, "to_remote") == ["taken"]
    await net.mine(18)
    # BOLT 5: "MUST wait until the `OP_CHECKSEQUENCEVERIFY` delay has passed"
    assert statuses(net.alice, "to_local") == ["pending"]
    await net.mine(1)
    assert statuses(net.alice, "to_local") == ["taken"]
    assert 598_000 < gained(net, net.alice, before) < 600_000
    assert 399_000 < gained(net, net.bob, before) < 400_500


@pytest.mark.bolt5("resolve", "local.offered", "local.received", "remote.outputs", "remote.offered", "remote.received")
async def test_force_close_with_htlcs_both_ways(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    ids = await four_htlcs(net)
    await net.alice.command(ev.ForceClose("test"))
    await net.mine(3)
    # BOLT 5: "MUST extract the payment preimage from the transaction input witness", and at once, not when it is deep.
    assert net.alice.held.settled_ids == {ids["alice claimed"]: preimage(1)}
    assert net.bob.held.settled_ids == {ids["bob claimed"]: preimage(3)}
    await net.mine(58)
    # BOLT 5: "once the resolving transaction has reached reasonable depth: MUST fail the corresponding incoming HTLC"
    assert statuses(net.alice, "htlc") == ["taken", "taken", "theirs", "theirs"]
    assert net.alice.held.failed_ids == {}
    await net.mine(30)
    assert net.alice.held.settled_ids == {ids["alice claimed"]: preimage(1)}
    assert set(net.alice.held.failed_ids) == {ids["alice timeout"]}
    assert net.bob.held.settled_ids == {ids["bob claimed"]: preimage(3)}
    assert set(net.bob.held.failed_ids) == {ids["bob timeout"]}
    assert 600_000 - 50_000 + 52_000 - 6_000 < gained(net, net.alice, before) <= 602_000
    assert 400_000 + 50_000 - 52_000 - 3_000 < gained(net, net.bob, before) <= 398_500


async def test_revoked_commitment_is_punished(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    await net.add(net.alice, 50_000_000, 1)
    await net.add(net.bob, 52_000_000, 3)
    old = net.bob.commitment()
    await net.add(net.bob, 100_000_000, 5)
    await net.disconnect()
    await net.mine(1, txs=[old])
    assert net.alice.report().kind == "revoked"
    await net.mine(2)
    assert all(output.status in ("taken", "theirs", "none") for output in net.alice.report().outputs)
    assert 997_000 < gained(net, net.alice, before) < 1_000_000
    assert isinstance(net.alice.driver.state, Closing)


@pytest.mark.bolt5("revoked.success", "revoked.extract")
async def test_cheater_is_punished_after_its_own_htlc_transactions(net: Net) -> None:
    """BOLT 5: "spend the *HTLC-timeout tx*, if the remote node has published it", and the HTLC-success tx."""
    before = {node.name: node.balance_sat() for node in net.nodes}
    sent = await net.add(net.alice, 50_000_000, 1)
    await net.add(net.bob, 52_000_000, 3, cltv_blocks=30)
    cheater = net.bob.state
    await net.add(net.bob, 100_000_000, 5)
    await net.disconnect()
    stages = second_stages(net.bob, cheater, {1: preimage(1)})
    await net.mine(1, txs=[net.bob.commitment(cheater)])
    await net.mine(1, txs=[stages["success"]])
    # BOLT 5: "SHOULD extract the payment preimage from the transaction input witness, if it's not already known."
    assert net.alice.held.settled_ids == {sent: preimage(1)}
    await net.mine(2)
    assert statuses(net.alice, "htlc_tx") == ["taken"]
    assert 996_000 < gained(net, net.alice, before) < 1_000_000


@pytest.mark.bolt5("monitor")
async def test_restarts_and_blocks_missed(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    ids = await four_htlcs(net)
    await net.alice.command(ev.ForceClose("test"))
    await net.restart(net.alice)
    await net.mine(1)
    await net.restart(net.alice)
    await net.alice.stop()
    await net.mine(25)
    await net.alice.start()
    await net.mine(1)
    await net.bob.stop()
    await net.mine(50)
    await net.bob.start()
    await net.mine(20)
    await net.restart(net.alice)
    await net.restart(net.bob)
    await net.mine(10)
    assert 600_000 - 50_000 + 52_000 - 6_000 < gained(net, net.alice, before) <= 602_000
    assert 400_000 + 50_000 - 52_000 - 3_000 < gained(net, net.bob, before) <= 398_500
    assert net.alice.held.settled_ids == {ids["alice claimed"]: preimage(1)}
    assert set(net.bob.held.failed_ids) == {ids["bob timeout"]}
    before_the_end = [node.report().outputs for node in net.nodes]
    await net.skip(100)
    for node, outputs in zip(net.nodes, before_the_end, strict=True):
        assert node.report().over
        assert node.report().outputs == outputs
        assert not list(node.runtime.channels.all())
        view = await node.node.closed_channel(node.channel_id)
        assert view.over
        assert view.channel.phase == "closed"
        assert sum(output.amount_sat for output in view.outputs if output.txid == view.closing_txid) == (
            1_000_000 - view.commitment_fee_sat
        )


@pytest.mark.bolt5("reorganisation")
async def test_reorganisations(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    await four_htlcs(net)
    await net.alice.command(ev.ForceClose("test"))
    await net.mine(3)
    await net.reorganise(3)
    assert net.alice.report().height == net.height - 2
    await net.mine(18)
    await net.reorganise(2)
    await net.mine(5)
    await net.skip(30)
    await net.mine(10)
    await net.reorganise(5)
    await net.mine(5)
    await net.skip(30)
    await net.mine(5)
    assert 600_000 - 50_000 + 52_000 - 8_000 < gained(net, net.alice, before) <= 602_000
    assert 400_000 + 50_000 - 52_000 - 3_000 < gained(net, net.bob, before) <= 398_500


@pytest.mark.bolt5("reorganisation")
async def test_justice_is_done_again_after_a_reorganisation(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    await net.add(net.alice, 50_000_000, 1)
    old = net.bob.commitment()
    await net.add(net.bob, 100_000_000, 5)
    await net.disconnect()
    await net.mine(1, txs=[old])
    await net.mine(2)
    assert 996_000 < gained(net, net.alice, before) < 1_000_000
    await net.reorganise(3, first=[old])
    await net.mine(3)
    assert 996_000 < gained(net, net.alice, before) < 1_000_000


async def test_justice_does_not_wait_for_a_frozen_channel(net: Net) -> None:
    """The monitor acts on what is in the database and in the chain, whatever became of the channel's driver."""
    before = {node.name: node.balance_sat() for node in net.nodes}
    await net.add(net.alice, 50_000_000, 1)
    old = net.bob.commitment()
    await net.add(net.bob, 100_000_000, 5)
    await net.disconnect()
    net.alice.driver.failure = "a bug"
    await net.mine(1, txs=[old])
    await net.mine(2)
    assert 996_000 < gained(net, net.alice, before) < 1_000_000


async def test_the_peers_commitment_is_published_again_after_a_reorganisation(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    await net.disconnect()
    tx = net.bob.commitment()
    await net.bob.stop()
    await net.mine(1, txs=[tx])
    assert net.alice.report().kind == "remote_current"
    assert (await net.alice.node.balance()).closing_sat in (599_003, 599_333)
    await net.reorganise(1, forget=True)
    await net.mine(4)
    assert net.alice.report().kind == "remote_current"
    assert 598_000 < gained(net, net.alice, before) < 600_000
    assert (await net.alice.node.balance()).closing_sat == 0


@pytest.mark.bolt5("fail.anchor", "fail.replace")
async def test_commitment_that_pays_too_little_is_lifted_as_a_package(net: Net) -> None:
    """BOLT 5: "MUST spend any `to_local_anchor` output, providing sufficient fees as incentive to include the
    commitment transaction in a block"."""
    before = {node.name: node.balance_sat() for node in net.nodes}
    await net.disconnect()
    net.alice.set_feerate(2_000)
    await net.mine(1)
    await net.alice.command(ev.ForceClose("test"))
    await net.settle()
    commitment = net.alice.commitment().txid()
    pool = net.server.node.mempool.pool.entries
    children = [entry.tx for entry in pool.values() if any(i.outpoint.txid == commitment for i in entry.tx.inputs)]
    assert commitment in pool
    assert len(children) == 1
    fees = sum(pool[txid].fee_sat for txid in (commitment, children[0].txid()))
    weight = pool[commitment].tx.weight() + children[0].weight()
    assert 1_950 <= fees * 1000 // weight <= 2_100
    net.alice.set_feerate(4_000)
    await net.mine(1, txs=[])
    children = [entry.tx for entry in pool.values() if any(i.outpoint.txid == commitment for i in entry.tx.inputs)]
    fees = sum(pool[txid].fee_sat for txid in (commitment, children[0].txid()))
    assert 3_900 <= fees * 1000 // weight <= 4_300
    await net.mine(1)
    assert net.alice.report().kind == "local"
    await net.mine(22)
    assert 590_000 < gained(net, net.alice, before) < 600_000


async def test_the_peers_commitment_that_waits_in_place_of_ours_is_lifted(net: Net) -> None:
    """Layer 1 refuses ours, for it has the peer's with a child that pays more: our anchor is in that one, too."""
    await net.disconnect()
    net.bob.set_feerate(5_000)
    net.alice.set_feerate(4_000)
    await net.mine(1)
    await net.bob.command(ev.ForceClose("test"))
    await net.settle()
    await net.alice.command(ev.ForceClose("test"))
    await net.settle()
    theirs = net.bob.commitment().txid()
    pool = net.server.node.mempool.pool.entries
    children = [entry.tx for entry in pool.values() if any(i.outpoint.txid == theirs for i in entry.tx.inputs)]
    assert theirs in pool
    assert len(children) == 2
    await net.mine(1)
    assert net.alice.report().kind == "remote_current"
    # The child of our own commitment is of no use: its coins are free again.
    (child,) = [attempt for attempt in net.alice.attempts() if attempt.group == "anchor"]
    assert child.outpoints[0].txid == theirs
    assert (
        set(net.alice.runtime.wallet.reservations()) == {child.reservation} == net.alice.runtime.monitor.reservations()
    )
    await net.mine(1)
    assert statuses(net.alice, "to_remote") == ["taken"]


@pytest.mark.parametrize("in_mempool", [True, False])
async def test_a_commitment_that_is_mined_without_its_child(net: Net, in_mempool: bool) -> None:
    """The child is not offered any more, and its coin is free unless the mempool has it: here it is the only one, and
    an HTLC needs it. Where the mempool has the child, the HTLC transaction takes its place, and pays more."""
    ids = await four_htlcs(net)
    await keep_one_coin(net)
    net.alice.set_feerate(2_000)
    await net.mine(1)
    await net.alice.command(ev.ForceClose("test"))
    await net.settle()
    (child,) = net.alice.attempts()
    assert child.group == "anchor"
    (coin,) = net.alice.runtime.wallet.reservations()[child.reservation]
    pool = net.server.node.mempool.pool
    commitment = pool.entries[child.outpoints[0].txid].tx
    if not in_mempool:
        pool.remove([child.txid], "test")
    await net.mine(1, txs=[commitment])
    (success,) = net.alice.attempts()
    assert success.group == "htlc"
    assert child.txid not in pool.entries
    assert coin in {txin.outpoint for txin in pool.entries[success.txid].tx.inputs}
    assert (success.fee_sat > child.fee_sat) is in_mempool
    await net.mine(2)
    assert net.bob.held.settled_ids == {ids["bob claimed"]: preimage(3)}


async def test_htlcs_share_the_only_coin(net: Net) -> None:
    """A preimage comes while the transaction that has the only coin waits: both go on in one."""
    ids = {number: await net.add(net.bob, 52_000_000, number) for number in (3, 4)}
    await net.disconnect()
    await net.alice.command(ev.FulfillHtlc(ids[3], preimage(3)))
    await keep_one_coin(net)
    await net.alice.command(ev.ForceClose("test"))
    await net.mine(1)
    (first,) = net.alice.attempts()
    await net.alice.command(ev.FulfillHtlc(ids[4], preimage(4)))
    await net.settle()
    (both,) = net.alice.attempts()
    assert set(first.outpoints) < set(both.outpoints)
    await net.mine(1)
    assert statuses(net.alice, "htlc") == ["taken", "taken"]
    assert net.bob.held.settled_ids == {ids[number]: preimage(number) for number in (3, 4)}


async def keep_one_coin(net: Net) -> None:
    """All of Alice's coins become one."""
    wallet = net.alice.runtime.wallet
    wallet.keep_back_sat = 0
    own = address_of(await wallet.new_script(), REGTEST)
    assert own is not None
    await net.alice.node.send_coins(own, None, 1_000)
    await net.mine(1)
    assert len(wallet.coins()) == 1


@pytest.mark.bolt5("htlc.fees")
async def test_empty_wallet_is_told_and_htlcs_are_claimed_once_it_has_coins(net: Net) -> None:
    """BOLT 5, "MUST combine it with inputs contributing sufficient fee": without coins that cannot be, and is said."""
    ids = await four_htlcs(net)
    net.alice.runtime.wallet.keep_back_sat = 0
    stranger = address_of(STRANGER, REGTEST)
    assert stranger is not None
    await net.alice.node.send_coins(stranger, None, 1_000)
    await net.mine(1)
    since = net.alice.runtime.bus._sequence
    await net.alice.command(ev.ForceClose("test"))
    await net.mine(3)
    kinds = [event.kind for event in net.alice.runtime.bus._after(since)]
    assert kinds.count("onchain.cannot_htlc") == 1
    assert net.alice.outputs("htlc_tx") == []
    script = await net.alice.runtime.wallet.new_script()
    await net.mine(1, script=script)
    await net.mine(25)
    assert net.bob.held.settled_ids == {ids["bob claimed"]: preimage(3)}
    assert "taken" in statuses(net.alice, "htlc")


@pytest.mark.bolt5("invalid")
async def test_what_is_in_no_block_is_no_reason_to_act(net: Net) -> None:
    """BOLT 5, "SHOULD ignore invalid transactions": what anybody shows us counts only once it is in the chain. Not even
    a revoked commitment in the mempool makes us move: the channel goes on, and there is nothing to take yet."""
    await net.add(net.alice, 50_000_000, 1)
    old = net.bob.commitment()
    await net.add(net.bob, 100_000_000, 5)
    forged = old.with_witness(0, (b"", bytes(71), bytes(71), b"\x51"))
    assert not (await net.alice.source.broadcast(forged)).ok
    assert (await net.bob.source.broadcast(old)).ok
    await net.mine(1, txs=[])
    assert isinstance(net.alice.state, Normal)
    assert await net.add(net.alice, 20_000_000, 6) == 1
    await net.mine(1)
    assert net.alice.report().kind == "revoked"


async def test_mutual_close_is_explained(net: Net) -> None:
    """BOLT 5, "Mutual Close Handling": "a node need not do anything else, as it has already agreed to the output"."""
    await net.alice.node.close_channel(net.alice.channel_id)
    await net.mine(1)
    with pytest.raises(NodeError, match="there is no channel"):
        await net.alice.node.closed_channel(bytes(32))
    for node, ours in ((net.alice, 600_000), (net.bob, 400_000)):
        view = await node.node.closed_channel(node.channel_id)
        assert view.kind == "mutual"
        shares = {output.status: output.amount_sat for output in view.outputs}
        assert ours - 1_000 < shares["ours"] <= ours
        assert set(shares) == {"ours", "theirs"}
    await net.mine(5)
    for node in net.nodes:
        view = await node.node.closed_channel(node.channel_id)
        assert not view.over
        assert view.channel.phase == "closed"
        assert "final when it is 100 blocks deep" in view.channel.status
        assert await node.node.list_channels(include_closed=False) == []
        assert len(await node.node.list_channels(include_closed=True)) == 1
        with pytest.raises(NodeError, match="over already"):
            await node.node.close_channel(node.channel_id, force=True)
    await net.skip(94)
    for node in net.nodes:
        assert list(node.runtime.channels.all()) == []
        assert (await node.node.closed_channel(node.channel_id)).over


async def test_a_revoked_commitment_in_place_of_a_mutual_close(net: Net) -> None:
    """A reorganisation of eight blocks: what it takes to punish is still there."""
    before = {node.name: node.balance_sat() for node in net.nodes}
    old = net.bob.commitment()
    id = await net.add(net.bob, 300_000_000, 5)
    await net.alice.command(ev.FulfillHtlc(id, preimage(5)))
    await net.alice.until(lambda: not net.alice.state.commitments.has_htlcs)
    await net.quiet()
    await net.alice.node.close_channel(net.alice.channel_id)
    await net.mine(8)
    assert (await net.alice.node.closed_channel(net.alice.channel_id)).channel.phase == "closed"
    await net.restart(net.alice)
    await net.bob.stop()
    await net.reorganise(8, first=[old], forget=True)
    assert net.alice.report().kind == "revoked"
    await net.mine(3)
    assert 996_000 < gained(net, net.alice, before) < 1_000_000


async def test_open_channel_has_nothing_to_explain(net: Net) -> None:
    with pytest.raises(NodeError, match="is not closed on chain"):
        await net.alice.node.closed_channel(net.alice.channel_id)


def _bug(driver: Driver, htlc: Htlc, must_fail: bool) -> Reaction:
    raise AssertionError("a bug")


async def test_a_frozen_channel_keeps_its_deadlines(net: Net) -> None:
    """A bug stops the channel: its messages are not heard any more, its money is brought home all the same."""
    await net.add(net.alice, 50_000_000, 1, cltv_blocks=10)

    net.alice.held.locked_in = _bug  # type: ignore[method-assign]
    payment_hash = sha256(preimage(2)).digest()
    await net.bob.command(ev.AddHtlc(20_000_000, payment_hash, net.height + 60, bytes(1366), b"test"))
    await net.alice.until(lambda: net.alice.driver.failure is not None)
    await net.mine(12)
    assert not isinstance(net.alice.driver.state, Closing)
    await net.mine(1)
    assert isinstance(net.alice.driver.state, Closing)
    await net.mine(12)
    assert set(net.alice.held.failed_ids) == {0}
    assert statuses(net.alice, "htlc") == ["needs_preimage", "taken"]


async def test_a_frozen_channel_punishes(net: Net) -> None:
    await net.add(net.alice, 50_000_000, 1)
    old = net.bob.commitment()
    await net.add(net.bob, 100_000_000, 5)

    net.alice.held.locked_in = _bug  # type: ignore[method-assign]
    payment_hash = sha256(preimage(2)).digest()
    await net.bob.command(ev.AddHtlc(20_000_000, payment_hash, net.height + 60, bytes(1366), b"test"))
    await net.alice.until(lambda: net.alice.driver.failure is not None)
    await net.mine(1, txs=[old])
    await net.mine(2)
    assert net.alice.report().kind == "revoked"
    assert all(output.status in ("taken", "theirs", "none") for output in net.alice.report().outputs)


async def test_a_preimage_that_waits_in_the_mempool_settles_the_incoming_side(net: Net) -> None:
    """The peer claims an expired HTLC so that its transaction stays in the mempool: it keeps ours out until the
    incoming side expires."""
    id = await net.add(net.alice, 50_000_000, 1)
    await net.add(net.alice, 60_000_000, 2)
    await net.disconnect()
    await net.alice.command(ev.ForceClose("test"))
    await net.mine(1)
    await net.bob.command(ev.FulfillHtlc(id, preimage(1)))
    await net.mine(60, txs=[])
    await net.alice.until(lambda: id in net.alice.held.settled_ids)
    assert net.alice.held.settled_ids == {id: preimage(1)}
    await net.settle()
    # What the peer claims is settled already; our claim of it is made only if the wallet has a coin to spare.
    assert [output.status for output in net.alice.outputs("htlc") if output.amount_sat == 60_000] == ["pending"]
    (waits,) = [attempt for attempt in net.alice.attempts() if attempt.group == "htlc" and not attempt.problem]
    assert len(waits.outpoints) == 1  # the other HTLC has gone on alone


async def test_races_in_the_mempool_are_looked_at_between_blocks(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacement cycling: an attacker replaces our transaction, and then makes his own invalid. Ours is offered again,
    and if his shows the preimage for a moment, we have it."""
    monkeypatch.setattr(monitor, "RACE_SECONDS", 0.05)
    expiry_blocks = 12
    id = await net.add(net.alice, 50_000_000, 1, expiry_blocks)
    await net.disconnect()
    await net.alice.command(ev.ForceClose("test"))
    await net.mine(expiry_blocks)
    (attempt,) = [attempt for attempt in net.alice.attempts() if attempt.group == "htlc"]
    ours, pool = Tx.parse(attempt.raw), net.server.node.mempool.pool
    assert attempt.txid in pool.entries
    for _ in range(3):
        pool.remove([attempt.txid], "test")
        await net.alice.until(lambda: attempt.txid in pool.entries)

    stolen = ours.with_witness(0, (b"", b"\x30", b"\x30", preimage(1), ours.inputs[0].witness[-1]))

    async def spender(outpoint: OutPoint) -> Tx | None:
        return stolen if outpoint == ours.inputs[0].outpoint else None

    assert net.alice.held.settled_ids == {}
    monkeypatch.setattr(net.alice.source, "spending_tx_in_mempool", spender)
    await net.alice.until(lambda: net.alice.held.settled_ids == {id: preimage(1)})
