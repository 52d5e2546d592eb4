"""The service `Graph`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from channeld.api import convert
from channeld.gossip.view import Policy
from channeld.node.graph_views import (
    CandidateView,
    GraphChannelView,
    GraphNodeView,
    RouteHopView,
    RouteQuery,
    RoutesView,
    RouteView,
)
from channeld.node.interface import NodeError, NodeService
from channeld.routing.knowledge import ChannelKnowledge, NodeKnowledge
from channeld.v1 import graph_pb2, graph_pb2_grpc

PAGE_SCORES = 1000
MAX_IMPORTED = 1_000_000
"""Scores in one import: more than the network has channels, and what fits in memory."""


class GraphServicer(graph_pb2_grpc.GraphServicer):
    """See proto/channeld/v1/graph.proto."""

    def __init__(self, node: NodeService) -> None:
        self._node = node

    async def Describe(
        self, request: graph_pb2.DescribeGraphRequest, context: Any
    ) -> AsyncIterator[graph_pb2.GraphPage]:
        async for page in self._node.graph.pages(not request.without_nodes, not request.without_channels):
            yield graph_pb2.GraphPage(
                nodes=[_node(node) for node in page.nodes], channels=[_channel(channel) for channel in page.channels]
            )

    async def GetInfo(self, request: graph_pb2.GetGraphInfoRequest, context: Any) -> graph_pb2.GetGraphInfoResponse:
        info = await self._node.graph.info()
        fields = {name: getattr(info, name) for name in info.__struct_fields__ if name != "median_cltv_expiry_delta"}
        return graph_pb2.GetGraphInfoResponse(median_cltv_expiry_delta_blocks=info.median_cltv_expiry_delta, **fields)

    async def GetNode(self, request: graph_pb2.GetGraphNodeRequest, context: Any) -> graph_pb2.GetGraphNodeResponse:
        node_id = convert.node_id(request.node_id)
        node = await self._node.graph.node(node_id)
        channels = [] if request.without_channels else await self._node.graph.node_channels(node_id)
        return graph_pb2.GetGraphNodeResponse(node=_node(node), channels=[_channel(channel) for channel in channels])

    async def GetChannel(
        self, request: graph_pb2.GetGraphChannelRequest, context: Any
    ) -> graph_pb2.GetGraphChannelResponse:
        found = await self._node.graph.channel(request.short_channel_id)
        known_1, known_2 = (
            graph_pb2.Bounds(lower_msat=known[0], upper_msat=known[1]) if known is not None else None
            for known in found.known
        )
        return graph_pb2.GetGraphChannelResponse(channel=_channel(found.channel), known_1=known_1, known_2=known_2)

    async def FindRoute(self, request: graph_pb2.FindRouteRequest, context: Any) -> graph_pb2.FindRouteResponse:
        return _routes(await self._node.graph.find_routes(_query(request)))

    async def ExportScores(
        self, request: graph_pb2.ExportScoresRequest, context: Any
    ) -> AsyncIterator[graph_pb2.ScoresPage]:
        channels, nodes = await self._node.graph.export_scores(request.include_private)
        for start in range(0, max(len(channels), len(nodes)), PAGE_SCORES):
            yield graph_pb2.ScoresPage(
                channels=[_channel_score(known) for known in channels[start : start + PAGE_SCORES]],
                nodes=[_node_score(known) for known in nodes[start : start + PAGE_SCORES]],
            )

    async def ImportScores(
        self, request_iterator: AsyncIterator[graph_pb2.ImportScoresRequest], context: Any
    ) -> graph_pb2.ImportScoresResponse:
        channels: list[ChannelKnowledge] = []
        nodes: list[NodeKnowledge] = []
        replace = False
        async for page in request_iterator:
            replace |= page.replace
            channels += (
                ChannelKnowledge(
                    score.short_channel_id,
                    score.lower_msat,
                    score.upper_msat,
                    score.capacity_msat,
                    score.learnt_seconds,
                )
                for score in page.channels
            )
            nodes += (
                NodeKnowledge(convert.node_id(score.node_id), score.nats, score.learnt_seconds) for score in page.nodes
            )
            if len(channels) + len(nodes) > MAX_IMPORTED:
                raise NodeError("invalid_argument", f"More than {MAX_IMPORTED:,} scores; nothing was imported.")
        num_channels, num_nodes = await self._node.graph.import_scores(channels, nodes, replace)
        return graph_pb2.ImportScoresResponse(num_channels=num_channels, num_nodes=num_nodes)

    async def ResetScores(self, request: graph_pb2.ResetScoresRequest, context: Any) -> graph_pb2.ResetScoresResponse:
        num_channels, num_nodes = await self._node.graph.reset_scores()
        return graph_pb2.ResetScoresResponse(num_channels=num_channels, num_nodes=num_nodes)


# The network


def _node(view: GraphNodeView) -> graph_pb2.GraphNode:
    return graph_pb2.GraphNode(**{name: getattr(view, name) for name in view.__struct_fields__})


def _channel(view: GraphChannelView) -> graph_pb2.GraphChannel:
    policy_1, policy_2 = (_policy(policy) if policy is not None else None for policy in view.policies)
    return graph_pb2.GraphChannel(
        short_channel_id=view.short_channel_id,
        node_id_1=view.node_id_1,
        node_id_2=view.node_id_2,
        capacity_sat=view.capacity_sat,
        policy_1=policy_1,
        policy_2=policy_2,
        is_own=view.is_own,
        spent_height=view.spent_height,
    )


def _policy(policy: Policy) -> graph_pb2.GraphPolicy:
    return graph_pb2.GraphPolicy(
        updated_seconds=policy.timestamp,
        usable=policy.usable,
        fee_base_msat=policy.fee_base_msat,
        fee_proportional_millionths=policy.fee_proportional_millionths,
        cltv_expiry_delta_blocks=policy.cltv_expiry_delta,
        htlc_minimum_msat=policy.htlc_minimum_msat,
        htlc_maximum_msat=policy.htlc_maximum_msat,
    )


# Ways


def _query(request: graph_pb2.FindRouteRequest) -> RouteQuery:
    def given(name: str) -> int | None:
        return getattr(request, name) if request.HasField(name) else None  # type: ignore[arg-type]

    return RouteQuery(
        destination=convert.node_id(request.destination) if request.destination else b"",
        amount_msat=request.amount_msat,
        bolt11=request.bolt11,
        source=convert.node_id(request.source) if request.source else b"",
        max_fee_msat=given("max_fee_msat"),
        max_cltv_blocks=given("max_cltv_blocks"),
        max_parts=request.max_parts or 1,
        final_cltv_expiry_delta=given("final_cltv_expiry_delta_blocks"),
        via_scids=frozenset(request.via_short_channel_ids),
        via_nodes=frozenset(map(convert.node_id, request.via_node_ids)),
        last_hop_nodes=frozenset(map(convert.node_id, request.last_hop_node_ids)),
        avoid_nodes=frozenset(map(convert.node_id, request.avoid_node_ids)),
        avoid_scids=frozenset(request.avoid_short_channel_ids),
    )


def _routes(view: RoutesView) -> graph_pb2.FindRouteResponse:
    return graph_pb2.FindRouteResponse(
        reason=view.reason,
        routes=[_route(route) for route in view.routes],
        amount_msat=view.amount_msat,
        total_fee_msat=view.total_fee_msat,
        probability=view.probability,
        cheaper=[_candidate(candidate) for candidate in view.cheaper],
        runners_up=[_candidate(candidate) for candidate in view.runners_up],
        why_split=view.why_split,
        source=view.source,
        destination=view.destination,
        nodes=[graph_pb2.NamedNode(node_id=node_id, alias=alias) for node_id, alias in sorted(view.aliases.items())],
        search_seconds=view.search_seconds,
    )


def _route(view: RouteView) -> graph_pb2.Route:
    route = view.route
    return graph_pb2.Route(
        hops=[_hop(hop) for hop in view.hops],
        total_amount_msat=route.total_amount_msat,
        total_fee_msat=route.total_fee_msat,
        total_cltv_blocks=route.total_cltv_blocks,
        probability=route.probability,
        cost_msat=route.cost_msat,
    )


def _candidate(view: CandidateView) -> graph_pb2.RouteCandidate:
    return graph_pb2.RouteCandidate(
        hops=[_hop(hop) for hop in view.hops],
        fee_msat=view.fee_msat,
        lock_blocks=view.lock_blocks,
        probability=view.probability,
        cost_msat=view.cost_msat,
        reason=view.reason,
    )


def _hop(view: RouteHopView) -> graph_pb2.RouteHop:
    same = {name: getattr(view, name) for name in view.__struct_fields__ if name != "key"}
    return graph_pb2.RouteHop(short_channel_id=view.short_channel_id, **same)


# What payments have taught


def _channel_score(known: ChannelKnowledge) -> graph_pb2.ChannelScore:
    return graph_pb2.ChannelScore(**{name: getattr(known, name) for name in known.__struct_fields__})


def _node_score(known: NodeKnowledge) -> graph_pb2.NodeScore:
    return graph_pb2.NodeScore(node_id=known.node_id, nats=known.nats, learnt_seconds=known.learnt_seconds)
