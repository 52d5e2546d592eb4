"""The node's parts: built together, loaded from the database, started and stopped in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection

from channeld.bolt.invoice import RoutingHop
from channeld.bolt.primitives import block_of
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import Funded
from channeld.node import views
from channeld.node.blinded_paths import BlindedPaths
from channeld.node.broadcasts import Broadcasts
from channeld.node.bus import EventBus
from channeld.node.chain import ChainFollower
from channeld.node.channel_backup import ChannelBackup
from channeld.node.channel_verbs import ChannelVerbs
from channeld.node.channels import Channels, Driver
from channeld.node.coins import Coins
from channeld.node.features import LOCAL_FEATURES, announced
from channeld.node.feerates import FeeRates
from channeld.node.forwarding import Forwarder
from channeld.node.gossip import GossipSettings, NodeGossip
from channeld.node.graph import GraphVerbs
from channeld.node.idempotency import Idempotency
from channeld.node.identity import Identity
from channeld.node.invoices import InvoiceBook
from channeld.node.monitor import Monitor
from channeld.node.onion_messages import OnionMessenger
from channeld.node.payment_orders import Orders
from channeld.node.payment_plan import Planner
from channeld.node.payment_verbs import InvoicesToOurselves, PaymentVerbs
from channeld.node.payments import Payments
from channeld.node.peer_storage import PeerStorage
from channeld.node.peers import Peers
from channeld.node.policies import Policies
from channeld.node.receive import Receiver
from channeld.node.route_hints import route_hints
from channeld.node.router import SCORES, Router
from channeld.node.switch import Switch
from channeld.node.towers import NodeTowers
from channeld.node.wallet_store import NodeWalletStore
from channeld.node.watches import Watches
from channeld.storage import StorageError, Store, StoreFailed, Write, rows
from wallet.chain import ChainError, ChainSource
from wallet.coins import GAP_LIMIT
from wallet.keys import Keys
from wallet.wallet import Wallet

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class NodeSettings:
    """What a node is told beside its store, keys and chain. `listen` are (host, port) pairs."""

    alias: str = ""
    color: str = "3399ff"
    listen: tuple[tuple[str, int], ...] = ()
    policy: ChannelPolicy = field(default_factory=ChannelPolicy)
    birthday_height: int | None = None
    """The first block that may concern the seed; None for a seed made just now."""
    gossip: GossipSettings = field(default_factory=GossipSettings)
    accept_keysend: bool = True
    """Whether payments without an invoice are taken."""
    gap_limit: int = GAP_LIMIT
    """So many scripts beyond the last used one are the wallet's."""
    channel_backups: tuple[Path, ...] = ()
    """Files that follow the channels: see `channeld.node.channel_backup`."""


