"""The file that follows the channels: what is in it, when it is written, and what it never loses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channeld.bolt.messages import Address, AddressType, NodeAnnouncement, encode, encode_addresses
from channeld.channel import machine
from channeld.node import channel_backup
from channeld.node.channel_backup import ChannelsBackup, NoBackup, PeerAddress, SavedChannel, backup_key, seal, unseal
from channeld.paths import write_private
from tests.integration.world import STEP_SECONDS, TestNode, World, told, world_in

KEY = bytes(32)
SOME = ChannelsBackup(
    "regtest",
    b"\2" * 33,
    7,
    (SavedChannel(1 << 62, b"\3" * 32, b"\2" * 33, "normal", b"state", 1_900_000_000),),
    (PeerAddress(b"\2" * 33, "node.example.org", 9735),),
)


def test_what_is_sealed_is_unsealed_by_the_same_seed_alone() -> None:
    sealed = seal(SOME, KEY)
    assert unseal(sealed, KEY) == SOME
    assert sealed != seal(SOME, KEY)
    assert b"node.example.org" not in sealed
    broken = [sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :] for at in range(len(sealed))]
    for bad in (*broken, *(sealed[:size] for size in range(len(sealed))), b"SQLite format 3\0"):
        with pytest.raises(NoBackup):
            unseal(bad, KEY)
    with pytest.raises(NoBackup, match="another seed"):
        unseal(sealed, b"\1" * 32)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(channel_backup, "GATHER_SECONDS", 0)
    monkeypatch.setattr(channel_backup, "RETRY_SECONDS", 0.01)
    async with world_in(tmp_path) as world:
        yield world


async def keeper(world: World, *paths: Path) -> TestNode:
    """A node, started anew with backups."""
    alice = await world.node("alice")
    alice.backups = paths
    await alice.restart()
    return alice


def content(node: TestNode, path: Path) -> ChannelsBackup:
    return unseal(path.read_bytes(), backup_key(node.runtime.identity))


async def test_the_file_follows_the_channels(world: World) -> None:
    path = world.directory / "channels.backup"
    alice, bob = await keeper(world, path), await world.node("bob")
    await told(alice, "backup.written", channels=0)
    await world.fund(alice, 2_000_000)
    channel_id = await world.open(alice, bob, 1_000_000, push_msat=200_000_000)

    async def is_usable() -> bool:
        return [saved.phase for saved in content(alice, path).channels] == ["normal"]

    await alice.until(is_usable)
    found = content(alice, path)
    assert found.peers == (PeerAddress(bob.node_id, "127.0.0.1", bob.port),)
    assert (found.network, found.node_id, found.birthday_height) == ("regtest", alice.node_id, 101)
    (saved,) = found.channels
    state = machine.decode_state(saved.state)
    driver = alice.runtime.channels.by_id(channel_id)
    assert driver is not None
    assert state.params == driver.state.params  # type: ignore[union-attr]
    assert (saved.channel_key, saved.channel_id) == (driver.channel_key, channel_id)

    # What is paid changes nothing.
    before = path.read_bytes()
    await alice.api.pay((await bob.api.create_invoice(10_000_000, "tea")).bolt11)
    await alice.restart()
    await alice.connect(bob)
    assert path.read_bytes() == before

    await alice.wait_active(channel_id)
    await bob.wait_active(channel_id)
    await alice.api.close_channel(channel_id)
    await world.mine(1)
    assert len(content(alice, path).channels) == 1, "a reorganisation could undo it"
    await world.mine(110)
    await told(alice, "backup.written", channels=0)
    assert content(alice, path).channels == ()


async def test_a_stranger_who_proposes_channels_does_not_get_into_it(world: World) -> None:
    path = world.directory / "channels.backup"
    alice, bob = await keeper(world, path), await world.node("bob")
    await world.fund(bob, 2_000_000)
    await bob.connect(alice)
    opened = await bob.api.open_channel(alice.node_id, 1_000_000)
    await told(alice, "backup.written")
    assert content(alice, path).channels == ()
    await world.mine(3)
    await alice.wait_active(opened.channel_id)
    await told(alice, "backup.written", channels=1)


async def test_a_peer_that_called_us_is_found_where_it_says(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.directory / "channels.backup"
    alice, bob = await keeper(world, path), await world.node("bob")
    addresses = [Address(AddressType.DNS, "node.example.org", 9736)]
    content_of = (b"", 1_900_000_000, bob.node_id, bytes(3), bytes(32), encode_addresses(addresses))
    announced = {bob.node_id: encode(NodeAnnouncement(bytes(64), *content_of))}
    monkeypatch.setattr(alice.runtime.gossip.view, "node", announced.get)
    await world.fund(bob, 2_000_000)
    await world.open(bob, alice, 1_000_000)
    await told(alice, "backup.written", channels=1)
    assert content(alice, path).peers == (PeerAddress(bob.node_id, "node.example.org", 9736),)


async def test_channels_that_only_the_file_knows_are_kept_and_told(world: World) -> None:
    path, other = world.directory / "channels.backup", world.directory / "other.backup"
    alice, bob = await keeper(world), await world.node("bob")
    lost = ChannelsBackup("regtest", alice.node_id, 5, SOME.channels)
    path.write_bytes(seal(lost, backup_key(alice.runtime.identity)))
    alice.backups = (path, other)
    await alice.restart()
    event = await told(alice, "backup.unknown_channels", channels=1)
    assert f"--restore-from {path}" in event.sentence
    await world.fund(alice, 2_000_000)
    await world.open(alice, bob, 1_000_000)
    await told(alice, "backup.written", channels=2, path=str(other))
    for file in (path, other):
        kept = content(alice, file)
        assert SOME.channels[0] in kept.channels
        assert kept.birthday_height == 5


async def test_a_file_that_is_not_this_nodes_is_left_alone(world: World) -> None:
    path, own = world.directory / "shared.backup", world.directory / "own.backup"
    path.write_bytes(seal(SOME, KEY))
    before = path.read_bytes()
    alice = await keeper(world, path, own)
    assert "of another seed" in (await told(alice, "backup.failed", path=str(path))).sentence
    await told(alice, "backup.written", path=str(own))
    assert path.read_bytes() == before


async def test_a_file_of_another_network_is_left_alone(world: World) -> None:
    path = world.directory / "channels.backup"
    alice = await keeper(world)
    sealed = seal(ChannelsBackup("signet", alice.node_id, 5), backup_key(alice.runtime.identity))
    path.write_bytes(sealed)
    alice.backups = (path,)
    await alice.restart()
    assert "of the network signet" in (await told(alice, "backup.failed", path=str(path))).sentence
    await alice.stop()
    assert path.read_bytes() == sealed
    await alice.start()


@pytest.mark.parametrize("begins", ["before any channel", "later"])
async def test_what_comes_while_the_node_runs_is_not_written_over(world: World, begins: str) -> None:
    """Two nodes with one file; and a disk that was not there at the start, with what was lost."""
    shared, path = world.directory / "shared.backup", world.directory / "mount" / "channels.backup"
    alice, bob = await keeper(world, shared, path), await world.node("bob")
    await told(alice, "backup.written", path=str(shared))
    await world.fund(alice, 2_000_000)
    lost = seal(ChannelsBackup("regtest", alice.node_id, 5, SOME.channels), backup_key(alice.runtime.identity))
    foreign = seal(SOME, KEY)
    shared.write_bytes(foreign)
    if begins == "later":
        await world.open(alice, bob, 1_000_000)
        await told(alice, "backup.failed", path=str(shared))
    (disk := world.directory / "disk").mkdir()
    (disk / path.name).write_bytes(lost)
    disk.rename(path.parent)  # at once, as by mounting
    await told(alice, "backup.unknown_channels", path=str(path))
    if begins == "before any channel":
        await world.open(alice, bob, 1_000_000)
        await told(alice, "backup.failed", path=str(shared))
    await told(alice, "backup.written", path=str(path), channels=2)
    kept = content(alice, path)
    assert SOME.channels[0] in kept.channels
    assert kept.birthday_height == 5
    assert shared.read_bytes() == foreign


async def test_the_first_height_is_layer_1s_or_that_of_what_a_rescan_finds(world: World) -> None:
    path = world.directory / "channels.backup"
    alice = await keeper(world)
    await world.fund(alice, 1_000_000)
    await world.mine(5)
    await alice.stop()
    (world.directory / "alice" / "test.sqlite").unlink()
    alice.backups = (path,)
    await world.stop_chain()
    await alice.start(wait=False)
    await alice.stop()
    assert not path.exists(), "to look from block 0 on would take days"
    await alice.start(wait=False)
    await world.start_chain_again()
    await told(alice, "backup.written")
    assert content(alice, path).birthday_height == 107
    assert [found.found_sat async for found in alice.api.rescan(1)][-1] == 1_000_000
    await alice.restart()
    await told(alice, "backup.written")
    assert content(alice, path).birthday_height == 102


async def test_a_node_that_stops_while_it_writes_waits_for_that(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that write the same file would tear it apart."""
    path = world.directory / "channels.backup"
    alice = await keeper(world, path)
    await told(alice, "backup.written")
    backup, write, close = alice.runtime.backup, write_private, alice.runtime.backup.close
    entered, go_on = threading.Event(), threading.Event()
    running: list[int] = [0]

    def slowly(*args: Any) -> bool:
        running.append(running[-1] + 1)
        entered.set()
        assert go_on.wait(STEP_SECONDS)
        running.append(running[-1] - 1)
        return write(*args)

    async def closing() -> None:
        closed = asyncio.ensure_future(close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closed.done()
        go_on.set()
        await closed

    monkeypatch.setattr(channel_backup, "write_private", slowly)
    monkeypatch.setattr(backup, "close", closing)
    backup._changed.set()
    await asyncio.to_thread(entered.wait)
    backup._changed.set()
    await alice.restart()
    assert running == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("why", ["away", "broken"])
async def test_a_disk_that_is_away_is_told_once_and_tried_again(world: World, why: str) -> None:
    own, path = world.directory / "own.backup", world.directory / "mount" / "channels.backup"
    if why == "broken":
        path.parent.touch()  # it cannot even be asked whether there is a file
    alice = await keeper(world, own, path)
    await told(alice, "backup.failed", path=str(path))
    await told(alice, "backup.written", path=str(own))
    path.parent.unlink(missing_ok=True)
    path.parent.mkdir()
    await told(alice, "backup.written", path=str(path))
    counts = alice.runtime.bus.counts
    assert (counts["backup.failed"], counts["backup.written"]) == (1, 2), "what is there is not written again"


async def test_a_file_that_stayed_behind_is_written_at_the_next_start(world: World) -> None:
    own, other = world.directory / "own.backup", world.directory / "other.backup"
    alice, bob = await keeper(world, own), await world.node("bob")
    await world.fund(alice, 2_000_000)
    await world.open(alice, bob, 1_000_000)
    await told(alice, "backup.written", channels=1)
    other.write_bytes(seal(replace(content(alice, own), channels=()), backup_key(alice.runtime.identity)))
    alice.backups = (own, other)
    await alice.restart()
    await told(alice, "backup.written", channels=1, path=str(other))
    assert content(alice, own) == content(alice, other)


async def test_a_channel_with_htlcs_gets_in_when_they_are_gone(world: World) -> None:
    path = world.directory / "channels.backup"
    alice, bob = await keeper(world), await world.node("bob")
    await world.fund(alice, 2_000_000)
    channel_id = await world.open(alice, bob, 1_000_000)
    held = await bob.api.create_invoice(10_000_000, "held", hold=True)
    paying = asyncio.ensure_future(alice.api.pay(held.bolt11))
    await bob.until(lambda: _is_accepted(bob, held.payment_hash))
    alice.backups = (path,)
    await alice.stop()
    paying.cancel()
    await alice.start()
    await told(alice, "backup.written", channels=0)
    await alice.connect(bob)
    await bob.api.settle_invoice(held.payment_hash)
    await told(alice, "backup.written", channels=1)
    (saved,) = content(alice, path).channels
    assert saved.channel_id == channel_id


async def _is_accepted(node: TestNode, payment_hash: bytes) -> bool:
    return (await node.api.get_invoice(payment_hash)).state == "accepted"
