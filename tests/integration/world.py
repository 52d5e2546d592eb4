"""Nodes inside the test's process, on a regtest layer 1 inside it too: quick to start, easy to crash at any commit."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from channeld.channel.env import ChannelPolicy
from channeld.channel.state import Funded, Normal
from channeld.node import views
from channeld.node.interface import ChannelView, NodeEvent
from channeld.node.node import Node
from channeld.node.runtime import NodeSettings, Runtime
from channeld.storage import Store, make_engine, upgrade
from wallet.bitcoin.address import REGTEST
from wallet.bitcoind import BitcoindChainSource, BitcoindConfig
from wallet.keys import Keys
from wallet.regtest.server import RegtestServer, Settings
from wallet.rpc import RpcClient, RpcConfig

STEP_SECONDS = 60.0


class Crash(Exception):
    """The process dies here, as far as the database can tell."""


class CrashHook:
    """Dies at the n-th commit from `arm` on: right before it (nothing of it is kept), or right after it (all of it is
    kept, but nobody hears of it)."""

    def __init__(self) -> None:
        self._left = 0
        self._when: Literal["before", "after"] = "before"

    def arm(self, commits: int, when: Literal["before", "after"]) -> None:
        self._left, self._when = commits, when

    @property
    def is_armed(self) -> bool:
        return self._left > 0

    def disarm(self) -> None:
        self._left = 0

    def before(self) -> None:
        if self._left > 0 and self._when == "before":
            self._count()

    def after(self) -> None:
        if self._left > 0 and self._when == "after":
            self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Crash


class OneByOne(Store):
    """Each job is a transaction of its own, as on an idle machine: how many commits there are to crash at does not
    depend on how many happen to wait for each other."""

    def _commit(self, jobs: Sequence[Any], call: Callable[..., object]) -> None:
        for job in jobs:
            super()._commit([job], call)


class TestNode:
    """A node that can be restarted on its database."""

    __test__ = False

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.hook = CrashHook()
        self.port = 0
        self.backups: tuple[Path, ...] = ()
        """Where it keeps its channels' backup, from the next start on."""
        self._runtime: Runtime | None = None
        self._store: Store | None = None

    @property
    def runtime(self) -> Runtime:
        assert self._runtime is not None
        return self._runtime

    @property
    def api(self) -> Node:
        return Node(self.runtime)

    @property
    def node_id(self) -> bytes:
        return self.runtime.identity.node_id

    @property
    def has_crashed(self) -> bool:
        return self.runtime.failure is not None

    async def start(self, wait: bool = True) -> None:
        directory = self.world.directory / self.name
        directory.mkdir(exist_ok=True)
        engine = make_engine(f"sqlite:///{directory / 'test.sqlite'}")
        upgrade(engine)
        store = self._store = OneByOne(engine, lambda error: self.runtime.fail(f"crashed: {error!r}"), self.hook)
        keys = Keys(self.name.encode().ljust(64, b"\1"), REGTEST)
        rpc = self.world.rpc_config
        source = BitcoindChainSource(
            BitcoindConfig(rpc), REGTEST, on_waiting=lambda reason: self.runtime.chain.waiting(reason)
        )
        settings = NodeSettings(
            alias=self.name,
            listen=(("127.0.0.1", self.port),),
            policy=ChannelPolicy(minimum_depth_blocks=1),
            channel_backups=self.backups,
        )
        self._runtime = await Runtime.create(store, keys, source, settings)
        await self.runtime.start()
        self.port = int(self.runtime.listening[0].rpartition(":")[2])
        if wait:
            await asyncio.wait_for(self.runtime.wait_synced(), STEP_SECONDS)

    async def stop(self) -> None:
        await self.runtime.close()

    async def restart(self) -> None:
        self.hook.disarm()
        await self.stop()
        await self.start()

    async def flush(self) -> None:
        """Until everything submitted so far is durable. Raises StoreFailed."""
        assert self._store is not None
        await self._store.commit([])

    async def connect(self, other: TestNode) -> None:
        await self.api.connect_peer(other.node_id, "127.0.0.1", other.port)

    async def until(self, reached: Callable[[], Awaitable[Any]]) -> Any:
        """Until `reached` gives something true; asked again after each event of the node."""
        stream = self.runtime.bus.stream(None)
        following = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)  # it listens from here on: nothing can happen between a look and that
        try:
            async with asyncio.timeout(STEP_SECONDS):
                while not (found := await reached()):
                    await following
                    following = asyncio.ensure_future(anext(stream))
                return found
        except TimeoutError:
            info = await self.api.info()
            raise AssertionError(f"{self.name} waits in vain, at {info.block_height}, {info.chain_status}") from None
        finally:
            following.cancel()

    async def channel(self, channel_id: bytes) -> ChannelView | None:
        return next((c for c in await self.api.list_channels() if c.channel_id == channel_id), None)

    async def wait_active(self, channel_id: bytes) -> ChannelView:
        async def active() -> ChannelView | None:
            found = await self.channel(channel_id)
            return found if found is not None and found.active else None

        found = await self.until(active)
        assert isinstance(found, ChannelView)
        return found

    async def wait_no_htlcs(self, channel_id: bytes) -> None:
        driver = self.runtime.channels.by_id(channel_id)
        assert driver is not None
        assert await self.runtime.channels.wait_until(driver, lambda d: not views.htlcs(d.state), STEP_SECONDS)

    async def wait_scid(self, channel_id: bytes, fits: Callable[[int], bool]) -> None:
        driver = self.runtime.channels.by_id(channel_id)
        assert driver is not None
        reached = self.runtime.channels.wait_until(
            driver,
            lambda d: isinstance(d.state, Funded) and d.state.scid is not None and fits(d.state.scid),
            STEP_SECONDS,
        )
        assert await reached

    async def wait_not_deep(self, channel_id: bytes) -> None:
        """Until the channel has heard that its funding transaction is not deep enough any more."""
        driver = self.runtime.channels.by_id(channel_id)
        assert driver is not None
        reached = self.runtime.channels.wait_until(
            driver, lambda d: isinstance(d.state, Normal) and not d.state.is_deep, STEP_SECONDS
        )
        assert await reached

    async def wait_gone(self, channel_id: bytes) -> None:
        async def gone() -> bool:
            return await self.channel(channel_id) is None

        await self.until(gone)


