"""Which transaction ended a channel."""

from __future__ import annotations

from collections.abc import Iterable

from channeld.bolt.transactions import commitment_number_of
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
    if number < known.secrets.count and (known.revocable is None or known.revocable.txid == txid):
        return "revoked", number
    return "unknown", number


def revoked_number(known: Known, facts: Iterable[Fact]) -> int | None:
    """The number of the revoked commitment that is in the chain, if there is one: then `Known.revocable` is needed."""
    for fact in facts:
        if any(txin.outpoint == known.params.funding_outpoint for txin in fact.tx.inputs):
            kind, number = classify(known, fact.tx)
            return number if kind == "revoked" else None
    return None
