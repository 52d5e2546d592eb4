"""What to do at a block: which transactions to make of a close's outputs, at what fee rate, and which to replace.

A plan is a value; `build` makes a transaction of it. Outputs that a live attempt covers already are left to it, until
it is worth replacing, or has to be split. Nothing here depends on what was planned before but the attempts themselves,
so that it may be asked again at any time, after a crash as after a reorganisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from channeld.bolt.transactions import fees
from channeld.bolt.transactions.sweep import sweep_weight
from channeld.onchain.outputs import HtlcTx, Output, Sweep
from channeld.onchain.rates import (
    CEILING_PER_KW,
    CONTESTED_PERMILLE,
    FLOOR_PER_KW,
    RACE_TARGET_BLOCKS,
    UNCONTESTED_PERMILLE,
    Rates,
    fee_sat,
    lazy_feerate,
    least_bump,
    urgent_feerate,
)
from wallet.bitcoin import OutPoint, Tx
from wallet.bitcoin.sighash import SIGHASH_ALL

Group = Literal["penalty", "claim", "sweep", "htlc", "presigned", "anchor"]
"""`penalty`: a cheater's outputs. `claim`: HTLCs in the peer's commitment. `sweep`: what nobody else can take.
`htlc`: HTLC transactions with the wallet's inputs (anchors), `presigned`: without. `anchor`: a child that pays for our
commitment."""

SECURITY_DELAY_BLOCKS = 18
"""BOLT 5, "security_delay": from here on penalties go out each by itself."""
OFFERED_DEADLINE_BLOCKS = 12
"""An HTLC of ours has to be back so many blocks after its expiry: its incoming side expires `cltv_expiry_delta` (34)
after it, the channel was closed 3 blocks after it, and its return must be 6 deep before that side is failed."""
PATIENCE_BLOCKS = 6
"""How long a sweep without a deadline is left alone before it is replaced."""
STUCK_BLOCKS = 4
"""A penalty that was not mined for so long may be pinned: it is split."""
MAX_INPUTS = 150
HOME_SCRIPT_BYTES = 34
WALLET_PART_WEIGHT = 450
"""About what a wallet's input and its change add to an HTLC transaction."""


class Attempt(Struct, frozen=True):
    """A transaction of ours that was published and is not yet irrevocable. `reservation` numbers the wallet's coins in
    it (0: none)."""

    txid: bytes
    raw: bytes
    group: Group
    outpoints: tuple[OutPoint, ...]
    fee_sat: int
    weight: int
    height: int
    reservation: int = 0
    problem: str = ""
    """Why layer 1 refused it, if it did."""
    underpaid: bool = False
    """It did because something in the mempool pays more."""
    others: int = 0
    """So many other channels have outputs in it: `outpoints` are only this channel's, `fee_sat` and `weight` are of
    the whole."""
    share_sat: int = 0
    """What of the fee is this channel's, if there are others."""

    @property
    def feerate_per_kw(self) -> int:
        """What it pays."""
        return self.fee_sat * 1000 // self.weight

    @property
    def own_fee_sat(self) -> int:
        """What it costs this channel."""
        return self.share_sat if self.others else self.fee_sat


class Plan(Struct, frozen=True):
    """A transaction to make of `outputs`. It must pay `min_fee_sat` if that is more than the rate gives (replacements),
    and takes the place of `replaces` if there is one. `max_fee_sat` is its budget."""

    group: Group
    outputs: tuple[Output, ...]
    feerate_per_kw: int
    max_fee_sat: int
    min_fee_sat: int = 0
    replaces: bytes = b""
    script_pubkey: bytes = b""
    """Where it pays, if that is decided: a replacement where its predecessor did, a penalty where towers pay, too."""
    alone: bool = False
    """It must not be joined with other channels' plans: that failed."""

    @property
    def outpoints(self) -> tuple[OutPoint, ...]:
        """What it spends, in order."""
        return tuple(output.outpoint for output in self.outputs if output.outpoint is not None)


# --- what an output is worth --------------------------------------------------------------------------------------


def deadline_of(output: Output) -> int | None:
    """The height from which taking the output may be too late for us."""
    if output.settled:
        return None
    if output.htlc is not None and output.htlc.offered and output.kind == "htlc" and not is_penalty(output):
        return output.htlc.cltv_expiry + OFFERED_DEADLINE_BLOCKS
    return output.deadline_height if output.final and not output.is_anchor else None


