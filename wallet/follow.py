"""Following a chain: the missing blocks in order, forks undone first, and the loss of layer 1 survived.

The order of events is the whole point: what is yielded is always a walk along the chain, one block up or down
at a time, starting at the block that the consumer processed last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from wallet.bitcoin import Block, BlockHeader
from wallet.chain import (
    REORG_LIMIT_BLOCKS,
    BlockConnected,
    BlockDisconnected,
    BlockRef,
    ChainError,
    ChainEvent,
    ChainUnavailable,
    ReorgTooDeep,
    SourceBack,
    SourceLost,
    Synced,
    WrongChain,
)

_HASHES_AT_ONCE = 500
_BLOCKS_AHEAD = 4
_QUICK_RETRIES = 5


class ChainState(NamedTuple):
    """Layer 1's tip, and whether it is still downloading the chain."""

    tip: BlockRef
    initial_block_download: bool


class ChainMoved(ChainError):
    """The chain changed between two questions about it: ask again."""


class BlockFetcher(Protocol):
    """What the follower asks layer 1. All raise ChainUnavailable; `hashes` and `get_block` also ChainMoved."""

    async def chain_state(self) -> ChainState:
        """The present tip."""
        ...

    async def hashes(self, heights: range) -> list[bytes]:
        """The chain's block hashes at these heights. Raises ChainMoved if one is above the tip."""
        ...

    async def get_header(self, block_hash: bytes) -> BlockHeader | None:
        """A block's header, of any branch that layer 1 knows."""
        ...

    async def get_block(self, block_hash: bytes) -> Block:
        """A block of the chain."""
        ...


class Undone(NamedTuple):
    """A block to disconnect."""

    ref: BlockRef
    header: BlockHeader | None


