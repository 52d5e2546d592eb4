"""The mempool as a graph: entries, who spends whom, limits by size and age, the floor that evictions raise."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from wallet.bitcoin import OutPoint, Tx, TxOut
from wallet.regtest.policy import Policy, Rejection, fee_for

_ENTRY_OVERHEAD = 1000
_ROLLING_HALF_LIFE_SECONDS = 12 * 3600


class Limits(NamedTuple):
    """How many unconfirmed relatives, and of which total virtual size, a transaction may have (itself included)."""

    ancestor_count: int
    ancestor_vbytes: int
    descendant_count: int
    descendant_vbytes: int

    @classmethod
    def of(cls, policy: Policy) -> Limits:
        """The limits that the policy sets."""
        return cls(policy.ancestor_count, policy.ancestor_vbytes, policy.descendant_count, policy.descendant_vbytes)


class Entry:
    """An unconfirmed transaction. `time` is seconds, `height` the tip's when it came, fees are sat."""

    __slots__ = (
        "children",
        "delta_sat",
        "fee_sat",
        "height",
        "parents",
        "raw",
        "sequence",
        "sigops",
        "spends_coinbase",
        "spent",
        "time",
        "tx",
        "txid",
        "vsize",
        "weight",
        "wtxid",
    )

    def __init__(self, tx: Tx, raw: bytes, txid: bytes, wtxid: bytes, spent: tuple[TxOut, ...]) -> None:
        self.tx = tx
        self.raw = raw
        self.txid = txid
        self.wtxid = wtxid
        self.spent = spent
        self.fee_sat = 0
        self.delta_sat = 0
        self.weight = 0
        self.vsize = 0
        self.sigops = 0
        self.time = 0
        self.height = 0
        self.sequence = 0
        self.spends_coinbase = False
        self.parents: set[bytes] = set()
        self.children: set[bytes] = set()

    @property
    def modified_fee_sat(self) -> int:
        """The fee with what `prioritisetransaction` added."""
        return self.fee_sat + self.delta_sat

    @property
    def usage(self) -> int:
        """About how many bytes of memory the entry takes."""
        return _ENTRY_OVERHEAD + 2 * len(self.raw)


