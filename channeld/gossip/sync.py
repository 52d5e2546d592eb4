"""Getting the network from peers: which channels they know (`query_channel_range`), then what we lack of those
(`query_short_channel_ids`), and from a few of them all that is new (`gossip_timestamp_filter`).

No I/O, no clock: time is an argument, messages to send are return values. Source: BOLT 7, "Query Messages".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

from channeld.bolt.features import Feature, has
from channeld.bolt.messages import (
    ChannelUpdateChecksums,
    ChannelUpdateTimestamps,
    GossipTimestampFilter,
    Message,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
)
from channeld.bolt.messages import queries as q
from channeld.bolt.primitives import DecodeError, block_of
from channeld.gossip.interface import GossipConfig, PeerPort
from channeld.gossip.view import NetworkView

QUERY_SCIDS: Final = 500
MAX_SCIDS: Final = 1_000_000
MAX_UNKNOWN: Final = 1_000
KEEP_ALIVE_SECONDS: Final = 5 * 24 * 3600
"""An update that only repeats ours is asked for when it is this much newer: it keeps the channel from being pruned."""
FILTER_OVERLAP_SECONDS: Final = 3600
"""How far back the filter of an active peer begins: what was on its way while we connected."""
_NONE_TIMESTAMP: Final = 0xFFFF_FFFF
_U32_MAX: Final = 0xFFFF_FFFF


class SyncViolation(Exception):
    """The peer answers with what was not asked for. The text says how."""


class _Entry(NamedTuple):
    scid: int
    timestamps: ChannelUpdateTimestamps | None
    checksums: ChannelUpdateChecksums | None


class PeerSync:
    """What was asked of one peer, and what is still to ask."""

    def __init__(self, port: PeerPort, chain_hash: bytes, may_ask: Callable[[], bool] = lambda: True) -> None:
        """`may_ask`: whether there is room for the answers; if not, the next query waits for `ask_more`."""
        self.port = port
        self.is_active = False
        """It sends us what is new."""
        self.completed_at: float | None = None
        """When it last told us all it knows, or was given up."""
        self.has_told_all = False
        self.last_heard = 0.0
        self._chain_hash = chain_hash
        self._range_end: int | None = None
        self._next_first = 0
        self._listed = 0
        self._may_ask = may_ask
        self._is_held = False
        self._to_query: list[tuple[int, int]] = []
        self._unknown: dict[int, None] = {}
        self._awaits_end = False
        self._in_full_sync = False

    @property
    def serves(self) -> bool:
        """BOLT 7, "Not offering this feature means a node is not worth querying for gossip"."""
        return has(self.port.remote_features, Feature.gossip_queries)

    @property
    def is_busy(self) -> bool:
        """Whether an answer is awaited, or a query waits."""
        return self._range_end is not None or self._awaits_end or self._is_held

    @property
    def in_full_sync(self) -> bool:
        """Whether it is telling us all it knows."""
        return self._in_full_sync

    def start(self, tip_height: int, now: float) -> list[Message]:
        """Ask for all channels. Nothing may be under way."""
        assert not self.is_busy
        self._in_full_sync = True
        self._listed = 0
        self._next_first = 0
        self._range_end = tip_height + 1
        self.last_heard = now
        extended = has(self.port.remote_features, Feature.gossip_queries_ex)
        option = q.WANT_TIMESTAMPS | q.WANT_CHECKSUMS if extended else None
        # BOLT 7, "MUST set `number_of_blocks` to 1 or greater."
        return [QueryChannelRange(self._chain_hash, 0, self._range_end, option)]

    def on_range(self, reply: ReplyChannelRange, view: NetworkView, now: float) -> list[Message]:
        """A part of the answer. Raises SyncViolation (also for DecodeError)."""
        if self._range_end is None or reply.chain_hash != self._chain_hash:
            raise SyncViolation("reply_channel_range without a query for it (BOLT 7)")
        first, end = reply.first_blocknum, reply.first_blocknum + reply.number_of_blocks
        # BOLT 7, "MUST have `first_blocknum` equal or greater than the previous `first_blocknum`."
        if first < self._next_first:
            raise SyncViolation("reply_channel_range goes backwards (BOLT 7)")
        try:
            entries = _entries(reply)
        except DecodeError as error:
            raise SyncViolation(f"reply_channel_range cannot be read: {error}") from error
        self._listed += len(entries)
        if self._listed > MAX_SCIDS:
            raise SyncViolation("more channels than the network can have")
        self._to_query += wanted(entries, view)
        self._next_first = first
        self.last_heard = now
        # BOLT 7, "check if `first_blocknum` plus `number_of_blocks` equals or exceeds [...] it asked for"; a block that
        # is split over several replies ends with the one that says so.
        if end < self._range_end or not reply.sync_complete:
            return []
        self._range_end = None
        return self._query_next(now)

    def on_end(self, now: float) -> list[Message]:
        """`reply_short_channel_ids_end`. Raises SyncViolation if nothing was asked."""
        if not self._awaits_end:
            raise SyncViolation("reply_short_channel_ids_end without a query (BOLT 7)")
        self._awaits_end = False
        return self._query_next(now)

    def want(self, scid: int) -> None:
        """The peer knows something about a channel that we have no announcement of."""
        if len(self._unknown) < MAX_UNKNOWN:
            self._unknown[scid] = None

    def ask_unknown(self, view: NetworkView, now: float) -> list[Message]:
        """Ask for what `want` collected, if the peer is free."""
        if self.is_busy or not self._unknown or not self.serves:
            return []
        scids = sorted(scid for scid in self._unknown if scid not in view.topology.rows)
        self._unknown = {}
        self._to_query = [(scid, _everything(None)) for scid in scids]
        return self._query_next(now)

    def ask_more(self, now: float) -> list[Message]:
        """The query that had to wait, if there is one and room for its answer."""
        if not self._is_held:
            return []
        self._is_held = False
        return self._query_next(now)

    def _query_next(self, now: float) -> list[Message]:
        # BOLT 7, "MUST NOT send `query_short_channel_ids` if it has sent a previous `query_short_channel_ids` to this
        # peer and not received `reply_short_channel_ids_end`."
        self.last_heard = now
        if not self._to_query:
            if self._in_full_sync:
                self._in_full_sync = False
                self.completed_at = now
                self.has_told_all = True
            return []
        if not self._may_ask():
            self._is_held = True
            return []
        batch, self._to_query = self._to_query[:QUERY_SCIDS], self._to_query[QUERY_SCIDS:]
        scids = q.encode_short_ids(scid for scid, _ in batch)
        flags = None
        if has(self.port.remote_features, Feature.gossip_queries_ex):
            flags = q.encode_query_flags(flag for _, flag in batch)
        self._awaits_end = True
        return [QueryShortChannelIds(self._chain_hash, scids, flags)]

    def give_up(self) -> None:
        """It does not answer; other peers will. What is still under way is not waited for."""
        self._range_end = None
        self._awaits_end = False
        self._in_full_sync = False
        self._is_held = False
        self._to_query = []


def _entries(reply: ReplyChannelRange) -> list[_Entry]:
    scids = q.decode_short_ids(reply.encoded_short_ids)
    timestamps: list[ChannelUpdateTimestamps] | None = None
    if reply.timestamps_tlv is not None:
        timestamps = q.decode_timestamps(reply.timestamps_tlv)
    for extra in (timestamps, reply.checksums_tlv):
        if extra is not None and len(extra) != len(scids):
            raise DecodeError("not one timestamp or checksum pair for each channel")
    return [
        _Entry(
            scid,
            timestamps[index] if timestamps is not None else None,
            reply.checksums_tlv[index] if reply.checksums_tlv is not None else None,
        )
        for index, scid in enumerate(scids)
    ]


def wanted(entries: list[_Entry], view: NetworkView) -> list[tuple[int, int]]:
    """What to ask for, ascending: whole channels that we do not know, and updates that are newer and differ."""
    topology = view.topology
    known = [entry for entry in entries if entry.scid in topology.rows]
    compared = [entry for entry in known if entry.timestamps is not None]
    sums = dict(
        zip((entry.scid for entry in compared), view.checksums([entry.scid for entry in compared]), strict=True)
    )
    asked: dict[int, int] = {}
    for entry in entries:
        row = topology.rows.get(entry.scid)
        flags = _everything(entry.timestamps) if row is None else 0
        if row is not None and entry.timestamps is not None:
            theirs = (entry.timestamps.timestamp_node_id_1, entry.timestamps.timestamp_node_id_2)
            for direction, bit in enumerate((q.QUERY_CHANNEL_UPDATE_1, q.QUERY_CHANNEL_UPDATE_2)):
                ahead = theirs[direction] - topology.timestamp[direction][row]
                if ahead > 0 and (ahead >= KEEP_ALIVE_SECONDS or _differs(entry, sums[entry.scid], direction)):
                    flags |= bit
        if flags:
            asked[entry.scid] = flags
    return sorted(asked.items())


def _differs(entry: _Entry, ours: tuple[int, int], direction: int) -> bool:
    # BOLT 7, "checksum-based filtering of `channel_update` messages: only ask for `channel_update` messages that carry
    # different information from the ones you already have."
    if entry.checksums is None:
        return True
    return (entry.checksums.checksum_node_id_1, entry.checksums.checksum_node_id_2)[direction] != ours[direction]


def _everything(timestamps: ChannelUpdateTimestamps | None) -> int:
    flags = q.QUERY_CHANNEL_ANNOUNCEMENT | q.QUERY_NODE_ANNOUNCEMENT_1 | q.QUERY_NODE_ANNOUNCEMENT_2
    if timestamps is None or timestamps.timestamp_node_id_1:
        flags |= q.QUERY_CHANNEL_UPDATE_1
    if timestamps is None or timestamps.timestamp_node_id_2:
        flags |= q.QUERY_CHANNEL_UPDATE_2
    return flags


class SyncManager:
    """Chooses whom to ask. `send` gets a peer and the messages for it."""

    def __init__(
        self,
        view: NetworkView,
        chain_hash: bytes,
        config: GossipConfig,
        rng: random.Random,
        height: Callable[[], int],
        send: Callable[[PeerPort, Message], None],
        may_ask: Callable[[], bool],
    ) -> None:
        self.peers: dict[bytes, PeerSync] = {}
        self.may_start: Callable[[], bool] = lambda: True
        """Whether layer 1 is caught up with: before, channels of the last blocks could not be checked."""
        self._view = view
        self._chain_hash = chain_hash
        self._config = config
        self._rng = rng
        self._height = height
        self._send = send
        self._may_ask = may_ask
        self._was_synced = False
        self._rotated_at: float | None = None
        self._historical_at: float | None = None

    @property
    def is_synced(self) -> bool:
        """Some peer has told us all it knows since the start."""
        self._was_synced = self._was_synced or any(peer.has_told_all for peer in self.peers.values())
        return self._was_synced

    def connected(self, port: PeerPort, now: float) -> None:
        """A peer came. Nothing is sent to it before this."""
        peer = PeerSync(port, self._chain_hash, self._may_ask)
        self.peers[port.node_id] = peer
        active = sum(other.is_active for other in self.peers.values())
        self._set_active(peer, peer.serves and active < self._config.active_syncers, now)
        self._fill(now)

    def disconnected(self, port: PeerPort, now: float) -> None:
        """It is gone; another takes its place."""
        peer = self.peers.get(port.node_id)
        if peer is None or peer.port is not port:
            return
        self._was_synced = self.is_synced
        del self.peers[port.node_id]
        if peer.is_active:
            self._activate_another(now)
        self._fill(now)

    def _set_active(self, peer: PeerSync, active: bool, now: float) -> None:
        """Tell the peer whether we want what is new."""
        peer.is_active = active
        first, span = (max(0, int(now) - FILTER_OVERLAP_SECONDS), _U32_MAX) if active else (_NONE_TIMESTAMP, 0)
        # BOLT 7, "If the receiver does not offer `gossip_queries`: SHOULD set `first_timestamp` to 0xFFFFFFFF and
        # `timestamp_range` to 0."
        self._send(peer.port, GossipTimestampFilter(self._chain_hash, first, span))

    def _activate_another(self, now: float, instead_of: PeerSync | None = None) -> bool:
        idle = [peer for peer in self.peers.values() if peer.serves and not peer.is_active and peer is not instead_of]
        if idle:
            self._set_active(self._rng.choice(idle), True, now)
        return bool(idle)

    def _fill(self, now: float) -> None:
        """The first syncs: all from one peer, then what others know beyond that, one after the other."""
        if not self.may_start():
            return
        completed = sum(peer.completed_at is not None for peer in self.peers.values())
        if completed >= self._config.active_syncers or any(peer.in_full_sync for peer in self.peers.values()):
            return
        fresh = [peer for peer in self.peers.values() if peer.serves and peer.completed_at is None and not peer.is_busy]
        if fresh:
            self._start(self._rng.choice(fresh), now)

    def _start(self, peer: PeerSync, now: float) -> None:
        for message in peer.start(self._height(), now):
            self._send(peer.port, message)

    def message(self, node_id: bytes, message: ReplyChannelRange | ReplyShortChannelIdsEnd, now: float) -> None:
        """An answer. Raises SyncViolation."""
        peer = self.peers.get(node_id)
        if peer is None:
            return
        try:
            if isinstance(message, ReplyChannelRange):
                answers = peer.on_range(message, self._view, now)
            else:
                answers = peer.on_end(now)
        except SyncViolation:
            peer.give_up()
            raise
        for answer in answers:
            self._send(peer.port, answer)
        self._fill(now)

    def heard(self, node_id: bytes, now: float) -> None:
        """The peer sends gossip: it is not stuck."""
        peer = self.peers.get(node_id)
        if peer is not None:
            peer.last_heard = now

    def unknown_channel(self, scid: int, node_id: bytes) -> None:
        """The peer sent an update of a channel that we do not know."""
        peer = self.peers.get(node_id)
        # BOLT 7, "MAY send this if it receives a `channel_update` for a `short_channel_id` for which it has no
        # `channel_announcement`."
        if peer is not None and block_of(scid) <= self._height():
            peer.want(scid)

    def tick(self, now: float) -> None:
        """Time passes: give up on who is silent, rotate, and once in a while compare all with one peer."""
        for peer in self.peers.values():
            for message in peer.ask_more(now):
                self._send(peer.port, message)
            if peer.is_busy and now - peer.last_heard > self._config.query_timeout_seconds:
                peer.give_up()
                peer.completed_at = now
            for message in peer.ask_unknown(self._view, now):
                self._send(peer.port, message)
        self._fill(now)
        self._rotated_at = now if self._rotated_at is None else self._rotated_at
        self._historical_at = now if self._historical_at is None else self._historical_at
        if now - self._rotated_at >= self._config.rotate_seconds:
            self._rotated_at = now
            self._rotate(now)
        if now - self._historical_at >= self._config.historical_seconds and self.may_start():
            self._historical_at = now
            free = [peer for peer in self.peers.values() if peer.serves and not peer.is_busy]
            if free:
                self._start(self._rng.choice(free), now)

    def _rotate(self, now: float) -> None:
        active = [peer for peer in self.peers.values() if peer.is_active]
        if not active:
            return
        peer = min(active, key=lambda peer: peer.completed_at or 0.0)
        if self._activate_another(now, instead_of=peer):
            self._set_active(peer, False, now)