def budget_sat(output: Output) -> int:
    """The most that may be paid for taking it: never all that is at stake."""
    contested = deadline_of(output) is not None or is_penalty(output)
    return output.amount_sat * (CONTESTED_PERMILLE if contested else UNCONTESTED_PERMILLE) // 1000


def claim_weight(output: Output) -> int:
    """What taking it adds to a transaction."""
    match output.claim:
        case Sweep(spend=spend):
            return spend.input_weight
        case HtlcTx(output=htlc_output):
            offered = htlc_output.offered_by_owner
            return fees.HTLC_TIMEOUT_WEIGHT_ANCHORS if offered else fees.HTLC_SUCCESS_WEIGHT_ANCHORS
        case _:
            return 0


def is_economic(output: Output, feerate_per_kw: int) -> bool:
    """Whether taking it is worth the fee that it alone adds."""
    if isinstance(output.claim, HtlcTx) and not is_combinable(output):
        return True  # its fee is inside
    return fee_sat(claim_weight(output), feerate_per_kw) <= budget_sat(output)


def is_hopeless(output: Output) -> bool:
    """Whether no fee rate that is relayed would make it worth taking alone."""
    match output.claim:
        case Sweep(spend=spend):
            fee = fee_sat(sweep_weight([spend], bytes(HOME_SCRIPT_BYTES)), FLOOR_PER_KW)
            return fee > budget_sat(output) or output.amount_sat - fee < fees.DUST_P2WSH_SAT
        case HtlcTx():
            weight = claim_weight(output) + WALLET_PART_WEIGHT
            return is_combinable(output) and fee_sat(weight, FLOOR_PER_KW) > budget_sat(output)
        case _:
            return False


def is_combinable(output: Output) -> bool:
    """Whether an HTLC transaction can and must be given more inputs: with `option_anchors`."""
    return isinstance(output.claim, HtlcTx) and output.claim.output.context.sighash_type != SIGHASH_ALL


def is_penalty(output: Output) -> bool:
    """Whether it is a cheater's, and ours by the revocation key."""
    return isinstance(output.claim, Sweep) and output.claim.penalty


def _is_lost_with_the_race(output: Output) -> bool:
    """Whether it is gone if the other side is faster: a cheater's, and an HTLC whose preimage we have. One that we
    offered is not: whoever takes that shows the preimage, which settles the incoming side."""
    return is_penalty(output) or (output.kind == "htlc" and output.htlc is not None and not output.htlc.offered)


# --- plans --------------------------------------------------------------------------------------------------------


def plans(outputs: Sequence[Output], attempts: Sequence[Attempt], rates: Rates, height: int) -> list[Plan]:
    """What to make now, at the tip `height`: for outputs that no live attempt covers, and to replace attempts."""
    live = [attempt for attempt in attempts if is_live(attempt, outputs)]
    found = [plan for attempt in live for plan in _replacements(attempt, outputs, rates, height)]
    covered = {outpoint for attempt in live for outpoint in attempt.outpoints}
    found += fresh(outputs, covered, rates, height)
    return found


def is_live(attempt: Attempt, outputs: Iterable[Output]) -> bool:
    """Whether the attempt may still confirm: all outputs that it claims exist, and nothing spent them."""
    unspent = {output.outpoint for output in outputs if output.spent is None}
    return all(outpoint in unspent for outpoint in attempt.outpoints)


def fresh(outputs: Sequence[Output], covered: set[OutPoint], rates: Rates, height: int) -> Iterator[Plan]:
    """Plans for what can be taken in the next block and is in no attempt, the most urgent first: the wallet may not
    have coins for all of them."""
    ready = [output for output in outputs if _is_ready(output, height) and output.outpoint not in covered]
    anchors = [output for output in ready if output.is_anchor]
    groups: dict[tuple[Group, Apart], list[Output]] = {}
    for output in ready:
        if not output.is_anchor:
            groups.setdefault(_group_of(output, height), []).append(output)
    for (group, _), members in sorted(groups.items(), key=lambda item: _urgency(item[1])):
        for start in range(0, len(members), MAX_INPUTS):
            batch = members[start : start + MAX_INPUTS]
            if group == "sweep":
                batch += anchors
                anchors = []
            plan = make_plan(group, batch, rates, height)
            if plan is not None:
                yield plan


def _urgency(outputs: Iterable[Output]) -> float:
    """The height from which on one of them may be lost."""
    return min((deadline for output in outputs if (deadline := deadline_of(output)) is not None), default=math.inf)


