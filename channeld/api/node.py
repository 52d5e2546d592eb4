"""The service `Node`."""

from __future__ import annotations

from typing import Any

from channeld.api import convert
from channeld.node.interface import NodeService
from channeld.v1 import node_pb2, node_pb2_grpc


class NodeServicer(node_pb2_grpc.NodeServicer):
    """See proto/channeld/v1/node.proto."""

    def __init__(self, node: NodeService) -> None:
        self._node = node

    async def GetInfo(self, request: node_pb2.GetInfoRequest, context: Any) -> node_pb2.GetInfoResponse:
        return convert.info(await self._node.info())

    async def Stop(self, request: node_pb2.StopRequest, context: Any) -> node_pb2.StopResponse:
        await self._node.stop()
        return node_pb2.StopResponse()
