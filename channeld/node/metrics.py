"""The node's figures as Prometheus metrics, named `channeld_...`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from channeld.node.event_kinds import EVENT_KINDS
from channeld.node.interface import BalanceView, ChannelView, NodeInfo
from channeld.node.node import Node
from channeld.storage import Store
from watchtower.client.metrics import TowersCollector
from watchtower.rpc.metrics import counters, gauges

SERIOUS_EVENTS = tuple(kind for kind, about in EVENT_KINDS.items() if about.severity != "info")
"""Kinds that are counted from 0 on: Prometheus' `increase` does not see a counter that begins with 1."""
LAG_SECONDS = 1.0
LAGS_KEPT = 60


class LoopLag:
    """How late the event loop calls what is due: the first sign of a node that has too much to do."""

    def __init__(self, interval_seconds: float = LAG_SECONDS) -> None:
        self._interval = interval_seconds
        self._lags: deque[float] = deque([0.0], maxlen=LAGS_KEPT)

    @property
    def last_seconds(self) -> float:
        """Measured last."""
        return self._lags[-1]

    @property
    def worst_seconds(self) -> float:
        """Of the last minute."""
        return max(self._lags)

    async def run(self) -> None:
        """Measures for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._interval
            await asyncio.sleep(self._interval)
            self._lags.append(max(0.0, loop.time() - due))


class NodeCollector(Collector):
    """`refresh` looks; `collect` tells what was seen."""

    def __init__(self, node: Node, store: Store, lag: LoopLag, clock: Callable[[], float] = time.time) -> None:
        self._node = node
        self._store = store
        self._lag = lag
        self._clock = clock
        self._info: NodeInfo | None = None
        self._balance: BalanceView | None = None
        self._channels: list[ChannelView] = []

    async def refresh(self) -> None:
        """Called before `collect`."""
        self._info = await self._node.info()
        self._balance = await self._node.balance()
        self._channels = await self._node.list_channels()

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        if self._info is None or self._balance is None:
            return
        yield from gauges("channeld", self._of_node(self._info))
        yield from gauges("channeld", self._of_money(self._balance))
        yield from self._of_channels()
        yield from self._of_work()

    def _of_node(self, info: NodeInfo) -> dict[str, tuple[str, float]]:
        runtime = self._node.runtime
        gossip = runtime.gossip.core.status()
        return {
            "block_height": ("Height of the last block that was processed", info.block_height),
            "synced": ("Whether every block of layer 1 was processed", info.synced_to_chain),
            "peers": ("Connected peers", info.num_peers),
            "uptime_seconds": ("Seconds since the start", self._clock() - runtime.started),
            "loop_lag_seconds": ("How late the event loop was, measured last", self._lag.last_seconds),
            "loop_lag_worst_seconds": ("The same, the worst of the last minute", self._lag.worst_seconds),
            "graph_channels": ("Channels of the public network that are known", gossip.channels),
            "graph_nodes": ("Nodes of the public network that are known", gossip.nodes),
        }

    @staticmethod
    def _of_money(balance: BalanceView) -> dict[str, tuple[str, float]]:
        return {
            "wallet_confirmed_sat": ("Confirmed coins on chain", balance.confirmed_sat),
            "wallet_unconfirmed_sat": ("Unconfirmed coins on chain", balance.unconfirmed_sat),
            "wallet_reserved_sat": ("Coins that are reserved for transactions under way", balance.reserved_sat),
            "channels_local_msat": ("Our balance in open channels", balance.channels_local_msat),
            "channels_remote_msat": ("The peers' balance in open channels", balance.channels_remote_msat),
            "htlcs_msat": ("Amounts of HTLCs under way", balance.pending_htlcs_msat),
            "closing_sat": ("What closed channels still owe us", balance.closing_sat),
        }

    def _of_channels(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("channeld_channels", "Channels by their status", labels=["status"])
        for status, number in sorted(Counter(channel.status for channel in self._channels).items()):
            states.add_metric([status], number)
        yield states
        yield GaugeMetricFamily("channeld_htlcs", "HTLCs under way", value=sum(len(c.htlcs) for c in self._channels))

    def _of_work(self) -> Iterator[Metric]:
        counts, written = self._node.runtime.bus.counts, self._store.figures
        events = CounterMetricFamily("channeld_events", "What happened since the start, by kind", labels=["kind"])
        for kind, number in sorted({**dict.fromkeys(SERIOUS_EVENTS, 0), **counts}.items()):
            events.add_metric([kind], number)
        yield events
        yield from counters(
            "channeld",
            {
                "payments_succeeded": ("Payments that succeeded since the start", counts["payment.succeeded"]),
                "payments_failed": ("Payments that failed since the start", counts["payment.failed"]),
                "invoices_paid": ("Invoices that were paid since the start", counts["invoice.settled"]),
                "forwards_settled": ("Forwarded HTLCs that were settled since the start", counts["forward.settled"]),
                "database_commits": ("Database transactions since the start", written.transactions),
                "database_jobs": ("What was committed in them: many share one under load", written.jobs),
            },
        )


def make_registry(node: Node, collector: NodeCollector) -> CollectorRegistry:
    """The node's, its towers', and what the system says of the process."""
    registry = CollectorRegistry()
    registry.register(collector)
    towers = node.runtime.towers
    registry.register(TowersCollector(lambda: towers.all.statuses(), lambda name: towers.channel_id(name).hex()))
    ProcessCollector(namespace="channeld", registry=registry)
    return registry
