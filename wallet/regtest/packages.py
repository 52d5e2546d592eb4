"""Packages: `submitpackage` for a child with its parents, `testmempoolaccept` for several (Bitcoin Core 29's rules)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from wallet.bitcoin import OutPoint, Tx, TxOut
from wallet.regtest import replacement, truc
from wallet.regtest.accept import Candidate, Mode, Rejected
from wallet.regtest.mempool import Mempool
from wallet.regtest.policy import Rejection, format_rate
from wallet.regtest.pool import Entry, Limits

MAX_PACKAGE_COUNT = 25
MAX_PACKAGE_WEIGHT = 404_000


@dataclass
class TxResult:
    """What became of one transaction of a package.

    `effective` is (fee in sat, vbytes, wtxids) of what was judged together. One of `entry`, `candidate`, `other_wtxid`
    and `rejection` says the rest: in the mempool before, newly valid, another witness is there, refused.
    """

    entry: Entry | None = None
    candidate: Candidate | None = None
    other_wtxid: bytes | None = None
    rejection: Rejection | None = None
    effective: tuple[int, int, list[bytes]] | None = None


@dataclass
class PackageResult:
    """`message` is `success` or the package's own error; `results` by wtxid, for the transactions that got that far."""

    message: str = "success"
    results: dict[bytes, TxResult] = field(default_factory=dict)
    replaced: list[bytes] = field(default_factory=list)


def check_well_formed(txs: Sequence[Tx]) -> None:
    """Rules that need no chain (IsWellFormedPackage). Raises Rejection."""
    if len(txs) > MAX_PACKAGE_COUNT:
        raise Rejection("package-too-many-transactions")
    if len(txs) > 1 and sum(tx.weight() for tx in txs) > MAX_PACKAGE_WEIGHT:
        raise Rejection("package-too-large")
    txids = [tx.txid() for tx in txs]
    if len(set(txids)) != len(txids):
        raise Rejection("package-contains-duplicates")
    later = set(txids)
    for txid, tx in zip(txids, txs, strict=True):
        if any(txin.outpoint.txid in later for txin in tx.inputs):
            raise Rejection("package-not-sorted")
        later.discard(txid)
    spent: set[OutPoint] = set()
    for tx in txs:
        own = {txin.outpoint for txin in tx.inputs}
        if not tx.inputs or own & spent:
            raise Rejection("conflict-in-package")
        spent |= own


def is_child_with_parents(txs: Sequence[Tx]) -> bool:
    """Whether the last transaction spends from each of the others."""
    spent = {txin.outpoint.txid for txin in txs[-1].inputs}
    return len(txs) > 1 and all(tx.txid() in spent for tx in txs[:-1])


def is_child_with_parents_tree(txs: Sequence[Tx]) -> bool:
    """The same, and no parent spends from another."""
    parents = {tx.txid() for tx in txs[:-1]}
    spent = {txin.outpoint.txid for tx in txs[:-1] for txin in tx.inputs}
    return is_child_with_parents(txs) and not parents & spent


