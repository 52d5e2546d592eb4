"""The connection to the daemon, and how calls are made over it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from channeld.cli.failures import (
    INTERRUPTED,
    NOT_ALLOWED,
    NOT_KNOWN_YET,
    UNAVAILABLE,
    USAGE,
    CliError,
    Place,
    connection_was_lost,
    from_rpc_error,
)
from channeld.cli.ids import parse_host_port
from channeld.cli.output import Output
from channeld.paths import DataPaths, data_paths

if TYPE_CHECKING:
    import grpc

    from channeld.v1.channels_pb2_grpc import ChannelsStub
    from channeld.v1.events_pb2_grpc import EventsStub
    from channeld.v1.graph_pb2_grpc import GraphStub
    from channeld.v1.invoices_pb2_grpc import InvoicesStub
    from channeld.v1.node_pb2_grpc import NodeStub
    from channeld.v1.payments_pb2_grpc import PaymentsStub
    from channeld.v1.peers_pb2_grpc import PeersStub
    from channeld.v1.towers_pb2_grpc import TowersStub
    from channeld.v1.wallet_pb2_grpc import WalletStub

DEFAULT_NETWORK = "mainnet"
DEFAULT_TIMEOUT_SECONDS = 30.0
SLOW_TIMEOUT_SECONDS = 150.0  # opening and closing wait for the peer
RETRY_AFTER_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_RESPONSE_BYTES = 64 << 20

Request = TypeVar("Request")
Response = TypeVar("Response")

_STUBS = ("node", "peers", "wallet", "channels", "invoices", "payments", "events", "towers", "graph")


class Settings(NamedTuple):
    """What the global options say; None where they say nothing."""

    datadir: Path | None = None
    network: str | None = None
    rpcserver: str | None = None
    tls_cert: Path | None = None
    token_file: Path | None = None
    as_json: bool = False


class Session:
    """One run of `channelctl`: where the daemon is, the stubs, and what the user sees."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.out = Output(settings.as_json)
        self._channel: grpc.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._place: Place | None = None

    def close(self) -> None:
        """Closes the connection, if there is one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        for name in _STUBS:
            self.__dict__.pop(name, None)

    # Where the daemon is

    @cached_property
    def paths(self) -> DataPaths:
        """The daemon's files. Without --network: of the one network whose daemon runs, or has run; else mainnet."""
        root = data_paths(DEFAULT_NETWORK, self.settings.datadir).root
        if self.settings.network is not None:
            return DataPaths(root, self.settings.network)
        running = sorted(path.parent.name for path in root.glob("*/grpc.addr"))
        if len(running) > 1:
            raise CliError(
                f"Daemons of several networks run under {root}: {', '.join(running)}.",
                f"Choose one with --network {running[0]} or CHANNELD_NETWORK.",
                USAGE,
            )
        used = running or [path.parent.name for path in root.glob("*/token")]
        return DataPaths(root, used[0] if len(used) == 1 else DEFAULT_NETWORK)

    def place(self) -> Place:
        """Where the daemon is looked for, as of now. Raises `CliError` if there is no telling."""
        settings = self.settings
        if settings.rpcserver and parse_host_port(settings.rpcserver)[1] is None:
            raise CliError(f"{settings.rpcserver!r} has no port.", "Write --rpcserver as host:port.", USAGE)
        if settings.rpcserver and settings.tls_cert and settings.token_file:
            return Place(settings.rpcserver, settings.tls_cert, settings.token_file, "channeld")
        paths = self.paths
        command = f"channeld --network {paths.network}"
        if settings.datadir is not None:
            command += f" --datadir {settings.datadir}"
        try:
            address = settings.rpcserver or paths.grpc_address.read_text().strip()
        except OSError:
            raise CliError(
                f"The daemon is not running: there is no {paths.grpc_address}.",
                f"Start it with `{command}`, or say where it is with --datadir, --network or --rpcserver.",
                UNAVAILABLE,
            ) from None
        return Place(address, settings.tls_cert or paths.tls_cert, settings.token_file or paths.token, command)

    # Calls

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> Response:
        """One call. Raises `CliError`."""
        import grpc

        try:
            return self._call(method, request, timeout_seconds)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def call_once(
        self,
        pick: Callable[[Session], grpc.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        timeout_seconds: float = SLOW_TIMEOUT_SECONDS,
    ) -> Response:
        """A call that moves money: made again when the connection breaks, which the request's key makes harmless.

        `pick` says which method. The daemon must have been reached before. Raises `CliError`; where it is open what
        happened, the hint says how to find out without paying twice.
        """
        import grpc

        keyed: Any = request
        if not keyed.idempotency_key:
            keyed.idempotency_key = secrets.token_hex(16)
        again = f"Run the same command with --idempotency-key {keyed.idempotency_key}: that moves the money once."
        try:
            for attempt, pause in enumerate(RETRY_AFTER_SECONDS):
                try:
                    return self._call(pick(self), request, timeout_seconds)
                except grpc.RpcError as error:
                    if not connection_was_lost(error):
                        raise
                if attempt == 0:
                    self.out.note("The connection to the daemon broke; asking again (the money moves once at most).")
                self._reconnect_after(pause)
            return self._call(pick(self), request, timeout_seconds)
        except KeyboardInterrupt:
            sentence = "You stopped waiting; the daemon goes on with what it was asked to do."
            raise CliError(sentence, f"To see what came of it: {again}", INTERRUPTED) from None
        except grpc.RpcError as error:
            raise self._uncertain(error, keyed) from None

    def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Request, Response],
        requests: Iterator[Request],
        timeout_seconds: float = SLOW_TIMEOUT_SECONDS,
    ) -> Response:
        """One call of many messages. Raises `CliError`."""
        import grpc

        try:
            return method(requests, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def stream_once(
        self,
        pick: Callable[[Session], grpc.UnaryStreamMultiCallable[Request, Response]],
        request: Request,
        keyed: Any,
        is_last: Callable[[Response], bool],
        timeout_seconds: float,
    ) -> Iterator[Response]:
        """The same for a call that streams until something that `is_last`: asked for again when the connection breaks,
        so what came before comes again. `keyed` is what has the key in the request, None if nothing has to. Ends early
        `timeout_seconds` after the first answer. Raises `CliError`."""
        import grpc

        if keyed is not None and not keyed.idempotency_key:
            keyed.idempotency_key = secrets.token_hex(16)
        patience = timeout_seconds + DEFAULT_TIMEOUT_SECONDS
        for pause in (*RETRY_AFTER_SECONDS, None):
            responses: Any = pick(self)(request, timeout=patience, metadata=self._metadata)
            alarm = threading.Timer(timeout_seconds, responses.cancel)
            alarm.daemon = True
            is_first = True
            try:
                for response in responses:
                    if is_first:
                        alarm.start()
                    is_first = False
                    yield response
                    if is_last(response):
                        return
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.CANCELLED:
                    return
                if pause is None or keyed is None or not connection_was_lost(error):
                    raise self._uncertain(error, keyed) from None
            finally:
                alarm.cancel()
                responses.cancel()
            if pause is None or keyed is None:
                return
            self.out.note("The connection to the daemon broke; asking again (the money moves once at most).")
            self._reconnect_after(pause)

    def _uncertain(self, error: grpc.RpcError, keyed: Any) -> CliError:
        """For a call with a key: how to find out what came of it."""
        failure = self._failure(error)
        if keyed is not None and (connection_was_lost(error) or failure.status == NOT_KNOWN_YET):
            again = f"Run the same command with --idempotency-key {keyed.idempotency_key}: that moves the money once."
            failure.hint = f"It is not known whether the daemon did it. {again}"
        return failure

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout_seconds: float | None = None,
    ) -> Iterator[Response]:
        """What the daemon streams, for `timeout_seconds`; it has begun when this returns. Raises `CliError`."""
        responses: Any = method(request, timeout=timeout_seconds, metadata=self._metadata)
        responses.initial_metadata()
        return self._read(responses, timeout_seconds is not None)

    def _read(self, responses: Any, may_end: bool) -> Iterator[Any]:
        import grpc

        try:
            yield from responses
        except grpc.RpcError as error:
            if may_end and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return
            raise self._failure(error) from None
        finally:
            responses.cancel()

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout_seconds: float
    ) -> Response:
        return method(request, timeout=timeout_seconds, metadata=self._metadata)

    def _failure(self, error: grpc.RpcError) -> CliError:
        assert self._place is not None, "a call was made"
        return from_rpc_error(error, self._place)

    def _reconnect_after(self, seconds: float) -> None:
        """Connects anew, to where the daemon is then: it may have another port when it is back."""
        time.sleep(seconds)
        place = self._place
        self.close()
        try:
            self._place = self.place()
        except CliError:
            self._place = place  # it is still down; the next attempt will say so

    def _connection(self) -> grpc.Channel:
        if self._channel is None:
            import grpc

            place = self._place = self._place or self.place()
            token = _read_file(place.token_file, "token", "--token-file")
            certificate = _read_file(place.tls_cert, "certificate", "--tls-cert")
            self._metadata = (("authorization", f"Bearer {token.decode('ascii', 'replace').strip()}"),)
            self._channel = grpc.secure_channel(
                place.address,
                grpc.ssl_channel_credentials(certificate),
                options=(("grpc.max_receive_message_length", MAX_RESPONSE_BYTES), ("grpc.enable_http_proxy", 0)),
            )
        return self._channel

    # The stubs; their modules are loaded when they are used

    @cached_property
    def node(self) -> NodeStub:
        from channeld.v1.node_pb2_grpc import NodeStub

        return NodeStub(self._connection())

    @cached_property
    def peers(self) -> PeersStub:
        from channeld.v1.peers_pb2_grpc import PeersStub

        return PeersStub(self._connection())

    @cached_property
    def wallet(self) -> WalletStub:
        from channeld.v1.wallet_pb2_grpc import WalletStub

        return WalletStub(self._connection())

    @cached_property
    def channels(self) -> ChannelsStub:
        from channeld.v1.channels_pb2_grpc import ChannelsStub

        return ChannelsStub(self._connection())

    @cached_property
    def invoices(self) -> InvoicesStub:
        from channeld.v1.invoices_pb2_grpc import InvoicesStub

        return InvoicesStub(self._connection())

    @cached_property
    def payments(self) -> PaymentsStub:
        from channeld.v1.payments_pb2_grpc import PaymentsStub

        return PaymentsStub(self._connection())

    @cached_property
    def towers(self) -> TowersStub:
        from channeld.v1.towers_pb2_grpc import TowersStub

        return TowersStub(self._connection())

    @cached_property
    def graph(self) -> GraphStub:
        from channeld.v1.graph_pb2_grpc import GraphStub

        return GraphStub(self._connection())

    @cached_property
    def events(self) -> EventsStub:
        from channeld.v1.events_pb2_grpc import EventsStub

        return EventsStub(self._connection())


def _read_file(path: Path, what: str, option: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        sentence, status = f"There is no {what} {path}.", UNAVAILABLE
    except OSError as error:
        sentence, status = f"The {what} {path} cannot be read: {error.strerror}.", NOT_ALLOWED
    raise CliError(sentence, f"The daemon makes it when it starts first; name the right file with {option}.", status)
