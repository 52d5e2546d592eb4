"""Onion messages: taken in, passed on, sent, and answered over reply paths. Nothing of them is ever stored.

What is wrong, too much, or for a peer that is not there is dropped without a word, as BOLT 4 has it. What a message
says is the business of whoever registered for its content (`register`); questions wait for their answers (`ask`).

Source: BOLT 4, "Onion Messages".
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import structlog

from channeld.bolt.features import Feature, has
from channeld.bolt.messages import OnionMessage, encode
from channeld.bolt.onion.blinding import (
    BlindedPath,
    BlindingError,
    EncryptedData,
    create_blinded_path,
    pad_alike,
    prepend_hops,
)
from channeld.bolt.onion.messages import (
    ForwardMessage,
    IgnoredOnionMessage,
    OnionMessagePayload,
    ReceiveMessage,
    build_message_onion,
    read_message_onion,
)
from channeld.bolt.onion.sphinx import OnionTooLong
from channeld.bolt.primitives import EncodeError
from channeld.gossip.limits import TokenBuckets
from channeld.node.identity import Identity
from channeld.node.interface import NodeError
from wallet.bitcoin.secp import InvalidKey

if TYPE_CHECKING:
    from channeld.node.channels import Channels
    from channeld.node.peer import PeerLink
    from channeld.node.peers import Peers
    from channeld.routing.graph import Graph

log = structlog.get_logger(__name__)

MOST_HOPS = 5
"""Nodes that a message of ours may pass on its way to a path that begins at no peer of ours."""
MOST_LOCAL_HOPS = 10
"""Hops in a row that may lead from this node to itself: a recipient's dummies."""
MOST_ASKED = 1_000
MOST_BUCKETS = 10_000
NAMES_SECONDS = 1.0
BYTES_PER_TOKEN = 4096
_ALL = "all"
_FIRST_CONTENT = 64
INVOICE_REQUEST, INVOICE, INVOICE_ERROR = 64, 66, 68
"""Content types of BOLT 12."""


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """Tokens: a message costs one, and one more for each 4096 bytes. Messages of our own are free.

    Peers with channels have an allowance together that strangers, of whom there may be as many as somebody likes, do
    not touch.
    """

    burst_with_channel: int = 50
    refill_with_channel_seconds: float = 0.1
    burst_all_with_channels: int = 250
    refill_all_with_channels_seconds: float = 0.01
    burst_stranger: int = 10
    refill_stranger_seconds: float = 0.5
    burst_all_strangers: int = 50
    refill_all_strangers_seconds: float = 0.04


@dataclass(frozen=True, slots=True)
class Content:
    """A payload field of type 64 or above: what a message is about."""

    type: int
    value: bytes


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """A message for us that answers no question of ours. `path_id`: through which path of ours it came."""

    content: Content
    path_id: bytes | None
    reply_path: BlindedPath | None


Handler = Callable[[IncomingMessage], None]
Destination = bytes | BlindedPath
"""A node id, or a path that somebody gave us."""


