"""A breach under way: what became of each output, and which transactions to publish now. Pure functions.

All is derived from the blob, the breach transaction, the confirmed transactions that spend what came of it, and our own
attempts; after a reorganisation it is derived again from what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec import Struct, structs

from wallet.bitcoin.script import p2wsh
from wallet.bitcoin.tx import SEQUENCE_RBF, OutPoint, Tx
from wallet.fees import (
    CREDIBLE_FEERATE_SAT_PER_KW,
    INCREMENTAL_RELAY_SAT_PER_KVB,
    fee_for_weight,
    replacement_fee_sat,
    weight_to_vsize,
)
from watchtower.appointment import MAX_FEE_PERMILLE
from watchtower.justice import Bundle, InvalidJustice, Justice, Penalty, own_tx, rung_tx, weight_of

IRREVOCABLE_DEPTH = 100
"""Confirmations after which a spend is final."""
GIVE_UP_BLOCKS = 4_032
"""After so many blocks what is still open is not worth its fee."""
RAMP_BLOCKS = 12
"""So many blocks before the cheater may take something the fee begins to rise towards the budget."""
PERMILLE = 1000

OutputState = Literal["open", "saved", "client", "second stage", "lost", "uneconomic"]


class Spend(Struct, frozen=True):
    """A transaction in the chain that spends something of a breach."""

    txid: bytes
    height: int
    raw: bytes


class Attempt(Struct, frozen=True):
    """A justice transaction that was published, or refused (`problem`); `underpaid`: for what it pays."""

    txid: bytes
    raw: bytes
    outpoints: tuple[OutPoint, ...]
    feerate_per_kw: int
    fee_sat: int
    height: int
    problem: str = ""
    underpaid: bool = False


class Breach(Struct, frozen=True):
    """`height` is None while a reorganisation keeps the breach transaction out of the chain."""

    breach_id: int
    session_key: int
    txid: bytes
    raw: bytes
    justice: Justice
    height: int | None
    seen_seconds: float
    spends: tuple[Spend, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    resolved: bool = False


class Target(Struct, frozen=True):
    """An output that the tower is after, in the breach transaction or in the cheater's transaction on top of it.
    `deadline_height` is that of the first block in which the cheater may spend it for good (None: at any time)."""

    outpoint: OutPoint
    penalty: Penalty
    place: int | None
    deadline_height: int | None
    state: OutputState
    spent: Spend | None = None


class Planned(Struct, frozen=True):
    """A transaction to publish."""

    tx: Tx
    outpoints: tuple[OutPoint, ...]
    feerate_per_kw: int
    fee_sat: int


# --- what became of it --------------------------------------------------------------------------------------------


def targets(breach: Breach) -> list[Target]:
    """All outputs, first those of the breach transaction."""
    spenders = _spenders(breach.spends)
    found = []
    for place, penalty in enumerate(breach.justice.outputs):
        outpoint = OutPoint(breach.txid, penalty.vout)
        deadline = None
        if penalty.kind == "to_local" and breach.height is not None:
            deadline = breach.height + breach.justice.to_self_delay_blocks
        found.append(_target(breach.justice, outpoint, penalty, place, deadline, spenders))
    second = [second_stage(breach.justice, target, spenders) for target in found if target.state == "second stage"]
    return found + [target for target in second if target is not None]


def _spenders(spends: Iterable[Spend]) -> dict[OutPoint, tuple[Spend, Tx, int]]:
    found = {}
    for spend in spends:
        tx = Tx.parse(spend.raw)
        for index, txin in enumerate(tx.inputs):
            found[txin.outpoint] = (spend, tx, index)
    return found


def _target(
    justice: Justice,
    outpoint: OutPoint,
    penalty: Penalty,
    place: int | None,
    deadline: int | None,
    spenders: dict[OutPoint, tuple[Spend, Tx, int]],
) -> Target:
    taken = spenders.get(outpoint)
    if taken is None:
        return Target(outpoint, penalty, place, deadline, "open")
    spend, tx, index = taken
    return Target(outpoint, penalty, place, deadline, _taken_state(justice, penalty, tx, index), spend)


def _taken_state(justice: Justice, penalty: Penalty, tx: Tx, index: int) -> OutputState:
    if penalty.kind == "to_remote" or penalty.is_taken_by(tx.inputs[index].witness):
        # With the client's own keys: by a tower's transaction, or by the client itself.
        is_swept = any(output.script_pubkey == justice.sweep_script for output in tx.outputs)
        return "saved" if is_swept else "client"
    if penalty.kind != "htlc":
        return "lost"
    if index < len(tx.outputs) and _is_delayed(tx.inputs[index].witness):
        return "second stage"
    return "client"  # the cheater has no other way to spend it than its HTLC transaction


def _is_delayed(witness: Sequence[bytes]) -> bool:
    """An HTLC transaction's witness: `0 <sig> <sig> <preimage or empty> <script>` (BOLT 3)."""
    return len(witness) == 5 and witness[0] == b""


