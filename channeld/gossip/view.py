"""The local view of the network: the index in memory and the messages on disk, changed together, and told to the graph.

Nothing is checked here: what comes in was checked by `validate` and `intake`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import structlog

from channeld.bolt.features import has_unknown_required
from channeld.bolt.messages import ChannelAnnouncement, ChannelUpdate, NodeAnnouncement, decode
from channeld.bolt.primitives import output_of
from channeld.gossip.interface import Funding, GraphSink
from channeld.gossip.store import CHANNEL, CHANNEL_HEAD, FORGET, NODE, SPENT, SPENT_BODY, UPDATE, GossipStore
from channeld.gossip.topology import DISABLED, Topology, outpoint_key

log = structlog.get_logger(__name__)

_SCID = struct.Struct(">Q")
_UPDATE_FIELDS = struct.Struct(">98xQIBB")
_UPDATE_POLICY = struct.Struct(">98xQIBBHQIIQ")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_FEATURES_AT = 258
_NODE_FEATURES_AT = 66
_RECORD_HEAD_BYTES = 7
NO_CHANNEL_FEATURES_KNOWN: frozenset[int] = frozenset()
"""BOLT 9 knows no feature of channels (context C): an even bit in a `channel_announcement` is an unknown one."""


class Policy(NamedTuple):
    """One direction of a channel. Amounts in msat, `cltv_expiry_delta` in blocks, `timestamp` in seconds."""

    timestamp: int
    usable: bool
    cltv_expiry_delta: int
    htlc_minimum_msat: int
    htlc_maximum_msat: int
    fee_base_msat: int
    fee_proportional_millionths: int


class PublicChannel(NamedTuple):
    """A channel as announced. `policies[0]` is by `node_id_1`."""

    scid: int
    node_id_1: bytes
    node_id_2: bytes
    capacity_sat: int
    routable: bool
    policies: tuple[Policy | None, Policy | None]


class NetworkView:
    """All that is known of the public network."""

    def __init__(self, store: GossipStore, sinks: Sequence[GraphSink] = ()) -> None:
        self.store = store
        self.topology = Topology()
        self.sinks = list(sinks)
        self.spent: set[int] = set()
        """Channels whose funding output is spent, or gone."""
        self.changes = 0
        """Grows with every change."""
        self._unroutable: set[int] = set()

    # --- at the start

    def load(self) -> None:
        """Fill the index from the file. Sinks are not told: see `channels` and `nodes`."""
        apply = {CHANNEL: self._load_channel, UPDATE: self._load_update, NODE: self._load_node}
        for kind, offset, payload in self.store.records():
            handle = apply.get(kind)
            if handle is not None:
                handle(offset, payload)
            elif kind == FORGET:
                (scid,) = _SCID.unpack(payload)
                if scid in self.topology.rows:
                    self._drop(scid)
            elif kind == SPENT:
                scid, height = SPENT_BODY.unpack(payload)
                if scid in self.topology.rows:
                    self._place_spent(scid, height)

    def _load_channel(self, offset: int, payload: bytes) -> None:
        txid, capacity_sat, seen_seconds = CHANNEL_HEAD.unpack_from(payload)
        raw_at = CHANNEL_HEAD.size
        (features_bytes,) = _U16.unpack_from(payload, raw_at + _FEATURES_AT)
        at = raw_at + _FEATURES_AT + 2 + features_bytes + 32
        (scid,) = _SCID.unpack_from(payload, at)
        if scid in self.topology.rows:
            self._drop(scid)
        location = offset + raw_at << 16 | len(payload) - raw_at
        node_ids = (payload[at + 8 : at + 41], payload[at + 41 : at + 74])
        key = outpoint_key(txid, output_of(scid))
        self.topology.add(scid, node_ids, capacity_sat, seen_seconds, key, location)
        if features_bytes and not _is_routable(payload[at - 32 - features_bytes : at - 32]):
            self._unroutable.add(scid)

    def _load_update(self, offset: int, payload: bytes) -> None:
        scid, timestamp, _, channel_flags = _UPDATE_FIELDS.unpack_from(payload)
        row = self.topology.rows.get(scid)
        if row is None:
            self.store.dead_bytes += len(payload) + _RECORD_HEAD_BYTES
            return
        self._place_update(row, channel_flags, timestamp, offset << 16 | len(payload))

    def _load_node(self, offset: int, payload: bytes) -> None:
        (features_bytes,) = _U16.unpack_from(payload, _NODE_FEATURES_AT)
        at = _NODE_FEATURES_AT + 2 + features_bytes
        (timestamp,) = _U32.unpack_from(payload, at)
        self._place_node(payload[at + 4 : at + 37], timestamp, offset << 16 | len(payload))

    # --- changes

    def add_channel(self, announcement: ChannelAnnouncement, funding: Funding, now: float) -> None:
        """A channel that is not known yet. Raises StoreFull."""
        raw = announcement.raw
        scid = announcement.short_channel_id
        head = CHANNEL_HEAD.pack(funding.txid, funding.amount_sat, int(now))
        offset = self.store.append(CHANNEL, head + raw)
        location = offset + len(head) << 16 | len(raw)
        node_ids = (announcement.node_id_1, announcement.node_id_2)
        key = outpoint_key(funding.txid, output_of(scid))
        self.topology.add(scid, node_ids, funding.amount_sat, int(now), key, location)
        routable = not announcement.features or _is_routable(announcement.features)
        if not routable:
            self._unroutable.add(scid)
        self.changes += 1
        for sink in self.sinks:
            sink.channel_added(scid, *node_ids, funding.amount_sat, routable)

    def set_update(self, update: ChannelUpdate) -> None:
        """A newer update of a known channel. Raises StoreFull."""
        raw = update.raw
        row = self.topology.rows[update.short_channel_id]
        location = self.store.append(UPDATE, raw) << 16 | len(raw)
        self._place_update(row, update.channel_flags, update.timestamp, location)
        self.changes += 1
        if self.sinks:
            usable = is_usable(update, self.topology.capacity_sat[row])
            for sink in self.sinks:
                sink.channel_updated(update, usable)

    def _place_update(self, row: int, channel_flags: int, timestamp: int, location: int) -> None:
        direction = channel_flags & 1
        if known := self.topology.update[direction][row]:
            self._bury(known)
        self.topology.set_update(row, direction, timestamp, DISABLED if channel_flags & 2 else 0, location)

    def set_node(self, announcement: NodeAnnouncement) -> None:
        """A newer announcement of a node that has a channel. Raises StoreFull."""
        raw = announcement.raw
        location = self.store.append(NODE, raw) << 16 | len(raw)
        self._place_node(announcement.node_id, announcement.timestamp, location)
        self.changes += 1
        for sink in self.sinks:
            sink.node_announced(announcement)

    def _place_node(self, node_id: bytes, timestamp: int, location: int) -> None:
        index = self.topology.node_index.get(node_id)
        if index is None:
            self._bury(location)
            return
        self._bury(self.topology.node_announcement[index])
        self.topology.set_node(node_id, timestamp, location)

    def forget(self, scid: int) -> None:
        """A channel is no more; so are nodes without any other."""
        self.store.append(FORGET, _SCID.pack(scid))
        gone = self._drop(scid)
        self.changes += 1
        for sink in self.sinks:
            sink.channel_removed(scid)
            for node_id in gone:
                sink.node_removed(node_id)

    def _drop(self, scid: int) -> list[bytes]:
        topology = self.topology
        row = topology.rows[scid]
        self._unroutable.discard(scid)
        self.spent.discard(scid)
        for column in (topology.announcement, *topology.update):
            self._bury(column[row])
        for column in topology.nodes:
            index = column[row]
            if topology.node_channels[index] == 1:
                self._bury(topology.node_announcement[index])
        return topology.remove(scid)

    def _bury(self, location: int) -> None:
        if location:
            self.store.dead_bytes += (location & 0xFFFF) + _RECORD_HEAD_BYTES

    def set_spent(self, scid: int, height: int) -> None:
        """The funding output was spent at `height`; 0: it was not, after all."""
        self._place_spent(scid, height)
        self.store.append(SPENT, SPENT_BODY.pack(scid, height))

    def _place_spent(self, scid: int, height: int) -> None:
        self.topology.spent_height[self.topology.rows[scid]] = height
        if height:
            self.spent.add(scid)
        else:
            self.spent.discard(scid)

    # --- what is known

    def announcement(self, scid: int) -> bytes | None:
        """The `channel_announcement`, wire form."""
        row = self.topology.rows.get(scid)
        return self.store.read(self.topology.announcement[row]) if row is not None else None

    def funding_txid(self, scid: int) -> bytes:
        """The funding transaction's id (internal order) of a known channel."""
        location = self.topology.announcement[self.topology.rows[scid]]
        start = (location >> 16) - CHANNEL_HEAD.size
        return self.store.read(start << 16 | 32)

    def update(self, scid: int, direction: int) -> bytes | None:
        """The latest `channel_update` of a direction, wire form."""
        row = self.topology.rows.get(scid)
        location = self.topology.update[direction][row] if row is not None else 0
        return self.store.read(location) if location else None

    def node(self, node_id: bytes) -> bytes | None:
        """The latest `node_announcement`, wire form."""
        index = self.topology.node_index.get(node_id)
        location = self.topology.node_announcement[index] if index is not None else 0
        return self.store.read(location) if location else None

    def checksums(self, scids: Sequence[int]) -> list[tuple[int, int]]:
        """CRC-32C of both updates of each channel; 0 without an update. Computed once for each update."""
        topology = self.topology
        rows = [topology.rows[scid] for scid in scids]
        for direction in (0, 1):
            checksum, update = topology.checksum[direction], topology.update[direction]
            missing = [row for row in rows if update[row] and not checksum[row]]
            from channeld.gossip.checksums import update_checksums  # numpy, when a peer asks for checksums

            sums = update_checksums([self.store.read(update[row]) for row in missing])
            for row, value in zip(missing, sums, strict=True):
                checksum[row] = value
        first, second = topology.checksum
        return [(first[row], second[row]) for row in rows]

    def channels(self) -> Iterator[PublicChannel]:
        """Everything, for a graph that starts, in order of the store's file."""
        topology = self.topology
        for scid, row in topology.rows.items():
            policies = (self._policy(row, 0), self._policy(row, 1))
            yield PublicChannel(
                scid, *topology.node_ids_of(row), topology.capacity_sat[row], scid not in self._unroutable, policies
            )

    def channel(self, scid: int) -> PublicChannel | None:
        """One channel."""
        row = self.topology.rows.get(scid)
        if row is None:
            return None
        policies = (self._policy(row, 0), self._policy(row, 1))
        return PublicChannel(
            scid, *self.topology.node_ids_of(row), self.topology.capacity_sat[row], self.is_routable(scid), policies
        )

    def is_routable(self, scid: int) -> bool:
        """BOLT 7: "if there is an unknown even bit in the `features` field: MUST NOT attempt to route messages through
        the channel"."""
        return scid not in self._unroutable

    def nodes(self) -> Iterator[NodeAnnouncement]:
        """All announced nodes."""
        for location in list(self.topology.node_announcement):
            if location:
                message = decode(self.store.read(location))
                assert isinstance(message, NodeAnnouncement)
                yield message

    def _policy(self, row: int, direction: int) -> Policy | None:
        location = self.topology.update[direction][row]
        if not location:
            return None
        _, timestamp, _, flags, cltv, minimum, base, ppm, maximum = _UPDATE_POLICY.unpack_from(
            self.store.read(location)
        )
        usable = not flags & 2 and minimum <= maximum <= 1000 * self.topology.capacity_sat[row]
        return Policy(timestamp, usable, cltv, minimum, maximum, base, ppm)


def is_usable(update: ChannelUpdate, capacity_sat: int) -> bool:
    """Whether payments may be routed by this policy."""
    # BOLT 7, "if `htlc_maximum_msat` < `htlc_minimum_msat`: SHOULD ignore this channel during route considerations."
    # BOLT 7, "if `htlc_maximum_msat` is greater than channel capacity: [...] SHOULD ignore this channel [...]"
    if update.channel_flags & 2:
        return False
    return update.htlc_minimum_msat <= update.htlc_maximum_msat <= 1000 * capacity_sat


def _is_routable(features: bytes) -> bool:
    return not has_unknown_required(features, NO_CHANNEL_FEATURES_KNOWN)