class World:
    """Layer 1 and the nodes on it."""

    def __init__(self, directory: Path, server: RegtestServer, rpc: RpcClient, rpc_config: RpcConfig) -> None:
        self.directory = directory
        self.server = server
        self.rpc = rpc
        self.rpc_config = rpc_config
        self.nodes: list[TestNode] = []
        self._miner = ""

    async def start_chain(self) -> None:
        self._miner = await self.rpc.call("getnewaddress")
        await self.rpc.call("generatetoaddress", 101, self._miner)

    async def stop_chain(self) -> None:
        await self.server.stop()

    async def start_chain_again(self) -> None:
        """On the port, and with the credentials, that the nodes know."""
        await self.server.start()

    async def mine_empty(self, blocks: int) -> None:
        """Blocks without transactions."""
        for _ in range(blocks):
            await self.rpc.call("generateblock", self._miner, [])

    async def node(self, name: str) -> TestNode:
        node = TestNode(self, name)
        self.nodes.append(node)
        await node.start()
        return node

    async def mine(self, blocks: int = 1) -> None:
        """Mine, and wait until the nodes have processed the new tip (those that have not crashed)."""
        hashes = await self.rpc.call("generatetoaddress", blocks, self._miner)
        tip = bytes.fromhex(hashes[-1])[::-1]
        await asyncio.gather(*(self._wait_tip(node, tip) for node in self.nodes))

    async def _wait_tip(self, node: TestNode, tip: bytes) -> None:
        async def there() -> bool:
            info = await node.api.info()
            return node.has_crashed or (info.block_hash == tip and info.synced_to_chain)

        await node.until(there)

    async def fund(self, node: TestNode, amount_sat: int) -> None:
        await self.rpc.call("sendtoaddress", await node.api.new_address(), f"{amount_sat / 1e8:.8f}")
        await self.mine()

    async def open(self, opener: TestNode, other: TestNode, amount_sat: int, **options: Any) -> bytes:
        """A channel that both can use; its id."""
        await opener.connect(other)
        opened = await opener.api.open_channel(other.node_id, amount_sat, **options)
        await self.mine(3)
        await asyncio.gather(opener.wait_active(opened.channel_id), other.wait_active(opened.channel_id))
        return opened.channel_id


async def told(node: TestNode, kind: str, **details: object) -> NodeEvent:
    """The first such event since the node started."""
    async with asyncio.timeout(STEP_SECONDS):
        async for event in node.runtime.bus.stream(0):
            if event.kind == kind and details.items() <= event.data.items():
                return event
    raise AssertionError(f"no {kind}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def world_in(directory: Path) -> AsyncIterator[World]:
    settings = Settings(rpc_port=free_port(), rpc_user="test", rpc_password="test")
    async with RegtestServer(directory / "layer1", settings) as server:
        config = RpcConfig(server.url, *server.auth)
        rpc = RpcClient(config)
        world = World(directory, server, rpc, config)
        try:
            await world.start_chain()
            yield world
        finally:
            await asyncio.gather(*(node.stop() for node in world.nodes), return_exceptions=True)
            await rpc.close()
