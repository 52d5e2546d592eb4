"""The fundamental types of BOLT 1: how one value becomes bytes and back.

A `WireType` is put into an annotation (`Annotated[int, Int("Q")]`) and says how that field travels;
`channeld.bolt.codec` compiles whole classes out of them. All integers are big-endian.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal

MAX_U64 = 0xFFFF_FFFF_FFFF_FFFF
MAX_MESSAGE_BYTES = 65535  # BOLT 1, "Lightning Message Format": the transport's length field has two bytes


class EncodeError(ValueError):
    """A value that its wire format cannot hold: our own mistake, never a peer's."""

    def __init__(self, reason: str, *, message: str = "", field: str = "") -> None:
        super().__init__(_sentence(reason, message, field))
        self.reason = reason
        self.message = message
        self.field = field


class DecodeError(ValueError):
    """Bytes that are not what their type promises.

    `message` is the BOLT name of the message (or structure), `field` the field that failed, `message_type` its
    number; `tlv_type` and `offset` (bytes from the start of what was decoded) name the TLV record if one was at fault.
    """

    def __init__(
        self,
        reason: str,
        *,
        message: str = "",
        field: str = "",
        message_type: int | None = None,
        tlv_type: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(_sentence(reason, message, field))
        self.reason = reason
        self.message = message
        self.field = field
        self.message_type = message_type
        self.tlv_type = tlv_type
        self.offset = offset


def _sentence(reason: str, message: str, field: str) -> str:
    place = ".".join(part for part in (message, field) if part)
    return f"{place}: {reason}" if place else reason


# --- bigsize and truncated integers -------------------------------------------------------------------------------

_BIGSIZE_ONE = tuple(bytes((value,)) for value in range(0xFD))


def encode_bigsize(value: int) -> bytes:
    """1, 3, 5 or 9 bytes (BOLT 1, "Appendix A: BigSize Test Vectors"). Raises EncodeError outside 0..2^64-1."""
    if 0 <= value < 0xFD:
        return _BIGSIZE_ONE[value]
    if 0 <= value <= 0xFFFF:
        return b"\xfd" + value.to_bytes(2, "big")
    if 0 <= value <= 0xFFFF_FFFF:
        return b"\xfe" + value.to_bytes(4, "big")
    if 0 <= value <= MAX_U64:
        return b"\xff" + value.to_bytes(8, "big")
    raise EncodeError(f"bigsize {value} is not an unsigned 64 bit number")


def decode_bigsize(data: bytes, pos: int = 0) -> tuple[int, int]:
    """Value and the position after it. Raises DecodeError when cut off or not minimal."""
    if pos >= len(data):
        raise DecodeError("bigsize missing")
    first = data[pos]
    if first < 0xFD:
        return first, pos + 1
    size = 1 << (first - 0xFC)  # 2, 4 or 8
    end = pos + 1 + size
    if end > len(data):
        raise DecodeError("bigsize cut off")
    value = int.from_bytes(data[pos + 1 : end], "big")
    if value < _BIGSIZE_LEAST[size]:
        raise DecodeError("bigsize is not minimal")
    return value, end


_BIGSIZE_LEAST = {2: 0xFD, 4: 0x1_0000, 8: 0x1_0000_0000}


# --- wire types ---------------------------------------------------------------------------------------------------


class WireType(ABC):
    """How one value is written and read. `encode` raises EncodeError, `decode` raises DecodeError."""

    __slots__ = ()

    @abstractmethod
    def encode(self, value: Any) -> bytes: ...

    @abstractmethod
    def decode(self, data: bytes, pos: int) -> tuple[Any, int]:
        """The value at `pos` and the position after it."""


class FixedSize(WireType):
    """A type that `struct` knows: neighbours are packed together in one call. `format` has no byte order sign."""

    __slots__ = ("_struct", "format", "size")

    def __init__(self, format: str) -> None:
        self.format = format
        self._struct = struct.Struct(">" + format)
        self.size = self._struct.size

    def guard(self, name: str) -> str | None:
        """Python expression over `name` that is true for a value struct would silently mutilate."""
        return None

    def check(self, name: str) -> str | None:
        """Python expression over `name` that is true for a decoded value that must be refused."""
        return None

    def encode(self, value: Any) -> bytes:
        try:
            return self._struct.pack(value)
        except struct.error as error:
            raise EncodeError(f"{value!r}: {error}") from None

    def decode(self, data: bytes, pos: int) -> tuple[Any, int]:
        end = pos + self.size
        if end > len(data):
            raise DecodeError(f"needs {self.size} bytes, {len(data) - pos} left")
        return self._struct.unpack_from(data, pos)[0], end


class Int(FixedSize):
    """An integer of a `struct` format: B, H, I, Q, or lower case for signed ones."""

    __slots__ = ()

    def __init__(self, format: Literal["B", "H", "I", "Q", "b", "h", "i", "q"]) -> None:
        super().__init__(format)


class FixedBytes(FixedSize):
    """Exactly `size` bytes."""

    __slots__ = ()

    def __init__(self, size: int) -> None:
        super().__init__(f"{size}s")

    def guard(self, name: str) -> str | None:
        return f"len({name}) != {self.size}"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise EncodeError(f"bytes wanted, not {type(value).__name__}")
        if len(value) != self.size:
            raise EncodeError(f"{self.size} bytes wanted, not {len(value)}")
        return bytes(value)


class CompressedPoint(FixedBytes):
    """33 bytes of a compressed public key. Only the first byte is checked; whoever uses the point parses it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(33)

    def check(self, name: str) -> str | None:
        return f"{name}[0] & 0xfe != 2"

    def decode(self, data: bytes, pos: int) -> tuple[Any, int]:
        point, end = super().decode(data, pos)
        if point[0] & 0xFE != 2:
            raise DecodeError("not a compressed point")
        return point, end


class PrefixedBytes(WireType):
    """`len*byte` with its length before it, in 1 (B) or 2 (H) bytes."""

    __slots__ = ("_limit", "prefix_bytes")

    def __init__(self, prefix: Literal["B", "H"] = "H") -> None:
        self.prefix_bytes = 1 if prefix == "B" else 2
        self._limit = 1 << (8 * self.prefix_bytes)

    def encode(self, value: Any) -> bytes:
        size = len(value)
        if size >= self._limit:
            raise EncodeError(f"{size} bytes do not fit under a {self.prefix_bytes} byte length")
        return size.to_bytes(self.prefix_bytes, "big") + value  # type: ignore[no-any-return]

    def decode(self, data: bytes, pos: int) -> tuple[bytes, int]:
        start = pos + self.prefix_bytes
        end = start + int.from_bytes(data[pos:start], "big")
        if start > len(data):
            raise DecodeError("length missing")
        if end > len(data):
            raise DecodeError(f"length {end - start}, but {len(data) - start} bytes left")
        return data[start:end], end


class RemainingBytes(WireType):
    """`...*byte`: everything up to the end of the record or message."""

    __slots__ = ()

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise EncodeError(f"bytes wanted, not {type(value).__name__}")
        return bytes(value)

    def decode(self, data: bytes, pos: int) -> tuple[bytes, int]:
        return data[pos:], len(data)


class RemainingText(WireType):
    """`...*utf8`: UTF-8 text up to the end of the record."""

    __slots__ = ()

    def encode(self, value: Any) -> bytes:
        try:
            return value.encode()  # type: ignore[no-any-return]
        except UnicodeEncodeError as error:
            raise EncodeError(str(error)) from None

    def decode(self, data: bytes, pos: int) -> tuple[str, int]:
        try:
            return data[pos:].decode(), len(data)
        except UnicodeDecodeError:
            raise DecodeError("not UTF-8") from None


class BigSizeInt(WireType):
    """`bigsize`."""

    __slots__ = ()

    def encode(self, value: Any) -> bytes:
        return encode_bigsize(value)

    def decode(self, data: bytes, pos: int) -> tuple[int, int]:
        return decode_bigsize(data, pos)


class TruncatedInt(WireType):
    """`tu16`, `tu32`, `tu64`: no leading zero bytes; takes the rest of its record (BOLT 1, "Fundamental Types")."""

    __slots__ = ("max_bytes",)

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def encode(self, value: Any) -> bytes:
        if value < 0 or value.bit_length() > 8 * self.max_bytes:
            raise EncodeError(f"{value} is not an unsigned {8 * self.max_bytes} bit number")
        return value.to_bytes((value.bit_length() + 7) // 8, "big")  # type: ignore[no-any-return]

    def decode(self, data: bytes, pos: int) -> tuple[int, int]:
        raw = data[pos:]
        if len(raw) > self.max_bytes:
            raise DecodeError(f"truncated integer of {len(raw)} bytes, at most {self.max_bytes} allowed")
        if raw[:1] == b"\0":
            raise DecodeError("truncated integer is not minimal")
        return int.from_bytes(raw, "big"), len(data)


class Flag(WireType):
    """A record without a value: its presence is the value. Only as a TLV record of type `bool`."""

    __slots__ = ()

    def encode(self, value: Any) -> bytes:
        return b""

    def decode(self, data: bytes, pos: int) -> tuple[bool, int]:
        return True, pos


class SciddirOrPubkey(WireType):
    """`sciddir_or_pubkey`: 9 bytes (direction and short_channel_id) or a 33 byte point, told by the first byte."""

    __slots__ = ()

    def encode(self, value: Any) -> bytes:
        if len(value) != self._size(value[:1]):
            raise EncodeError("neither 9 bytes of a channel's side nor a 33 byte point")
        return bytes(value)

    def decode(self, data: bytes, pos: int) -> tuple[bytes, int]:
        size = self._size(data[pos : pos + 1])
        if not size or pos + size > len(data):
            raise DecodeError("neither a channel's side nor a point")
        return data[pos : pos + size], pos + size

    @staticmethod
    def _size(first: bytes) -> int:
        return {b"\0": 9, b"\1": 9, b"\2": 33, b"\3": 33}.get(first, 0)


class Array(WireType):
    """`n*type`: elements after a count of 1 (B) or 2 (H) bytes, or, without a prefix, up to the end."""

    __slots__ = ("_bytes_each", "_decode", "element", "prefix_bytes")

    def __init__(self, element: WireType, prefix: Literal["B", "H"] | None) -> None:
        self.element = element
        self.prefix_bytes = {"B": 1, "H": 2, None: 0}[prefix]
        self._decode: Callable[[bytes, int], tuple[Any, int]] = element.decode
        self._bytes_each = element.size if type(element) is FixedBytes else 0  # many signatures: no call for each

    def encode(self, value: Any) -> bytes:
        if self._bytes_each and {*map(len, value)} <= {self._bytes_each}:
            body = b"".join(value)
        else:
            body = b"".join(map(self.element.encode, value))
        if not self.prefix_bytes:
            return body
        if len(value) >= 1 << (8 * self.prefix_bytes):
            raise EncodeError(f"{len(value)} elements do not fit under a {self.prefix_bytes} byte count")
        return len(value).to_bytes(self.prefix_bytes, "big") + body

    def decode(self, data: bytes, pos: int) -> tuple[tuple[Any, ...], int]:
        items = []
        decode = self._decode
        if not self.prefix_bytes:
            while pos < len(data):
                item, pos = decode(data, pos)
                items.append(item)
            return tuple(items), pos
        start = pos + self.prefix_bytes
        if start > len(data):
            raise DecodeError("count missing")
        count, pos = int.from_bytes(data[pos:start], "big"), start
        each = self._bytes_each
        if each and pos + count * each <= len(data):
            end = pos + count * each
            return tuple([data[at : at + each] for at in range(pos, end, each)]), end
        for _ in range(count):
            item, pos = decode(data, pos)
            items.append(item)
        return tuple(items), pos


class Counted:
    """Annotation of a `tuple[X, ...]`: the count stands before the elements, in 1 (B) or 2 (H) bytes."""

    __slots__ = ("prefix",)

    def __init__(self, prefix: Literal["B", "H"]) -> None:
        self.prefix: Literal["B", "H"] = prefix


class Remaining:
    """Annotation of a `tuple[X, ...]`: the elements go on up to the end of the record."""

    __slots__ = ()
    prefix: None = None


# --- the names that declarations use ------------------------------------------------------------------------------

Byte = Annotated[int, Int("B")]
U8 = Byte
U16 = Annotated[int, Int("H")]
U32 = Annotated[int, Int("I")]
U64 = Annotated[int, Int("Q")]
S8 = Annotated[int, Int("b")]
S16 = Annotated[int, Int("h")]
S32 = Annotated[int, Int("i")]
S64 = Annotated[int, Int("q")]
Tu16 = Annotated[int, TruncatedInt(2)]
Tu32 = Annotated[int, TruncatedInt(4)]
Tu64 = Annotated[int, TruncatedInt(8)]
BigSize = Annotated[int, BigSizeInt()]
Bytes32 = Annotated[bytes, FixedBytes(32)]
ChainHash = Bytes32
ChannelId = Bytes32
Sha256 = Bytes32
Signature = Annotated[bytes, FixedBytes(64)]
Bip340Sig = Signature
Point = Annotated[bytes, CompressedPoint()]
ShortChannelId = U64
SciddirOrPubkeyBytes = Annotated[bytes, SciddirOrPubkey()]
VarBytes = Annotated[bytes, PrefixedBytes("H")]
ShortBytes = Annotated[bytes, PrefixedBytes("B")]
RestBytes = Annotated[bytes, RemainingBytes()]
Utf8 = Annotated[str, RemainingText()]


def block_of(scid: int) -> int:
    """BOLT 7, "Definition of short_channel_id": the height of the funding transaction's block."""
    return scid >> 40


def tx_index_of(scid: int) -> int:
    """The funding transaction's position in its block."""
    return scid >> 16 & 0xFF_FFFF


def output_of(scid: int) -> int:
    """The index of the funding output."""
    return scid & 0xFFFF


def format_short_channel_id(short_channel_id: int) -> str:
    """`539268x845x1`: block height, transaction index, output index (BOLT 7, "Definition of short_channel_id")."""
    return f"{block_of(short_channel_id)}x{tx_index_of(short_channel_id)}x{output_of(short_channel_id)}"


def short_channel_id(block_height: int, transaction_index: int, output_index: int) -> int:
    """The number made of its three parts (3, 3 and 2 bytes). Raises ValueError when one does not fit."""
    if not (0 <= block_height < 1 << 24 and 0 <= transaction_index < 1 << 24 and 0 <= output_index < 1 << 16):
        raise ValueError(f"no short_channel_id: {block_height}x{transaction_index}x{output_index}")
    return block_height << 40 | transaction_index << 16 | output_index


def parse_short_channel_id(text: str) -> int:
    """The reverse of `format_short_channel_id`. Raises ValueError."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not a short_channel_id such as 539268x845x1")
    return short_channel_id(*map(int, parts))
