"""Which transaction ended a channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from channeld.bolt.keys import per_commitment_point
from channeld.bolt.transactions import commitment_number_of
from channeld.bolt.transactions.onchain import identify_outputs, to_remote_script_pubkey
from channeld.channel.state import CloseKind
from channeld.onchain.facts import Fact
from channeld.onchain.known import Known
from wallet.bitcoin import Tx


def classify(known: Known, tx: Tx) -> tuple[CloseKind, int | None]:
    """What a confirmed transaction that spends the funding output is, and the commitment's number if it is one.

    One with a commitment's marks that we do not know is the peer's from a future that we lost; one without them that
    pays neither side's shutdown script was made with leaked keys (BOLT 5, "General Requirements"): both are "unknown".
    """
    txid = tx.txid()
    if txid == known.local.txid:
        return "local", known.local.index
    if txid == known.remote.txid:
        return "remote_current", known.remote.index
    if known.remote_next is not None and txid == known.remote_next.txid:
        return "remote_next", known.remote_next.index
    number = commitment_number_of(known.params, tx)
    if number is None:
        expected = all(output.script_pubkey in known.shutdown_scripts for output in tx.outputs)
        return ("mutual" if expected else "unknown"), None
    if number < known.secrets.count and _is_the_revoked(known, tx, txid):
        return "revoked", number
    return "unknown", number


def _is_the_revoked(known: Known, tx: Tx, txid: bytes) -> bool:
    """Whether a commitment with a number that the peer has revoked is the peer's, as far as can be told."""
    if known.revocable is not None:
        return known.revocable.txid == txid
    return not known.own_point or identify_outputs(known.params, tx, "local", known.own_point, ()).to_local is None


def is_safe_to_publish(known: Known, tx: Tx) -> bool:
    """Whether a transaction that closed the channel, left the chain, and is not one that we published ourselves may be
    published (again) by us: never a commitment of ours that may be revoked (BOLT 5, "MUST NOT broadcast a commitment
    transaction for which *it* has exposed the `per_commitment_secret`").

    Who published our commitment in our place has a copy of us, an older or a newer one: even if ours is the latest that
    we know of, the copy may have revoked it. A revoked commitment of the peer's is all ours, and one from a future that
    we lost pays our balance.
    """
    kind, number = classify(known, tx)
    match kind:
        case "mutual" | "remote_current" | "remote_next":
            return True
        case "local":
            return False
        case "revoked" | "unknown":
            return number is not None and _is_surely_of_peer(known, tx, number)
        case _:
            assert_never(kind)


def _is_surely_of_peer(known: Known, tx: Tx, number: int) -> bool:
    """Whether an output of a commitment that is neither side's latest tells that it is the peer's. The number does not
    tell: both sides' commitments are counted alike."""
    params = known.params
    ours = to_remote_script_pubkey(params, "remote")
    if ours != to_remote_script_pubkey(params, "local") and any(output.script_pubkey == ours for output in tx.outputs):
        return True
    if number >= known.secrets.count:
        return False
    point = per_commitment_point(known.secrets.secret(number))
    return identify_outputs(params, tx, "remote", point, ()).to_local is not None


def ended_by(known: Known, facts: Iterable[Fact]) -> tuple[CloseKind | None, int | None]:
    """What `classify` says of the transaction in the chain that ended the channel, if there is one. One that is
    "revoked", or "unknown" with a number, needs `Known.revocable` and `Known.own_point`."""
    for fact in facts:
        if any(txin.outpoint == known.params.funding_outpoint for txin in fact.tx.inputs):
            return classify(known, fact.tx)
    return None, None


def revoked_number(known: Known, facts: Iterable[Fact]) -> int | None:
    """The number of the revoked commitment that is in the chain, if there is one."""
    kind, number = ended_by(known, facts)
    return number if kind == "revoked" else None
