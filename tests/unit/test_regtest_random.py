"""Random life of a node: payments, replacements, blocks, reorganisations, restarts. What must hold holds after each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.unit.regtest_support import Bench
from wallet.bitcoin import OutPoint, TxOut
from wallet.bitcoin.script import is_unspendable
from wallet.regtest.policy import Rejection


def recomputed_coins(bench: Bench) -> dict[OutPoint, TxOut]:
    """The unspent outputs, from the blocks alone."""
    coins: dict[OutPoint, TxOut] = {}
    for node in bench.node.chain.active[1:]:
        for position, tx in enumerate(bench.node.chain.block(node).txs):
            for txin in tx.inputs if position else ():
                del coins[txin.outpoint]
            txid = tx.txid()
            coins.update(
                (OutPoint(txid, vout), output)
                for vout, output in enumerate(tx.outputs)
                if not is_unspendable(output.script_pubkey)
            )
    return coins


def check(bench: Bench) -> None:
    chain, pool = bench.node.chain, bench.node.mempool.pool
    coins = {outpoint: coin.output for outpoint, coin in bench.node.store.all_coins()}
    assert coins == recomputed_coins(bench)
    spent = [txin.outpoint for entry in pool.entries.values() for txin in entry.tx.inputs]
    assert len(spent) == len(set(spent))
    assert pool.spenders == {txin.outpoint: entry.txid for entry in pool.entries.values() for txin in entry.tx.inputs}
    for entry in pool.entries.values():
        assert all(outpoint in coins or pool.output(outpoint) for outpoint in (i.outpoint for i in entry.tx.inputs))
        assert entry.parents == pool.parents_of(entry.tx)
        assert all(entry.txid in pool.entries[parent].children for parent in entry.parents)
        assert all(entry.txid in pool.entries[child].parents for child in entry.children)
        assert entry.fee_sat == sum(o.value_sat for o in entry.spent) - sum(o.value_sat for o in entry.tx.outputs)
    assert pool.usage == sum(entry.usage for entry in pool.entries.values())
    assert pool.wtxids == {entry.wtxid: entry.txid for entry in pool.entries.values()}
    assert bench.node.kernel.active_hash(chain.height) == chain.tip.hash
    assert bench.node.kernel.height == chain.height


def choices(bench: Bench, dice: random.Random) -> list[OutPoint]:
    """Outputs to spend: mostly mature or unconfirmed and free, sometimes ones that the mempool spends already."""
    pool, height = bench.node.mempool.pool, bench.node.chain.height
    mature = [o for o, coin in bench.node.store.all_coins() if not coin.coinbase or height - coin.height >= 99]
    fresh = [OutPoint(txid, vout) for txid, e in pool.entries.items() for vout in range(len(e.tx.outputs))]
    taken = dice.random() < 0.2
    found = [o for o in mature + fresh if o in bench.outputs and (o in pool.spenders) == taken]
    return sorted(found)


def pay(bench: Bench, dice: random.Random) -> None:
    """Spend random outputs at a random rate."""
    known = choices(bench, dice)
    inputs = dice.sample(known, min(len(known), dice.choice((1, 1, 1, 2, 3))))
    if not inputs:
        return
    value = sum(bench.outputs[outpoint].value_sat for outpoint in inputs)
    fee = dice.choice((0, 300, 2000, 10_000, 50_000, 200_000))
    if value < 20_000 + fee:
        return
    version = dice.choice((2, 2, 2, 2, 3))
    sequence = dice.choice((0, 1, 0xFFFFFFFD, 0xFFFFFFFD, 0xFFFFFFFF))
    tx = bench.spend(inputs, fee, count=dice.choice((1, 2, 5)), version=version, sequence=sequence)
    try:
        bench.submit(tx)
    except Rejection:
        if dice.random() < 0.3:
            child = bench.spend([OutPoint(tx.txid(), 0)], min(15_000, tx.outputs[0].value_sat // 2), version=version)
            bench.node.packages.submit([tx, child], None)


@pytest.mark.parametrize("seed", range(4))
async def test_a_random_life(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    bench = Bench(tmp_path)
    await bench.mature(6)
    for step in range(250):
        roll = dice.random()
        if roll < 0.88:
            pay(bench, dice)
        elif roll < 0.92:
            await bench.mine(dice.choice((1, 1, 2)))
        elif roll < 0.95:
            depth = dice.randrange(1, 5)
            await bench.node.invalidate(bench.node.chain.active[-depth])
        elif roll < 0.98:
            await bench.node.reconsider(dice.choice(bench.node.chain.leaves()))
        else:
            bench.reopen()
        if step % 5 == 0:
            check(bench)
    check(bench)
    await bench.mine(20)
    check(bench)
    bench.close()
