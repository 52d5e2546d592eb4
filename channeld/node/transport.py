"""Encrypted connections over TCP (BOLT 8): `connect` and `listen` give `Connection`s that carry whole messages.

Nothing here awaits a message. A `Connection` calls a function for each message that came in, and `send` puts one into
a buffer that is written once per turn of the event loop. Back-pressure is explicit both ways: a consumer that lags
calls `pause_receiving`, a producer of bulk data awaits `drain`, and a peer that does not read is dropped.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import structlog
from coincurve import PrivateKey

from channeld.bolt.noise import Handshake, InitiatorHandshake, NoiseError, ResponderHandshake, Session

HANDSHAKE_TIMEOUT_SECONDS: Final = 15.0
LINGER_SECONDS: Final = 5.0
STALL_SECONDS: Final = 60.0
WRITE_HIGH_WATER_BYTES: Final = 256 * 1024
MAX_UNSENT_BYTES: Final = 8 * 1024 * 1024
MAX_HANDSHAKES: Final = 128

_log = structlog.get_logger(__name__)


class TransportError(ConnectionError):
    """No connection came about; the text says why."""


class ConnectionClosed(TransportError):
    """The connection is over; the text says why."""


def _new_ephemeral_key() -> bytes:
    return PrivateKey().secret


class Connection(asyncio.Protocol):
    """An authenticated, encrypted, ordered stream of messages with one peer."""

    def __init__(self, transport: asyncio.Transport, session: Session, *, inbound: bool, early: bytes) -> None:
        self.remote_node_id = session.remote_node_id
        self.remote_address = _address(transport)
        self.inbound = inbound
        self.close_reason: str | None = None
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._session = session
        self._receiving = _Receiving(early)
        self._sending = _Sending()
        self._on_close: Callable[[str], None] | None = None
        self._ended = self._loop.create_future()
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        transport.pause_reading()

    # --- receiving

    def set_receiver(self, receiver: Callable[[bytes], None]) -> None:
        """`receiver` is called for each message, in order, from the event loop; nothing is read before.

        An exception from it is a bug: it ends the connection and goes to the loop's exception handler.
        """
        self._receiving.receiver = receiver
        self.resume_receiving()

    def pause_receiving(self) -> None:
        """No message is handed over until `resume_receiving`; the peer is slowed down by TCP."""
        if not self._receiving.paused:
            self._receiving.paused = True
            self._transport.pause_reading()

    def resume_receiving(self) -> None:
        """Goes on where `pause_receiving` stopped, in the next turn of the event loop."""
        if self._receiving.paused and self._receiving.receiver is not None:
            self._receiving.paused = False
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._receiving.paused or self.close_reason is not None:
            return
        early, self._receiving.early = self._receiving.early, b""
        self.data_received(early)
        if not self._receiving.paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.close_reason is not None:
            return
        inbox = self._receiving.inbox
        try:
            inbox += self._session.decrypter.receive(data)
        except NoiseError as error:
            self._abort(str(error))
            return
        receiver = self._receiving.receiver
        while inbox and receiver is not None and not self._receiving.paused and self.close_reason is None:
            try:
                receiver(inbox.popleft())
            except BaseException as error:
                self._abort(f"handling a message failed: {error!r}")
                raise

    def eof_received(self) -> None:
        self._closed("closed by the peer")

    # --- sending

    @property
    def is_congested(self) -> bool:
        """Whether the peer reads more slowly than we write; senders of bulk data should `drain`."""
        return self._sending.resumed is not None

    def send(self, message: bytes) -> None:
        """Queues one message (type and payload, at most 65,535 bytes: ValueError). Raises ConnectionClosed."""
        if self.close_reason is not None:
            raise ConnectionClosed(self.close_reason)
        frame = self._session.encrypter.encrypt_message(message)
        sending = self._sending
        if not sending.frames:
            self._loop.call_soon(self._flush)
        sending.frames.append(frame)
        sending.queued_bytes += len(frame)
        if sending.queued_bytes >= WRITE_HIGH_WATER_BYTES:
            self._flush()
        if sending.queued_bytes + self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._abort("the peer does not read what we send")

    async def drain(self) -> None:
        """Waits until the peer keeps up again. Raises ConnectionClosed."""
        if self._sending.resumed is not None:
            await asyncio.shield(self._sending.resumed)
        if self.close_reason is not None:
            raise ConnectionClosed(self.close_reason)

    def _flush(self) -> None:
        frames, self._sending.frames = self._sending.frames, []
        self._sending.queued_bytes = 0
        if frames and not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def pause_writing(self) -> None:
        self._sending.resumed = self._loop.create_future()
        self._sending.stall_timer = self._loop.call_later(STALL_SECONDS, self._abort, "the peer stopped reading")

    def resume_writing(self) -> None:
        self._sending.resume()

    # --- closing

    def on_close(self, callback: Callable[[str], None]) -> None:
        """`callback` is called once with the reason, as soon as the connection is of no more use (or is already)."""
        self._on_close = callback
        if self.close_reason is not None:
            self._loop.call_soon(self._notify_closed)

    def close(self, reason: str = "closed by us") -> None:
        """Sends what is queued, then ends the connection. The receiver is not called any more."""
        if self.close_reason is not None:
            return
        self._flush()
        self._closed(reason)
        if self._transport.is_closing():
            return
        # Closing at once with unread input would make TCP throw away what the peer has not read yet, an `error` say.
        self._transport.resume_reading()
        self._transport.write_eof()
        self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    async def wait_closed(self) -> None:
        """Waits until the socket is gone, at most five seconds after `close`."""
        await asyncio.shield(self._ended)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed(f"connection lost: {exc}" if exc is not None else "closed by the peer")
        if not self._ended.done():
            self._ended.set_result(None)

    def _abort(self, reason: str) -> None:
        self._closed(reason)
        self._transport.abort()

    def _closed(self, reason: str) -> None:
        if self.close_reason is not None:
            return
        self.close_reason = reason
        self._receiving.inbox.clear()
        self._sending.resume()
        self._loop.call_soon(self._notify_closed)

    def _notify_closed(self) -> None:
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback(self.close_reason or "")


class _Receiving:
    """What came in and waits: bytes that arrived with the handshake, messages while paused."""

    __slots__ = ("early", "inbox", "paused", "receiver")

    def __init__(self, early: bytes) -> None:
        self.early = early
        self.inbox: deque[bytes] = deque()
        self.paused = True
        self.receiver: Callable[[bytes], None] | None = None


class _Sending:
    """Frames of this turn of the event loop, and whether the socket takes more."""

    __slots__ = ("frames", "queued_bytes", "resumed", "stall_timer")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.queued_bytes = 0
        self.resumed: asyncio.Future[None] | None = None
        self.stall_timer: asyncio.TimerHandle | None = None

    def resume(self) -> None:
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None
        if self.resumed is not None:
            if not self.resumed.done():
                self.resumed.set_result(None)
            self.resumed = None


class _HandshakeProtocol(asyncio.Protocol):
    """Runs a handshake on a fresh socket, then hands the socket over to a `Connection`."""

    def __init__(self, handshake: Handshake, on_done: Callable[[_HandshakeProtocol], None], *, inbound: bool) -> None:
        self.result: Connection | NoiseError | TransportError | None = None
        self.address: tuple[str, int] = ("", 0)
        self._handshake = handshake
        self._inbound = inbound
        self._on_done = on_done
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.address = _address(self._transport)
        if self.result is not None:  # given up in the meantime
            self._transport.abort()
            return
        _configure_socket(self._transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HANDSHAKE_TIMEOUT_SECONDS, self.fail, "no handshake in time")
        self._transport.write(self._handshake.start())

    def data_received(self, data: bytes) -> None:
        if self.result is not None:
            return
        self._buffer += data
        while self._handshake.session is None and len(self._buffer) >= self._handshake.expected_bytes:
            size = self._handshake.expected_bytes
            act, self._buffer = self._buffer[:size], self._buffer[size:]
            try:
                answer = self._handshake.receive(act)
            except NoiseError as error:
                self._finish(error)
                return
            cast(asyncio.Transport, self._transport).write(answer)
        if self._handshake.session is not None:
            transport = cast(asyncio.Transport, self._transport)
            connection = Connection(transport, self._handshake.session, inbound=self._inbound, early=self._buffer)
            transport.set_protocol(connection)
            self._finish(connection)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"connection lost during the handshake: {exc}" if exc else "the peer closed during the handshake")

    def fail(self, reason: str) -> None:
        self._finish(TransportError(reason))

    def _finish(self, result: Connection | NoiseError | TransportError) -> None:
        if self.result is not None:
            return
        self.result = result
        if self._timer is not None:
            self._timer.cancel()
        if not isinstance(result, Connection) and self._transport is not None:
            self._transport.abort()
        self._on_done(self)


def _configure_socket(transport: asyncio.Transport) -> None:
    """Small messages go at once, and a peer that vanished is noticed even without pings."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _address(transport: asyncio.Transport) -> tuple[str, int]:
    peer = transport.get_extra_info("peername") or ("", 0)
    return str(peer[0]), int(peer[1])


