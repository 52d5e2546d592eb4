"""Onion messages between messengers whose connections are function calls."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from typing import Any, cast

import pytest

from channeld.bolt.features import Feature, optional
from channeld.bolt.messages import OnionMessage, decode
from channeld.bolt.onion.blinding import BlindedPath, EncryptedData, create_blinded_path
from channeld.bolt.onion.messages import OnionMessagePayload, build_message_onion
from channeld.node.interface import NodeError
from channeld.node.onion_messages import (
    MOST_ASKED,
    Content,
    IncomingMessage,
    MessageLimits,
    OnionMessenger,
    relays_to,
)
from channeld.routing.graph import Graph
from wallet.bitcoin.secp import pubkey_of

QUESTION, ANSWER = 65, 67
ABLE = optional(Feature.option_onion_messages)


@dataclass
class FakeIdentity:
    node_secret: bytes

    @property
    def node_id(self) -> bytes:
        return pubkey_of(self.node_secret)


class FakeLink:
    """From one node to another: what is sent arrives at once."""

    def __init__(self, net: FakeNet, source: str, target: str) -> None:
        self.net, self.source, self.target = net, source, target
        self.node_id = net.ids[target]
        self.remote_features = ABLE
        self.is_congested = False
        self.sent: list[OnionMessage] = []

    def send(self, data: bytes) -> None:
        message = decode(data)
        assert isinstance(message, OnionMessage)
        self.sent.append(message)
        self.net.messengers[self.target].peer_message(cast(Any, self.net.links[self.target, self.source]), message)


class FakeNode:
    """Peers and channels of one node."""

    def __init__(self, net: FakeNet, name: str) -> None:
        self.net, self.name = net, name
        self.with_channels: set[bytes] = set()

    def links(self) -> list[FakeLink]:
        return [link for (source, _), link in self.net.links.items() if source == self.name]

    def link(self, node_id: bytes) -> FakeLink | None:
        return next((link for link in self.links() if link.node_id == node_id), None)

    def count_with(self, node_id: bytes) -> int:
        return int(node_id in self.with_channels)

    def all(self) -> list[Any]:
        return []


class FakeNet:
    """Nodes by name; "ab" connects a and b."""

    def __init__(self, *pairs: str, limits: MessageLimits | None = None) -> None:
        names = sorted({name for pair in pairs for name in pair})
        self.secrets = {name: name.encode() * 32 for name in names}
        self.ids = {name: pubkey_of(secret) for name, secret in self.secrets.items()}
        self.links: dict[tuple[str, str], FakeLink] = {}
        self.graph = Graph()
        self.now = 0.0
        self.nodes = {name: FakeNode(self, name) for name in names}
        self.messengers = {
            name: OnionMessenger(
                cast(Any, FakeIdentity(self.secrets[name])),
                cast(Any, self.nodes[name]),
                cast(Any, self.nodes[name]),
                lambda: self.graph,
                limits,
                lambda: self.now,
            )
            for name in names
        }
        for number, pair in enumerate(pairs, 1):
            one, two = pair[0], pair[1]
            for source, target in ((one, two), (two, one)):
                self.links[source, target] = FakeLink(self, source, target)
                self.nodes[source].with_channels.add(self.ids[target])
            first, second = sorted((self.ids[one], self.ids[two]))
            self.graph.add_channel(number, first, second, 1_000_000)
        for node_id in self.ids.values():
            self.graph.set_node_features(node_id, sum(1 << bit for bit in ABLE))
        self.heard: dict[str, list[IncomingMessage]] = {name: [] for name in names}

    def listen(self, name: str, answers: bool = True) -> None:
        def hear(message: IncomingMessage) -> None:
            self.heard[name].append(message)
            if answers:
                self.messengers[name].reply(message, Content(ANSWER, message.content.value[::-1]))

        self.messengers[name].register(QUESTION, hear)

    def deliver(self, source: str, target: str, packet: bytes, path_key: bytes) -> None:
        """A message of a peer's, as it is."""
        link = cast(Any, self.links[target, source])
        self.messengers[target].peer_message(link, OnionMessage(path_key, packet))

    def onion(self, path: BlindedPath, payload: OnionMessagePayload | None = None) -> tuple[bytes, bytes]:
        payload = payload or OnionMessagePayload(unknown_tlvs=((QUESTION, b"?"),))
        return build_message_onion(path, payload, os.urandom(32)), path.first_path_key

    def path(self, *hops: tuple[str, EncryptedData]) -> BlindedPath:
        return create_blinded_path([(self.ids[name], data) for name, data in hops], os.urandom(32)).path

    def to(self, name: str) -> EncryptedData:
        return EncryptedData(next_node_id=self.ids[name])


