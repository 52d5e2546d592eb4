"""An API server over a fake node, and a client of it: what the tests of the API share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from channeld.api.server import ApiServer
from channeld.paths import DataPaths
from tests.fake_node import FakeNode


def bearer(paths: DataPaths) -> tuple[tuple[str, str], ...]:
    """The metadata that shows the daemon's token."""
    return (("authorization", f"Bearer {paths.token.read_text().strip()}"),)


@asynccontextmanager
async def serving(node: FakeNode, paths: DataPaths) -> AsyncIterator[ApiServer]:
    server = ApiServer(node, paths)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace_seconds=0)


@asynccontextmanager
async def connected(server: ApiServer, paths: DataPaths, cert: bytes | None = None) -> AsyncIterator[grpc.aio.Channel]:
    credentials = grpc.ssl_channel_credentials(cert or paths.tls_cert.read_bytes())
    async with grpc.aio.secure_channel(server.address, credentials) as channel:
        yield channel
