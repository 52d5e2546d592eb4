"""Topologically restricted transactions (version 3, BIP 431) and ephemeral dust, as Bitcoin Core 29 checks them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from wallet.bitcoin import OutPoint, Tx
from wallet.regtest.policy import Policy, Rejection, dust_outputs
from wallet.regtest.pool import Entry, Pool

TRUC_VERSION = 3
TRUC_MAX_VSIZE = 10_000
TRUC_CHILD_MAX_VSIZE = 1000
TRUC_FAMILY_LIMIT = 2


class TrucViolation(Rejection):
    """`sibling` is the child whose eviction would make room, if its eviction may be considered."""

    def __init__(self, debug: str, sibling: Entry | None = None) -> None:
        super().__init__("TRUC-violation", debug)
        self.sibling = sibling


def _named(tx: Tx) -> str:
    return f"{tx.txid_hex} (wtxid={tx.wtxid()[::-1].hex()})"


def _check_inheritance(tx: Tx, parent: Tx) -> None:
    if tx.version != TRUC_VERSION and parent.version == TRUC_VERSION:
        raise TrucViolation(f"non-version=3 tx {_named(tx)} cannot spend from version=3 tx {_named(parent)}")
    if tx.version == TRUC_VERSION and parent.version != TRUC_VERSION:
        raise TrucViolation(f"version=3 tx {_named(tx)} cannot spend from non-version=3 tx {_named(parent)}")


def _check_size(tx: Tx, vsize: int, *, has_parent: bool) -> None:
    limit, word = (TRUC_CHILD_MAX_VSIZE, "child ") if has_parent else (TRUC_MAX_VSIZE, "")
    if vsize > limit:
        raise TrucViolation(f"version=3 {word}tx {_named(tx)} is too big: {vsize} > {limit} virtual bytes")


def check_single(pool: Pool, tx: Tx, vsize: int, ancestors: dict[bytes, Entry], conflicts: Collection[bytes]) -> None:
    """SingleTRUCChecks: a transaction against its unconfirmed ancestors. Raises TrucViolation."""
    for entry in ancestors.values():
        _check_inheritance(tx, entry.tx)
    if tx.version != TRUC_VERSION:
        return
    _check_size(tx, vsize, has_parent=False)
    if len(ancestors) + 1 > TRUC_FAMILY_LIMIT:
        raise TrucViolation(f"tx {_named(tx)} would have too many ancestors")
    if not ancestors:
        return
    _check_size(tx, vsize, has_parent=True)
    (parent,) = ancestors.values()
    family = len(pool.descendants((parent.txid,)))
    if family + 1 > TRUC_FAMILY_LIMIT and not parent.children & set(conflicts):
        sibling = None
        if family == TRUC_FAMILY_LIMIT:
            candidate = pool.entries[next(iter(parent.children))]
            if len(pool.ancestors(candidate.parents)) == 1:
                sibling = candidate
        raise TrucViolation(f"tx {_named(parent.tx)} would exceed descendant count limit", sibling)


def check_in_package(pool: Pool, package: Sequence[Tx], tx: Tx, vsize: int, ancestors: dict[bytes, Entry]) -> None:
    """PackageTRUCChecks: the same, with relatives in the package counted. Raises TrucViolation."""
    own = tx.txid()
    by_txid = {member.txid(): member for member in package}
    spent = {txin.outpoint.txid for txin in tx.inputs}
    in_package = [by_txid[txid] for txid in spent if txid in by_txid]
    if tx.version != TRUC_VERSION:
        for parent in [*(entry.tx for entry in ancestors.values()), *in_package]:
            _check_inheritance(tx, parent)
        return
    _check_size(tx, vsize, has_parent=False)
    if len(ancestors) + len(in_package) + 1 > TRUC_FAMILY_LIMIT:
        raise TrucViolation(f"tx {_named(tx)} would have too many ancestors")
    if not ancestors and not in_package:
        return
    _check_size(tx, vsize, has_parent=True)
    parent = next(iter(ancestors.values())).tx if ancestors else in_package[0]
    parent_txid = parent.txid()
    _check_inheritance(tx, parent)
    for member in package:
        for txin in member.inputs if member is not tx else ():
            if txin.outpoint.txid == parent_txid:
                raise TrucViolation(f"tx {_named(parent)} would exceed descendant count limit")
            if txin.outpoint.txid == own:
                raise TrucViolation(f"tx {_named(member)} would have too many ancestors")
    if ancestors and len(pool.descendants((parent_txid,))) > 1:
        raise TrucViolation(f"tx {_named(parent)} would exceed descendant count limit")


def check_dust_pays_nothing(tx: Tx, fee_sat: int, modified_fee_sat: int, policy: Policy) -> None:
    """A transaction with dust must not pay a fee, so that nobody mines it without its child. Raises Rejection."""
    if (fee_sat or modified_fee_sat) and dust_outputs(tx, policy):
        raise Rejection("dust", "tx with dust output must be 0-fee")


class MissingDustSpend(Rejection):
    """A child leaves its parent's dust unspent; `tx` is the child."""

    def __init__(self, tx: Tx) -> None:
        super().__init__("missing-ephemeral-spends", f"tx {_named(tx)} did not spend parent's ephemeral dust")
        self.tx = tx


def check_dust_spent(pool: Pool, package: Sequence[Tx]) -> None:
    """Each child must spend all dust of its unconfirmed parents. Raises MissingDustSpend."""
    by_txid = {tx.txid(): tx for tx in package}
    for tx in package:
        spent = {txin.outpoint for txin in tx.inputs}
        for txid in {outpoint.txid for outpoint in spent}:
            entry = pool.entries.get(txid)
            parent = by_txid.get(txid) or (entry.tx if entry else None)
            if parent is None:
                continue
            if any(OutPoint(txid, vout) not in spent for vout in dust_outputs(parent, pool.policy)):
                raise MissingDustSpend(tx)
