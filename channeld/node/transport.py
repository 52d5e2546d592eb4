"""Encrypted connections over TCP (BOLT 8): `connect` and `listen` give `Connection`s that carry whole messages.

Nothing here awaits a message. A `Connection` calls a function for each message that came in, and `send` puts one into
a buffer that is written once per turn of the event loop. Back-pressure is explicit both ways: a consumer that lags
calls `pause_receiving`, a producer of bulk data awaits `drain`, and a peer that does not read is dropped. Connections
that share `Turns` share the event loop's time fairly.
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
from channeld.node.turns import Turns

HANDSHAKE_TIMEOUT_SECONDS: Final = 15.0
LINGER_SECONDS: Final = 5.0
STALL_SECONDS: Final = 60.0
WRITE_HIGH_WATER_BYTES: Final = 256 * 1024
MAX_UNSENT_BYTES: Final = 1024 * 1024
MAX_UNSENT_PREFERRED_BYTES: Final = 8 * 1024 * 1024
"""What a peer with channels may be owed: after a reconnection that is all that was not acknowledged."""
MAX_HANDSHAKES: Final = 128
MAX_LINGERING: Final = 64
"""Connections that strangers opened, and that are over but for what the stranger has not read yet."""
PIECE_BYTES: Final = 16 * 1024
"""So much is decrypted at a time."""
ANSWER_BYTES: Final = 4096
"""An answer costs as much as another message for each so many bytes."""

_log = structlog.get_logger(__name__)


class TransportError(ConnectionError):
    """No connection came about; the text says why."""


class ConnectionClosed(TransportError):
    """The connection is over; the text says why."""


def _new_ephemeral_key() -> bytes:
    return PrivateKey().secret


class Connection(asyncio.Protocol):
    """An authenticated, encrypted, ordered stream of messages with one peer."""

    def __init__(
        self, transport: asyncio.Transport, session: Session, turns: Turns, *, inbound: bool, early: bytes
    ) -> None:
        self.remote_node_id = session.remote_node_id
        self.remote_address = _address(transport)
        self.inbound = inbound
        self.is_preferred = False
        """Whether it is worth more of our time and memory than a stranger's."""
        self.lingering: dict[Connection, None] = {}
        """Those of its kind that are over, oldest first."""
        self.close_reason: str | None = None
        self._turns = turns
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
        receiving = self._receiving
        if receiving.paused or receiving.waits or self.close_reason is not None:
            return
        self._handle()
        if not (receiving.paused or receiving.waits or self._transport.is_closing()):
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        receiving = self._receiving
        if self.close_reason is not None:
            return
        receiving.raw += data
        if not receiving.waits and not receiving.paused:
            self._handle()

    def _handle(self) -> None:
        """As much as may be handled at once; the rest waits for its turn."""
        self._turns.handled(self, self.take(self._turns.at_once(self)))
        if self.has_more:
            self._receiving.waits = True
            self._transport.pause_reading()
            self._turns.wait(self)

    @property
    def has_more(self) -> bool:
        """Whether something waits that may be handled (see `Turns`)."""
        receiving = self._receiving
        return bool(receiving.inbox or receiving.raw) and not receiving.paused and self.close_reason is None

    def take(self, most: int) -> int:
        """Handle up to `most` messages (see `Turns`). Long answers count as several."""
        receiving, sending = self._receiving, self._sending
        inbox, raw, receiver = receiving.inbox, receiving.raw, receiving.receiver
        taken = 0
        while taken < most and (inbox or raw) and not receiving.paused and self.close_reason is None:
            taken += 1
            if not inbox:
                piece = bytes(raw[:PIECE_BYTES])
                del raw[:PIECE_BYTES]
                try:
                    inbox += self._session.decrypter.receive(piece)
                except NoiseError as error:
                    self.abort(str(error))
                continue
            assert receiver is not None, "nothing is read before"
            said_bytes = sending.total_bytes
            try:
                receiver(inbox.popleft())
            except BaseException as error:
                self.abort(f"handling a message failed: {error!r}")
                raise
            taken += (sending.total_bytes - said_bytes) // ANSWER_BYTES
        return taken

    def took_all(self) -> None:
        """Its turn is over (see `Turns`)."""
        receiving = self._receiving
        receiving.waits = False
        if receiving.ended:
            self._closed("closed by the peer")
            self._transport.close()
        elif not receiving.paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        if self._receiving.waits and self.close_reason is None:
            self._receiving.ended = True
            return True
        self._closed("closed by the peer")
        return False

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
        sending.total_bytes += len(frame)
        if sending.queued_bytes >= WRITE_HIGH_WATER_BYTES:
            self._flush()
        most = MAX_UNSENT_PREFERRED_BYTES if self.is_preferred else MAX_UNSENT_BYTES
        if sending.queued_bytes + self._transport.get_write_buffer_size() > most:
            self.abort("the peer does not read what we send")

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
        self._sending.stall_timer = self._loop.call_later(STALL_SECONDS, self.abort, "the peer stopped reading")

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
        if len(self.lingering) >= MAX_LINGERING:
            next(iter(self.lingering)).let_go()
        self.lingering[self] = None

    def let_go(self) -> None:
        """The socket is gone at once, whether or not the peer has read our last words."""
        self.lingering.pop(self, None)
        self._transport.abort()

    async def wait_closed(self) -> None:
        """Waits until the socket is gone, at most five seconds after `close`."""
        await asyncio.shield(self._ended)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lingering.pop(self, None)
        self._closed(f"connection lost: {exc}" if exc is not None else "closed by the peer")
        if not self._ended.done():
            self._ended.set_result(None)

    def abort(self, reason: str) -> None:
        """Ends the connection at once; what is queued is lost."""
        self._closed(reason)
        self._transport.abort()

    def _closed(self, reason: str) -> None:
        if self.close_reason is not None:
            return
        self.close_reason = reason
        self._receiving.inbox.clear()
        self._receiving.raw.clear()
        self._sending.resume()
        self._loop.call_soon(self._notify_closed)

    def _notify_closed(self) -> None:
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback(self.close_reason or "")


