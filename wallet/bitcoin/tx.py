"""Bitcoin transactions: immutable values, (de)serialisation, ids, weights.

Transaction ids are 32 bytes in internal byte order everywhere; `hex()` forms at the edges are reversed,
as block explorers and Bitcoin Core show them.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from wallet.bitcoin.encoding import (
    SerializationError,
    compact_size,
    read_bytes,
    read_compact_size,
    read_var_bytes,
    sha256d,
    var_bytes,
)

WITNESS_SCALE = 4
SEQUENCE_FINAL = 0xFFFF_FFFF
SEQUENCE_RBF = 0xFFFF_FFFD
"""Opts in to replacement (BIP 125) and leaves locktime in force."""
MAX_MONEY_SAT = 21_000_000 * 100_000_000
COINBASE_MATURITY_BLOCKS = 100
"""So deep has the first transaction of a block to be when its outputs are spent."""

_I32 = Struct("<i")
_U32 = Struct("<I")
_I64 = Struct("<q")
_OUTPOINT = Struct("<32sI")


class OutPoint(NamedTuple):
    """An output of a transaction: `txid` (32 bytes, internal order) and index `vout`."""

    txid: bytes
    vout: int

    def serialize(self) -> bytes:
        """36 bytes: txid, vout as u32 little-endian."""
        return self.txid + _U32.pack(self.vout)

    @classmethod
    def parse(cls, text: str) -> OutPoint:
        """From `TXID:VOUT` (hex as Bitcoin Core shows it). Raises ValueError."""
        txid, _, vout = text.partition(":")
        raw = bytes.fromhex(txid)[::-1]
        if len(raw) != 32 or not vout.isascii() or not vout.isdigit():
            raise ValueError(f"{text!r} is not an outpoint; write TXID:INDEX")
        return cls(raw, int(vout))

    def __str__(self) -> str:
        return f"{self.txid[::-1].hex()}:{self.vout}"


class TxIn(NamedTuple):
    """An input; `witness` is the stack, bottom first."""

    outpoint: OutPoint
    script_sig: bytes = b""
    sequence: int = SEQUENCE_FINAL
    witness: tuple[bytes, ...] = ()


class TxOut(NamedTuple):
    """An output: `value_sat` satoshi to `script_pubkey`."""

    value_sat: int
    script_pubkey: bytes

    def serialize(self) -> bytes:
        """Value as i64 little-endian, then the script behind its length."""
        return _I64.pack(self.value_sat) + var_bytes(self.script_pubkey)


class _TxFields(NamedTuple):
    version: int
    inputs: tuple[TxIn, ...]
    outputs: tuple[TxOut, ...]
    locktime: int


class Tx(_TxFields):
    """A transaction. Equality is by fields; ids and sizes are computed on each call, so keep what you reuse."""

    __slots__ = ()

    @property
    def has_witness(self) -> bool:
        """Whether any input carries a witness."""
        return any(txin.witness for txin in self.inputs)

    def serialize_stripped(self) -> bytes:
        """The serialisation without witnesses: what the txid commits to."""
        parts = [_I32.pack(self.version), compact_size(len(self.inputs))]
        for outpoint, script_sig, sequence, _ in self.inputs:
            parts.append(outpoint[0] + _U32.pack(outpoint[1]) + var_bytes(script_sig) + _U32.pack(sequence))
        parts.append(compact_size(len(self.outputs)))
        for value_sat, script in self.outputs:
            parts.append(_I64.pack(value_sat) + var_bytes(script))
        parts.append(_U32.pack(self.locktime))
        return b"".join(parts)

    def serialize(self) -> bytes:
        """The network serialisation (BIP 144), with witnesses if there are any."""
        stripped = self.serialize_stripped()
        if not self.has_witness:
            return stripped
        parts = [stripped[:4], b"\x00\x01", stripped[4:-4]]
        for txin in self.inputs:
            parts.append(compact_size(len(txin.witness)))
            parts.extend(var_bytes(item) for item in txin.witness)
        parts.append(stripped[-4:])
        return b"".join(parts)

    def txid(self) -> bytes:
        """Transaction id, 32 bytes, internal order."""
        return sha256d(self.serialize_stripped())

    def wtxid(self) -> bytes:
        """Witness transaction id, 32 bytes, internal order."""
        return sha256d(self.serialize())

    @property
    def txid_hex(self) -> str:
        """The txid as Bitcoin Core shows it (reversed)."""
        return self.txid()[::-1].hex()

    def weight(self) -> int:
        """Weight units (BIP 141)."""
        return len(self.serialize_stripped()) * (WITNESS_SCALE - 1) + len(self.serialize())

    def vsize(self) -> int:
        """Virtual bytes, rounded up."""
        return (self.weight() + WITNESS_SCALE - 1) // WITNESS_SCALE

    def outpoint(self, vout: int) -> OutPoint:
        """The outpoint of this transaction's output `vout`."""
        return OutPoint(self.txid(), vout)

    def spends(self) -> tuple[OutPoint, ...]:
        """The outputs that it spends, in order."""
        return tuple(txin.outpoint for txin in self.inputs)

    def with_witness(self, index: int, witness: tuple[bytes, ...]) -> Tx:
        """A copy whose input `index` carries `witness`."""
        inputs = list(self.inputs)
        inputs[index] = inputs[index]._replace(witness=witness)
        return Tx(self.version, tuple(inputs), self.outputs, self.locktime)

    def replace(
        self,
        *,
        inputs: tuple[TxIn, ...] | None = None,
        outputs: tuple[TxOut, ...] | None = None,
        locktime: int | None = None,
    ) -> Tx:
        """A copy with the given fields changed."""
        return Tx(
            self.version,
            self.inputs if inputs is None else inputs,
            self.outputs if outputs is None else outputs,
            self.locktime if locktime is None else locktime,
        )

    @classmethod
    def parse(cls, data: bytes) -> Tx:
        """From exactly one serialised transaction. Raises SerializationError."""
        tx, end = cls.read(data, 0)
        if end != len(data):
            raise SerializationError(f"{len(data) - end} bytes after the end of the transaction")
        return tx

    @classmethod
    def read(cls, data: bytes, pos: int) -> tuple[Tx, int]:
        """(transaction at `pos`, next position). Raises SerializationError."""
        try:
            return cls._read(data, pos)
        except (StructError, IndexError) as error:
            raise SerializationError("the data ends inside a transaction") from error

    @classmethod
    def _read(cls, data: bytes, pos: int) -> tuple[Tx, int]:
        (version,) = _I32.unpack_from(data, pos)
        pos += 4
        segwit = data[pos : pos + 2] == b"\x00\x01"
        if segwit:
            pos += 2
        count, pos = read_compact_size(data, pos)
        bare: list[tuple[OutPoint, bytes, int]] = []
        for _ in range(count):
            txid, vout = _OUTPOINT.unpack_from(data, pos)
            script_sig, pos = read_var_bytes(data, pos + 36)
            (sequence,) = _U32.unpack_from(data, pos)
            pos += 4
            bare.append((OutPoint(txid, vout), script_sig, sequence))
        count, pos = read_compact_size(data, pos)
        outputs: list[TxOut] = []
        for _ in range(count):
            (value_sat,) = _I64.unpack_from(data, pos)
            script, pos = read_var_bytes(data, pos + 8)
            outputs.append(TxOut(value_sat, script))
        inputs: list[TxIn] = []
        if segwit:
            for outpoint, script_sig, sequence in bare:
                witness, pos = _read_witness(data, pos)
                inputs.append(TxIn(outpoint, script_sig, sequence, witness))
            if not any(txin.witness for txin in inputs):
                raise SerializationError("a segregated witness transaction without any witness")
        else:
            inputs = [TxIn(*fields) for fields in bare]
        (locktime,) = _U32.unpack_from(data, pos)
        return cls(version, tuple(inputs), tuple(outputs), locktime), pos + 4


