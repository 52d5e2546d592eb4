"""Verbs that change something run to their end, also when the client that asked for them goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from channeld.node.interface import NodeError

T = TypeVar("T")

_log = structlog.get_logger("channeld.api")


class Background:
    """The tasks of verbs that are under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, verb: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts `verb`; nobody has to wait for it."""
        task = asyncio.create_task(verb)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, verb: Coroutine[Any, Any, T]) -> T:
        """What `verb` returns or raises. Cancelling the wait does not cancel the verb."""
        task = self.start(verb)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_outcome)
            raise

    async def stop(self) -> None:
        """Cancels what is still under way; what a verb has made durable stays so."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_outcome(task: asyncio.Task[Any]) -> None:
    """The client went away: the log is the only one left to tell."""
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, NodeError):
        _log.info("abandoned_call_failed", reason=error.sentence)
    elif error is not None:
        _log.error("abandoned_call_failed", exc_info=error)
