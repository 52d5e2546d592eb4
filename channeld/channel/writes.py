"""Rows that belong to a transition but are not part of the state, committed in the same transaction as the state."""

from __future__ import annotations

from msgspec import Struct


class SaveAdd(Struct, frozen=True):
    """Keep the wire form of an `update_add_htlc` (with its onion): ours for retransmission,
    theirs until it is answered."""

    offered: bool
    id: int
    raw: bytes


class ForgetAdd(Struct, frozen=True):
    """The HTLC is gone for good from both commitments, or the add is no longer needed."""

    offered: bool
    id: int


class SaveRevocable(Struct, frozen=True):
    """What is needed to punish remote commitment number `index` once it is revoked: its HTLCs (BOLT 5).
    Written with the signature that creates the need. `htlcs` are (offered by local, amount_msat, payment_hash,
    cltv_expiry)."""

    index: int
    txid: bytes
    to_local_msat: int
    to_remote_msat: int
    feerate_per_kw: int
    htlcs: tuple[tuple[bool, int, bytes, int], ...]


Write = SaveAdd | ForgetAdd | SaveRevocable
