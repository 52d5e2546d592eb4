"""Whether the mempool takes a single transaction: Bitcoin Core 29's MemPoolAccept, in its order, with its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wallet.bitcoin import COINBASE_MATURITY_BLOCKS, OutPoint, Tx, TxOut
from wallet.bitcoin.tx import MAX_MONEY_SAT
from wallet.regtest import policy as rules
from wallet.regtest import replacement, truc
from wallet.regtest.chain import Chain
from wallet.regtest.clock import Clock
from wallet.regtest.policy import Rejection, format_money
from wallet.regtest.pool import Entry, Limits, Pool
from wallet.regtest.store import Coin
from wallet.regtest.verifier import verify

_LOCKTIME_THRESHOLD = 500_000_000
_SEQUENCE_FINAL = 0xFFFF_FFFF
_SEQUENCE_DISABLED = 1 << 31
_SEQUENCE_IS_TIME = 1 << 22
_SEQUENCE_MASK = 0xFFFF
_SEQUENCE_GRANULARITY = 9
_EXTRA_DESCENDANT_VBYTES = 10_000


@dataclass(frozen=True)
class Mode:
    """In which context a transaction is judged.

    `limits` off: it comes from a disconnected block. `package_fees`: the package pays for all. `evict_sibling`: a TRUC
    child may replace its sibling. `single`: exceptions for single transactions (carve-outs) apply.
    """

    limits: bool = True
    replace: bool = True
    evict_sibling: bool = True
    package_fees: bool = False
    single: bool = True
    max_fee_rate: int | None = None


SINGLE = Mode()
FROM_BLOCK = Mode(limits=False)


@dataclass
class Candidate:
    """A transaction on its way in: what was found out about it so far. `fee_sat` and `vsize` are exact."""

    tx: Tx
    raw: bytes
    txid: bytes
    wtxid: bytes
    coins: list[Coin] = field(default_factory=list)
    fee_sat: int = 0
    delta_sat: int = 0
    vsize: int = 0
    sigops: int = 0
    ancestors: dict[bytes, Entry] = field(default_factory=dict)
    conflicts: set[bytes] = field(default_factory=set)
    evicts_sibling: bool = False
    replaced: dict[bytes, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, tx: Tx) -> Candidate:
        """Nothing is known yet."""
        return cls(tx, tx.serialize(), tx.txid(), tx.wtxid())

    @property
    def modified_fee_sat(self) -> int:
        """The fee with what `prioritisetransaction` added."""
        return self.fee_sat + self.delta_sat

    @property
    def txid_hex(self) -> str:
        """The txid as bitcoind prints it."""
        return self.txid[::-1].hex()

    @property
    def spent(self) -> tuple[TxOut, ...]:
        """The outputs that the inputs spend, in order."""
        return tuple(coin.output for coin in self.coins)


class Judge:
    """Applies consensus and policy to candidates. Changes nothing."""

    def __init__(self, chain: Chain, pool: Pool, clock: Clock) -> None:
        self.chain = chain
        self.pool = pool
        self.clock = clock

    def find_coin(self, outpoint: OutPoint, package: Mapping[OutPoint, TxOut]) -> Coin | None:
        """An output of the package, the mempool or the chain; unconfirmed ones have the next block's height."""
        output = package.get(outpoint) or self.pool.output(outpoint)
        if output is not None:
            return Coin(output, self.chain.height + 1, False)
        return self.chain.store.coin(outpoint)

    def judge(self, tx: Tx, mode: Mode, package: Mapping[OutPoint, TxOut] | None = None) -> Candidate:
        """All checks but scripts and replacement (PreChecks). Raises Rejection."""
        policy = self.pool.policy
        candidate = Candidate.of(tx)
        rules.check_transaction(tx)
        if policy.require_standard:
            rules.check_standard(tx, policy)
        if len(tx.serialize_stripped()) < rules.MIN_STANDARD_TX_NONWITNESS_SIZE:
            raise Rejection("tx-size-small")
        if not self.is_final(tx):
            raise Rejection("non-final")
        self._check_new(candidate)
        self._find_conflicts(candidate, mode)
        self._find_coins(candidate, package or {})
        if not self.sequence_locks_met(tx, candidate.coins):
            raise Rejection("non-BIP68-final")
        candidate.fee_sat = self._check_amounts(candidate)
        candidate.delta_sat = self.pool.deltas.get(candidate.txid, 0)
        spent = candidate.spent
        if policy.require_standard:
            rules.check_inputs_standard(tx, spent)
            rules.check_witness_standard(tx, spent)
        candidate.sigops = rules.sigops_cost(tx, spent)
        candidate.vsize = rules.virtual_size(tx.weight(), candidate.sigops)
        if policy.require_standard:
            truc.check_dust_pays_nothing(tx, candidate.fee_sat, candidate.modified_fee_sat, policy)
        if candidate.sigops > rules.MAX_STANDARD_TX_SIGOPS_COST:
            raise Rejection("bad-txns-too-many-sigops", str(candidate.sigops))
        try:
            if mode.limits and tx.version != truc.TRUC_VERSION:
                self._check_own_fee(candidate)
            if mode.limits and not mode.package_fees:
                self.pool.check_fee_rate(candidate.modified_fee_sat, candidate.vsize, self.clock.now())
            self._check_relatives(candidate, mode)
        except Rejection as rejection:
            raise Rejected(rejection, candidate) from rejection
        return candidate

    def _check_new(self, candidate: Candidate) -> None:
        if candidate.wtxid in self.pool.wtxids:
            raise Rejection("txn-already-in-mempool")
        if candidate.txid in self.pool:
            raise Rejection("txn-same-nonwitness-data-in-mempool")

    def _find_conflicts(self, candidate: Candidate, mode: Mode) -> None:
        for txin in candidate.tx.inputs:
            rival = self.pool.spenders.get(txin.outpoint)
            if rival is None:
                continue
            if not mode.replace:
                raise Rejection("bip125-replacement-disallowed")
            candidate.conflicts.add(rival)

    def _find_coins(self, candidate: Candidate, package: Mapping[OutPoint, TxOut]) -> None:
        for txin in candidate.tx.inputs:
            coin = self.find_coin(txin.outpoint, package)
            if coin is None:
                if self.chain.store.has_coins_of(candidate.txid):
                    raise Rejection("txn-already-known")
                raise Rejection("bad-txns-inputs-missingorspent", kind="missing-inputs")
            candidate.coins.append(coin)

    def is_final(self, tx: Tx) -> bool:
        """Whether the next block may contain the transaction, by its locktime (BIP 113)."""
        if tx.locktime == 0:
            return True
        tip = self.chain.tip
        limit = tip.height + 1 if tx.locktime < _LOCKTIME_THRESHOLD else tip.median_time
        return tx.locktime < limit or all(txin.sequence == _SEQUENCE_FINAL for txin in tx.inputs)

    def sequence_locks_met(self, tx: Tx, coins: Sequence[Coin]) -> bool:
        """Whether the next block may contain the transaction, by its inputs' relative locks (BIP 68)."""
        if tx.version < 2:
            return True
        tip = self.chain.tip
        for txin, coin in zip(tx.inputs, coins, strict=True):
            if txin.sequence & _SEQUENCE_DISABLED:
                continue
            value = txin.sequence & _SEQUENCE_MASK
            if txin.sequence & _SEQUENCE_IS_TIME:
                since = self.chain.active[max(coin.height - 1, 0)].median_time
                if since + (value << _SEQUENCE_GRANULARITY) - 1 >= tip.median_time:
                    return False
            elif coin.height + value - 1 >= tip.height + 1:
                return False
        return True

    def _check_amounts(self, candidate: Candidate) -> int:
        # Consensus::CheckTxInputs for the next block.
        total = 0
        height = self.chain.height + 1
        for coin in candidate.coins:
            if coin.coinbase and height - coin.height < COINBASE_MATURITY_BLOCKS:
                depth = height - coin.height
                raise Rejection("bad-txns-premature-spend-of-coinbase", f"tried to spend coinbase at depth {depth}")
            total += coin.output.value_sat
            if total > MAX_MONEY_SAT:
                raise Rejection("bad-txns-inputvalues-outofrange")
        paid = sum(output.value_sat for output in candidate.tx.outputs)
        if total < paid:
            raise Rejection(
                "bad-txns-in-belowout", f"value in ({format_money(total)}) < value out ({format_money(paid)})"
            )
        return total - paid

    def _check_own_fee(self, candidate: Candidate) -> None:
        # A package may lift a transaction over the mempool's floor, but over the relay minimum only version 3:
        # for others nothing keeps the child that pays in the mempool.
        least = rules.fee_for(self.pool.policy.min_relay_fee, candidate.vsize)
        if candidate.modified_fee_sat < least:
            raise Rejection("min relay fee not met", f"{candidate.modified_fee_sat} < {least}")

    def _check_relatives(self, candidate: Candidate, mode: Mode) -> None:
        pool, tx = self.pool, candidate.tx
        parents = pool.parents_of(tx)
        limits = Limits.of(pool.policy)
        if len(candidate.conflicts) == 1 and mode.single:
            (rival,) = candidate.conflicts
            goes = sum(entry.vsize for entry in pool.descendants((rival,)).values())
            limits = limits._replace(
                descendant_count=limits.descendant_count + 1, descendant_vbytes=limits.descendant_vbytes + goes
            )
        try:
            candidate.ancestors = pool.check_limits(parents, candidate.vsize, 1, limits)
        except Rejection as rejection:
            carved_out = mode.single and candidate.vsize <= _EXTRA_DESCENDANT_VBYTES
            if not carved_out or tx.version == truc.TRUC_VERSION:
                raise
            self._check_carve_out(candidate, parents, limits, rejection)
        self._check_truc(candidate, mode)
        for txid in candidate.ancestors:
            if txid in candidate.conflicts:
                raise Rejection(
                    "bad-txns-spends-conflicting-tx",
                    f"{candidate.txid_hex} spends conflicting transaction {txid[::-1].hex()}",
                )

    def _check_carve_out(self, candidate: Candidate, parents: set[bytes], limits: Limits, original: Rejection) -> None:
        # One more child is let in if it has one parent only: what Lightning's old anchors relied on.
        relaxed = limits._replace(
            ancestor_count=2,
            descendant_count=limits.descendant_count + 1,
            descendant_vbytes=limits.descendant_vbytes + _EXTRA_DESCENDANT_VBYTES,
        )
        try:
            candidate.ancestors = self.pool.check_limits(parents, candidate.vsize, 1, relaxed)
        except Rejection:
            raise original from None

    def _check_truc(self, candidate: Candidate, mode: Mode) -> None:
        try:
            truc.check_single(self.pool, candidate.tx, candidate.vsize, candidate.ancestors, candidate.conflicts)
        except truc.TrucViolation as violation:
            if not mode.evict_sibling or violation.sibling is None:
                raise
            candidate.conflicts.add(violation.sibling.txid)
            candidate.evicts_sibling = True

    def check_replacement(self, candidate: Candidate) -> None:
        """BIP 125's rules for a single transaction; fills in `replaced`. Raises Rejection."""
        if not candidate.conflicts:
            return
        suffix = " (including sibling eviction)" if candidate.evicts_sibling else ""
        pool, name, fee = self.pool, candidate.txid_hex, candidate.modified_fee_sat
        direct = [pool.entries[txid] for txid in candidate.conflicts]
        replacement.check_pays_more_than_conflicts(fee, candidate.vsize, name, direct, suffix)
        replaced = replacement.find_replaced(
            pool, name, candidate.conflicts, f"too many potential replacements{suffix}"
        )
        replacement.check_no_new_unconfirmed(pool, candidate.tx, name, replaced.values(), suffix)
        replacement.check_pays_for_replacement(
            sum(entry.modified_fee_sat for entry in replaced.values()),
            fee,
            candidate.vsize,
            pool.policy,
            name,
            f"insufficient fee{suffix}",
        )
        candidate.replaced = replaced

    def check_scripts(self, candidate: Candidate) -> None:
        """Run all scripts under the mempool's flags. Raises Rejection."""
        failure = verify(candidate.raw, candidate.spent)
        if failure is None:
            return
        word = "mandatory-script-verify-flag-failed" if failure.mandatory else "non-mandatory-script-verify-flag"
        outpoint = candidate.tx.inputs[failure.input_index].outpoint
        raise Rejection(
            f"{word} ({failure.error})",
            f"input {failure.input_index} of {candidate.txid_hex} (wtxid {candidate.wtxid[::-1].hex()}),"
            f" spending {outpoint}",
        )

    def check_max_fee_rate(self, candidate: Candidate, mode: Mode) -> None:
        """The caller's own upper limit in sat per 1000 virtual bytes. Raises Rejection."""
        if mode.max_fee_rate is not None and candidate.modified_fee_sat * 1000 // candidate.vsize > mode.max_fee_rate:
            raise Rejection("max feerate exceeded")


class Rejected(Rejection):
    """A rejection after size and fee were known; `candidate` has them."""

    def __init__(self, rejection: Rejection, candidate: Candidate) -> None:
        super().__init__(rejection.reason, rejection.debug, rejection.kind)
        self.candidate = candidate
