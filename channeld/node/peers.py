"""Peers: who is connected, who should be, and how to get there again.

A peer with which we have a channel is called again when the connection is lost, after a growing, jittered wait. When
two connections to one peer come about, both sides keep the same one.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Literal, Protocol

import structlog
from sqlalchemy import Connection as DbConnection
from sqlalchemy import select

from channeld.bolt.features import describe
from channeld.bolt.messages import (
    ErrorMessage,
    Message,
    OnionMessage,
    PeerStorage,
    PeerStorageRetrieval,
    WarningMessage,
)
from channeld.gossip.service import GOSSIP_MESSAGES
from channeld.node import transport
from channeld.node.bus import EventBus
from channeld.node.identity import Identity
from channeld.node.interface import NodeError, PeerView
from channeld.node.notes import Notes
from channeld.node.peer import PeerLink
from channeld.node.turns import Turns
from channeld.storage import Store, rows, tables

log = structlog.get_logger(__name__)

FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 300.0
PEACE_SECONDS = 30.0
"""A connection that lasts for so long is not one of those that end in a quarrel again and again."""
CROSSING_SECONDS = 10.0
"""Two connections that came about within this time crossed each other."""
MAX_PEERS_WITHOUT_CHANNELS = 200
MAX_STARTING_PER_PEER = 3
"""Connections of one node that have not said `init` yet: it may try again before we have noticed that one is dead."""


class PeerChannels(Protocol):
    """What the channels want to know of peers."""

    def peer_connected(self, link: PeerLink) -> None: ...
    def peer_disconnected(self, link: PeerLink) -> None: ...
    def peer_message(self, link: PeerLink, message: Message, raw: bytes) -> None: ...
    def peer_error(self, link: PeerLink, message: ErrorMessage) -> None: ...
    def count_with(self, node_id: bytes) -> int: ...
    def has_stake(self, node_id: bytes) -> bool: ...


class PeerService(Protocol):
    """What gossip and the storage for peers want to know of them."""

    def peer_connected(self, link: PeerLink) -> None: ...
    def peer_disconnected(self, link: PeerLink) -> None: ...
    def peer_message(self, link: PeerLink, message: Message) -> None: ...


class PeerMessenger(Protocol):
    """Who takes onion messages."""

    def peer_message(self, link: PeerLink, message: OnionMessage) -> None: ...


class Peer:
    """A node that we know: connected, or worth connecting to."""

    def __init__(self, node_id: bytes) -> None:
        self.node_id = node_id
        self.address: tuple[str, int] | None = None
        """Where it can be called; None if it only ever called us."""
        self.link: PeerLink | None = None
        self.connected_at = 0.0
        self.last_error = ""
        self.is_told_of = False
        """Whether the operator was told that it is connected."""
        self.retry: asyncio.Task[None] | None = None
        self.wait_seconds = FIRST_RETRY_SECONDS
        """Before it is called again once the connection is lost."""


class Peers:
    """All peers. Use `set_channels` before `start`."""

    def __init__(
        self, store: Store, identity: Identity, bus: EventBus, features: frozenset[int], chain_hash: bytes
    ) -> None:
        self._store = store
        self._identity = identity
        self._bus = bus
        self._features = features
        self._chain_hash = chain_hash
        self._peers: dict[bytes, Peer] = {}
        self._starting: dict[PeerLink, None] = {}  # in order of arrival
        self._channels: PeerChannels | None = None
        self._gossip: PeerService | None = None
        self._storage: PeerService | None = None
        self._messenger: PeerMessenger | None = None
        self._turns = Turns()
        self._notes = Notes(lambda node_id: self.channels.has_stake(node_id))
        self._waiters: dict[bytes, list[asyncio.Future[PeerLink]]] = {}
        self._listeners: list[transport.Listener] = []
        self._stopping = False

    def set_channels(self, channels: PeerChannels) -> None:
        """Who gets the channels' messages."""
        self._channels = channels

    def set_gossip(self, gossip: PeerService) -> None:
        """Who gets the messages of BOLT 7."""
        self._gossip = gossip

    def set_storage(self, storage: PeerService) -> None:
        """Who gets `peer_storage` and what peers return of it."""
        self._storage = storage

    def set_messenger(self, messenger: PeerMessenger) -> None:
        """Who gets onion messages."""
        self._messenger = messenger

    @property
    def channels(self) -> PeerChannels:
        assert self._channels is not None
        return self._channels

    def load(self, connection: DbConnection) -> None:
        """Known addresses."""
        for row in connection.execute(select(tables.peers)):
            self._peer(row.node_id).address = (row.host, row.port)

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept connections; returns the address really used. Raises OSError."""
        listener = await transport.listen(host, port, self._identity.node_secret, self._accept, self._turns)
        self._listeners.append(listener)
        return listener.addresses[0]

    def start(self) -> None:
        """Call all peers with which there are channels."""
        for peer in list(self._peers.values()):
            self._keep_calling(peer, at_once=True)

    async def stop(self) -> None:
        """Close everything."""
        self._stopping = True
        for listener in self._listeners:
            await listener.close()
        tasks = [peer.retry for peer in self._peers.values() if peer.retry is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        links = [peer.link for peer in self._peers.values() if peer.link is not None] + list(self._starting)
        for link in links:
            link.close("this node stops")
        await asyncio.gather(*(link.wait_closed() for link in links))

    # --- verbs

    def link(self, node_id: bytes) -> PeerLink | None:
        """The connection to a peer, if there is one."""
        peer = self._peers.get(node_id)
        return peer.link if peer is not None else None

    def links(self) -> list[PeerLink]:
        """All connections."""
        return [peer.link for peer in self._peers.values() if peer.link is not None]

    async def connect(self, node_id: bytes, host: str, port: int, timeout_seconds: float) -> PeerView:
        """Connect and remember the address, or find connected."""
        if node_id == self._identity.node_id:
            raise NodeError("invalid_argument", "that is this node's own id")
        peer = self._peer(node_id)
        if peer.link is None:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._call(peer, host, port)
            except TimeoutError as error:
                raise NodeError("unavailable", f"{host}:{port} did not answer in {timeout_seconds:g} s") from error
            except (transport.TransportError, OSError) as error:
                if peer.link is not None:
                    return self._view(peer)  # it called us at the same time, and that connection is the one that stays
                self._forget_if_useless(peer)
                raise NodeError("unavailable", str(error)) from error
            except ValueError as error:
                self._forget_if_useless(peer)
                raise NodeError("invalid_argument", f"{node_id.hex()} is no node id: {error}") from error
            # Only an address that answered with this node's key is worth keeping.
            peer.address = (host, port)
            await self._store.commit([rows.SAVE_PEER(node_id, host, port, int(time.time()))])
        return self._view(peer)

    async def disconnect(self, node_id: bytes, force: bool) -> None:
        """Close the connection; with channels only if `force`d, and then the peer is soon called again."""
        peer = self._peers.get(node_id)
        if peer is None or peer.link is None:
            raise NodeError("not_found", f"{node_id.hex()} is not connected")
        if self.channels.count_with(node_id) and not force:
            raise NodeError("failed_precondition", "there are channels with this peer; use force to disconnect anyway")
        peer.link.close("disconnected by the operator")

    def views(self) -> list[PeerView]:
        """Connected peers, and those that are called."""
        return [self._view(peer) for peer in self._peers.values() if peer.link is not None or self._is_wanted(peer)]

    def num_connected(self) -> int:
        """How many peers are connected now."""
        return sum(peer.link is not None for peer in self._peers.values())

    def _view(self, peer: Peer) -> PeerView:
        link = peer.link
        address = peer.address or (link.address if link is not None else None)
        return PeerView(
            node_id=peer.node_id,
            address=f"{address[0]}:{address[1]}" if address else "",
            connected=link is not None,
            inbound=link is not None and link.inbound,
            features=describe(link.remote_features) if link is not None else (),
            num_channels=self.channels.count_with(peer.node_id),
            ping_seconds=link.ping_seconds if link is not None else None,
            last_error=peer.last_error,
        )

    # --- connections

    def _peer(self, node_id: bytes) -> Peer:
        return self._peers.setdefault(node_id, Peer(node_id))

    def _is_wanted(self, peer: Peer) -> bool:
        return self.channels.count_with(peer.node_id) > 0

    def address_of(self, node_id: bytes) -> tuple[str, int] | None:
        """Where a peer is called, if that is known."""
        peer = self._peers.get(node_id)
        return None if peer is None else peer.address

    def _forget_if_useless(self, peer: Peer) -> None:
        if peer.link is None and peer.address is None and not self._is_wanted(peer):
            self._peers.pop(peer.node_id, None)

    async def _call(self, peer: Peer, host: str, port: int) -> None:
        """Returns when `init` went both ways, be it over this connection or another. Raises TransportError."""
        connection = await transport.connect(host, port, self._identity.node_secret, peer.node_id, self._turns)
        if peer.link is None:
            ready: asyncio.Future[PeerLink] = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(peer.node_id, []).append(ready)
            self._begin(connection)
            await ready
        else:
            self._begin(connection)

    def _accept(self, connection: transport.Connection) -> None:
        has_stake = self.channels.has_stake
        strangers = sum(not has_stake(node_id) for node_id in self._peers) + len(self._starting)
        if self._stopping or (strangers >= MAX_PEERS_WITHOUT_CHANNELS and not has_stake(connection.remote_node_id)):
            connection.abort("too many peers")
            return
        self._begin(connection)

    def _begin(self, connection: transport.Connection) -> None:
        link = PeerLink(connection, self, self._features, self._chain_hash)
        # Whom we called, and who has locked coins with us, comes before strangers.
        if not link.inbound or self.channels.has_stake(link.node_id):
            link.prefer()
        begun = [other for other in self._starting if other.node_id == link.node_id and other.inbound]
        if link.inbound and len(begun) >= MAX_STARTING_PER_PEER:
            begun[0].close("replaced by a newer connection")
            self._starting.pop(begun[0], None)
        self._starting[link] = None
        link.start()

    def _keep_calling(self, peer: Peer, at_once: bool = False) -> None:
        if peer.retry is None and peer.link is None and peer.address and not self._stopping and self._is_wanted(peer):
            peer.retry = asyncio.create_task(self._retry(peer, at_once))

    async def _retry(self, peer: Peer, at_once: bool) -> None:
        wait = 0.0 if at_once else peer.wait_seconds
        try:
            while peer.link is None and self._is_wanted(peer) and peer.address is not None:
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))
                wait = min(max(2 * wait, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
                try:
                    await self._call(peer, *peer.address)
                except (transport.TransportError, OSError) as error:
                    peer.last_error = str(error)
                    log.debug("peer is away", peer=peer.node_id.hex(), reason=str(error), next_try_seconds=wait)
        finally:
            peer.retry = None

    # --- PeerHandler

    def ready(self, link: PeerLink) -> None:
        """`init` went both ways."""
        self._starting.pop(link, None)
        peer = self._peer(link.node_id)
        old = peer.link
        if old is not None:
            if self._keeps_old(peer, old, link):
                link.close("there is another connection between us")
                self._resolve(link.node_id, old)
                return
            peer.link = None
            self._tell_disconnected(old)
            old.close("replaced by a newer connection")
        peer.link = link
        peer.connected_at = time.monotonic()
        peer.last_error = ""
        peer.is_told_of = not link.inbound or self._notes.may_tell(link.node_id)
        if peer.is_told_of:
            direction = "inbound" if link.inbound else "outbound"
            self._bus.publish(
                "peer.connected", f"connected to {link.node_id.hex()} ({direction})", node_id=link.node_id.hex()
            )
        self._resolve(link.node_id, link)
        # BOLT 1, "`peer_storage_retrieval` should not be sent after `channel_reestablish`"
        if self._storage is not None:
            self._storage.peer_connected(link)
        self.channels.peer_connected(link)
        if self._gossip is not None:
            self._gossip.peer_connected(link)

    def _tell_disconnected(self, link: PeerLink) -> None:
        self.channels.peer_disconnected(link)
        for service in (self._storage, self._gossip):
            if service is not None:
                service.peer_disconnected(link)

    def _keeps_old(self, peer: Peer, old: PeerLink, new: PeerLink) -> bool:
        """Crossing connections: both sides keep the one that the smaller node id opened. Otherwise the new one wins:
        the peer would not have called if it believed in the old one."""
        if old.inbound == new.inbound or time.monotonic() - peer.connected_at > CROSSING_SECONDS:
            return False
        we_open = self._identity.node_id < peer.node_id
        return old.inbound != we_open

    def _resolve(self, node_id: bytes, link: PeerLink) -> None:
        for waiter in self._waiters.pop(node_id, ()):
            if not waiter.done():
                waiter.set_result(link)

    def message(self, link: PeerLink, message: Message, raw: bytes) -> None:
        """Everything that is not about the connection itself."""
        if isinstance(message, GOSSIP_MESSAGES):
            if self._gossip is not None:
                self._gossip.peer_message(link, message)
        elif isinstance(message, PeerStorage | PeerStorageRetrieval):
            if self._storage is not None:
                self._storage.peer_message(link, message)
        elif isinstance(message, OnionMessage):
            if self._messenger is not None:
                self._messenger.peer_message(link, message)
        else:
            if not link.is_preferred and self.channels.has_stake(link.node_id):
                link.prefer()  # its first channel since it connected
            self.channels.peer_message(link, message, raw)

    def error(self, link: PeerLink, message: ErrorMessage) -> None:
        """The peer fails a channel, or all of them."""
        self._note(link, "error", message.channel_id, message.data)
        self.channels.peer_error(link, message)

    def warning(self, link: PeerLink, message: WarningMessage) -> None:
        """Something is wrong, says the peer."""
        self._note(link, "warning", message.channel_id, message.data)

    def _note(self, link: PeerLink, kind: Literal["error", "warning"], channel_id: bytes, data: bytes) -> None:
        if not self._notes.may_tell_complaint(link.node_id):
            return
        # BOLT 1, "if `data` is not composed solely of printable ASCII characters [...]: SHOULD NOT print out `data`
        # verbatim."
        text = "".join(chr(byte) for byte in data[:500] if 32 <= byte <= 126)
        peer = self._peers.get(link.node_id)
        if peer is not None:
            peer.last_error = f"{kind}: {text}"
        self._bus.publish(
            "peer.error" if kind == "error" else "peer.warning",
            f"{link.node_id.hex()} sent a{'n' if kind == 'error' else ''} {kind}: {text}",
            node_id=link.node_id.hex(),
            channel_id=channel_id.hex(),
        )

    def closed(self, link: PeerLink, reason: str) -> None:
        """A connection is gone."""
        was_starting = link in self._starting
        self._starting.pop(link, None)
        peer = self._peers.get(link.node_id)
        if peer is None:
            return
        if was_starting:
            for waiter in self._waiters.pop(link.node_id, ()):
                if not waiter.done():
                    waiter.set_exception(transport.TransportError(f"the connection ended before init: {reason}"))
        if peer.link is not link:
            return
        peer.link = None
        if time.monotonic() - peer.connected_at >= PEACE_SECONDS:
            peer.wait_seconds = FIRST_RETRY_SECONDS
        elif link.has_quarrelled:  # BOLT 2 has many "send a `warning` and close the connection": no storm of those
            peer.wait_seconds = min(2 * peer.wait_seconds, LAST_RETRY_SECONDS)
        self._tell_disconnected(link)
        if peer.is_told_of or self.channels.has_stake(link.node_id):
            self._bus.publish(
                "peer.disconnected", f"lost {link.node_id.hex()}: {reason}", node_id=link.node_id.hex(), reason=reason
            )
        self._keep_calling(peer)
        self._forget_if_useless(peer)
