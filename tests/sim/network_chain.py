"""Layer 1 for the simulated network: one chain with Bitcoin Core's script engine, seen by each node at its own pace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256

from tests.sim.network_loop import Life, Luck
from tests.sim.onchain_world import ANYONE, COIN_SCRIPT, Chain, Refused
from wallet.bitcoin import Block, BlockHeader, OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import REGTEST
from wallet.chain import (
    BlockRef,
    BroadcastOutcome,
    BroadcastResult,
    ChainEvent,
    ChainUnavailable,
    UnspentOutput,
)
from wallet.follow import ChainMoved, ChainState, Follower

FIRST_HEIGHT = 500
"""The chain begins here, for all that anybody asks."""
NOTICE_SECONDS = (0.0, 0.01, 0.2, 1.0)


def _coinbase(number: int) -> Tx:
    """A block's first transaction."""
    spends = TxIn(OutPoint(bytes(32), 0xFFFF_FFFF), number.to_bytes(8, "little"))
    return Tx(2, (spends,), (TxOut(0, b"\x6a"),), 0)


class SimChain(Chain):
    """`Chain` with blocks that have hashes."""

    def __init__(self) -> None:
        super().__init__(FIRST_HEIGHT, random.Random(0))
        self.hashes: list[bytes] = [REGTEST.genesis_hash]
        self.known: dict[bytes, Block] = {}
        self.changed = asyncio.Event()
        self.coins = 0
        self._salt = 0

    def copy(self) -> SimChain:
        """A chain that goes its own way from here."""
        twin = SimChain()
        twin.height, twin.level = self.height, self.level
        twin.blocks = {height: list(txs) for height, txs in self.blocks.items()}
        twin.outputs, twin.spent, twin.pool = dict(self.outputs), dict(self.spent), dict(self.pool)
        twin.hashes, twin.known = list(self.hashes), dict(self.known)
        twin.coins, twin._salt = self.coins, self._salt
        return twin

    def mine(self, forced: Tx | None = None) -> None:
        self._extend(forced)
        self._tell()

    def _extend(self, forced: Tx | None = None) -> None:
        super().mine(forced)
        self._salt += 1
        header = BlockHeader(4, self.hashes[-1], bytes(32), 1_700_000_000, 0x207FFFFF, self._salt)
        self.hashes.append(header.hash())
        self.known[header.hash()] = Block(header, (_coinbase(self._salt), *self.blocks[self.height]))

    def undo(self) -> list[Tx]:
        self.hashes.pop()
        gone = super().undo()
        # What built on it cannot stay: the mempool knows outputs of the chain and of itself.
        for tx in gone:
            self._drop_orphans(tx.txid())
        return gone

    def _drop_orphans(self, txid: bytes) -> None:
        for child in [t for t, e in self.pool.items() if any(i.outpoint.txid == txid for i in e.tx.inputs)]:
            if child in self.pool:
                del self.pool[child]
                self._drop_orphans(child)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def reorganise(self, depth: int, keep: bool) -> None:
        """The last blocks are replaced by one block more. With `keep`, what was in them returns to the mempool."""
        gone: list[Tx] = []
        for _ in range(depth):
            gone = self.undo() + gone
        if keep:
            for tx in gone:
                try:
                    self.offer(tx)
                except Refused:
                    continue
        for _ in range(depth + 1):
            self._extend()
        self._tell()

    def faucet(self, script_pubkeys: Sequence[bytes], amount_sat: int) -> Tx:
        """A transaction out of nowhere, in the mempool."""
        self.coins += 1
        coin = OutPoint(sha256(b"faucet %d" % self.coins).digest(), 0)
        self.grant(coin, TxOut(amount_sat * len(script_pubkeys) + 100_000, COIN_SCRIPT))
        outputs = tuple(TxOut(amount_sat, script) for script in script_pubkeys)
        tx = Tx(2, (TxIn(coin, b"", 0xFFFFFFFD, (ANYONE,)),), outputs, 0)
        self.offer(tx)
        return tx

    def fee_sat(self, tx: Tx) -> int:
        """Of a transaction in the chain or the mempool."""
        return sum(self.txout(i.outpoint).value_sat for i in tx.inputs) - sum(o.value_sat for o in tx.outputs)