class Follower:
    """One walk along the chain. `wait_for_change` returns when layer 1's tip may differ from the given one."""

    def __init__(
        self,
        fetcher: BlockFetcher,
        wait_for_change: Callable[[BlockRef], Awaitable[None]],
        *,
        reorg_limit_blocks: int = REORG_LIMIT_BLOCKS,
        retry_seconds: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    ) -> None:
        self._fetcher = fetcher
        self._wait_for_change = wait_for_change
        self._limit = reorg_limit_blocks
        self._retry_seconds = retry_seconds
        self._recent: deque[BlockRef] = deque(maxlen=2 * reorg_limit_blocks + 2)
        self._trouble: str | None = None
        """Why layer 1 cannot be followed now, as it was told last."""
        self._away = False
        """It does not answer; otherwise its chain is behind."""
        self._synced: BlockRef | None = None
        self._ceiling: BlockRef | None = None

    async def run(
        self, from_tip: Sequence[BlockRef] | BlockRef | None, birthday_height: int | None
    ) -> AsyncIterator[ChainEvent]:
        """See ChainSource.follow."""
        if from_tip is not None:
            known = [from_tip] if isinstance(from_tip, BlockRef) else sorted(set(from_tip))
            self._recent.extend(known)
        failures = 0
        while True:
            try:
                async for event in self._catch_up(birthday_height):
                    failures = 0
                    yield event
                assert self._ceiling is not None
                await self._wait_for_change(self._ceiling)
                failures = 0
            except (WrongChain, ReorgTooDeep):
                raise
            except ChainError as error:
                failures += 1
                if isinstance(error, ChainMoved) and failures <= _QUICK_RETRIES:
                    continue
                if not self._away:
                    self._away = True
                    yield self._lost(str(error))
                await asyncio.sleep(self._retry_seconds[min(failures, len(self._retry_seconds)) - 1])

    def _lost(self, reason: str) -> SourceLost:
        self._trouble = reason
        return SourceLost(reason)

    async def _catch_up(self, birthday_height: int | None) -> AsyncIterator[ChainEvent]:
        """Events until the consumer is where layer 1 is, or until layer 1 is found to be behind."""
        while True:
            state = await self._fetcher.chain_state()
            self._ceiling = state.tip
            if not self._recent:
                await self._place(state, birthday_height)
            behind, undone = await self._compare(state)
            if behind is not None:
                if self._trouble != behind:
                    self._away = False
                    yield self._lost(behind)
                return
            if self._trouble is not None:
                self._trouble, self._away = None, False
                yield SourceBack()
            for ref, header in undone:
                self._pop(ref, header)
                yield BlockDisconnected(ref.height, ref.hash, header)
            if self._recent[-1] == state.tip:
                if self._synced != state.tip:
                    self._synced = state.tip
                    yield Synced(state.tip.height, state.tip.hash)
                return
            async for event in self._connect(state.tip.height):
                yield event

    async def _place(self, state: ChainState, birthday_height: int | None) -> None:
        """Start without history: right below the birthday, or at the tip."""
        if birthday_height is None or birthday_height > state.tip.height:
            self._recent.append(state.tip)
            return
        before = max(birthday_height, 1) - 1
        (block_hash,) = await self._fetcher.hashes(range(before, before + 1))
        self._recent.append(BlockRef(before, block_hash))

    async def _compare(self, state: ChainState) -> tuple[str | None, list[Undone]]:
        """(why layer 1 is behind, or None; blocks of ours that left the chain, highest first)."""
        position = ours = self._recent[-1]
        if ours == state.tip:
            return None, []
        missing = ours.height - state.tip.height
        behind = (
            f"layer 1 is at block {state.tip.height}, behind block {ours.height} that was already processed: "
            "waiting for it"
        )
        if missing > self._limit:
            if state.initial_block_download:
                return behind, []
            raise ReorgTooDeep(
                f"layer 1's chain ends at block {state.tip.height}, {missing} blocks below block {ours} that was "
                "already processed: is this the right bitcoind?"
            )
        undone: list[Undone] = []
        while not await self._in_chain(position, state):
            if len(undone) == self._limit:
                raise ReorgTooDeep(
                    f"more than {self._limit} blocks below {ours} left layer 1's chain: is this the right bitcoind?"
                )
            if position.height == 0:
                raise WrongChain(f"layer 1's chain has another genesis block than {position.hash[::-1].hex()}")
            header = await self._fetcher.get_header(position.hash)
            undone.append(Undone(position, header))
            position = self._parent(position, header)
        if undone and position == state.tip:
            return behind, []
        return None, undone

    async def _in_chain(self, ref: BlockRef, state: ChainState) -> bool:
        if ref.height >= state.tip.height:
            return ref == state.tip
        (block_hash,) = await self._fetcher.hashes(range(ref.height, ref.height + 1))
        return block_hash == ref.hash

    def _parent(self, ref: BlockRef, header: BlockHeader | None) -> BlockRef:
        if header is not None:
            return BlockRef(ref.height - 1, header.prev_hash)
        for known in reversed(self._recent):
            if known.height == ref.height - 1:
                return known
        raise ReorgTooDeep(f"layer 1 does not know block {ref}, and where it left the chain is not known either")

    def _pop(self, ref: BlockRef, header: BlockHeader | None) -> None:
        assert self._recent[-1] == ref
        parent = self._parent(ref, header)
        self._recent.pop()
        if not self._recent or self._recent[-1] != parent:
            self._recent.append(parent)

    async def _connect(self, to_height: int) -> AsyncIterator[ChainEvent]:
        first = self._recent[-1].height + 1
        heights = range(first, min(to_height + 1, first + _HASHES_AT_ONCE))
        hashes = await self._fetcher.hashes(heights)
        pending: deque[tuple[BlockRef, asyncio.Task[Block]]] = deque()
        waiting = iter(map(BlockRef, heights, hashes))
        try:
            while True:
                while len(pending) < _BLOCKS_AHEAD and (ref := next(waiting, None)) is not None:
                    pending.append((ref, asyncio.ensure_future(self._fetcher.get_block(ref.hash))))
                if not pending:
                    return
                ref, task = pending.popleft()
                block = await task
                if block.header.prev_hash != self._recent[-1].hash:
                    raise ChainMoved(f"block {ref} does not continue the chain")
                if block.header.hash() != ref.hash:
                    raise ChainUnavailable(f"layer 1 gave another block than the one asked for, {ref}")
                self._recent.append(ref)
                yield BlockConnected(ref.height, ref.hash, block)
        finally:
            for _, task in pending:
                task.cancel()
            await asyncio.gather(*(task for _, task in pending), return_exceptions=True)
