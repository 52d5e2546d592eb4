"""What payments have taught about the liquidity of channels, and what follows for the next one.

For a channel we know bounds on what direction 0 can send; direction 1 can send the rest of the capacity. An HTLC that
passed raises the lower bound, one that failed lowers the upper; both fade towards ignorance with a half-life. Between
the bounds the balance is taken as uniform (Pickhardt and others, "Security and Privacy of Lightning Network Payments
with Uncertain Channel Balances") or as bimodal: near one end or the other.

Knowledge counts HTLCs of ours that are in flight: callers add them to the amounts. Time is an argument, in seconds.
Amounts in msat. Not thread-safe: search in another thread on a `copy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from channeld.routing.graph import Floats, Graph, Indices, Topology
from channeld.routing.knowledge import ChannelKnowledge, NodeKnowledge
from channeld.routing.values import EdgeKey, Hop, Route

_VERSION = 1
_FIRST_SCID = 1 << 40
"""No channel is funded in block 0: lesser ids are indices of blinded paths, of which nothing lasting can be learnt."""
_FIRST_CAPACITY = 64
_FORGOTTEN_HALF_LIVES = 12
"""After so many half-lives less than a four-thousandth of what was learnt is left: it is dropped."""


class ScorerConfig(Struct, frozen=True):
    """How knowledge is used.

    `liquidity_half_life_seconds`, `node_half_life_seconds`: after which half of what was learnt is forgotten.
    `node_failure_nats`: how improbable a hop becomes right after its node failed. `bimodal_scale_msat`: how far from
    its ends a bimodal channel's balance typically is.
    """

    liquidity_half_life_seconds: float = 6 * 3600.0
    node_half_life_seconds: float = 3600.0
    node_failure_nats: float = 3.0
    distribution: Literal["uniform", "bimodal"] = "uniform"
    bimodal_scale_msat: float = 3e8


class _Export(Struct, frozen=True, array_like=True):
    version: int
    channels: tuple[ChannelKnowledge, ...]
    nodes: tuple[NodeKnowledge, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a balance is spread between its bounds."""

    bimodal_scale_msat: float | None = None

    def nats(self, lower: Any, upper: Any, used: Any, amount: Any, capacity: Any) -> Any:
        """-ln P(balance >= used + amount | lower <= balance <= upper, balance >= used); infinite if impossible.

        Bounds inclusive, in msat. All are arrays (the amount may be one number) or all floats: the same to the bit.
        """
        if not isinstance(lower, np.ndarray):
            return self._nats_of_one(lower, upper, used, amount, capacity)
        floor = np.maximum(lower, used)
        need = np.maximum(used + amount, floor)
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = np.log(self._odds(floor, need, upper, capacity))
        nats[need <= floor] = 0.0
        nats[need > upper] = np.inf
        return nats

    def _nats_of_one(self, lower: float, upper: float, used: float, amount: float, capacity: float) -> float:
        floor = max(lower, used)
        need = max(used + amount, floor)
        if need > upper:
            return math.inf
        if need <= floor:
            return 0.0
        if self.bimodal_scale_msat is not None:
            return float(self.nats(*(np.array([each]) for each in (lower, upper, used, amount, capacity)))[0])
        return float(np.log(self._odds(floor, need, upper, capacity)))  # that of `math` may differ in the last bit

    def _odds(self, floor: Any, need: Any, upper: Any, capacity: Any) -> Any:
        """1 / P for a balance between `floor` and `upper`."""
        if self.bimodal_scale_msat is None:
            return (upper - floor + 1) / (upper - need + 1)
        top = self._mass(upper + 1, capacity)
        return (top - self._mass(floor, capacity)) / (top - self._mass(need, capacity))

    def _mass(self, amount: Floats, capacity: Floats) -> Floats:
        """Integral from 0 of exp(-x / scale) + exp((x - capacity) / scale), over scale."""
        scale = self.bimodal_scale_msat or 1.0
        rising: Floats = np.exp((np.minimum(amount, capacity + 1) - capacity) / scale) - np.exp(-capacity / scale)
        # A bimodal prior alone calls the middle of a large channel impossible; a thousandth of uniform keeps it finite.
        return 1 - np.exp(-amount / scale) + rising + 1e-3 * amount / (capacity + 1)


@dataclass(frozen=True, slots=True)
class Liquidity:
    """The knowledge at one moment, by edge: inclusive bounds in msat, and nats to add (None for none)."""

    lower: Floats
    upper: Floats
    capacity: Floats
    extra_nats: Floats | None
    distribution: Distribution


