"""Gossip's ties to the node: layer 1, the graph for path finding; and nonsense from peers."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channeld.bolt.features import encode_features
from channeld.bolt.messages import (
    ChannelUpdate,
    DecodeError,
    GossipTimestampFilter,
    Message,
    QueryChannelRange,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    UnknownMessage,
    decode,
    encode,
)
from channeld.gossip.interface import FundingUnknown
from channeld.gossip.own import ForwardingPolicy, OwnChannel
from channeld.gossip.service import GOSSIP_MESSAGES, Gossip
from channeld.node.channels import Driver
from channeld.node.gossip import REGTEST, ChainFunding, GraphFeed, NodeGossip
from channeld.routing.graph import Graph
from channeld.routing.values import EdgeKey
from tests.gossip_net import network
from tests.gossip_support import (
    CAPACITY_SAT,
    CHAIN_HASH,
    NOW,
    FakePort,
    add_channel,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    scid_of,
)
from tests.machine import harness
from tests.unit.test_channel_open import peers
from tests.unit.test_gossip_store import random_changes
from wallet.bitcoin import OutPoint, TxOut
from wallet.chain import ChainError, ChainUnavailable, UnspentOutput

SCID = scid_of(100)


# --- layer 1


class FakeSource:
    """Blocks of transaction ids, and unspent outputs."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[bytes]] = {}
        self.outputs: dict[OutPoint, UnspentOutput] = {}
        self.asked: list[int] = []
        self.error: ChainError | None = None

    async def get_block_hash(self, height: int) -> bytes | None:
        self.asked.append(height)
        return height.to_bytes(32, "big") if height in self.blocks else None

    async def get_block_txids(self, block_hash: bytes) -> list[bytes]:
        if self.error is not None:
            raise self.error
        return self.blocks[int.from_bytes(block_hash, "big")]

    async def utxo(self, outpoint: OutPoint, *, include_mempool: bool = True) -> UnspentOutput | None:
        assert not include_mempool
        return self.outputs.get(outpoint)


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource()
    source.blocks[100] = [b"\x01" * 32, b"\x02" * 32]
    source.outputs[OutPoint(b"\x02" * 32, 3)] = UnspentOutput(TxOut(5_000, b"script"), 7, False)
    return source


async def test_a_name_leads_to_its_output(source: FakeSource) -> None:
    funding = ChainFunding(source)  # type: ignore[arg-type]
    scids = [scid_of(100, 0, 3), scid_of(100, 1, 0), scid_of(100, 1, 3), scid_of(100, 2, 0), scid_of(101, 0, 0)]
    found = await funding.lookup(scids)
    assert found[:2] == found[3:] == [None, None]
    assert found[2] == (b"\x02" * 32, 5_000, b"script", 7)
    assert source.asked == [100, 101]
    funding.forget(100)
    source.blocks[100] = []
    assert await funding.lookup([scid_of(100, 1, 3)]) == [None]


async def test_layer_1_being_away_is_told_and_a_pruned_block_is_not_there(source: FakeSource) -> None:
    funding = ChainFunding(source)  # type: ignore[arg-type]
    source.error = ChainUnavailable("away")
    with pytest.raises(FundingUnknown, match="away"):
        await funding.lookup([scid_of(100, 1, 3)])
    source.error = ChainError("pruned")
    assert await funding.lookup([scid_of(100, 1, 3)]) == [None]


async def test_few_blocks_are_kept(source: FakeSource) -> None:
    funding = ChainFunding(source)  # type: ignore[arg-type]
    for height in range(200):
        await funding.lookup([scid_of(height)])
    assert len(funding._txids) <= 16


# --- our channels


def test_others_hear_of_a_channel_after_its_peer_did() -> None:
    """The peer may get `announcement_signatures` only after `channel_ready`, which waits for a commit (BOLT 7)."""
    pair = harness.start_open(*peers())
    harness.fund(pair)
    waiting = pair.bob.state
    harness.confirm(pair)
    policy = ForwardingPolicy(1, 1, 1, 1, 1)
    node = cast(NodeGossip, SimpleNamespace(policy_of=lambda driver: policy))

    def as_own(settled: object) -> OwnChannel | None:
        driver = SimpleNamespace(state=pair.bob.state, settled=settled, channel_id=bytes(32), peer_id=bytes(33))
        return NodeGossip._as_own(node, cast(Driver, driver))

    committing, committed = as_own(waiting), as_own(pair.bob.state)
    assert committing is not None
    assert committed is not None
    assert (committing.is_ready, committing.depth) == (False, 0)
    assert (committed.is_ready, committed.depth) == (True, 6)
    assert as_own(None) is None


# --- the graph


def told(graph: Graph) -> dict[object, object]:
    """All that a graph says."""
    found: dict[object, object] = {}
    for channel in graph.channels():
        scid = channel.short_channel_id
        policies = [graph.policy(EdgeKey(scid, direction)) for direction in (0, 1)]
        found[scid] = (graph.channel(scid), policies)
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_graph_that_is_loaded_is_the_graph_that_was_told(tmp_path: Path, seed: int) -> None:
    path = tmp_path / f"gossip{seed}"
    feed = GraphFeed()
    view = new_view(path, feed)
    random_changes(view, random.Random(seed), 60)
    graph, loaded = feed.graph, _loaded(view)
    assert told(loaded) == told(graph)
    for node_id in view.topology.node_index:
        if view.node(node_id) is not None:
            assert loaded.node_features(node_id) == graph.node_features(node_id) is not None
    view.store.close()


