"""Packages, version 3 transactions, ephemeral dust, package replacement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.regtest_support import COIN, SCRIPT, Bench
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin import script as scripts
from wallet.regtest.packages import PackageResult
from wallet.regtest.policy import Rejection
from wallet.regtest.replacement import improves_diagram

ANCHOR = TxOut(0, scripts.P2A_SCRIPT)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def refusal(bench: Bench, tx: Tx) -> str:
    with pytest.raises(Rejection) as caught:
        bench.submit(tx)
    return str(caught.value)


def submit(bench: Bench, *txs: Tx) -> PackageResult:
    return bench.node.packages.submit(txs, None)


def error_of(result: PackageResult, tx: Tx) -> str:
    return str(result.results[tx.wtxid()].rejection)


def anchored(bench: Bench, coin: OutPoint, *, fee: int = 0, version: int = 3, dust: int = 0) -> Tx:
    """A transaction like a commitment: one output, one anchor that anyone may spend."""
    value = bench.outputs[coin].value_sat - fee - dust
    return bench.spend([coin], outputs=[TxOut(value, SCRIPT), ANCHOR._replace(value_sat=dust)], version=version)


def bump(bench: Bench, parent: Tx, coin: OutPoint, fee: int, *, version: int = 3, pad: int = 0) -> Tx:
    """A child that spends the anchor and another coin."""
    inputs = [OutPoint(parent.txid(), 1), coin]
    bench.outputs[inputs[0]] = parent.outputs[1]
    return bench.spend(inputs, fee, version=version, pad=pad)


async def test_a_child_pays_for_its_parent_with_ephemeral_dust(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    parent = anchored(bench, coin)
    assert refusal(bench, parent) == "min relay fee not met, 0 < " + str(parent.vsize())
    child = bump(bench, parent, other, 2000)
    result = submit(bench, parent, child)
    assert result.message == "success"
    assert bench.pool == {parent.txid(), child.txid()}
    effective = result.results[parent.wtxid()].effective
    assert effective == (2000, parent.vsize() + child.vsize(), [parent.wtxid(), child.wtxid()])
    await bench.mine()
    assert bench.pool == set()
    assert bench.node.store.indexed_tx(parent.txid()) is not None


async def test_a_package_that_pays_too_little(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    parent = anchored(bench, coin)
    child = bump(bench, parent, other, 200)
    result = submit(bench, parent, child)
    assert result.message == "transaction failed"
    assert error_of(result, child) == f"min relay fee not met, 200 < {parent.vsize() + child.vsize()}"
    assert error_of(result, parent) == f"min relay fee not met, 0 < {parent.vsize()}"
    assert bench.pool == set()


async def test_dust_must_be_spent_by_the_child_and_pay_nothing_itself(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    paying = anchored(bench, coin, fee=500)
    assert refusal(bench, paying) == "dust, tx with dust output must be 0-fee"
    parent = anchored(bench, coin, dust=100)
    child = bench.spend([OutPoint(parent.txid(), 0), other], 3000, version=3)
    result = submit(bench, parent, child)
    assert result.message == "unspent-dust"
    name = f"{child.txid_hex} (wtxid={child.wtxid()[::-1].hex()})"
    assert error_of(result, child) == (f"missing-ephemeral-spends, tx {name} did not spend parent's ephemeral dust")
    good = bump(bench, parent, other, 3000)
    assert submit(bench, parent, good).message == "success"


async def test_a_parent_already_there_and_a_child_alone(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    parent = bench.spend([coin], 500)
    child = bench.spend([OutPoint(parent.txid(), 0), other], 500)
    bench.submit(parent)
    result = submit(bench, parent, child)
    assert result.message == "success"
    assert result.results[parent.wtxid()].entry is not None
    assert result.results[child.wtxid()].candidate is not None
    other_witness = parent.with_witness(0, (b"", *parent.inputs[0].witness))
    assert submit(bench, other_witness, child).results[other_witness.wtxid()].other_wtxid == parent.wtxid()


async def test_malformed_packages(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    parent = bench.spend([coin], 500, count=2)
    child = bench.spend([OutPoint(parent.txid(), 0)], 500)
    rival = bench.spend([coin], 700)
    stranger = bench.spend([other], 500)
    assert submit(bench, child, parent).message == "package-not-sorted"
    assert submit(bench, parent, parent).message == "package-contains-duplicates"
    assert submit(bench, parent, rival).message == "conflict-in-package"
    assert submit(bench, stranger, child).message == "package-not-child-with-parents"
    assert submit(bench, parent, *[child] * 25).message == "package-too-many-transactions"
    unknown = bench.spend([OutPoint(parent.txid(), 1), other], 500)
    second = bench.spend([OutPoint(unknown.txid(), 0), OutPoint(parent.txid(), 0)], 500)
    assert submit(bench, parent, second).message == "package-not-child-with-unconfirmed-parents"
    assert bench.pool == set()


async def test_a_broken_member_does_not_keep_good_ones_out(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    parent = bench.spend([coin], 500)
    child = bench.spend([OutPoint(parent.txid(), 0), other], 500)
    broken = child.with_witness(1, ())
    result = submit(bench, parent, broken)
    assert result.message == "transaction failed"
    assert error_of(result, broken).startswith("mandatory-script-verify-flag-failed (Witness program hash mismatch)")
    assert bench.pool == {parent.txid()}


# Version 3.


async def test_version_3_families_have_two_members_of_limited_size(bench: Bench) -> None:
    coin, other, third = await bench.mature(3)
    big = bench.spend([coin], version=3, outputs=[TxOut(COIN, SCRIPT)] * 49)
    bench.node.mempool.test(big)
    huge = bench.spend([coin], version=3, outputs=[TxOut(10_000, SCRIPT)] * 330)
    assert f"is too big: {huge.vsize()} > 10000 virtual bytes" in refusal(bench, huge)
    parent = bench.spend([coin], 500, count=2, version=3)
    bench.submit(parent)
    large = bench.spend([OutPoint(parent.txid(), 0)], version=3, outputs=[TxOut(10_000, SCRIPT)] * 40)
    assert f"version=3 child tx {large.txid_hex}" in refusal(bench, large)
    child = bench.spend([OutPoint(parent.txid(), 0)], 500, version=3)
    bench.submit(child)
    grandchild = bench.spend([OutPoint(child.txid(), 0)], 500, version=3)
    assert refusal(bench, grandchild) == (
        f"TRUC-violation, tx {grandchild.txid_hex} (wtxid={grandchild.wtxid()[::-1].hex()})"
        " would have too many ancestors"
    )
    lone = bench.spend([other], 500, version=3)
    bench.submit(lone)
    two_parents = bench.spend([OutPoint(lone.txid(), 0), OutPoint(parent.txid(), 1)], 500, version=3)
    assert "would have too many ancestors" in refusal(bench, two_parents)
    plain = bench.spend([third], 500)
    bench.submit(plain)
    mixed = bench.spend([OutPoint(plain.txid(), 0)], 500, version=3)
    assert refusal(bench, mixed).startswith(
        f"TRUC-violation, version=3 tx {mixed.txid_hex} (wtxid={mixed.wtxid()[::-1].hex()}) cannot spend from"
    )
    downgraded = bench.spend([OutPoint(lone.txid(), 0)], 500, version=2)
    assert refusal(bench, downgraded).startswith(f"TRUC-violation, non-version=3 tx {downgraded.txid_hex}")


async def test_a_second_child_evicts_its_sibling_if_it_pays_more(bench: Bench) -> None:
    (coin,) = await bench.mature()
    parent = bench.spend([coin], 500, count=2, version=3)
    bench.submit(parent)
    first = bench.spend([OutPoint(parent.txid(), 0)], 1000, version=3)
    bench.submit(first)
    poor = bench.spend([OutPoint(parent.txid(), 1)], 900, version=3)
    assert refusal(bench, poor).startswith("insufficient fee (including sibling eviction), rejecting replacement ")
    rich = bench.spend([OutPoint(parent.txid(), 1)], 2000, version=3)
    assert bench.submit(rich).replaced.keys() == {first.txid()}
    assert bench.pool == {parent.txid(), rich.txid()}


async def test_version_3_packages_are_checked_as_a_whole(bench: Bench) -> None:
    coin, other, third = await bench.mature(3)
    parent = anchored(bench, coin)
    wrong = bump(bench, parent, other, 3000, version=2)
    result = submit(bench, parent, wrong)
    assert result.message.startswith(f"TRUC-violation, non-version=3 tx {wrong.txid_hex}")
    unconfirmed = bench.spend([third], 500, version=3)
    bench.submit(unconfirmed)
    child = bump(bench, parent, OutPoint(unconfirmed.txid(), 0), 3000)
    result = submit(bench, parent, unconfirmed, child)
    assert "would have too many ancestors" in result.message


# Replacement by packages.


async def test_a_package_replaces_a_package(bench: Bench) -> None:
    coin, other, third = await bench.mature(3)
    old = anchored(bench, coin)
    old_child = bump(bench, old, other, 2000)
    assert submit(bench, old, old_child).message == "success"
    new = bench.spend([coin], outputs=[TxOut(49 * COIN, SCRIPT), TxOut(COIN, scripts.P2A_SCRIPT)], version=3)
    poor = bump(bench, new, third, 1900)
    result = submit(bench, new, poor)
    assert result.message == (
        "package RBF failed: insufficient anti-DoS fees, rejecting replacement "
        f"{poor.txid_hex}, less fees than conflicting txs; 0.000019 < 0.00002"
    )
    rich = bump(bench, new, third, 4000)
    result = submit(bench, new, rich)
    assert result.message == "success"
    assert set(result.replaced) == {old.txid(), old_child.txid()}
    assert bench.pool == {new.txid(), rich.txid()}


async def test_package_replacement_has_limits(bench: Bench) -> None:
    coin, other, third, fourth = await bench.mature(4)
    old = bench.spend([coin], 300)
    bench.submit(old)
    new = bench.spend([coin], 150)
    unconfirmed = bench.spend([fourth], 500)
    bench.submit(unconfirmed)
    child = bench.spend([OutPoint(new.txid(), 0), OutPoint(unconfirmed.txid(), 0)], 9000)
    assert submit(bench, new, unconfirmed, child).message == (
        "package RBF failed: new transaction cannot have mempool ancestors"
    )
    rival = bench.spend([third], 300)
    bench.submit(rival)
    second = bench.spend([third], 150)
    three = bench.spend([OutPoint(new.txid(), 0), OutPoint(second.txid(), 0)], 9000)
    assert submit(bench, new, second, three).message == "package RBF failed: package must be 1-parent-1-child"
    good = bench.spend([OutPoint(new.txid(), 0), other], 9000)
    assert submit(bench, new, good).message == "success"
    assert old.txid() not in bench.pool


async def test_a_package_may_not_make_miners_poorer(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    old = bench.spend([coin], 2200)
    bench.submit(old)
    new = bench.spend([coin], 150)
    value = bench.outputs[OutPoint(new.txid(), 0)].value_sat + 50 * COIN
    heavy = bench.spend(
        [OutPoint(new.txid(), 0), other], outputs=[TxOut(COIN, SCRIPT)] * 59 + [TxOut(value - 59 * COIN - 6000, SCRIPT)]
    )
    assert submit(bench, new, heavy).message == (
        "package RBF failed: insufficient feerate: does not improve feerate diagram"
    )
    assert bench.pool == {old.txid()}


async def test_a_child_does_not_lift_a_parent_that_is_not_version_3_over_the_relay_minimum(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    parent = bench.spend([coin], 50)
    child = bench.spend([OutPoint(parent.txid(), 0), other], 9000)
    result = submit(bench, parent, child)
    assert result.message == "transaction failed"
    assert error_of(result, parent) == f"min relay fee not met, 50 < {parent.vsize()}"
    assert error_of(result, child) == "bad-txns-inputs-missingorspent"
    assert bench.pool == set()


def test_feerate_diagrams() -> None:
    assert improves_diagram([(100, 100)], [(101, 100)])
    assert not improves_diagram([(100, 100)], [(100, 100)])
    assert not improves_diagram([(100, 100)], [(150, 1000)])
    assert improves_diagram([(100, 100), (10, 100)], [(200, 100)])
    assert improves_diagram([], [(1, 100)])
    assert not improves_diagram([(300, 100), (10, 100)], [(400, 200)])


# testmempoolaccept of several.


async def test_several_transactions_are_tested_together_without_replacement(bench: Bench) -> None:
    coin, other = await bench.mature(2)
    parent = bench.spend([coin], 500, count=2)
    child = bench.spend([OutPoint(parent.txid(), 0)], 500)
    result = bench.node.packages.test([parent, child], None)
    assert result.message == "success"
    assert {wtxid for wtxid, found in result.results.items() if found.candidate} == {parent.wtxid(), child.wtxid()}
    assert bench.pool == set()
    bench.submit(bench.spend([other], 500))
    rival = bench.spend([other], 5000)
    result = bench.node.packages.test([parent, rival], None)
    assert error_of(result, rival) == "bip125-replacement-disallowed"
    missing = bench.spend([OutPoint(parent.txid(), 1)]).replace(inputs=(TxIn(OutPoint(bytes(31) + b"\x01", 0)),))
    result = bench.node.packages.test([parent, missing], None)
    assert error_of(result, missing) == "bad-txns-inputs-missingorspent"


async def test_packages_count_against_the_limits_of_families(bench: Bench) -> None:
    (coin,) = await bench.mature()
    for _ in range(24):
        tx = bench.spend([coin])
        bench.submit(tx)
        coin = OutPoint(tx.txid(), 0)
    parent = bench.spend([coin], 500)
    child = bench.spend([OutPoint(parent.txid(), 0)], 500)
    result = bench.node.packages.test([parent, child], None)
    assert result.message == ("package-mempool-limits, possibly too many unconfirmed ancestors [limit: 25]")