class Scorer:
    """Learns and answers; see the module."""

    def __init__(self, config: ScorerConfig | None = None) -> None:
        self.config = config or ScorerConfig()
        self._row_of: dict[int, int] = {}
        self._rows: Floats = np.zeros((_FIRST_CAPACITY, 4))  # lower, upper, capacity (msat), learnt (seconds)
        self._scids: list[int] = []
        self._nodes: dict[bytes, tuple[float, float]] = {}
        self._places: tuple[int, Indices, Indices] | None = None

    @property
    def distribution(self) -> Distribution:
        """How balances are taken to be spread."""
        return Distribution(self.config.bimodal_scale_msat if self.config.distribution == "bimodal" else None)

    def __len__(self) -> int:
        return len(self._scids)

    def copy(self) -> Scorer:
        """An independent scorer with the same knowledge."""
        other = Scorer(self.config)
        other._row_of, other._rows, other._scids = dict(self._row_of), self._rows.copy(), list(self._scids)
        other._nodes = dict(self._nodes)
        return other

    # learning

    def passed(self, graph: Graph, key: EdgeKey, amount_msat: int, now_seconds: float) -> None:
        """An HTLC went through this direction and came back: it can send at least `amount_msat`."""
        self._learn(graph, key, amount_msat, now_seconds, passed=True)

    def stuck(self, graph: Graph, key: EdgeKey, amount_msat: int, now_seconds: float) -> None:
        """This direction did not pass `amount_msat`."""
        self._learn(graph, key, amount_msat, now_seconds, passed=False)

    def route_failed(
        self,
        graph: Graph,
        route: Route,
        failing_hop: int,
        now_seconds: float,
        in_flight: Mapping[EdgeKey, int] | None = None,
    ) -> None:
        """The channel of hop `failing_hop` (0 is the first) did not pass a payment; those before it did.

        With `failing_hop == len(route.hops)` all passed, and the destination refused: a probe that arrived.
        `in_flight`: our other HTLCs at the time, msat.
        """
        self.route_passed(graph, route, failing_hop, now_seconds, in_flight)
        for hop in _true_hops(graph, route, failing_hop, failing_hop + 1):
            self._learn(graph, hop.key, _beside(hop, in_flight), now_seconds, passed=False)

    def route_passed(
        self,
        graph: Graph,
        route: Route,
        hops: int,
        now_seconds: float,
        in_flight: Mapping[EdgeKey, int] | None = None,
    ) -> None:
        """So many hops, from the first on, passed a payment that came back."""
        for hop in _true_hops(graph, route, 0, hops):
            self._learn(graph, hop.key, _beside(hop, in_flight), now_seconds, passed=True)

    def route_succeeded(self, graph: Graph, route: Route, now_seconds: float) -> None:
        """A payment was settled: every channel had the amount, and it is at the other side now."""
        for hop in _true_hops(graph, route, 0, len(route.hops)):
            self._learn(graph, hop.key, hop.amount_msat, now_seconds, passed=True)
            if (row := self._row_of.get(hop.short_channel_id)) is not None:
                moved = hop.amount_msat if hop.direction else -hop.amount_msat
                bounds = self._rows[row, :2] + moved
                self._rows[row, :2] = np.clip(bounds, 0, self._rows[row, 2])

    def node_failed(self, node_id: bytes, now_seconds: float) -> None:
        """A node answered with a failure of its own, or not at all: avoid it for a while."""
        nats = self._node_nats(node_id, now_seconds)
        self._nodes[node_id] = min(nats + self.config.node_failure_nats, 4 * self.config.node_failure_nats), now_seconds

    # answering

    def bounds(self, graph: Graph, key: EdgeKey, now_seconds: float) -> tuple[int, int] | None:
        """The least and the most (msat) that a direction can send as far as we know; None if nothing was learnt."""
        row = self._row_of.get(key.short_channel_id)
        if row is None:
            return None
        lower, upper, capacity = (float(column[0]) for column in self._faded(self._rows[row : row + 1], now_seconds))
        return (int(capacity - upper), int(capacity - lower)) if key.direction else (int(lower), int(upper))

    def extra_bounds(self, key: EdgeKey, assumed_msat: int, now_seconds: float) -> tuple[int, int]:
        """Bounds of a direction that is not in the graph: as assumed, unless it failed."""
        row = self._row_of.get(key.short_channel_id)
        if row is None:
            return assumed_msat, assumed_msat
        lower, upper, capacity = (float(column[0]) for column in self._faded(self._rows[row : row + 1], now_seconds))
        if key.direction:
            lower, upper = capacity - upper, capacity - lower
        return (assumed_msat, assumed_msat) if upper >= capacity else (int(lower), int(upper))

    def liquidity(self, graph: Graph, topology: Topology, now_seconds: float) -> Liquidity:
        """All edges' bounds at a moment."""
        edges = topology.edges
        capacity = edges.capacity_msat
        if (unknown := capacity == 0).any():
            either = np.maximum(edges.htlc_maximum_msat, edges.htlc_maximum_msat.reshape(-1, 2)[:, ::-1].reshape(-1))
            capacity = np.where(unknown, either.astype(np.float64), capacity)
        lower, upper = np.zeros(len(capacity)), capacity.copy()
        rows, slots = self._known(graph, topology)
        if len(rows):
            low, high, whole = self._faded(self._rows[rows], now_seconds)
            forth, back = 2 * slots, 2 * slots + 1
            lower[forth], upper[forth] = low, high
            lower[back], upper[back] = whole - high, whole - low
        return Liquidity(lower, upper, capacity, self._extra_nats(graph, topology, now_seconds), self.distribution)

    # keeping

    def knowledge(self) -> tuple[list[ChannelKnowledge], list[NodeKnowledge]]:
        """Everything learnt, as values."""
        channels = [
            ChannelKnowledge(scid, int(row[0]), int(row[1]), int(row[2]), row[3])
            for scid, row in zip(self._scids, self._rows.tolist(), strict=False)
        ]
        return channels, [NodeKnowledge(node_id, *known) for node_id, known in self._nodes.items()]

    def merge(self, channels: Iterable[ChannelKnowledge], nodes: Iterable[NodeKnowledge]) -> tuple[int, int]:
        """Takes over what is newer than what is known; how many channels and nodes that were.

        Raises ValueError for what cannot be; nothing is taken over then.
        """
        channels, nodes = list(channels), list(nodes)
        for bounds in channels:
            bounds.check()
        for failure in nodes:
            failure.check()
        taken_channels = taken_nodes = 0
        for channel in channels:
            row = self._row_of.get(channel.short_channel_id)
            if row is None or self._rows[row, 3] < channel.learnt_seconds:
                self._put(channel)
                taken_channels += 1
        for node in nodes:
            if self._nodes.get(node.node_id, (0.0, float("-inf")))[1] < node.learnt_seconds:
                self._nodes[node.node_id] = node.nats, node.learnt_seconds
                taken_nodes += 1
        return taken_channels, taken_nodes

    def export(self) -> bytes:
        """Everything learnt, as MessagePack."""
        channels, nodes = self.knowledge()
        return msgspec.msgpack.encode(_Export(_VERSION, tuple(channels), tuple(nodes)))

    def import_(self, data: bytes) -> int:
        """Merges what was exported, the newer knowledge wins; how many channels were taken over.

        Raises ValueError for other bytes.
        """
        try:
            exported = msgspec.msgpack.decode(data, type=_Export)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not an export of scores: {error}") from error
        if exported.version != _VERSION:
            raise ValueError(f"scores of version {exported.version} cannot be read, only {_VERSION}")
        return self.merge(exported.channels, exported.nodes)[0]

    def reset(self, short_channel_ids: Iterable[int] | None = None) -> None:
        """Forgets some channels, or everything."""
        self._places = None
        if short_channel_ids is None:
            self._row_of, self._scids = {}, []
            self._nodes = {}
            return
        self._drop({scid for scid in short_channel_ids if scid in self._row_of})

    def forget_old(self, now_seconds: float) -> int:
        """Drops what has faded anyway; how many channels that were. Call it now and then, hourly say."""
        age = now_seconds - self._rows[: len(self._scids), 3]
        old = age > _FORGOTTEN_HALF_LIVES * self.config.liquidity_half_life_seconds
        gone = {self._scids[row] for row in np.nonzero(old)[0]}
        self._drop(gone)
        limit = _FORGOTTEN_HALF_LIVES * self.config.node_half_life_seconds
        self._nodes = {node_id: known for node_id, known in self._nodes.items() if now_seconds - known[1] <= limit}
        return len(gone)

    # inside

    def _learn(self, graph: Graph, key: EdgeKey, amount_msat: int, now_seconds: float, *, passed: bool) -> None:
        if key.short_channel_id < _FIRST_SCID:
            return
        row = self._row_of.get(key.short_channel_id)
        known = _capacity_msat(graph, key)
        if known is None and passed:  # a hint's channel: nobody knows how much more would pass
            self._passed_hint(key, amount_msat, now_seconds)
            return
        if row is None:
            # Of a hint's channel only what failed is remembered.
            capacity = 2 * amount_msat if known is None else known
            lower, upper = 0, capacity
        else:
            faded = self._faded(self._rows[row : row + 1], now_seconds)
            lower, upper, capacity = (int(column[0]) for column in faded)
        if key.direction:
            lower, upper = capacity - upper, capacity - lower
        amount_msat = min(amount_msat, capacity)
        if passed:
            lower = max(lower, amount_msat)
            upper = max(upper, lower)
        else:
            upper = min(upper, max(0, amount_msat - 1))
            lower = min(lower, upper)
        if key.direction:
            lower, upper = capacity - upper, capacity - lower
        self._put(ChannelKnowledge(key.short_channel_id, lower, upper, capacity, now_seconds))

    def _passed_hint(self, key: EdgeKey, amount_msat: int, now_seconds: float) -> None:
        """What is known of a channel that is not in the graph is forgotten if it just passed more than that."""
        row = self._row_of.get(key.short_channel_id)
        if row is None:
            return
        lower, upper, capacity = (float(column[0]) for column in self._faded(self._rows[row : row + 1], now_seconds))
        if amount_msat > (capacity - lower if key.direction else upper):
            self._drop({key.short_channel_id})

    def _put(self, channel: ChannelKnowledge) -> None:
        row = self._row_of.get(channel.short_channel_id)
        if row is None:
            row = self._row_of[channel.short_channel_id] = len(self._scids)
            self._scids.append(channel.short_channel_id)
            self._places = None
            if row == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[row] = channel.lower_msat, channel.upper_msat, channel.capacity_msat, channel.learnt_seconds

    def _drop(self, scids: set[int]) -> None:
        keep = [row for row, scid in enumerate(self._scids) if scid not in scids]
        self._rows[: len(keep)] = self._rows[keep]
        self._scids = [self._scids[row] for row in keep]
        self._row_of = {scid: row for row, scid in enumerate(self._scids)}
        self._places = None

    def _faded(self, rows: Floats, now_seconds: float) -> tuple[Floats, Floats, Floats]:
        """Lower and upper bounds as of now, and the capacity."""
        left = np.exp2(-np.maximum(0, now_seconds - rows[:, 3]) / self.config.liquidity_half_life_seconds)
        capacity = rows[:, 2]
        return np.floor(rows[:, 0] * left), np.ceil(capacity - (capacity - rows[:, 1]) * left), capacity

    def _known(self, graph: Graph, topology: Topology) -> tuple[Indices, Indices]:
        """Rows of knowledge whose channels the graph has, and their slots."""
        places = self._places
        if places is None or places[0] != topology.version:
            edges = [graph.edge(EdgeKey(scid, 0)) for scid in self._scids]
            rows = np.array([row for row, edge in enumerate(edges) if edge is not None], np.int32)
            slots = np.array([edge >> 1 for edge in edges if edge is not None], np.int32)
            self._places = places = topology.version, rows, slots
        return places[1], places[2]

    def _node_nats(self, node_id: bytes, now_seconds: float) -> float:
        nats, learnt = self._nodes.get(node_id, (0.0, now_seconds))
        return nats * float(np.exp2(-max(0.0, now_seconds - learnt) / self.config.node_half_life_seconds))

    def _extra_nats(self, graph: Graph, topology: Topology, now_seconds: float) -> Floats | None:
        if not self._nodes:
            return None
        extra = np.zeros(len(topology.edges.source))
        for node_id in self._nodes:
            if (index := graph.node_index(node_id)) is not None and index < topology.nodes:
                start, end = topology.out_start[index : index + 2]
                extra[topology.out_edges[start:end]] = self._node_nats(node_id, now_seconds)
        return extra


def _true_hops(graph: Graph, route: Route, start: int, end: int) -> list[Hop]:
    """Some hops of a route, without those that an invoice's hint gave the name of a public channel of other nodes: what
    happens there says nothing of that one, however often it fails."""
    true = []
    for index in range(start, min(end, len(route.hops))):
        hop = route.hops[index]
        source = route.hops[index - 1].node_id if index else route.source
        public = graph.channel(hop.short_channel_id)
        if public is None or {public.node_id_1, public.node_id_2} == {source, hop.node_id}:
            true.append(hop)
    return true


def _beside(hop: Hop, in_flight: Mapping[EdgeKey, int] | None) -> int:
    """What a channel was asked to hold: this HTLC and our others."""
    return hop.amount_msat + (in_flight or {}).get(hop.key, 0)


def _capacity_msat(graph: Graph, key: EdgeKey) -> int | None:
    capacity_sat = graph.capacity_sat(key.short_channel_id)
    if capacity_sat is None or capacity_sat:
        return None if capacity_sat is None else capacity_sat * 1000
    channel = graph.channel(key.short_channel_id)
    assert channel is not None
    return max((policy.htlc_maximum_msat for policy in channel.policies if policy is not None), default=0)
