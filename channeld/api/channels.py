"""The service `Channels`."""

from __future__ import annotations

from typing import Any

from channeld.api import convert
from channeld.api.background import Background
from channeld.node.interface import NodeError, NodeService
from channeld.v1 import channels_pb2, channels_pb2_grpc


class ChannelsServicer(channels_pb2_grpc.ChannelsServicer):
    """See proto/channeld/v1/channels.proto."""

    def __init__(self, node: NodeService, background: Background) -> None:
        self._node = node
        self._background = background

    async def Open(self, request: channels_pb2.OpenChannelRequest, context: Any) -> channels_pb2.OpenChannelResponse:
        amount_sat = convert.amount_sat(request.amount_sat, "The channel's amount")
        if request.push_msat > amount_sat * 1000:
            raise NodeError(
                "invalid_argument",
                f"{request.push_msat:,} msat cannot be pushed: the whole channel has {amount_sat:,} sat.",
            )
        view = await self._background.run(
            self._node.open_channel(
                convert.node_id(request.node_id),
                amount_sat,
                push_msat=request.push_msat,
                announce=not request.private,
                zero_conf=request.zero_conf,
                feerate_per_kw=convert.optional_feerate_per_kw(request),
                close_to_address=request.close_to_address,
                idempotency_key=convert.idempotency_key(request.idempotency_key),
            )
        )
        return channels_pb2.OpenChannelResponse(channel=convert.channel(view))

    async def List(self, request: channels_pb2.ListChannelsRequest, context: Any) -> channels_pb2.ListChannelsResponse:
        views = await self._node.list_channels(request.include_closed)
        return channels_pb2.ListChannelsResponse(channels=[convert.channel(view) for view in views])

    async def Get(self, request: channels_pb2.GetChannelRequest, context: Any) -> channels_pb2.GetChannelResponse:
        view = await self._node.get_channel(convert.hash32(request.channel_id, "a channel id"))
        return channels_pb2.GetChannelResponse(channel=convert.channel(view))

    async def Close(self, request: channels_pb2.CloseChannelRequest, context: Any) -> channels_pb2.CloseChannelResponse:
        if request.force and (request.address or request.HasField("feerate_per_kw")):
            raise NodeError(
                "invalid_argument",
                "A forced close broadcasts the commitment transaction as it is: it takes no address and no feerate.",
            )
        view = await self._background.run(
            self._node.close_channel(
                convert.hash32(request.channel_id, "a channel id"),
                force=request.force,
                address=request.address,
                feerate_per_kw=convert.optional_feerate_per_kw(request),
                idempotency_key=convert.idempotency_key(request.idempotency_key),
                even_if_outdated=request.even_if_outdated,
            )
        )
        return channels_pb2.CloseChannelResponse(channel=convert.channel(view))

    async def GetClosing(
        self, request: channels_pb2.GetClosingRequest, context: Any
    ) -> channels_pb2.GetClosingResponse:
        view = await self._node.closed_channel(convert.hash32(request.channel_id, "a channel id"))
        return convert.closing(view)

    async def SetPolicy(self, request: channels_pb2.SetPolicyRequest, context: Any) -> channels_pb2.SetPolicyResponse:
        def given(name: str) -> int | None:
            return getattr(request, name) if request.HasField(name) else None  # type: ignore[arg-type]

        channel_id = convert.hash32(request.channel_id, "a channel id") if request.HasField("channel_id") else None
        policies = await self._node.set_policy(
            channel_id,
            given("fee_base_msat"),
            given("fee_proportional_millionths"),
            given("cltv_expiry_delta_blocks"),
            given("htlc_minimum_msat"),
            given("htlc_maximum_msat"),
        )
        return channels_pb2.SetPolicyResponse(policies=[convert.policy(view) for view in policies])

    async def ListForwards(
        self, request: channels_pb2.ListForwardsRequest, context: Any
    ) -> channels_pb2.ListForwardsResponse:
        limit, offset = convert.page(request)
        views = await self._node.list_forwards(limit, offset)
        return channels_pb2.ListForwardsResponse(forwards=[convert.forward(view) for view in views])
