"""Putting a proof together that a tower failed: what it signed, and what the chain shows."""

from __future__ import annotations

from wallet.chain import ChainSource
from watchtower.proof import Evidence, FailureProof, Mined, NotProven, merkle_branch


async def mined(source: ChainSource, txid: bytes, height: int) -> Mined:
    """A transaction in the chain's block at `height`. Raises NotProven if it is not there, ChainError."""
    block_hash = await source.get_block_hash(height)
    if block_hash is None:
        raise NotProven(f"the chain has no block at height {height}")
    block = await source.get_block(block_hash)
    txids = [tx.txid() for tx in block.txs]
    if txid not in txids:
        raise NotProven(f"transaction {txid[::-1].hex()} is not in the block at height {height}")
    position = txids.index(txid)
    return Mined(
        block.txs[position].serialize(), height, block.header.serialize(), position, merkle_branch(txids, position)
    )


async def prove_failure(
    source: ChainSource, evidence: Evidence, breach: tuple[bytes, int], theft: tuple[bytes, int]
) -> FailureProof:
    """`breach` and `theft` are (txid, height). What comes of it convinces whoever has the same chain
    (`verify_failure_proof`). Raises NotProven, ChainError."""
    return FailureProof(evidence, await mined(source, *breach), await mined(source, *theft))
