"""A production node in the simulated world: the real runtime on a database that outlives it, over fake sockets."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from channeld.bolt.features import Feature
from channeld.bolt.messages import Message
from channeld.channel import machine
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import State
from channeld.node.channels import Driver
from channeld.node.features import LOCAL_FEATURES
from channeld.node.node import Node
from channeld.node.runtime import NodeSettings, Runtime
from channeld.routing import find_flow, scoring
from channeld.routing.graph import Graph
from tests.sim.network_chain import SimSource
from tests.sim.network_lives import Mortal
from tests.sim.network_store import Database
from wallet.bitcoin.address import REGTEST
from wallet.keys import Keys

if TYPE_CHECKING:
    from tests.sim.network_world import World

LOADED = (find_flow, scoring)
"""Libraries that are loaded when they are first needed, and draw random numbers then: loaded before the first run."""
PORT = 9735
GAP_SCRIPTS = 8
"""Wallets look only a few scripts ahead: their start is much faster."""
TRUSTING_EVERY = 3
POLICY = ChannelPolicy(minimum_depth_blocks=1, to_self_delay_blocks=20)


@cache
def keys_of(name: str) -> Keys:
    """A node's keys; deriving them takes a while."""
    return Keys(name.encode().ljust(64, b"\1"), REGTEST)


class SimGossip:
    """In place of gossip, whose tests are elsewhere: every node knows the public network as the world knows it."""

    def __init__(self, *_: Any) -> None:
        self.graph = Graph()
        self.view = _View(self.graph)
        self.core = SimpleNamespace(
            own=SimpleNamespace(remote_update=lambda channel_id: None, is_announced=lambda channel_id: True),
            sync=SimpleNamespace(may_start=lambda: False),
            view=self.view,
        )

    def load(self) -> None:
        """The world fills the graph."""

    def coroutines(self) -> list[Any]:
        return []

    def unknown_features(self, node_id: bytes) -> list[int]:
        """Nobody requires what we do not know."""
        return []

    def public_update(self, scid: int, peer_id: bytes) -> bytes:
        return b""

    def touched(self, driver: Driver) -> None:
        """Nothing is announced."""

    batch_done = touched

    def block_connected(self, *_: Any) -> None:
        """Nothing was."""

    def block_disconnected(self, *_: Any) -> None:
        """Nothing was."""

    def peer_connected(self, link: Any) -> None:
        """Nothing to tell."""

    def peer_disconnected(self, link: Any) -> None:
        """Nothing to tell."""

    def peer_message(self, link: Any, message: Message) -> None:
        """Nobody says anything."""

    def close(self) -> None:
        """Nothing is open."""


class _View:
    """What the router asks of the network's view beside the graph."""

    def __init__(self, graph: Graph) -> None:
        self.topology = self
        self.changes = 0
        self._graph = graph

    def __len__(self) -> int:
        return self._graph.channel_count

    def update(self, scid: int, direction: int) -> bytes | None:
        """Nobody has signed anything."""
        return None


