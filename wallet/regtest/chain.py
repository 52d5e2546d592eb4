"""The block tree and the active chain: what the kernel decided, indexed for queries, kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from wallet.bitcoin import Block, BlockHeader, SerializationError
from wallet.bitcoin.address import REGTEST
from wallet.regtest.errors import StartupError
from wallet.regtest.kernel import Kernel, Verdict
from wallet.regtest.store import Store

POW_LIMIT_BITS = 0x207FFFFF
WORK_PER_BLOCK = 2
MEDIAN_TIME_SPAN = 11
_GENESIS_RAW = bytes.fromhex(
    "0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac72c3e67768f61"
    "7fc81bc3888a51323a9fb8aa4b1e5e4adae5494dffff7f20020000000101000000010000000000000000000000000000000000"
    "000000000000000000000000000000ffffffff4d04ffff001d0104455468652054696d65732030332f4a616e2f323030392043"
    "68616e63656c6c6f72206f6e206272696e6b206f66207365636f6e64206261696c6f757420666f722062616e6b73ffffffff01"
    "00f2052a01000000434104678afdb0fe5548271967f1a67130b7105cd6a828e03909a67962e0ea1f61deb649f6bc3f4cef38c4"
    "f35504e51ec112de5c384df7ba0b8d578a4c702b6bf11d5fac00000000"
)
GENESIS = Block.parse(_GENESIS_RAW)


class BlockNode:
    """A block in the tree. `chain_tx` counts the transactions up to and including this block."""

    __slots__ = ("chain_tx", "failed", "hash", "header", "height", "median_time", "n_tx", "previous")

    def __init__(self, header: BlockHeader, block_hash: bytes, n_tx: int, previous: BlockNode | None) -> None:
        self.header = header
        self.hash = block_hash
        self.n_tx = n_tx
        self.previous = previous
        self.height: int = previous.height + 1 if previous else 0
        self.chain_tx: int = n_tx + (previous.chain_tx if previous else 0)
        self.failed = False
        times, node = [header.time], previous
        while node is not None and len(times) < MEDIAN_TIME_SPAN:
            times.append(node.header.time)
            node = node.previous
        self.median_time = sorted(times)[len(times) // 2]
        """Median time past of this block and the ten before it (BIP 113), in seconds."""

    @property
    def chainwork(self) -> int:
        """Expected hashes up to and including this block; regtest never changes its difficulty."""
        return WORK_PER_BLOCK * (self.height + 1)

    def ancestors(self) -> Iterator[BlockNode]:
        """This block and all before it, newest first."""
        node: BlockNode | None = self
        while node is not None:
            yield node
            node = node.previous


class TipChange(NamedTuple):
    """How the active chain changed: blocks taken back, newest first, and blocks added, oldest first."""

    disconnected: tuple[tuple[BlockNode, Block], ...]
    connected: tuple[tuple[BlockNode, Block], ...]


class Chain:
    """The chain as RPC clients see it. Blocks enter through `submit`; the kernel alone says which chain is best."""

    def __init__(self, store: Store, kernel: Kernel) -> None:
        self.store = store
        self.kernel = kernel
        genesis = BlockNode(GENESIS.header, REGTEST.genesis_hash, 1, None)
        self.nodes: dict[bytes, BlockNode] = {genesis.hash: genesis}
        self.active: list[BlockNode] = [genesis]
        self.invalidated: set[bytes] = set()
        self.on_change: list[Callable[[TipChange], None]] = []
        self._parents = {genesis.hash}

    @property
    def tip(self) -> BlockNode:
        """The active chain's last block."""
        return self.active[-1]

    @property
    def height(self) -> int:
        """The tip's height in blocks."""
        return len(self.active) - 1

    def is_active(self, node: BlockNode) -> bool:
        """Whether the block is in the active chain."""
        return node.height < len(self.active) and self.active[node.height] is node

    def is_excluded(self, node: BlockNode) -> bool:
        """Whether the block or one before it failed, or was declared invalid."""
        for ancestor in node.ancestors():
            if ancestor.failed or ancestor.hash in self.invalidated:
                return True
            if self.is_active(ancestor):
                return False
        return False

    def leaves(self) -> list[BlockNode]:
        """The tips of all branches, the active one included."""
        return [node for node in self.nodes.values() if node.hash not in self._parents or node is self.tip]

    def block(self, node: BlockNode) -> Block:
        """The block itself."""
        return Block.parse(self.raw_block(node))

    def raw_block(self, node: BlockNode) -> bytes:
        """The block's serialisation."""
        if node.height == 0:
            return _GENESIS_RAW
        raw = self.store.raw_block(node.hash)
        assert raw is not None, "an indexed block is in the store"
        return raw

    # Start.

    def load(self) -> None:
        """Read the block tree and bring the kernel and the store to the same chain, whoever of them is behind.

        Raises StartupError if the data contradict each other.
        """
        self.invalidated = self.store.invalidated()
        for stored in self.store.blocks():
            self._add_node(stored.hash, BlockHeader.parse(stored.header), stored.n_tx, failed=stored.failed)
        for block_hash in self.store.active_hashes():
            node = self.nodes.get(block_hash)
            if node is None or node.previous is not self.tip:
                raise StartupError(f"{self.store.path} is damaged: its chain breaks after height {self.height}")
            self.active.append(node)
        with self.store.transaction():
            self._learn_from_kernel()
        if self._kernel_has_excluded():
            self.kernel.wipe()
        self._feed(self.nodes.values())
        self._follow()

    def _learn_from_kernel(self) -> None:
        # A kill can leave the kernel's directory ahead of the store.
        unknown = []
        for height in range(self.kernel.height, 0, -1):
            block_hash = self.kernel.active_hash(height)
            assert block_hash is not None
            if block_hash in self.nodes:
                break
            unknown.append(block_hash)
        for block_hash in reversed(unknown):
            raw = self.kernel.raw_block(block_hash)
            block = Block.parse(raw)
            self.store.add_block(block_hash, raw, len(block.txs), failed=False)
            self._add_node(block_hash, block.header, len(block.txs))

    def _kernel_has_excluded(self) -> bool:
        block_hash = self.kernel.active_hash(self.kernel.height)
        assert block_hash is not None
        return any(node.hash in self.invalidated for node in self.nodes[block_hash].ancestors())

    def _add_node(self, block_hash: bytes, header: BlockHeader, n_tx: int, *, failed: bool = False) -> BlockNode:
        node = BlockNode(header, block_hash, n_tx, self.nodes[header.prev_hash])
        node.failed = failed
        self.nodes[block_hash] = node
        self._parents.add(header.prev_hash)
        return node

    def _feed(self, nodes: Iterable[BlockNode]) -> None:
        # Parents come before children, in the order in which the blocks first came.
        excluded: set[bytes] = set()
        for node in nodes:
            if node.previous is None:
                continue
            if node.failed or node.hash in self.invalidated or node.previous.hash in excluded:
                excluded.add(node.hash)
            elif not self.kernel.knows(node.hash):
                self.kernel.process(self.raw_block(node), node.hash)

    # New blocks.

    def submit(self, raw: bytes) -> str | None:
        """Validate a block and activate it if it makes the best chain.

        Returns None, or why not, as bitcoind's `submitblock` says it: a reject reason, `duplicate`,
        `duplicate-invalid`, `inconclusive` for a valid block off the best chain.
        Raises SerializationError for bytes that are no block.
        """
        block = Block.parse(raw)
        block_hash = block.header.hash()
        refusal = self.refusal(block_hash, block)
        if refusal is not None:
            return refusal
        verdict = self.kernel.process(raw, block_hash)
        return self.settle(block, block_hash, raw, verdict)

    def refusal(self, block_hash: bytes, block: Block) -> str | None:
        """Why a block need not be shown to the kernel at all, or None."""
        known = self.nodes.get(block_hash)
        if known is not None:
            return "duplicate-invalid" if self.is_excluded(known) else "duplicate"
        if not block.txs:
            raise SerializationError("a block without transactions")
        parent = self.nodes.get(block.header.prev_hash)
        if parent is None:
            return "prev-blk-not-found"
        return "bad-prevblk" if self.is_excluded(parent) else None

    def settle(self, block: Block, block_hash: bytes, raw: bytes, verdict: Verdict) -> str | None:
        """Record what the kernel said of a block and follow its choice of chain."""
        if not verdict.accepted:
            return verdict.reason
        with self.store.transaction():
            self.store.add_block(block_hash, raw, len(block.txs), failed=False)
            node = self._add_node(block_hash, block.header, len(block.txs))
            for failed in verdict.failed:
                self.store.set_failed(failed)
                self.nodes[failed].failed = True
            change = self._realign({block_hash: block})
        self._announce(change)
        if verdict.reason is not None:
            return verdict.reason
        return None if self.is_active(node) else "inconclusive"

    # Branches that the user takes back.

    def invalidate(self, node: BlockNode) -> None:
        """Declare a block, and so all after it, invalid; the best of the rest becomes the active chain."""
        if node.previous is None:
            return
        self._set_invalidated(self.invalidated | {node.hash})
        if self.is_active(node):
            self.kernel.wipe()
            self._feed(self.nodes.values())
            self._follow()

    def reconsider(self, node: BlockNode) -> None:
        """Take back `invalidate` of this block, of those before it and those after it."""
        line = {ancestor.hash for ancestor in node.ancestors()}
        kept = {
            block_hash
            for block_hash in self.invalidated - line
            if not any(ancestor is node for ancestor in self.nodes[block_hash].ancestors())
        }
        self._set_invalidated(kept)
        self._feed(self.nodes.values())
        self._follow()

    def prefer(self, node: BlockNode) -> None:
        """Treat a block as the first seen of those with as much work."""
        if self.is_active(node) or self.is_excluded(node) or node.chainwork < self.tip.chainwork:
            return
        self.kernel.wipe()
        self._feed(reversed(list(node.ancestors())))
        self._feed(self.nodes.values())
        self._follow()

    def _set_invalidated(self, hashes: set[bytes]) -> None:
        with self.store.transaction():
            self.store.set_invalidated(hashes)
        self.invalidated = hashes

    def _follow(self) -> None:
        with self.store.transaction():
            change = self._realign({})
        self._announce(change)

    def _realign(self, fresh: dict[bytes, Block]) -> TipChange:
        disconnected = []
        while self.kernel.active_hash(self.height) != self.tip.hash:
            node = self.active.pop()
            block = self.block(node)
            self.store.disconnect(block, node.height)
            disconnected.append((node, block))
        connected = []
        while (block_hash := self.kernel.active_hash(self.height + 1)) is not None:
            node = self.nodes[block_hash]
            block = fresh.get(block_hash) or self.block(node)
            self.store.connect(block, block_hash, node.height)
            self.active.append(node)
            connected.append((node, block))
        return TipChange(tuple(disconnected), tuple(connected))

    def _announce(self, change: TipChange) -> None:
        if change.disconnected or change.connected:
            for listener in self.on_change:
                listener(change)
