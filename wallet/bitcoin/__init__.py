"""Bitcoin's own formats: transactions, scripts, signature messages, addresses. Hot path; no I/O."""

from wallet.bitcoin.encoding import SerializationError, hash160, sha256, sha256d
from wallet.bitcoin.tx import (
    COINBASE_MATURITY_BLOCKS,
    SEQUENCE_FINAL,
    SEQUENCE_RBF,
    Block,
    BlockHeader,
    OutPoint,
    Tx,
    TxIn,
    TxOut,
)

__all__ = [
    "COINBASE_MATURITY_BLOCKS",
    "SEQUENCE_FINAL",
    "SEQUENCE_RBF",
    "Block",
    "BlockHeader",
    "OutPoint",
    "SerializationError",
    "Tx",
    "TxIn",
    "TxOut",
    "hash160",
    "sha256",
    "sha256d",
]