def test_what_must_not_be_routed_through_is_not_in_the_graph(tmp_path: Path) -> None:
    feed = GraphFeed()
    view = new_view(tmp_path / "gossip", feed)
    view.add_channel(make_announcement(SCID, 1, 2, features=b"\x01"), funding_of(SCID), NOW)
    view.set_update(make_update(SCID, 1, 2))
    add_channel(view, scid_of(101), 1, 2)
    huge = make_update(scid_of(101), 1, 2, minimum=2**64 - 1, maximum=2**64 - 1)
    view.set_update(huge)
    view.set_node(make_node(1, features=b"\x01\x02"))
    for filled in (feed.graph, _loaded(view)):
        assert [channel.short_channel_id for channel in filled.channels()] == [scid_of(101)]
        policy = filled.policy(EdgeKey(scid_of(101), huge.channel_flags & 1))
        assert policy is not None
        assert not policy.enabled
        assert filled.node_features(node_id_of(1)) == 0x0102
    view.forget(scid_of(101))
    assert list(feed.graph.channels()) == []


def test_what_a_node_requires_that_we_do_not_know(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    for number in (1, 2, 3):
        add_channel(view, scid_of(100 + number), number, number + 1)
    view.set_node(make_node(1, features=encode_features({9, 101, 54, 100, 200})))
    view.set_node(make_node(2, features=encode_features({8, 101})))
    gossip = NodeGossip.__new__(NodeGossip)
    gossip.core = cast(Gossip, SimpleNamespace(view=view))
    assert [gossip.unknown_features(node_id_of(number)) for number in (1, 2, 3)] == [[100, 200], [], []]
    assert gossip.unknown_features(b"\x02" + bytes(32)) == []
    view.store.close()


def _loaded(view: object) -> Graph:
    feed = GraphFeed()
    feed.load(view)  # type: ignore[arg-type]
    return feed.graph


# --- nonsense


MESSAGES: list[Message] = [
    make_announcement(SCID, 1, 2),
    make_announcement(scid_of(101), 1, 3),
    make_update(SCID, 1, 2),
    make_update(SCID, 2, 1, NOW + 1, disabled=True),
    make_update(scid_of(200), 1, 2),
    make_node(1),
    make_node(7),
    GossipTimestampFilter(CHAIN_HASH, 0, 0xFFFFFFFF),
    QueryChannelRange(CHAIN_HASH, 0, 0xFFFFFFFF, 3),
    ReplyChannelRange(CHAIN_HASH, 0, 1001, 1, b"\0" + SCID.to_bytes(8, "big")),
    ReplyShortChannelIdsEnd(CHAIN_HASH, 1),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_nonsense_stops_gossip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Messages in any order, some with a byte changed: nothing is raised, and an honest peer is heard afterwards."""
    async with network(tmp_path_factory.mktemp("g"), 50) as net:
        gossip = net.members[50].gossip
        net.plant(50, scid_of(300), 1, 2)
        port, honest = FakePort(60), FakePort(61)
        gossip.peer_connected(port)
        for index in data.draw(st.lists(st.integers(0, len(MESSAGES) - 1), max_size=25)):
            raw = bytearray(encode(MESSAGES[index]))
            if data.draw(st.booleans()):
                raw[data.draw(st.integers(2, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
            try:
                message = decode(bytes(raw))
            except (DecodeError, UnknownMessage):
                continue  # the connection would be closed
            if isinstance(message, GOSSIP_MESSAGES):
                gossip.peer_message(port, message)
            if data.draw(st.booleans()):
                await gossip.intake.idle()
                gossip.tick()
                gossip.flush()
                gossip.pump()
        gossip.peer_disconnected(port)
        await gossip.intake.idle()
        gossip.peer_connected(honest)
        update = make_update(scid_of(300), 1, 2, NOW + 100, base=99)
        gossip.peer_message(honest, update)
        await gossip.intake.idle()
        assert gossip.view.update(scid_of(300), update.channel_flags & 1) == update.raw
        for channel in gossip.view.channels():
            assert channel.scid == scid_of(300)  # no other has a funding output
            assert channel.capacity_sat == CAPACITY_SAT


async def test_gossip_of_someone_who_left_is_not_looked_at(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        net.plant(1, SCID, 20, 21)
        port = FakePort(2)
        gossip.peer_connected(port)
        newer = FakePort(2)
        gossip.peer_connected(newer)  # the same peer, over another connection
        gossip.peer_disconnected(port)
        update = make_update(SCID, 20, 21, NOW + 5, base=5)
        gossip.peer_message(port, update)
        await gossip.intake.idle()
        assert gossip.view.update(SCID, update.channel_flags & 1) != update.raw
        gossip.peer_message(newer, update)
        await gossip.intake.idle()
        assert isinstance(decode(gossip.view.update(SCID, update.channel_flags & 1) or b""), ChannelUpdate)
        assert gossip.view.update(SCID, update.channel_flags & 1) == update.raw


async def test_on_regtest_too_an_update_goes_round_a_ring_once(tmp_path: Path) -> None:
    """There, updates that change nothing are not dampened; the very same one is still no news."""
    async with network(tmp_path, 1, 2, 3, config=REGTEST) as net:
        wires = [net.connect(*ends)[0] for ends in ((1, 2), (2, 3), (1, 3))]
        for index, ends in enumerate(((1, 2), (2, 3), (1, 3))):
            net.open_channel(*ends, scid_of(400 + index))
        await net.round(REGTEST.flush_seconds, times=8)
        views = [member.gossip.view for member in net.members.values()]
        assert all(len(view.topology) == 3 for view in views)
        net.disconnect(wires[0])
        net.connect(1, 2)  # greetings, backlogs: everything is said once more
        await net.round(REGTEST.flush_seconds, times=8)
        changes = [view.changes for view in views]
        net.log.clear()
        await net.round(REGTEST.flush_seconds, times=8)
        assert [view.changes for view in views] == changes
        assert not [message for _, _, message in net.log if isinstance(message, ChannelUpdate)]
