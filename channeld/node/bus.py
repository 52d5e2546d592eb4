"""What happened, for whoever wants to know: the API's event stream, logs, tests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import Any

import structlog

from channeld.node.event_kinds import EventKind
from channeld.node.interface import NodeEvent

log = structlog.get_logger("channeld.events")
KEPT_EVENTS = 10_000
_QUIET = ("payment.", "invoice.", "forward.", "chain.block")
"""Kinds of which there may be hundreds a second: the log has them only at level debug."""


class EventBus:
    """Numbered events; the last 10,000 are kept. Numbers grow across restarts, too: they begin at the time of the start
    in milliseconds. `counts` has how many there were of each kind."""

    def __init__(self) -> None:
        self._sequence = int(time.time() * 1000)
        self.counts: Counter[EventKind] = Counter()
        self._kept: deque[NodeEvent] = deque(maxlen=KEPT_EVENTS)
        self._wakeups: set[asyncio.Event] = set()
        self._closed = False

    @property
    def sequence(self) -> int:
        """The number of the last event."""
        return self._sequence

    def publish(self, kind: EventKind, sentence: str, **data: Any) -> None:
        """`data`: JSON-able values; ids as hex, amounts with their unit in the name."""
        self._sequence += 1
        self.counts[kind] += 1
        self._kept.append(NodeEvent(self._sequence, time.time(), kind, sentence, data))
        (log.debug if kind.startswith(_QUIET) else log.info)(kind, sentence=sentence, **data)
        for wakeup in self._wakeups:
            wakeup.set()

    async def stream(self, since_sequence: int | None = None) -> AsyncIterator[NodeEvent]:
        """Events after `since_sequence` (None: from now on), until the bus is closed. A reader that lags by more than
        what is kept misses the oldest."""
        last = self._sequence if since_sequence is None else since_sequence
        wakeup = asyncio.Event()
        self._wakeups.add(wakeup)
        try:
            while True:
                for event in self._after(last):
                    last = event.sequence
                    yield event
                if self._closed:
                    return
                await wakeup.wait()
                wakeup.clear()
        finally:
            self._wakeups.discard(wakeup)

    def _after(self, sequence: int) -> list[NodeEvent]:
        if not self._kept or self._kept[-1].sequence <= sequence:
            return []
        first = self._kept[0].sequence
        skip = max(0, sequence + 1 - first)
        return [self._kept[index] for index in range(skip, len(self._kept))]

    def close(self) -> None:
        """Streams end after what was published."""
        self._closed = True
        for wakeup in self._wakeups:
            wakeup.set()