def second_stage(justice: Justice, first: Target, spenders: dict[OutPoint, tuple[Spend, Tx, int]]) -> Target | None:
    """What came of an HTLC that the cheater took by its HTLC transaction: output i belongs to input i. None in blind
    mode: then the tower has no key for it."""
    spend, tx, index = spenders[first.outpoint]
    output = tx.outputs[index]
    if not justice.is_own or output.script_pubkey != p2wsh(justice.second_stage_script):
        return None
    penalty = Penalty("htlc_tx", index, output.value_sat, justice.second_stage_script, (b"\x01",), SEQUENCE_RBF)
    deadline = spend.height + justice.to_self_delay_blocks
    return _target(justice, OutPoint(spend.txid, index), penalty, None, deadline, spenders)


def watched_outpoints(breach: Breach) -> list[OutPoint]:
    """Whose spending must be seen: also what is spent already, because a reorganisation may change by whom."""
    return [target.outpoint for target in targets(breach)]


def with_spend(breach: Breach, spend: Spend) -> Breach:
    """A transaction was seen in a block."""
    rest = tuple(known for known in breach.spends if known.txid != spend.txid)
    return structs.replace(breach, spends=(*rest, spend))


def without_blocks_from(breach: Breach, height: int) -> Breach:
    """Blocks from `height` on left the chain."""
    kept = tuple(spend for spend in breach.spends if spend.height < height)
    confirmed = breach.height if breach.height is not None and breach.height < height else None
    if (kept, confirmed) == (breach.spends, breach.height):
        return breach
    return structs.replace(breach, spends=kept, height=confirmed, resolved=False)


def is_resolved(breach: Breach, height: int) -> bool:
    """Whether nothing is left to do or to fear at the tip `height`."""
    if breach.height is None or height - breach.height + 1 < IRREVOCABLE_DEPTH:
        return False
    if any(height - spend.height + 1 < IRREVOCABLE_DEPTH for spend in breach.spends):
        return False
    still_open = any(target.state == "open" for target in targets(breach))
    return not still_open or height - breach.height > max(GIVE_UP_BLOCKS, 2 * breach.justice.to_self_delay_blocks)


def in_turn(found: Iterable[Breach]) -> list[Breach]:
    """The order in which they are seen to: of each transaction one after the other, and what holds most first. Any
    number of sessions may have a blob for the same transaction; only who makes many transactions, and pays for them,
    can keep the others waiting."""
    ordered = sorted(found, key=lambda breach: -sum(penalty.amount_sat for penalty in breach.justice.outputs))
    turns: Counter[bytes] = Counter()
    numbered = []
    for breach in ordered:
        numbered.append((turns[breach.txid], breach))
        turns[breach.txid] += 1
    return [breach for _, breach in sorted(numbered, key=lambda entry: entry[0])]


def confirmed_height(breach: Breach, txid: bytes) -> int | None:
    """Of one of our attempts."""
    return next((spend.height for spend in breach.spends if spend.txid == txid), None)


# --- what to do ---------------------------------------------------------------------------------------------------


NOTHING: frozenset[OutPoint] = frozenset()


def live_attempts(breach: Breach, found: Sequence[Target], left: frozenset[OutPoint] = NOTHING) -> list[Attempt]:
    """Attempts that can still confirm, for each set of outputs the last one; without those that take what is `left` to
    others."""
    open_ = {target.outpoint for target in found if target.state == "open"} - left
    latest: dict[tuple[OutPoint, ...], Attempt] = {}
    for attempt in breach.attempts:
        if not attempt.problem and open_.issuperset(attempt.outpoints):
            latest[attempt.outpoints] = attempt
    return list(latest.values())