class SimSource:
    """`ChainSource` of one life."""

    def __init__(self, chain: SimChain, life: Life, luck: Luck, on_offer: Callable[[Tx], None]) -> None:
        self._on_offer = on_offer
        self._chain = chain
        self._life = life
        self._luck = luck
        self.away = False

    async def _asked(self) -> None:
        """A question and its answer take a moment."""
        await asyncio.sleep(0.001)
        if self.away:
            raise ChainUnavailable("layer 1 is away")

    async def start(self) -> None:
        """It is there."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def follow(
        self, from_tip: Sequence[BlockRef] | BlockRef | None, *, birthday_height: int | None = None
    ) -> AsyncIterator[ChainEvent]:
        follower = Follower(self, self._wait)
        async for event in follower.run(from_tip, birthday_height):
            yield event

    async def _wait(self, tip: BlockRef) -> None:
        while self.tip() == tip:
            await self._chain.changed.wait()
        await asyncio.sleep(self._luck.dice.choice(NOTICE_SECONDS))

    def tip(self) -> BlockRef:
        return BlockRef(self._chain.height, self._chain.hashes[-1])

    def height(self) -> int:
        return self._chain.height

    # --- BlockFetcher

    async def chain_state(self) -> ChainState:
        await self._asked()
        return ChainState(self.tip(), False)

    async def hashes(self, heights: range) -> list[bytes]:
        await self._asked()
        found = [self._hash_at(height) for height in heights]
        if None in found:
            raise ChainMoved("above the tip")
        return [block_hash for block_hash in found if block_hash is not None]

    def _hash_at(self, height: int) -> bytes | None:
        place = height - FIRST_HEIGHT
        hashes = self._chain.hashes
        return hashes[place] if 0 <= place < len(hashes) else None

    async def get_header(self, block_hash: bytes) -> BlockHeader | None:
        await self._asked()
        block = self._chain.known.get(block_hash)
        return None if block is None else block.header

    async def get_block(self, block_hash: bytes) -> Block:
        await self._asked()
        return self._chain.known[block_hash]

    async def get_block_txids(self, block_hash: bytes) -> list[bytes]:
        return [tx.txid() for tx in (await self.get_block(block_hash)).txs]

    async def get_block_hash(self, height: int) -> bytes | None:
        await self._asked()
        return self._hash_at(height)

    # --- transactions

    async def get_tx(self, txid: bytes, block_hash: bytes | None = None) -> Tx | None:
        await self._asked()
        entry = self._chain.pool.get(txid)
        return None if entry is None else entry.tx

    async def utxo(self, outpoint: OutPoint, *, include_mempool: bool = True) -> UnspentOutput | None:
        await self._asked()
        found = self._chain.outputs.get(outpoint)
        if found is None or outpoint in self._chain.spent:
            return None
        if include_mempool and await self.spending_tx_in_mempool(outpoint) is not None:
            return None
        return UnspentOutput(found[0], self._chain.height - found[1] + 1, False)

    async def spending_tx_in_mempool(self, outpoint: OutPoint) -> Tx | None:
        await self._asked()
        for entry in self._chain.pool.values():
            if any(txin.outpoint == outpoint for txin in entry.tx.inputs):
                return entry.tx
        return None

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        await self._asked()
        return self._offer(tx)

    async def broadcast_package(self, txs: Sequence[Tx]) -> list[BroadcastResult]:
        await self._asked()
        return [self._offer(tx) for tx in txs]

    def _offer(self, tx: Tx) -> BroadcastResult:
        assert self._life.alive
        self._on_offer(tx)
        txid = tx.txid()
        if txid in self._chain.pool:
            return BroadcastResult(BroadcastOutcome.ALREADY_KNOWN)
        if any(OutPoint(txid, vout) in self._chain.outputs for vout in range(len(tx.outputs))):
            return BroadcastResult(BroadcastOutcome.ALREADY_MINED)
        try:
            self._chain.offer(tx)
        except Refused as refused:
            return BroadcastResult(BroadcastOutcome.REJECTED, str(refused), True)
        return BroadcastResult(BroadcastOutcome.ACCEPTED)

    async def fee_rate_sat_per_kw(self, target_blocks: int) -> int:
        await self._asked()
        level = self._chain.level
        if target_blocks <= 1:
            return level + level // 4
        return level if target_blocks <= 12 else max(253, level * 3 // 4)
