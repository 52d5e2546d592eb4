"""What the operator must hear of: kept in the database, written to the log, streamed to whoever listens."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from msgspec import Struct
from sqlalchemy import Connection, select

from wallet.db import Write
from watchtower.tower import tables

KEPT = 10_000
IN_MEMORY = 1_000
_TRIM_EVERY = 100
_WARNINGS = (
    "output.lost",
    "justice.refused",
    "justice.failed",
    "breach.seen",
    "breach.undecipherable",
    "breach.unusable",
    "chain.lost",
)

_log = structlog.get_logger(__name__)


class Alert(Struct, frozen=True):
    """`data` has ids in hex as people read them, amounts with their unit in the name."""

    sequence: int
    time_seconds: float
    kind: str
    sentence: str
    data: dict[str, Any]


def read_alerts(connection: Connection) -> list[Alert]:
    """The last ones, oldest first."""
    query = select(tables.alerts).order_by(tables.alerts.c.sequence.desc()).limit(IN_MEMORY)
    rows = list(connection.execute(query))[::-1]
    return [Alert(r.sequence, r.milliseconds / 1000, r.kind, r.sentence, json.loads(r.data)) for r in rows]


class Alerts:
    """`make` gives rows to commit with what the alert is about; `publish` tells, after the commit."""

    def __init__(self, known: list[Alert], clock: Callable[[], float] = time.time) -> None:
        self._known: deque[Alert] = deque(known, IN_MEMORY)
        self._next = known[-1].sequence + 1 if known else 1
        self._clock = clock
        self._queues: set[asyncio.Queue[Alert]] = set()

    def make(self, kind: str, sentence: str, **data: Any) -> Alert:
        """A new alert."""
        alert = Alert(self._next, self._clock(), kind, sentence, data)
        self._next += 1
        return alert

    def writes(self, alerts: list[Alert]) -> list[Write]:
        """Rows to commit."""
        rows = [
            tables.INSERT_ALERT(a.sequence, int(a.time_seconds * 1000), a.kind, a.sentence, json.dumps(a.data))
            for a in alerts
        ]
        if any(alert.sequence % _TRIM_EVERY == 0 for alert in alerts):
            rows.append(tables.DELETE_ALERTS_BELOW(self._next - KEPT))
        return rows

    def publish(self, alerts: list[Alert]) -> None:
        """Tell of them."""
        for alert in alerts:
            self._known.append(alert)
            log = _log.warning if alert.kind in _WARNINGS else _log.info
            log(alert.kind, sentence=alert.sentence, **alert.data)
            for queue in self._queues:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(alert)

    async def follow(self, since: int | None) -> AsyncIterator[Alert]:
        """Those after number `since` (None: from now on), for ever. A reader that is too slow misses some, which the
        numbers show."""
        queue: asyncio.Queue[Alert] = asyncio.Queue(IN_MEMORY)
        self._queues.add(queue)
        try:
            if since is not None:
                for alert in [alert for alert in self._known if alert.sequence > since]:
                    yield alert
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