def plan(breach: Breach, height: int, race_feerate_per_kw: int, left: frozenset[OutPoint] = NOTHING) -> list[Planned]:
    """What to publish at the tip `height`, besides the live attempts as they are. `race_feerate_per_kw` is the estimate
    for the next two blocks; what is `left` to others (`allies`) is not touched."""
    if breach.height is None:
        return []
    found = targets(breach)
    open_ = {t.outpoint: t for t in found if t.state == "open" and t.outpoint not in left}
    live = live_attempts(breach, found, left)
    raised = (_raise(breach, attempt, open_, height, race_feerate_per_kw) for attempt in live)
    planned = [made for made in raised if made is not None]
    taken = {outpoint for attempt in live for outpoint in attempt.outpoints}
    free = [target for target in open_.values() if target.outpoint not in taken]
    raced = any(target.state == "second stage" for target in found)
    for pack in _packs(breach, free, race_feerate_per_kw, raced):
        if taken.isdisjoint(pack.outpoints):
            made = _make(breach, pack, height, race_feerate_per_kw)
            if made is not None:
                planned.append(made)
                taken.update(pack.outpoints)
    return planned


class _Pack(Struct, frozen=True):
    """Outputs to take by one transaction: `bundle` if it is signed already, else with the key."""

    targets: tuple[Target, ...]
    bundle: Bundle | None = None

    @property
    def outpoints(self) -> tuple[OutPoint, ...]:
        """In the transaction's order."""
        return tuple(target.outpoint for target in self.targets)


def _packs(breach: Breach, free: Sequence[Target], feerate_per_kw: int, raced: bool) -> Iterator[_Pack]:
    """Ways to take outputs that are in no live attempt: as few transactions as possible, after a refusal the parts.

    `raced`: the cheater has taken an HTLC. With another in each block it would void a transaction for all again and
    again, until its delay is over, so what it cannot take yet goes by itself.
    """
    refused = {attempt.outpoints for attempt in breach.attempts if attempt.problem}
    if breach.justice.is_own:
        whole = [target for target in free if target.penalty.kind != "to_remote"]
        mine = [target for target in whole if _pays(target, feerate_per_kw)]
        safe = [target for target in mine if target.deadline_height is not None]
        # What would be lost for good is tried with all that it is worth where that is less than the estimate.
        poor = [target for target in whole if target not in mine and target.deadline_height is not None]
        contested = [target for target in mine if target.deadline_height is None]
        together = (safe, contested) if raced else (mine, safe)
        for members in (*together, *([target] for target in (*mine, *poor))):
            pack = _Pack(tuple(members))
            if len(members) == 1 or (members and pack.outpoints not in refused):
                yield pack
    by_place = {target.place: target for target in free if target.place is not None}
    for bundle in sorted(breach.justice.bundles, key=lambda bundle: -len(bundle.places)):
        if all(place in by_place for place in bundle.places):
            pack = _Pack(tuple(by_place[place] for place in bundle.places), bundle)
            if pack.outpoints not in refused or not _has_parts(breach.justice, bundle):
                yield pack


def _has_parts(justice: Justice, bundle: Bundle) -> bool:
    """Whether other transactions that were signed beforehand take less of the same."""
    return any(other.rungs and set(other.places) < set(bundle.places) for other in justice.bundles)


def _pays(target: Target, feerate_per_kw: int) -> bool:
    """Whether an output is worth its input."""
    fee_sat = fee_for_weight(feerate_per_kw, target.penalty.input_weight)
    return fee_sat * PERMILLE <= target.penalty.amount_sat * MAX_FEE_PERMILLE


def _raise(
    breach: Breach, attempt: Attempt, open_: dict[OutPoint, Target], height: int, race_feerate_per_kw: int
) -> Planned | None:
    """What should take the place of an attempt that was not mined: at least a quarter more."""
    members = tuple(open_[outpoint] for outpoint in attempt.outpoints)
    places = tuple(target.place for target in members)
    bundle = next((bundle for bundle in breach.justice.bundles if bundle.places == places), None)
    return _make(breach, _Pack(members, bundle), height, race_feerate_per_kw, attempt)


