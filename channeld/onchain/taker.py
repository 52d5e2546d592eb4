"""Who spent an HTLC output, told by its witness: every branch of the scripts has a form of its own (BOLT 3)."""

from __future__ import annotations

from channeld.bolt.transactions import Side

Witness = tuple[bytes, ...]


def htlc_spent_by_owner(witness: Witness) -> bool:
    """Whether the commitment's owner took it, by its HTLC transaction: `0 <sig> <sig> <preimage or empty> <script>`."""
    return len(witness) == 5


def taker_of_htlc(witness: Witness, revocation_pubkey: bytes) -> Side:
    """Who took an HTLC output of the peer's revoked commitment: the peer by its HTLC transaction, or we."""
    if htlc_spent_by_owner(witness):
        return "remote"
    assert len(witness) == 3
    return "local" if witness[1] == revocation_pubkey or len(witness[1]) in (0, 32) else "remote"