async def connect(host: str, port: int, local_key: bytes, remote_node_id: bytes) -> Connection:
    """Opens a connection and proves both sides' identity; `local_key` is our node's 32 byte secret.

    Raises TransportError (refused, unreachable, another node than we wanted, too slow), ValueError for a bad key.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def done(_: _HandshakeProtocol) -> None:
        if not finished.done():
            finished.set_result(None)

    handshake = InitiatorHandshake(local_key, _new_ephemeral_key(), remote_node_id)
    protocol = _HandshakeProtocol(handshake, done, inbound=False)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_SECONDS):
            await loop.create_connection(lambda: protocol, host, port)
            await finished
    except TimeoutError:
        protocol.fail("no answer in time")
    except OSError as error:
        protocol.fail(in_words(error))
    except BaseException:
        protocol.fail("given up")
        if isinstance(protocol.result, Connection):
            protocol.result.close()
        raise
    if isinstance(protocol.result, Connection):
        return protocol.result
    raise TransportError(f"no connection to {host}:{port}: {protocol.result}") from protocol.result


def in_words(error: OSError) -> str:
    """Why a socket could not be opened. asyncio writes its own text over the system's."""
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


class Listener:
    """A listening socket. Whatever strangers do to it, it goes on."""

    def __init__(self, local_key: bytes, on_connection: Callable[[Connection], None]) -> None:
        self._local_key = local_key
        self._on_connection = on_connection
        self._handshakes: dict[_HandshakeProtocol, None] = {}  # in order of arrival
        self._server: asyncio.Server | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens; says which port the system chose for port 0."""
        sockets = self._server.sockets if self._server is not None else ()
        return [listening.getsockname()[:2] for listening in sockets]

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    async def start(self, host: str, port: int) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._accept, host, port)

    def _accept(self) -> _HandshakeProtocol:
        handshake = ResponderHandshake(self._local_key, _new_ephemeral_key())
        protocol = _HandshakeProtocol(handshake, self._handshake_done, inbound=True)
        if len(self._handshakes) >= MAX_HANDSHAKES:
            # Who has kept us waiting longest goes, so that idle strangers cannot keep honest peers out.
            next(iter(self._handshakes)).fail("too many handshakes at once")
        self._handshakes[protocol] = None
        return protocol

    def _handshake_done(self, protocol: _HandshakeProtocol) -> None:
        self._handshakes.pop(protocol, None)
        if isinstance(protocol.result, Connection):
            self._on_connection(protocol.result)
        else:
            _log.debug("inbound handshake failed", address=protocol.address, reason=str(protocol.result))

    async def close(self) -> None:
        """Stops listening and gives up handshakes under way; connections stay."""
        if self._server is not None:
            self._server.close()
            for protocol in list(self._handshakes):
                protocol.fail("we stopped listening")
            await self._server.wait_closed()


async def listen(host: str, port: int, local_key: bytes, on_connection: Callable[[Connection], None]) -> Listener:
    """Listens on `host` and `port` (0: any free one); `on_connection` gets each authenticated connection.

    Raises OSError if the address cannot be used, ValueError if `local_key` is no secret key.
    """
    ResponderHandshake(local_key, _new_ephemeral_key())  # a bad key is told now, not at the first connection
    listener = Listener(local_key, on_connection)
    await listener.start(host, port)
    return listener
