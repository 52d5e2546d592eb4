"""Nodes that tell each other the network: queries, filters, passing on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channeld.bolt.features import Feature
from channeld.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    GossipTimestampFilter,
    NodeAnnouncement,
    QueryChannelRange,
    QueryFlags,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    SignedGossip,
    WarningMessage,
    decode,
)
from channeld.bolt.messages import queries as q
from channeld.bolt.primitives import DecodeError, block_of
from channeld.gossip.interface import GossipConfig
from channeld.gossip.queries import parse_short_ids_query, range_replies, short_ids_replies, split_by_block
from channeld.gossip.service import QUERY_BURST, QUERY_REFILL_SECONDS
from channeld.gossip.sync import PeerSync, SyncViolation, wanted
from tests.gossip_net import Net, network
from tests.gossip_support import (
    CHAIN_HASH,
    NOW,
    FakePort,
    add_channel,
    contents,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    scid_of,
)

FOREVER = GossipTimestampFilter(CHAIN_HASH, 0, 0xFFFFFFFF)


# --- answers


def ask(first: int, count: int, option: int | None = None) -> QueryChannelRange:
    return QueryChannelRange(CHAIN_HASH, first, count, option)


def replies(messages: Sequence[bytes]) -> list[ReplyChannelRange]:
    found = [decode(message) for message in messages]
    assert all(isinstance(message, ReplyChannelRange) for message in found)
    return found  # type: ignore[return-value]


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.lists(st.integers(0, 30), max_size=60),
    max_scids=st.integers(1, 12),
)
def test_pieces_are_whole_blocks_where_that_is_possible(blocks: list[int], max_scids: int) -> None:
    scids = sorted({scid_of(block, index) for index, block in enumerate(blocks)})
    pieces = list(split_by_block(scids, max_scids))
    assert [scid for piece in pieces for scid in piece] == scids
    assert pieces
    for piece, following in itertools.pairwise(pieces):
        assert 0 < len(piece) <= max_scids
        if block_of(piece[-1]) == block_of(following[0]):
            # Split only a block that fills the whole piece.
            assert {block_of(scid) for scid in piece} == {block_of(piece[-1])}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_range_is_answered_completely_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    blocks = data.draw(st.lists(st.integers(0, 40), max_size=25))
    first, count = data.draw(st.integers(0, 45)), data.draw(st.sampled_from([1, 2, 10, 100, 0xFFFFFFFF]))
    max_scids, option = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([None, 0, 1, 2, 3]))
    view = new_view(tmp_path_factory.mktemp("g") / "gossip")
    for index, block in enumerate(blocks):
        scid = scid_of(block, index)
        add_channel(view, scid, 1, 2)
        view.set_update(make_update(scid, 1, 2))
    query = ask(first, count, option)
    found = replies(list(range_replies(query, view, CHAIN_HASH, max_scids)))
    expected = [scid for scid in sorted(view.topology.rows) if first <= block_of(scid) < first + count]
    assert [scid for reply in found for scid in q.decode_short_ids(reply.encoded_short_ids)] == expected
    assert found[0].first_blocknum <= first < found[0].first_blocknum + found[0].number_of_blocks
    assert found[-1].first_blocknum + found[-1].number_of_blocks >= first + count
    assert [reply.sync_complete for reply in found] == [0] * (len(found) - 1) + [1]
    starts = [reply.first_blocknum for reply in found]
    assert starts == sorted(starts)
    for reply in found:
        scids = q.decode_short_ids(reply.encoded_short_ids)
        end = reply.first_blocknum + reply.number_of_blocks
        assert all(reply.first_blocknum <= block_of(scid) < end for scid in scids)
        assert (reply.timestamps_tlv is not None) is bool(option and option & 1)
        assert (reply.checksums_tlv is not None) is bool(option and option & 2)
    # What comes back is understood, and nothing is missing.
    sync = PeerSync(FakePort(1), CHAIN_HASH)
    empty = new_view(tmp_path_factory.mktemp("g") / "gossip")
    if first == 0 and option == 3:
        sync.start(count - 1, NOW)
        asked = [message for reply in found for message in sync.on_range(reply, empty, NOW)]
        queries = [message for message in asked if isinstance(message, QueryShortChannelIds)]
        ids = [scid for message in queries for scid in q.decode_short_ids(message.encoded_short_ids)]
        assert ids == expected
    view.store.close()
    empty.store.close()


def test_spent_channels_and_those_without_updates_are_not_offered(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    for block in (1, 2, 3):
        add_channel(view, scid_of(block), 1, 2)
    for block in (1, 2):
        view.set_update(make_update(scid_of(block), 1, 2))
    view.set_spent(scid_of(2), 900)
    (reply,) = replies(list(range_replies(ask(0, 10), view, CHAIN_HASH)))
    assert q.decode_short_ids(reply.encoded_short_ids) == [scid_of(1)]


def test_queries_about_another_chain_find_nothing(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    add_channel(view, scid_of(1), 1, 2)
    view.set_update(make_update(scid_of(1), 1, 2))
    (reply,) = replies(list(range_replies(QueryChannelRange(bytes(32), 0, 10), view, CHAIN_HASH)))
    assert reply.chain_hash == bytes(32)
    assert q.decode_short_ids(reply.encoded_short_ids) == []
    query = QueryShortChannelIds(bytes(32), q.encode_short_ids([scid_of(1)]))
    (end,) = short_ids_replies(query, parse_short_ids_query(query), view, CHAIN_HASH)
    assert decode(end) == ReplyShortChannelIdsEnd(bytes(32), 0)


def test_short_ids_are_answered_as_flagged(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    one, two = scid_of(1), scid_of(2)
    for scid in (one, two):
        add_channel(view, scid, 1, 2)
        view.set_update(make_update(scid, 1, 2))
    view.set_update(make_update(one, 2, 1))
    view.set_node(make_node(1))
    view.set_node(make_node(2))

    def answer(*pairs: tuple[int, int | None]) -> list[bytes]:
        flags = [flag for _, flag in pairs if flag is not None]
        query = QueryShortChannelIds(
            CHAIN_HASH, q.encode_short_ids(scid for scid, _ in pairs), q.encode_query_flags(flags) if flags else None
        )
        found = list(short_ids_replies(query, parse_short_ids_query(query), view, CHAIN_HASH))
        assert decode(found.pop()) == ReplyShortChannelIdsEnd(CHAIN_HASH, 1)
        return found

    node_1, node_2 = view.topology.node_ids_of(view.topology.rows[one])
    everything = answer((one, None), (two, None))
    assert everything == [
        *(view.announcement(one), view.update(one, 0), view.update(one, 1), view.announcement(two)),
        *(raw for raw in (view.update(two, 0), view.update(two, 1)) if raw),
        *(view.node(node_1), view.node(node_2)),
    ]
    assert answer((one, q.QUERY_CHANNEL_ANNOUNCEMENT)) == [view.announcement(one)]
    assert answer((one, q.QUERY_CHANNEL_UPDATE_2)) == [view.update(one, 1)]
    assert answer((one, q.QUERY_NODE_ANNOUNCEMENT_1), (two, q.QUERY_NODE_ANNOUNCEMENT_1)) == [view.node(node_1)]
    assert answer((scid_of(9), None)) == []


@pytest.mark.parametrize(
    "query",
    [
        QueryShortChannelIds(CHAIN_HASH, b"\x01" + bytes(8)),
        QueryShortChannelIds(CHAIN_HASH, b"\x00" + bytes(7)),
        QueryShortChannelIds(CHAIN_HASH, b"\x00" + bytes(16), QueryFlags(0, b"\x1f")),
        QueryShortChannelIds(CHAIN_HASH, b"\x00" + bytes(8), QueryFlags(1, b"\x1f")),
        QueryShortChannelIds(CHAIN_HASH, b"\x00" + bytes(8), QueryFlags(0, b"\xfd\x00\x1f")),
    ],
)
async def test_unreadable_queries_are_warned_about(tmp_path: Path, query: QueryShortChannelIds) -> None:
    with pytest.raises(DecodeError):
        parse_short_ids_query(query)
    async with network(tmp_path, 1) as net:
        port = FakePort(2)
        net.members[1].gossip.peer_connected(port)
        net.members[1].gossip.peer_message(port, query)
        assert len(port.take(WarningMessage)) == 1


# --- asking


def test_what_is_asked_for(tmp_path: Path) -> None:
    ours, theirs = new_view(tmp_path / "ours"), new_view(tmp_path / "theirs")
    day = 24 * 3600
    cases = {
        1: (NOW, NOW, 5, 5, False),
        2: (NOW, NOW + 60, 5, 6, True),
        3: (NOW, NOW + 60, 5, 5, False),
        4: (NOW, NOW + 6 * day, 5, 5, True),
        5: (NOW + 60, NOW, 5, 6, False),
    }
    for block, (our_time, their_time, our_base, their_base, _) in cases.items():
        for view, timestamp, base in ((ours, our_time, our_base), (theirs, their_time, their_base)):
            add_channel(view, scid_of(block), 1, 2)
            view.set_update(make_update(scid_of(block), 1, 2, timestamp, base=base))
    add_channel(theirs, scid_of(6), 3, 4)
    update = make_update(scid_of(6), 3, 4)
    theirs.set_update(update)
    sync = PeerSync(FakePort(1), CHAIN_HASH)
    sync.start(100, NOW)
    asked = sync.on_range(replies(list(range_replies(ask(0, 101, 3), theirs, CHAIN_HASH)))[0], ours, NOW)
    assert isinstance(asked[0], QueryShortChannelIds)
    flags = dict(parse_short_ids_query(asked[0]))
    direction = make_update(scid_of(1), 1, 2).channel_flags & 1
    bit = (q.QUERY_CHANNEL_UPDATE_1, q.QUERY_CHANNEL_UPDATE_2)[direction]
    expected = {scid_of(block): bit for block, case in cases.items() if case[-1]}
    all_but_one = 0b11111 & ~(q.QUERY_CHANNEL_UPDATE_1, q.QUERY_CHANNEL_UPDATE_2)[1 - (update.channel_flags & 1)]
    assert flags == {**expected, scid_of(6): all_but_one}
    assert wanted([], ours) == []


def test_answers_that_were_not_asked_for() -> None:
    sync = PeerSync(FakePort(1), CHAIN_HASH)
    reply = ReplyChannelRange(CHAIN_HASH, 0, 10, 1, b"\0")
    with pytest.raises(SyncViolation):
        sync.on_range(reply, None, NOW)  # type: ignore[arg-type]
    with pytest.raises(SyncViolation):
        sync.on_end(NOW)
    sync.start(100, NOW)
    with pytest.raises(SyncViolation):
        sync.on_end(NOW)


@pytest.mark.parametrize(
    "reply",
    [
        ReplyChannelRange(CHAIN_HASH, 0, 10, 1, b"\x01abc"),
        ReplyChannelRange(CHAIN_HASH, 0, 10, 1, b"\x00abc"),
        ReplyChannelRange(bytes(32), 0, 10, 1, b"\x00"),
        ReplyChannelRange(CHAIN_HASH, 0, 10, 1, b"\x00" + bytes(8), None, ()),
    ],
)
def test_answers_that_make_no_sense(tmp_path: Path, reply: ReplyChannelRange) -> None:
    sync = PeerSync(FakePort(1), CHAIN_HASH)
    sync.start(9, NOW)
    with pytest.raises(SyncViolation):
        sync.on_range(reply, new_view(tmp_path / "gossip"), NOW)


def test_answers_that_go_backwards(tmp_path: Path) -> None:
    view = new_view(tmp_path / "gossip")
    sync = PeerSync(FakePort(1), CHAIN_HASH)
    sync.start(99, NOW)
    sync.on_range(ReplyChannelRange(CHAIN_HASH, 0, 50, 0, b"\0"), view, NOW)
    sync.on_range(ReplyChannelRange(CHAIN_HASH, 50, 10, 0, b"\0"), view, NOW)
    with pytest.raises(SyncViolation):
        sync.on_range(ReplyChannelRange(CHAIN_HASH, 40, 60, 1, b"\0"), view, NOW)


# --- networks


def spread(net: Net, number: int, channels: int = 40, nodes: int = 12, seed: int = 3) -> None:
    """A member knows a random network of others."""
    rng = random.Random(seed)
    for index in range(channels):
        first, second = rng.sample(range(20, 20 + nodes), 2)
        net.plant(number, scid_of(100 + index // 3, index), first, second, NOW - rng.randrange(100_000))


@pytest.mark.parametrize("features", [(Feature.gossip_queries, Feature.gossip_queries_ex), (Feature.gossip_queries,)])
async def test_a_new_node_learns_the_network(tmp_path: Path, features: tuple[Feature, ...]) -> None:
    async with network(tmp_path, 1, 2) as net:
        spread(net, 1)
        net.connect(1, 2, offers=features)
        await net.settle()
        assert contents(net.members[2].gossip.view) == contents(net.members[1].gossip.view)
        assert net.members[2].gossip.status().is_synced
        assert net.sent(2, 1, WarningMessage) == []
        assert net.sent(1, 2, WarningMessage) == []


async def test_a_synced_node_asks_for_nothing_again(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        spread(net, 1)
        wire, _ = net.connect(1, 2)
        await net.settle()
        net.disconnect(wire)
        net.log.clear()
        net.connect(1, 2)
        await net.settle()
        assert len(net.sent(2, 1, QueryChannelRange)) == 1
        assert net.sent(2, 1, QueryShortChannelIds) == []


async def test_nodes_with_different_halves_end_with_the_whole(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2, 3) as net:
        spread(net, 1, channels=20, seed=1)
        for index in range(20):
            net.plant(3, scid_of(300, index), 40 + index, 41 + index)
        net.connect(1, 2)
        net.connect(2, 3)
        await net.settle()
        await net.round(times=3)
        await net.round(3600, times=2)  # what is too old for a filter comes when all is compared
        known = [set(net.members[number].gossip.view.topology.rows) for number in (1, 2, 3)]
        assert len(known[1]) == 40
        assert known[0] == known[1] == known[2]


async def test_without_gossip_queries_nothing_is_asked(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        spread(net, 1)
        net.connect(1, 2, offers=())
        await net.settle()
        assert net.sent(2, 1) == [GossipTimestampFilter(CHAIN_HASH, 0xFFFFFFFF, 0)]


async def test_gossip_goes_on_with_the_next_flush_and_never_back(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2, 3) as net:
        spread(net, 1, channels=3)
        for ends in ((1, 2), (2, 3)):
            net.connect(*ends)
            await net.round(times=2)
        net.log.clear()
        scid = next(iter(net.members[1].gossip.view.topology.rows))
        row = net.members[1].gossip.view.topology.rows[scid]
        ids = net.members[1].gossip.view.topology.node_ids_of(row)
        numbers = {node_id_of(number): number for number in range(20, 40)}
        first, second = numbers[ids[0]], numbers[ids[1]]
        port = FakePort(50)
        net.members[1].gossip.peer_connected(port)
        newer = make_update(scid, first, second, int(net.now), base=77)
        net.members[1].gossip.peer_message(port, newer)
        await net.settle()
        assert net.sent(1, 2, ChannelUpdate) == []
        await net.round()
        assert net.sent(1, 2, ChannelUpdate) == [newer]
        await net.round(times=3)
        assert net.sent(2, 3, ChannelUpdate) == [newer]
        assert net.sent(2, 1, ChannelUpdate) == []
        assert net.sent(3, 2, ChannelUpdate) == []
        assert port.take(SignedGossip) == []


async def test_nothing_is_relayed_without_a_filter(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        port = FakePort(2)
        gossip.peer_connected(port)
        net.plant(1, scid_of(1), 20, 21)
        source = FakePort(3)
        gossip.peer_connected(source)
        gossip.peer_message(source, make_update(scid_of(1), 20, 21, NOW + 5, base=3))
        await gossip.intake.idle()
        gossip.flush()
        assert port.take(SignedGossip) == []
        gossip.peer_message(port, FOREVER)
        gossip.pump()
        assert len(port.take(SignedGossip)) == 5


@pytest.mark.parametrize(
    ("first", "span", "blocks"), [(0, 150, [1]), (150, 100, [2]), (100, 101, [1, 2]), (400, 9, [])]
)
async def test_a_filter_gets_what_fits_it(tmp_path: Path, first: int, span: int, blocks: list[int]) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        for block in (1, 2, 3):
            net.plant(1, scid_of(block), 20 + block, 30 + block, NOW + 100 * block)
        port = FakePort(2)
        gossip.peer_connected(port)
        gossip.peer_message(port, GossipTimestampFilter(CHAIN_HASH, NOW + first, span))
        gossip.pump()
        found = port.take(SignedGossip)
        announced = [m.short_channel_id for m in found if isinstance(m, ChannelAnnouncement)]
        assert announced == [scid_of(block) for block in blocks]
        assert len([m for m in found if isinstance(m, NodeAnnouncement)]) == 2 * len(blocks)
        kinds = [type(message) for message in found]
        for place, message in enumerate(found):
            if isinstance(message, ChannelUpdate):
                before = [m.short_channel_id for m in found[:place] if isinstance(m, ChannelAnnouncement)]
                assert message.short_channel_id in before
        assert kinds == sorted(kinds, key=lambda kind: kind is NodeAnnouncement)


async def test_announcements_wait_for_their_first_update(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        net.plant(1, scid_of(1), 20, 21)
        net.funding.outputs[scid_of(2)] = funding_of(scid_of(2))
        port, source = FakePort(2), FakePort(3)
        for each in (port, source):
            gossip.peer_connected(each)
        gossip.peer_message(port, GossipTimestampFilter(CHAIN_HASH, int(net.now), 0xFFFFFFFF))
        announcement = make_announcement(scid_of(2), 20, 21)
        gossip.peer_message(source, announcement)
        await gossip.intake.idle()
        gossip.flush()
        assert port.take(ChannelAnnouncement) == []
        update = make_update(scid_of(2), 20, 21, int(net.now) + 1)
        gossip.peer_message(source, update)
        await gossip.intake.idle()
        gossip.flush()
        assert port.take(ChannelAnnouncement, ChannelUpdate) == [announcement, update]


async def test_a_congested_peer_waits(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        for block in range(1, 11):
            net.plant(1, scid_of(block), 20, 21)
        port = FakePort(2)
        gossip.peer_connected(port)
        port.take()
        port.is_congested = True
        gossip.peer_message(port, FOREVER)
        assert gossip.pump() is False
        assert port.sent == []
        port.is_congested = False
        gossip.pump()
        assert len(port.take(SignedGossip)) == 32


async def test_answers_survive_what_happens_meanwhile(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        for block in range(1, 400):
            net.plant(1, scid_of(block), 20, 21)
        port = FakePort(2)
        gossip.peer_connected(port)
        gossip.peer_message(port, FOREVER)
        gossip.pump()
        for block in range(100, 400, 2):
            gossip.view.forget(scid_of(block))
        plan = gossip.view.store.plan_compaction(gossip.view.topology)
        plan.copy()
        gossip.view.store.finish_compaction(plan, gossip.view.topology)
        while gossip.pump():
            pass
        found = port.take(SignedGossip)
        assert len(found) > 700
        expected = {make_announcement(scid_of(block), 20, 21).raw for block in range(1, 400)}
        assert all(message.raw in expected for message in found if isinstance(message, ChannelAnnouncement))


async def test_a_second_query_while_one_is_answered(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        net.plant(1, scid_of(1), 20, 21)
        port = FakePort(2)
        gossip.peer_connected(port)
        port.is_congested = True
        gossip.peer_message(port, ask(0, 10))
        gossip.peer_message(port, ask(0, 10))
        assert len(port.take(WarningMessage)) == 1
        port.is_congested = False
        gossip.pump()
        assert len(port.take(ReplyChannelRange)) == 1


async def test_one_query_of_each_kind_may_be_under_way(tmp_path: Path) -> None:
    """Eclair asks for channels as soon as the first `reply_channel_range` came."""
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        net.plant(1, scid_of(1), 20, 21)
        port = FakePort(2)
        gossip.peer_connected(port)
        port.take()
        port.is_congested = True
        gossip.peer_message(port, ask(0, 10))
        gossip.peer_message(port, QueryShortChannelIds(CHAIN_HASH, q.encode_short_ids([scid_of(1)])))
        assert port.take(WarningMessage) == []
        port.is_congested = False
        gossip.pump()
        assert [type(message) for message in port.take()] == [
            ReplyChannelRange,
            ChannelAnnouncement,
            ChannelUpdate,
            ChannelUpdate,
            NodeAnnouncement,
            NodeAnnouncement,
            ReplyShortChannelIdsEnd,
        ]


async def test_many_queries_are_answered_one_after_the_other(tmp_path: Path) -> None:
    """BOLT 7, "MUST respond with one or more `reply_channel_range`": what is too much has to wait, and is answered."""
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        port, other = FakePort(2), FakePort(3)
        for peer in (port, other):
            gossip.peer_connected(peer)
        for _ in range(QUERY_BURST):
            gossip.peer_message(port, ask(0, 10))
        assert len(port.take(ReplyChannelRange)) == QUERY_BURST
        for _ in range(3):
            gossip.peer_message(port, ask(0, 10))
            gossip.tick()
            assert port.take(ReplyChannelRange, WarningMessage) == []
            net.now += QUERY_REFILL_SECONDS
            gossip.tick()
            assert len(port.take(ReplyChannelRange)) == 1
        gossip.peer_message(other, ask(0, 10))
        assert len(other.take(ReplyChannelRange)) == 1, "others wait for nothing"
        for _ in range(30):
            gossip.peer_message(port, ask(0, 10))
        assert len(port.take(WarningMessage)) == 1, "who does not wait is not heard"
        gossip.peer_disconnected(port)
        net.now += QUERY_REFILL_SECONDS
        gossip.tick()
        assert port.take(ReplyChannelRange) == []


async def test_a_peer_that_sends_forgeries_is_warned_once_and_then_not_heard(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:
        gossip = net.members[1].gossip
        net.plant(1, scid_of(1), 20, 21)
        port = FakePort(2)
        gossip.peer_connected(port)
        for step in range(1, 20):
            forged = make_update(scid_of(1), 22, 23, NOW + step, base=step)
            gossip.peer_message(port, forged)
            await gossip.intake.idle()
        assert len(port.take(WarningMessage)) == 1
        good = make_update(scid_of(1), 20, 21, NOW + 50, base=9)
        gossip.peer_message(port, good)
        await gossip.intake.idle()
        assert gossip.view.update(scid_of(1), good.channel_flags & 1) != good.raw
        net.now += 1800
        gossip.peer_message(port, good)
        await gossip.intake.idle()
        assert gossip.view.update(scid_of(1), good.channel_flags & 1) == good.raw


async def test_a_silent_peer_is_given_up_and_another_asked(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        spread(net, 2, channels=5)
        silent = FakePort(3)
        gossip = net.members[1].gossip
        gossip.peer_connected(silent)
        assert len(silent.take(QueryChannelRange)) == 1
        net.connect(1, 2)
        await net.settle()
        assert not gossip.sync.is_synced
        await net.round(61)
        assert len(gossip.view.topology) == 5
        assert gossip.sync.is_synced


async def test_only_a_few_peers_are_asked_for_news_and_they_change(tmp_path: Path) -> None:
    config = GossipConfig(active_syncers=2, rotate_seconds=100)
    async with network(tmp_path, 1, config=config) as net:
        gossip = net.members[1].gossip
        ports = [FakePort(number) for number in range(2, 8)]
        for port in ports:
            gossip.peer_connected(port)
        filters = [port.take(GossipTimestampFilter)[0] for port in ports]
        wants = [message.timestamp_range > 0 for message in filters]  # type: ignore[attr-defined]
        assert wants == [True, True, False, False, False, False]
        gossip.peer_disconnected(ports[0])
        active = {number for number, peer in gossip.sync.peers.items() if peer.is_active}
        assert len(active) == 2
        net.now += 1
        gossip.tick()
        net.now += 101
        gossip.tick()
        rotated = {number for number, peer in gossip.sync.peers.items() if peer.is_active}
        assert len(rotated) == 2
        assert rotated != active


async def test_once_in_a_while_all_is_compared(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        wire, _ = net.connect(1, 2)
        await net.round()
        spread(net, 2, channels=5)  # came to know it without a word
        await net.round(3600)
        await net.round()
        assert len(net.members[1].gossip.view.topology) == 5
        assert wire.is_open


async def test_updates_of_unknown_channels_are_asked_about(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        await net.round(times=2)
        net.plant(2, scid_of(5), 20, 21)
        net.members[2].gossip.relay.publish(make_update(scid_of(5), 20, 21), set(), is_own=True)
        await net.round(times=2)
        assert scid_of(5) in net.members[1].gossip.view.topology.rows


async def test_no_more_is_asked_for_than_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channeld.gossip.sync.QUERY_SCIDS", 5)
    async with network(tmp_path, 1, 2) as net:
        spread(net, 1, channels=20)
        net.funding.away = True
        gossip = net.members[2].gossip
        with monkeypatch.context() as patch:
            patch.setattr("channeld.gossip.service.MAX_QUEUED_FOR_SYNC", 0)
            net.connect(1, 2)
            await net.settle()
            await net.round(61)  # who was not asked is not given up
            assert net.sent(2, 1, QueryShortChannelIds) == []
            assert not gossip.sync.is_synced
        net.funding.away = False
        await net.round(1)
        assert len(net.sent(2, 1, QueryShortChannelIds)) == 4
        assert gossip.sync.is_synced
        assert set(gossip.view.topology.rows) == set(net.members[1].gossip.view.topology.rows)


async def test_nothing_is_asked_before_layer_1_is_caught_up_with(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        spread(net, 1, channels=5)
        caught_up = False
        net.members[2].gossip.sync.may_start = lambda: caught_up
        net.connect(1, 2)
        await net.round()
        assert net.sent(2, 1, QueryChannelRange) == []
        caught_up = True
        await net.round()
        assert len(net.members[2].gossip.view.topology) == 5
