"""Coin selection: pure functions over values and weights.

Three searches are run and the least wasteful answer wins (Bitcoin Core's waste metric): branch and bound for a set that
needs no change, a single random draw, and the largest coins first. "Effective value" is what a coin adds after paying
for its own input at the fee rate.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wallet.fees import fee_for_tx, fee_for_weight

MAX_STANDARD_WEIGHT: Final = 400_000
"""Bitcoin Core relays no heavier transaction (MAX_STANDARD_TX_WEIGHT)."""
LONG_TERM_FEERATE_SAT_PER_KW: Final = 2_500
"""What spending a coin later is taken to cost: below it, spending more coins now saves fees (10 sat/vB)."""
_SEGWIT_MARKER_WEIGHT: Final = 2
_BRANCH_AND_BOUND_TRIES: Final = 20_000
_RANDOM_DRAWS: Final = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A coin that may be selected; `key` is the caller's handle."""

    key: object
    value_sat: int
    input_weight: int


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be paid for.

    `outputs_sat` is the sum of outputs less what required inputs bring, `outputs_weight` the outputs' weight,
    `required_weight` and `required_inputs` inputs that are in the transaction anyhow, `extra_fee_sat` a fee beyond
    the transaction's own weight (to lift an ancestor), `min_fee_sat` the least fee in all, `min_change_sat` the least
    change, which then must be made. `change_*` describe the change output if one is made: its
    weight, what spending it weighs later, and the least value it must have.
    """

    outputs_sat: int
    outputs_weight: int
    output_count: int
    feerate_sat_per_kw: int
    change_weight: int
    change_spend_weight: int
    change_dust_sat: int
    required_weight: int = 0
    required_inputs: int = 0
    extra_fee_sat: int = 0
    min_fee_sat: int = 0
    min_change_sat: int = 0
    max_weight: int = MAX_STANDARD_WEIGHT
    long_term_feerate_sat_per_kw: int = LONG_TERM_FEERATE_SAT_PER_KW

    def weight(self, chosen_weight: int, chosen_count: int, with_change: bool) -> int:
        """Weight of the whole transaction."""
        inputs, outputs = self.required_inputs + chosen_count, self.output_count + with_change
        frame = 4 * (4 + 4 + _compact_size_bytes(inputs) + _compact_size_bytes(outputs)) + _SEGWIT_MARKER_WEIGHT
        change = self.change_weight if with_change else 0
        return frame + self.outputs_weight + self.required_weight + chosen_weight + change

    def fee(self, chosen_weight: int, chosen_count: int, with_change: bool) -> int:
        """Fee in satoshi of the whole transaction."""
        weight = self.weight(chosen_weight, chosen_count, with_change)
        return max(fee_for_tx(self.feerate_sat_per_kw, weight) + self.extra_fee_sat, self.min_fee_sat)

    @property
    def least_change_sat(self) -> int:
        """Change below this is not made: the network or the wallet would call it dust."""
        spend = fee_for_weight(self.long_term_feerate_sat_per_kw, self.change_spend_weight)
        return max(self.change_dust_sat, spend, self.min_change_sat)


@dataclass(frozen=True, slots=True)
class Selection:
    """`fee_sat` is what the transaction pays; `change_sat` is 0 for no change. `waste_sat` compares selections."""

    chosen: tuple[Candidate, ...]
    fee_sat: int
    change_sat: int
    waste_sat: int
    weight: int


@dataclass(frozen=True, slots=True)
class Shortfall:
    """No selection exists: all coins worth spending come to `have_sat`, and the fee with all of them is `fee_sat`."""

    have_sat: int
    fee_sat: int
    too_heavy: bool = False


def select(candidates: Sequence[Candidate], target: Target, rng: random.Random) -> Selection | Shortfall:
    """The least wasteful set of candidates that pays for the target, or how much is missing."""
    rate = target.feerate_sat_per_kw
    worth = [coin for coin in candidates if effective_value(coin, rate) > 0]
    worth.sort(key=lambda coin: (-effective_value(coin, rate), -coin.value_sat))
    found: list[Selection] = []
    bare = finish((), target) if target.required_inputs else None
    if bare is not None and bare.weight <= target.max_weight:
        found.append(bare)
    for search in (_branch_and_bound, _single_random_draw, _largest_first):
        selection = search(worth, target, rng)
        if selection is not None and selection.weight <= target.max_weight:
            found.append(selection)
    if found:
        return min(found, key=lambda selection: (selection.waste_sat, len(selection.chosen)))
    weight, count = sum(coin.input_weight for coin in worth), len(worth)
    have = sum(coin.value_sat for coin in worth)
    fee = target.fee(weight, count, target.min_change_sat > 0)
    return Shortfall(have, fee, too_heavy=finish(worth, target) is not None)


def effective_value(coin: Candidate, feerate_sat_per_kw: int) -> int:
    """What a coin adds after paying for its own input, in satoshi."""
    return coin.value_sat - fee_for_weight(feerate_sat_per_kw, coin.input_weight)


def finish(chosen: Sequence[Candidate], target: Target, *, allow_change: bool = True) -> Selection | None:
    """The fee and change of a given set, or None if it does not pay for the target."""
    weight, count = sum(coin.input_weight for coin in chosen), len(chosen)
    total = sum(coin.value_sat for coin in chosen)
    with_change = total - target.outputs_sat - target.fee(weight, count, True)
    without = total - target.outputs_sat - target.fee(weight, count, False)
    if without < target.min_change_sat:
        return None
    makes_change = allow_change and with_change >= target.least_change_sat
    if target.min_change_sat and not makes_change:
        return None
    change = with_change if makes_change else 0
    input_waste = _fee_difference(target, weight)
    if makes_change:
        change_cost = fee_for_weight(target.feerate_sat_per_kw, target.change_weight)
        waste = (
            input_waste + change_cost + fee_for_weight(target.long_term_feerate_sat_per_kw, target.change_spend_weight)
        )
    else:
        waste = input_waste + without
    fee = total - target.outputs_sat - change
    return Selection(tuple(chosen), fee, change, waste, target.weight(weight, count, makes_change))


def _fee_difference(target: Target, weight: int) -> int:
    return (target.feerate_sat_per_kw - target.long_term_feerate_sat_per_kw) * weight // 1000


def _goal(target: Target, count: int) -> int:
    """What effective values must come to, less what rounding up each of them may have taken; `finish` is exact. The
    least fee in all is left out: it covers the inputs too, which effective values have paid for already."""
    rounding = fee_for_weight(target.feerate_sat_per_kw, 3) + count
    fee_sat = fee_for_tx(target.feerate_sat_per_kw, target.weight(0, 0, False)) + target.extra_fee_sat
    return target.outputs_sat + fee_sat - rounding


def _branch_and_bound(coins: Sequence[Candidate], target: Target, _: random.Random) -> Selection | None:
    """Depth first over include and exclude, for a sum that hits the target within the cost of change (Erhardt)."""
    if target.min_change_sat:
        return None
    rate = target.feerate_sat_per_kw
    values = [effective_value(coin, rate) for coin in coins]
    goal = _goal(target, len(coins))
    cost_of_change = fee_for_weight(rate, target.change_weight) + target.least_change_sat
    remaining = [0] * (len(values) + 1)
    for place in range(len(values) - 1, -1, -1):
        remaining[place] = remaining[place + 1] + values[place]
    if remaining[0] < goal:
        return None
    best: Selection | None = None
    picked: list[int] = []
    total = place = 0
    for _try in range(_BRANCH_AND_BOUND_TRIES):
        backtrack = False
        if total + remaining[place] < goal or total > goal + cost_of_change:
            backtrack = True
        elif total >= goal:
            selection = finish([coins[i] for i in picked], target, allow_change=False)
            if selection is not None and (best is None or selection.waste_sat < best.waste_sat):
                best = selection
            backtrack = selection is not None
        backtrack = backtrack or place == len(values)
        if backtrack:
            if not picked:
                break
            place = picked.pop()
            total -= values[place]
            place += 1
            # a coin of the same worth as the one just left out leads to the same sums
            while place < len(values) and values[place] == values[place - 1]:
                place += 1
            continue
        picked.append(place)
        total += values[place]
        place += 1
    return best


def _single_random_draw(coins: Sequence[Candidate], target: Target, rng: random.Random) -> Selection | None:
    """Shuffle and take until it suffices; a few draws, the least wasteful."""
    best: Selection | None = None
    for _ in range(_RANDOM_DRAWS):
        order = list(coins)
        rng.shuffle(order)
        selection = _take_until_enough(order, target)
        if selection is not None and (best is None or selection.waste_sat < best.waste_sat):
            best = selection
    return best


def _largest_first(coins: Sequence[Candidate], target: Target, _: random.Random) -> Selection | None:
    """The fewest coins, or rather the smallest single coin that suffices, if there is one."""
    few = _take_until_enough(coins, target)
    if few is None or len(few.chosen) > 1:
        return few
    single = few
    for coin in coins[1:]:
        smaller = finish([coin], target)
        if smaller is None:
            break
        single = smaller
    return single


def _take_until_enough(order: Sequence[Candidate], target: Target) -> Selection | None:
    rate = target.feerate_sat_per_kw
    goal = _goal(target, len(order))
    total = 0
    for count, coin in enumerate(order, 1):
        total += effective_value(coin, rate)
        if total >= goal:
            selection = finish(order[:count], target)
            if selection is not None:
                return selection
    return None


def _compact_size_bytes(n: int) -> int:
    return 1 if n < 0xFD else 3 if n <= 0xFFFF else 5
