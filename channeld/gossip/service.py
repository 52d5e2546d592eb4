"""All of gossip put together: peers' messages in, answers and announcements out.

What it needs of time, layer 1, keys and connections is handed in; the node gives it tasks to run in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import structlog

from channeld.bolt.messages import (
    AnnouncementSignatures,
    ChannelAnnouncement,
    ChannelUpdate,
    DecodeError,
    GossipTimestampFilter,
    Message,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    SignedGossip,
    WarningMessage,
    encode,
)
from channeld.bolt.messages.control import told_to_peer
from channeld.gossip import own as owned
from channeld.gossip import pruning
from channeld.gossip.intake import Intake
from channeld.gossip.interface import FundingSource, GossipConfig, PeerPort, Refusal
from channeld.gossip.limits import Conduct, TokenBuckets
from channeld.gossip.own import OwnChannel, OwnGossip, Signer
from channeld.gossip.queries import parse_short_ids_query, range_replies, short_ids_replies
from channeld.gossip.relay import Relay
from channeld.gossip.store import StoreFull
from channeld.gossip.sync import SyncManager, SyncViolation
from channeld.gossip.validate import DONT_FORWARD
from channeld.gossip.verify import SignatureChecker
from channeld.gossip.view import NetworkView
from wallet.bitcoin import Block

log = structlog.get_logger(__name__)

FUNDING_WORKERS = 4
MAX_QUEUED_FOR_SYNC = 4_000
"""From this many messages under way on, peers are asked for no more."""
QUERY_BURST = 50
QUERY_REFILL_SECONDS = 1.0
"""So many queries of a peer are answered at once; then one after each so many seconds, which the peer has to wait: who
gets the whole network from us asks a hundred times (LND) to five hundred times (Eclair)."""
COMPLAINTS_BURST, COMPLAINTS_REFILL_SECONDS = 100, 10.0
"""So many lines about refused gossip are logged at once, and one more each so many seconds: strangers can be many."""
BLAME_MARKS = 20.0
PRUNE_SECONDS = 600.0
NO_CHANNEL = bytes(32)
Query = QueryChannelRange | QueryShortChannelIds

GOSSIP_MESSAGES: tuple[type[Message], ...] = (
    AnnouncementSignatures,
    *SignedGossip.__subclasses__(),
    GossipTimestampFilter,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
)
"""The messages that belong here."""


class GossipStatus(NamedTuple):
    """For people and metrics."""

    channels: int
    nodes: int
    is_synced: bool
    queued: int
    dropped: int
    store_bytes: int


class Gossip:
    """Create it with a view that is loaded; run `runners`, and call `tick`, `flush` and `pump` now and then."""

    def __init__(
        self,
        view: NetworkView,
        funding: FundingSource,
        signer: Signer,
        node_id: bytes,
        chain_hash: bytes,
        config: GossipConfig,
        clock: Callable[[], float],
        height: Callable[[], int],
        rng: random.Random,
        on_remote_update: Callable[[bytes, ChannelUpdate], None] | None = None,
    ) -> None:
        self.view = view
        self.config = config
        self.own = OwnGossip(node_id, chain_hash, config, signer, view)
        self.relay = Relay(view, chain_hash)
        self.sync = SyncManager(view, chain_hash, config, rng, height, self._send, self._has_room)
        self.checker = SignatureChecker()
        self.intake = Intake(view, funding, self.checker, self, chain_hash, config, clock, height)
        self._node_id = node_id
        self._chain_hash = chain_hash
        self._clock = clock
        self._height = height
        self._on_remote_update = on_remote_update
        self._ports: dict[bytes, PeerPort] = {}
        self._conduct: dict[bytes, Conduct] = {}
        self._queries = TokenBuckets(QUERY_BURST, QUERY_REFILL_SECONDS)
        self._held_queries: dict[tuple[bytes, type[Message]], tuple[PeerPort, Query]] = {}
        """Those that have to wait for their answer."""
        self._complaints = TokenBuckets(COMPLAINTS_BURST, COMPLAINTS_REFILL_SECONDS)
        self._pruned_at = clock()

    def runners(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What has to run for ever, each in a task; it may be started again after a failure."""
        return [self.intake.run, *([self.intake.run_funding] * FUNDING_WORKERS)]

    def close(self) -> None:
        """After the tasks ended."""
        self.checker.close()
        self.view.store.close()

    def status(self) -> GossipStatus:
        """What is known, and what is under way."""
        topology = self.view.topology
        return GossipStatus(
            len(topology),
            len(topology.node_index),
            self.sync.is_synced,
            self.intake.queued,
            self.intake.dropped,
            self.view.store.size,
        )

    # --- peers

    def peer_connected(self, port: PeerPort) -> None:
        """After `init`."""
        self._ports[port.node_id] = port
        self._conduct.setdefault(port.node_id, Conduct())
        self.relay.connected(port)
        self.sync.connected(port, self._clock())

    def peer_disconnected(self, port: PeerPort) -> None:
        """The connection is gone."""
        if self._ports.get(port.node_id) is not port:
            return
        now = self._clock()
        del self._ports[port.node_id]
        self.relay.disconnected(port)
        self.sync.disconnected(port, now)
        self._held_queries = {key: held for key, held in self._held_queries.items() if key[0] != port.node_id}
        if self._conduct[port.node_id].marks(now) < 1.0:
            del self._conduct[port.node_id]

    def peer_message(self, port: PeerPort, message: Message) -> None:
        """One of `GOSSIP_MESSAGES`."""
        if self._ports.get(port.node_id) is not port:
            return
        now = self._clock()
        match message:
            case AnnouncementSignatures():
                self._do(self.own.on_signatures(port.node_id, message, now))
            case SignedGossip():
                self._on_gossip(port, message, now)
            case GossipTimestampFilter():
                self.relay.set_filter(port.node_id, message)
            case QueryChannelRange() | QueryShortChannelIds():
                self._on_query(port, message, now)
            case ReplyChannelRange() | ReplyShortChannelIdsEnd():
                try:
                    self.sync.message(port.node_id, message, now)
                except SyncViolation as violation:
                    self._blame(port.node_id, str(violation), now)
            case _:
                raise AssertionError(f"{message.NAME} is no gossip")

    def _on_gossip(self, port: PeerPort, message: SignedGossip, now: float) -> None:
        if isinstance(message, ChannelUpdate):
            channel_id = self.own.on_update(port.node_id, message)
            if channel_id is not None and self._on_remote_update is not None:
                self._on_remote_update(channel_id, message)
            if channel_id is not None and (
                message.message_flags & DONT_FORWARD or not self.own.is_announced(channel_id)
            ):
                return
        if self._conduct[port.node_id].is_throttled(now):
            return
        self.sync.heard(port.node_id, now)
        self.intake.offer(message, port.node_id)

    def _on_query(self, port: PeerPort, query: Query, now: float) -> None:
        # BOLT 7, "if it has not sent all `reply_channel_range` to a previously received `query_channel_range` from this
        # sender: MAY send a `warning`", and the same for `query_short_channel_ids`; one of each is allowed.
        key = port.node_id, type(query)
        if key in self._held_queries or self.relay.is_answering(*key):
            self._blame(port.node_id, f"{query.NAME} while another one is being answered", now, weight=5.0)
        elif self._queries.take(port.node_id, now):
            self._answer(port, query, now)
        else:
            self._held_queries[key] = port, query

    def _answer_held(self, now: float) -> None:
        for key, (port, query) in list(self._held_queries.items()):
            if self._queries.take(port.node_id, now):
                del self._held_queries[key]
                self._answer(port, query, now)

    def _answer(self, port: PeerPort, query: Query, now: float) -> None:
        try:
            if isinstance(query, QueryChannelRange):
                answer = range_replies(query, self.view, self._chain_hash)
            else:
                answer = short_ids_replies(query, parse_short_ids_query(query), self.view, self._chain_hash)
        except DecodeError as error:
            self._blame(port.node_id, f"{query.NAME} cannot be read: {error}", now)
            return
        self.relay.answer(port.node_id, type(query), answer)

    def _blame(self, node_id: bytes, reason: str, now: float, weight: float = BLAME_MARKS) -> None:
        """The peer broke a rule of gossip: it is warned, and marked down; its channels go on."""
        conduct = self._conduct.get(node_id)
        port = self._ports.get(node_id)
        if conduct is None or port is None:
            return
        conduct.blame(weight, now)
        if conduct.may_warn(now):
            if self._complaints.take(None, now):
                log.info("gossip of a peer refused", peer=node_id.hex(), reason=reason)
            port.send(encode(WarningMessage(NO_CHANNEL, told_to_peer(reason).encode())))

    def _has_room(self) -> bool:
        """Answers to queries come by the thousand, and layer 1 may be slower than the peer."""
        return self.intake.queued < MAX_QUEUED_FOR_SYNC

    def _send(self, port: PeerPort, message: Message) -> None:
        port.send(encode(message))

    # --- IntakeListener

    def accepted(self, message: SignedGossip, origins: set[bytes]) -> None:
        """It is in the view: pass it on."""
        self.relay.publish(message, origins)
        if isinstance(message, ChannelAnnouncement):
            self._now_public(message.short_channel_id)

    def refused(self, message: SignedGossip, origins: set[bytes], refusal: Refusal) -> None:
        """It was not taken."""
        if not refusal.blame:
            self.relay.heard_again(message, origins)
            return
        now = self._clock()
        for origin in origins:
            # BOLT 7: "SHOULD send a `warning`", "MUST ignore the message".
            self._blame(origin, f"{message.NAME}: {refusal.reason}", now)

    def unknown_channel(self, scid: int, origin: bytes) -> None:
        """An update without an announcement."""
        self.sync.unknown_channel(scid, origin)

    # --- our own

    def set_channel(self, channel: OwnChannel) -> None:
        """What one of our channels looks like now."""
        self._do(self.own.set_channel(channel, self._clock()))

    def remove_channel(self, channel_id: bytes) -> None:
        """It is over."""
        self.own.remove_channel(channel_id)

    def _do(self, actions: Sequence[owned.Action]) -> None:
        for action in actions:
            match action:
                case owned.ToPeer(peer_id, message):
                    port = self._ports.get(peer_id)
                    if port is not None:
                        port.send(encode(message))
                case owned.Warn(peer_id, channel_id, reason):
                    port = self._ports.get(peer_id)
                    if port is not None:
                        port.send(encode(WarningMessage(channel_id, told_to_peer(reason).encode())))
                case owned.Announce() | owned.Publish():
                    self._publish(action)

    def _publish(self, action: owned.Announce | owned.Publish) -> None:
        try:
            message = owned.apply(self.view, action, self._clock())
        except StoreFull as error:
            log.error("own gossip not published", reason=str(error))
            return
        self.relay.publish(message, set(), is_own=True)
        if isinstance(message, ChannelAnnouncement):
            self._now_public(message.short_channel_id)

    def _now_public(self, scid: int) -> None:
        """If it is ours, and the peer was quicker to tell its policy than we to finish the announcement."""
        kept = self.own.public_update_of_peer(scid)
        if kept is not None:
            self.intake.offer(kept[1], kept[0])

    # --- time and blocks

    def tick(self) -> None:
        """A second or so went by."""
        now = self._clock()
        self._do(self.own.tick(now))
        self.sync.tick(now)
        self.intake.tick(now)
        self._answer_held(now)
        self._queries.clean(now)
        if now - self._pruned_at >= PRUNE_SECONDS:
            self._pruned_at = now
            gone = self.prune(now)
            for node_id in [n for n, c in self._conduct.items() if n not in self._ports and c.marks(now) < 1.0]:
                del self._conduct[node_id]
            if gone:
                log.info("channels forgotten", channels=len(gone))
        self.view.store.flush()

    def prune(self, now: float) -> list[int]:
        """Forget what is stale, or spent for long enough."""
        return pruning.prune(self.view, now, self._height(), self.config, self.own.scids())

    def flush(self) -> int:
        """Send what is new to whoever wants it; returns how many messages went out."""
        return self.relay.flush()

    def pump(self) -> bool:
        """Send some of what was asked for; True if there is more."""
        return self.relay.pump()

    def block_connected(self, block: Block, height: int) -> None:
        """A block came."""
        spent = pruning.block_connected(self.view, block, height)
        if spent:
            log.debug("channels spent", height=height, channels=len(spent))
        for scid in pruning.buried_channels(self.view, height, self.config.forget_spent_blocks):
            self.view.forget(scid)

    def block_disconnected(self, height: int) -> None:
        """The block at `height` is no more."""
        pruning.block_disconnected(self.view, height)
