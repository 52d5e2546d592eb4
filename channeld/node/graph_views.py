"""What the node offers of the public network: views and verbs, for the API's service `Graph`.

Amounts in msat or sat as the names say, lock times in blocks, probabilities 0..1, points in time in Unix seconds.
Verbs raise `NodeError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from channeld.gossip.view import Policy
from channeld.routing.knowledge import ChannelKnowledge, NodeKnowledge
from channeld.routing.values import HopCost, Route


class GraphNodeView(Struct, frozen=True):
    """A node that has a public channel. Without an announcement (`announced_seconds` None) it is an id only."""

    node_id: bytes
    alias: str
    color: str
    addresses: tuple[str, ...]
    features: tuple[str, ...]
    announced_seconds: int | None
    num_channels: int
    capacity_sat: int
    is_own: bool


class GraphChannelView(Struct, frozen=True):
    """A public channel. `policies[0]` is what `node_id_1` asks. `spent_height` is None while it is open."""

    short_channel_id: int
    node_id_1: bytes
    node_id_2: bytes
    capacity_sat: int
    policies: tuple[Policy | None, Policy | None]
    is_own: bool
    spent_height: int | None


class GraphPageView(Struct, frozen=True):
    """Some of the network."""

    nodes: tuple[GraphNodeView, ...] = ()
    channels: tuple[GraphChannelView, ...] = ()


class GraphInfo(Struct, frozen=True):
    """The network in numbers. Medians are those of directions that can be used."""

    num_nodes: int
    num_announced_nodes: int
    num_channels: int
    num_unusable_channels: int
    total_capacity_sat: int
    min_channel_sat: int
    median_channel_sat: int
    max_channel_sat: int
    max_node_channels: int
    median_fee_base_msat: int
    median_fee_proportional_millionths: int
    median_cltv_expiry_delta: int
    num_own_public_channels: int
    num_own_private_channels: int
    is_synced: bool
    num_queued: int
    store_bytes: int
    num_scored_channels: int


class ChannelWithKnowledge(Struct, frozen=True):
    """A channel, and for each side what it can send at least and at most (msat) as far as payments have taught."""

    channel: GraphChannelView
    known: tuple[tuple[int, int] | None, tuple[int, int] | None]


class RouteQuery(Struct, frozen=True, kw_only=True):
    """What `GraphService.find_routes` is asked; see `FindRouteRequest` in graph.proto. Empty and None: not given."""

    destination: bytes = b""
    amount_msat: int = 0
    bolt11: str = ""
    source: bytes = b""
    max_fee_msat: int | None = None
    max_cltv_blocks: int | None = None
    max_parts: int = 1
    final_cltv_expiry_delta: int | None = None
    via_scids: frozenset[int] = frozenset()
    via_nodes: frozenset[bytes] = frozenset()
    last_hop_nodes: frozenset[bytes] = frozenset()
    avoid_nodes: frozenset[bytes] = frozenset()
    avoid_scids: frozenset[int] = frozenset()


class RouteHopView(HopCost, frozen=True):
    """A channel of a way, and what it adds to the cost. `is_private`: ours, and not announced."""

    is_private: bool


class RouteView(Struct, frozen=True):
    """A way of one part of the payment."""

    route: Route
    hops: tuple[RouteHopView, ...]


class CandidateView(Struct, frozen=True):
    """A way that was not taken, and a sentence that says why."""

    hops: tuple[RouteHopView, ...]
    fee_msat: int
    lock_blocks: int
    probability: float
    cost_msat: float
    reason: str


class RoutesView(Struct, frozen=True):
    """The answer: one route a part, or none and a `reason`. `why_split` says why one part would not do as well."""

    source: bytes
    destination: bytes
    amount_msat: int
    reason: str
    routes: tuple[RouteView, ...]
    cheaper: tuple[CandidateView, ...]
    runners_up: tuple[CandidateView, ...]
    why_split: str
    aliases: Mapping[bytes, str]
    search_seconds: float

    @property
    def total_fee_msat(self) -> int:
        """What all parts pay besides the amount."""
        return sum(view.route.total_fee_msat for view in self.routes)

    @property
    def probability(self) -> float:
        """That all parts arrive: each part's is conditional on those before it."""
        result = float(bool(self.routes))
        for view in self.routes:
            result *= view.route.probability
        return result


class GraphService(Protocol):
    """The verbs."""

    def pages(self, nodes: bool = True, channels: bool = True) -> AsyncIterator[GraphPageView]:
        """The whole public network, some at a time."""
        ...

    async def info(self) -> GraphInfo: ...
    async def node(self, node_id: bytes) -> GraphNodeView: ...
    async def node_channels(self, node_id: bytes) -> list[GraphChannelView]: ...
    async def channel(self, short_channel_id: int) -> ChannelWithKnowledge: ...
    async def find_routes(self, query: RouteQuery) -> RoutesView:
        """The way that a payment would take now, and why. No way is an answer too."""
        ...

    async def export_scores(self, include_private: bool = False) -> tuple[list[ChannelKnowledge], list[NodeKnowledge]]:
        """What payments have taught. Without `include_private` only of channels that everybody knows."""
        ...

    async def import_scores(
        self, channels: Sequence[ChannelKnowledge], nodes: Sequence[NodeKnowledge], replace: bool = False
    ) -> tuple[int, int]:
        """Takes it over, durably; how many channels and nodes."""
        ...

    async def reset_scores(self) -> tuple[int, int]:
        """Forgets it, durably; how many channels and nodes."""
        ...
