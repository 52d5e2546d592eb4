"""A daemon's gRPC API from Python: all services behind one channel that shows the daemon's token."""

from __future__ import annotations

from typing import Any

import grpc

from channeld.paths import DataPaths
from channeld.v1 import (
    channels_pb2_grpc,
    events_pb2_grpc,
    invoices_pb2_grpc,
    node_pb2_grpc,
    payments_pb2_grpc,
    peers_pb2_grpc,
    towers_pb2_grpc,
    wallet_pb2_grpc,
)


class Client:
    """The services' stubs, for `await client.node.GetInfo(...)`."""

    def __init__(self, paths: DataPaths) -> None:
        token = paths.token.read_text().strip()
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(paths.tls_cert.read_bytes()), grpc.access_token_call_credentials(token)
        )
        self.channel: Any = grpc.aio.secure_channel(paths.grpc_address.read_text().strip(), credentials)
        self.node = node_pb2_grpc.NodeStub(self.channel)
        self.peers = peers_pb2_grpc.PeersStub(self.channel)
        self.wallet = wallet_pb2_grpc.WalletStub(self.channel)
        self.channels = channels_pb2_grpc.ChannelsStub(self.channel)
        self.invoices = invoices_pb2_grpc.InvoicesStub(self.channel)
        self.payments = payments_pb2_grpc.PaymentsStub(self.channel)
        self.events = events_pb2_grpc.EventsStub(self.channel)
        self.towers = towers_pb2_grpc.TowersStub(self.channel)

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close(None)
