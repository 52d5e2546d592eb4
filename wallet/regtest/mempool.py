"""The mempool: takes transactions and packages in, follows the chain, remembers itself over a restart."""

from __future__ import annotations

from collections.abc import Iterable

from wallet.bitcoin import COINBASE_MATURITY_BLOCKS, Block, SerializationError, Tx
from wallet.regtest import truc
from wallet.regtest.accept import FROM_BLOCK, SINGLE, Candidate, Judge, Mode, Rejected
from wallet.regtest.chain import Chain, TipChange
from wallet.regtest.clock import Clock
from wallet.regtest.policy import Policy, Rejection
from wallet.regtest.pool import Entry, Pool
from wallet.regtest.store import Coin


class Mempool:
    """Unconfirmed transactions that the next blocks may contain, on top of the active chain."""

    def __init__(self, chain: Chain, policy: Policy, clock: Clock) -> None:
        self.chain = chain
        self.clock = clock
        self.pool = Pool(policy)
        self.judge = Judge(chain, self.pool, clock)
        self.loaded = False
        chain.on_change.append(self.follow)

    @property
    def policy(self) -> Policy:
        """What is relayed."""
        return self.pool.policy

    def test(self, tx: Tx, mode: Mode = SINGLE) -> Candidate:
        """Judge a transaction fully without taking it in. Raises Rejection."""
        candidate = self.judge.judge(tx, mode)
        try:
            self.judge.check_max_fee_rate(candidate, mode)
            if self.policy.require_standard:
                truc.check_dust_spent(self.pool, [tx])
            self.judge.check_replacement(candidate)
            self.judge.check_scripts(candidate)
        except Rejection as rejection:
            raise Rejected(rejection, candidate) from rejection
        return candidate

    def submit(self, tx: Tx, mode: Mode = SINGLE, *, trim: bool = True) -> Candidate:
        """Take a transaction in. Raises Rejection."""
        candidate = self.test(tx, mode)
        if mode.limits and trim:
            self.admit(candidate)
        else:
            self.take(candidate)
        return candidate

    def admit(self, candidate: Candidate) -> None:
        """Take in what `test` just found acceptable. Raises Rejection if the mempool is full of better ones."""
        self.take(candidate)
        self.trim()
        if candidate.txid not in self.pool:
            raise Rejection("mempool full")

    def take(self, candidate: Candidate) -> Entry:
        """Put a candidate that passed all checks in, and what it replaces out."""
        self.pool.remove(list(candidate.replaced), "replaced")
        entry = Entry(candidate.tx, candidate.raw, candidate.txid, candidate.wtxid, candidate.spent)
        entry.fee_sat = candidate.fee_sat
        entry.weight = candidate.tx.weight()
        entry.vsize = candidate.vsize
        entry.sigops = candidate.sigops
        entry.time = self.clock.now()
        entry.height = self.chain.height
        entry.spends_coinbase = any(coin.coinbase for coin in candidate.coins)
        self.pool.add(entry)
        return entry

    def trim(self) -> None:
        """Enforce the limits of age and size."""
        self.pool.trim(self.clock.now())

    # The chain moves.

    def follow(self, change: TipChange) -> None:
        """Bring the mempool in line with the new active chain."""
        returned: dict[bytes, Tx] = {}
        for _, block in reversed(change.disconnected):
            returned.update((tx.txid(), tx) for tx in block.txs)
        for _, block in change.connected:
            self._block_connected(block, returned)
        if change.disconnected:
            self._take_back(returned.values())
            self._remove_premature()
            self.trim()
        if change.connected:
            self.pool.block_came(self.clock.now())

    def _block_connected(self, block: Block, returned: dict[bytes, Tx]) -> None:
        for tx in block.txs:
            txid = tx.txid()
            returned.pop(txid, None)
            if txid in self.pool:
                self.pool.remove((txid,), "block")
            self.pool.remove_conflicts(tx, txid)
            self.pool.deltas.pop(txid, None)

    def _take_back(self, txs: Iterable[Tx]) -> None:
        for tx in txs:
            try:
                self.submit(tx, FROM_BLOCK)
            except Rejection:
                # Coinbases end here too: whatever spends them is gone.
                if tx.txid() not in self.pool:
                    self.pool.remove_spenders(tx, tx.txid())

    def _remove_premature(self) -> None:
        gone = [entry.txid for entry in self.pool.entries.values() if not self._may_be_mined(entry)]
        self.pool.remove_with_descendants(gone, "reorg")

    def _may_be_mined(self, entry: Entry) -> bool:
        if not self.judge.is_final(entry.tx):
            return False
        coins: list[Coin] = []
        for txin in entry.tx.inputs:
            coin = self.judge.find_coin(txin.outpoint, {})
            if coin is None:
                return False
            if coin.coinbase and self.chain.height + 1 - coin.height < COINBASE_MATURITY_BLOCKS:
                return False
            coins.append(coin)
        return self.judge.sequence_locks_met(entry.tx, coins)

    # Over a restart.

    def save(self) -> int:
        """Write the mempool to the store; how many transactions."""
        ordered = sorted(self.pool.entries.values(), key=lambda entry: entry.sequence)
        deltas = [item for item in self.pool.deltas.items() if item[0] not in self.pool]
        self.chain.store.save_mempool(((e.raw, e.time, e.delta_sat) for e in ordered), deltas)
        return len(ordered)

    def load(self) -> None:
        """Take in what `save` wrote, as far as it is still valid."""
        rows, deltas = self.chain.store.saved_mempool()
        for txid, delta in deltas:
            self.pool.prioritise(txid, delta)
        for raw, seconds, delta in rows:
            try:
                tx = Tx.parse(raw)
                if delta:
                    self.pool.prioritise(tx.txid(), delta)
                candidate = self.submit(tx, FROM_BLOCK)
            except (Rejection, SerializationError):
                continue
            self.pool.entries[candidate.txid].time = seconds
        self.loaded = True
