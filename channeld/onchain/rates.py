"""What to pay: fee rates that rise as a deadline nears, and budgets that never exceed what is at stake.

Fee rates are satoshi per 1,000 weight units.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from wallet.fees import CREDIBLE_FEERATE_SAT_PER_KW, FEERATE_FLOOR_SAT_PER_KW

FLOOR_PER_KW = FEERATE_FLOOR_SAT_PER_KW
CEILING_PER_KW = CREDIBLE_FEERATE_SAT_PER_KW
"""The wallet's coins are not spent at more: with much at stake the curve of a deadline would otherwise leave all
measure."""
RAMP_BLOCKS = 8
"""So many blocks before a deadline the fee rate begins to rise from the estimate towards the budget."""
LAZY_TARGET_BLOCKS = 144
"""What has no deadline is not in a hurry."""
RACE_TARGET_BLOCKS = 2
"""What the other side may take at any time."""
CONTESTED_PERMILLE = 900
"""At most this share of an output that the other side could get goes to miners, and only at the deadline."""
UNCONTESTED_PERMILLE = 500
"""At most this share of an output that only we can get goes to miners: below, waiting for lower fees is better."""


class Rates(Struct, frozen=True):
    """Estimates of layer 1: (blocks, fee rate), by rising blocks."""

    estimates: tuple[tuple[int, int], ...] = ((1, FLOOR_PER_KW),)

    def within(self, blocks: int) -> int:
        """The fee rate to be mined within so many blocks: the estimate for the longest target that is short enough."""
        rate = self.estimates[0][1]
        for target, estimate in self.estimates:
            if target > blocks:
                break
            rate = estimate
        return max(FLOOR_PER_KW, min(rate, CEILING_PER_KW))


def fee_sat(weight: int, feerate_per_kw: int) -> int:
    """Rounded up."""
    return -(-weight * feerate_per_kw // 1000)


def lazy_feerate(rates: Rates, max_per_kw: int) -> int | None:
    """What to pay for what nobody else can take; None if that is more than `max_per_kw`: then waiting is better."""
    wanted = rates.within(LAZY_TARGET_BLOCKS)
    return wanted if wanted <= max_per_kw else None


def urgent_feerate(rates: Rates, height: int, deadlines: Iterable[int], max_per_kw: int) -> int:
    """What to pay for what the other side may take from one of `deadlines` on, to be mined after the tip `height`."""
    return max(feerate(rates, deadline - height - 2, max_per_kw) for deadline in deadlines)


def feerate(rates: Rates, blocks_left: int, max_per_kw: int) -> int:
    """What to pay with `blocks_left` further blocks after the next one before the other side may take the output.

    The estimate for that time, and in the last RAMP_BLOCKS a curve from there to `max_per_kw`, which is reached when
    the next block is the last. Past the deadline nobody knows how long the other side sleeps: a generous estimate.
    Never more than `max_per_kw`, nor less than the floor.
    """
    if blocks_left < 0:
        wanted = 2 * rates.within(1)
    else:
        base = rates.within(max(1, min(blocks_left, LAZY_TARGET_BLOCKS)))
        used = max(0, RAMP_BLOCKS - blocks_left)
        wanted = base + max(0, max_per_kw - base) * used * used // (RAMP_BLOCKS * RAMP_BLOCKS)
    return max(FLOOR_PER_KW, min(wanted, max_per_kw))


def least_bump(feerate_per_kw: int) -> int:
    """The least fee rate worth replacing a transaction for: a quarter more, and what relaying the replacement costs
    (BIP 125, rule 4)."""
    return max(feerate_per_kw * 5 // 4, feerate_per_kw + FLOOR_PER_KW + 7)
