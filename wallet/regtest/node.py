"""One regtest node: chain, mempool, miner, wallets, and the events that clients wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from wallet.bitcoin import Block, Tx
from wallet.regtest.chain import BlockNode, Chain, TipChange
from wallet.regtest.clock import Clock
from wallet.regtest.errors import StartupError
from wallet.regtest.fees import FeeEstimator
from wallet.regtest.kernel import Kernel
from wallet.regtest.mempool import Mempool
from wallet.regtest.miner import Miner
from wallet.regtest.packages import PackageJudge
from wallet.regtest.policy import Policy
from wallet.regtest.store import Store

_BIG_BLOCK_TXS = 20


class Node:
    """Everything behind the RPC. Lives in one event loop; only block validation may use another thread."""

    def __init__(self, directory: Path, policy: Policy) -> None:
        self.directory = directory
        self.clock = Clock()
        self.log_file = (directory / "debug.log").open("a", encoding="utf-8", buffering=1)
        self.store = Store(directory / "regtestd.sqlite3")
        try:
            self.kernel = Kernel(directory, self._log)
        except StartupError:
            self.store.close()
            self.log_file.close()
            raise
        self.chain = Chain(self.store, self.kernel)
        self.mempool = Mempool(self.chain, policy, self.clock)
        self.packages = PackageJudge(self.mempool)
        self.miner = Miner(self.chain, self.mempool, self.clock)
        self.fees = FeeEstimator(self.chain, self.mempool.pool)
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        self._tip_changed = asyncio.Event()
        self._chain_lock = asyncio.Lock()
        self.chain.on_change.append(self._on_change)

    def _log(self, line: str) -> None:
        self.log_file.write(line)

    def load(self) -> None:
        """Read what is on disk. Raises StartupError."""
        self.chain.load()
        self.mempool.load()

    def close(self) -> None:
        """Save the mempool and close all files."""
        if self.mempool.loaded:
            self.mempool.save()
        self.kernel.close()
        self.store.close()
        self.log_file.close()

    def _on_change(self, _change: TipChange) -> None:
        self._tip_changed.set()
        self._tip_changed = asyncio.Event()

    async def wait_for_tip(self, timeout_seconds: float | None) -> bool:
        """Wait until the tip moves; False when time is up or the node stops."""
        moved = asyncio.ensure_future(self._tip_changed.wait())
        stopped = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((moved, stopped), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            return moved.done()
        finally:
            moved.cancel()
            stopped.cancel()

    # All changes of the chain come through here, one at a time.

    async def submit_block(self, block: Block, raw: bytes) -> str | None:
        """Show a block to the consensus code; None, or why it did not become part of the active chain."""
        async with self._chain_lock:
            return await self._submit(block, raw)

    async def _submit(self, block: Block, raw: bytes) -> str | None:
        block_hash = block.header.hash()
        refusal = self.chain.refusal(block_hash, block)
        if refusal is not None:
            return refusal
        if len(block.txs) > _BIG_BLOCK_TXS:
            verdict = await asyncio.to_thread(self.kernel.process, raw, block_hash)
        else:
            verdict = self.kernel.process(raw, block_hash)
        return self.chain.settle(block, block_hash, raw, verdict)

    async def invalidate(self, block: BlockNode) -> None:
        """Take a block and all after it out of the chain."""
        async with self._chain_lock:
            self.chain.invalidate(block)

    async def reconsider(self, block: BlockNode) -> None:
        """Allow a block and its relatives again."""
        async with self._chain_lock:
            self.chain.reconsider(block)

    async def prefer(self, block: BlockNode) -> None:
        """Prefer a block over others with the same work."""
        async with self._chain_lock:
            self.chain.prefer(block)

    async def mine(self, script: bytes, txs: Sequence[Tx] | None = None, fees_sat: int = 0) -> Block:
        """Mine one block that pays `script`: with the best of the mempool, or with exactly `txs`.

        Raises BlockRefused if the consensus code does not accept it.
        """
        async with self._chain_lock:
            if txs is None:
                template = self.miner.template()
                txs, fees_sat = [entry.tx for entry in template.entries], template.fees_sat
            block = self.miner.build(script, txs, fees_sat)
            reason = await self._submit(block, block.serialize())
        # Others get their turn between two blocks of a long series.
        await asyncio.sleep(0)
        if reason is not None and reason != "inconclusive":
            raise BlockRefused(reason)
        return block


class BlockRefused(Exception):
    """The consensus code refused a block that was made here; the message is its reason."""