async def test_a_question_finds_its_way_and_the_answer_back() -> None:
    net = FakeNet("ab", "bc", "cd")
    net.listen("d")
    for value in (b"short", bytes(5_000)):
        answer = await net.messengers["a"].ask(net.ids["d"], Content(QUESTION, value))
        assert answer == Content(ANSWER, value[::-1])
    assert len(net.links["a", "b"].sent[0].onion_message_packet) == 1366
    assert len(net.links["a", "b"].sent[1].onion_message_packet) == 32834


async def test_a_peer_a_path_that_begins_here_and_oneself() -> None:
    net = FakeNet("ab", "bc")
    for name in "abc":
        net.listen(name)
    asker = net.messengers["a"]
    assert (await asker.ask(net.ids["b"], Content(QUESTION, b"12"))).value == b"21"
    begins_here = net.path(("a", net.to("b")), ("b", net.to("c")), ("c", EncryptedData(path_id=b"x")))
    assert (await asker.ask(begins_here, Content(QUESTION, b"34"))).value == b"43"
    assert net.heard["c"][-1].path_id == b"x"
    assert (await asker.ask(net.ids["a"], Content(QUESTION, b"56"))).value == b"65"
    dummies = net.path(("b", net.to("c")), ("c", net.to("c")), ("c", net.to("c")), ("c", EncryptedData()))
    assert (await asker.ask(dummies, Content(QUESTION, b"78"))).value == b"87"


async def test_only_the_reply_path_that_was_given_takes_a_reply() -> None:
    net = FakeNet("ab")
    net.listen("b", answers=False)
    asker = net.messengers["a"]
    asking = asyncio.ensure_future(asker.ask(net.ids["b"], Content(QUESTION, b"?")))
    await asyncio.sleep(0)
    (question,) = net.heard["b"]
    net.messengers["b"].send(net.ids["a"], Content(ANSWER, b"not over the path"))
    forged = net.path(("b", net.to("a")), ("a", EncryptedData(path_id=os.urandom(32))))
    net.messengers["b"].send(forged, Content(ANSWER, b"over another"))
    await asyncio.sleep(0)
    assert not asking.done()
    assert net.messengers["b"].reply(question, Content(ANSWER, b"right"))
    assert (await asking).value == b"right"
    assert net.messengers["b"].reply(question, Content(ANSWER, b"twice"))  # nobody waits for it any more
    assert asker._asked == {}


async def test_no_answer_no_way_and_too_many_questions() -> None:
    net = FakeNet("ab", "cd")
    net.listen("b", answers=False)
    asker = net.messengers["a"]
    with pytest.raises(NodeError, match="no answer"):
        await asker.ask(net.ids["b"], Content(QUESTION, b"?"), timeout_seconds=0.01)
    with pytest.raises(NodeError, match="no way"):
        asker.send(net.ids["d"], Content(QUESTION, b"?"))
    with pytest.raises(NodeError, match="too long"):
        asker.send(net.ids["b"], Content(QUESTION, bytes(40_000)))
    path = net.path(("b", EncryptedData()))
    unknown_channel = BlindedPath(bytes(9), path.first_path_key, path.path)
    with pytest.raises(NodeError, match="channel that this node does not know"):
        asker.send(unknown_channel, Content(QUESTION, b"?"))
    garbage = BlindedPath(path.first_node_id, path.first_path_key, ())
    with pytest.raises(NodeError, match="no good"):
        asker.send(garbage, Content(QUESTION, b"?"))
    assert asker._asked == {}
    asker._asked = {number.to_bytes(32, "big"): asyncio.Future() for number in range(MOST_ASKED)}
    with pytest.raises(NodeError, match="too many"):
        await asker.ask(net.ids["b"], Content(QUESTION, b"?"))


def test_what_is_passed_on_and_what_is_not() -> None:
    net = FakeNet("ab", "bc")
    net.listen("c")
    sent = net.links["b", "c"].sent

    def deliver(*hops: tuple[str, EncryptedData], payload: OnionMessagePayload | None = None) -> int:
        before = len(sent)
        net.now += 60
        net.deliver("a", "b", *net.onion(net.path(*hops), payload))
        return len(sent) - before

    last = ("c", EncryptedData())
    assert deliver(("b", net.to("c")), last) == 1
    assert deliver(("b", EncryptedData(next_node_id=os.urandom(33))), last) == 0
    assert deliver(("b", EncryptedData(short_channel_id=7)), last) == 0
    assert deliver(("b", EncryptedData()), last) == 0
    assert deliver(("b", EncryptedData(next_node_id=net.ids["c"], path_id=b"1")), last) == 0
    assert deliver(("b", EncryptedData(next_node_id=net.ids["c"], allowed_features=b"\1")), last) == 0
    net.links["b", "c"].is_congested = True
    assert deliver(("b", net.to("c")), last) == 0
    net.links["b", "c"].is_congested = False
    net.links["b", "c"].remote_features = frozenset()
    assert deliver(("b", net.to("c")), last) == 0
    assert [message.content for message in net.heard["c"]] == [Content(QUESTION, b"?")]


