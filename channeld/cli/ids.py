"""Ids as people write and read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from channeld.bolt.primitives import format_short_channel_id, parse_short_channel_id
from channeld.cli.amounts import FormatError

T = TypeVar("T")

HASH_HEX = 64
MIN_PREFIX_HEX = 4
SHORT_HEX = 8


class NodeAddress(NamedTuple):
    """`node_id@host:port`; host and port may be missing."""

    node_id: bytes
    host: str
    port: int | None


def parse_node_id(text: str) -> bytes:
    """A public key of 33 bytes from 66 hex characters. Raises `FormatError`."""
    value = _hex(text)
    if value is None or len(value) != 33 or value[0] not in (2, 3):
        raise FormatError(f"{text!r} is not a node id: that is 66 hex characters, beginning with 02 or 03.")
    return value


def parse_node_address(text: str) -> NodeAddress:
    """`node_id`, `node_id@host` or `node_id@host:port`; IPv6 as `[::1]:9735`. Raises `FormatError`."""
    key, at, where = text.strip().partition("@")
    host, port = parse_host_port(where) if at else ("", None)
    return NodeAddress(parse_node_id(key), host, port)


def parse_host_port(text: str) -> tuple[str, int | None]:
    """`host`, `host:port`, `[::1]` or `[::1]:port`. Raises `FormatError`."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if bracket and (not rest or rest.startswith(":")) else "?"
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isdecimal() and 1 <= int(port) <= 65535)):
        raise FormatError(f"{text!r} is not an address; write host:port, or [::1]:port.")
    return host, int(port) if port else None


def parse_hash(text: str, what: str) -> bytes:
    """32 bytes from 64 hex characters, in the order they are written. Raises `FormatError`."""
    value = _hex(text)
    if value is None or len(value) != 32:
        raise FormatError(f"{text!r} is not {what}: that is {HASH_HEX} hex characters.")
    return value


def parse_hash_prefix(text: str, what: str) -> str:
    """The beginning of 64 hex characters, in lower case: 4 characters or more. Raises `FormatError`."""
    prefix = text.strip().lower()
    if not MIN_PREFIX_HEX <= len(prefix) <= HASH_HEX or not set(prefix) <= set("0123456789abcdef"):
        raise FormatError(f"{text!r} is not {what}: that is {HASH_HEX} hex characters, or the first few of them.")
    return prefix


def pick(prefix: str, candidates: Iterable[T], shown: Callable[[T], str], what: str) -> T | None:
    """The one candidate whose id begins with `prefix`, None if there is none. Raises `FormatError` for several."""
    found = {shown(candidate): candidate for candidate in candidates if shown(candidate).startswith(prefix)}
    if len(found) > 1:
        raise FormatError(f"{len(found)} ids begin with {prefix}; write more of {what}.")
    return next(iter(found.values()), None)


def txid_hex(txid: bytes) -> str:
    """A transaction id as people read it: reversed."""
    return txid[::-1].hex()


def parse_outpoint(text: str) -> tuple[bytes, int]:
    """`txid:output`; the txid in internal byte order. Raises `FormatError`."""
    txid, _, vout = text.strip().partition(":")
    if not vout.isdecimal():
        raise FormatError(f"{text!r} is not an outpoint: that is a transaction id, a colon and the output's number.")
    return parse_hash(txid, "a transaction id")[::-1], int(vout)


def parse_scid(text: str) -> int | None:
    """A short channel id from `123x4x5` (or lnd's `123:4:5`); None if it is none."""
    parts = text.strip().replace(":", "x").split("x")
    if len(parts) != 3:
        return None
    try:
        return parse_short_channel_id("x".join(parts))
    except ValueError:
        return None


def scid(value: int) -> str:
    """`123x4x5`"""
    return format_short_channel_id(value)


def _hex(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text.strip())
    except ValueError:
        return None
