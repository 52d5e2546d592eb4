"""Recognising a commitment transaction that was found on chain: which output is what (BOLT 5).

A revoked commitment's balances need not be known for that: outputs are recognised by their scripts, which follow from
the `per_commitment_point` and the HTLCs' payment hashes and expiries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from channeld.bolt.keys import CommitmentKeys, derive_commitment_keys
from channeld.bolt.transactions.scripts import HtlcScripts, anchor_script, to_local_script, to_remote_script
from channeld.bolt.transactions.spec import CommitmentParams, Htlc, Side
from wallet.bitcoin.encoding import sha256
from wallet.bitcoin.script import p2wpkh, p2wsh
from wallet.bitcoin.tx import OutPoint, Tx, TxOut


class FoundOutput(NamedTuple):
    """An output on chain."""

    outpoint: OutPoint
    output: TxOut


class HtlcMatch(msgspec.Struct, frozen=True):
    """An HTLC and its output in a commitment transaction."""

    htlc: Htlc
    offered_by_owner: bool
    outpoint: OutPoint
    output: TxOut
    witness_script: bytes


class CommitmentOutputs(msgspec.Struct, frozen=True):
    """What the outputs of a commitment transaction are; None for one that it has not.

    `to_local` is its owner's, as in BOLT 3. `unknown` are outputs that nothing explains: HTLCs that were not given.
    """

    keys: CommitmentKeys
    to_local: FoundOutput | None
    to_remote: FoundOutput | None
    to_local_anchor: FoundOutput | None
    to_remote_anchor: FoundOutput | None
    htlcs: tuple[HtlcMatch, ...]
    unknown: tuple[FoundOutput, ...]


def commitment_number_of(params: CommitmentParams, tx: Tx) -> int | None:
    """The number of the commitment transaction `tx`, or None if it is none: it does not spend the funding output
    alone, or its sequence and locktime do not begin as BOLT 3 demands (a closing transaction's do not).

    A number by itself proves nothing: compare the txid, or recognise the outputs.
    """
    if len(tx.inputs) != 1 or tx.inputs[0].outpoint != params.funding_outpoint:
        return None
    sequence, locktime = tx.inputs[0].sequence, tx.locktime
    if sequence >> 24 != 0x80 or locktime >> 24 != 0x20:
        return None
    return ((sequence & 0xFF_FFFF) << 24 | locktime & 0xFF_FFFF) ^ params.obscuring_factor()


def to_remote_script_pubkey(params: CommitmentParams, side: Side) -> bytes:
    """The script of the `to_remote` output in every commitment of `side`: no `per_commitment_point` is in it, so the
    output is found even after a loss of all other data."""
    _, other = params.owner_and_other(side)
    if params.anchors:
        return p2wsh(to_remote_script(other.payment_basepoint))
    return p2wpkh(other.payment_basepoint)


def identify_outputs(
    params: CommitmentParams, tx: Tx, side: Side, per_commitment_point: bytes, htlcs: Iterable[Htlc]
) -> CommitmentOutputs:
    """Recognises the outputs of a commitment transaction of `side`.

    `htlcs` are those it may have (local's view), trimmed or not. Several may share a script, and even the amount: an
    HTLC is matched by script and amount, equal ones in the order of their expiries (BOLT 3, "Transaction Output
    Ordering"). An output whose script fits while no amount does is matched too: where amounts were not kept, give 0.
    """
    owner, other = params.owner_and_other(side)
    keys = derive_commitment_keys(owner, other, per_commitment_point)
    to_local = to_local_script(keys.revocation_pubkey, params.to_self_delay(side), keys.owner_delayed_pubkey)
    fixed = {p2wsh(to_local): "to_local", to_remote_script_pubkey(params, side): "to_remote"}
    if params.anchors:
        fixed[p2wsh(anchor_script(owner.funding_pubkey))] = "to_local_anchor"
        fixed[p2wsh(anchor_script(other.funding_pubkey))] = "to_remote_anchor"
    candidates = _candidates(HtlcScripts(keys, params.anchors), htlcs, side == "local")
    places: dict[str, FoundOutput] = {}
    left: list[FoundOutput] = []
    txid = tx.txid()
    for index, output in enumerate(tx.outputs):
        found = FoundOutput(OutPoint(txid, index), output)
        name = fixed.get(output.script_pubkey)
        if name is not None and name not in places:
            places[name] = found
        else:
            left.append(found)
    matches = _match_htlcs(left, candidates, side == "local")
    return CommitmentOutputs(
        keys,
        places.get("to_local"),
        places.get("to_remote"),
        places.get("to_local_anchor"),
        places.get("to_remote_anchor"),
        tuple(matches[found.outpoint.vout] for found in left if found.outpoint.vout in matches),
        tuple(found for found in left if found.outpoint.vout not in matches),
    )


def _match_htlcs(
    outputs: list[FoundOutput], candidates: defaultdict[bytes, list[tuple[Htlc, bytes]]], owner_is_local: bool
) -> dict[int, HtlcMatch]:
    """Matches by output index: first where the amount fits too, then what is left by the script alone."""
    matches: dict[int, HtlcMatch] = {}
    for exact in (True, False):
        for outpoint, output in outputs:
            if outpoint.vout in matches:
                continue
            amount_sat, script_pubkey = output
            for candidate in candidates[script_pubkey]:
                htlc, script = candidate
                if not exact or htlc.amount_msat // 1000 == amount_sat:
                    candidates[script_pubkey].remove(candidate)
                    offered_by_owner = htlc.offered == owner_is_local
                    matches[outpoint.vout] = HtlcMatch(htlc, offered_by_owner, outpoint, output, script)
                    break
    return matches


def _candidates(
    scripts: HtlcScripts, htlcs: Iterable[Htlc], owner_is_local: bool
) -> defaultdict[bytes, list[tuple[Htlc, bytes]]]:
    """(HTLC, witness script) by the output's script, in the order that outputs have."""
    found: defaultdict[bytes, list[tuple[Htlc, bytes]]] = defaultdict(list)
    for htlc in sorted(htlcs, key=lambda htlc: (htlc.amount_msat // 1000, htlc.cltv_expiry, htlc.id)):
        if htlc.offered == owner_is_local:
            script = scripts.offered(htlc.payment_hash)
        else:
            script = scripts.received(htlc.payment_hash, htlc.cltv_expiry)
        found[p2wsh(script)].append((htlc, script))
    return found


def htlc_tx_inputs(tx: Tx, outputs: CommitmentOutputs) -> list[tuple[int, HtlcMatch]]:
    """(input index, HTLC) for the inputs of `tx` that spend HTLC outputs of the commitment.

    With anchors, an HTLC transaction may have more inputs and outputs: output i then belongs to input i.
    """
    by_outpoint = {match.outpoint: match for match in outputs.htlcs}
    return [(index, by_outpoint[txin.outpoint]) for index, txin in enumerate(tx.inputs) if txin.outpoint in by_outpoint]


def preimage_in_witness(match: HtlcMatch, witness: tuple[bytes, ...]) -> bytes | None:
    """The payment preimage that a spend of an HTLC output reveals, or None if it took another branch.

    HTLC-success: `0 <sig> <sig> <preimage> <script>`; the other side's claim: `<sig> <preimage> <script>`.
    """
    item = witness[3] if len(witness) == 5 else witness[1] if len(witness) == 3 else b""
    return item if sha256(item) == match.htlc.payment_hash else None
