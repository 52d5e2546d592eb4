"""Getting a commitment mined: alone if it pays enough, else with a child on our anchor (BOLT 5, "MUST spend any
`to_local_anchor` output, providing sufficient fees as incentive to include the commitment transaction in a block").

Ours as a rule; where layer 1 holds the peer's and refuses ours, the peer's, which has an anchor of ours, too."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from channeld.bolt.transactions import Htlc, commitment_fee_sat, is_trimmed, sweep
from channeld.bolt.transactions.onchain import FoundOutput
from channeld.bolt.transactions.scripts import anchor_script
from channeld.onchain.known import Known
from channeld.onchain.outputs import Output, Sweep
from channeld.onchain.plans import OFFERED_DEADLINE_BLOCKS, Attempt, Plan
from channeld.onchain.rates import (
    CEILING_PER_KW,
    CONTESTED_PERMILLE,
    FLOOR_PER_KW,
    UNCONTESTED_PERMILLE,
    Rates,
    fee_sat,
    lazy_feerate,
    least_bump,
    urgent_feerate,
)
from wallet.bitcoin import OutPoint, Tx
from wallet.bitcoin.script import p2wsh

CHILD_WEIGHT = 750
"""About what a child weighs: an anchor, a wallet's coin, change."""


class Commitment(Struct, frozen=True):
    """A published commitment, while it is in no block."""

    tx: Tx
    fee_sat: int
    weight: int

    @property
    def feerate_per_kw(self) -> int:
        """What it pays by itself."""
        return self.fee_sat * 1000 // self.weight


def commitment_of(known: Known) -> Commitment | None:
    """The peer's if it waits in place of ours, else ours if it was published."""
    raw = known.rival_tx or known.local_tx
    if not raw:
        return None
    tx = Tx.parse(raw)
    fee = known.params.funding_sat - sum(output.value_sat for output in tx.outputs)
    return Commitment(tx, fee, tx.weight())


def anchor_of(known: Known, commitment: Commitment) -> Output | None:
    """Our anchor in it, if it has one."""
    script_pubkey = p2wsh(anchor_script(known.params.local.funding_pubkey))
    for vout, txout in enumerate(commitment.tx.outputs):
        if known.params.anchors and txout.script_pubkey == script_pubkey:
            found = FoundOutput(OutPoint(commitment.tx.txid(), vout), txout)
            spend = sweep.anchor_output(known.params, *found)
            return Output(
                kind="anchor",
                owner="local",
                amount_sat=txout.value_sat,
                claim=Sweep(spend),
                outpoint=found.outpoint,
            )
    return None


CLAIM_BLOCKS = 6
"""What is left of the time for an HTLC-success transaction, which cannot be mined before our commitment is: half of the
time that there is, and at most so many blocks."""


def deadlines_of(known: Known, height: int) -> set[int]:
    """Heights by which our commitment must be in the chain, for the sake of its HTLCs, seen from the tip `height`."""
    return {
        htlc.cltv_expiry + OFFERED_DEADLINE_BLOCKS if htlc.offered else _in_time_to_claim(htlc.cltv_expiry, height)
        for htlc in _htlcs_with_deadlines(known)
    }


def _in_time_to_claim(cltv_expiry: int, height: int) -> int:
    left = cltv_expiry - height
    return cltv_expiry if left < 1 else max(cltv_expiry - min(CLAIM_BLOCKS, left // 2), height + 2)


def _htlcs_with_deadlines(known: Known) -> list[Htlc]:
    """HTLCs with an output that we offered, and those that we can claim."""
    spec = known.local.spec
    return [
        htlc
        for htlc in spec.htlcs.values()
        if (htlc.offered or htlc.id in known.preimages)
        and not is_trimmed(known.params, htlc, spec.feerate_per_kw, "local")
    ]


def urgent_stake_sat(known: Known) -> int:
    """What may be lost if our commitment comes late: its HTLCs, not our balance, which waits."""
    return sum(htlc.amount_msat for htlc in _htlcs_with_deadlines(known)) // 1000


def stake_sat(known: Known) -> int:
    """What we get by our commitment: our balance, HTLCs that we offered, and those that we can claim."""
    spec = known.local.spec
    htlcs = sum(htlc.amount_msat for htlc in _htlcs_with_deadlines(known))
    fee = 0
    if known.params.local_is_opener:
        fee = commitment_fee_sat(known.params, spec.commitment_spec(), "local")
    return max(0, (spec.to_local_msat + htlcs) // 1000 - fee)


def anchor_plan(known: Known, attempts: Sequence[Attempt], rates: Rates, height: int) -> Plan | None:
    """A child for our unconfirmed commitment, the first or a better one; None if there is no need."""
    commitment = commitment_of(known)
    anchor = None if commitment is None else anchor_of(known, commitment)
    if commitment is None or anchor is None or anchor.outpoint is None:
        return None
    budget = stake_sat(known) * UNCONTESTED_PERMILLE // 1000
    wanted = _wanted_feerate(known, commitment, budget, rates, height)
    if wanted is None:
        return None
    before = next((a for a in attempts if a.group == "anchor" and a.outpoints == (anchor.outpoint,)), None)
    if before is None:
        if wanted <= commitment.feerate_per_kw or fee_sat(CHILD_WEIGHT, FLOOR_PER_KW) > budget:
            return None
        return Plan("anchor", (anchor,), wanted, budget)
    paid = (before.fee_sat + commitment.fee_sat) * 1000 // (before.weight + commitment.weight)
    if height <= before.height or wanted < least_bump(paid):
        return None
    least = before.fee_sat + fee_sat(before.weight, FLOOR_PER_KW)
    return Plan("anchor", (anchor,), wanted, budget, least, before.txid) if least <= budget else None


def _wanted_feerate(known: Known, commitment: Commitment, budget_sat: int, rates: Rates, height: int) -> int | None:
    """For commitment and child together. The hurry of a deadline is paid for with what that deadline is about, however
    much else is in the channel."""

    def most(fee_sat: int) -> int:
        rate = (fee_sat + commitment.fee_sat) * 1000 // (commitment.weight + CHILD_WEIGHT)
        return min(max(FLOOR_PER_KW, rate), CEILING_PER_KW)

    lazy = lazy_feerate(rates, most(budget_sat))
    deadlines = deadlines_of(known, height)
    if not deadlines:
        return lazy
    hurry_sat = min(budget_sat, urgent_stake_sat(known) * CONTESTED_PERMILLE // 1000)
    return max(lazy or 0, urgent_feerate(rates, height, deadlines, most(hurry_sat)))


def missing_fee_sat(known: Known, feerate_per_kw: int) -> int:
    """What a child must add for the commitment to reach a rate."""
    commitment = commitment_of(known)
    assert commitment is not None
    return max(0, fee_sat(commitment.weight, feerate_per_kw) - commitment.fee_sat)
