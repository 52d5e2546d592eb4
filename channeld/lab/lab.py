"""A whole regtest network of separate processes: `regtestd` and any number of daemons. Nothing of it is left behind.

async with Lab(directory) as lab:
    alice, bob = await lab.daemons("alice", "bob")
    await lab.fund(alice, 1_000_000)
    channel = await lab.open_channel(alice, bob, 500_000)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from channeld.lab.daemon import DaemonProcess
from channeld.lab.processes import ManagedProcess
from channeld.v1 import channels_pb2
from wallet.bitcoin import COINBASE_MATURITY_BLOCKS
from wallet.rpc import RpcClient, RpcConfig


class Lab:
    """Layer 1 and daemons under `directory`, which must be there; all are stopped at the end, whatever happens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layer1 = ManagedProcess(
            "regtestd",
            [sys.executable, "-m", "wallet.regtest", f"-datadir={directory / 'layer1'}", "-rpcport=0"],
            directory / "layer1.log",
        )
        self._daemons: list[DaemonProcess] = []
        self._rpc: RpcClient | None = None
        self._miner = ""

    async def __aenter__(self) -> Lab:
        try:
            await self.start_layer1()
            self._miner = await self.rpc.call("getnewaddress")
            await self.mine(COINBASE_MATURITY_BLOCKS + 1)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop everything that runs; a daemon that does not stop in time is killed."""
        results = await asyncio.gather(*(daemon.stop() for daemon in self._daemons), return_exceptions=True)
        if self._rpc is not None:
            await self._rpc.close()
            self._rpc = None
        await self.layer1.terminate()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # --- layer 1

    async def start_layer1(self) -> None:
        """Start it; again on the port that it had before."""
        await self.layer1.start()
        line = await self.layer1.wait_line("regtestd is ready")
        url = line.split()[3].rstrip(",")
        self.layer1.command[-1] = f"-rpcport={url.rpartition(':')[2]}"
        self._rpc = RpcClient(RpcConfig(url, cookie_file=self.cookie_file))

    async def stop_layer1(self) -> None:
        """Stop it."""
        if self._rpc is not None:
            await self._rpc.close()
            self._rpc = None
        await self.layer1.terminate()

    @property
    def rpc(self) -> RpcClient:
        """Its JSON-RPC."""
        assert self._rpc is not None, "layer 1 does not run"
        return self._rpc

    @property
    def rpc_url(self) -> str:
        """The URL that daemons are given."""
        return f"http://127.0.0.1:{self.layer1.command[-1].rpartition('=')[2]}"

    @property
    def cookie_file(self) -> Path:
        """The credentials that daemons are given."""
        return self.directory / "layer1" / "regtest" / ".cookie"

    async def height(self) -> int:
        """Of the tip."""
        return int(await self.rpc.call("getblockcount"))

    async def mine(self, blocks: int = 1, *, wait: bool = True) -> None:
        """Mine, and wait until all running daemons have seen it."""
        await self.rpc.call("generatetoaddress", blocks, self._miner)
        if wait:
            await self.wait_synced()

    async def wait_synced(self) -> None:
        """Until all running daemons are at the tip."""
        height = await self.height()
        await asyncio.gather(*(d.wait_height(height) for d in self._daemons if d.process.is_running))

    # --- daemons

    def add_daemon(
        self,
        name: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        module: str = "channeld",
    ) -> DaemonProcess:
        """A daemon that is not started yet; it is stopped with the lab."""
        daemon = DaemonProcess(
            name, self.directory / name, self.rpc_url, self.cookie_file, arguments=arguments, env=env, module=module
        )
        self._daemons.append(daemon)
        return daemon

    async def daemons(self, *names: str) -> list[DaemonProcess]:
        """Daemons, started and at the tip."""
        added = [self.add_daemon(name) for name in names]
        await asyncio.gather(*(daemon.start() for daemon in added))
        await self.wait_synced()
        return added

    async def wait_graph(self, *channels: channels_pb2.Channel) -> None:
        """Until all running daemons know of these public channels, so that they can pay along them."""
        scids = set()
        for channel in channels:
            scids.add(await self._scid(channel.channel_id))
        await asyncio.gather(*(d.wait_graph(scids) for d in self._daemons if d.process.is_running))

    async def _scid(self, channel_id: bytes) -> int:
        for daemon in self._daemons:
            for channel in await daemon.channels() if daemon.process.is_running else ():
                if channel.channel_id == channel_id and channel.HasField("short_channel_id"):
                    return int(channel.short_channel_id)
        raise ValueError(f"no running daemon has a confirmed channel {channel_id.hex()}")

    async def fund(self, daemon: DaemonProcess, amount_sat: int) -> None:
        """Give it a confirmed coin."""
        await self.fund_all({daemon: amount_sat})

    async def fund_all(self, amounts_sat: Mapping[DaemonProcess, int]) -> None:
        """Give each a coin, confirmed in one block."""
        for daemon, amount_sat in amounts_sat.items():
            await self.rpc.call("sendtoaddress", await daemon.new_address(), f"{amount_sat / 1e8:.8f}")
        await self.mine(1)

    async def open_channel(
        self, opener: DaemonProcess, other: DaemonProcess, amount_sat: int, **fields: Any
    ) -> channels_pb2.Channel:
        """Connect, open, confirm; returns when both sides can use the channel."""
        await opener.connect(other)
        opened = await opener.open_channel(other, amount_sat, **fields)
        await self.mine(6)
        await asyncio.gather(opener.wait_channel(opened.channel_id), other.wait_channel(opened.channel_id))
        return opened