def _read_witness(data: bytes, pos: int) -> tuple[tuple[bytes, ...], int]:
    count, pos = read_compact_size(data, pos)
    if count > len(data) - pos:
        raise SerializationError("more witness items than bytes")
    items: list[bytes] = []
    for _ in range(count):
        item, pos = read_var_bytes(data, pos)
        items.append(item)
    return tuple(items), pos


class BlockHeader(NamedTuple):
    """The 80 bytes of a block's header; hashes in internal order."""

    version: int
    prev_hash: bytes
    merkle_root: bytes
    time: int
    bits: int
    nonce: int

    def serialize(self) -> bytes:
        """80 bytes."""
        return _HEADER.pack(*self)

    def hash(self) -> bytes:
        """Block hash, 32 bytes, internal order."""
        return sha256d(self.serialize())

    @classmethod
    def parse(cls, data: bytes) -> BlockHeader:
        """From exactly 80 bytes. Raises SerializationError."""
        if len(data) != 80:
            raise SerializationError(f"a block header has 80 bytes, not {len(data)}")
        return cls(*_HEADER.unpack(data))


_HEADER = Struct("<i32s32sIII")


class Block(NamedTuple):
    """A block: header and transactions, the coinbase first."""

    header: BlockHeader
    txs: tuple[Tx, ...]

    def serialize(self) -> bytes:
        """The network serialisation."""
        return self.header.serialize() + compact_size(len(self.txs)) + b"".join(tx.serialize() for tx in self.txs)

    @classmethod
    def parse(cls, data: bytes) -> Block:
        """From exactly one serialised block. Raises SerializationError."""
        head, pos = read_bytes(data, 0, 80)
        count, pos = read_compact_size(data, pos)
        txs: list[Tx] = []
        for _ in range(count):
            tx, pos = Tx.read(data, pos)
            txs.append(tx)
        if pos != len(data):
            raise SerializationError(f"{len(data) - pos} bytes after the end of the block")
        return cls(BlockHeader.parse(head), tuple(txs))


def merkle_root(hashes: list[bytes]) -> bytes:
    """The Merkle root over 32-byte hashes (internal order); 32 zero bytes for none."""
    if not hashes:
        return bytes(32)
    level = list(hashes)
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        level = [sha256d(level[i] + level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]
