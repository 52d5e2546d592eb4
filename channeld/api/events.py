"""The service `Events`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from channeld.api import convert
from channeld.api.streams import until_set
from channeld.node.event_kinds import check_kinds
from channeld.node.interface import NodeService
from channeld.v1 import events_pb2, events_pb2_grpc


class EventsServicer(events_pb2_grpc.EventsServicer):
    """See proto/channeld/v1/events.proto. `stopping` is set when the streams are to end."""

    def __init__(self, node: NodeService, stopping: asyncio.Event) -> None:
        self._node = node
        self._stopping = stopping

    async def Subscribe(self, request: events_pb2.SubscribeRequest, context: Any) -> AsyncIterator[events_pb2.Event]:
        kinds = frozenset(request.kinds)
        check_kinds(request.kinds)
        prefixes = tuple(f"{kind}." for kind in kinds)
        since = request.since_sequence if request.HasField("since_sequence") else None

        async def listening() -> None:
            """The headers tell the client that it misses nothing from now on."""
            await context.send_initial_metadata(())

        async for event in until_set(self._node.events(since), self._stopping, listening):
            if not kinds or event.kind in kinds or event.kind.startswith(prefixes):
                yield convert.event(event)
