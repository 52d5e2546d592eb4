"""A wallet on a chain without proof of work, with the rules of a mempool that matter to it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sqlalchemy import create_engine

from tests.wallet_fakes import FakeChain, script_ok
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import REGTEST, script_of
from wallet.chain import (
    BlockConnected,
    BlockDisconnected,
    BroadcastOutcome,
    BroadcastResult,
    ChainUnavailable,
)
from wallet.keys import Keys, Seed
from wallet.store import SqlStore
from wallet.wallet import Wallet

STRANGER = bytes.fromhex("0014" + "ab" * 20)
STRANGER_ADDRESS = "bcrt1q4w46h2at4w46h2at4w46h2at4w46h2atzmxqe2"


class Mempool:
    """Takes transactions whose scripts Bitcoin Core's engine accepts; replacement by fee; `refuse` refuses all."""

    def __init__(self, chain: FakeChain) -> None:
        self.chain = chain
        self.txs: dict[bytes, Tx] = {}
        self.refuse: BroadcastResult | None = None
        self.away = False
        self.least_feerate_sat_per_kw = 0

    def output(self, outpoint: OutPoint) -> TxOut | None:
        txs = {tx.txid(): tx for height in range(self.chain.height + 1) for tx in self.chain.block(height).txs}
        tx = (txs | self.txs).get(outpoint.txid)
        return None if tx is None else tx.outputs[outpoint.vout]

    def fee(self, tx: Tx) -> int:
        spent = [self.output(txin.outpoint) for txin in tx.inputs]
        assert all(spent)
        return sum(txout.value_sat for txout in spent if txout) - sum(txout.value_sat for txout in tx.outputs)

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        return self._judge(tx, self.least_feerate_sat_per_kw)

    def _judge(self, tx: Tx, least_feerate: int) -> BroadcastResult:
        if self.away:
            raise ChainUnavailable("away")
        if self.refuse is not None:
            return self.refuse
        if tx.txid() in self.txs:
            return BroadcastResult(BroadcastOutcome.ALREADY_KNOWN)
        spent = [self.output(txin.outpoint) for txin in tx.inputs]
        known = [txout for txout in spent if txout is not None]
        if len(known) != len(spent):
            return BroadcastResult(BroadcastOutcome.REJECTED, "bad-txns-inputs-missingorspent", True)
        if tx.locktime > self.chain.height:
            return BroadcastResult(BroadcastOutcome.REJECTED, "non-final", True)
        if not all(script_ok(tx, place, known) for place in range(len(known))):
            return BroadcastResult(BroadcastOutcome.REJECTED, "mandatory-script-verify-flag-failed")
        if self.fee(tx) * 1000 < least_feerate * tx.weight():
            return BroadcastResult(BroadcastOutcome.REJECTED, "mempool min fee not met", True)
        ours = {txin.outpoint for txin in tx.inputs}
        rivals = [other for other in self.txs.values() if ours & {txin.outpoint for txin in other.inputs}]
        if rivals and self.fee(tx) < sum(self.fee(other) for other in rivals) + tx.vsize():
            return BroadcastResult(BroadcastOutcome.REJECTED, "insufficient fee", True)
        for other in rivals:
            del self.txs[other.txid()]
        self.txs[tx.txid()] = tx
        return BroadcastResult(BroadcastOutcome.ACCEPTED)

    async def broadcast_package(self, txs: Sequence[Tx]) -> list[BroadcastResult]:
        results = [self._judge(tx, 0) for tx in txs]
        fees = sum(self.fee(tx) for tx in txs if tx.txid() in self.txs)
        assert fees * 1000 >= self.least_feerate_sat_per_kw * sum(tx.weight() for tx in txs)
        return results


class World:
    """A chain, a mempool, and a wallet whose store survives `restart`."""

    def __init__(self, seed: Seed | None = None, **options: int) -> None:
        self.chain = FakeChain()
        self.mempool = Mempool(self.chain)
        self.keys = Keys.from_seed(seed or Seed.create(bytes(16)), REGTEST)
        self.store = SqlStore(create_engine("sqlite://"))
        self.now = 1_700_000_000.0
        self.options = {"gap_limit": 20, **options}
        self.wallet: Wallet
        self._salt = 0

    async def start(self, birthday_height: int | None = 0) -> Wallet:
        self.wallet = await Wallet.open(
            self.keys,
            self.store,
            birthday_height=birthday_height,
            broadcaster=self.mempool,
            clock=lambda: self.now,
            rng=random.Random(7),
            **self.options,
        )
        return self.wallet

    async def restart(self) -> Wallet:
        keep_back_sat = self.wallet.keep_back_sat
        wallet = await self.start()
        wallet.keep_back_sat = keep_back_sat
        return wallet

    async def mine(self, count: int = 1, *txs: Tx, payout: tuple[TxOut, ...] | None = None) -> None:
        """Blocks that carry the given transactions, or else everything in the mempool."""
        body = txs or tuple(self.mempool.txs.values())
        for tx in body:
            self.mempool.txs.pop(tx.txid(), None)
        before = self.chain.height
        self.chain.mine(count, *body, payout=payout)
        for height in range(before + 1, self.chain.height + 1):
            await self.connect(height)

    async def connect(self, height: int) -> None:
        block = self.chain.block(height)
        event = BlockConnected(height, self.chain.active[height], block)
        self.store.commit_now(self.wallet.process(event))

    async def undo(self, count: int = 1) -> None:
        """Take blocks off the chain; their transactions do not go back to the mempool."""
        for _ in range(count):
            height, block_hash = self.chain.height, self.chain.active[-1]
            header = self.chain.block(height).header
            self.chain.cut(height - 1)
            self.store.commit_now(self.wallet.process(BlockDisconnected(height, block_hash, header)))

    def payment(self, *outputs: tuple[int, bytes]) -> Tx:
        """A transaction from nowhere that pays."""
        self._salt += 1
        source = TxIn(OutPoint(self._salt.to_bytes(32, "big"), 0), witness=(b"x",))
        return Tx(2, (source,), tuple(TxOut(*output) for output in outputs), 0)

    async def receive(self, *values_sat: int, kind: str = "p2tr") -> list[Tx]:
        """Confirmed payments to the wallet, one transaction each."""
        txs = []
        for value_sat in values_sat:
            address = await self.wallet.new_address(kind)  # type: ignore[arg-type]
            txs.append(self.payment((value_sat, script_of(address, REGTEST))))
        await self.mine(1, *txs)
        return txs
