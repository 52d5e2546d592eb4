"""Blocks: which transactions go in, the coinbase with its witness commitment, the proof of work."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from wallet.bitcoin import SEQUENCE_FINAL, Block, BlockHeader, OutPoint, Tx, TxIn, TxOut, sha256d
from wallet.bitcoin.script import OP_RETURN, push, script_num
from wallet.bitcoin.tx import merkle_root
from wallet.regtest.chain import POW_LIMIT_BITS, BlockNode, Chain
from wallet.regtest.clock import Clock
from wallet.regtest.mempool import Mempool
from wallet.regtest.policy import MAX_BLOCK_SIGOPS_COST, MAX_BLOCK_WEIGHT
from wallet.regtest.pool import Entry

BLOCK_VERSION = 0x2000_0000
HALVING_INTERVAL = 150
LAST_SUBSIDY_HEIGHT = 33 * HALVING_INTERVAL
"""Before this height the last satoshi is mined."""
_COIN_SAT = 100_000_000
_RESERVED_WEIGHT = 8000
_RESERVED_SIGOPS = 400
_POW_TARGET = 0x7FFFFF << 8 * (0x20 - 3)
_COMMITMENT_HEADER = bytes.fromhex("aa21a9ed")
_WITNESS_NONCE = bytes(32)
_EXTRA_NONCE_SIZE = 8


def subsidy(height: int) -> int:
    """New coins in sat that the block at `height` may make: 50 BTC, halved every 150 blocks."""
    halvings = height // HALVING_INTERVAL
    return 50 * _COIN_SAT >> halvings if halvings < 64 else 0


@dataclass(frozen=True)
class Template:
    """What goes into the next block: transactions in order (no coinbase) and their fees in sat."""

    entries: tuple[Entry, ...]
    fees_sat: int
    weight: int


class _Selector:
    """Takes transactions with their unconfirmed ancestors by what the whole package pays for its size."""

    def __init__(self, mempool: Mempool, max_weight: int, min_rate: int) -> None:
        self.pool = mempool.pool
        self.max_weight = max_weight
        self.min_rate = min_rate
        self.chosen: dict[bytes, Entry] = {}
        self.weight = _RESERVED_WEIGHT
        self.sigops = _RESERVED_SIGOPS
        self._versions: dict[bytes, int] = {}
        self._heap: list[tuple[Fraction, bytes, int]] = []

    def run(self) -> list[Entry]:
        """The chosen entries, parents before children."""
        for txid in self.pool.entries:
            self._push(txid)
        while self._heap:
            rate, txid, version = heapq.heappop(self._heap)
            if txid in self.chosen or version != self._versions[txid]:
                continue
            if -rate * 1000 < self.min_rate:
                break
            self._try(txid)
        return list(self.chosen.values())

    def _package(self, txid: bytes) -> dict[bytes, Entry]:
        return {t: entry for t, entry in self.pool.ancestors((txid,)).items() if t not in self.chosen}

    def _push(self, txid: bytes) -> None:
        package = self._package(txid).values()
        entry = self.pool.entries[txid]
        together = Fraction(sum(e.modified_fee_sat for e in package), sum(e.vsize for e in package))
        rate = min(together, Fraction(entry.modified_fee_sat, entry.vsize))
        version = self._versions[txid] = self._versions.get(txid, 0) + 1
        heapq.heappush(self._heap, (-rate, txid, version))

    def _try(self, txid: bytes) -> None:
        package = self._package(txid)
        weight = sum(entry.weight for entry in package.values())
        sigops = sum(entry.sigops for entry in package.values())
        if self.weight + weight > self.max_weight or self.sigops + sigops > MAX_BLOCK_SIGOPS_COST:
            return
        self.weight += weight
        self.sigops += sigops
        depth = {t: len(self.pool.ancestors((t,))) for t in package}
        for member in sorted(package, key=lambda t: (depth[t], t)):
            self.chosen[member] = package[member]
        for descendant in self.pool.descendants(package):
            if descendant not in self.chosen:
                self._push(descendant)


class Miner:
    """Builds blocks on the active chain's tip."""

    def __init__(self, chain: Chain, mempool: Mempool, clock: Clock, max_weight: int = MAX_BLOCK_WEIGHT) -> None:
        self.chain = chain
        self.mempool = mempool
        self.clock = clock
        self.max_weight = max_weight

    def template(self) -> Template:
        """What the next block would contain."""
        selector = _Selector(self.mempool, self.max_weight, self.mempool.policy.block_min_fee)
        entries = selector.run()
        return Template(tuple(entries), sum(entry.fee_sat for entry in entries), selector.weight)

    def build(self, script: bytes, txs: Sequence[Tx], fees_sat: int) -> Block:
        """A block with valid proof of work that pays subsidy and fees to `script`."""
        tip = self.chain.tip
        height = tip.height + 1
        coinbase = _coinbase(height, script, subsidy(height) + fees_sat, txs)
        body = (coinbase, *txs)
        root = merkle_root([tx.txid() for tx in body])
        header = BlockHeader(BLOCK_VERSION, tip.hash, root, self.block_time(tip), POW_LIMIT_BITS, 0)
        return Block(solve(header), body)

    def block_time(self, tip: BlockNode) -> int:
        """The next block's time in seconds: now, but after the median of the last eleven."""
        return max(tip.median_time + 1, self.clock.now())


def solve(header: BlockHeader) -> BlockHeader:
    """The header with a nonce that meets regtest's target (two tries on average)."""
    nonce = header.nonce
    while True:
        candidate = header._replace(nonce=nonce)
        if int.from_bytes(candidate.hash(), "little") <= _POW_TARGET:
            return candidate
        nonce = nonce + 1 & 0xFFFF_FFFF


def _coinbase(height: int, script: bytes, value_sat: int, txs: Sequence[Tx]) -> Tx:
    # The random bytes make two blocks on the same parent differ, however quickly one follows the other.
    script_sig = script_num(height) + push(os.urandom(_EXTRA_NONCE_SIZE))
    outputs = (TxOut(value_sat, script), TxOut(0, witness_commitment(txs)))
    txin = TxIn(OutPoint(bytes(32), 0xFFFF_FFFF), script_sig, SEQUENCE_FINAL, (_WITNESS_NONCE,))
    return Tx(2, (txin,), outputs, 0)


def witness_commitment(txs: Sequence[Tx]) -> bytes:
    """The output script that commits to all witnesses of a block with these transactions (BIP 141)."""
    root = merkle_root([bytes(32), *(tx.wtxid() for tx in txs)])
    return bytes((OP_RETURN,)) + push(_COMMITMENT_HEADER + sha256d(root + _WITNESS_NONCE))
