"""Passing gossip on: what is new, once in a while and never back to where it came from; and all that a peer's filter
asks for. Nothing goes to a peer that did not ask with `gossip_timestamp_filter`, but what is our own.

Source: BOLT 7, "The gossip_timestamp_filter Message", "Rebroadcasting".
"""

from __future__ import annotations

from collections.abc import Iterator

from channeld.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    GossipTimestampFilter,
    Message,
    NodeAnnouncement,
    SignedGossip,
)
from channeld.gossip.interface import PeerPort
from channeld.gossip.view import NetworkView

MAX_PUMPED = 100
"""Messages of backlog and answers that a peer gets in one go, so that no peer holds up the others."""

_CHANNEL, _UPDATE, _NODE = range(3)
Key = tuple[int, int | bytes, int]


class _New:
    """Something to be passed on with the next flush."""

    __slots__ = ("is_own", "origins")

    def __init__(self, origins: set[bytes], is_own: bool) -> None:
        self.origins = origins
        self.is_own = is_own


class RelayPeer:
    """What one peer wants, and what it is being sent."""

    __slots__ = ("answers", "backlog", "first_timestamp", "has_filter", "last_timestamp", "port", "wanted")

    def __init__(self, port: PeerPort) -> None:
        self.port = port
        self.has_filter = False
        self.first_timestamp = 0
        self.last_timestamp = -1
        self.backlog: Iterator[bytes] | None = None
        self.answers: dict[type[Message], Iterator[bytes]] = {}
        self.wanted: list[Iterator[bytes]] = []

    def wants(self, timestamp: int) -> bool:
        """Whether the peer's filter lets this pass."""
        return self.first_timestamp <= timestamp <= self.last_timestamp