def _is_ready(output: Output, height: int) -> bool:
    return output.claimable and output.mature_height is not None and output.mature_height <= height + 1


Apart = OutPoint | int | None
"""Outputs with different ones must not be in one transaction."""


def _group_of(output: Output, height: int) -> tuple[Group, Apart]:
    if isinstance(output.claim, HtlcTx):
        if not is_combinable(output):
            return "presigned", output.outpoint
        # Locktimes must be equal: the peer has signed them. Success and timeout have different adversaries, too.
        return "htlc", output.outpoint if output.settled else output.claim.output.htlc_tx_locktime
    alone = output.outpoint if output.settled or _must_be_alone(output, height) else None
    if is_penalty(output):
        return "penalty", alone
    return ("claim" if output.kind == "htlc" else "sweep"), alone


def _must_be_alone(output: Output, height: int) -> bool:
    """BOLT 5, "if confirmation doesn't happen before reaching `security_delay` blocks from expiry: SHOULD *resolve*
    revoked outputs in their own, separate penalty transactions"."""
    deadline = output.deadline_height if output.final and not output.is_anchor else None
    return deadline is not None and deadline - height <= SECURITY_DELAY_BLOCKS


def make_plan(group: Group, outputs: Sequence[Output], rates: Rates, height: int) -> Plan | None:
    """One transaction for `outputs`, less those that are not worth it at its fee rate; None if none is."""
    if group == "presigned":
        return Plan(group, tuple(outputs), 0, 0)
    members = list(outputs)
    while any(not output.is_anchor for output in members):
        rate = wanted_feerate(group, members, rates, height)
        if rate is None:
            # Some may be worth it where all together are not: the least first to go.
            members.remove(min(members, key=lambda output: output.amount_sat))
            continue
        worth = [output for output in members if is_economic(output, rate)]
        if len(worth) == len(members):
            most = max_fee_sat(group, members)
            return Plan(group, tuple(members), rate, most) if _fee_of(group, members, rate) <= most else None
        members = worth
    return None


def wanted_feerate(group: Group, outputs: Sequence[Output], rates: Rates, height: int) -> int | None:
    """For a transaction that takes all `outputs`, within the budget of all; None if it should wait for lower fees."""
    max_per_kw = max_fee_sat(group, outputs) * 1000 // plan_weight(group, outputs)
    if group == "htlc":
        max_per_kw = min(max_per_kw, CEILING_PER_KW)
    deadlines = {deadline for output in outputs if (deadline := deadline_of(output)) is not None}
    race = min(rates.within(RACE_TARGET_BLOCKS), max_per_kw) if group == "penalty" else 0
    if deadlines:
        return max(race, urgent_feerate(rates, height, deadlines, max_per_kw))
    return race or lazy_feerate(rates, max_per_kw)


def plan_weight(group: Group, outputs: Sequence[Output]) -> int:
    """About what the transaction weighs."""
    if group == "htlc":
        return sum(claim_weight(output) for output in outputs) + WALLET_PART_WEIGHT
    spends = [output.claim.spend for output in outputs if isinstance(output.claim, Sweep)]
    return sweep_weight(spends, bytes(HOME_SCRIPT_BYTES))


def max_fee_sat(group: Group, outputs: Sequence[Output]) -> int:
    """The budget of all; what pays for itself must leave an output that is relayed, too."""
    budget = sum(budget_sat(output) for output in outputs)
    if group == "htlc":
        return budget
    return max(0, min(budget, sum(output.amount_sat for output in outputs) - fees.DUST_P2WSH_SAT))


def _fee_of(group: Group, outputs: Sequence[Output], rate: int) -> int:
    return fee_sat(plan_weight(group, outputs), rate)


# --- replacing ----------------------------------------------------------------------------------------------------


