"""Peers keep our backup, and give it back before they speak of channels; we keep theirs (BOLT 1, "Peer storage")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from channeld.bolt.features import Feature
from channeld.bolt.messages import ChannelReestablish, Message, PeerStorageRetrieval, decode
from channeld.bolt.messages import PeerStorage as PeerStorageMessage
from channeld.node import channel_backup, peer_storage
from channeld.node.channel_backup import NoBackup, SavedChannel
from channeld.node.peer import PeerLink
from channeld.node.peer_storage import KEPT_BLOCKS, MAX_BLOB_BYTES, KeptForPeers
from channeld.storage import Write
from tests.integration.test_channel_backup_file import content
from tests.integration.world import TestNode, World, told, world_in

CAROL = b"\2" * 33
OF_INTEREST = {kind.TYPE.to_bytes(2, "big") for kind in (PeerStorageMessage, PeerStorageRetrieval, ChannelReestablish)}


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(channel_backup, "GATHER_SECONDS", 0)
    monkeypatch.setattr(peer_storage, "FIRST_OFFER_SECONDS", 0)
    monkeypatch.setattr(peer_storage, "UPDATE_SECONDS", 0)
    async with world_in(tmp_path) as world:
        yield world


class Wire:
    """What links say and hear of storage, and when channels are spoken of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[bytes, Message]] = []
        self._seen = 0
        self._happened = asyncio.Event()
        send = PeerLink.send

        def spy(link: PeerLink, data: bytes) -> None:
            if data[:2] in OF_INTEREST:
                self.sent.append((link.node_id, decode(data)))
                self._happened.set()
            send(link, data)

        monkeypatch.setattr(PeerLink, "send", spy)

    async def until(self, kind: type[Message], to: TestNode) -> Message:
        """The next such message to a node, from the beginning on."""
        async with asyncio.timeout(60):
            while True:
                while self._seen < len(self.sent):
                    node_id, message = self.sent[self._seen]
                    self._seen += 1
                    if isinstance(message, kind) and node_id == to.node_id:
                        return message
                self._happened.clear()
                await self._happened.wait()

    def forget(self) -> None:
        """What was said."""
        self.sent.clear()
        self._seen = 0


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


async def until_kept(wire: Wire, keeper: TestNode, owner: TestNode) -> None:
    """Until a node's database has the other's backup with their channel as it is in use."""
    phases: list[str] = []
    blob = b""
    while phases != ["normal"]:
        message = await wire.until(PeerStorageMessage, keeper)
        assert isinstance(message, PeerStorageMessage)
        blob = message.blob
        phases = [saved.phase for saved in owner.runtime.backup.unseal(blob).channels]
    while keeper.runtime.peer_storage.theirs.blob_of(owner.node_id) != blob:
        await owner.api.pay((await keeper.api.create_invoice(1_000, "what went before it arrives first")).bolt11)
    await keeper.flush()


async def test_a_node_without_its_database_hears_of_its_channels_from_a_peer(world: World, wire: Wire) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    path = world.directory / "channels.backup"
    alice.backups = (path,)
    await alice.restart()
    await world.fund(alice, 2_000_000)
    await world.open(alice, bob, 1_000_000)
    await told(alice, "backup.written", channels=1)
    await until_kept(wire, bob, alice)
    (saved,) = content(alice, path).channels
    blob = bob.runtime.peer_storage.theirs.blob_of(alice.node_id)
    assert blob is not None
    assert len(blob) == MAX_BLOB_BYTES, "its size tells nothing"

    await alice.stop()
    await bob.restart()
    for file in (world.directory / "alice").glob("test.sqlite*"):
        file.unlink()
    path.unlink()
    wire.forget()
    await alice.start()
    await alice.connect(bob)
    event = await told(alice, "backup.unknown_channels", channels=1)
    assert f"--restore-from {path}" in event.sentence
    assert bob.node_id.hex() in event.sentence
    await told(alice, "backup.written", channels=1)
    assert content(alice, path).channels == (saved,)
    to_alice = [type(message) for node_id, message in wire.sent if node_id == alice.node_id]
    assert to_alice[:2] == [PeerStorageRetrieval, ChannelReestablish]


