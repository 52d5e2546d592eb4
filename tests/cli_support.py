"""A daemon's API in a thread of its own, and `channelctl` run against it in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from channeld.api.server import ApiServer
from channeld.cli.main import run
from channeld.paths import DataPaths, data_paths
from tests.fake_invoices import PEER_ID, make_bolt11
from tests.fake_node import FakeNode

T = TypeVar("T")


class Daemon:
    """A fake node and its API, in a thread with an event loop."""

    def __init__(self, paths: DataPaths) -> None:
        self.paths = paths
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.node = self.do(lambda: FakeNode())
        self.server: ApiServer | None = None
        self._unknown = 0

    def start(self) -> None:
        async def start() -> None:
            self.server = ApiServer(self.node, self.paths)
            await self.server.start()

        self.wait_for(start())

    def stop(self) -> None:
        if self.server is not None:
            self.wait_for(self.server.stop(grace_seconds=0))
            self.server = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the daemon's loop, and waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def do(self, function: Callable[[], T]) -> T:
        """Calls a function in the daemon's loop, and waits for it."""

        async def call() -> T:
            return function()

        return self.wait_for(call())

    def renew(self) -> None:
        """A new node behind the same API; faster than a new daemon."""

        def renew() -> None:
            self.node.__dict__.update(FakeNode().__dict__)

        self.do(renew)

    def when_followed(self, act: Callable[[], Any]) -> None:
        """Does something as soon as somebody begins to follow the node's events."""
        before = self.do(lambda: self.node.followed)

        async def wait() -> None:
            while self.node.followed == before:
                await self.node.listening.wait()
                self.node.listening.clear()
            act()

        asyncio.run_coroutine_threadsafe(wait(), self._loop)

    def unknown_invoice(self, amount_msat: int) -> str:
        """An invoice whose payee does not know it."""
        self._unknown += 1
        return make_bolt11(amount_msat, "unknown", self._unknown.to_bytes(32, "big"))

    def usable_channel(self, amount_sat: int = 100_000) -> bytes:
        """Opens a channel that can be used at once; its id."""

        async def open_() -> bytes:
            await self.node.connect_peer(PEER_ID, "127.0.0.1", 9736)
            channel = await self.node.open_channel(PEER_ID, amount_sat)
            self.node.mine(3)
            return channel.channel_id

        return self.wait_for(open_())


@contextmanager
def started_daemon(directory: Path) -> Iterator[Daemon]:
    """A daemon with its data there, until the end of the block."""
    daemon = Daemon(data_paths("regtest", directory))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


class Ran(NamedTuple):
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


class Channelctl:
    """Runs `channelctl` in this process against one data folder."""

    def __init__(self, paths: DataPaths, read: Callable[[], Any]) -> None:
        self._options = ["--datadir", str(paths.root)]
        self._read = read

    def __call__(self, *arguments: str) -> Ran:
        self._read()  # forgets what was printed before
        status = run([*self._options, *arguments])
        printed = self._read()
        return Ran(status, printed.out, printed.err)

    def json(self, *arguments: str) -> Any:
        """The result of a command that must succeed, as JSON."""
        ran = self(*arguments, "--json")
        assert ran.status == 0, ran
        return json.loads(ran.out)
