"""Raising fees: replacement, children that pay, and what must never be replaced."""

from __future__ import annotations

import pytest

from tests.wallet_world import STRANGER, STRANGER_ADDRESS, World
from wallet.bitcoin import Tx, TxIn, TxOut
from wallet.chain import BroadcastOutcome, BroadcastResult
from wallet.errors import BroadcastRejected, CannotBump, InsufficientFunds, UnknownTransaction
from wallet.fees import fee_for_weight, feerate_of
from wallet.funding import ForeignInput, Request
from wallet.views import Balance

RATE = 1_000


@pytest.fixture
async def world() -> World:
    world = World()
    await world.start()
    return world


def package_feerate(world: World, *txs: Tx) -> int:
    return feerate_of(sum(world.mempool.fee(tx) for tx in txs), sum(tx.weight() for tx in txs))


async def test_replacement_out_of_change(world: World) -> None:
    await world.receive(100_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 40_000, RATE, label="lunch")
    bumped = await world.wallet.bump(sent.txid, 4_000)
    assert bumped.method == "rbf"
    assert list(world.mempool.txs) == [bumped.txid]
    assert TxOut(40_000, STRANGER) in bumped.tx.outputs
    assert feerate_of(bumped.fee_sat, bumped.tx.weight()) in range(4_000, 4_010)
    assert world.wallet.balance() == Balance(0, 60_000 - bumped.fee_sat, 0, 0)
    assert world.wallet.transaction(sent.txid).replaced_by == bumped.txid
    assert world.wallet.transaction(bumped.txid).label == "lunch"
    wallet = await world.restart()
    again = await wallet.bump(sent.txid, 4_000)
    assert (again.method, again.txid) == ("none", bumped.txid), "asking twice costs no more than once"
    third = await wallet.bump(sent.txid, 6_000)
    assert third.method == "rbf"
    assert wallet.transaction(bumped.txid).replaced_by == third.txid
    await world.mine()
    assert wallet.balance() == Balance(60_000 - third.fee_sat, 0, 0, 0)
    with pytest.raises(CannotBump, match="in the chain already"):
        await wallet.bump(sent.txid, 9_000)


async def test_a_small_step_pays_at_least_the_relay_increment(world: World) -> None:
    await world.receive(100_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 40_000, RATE)
    bumped = await world.wallet.bump(sent.txid, RATE + 10)
    assert bumped.fee_sat >= sent.fee_sat + sent.tx.vsize()


async def test_replacement_that_needs_another_coin(world: World) -> None:
    await world.receive(50_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 48_000, RATE)
    await world.receive(30_000)
    bumped = await world.wallet.bump(sent.txid, 10_000)
    assert bumped.method == "rbf"
    assert len(bumped.tx.inputs) == 2
    assert sent.tx.inputs[0].outpoint in {txin.outpoint for txin in bumped.tx.inputs}
    assert TxOut(48_000, STRANGER) in bumped.tx.outputs
    assert feerate_of(bumped.fee_sat, bumped.tx.weight()) >= 10_000
    assert world.wallet.balance().total_sat == 80_000 - 48_000 - bumped.fee_sat


async def test_not_enough_to_bump(world: World) -> None:
    await world.receive(50_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 49_000, RATE)
    before = world.wallet.balance()
    with pytest.raises(InsufficientFunds):
        await world.wallet.bump(sent.txid, 20_000)
    assert world.wallet.balance() == before
    assert list(world.mempool.txs) == [sent.txid]


async def test_everything_sent_pays_for_the_bump_itself(world: World) -> None:
    await world.receive(50_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, None, RATE)
    bumped = await world.wallet.bump(sent.txid, 5_000)
    assert bumped.tx.outputs == (TxOut(50_000 - bumped.fee_sat, STRANGER),)