class PackageJudge:
    """Judges packages against a mempool, and takes them in."""

    def __init__(self, mempool: Mempool) -> None:
        self.mempool = mempool
        self.pool = mempool.pool
        self.judge = mempool.judge

    def test(self, txs: Sequence[Tx], max_fee_rate: int | None) -> PackageResult:
        """What the mempool would say of these transactions together; nothing is replaced and nothing taken in."""
        mode = Mode(replace=False, evict_sibling=False, single=False, max_fee_rate=max_fee_rate)
        result, candidates = self._judge_all(txs, mode)
        for candidate in candidates:
            effective = (candidate.modified_fee_sat, candidate.vsize, [candidate.wtxid])
            result.results.setdefault(candidate.wtxid, TxResult(candidate=candidate, effective=effective))
        return result

    def submit(self, txs: Sequence[Tx], max_fee_rate: int | None) -> PackageResult:
        """Take a child with its unconfirmed parents in: each by itself if it can, the rest paid for together."""
        try:
            check_well_formed(txs)
            self._check_topology(txs)
        except Rejection as rejection:
            return PackageResult(str(rejection))
        result = PackageResult()
        early: dict[bytes, TxResult] = {}
        together: list[Tx] = []
        for tx in txs:
            self._submit_alone(tx, max_fee_rate, result, early, together, only=len(txs) == 1)
        if any(tx.wtxid() in early and tx not in together for tx in txs):
            result.message = "transaction failed"
        elif together:
            self._submit_together(together, max_fee_rate, result)
        self.mempool.trim()
        for tx in txs:
            wtxid = tx.wtxid()
            if wtxid not in result.results and wtxid in early:
                result.results[wtxid] = early[wtxid]
            self._check_still_there(wtxid, result)
        return result

    def _check_topology(self, txs: Sequence[Tx]) -> None:
        if len(txs) == 1:
            return
        if not is_child_with_parents(txs):
            raise Rejection("package-not-child-with-parents")
        package = {tx.txid() for tx in txs[:-1]}
        for txin in txs[-1].inputs:
            confirmed = self.judge.chain.store.coin(txin.outpoint) is not None
            if txin.outpoint.txid not in package and not confirmed:
                raise Rejection("package-not-child-with-unconfirmed-parents")

    def _submit_alone(
        self,
        tx: Tx,
        max_fee_rate: int | None,
        result: PackageResult,
        early: dict[bytes, TxResult],
        together: list[Tx],
        *,
        only: bool,
    ) -> None:
        txid, wtxid = tx.txid(), tx.wtxid()
        if txid in self.pool:
            entry = self.pool.entries[txid]
            same = entry.wtxid == wtxid
            result.results[wtxid] = TxResult(entry=entry) if same else TxResult(other_wtxid=entry.wtxid)
            return
        try:
            candidate = self.mempool.submit(tx, Mode(max_fee_rate=max_fee_rate), trim=False)
        except Rejection as rejection:
            effective = None
            if rejection.kind == "reconsiderable" and isinstance(rejection, Rejected):
                refused = rejection.candidate
                effective = (refused.modified_fee_sat, refused.vsize, [wtxid])
            early[wtxid] = TxResult(rejection=rejection, effective=effective)
            if not only and rejection.kind in ("reconsiderable", "missing-inputs"):
                together.append(tx)
            return
        result.replaced += candidate.replaced
        effective = (candidate.modified_fee_sat, candidate.vsize, [wtxid])
        result.results[wtxid] = TxResult(candidate=candidate, effective=effective)

    def _check_still_there(self, wtxid: bytes, result: PackageResult) -> None:
        found = result.results.get(wtxid)
        if found is None or found.rejection is not None or found.other_wtxid is not None:
            return
        if wtxid not in self.pool.wtxids:
            result.message = "transaction failed"
            result.results[wtxid] = TxResult(rejection=Rejection("mempool full"))

    def _submit_together(self, txs: Sequence[Tx], max_fee_rate: int | None, result: PackageResult) -> None:
        mode = Mode(package_fees=True, evict_sibling=False, single=False, max_fee_rate=max_fee_rate)
        judged, candidates = self._judge_all(txs, mode)
        result.message = judged.message
        result.results.update(judged.results)
        if judged.message != "success":
            return
        replaced: dict[bytes, Entry] = {}
        for candidate in candidates:
            replaced.update(candidate.replaced)
        self.pool.remove(list(replaced), "replaced")
        result.replaced += replaced
        fees = sum(candidate.modified_fee_sat for candidate in candidates)
        vsize = sum(candidate.vsize for candidate in candidates)
        wtxids = [candidate.wtxid for candidate in candidates]
        for candidate in candidates:
            candidate.replaced = {}
            self.mempool.take(candidate)
            result.results[candidate.wtxid] = TxResult(candidate=candidate, effective=(fees, vsize, wtxids))

    # AcceptMultipleTransactions.

    def _judge_all(self, txs: Sequence[Tx], mode: Mode) -> tuple[PackageResult, list[Candidate]]:
        result = PackageResult()
        candidates: list[Candidate] = []
        try:
            check_well_formed(txs)
            self._judge_each(txs, mode, result, candidates)
            if result.message == "success":
                self._check_together(txs, mode, result, candidates)
        except Rejection as rejection:
            result.message = str(rejection)
        if result.message != "success":
            return result, []
        return result, candidates

    def _judge_each(self, txs: Sequence[Tx], mode: Mode, result: PackageResult, candidates: list[Candidate]) -> None:
        outputs: dict[OutPoint, TxOut] = {}
        for tx in txs:
            try:
                candidate = self.judge.judge(tx, mode, outputs)
                self.judge.check_max_fee_rate(candidate, mode)
            except Rejection as rejection:
                result.message = "transaction failed"
                result.results[tx.wtxid()] = TxResult(rejection=rejection)
                return
            candidates.append(candidate)
            outputs.update((OutPoint(candidate.txid, vout), output) for vout, output in enumerate(tx.outputs))

    def _check_together(
        self, txs: Sequence[Tx], mode: Mode, result: PackageResult, candidates: list[Candidate]
    ) -> None:
        for candidate in candidates:
            truc.check_in_package(self.pool, txs, candidate.tx, candidate.vsize, candidate.ancestors)
        fees = sum(candidate.modified_fee_sat for candidate in candidates)
        vsize = sum(candidate.vsize for candidate in candidates)
        last = candidates[-1]
        if mode.package_fees:
            try:
                self.pool.check_fee_rate(fees, vsize, self.judge.clock.now())
            except Rejection as rejection:
                result.message = "transaction failed"
                effective = (fees, vsize, [candidate.wtxid for candidate in candidates])
                result.results[last.wtxid] = TxResult(rejection=rejection, effective=effective)
                return
        if len(txs) > 1:
            self._check_limits(candidates, vsize)
            self._check_replacement(txs, candidates, fees, vsize)
        elif last.conflicts:
            self.judge.check_replacement(last)
        self._check_dust_and_scripts(txs, result, candidates)

    def _check_dust_and_scripts(self, txs: Sequence[Tx], result: PackageResult, candidates: list[Candidate]) -> None:
        if self.pool.policy.require_standard:
            try:
                truc.check_dust_spent(self.pool, txs)
            except truc.MissingDustSpend as rejection:
                result.message = "unspent-dust"
                result.results[rejection.tx.wtxid()] = TxResult(rejection=rejection)
                return
        for candidate in candidates:
            try:
                self.judge.check_scripts(candidate)
            except Rejection as rejection:
                result.message = "transaction failed"
                result.results[candidate.wtxid] = TxResult(rejection=rejection)
                return

    def _check_limits(self, candidates: Sequence[Candidate], vsize: int) -> None:
        limits = Limits.of(self.pool.policy)
        count = len(candidates)
        problem = None
        for name, most in (("ancestor", limits.ancestor_count), ("descendant", limits.descendant_count)):
            if problem is None and count > most:
                problem = f"package count {count} exceeds {name} count limit [limit: {most}]"
        for name, most in (("ancestor", limits.ancestor_vbytes), ("descendant", limits.descendant_vbytes)):
            if problem is None and vsize > most:
                problem = f"package size {vsize} exceeds {name} size limit [limit: {most}]"
        if problem is not None:
            raise Rejection("package-mempool-limits", problem)
        parents = {parent for candidate in candidates for parent in self.pool.parents_of(candidate.tx)}
        try:
            self.pool.check_limits(parents, vsize, count, limits)
        except Rejection as rejection:
            raise Rejection("package-mempool-limits", f"possibly {rejection.debug}") from rejection

    def _check_replacement(self, txs: Sequence[Tx], candidates: Sequence[Candidate], fees: int, vsize: int) -> None:
        direct = {txid for candidate in candidates for txid in candidate.conflicts}
        if not direct:
            return
        if len(txs) != 2 or not is_child_with_parents(txs):
            raise Rejection("package RBF failed: package must be 1-parent-1-child")
        parent, child = candidates
        if parent.ancestors or child.ancestors:
            raise Rejection("package RBF failed: new transaction cannot have mempool ancestors")
        name, pool = child.txid_hex, self.pool
        replaced = replacement.find_replaced(pool, name, direct, "package RBF failed: too many potential replacements")
        replacement.check_pays_for_replacement(
            sum(entry.modified_fee_sat for entry in replaced.values()),
            fees,
            vsize,
            pool.policy,
            name,
            "package RBF failed: insufficient anti-DoS fees",
        )
        if fees * 1000 // vsize <= parent.modified_fee_sat * 1000 // parent.vsize:
            raise Rejection(
                "package RBF failed: package feerate is less than or equal to parent feerate",
                f"package feerate {format_rate(fees, vsize)} <= parent feerate is"
                f" {format_rate(parent.modified_fee_sat, parent.vsize)}",
            )
        replacement.check_improves_diagram(pool, [pool.entries[txid] for txid in direct], replaced, (fees, vsize))
        child.replaced = replaced
