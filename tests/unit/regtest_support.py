"""A regtest node with mature coins on one key, for tests of `wallet.regtest`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from coincurve import PrivateKey
from coincurve._libsecp256k1 import ffi, lib

from wallet.bitcoin import SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut, hash160
from wallet.bitcoin import script as scripts
from wallet.bitcoin.secp import pubkey_of
from wallet.bitcoin.sighash import SIGHASH_ALL, SighashCache, segwit_v0_sighash
from wallet.regtest.accept import SINGLE, Candidate, Mode
from wallet.regtest.node import Node
from wallet.regtest.policy import Policy

SECRET = bytes([7]) * 32
PUBKEY = pubkey_of(SECRET)
SCRIPT = scripts.p2wpkh(PUBKEY)
COIN = 100_000_000
USUAL_DER_BYTES = 70


def _signature(digest: bytes) -> bytes:
    """In DER, always of the usual length: one in 128 would be shorter, and the size of its transaction another."""
    for counter in count():
        nonce = (lib.secp256k1_nonce_function_rfc6979, ffi.from_buffer(counter.to_bytes(32, "little")))
        made = PrivateKey(SECRET).sign(digest, None, nonce)
        if len(made) == USUAL_DER_BYTES:
            return made
    raise AssertionError("unreachable")


def sign(tx: Tx, spent: Sequence[TxOut]) -> Tx:
    """Sign all inputs that spend SCRIPT; others are left alone."""
    cache = SighashCache(tx)
    for index, output in enumerate(spent):
        if output.script_pubkey == SCRIPT:
            code = scripts.p2wpkh_script_code(hash160(PUBKEY))
            digest = segwit_v0_sighash(tx, index, code, output.value_sat, SIGHASH_ALL, cache)
            tx = tx.with_witness(index, (_signature(digest) + bytes((SIGHASH_ALL,)), PUBKEY))
    return tx


class Bench:
    """A node, and transactions made of its coins."""

    def __init__(self, directory: Path, policy: Policy | None = None) -> None:
        self.directory = directory
        self.policy = policy or Policy()
        self.node = Node(directory, self.policy)
        self.node.load()
        self.outputs: dict[OutPoint, TxOut] = {}

    def close(self) -> None:
        self.node.close()

    def reopen(self) -> None:
        self.node.close()
        self.node = Node(self.directory, self.policy)
        self.node.load()

    @property
    def pool(self) -> set[bytes]:
        """The txids in the mempool."""
        return set(self.node.mempool.pool.entries)

    async def mine(self, count: int = 1) -> list[bytes]:
        """Mine blocks to SCRIPT; their coinbases' txids."""
        txids = []
        for _ in range(count):
            block = await self.node.mine(SCRIPT)
            self.remember(block.txs[0])
            txids.append(block.txs[0].txid())
        return txids

    async def mature(self, count: int = 1) -> list[OutPoint]:
        """Mine until `count` new coins of 50 BTC (less after halvings) are mature."""
        made = await self.mine(count)
        await self.mine(100)
        return [OutPoint(txid, 0) for txid in made]

    def remember(self, tx: Tx) -> None:
        """Know a transaction's outputs, to spend them."""
        txid = tx.txid()
        self.outputs.update((OutPoint(txid, vout), output) for vout, output in enumerate(tx.outputs))

    def spend(
        self,
        inputs: Sequence[OutPoint],
        fee_sat: int = 1000,
        *,
        outputs: Sequence[TxOut] | None = None,
        count: int = 1,
        version: int = 2,
        sequence: int = SEQUENCE_RBF,
        locktime: int = 0,
        pad: int = 0,
    ) -> Tx:
        """A signed transaction: `count` equal outputs to SCRIPT, or `outputs`; `pad` bytes of OP_RETURN more."""
        spent = [self.outputs[outpoint] for outpoint in inputs]
        if outputs is None:
            share = (sum(output.value_sat for output in spent) - fee_sat) // count
            outputs = [TxOut(share, SCRIPT)] * count
        if pad:
            outputs = [*outputs, TxOut(0, b"\x6a" + scripts.push(bytes(pad)))]
        txins = tuple(TxIn(outpoint, b"", sequence) for outpoint in inputs)
        tx = sign(Tx(version, txins, tuple(outputs), locktime), spent)
        self.remember(tx)
        return tx

    def submit(self, tx: Tx, mode: Mode = SINGLE) -> Candidate:
        """Put a transaction into the mempool."""
        return self.node.mempool.submit(tx, mode)
