"""The first words of a connection (BOLT 1, "The init Message"), over a connection that only keeps what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from channeld.bolt.features import encode_features
from channeld.bolt.messages import Init, Message, Ping, UpdateFee, WarningMessage, decode, encode, parse_address
from channeld.node.features import LOCAL_FEATURES
from channeld.node.peer import PeerLink, public_address
from channeld.node.transport import Connection

CHAIN = b"\x06" * 32
FEATURES = encode_features(LOCAL_FEATURES)


class Wire:
    """A connection without a network."""

    remote_node_id = b"\x02" + bytes(32)
    is_preferred = False

    def __init__(self, inbound: bool, address: tuple[str, int]) -> None:
        self.inbound = inbound
        self.remote_address = address
        self.said: list[Message] = []
        self.close_reason: str | None = None
        self.hear: Callable[[bytes], None] = lambda data: None

    def on_close(self, callback: Callable[[str], None]) -> None:
        self.ended = callback

    def set_receiver(self, receiver: Callable[[bytes], None]) -> None:
        self.hear = receiver

    def send(self, data: bytes) -> None:
        self.said.append(decode(data))

    def close(self, reason: str) -> None:
        self.close_reason = reason
        self.ended(reason)


class Nobody:
    """Hears of nothing that matters here."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def begun(*, inbound: bool = True, address: tuple[str, int] = ("127.0.0.1", 40_000)) -> Wire:
    wire = Wire(inbound, address)
    PeerLink(cast(Connection, wire), cast(Any, Nobody()), LOCAL_FEATURES, CHAIN).start()
    return wire


@pytest.mark.parametrize(
    "first",
    [
        encode(Ping(1, b"")),
        encode(UpdateFee(bytes(32), 253)),
        (40_000).to_bytes(2, "big"),
        (40_001).to_bytes(2, "big"),
        b"",
    ],
)
async def test_nothing_is_said_to_who_does_not_begin_with_init(first: bytes) -> None:
    wire = begun()
    wire.hear(first)
    # BOLT 1, "MUST wait to receive `init` before sending any other messages."
    assert [type(message) for message in wire.said] == [Init]
    assert wire.close_reason == "init must be the first message (BOLT 1)"


@pytest.mark.parametrize("init", [encode(Init(b"", b"", networks=(bytes(32),))), encode(Init(b"", FEATURES))[:-1]])
async def test_who_begins_with_a_bad_init_is_told_why(init: bytes) -> None:
    wire = begun()
    wire.hear(init)
    assert [type(message) for message in wire.said] == [Init, WarningMessage]
    assert wire.close_reason


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        ("8.8.4.4", "8.8.4.4:40000"),
        ("2001:4860:4860::8888", "[2001:4860:4860::8888]:40000"),
        ("::ffff:8.8.4.4", "8.8.4.4:40000"),
        ("127.0.0.1", None),
        ("10.1.2.3", None),
        ("192.168.1.2", None),
        ("::1", None),
        ("fe80::1%eth0", None),
        ("fd00::1", None),
        ("::ffff:10.1.2.3", None),
        ("", None),
    ],
)
async def test_a_caller_is_told_its_public_address(host: str, seen: str | None) -> None:
    # BOLT 1, "SHOULD set `remote_addr` to reflect the remote IP address (and port) of an incoming connection, if the
    # node is the receiver and the connection was done via IP." "SHOULD NOT set private addresses as `remote_addr`."
    expected = parse_address(seen).to_bytes() if seen is not None else None
    assert public_address((host, 40_000)) == expected
    (init,) = begun(address=(host, 40_000)).said
    assert isinstance(init, Init)
    assert init.remote_addr == expected
    (init,) = begun(inbound=False, address=(host, 40_000)).said
    assert isinstance(init, Init)
    assert init.remote_addr is None, "whom we called knows where"