async def test_a_refused_replacement_leaves_the_original(world: World) -> None:
    await world.receive(100_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 40_000, RATE)
    before = world.wallet.balance()
    world.mempool.refuse = BroadcastResult(BroadcastOutcome.REJECTED, "insufficient fee", True)
    with pytest.raises(BroadcastRejected, match="insufficient fee"):
        await world.wallet.bump(sent.txid, 4_000)
    assert world.wallet.balance() == before
    assert world.wallet.transaction(sent.txid).replaced_by is None
    world.mempool.refuse = None
    await world.restart()
    assert (await world.wallet.bump(sent.txid, 4_000)).method == "rbf"


async def test_the_original_mined_after_all(world: World) -> None:
    await world.receive(100_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 40_000, RATE)
    bumped = await world.wallet.bump(sent.txid, 4_000)
    child = await world.wallet.send(STRANGER_ADDRESS, 10_000, RATE)
    world.mempool.txs.clear()
    await world.mine(1, sent.tx)
    assert world.wallet.balance() == Balance(60_000 - sent.fee_sat, 0, 0, 0)
    assert {world.wallet.transaction(tx.txid).replaced_by for tx in (bumped, child)} == {sent.txid}


async def test_a_funding_transaction_is_lifted_by_a_child(world: World) -> None:
    await world.receive(100_000)
    funded = await world.wallet.create_tx([TxOut(40_000, b"\x00\x20" + bytes(32))], RATE)
    await world.wallet.publish(funded, label="channel")
    bumped = await world.wallet.bump(funded.txid, 5_000)
    assert bumped.method == "cpfp"
    assert set(world.mempool.txs) == {funded.txid, bumped.txid}
    assert package_feerate(world, funded.tx, bumped.tx) in range(5_000, 5_020)
    assert world.wallet.transaction(funded.txid).replaced_by is None
    assert (await world.wallet.bump(funded.txid, 5_000)).method == "none"
    more = await world.wallet.bump(funded.txid, 9_000)
    assert more.method == "cpfp"
    assert set(world.mempool.txs) == {funded.txid, more.txid}, "the child was replaced, the funding never is"
    assert package_feerate(world, funded.tx, more.tx) in range(9_000, 9_030)
    await world.mine()
    assert world.wallet.balance() == Balance(60_000 - funded.fee_sat - more.fee_sat, 0, 0, 0)


async def test_a_child_whose_handle_is_too_small_takes_another_coin(world: World) -> None:
    await world.receive(50_000)
    await world.receive(70_000)
    funded = await world.wallet.create_tx([TxOut(47_500, STRANGER)], RATE, only=[world.wallet.coins()[0].outpoint])
    assert funded.change_vout is not None
    await world.wallet.publish(funded)
    bumped = await world.wallet.bump(funded.txid, 20_000)
    assert bumped.method == "cpfp"
    assert len(bumped.tx.inputs) == 2
    assert package_feerate(world, funded.tx, bumped.tx) >= 20_000


async def test_incoming_payments_can_be_lifted(world: World) -> None:
    incoming = world.payment((80_000, await world.wallet.new_script()))
    source = world.payment((90_000, STRANGER))
    incoming = Tx(2, (TxIn(source.outpoint(0), witness=(b"x",)),), incoming.outputs, 0)
    await world.mine(1, source)
    world.mempool.txs[incoming.txid()] = incoming
    world.store.commit_now(world.wallet.note(incoming))
    bumped = await world.wallet.bump(incoming.txid(), 3_000)
    assert bumped.method == "cpfp"
    family = incoming.weight() + bumped.tx.weight()
    assert bumped.fee_sat >= fee_for_weight(3_000, family) - fee_for_weight(253, incoming.weight()) - 2


async def test_a_parent_below_the_mempools_minimum_goes_as_a_package(world: World) -> None:
    await world.receive(100_000)
    world.mempool.least_feerate_sat_per_kw = 3_000
    funded = await world.wallet.create_tx([TxOut(40_000, STRANGER)], RATE)
    result = await world.wallet.publish(funded)
    assert result is not None
    assert result.reason == "mempool min fee not met"
    bumped = await world.wallet.bump(funded.txid, 4_000)
    assert bumped.broadcast is not None
    assert bumped.broadcast.ok
    assert set(world.mempool.txs) == {funded.txid, bumped.txid}
    world.mempool.txs.clear()
    wallet = await world.restart()
    results = await wallet.rebroadcast()
    assert all(result.ok for result in results.values())
    assert set(world.mempool.txs) == {funded.txid, bumped.txid}