class Runtime:
    """Everything that a running node consists of. `stopped` is set when it was asked to end, or cannot go on: then
    `failure` is a sentence. Whoever runs it then calls `close`."""

    def __init__(
        self, store: Store, keys: Keys, wallet: Wallet, source: ChainSource, settings: NodeSettings, identity: Identity
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.failure: str | None = None
        self.stopped = asyncio.Event()
        self.bus = EventBus()
        self.keys = keys
        self._store = store
        self._source = source
        self.wallet = wallet
        self.started = time.time()
        self.listening: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._build(source)

    def _build(self, source: ChainSource) -> None:
        """All parts; those that need each other meet in the end."""
        self._first_sync = asyncio.Event()
        self.feerates = FeeRates(source)
        self._watches = Watches()
        self._broadcasts = Broadcasts(source, self.bus)
        self.idempotency = Idempotency(self._store)
        self._build_peers_and_channels(source)
        self._build_money(source)
        self.channels.connect_parts(self._switch, self.coins)
        self.peers.set_channels(self.channels)
        self.peers.set_gossip(self.gossip)
        self.peers.set_storage(self.peer_storage)
        self.peers.set_messenger(self.messenger)
        self._build_chain(source)

    def _first_height(self) -> int | None:
        """The first block that may concern the seed."""
        funded = [block_of(d.state.scid) for d in self.channels.all() if isinstance(d.state, Funded) and d.state.scid]
        of_wallet = self.wallet.first_height()
        return min(funded, default=None) if of_wallet is None else min([of_wallet, *funded])

    def _address_of(self, node_id: bytes) -> tuple[str, int] | None:
        """Where a peer can be called: where it was, else where it says."""
        return self.peers.address_of(node_id) or self.gossip.announced_address(node_id)

    async def _keep_backup(self) -> None:
        if self._first_height() is None:
            await self._first_sync.wait()
        await self.backup.run()

    def _height(self) -> int:
        return self.wallet.height

    def _build_peers_and_channels(self, source: ChainSource) -> None:
        network, store, bus = self.keys.network, self._store, self.bus
        self.peers = Peers(store, self.identity, bus, LOCAL_FEATURES, network.chain_hash)
        self.channels = Channels(
            store,
            self.identity,
            bus,
            self.feerates,
            self._watches,
            self._broadcasts,
            self.settings.policy,
            LOCAL_FEATURES,
            network.chain_hash,
            self._height,
        )
        self.policies = Policies(store, self.channels, time.time)
        self.gossip = NodeGossip(
            self.identity,
            self.channels,
            source,
            bus,
            network.chain_hash,
            self._height,
            self.settings.alias,
            self.settings.color,
            announced(self.settings.accept_keysend),
            self.settings.gossip,
            network.name == "regtest",
            self.policies.of,
        )
        self.gossip.core.sync.may_start = self._first_sync.is_set
        self.towers = NodeTowers(store, self.identity, self.channels, self.wallet, bus)
        self.messenger = OnionMessenger(self.identity, self.peers, self.channels, lambda: self.gossip.graph)
        self.channels.on_batch_done = self._batch_done
        self.policies.on_changed = self.gossip.touched
        self.backup = ChannelBackup(
            self.settings.channel_backups,
            self.identity,
            network.name,
            self.channels,
            self._address_of,
            self._first_height,
            bus,
        )
        self.peer_storage = PeerStorage(store, self.backup, self.channels)
        self.channels.update_of_peer = self.gossip.core.own.remote_update

    def _build_money(self, source: ChainSource) -> None:
        network, store, bus, node_id = self.keys.network, self._store, self.bus, self.identity.node_id
        self.coins = Coins(self.wallet, store, source, self.feerates, bus)
        self.invoices = InvoiceBook(store, self.identity, network, bus, time.time, self._route_hints)
        self.receiver = Receiver(
            store,
            self.invoices,
            bus,
            self._height,
            self._first_sync.is_set,
            time.time,
            self.settings.accept_keysend,
            lambda: self.chain.stale_seconds(),
        )
        self.blinded = BlindedPaths(node_id, self.channels, self.invoices, self._height, time.time)
        self.router = Router(node_id, self.channels, self.gossip, self._height, time.time)
        self.graph = GraphVerbs(node_id, network, self.gossip, self.router, self._save_scores, self._height, time.time)
        to_ourselves = InvoicesToOurselves(self.invoices, self.receiver)
        unknown_features = self.gossip.unknown_features
        orders = Orders(network, node_id, self.channels, to_ourselves, time.time, unknown_features)
        planner = Planner(node_id, self.channels, self.router, self._height, self._first_sync.is_set, time.time)
        self.payments = Payments(store, bus, self.channels, self.router, orders, planner, network.chain_hash, time.time)
        self.payment_verbs = PaymentVerbs(self.payments, self.idempotency)
        self.forwarder = Forwarder(
            store,
            self.channels,
            self.policies,
            bus,
            self._height,
            lambda: self.chain.in_step,
            self.gossip.public_update,
        )
        self._switch = Switch(self.identity, self.receiver, self.payments, self.forwarder, self._height)

    async def _save_scores(self, scores: bytes) -> None:
        await self._store.commit([rows.SET_META(SCORES, scores)])

    def _build_chain(self, source: ChainSource) -> None:
        store, bus = self._store, self.bus
        self.verbs = ChannelVerbs(
            store,
            self.channels,
            self.peers,
            self.coins,
            self._broadcasts,
            self.feerates,
            self.idempotency,
            self.keys.network.chain_hash,
        )
        self.monitor = Monitor(store, source, self.wallet, self.channels, self._watches, bus)
        self.channels.knows_height = lambda: self.chain.in_step
        self.monitor.on_looked = self.forwarder.late.looked
        self.monitor.justice_script = self.towers.backups.script_of
        self.channels.on_closing = self.monitor.touched
        self.channels.on_forgotten = self.monitor.forgotten
        self.chain = ChainFollower(
            source,
            store,
            self.wallet,
            self.channels,
            self._watches,
            self._broadcasts,
            self.feerates,
            self.monitor,
            bus,
            self._on_height,
            self._on_synced,
            self.gossip,
        )

    @classmethod
    async def create(cls, store: Store, keys: Keys, source: ChainSource, settings: NodeSettings) -> Runtime:
        """Check that the database is this seed's and network's, and read it. Raises StorageError, WrongSeed."""
        identity = Identity(keys.lightning_root())
        await _check_meta(store, keys, identity)
        wallet = await Wallet.open(
            keys,
            NodeWalletStore(store),
            birthday_height=settings.birthday_height,
            broadcaster=source,
            gap_limit=settings.gap_limit,
        )
        runtime = cls(store, keys, wallet, source, settings, identity)
        store.read_now(runtime._load)
        await runtime.towers.open()
        await runtime.coins.release_leftovers(keep=runtime.monitor.reservations())
        return runtime

    def _load(self, connection: Connection) -> None:
        self._watches.load(connection)
        self._broadcasts.load(connection)
        self.peers.load(connection)
        self.channels.load(connection)
        self.monitor.load(connection)
        self._switch.load(connection)
        self.policies.load(connection)
        self.forwarder.load(connection)
        self.router.load(connection)
        self.payments.load(connection)
        hashes = {h.payment_hash for d in self.channels.all() for h in views.htlcs(d.state) if not h.offered}
        self.invoices.load(connection, tuple(hashes))
        self.gossip.load()
        self.backup.load()
        self.peer_storage.theirs.load(connection)

    # --- start and stop

    async def start(self) -> None:
        """Layer 1 first, then channels, then peers; returns when the node listens. Layer 1 may be away: then peers are
        called as soon as it is there. Raises OSError if an address cannot be listened on."""
        for host, port in self.settings.listen:
            found = await self.peers.listen(host, port)
            self.listening.append(f"{found[0]}:{found[1]}")
        for number, coroutine in enumerate(self.gossip.coroutines()):
            self._run(f"gossip {number}", coroutine)
        self.channels.resume()
        self.payments.resume()
        self._run("monitor", self.monitor.run())
        self._run("broadcasts", self._broadcasts.run())
        self._run("chain", self.chain.run())
        self._run("channel backup", self._keep_backup())
        self._run("peers", self._call_peers())
        self.towers.start()

    async def _call_peers(self) -> None:
        await self._first_sync.wait()
        self.peers.start()
        await self.router.warm()

    def _run(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._task_done)
        self._tasks.append(task)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        assert error is not None
        if not isinstance(error, ChainError | StoreFailed):
            log.critical("a part of the node failed", part=task.get_name(), exc_info=error)
        self.fail(str(error) or type(error).__name__)

    def fail(self, sentence: str) -> None:
        """The node cannot go on: whoever runs it is told, and stops it."""
        if self.failure is None:
            self.failure = sentence
            self.bus.publish("node.failed", sentence)
            self.stopped.set()

    async def wait_synced(self) -> None:
        """Until the chain was caught up with for the first time."""
        await self._first_sync.wait()

    async def close(self) -> None:
        """Stop everything, the store last."""
        self.receiver.close()
        self.payments.close()
        await self.peers.stop()
        self.peer_storage.close()
        await self.coins.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.gossip.close()
        await self.backup.close()
        await self.towers.close()
        await self._source.close()
        self.bus.close()
        await self._store.close()

    def _on_height(self, height: int) -> list[Write]:
        self.invoices.forget_expired()
        return [*self._switch.expire(height), *self.router.save(), *self.peer_storage.theirs.at_height(height)]

    def _batch_done(self, driver: Driver) -> None:
        self.gossip.batch_done(driver)
        self.towers.touched(driver)
        self.backup.touched(driver)

    def _on_synced(self) -> None:
        self._first_sync.set()
        self.receiver.height_known()
        self.forwarder.late.at_tip()

    def _route_hints(self) -> Sequence[tuple[RoutingHop, ...]]:
        """How strangers reach us over channels that are not announced (BOLT 11, `r`)."""
        return route_hints(self.channels, self.gossip.core.own.is_announced)


async def _check_meta(store: Store, keys: Keys, identity: Identity) -> None:
    """The database must be this network's and this seed's; a new one becomes so. Raises StorageError."""
    network = keys.network
    mine = {
        "network": network.name.encode(),
        "genesis": network.genesis_hash,
        "node_id": identity.node_id,
    }
    stored = store.read_now(rows.load_meta)
    for key, value in mine.items():
        if stored.get(key, value) == value:
            continue
        if key == "node_id":
            raise StorageError(
                f"the database belongs to the node {stored[key].hex()}, but the seed gives {value.hex()}: start with "
                "the seed that belongs to it, or with an empty data directory"
            )
        raise StorageError(f"the database belongs to another network than {network.name}")
    await store.commit([rows.SET_META(key, value) for key, value in mine.items() if key not in stored])
