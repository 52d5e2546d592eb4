"""Blocks through Bitcoin Core's consensus code: validation, branches, restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.regtest_support import COIN, SCRIPT, Bench
from wallet.bitcoin import Block, BlockHeader, OutPoint, Tx, TxOut
from wallet.bitcoin.tx import merkle_root
from wallet.regtest.chain import GENESIS, Chain
from wallet.regtest.errors import StartupError
from wallet.regtest.kernel import Kernel
from wallet.regtest.miner import solve, subsidy, witness_commitment
from wallet.regtest.store import Store


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def coins_of(bench: Bench) -> dict[OutPoint, TxOut]:
    return {outpoint: coin.output for outpoint, coin in bench.node.store.all_coins()}


async def test_a_new_chain_is_the_genesis_block(bench: Bench) -> None:
    assert bench.node.chain.height == 0
    assert bench.node.chain.tip.hash == GENESIS.header.hash()
    assert coins_of(bench) == {}


async def test_mined_blocks_pay_the_subsidy_and_halve_it_every_150(bench: Bench) -> None:
    await bench.mine(150)
    assert bench.node.chain.height == 150
    values = [output.value_sat for output in coins_of(bench).values()]
    assert sorted(values) == [25 * COIN] + [50 * COIN] * 149
    assert [subsidy(height) for height in (0, 149, 150, 300, 10_000)] == [
        50 * COIN,
        50 * COIN,
        25 * COIN,
        25 * COIN // 2,
        0,
    ]


async def test_coins_follow_spends_and_reorganisations_exactly(bench: Bench) -> None:
    first, second = await bench.mature(2)
    fork = bench.node.chain.tip
    before = coins_of(bench)
    tx = bench.spend([first, second], count=3)
    child = bench.spend([OutPoint(tx.txid(), 1)])
    bench.submit(tx)
    bench.submit(child)
    await bench.mine()
    after = coins_of(bench)
    assert first not in after
    assert second not in after
    assert OutPoint(tx.txid(), 1) not in after
    assert OutPoint(child.txid(), 0) in after

    await bench.node.invalidate(bench.node.chain.tip)
    assert bench.node.chain.tip is fork
    assert coins_of(bench) == before
    assert bench.pool == {tx.txid(), child.txid()}


async def test_invalidate_lets_a_shorter_branch_grow_and_reconsider_brings_the_longer_back(bench: Bench) -> None:
    await bench.mine(10)
    old = bench.node.chain.tip
    await bench.node.invalidate(bench.node.chain.active[8])
    assert bench.node.chain.height == 7
    await bench.mine(2)
    new = bench.node.chain.tip
    assert bench.node.chain.height == 9
    assert not bench.node.chain.is_active(old)

    await bench.node.reconsider(old)
    assert bench.node.chain.tip is old
    assert {leaf.hash for leaf in bench.node.chain.leaves()} == {old.hash, new.hash}


async def test_a_block_on_an_invalidated_branch_is_refused(bench: Bench) -> None:
    await bench.mine(3)
    block = bench.node.miner.build(SCRIPT, [], 0)
    await bench.node.invalidate(bench.node.chain.tip)
    assert await bench.node.submit_block(block, block.serialize()) == "bad-prevblk"
    assert bench.node.chain.height == 2


async def test_an_invalidated_branch_stays_out_after_a_restart(bench: Bench) -> None:
    await bench.mine(5)
    out = bench.node.chain.active[3]
    await bench.node.invalidate(out)
    await bench.mine()
    tip = bench.node.chain.tip.hash
    bench.reopen()
    assert bench.node.chain.tip.hash == tip
    await bench.node.reconsider(bench.node.chain.nodes[out.hash])
    assert bench.node.chain.height == 5
    bench.reopen()
    assert bench.node.chain.height == 5


async def test_of_equal_branches_the_first_seen_wins_unless_another_is_preferred(bench: Bench) -> None:
    await bench.mine(2)
    rival = bench.node.miner.build(SCRIPT, [], 0)
    await bench.mine()
    first = bench.node.chain.tip
    assert await bench.node.submit_block(rival, rival.serialize()) == "inconclusive"
    assert bench.node.chain.tip is first
    await bench.node.prefer(bench.node.chain.nodes[rival.header.hash()])
    assert bench.node.chain.tip.hash == rival.header.hash()


def rebuilt(
    block: Block, txs: tuple[Tx, ...], *, time: int | None = None, bits: int | None = None, parent: bytes | None = None
) -> Block:
    """The block with other transactions or header fields, and proof of work again."""
    old = block.header
    header = BlockHeader(
        old.version,
        parent or old.prev_hash,
        merkle_root([tx.txid() for tx in txs]),
        old.time if time is None else time,
        bits or old.bits,
        0,
    )
    return Block(solve(header), txs)


def with_coinbase(block: Block, value_sat: int) -> Block:
    coinbase = block.txs[0]
    outputs = (coinbase.outputs[0]._replace(value_sat=value_sat), *coinbase.outputs[1:])
    return rebuilt(block, (coinbase.replace(outputs=outputs), *block.txs[1:]))


async def test_consensus_refuses_bad_blocks_with_its_own_words(bench: Bench) -> None:
    (coin,) = await bench.mature()
    good = bench.node.miner.build(SCRIPT, [], 0)
    spend = bench.spend([coin])
    unsigned = spend.with_witness(0, ())
    commitment = TxOut(0, witness_commitment([unsigned]))
    coinbase = good.txs[0].replace(outputs=(good.txs[0].outputs[0], commitment))
    cases = {
        "bad-cb-amount": with_coinbase(good, good.txs[0].outputs[0].value_sat + 1),
        "bad-txns-inputs-missingorspent": bench.node.miner.build(SCRIPT, [spend, bench.spend([coin], 5000)], 0),
        "time-too-old": rebuilt(good, good.txs, time=bench.node.chain.tip.median_time),
        "bad-txnmrklroot": Block(solve(good.header._replace(merkle_root=bytes(32))), good.txs),
        "bad-diffbits": rebuilt(good, good.txs, bits=0x207FFFFE),
        "bad-cb-missing": rebuilt(good, (spend,)),
        "block-script-verify-flag-failed": rebuilt(good, (coinbase, unsigned)),
    }
    tip = bench.node.chain.tip
    for reason, block in cases.items():
        answer = await bench.node.submit_block(block, block.serialize())
        assert answer is not None
        assert answer.startswith(reason), (reason, answer)
        assert bench.node.chain.tip is tip
    assert await bench.node.submit_block(good, good.serialize()) is None
    assert await bench.node.submit_block(good, good.serialize()) == "duplicate"
    bad = cases["bad-cb-amount"]
    assert await bench.node.submit_block(bad, bad.serialize()) == "duplicate-invalid"


async def test_a_longer_branch_with_a_bad_block_in_the_middle_changes_nothing(bench: Bench) -> None:
    await bench.mine(3)
    greedy = with_coinbase(bench.node.miner.build(SCRIPT, [], 0), 51 * COIN)
    await bench.mine()
    tip = bench.node.chain.tip
    assert await bench.node.submit_block(greedy, greedy.serialize()) == "inconclusive"
    node = bench.node.chain.nodes[greedy.header.hash()]
    template = bench.node.miner.build(SCRIPT, [], 0)
    child = rebuilt(template, template.txs, parent=node.hash)
    assert await bench.node.submit_block(child, child.serialize()) is not None
    assert bench.node.chain.tip is tip
    assert node.failed
    bench.reopen()
    assert bench.node.chain.tip.hash == tip.hash
    assert bench.node.chain.nodes[node.hash].failed


async def test_a_chain_grows_over_restarts(bench: Bench) -> None:
    for height in range(1, 5):
        await bench.mine()
        bench.reopen()
        assert bench.node.chain.height == height


async def test_the_store_catches_up_with_a_kernel_that_is_ahead(tmp_path: Path, bench: Bench) -> None:
    await bench.mine(2)
    ahead = [bench.node.miner.build(SCRIPT, [], 0)]
    verdict = bench.node.kernel.process(ahead[0].serialize(), ahead[0].header.hash())
    assert verdict.accepted
    assert bench.node.chain.height == 2
    bench.reopen()
    assert bench.node.chain.tip.hash == ahead[0].header.hash()
    assert OutPoint(ahead[0].txs[0].txid(), 0) in coins_of(bench)


async def test_a_lost_kernel_directory_is_rebuilt_from_the_store(tmp_path: Path, bench: Bench) -> None:
    await bench.mine(12)
    tip = bench.node.chain.tip.hash
    bench.node.kernel.wipe()
    bench.node.close()
    store = Store(tmp_path / "regtestd.sqlite3")
    kernel = Kernel(tmp_path)
    assert kernel.height == 0
    chain = Chain(store, kernel)
    chain.load()
    assert chain.tip.hash == tip
    assert kernel.height == 12
    kernel.close()
    store.close()
    bench.node = (made := Bench(tmp_path)).node
    assert made.node.chain.tip.hash == tip


async def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "regtestd.sqlite3").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StartupError, match="not a database"):
        Store(tmp_path / "regtestd.sqlite3")