class Pool:
    """The unconfirmed transactions. `on_removed(entry, reason)` and `on_added(entry)` tell of every change."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.entries: dict[bytes, Entry] = {}
        self.wtxids: dict[bytes, bytes] = {}
        self.spenders: dict[OutPoint, bytes] = {}
        self.deltas: dict[bytes, int] = {}
        self.unbroadcast: set[bytes] = set()
        self.usage = 0
        self.sequence = 1
        self.on_added: list[Callable[[Entry, int], None]] = []
        self.on_removed: list[Callable[[Entry, str, int], None]] = []
        self._rolling_fee = 0.0
        self._rolling_since = 0
        self._block_since_bump = False

    def __contains__(self, txid: bytes) -> bool:
        return txid in self.entries

    def output(self, outpoint: OutPoint) -> TxOut | None:
        """The output, if an unconfirmed transaction makes it."""
        entry = self.entries.get(outpoint.txid)
        if entry is None or outpoint.vout >= len(entry.tx.outputs):
            return None
        return entry.tx.outputs[outpoint.vout]

    # Relatives.

    def parents_of(self, tx: Tx) -> set[bytes]:
        """The unconfirmed transactions that `tx` spends from."""
        return {txin.outpoint.txid for txin in tx.inputs if txin.outpoint.txid in self.entries}

    def ancestors(self, parents: Iterable[bytes]) -> dict[bytes, Entry]:
        """The given unconfirmed transactions and all that they descend from."""
        found: dict[bytes, Entry] = {}
        waiting = list(parents)
        while waiting:
            txid = waiting.pop()
            if txid not in found:
                entry = found[txid] = self.entries[txid]
                waiting.extend(entry.parents)
        return found

    def descendants(self, txids: Iterable[bytes]) -> dict[bytes, Entry]:
        """The given unconfirmed transactions and all that descend from them."""
        found: dict[bytes, Entry] = {}
        waiting = list(txids)
        while waiting:
            txid = waiting.pop()
            if txid not in found:
                entry = found[txid] = self.entries[txid]
                waiting.extend(entry.children)
        return found

    def check_limits(self, parents: Collection[bytes], vsize: int, count: int, limits: Limits) -> dict[bytes, Entry]:
        """The ancestors of `count` new transactions of `vsize` in all. Raises Rejection(`too-long-mempool-chain`)."""
        ancestors: dict[bytes, Entry] = {}
        staged = set(parents)
        total = vsize
        while staged:
            entry = self.entries[staged.pop()]
            ancestors[entry.txid] = entry
            total += entry.vsize
            family = self.descendants((entry.txid,)).values()
            if sum(member.vsize for member in family) + vsize > limits.descendant_vbytes:
                raise _too_long(
                    f"exceeds descendant size limit for tx {_hex(entry)} [limit: {limits.descendant_vbytes}]"
                )
            if len(family) + count > limits.descendant_count:
                raise _too_long(f"too many descendants for tx {_hex(entry)} [limit: {limits.descendant_count}]")
            if total > limits.ancestor_vbytes:
                raise _too_long(f"exceeds ancestor size limit [limit: {limits.ancestor_vbytes}]")
            staged |= {parent for parent in entry.parents if parent not in ancestors}
            if len(staged) + len(ancestors) + count > limits.ancestor_count:
                raise _too_long(f"too many unconfirmed ancestors [limit: {limits.ancestor_count}]")
        return ancestors

    # Changes.

    def add(self, entry: Entry) -> None:
        """Take an entry in; its relatives are linked, children that were there first included."""
        entry.delta_sat = self.deltas.get(entry.txid, 0)
        entry.parents = self.parents_of(entry.tx)
        entry.sequence = self.sequence
        self.sequence += 1
        self.entries[entry.txid] = entry
        self.wtxids[entry.wtxid] = entry.txid
        self.usage += entry.usage
        for parent in entry.parents:
            self.entries[parent].children.add(entry.txid)
        for txin in entry.tx.inputs:
            self.spenders[txin.outpoint] = entry.txid
        for vout in range(len(entry.tx.outputs)):
            child = self.spenders.get(OutPoint(entry.txid, vout))
            if child is not None:
                entry.children.add(child)
                self.entries[child].parents.add(entry.txid)
        for listener in self.on_added:
            listener(entry, entry.sequence)

    def remove(self, txids: Iterable[bytes], reason: str) -> None:
        """Drop exactly these entries; relatives that stay are unlinked."""
        for txid in txids:
            entry = self.entries.pop(txid)
            del self.wtxids[entry.wtxid]
            self.unbroadcast.discard(txid)
            self.usage -= entry.usage
            for txin in entry.tx.inputs:
                self.spenders.pop(txin.outpoint, None)
            for parent in entry.parents:
                if parent in self.entries:
                    self.entries[parent].children.discard(txid)
            for child in entry.children:
                if child in self.entries:
                    self.entries[child].parents.discard(txid)
            sequence = self.sequence
            if reason != "block":
                self.sequence += 1
            for listener in self.on_removed:
                listener(entry, reason, sequence)

    def remove_with_descendants(self, txids: Iterable[bytes], reason: str) -> None:
        """Drop these entries and all that descend from them; unknown ones are passed over."""
        self.remove(self.descendants([txid for txid in txids if txid in self.entries]), reason)

    def remove_conflicts(self, tx: Tx, txid: bytes) -> None:
        """Drop what spends the same outputs as a confirmed transaction, with its descendants."""
        rivals = {self.spenders[txin.outpoint] for txin in tx.inputs if txin.outpoint in self.spenders} - {txid}
        self.remove_with_descendants(rivals, "conflict")

    def remove_spenders(self, tx: Tx, txid: bytes) -> None:
        """Drop what spends the outputs of a transaction that is no longer anywhere, with descendants."""
        outpoints = [OutPoint(txid, vout) for vout in range(len(tx.outputs))]
        self.remove_with_descendants([self.spenders[o] for o in outpoints if o in self.spenders], "reorg")

    def prioritise(self, txid: bytes, delta_sat: int) -> None:
        """Count `delta_sat` more (or less) as the transaction's fee, now or when it comes."""
        total = self.deltas.get(txid, 0) + delta_sat
        if total:
            self.deltas[txid] = total
        else:
            self.deltas.pop(txid, None)
        if txid in self.entries:
            self.entries[txid].delta_sat = total

    # Limits of the whole.

    def min_fee_rate(self, now: int) -> int:
        """The rate (sat per 1000 virtual bytes) that evictions ask for; it decays once blocks come."""
        if self._block_since_bump and self._rolling_fee and now > self._rolling_since + 10:
            half_life = float(_ROLLING_HALF_LIFE_SECONDS)
            if self.usage < self.policy.max_mempool_bytes / 4:
                half_life /= 4
            elif self.usage < self.policy.max_mempool_bytes / 2:
                half_life /= 2
            self._rolling_fee /= 2 ** ((now - self._rolling_since) / half_life)
            self._rolling_since = now
            if self._rolling_fee < self.policy.incremental_relay_fee / 2:
                self._rolling_fee = 0.0
        return max(round(self._rolling_fee), self.policy.incremental_relay_fee) if self._rolling_fee else 0

    def block_came(self, now: int) -> None:
        """From the first block after an eviction on, the floor decays."""
        self._block_since_bump = True
        self._rolling_since = now

    def check_fee_rate(self, fee_sat: int, vsize: int, now: int) -> None:
        """Raises Rejection, reconsiderable, if the fee is below the floor or the relay minimum."""
        floor = fee_for(self.min_fee_rate(now), vsize)
        if fee_sat < floor:
            raise Rejection("mempool min fee not met", f"{fee_sat} < {floor}", "reconsiderable")
        least = fee_for(self.policy.min_relay_fee, vsize)
        if fee_sat < least:
            raise Rejection("min relay fee not met", f"{fee_sat} < {least}", "reconsiderable")

    def trim(self, now: int) -> None:
        """Drop what is too old, then what pays least, until the rest fits."""
        oldest = now - self.policy.expiry_seconds
        self.remove_with_descendants([e.txid for e in self.entries.values() if e.time < oldest], "expiry")
        while self.usage > self.policy.max_mempool_bytes and self.entries:
            victim, rate = self._worst()
            self._rolling_fee = max(self._rolling_fee, rate + self.policy.incremental_relay_fee)
            self._block_since_bump = False
            self.remove_with_descendants((victim,), "sizelimit")

    def _worst(self) -> tuple[bytes, float]:
        worst, worst_rate = b"", float("inf")
        for entry in self.entries.values():
            family = self.descendants((entry.txid,)).values()
            together = sum(e.modified_fee_sat for e in family) * 1000 / sum(e.vsize for e in family)
            rate = max(together, entry.modified_fee_sat * 1000 / entry.vsize)
            if rate < worst_rate:
                worst, worst_rate = entry.txid, rate
        return worst, worst_rate


def _hex(entry: Entry) -> str:
    return entry.txid[::-1].hex()


def _too_long(debug: str) -> Rejection:
    return Rejection("too-long-mempool-chain", debug)
