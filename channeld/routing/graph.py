"""The public network as arrays.

Channel slot `s` has the directed edges `2s` (node 1 to node 2) and `2s + 1`; what a `channel_update` says lies in
arrays indexed by edge. A message changes a few cells. Only the order by node (`Topology`) needs all edges: it is
made again at the first search after channels came or went, in a few milliseconds. Freed slots are used again.

Scids as ints, node ids of 33 bytes, amounts in msat or sat, deltas in blocks. Not thread-safe: search in another
thread on a `copy`. Source: BOLT 7.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from channeld.bolt.features import NAMED
from channeld.routing.values import EdgeKey, Policy

Ints = NDArray[np.int64]
Indices = NDArray[np.int32]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_NODE_ID_SIZE = 33
_FIRST_CAPACITY = 64
_FORMAT = 1
_MOST = 1 << 62
_KNOWN_BITS = sum(3 << bit for bit in NAMED)
_versions = itertools.count(1)


class ChannelInfo(NamedTuple):
    """A channel and what both sides ask (None where no update is known). Capacity in sat, 0 if unknown."""

    short_channel_id: int
    node_id_1: bytes
    node_id_2: bytes
    capacity_sat: int
    policies: tuple[Policy | None, Policy | None]


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """Columns by edge; views, not copies."""

    source: Indices
    target: Indices
    known: Flags
    enabled: Flags
    htlc_minimum_msat: Ints
    htlc_maximum_msat: Ints
    fee_base_msat: Ints
    fee_proportional_millionths: Ints
    cltv_expiry_delta: Ints
    capacity_msat: Floats


@dataclass(frozen=True, slots=True)
class Topology:
    """Edges ordered by node, both ways, and the columns at the time. `out_edges[out_start[n]:out_start[n + 1]]`
    leave node `n`, to `out_targets`; `in_edges` likewise enter it. No other has its `version`."""

    version: int
    nodes: int
    out_start: Indices
    out_edges: Indices
    out_targets: Indices
    in_start: Indices
    in_edges: Indices
    edges: EdgeTable


class Columns(NamedTuple):
    """Many channels at once. Indices point into `node_ids`; the arrays by direction have shape (channels, 2)."""

    node_ids: NDArray[np.uint8]
    short_channel_id: Ints
    ends: Indices
    capacity_sat: Ints
    known: Flags
    enabled: Flags
    htlc_minimum_msat: Ints
    htlc_maximum_msat: Ints
    fee_base_msat: Ints
    fee_proportional_millionths: Ints
    cltv_expiry_delta: Ints


_BY_DIRECTION = {
    "known": np.bool_,
    "enabled": np.bool_,
    "htlc_minimum_msat": np.int64,
    "htlc_maximum_msat": np.int64,
    "fee_base_msat": np.int64,
    "fee_proportional_millionths": np.int64,
    "cltv_expiry_delta": np.int64,
}


class Graph:
    """Nodes, channels and policies; see the module."""

    def __init__(self) -> None:
        self._node_index: dict[bytes, int] = {}
        self._node_ids: list[bytes] = []
        self._node_features: dict[int, int] = {}
        self._unfit: set[int] = set()
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._end = 0
        self._scids: Ints = np.zeros(_FIRST_CAPACITY, np.int64)
        self._ends: Indices = np.full((_FIRST_CAPACITY, 2), -1, np.int32)
        self._capacity_sat: Ints = np.zeros(_FIRST_CAPACITY, np.int64)
        self._columns: dict[str, NDArray[np.generic]] = {
            name: np.zeros((_FIRST_CAPACITY, 2), dtype) for name, dtype in _BY_DIRECTION.items()
        }
        self._topology: Topology | None = None

    @property
    def node_count(self) -> int:
        """Nodes ever seen; those that lost their channels stay known until the graph is loaded again."""
        return len(self._node_ids)

    @property
    def channel_count(self) -> int:
        """Channels now."""
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, without the two dictionaries (about 8 MB for the public network)."""
        arrays: list[NDArray[Any]] = [self._scids, self._ends, self._capacity_sat, *self._columns.values()]
        if (topology := self._topology) is not None:
            arrays += [topology.out_start, topology.out_edges, topology.out_targets, topology.in_start]
            arrays += [topology.in_edges, topology.edges.target, topology.edges.source, topology.edges.capacity_msat]
        return sum(array.nbytes for array in arrays)

    def node_index(self, node_id: bytes) -> int | None:
        """The index of a node in the arrays, if it is known."""
        return self._node_index.get(node_id)

    def node_id(self, index: int) -> bytes:
        """The node at an index."""
        return self._node_ids[index]

    def edge(self, key: EdgeKey) -> int | None:
        """The edge of one direction of a channel, if the channel is known."""
        slot = self._slots.get(key.short_channel_id)
        return None if slot is None else 2 * slot + key.direction

    def edge_key(self, edge: int) -> EdgeKey:
        """The channel and direction of an edge."""
        return EdgeKey(int(self._scids[edge >> 1]), edge & 1)

    def add_channel(self, short_channel_id: int, node_id_1: bytes, node_id_2: bytes, capacity_sat: int) -> bool:
        """Adds a channel; False if it was known. Nobody can use it before its updates.

        Raises ValueError if the node ids are not two different ones in order (BOLT 7, `channel_announcement`).
        """
        if len(node_id_1) != _NODE_ID_SIZE or len(node_id_2) != _NODE_ID_SIZE or not node_id_1 < node_id_2:
            raise ValueError("a channel needs two node ids of 33 bytes in ascending order")
        if short_channel_id in self._slots:
            return False
        slot = self._new_slot()
        self._slots[short_channel_id] = slot
        self._scids[slot] = short_channel_id
        self._ends[slot] = self._add_node(node_id_1), self._add_node(node_id_2)
        self._capacity_sat[slot] = capacity_sat
        self._columns["known"][slot] = False
        self._columns["enabled"][slot] = False
        self._topology = None
        return True

    def update_channel(self, short_channel_id: int, direction: int, policy: Policy) -> bool:
        """What a `channel_update` says; False if the channel is unknown. Limits above 2^62 msat count as that."""
        slot = self._slots.get(short_channel_id)
        if slot is None:
            return False
        cell = slot, direction
        self._columns["known"][cell] = True
        for name in Policy.__struct_fields__:
            self._columns[name][cell] = min(getattr(policy, name), _MOST)
        return True

    def remove_channel(self, short_channel_id: int) -> bool:
        """Forgets a channel; False if it was unknown."""
        slot = self._slots.pop(short_channel_id, None)
        if slot is None:
            return False
        self._ends[slot] = -1
        self._free.append(slot)
        self._topology = None
        return True

    def remove_node(self, node_id: bytes) -> int:
        """Forgets a node's channels and features; how many channels that were."""
        scids = [channel.short_channel_id for channel in self.node_channels(node_id)]
        for scid in scids:
            self.remove_channel(scid)
        if (index := self._node_index.get(node_id)) is not None:
            self._node_features.pop(index, None)
            self._unfit.discard(index)
        return len(scids)

    def set_node_features(self, node_id: bytes, features: int) -> None:
        """The feature bits of a `node_announcement`, as an int."""
        self._set_features(self._add_node(node_id), features)

    def _set_features(self, index: int, features: int) -> None:
        self._node_features[index] = features
        unknown = features & ~_KNOWN_BITS
        if unknown and any(unknown >> bit & 1 for bit in range(0, unknown.bit_length(), 2)):
            self._unfit.add(index)
        else:
            self._unfit.discard(index)

    def unfit_nodes(self) -> list[int]:
        """Nodes (by index) that require of others what is not known here: nothing may be routed through them.

        Source: BOLT 7, "The `node_announcement` Message".
        """
        return sorted(self._unfit)

    def node_features(self, node_id: bytes) -> int | None:
        """The announced feature bits as an int; None without an announcement."""
        index = self._node_index.get(node_id)
        return None if index is None else self._node_features.get(index)

    def nodes_with(self, features: int) -> Flags:
        """Which nodes (by index) have announced all these bits (or for an even bit, its odd sibling)."""
        have = np.zeros(self.node_count, np.bool_)
        for index, bits in self._node_features.items():
            have[index] = not features & ~(bits | (bits >> 1))
        return have

    def channel(self, short_channel_id: int) -> ChannelInfo | None:
        """A channel by its id."""
        slot = self._slots.get(short_channel_id)
        if slot is None:
            return None
        node_1, node_2 = self._ends[slot].tolist()
        return ChannelInfo(
            short_channel_id,
            self._node_ids[node_1],
            self._node_ids[node_2],
            int(self._capacity_sat[slot]),
            (self._policy(slot, 0), self._policy(slot, 1)),
        )

    def capacity_sat(self, short_channel_id: int) -> int | None:
        """How much a channel holds, 0 if nobody told; None if it is not known."""
        slot = self._slots.get(short_channel_id)
        return None if slot is None else int(self._capacity_sat[slot])

    def policy(self, key: EdgeKey) -> Policy | None:
        """What the source of a direction asks, if an update is known."""
        slot = self._slots.get(key.short_channel_id)
        return None if slot is None else self._policy(slot, key.direction)

    def node_channels(self, node_id: bytes) -> list[ChannelInfo]:
        """The channels of a node."""
        index = self._node_index.get(node_id)
        if index is None:
            return []
        slots = np.nonzero((self._ends[: self._end] == index).any(axis=1))[0]
        found = (self.channel(int(self._scids[slot])) for slot in slots)
        return [channel for channel in found if channel is not None]

    def node_ids(self) -> Iterator[bytes]:
        """All nodes that are known, by index."""
        return iter(self._node_ids)

    def channels(self) -> Iterator[ChannelInfo]:
        """All channels."""
        for scid in self._slots:
            if (channel := self.channel(scid)) is not None:
                yield channel

    def topology(self) -> Topology:
        """The arrays to search on; made again if channels came or went since the last call."""
        if self._topology is None:
            self._topology = self._index()
        return self._topology

    def copy(self) -> Graph:
        """An independent graph with the same content, to search in another thread."""
        other = Graph()
        other._node_index, other._node_ids = dict(self._node_index), list(self._node_ids)
        other._node_features, other._slots = dict(self._node_features), dict(self._slots)
        other._unfit = set(self._unfit)
        other._free, other._end = list(self._free), self._end
        other._scids, other._ends = self._scids.copy(), self._ends.copy()
        other._capacity_sat = self._capacity_sat.copy()
        other._columns = {name: column.copy() for name, column in self._columns.items()}
        return other

    def add_columns(self, columns: Columns) -> None:
        """Many channels into an empty graph, fast. Raises ValueError if it is not empty, or ids are there twice."""
        if self._slots or self._node_ids:
            raise ValueError("channels can only be loaded into an empty graph")
        raw = columns.node_ids.tobytes()
        self._node_ids = [raw[start : start + _NODE_ID_SIZE] for start in range(0, len(raw), _NODE_ID_SIZE)]
        self._node_index = {node_id: index for index, node_id in enumerate(self._node_ids)}
        self._slots = {scid: slot for slot, scid in enumerate(columns.short_channel_id.tolist())}
        self._end = len(columns.short_channel_id)
        if len(self._node_index) != len(self._node_ids) or len(self._slots) != self._end:
            raise ValueError("a node id or a short_channel_id is there twice")
        self._scids = np.array(columns.short_channel_id, np.int64)
        self._ends = np.array(columns.ends, np.int32)
        self._capacity_sat = np.array(columns.capacity_sat, np.int64)
        self._columns = {name: np.array(getattr(columns, name), dtype) for name, dtype in _BY_DIRECTION.items()}
        self._topology = None

    def to_bytes(self) -> bytes:
        """The whole graph as compact arrays (an uncompressed npz, about 110 bytes a channel)."""
        alive = self._ends[: self._end, 0] >= 0
        used = np.unique(self._ends[: self._end][alive])
        renumbered = np.zeros(max(1, self.node_count), np.int32)
        renumbered[used] = np.arange(len(used), dtype=np.int32)
        connected = set(used.tolist())
        features = [(int(renumbered[index]), bits) for index, bits in self._node_features.items() if index in connected]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            allow_pickle=False,
            format=np.array([_FORMAT]),
            node_ids=np.frombuffer(b"".join(self._node_ids[index] for index in used), np.uint8).reshape(-1, 33),
            features_node=np.array([index for index, _ in features], np.int32),
            features=np.array([f"{bits:x}" for _, bits in features], np.str_),
            short_channel_id=self._scids[: self._end][alive],
            ends=renumbered[self._ends[: self._end][alive]],
            capacity_sat=self._capacity_sat[: self._end][alive],
            **{name: _shrunk(column[: self._end][alive]) for name, column in self._columns.items()},
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Graph:
        """The inverse of `to_bytes`. Raises ValueError for other bytes."""
        graph = cls()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                if int(arrays["format"][0]) != _FORMAT:
                    raise ValueError("stored graph of another version")
                graph.add_columns(Columns(*(arrays[name] for name in Columns._fields)))
                pairs = zip(arrays["features_node"].tolist(), arrays["features"].tolist(), strict=True)
                for index, bits in pairs:
                    graph._set_features(index, int(bits, 16))
        except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"not a stored graph: {error}") from error
        return graph

    def _policy(self, slot: int, direction: int) -> Policy | None:
        cell = slot, direction
        if not self._columns["known"][cell]:
            return None
        return Policy(**{name: self._columns[name][cell].item() for name in Policy.__struct_fields__})

    def _add_node(self, node_id: bytes) -> int:
        index = self._node_index.get(node_id)
        if index is None:
            index = self._node_index[node_id] = len(self._node_ids)
            self._node_ids.append(node_id)
            self._topology = None
        return index

    def _new_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if self._end == len(self._scids):
            more = max(_FIRST_CAPACITY, len(self._scids) // 2)
            self._scids = np.concatenate([self._scids, np.zeros(more, np.int64)])
            self._ends = np.concatenate([self._ends, np.full((more, 2), -1, np.int32)])
            self._capacity_sat = np.concatenate([self._capacity_sat, np.zeros(more, np.int64)])
            for name, column in self._columns.items():
                self._columns[name] = np.concatenate([column, np.zeros((more, 2), column.dtype)])
        self._end += 1
        return self._end - 1

    def _index(self) -> Topology:
        ends = self._ends[: self._end]
        source, target = ends.reshape(-1), ends[:, ::-1].reshape(-1)
        alive = np.nonzero(source >= 0)[0].astype(np.int32)
        out_start, out_edges = _ordered(alive, source, self.node_count)
        in_start, in_edges = _ordered(alive, target, self.node_count)
        flat = {name: column[: self._end].reshape(-1) for name, column in self._columns.items()}
        edges = EdgeTable(
            source=source.copy(),
            target=target.copy(),
            known=flat["known"],  # type: ignore[arg-type]
            enabled=flat["enabled"],  # type: ignore[arg-type]
            htlc_minimum_msat=flat["htlc_minimum_msat"],  # type: ignore[arg-type]
            htlc_maximum_msat=flat["htlc_maximum_msat"],  # type: ignore[arg-type]
            fee_base_msat=flat["fee_base_msat"],  # type: ignore[arg-type]
            fee_proportional_millionths=flat["fee_proportional_millionths"],  # type: ignore[arg-type]
            cltv_expiry_delta=flat["cltv_expiry_delta"],  # type: ignore[arg-type]
            capacity_msat=np.repeat(self._capacity_sat[: self._end] * 1000.0, 2),
        )
        targets = edges.target[out_edges]
        return Topology(next(_versions), self.node_count, out_start, out_edges, targets, in_start, in_edges, edges)


def _ordered(edges: Indices, by_node: Indices, nodes: int) -> tuple[Indices, Indices]:
    """Where each node's edges start, and the edges in that order."""
    keys = by_node[edges]
    start = np.zeros(nodes + 1, np.int32)
    np.cumsum(np.bincount(keys, minlength=nodes), out=start[1:])
    return start, edges[np.argsort(keys, kind="stable")]


def _shrunk(column: NDArray[np.generic]) -> NDArray[np.generic]:
    """In the smallest type that holds it: stored graphs are read at every start."""
    if column.dtype == np.bool_ or not column.size:
        return column
    return column.astype(np.min_scalar_type(int(column.max())))
