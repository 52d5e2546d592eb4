"""Justice by other hands: transactions in the mempool by which a watchtower of ours takes a cheater's outputs.

They pay to the script that the tower was given, and sign with our keys. To bid against them would burn our own money:
they are left alone for as long as they pay what we would pay now, and nothing is about to be lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from channeld.onchain.facts import Fact
from channeld.onchain.known import Known
from channeld.onchain.outputs import Output
from channeld.onchain.plans import Group, deadline_of, is_penalty, wanted_feerate
from channeld.onchain.rates import Rates, least_bump
from channeld.onchain.resolve import resolve
from wallet.bitcoin import OutPoint, Tx
from watchtower.justice import ELSEWHERE_PERMILLE, NEAR_BLOCKS


class Ally(Struct, frozen=True):
    """A tower's transaction, not yet in a block."""

    tx: Tx
    outputs: tuple[Output, ...]
    fee_sat: int
    weight: int

    @property
    def outpoints(self) -> frozenset[OutPoint]:
        """What it takes."""
        return frozenset(output.outpoint for output in self.outputs if output.outpoint is not None)

    @property
    def feerate_per_kw(self) -> int:
        """What it pays."""
        return self.fee_sat * 1000 // self.weight


def ally_of(known: Known, facts: Sequence[Fact], tx: Tx, script: bytes, height: int) -> Ally | None:
    """What an unconfirmed transaction would do for us if it were in the next block; None unless it takes nothing but
    outputs of the close, all of them by our keys, and pays to the towers' `script`."""
    txid = tx.txid()
    close = resolve(known, (*facts, Fact(height + 1, txid, tx)))
    assert close is not None, "the close is in the facts"
    taken = tuple(output for output in close.outputs if output.spent is not None and output.spent.txid == txid)
    if len(taken) < len(tx.inputs) or any(output.taker != "local" for output in taken):
        return None
    total_sat = sum(output.amount_sat for output in taken)
    paid_sat = sum(output.value_sat for output in tx.outputs)
    home_sat = sum(output.value_sat for output in tx.outputs if output.script_pubkey == script)
    if (paid_sat - home_sat) * 1000 > total_sat * ELSEWHERE_PERMILLE:
        return None
    return Ally(tx, taken, total_sat - paid_sat, tx.weight())


def left_to(allies: Iterable[Ally], rates: Rates, height: int) -> frozenset[OutPoint]:
    """Outputs that are in good hands at the tip `height`: by the measure by which we leave our own transactions as they
    are."""
    left: set[OutPoint] = set()
    for ally in allies:
        deadlines = [deadline for output in ally.outputs if (deadline := deadline_of(output)) is not None]
        if deadlines and min(deadlines) - height <= NEAR_BLOCKS:
            continue
        group: Group = "penalty" if any(map(is_penalty, ally.outputs)) else "sweep"
        wanted = wanted_feerate(group, ally.outputs, rates, height)
        if wanted is None or wanted < least_bump(ally.feerate_per_kw):
            left |= ally.outpoints
    return frozenset(left)
