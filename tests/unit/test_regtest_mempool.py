"""What the mempool takes and refuses, in bitcoind's words; how it follows the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.regtest_support import COIN, PUBKEY, SCRIPT, SECRET, Bench
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut, hash160
from wallet.bitcoin import script as scripts
from wallet.bitcoin.secp import CURVE_ORDER, compact_to_der, sign
from wallet.bitcoin.sighash import SIGHASH_ALL, segwit_v0_sighash
from wallet.regtest.accept import Mode
from wallet.regtest.policy import Policy, Rejection
from wallet.regtest.verifier import verifies_standard_flags


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def refusal(bench: Bench, tx: Tx) -> str:
    before = bench.pool
    with pytest.raises(Rejection) as caught:
        bench.submit(tx)
    assert bench.pool == before
    return str(caught.value)


async def test_a_payment_is_taken_in_and_mined(bench: Bench) -> None:
    (coin,) = await bench.mature()
    tx = bench.spend([coin], 2000)
    candidate = bench.submit(tx)
    assert candidate.fee_sat == 2000
    assert candidate.vsize == tx.vsize()
    assert bench.pool == {tx.txid()}
    await bench.mine()
    assert bench.pool == set()
    assert bench.node.store.indexed_tx(tx.txid()) is not None


async def test_what_is_no_valid_transaction(bench: Bench) -> None:
    (coin,) = await bench.mature()
    good = bench.spend([coin])
    out = good.outputs[0]
    cases: list[tuple[str, Tx]] = [
        ("bad-txns-vin-empty", good.replace(inputs=())),
        ("bad-txns-vout-empty", good.replace(outputs=())),
        ("bad-txns-vout-negative", good.replace(outputs=(TxOut(-1, SCRIPT),))),
        ("bad-txns-vout-toolarge", good.replace(outputs=(TxOut(21_000_000 * COIN + 1, SCRIPT),))),
        ("bad-txns-txouttotal-toolarge", good.replace(outputs=(TxOut(20_000_000 * COIN, SCRIPT),) * 2)),
        ("bad-txns-inputs-duplicate", good.replace(inputs=good.inputs * 2)),
        ("coinbase", good.replace(inputs=(TxIn(OutPoint(bytes(32), 0xFFFFFFFF), b"\x51\x51"),))),
        ("bad-txns-prevout-null", good.replace(inputs=(*good.inputs, TxIn(OutPoint(bytes(32), 0xFFFFFFFF))))),
        (
            "bad-txns-in-belowout, value in (50.00) < value out (50.00000001)",
            good.replace(outputs=(TxOut(50 * COIN + 1, SCRIPT),)),
        ),
        ("bad-txns-inputs-missingorspent", good.replace(inputs=(TxIn(OutPoint(bytes(32), 7)),))),
        ("version", Tx(4, good.inputs, (out,), 0)),
        ("tx-size-small", good.replace(outputs=(TxOut(0, b"\x6a"),))),
        ("scriptpubkey", good.replace(outputs=(TxOut(1000, b"\x51\x51\x87"),))),
        ("scriptsig-not-pushonly", good.replace(inputs=(good.inputs[0]._replace(script_sig=b"\x76"),))),
        ("scriptsig-size", good.replace(inputs=(good.inputs[0]._replace(script_sig=b"\x00" * 1651),))),
        ("multi-op-return", good.replace(outputs=(out, TxOut(0, b"\x6a\x01\x01"), TxOut(0, b"\x6a\x01\x02")))),
        ("scriptpubkey", good.replace(outputs=(out, TxOut(0, b"\x6a" + scripts.push(bytes(82)))))),
        ("dust", good.replace(outputs=(TxOut(293, SCRIPT), TxOut(293, SCRIPT)))),
        ("dust, tx with dust output must be 0-fee", good.replace(outputs=(out, TxOut(293, SCRIPT)))),
        ("tx-size", good.replace(outputs=(out,) * 3300)),
    ]
    for reason, tx in cases:
        assert refusal(bench, tx) == reason
    bench.submit(good)
    assert refusal(bench, good) == "txn-already-in-mempool"
    other = good.with_witness(0, (good.inputs[0].witness[0] + b"\x00", PUBKEY))
    assert refusal(bench, other) == "txn-same-nonwitness-data-in-mempool"
    await bench.mine()
    assert refusal(bench, good) == "txn-already-known"


async def test_dust_is_measured_per_kind_of_output(bench: Bench) -> None:
    (coin,) = await bench.mature()
    limits = {
        SCRIPT: 294,
        scripts.p2wsh(b"\x51"): 330,
        scripts.p2tr(bytes(32)): 330,
        scripts.p2pkh(bytes(20)): 546,
        scripts.p2sh(bytes(20)): 540,
        scripts.P2A_SCRIPT: 240,
    }
    for script, limit in limits.items():
        bench.node.mempool.test(bench.spend([coin], outputs=[TxOut(COIN, SCRIPT), TxOut(limit, script)]))
        assert refusal(bench, bench.spend([coin], outputs=[TxOut(COIN, SCRIPT), TxOut(limit - 1, script)])).startswith(
            "dust"
        )


async def test_scripts_are_verified_with_the_mempools_flags(bench: Bench) -> None:
    assert verifies_standard_flags()
    (coin,) = await bench.mature()
    tx = bench.spend([coin])
    signature, key = tx.inputs[0].witness
    wrong = tx.with_witness(0, (signature[:-2] + bytes((signature[-2] ^ 1, signature[-1])), key))
    assert refusal(bench, wrong).startswith(
        "mandatory-script-verify-flag-failed (Script evaluated without error but finished with a false/empty top"
    )
    digest = segwit_v0_sighash(tx, 0, scripts.p2wpkh_script_code(hash160(PUBKEY)), 50 * COIN)
    compact = sign(SECRET, digest)
    high = compact[:32] + (CURVE_ORDER - int.from_bytes(compact[32:], "big")).to_bytes(32, "big")
    malleated = tx.with_witness(0, (compact_to_der(high) + bytes((SIGHASH_ALL,)), key))
    assert refusal(bench, malleated) == (
        "non-mandatory-script-verify-flag (Non-canonical signature: S value is unnecessarily high), "
        f"input 0 of {tx.txid_hex} (wtxid {malleated.wtxid()[::-1].hex()}), spending {coin}"
    )
    assert refusal(bench, tx.with_witness(0, ())).startswith(
        "mandatory-script-verify-flag-failed (Witness program hash mismatch)"
    )
    bench.submit(tx)


async def test_policy_of_witness_scripts(bench: Bench) -> None:
    (coin,) = await bench.mature()
    if_script = bytes((scripts.OP_IF, scripts.OP_1, scripts.OP_ELSE, scripts.OP_0, scripts.OP_ENDIF))
    future = bytes((scripts.OP_1 + 1, 32)) + bytes(32)
    fund = bench.spend(
        [coin],
        outputs=[TxOut(COIN, scripts.p2wsh(if_script)), TxOut(COIN, future), TxOut(COIN, scripts.P2A_SCRIPT)],
    )
    fund_fee_is_large = 47 * COIN
    assert sum(output.value_sat for output in fund.outputs) == 50 * COIN - fund_fee_is_large
    bench.submit(fund)
    txid = fund.txid()

    def spending(vout: int, *witness: bytes) -> Tx:
        return bench.spend([OutPoint(txid, vout)]).with_witness(0, witness)

    assert refusal(bench, spending(0, b"\x02", if_script)).startswith(
        "non-mandatory-script-verify-flag (OP_IF/NOTIF argument must be minimal)"
    )
    assert refusal(bench, spending(0, b"\x01" * 81, if_script)) == "bad-witness-nonstandard"
    assert refusal(bench, spending(0, *[b"\x01"] * 101, if_script)) == "bad-witness-nonstandard"
    assert refusal(bench, spending(1)) == "bad-txns-nonstandard-inputs"
    assert refusal(bench, spending(2, b"stuffing")) == "bad-witness-nonstandard"
    bench.submit(spending(0, b"\x01", if_script))
    bench.submit(spending(2))


async def test_fees_below_the_relay_minimum(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Policy(min_relay_fee=2500))
    (coin,) = await bench.mature()
    tx = bench.spend([coin], 265)
    assert refusal(bench, tx) == "min relay fee not met, 265 < 275"
    bench.submit(bench.spend([coin], 275))
    bench.close()


async def test_immature_coinbases(bench: Bench) -> None:
    (txid,) = await bench.mine()
    await bench.mine(98)
    tx = bench.spend([OutPoint(txid, 0)])
    assert refusal(bench, tx) == "bad-txns-premature-spend-of-coinbase, tried to spend coinbase at depth 99"
    await bench.mine()
    bench.submit(tx)


async def test_locktimes_by_height_and_by_median_time(bench: Bench) -> None:
    (coin,) = await bench.mature()
    tip = bench.node.chain.tip
    assert refusal(bench, bench.spend([coin], locktime=tip.height + 1)) == "non-final"
    assert refusal(bench, bench.spend([coin], locktime=tip.median_time)) == "non-final"
    bench.node.mempool.test(bench.spend([coin], locktime=tip.height))
    bench.node.mempool.test(bench.spend([coin], locktime=tip.median_time - 1))
    bench.node.mempool.test(bench.spend([coin], locktime=tip.height + 1, sequence=0xFFFFFFFF))


async def test_relative_locks_by_blocks(bench: Bench) -> None:
    (coin,) = await bench.mature()
    parent = bench.spend([coin], count=2)
    bench.submit(parent)
    await bench.mine()
    child = bench.spend([OutPoint(parent.txid(), 0)], sequence=3)
    assert refusal(bench, child) == "non-BIP68-final"
    bench.node.mempool.test(bench.spend([OutPoint(parent.txid(), 0)], sequence=3, version=1))
    await bench.mine()
    assert refusal(bench, child) == "non-BIP68-final"
    await bench.mine()
    bench.submit(child)
    grandchild = bench.spend([OutPoint(child.txid(), 0)], sequence=1)
    assert refusal(bench, grandchild) == "non-BIP68-final"
    bench.submit(bench.spend([OutPoint(child.txid(), 0)], sequence=0))


async def test_relative_locks_by_time(bench: Bench) -> None:
    (coin,) = await bench.mature()
    parent = bench.spend([coin])
    bench.submit(parent)
    await bench.mine()
    tx = bench.spend([OutPoint(parent.txid(), 0)], sequence=1 << 22 | 2)
    assert refusal(bench, tx) == "non-BIP68-final"
    bench.node.clock.mock(bench.node.clock.now() + 2 * 512 + 60)
    try:
        await bench.mine(5)
        assert refusal(bench, tx) == "non-BIP68-final"
        await bench.mine()
        bench.submit(tx)
        await bench.mine()
        assert bench.pool == set()
    finally:
        bench.node.clock.mock(0)


async def test_chains_of_unconfirmed_transactions_are_limited(bench: Bench) -> None:
    (coin,) = await bench.mature()
    for _ in range(25):
        tx = bench.spend([coin])
        bench.submit(tx)
        coin = OutPoint(tx.txid(), 0)
    assert refusal(bench, bench.spend([coin])) == ("too-long-mempool-chain, too many unconfirmed ancestors [limit: 25]")


async def test_descendants_are_limited_but_for_one_carved_out(bench: Bench) -> None:
    (coin,) = await bench.mature()
    parent = bench.spend([coin], count=27)
    bench.submit(parent)
    children = [bench.spend([OutPoint(parent.txid(), vout)]) for vout in range(26)]
    for child in children[:24]:
        bench.submit(child)
    grandchild = bench.spend([OutPoint(children[0].txid(), 0)])
    assert refusal(bench, grandchild) == (
        f"too-long-mempool-chain, too many descendants for tx {parent.txid_hex} [limit: 25]"
    )
    bench.submit(children[24])
    assert refusal(bench, children[25]).startswith("too-long-mempool-chain, too many descendants")


async def test_sizes_of_unconfirmed_families_are_limited(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Policy(ancestor_vbytes=300, descendant_vbytes=1000))
    (coin,) = await bench.mature()
    first = bench.spend([coin])
    second = bench.spend([OutPoint(first.txid(), 0)])
    bench.submit(first)
    bench.submit(second)
    assert refusal(bench, bench.spend([OutPoint(second.txid(), 0)])) == (
        "too-long-mempool-chain, exceeds ancestor size limit [limit: 300]"
    )
    bench.close()


# The chain moves.


async def test_a_rival_in_a_block_removes_what_it_conflicts_with(bench: Bench) -> None:
    (coin,) = await bench.mature()
    loser = bench.spend([coin], 1000)
    child = bench.spend([OutPoint(loser.txid(), 0)])
    bench.submit(loser)
    bench.submit(child)
    winner = bench.spend([coin], 3000)
    await bench.node.mine(SCRIPT, [winner])
    assert bench.pool == set()


async def test_a_reorganisation_returns_transactions_and_drops_what_is_no_longer_valid(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    fork = bench.node.chain.height
    tx = bench.spend([coin], count=2)
    bench.submit(tx)
    await bench.mine()
    child = bench.spend([OutPoint(tx.txid(), 0)])
    locked = bench.spend([OutPoint(tx.txid(), 1)], sequence=1)
    late = bench.spend([other], locktime=fork + 1)
    for unconfirmed in (child, locked, late):
        bench.submit(unconfirmed)
    await bench.node.invalidate(bench.node.chain.tip)
    assert bench.pool == {tx.txid(), child.txid()}
    await bench.mine()
    assert bench.pool == set()


async def test_coinbases_that_vanish_or_are_young_again_take_their_spenders_along(bench: Bench) -> None:
    first, second = await bench.mature(2)
    young = bench.spend([second])
    old = bench.spend([first])
    bench.submit(young)
    bench.submit(old)
    await bench.node.invalidate(bench.node.chain.active[-2])
    assert bench.pool == {old.txid()}
    await bench.node.invalidate(bench.node.chain.active[1])
    assert bench.pool == set()


async def test_the_mempool_survives_a_restart(bench: Bench) -> None:
    (coin,) = await bench.mature()
    tx = bench.spend([coin])
    child = bench.spend([OutPoint(tx.txid(), 0)])
    bench.submit(tx)
    bench.submit(child)
    bench.node.mempool.pool.prioritise(tx.txid(), 777)
    seen = bench.node.mempool.pool.entries[tx.txid()].time
    bench.reopen()
    assert bench.pool == {tx.txid(), child.txid()}
    entry = bench.node.mempool.pool.entries[tx.txid()]
    assert entry.modified_fee_sat == entry.fee_sat + 777
    assert entry.time == seen
    await bench.mine()
    assert bench.pool == set()


async def test_a_full_mempool_drops_what_pays_least_and_asks_for_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Policy(max_mempool_bytes=6000))
    coins = await bench.mature(6)
    txs = [bench.spend([coin], 1000 + 500 * number) for number, coin in enumerate(coins)]
    for tx in txs[:4]:
        bench.submit(tx)
    assert len(bench.pool) == 4
    bench.submit(txs[5])
    assert txs[0].txid() not in bench.pool
    with pytest.raises(Rejection, match="mempool min fee not met"):
        bench.submit(txs[0])
    now = bench.node.clock.now()
    assert bench.node.mempool.pool.min_fee_rate(now) > 1000
    await bench.mine()
    assert bench.node.mempool.pool.min_fee_rate(now + 14 * 24 * 3600) == 0
    bench.close()


async def test_old_transactions_expire(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    tx = bench.spend([coin])
    child = bench.spend([OutPoint(tx.txid(), 0)])
    bench.submit(tx)
    bench.submit(child)
    bench.node.mempool.pool.entries[tx.txid()].time -= 337 * 3600
    fresh = bench.spend([other])
    bench.submit(fresh)
    assert bench.pool == {fresh.txid()}


# Replacement.


@pytest.mark.parametrize(
    ("fee", "expected"),
    [
        (1000, "new feerate 0.00009090 BTC/kvB <= old feerate 0.00009090 BTC/kvB"),
        (2999, "less fees than conflicting txs; 0.00002999 < 0.00003"),
        (3109, "not enough additional fees to relay; 0.00000109 < 0.0000011"),
    ],
)
async def test_replacements_must_pay(bench: Bench, fee: int, expected: str) -> None:
    (coin,) = await bench.mature()
    old = bench.spend([coin], 1000)
    child = bench.spend([OutPoint(old.txid(), 0)], 2000)
    bench.submit(old)
    bench.submit(child)
    new = bench.spend([coin], fee, sequence=0xFFFFFFFF)
    comma = ";" if "feerate" in expected else ","
    assert refusal(bench, new) == f"insufficient fee, rejecting replacement {new.txid_hex}{comma} {expected}"
    good = bench.spend([coin], 3110)
    assert bench.submit(good).replaced.keys() == {old.txid(), child.txid()}
    assert bench.pool == {good.txid()}


async def test_a_replacement_may_not_add_unconfirmed_inputs(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    old = bench.spend([coin])
    unconfirmed = bench.spend([other])
    bench.submit(old)
    bench.submit(unconfirmed)
    new = bench.spend([coin, OutPoint(unconfirmed.txid(), 0)], 10_000)
    assert refusal(bench, new) == (
        f"replacement-adds-unconfirmed, replacement {new.txid_hex} adds unconfirmed input, idx 1"
    )


async def test_a_replacement_may_not_spend_what_it_replaces(bench: Bench) -> None:
    (coin,) = await bench.mature()
    old = bench.spend([coin], count=2)
    bench.submit(old)
    new = bench.spend([coin, OutPoint(old.txid(), 0)], 10_000)
    assert refusal(bench, new) == (
        f"bad-txns-spends-conflicting-tx, {new.txid_hex} spends conflicting transaction {old.txid_hex}"
    )


async def test_a_replacement_may_not_evict_more_than_a_hundred(bench: Bench) -> None:
    coins = await bench.mature(5)
    roots = []
    for coin in coins:
        root = bench.spend([coin], count=24)
        bench.submit(root)
        roots.append(root)
        for vout in range(20):
            bench.submit(bench.spend([OutPoint(root.txid(), vout)]))
    new = bench.spend(coins, 10_000_000)
    assert refusal(bench, new) == (
        f"too many potential replacements, rejecting replacement {new.txid_hex};"
        " too many potential replacements (105 > 100)"
    )


async def test_a_test_of_acceptance_changes_nothing(bench: Bench) -> None:
    (coin,) = await bench.mature()
    old = bench.spend([coin])
    bench.submit(old)
    bench.node.mempool.test(bench.spend([coin], 5000))
    assert bench.pool == {old.txid()}
    with pytest.raises(Rejection, match="max feerate exceeded"):
        bench.node.mempool.test(bench.spend([coin], 5000), Mode(max_fee_rate=1000))


async def test_non_standard_is_fine_if_the_user_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Policy(require_standard=False))
    (coin,) = await bench.mature()
    bench.submit(bench.spend([coin], outputs=[TxOut(100, b"\x51\x51\x87"), TxOut(49 * COIN, SCRIPT)]))
    await bench.mine()
    assert bench.pool == set()
    bench.close()