class SimNode(Mortal):
    """A node through all its lives."""

    CRASHED_AT_COMMIT = "crashed at a commit"

    def __init__(self, world: World, name: str, database: Database) -> None:
        super().__init__(world, name, database)
        self.name = name
        self.keys = keys_of(name)
        self.runtime: Runtime | None = None
        self.crash_at_send: tuple[int, str] | None = None
        self.is_old_fashioned = False
        """From its next life on it closes channels as it was done before `option_simple_close`."""
        self._decoded: dict[int, tuple[bytes, State]] = {}
        self._durable: tuple[int, dict[int, State]] = (-1, {})

    def __repr__(self) -> str:
        return self.name

    @property
    def up(self) -> bool:
        """Whether it runs, and has come as far as to have a runtime."""
        return self.life.alive and self.runtime is not None

    @property
    def running(self) -> Runtime:
        assert self.runtime is not None, self.name
        return self.runtime

    @property
    def api(self) -> Node:
        return Node(self.running)

    @property
    def node_id(self) -> bytes:
        return self.world.node_ids[self.name]

    # --- lives

    def _forget(self) -> None:
        self.runtime = None

    async def _start(self) -> None:
        world = self.world
        self._open_store()
        self.source = SimSource(world.chain, self.life, world.luck, lambda tx: world.tap.broadcast(self, tx))
        settings = NodeSettings(
            alias=self.name,
            listen=((self.name, PORT),),
            policy=self._policy(),
            birthday_height=self.world.birthday,
            gap_limit=GAP_SCRIPTS,
        )
        runtime = await Runtime.create(self.store, self.keys, self.source, settings)
        if self.is_old_fashioned:
            features = LOCAL_FEATURES - {Feature.option_simple_close, Feature.option_simple_close | 1}
            runtime.peers._features = runtime.channels._local_features = features
        self.runtime = runtime
        world.fill_graph(self)
        runtime.bus.publish = self._published(runtime.bus.publish)  # type: ignore[method-assign]
        await runtime.start()

    def _policy(self) -> ChannelPolicy:
        """In every third run all trust each other not to double-spend what funds a channel."""
        if self.world.seed % TRUSTING_EVERY:
            return POLICY
        return replace(POLICY, accept_zero_conf_from=frozenset(self.world.node_ids.values()))

    def _published(self, publish: Callable[..., None]) -> Callable[..., None]:
        life = self.life

        def told(kind: str, sentence: str, **data: Any) -> None:
            if life.alive:
                self.world.tap.published(self, kind, sentence, data)
            publish(kind, sentence, **data)

        return told

    def use(self, database: Database) -> None:
        """From the next life on another disk."""
        database.version = self.database.version + 1
        self.database.close()
        self.database = database
        self._durable = (-1, {})

    def _died(self) -> None:
        self.crash_at_send = None
        self.world.network.crashed(self.life)
        self.world.node_crashed(self)

    def dies_at_send(self) -> bool:
        """Counts a message; whether the process is gone before it is handed to the socket."""
        if self.crash_at_send is None:
            return False
        left, when = self.crash_at_send[0] - 1, self.crash_at_send[1]
        self.crash_at_send = (left, when)
        if left > 0:
            return False
        self.world.done["crashed at a message"] += 1
        if when == "before":
            self.crash()
            return True
        self.world.loop.call_soon(self.crash, context=self.world.context)
        return False

    # --- what is durable

    def durable(self) -> dict[int, State]:
        """The channels' states in the database, by channel_key."""
        version = self.database.version
        if self._durable[0] != version:
            found = {}
            for key, blob in self.database.rows("SELECT channel_key, state FROM channels"):
                known = self._decoded.get(key)
                if known is None or known[0] != blob:
                    known = self._decoded[key] = (blob, machine.decode_state(blob))
                found[key] = known[1]
            self._durable = (version, found)
        return self._durable[1]

    def stored_state(self, channel_key: int) -> bytes:
        """A channel's state as it is on disk; after `durable`."""
        return self._decoded[channel_key][0]

    def drivers(self) -> list[Driver]:
        """The channels of this life; none while it is down."""
        return list(self.running.channels.all()) if self.up else []

    def owned_sat(self) -> int:
        """What the chain has at its addresses, confirmed."""
        chain = self.world.chain
        wallet = self.running.wallet
        return sum(
            txout.value_sat
            for outpoint, (txout, _) in chain.outputs.items()
            if outpoint not in chain.spent and wallet.is_ours(txout.script_pubkey)
        )


def use_sim_gossip() -> Callable[[], None]:
    """Runtimes get `SimGossip`; returns what undoes that."""
    module: Any = import_module("channeld.node.runtime")
    original, module.NodeGossip = module.NodeGossip, SimGossip

    def undo() -> None:
        module.NodeGossip = original

    return undo


__all__ = ["PORT", "SimGossip", "SimNode", "keys_of", "use_sim_gossip"]
