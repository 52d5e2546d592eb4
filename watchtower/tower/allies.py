"""Transactions in the mempool that do the tower's work already: the client's own, and another tower's of its.

Both pay to the script that the blob names, and sign with the client's keys, which the cheater does not have. To bid
against them would burn the client's money. So they are left alone for as long as they pay what the tower itself would
pay now, and the cheater's delay is not about to end. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from wallet.bitcoin.tx import OutPoint, Tx, TxIn
from watchtower.appointment import MAX_FEE_PERMILLE
from watchtower.justice import ELSEWHERE_PERMILLE, NEAR_BLOCKS
from watchtower.tower.breach import PERMILLE, Breach, Target, wanted_feerate


class Ally(Struct, frozen=True):
    """`outpoints` are those of the breach; `total_sat` is what all inputs hold. All of that is 0 for the client's own
    sweep of `to_remote`, which may take more than that, and pay to wherever it likes."""

    outpoints: tuple[OutPoint, ...]
    total_sat: int
    fee_sat: int
    weight: int

    @property
    def feerate_per_kw(self) -> int:
        """What it pays."""
        return self.fee_sat * 1000 // self.weight


def ally_of(breach: Breach, found: Sequence[Target], tx: Tx) -> Ally | None:
    """What an unconfirmed transaction does for the client; None if it is not the client's, or takes anything else."""
    if tx.txid() in {attempt.txid for attempt in breach.attempts}:
        return None
    open_ = {target.outpoint: target for target in found if target.state == "open"}
    members = [open_[txin.outpoint] for txin in tx.inputs if txin.outpoint in open_]
    if breach.justice.is_own and all(target.penalty.kind == "to_remote" for target in members):
        # Nobody but the client has a key for it. (Blind, it goes together with `to_local`, which must not wait.)
        return Ally(tuple(target.outpoint for target in members), 0, 0, 0)
    if len(members) < len(tx.inputs) or not all(map(_is_taken_by_key, members, tx.inputs)):
        return None
    total_sat = sum(target.penalty.amount_sat for target in members)
    paid_sat = sum(output.value_sat for output in tx.outputs)
    home_sat = sum(out.value_sat for out in tx.outputs if out.script_pubkey == breach.justice.sweep_script)
    if (paid_sat - home_sat) * PERMILLE > total_sat * ELSEWHERE_PERMILLE:
        return None
    return Ally(tuple(txin.outpoint for txin in tx.inputs), total_sat, total_sat - paid_sat, tx.weight())


def _is_taken_by_key(target: Target, txin: TxIn) -> bool:
    """Whether the client's key signed."""
    return target.penalty.kind == "to_remote" or target.penalty.is_taken_by(txin.witness)


def left_to(
    allies: Sequence[Ally], found: Mapping[OutPoint, Target], height: int, race_feerate_per_kw: int
) -> frozenset[OutPoint]:
    """Outputs that are in good hands at the tip `height`: by the measure by which the tower leaves its own transactions
    as they are (a replacement pays a quarter more, at least)."""
    left: set[OutPoint] = set()
    for ally in allies:
        if not ally.weight:
            left.update(ally.outpoints)
            continue
        members = [found[outpoint] for outpoint in ally.outpoints]
        deadlines = [target.deadline_height for target in members if target.deadline_height is not None]
        if deadlines and min(deadlines) - height <= NEAR_BLOCKS:
            continue
        highest = ally.total_sat * MAX_FEE_PERMILLE // ally.weight
        wanted = wanted_feerate(members, height, race_feerate_per_kw, highest)
        if wanted * 4 < ally.feerate_per_kw * 5:
            left.update(ally.outpoints)
    return frozenset(left)
