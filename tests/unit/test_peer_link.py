"""The first words of a connection (BOLT 1, "The init Message"), over a connection that only keeps what is said."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from channeld.bolt.features import encode_features
from channeld.bolt.messages import (
    ErrorMessage,
    Init,
    Message,
    Ping,
    UpdateFee,
    WarningMessage,
    decode,
    encode,
    parse_address,
)
from channeld.node import peers as peers_module
from channeld.node.bus import EventBus
from channeld.node.features import LOCAL_FEATURES
from channeld.node.peer import PeerLink, public_address
from channeld.node.peers import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, PEACE_SECONDS, Peers
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


# --- again and again


class Partner:
    """What the channels say of everybody: they have a channel with us."""

    def count_with(self, node_id: bytes) -> int:
        return 1

    def has_stake(self, node_id: bytes) -> bool:
        return True

    def peer_connected(self, link: PeerLink) -> None: ...
    def peer_disconnected(self, link: PeerLink) -> None: ...
    def peer_message(self, link: PeerLink, message: Message, raw: bytes) -> None: ...
    def peer_error(self, link: PeerLink, message: ErrorMessage) -> None: ...


async def test_connections_that_end_in_a_quarrel_are_not_tried_again_in_a_hurry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(peers_module, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    nothing: Any = None
    peers = Peers(nothing, nothing, EventBus(), frozenset(), CHAIN)
    peers.set_channels(Partner())
    node_id = Wire.remote_node_id

    def waits(lasts_seconds: float, quarrels: bool) -> float:
        """How long after such a connection the next one is tried."""
        nonlocal now
        wire = Wire(inbound=False, address=("", 0))
        link = PeerLink(cast(Connection, wire), peers, LOCAL_FEATURES, CHAIN)
        link.has_quarrelled = quarrels
        peers.ready(link)
        now += lasts_seconds
        peers.closed(link, "over")
        return peers._peer(node_id).wait_seconds

    assert waits(1, quarrels=False) == FIRST_RETRY_SECONDS
    found = [waits(1, quarrels=True) for _ in range(15)]
    assert found[:3] == [2 * FIRST_RETRY_SECONDS, 4 * FIRST_RETRY_SECONDS, 8 * FIRST_RETRY_SECONDS]
    assert found[-1] == LAST_RETRY_SECONDS
    assert waits(1, quarrels=False) == LAST_RETRY_SECONDS, "it was not peace yet"
    assert waits(PEACE_SECONDS, quarrels=True) == FIRST_RETRY_SECONDS


async def test_what_is_a_quarrel() -> None:
    def link() -> tuple[Wire, PeerLink]:
        wire = Wire(inbound=True, address=("127.0.0.1", 40_000))
        made = PeerLink(cast(Connection, wire), cast(Any, Nobody()), LOCAL_FEATURES, CHAIN)
        made.start()
        wire.hear(encode(Init(b"", FEATURES)))
        return wire, made

    for complaint in (ErrorMessage(bytes(32), b"no"), WarningMessage(bytes(32), b"careful")):
        wire, heard = link()
        wire.hear(encode(Ping(1, b"")))
        assert not heard.has_quarrelled
        wire.hear(encode(complaint))
        assert heard.has_quarrelled
    _, ended = link()
    ended.close("a rule was broken")
    assert ended.has_quarrelled
