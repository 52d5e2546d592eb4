"""Coin selection and fee arithmetic: what every selection must satisfy, and what the searches are for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wallet.fees import (
    dust_threshold_sat,
    fee_for_tx,
    fee_for_weight,
    feerate_of,
    replacement_fee_sat,
    sat_per_kw_from_vbyte,
)
from wallet.keys import AddressKind
from wallet.selection import Candidate, Selection, Shortfall, Target, effective_value, finish, select

P2TR, P2WPKH = AddressKind.P2TR, AddressKind.P2WPKH
OUTPUT_WEIGHT = 4 * 43


def target_of(outputs_sat: int, feerate: int = 1_000, **fields: int) -> Target:
    return Target(outputs_sat, OUTPUT_WEIGHT, 1, feerate, P2TR.output_weight, P2TR.input_weight, 330, **fields)


def coins_of(values: list[int]) -> list[Candidate]:
    return [Candidate(place, value, P2TR.input_weight) for place, value in enumerate(values)]


values_st = st.lists(st.integers(300, 10_000_000), min_size=1, max_size=40)


@given(values_st, st.integers(1, 20_000_000), st.integers(253, 50_000), st.integers(0, 3_000), st.integers())
@settings(max_examples=150, deadline=None)
def test_every_selection_pays_for_itself(values: list[int], amount: int, feerate: int, extra: int, seed: int) -> None:
    coins, target = coins_of(values), target_of(amount, feerate, extra_fee_sat=extra)
    answer = select(coins, target, random.Random(seed))
    if isinstance(answer, Shortfall):
        worth = [coin for coin in coins if effective_value(coin, feerate) > 0]
        assert finish(worth, target) is None, "a shortfall is a shortfall of all coins"
        assert answer.have_sat == sum(coin.value_sat for coin in worth)
        return
    assert len({coin.key for coin in answer.chosen}) == len(answer.chosen)
    total = sum(coin.value_sat for coin in answer.chosen)
    assert total == amount + answer.fee_sat + answer.change_sat
    assert answer.fee_sat >= fee_for_tx(feerate, answer.weight) + extra
    assert answer.change_sat == 0 or answer.change_sat >= target.least_change_sat
    if answer.change_sat:
        assert answer.fee_sat == fee_for_tx(feerate, answer.weight) + extra, "change takes what is left"
    else:
        cost_of_change = fee_for_weight(feerate, P2TR.output_weight) + target.least_change_sat
        assert answer.fee_sat <= fee_for_tx(feerate, answer.weight) + extra + cost_of_change + 2 * len(values)


@given(values_st, st.integers(1, 20_000_000), st.integers(253, 50_000), st.integers(0, 300_000), st.integers())
@settings(max_examples=150, deadline=None)
def test_what_pays_the_least_fee_is_found(
    values: list[int], amount: int, feerate: int, min_fee: int, seed: int
) -> None:
    """Such as a replacement's: it counts for the whole transaction, not on top of the inputs' own fees."""
    coins, target = coins_of(values), target_of(amount, feerate, min_fee_sat=min_fee)
    answer = select(coins, target, random.Random(seed))
    worth = [coin for coin in coins if effective_value(coin, feerate) > 0]
    assert isinstance(answer, Selection) == (finish(worth, target) is not None)
    if isinstance(answer, Selection):
        assert answer.fee_sat >= min_fee


def test_a_coin_that_just_pays_the_least_fee_suffices() -> None:
    (coin,) = coins_of([100_000])
    answer = select([coin], target_of(90_000, min_fee_sat=9_900), random.Random(1))
    assert isinstance(answer, Selection)
    assert (answer.fee_sat, answer.change_sat) == (10_000, 0)


@given(values_st, st.integers(1, 1_000_000), st.integers(0, 500_000))
@settings(max_examples=60, deadline=None)
def test_a_least_change_is_kept(values: list[int], amount: int, keep: int) -> None:
    assume(keep > 0)
    answer = select(coins_of(values), target_of(amount, min_change_sat=keep), random.Random(1))
    if isinstance(answer, Selection):
        assert answer.change_sat >= keep
    else:
        assert sum(values) < amount + keep + answer.fee_sat + 1_000


def test_branch_and_bound_finds_the_exact_match() -> None:
    feerate = 5_000
    goal = [123_456, 77_777, 31_415]
    target = target_of(0, feerate)
    inputs = sum(goal) - 3 * fee_for_weight(feerate, P2TR.input_weight)
    target = replace(target, outputs_sat=inputs - target.fee(0, 0, False))
    coins = coins_of([*goal, 1_000_000, 500_000, 20_001, 65_432, 987_654])
    answer = select(coins, target, random.Random(1))
    assert isinstance(answer, Selection)
    assert sorted(coin.value_sat for coin in answer.chosen) == sorted(goal)
    assert answer.change_sat == 0


def test_branch_and_bound_with_many_equal_coins_ends() -> None:
    answer = select(coins_of([10_000] * 200), target_of(123_457, 2_500), random.Random(1))
    assert isinstance(answer, Selection)
    assert len(answer.chosen) <= 15


def test_spends_many_coins_when_fees_are_low_and_few_when_high() -> None:
    coins = coins_of([30_000] * 20 + [400_000])
    low = select(coins, target_of(290_000, 253), random.Random(3))
    high = select(coins, target_of(290_000, 25_000), random.Random(3))
    assert isinstance(low, Selection)
    assert isinstance(high, Selection)
    assert len(low.chosen) > len(high.chosen) == 1


def test_coins_not_worth_their_input_are_left() -> None:
    answer = select(coins_of([200, 300, 100_000]), target_of(50_000, 2_000), random.Random(1))
    assert isinstance(answer, Selection)
    assert [coin.value_sat for coin in answer.chosen] == [100_000]
    missing = select(coins_of([400] * 100), target_of(1_000, 2_000), random.Random(1))
    assert missing == Shortfall(0, target_of(1_000, 2_000).fee(0, 0, False))


def test_too_heavy_is_told_apart_from_too_little() -> None:
    coins = coins_of([10_000] * 2_000)
    answer = select(coins, target_of(19_000_000, 253), random.Random(1))
    assert isinstance(answer, Shortfall)
    assert answer.too_heavy
    answer = select(coins, target_of(21_000_000, 253), random.Random(1))
    assert isinstance(answer, Shortfall)
    assert not answer.too_heavy


def test_required_inputs_may_suffice() -> None:
    target = target_of(-50_000, 5_000, required_weight=P2WPKH.input_weight, required_inputs=1)
    answer = select(coins_of([10_000]), target, random.Random(1))
    assert isinstance(answer, Selection)
    assert answer.chosen == ()
    assert answer.change_sat > 45_000


@pytest.mark.parametrize(
    ("script_hex", "threshold"),
    [
        ("0014" + "00" * 20, 294),
        ("0020" + "00" * 32, 330),
        ("5120" + "00" * 32, 330),
        ("51024e73", 240),
        ("a914" + "00" * 20 + "87", 540),
        ("76a914" + "00" * 20 + "88ac", 546),
        ("6a0548656c6c6f", 0),
        ("5f02ffff", 240),
    ],
)
def test_dust_thresholds_of_bitcoin_core(script_hex: str, threshold: int) -> None:
    """BOLT 3, "Dust Limits", names most of them; 240 for pay-to-anchor is in Bitcoin Core's tests."""
    assert dust_threshold_sat(bytes.fromhex(script_hex)) == threshold


def test_fee_arithmetic() -> None:
    assert fee_for_weight(253, 1_000) == 253
    assert fee_for_weight(253, 1) == 1
    assert fee_for_tx(1_000, 561) == 564
    assert feerate_of(253, 1_000) == 253
    assert sat_per_kw_from_vbyte(1.0) == 250
    assert sat_per_kw_from_vbyte(1.001) == 251
    assert replacement_fee_sat(1_000, 141, 1_000) == 1_141
    assert replacement_fee_sat(1_000, 141, 100) == 1_015