class Relay:
    """All peers that are connected, and what is new."""

    def __init__(self, view: NetworkView, chain_hash: bytes) -> None:
        self.peers: dict[bytes, RelayPeer] = {}
        self._view = view
        self._chain_hash = chain_hash
        self._new: dict[Key, _New] = {}

    # --- peers

    def connected(self, port: PeerPort) -> None:
        """A peer came; it has said nothing yet."""
        self.peers[port.node_id] = RelayPeer(port)

    def disconnected(self, port: PeerPort) -> None:
        """It is gone."""
        peer = self.peers.get(port.node_id)
        if peer is not None and peer.port is port:
            del self.peers[port.node_id]

    def set_filter(self, node_id: bytes, message: GossipTimestampFilter) -> None:
        """The peer says what it wants. A new filter replaces the old one, and its backlog."""
        peer = self.peers.get(node_id)
        if peer is None or message.chain_hash != self._chain_hash:
            return
        peer.has_filter = True
        peer.first_timestamp = message.first_timestamp
        peer.last_timestamp = message.first_timestamp + message.timestamp_range - 1
        # BOLT 7, "SHOULD send all gossip messages whose `timestamp` is greater or equal to `first_timestamp`, and less
        # than `first_timestamp` plus `timestamp_range`."
        peer.backlog = self._backlog(peer.first_timestamp, peer.last_timestamp) if message.timestamp_range else None

    def _backlog(self, first: int, last: int) -> Iterator[bytes]:
        view = self._view
        topology = view.topology
        for scid in list(topology.sorted_scids()):
            row = topology.rows.get(scid)
            # BOLT 7, "If a `channel_announcement` has no corresponding `channel_update`s: MUST NOT send the
            # `channel_announcement`. If the funding output of the `channel_announcement` has been spent: SHOULD NOT"
            if row is None or topology.spent_height[row]:
                continue
            # Read before the first of them is sent: what is in a location may be elsewhere when the peer wants more.
            updates = [
                view.store.read(column[row])
                for column, timestamp in zip(topology.update, topology.timestamp, strict=True)
                if column[row] and first <= timestamp[row] <= last
            ]
            # BOLT 7, "MUST consider the `timestamp` of the `channel_announcement` to be the `timestamp` of a
            # corresponding `channel_update`." and "MUST send the `channel_announcement` prior to any corresponding
            # `channel_update`s and `node_announcement`s."
            if updates:
                yield from (view.store.read(topology.announcement[row]), *updates)
        for index in range(len(topology.node_ids)):
            location = topology.node_announcement[index]
            if location and first <= topology.node_timestamp[index] <= last:
                yield view.store.read(location)

    # --- what is new

    def publish(self, message: SignedGossip, origins: set[bytes], is_own: bool = False) -> None:
        """Pass on with the next flush. A newer update takes an older one's place."""
        key = _key(message)
        known = self._new.get(key)
        if known is not None and key[0] == _CHANNEL:
            known.origins |= origins
            known.is_own |= is_own
            return
        self._new[key] = _New(set(origins), is_own)

    def heard_again(self, message: SignedGossip, origins: set[bytes]) -> None:
        """Others sent what is about to be passed on to them."""
        new = self._new.get(_key(message))
        if new is not None and self._raw(_key(message)) == message.raw:
            new.origins |= origins

    def flush(self) -> int:
        """Send all that is new to whoever wants it. Returns how many messages were sent."""
        ready = self._ready()
        sent = 0
        for peer in self.peers.values():
            node_id = peer.port.node_id
            batch = [
                raw
                for timestamp, raw, new in ready
                # BOLT 7, "SHOULD send gossip messages as it generates them regardless of `timestamp`." and "MUST not
                # send gossip it did not generate itself, until it receives `gossip_timestamp_filter`."
                if node_id not in new.origins and (new.is_own or (peer.has_filter and peer.wants(timestamp)))
            ]
            sent += len(batch)
            if len(batch) > MAX_PUMPED or peer.port.is_congested:
                peer.wanted.append(iter(batch))
                del peer.wanted[:-8]
            else:
                for raw in batch:
                    peer.port.send(raw)
        return sent

    def _ready(self) -> list[tuple[int, bytes, _New]]:
        """What may be sent now: announcements first. An announcement without an update stays for later."""
        ready: list[tuple[int, bytes, _New]] = []
        later: dict[Key, _New] = {}
        for key in sorted(self._new, key=lambda key: key[0]):
            new = self._new[key]
            raw, timestamp, waits = self._current(key)
            if waits:
                later[key] = new
            elif raw is not None:
                ready.append((timestamp, raw, new))
        self._new = later
        return ready

    def _current(self, key: Key) -> tuple[bytes | None, int, bool]:
        """Wire form, timestamp, and whether it has to wait; nothing if it is gone or not to be sent any more."""
        kind, name, direction = key
        topology = self._view.topology
        if kind == _NODE:
            assert isinstance(name, bytes)
            index = topology.node_index.get(name)
            return (None, 0, False) if index is None else (self._view.node(name), topology.node_timestamp[index], False)
        assert isinstance(name, int)
        row = topology.rows.get(name)
        if row is None:
            return None, 0, False
        if kind == _UPDATE:
            return self._view.update(name, direction), topology.timestamp[direction][row], False
        # BOLT 7, "once its funding output has been spent [...]: SHOULD NOT rebroadcast this `channel_announcement`"
        if topology.spent_height[row]:
            return None, 0, False
        timestamp = max(topology.timestamp[0][row], topology.timestamp[1][row])
        return self._raw(key), timestamp, not topology.has_update(row)

    def _raw(self, key: Key) -> bytes | None:
        kind, name, direction = key
        if isinstance(name, bytes):
            return self._view.node(name)
        return self._view.announcement(name) if kind == _CHANNEL else self._view.update(name, direction)

    # --- bulk

    def is_answering(self, node_id: bytes, query: type[Message]) -> bool:
        """Whether the answer to a query of this kind is under way."""
        peer = self.peers.get(node_id)
        return peer is not None and query in peer.answers

    def answer(self, node_id: bytes, query: type[Message], messages: Iterator[bytes]) -> None:
        """Send the answer to a query, after what is under way. There is one for each kind of query at a time."""
        peer = self.peers.get(node_id)
        if peer is None:
            return
        assert query not in peer.answers, "who asks again is not answered"
        # BOLT 7, "SHOULD NOT wait for the next outgoing gossip flush to send these."
        peer.answers[query] = messages
        self._pump(peer)

    def pump(self) -> bool:
        """Send some of what peers are owed. True if there is more to send to someone who reads."""
        more = [self._pump(peer) for peer in self.peers.values()]
        return any(more)

    def _pump(self, peer: RelayPeer) -> bool:
        budget = MAX_PUMPED
        while budget and not peer.port.is_congested:
            source = next(iter(peer.answers.values()), peer.wanted[0] if peer.wanted else peer.backlog)
            if source is None:
                return False
            raw = next(source, None)
            if raw is None:
                self._exhausted(peer, source)
                continue
            peer.port.send(raw)
            budget -= 1
        return not peer.port.is_congested

    def _exhausted(self, peer: RelayPeer, source: Iterator[bytes]) -> None:
        if peer.answers:
            del peer.answers[next(iter(peer.answers))]
        elif source is peer.backlog:
            peer.backlog = None
        else:
            peer.wanted.pop(0)


def _key(message: SignedGossip) -> Key:
    if isinstance(message, ChannelAnnouncement):
        return _CHANNEL, message.short_channel_id, 0
    if isinstance(message, ChannelUpdate):
        return _UPDATE, message.short_channel_id, message.channel_flags & 1
    assert isinstance(message, NodeAnnouncement)
    return _NODE, message.node_id, 0
