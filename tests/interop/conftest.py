"""A lab with LDK nodes in it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from channeld.lab import DaemonProcess, Lab
from tests.interop import ldk_peer
from tests.interop.ldk_peer import LdkPeer


@pytest.fixture(scope="session", autouse=True)
def _ldk_is_there() -> None:
    """Skips where Node.js is missing; where CHANNELD_REQUIRE_INTEROP is set, that is a failure."""
    reason = ldk_peer.missing()
    if reason is None:
        ldk_peer.install()
        return
    if os.environ.get("CHANNELD_REQUIRE_INTEROP"):
        pytest.fail(reason)
    pytest.skip(reason)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class MixedLab(Lab):
    """Daemons and LDK nodes on one chain."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.ldk_peers: list[LdkPeer] = []

    async def ldk(self, name: str, **config: Any) -> LdkPeer:
        """An LDK node, started."""
        seed = name.encode().ljust(32, b"\x01")
        auth = self.cookie_file.read_text().strip()
        peer = LdkPeer(self.directory / name, seed, self.rpc_url, auth, _free_port(), **config)
        self.ldk_peers.append(peer)
        await peer.start()
        return peer

    async def mine(self, blocks: int = 1, *, wait: bool = True) -> None:
        """Mine; daemons and LDK nodes have seen it when this returns."""
        await super().mine(blocks, wait=False)
        syncs = [peer.call("sync") for peer in self.ldk_peers if peer.is_running]
        await asyncio.gather(*syncs, *([self.wait_synced()] if wait else []))

    async def close(self) -> None:
        """Stops everything."""
        for peer in self.ldk_peers:
            await peer.stop()
        await super().close()

    @asynccontextmanager
    async def ldks(self, *names: str, **config: Any) -> AsyncIterator[list[LdkPeer]]:
        """LDK nodes for a while."""
        peers = list(await asyncio.gather(*(self.ldk(name, **config) for name in names)))
        try:
            yield peers
        finally:
            await asyncio.gather(*(peer.stop() for peer in peers))

    async def connect_ldk(self, peer: LdkPeer, daemon: DaemonProcess) -> None:
        """LDK dials our daemon; returns when both know of the connection."""
        host, _, port = daemon.address.rpartition(":")
        await peer.call("connect", host=host, port=int(port), node_id=daemon.node_id.hex())
        await daemon.wait_peer(peer.node_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MixedLab]:
    """One for all tests of a file, which know of each other's nodes, but leave no channel behind."""
    mixed = MixedLab(tmp_path_factory.mktemp("interop"))
    async with mixed:
        yield mixed
