"""Layer 1 as the rest of the project sees it: what follows a chain, and the values that it yields.

Hashes and txids are 32 bytes in internal byte order. Fee rates are satoshi per 1,000 weight units.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from wallet.bitcoin import Block, BlockHeader, OutPoint, Tx, TxOut

REORG_LIMIT_BLOCKS = 100
"""A reorganisation deeper than this is not followed: past it, even matured coinbases would vanish."""


class ChainError(Exception):
    """Something about layer 1 that its user must hear; the message is a sentence."""


class ChainUnavailable(ChainError):
    """Layer 1 does not answer (not started, restarting, unreachable, wrong credentials). Trying again may help."""


class WrongChain(ChainError):
    """Layer 1 follows another chain than the one configured: its genesis block differs. Trying again does not help."""


class ReorgTooDeep(ChainError):
    """Layer 1 left or shortened the chain that was processed by more than the limit. Trying again does not help."""


class BlockRef(NamedTuple):
    """A block of the chain by height and hash (32 bytes, internal order)."""

    height: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.height} ({self.hash[::-1].hex()})"


@dataclass(frozen=True, slots=True)
class BlockConnected:
    """`block` is the next block of the chain, on top of the one before."""

    height: int
    hash: bytes
    block: Block


@dataclass(frozen=True, slots=True)
class BlockDisconnected:
    """The block on top is no longer in the chain. `header` is None if layer 1 never saw that branch."""

    height: int
    hash: bytes
    header: BlockHeader | None


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything up to layer 1's present tip was yielded."""

    height: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class SourceLost:
    """Layer 1 does not answer, or its chain is behind what was processed; `reason` is a sentence. It is retried."""

    reason: str


@dataclass(frozen=True, slots=True)
class SourceBack:
    """Layer 1 answers again and its chain has what was processed."""


BlockEvent = BlockConnected | BlockDisconnected
ChainEvent = BlockConnected | BlockDisconnected | Synced | SourceLost | SourceBack


class BroadcastOutcome(enum.Enum):
    """What became of a transaction that was offered to the network."""

    ACCEPTED = "accepted"
    ALREADY_KNOWN = "already known"
    ALREADY_MINED = "already mined"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class BroadcastResult:
    """`reason` is Bitcoin Core's word for a rejection; `retriable`: the same transaction may be accepted later;
    `underpaid`: one that pays more would be, for what the mempool asks at least, or for what it has instead;
    `orphaned`: what it spends is neither in the chain nor in the mempool, or is spent in the chain."""

    outcome: BroadcastOutcome
    reason: str = ""
    retriable: bool = False
    underpaid: bool = False
    orphaned: bool = False

    @property
    def ok(self) -> bool:
        """Whether the transaction is in the mempool or in the chain."""
        return self.outcome is not BroadcastOutcome.REJECTED


class UnspentOutput(NamedTuple):
    """An output that nothing spends. `confirmations` is 0 in the mempool, 1 in the tip."""

    txout: TxOut
    confirmations: int
    coinbase: bool


class Broadcaster(Protocol):
    """Where transactions go. Both methods raise ChainUnavailable."""

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        """Offer one transaction to the network."""
        ...

    async def broadcast_package(self, txs: Sequence[Tx]) -> list[BroadcastResult]:
        """Offer parents and then their child (last) together, so that the child may pay for them; a result each."""
        ...


class FeeEstimator(Protocol):
    """Fee rates. Never raises for want of an estimate: there is a fallback."""

    async def fee_rate_sat_per_kw(self, target_blocks: int) -> int:
        """The fee rate (sat per 1,000 weight) to be mined within `target_blocks`, at least 253."""
        ...


@runtime_checkable
class ChainSource(Broadcaster, FeeEstimator, Protocol):
    """A view of layer 1. All methods but `tip`, `height` and `follow` raise ChainUnavailable when it is away."""

    async def start(self) -> None:
        """Wait until layer 1 answers, and check its genesis block. Raises WrongChain."""
        ...

    async def close(self) -> None:
        """Let go of connections. Iterations of `follow` must have ended."""
        ...

    def follow(
        self, from_tip: Sequence[BlockRef] | BlockRef | None, *, birthday_height: int | None = None
    ) -> AsyncIterator[ChainEvent]:
        """Chain events strictly in order, for ever; survives the loss of layer 1.

        `from_tip` is the last processed block, better the recent ones (any order; the highest is the tip), so that the
        fork is found even if layer 1 never saw the abandoned branch. With None, blocks are yielded from
        `birthday_height` on (inclusive), or without it only blocks after the present tip.
        Raises WrongChain and ReorgTooDeep.
        """
        ...

    def tip(self) -> BlockRef:
        """Layer 1's tip as last seen. Raises ChainUnavailable before the first contact."""
        ...

    def height(self) -> int:
        """The height of `tip()`."""
        ...

    async def get_block(self, block_hash: bytes) -> Block:
        """A block. Raises ChainError if layer 1 does not have it (pruned or unknown)."""
        ...

    async def get_block_txids(self, block_hash: bytes) -> list[bytes]:
        """The ids of a block's transactions, in order. Raises ChainError if layer 1 does not have it."""
        ...

    async def get_block_hash(self, height: int) -> bytes | None:
        """The hash of the chain's block at `height`, or None above the tip."""
        ...

    async def get_tx(self, txid: bytes, block_hash: bytes | None = None) -> Tx | None:
        """A transaction in the mempool, in layer 1's index if it has one, or in the given block; else None."""
        ...

    async def utxo(self, outpoint: OutPoint, *, include_mempool: bool = True) -> UnspentOutput | None:
        """The output if it exists and nothing spends it (with `include_mempool`: nothing unconfirmed either)."""
        ...

    async def spending_tx_in_mempool(self, outpoint: OutPoint) -> Tx | None:
        """The unconfirmed transaction that spends `outpoint`, if there is one."""
        ...
