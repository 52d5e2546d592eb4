"""The tower's gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from watchtower.rpc.auth import ENDLESS, TokenError, TokenInterceptor, load_or_make_token
from watchtower.rpc.errors import ErrorInterceptor, Refusal
from watchtower.rpc.files import write_private
from watchtower.rpc.listen import WILDCARDS, ListenError, join_address, raise_if_not_free
from watchtower.rpc.patience import PatienceInterceptor
from watchtower.rpc.tls import Certificate, TlsError
from watchtower.tower.limits import Buckets
from watchtower.tower.paths import TowerPaths
from watchtower.tower.sessions import Policy
from watchtower.v1 import operator_pb2, operator_pb2_grpc, tower_pb2, tower_pb2_grpc

MAX_REQUEST_BYTES = 2 << 20
MAX_RESPONSE_BYTES = 16 << 20
MAX_CONCURRENT_CALLS = 512
CALLS_PER_ADDRESS = 64
"""At a time; clients make one or two."""
REQUEST_SECONDS = 30.0
"""Until a call's request, of up to 2 MB, is there. Clients give a whole call no longer."""
_SERVICES = tuple(
    descriptor.services_by_name[name].full_name
    for descriptor, name in ((tower_pb2.DESCRIPTOR, "Tower"), (operator_pb2.DESCRIPTOR, "Operator"))
)
_CREATE_SESSION = f"/{_SERVICES[0]}/CreateSession"

_log = structlog.get_logger(__name__)


class ServerError(Exception):
    """The tower cannot listen; the text is a sentence that says what to do."""


class TowerServer:
    """Listens for clients and for the operator. `address` is the real `host:port` after `start`."""

    def __init__(self, paths: TowerPaths, listen: tuple[str, int], hosts: tuple[str, ...], private: bool) -> None:
        self._paths = paths
        self._host, self._port = listen
        self._hosts = hosts
        self._private = private
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs do not know it
        self.address = ""

    async def start(self, tower: tower_pb2_grpc.TowerServicer, operator: operator_pb2_grpc.OperatorServicer) -> None:
        """Raises ServerError."""
        try:
            interceptors: list[Any] = [
                TokenInterceptor(load_or_make_token(self._paths.token), (f"/{_SERVICES[1]}/", *ENDLESS)),
                PatienceInterceptor(f"/{_SERVICES[0]}/", REQUEST_SECONDS, CALLS_PER_ADDRESS),
                ErrorInterceptor("/watchtower."),
            ]
            if self._private:
                interceptors.insert(0, TokenInterceptor(load_or_make_token(self._paths.client_token), _CREATE_SESSION))
            hosts = self._hosts if self._host in WILDCARDS else (self._host, *self._hosts)
            credentials = Certificate(self._paths, hosts).server_credentials()
            raise_if_not_free(self._host, self._port)
        except (TokenError, TlsError, ListenError) as error:
            raise ServerError(str(error)) from error
        except OSError as error:
            raise ServerError(f"The tower's token or certificate cannot be written: {error}.") from error
        server = grpc.aio.server(
            interceptors=interceptors,
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
                ("grpc.max_metadata_size", 16 << 10),
            ),
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        tower_pb2_grpc.add_TowerServicer_to_server(tower, server)
        operator_pb2_grpc.add_OperatorServicer_to_server(operator, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        where = join_address(self._host, self._port)
        try:
            port = server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise ServerError(f"The tower cannot listen on {where}: {error}.") from error
        for service in _SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        self._server = server
        self.address = join_address(WILDCARDS.get(self._host, self._host), port)
        write_private(self._paths.grpc_address, self.address.encode() + b"\n")

    async def stop(self, grace_seconds: float = 2.0) -> None:
        """Takes no more calls."""
        server, self._server = self._server, None
        if server is not None:
            self._paths.grpc_address.unlink(missing_ok=True)
            await self._health.enter_graceful_shutdown()
            await server.stop(grace_seconds)


def certificate_hash(paths: TowerPaths) -> bytes:
    """SHA-256 of the certificate's DER: what clients compare with the one that they see."""
    return x509.load_pem_x509_certificate(paths.tls_cert.read_bytes()).fingerprint(hashes.SHA256())


class SessionLimit:
    """New sessions per network address."""

    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        self._buckets = Buckets(policy.sessions_per_minute / 60, policy.sessions_burst, clock)

    def check(self, peer: str) -> None:
        """Raises Refusal."""
        address = peer.rpartition(":")[0] or peer
        wait = self._buckets.take(address)
        if wait:
            raise Refusal("resource_exhausted", f"Too many new sessions from there; try again in {wait:.0f} seconds.")


Closer = Callable[[], Awaitable[None]]


async def close_all(closers: list[Closer]) -> None:
    """In reverse order, each even if another fails; the first failure is raised at the end."""
    results = [(await asyncio.gather(closer(), return_exceptions=True))[0] for closer in reversed(closers)]
    for result in results:
        if isinstance(result, BaseException):
            raise result
