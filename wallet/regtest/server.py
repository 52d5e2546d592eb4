"""A regtest node with its JSON-RPC: what the daemon runs, and what a test runs inside its own process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from wallet.regtest.errors import StartupError
from wallet.regtest.faucet import Faucet
from wallet.regtest.node import BlockRefused, Node
from wallet.regtest.notify import ZmqPublisher
from wallet.regtest.policy import Policy
from wallet.regtest.rpc import blockchain, control, mempool, psbt, rawtx, spending, wallet, wallets
from wallet.regtest.rpc.http import Credentials, RpcServer
from wallet.regtest.rpc.registry import METHODS, Call, Control

log = logging.getLogger(__name__)

METHOD_MODULES = (blockchain, control, mempool, psbt, rawtx, spending, wallet, wallets)
"""Importing them fills the table of methods."""


@dataclass(frozen=True)
class Settings:
    """How a server runs. `rpc_port` 0 takes a free one; `block_interval_seconds` 0 mines on demand only."""

    rpc_host: str = "127.0.0.1"
    rpc_port: int = 0
    rpc_user: str = ""
    rpc_password: str = ""
    rpc_auth: tuple[str, ...] = ()
    rpc_cookie_file: Path | None = None
    block_interval_seconds: float = 0.0
    block_address: str = ""
    zmq: tuple[tuple[str, str], ...] = ()
    policy: Policy = field(default_factory=Policy)


class RegtestServer:
    """A node in `datadir/regtest` and its JSON-RPC server. Use it as an async context manager, or start and stop it."""

    def __init__(self, datadir: Path | str, settings: Settings | None = None) -> None:
        self.datadir = Path(datadir)
        self.directory = self.datadir / "regtest"
        self.settings = settings or Settings()
        self.stop_requested = asyncio.Event()
        self._lock: TextIO | None = None
        self._node: Node | None = None
        self._rpc: RpcServer | None = None
        self._publisher: ZmqPublisher | None = None
        self._miner: asyncio.Task[None] | None = None

    @property
    def node(self) -> Node:
        """The node behind the server, once started."""
        assert self._node is not None, "the server is not started"
        return self._node

    @property
    def rpc_port(self) -> int:
        """The port that it listens on."""
        assert self._rpc is not None, "the server is not started"
        return self._rpc.port

    @property
    def url(self) -> str:
        """The RPC's URL, without credentials."""
        return f"http://{self.settings.rpc_host}:{self.rpc_port}"

    @property
    def auth(self) -> tuple[str, str]:
        """User and password."""
        assert self._rpc is not None, "the server is not started"
        return self._rpc.credentials.user, self._rpc.credentials.password

    @property
    def cookie_file(self) -> Path:
        """Where the cookie lies, if no password was set."""
        return self.settings.rpc_cookie_file or self.directory / ".cookie"

    @property
    def port_file(self) -> Path:
        """A file that holds the RPC port's number while the server runs."""
        return self.directory / "rpcport"

    async def start(self) -> None:
        """Open the data, listen. Raises StartupError with a sentence."""
        settings = self.settings
        credentials = Credentials(self.cookie_file, settings.rpc_user, settings.rpc_password, settings.rpc_auth)
        self._lock = _lock(self.directory)
        try:
            self._node = Node(self.directory, settings.policy)
            self._node.load()
            notifications = [{"type": kind, "address": address, "hwm": 1000} for kind, address in settings.zmq]
            if settings.zmq:
                self._publisher = ZmqPublisher(self._node, settings.zmq)
            control = Control(
                self.stop_requested.set, str(self.datadir), str(self.directory / "debug.log"), notifications
            )
            faucet = Faucet(self._node.store, self._node.mempool)
            call = Call(self._node, faucet, control)
            assert METHODS, "the modules of methods are imported"
            self._rpc = RpcServer(call, credentials)
            credentials.write_cookie()
            await self._rpc.start(settings.rpc_host, settings.rpc_port)
            _write_atomically(self.port_file, f"{self._rpc.port}\n")
            if settings.block_interval_seconds:
                script = rawtx.read_address(settings.block_address) if settings.block_address else None
                script = script or faucet.get(None).new_key(label="mined").script
                self._miner = asyncio.create_task(self._mine_regularly(script))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening, save, close. Stopping twice does nothing."""
        if self._node is not None:
            self._node.stopping.set()
        if self._miner is not None:
            self._miner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._miner
            self._miner = None
        if self._rpc is not None:
            await self._rpc.stop()
            self._rpc.credentials.remove_cookie()
            self._rpc = None
            self.port_file.unlink(missing_ok=True)
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None
        if self._node is not None:
            self._node.close()
            self._node = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def __aenter__(self) -> RegtestServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _mine_regularly(self, script: bytes) -> None:
        while True:
            await asyncio.sleep(self.settings.block_interval_seconds)
            try:
                await self.node.mine(script)
            except BlockRefused as error:
                log.error("A block was refused: %s", error)


def _lock(directory: Path) -> TextIO:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("w")
    except OSError as error:
        raise StartupError(f"Cannot use {directory} as data directory: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StartupError(
            f"Cannot obtain a lock on directory {directory}. regtestd is probably already running there;"
            " stop it, or choose another -datadir"
        ) from None
    return file


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)
