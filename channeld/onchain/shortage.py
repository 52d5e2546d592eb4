"""What to do when the wallet has no coin for an HTLC transaction: go along in one that is out already, or take the coin
of what is not needed any more, or of what holds less and gets nowhere.

HTLC transactions are signed by the peer with SIGHASH_SINGLE | SIGHASH_ANYONECANPAY (BOLT 3), so that several can be in
one transaction, with one coin for the fee. What can be taken at the same block goes together from the start; what comes
later (a preimage, say) has a transaction of its own as long as there are coins for that: each change costs a
replacement, and what the peer contests must not hold up the rest. Locktimes must be equal, for the signatures commit to
them: HTLC-timeouts of different expiries always need a coin each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from channeld.onchain.anchor import urgent_stake_sat
from channeld.onchain.known import Known
from channeld.onchain.outputs import HtlcTx, Output
from channeld.onchain.plans import (
    MAX_INPUTS,
    STUCK_BLOCKS,
    Attempt,
    Plan,
    deadline_of,
    is_live,
    max_fee_sat,
    plan_weight,
    wanted_feerate,
)
from channeld.onchain.rates import FLOOR_PER_KW, Rates, fee_sat, least_bump


def is_idle_child(attempt: Attempt, outputs: Sequence[Output]) -> bool:
    """Whether it is the child of a commitment that was mined without it, or cannot be any more: nobody needs it, unless
    a reorganisation brings back what it is for. `outputs`: those of what closed the channel."""
    if attempt.group != "anchor":
        return False
    by_outpoint = {output.outpoint: output for output in outputs}
    found = [by_outpoint.get(outpoint) for outpoint in attempt.outpoints]
    return all(output is None or output.spent is None for output in found)


def with_coins_in_use(
    plan: Plan, attempts: Sequence[Attempt], outputs: Sequence[Output], rates: Rates, height: int
) -> list[Plan]:
    """In place of a plan for HTLC transactions that the wallet has no coin for: plans that take its outputs with the
    coin of an attempt, which they replace. First what gives up nothing, then what gives up least; the cheapest first.
    """
    if plan.group != "htlc" or plan.replaces:
        return []
    by_outpoint = {output.outpoint: output for output in outputs}
    found: list[tuple[int, Plan]] = []
    for attempt in attempts:
        if is_idle_child(attempt, outputs):
            ways = [(0, plan.outputs)]
        elif attempt.group == "htlc" and is_live(attempt, outputs):
            ways = list(_ways(plan, attempt, [by_outpoint[outpoint] for outpoint in attempt.outpoints], height))
        else:
            continue
        for given_up_sat, members in ways:
            instead = _in_place_of(attempt, members, rates, height)
            if instead is not None:
                found.append((given_up_sat, instead))
    return [instead for _, instead in sorted(found, key=lambda item: (item[0], item[1].min_fee_sat))]


def urgent_of(plan: Plan, known: Known) -> int:
    """What may be lost if a plan that needs the wallet's coins comes late, satoshi: a commitment's HTLCs, or those that
    it takes."""
    if plan.group == "anchor":
        return urgent_stake_sat(known)
    return _stake_sat([output for output in plan.outputs if deadline_of(output) is not None])


def instead_of_child(plan: Plan, child: Attempt) -> Plan | None:
    """The plan, so that it can take the place of another channel's `child`, whose coin it spends (BIP 125); None if
    that costs more than it may."""
    rate = max(plan.feerate_per_kw, least_bump(child.feerate_per_kw)) if plan.group == "htlc" else plan.feerate_per_kw
    least_sat = max(plan.min_fee_sat, child.fee_sat + fee_sat(child.weight, FLOOR_PER_KW))
    own_sat = fee_sat(plan_weight("htlc", plan.outputs), rate) if plan.group == "htlc" else 0
    if max(least_sat, own_sat) > plan.max_fee_sat:
        return None
    return replace(plan, feerate_per_kw=rate, min_fee_sat=least_sat)


def _ways(
    plan: Plan, attempt: Attempt, covered: Sequence[Output], height: int
) -> Iterator[tuple[int, tuple[Output, ...]]]:
    """(what is given up, what a transaction in the attempt's place would take): both together, or only the plan's if
    that is more and the attempt gets nowhere."""
    together = (*covered, *plan.outputs)
    if not attempt.problem and _may_go_together(together, height):
        yield 0, together
    less, more = _stake_sat(covered), _stake_sat(plan.outputs)
    gets_nowhere = bool(attempt.problem) or height >= attempt.height + STUCK_BLOCKS
    if less < more and (gets_nowhere or _is_late(plan.outputs, height)):
        yield less, plan.outputs


def _stake_sat(outputs: Sequence[Output]) -> int:
    return sum(output.amount_sat for output in outputs if not output.settled)


def _is_late(outputs: Sequence[Output], height: int) -> bool:
    deadlines = [deadline for output in outputs if (deadline := deadline_of(output)) is not None]
    return min(deadlines, default=math.inf) <= height + STUCK_BLOCKS


def _may_go_together(members: Sequence[Output], height: int) -> bool:
    """Not with what the peer may take in the next block by right of its own: whoever pins that pins all."""
    locktimes = {o.claim.output.htlc_tx_locktime for o in members if isinstance(o.claim, HtlcTx)}
    contested = any(o.settled or (o.deadline_height is not None and o.deadline_height <= height + 1) for o in members)
    return len(locktimes) == 1 and not contested and len(members) <= MAX_INPUTS


def _in_place_of(attempt: Attempt, members: tuple[Output, ...], rates: Rates, height: int) -> Plan | None:
    """None if that would cost more than the outputs allow. BIP 125: it pays for what it evicts, and for its relay."""
    weight, most = plan_weight("htlc", members), max_fee_sat("htlc", members)
    rate = max(wanted_feerate("htlc", members, rates, height) or 0, least_bump(attempt.feerate_per_kw))
    least_sat = attempt.fee_sat + fee_sat(weight, FLOOR_PER_KW)
    if max(least_sat, fee_sat(weight, rate)) > most:
        return None
    return Plan("htlc", members, rate, most, least_sat, attempt.txid)
