"""Replacement by fee as Bitcoin Core 29 does it: BIP 125's rules 2 to 6 without signalling, and package replacement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction

from wallet.bitcoin import Tx
from wallet.regtest.policy import Policy, Rejection, fee_for, format_money, format_rate
from wallet.regtest.pool import Entry, Pool

MAX_REPLACEMENT_CANDIDATES = 100


def _rate(fee_sat: int, vsize: int) -> int:
    return fee_sat * 1000 // vsize


def check_pays_more_than_conflicts(
    fee_sat: int, vsize: int, txid_hex: str, direct: Iterable[Entry], suffix: str
) -> None:
    """Rule 6: a higher fee rate than each transaction that is directly replaced. Raises Rejection."""
    for entry in direct:
        if _rate(fee_sat, vsize) <= _rate(entry.modified_fee_sat, entry.vsize):
            raise Rejection(
                f"insufficient fee{suffix}",
                f"rejecting replacement {txid_hex}; new feerate {format_rate(fee_sat, vsize)}"
                f" <= old feerate {format_rate(entry.modified_fee_sat, entry.vsize)}",
                "reconsiderable",
            )


def find_replaced(
    pool: Pool, txid_hex: str, direct: Collection[bytes], reason: str = "too many potential replacements"
) -> dict[bytes, Entry]:
    """Rule 5: all that would go, at most 100 (counted per direct conflict). Raises Rejection."""
    count = sum(len(pool.descendants((txid,))) for txid in direct)
    if count > MAX_REPLACEMENT_CANDIDATES:
        raise Rejection(
            reason,
            f"rejecting replacement {txid_hex}; too many potential replacements"
            f" ({count} > {MAX_REPLACEMENT_CANDIDATES})",
        )
    return pool.descendants(direct)


def check_no_new_unconfirmed(pool: Pool, tx: Tx, txid_hex: str, direct: Iterable[Entry], suffix: str) -> None:
    """Rule 2: no unconfirmed inputs but those that the replaced transactions had. Raises Rejection."""
    known = {parent for entry in direct for parent in entry.parents}
    for index, txin in enumerate(tx.inputs):
        if txin.outpoint.txid in pool and txin.outpoint.txid not in known:
            raise Rejection(
                f"replacement-adds-unconfirmed{suffix}",
                f"replacement {txid_hex} adds unconfirmed input, idx {index}",
            )


def check_pays_for_replacement(
    old_fees_sat: int, new_fees_sat: int, new_vsize: int, policy: Policy, txid_hex: str, reason: str
) -> None:
    """Rules 3 and 4: at least the fees of what goes, and the relay of what comes. Raises Rejection, reconsiderable."""
    if new_fees_sat < old_fees_sat:
        raise Rejection(
            reason,
            f"rejecting replacement {txid_hex}, less fees than conflicting txs;"
            f" {format_money(new_fees_sat)} < {format_money(old_fees_sat)}",
            "reconsiderable",
        )
    additional = new_fees_sat - old_fees_sat
    relay = fee_for(policy.incremental_relay_fee, new_vsize)
    if additional < relay:
        raise Rejection(
            reason,
            f"rejecting replacement {txid_hex}, not enough additional fees to relay;"
            f" {format_money(additional)} < {format_money(relay)}",
            "reconsiderable",
        )


# Fee rate diagrams, for packages that replace.


def check_conflict_topology(pool: Pool, direct: Iterable[Entry]) -> None:
    """A package may only replace clusters of at most two transactions. Raises Rejection."""
    for entry in direct:
        name = entry.txid[::-1].hex()
        ancestors = pool.ancestors(entry.parents)
        descendants = pool.descendants(entry.children)
        problem = None
        if len(ancestors) > 1:
            problem = f"{name} has {len(ancestors)} ancestors, max 1 allowed"
        elif len(descendants) > 1:
            problem = f"{name} has {len(descendants)} descendants, max 1 allowed"
        elif ancestors and descendants:
            problem = f"{name} has both ancestor and descendant, exceeding cluster limit of 2"
        elif descendants:
            (child,) = descendants.values()
            if len(child.parents) > 1:
                problem = f"{name} is not the only parent of child {child.txid[::-1].hex()}"
        elif ancestors:
            (parent,) = ancestors.values()
            if len(parent.children) > 1:
                problem = f"{name} is not the only child of parent {parent.txid[::-1].hex()}"
        if problem is not None:
            raise Rejection(f"package RBF failed: {problem}")


Chunk = tuple[int, int]
"""Fees in sat and virtual bytes that a miner takes together."""


def _chunks_of_pair(parent: Chunk, child: Chunk) -> list[Chunk]:
    if Fraction(*child) > Fraction(*parent):
        return [(parent[0] + child[0], parent[1] + child[1])]
    return [parent, child]


def _sorted(chunks: Iterable[Chunk]) -> list[Chunk]:
    return sorted(chunks, key=lambda chunk: Fraction(*chunk), reverse=True)


def _fee_at(chunks: Sequence[Chunk], size: int) -> Fraction:
    fees = Fraction(0)
    for fee, vsize in chunks:
        if size <= vsize:
            return fees + Fraction(fee * size, vsize)
        fees += fee
        size -= vsize
    return fees


def improves_diagram(old: Sequence[Chunk], new: Sequence[Chunk]) -> bool:
    """Whether at every size a miner earns at least as much with `new` as with `old`, and somewhere more."""
    points = {0}
    for chunks in (old, new):
        total = 0
        for _, vsize in chunks:
            total += vsize
            points.add(total)
    differences = [_fee_at(new, point) - _fee_at(old, point) for point in sorted(points)]
    return all(difference >= 0 for difference in differences) and any(difference > 0 for difference in differences)


def check_improves_diagram(pool: Pool, direct: Iterable[Entry], replaced: dict[bytes, Entry], package: Chunk) -> None:
    """A miner must earn more with the package than with what it replaces. Raises Rejection."""
    direct = list(direct)
    check_conflict_topology(pool, direct)
    old: list[Chunk] = []
    new: list[Chunk] = [package]
    seen: set[bytes] = set()
    for entry in direct:
        cluster = {**pool.ancestors(entry.parents), **pool.descendants((entry.txid,))}
        if seen & cluster.keys():
            continue
        seen |= cluster.keys()
        members = [(member.modified_fee_sat, member.vsize) for member in cluster.values() if not member.parents]
        members += [(member.modified_fee_sat, member.vsize) for member in cluster.values() if member.parents]
        old += _chunks_of_pair(*members) if len(members) == 2 else members
        new += [(m.modified_fee_sat, m.vsize) for m in cluster.values() if m.txid not in replaced]
    if not improves_diagram(_sorted(old), _sorted(new)):
        raise Rejection("package RBF failed: insufficient feerate: does not improve feerate diagram")
