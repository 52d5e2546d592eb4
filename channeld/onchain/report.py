"""Every satoshi that a closed channel owed, explained: what each output was, who took it, at what fee, when it comes
free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from channeld.bolt.transactions import Htlc, Side
from channeld.channel.state import CloseKind
from channeld.onchain.outcomes import IRREVOCABLE_DEPTH_BLOCKS
from channeld.onchain.outputs import (
    NEVER,
    Close,
    HtlcTx,
    NeedsPreimage,
    Ours,
    Output,
    OutputKind,
    Sweep,
    Theirs,
    while_off,
)
from channeld.onchain.plans import Attempt, is_economic, is_hopeless
from channeld.onchain.rates import LAZY_TARGET_BLOCKS, Rates
from wallet.bitcoin import OutPoint

Status = Literal[
    "waiting",  # ours, but not yet: a delay or an expiry
    "needs_preimage",  # an HTLC that we were offered
    "pending",  # our transaction is on its way
    "uneconomic",  # taking it costs more than it holds
    "taken",  # we took it
    "lost",  # it was ours and the peer took it
    "theirs",  # the peer's, taken or not
    "ours",  # in the wallet as it is
    "none",  # an HTLC without an output
]


class OutputReport(Struct, frozen=True, kw_only=True):
    """One output, for people and programs. Heights are None where there is nothing to say; `fee_sat` is its part of the
    fee of the transaction that took it (of this channel's share, if it took outputs of other channels, too), None if
    that is not ours or not known. `status_text` is a sentence."""

    kind: OutputKind
    owner: Side
    amount_sat: int
    status: Status
    status_text: str
    outpoint: OutPoint | None = None
    taken_by: Literal["local", "remote", "anyone", ""] = ""
    spending_txid: bytes | None = None
    spent_height: int | None = None
    fee_sat: int | None = None
    free_height: int | None = None
    deadline_height: int | None = None
    htlc: Htlc | None = None
    """`id` is negative where it was not kept: an HTLC of a revoked commitment."""


class CloseReport(Struct, frozen=True, kw_only=True):
    """A channel's end. `irrevocable_height` is the least height at which the closing transaction cannot be undone."""

    kind: CloseKind
    txid: bytes
    height: int
    commitment_number: int | None
    commitment_fee_sat: int
    irrevocable_height: int
    over: bool
    outputs: tuple[OutputReport, ...]


def report(
    close: Close,
    funding_sat: int,
    attempts: tuple[Attempt, ...],
    fees: Mapping[bytes, int],
    rates: Rates,
    *,
    over: bool = False,
    away: tuple[int, int] = NEVER,
) -> CloseReport:
    """What there is to say now. `away`: blocks that this node missed when something was taken."""
    by_txid = _outputs_by_spender(close)
    others = {attempt.txid: attempt.others for attempt in attempts}
    pending: dict[OutPoint | None, Attempt] = {
        outpoint: attempt for attempt in attempts for outpoint in attempt.outpoints
    }
    first = sum(o.amount_sat for o in close.outputs if o.outpoint is not None and o.outpoint.txid == close.txid)
    return CloseReport(
        kind=close.kind,
        txid=close.txid,
        height=close.height,
        commitment_number=close.commitment_number,
        commitment_fee_sat=funding_sat - first,
        irrevocable_height=close.height + IRREVOCABLE_DEPTH_BLOCKS - 1,
        over=over,
        outputs=tuple(_output(output, by_txid, pending, fees, others, rates, away) for output in close.outputs),
    )


def _outputs_by_spender(close: Close) -> dict[bytes, list[Output]]:
    found: dict[bytes, list[Output]] = {}
    for output in close.outputs:
        if output.spent is not None:
            found.setdefault(output.spent.txid, []).append(output)
    return found


def _output(
    output: Output,
    by_txid: dict[bytes, list[Output]],
    pending: Mapping[OutPoint | None, Attempt],
    fees: Mapping[bytes, int],
    others: Mapping[bytes, int],
    rates: Rates,
    away: tuple[int, int],
) -> OutputReport:
    status, text = _status(output, pending.get(output.outpoint), rates)
    if status == "lost":
        missed = while_off(output, away)
        text = f"taken by the peer{missed}" if missed else text
    by = output.spent
    if status == "taken" and by is not None:
        text += _in_company(others.get(by.txid, 0))
    return OutputReport(
        kind=output.kind,
        owner=output.owner,
        amount_sat=output.amount_sat,
        status=status,
        status_text=text,
        outpoint=output.outpoint,
        taken_by="" if by is None else output.taker or "anyone",
        spending_txid=None if by is None else by.txid,
        spent_height=None if by is None else by.height,
        fee_sat=_fee_share(output, by_txid, fees),
        free_height=output.mature_height if isinstance(output.claim, Sweep | HtlcTx) else None,
        deadline_height=output.deadline_height,
        htlc=output.htlc,
    )


def _fee_share(output: Output, by_txid: dict[bytes, list[Output]], fees: Mapping[bytes, int]) -> int | None:
    """In proportion to what the outputs hold that one transaction took."""
    if output.spent is None or output.taker != "local":
        return None
    siblings = by_txid[output.spent.txid]
    total = fees.get(output.spent.txid)
    if total is None:
        if len(siblings) != len(output.spent.tx.inputs):
            return None
        total = sum(o.amount_sat for o in siblings) - sum(o.value_sat for o in output.spent.tx.outputs)
    return total * output.amount_sat // max(1, sum(o.amount_sat for o in siblings))


def _status(output: Output, attempt: Attempt | None, rates: Rates) -> tuple[Status, str]:
    if output.kind == "trimmed_htlc":
        return "none", "no output in this commitment: too small, or not in it"
    if output.spent is not None:
        return _spent_status(output)
    match output.claim:
        case Theirs(why=why):
            return "theirs", why
        case Ours(why=why):
            return "ours", why
        case NeedsPreimage(cltv_expiry=expiry):
            return "needs_preimage", f"ours with the preimage, the peer's after block {expiry}"
        case Sweep() | HtlcTx():
            return _claimable_status(output, attempt, rates)


def _spent_status(output: Output) -> tuple[Status, str]:
    assert output.spent is not None
    height = output.spent.height
    if output.taker == "local":
        return "taken", f"taken by us in block {height}"
    if output.is_anchor and output.taker is None:
        return "theirs", f"swept by somebody in block {height}, as anyone may after 16 blocks"
    if output.owner == "local" and output.final and not (output.htlc is not None and output.htlc.offered):
        return "lost", f"taken by the peer in block {height}"
    return "theirs", f"taken by the peer in block {height}"


def _claimable_status(output: Output, attempt: Attempt | None, rates: Rates) -> tuple[Status, str]:
    if attempt is not None:
        trouble = f"; layer 1 says: {attempt.problem}" if attempt.problem else ""
        company = _in_company(attempt.others)
        return "pending", f"our transaction {attempt.txid[::-1].hex()} waits to be mined{company}{trouble}"
    if is_hopeless(output):
        return "uneconomic", f"{output.amount_sat} sat are less than it costs to take them at any fee rate"
    rate = rates.within(LAZY_TARGET_BLOCKS)
    if not is_economic(output, rate):
        return "uneconomic", f"not worth its fee at {rate} sat/kw; taken when fees are lower"
    return "waiting", f"ours from block {output.mature_height} on"


def _in_company(others: int) -> str:
    """Whose outputs are in the same transaction."""
    if not others:
        return ""
    return f", together with what is ours of {others} other channel{'s' if others > 1 else ''}"
