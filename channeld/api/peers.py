"""The service `Peers`."""

from __future__ import annotations

from typing import Any

from channeld.api import convert
from channeld.node.interface import NodeError, NodeService
from channeld.v1 import peers_pb2, peers_pb2_grpc

DEFAULT_PORT = 9735  # BOLT 1, "Connection Handling and Multiplexing"
DEFAULT_TIMEOUT_SECONDS = 10.0


class PeersServicer(peers_pb2_grpc.PeersServicer):
    """See proto/channeld/v1/peers.proto."""

    def __init__(self, node: NodeService) -> None:
        self._node = node

    async def Connect(self, request: peers_pb2.ConnectPeerRequest, context: Any) -> peers_pb2.ConnectPeerResponse:
        node_id = convert.node_id(request.node_id)
        port = request.port if request.HasField("port") else DEFAULT_PORT
        if not request.host:
            raise NodeError("invalid_argument", "Say where the node is: a host name or an address is missing.")
        if not 1 <= port <= 65535:
            raise NodeError("invalid_argument", f"A port is a number from 1 to 65535; this one is {port}.")
        timeout_seconds = request.timeout_seconds if request.HasField("timeout_seconds") else DEFAULT_TIMEOUT_SECONDS
        view = await self._node.connect_peer(
            node_id, request.host, port, convert.seconds(timeout_seconds, "The time to try")
        )
        return peers_pb2.ConnectPeerResponse(peer=convert.peer(view))

    async def Disconnect(
        self, request: peers_pb2.DisconnectPeerRequest, context: Any
    ) -> peers_pb2.DisconnectPeerResponse:
        await self._node.disconnect_peer(convert.node_id(request.node_id), request.force)
        return peers_pb2.DisconnectPeerResponse()

    async def List(self, request: peers_pb2.ListPeersRequest, context: Any) -> peers_pb2.ListPeersResponse:
        return peers_pb2.ListPeersResponse(peers=[convert.peer(view) for view in await self._node.list_peers()])
