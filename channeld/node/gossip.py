"""Gossip inside a running node: its tasks, layer 1 as it sees it, our channels as it has to know them, and the graph
for path finding that it keeps up to date.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from channeld.bolt.features import FeatureBits, decode_features, encode_features, unknown_even
from channeld.bolt.messages import (
    Address,
    AddressType,
    AnnouncementSignatures,
    ChannelUpdate,
    Message,
    NodeAnnouncement,
    decode,
    decode_addresses,
)
from channeld.bolt.primitives import block_of, output_of, tx_index_of
from channeld.channel.state import AwaitingFunding, Funded, Live, Normal, State
from channeld.gossip.interface import Funding, FundingUnknown, GossipConfig
from channeld.gossip.own import ForwardingPolicy, NodeProfile, OwnChannel
from channeld.gossip.service import Gossip, GossipStatus
from channeld.gossip.store import GossipStore
from channeld.gossip.view import NetworkView
from channeld.node.bus import EventBus
from channeld.node.channels import Channels, Driver
from channeld.node.identity import Identity
from channeld.node.peer import PeerLink
from channeld.routing.values import MAX_AMOUNT_MSAT, Policy
from wallet.bitcoin import Block, OutPoint
from wallet.bitcoin.secp import sign
from wallet.chain import ChainError, ChainSource, ChainUnavailable

if TYPE_CHECKING:
    from channeld.routing.graph import Graph

log = structlog.get_logger(__name__)

REGTEST = GossipConfig(
    flush_seconds=0.25,
    update_burst=1000,
    update_refill_seconds=0.01,
    own_update_seconds=0.25,
    redundant_seconds=0,
    rotate_seconds=60.0,
    historical_seconds=60.0,
)
"""Quick enough to watch."""
BLOCKS_KEPT = 16
PUMP_SECONDS = 0.1
TICK_SECONDS = 1.0
TELL_SECONDS = 0.02
_OF_CHANNELS = (AnnouncementSignatures, ChannelUpdate)
"""Messages that are understood only by who knows the channel as it is now."""


class GossipSettings(NamedTuple):
    """`file` is where gossip is kept, nowhere beyond the process if None; `addresses` are announced."""

    file: Path | None = None
    addresses: tuple[Address, ...] = ()
    config: GossipConfig | None = None


class ChainFunding:
    """`FundingSource` over layer 1: a block's transaction ids tell what a short_channel_id means."""

    def __init__(self, source: ChainSource) -> None:
        self._source = source
        self._txids: OrderedDict[int, list[bytes]] = OrderedDict()

    def forget(self, height: int) -> None:
        """The block at `height` is another one now."""
        self._txids.pop(height, None)

    async def lookup(self, scids: Sequence[int]) -> list[Funding | None]:
        """See `FundingSource`. A block that layer 1 no longer has is as if it had no such output."""
        try:
            return [await self._find(scid) for scid in scids]
        except ChainUnavailable as error:
            raise FundingUnknown(str(error)) from error

    async def _find(self, scid: int) -> Funding | None:
        txids = await self._txids_of(block_of(scid))
        if tx_index_of(scid) >= len(txids):
            return None
        txid = txids[tx_index_of(scid)]
        # A close that is not in a block yet may never be: the output counts until it is spent for good.
        found = await self._source.utxo(OutPoint(txid, output_of(scid)), include_mempool=False)
        if found is None:
            return None
        return Funding(txid, found.txout.value_sat, found.txout.script_pubkey, found.confirmations)

    async def _txids_of(self, height: int) -> list[bytes]:
        known = self._txids.get(height)
        if known is not None:
            self._txids.move_to_end(height)
            return known
        block_hash = await self._source.get_block_hash(height)
        try:
            txids = await self._source.get_block_txids(block_hash) if block_hash is not None else []
        except ChainUnavailable:
            raise
        except ChainError as error:
            log.debug("a block that announced channels are in is not there", height=height, reason=str(error))
            txids = []
        self._txids[height] = txids
        if len(self._txids) > BLOCKS_KEPT:
            self._txids.popitem(last=False)
        return txids


def _face(state: State | None) -> tuple[object, ...]:
    """What gossip is told of a channel (`_as_own`), its policy left out. Cheap to compare: params change rarely."""
    if not isinstance(state, Funded):
        return (type(state),)
    aliases = state.local_alias, state.remote_alias
    return (type(state), type(state.link), state.scid, aliases, state.funding_depth, state.params)


