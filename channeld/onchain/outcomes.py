"""What became of the HTLCs that we offered, and when a close is over."""

from __future__ import annotations

from msgspec import Struct

from channeld.bolt.transactions import Htlc
from channeld.onchain.known import Known
from channeld.onchain.outputs import Close, HtlcTx, NeedsPreimage, Output, Sweep
from channeld.onchain.plans import is_hopeless
from wallet.bitcoin import OutPoint

REASONABLE_DEPTH_BLOCKS = 6
"""BOLT 5's "reasonable depth": so deep must the return of an HTLC be before its incoming side is failed. It fits into
our `cltv_expiry_delta` of 34 blocks: 3 until the channel is closed, at most 12 until the money is back, 6 to bury that,
and 13 that remain before the incoming HTLC expires."""
IRREVOCABLE_DEPTH_BLOCKS = 100
"""BOLT 5, "*irrevocably resolved* once the remote's *resolving* transaction is included in a block at least 100
deep"."""


class Outcome(Struct, frozen=True):
    """An HTLC that we offered is over: its preimage is known, or (None) it came back for good."""

    id: int
    payment_preimage: bytes | None


def outcomes(known: Known, close: Close, height: int) -> list[Outcome]:
    """Everything that can be told at the tip `height`."""
    by_id = _first_stages_of_ours(close)
    found = []
    for id, htlc in sorted(known.offered.items()):
        # BOLT 5, "MUST extract the payment preimage": the same preimage settles every HTLC with its hash, those without
        # an output, too ("if the payment preimage is known: MUST fulfill the corresponding incoming HTLC").
        preimage = close.preimages.get(htlc.payment_hash)
        if preimage is not None:
            found.append(Outcome(id, preimage))
        elif _came_back(by_id.get(id), htlc, close, height):
            found.append(Outcome(id, None))
    return found


def _first_stages_of_ours(close: Close) -> dict[int, Output]:
    """By the HTLC's id."""
    return {output.htlc.id: output for output in close.outputs if _is_first_stage_of_ours(output) and output.htlc}


def _is_first_stage_of_ours(output: Output) -> bool:
    return output.kind == "htlc" and output.htlc is not None and output.htlc.offered


def _came_back(output: Output | None, htlc: Htlc, close: Close, height: int) -> bool:
    expired = height >= htlc.cltv_expiry + REASONABLE_DEPTH_BLOCKS
    if close.kind == "unknown":
        # Its outputs cannot be told apart: the peer may hold the preimage until the HTLC expires.
        return close.depth(height) >= REASONABLE_DEPTH_BLOCKS and expired
    if output is not None and output.spent is None:
        # Nobody can be paid to fetch it; that its incoming side runs out would cost the channel there.
        return is_hopeless(output) and expired
    return _depth_of_return(output, close, height) >= REASONABLE_DEPTH_BLOCKS


def _depth_of_return(output: Output | None, close: Close, height: int) -> int:
    """How deep that is in the chain by which an HTLC of ours came back; 0 if it did not."""
    if output is None:
        # BOLT 5, "once the commitment transaction has reached reasonable depth: MUST fail the corresponding incoming
        # HTLC (if any)".
        return 0 if close.kind == "unknown" else close.depth(height)
    if output.spent is None or output.taker != "local":
        return 0
    return output.spent.depth(height)


def returns(known: Known, close: Close, height: int) -> dict[int, int]:
    """How deep the return of each HTLC of ours is that came back and whose preimage is not known, by its id. That may
    have to do where the incoming HTLC cannot wait for REASONABLE_DEPTH_BLOCKS."""
    by_id = _first_stages_of_ours(close)
    depths = {
        id: _depth_of_return(by_id.get(id), close, height)
        for id, htlc in known.offered.items()
        if htlc.payment_hash not in close.preimages
    }
    return {id: depth for id, depth in depths.items() if depth}


def to_look_for(known: Known, close: Close, height: int) -> list[tuple[OutPoint, bytes]]:
    """(output, payment hash) of expired HTLCs of ours that nobody has taken in a block. The peer's claim may wait in
    the mempool until their incoming side expires, and keep ours out: its preimage settles that side in time."""
    return [
        (output.outpoint, htlc.payment_hash)
        for output in close.outputs
        if _is_first_stage_of_ours(output)
        and (htlc := output.htlc) is not None
        and output.outpoint is not None
        and output.spent is None
        and htlc.id in known.offered
        and height >= htlc.cltv_expiry
    ]


def is_over(known: Known, close: Close, height: int) -> bool:
    """Whether all outputs are irrevocably resolved and all HTLCs told: only then may the channel be forgotten."""
    if close.depth(height) < IRREVOCABLE_DEPTH_BLOCKS or known.offered:
        return False
    return all(_is_resolved(output, height) for output in close.outputs)


def _is_resolved(output: Output, height: int) -> bool:
    if output.spent is not None:
        return output.spent.depth(height) >= IRREVOCABLE_DEPTH_BLOCKS
    match output.claim:
        case Sweep() | HtlcTx():
            return output.is_anchor or is_hopeless(output)
        case NeedsPreimage(cltv_expiry=expiry):
            # BOLT 5, "If not otherwise resolved, once the HTLC output has expired, it is considered *irrevocably
            # resolved*."
            return height >= expiry + REASONABLE_DEPTH_BLOCKS
        case _:
            return True
