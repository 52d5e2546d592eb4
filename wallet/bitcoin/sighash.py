"""What a signature signs: BIP 143 (witness v0) and BIP 341 (taproot) messages.

A `SighashCache` keeps the hashes over all inputs and outputs, so that many inputs of one transaction
cost one pass. The commitment's hot path signs single-input transactions, where the cache is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from wallet.bitcoin.encoding import compact_size, sha256, sha256d, tagged_hash, var_bytes
from wallet.bitcoin.tx import Tx, TxOut

SIGHASH_DEFAULT = 0x00
SIGHASH_ALL = 0x01
SIGHASH_NONE = 0x02
SIGHASH_SINGLE = 0x03
SIGHASH_ANYONECANPAY = 0x80

_I32 = Struct("<i")
_U32 = Struct("<I")
_I64 = Struct("<q")
_ZERO32 = bytes(32)


class SighashCache:
    """Hashes over a whole transaction that its inputs' signature messages share. `spent` is needed for taproot only."""

    __slots__ = ("_cache", "spent", "tx")

    def __init__(self, tx: Tx, spent: Sequence[TxOut] = ()) -> None:
        self.tx = tx
        self.spent = spent
        self._cache: dict[str, bytes] = {}

    def _once(self, name: str, parts: list[bytes]) -> bytes:
        digest = self._cache[name] = sha256(b"".join(parts))
        return digest

    def prevouts(self) -> bytes:
        """SHA-256 over all outpoints."""
        return self._cache.get("p") or self._once("p", [txin.outpoint.serialize() for txin in self.tx.inputs])

    def sequences(self) -> bytes:
        """SHA-256 over all sequences."""
        return self._cache.get("s") or self._once("s", [_U32.pack(txin.sequence) for txin in self.tx.inputs])

    def outputs(self) -> bytes:
        """SHA-256 over all outputs."""
        return self._cache.get("o") or self._once("o", [txout.serialize() for txout in self.tx.outputs])

    def amounts(self) -> bytes:
        """SHA-256 over the values of all spent outputs."""
        return self._cache.get("a") or self._once("a", [_I64.pack(txout.value_sat) for txout in self.spent])

    def scripts(self) -> bytes:
        """SHA-256 over the scripts of all spent outputs."""
        return self._cache.get("k") or self._once("k", [var_bytes(txout.script_pubkey) for txout in self.spent])


def segwit_v0_sighash(
    tx: Tx,
    index: int,
    script_code: bytes,
    value_sat: int,
    sighash_type: int = SIGHASH_ALL,
    cache: SighashCache | None = None,
) -> bytes:
    """The 32 bytes that a witness v0 signature of input `index` signs (BIP 143).

    `script_code` is the witness script, or `p2wpkh_script_code` for P2WPKH; `value_sat` what the spent output holds.
    """
    cache = cache or SighashCache(tx)
    base = sighash_type & 0x1F
    anyone = sighash_type & SIGHASH_ANYONECANPAY
    single_or_none = base in (SIGHASH_SINGLE, SIGHASH_NONE)
    hash_prevouts = _ZERO32 if anyone else sha256(cache.prevouts())
    hash_sequence = _ZERO32 if anyone or single_or_none else sha256(cache.sequences())
    if not single_or_none:
        hash_outputs = sha256(cache.outputs())
    elif base == SIGHASH_SINGLE and index < len(tx.outputs):
        hash_outputs = sha256d(tx.outputs[index].serialize())
    else:
        hash_outputs = _ZERO32
    head = _v0_head(tx, index, script_code, value_sat, hash_prevouts, hash_sequence)
    return sha256d(b"".join((head, hash_outputs, _U32.pack(tx.locktime), _U32.pack(sighash_type))))


def _v0_head(
    tx: Tx, index: int, script_code: bytes, value_sat: int, hash_prevouts: bytes, hash_sequence: bytes
) -> bytes:
    txin = tx.inputs[index]
    return b"".join(
        (
            _I32.pack(tx.version),
            hash_prevouts,
            hash_sequence,
            txin.outpoint.serialize(),
            var_bytes(script_code),
            _I64.pack(value_sat),
            _U32.pack(txin.sequence),
        )
    )


class SegwitV0Inputs:
    """Signature messages (SIGHASH_ALL) of all inputs of a transaction in variants that differ in their outputs alone:
    what does not change is put together once. `spent` are (script code, value in satoshi) of each input."""

    __slots__ = ("_heads", "_tail")

    def __init__(self, tx: Tx, spent: Sequence[tuple[bytes, int]]) -> None:
        cache = SighashCache(tx)
        common = sha256(cache.prevouts()), sha256(cache.sequences())
        self._heads = [_v0_head(tx, index, code, value_sat, *common) for index, (code, value_sat) in enumerate(spent)]
        self._tail = _U32.pack(tx.locktime) + _U32.pack(SIGHASH_ALL)

    def sighashes(self, outputs: Sequence[TxOut]) -> list[bytes]:
        """One for each input."""
        tail = sha256d(b"".join([output.serialize() for output in outputs])) + self._tail
        return [sha256d(head + tail) for head in self._heads]


def taproot_sighash(
    tx: Tx,
    index: int,
    spent: Sequence[TxOut],
    sighash_type: int = SIGHASH_DEFAULT,
    *,
    leaf_hash: bytes | None = None,
    annex: bytes | None = None,
    codesep_pos: int = 0xFFFF_FFFF,
    cache: SighashCache | None = None,
) -> bytes:
    """The 32 bytes that a taproot signature of input `index` signs (BIP 341; with `leaf_hash` BIP 342's extension).

    `spent` are the outputs that all inputs spend, in order. Raises ValueError for a type BIP 341 does not define,
    and for SIGHASH_SINGLE without a matching output.
    """
    if sighash_type not in (0x00, 0x01, 0x02, 0x03, 0x81, 0x82, 0x83):
        raise ValueError(f"BIP 341 defines no signature hash type {sighash_type:#x}")
    if len(spent) != len(tx.inputs):
        raise ValueError("taproot signs all spent outputs: give one for each input")
    cache = cache or SighashCache(tx, spent)
    base = sighash_type & 0x03 or SIGHASH_ALL
    anyone = sighash_type & SIGHASH_ANYONECANPAY
    parts = [b"\x00", bytes((sighash_type,)), _I32.pack(tx.version), _U32.pack(tx.locktime)]
    if not anyone:
        parts += [cache.prevouts(), cache.amounts(), cache.scripts(), cache.sequences()]
    if base == SIGHASH_ALL:
        parts.append(cache.outputs())
    spend_type = (2 if leaf_hash is not None else 0) + (1 if annex is not None else 0)
    parts.append(bytes((spend_type,)))
    if anyone:
        txin = tx.inputs[index]
        parts += [txin.outpoint.serialize(), spent[index].serialize(), _U32.pack(txin.sequence)]
    else:
        parts.append(_U32.pack(index))
    if annex is not None:
        parts.append(sha256(var_bytes(annex)))
    if base == SIGHASH_SINGLE:
        if index >= len(tx.outputs):
            raise ValueError("SIGHASH_SINGLE without a matching output")
        parts.append(sha256(tx.outputs[index].serialize()))
    if leaf_hash is not None:
        parts += [leaf_hash, b"\x00", _U32.pack(codesep_pos)]
    return tagged_hash(b"TapSighash", b"".join(parts))


def tapleaf_hash(script: bytes, leaf_version: int = 0xC0) -> bytes:
    """BIP 341's hash of a script leaf."""
    return tagged_hash(b"TapLeaf", bytes((leaf_version,)) + compact_size(len(script)) + script)