class GraphFeed:
    """`GraphSink` that keeps a routing graph, from the first channel on: its library takes 15 MB."""

    def __init__(self) -> None:
        self._made: Graph | None = None

    @property
    def graph(self) -> Graph:
        """The graph as it is now."""
        if self._made is None:
            from channeld.routing.graph import Graph

            self._made = Graph()
        return self._made

    def load(self, view: NetworkView) -> None:
        """Everything at once, into an empty graph."""
        if not len(view.topology):
            return
        from channeld.gossip.bulk import columns
        from channeld.routing.graph import Columns

        c = columns(view)
        policies = (c.htlc_minimum_msat, c.htlc_maximum_msat, c.fee_base_msat, c.fee_proportional_millionths)
        self.graph.add_columns(
            Columns(
                *(c.node_ids, c.short_channel_id, c.ends, c.capacity_sat, c.known, c.usable),
                *policies,
                c.cltv_expiry_delta,
            )
        )
        for announcement in view.nodes():
            self.node_announced(announcement)

    def channel_added(self, scid: int, node_id_1: bytes, node_id_2: bytes, capacity_sat: int, routable: bool) -> None:
        if routable:
            self.graph.add_channel(scid, node_id_1, node_id_2, capacity_sat)

    def channel_updated(self, update: ChannelUpdate, usable: bool) -> None:
        policy = Policy(
            enabled=usable,
            htlc_minimum_msat=min(update.htlc_minimum_msat, MAX_AMOUNT_MSAT),
            htlc_maximum_msat=min(update.htlc_maximum_msat, MAX_AMOUNT_MSAT),
            fee_base_msat=update.fee_base_msat,
            fee_proportional_millionths=update.fee_proportional_millionths,
            cltv_expiry_delta=update.cltv_expiry_delta,
        )
        self.graph.update_channel(update.short_channel_id, update.channel_flags & 1, policy)

    def channel_removed(self, scid: int) -> None:
        if self._made is not None:
            self._made.remove_channel(scid)

    def node_announced(self, announcement: NodeAnnouncement) -> None:
        self.graph.set_node_features(announcement.node_id, int.from_bytes(announcement.features, "big"))

    def node_removed(self, node_id: bytes) -> None:
        if self._made is not None:
            self._made.remove_node(node_id)