class _Receiving:
    """What came in and waits: bytes that are not decrypted yet, and messages. `waits`: for its turn; `ended`: nothing
    comes after that."""

    __slots__ = ("ended", "inbox", "paused", "raw", "receiver", "waits")

    def __init__(self, early: bytes) -> None:
        self.raw = bytearray(early)
        self.inbox: deque[bytes] = deque()
        self.paused = True
        self.waits = False
        self.ended = False
        self.receiver: Callable[[bytes], None] | None = None


class _Sending:
    """Frames of this turn of the event loop, and whether the socket takes more."""

    __slots__ = ("frames", "queued_bytes", "resumed", "stall_timer", "total_bytes")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.queued_bytes = 0
        self.total_bytes = 0
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

    def __init__(
        self, handshake: Handshake, turns: Turns, on_done: Callable[[_HandshakeProtocol], None], *, inbound: bool
    ) -> None:
        self.result: Connection | NoiseError | TransportError | None = None
        self.address: tuple[str, int] = ("", 0)
        self._handshake = handshake
        self._turns = turns
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
            session = self._handshake.session
            connection = Connection(transport, session, self._turns, inbound=self._inbound, early=self._buffer)
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


async def connect(
    host: str, port: int, local_key: bytes, remote_node_id: bytes, turns: Turns | None = None
) -> Connection:
    """Opens a connection and proves both sides' identity; `local_key` is our node's 32 byte secret.

    Raises TransportError (refused, unreachable, another node than we wanted, too slow), ValueError for a bad key.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def done(_: _HandshakeProtocol) -> None:
        if not finished.done():
            finished.set_result(None)

    handshake = InitiatorHandshake(local_key, _new_ephemeral_key(), remote_node_id)
    protocol = _HandshakeProtocol(handshake, turns or Turns(), done, inbound=False)
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

    def __init__(self, local_key: bytes, on_connection: Callable[[Connection], None], turns: Turns) -> None:
        self._local_key = local_key
        self._turns = turns
        self._on_connection = on_connection
        self._handshakes: dict[_HandshakeProtocol, None] = {}  # in order of arrival
        self._lingering: dict[Connection, None] = {}
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
        protocol = _HandshakeProtocol(handshake, self._turns, self._handshake_done, inbound=True)
        if len(self._handshakes) >= MAX_HANDSHAKES:
            # Who has kept us waiting longest goes, so that idle strangers cannot keep honest peers out.
            next(iter(self._handshakes)).fail("too many handshakes at once")
        self._handshakes[protocol] = None
        return protocol

    def _handshake_done(self, protocol: _HandshakeProtocol) -> None:
        self._handshakes.pop(protocol, None)
        if isinstance(protocol.result, Connection):
            protocol.result.lingering = self._lingering
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


async def listen(
    host: str,
    port: int,
    local_key: bytes,
    on_connection: Callable[[Connection], None],
    turns: Turns | None = None,
) -> Listener:
    """Listens on `host` and `port` (0: any free one); `on_connection` gets each authenticated connection.

    Raises OSError if the address cannot be used, ValueError if `local_key` is no secret key.
    """
    ResponderHandshake(local_key, _new_ephemeral_key())  # a bad key is told now, not at the first connection
    listener = Listener(local_key, on_connection, turns or Turns())
    await listener.start(host, port)
    return listener
