"""The public network for the user: what is known of it, ways through it, and what payments have taught.

Only what is announced is shown: our private channels are no part of the view. Amounts in msat or sat, points in time in
Unix seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from channeld.bolt.features import decode_features, describe
from channeld.bolt.messages import NodeAnnouncement, decode, decode_addresses
from channeld.bolt.primitives import format_short_channel_id
from channeld.gossip.service import GossipStatus
from channeld.gossip.view import NetworkView
from channeld.node.graph_routes import own_query, search
from channeld.node.graph_views import (
    ChannelWithKnowledge,
    GraphChannelView,
    GraphInfo,
    GraphNodeView,
    GraphPageView,
    RouteQuery,
    RoutesView,
)
from channeld.node.interface import NodeError
from channeld.routing.knowledge import ChannelKnowledge, NodeKnowledge
from channeld.routing.values import EdgeKey, LocalChannel
from wallet.bitcoin.address import Network

if TYPE_CHECKING:
    from channeld.routing.graph import Graph
    from channeld.routing.scoring import Scorer

PAGE_NODES = 400
PAGE_CHANNELS = 400
"""Some ten milliseconds each: the event loop is free in between."""


class PublicNetwork(Protocol):
    """Where the network is known: `NodeGossip`."""

    @property
    def view(self) -> NetworkView: ...
    @property
    def graph(self) -> Graph: ...
    def status(self) -> GossipStatus: ...


class Ways(Protocol):
    """Who finds ways for payments: `Router`."""

    @property
    def scorer(self) -> Scorer: ...
    def local_channels(self) -> tuple[LocalChannel, ...]: ...


class GraphVerbs:
    """`GraphService`. `save` makes what was learnt durable (the scorer's export)."""

    def __init__(
        self,
        node_id: bytes,
        bitcoin_network: Network,
        network: PublicNetwork,
        ways: Ways,
        save: Callable[[bytes], Awaitable[None]],
        height: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._node_id = node_id
        self._bitcoin_network = bitcoin_network
        self._network = network
        self._ways = ways
        self._save = save
        self._height = height
        self._now = now
        self._searching = asyncio.Lock()

    # --- the network

    async def pages(self, nodes: bool = True, channels: bool = True) -> AsyncIterator[GraphPageView]:
        """The whole public network, some at a time. What comes or goes meanwhile may be missing."""
        view = self._network.view
        if nodes:
            totals = _totals(view)
            ids = list(view.topology.node_index)
            for start in range(0, len(ids), PAGE_NODES):
                known = (node_id for node_id in ids[start : start + PAGE_NODES] if node_id in view.topology.node_index)
                yield GraphPageView(
                    nodes=tuple(self._node_view(node_id, *totals.get(node_id, (0, 0))) for node_id in known)
                )
                await asyncio.sleep(0)
        if channels:
            scids = list(view.topology.sorted_scids())
            for start in range(0, len(scids), PAGE_CHANNELS):
                yield GraphPageView(channels=tuple(self._channel_views(scids[start : start + PAGE_CHANNELS])))
                await asyncio.sleep(0)

    async def info(self) -> GraphInfo:
        """The network in numbers."""
        import numpy as np

        view, status = self._network.view, self._network.status()
        edges = self._network.graph.topology().edges
        alive, usable = edges.source >= 0, edges.enabled & (edges.source >= 0)
        capacities = edges.capacity_msat[alive][::2] / 1000
        degrees = np.bincount(edges.source[alive]) if alive.any() else np.zeros(1, np.int64)

        def median(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
            return int(np.median(values[usable])) if usable.any() else 0

        own_public = view.topology.node_index.get(self._node_id)
        return GraphInfo(
            num_nodes=status.nodes,
            num_announced_nodes=sum(map(bool, view.topology.node_announcement)),
            num_channels=status.channels,
            num_unusable_channels=int((alive & ~edges.enabled).reshape(-1, 2).all(axis=1).sum()),
            total_capacity_sat=int(capacities.sum()),
            min_channel_sat=int(capacities.min()) if len(capacities) else 0,
            median_channel_sat=int(np.median(capacities)) if len(capacities) else 0,
            max_channel_sat=int(capacities.max(initial=0)),
            max_node_channels=int(degrees.max(initial=0)),
            median_fee_base_msat=median(edges.fee_base_msat),
            median_fee_proportional_millionths=median(edges.fee_proportional_millionths),
            median_cltv_expiry_delta=median(edges.cltv_expiry_delta),
            num_own_public_channels=0 if own_public is None else view.topology.node_channels[own_public],
            num_own_private_channels=len(self._private_scids()),
            is_synced=status.is_synced,
            num_queued=status.queued,
            store_bytes=status.store_bytes,
            num_scored_channels=len(self._ways.scorer),
        )

    async def node(self, node_id: bytes) -> GraphNodeView:
        """A node that has a public channel. Raises NodeError."""
        view = self._network.view
        if node_id not in view.topology.node_index:
            raise NodeError(
                "not_found",
                f"The node {node_id.hex()} has no public channel that is known here; see `graph info` for whether the "
                "network is synced.",
            )
        capacities = [
            view.topology.capacity_sat[view.topology.rows[scid]] for scid in view.topology.channels_of(node_id)
        ]
        return self._node_view(node_id, len(capacities), sum(capacities))

    async def node_channels(self, node_id: bytes) -> list[GraphChannelView]:
        """A node's public channels."""
        return list(self._channel_views(sorted(self._network.view.topology.channels_of(node_id))))

    async def channel(self, short_channel_id: int) -> ChannelWithKnowledge:
        """A public channel, and what was learnt of it. Raises NodeError."""
        found = next(iter(self._channel_views([short_channel_id])), None)
        if found is None:
            raise NodeError(
                "not_found",
                f"The channel {format_short_channel_id(short_channel_id)} is not public, or not known here; see "
                "`graph info` for whether the network is synced.",
            )
        scorer, graph, now = self._ways.scorer, self._network.graph, self._now()
        first, second = (scorer.bounds(graph, EdgeKey(short_channel_id, side), now) for side in (0, 1))
        return ChannelWithKnowledge(found, (first, second))

    def _node_view(self, node_id: bytes, num_channels: int, capacity_sat: int) -> GraphNodeView:
        announcement = self._announcement(node_id)
        if announcement is None:
            is_own = node_id == self._node_id
            return GraphNodeView(node_id, "", "", (), (), None, num_channels, capacity_sat, is_own)
        return GraphNodeView(
            node_id=node_id,
            alias=alias_text(announcement.alias),
            color=announcement.rgb_color.hex(),
            addresses=tuple(str(address) for address in decode_addresses(announcement.addresses)),
            features=describe(decode_features(announcement.features)),
            announced_seconds=announcement.timestamp,
            num_channels=num_channels,
            capacity_sat=capacity_sat,
            is_own=node_id == self._node_id,
        )

    def _announcement(self, node_id: bytes) -> NodeAnnouncement | None:
        raw = self._network.view.node(node_id)
        message = decode(raw) if raw is not None else None
        return message if isinstance(message, NodeAnnouncement) else None

    def _channel_views(self, scids: Iterable[int]) -> Iterable[GraphChannelView]:
        view = self._network.view
        for scid in scids:
            channel = view.channel(scid)
            if channel is not None:
                yield GraphChannelView(
                    short_channel_id=scid,
                    node_id_1=channel.node_id_1,
                    node_id_2=channel.node_id_2,
                    capacity_sat=channel.capacity_sat,
                    policies=channel.policies,
                    is_own=self._node_id in (channel.node_id_1, channel.node_id_2),
                    spent_height=view.topology.spent_height[view.topology.rows[scid]] or None,
                )

    def _private_scids(self) -> frozenset[int]:
        """Our usable channels that nobody else knows of."""
        public = self._network.view.topology.rows
        own = (channel.short_channel_id for channel in self._ways.local_channels())
        return frozenset(scid for scid in own if scid not in public)

    # --- ways

    async def find_routes(self, query: RouteQuery) -> RoutesView:
        """The way that a payment would take now, and why; one search at a time, in a thread. Raises NodeError."""
        local = self._ways.local_channels()
        graph = self._network.graph
        asked = own_query(query, self._node_id, self._bitcoin_network, local, graph, self._height())
        async with self._searching:
            copies = graph.copy(), self._ways.scorer.copy()
            found = await asyncio.to_thread(search, *copies, asked, self._private_scids(), self._now())
        return replace(found, aliases=self._aliases(found))

    def _aliases(self, found: RoutesView) -> dict[bytes, str]:
        ways = [view.hops for view in found.routes]
        ways += [view.hops for view in (*found.cheaper, *found.runners_up)]
        ends = {end for hops in ways for hop in hops for end in (hop.source, hop.target)}
        announcements = ((node_id, self._announcement(node_id)) for node_id in ends)
        return {node_id: alias_text(known.alias) for node_id, known in announcements if known is not None}

    # --- what payments have taught

    async def export_scores(self, include_private: bool = False) -> tuple[list[ChannelKnowledge], list[NodeKnowledge]]:
        """What payments have taught. Without `include_private` only of what everybody knows: channels that were hinted
        to us, and our own that are not announced, are nobody else's business."""
        channels, nodes = self._ways.scorer.knowledge()
        if include_private:
            return channels, nodes
        topology = self._network.view.topology
        return (
            [known for known in channels if known.short_channel_id in topology.rows],
            [known for known in nodes if known.node_id in topology.node_index],
        )

    async def import_scores(
        self, channels: Sequence[ChannelKnowledge], nodes: Sequence[NodeKnowledge], replace: bool = False
    ) -> tuple[int, int]:
        """Takes over all of it or, if something cannot be, nothing; durably. Raises NodeError."""
        try:
            for bounds in channels:
                bounds.check()
            for failure in nodes:
                failure.check()
        except ValueError as error:
            raise NodeError("invalid_argument", f"{error}; nothing was imported") from error
        scorer, now = self._ways.scorer, self._now()
        if replace:
            scorer.reset()
        taken = scorer.merge(
            [_not_after(known, now) for known in channels],
            [_node_not_after(known, now) for known in nodes],
        )
        await self._save(scorer.export())
        return taken

    async def reset_scores(self) -> tuple[int, int]:
        """Forgets everything that was learnt, durably."""
        scorer = self._ways.scorer
        channels, nodes = scorer.knowledge()
        scorer.reset()
        await self._save(scorer.export())
        return len(channels), len(nodes)


def _not_after(known: ChannelKnowledge, now: float) -> ChannelKnowledge:
    """Knowledge from the future would never fade."""
    return replace(known, learnt_seconds=min(known.learnt_seconds, now))


def _node_not_after(known: NodeKnowledge, now: float) -> NodeKnowledge:
    return replace(known, learnt_seconds=min(known.learnt_seconds, now))


def alias_text(alias: bytes) -> str:
    """BOLT 7, `alias`: UTF-8, filled up with zeros; others' words, so that anything may be in it."""
    return alias.rstrip(b"\0").decode("utf-8", "replace")


def _totals(view: NetworkView) -> dict[bytes, tuple[int, int]]:
    """For each node how many channels it has, and their capacity in sat."""
    import numpy as np

    topology = view.topology
    alive = np.array(topology.announcement, np.uint64) != 0
    capacity = np.array(topology.capacity_sat, np.float64)[alive]
    size = len(topology.node_ids)
    counts, sums = np.zeros(size, np.int64), np.zeros(size)
    for column in topology.nodes:
        ends = np.array(column, np.int64)[alive]
        counts += np.bincount(ends, minlength=size)
        sums += np.bincount(ends, capacity, minlength=size)
    return {node_id: (int(counts[at]), int(sums[at])) for node_id, at in topology.node_index.items()}
