"""What peers complain about: all of it reaches the channels, some of it the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import structlog

from channeld.bolt.messages import ErrorMessage, WarningMessage
from channeld.gossip.service import COMPLAINTS_BURST
from channeld.node.bus import EventBus
from channeld.node.notes import (
    MAX_PEERS,
    OF_PEER_BURST,
    OF_PEER_SECONDS,
    OF_STRANGERS_BURST,
    OF_STRANGERS_SECONDS,
    Notes,
)
from channeld.node.peer import PeerLink
from channeld.node.peers import PeerChannels, Peers
from tests.fuzz.target import Reader
from tests.fuzz.targets.gossip import Storm
from tests.gossip_support import FakePort

PARTNER = b"\x02" + b"p" * 32
STRANGER = b"\x02" + b"s" * 32


class Link:
    def __init__(self, node_id: bytes) -> None:
        self.node_id = node_id


class Channels:
    """Counts errors; only PARTNER has a channel."""

    def __init__(self) -> None:
        self.errors = 0

    def peer_error(self, link: PeerLink, message: ErrorMessage) -> None:
        self.errors += 1

    def count_with(self, node_id: bytes) -> int:
        return int(self.has_stake(node_id))

    def has_stake(self, node_id: bytes) -> bool:
        return node_id == PARTNER


class World:
    """Peers, a clock, and what was told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.bus = EventBus()
        self.channels = Channels()
        nothing: Any = None
        self.peers = Peers(nothing, nothing, self.bus, frozenset(), bytes(32))
        self.peers.set_channels(cast(PeerChannels, self.channels))
        self.peers._notes = Notes(self.channels.has_stake, lambda: self.now)

    def error(self, node_id: bytes, text: bytes = b"no") -> None:
        self.peers.error(cast(PeerLink, Link(node_id)), ErrorMessage(bytes(32), text))

    def warning(self, node_id: bytes) -> None:
        self.peers.warning(cast(PeerLink, Link(node_id)), WarningMessage(bytes(32), b"careful"))

    @property
    def told(self) -> int:
        return self.bus.counts["peer.error"] + self.bus.counts["peer.warning"]


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("node_id", [PARTNER, STRANGER])
def test_channels_hear_of_every_error_and_the_operator_of_some(world: World, node_id: bytes) -> None:
    for _ in range(500):
        world.error(node_id)
        world.warning(node_id)
    assert world.channels.errors == 500
    assert world.told == OF_PEER_BURST
    world.now += 2 * OF_PEER_SECONDS
    for _ in range(500):
        world.error(node_id)
    assert world.told == OF_PEER_BURST + 2


def test_a_noisy_peer_does_not_silence_another(world: World) -> None:
    for _ in range(100):
        world.error(STRANGER)
    world.error(PARTNER)
    assert world.told == OF_PEER_BURST + 1


def test_many_strangers_are_told_of_as_one(world: World) -> None:
    for number in range(50):
        for _ in range(OF_PEER_BURST):
            world.error(b"\x03" + number.to_bytes(32, "big"))
    assert world.told == OF_STRANGERS_BURST
    world.error(PARTNER)
    assert world.told == OF_STRANGERS_BURST + 1, "who has a channel is told of all the same"
    world.now += 3 * OF_STRANGERS_SECONDS
    for number in range(50):
        world.error(b"\x02" + number.to_bytes(32, "big"))
    assert world.told == OF_STRANGERS_BURST + 1 + 3


def test_what_is_told_has_no_control_characters_and_is_short(world: World) -> None:
    world.error(STRANGER, b"red \x1b[31m\n\x00" + b"x" * 60_000 + b"\xff")
    (event,) = world.bus._kept
    assert "\x1b" not in event.sentence
    assert "\n" not in event.sentence
    assert "red [31mxxx" in event.sentence
    assert len(event.sentence) < 1_000


def test_what_is_told_is_ascii(world: World) -> None:
    # BOLT 1, "printable ASCII": no letters that look like others, and none that turn the direction of what follows.
    world.error(STRANGER, "p\u0430id \u202eti \u4e2d fully".encode())
    (event,) = world.bus._kept
    assert event.sentence.endswith("sent an error: pid ti  fully")


def test_buckets_of_peers_that_are_gone_take_no_memory(world: World) -> None:
    for number in range(5 * MAX_PEERS):
        world.error(b"\x03" + number.to_bytes(32, "big"))
        world.now += OF_PEER_SECONDS
    assert len(world.peers._notes._of_peer) <= MAX_PEERS + 1


async def test_wrong_gossip_is_answered_to_everybody_and_logged_a_few_times(tmp_path: Path) -> None:
    gossip = Storm(Reader(b""), tmp_path).gossip
    ports = [FakePort(number) for number in range(COMPLAINTS_BURST + 30)]
    with structlog.testing.capture_logs() as logs:
        for port in ports:
            gossip.peer_connected(port)
            before = len(port.sent)
            gossip._blame(port.node_id, "that is not so", 1000.0)
            assert len(port.sent) == before + 1
    assert [entry["event"] for entry in logs].count("gossip of a peer refused") == COMPLAINTS_BURST
    gossip.close()
