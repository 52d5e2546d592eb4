"""Facts of the chain: the transactions in blocks that concern one channel."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from wallet.bitcoin import OutPoint, Tx


class Fact(Struct, frozen=True):
    """`tx` is in the chain's block at `height`."""

    height: int
    txid: bytes
    tx: Tx


class SpentBy(Struct, frozen=True):
    """What took an output: input `index` of a transaction in the block at `height`."""

    height: int
    txid: bytes
    index: int
    tx: Tx

    @property
    def witness(self) -> tuple[bytes, ...]:
        """The input's witness."""
        return self.tx.inputs[self.index].witness

    def depth(self, height: int) -> int:
        """Confirmations at the tip `height`."""
        return height - self.height + 1


def spenders(facts: Iterable[Fact]) -> dict[OutPoint, SpentBy]:
    """Which confirmed transaction spends which output."""
    return {
        txin.outpoint: SpentBy(fact.height, fact.txid, index, fact.tx)
        for fact in facts
        for index, txin in enumerate(fact.tx.inputs)
    }


def children_to_watch(tx: Tx, spent: Iterable[OutPoint]) -> list[int]:
    """Outputs of a spend of commitment outputs that may have to be spent in turn: those of HTLC transactions, where
    output i belongs to input i (BOLT 5, "Generation of HTLC Transactions")."""
    outpoints = set(spent)
    return [i for i, txin in enumerate(tx.inputs) if txin.outpoint in outpoints and i < len(tx.outputs)]
