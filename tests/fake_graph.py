"""The node's real graph verbs over a small network in memory:

        1 (bob) ---- 3 (dave)
      /            /          \\
    0 (us)    ____/            4 (erin)
      \\      /
        2 (carol)          our channel with carol is not announced
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path

from channeld.gossip.service import GossipStatus
from channeld.gossip.view import NetworkView
from channeld.node.gossip import GraphFeed
from channeld.node.graph import GraphVerbs
from channeld.routing.graph import Graph
from channeld.routing.scoring import Scorer
from channeld.routing.values import LocalChannel
from tests.gossip_support import (
    NOW,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    scid_of,
)
from wallet.bitcoin.address import REGTEST

OWN, BOB, CAROL, DAVE, ERIN = range(5)
OWN_BOB, BOB_DAVE, CAROL_DAVE, DAVE_ERIN = (scid_of(block) for block in (100, 101, 102, 103))
PRIVATE = scid_of(16_000_000)
NAMES = ("us", "bob", "carol", "dave", "erin")


class FakeNetwork:
    """A view, and the graph that follows it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._feed = GraphFeed()
        self.view: NetworkView = new_view(Path(self._folder.name) / "gossip", self._feed)
        self.view.store.flush()

    @property
    def graph(self) -> Graph:
        return self._feed.graph

    def status(self) -> GossipStatus:
        topology = self.view.topology
        return GossipStatus(len(topology), len(topology.node_index), True, 0, 0, self.view.store.size)

    def add(self, scid: int, first: int, second: int, base: int = 1000, ppm: int = 100, cltv: int = 40) -> None:
        """A channel with both updates."""
        self.view.add_channel(make_announcement(scid, first, second), funding_of(scid), NOW)
        for ends in ((first, second), (second, first)):
            self.view.set_update(make_update(scid, *ends, base=base, ppm=ppm, cltv=cltv))

    def close(self) -> None:
        self.view.store.close()
        self._folder.cleanup()


class FakeWays:
    """Our channels, and what was learnt."""

    def __init__(self) -> None:
        self.channels: tuple[LocalChannel, ...] = (
            LocalChannel(OWN_BOB, node_id_of(BOB), 400_000_000),
            LocalChannel(PRIVATE, node_id_of(CAROL), 300_000_000),
        )

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer()

    def local_channels(self) -> tuple[LocalChannel, ...]:
        return self.channels


class FakeGraph(GraphVerbs):
    """See the module. `saved` is what was made durable last."""

    def __init__(self) -> None:
        self.network = FakeNetwork()
        self.ways = FakeWays()
        self.saved = b""
        super().__init__(node_id_of(OWN), REGTEST, self.network, self.ways, self.save, lambda: 800, lambda: float(NOW))
        self.network.add(OWN_BOB, OWN, BOB)
        self.network.add(BOB_DAVE, BOB, DAVE, base=5_000, ppm=300)
        self.network.add(CAROL_DAVE, CAROL, DAVE, ppm=50, cltv=144)
        self.network.add(DAVE_ERIN, DAVE, ERIN)
        for number, name in enumerate(NAMES):
            self.network.view.set_node(make_node(number, alias=name.encode()))

    async def save(self, scores: bytes) -> None:
        self.saved = scores