async def test_a_parent_with_a_child_is_not_replaced(world: World) -> None:
    await world.receive(200_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 40_000, RATE)
    child = await world.wallet.send(STRANGER_ADDRESS, 50_000, RATE)
    bumped = await world.wallet.bump(sent.txid, 4_000)
    assert bumped.method == "cpfp"
    assert TxOut(50_000, STRANGER) in bumped.tx.outputs, "the child itself pays more"
    assert world.wallet.transaction(child.txid).replaced_by == bumped.txid
    assert package_feerate(world, sent.tx, bumped.tx) >= 4_000
    assert set(world.mempool.txs) == {sent.txid, bumped.txid}


async def test_a_parent_whose_change_is_reserved_is_not_replaced(world: World) -> None:
    """A channel's funding transaction that the peer signs for just now would be void."""
    await world.receive(100_000)
    sent = await world.wallet.send(STRANGER_ADDRESS, 40_000, RATE)
    funding = await world.wallet.create_tx([TxOut(20_000, STRANGER)], RATE)
    assert funding.tx.inputs[0].outpoint.txid == sent.txid
    with pytest.raises(CannotBump, match="no unspent output"):
        await world.wallet.bump(sent.txid, 4_000)
    await world.wallet.release(funding.reservation)
    assert (await world.wallet.bump(sent.txid, 4_000)).method == "rbf"


async def test_nothing_to_bump_with(world: World) -> None:
    with pytest.raises(UnknownTransaction):
        await world.wallet.bump(bytes(32), 1_000)
    await world.receive(50_000)
    most = world.wallet.max_amount_sat(RATE, len(STRANGER))
    funded = await world.wallet.create_tx([TxOut(most, STRANGER)], RATE)
    await world.wallet.publish(funded)
    with pytest.raises(CannotBump, match="no unspent output of this wallet"):
        await world.wallet.bump(funded.txid, 5_000)


async def test_foreign_inputs_and_ancestors_to_pay_for(world: World) -> None:
    """What lifting a commitment transaction by its anchor takes."""
    await world.receive(100_000)
    anchor = TxOut(330, b"\x00\x20" + bytes(32))
    commitment = world.payment((330, anchor.script_pubkey), (500_000, STRANGER))
    foreign = ForeignInput(commitment.outpoint(0), anchor, 4 * 41 + 1 + 1 + 73 + 1 + 40)
    deficit = fee_for_weight(10_000, commitment.weight())
    request = Request((), 10_000, foreign=(foreign,), extra_fee_sat=deficit)
    funded, writes = world.wallet.plan_tx(request, min_confirmations=1, use_reserve=True)
    world.store.commit_now(writes)
    assert funded.tx.inputs[0].outpoint == commitment.outpoint(0)
    assert funded.tx.inputs[0].witness == ()
    assert funded.coins[0] is None
    complete = funded.tx.with_witness(0, (bytes(73), bytes(40)))
    fees = 330 + sum(coin.value_sat for coin in funded.coins if coin) - sum(out.value_sat for out in complete.outputs)
    assert fees == funded.fee_sat
    assert fees - deficit in range(
        fee_for_weight(10_000, complete.weight()), fee_for_weight(10_000, 20 + complete.weight())
    )
    world.store.commit_now(world.wallet.record(funded, tx=complete))
    assert world.wallet.balance() == Balance(0, 100_330 - fees, 0, 0)
    with pytest.raises(InsufficientFunds):
        await world.wallet.send(STRANGER_ADDRESS, 1_000, RATE)  # others may make it vanish: not spent unconfirmed