async def test_a_peer_that_has_it_is_not_sent_it_again(
    world: World, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    alice.backups = (world.directory / "channels.backup",)
    await alice.restart()
    await world.fund(alice, 2_000_000)
    channel_id = await world.open(alice, bob, 1_000_000)
    await until_kept(wire, bob, alice)
    monkeypatch.setattr(peer_storage, "FIRST_OFFER_SECONDS", 3600)
    wire.forget()
    await alice.restart()
    await alice.connect(bob)
    await alice.wait_active(channel_id)
    await wire.until(PeerStorageRetrieval, alice)
    await alice.api.pay((await bob.api.create_invoice(10_000, "tea")).bolt11)
    assert not any(isinstance(message, PeerStorageMessage) for _, message in wire.sent)


async def test_storage_is_offered_and_junk_is_given_back_as_it_was(world: World, wire: Wire) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 2_000_000)
    channel_id = await world.open(alice, bob, 1_000_000)
    link = alice.runtime.peers._peers[bob.node_id].link
    assert link is not None
    assert Feature.option_provide_storage | 1 in link.remote_features
    blobs = [b"first", b"", bytes(range(256)) * 255]
    for blob in blobs:
        link.send_message(PeerStorageMessage(blob))
    await alice.api.pay((await bob.api.create_invoice(10_000, "tea")).bolt11)  # what went before it has arrived
    assert bob.runtime.peer_storage.theirs.blob_of(alice.node_id) == blobs[-1]
    wire.forget()
    await bob.restart()
    await alice.wait_active(channel_id)
    returned = await wire.until(PeerStorageRetrieval, alice)
    assert isinstance(returned, PeerStorageRetrieval)
    assert returned.blob == blobs[-1]
    with pytest.raises(NoBackup):
        alice.runtime.backup.unseal(returned.blob)


class Database:
    """What `KeptForPeers` needs of one."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.commits = 0

    def submit(self, writes: list[Write], done: Any) -> None:
        self.commits += 1
        for write in writes:
            node_id, blob, _ = write.parameters
            self.rows[node_id] = blob

    def lookup(self, statement: Any, node_id: bytes) -> list[tuple[bytes]]:
        return [(self.rows[node_id],)] if node_id in self.rows else []


async def test_updates_are_kept_once_a_minute_and_the_last_one_in_any_case() -> None:
    database = Database()
    kept = KeptForPeers(database, lambda node_id: True)  # type: ignore[arg-type]
    for number in range(5):
        kept.take(CAROL, bytes([number]))
        assert kept.blob_of(CAROL) == bytes([number])
    assert database.commits == 1
    assert database.rows == {CAROL: b"\0"}
    kept.take(CAROL, bytes(MAX_BLOB_BYTES + 1))
    assert kept.blob_of(CAROL) == b"\4"
    kept.close()
    assert database.rows == {CAROL: b"\4"}


async def test_who_has_no_channel_gets_nothing_kept() -> None:
    database = Database()
    kept = KeptForPeers(database, lambda node_id: False)  # type: ignore[arg-type]
    kept.take(CAROL, b"please")
    assert kept.blob_of(CAROL) is None
    kept.close()
    assert database.commits == 0


async def test_blobs_go_two_weeks_after_the_last_channel() -> None:
    stake = {CAROL}
    database = Database()
    kept = KeptForPeers(database, stake.__contains__)  # type: ignore[arg-type]
    kept.take(CAROL, b"hers")
    assert kept.at_height(100) == []
    stake.clear()
    (idle,) = kept.at_height(101)
    assert idle.parameters == (101, CAROL)
    assert kept.at_height(101 + KEPT_BLOCKS - 1) == []
    stake.add(CAROL)
    (back,) = kept.at_height(101 + KEPT_BLOCKS)
    assert back.parameters == (None, CAROL)
    stake.clear()
    kept.at_height(5_000)
    (gone,) = kept.at_height(5_000 + KEPT_BLOCKS)
    assert gone.parameters == (CAROL,)
    assert kept.at_height(5_001 + KEPT_BLOCKS) == []
    assert kept.blob_of(CAROL) is None
    kept.close()


async def test_a_peer_keeps_its_own_channels_first_and_what_fits(world: World) -> None:
    alice = await world.node("alice")
    alice.backups = (world.directory / "channels.backup",)
    await alice.restart()
    backup = alice.runtime.backup
    others = [SavedChannel(key, bytes(32), b"\3" * 33, "normal", bytes(2_000), 0) for key in range(100, 140)]
    hers = [SavedChannel(key, bytes(32), CAROL, "normal", bytes(2_000), 0) for key in range(3)]
    backup._saved = {saved.channel_key: saved for saved in (*others, *hers)}
    told_her = backup.for_peer(CAROL, MAX_BLOB_BYTES)
    keys = [saved.channel_key for saved in told_her.channels]
    assert keys[:3] == [0, 1, 2]
    assert keys[3:] == list(range(140 - len(keys) + 3, 140)), "the latest of the others"
    assert 28 < len(keys) < 33
    sealed = backup.seal(told_her, MAX_BLOB_BYTES)
    assert len(sealed) == MAX_BLOB_BYTES
    assert backup.unseal(sealed) == told_her