class NodeGossip:
    """What the node calls."""

    def __init__(
        self,
        identity: Identity,
        channels: Channels,
        source: ChainSource,
        bus: EventBus,
        chain_hash: bytes,
        height: Callable[[], int],
        alias: str,
        color: str,
        features: FeatureBits,
        settings: GossipSettings,
        is_regtest: bool,
        policy_of: Callable[[Driver], ForwardingPolicy],
    ) -> None:
        self.policy_of = policy_of
        """What we ask for forwarding over a channel."""
        self._identity = identity
        self._channels = channels
        self._bus = bus
        self._config = settings.config or (REGTEST if is_regtest else GossipConfig())
        self._funding = ChainFunding(source)
        self._feed = GraphFeed()
        self.core = Gossip(
            NetworkView(GossipStore(settings.file, chain_hash), [self._feed]),
            self._funding,
            self,
            identity.node_id,
            chain_hash,
            self._config,
            time.time,
            height,
            random.Random(),
        )
        name = alias or identity.node_id.hex()[:20]
        self.core.own.set_profile(
            NodeProfile(name, bytes.fromhex(color), settings.addresses, encode_features(features))
        )
        self._touched: set[Driver] = set()
        self._faces: dict[Driver, tuple[object, ...]] = {}
        self._closed = False

    @property
    def graph(self) -> Graph:
        """The public network, once `load` has returned."""
        return self._feed.graph

    @property
    def view(self) -> NetworkView:
        """The public network as announced."""
        return self.core.view

    def status(self) -> GossipStatus:
        """What is known, and what is under way."""
        return self.core.status()

    def load(self) -> None:
        """Read what is kept."""
        started = time.monotonic()
        self.core.view.load()
        self._feed.load(self.core.view)
        for driver in self._channels.all():
            self._tell(driver)
        seconds = round(time.monotonic() - started, 3)
        log.info("network loaded", channels=len(self.core.view.topology), seconds=seconds)

    # --- Signer

    def sign_as_node(self, digest: bytes) -> bytes:
        """With the node's key."""
        return sign(self._identity.node_secret, digest)

    def sign_as_funder(self, channel_id: bytes, digest: bytes) -> bytes:
        """With our funding key of a channel."""
        driver = self._channels.by_id(channel_id)
        assert driver is not None
        return sign(driver.secrets.funding_secret, digest)

    # --- tasks

    def coroutines(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run while the node does."""
        parts = [*self.core.runners(), self._tick_for_ever, self._flush_for_ever, self._pump_for_ever]
        return [self._keep_running(part) for part in parts]

    async def _keep_running(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Gossip can be had again, channels cannot: a bug here is logged, and the node goes on."""
        while True:
            try:
                await part()
            except Exception:
                log.critical("gossip stumbled over a bug", part=part.__name__, exc_info=True)
                await asyncio.sleep(TICK_SECONDS)

    def _shielded(self, call: Callable[..., None], *args: Any) -> None:
        """The same for what the rest of the node calls."""
        if self._closed:
            return
        try:
            call(*args)
        except Exception:
            log.critical("gossip stumbled over a bug", part=call.__name__, exc_info=True)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(TICK_SECONDS, self._config.flush_seconds))
            self.core.tick()
            store, topology = self.core.view.store, self.core.view.topology
            if store.wants_compaction():
                plan = store.plan_compaction(topology)
                try:
                    await asyncio.to_thread(plan.copy)
                    store.finish_compaction(plan, topology)
                except OSError as error:
                    log.error("gossip store not compacted", reason=str(error))
                    await asyncio.sleep(self._config.flush_seconds)

    async def _flush_for_ever(self) -> None:
        told = 0
        while True:
            await asyncio.sleep(self._config.flush_seconds)
            self.core.flush()
            if self.core.view.changes != told:
                told = self.core.view.changes
                self._publish_status()

    def _publish_status(self) -> None:
        self.core.view.store.flush()
        status = self.core.status()
        self._bus.publish(
            "graph.changed",
            f"the public network has {status.channels} channels between {status.nodes} nodes",
            channels=status.channels,
            nodes=status.nodes,
            synced=status.is_synced,
        )

    async def _pump_for_ever(self) -> None:
        while True:
            more = self.core.pump()
            await asyncio.sleep(0 if more else PUMP_SECONDS)

    def close(self) -> None:
        """After the tasks ended."""
        self._closed = True
        self.core.close()

    # --- peers

    def peer_connected(self, link: PeerLink) -> None:
        """After `init`."""
        self._shielded(self.core.peer_connected, link)

    def peer_disconnected(self, link: PeerLink) -> None:
        """The connection is gone."""
        self._shielded(self.core.peer_disconnected, link)

    def peer_message(self, link: PeerLink, message: Message) -> None:
        """One of `GOSSIP_MESSAGES`."""
        if self._touched and isinstance(message, _OF_CHANNELS):
            self._tell_touched()  # it may answer what we said a moment ago, and be said only once
        self._shielded(self.core.peer_message, link, message)

    # --- our channels

    def batch_done(self, driver: Driver) -> None:
        """A batch of a channel is durable. Few change anything that gossip speaks of."""
        face = _face(driver.settled)
        if self._faces.get(driver) != face:
            self._faces[driver] = face
            self.touched(driver)

    def touched(self, driver: Driver) -> None:
        """Something may have changed about a channel; it is looked at soon, once however much changes."""
        if not self._touched:
            asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell_touched)
        self._touched.add(driver)

    def _tell_touched(self) -> None:
        touched, self._touched = self._touched, set()
        for driver in touched:
            self._shielded(self._tell, driver)

    def _tell(self, driver: Driver) -> None:
        channel = self._as_own(driver)
        if channel is not None:
            self.core.set_channel(channel)
        elif driver.is_over:
            self._faces.pop(driver, None)
            self.core.remove_channel(driver.channel_id)

    def _as_own(self, driver: Driver) -> OwnChannel | None:
        state = driver.settled  # BOLT 7: what is said here comes after `channel_ready`, which may wait for a commit
        if not isinstance(state, Funded) or not isinstance(driver.state, Funded):
            return None
        params, keys = state.params, state.params.commitment
        return OwnChannel(
            channel_id=driver.channel_id,
            peer_id=driver.peer_id,
            scid=state.scid,
            local_alias=state.local_alias,
            remote_alias=state.remote_alias,
            funding_txid=params.funding_outpoint.txid,
            capacity_sat=params.capacity_sat,
            announce=params.announce,
            local_funding_pubkey=keys.local.funding_pubkey,
            remote_funding_pubkey=keys.remote.funding_pubkey,
            depth=state.funding_depth,
            is_ready=not isinstance(state, AwaitingFunding),
            is_connected=isinstance(state.link, Live),
            is_closing=not isinstance(state, AwaitingFunding | Normal),
            policy=self.policy_of(driver),
        )

    def unknown_features(self, node_id: bytes) -> list[int]:
        """What a node requires of others, by its announcement, that nothing here has a name for."""
        announcement = self._announcement(node_id)
        return [] if announcement is None else unknown_even(decode_features(announcement.features))

    def announced_address(self, node_id: bytes) -> tuple[str, int] | None:
        """Where a node says that it can be called, without Tor."""
        announcement = self._announcement(node_id)
        addresses = () if announcement is None else decode_addresses(announcement.addresses)
        usable = ((found.host, found.port) for found in addresses if found.type is not AddressType.TOR_V3)
        return next(usable, None)

    def _announcement(self, node_id: bytes) -> NodeAnnouncement | None:
        raw = self.core.view.node(node_id)
        announcement = decode(raw) if raw is not None else None
        return announcement if isinstance(announcement, NodeAnnouncement) else None

    def public_update(self, scid: int, peer_id: bytes) -> bytes:
        """Our own public `channel_update` of a channel, wire form; empty if there is none."""
        return self.core.view.update(scid, int(self._identity.node_id > peer_id)) or b""

    # --- the chain

    def block_connected(self, block: Block, height: int) -> None:
        """A block came."""
        self._funding.forget(height)
        self._shielded(self.core.block_connected, block, height)

    def block_disconnected(self, height: int) -> None:
        """It went."""
        self._funding.forget(height)
        self._shielded(self.core.block_disconnected, height)
