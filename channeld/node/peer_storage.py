"""What peers keep for us, and we for them (BOLT 1, "Peer storage").

Theirs: any blob, of peers that have a channel with us. Ours: the channels' backup, so that a node that has nothing but
its seed's words left hears of its channels from any peer that it connects to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from sqlalchemy import Connection, select

from channeld.bolt.features import Feature, has
from channeld.bolt.messages import Message, PeerStorageRetrieval
from channeld.bolt.messages import PeerStorage as PeerStorageMessage
from channeld.node.channel_backup import ChannelBackup, ChannelsBackup, NoBackup
from channeld.node.channels import Channels
from channeld.node.peer import PeerLink
from channeld.storage import Store, Write, rows, tables

log = structlog.get_logger(__name__)
MAX_BLOB_BYTES = 65_531
KEPT_BLOCKS = 2016
"""BOLT 1, "when all channels with that peer are closed: SHOULD wait at least 2016 blocks before deleting"."""
UPDATE_SECONDS = 60.0
"""BOLT 1, "MAY delay storage to ratelimit peer to no more than one update per minute": we send no more, either."""
FIRST_OFFER_SECONDS = 1.0
"""So long a peer has for what it keeps, before it is sent again."""


class KeptForPeers:
    """Their blobs."""

    def __init__(self, store: Store, has_stake: Callable[[bytes], bool]) -> None:
        self._store = store
        self._has_stake = has_stake
        self._idle: dict[bytes, int | None] = {}
        """Whose blobs there are; since which block they have had no channel with us."""
        self._waiting: dict[bytes, bytes] = {}
        self._busy: dict[bytes, asyncio.TimerHandle] = {}

    def load(self, connection: Connection) -> None:
        """Whose there are."""
        table = tables.peer_storage.c
        query = select(table.node_id, table.idle_height)
        self._idle = {row.node_id: row.idle_height for row in connection.execute(query)}

    def blob_of(self, node_id: bytes) -> bytes | None:
        """The last one, if there is one."""
        if (waiting := self._waiting.get(node_id)) is not None:
            return waiting
        found = self._store.lookup(rows.FIND_PEER_STORAGE, node_id) if node_id in self._idle else []
        return found[0][0] if found else None

    def take(self, node_id: bytes, blob: bytes) -> None:
        """Keep a blob instead of the one before: at once, or when the last one was kept for a minute."""
        if not self._has_stake(node_id) or len(blob) > MAX_BLOB_BYTES:
            return
        self._waiting[node_id] = blob
        if node_id not in self._busy:
            self._keep(node_id)

    def _keep(self, node_id: bytes) -> None:
        self._busy.pop(node_id, None)
        blob = self._waiting.pop(node_id, None)
        if blob is None:
            return
        self._idle[node_id] = None
        self._store.submit([rows.SAVE_PEER_STORAGE(node_id, blob, None)], lambda error: None)
        self._busy[node_id] = asyncio.get_running_loop().call_later(UPDATE_SECONDS, self._keep, node_id)

    def at_height(self, height: int) -> list[Write]:
        """Blobs of those who have had no channel for long enough go."""
        writes: list[Write] = []
        for node_id, idle_height in list(self._idle.items()):
            if self._has_stake(node_id):
                now = None
            elif idle_height is None:
                now = height
            elif height - idle_height >= KEPT_BLOCKS:
                del self._idle[node_id]
                writes.append(rows.FORGET_PEER_STORAGE(node_id))
                continue
            else:
                continue
            if now != idle_height:
                self._idle[node_id] = now
                writes.append(rows.IDLE_PEER_STORAGE(now, node_id))
        return writes

    def close(self) -> None:
        """What waits is kept at once."""
        for node_id in list(self._waiting):
            self._busy.pop(node_id).cancel()
            self._keep(node_id)
        for timer in self._busy.values():
            timer.cancel()


class KeptByPeers:
    """Our backup, at every connected peer that offers to keep it and has a channel with us that is in use: before, it
    need not keep anything."""

    def __init__(self, backup: ChannelBackup, has_channel: Callable[[bytes], bool]) -> None:
        self._backup = backup
        self._has_channel = has_channel
        self._links: dict[bytes, PeerLink] = {}
        self._kept: dict[bytes, ChannelsBackup] = {}
        """What a connected peer is known to have."""
        self._timers: dict[bytes, asyncio.TimerHandle] = {}
        self._sent: dict[bytes, float] = {}

    def connected(self, link: PeerLink) -> None:
        """Soon it is asked, unless it shows that it has all."""
        if self._backup.is_kept and has(link.remote_features, Feature.option_provide_storage):
            self._links[link.node_id] = link
            self._plan(link.node_id, FIRST_OFFER_SECONDS)

    def disconnected(self, link: PeerLink) -> None:
        """Nothing is known of what it has."""
        if self._links.get(link.node_id) is link:
            del self._links[link.node_id]
            self._kept.pop(link.node_id, None)
            self._cancel(link.node_id)

    def changed(self) -> None:
        """The backup has: every peer is sent it."""
        for node_id in self._links:
            self._plan(node_id, 0)

    def returned(self, link: PeerLink, blob: bytes) -> None:
        """What the peer kept."""
        try:
            found = self._backup.unseal(blob)
        except NoBackup as error:
            log.warning("what a peer kept is not what it was given", peer=link.node_id.hex(), reason=str(error))
            return
        self._kept[link.node_id] = found
        self._backup.returned(found, f"what the peer {link.node_id.hex()} keeps for us")
        if link.node_id in self._links:
            self._cancel(link.node_id)
            self._plan(link.node_id, 0)

    def _plan(self, node_id: bytes, least_seconds: float) -> None:
        if node_id not in self._timers:
            loop = asyncio.get_running_loop()
            rest_seconds = self._sent.get(node_id, -UPDATE_SECONDS) + UPDATE_SECONDS - loop.time()
            self._timers[node_id] = loop.call_later(max(least_seconds, rest_seconds), self._offer, node_id)

    def _cancel(self, node_id: bytes) -> None:
        if (timer := self._timers.pop(node_id, None)) is not None:
            timer.cancel()

    def _offer(self, node_id: bytes) -> None:
        self._timers.pop(node_id, None)
        link = self._links.get(node_id)
        content = self._backup.for_peer(node_id, MAX_BLOB_BYTES)
        if link is None or content == self._kept.get(node_id) or not self._has_channel(node_id):
            return
        self._kept[node_id] = content
        self._sent[node_id] = asyncio.get_running_loop().time()
        # BOLT 1, "SHOULD pad the `blob` to ensure its length is always exactly 65531 bytes"
        link.send_message(PeerStorageMessage(self._backup.seal(content, MAX_BLOB_BYTES)))

    def close(self) -> None:
        """No more."""
        for timer in self._timers.values():
            timer.cancel()


class PeerStorage:
    """Both, for the connections."""

    def __init__(self, store: Store, backup: ChannelBackup, channels: Channels) -> None:
        self.theirs = KeptForPeers(store, channels.has_stake)
        self.ours = KeptByPeers(backup, channels.is_in_use_with)
        backup.on_changed = self.ours.changed

    def peer_connected(self, link: PeerLink) -> None:
        """To be called before `channel_reestablish` is sent: who lost its state can use the blob before that."""
        blob = self.theirs.blob_of(link.node_id)
        if blob is not None:
            link.send_message(PeerStorageRetrieval(blob))
        self.ours.connected(link)

    def peer_disconnected(self, link: PeerLink) -> None:
        """It is gone."""
        self.ours.disconnected(link)

    def peer_message(self, link: PeerLink, message: Message) -> None:
        """`peer_storage` or `peer_storage_retrieval`."""
        if isinstance(message, PeerStorageMessage):
            self.theirs.take(link.node_id, message.blob)
        elif isinstance(message, PeerStorageRetrieval):
            self.ours.returned(link, message.blob)

    def close(self) -> None:
        """The node stops."""
        self.ours.close()
        self.theirs.close()