class OnionMessenger:
    """All onion messages of a node."""

    def __init__(
        self,
        identity: Identity,
        peers: Peers,
        channels: Channels,
        graph: Callable[[], Graph],
        limits: MessageLimits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = limits or MessageLimits()
        self._identity = identity
        self._peers = peers
        self._channels = channels
        self._graph = graph
        self._now = now
        self._friends = (
            TokenBuckets(limits.burst_with_channel, limits.refill_with_channel_seconds),
            TokenBuckets(limits.burst_all_with_channels, limits.refill_all_with_channels_seconds),
        )
        self._strangers = (
            TokenBuckets(limits.burst_stranger, limits.refill_stranger_seconds),
            TokenBuckets(limits.burst_all_strangers, limits.refill_all_strangers_seconds),
        )
        self._handlers: dict[int, Handler] = {}
        self._asked: dict[bytes, asyncio.Future[Content]] = {}
        self._by_scid: dict[int, bytes] = {}
        self._named_at = float("-inf")

    # --- in

    def peer_message(self, link: PeerLink, message: OnionMessage) -> None:
        """A peer sent one. Never raises for what the peer did."""
        if self._is_too_much(link.node_id, len(message.onion_message_packet)):
            return
        self._process(message.onion_message_packet, message.path_key)

    def _is_too_much(self, node_id: bytes, size: int) -> bool:
        """Before any cryptography: the peer's own allowance first, so that it uses up nobody else's."""
        now = self._now()
        own, shared = self._friends if self._channels.count_with(node_id) else self._strangers
        if len(own) > MOST_BUCKETS:
            own.clean(now)
        tokens = 1 + size // BYTES_PER_TOKEN
        return not (self._take(own, node_id, tokens, now) and self._take(shared, _ALL, tokens, now))

    @staticmethod
    def _take(buckets: TokenBuckets, key: Hashable, tokens: int, now: float) -> bool:
        return all(buckets.take(key, now) for _ in range(tokens))

    def _process(self, packet: bytes, path_key: bytes) -> None:
        for _ in range(MOST_LOCAL_HOPS):
            try:
                read = read_message_onion(packet, path_key, self._identity.node_secret)
            except IgnoredOnionMessage as ignored:
                log.debug("onion message ignored", reason=str(ignored))
                return
            if isinstance(read, ReceiveMessage):
                self._deliver(read)
                return
            next_peer = self._next_peer(read)
            if next_peer != self._identity.node_id:
                self._forward(read, next_peer)
                return
            packet, path_key = read.packet, read.path_key

    def _next_peer(self, read: ForwardMessage) -> bytes | None:
        # BOLT 4, "if `next_node_id` is present: the *next peer* is the peer with that node id. otherwise, if
        # `short_channel_id` is present and corresponds to an announced short_channel_id or a local alias for a channel:
        # the *next peer* is the peer at the other end of that channel."
        if read.next_node_id is not None:
            return read.next_node_id
        assert read.short_channel_id is not None
        found = self._by_scid.get(read.short_channel_id)
        if found is None and self._now() - self._named_at > NAMES_SECONDS:  # strangers may ask for anything
            self._named_at = self._now()
            self._by_scid = dict(self._names())
            found = self._by_scid.get(read.short_channel_id)
        return found

    def _names(self) -> Iterator[tuple[int, bytes]]:
        from channeld.node.forwarding import names_of

        for driver in self._channels.all():
            for scid in names_of(driver):
                yield scid, driver.peer_id

    def _forward(self, read: ForwardMessage, next_peer: bytes | None) -> None:
        link = self._able(next_peer)
        if link is None or link.is_congested:
            log.debug("onion message dropped: its next node is no peer that takes it now")
            return
        link.send(encode(OnionMessage(read.path_key, read.packet)))

    def _able(self, node_id: bytes | None) -> PeerLink | None:
        """The connection to a peer that understands onion messages."""
        link = self._peers.link(node_id) if node_id is not None else None
        return link if link is not None and has(link.remote_features, Feature.option_onion_messages) else None

    def _deliver(self, read: ReceiveMessage) -> None:
        content = content_of(read.payload)
        # BOLT 4, "Care must be taken that replies are only accepted using the exact reply_path given"
        asked = self._asked.pop(read.path_id, None) if read.path_id is not None else None
        if asked is not None:
            if content is not None and not asked.done():
                asked.set_result(content)
            return
        handler = self._handlers.get(content.type) if content is not None else None
        if content is None or handler is None:
            log.debug("onion message with nothing that anybody here waits for")
            return
        try:
            handler(IncomingMessage(content, read.path_id, read.payload.reply_path))
        except Exception:  # a stranger's message must not end the connection that it came over
            log.exception("an onion message was not understood", content=content.type)

    # --- out

    def register(self, content_type: int, handler: Handler) -> None:
        """Hear of messages with this payload field (64 or above; of unknown types only odd ones come through)."""
        assert content_type >= _FIRST_CONTENT
        assert content_type not in self._handlers
        self._handlers[content_type] = handler

    def send(self, destination: Destination, content: Content, reply_path: BlindedPath | None = None) -> None:
        """One message, without knowing whether it arrives. Raises NodeError: no way, or too long."""
        payload = replace(payload_of(content), reply_path=reply_path)
        try:
            path = self._path_to(destination)
            packet = build_message_onion(path, payload, os.urandom(32))
        except OnionTooLong as error:
            raise NodeError("invalid_argument", f"the message is too long: {error}") from error
        except (InvalidKey, EncodeError, BlindingError, ValueError) as error:
            raise NodeError("invalid_argument", f"the path of the message is no good: {error}") from error
        if path.first_node_id == self._identity.node_id:
            self._process(packet, path.first_path_key)
            return
        link = self._able(path.first_node_id)
        assert link is not None
        link.send(encode(OnionMessage(path.first_path_key, packet)))

    def reply(self, message: IncomingMessage, content: Content) -> bool:
        """Answers over the path that came along. False if there was none, or it leads nowhere: then nobody is told."""
        if message.reply_path is None:
            return False
        try:
            self.send(message.reply_path, content)
        except NodeError as error:
            log.debug("onion message not answered", reason=error.sentence)
            return False
        return True

    async def ask(self, destination: Destination, content: Content, timeout_seconds: float = 10.0) -> Content:
        """A message and its answer. Raises NodeError: no way, too many questions, or no answer in time."""
        if len(self._asked) >= MOST_ASKED:
            raise NodeError("resource_exhausted", "too many questions wait for an answer: try again later")
        path_id = os.urandom(32)
        first = destination if isinstance(destination, bytes) else destination.first_node_id
        answer: asyncio.Future[Content] = asyncio.get_running_loop().create_future()
        self._asked[path_id] = answer
        try:
            self.send(destination, content, self.path_to_us(path_id, avoid=first))
            async with asyncio.timeout(timeout_seconds):
                return await answer
        except TimeoutError as error:
            raise NodeError("deadline_exceeded", f"no answer came in {timeout_seconds:g} s") from error
        finally:
            self._asked.pop(path_id, None)

    def path_to_us(self, path_id: bytes, avoid: bytes = b"") -> BlindedPath:
        """A path for messages to this node, through a peer if there is one (rather not through `avoid`)."""
        us = (self._identity.node_id, EncryptedData(path_id=path_id))
        able = [link.node_id for link in self._peers.links() if self._able(link.node_id) is not None]
        # Strangers find best who has channels; a peer that nobody knows could not be found at all.
        able.sort(key=lambda node_id: (node_id == avoid, not self._is_known(node_id), os.urandom(1)))
        hops = [us] if not able else [(able[0], EncryptedData(next_node_id=self._identity.node_id)), us]
        datas = pad_alike([data for _, data in hops])
        named = [(node_id, data) for (node_id, _), data in zip(hops, datas, strict=True)]
        return create_blinded_path(named, os.urandom(32)).path

    def _is_known(self, node_id: bytes) -> bool:
        return self._graph().node_index(node_id) is not None

    def _path_to(self, destination: Destination) -> BlindedPath:
        """A path whose first node is a peer, or this node. Raises NodeError."""
        if isinstance(destination, BlindedPath):
            return self._reach(self._resolved(destination))
        relays = self._relays_to(destination)
        return create_blinded_path([*_chain(relays, destination), (destination, EncryptedData())], os.urandom(32)).path

    def _resolved(self, path: BlindedPath) -> BlindedPath:
        """The introduction node by its id where it is given by a channel and a direction (`sciddir_or_pubkey`)."""
        if len(path.first_node_id) == 33:
            return path
        direction, scid = path.first_node_id[0], int.from_bytes(path.first_node_id[1:], "big")
        channel = self._graph().channel(scid)
        if channel is None:
            raise NodeError("unavailable", "the path begins at a channel that this node does not know")
        return replace(path, first_node_id=channel.node_id_2 if direction else channel.node_id_1)

    def _reach(self, path: BlindedPath) -> BlindedPath:
        first = path.first_node_id
        if first == self._identity.node_id or self._able(first) is not None:
            return path
        return prepend_hops(_chain(self._relays_to(first), first), os.urandom(32), path)

    def _relays_to(self, target: bytes) -> list[bytes]:
        """Nodes that lead to `target`, a peer first; none if it is a peer itself. Raises NodeError."""
        if target == self._identity.node_id or self._able(target) is not None:
            return []
        found = relays_to(self._graph(), target, lambda node_id: self._able(node_id) is not None)
        if found is None:
            raise NodeError("unavailable", f"no way for onion messages to {target.hex()} is known: connect to it")
        return found


def relays_to(graph: Graph, target: bytes, is_peer: Callable[[bytes], bool]) -> list[bytes] | None:
    """The fewest nodes with `option_onion_messages` that lead along channels to `target`, from one for which `is_peer`
    holds on; None if more than `MOST_HOPS` would be needed."""
    start = graph.node_index(target)
    if start is None:
        return None
    topology = graph.topology()
    able = graph.nodes_with(1 << Feature.option_onion_messages)
    towards = {start: start}
    frontier = [start]
    for _ in range(MOST_HOPS):
        following: list[int] = []
        for node in frontier:
            begin, end = topology.out_start[node], topology.out_start[node + 1]
            for neighbour in topology.out_targets[begin:end].tolist():
                if neighbour in towards or not able[neighbour]:
                    continue
                towards[neighbour] = node
                if is_peer(graph.node_id(neighbour)):
                    return _walk(graph, towards, neighbour)
                following.append(neighbour)
        frontier = following
    return None


def _walk(graph: Graph, towards: dict[int, int], node: int) -> list[bytes]:
    relays = []
    while towards[node] != node:
        relays.append(graph.node_id(node))
        node = towards[node]
    return relays


def _chain(relays: list[bytes], target: bytes) -> list[tuple[bytes, EncryptedData]]:
    """Instructions for `relays`: each leads to the next, the last to `target`."""
    return [(node_id, EncryptedData(next_node_id=after)) for node_id, after in pairwise([*relays, target])]


def content_of(payload: OnionMessagePayload) -> Content | None:
    """What a message is about; None if it has no such field. (More than one makes it invalid.)"""
    named = {INVOICE_REQUEST: payload.invoice_request, INVOICE: payload.invoice, INVOICE_ERROR: payload.invoice_error}
    for content_type, value in named.items():
        if value is not None:
            return Content(content_type, value)
    unknown = [record for record in payload.unknown_tlvs if record[0] >= _FIRST_CONTENT]
    return Content(*unknown[0]) if unknown else None


def payload_of(content: Content) -> OnionMessagePayload:
    """The other way round."""
    match content.type:
        case 64:
            return OnionMessagePayload(invoice_request=content.value)
        case 66:
            return OnionMessagePayload(invoice=content.value)
        case 68:
            return OnionMessagePayload(invoice_error=content.value)
        case _:
            return OnionMessagePayload(unknown_tlvs=((content.type, content.value),))
