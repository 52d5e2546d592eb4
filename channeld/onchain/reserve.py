"""How many coins the wallet should keep for the fees of channels that have to be closed in a hurry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from channeld.bolt.transactions import fees
from channeld.channel.commitments import Spec
from channeld.channel.economics import CHILD_WEIGHT, WALLET_PART_WEIGHT
from channeld.channel.state import Closing, Funded, State
from channeld.onchain.rates import UNCONTESTED_PERMILLE, Rates, fee_sat

HURRY_BLOCKS = 3
LEAST_SAT = 1_000
"""Less than this in one coin is of no use."""


def reserve_sat(states: Iterable[State], rates: Rates) -> int:
    """For all channels with `option_anchors`, whose commitments and HTLC transactions pay next to nothing by
    themselves: to lift each commitment, and every HTLC transaction on it, to what a block in a hurry costs now, but
    never more than would be paid for what it brings. Otherwise whoever opens channels to us could have the wallet keep
    back as much as he likes."""
    rate = rates.within(HURRY_BLOCKS)
    needed = sum(_for_channel(s.commitments.local.spec, rate) for s in states if _may_need_it(s))
    return max(LEAST_SAT, needed) if needed else 0


def _may_need_it(state: State) -> TypeGuard[Funded]:
    if not isinstance(state, Funded) or not state.params.anchors or state.is_unseen:
        return False
    return not (isinstance(state, Closing) and state.kind == "mutual" and state.confirmed_height is not None)


def _for_channel(spec: Spec, rate: int) -> int:
    weight = fees.commit_tx_weight(len(spec.htlcs), True)
    lift = max(0, fee_sat(weight + CHILD_WEIGHT, rate) - fees.weight_fee_sat(weight, spec.feerate_per_kw))
    stake_sat = (spec.to_local_msat + sum(htlc.amount_msat for htlc in spec.htlcs.values())) // 1000
    each = fee_sat(fees.HTLC_SUCCESS_WEIGHT_ANCHORS + WALLET_PART_WEIGHT, rate)
    # What an HTLC transaction may cost never exceeds what it brings.
    return min(lift, stake_sat * UNCONTESTED_PERMILLE // 1000) + sum(
        min(each, htlc.amount_msat // 1000) for htlc in spec.htlcs.values()
    )
