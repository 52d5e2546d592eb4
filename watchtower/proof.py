"""Showing anybody that a tower failed: its own signatures, the chain, and a blob that would have been justice.

A tower failed if it confirmed an appointment before the breach, within its session's time, the blob holds valid justice
for an output of the breach transaction, and that output was taken by somebody else, after the delay that the tower had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from wallet.bitcoin import BlockHeader, OutPoint, SerializationError, Tx
from wallet.bitcoin.encoding import sha256, sha256d
from watchtower.blob import Undecipherable, locator_of, unseal
from watchtower.justice import InvalidJustice, Justice, check, decode, is_signed_rung, is_taken_with_key
from watchtower.messages import Receipt, SessionTerms


class Evidence(Struct, frozen=True):
    """What the tower signed, and the blob that it got."""

    terms: SessionTerms
    receipt: Receipt
    blob: bytes


class Mined(Struct, frozen=True):
    """A transaction in the block at `height`: the header (80 bytes), the transaction's place among the block's, and the
    Merkle branch from it to the root (32 bytes each)."""

    raw: bytes
    height: int
    header: bytes
    position: int
    branch: tuple[bytes, ...]


class FailureProof(Struct, frozen=True):
    """`theft` spends what the tower was to guard, an output of `breach`."""

    evidence: Evidence
    breach: Mined
    theft: Mined


class NotProven(ValueError):
    """The proof shows no failure; the text says why."""


def merkle_branch(txids: Sequence[bytes], position: int) -> tuple[bytes, ...]:
    """What `Mined.branch` is, for the transaction at `position` of a block's."""
    branch = []
    level = list(txids)
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        branch.append(level[position ^ 1])
        level = [sha256d(level[i] + level[i + 1]) for i in range(0, len(level), 2)]
        position //= 2
    return tuple(branch)


def verify_failure_proof(proof: FailureProof, block_hash: Callable[[int], bytes | None]) -> OutPoint:
    """The output that the tower let go. `block_hash` is the verifier's own chain: hashes (internal order) by height.
    Raises NotProven."""
    evidence = proof.evidence
    _check_signatures(evidence)
    breach = _check_mined(proof.breach, block_hash)
    theft = _check_mined(proof.theft, block_hash)
    breach_txid = breach.txid()
    if locator_of(breach_txid) != evidence.receipt.locator:
        raise NotProven("the receipt is for another transaction")
    if proof.breach.height <= evidence.receipt.accepted_height:
        raise NotProven("the breach was there before the appointment")
    if proof.breach.height >= evidence.terms.expires_height:
        raise NotProven("the session was over")
    try:
        justice = decode(unseal(breach_txid, evidence.blob))
        check(justice, breach)
    except (Undecipherable, InvalidJustice) as error:
        raise NotProven(f"the blob was of no use: {error}") from error
    if proof.theft.height < proof.breach.height + justice.to_self_delay_blocks:
        raise NotProven("the tower had no time: the output was taken before the delay was over")
    for index, txin in enumerate(theft.inputs):
        for place, penalty in enumerate(justice.outputs):
            if txin.outpoint == OutPoint(breach_txid, penalty.vout) and _was_takeable(justice, breach_txid, place):
                if penalty.is_taken_by(theft.inputs[index].witness):
                    raise NotProven("the output was taken with the client's own keys")
                return txin.outpoint
    raise NotProven("what was taken was not the tower's to guard")


def _check_signatures(evidence: Evidence) -> None:
    terms, receipt = evidence.terms, evidence.receipt
    if not terms.is_signed() or not receipt.is_signed():
        raise NotProven("the tower has not signed this")
    if (terms.tower_id, terms.session_id) != (receipt.tower_id, receipt.session_id):
        raise NotProven("the receipt is of another session")
    if sha256(evidence.blob) != receipt.blob_hash:
        raise NotProven("the receipt is for another blob")


def _check_mined(mined: Mined, block_hash: Callable[[int], bytes | None]) -> Tx:
    try:
        header = BlockHeader.parse(mined.header)
        tx = Tx.parse(mined.raw)
    except SerializationError as error:
        raise NotProven(f"the proof is not readable: {error}") from error
    if header.hash() != block_hash(mined.height):
        raise NotProven(f"the chain has another block at height {mined.height}")
    digest, position = tx.txid(), mined.position
    for sibling in mined.branch:
        digest = sha256d(sibling + digest if position & 1 else digest + sibling)
        position >>= 1
    if digest != header.merkle_root or position:
        raise NotProven("the transaction is not in the block")
    return tx


def _was_takeable(justice: Justice, breach_txid: bytes, place: int) -> bool:
    """Whether the blob let the tower take the output: with the key, or by a transaction whose signatures are right."""
    penalty = justice.outputs[place]
    if justice.is_own and penalty.kind != "to_remote":
        return is_taken_with_key(justice, penalty)
    return any(
        is_signed_rung(justice, breach_txid, bundle, rung)
        for bundle in justice.bundles
        if place in bundle.places
        for rung in bundle.rungs
    )
