"""Hashes and the compact-size integers of Bitcoin's serialisation."""

from __future__ import annotations

import hashlib
from struct import Struct
from struct import error as StructError

from embit.hashes import ripemd160 as _ripemd160

_U16 = Struct("<H")
_U32 = Struct("<I")
_U64 = Struct("<Q")
_sha256 = hashlib.sha256


class SerializationError(ValueError):
    """Bytes that are not what Bitcoin's serialisation says they should be."""


def sha256(data: bytes) -> bytes:
    """SHA-256 of `data`, 32 bytes."""
    return _sha256(data).digest()


def sha256d(data: bytes) -> bytes:
    """SHA-256 of SHA-256 of `data`, 32 bytes, internal byte order."""
    return _sha256(_sha256(data).digest()).digest()


def ripemd160(data: bytes) -> bytes:
    """RIPEMD-160 of `data`, 20 bytes."""
    digest: bytes = _ripemd160(data)
    return digest


def hash160(data: bytes) -> bytes:
    """RIPEMD-160 of SHA-256 of `data`, 20 bytes."""
    return ripemd160(_sha256(data).digest())


def tagged_hash(tag: bytes, data: bytes) -> bytes:
    """BIP 340's tagged hash, 32 bytes."""
    prefix = _sha256(tag).digest()
    return _sha256(prefix + prefix + data).digest()


def compact_size(n: int) -> bytes:
    """`n` as Bitcoin's variable-length integer (1, 3, 5 or 9 bytes)."""
    if n < 0xFD:
        return bytes((n,))
    if n <= 0xFFFF:
        return b"\xfd" + _U16.pack(n)
    if n <= 0xFFFF_FFFF:
        return b"\xfe" + _U32.pack(n)
    return b"\xff" + _U64.pack(n)


def var_bytes(data: bytes) -> bytes:
    """`data` behind its compact-size length."""
    n = len(data)
    return bytes((n,)) + data if n < 0xFD else compact_size(n) + data


def read_compact_size(data: bytes, pos: int) -> tuple[int, int]:
    """(value, next position). Raises SerializationError if short or not minimal."""
    try:
        first = data[pos]
        if first < 0xFD:
            return first, pos + 1
        if first == 0xFD:
            value, end, least = int(_U16.unpack_from(data, pos + 1)[0]), pos + 3, 0xFD
        elif first == 0xFE:
            value, end, least = int(_U32.unpack_from(data, pos + 1)[0]), pos + 5, 0x1_0000
        else:
            value, end, least = int(_U64.unpack_from(data, pos + 1)[0]), pos + 9, 0x1_0000_0000
    except (IndexError, StructError) as error:
        raise SerializationError("the data ends inside a compact size") from error
    if value < least:
        raise SerializationError("a compact size is not minimal")
    return value, end


def read_bytes(data: bytes, pos: int, n: int) -> tuple[bytes, int]:
    """(n bytes, next position). Raises SerializationError if there are fewer."""
    end = pos + n
    if n < 0 or end > len(data):
        raise SerializationError(f"{n} bytes wanted at {pos}, only {len(data) - pos} there")
    return data[pos:end], end


def read_var_bytes(data: bytes, pos: int) -> tuple[bytes, int]:
    """(bytes behind a compact-size length, next position)."""
    n, pos = read_compact_size(data, pos)
    return read_bytes(data, pos, n)
