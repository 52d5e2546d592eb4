"""Failures on their way back: creating, relaying and, at the sender, reading an error onion.

The return packet is `hmac` (32 bytes) || u16 length || failure message || u16 length || padding, under one stream per
hop. It travels as `reason` in `update_fail_htlc`, with `attribution_data` beside it if the peers support that.

Source: BOLT 4, "Returning Errors".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest

from channeld.bolt.onion.attribution import Attribution, AttributionReader, add_attribution
from channeld.bolt.onion.crypto import apply_stream, derive_key, hmac256

_HMAC_SIZE = 32
_PADDED_SIZES = (256, 1024)  # failure_len + pad_len: the BOLT's size, and that of its test vector for longer messages
_MAX_SIZE = 0xFFFF
_ROUNDS = 27  # the longest route of TLV payloads; the sender always does as many
_DUMMY_SECRET = bytes(32)


@dataclass(frozen=True, slots=True)
class ReturnPacket:
    """The fields of `update_fail_htlc` that one hop hands to the previous one."""

    reason: bytes
    attribution_data: bytes | None = None  # 920 bytes


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """What the sender could read of a failure.

    `erring_hop` counts from 0, the first hop after the sender; None with an empty `failure_message` when no hop's HMAC
    fits: somebody damaged the packet, and `attribution` (None if no data came) may tell who.
    """

    erring_hop: int | None
    failure_message: bytes
    attribution: Attribution | None


def create_failure(shared_secret: bytes, failure_message: bytes, hold_time: int | None = None) -> ReturnPacket:
    """The erring node's packet for the previous hop.

    `failure_message` is the encoded failure (`failures.encode_failure`). With a `hold_time` (units of 100 ms) the
    packet carries attribution data. Raises ValueError when the message does not fit (65535 bytes).
    """
    size = len(failure_message)
    if size > _MAX_SIZE:
        raise ValueError(f"a failure message of {size} bytes")
    padding = next((padded for padded in _PADDED_SIZES if padded >= size), size) - size
    body = b"".join((size.to_bytes(2, "big"), failure_message, padding.to_bytes(2, "big"), bytes(padding)))
    packet = hmac256(derive_key(b"um", shared_secret), body) + body
    return _wrap(shared_secret, ReturnPacket(packet), hold_time)


def relay_failure(shared_secret: bytes, failure: ReturnPacket, hold_time: int | None = None) -> ReturnPacket:
    """An intermediate node's packet for the previous hop, from the one that came from the next hop.

    With a `hold_time` (units of 100 ms) attribution data is updated, or begun if none of the right size came.
    """
    return _wrap(shared_secret, failure, hold_time)


def _wrap(shared_secret: bytes, failure: ReturnPacket, hold_time: int | None) -> ReturnPacket:
    attribution_data = None
    if hold_time is not None:
        attribution_data = add_attribution(shared_secret, failure.attribution_data, hold_time, failure.reason)
    return ReturnPacket(apply_stream(derive_key(b"ammag", shared_secret), failure.reason), attribution_data)


def read_failure(shared_secrets: Sequence[bytes], failure: ReturnPacket) -> ReadFailure:
    """Take off the hops' streams until one hop's HMAC fits; `shared_secrets` are those of the onion, in route order.

    Always does 27 rounds, so that its time says nothing about the route. Costs about 350 us.
    Source: BOLT 4, "Origin node".
    """
    found_hop: int | None = None
    message = b""
    packet = failure.reason
    attribution_data = failure.attribution_data
    reader = None if attribution_data is None else AttributionReader(len(shared_secrets), attribution_data)
    for hop in range(max(_ROUNDS, len(shared_secrets))):
        secret = shared_secrets[hop] if hop < len(shared_secrets) else _DUMMY_SECRET
        packet = apply_stream(derive_key(b"ammag", secret), packet)
        expected = hmac256(derive_key(b"um", secret), packet[_HMAC_SIZE:])
        if reader is not None and found_hop is None and hop < len(shared_secrets):
            reader.read_hop(secret, packet)
        if compare_digest(expected, packet[:_HMAC_SIZE]) and found_hop is None and hop < len(shared_secrets):
            found_hop, message = hop, _message(packet)
    return ReadFailure(found_hop, message, reader.result() if reader else None)


def _message(packet: bytes) -> bytes:
    """The failure message of an authenticated packet; what is cut off is left out."""
    size = int.from_bytes(packet[_HMAC_SIZE : _HMAC_SIZE + 2], "big")
    return packet[_HMAC_SIZE + 2 : _HMAC_SIZE + 2 + size]
