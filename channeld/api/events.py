"""The service `Events`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from channeld.api import convert
from channeld.node.interface import NodeError, NodeService
from channeld.v1 import events_pb2, events_pb2_grpc


class EventsServicer(events_pb2_grpc.EventsServicer):
    """See proto/channeld/v1/events.proto. `stopping` is set when the streams are to end."""

    def __init__(self, node: NodeService, stopping: asyncio.Event) -> None:
        self._node = node
        self._stopping = stopping

    async def Subscribe(self, request: events_pb2.SubscribeRequest, context: Any) -> AsyncIterator[events_pb2.Event]:
        kinds = frozenset(request.kinds)
        prefixes = tuple(f"{kind}." for kind in kinds)
        events = aiter(self._node.events(request.since_sequence if request.HasField("since_sequence") else None))
        following = asyncio.ensure_future(_next(events))
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            # The node is listened to from here on, and the headers tell the client so: it misses nothing from now.
            await asyncio.sleep(0)
            await context.send_initial_metadata(())
            while True:
                await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
                event = following.result() if following.done() else None
                if event is None:
                    return
                following = asyncio.ensure_future(_next(events))
                if not kinds or event.kind in kinds or event.kind.startswith(prefixes):
                    yield convert.event(event)
        finally:
            await _cancel(stopped)
            await _cancel(following)
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()


async def _cancel(future: asyncio.Future[Any]) -> None:
    future.cancel()
    with contextlib.suppress(asyncio.CancelledError, NodeError):
        await future


async def _next(events: AsyncIterator[Any]) -> Any:
    """The next event; None at the end (a task cannot raise `StopAsyncIteration` usefully)."""
    return await anext(events, None)
