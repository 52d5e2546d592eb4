"""BOLT 7, "Query Messages": the arrays inside gossip queries, and the checksum that they compare.

Each `encoded_` array has one byte of encoding type before it. Only 0, uncompressed, may be used; 1 was zlib.
"""

from collections.abc import Iterable
from typing import Final

from channeld.bolt.codec import encode
from channeld.bolt.messages.gossip import (
    ChannelUpdate,
    ChannelUpdateTimestamps,
    EncodedTimestamps,
    QueryFlags,
)
from channeld.bolt.primitives import DecodeError, decode_bigsize, encode_bigsize

UNCOMPRESSED: Final = 0

QUERY_CHANNEL_ANNOUNCEMENT: Final = 1
QUERY_CHANNEL_UPDATE_1: Final = 2
QUERY_CHANNEL_UPDATE_2: Final = 4
QUERY_NODE_ANNOUNCEMENT_1: Final = 8
QUERY_NODE_ANNOUNCEMENT_2: Final = 16

WANT_TIMESTAMPS: Final = 1
WANT_CHECKSUMS: Final = 2


def _check_encoding(encoding_type: int) -> None:
    if encoding_type != UNCOMPRESSED:
        raise DecodeError(f"encoding type {encoding_type} must not be used")


def encode_short_ids(short_channel_ids: Iterable[int]) -> bytes:
    """`encoded_short_ids`, in ascending order."""
    return bytes((UNCOMPRESSED,)) + b"".join(scid.to_bytes(8, "big") for scid in sorted(short_channel_ids))


def decode_short_ids(encoded: bytes) -> list[int]:
    """The ids in the order they came in. Raises DecodeError for an encoding other than 0 or a part of an id.

    Nothing at all, not even an encoding type, is taken as no ids.
    """
    if not encoded:
        return []
    _check_encoding(encoded[0])
    if len(encoded) % 8 != 1:
        raise DecodeError(f"{len(encoded) - 1} bytes are not a whole number of short_channel_ids")
    return [int.from_bytes(encoded[pos : pos + 8], "big") for pos in range(1, len(encoded), 8)]


def encode_query_flags(flags: Iterable[int]) -> QueryFlags:
    """The record `query_flags`: one bigsize for each short_channel_id asked for."""
    return QueryFlags(UNCOMPRESSED, b"".join(map(encode_bigsize, flags)))


def decode_query_flags(query_flags: QueryFlags) -> list[int]:
    """Raises DecodeError for an encoding other than 0, or a flag that is cut off or not minimal."""
    _check_encoding(query_flags.encoding_type)
    flags, pos = [], 0
    while pos < len(query_flags.encoded_query_flags):
        flag, pos = decode_bigsize(query_flags.encoded_query_flags, pos)
        flags.append(flag)
    return flags


def encode_timestamps(timestamps: Iterable[ChannelUpdateTimestamps]) -> EncodedTimestamps:
    """The record `timestamps_tlv`: a pair for each short_channel_id."""
    return EncodedTimestamps(UNCOMPRESSED, b"".join(pair.to_bytes() for pair in timestamps))


def decode_timestamps(encoded: EncodedTimestamps) -> list[ChannelUpdateTimestamps]:
    """Raises DecodeError for an encoding other than 0 or a part of a pair."""
    _check_encoding(encoded.encoding_type)
    data = encoded.encoded_timestamps
    return [ChannelUpdateTimestamps.from_bytes(data[pos : pos + 8]) for pos in range(0, len(data), 8)]


def channel_update_checksum(update: ChannelUpdate) -> int:
    """CRC-32C of the update without its signature and timestamp, and without its type."""
    raw = encode(update)
    return crc32c(raw[66:106] + raw[110:])


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum of RFC 3720, appendix B.4."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = _CRC32C_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFF_FFFF


def _crc32c_entry(index: int) -> int:
    for _ in range(8):
        index = (index >> 1) ^ (0x82F6_3B78 if index & 1 else 0)
    return index


_CRC32C_TABLE = tuple(_crc32c_entry(index) for index in range(256))
