"""The tower's figures: for the operator's calls and as Prometheus metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct
from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from watchtower.rpc import metrics
from watchtower.tower import breach as breaches
from watchtower.tower.breach import Breach
from watchtower.tower.intake import Intake
from watchtower.tower.sessions import Sessions
from watchtower.tower.watcher import Watcher


class Figures(Struct, frozen=True):
    """At one moment. Counters of what was refused or sent are since the start, all others are of all time."""

    sessions: int
    appointments: int
    blob_bytes: int
    database_bytes: int
    appointments_accepted: int
    appointments_refused: int
    block_height: int
    block_searched_seconds: float
    block_time_seconds: float
    synced: bool
    breaches_open: int
    breaches_total: int
    justice_sent: int
    justice_confirmed: int
    justice_refused: int
    outputs_lost: int
    saved_sat: int
    lost_sat: int
    undecipherable: int
    index_bytes: int


class StatusBoard:
    """Puts the figures together. `database` is the SQLite file, if there is one."""

    def __init__(
        self,
        sessions: Sessions,
        intake: Intake,
        watcher: Watcher,
        database: Path | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = sessions
        self._intake = intake
        self._watcher = watcher
        self._database = database
        self.clock = clock
        self.started_seconds = clock()

    def figures(self) -> Figures:
        """Now."""
        watcher = self._watcher
        known = list(watcher.breaches.values())
        targets = [target for breach in known for target in breaches.targets(breach)]
        lost = [target.penalty.amount_sat for target in targets if target.state == "lost"]
        return Figures(
            len(self._sessions),
            self._sessions.total_appointments,
            self._sessions.total_bytes,
            self._database_bytes(),
            self._intake.accepted,
            self._intake.refused,
            watcher.height,
            watcher.block_searched_seconds,
            watcher.block_time_seconds,
            watcher.synced,
            len(watcher.open_breaches),
            len(known),
            sum(len(breach.attempts) for breach in known),
            sum(map(_confirmed, known)),
            watcher.publisher.refused,
            len(lost),
            sum(target.penalty.amount_sat for target in targets if target.state == "saved"),
            sum(lost),
            watcher.undecipherable,
            watcher.index.memory_bytes,
        )

    def _database_bytes(self) -> int:
        if self._database is None:
            return 0
        files = (self._database, Path(f"{self._database}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())


def _confirmed(breach: Breach) -> int:
    return sum(breaches.confirmed_height(breach, attempt.txid) is not None for attempt in breach.attempts)


class MetricsCollector(Collector):
    """Prometheus metrics, named `watchtower_...`."""

    def __init__(self, board: StatusBoard) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        now, figures = self._board.clock(), self._board.figures()
        age = now - figures.block_searched_seconds if figures.block_searched_seconds else float("nan")
        gauges = {
            "sessions": ("Sessions", figures.sessions),
            "appointments": ("Appointments stored", figures.appointments),
            "blob_bytes": ("Bytes of all blobs", figures.blob_bytes),
            "database_bytes": ("Bytes of the database's files", figures.database_bytes),
            "index_bytes": ("Bytes of the locators in memory", figures.index_bytes),
            "block_height": ("Height of the last block that was searched", figures.block_height),
            "block_age_seconds": ("Seconds since a block was searched", age),
            "synced": ("Whether every block of layer 1 was searched", int(figures.synced)),
            "breaches_open": ("Breaches that are not irrevocably over", figures.breaches_open),
        }
        yield from metrics.gauges("watchtower", gauges)
        counters = {
            "appointments_accepted": ("Appointments accepted since the start", figures.appointments_accepted),
            "appointments_refused": ("Appointments refused since the start", figures.appointments_refused),
            "breaches": ("Breaches seen", figures.breaches_total),
            "justice_sent": ("Justice transactions sent", figures.justice_sent),
            "justice_confirmed": ("Justice transactions mined", figures.justice_confirmed),
            "justice_refused": ("Justice transactions that layer 1 refused, since the start", figures.justice_refused),
            "outputs_lost": ("Outputs that the cheater got", figures.outputs_lost),
            "saved_sat": ("Satoshi taken back", figures.saved_sat),
            "lost_sat": ("Satoshi that the cheater got", figures.lost_sat),
            "undecipherable": ("Locators that matched, with a blob of no use, since the start", figures.undecipherable),
        }
        yield from metrics.counters("watchtower", counters)


def make_registry(board: StatusBoard) -> CollectorRegistry:
    """A registry with the tower's metrics alone."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(board))
    return registry
