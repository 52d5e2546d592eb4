"""One connection to a peer: `init`, ping and pong, unknown messages, errors; channel messages go to the channels.

Source: BOLT 1.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from channeld.bolt.features import (
    IncompatibleFeatures,
    NegotiatedFeatures,
    check_compatible,
    decode_features,
    encode_features,
)
from channeld.bolt.messages import (
    Address,
    AddressType,
    DecodeError,
    ErrorMessage,
    Init,
    Message,
    Ping,
    Pong,
    UnknownMessage,
    WarningMessage,
    decode,
    encode,
)
from channeld.bolt.messages.control import told_to_peer
from channeld.node.transport import Connection, ConnectionClosed

log = structlog.get_logger(__name__)

INIT_TIMEOUT_SECONDS = 30.0
PING_INTERVAL_SECONDS = 45.0
PONG_TIMEOUT_SECONDS = 20.0
MAX_PONG_BYTES = 65_531
ALL_CHANNELS = bytes(32)


class PeerHandler(Protocol):
    """What a connection reports. `ready` comes once, before any message; `closed` comes once, after `ready` or instead
    of it."""

    def ready(self, link: PeerLink) -> None: ...
    def message(self, link: PeerLink, message: Message, raw: bytes) -> None: ...
    def error(self, link: PeerLink, message: ErrorMessage) -> None: ...
    def warning(self, link: PeerLink, message: WarningMessage) -> None: ...
    def closed(self, link: PeerLink, reason: str) -> None: ...


class PeerLink:
    """A connection; usable from `ready` on."""

    def __init__(
        self, connection: Connection, handler: PeerHandler, local_features: frozenset[int], chain_hash: bytes
    ) -> None:
        self.node_id = connection.remote_node_id
        self.inbound = connection.inbound
        self.address = connection.remote_address
        self.remote_features: frozenset[int] = frozenset()
        self.is_ready = False
        self.has_quarrelled = False
        """Whether either side complained, or we ended it: the next one may go the same way."""
        self.ping_seconds: float | None = None
        self._connection = connection
        self._handler = handler
        self._local_features = local_features
        self._chain_hash = chain_hash
        self._keep_alive = _KeepAlive(self)
        self._holders: set[object] = set()

    def start(self) -> None:
        """Send `init` and begin to read."""
        connection = self._connection
        connection.on_close(self._closed)
        connection.set_receiver(self._receive)
        self._keep_alive.expect(INIT_TIMEOUT_SECONDS, "no init came")
        features = encode_features(self._local_features)
        seen_at = public_address(self.address) if self.inbound else None
        self.send(encode(Init(b"", features, networks=(self._chain_hash,), remote_addr=seen_at)))

    # --- for the drivers

    def send(self, data: bytes) -> None:
        """Queue a message; dropped if the connection is gone."""
        try:
            self._connection.send(data)
        except ConnectionClosed:
            return

    def send_message(self, message: Message) -> None:
        """Encode and queue."""
        self.send(encode(message))

    def close(self, reason: str) -> None:
        """Send what is queued, then close."""
        self.has_quarrelled = True
        self._connection.close(reason)

    def hold(self, holder: object) -> None:
        """Read nothing more from the peer, not even its pings, until all holders have let go: it is slowed down by TCP,
        and its silence is not held against it."""
        self._holders.add(holder)
        self._connection.pause_receiving()

    def let_go(self, holder: object) -> None:
        """The opposite of `hold`."""
        self._holders.discard(holder)
        if not self._holders:
            self._keep_alive.heard()
            self._connection.resume_receiving()

    @property
    def is_held(self) -> bool:
        """Whether we do not read what the peer says."""
        return bool(self._holders)

    @property
    def is_preferred(self) -> bool:
        """It comes before strangers (`turns.py`)."""
        return self._connection.is_preferred

    def prefer(self) -> None:
        """From now on."""
        self._connection.is_preferred = True

    @property
    def is_congested(self) -> bool:
        """The peer reads more slowly than we write: bulk data waits."""
        return self._connection.is_congested

    @property
    def is_closed(self) -> bool:
        return self._connection.close_reason is not None

    async def wait_closed(self) -> None:
        """Until the socket is gone."""
        await self._connection.wait_closed()

    @property
    def negotiated(self) -> NegotiatedFeatures:
        """What may be used on this connection."""
        return NegotiatedFeatures(self._local_features, self.remote_features)

    # --- from the peer

    def _receive(self, data: bytes) -> None:
        self._keep_alive.heard()
        if not self.is_ready and data[:2] != Init.TYPE.to_bytes(2, "big"):
            # BOLT 1, "MUST wait to receive `init` before sending any other messages": a warning, too.
            self._end("init must be the first message (BOLT 1)")
            return
        try:
            message = decode(data)
        except UnknownMessage as unknown:
            if not unknown.may_be_ignored:
                self._complain(f"message type {unknown.type} is even and unknown here (BOLT 1)")
            return
        except DecodeError as error:
            self._complain(f"a message that cannot be read: {error}")
            return
        if not self.is_ready:
            assert isinstance(message, Init)
            self._on_first_init(message)
            return
        handle = _CONTROL.get(type(message))
        if handle is not None:
            handle(self, message)
        else:
            self._handler.message(self, message, data)

    def _complain(self, reason: str, channel_id: bytes = ALL_CHANNELS) -> None:
        """A warning, then the end of the connection."""
        self.send_message(WarningMessage(channel_id, told_to_peer(reason).encode()))
        self._end(reason)

    def _end(self, reason: str) -> None:
        tell = log.warning if self.is_preferred else log.debug  # strangers could fill the log
        tell("peer broke a rule", peer=self.node_id.hex(), reason=reason)
        self.close(reason)

    def _on_first_init(self, message: Init) -> None:
        features = decode_features(message.globalfeatures) | decode_features(message.features)
        if message.networks is not None and self._chain_hash not in message.networks:
            self._complain("we have no blockchain in common (BOLT 1, networks)")
            return
        try:
            check_compatible(self._local_features, features)
        except IncompatibleFeatures as error:
            self._complain(str(error))
            return
        self.remote_features = features
        self.is_ready = True
        self._keep_alive.start()
        self._handler.ready(self)

    def _closed(self, reason: str) -> None:
        self._keep_alive.stop()
        self._handler.closed(self, reason)

    def _on_init(self, message: Message) -> None:
        """A second init: harmless."""

    def _on_ping(self, message: Message) -> None:
        assert isinstance(message, Ping)
        if message.num_pong_bytes <= MAX_PONG_BYTES:
            self.send_message(Pong(bytes(message.num_pong_bytes)))

    def _on_pong(self, message: Message) -> None:
        self._keep_alive.pong()

    def _on_error(self, message: Message) -> None:
        assert isinstance(message, ErrorMessage)
        self.has_quarrelled = True
        self._handler.error(self, message)

    def _on_warning(self, message: Message) -> None:
        assert isinstance(message, WarningMessage)
        self.has_quarrelled = True
        self._handler.warning(self, message)


def public_address(address: tuple[str, int]) -> bytes | None:
    """Where we see a peer that called us, as an address descriptor; None if that says nothing to others.

    BOLT 1, "SHOULD set `remote_addr` to reflect the remote IP address (and port) of an incoming connection", and
    "SHOULD NOT set private addresses".
    """
    host, port = address
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    ip = ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip
    if not ip.is_global or ip.is_multicast or not port:
        return None
    return Address(AddressType.IPV4 if ip.version == 4 else AddressType.IPV6, str(ip), port).to_bytes()


class _KeepAlive:
    """Pings when the peer was silent for a while; ends the connection when no answer comes."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._heard = time.monotonic()
        self._pinged: float | None = None

    def expect(self, seconds: float, complaint: str) -> None:
        """Close the connection with `complaint` unless `start` comes in time."""
        self._set(seconds, lambda: self._link.close(complaint))

    def start(self) -> None:
        """Measure the round trip now, then watch."""
        self._ping()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def heard(self) -> None:
        """Something came from the peer."""
        self._heard = time.monotonic()

    def pong(self) -> None:
        if self._pinged is not None:
            self._link.ping_seconds = time.monotonic() - self._pinged
            self._pinged = None

    def _set(self, seconds: float, callback: Callable[[], None]) -> None:
        self.stop()
        self._timer = self._loop.call_later(seconds, callback)

    def _ping(self) -> None:
        self._pinged = time.monotonic()
        self._link.send_message(Ping(1 + os.urandom(1)[0] % 32, bytes(os.urandom(1)[0] % 32)))
        self._set(PONG_TIMEOUT_SECONDS, self._check_pong)

    def _check_pong(self) -> None:
        if self._pinged is not None and self._heard < self._pinged and not self._link.is_held:
            self._link.close("the peer does not answer pings")
            return
        self._set(PING_INTERVAL_SECONDS, self._ping)


_CONTROL: dict[type[Message], Callable[[PeerLink, Message], None]] = {
    Init: PeerLink._on_init,
    Ping: PeerLink._on_ping,
    Pong: PeerLink._on_pong,
    ErrorMessage: PeerLink._on_error,
    WarningMessage: PeerLink._on_warning,
}
