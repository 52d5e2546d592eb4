"""The gRPC server: which services there are, where it listens, how it starts and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from channeld.api.background import Background
from channeld.api.channels import ChannelsServicer
from channeld.api.errors import ErrorInterceptor
from channeld.api.events import EventsServicer
from channeld.api.graph import GraphServicer
from channeld.api.invoices import InvoicesServicer
from channeld.api.node import NodeServicer
from channeld.api.payments import PaymentsServicer
from channeld.api.peers import PeersServicer
from channeld.api.towers import TowerHost, TowersServicer
from channeld.api.wallet import WalletServicer
from channeld.node.interface import NodeService
from channeld.paths import DataPaths, write_private
from channeld.v1 import (
    channels_pb2,
    channels_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    graph_pb2,
    graph_pb2_grpc,
    invoices_pb2,
    invoices_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
    peers_pb2,
    peers_pb2_grpc,
    towers_pb2,
    towers_pb2_grpc,
    wallet_pb2,
    wallet_pb2_grpc,
)
from watchtower.rpc.auth import TokenError, TokenInterceptor, load_or_make_token
from watchtower.rpc.listen import WILDCARDS, ListenError, join_address, raise_if_not_free
from watchtower.rpc.tls import Certificate, TlsError

MAX_REQUEST_BYTES = 1 << 20
MAX_RESPONSE_BYTES = 64 << 20
MAX_METADATA_BYTES = 16 << 10
MAX_CONCURRENT_CALLS = 4096
_SERVICES = tuple(
    descriptor.services_by_name[name].full_name
    for descriptor, name in (
        (node_pb2.DESCRIPTOR, "Node"),
        (peers_pb2.DESCRIPTOR, "Peers"),
        (wallet_pb2.DESCRIPTOR, "Wallet"),
        (channels_pb2.DESCRIPTOR, "Channels"),
        (invoices_pb2.DESCRIPTOR, "Invoices"),
        (payments_pb2.DESCRIPTOR, "Payments"),
        (events_pb2.DESCRIPTOR, "Events"),
        (graph_pb2.DESCRIPTOR, "Graph"),
        (towers_pb2.DESCRIPTOR, "Towers"),
    )
)

_log = structlog.get_logger("channeld.api")


class ApiError(Exception):
    """The API cannot start; the text is a sentence that says what to do."""


class ApiServer:
    """The API of one node.

    `host` and `port` say where to listen (port 0: the system chooses); `hosts` are further names and addresses for
    the certificate. `address` is the real `host:port` after `start`, which is also in the file `grpc.addr`.
    """

    def __init__(
        self,
        node: NodeService,
        paths: DataPaths,
        host: str = "127.0.0.1",
        port: int = 0,
        hosts: Iterable[str] = (),
        towers: TowerHost | None = None,
    ) -> None:
        self._node = node
        self._towers = towers
        self._paths = paths
        self._host = host
        self._port = port
        self._hosts = tuple(hosts)
        self._background = Background()
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs do not know it
        self._stopping = asyncio.Event()
        self.address = ""

    async def start(self) -> None:
        """Listens and answers. Raises `ApiError`."""
        self._paths.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            token = load_or_make_token(self._paths.token)
            credentials = Certificate(self._paths, self._certified_hosts()).server_credentials()
        except (TokenError, TlsError) as error:
            raise ApiError(str(error)) from error
        except OSError as error:
            raise ApiError(f"The API's token or certificate cannot be written: {error}.") from error
        server = grpc.aio.server(
            interceptors=(TokenInterceptor(token), ErrorInterceptor()),
            options=(
                # Without this a second daemon would share the port, and clients would reach one of the two by chance.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ),
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        self._add_services(server)
        # gRPC says only that it could not bind, not why: ask the system first.
        try:
            raise_if_not_free(self._host, self._port)
            port = server.add_secure_port(join_address(self._host, self._port), credentials)
        except ListenError as error:
            raise ApiError(str(error)) from error
        except RuntimeError as error:
            raise ApiError(f"The API cannot listen on {join_address(self._host, self._port)}: {error}.") from error
        for service in _SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        self._server = server
        self.address = join_address(WILDCARDS.get(self._host, self._host), port)
        write_private(self._paths.grpc_address, self.address.encode() + b"\n")
        _log.info("api_listens", address=self.address)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Takes no more calls, ends event streams, gives other calls `grace_seconds` to end. Twice is once."""
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping.set()
        self._paths.grpc_address.unlink(missing_ok=True)
        await self._health.enter_graceful_shutdown()
        await server.stop(grace_seconds)
        await self._background.stop()

    def _certified_hosts(self) -> tuple[str, ...]:
        return self._hosts if self._host in WILDCARDS else (self._host, *self._hosts)

    def _add_services(self, server: grpc.aio.Server) -> None:
        node, background = self._node, self._background
        node_pb2_grpc.add_NodeServicer_to_server(NodeServicer(node), server)
        peers_pb2_grpc.add_PeersServicer_to_server(PeersServicer(node), server)
        wallet_pb2_grpc.add_WalletServicer_to_server(WalletServicer(node, background, self._stopping), server)
        channels_pb2_grpc.add_ChannelsServicer_to_server(ChannelsServicer(node, background), server)
        invoices_pb2_grpc.add_InvoicesServicer_to_server(InvoicesServicer(node, background), server)
        payments_pb2_grpc.add_PaymentsServicer_to_server(PaymentsServicer(node, background, self._stopping), server)
        events_pb2_grpc.add_EventsServicer_to_server(EventsServicer(node, self._stopping), server)
        graph_pb2_grpc.add_GraphServicer_to_server(GraphServicer(node), server)
        if self._towers is not None:
            towers_pb2_grpc.add_TowersServicer_to_server(TowersServicer(self._towers), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
