"""The signature message from before segregated witness, for legacy addresses of the faucet."""

from __future__ import annotations

from wallet.bitcoin import Tx, TxIn, sha256d
from wallet.bitcoin.sighash import SIGHASH_ANYONECANPAY, SIGHASH_NONE, SIGHASH_SINGLE

_ONE = (1).to_bytes(32, "little")


def legacy_sighash(tx: Tx, index: int, script_code: bytes, sighash_type: int) -> bytes:
    """The 32 bytes that a signature in a scriptSig of input `index` signs; `script_code` without OP_CODESEPARATOR."""
    base = sighash_type & 0x1F
    if base == SIGHASH_SINGLE and index >= len(tx.outputs):
        return _ONE
    inputs = []
    for position, txin in enumerate(tx.inputs):
        own = position == index
        if sighash_type & SIGHASH_ANYONECANPAY and not own:
            continue
        sequence = txin.sequence if own or base not in (SIGHASH_NONE, SIGHASH_SINGLE) else 0
        inputs.append(TxIn(txin.outpoint, script_code if own else b"", sequence))
    outputs = tx.outputs
    if base == SIGHASH_NONE:
        outputs = ()
    elif base == SIGHASH_SINGLE:
        blank = tx.outputs[index]._replace(value_sat=-1, script_pubkey=b"")
        outputs = (*(blank for _ in range(index)), tx.outputs[index])
    copy = tx.replace(inputs=tuple(inputs), outputs=outputs)
    return sha256d(copy.serialize_stripped() + sighash_type.to_bytes(4, "little"))