def _replacements(attempt: Attempt, outputs: Sequence[Output], rates: Rates, height: int) -> Iterator[Plan]:
    """What should take the place of an attempt that was not mined, if anything."""
    if attempt.group in ("presigned", "anchor"):
        return
    by_outpoint = {output.outpoint: output for output in outputs}
    members = [by_outpoint[outpoint] for outpoint in attempt.outpoints]
    if attempt.others:
        yield from _shared_replacement(attempt, members, rates, height)
        return
    script = Tx.parse(attempt.raw).outputs[0].script_pubkey if attempt.group != "htlc" else b""
    unhindered = [output for output in members if not (output.is_anchor or output.settled)]
    if attempt.problem and attempt.group in ("sweep", "htlc") and 0 < len(unhindered) < len(members):
        # Strangers may take old anchors, the peer what it has the preimage of: nothing else may wait for that.
        plan = make_plan(attempt.group, unhindered, rates, height)
        if plan is not None:
            yield replace(plan, replaces=attempt.txid, script_pubkey=script)
        return
    if attempt.group == "htlc" and attempt.problem and not attempt.underpaid and height > attempt.height:
        # Its coin may be gone: a reorganisation took it away, or what once was to spend it was mined after all.
        plan = make_plan(attempt.group, members, rates, height)
        if plan is not None:
            yield replace(plan, replaces=attempt.txid)
        return
    outbid = attempt.underpaid and any(_is_lost_with_the_race(output) for output in members)
    if height <= attempt.height and not outbid:
        return
    if len(members) > 1 and _should_split(attempt, members, height):
        yield from _split(attempt, members, rates, height, script)
        return
    urgent = attempt.group == "penalty" or any(deadline_of(output) is not None for output in members)
    if not urgent and height < attempt.height + PATIENCE_BLOCKS:
        return
    most = max_fee_sat(attempt.group, members)
    least = least_bump(attempt.feerate_per_kw)
    if outbid:
        least = _outbidding_feerate(attempt, most * 1000 // plan_weight(attempt.group, members))
    rate = wanted_feerate(attempt.group, members, rates, height) or 0
    past = [d for output in members if (d := deadline_of(output)) is not None and d <= height + 1]
    if rate < least and not past and not outbid:
        return
    rate = max(rate, least)
    min_fee = attempt.fee_sat + _fee_of(attempt.group, members, FLOOR_PER_KW)
    if max(min_fee, _fee_of(attempt.group, members, rate)) <= most:
        yield Plan(attempt.group, tuple(members), rate, most, min_fee, attempt.txid, script)


def _shared_replacement(attempt: Attempt, members: Sequence[Output], rates: Rates, height: int) -> Iterator[Plan]:
    """What should take the place of a transaction that has other channels' outputs, too: a better one for those who
    want it, or, as soon as layer 1 refuses it and more money does not help, one for this channel alone. Nobody waits
    for what another channel's output has run into. Anchors stay behind then: they are what strangers may take."""
    most = max_fee_sat(attempt.group, members)
    rate = wanted_feerate(attempt.group, members, rates, height) or 0
    better = rate >= least_bump(attempt.feerate_per_kw) and _fee_of(attempt.group, members, rate) <= most
    waited = not attempt.problem and height >= attempt.height + PATIENCE_BLOCKS
    if better and (waited or attempt.underpaid):
        script = Tx.parse(attempt.raw).outputs[0].script_pubkey
        yield Plan(attempt.group, tuple(members), rate, most, 0, attempt.txid, script)
    elif attempt.problem:
        plan = make_plan(attempt.group, [output for output in members if not output.is_anchor], rates, height)
        if plan is not None:
            yield replace(plan, replaces=attempt.txid, alone=True)


def _outbidding_feerate(attempt: Attempt, max_per_kw: int) -> int:
    """After layer 1 refused an attempt because a rival pays more, at once: twice as much, so that a few tries find out
    what it takes, and in the end all that it is worth."""
    twice = 2 * attempt.feerate_per_kw
    return min(twice, max_per_kw) if max_per_kw >= least_bump(attempt.feerate_per_kw) else twice


def _should_split(attempt: Attempt, members: Sequence[Output], height: int) -> bool:
    if attempt.group not in ("penalty", "claim"):
        return False
    stuck = bool(attempt.problem) or height >= attempt.height + STUCK_BLOCKS
    return stuck or any(_must_be_alone(output, height) for output in members)


def _split(attempt: Attempt, members: Sequence[Output], rates: Rates, height: int, script: bytes) -> Iterator[Plan]:
    """Each output by itself. The one that holds most goes first and pays for evicting the attempt (BIP 125, rule 3)."""
    min_fee = attempt.fee_sat
    for output in sorted(members, key=lambda output: -output.amount_sat):
        plan = make_plan(attempt.group, [output], rates, height)
        if plan is None:
            continue
        least = min_fee + fee_sat(plan_weight(attempt.group, [output]), FLOOR_PER_KW) if min_fee else 0
        if least > plan.max_fee_sat:
            least = 0
        yield Plan(plan.group, plan.outputs, plan.feerate_per_kw, plan.max_fee_sat, least, attempt.txid, script)
        min_fee = 0