def _make(
    breach: Breach, pack: _Pack, height: int, race_feerate_per_kw: int, before: Attempt | None = None
) -> Planned | None:
    penalties = [target.penalty for target in pack.targets]
    budget_sat = sum(penalty.amount_sat for penalty in penalties) * MAX_FEE_PERMILLE // PERMILLE
    weight = weight_of(penalties, [breach.justice.sweep_script, *_reward(breach.justice)])
    highest = budget_sat * PERMILLE // (4 * weight_to_vsize(weight))  # fees are for whole virtual bytes
    wanted = wanted_feerate(pack.targets, height, race_feerate_per_kw, highest)
    refused = [attempt for attempt in breach.attempts if attempt.problem and attempt.outpoints == pack.outpoints]
    if refused:
        wanted = max(wanted, _after_refusal(max(refused, key=lambda a: a.feerate_per_kw), pack, highest))
    least_sat = 0
    if before is not None:
        if wanted * 4 < before.feerate_per_kw * 5:
            return None
        vsize = weight_to_vsize(weight)
        least_sat = replacement_fee_sat(before.fee_sat, vsize, INCREMENTAL_RELAY_SAT_PER_KVB)
    if pack.bundle is not None:
        return _from_ladder(breach, pack, pack.bundle, wanted, least_sat)
    made = own_tx(breach.justice, pack.outpoints, penalties, wanted, least_sat)
    if made is None or made[1].fee_sat > budget_sat:
        return None
    tx, split = made
    return Planned(tx, pack.outpoints, split.fee_sat * PERMILLE // split.weight, split.fee_sat)


def _after_refusal(refused: Attempt, pack: _Pack, highest_per_kw: int) -> int:
    """A fee rate (per 1,000 weight units) with a better chance. Where the reason was what it pays, twice as much, so
    that a few tries find out what a rival in the mempool takes to be outbid, or the next rung of the ladder."""
    if not refused.underpaid:
        return min(highest_per_kw, refused.feerate_per_kw * 5 // 4)
    if pack.bundle is not None:
        return refused.feerate_per_kw + 1
    return min(highest_per_kw, 2 * refused.feerate_per_kw)


def _reward(justice: Justice) -> list[bytes]:
    return [justice.reward_script] if justice.reward_script and justice.reward_permille else []


def _from_ladder(breach: Breach, pack: _Pack, bundle: Bundle, wanted_per_kw: int, least_fee_sat: int) -> Planned | None:
    """The first rung that is high enough, else the highest that there is, if it replaces what was there before."""
    chosen: Planned | None = None
    total_sat = sum(target.penalty.amount_sat for target in pack.targets)
    for rung in bundle.rungs:
        fee_sat = total_sat - rung.client_sat - rung.reward_sat
        if fee_sat < least_fee_sat:
            continue
        try:
            tx = rung_tx(breach.justice, breach.txid, bundle, rung)
        except InvalidJustice:
            continue
        chosen = Planned(tx, pack.outpoints, rung.feerate_per_kw, fee_sat)
        if rung.feerate_per_kw >= wanted_per_kw:
            break
    return chosen


def wanted_feerate(pack: Sequence[Target], height: int, race_feerate_per_kw: int, highest_per_kw: int) -> int:
    """The estimate for the next blocks, and towards a deadline a curve up to the budget, which is reached when the next
    block is the last in which the cheater cannot yet take the output. Never more than the budget."""
    race_feerate_per_kw = min(race_feerate_per_kw, CREDIBLE_FEERATE_SAT_PER_KW)
    deadlines = [target.deadline_height for target in pack if target.deadline_height is not None]
    wanted = race_feerate_per_kw
    if deadlines:
        left = min(deadlines) - height - 2
        used = min(RAMP_BLOCKS, max(0, RAMP_BLOCKS - left))
        if left < 0:  # nobody knows how long the cheater sleeps
            wanted = 2 * race_feerate_per_kw
        else:
            wanted += max(0, highest_per_kw - wanted) * used * used // (RAMP_BLOCKS * RAMP_BLOCKS)
    return min(wanted, highest_per_kw)


def is_economic(target: Target, breach: Breach) -> bool:
    """Whether taking an open output is worth the least fee that is relayed."""
    if breach.justice.is_own and target.penalty.kind != "to_remote":
        return own_tx(breach.justice, [target.outpoint], [target.penalty], 253) is not None
    return any(
        bundle.rungs for bundle in breach.justice.bundles if target.place is not None and target.place in bundle.places
    )
