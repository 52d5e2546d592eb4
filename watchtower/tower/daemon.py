"""A tower's life: database, chain, services; until a signal, a call to stop, or something it cannot survive."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from wallet.bitcoin.secp import is_valid_secret, pubkey_of
from wallet.chain import ChainError, ChainSource
from wallet.db import Store, make_engine
from wallet.version import VERSION
from watchtower.rpc.files import write_private
from watchtower.rpc.metrics import MetricsServer
from watchtower.tower import tables
from watchtower.tower.alerts import Alerts, read_alerts
from watchtower.tower.config import Config
from watchtower.tower.intake import Intake
from watchtower.tower.operator import OperatorServicer
from watchtower.tower.paths import TowerPaths
from watchtower.tower.server import Closer, SessionLimit, TowerServer, certificate_hash, close_all
from watchtower.tower.service import TowerServicer
from watchtower.tower.sessions import Policy, Sessions, read_sessions
from watchtower.tower.status import StatusBoard, make_registry
from watchtower.tower.watcher import Watcher, load

SAY_WAITING_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class TowerError(Exception):
    """The tower cannot start, or cannot go on; the text is a sentence for the operator."""


def load_or_make_identity(paths: TowerPaths) -> tuple[bytes, bytes]:
    """(secret, tower id). Raises TowerError."""
    path = paths.identity
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        if paths.database.exists():
            raise TowerError(
                f"there is a database in {path.parent}, but {path} is missing: put it back, or move the database away"
            ) from None
        secret = secrets.token_bytes(32)
        write_private(path, secret.hex().encode() + b"\n")
    except ValueError:
        secret = b""
    if not is_valid_secret(secret):
        raise TowerError(f"{path} is damaged: put the tower's key back; clients know the tower by it")
    return secret, pubkey_of(secret)


class Tower:
    """A tower, as one process runs it. `source` is another layer 1 than the configured bitcoind (in tests)."""

    def __init__(self, config: Config, source: ChainSource | None = None) -> None:
        self.config = config
        self.tower_id = b""
        self.stopping = asyncio.Event()
        self.failure: str | None = None
        self._given_source = source
        self._closers: list[Closer] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.server: TowerServer
        self.watcher: Watcher
        self.sessions: Sessions
        self.intake: Intake
        self.board: StatusBoard
        self.metrics: MetricsServer | None = None

    async def start(self) -> None:
        """Open everything and listen. Raises TowerError and the parts' own errors, whose texts are sentences."""
        config, paths = self.config, self.config.paths
        paths.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        policy = config.policy
        identity = load_or_make_identity(paths)
        self.tower_id = identity[1]
        engine = make_engine(config.database or f"sqlite:///{paths.database}")
        tables.open_database(engine, config.network)
        store = Store(engine, self._database_failed)
        self._closers.append(store.close)
        source = self._given_source or config.chain_source(self._waiting)
        self._closers.append(source.close)
        alerts = await self._build(store, source, identity, policy)
        await self._listen(store, alerts, identity)
        self._spawn(self.sessions.run())
        self._spawn(self._follow(source))

    async def _build(self, store: Store, source: ChainSource, identity: tuple[bytes, bytes], policy: Policy) -> Alerts:
        """The parts, with what the database knows."""
        database = None if self.config.database else self.config.paths.database
        loaded = await store.read(load)
        alerts = Alerts(await store.read(read_alerts))
        self.watcher = Watcher(store, source, loaded, alerts, self._block_searched)
        self.sessions = Sessions(store, *identity, policy, await store.read(read_sessions))
        self.intake = Intake(
            store,
            self.sessions,
            self.watcher.index,
            identity,
            loaded.next_appointment_id,
            lambda: self.watcher.height,
            self.watcher.on_stored,
            time.monotonic,
        )
        self.board = StatusBoard(self.sessions, self.intake, self.watcher, database)
        return alerts

    async def _listen(self, store: Store, alerts: Alerts, identity: tuple[bytes, bytes]) -> None:
        config, paths = self.config, self.config.paths
        if config.metrics_address is not None:
            healthy = lambda: self.watcher.synced  # noqa: E731
            self.metrics = MetricsServer(config.metrics_address, make_registry(self.board), healthy)
            await self.metrics.start()
            self._closers.append(self.metrics.stop)
        tower = self._servicer(identity, lambda: certificate_hash(paths))

        def facts() -> dict[str, Any]:
            return {
                "tower_id": identity[1],
                "version": VERSION,
                "network": config.network,
                "address": self.server.address,
                "metrics_url": self.metrics.url if self.metrics else "",
            }

        operator = OperatorServicer(store, self.sessions, self.watcher, alerts, self.board, facts, self.stopping)
        self.server = TowerServer(paths, config.listen_address, config.hosts, config.access == "token")
        await self.server.start(tower, operator)
        self._closers.append(self.server.stop)

    def _servicer(self, identity: tuple[bytes, bytes], served_certificate_hash: Callable[[], bytes]) -> TowerServicer:
        """What clients talk to."""
        limit = SessionLimit(self.sessions.policy, time.monotonic)
        return TowerServicer(
            identity,
            self.config.network,
            VERSION,
            self.sessions,
            self.intake,
            self.watcher,
            served_certificate_hash,
            limit.check,
        )

    def _waiting(self, reason: str) -> None:
        self.watcher.status = reason

    def _database_failed(self, error: BaseException) -> None:
        self._fail(f"the database could not be written: {error}")

    def _fail(self, reason: str) -> None:
        _log.critical("the tower stops", reason=reason)
        self.failure = self.failure or reason
        self.stopping.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("something failed that must not", exc_info=error)
            self._fail(str(error) or repr(error))

    async def _follow(self, source: ChainSource) -> None:
        try:
            await source.start()
            await self.watcher.run()
        except ChainError as error:
            self._fail(str(error))

    def _block_searched(self, height: int) -> None:
        expired = self.sessions.expired(height)
        if expired:
            self._spawn(self._end_sessions(expired))

    async def _end_sessions(self, expired: list[Any]) -> None:
        for session in expired:
            await self.sessions.end(session)

    async def serve(self) -> None:
        """Say when the tower is ready, and return when it has to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stopping.set)
        synced = asyncio.ensure_future(self.watcher.synced_event.wait())
        stopped = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((synced, stopped), timeout=SAY_WAITING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not synced.done() and not stopped.done():
                _say(f"watchtowerd waits for layer 1 ({self.watcher.status}); gRPC on {self.server.address}")
                await asyncio.wait((synced, stopped), return_when=asyncio.FIRST_COMPLETED)
            if synced.done():
                self._say_ready()
            await stopped
        finally:
            synced.cancel()
            stopped.cancel()

    def _say_ready(self) -> None:
        ready = {
            "tower_id": self.tower_id.hex(),
            "grpc": self.server.address,
            "metrics": self.metrics.url if self.metrics else "",
            "pid": os.getpid(),
        }
        write_private(self.config.paths.ready, json.dumps(ready).encode() + b"\n")
        _say(f"watchtowerd is ready: {self.tower_id.hex()}@{self.server.address}")

    async def stop(self) -> None:
        """Stop what was started."""
        self.config.paths.ready.unlink(missing_ok=True)
        self.stopping.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if hasattr(self, "watcher"):
            await self.watcher.wait_late()
        await close_all(self._closers)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def run(config: Config) -> None:
    """Run until told to stop. Raises TowerError and the parts' own errors."""
    tower = Tower(config)
    try:
        await tower.start()
        await tower.serve()
    finally:
        await tower.stop()
    if tower.failure is not None:
        raise TowerError(tower.failure)