def test_a_loop_among_our_own_hops_ends() -> None:
    net = FakeNet("ab")
    net.listen("b")
    hops = [("b", net.to("b"))] * 12
    net.deliver("a", "b", *net.onion(net.path(*hops, ("b", EncryptedData()))))
    assert net.heard["b"] == []


def test_garbage_is_dropped_without_a_word() -> None:
    net = FakeNet("ab")
    net.listen("b")
    chance = random.Random(7)
    packet, path_key = net.onion(net.path(("b", EncryptedData())))
    for _ in range(60):
        net.now += 60
        broken = bytearray(packet)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        net.deliver("a", "b", bytes(broken), path_key)
    for bad in (b"", bytes(66), chance.randbytes(1366), packet[:-1], packet + b"\0"):
        net.now += 60
        net.deliver("a", "b", bad, path_key)
    for bad_key in (bytes(33), b"\2" + b"\xff" * 32, net.ids["a"]):
        net.now += 60
        net.deliver("a", "b", packet, bad_key)
    two = OnionMessagePayload(invoice=b"1", unknown_tlvs=((QUESTION, b"?"),))
    net.deliver("a", "b", *net.onion(net.path(("b", EncryptedData())), two))
    assert net.heard["b"] == []
    assert net.links["b", "a"].sent == []


def test_a_handler_that_fails_ends_nothing() -> None:
    net = FakeNet("ab")

    def fail(_: IncomingMessage) -> None:
        raise ValueError("not understood")

    net.messengers["b"].register(QUESTION, fail)
    net.deliver("a", "b", *net.onion(net.path(("b", EncryptedData()))))


def test_a_flood_costs_others_nothing() -> None:
    limits = MessageLimits(
        burst_with_channel=5,
        refill_with_channel_seconds=1.0,
        burst_all_with_channels=20,
        burst_stranger=2,
        burst_all_strangers=4,
    )
    net = FakeNet("ab", "cb", "db", limits=limits)
    net.listen("b", answers=False)
    net.nodes["b"].with_channels.discard(net.ids["d"])
    messages = {name: net.onion(net.path(("b", EncryptedData()))) for name in "acd"}
    for _ in range(500):
        net.deliver("a", "b", *messages["a"])
    assert len(net.heard["b"]) == 5
    for _ in range(5):
        net.deliver("d", "b", *messages["d"])
    assert len(net.heard["b"]) == 7  # strangers may say less
    for _ in range(50):  # and however many there are, they cost peers with channels nothing
        net.links["b", "d"].node_id = os.urandom(33)
        net.deliver("d", "b", *messages["d"])
    assert len(net.heard["b"]) == 9
    net.deliver("c", "b", *messages["c"])
    assert len(net.heard["b"]) == 10
    net.now += 2.0
    for _ in range(5):
        net.deliver("a", "b", *messages["a"])
    assert len(net.heard["b"]) == 12
    large = net.onion(net.path(("b", EncryptedData())), OnionMessagePayload(invoice=bytes(5_000)))
    net.now += 5.0
    for _ in range(5):
        net.deliver("a", "b", *large)  # nine tokens each
    net.now += 0.5
    net.deliver("a", "b", *messages["a"])
    assert len(net.heard["b"]) == 12


def test_memory_for_strangers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from channeld.node import onion_messages

    monkeypatch.setattr(onion_messages, "MOST_BUCKETS", 10)
    net = FakeNet("ab")
    messenger = net.messengers["b"]
    for _ in range(200):
        net.now += 10.0
        link = FakeLink(net, "b", "a")
        link.node_id = os.urandom(33)
        messenger.peer_message(cast(Any, link), OnionMessage(net.ids["a"], bytes(66)))
    assert len(messenger._strangers[0]) <= 11


def test_relays_are_nodes_that_understand_and_few() -> None:
    net = FakeNet("ab", "bc", "cd", "be", "ed")
    peers = {net.ids["b"]}
    found = relays_to(net.graph, net.ids["d"], peers.__contains__)
    assert found in ([net.ids["b"], net.ids["c"]], [net.ids["b"], net.ids["e"]])
    net.graph.set_node_features(net.ids["c"], 0)
    assert relays_to(net.graph, net.ids["d"], peers.__contains__) == [net.ids["b"], net.ids["e"]]
    net.graph.set_node_features(net.ids["e"], 0)
    assert relays_to(net.graph, net.ids["d"], peers.__contains__) is None
    assert relays_to(net.graph, os.urandom(33), peers.__contains__) is None
