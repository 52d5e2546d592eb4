"""Streams that end when the daemon does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from channeld.node.interface import NodeError

T = TypeVar("T")


async def until_set(
    values: AsyncIterator[T], stopping: asyncio.Event, listening: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[T]:
    """What `values` gives, until `stopping` is set; then `values` is closed. `listening` is called as soon as nothing
    that `values` gives can be missed any more."""
    source = aiter(values)
    following = asyncio.ensure_future(_next(source))
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        if listening is not None:
            await asyncio.sleep(0)
            await listening()
        while True:
            await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
            value = following.result() if following.done() else None
            if value is None:
                return
            following = asyncio.ensure_future(_next(source))
            yield value
    finally:
        await _cancel(stopped)
        await _cancel(following)
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def _cancel(future: asyncio.Future[Any]) -> None:
    future.cancel()
    with contextlib.suppress(asyncio.CancelledError, NodeError):
        await future


async def _next(source: AsyncIterator[T]) -> T | None:
    """The next value; None at the end (a task cannot raise `StopAsyncIteration` usefully)."""
    return await anext(source, None)
