"""The client's figures as Prometheus metrics: for every tower and channel, how far the tower is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from watchtower.client.values import TowerStatus


class TowersCollector(Collector):
    """`statuses` gives those of all towers, `name` a channel's label."""

    def __init__(
        self,
        statuses: Callable[[], list[TowerStatus]],
        name: Callable[[bytes], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._statuses = statuses
        self._name = name
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        up = GaugeMetricFamily("channeld_tower_up", "Whether the last call to the tower went well", labels=["tower"])
        sent = CounterMetricFamily("channeld_tower_sent", "Appointments sent since the start", labels=["tower"])
        labels = ["tower", "channel"]
        newest = GaugeMetricFamily("channeld_tower_revoked", "Revoked commitments of the channel", labels=labels)
        backed_up = GaugeMetricFamily("channeld_tower_backed_up", "Those that the tower has", labels=labels)
        behind = GaugeMetricFamily("channeld_tower_behind_seconds", "For how long the tower lacks some", labels=labels)
        age = GaugeMetricFamily(
            "channeld_tower_confirmed_age_seconds", "Seconds since the tower confirmed the last one", labels=labels
        )
        for status in self._statuses():
            tower = status.tower.uri.tower_id.hex()
            up.add_metric([tower], float(status.reachable))
            sent.add_metric([tower], status.sent)
            for channel in status.channels:
                names = [tower, self._name(channel.channel)]
                newest.add_metric(names, channel.newest)
                backed_up.add_metric(names, channel.backed_up)
                behind.add_metric(names, channel.behind_seconds)
                if channel.acknowledged_seconds:
                    age.add_metric(names, self._clock() - channel.acknowledged_seconds)
        yield from (up, sent, newest, backed_up, behind, age)
