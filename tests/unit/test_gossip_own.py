"""Announcing our own channels, policies and node; and that what is private stays private."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from channeld.bolt.messages import (
    AnnouncementSignatures,
    ChannelAnnouncement,
    ChannelUpdate,
    NodeAnnouncement,
    SignedGossip,
    WarningMessage,
    decode,
    decode_addresses,
    parse_address,
)
from channeld.gossip.interface import GossipConfig
from channeld.gossip.own import NodeProfile
from channeld.gossip.validate import DISABLE, DONT_FORWARD, MUST_BE_ONE
from tests.gossip_net import POLICY, Net, network
from tests.gossip_support import CAPACITY_SAT, FakePort, node_id_of, scid_of

SCID = scid_of(500)
WEEK = 7 * 24 * 3600
ONION = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion"


def direction_of(ours: int, theirs: int) -> int:
    return int(node_id_of(ours) > node_id_of(theirs))


def latest(net: Net, number: int, by: int, other: int, scid: int = SCID) -> ChannelUpdate | None:
    """What member `number` knows of `by`'s policy towards `other`."""
    raw = net.members[number].gossip.view.update(scid, direction_of(by, other))
    message = decode(raw) if raw is not None else None
    assert message is None or isinstance(message, ChannelUpdate)
    return message


async def test_a_channel_becomes_public(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2, 3) as net:
        net.connect(1, 2)
        net.connect(2, 3)
        net.open_channel(1, 2, SCID)
        await net.settle()
        await net.round(times=3)
        for number in (1, 2, 3):
            view = net.members[number].gossip.view
            channel = view.channel(SCID)
            assert channel is not None
            assert {channel.node_id_1, channel.node_id_2} == {node_id_of(1), node_id_of(2)}
            assert channel.capacity_sat == CAPACITY_SAT
            assert all(policy is not None and policy.usable for policy in channel.policies)
            assert view.node(node_id_of(1))
            assert view.node(node_id_of(2))
        assert len(net.sent(1, 2, AnnouncementSignatures)) == len(net.sent(2, 1, AnnouncementSignatures)) == 1
        assert not [m for _, _, m in net.log if isinstance(m, WarningMessage)]


async def test_the_update_says_what_the_policy_says(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        net.open_channel(1, 2, SCID, policy=POLICY._replace(htlc_maximum_msat=10**15, htlc_minimum_msat=7))
        await net.settle()
        update = latest(net, 2, 1, 2)
        assert update is not None
        assert update.fee_base_msat == POLICY.fee_base_msat
        assert update.fee_proportional_millionths == POLICY.fee_proportional_millionths
        assert update.cltv_expiry_delta == POLICY.cltv_expiry_delta
        assert update.htlc_minimum_msat == 7
        assert update.htlc_maximum_msat == 1000 * CAPACITY_SAT
        assert update.message_flags == MUST_BE_ONE
        assert update.channel_flags == direction_of(1, 2)


@pytest.mark.parametrize(
    "changes",
    [{"depth": 5}, {"is_ready": False}, {"announce": False}, {"is_closing": True}, {"real_scid": None}],
)
async def test_nothing_is_announced_too_early_or_against_our_will(tmp_path: Path, changes: dict[str, object]) -> None:
    async with network(tmp_path, 1, 2, 3) as net:
        net.connect(1, 2)
        net.connect(2, 3)
        channel_id = net.open_channel(1, 2, SCID, **changes)
        await net.round(times=2)
        assert net.sent(1, 2, AnnouncementSignatures) == []
        assert len(net.members[1].gossip.view.topology) == 0
        assert net.sent(2, 3, SignedGossip) == []
        if changes.get("depth") == 5:
            for number in (1, 2):
                net.members[number].change(channel_id, depth=6)
            await net.round(times=2)
            assert net.members[3].gossip.view.channel(SCID) is not None


async def test_a_private_channel_never_leaks(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2, 3) as net:
        net.connect(1, 2)
        net.connect(2, 3)
        net.open_channel(1, 2, SCID, announce=False)
        net.open_channel(2, 3, scid_of(501))  # so that node 2 has something to say
        await net.round(times=5)
        for sender, receiver, message in net.log:
            if isinstance(message, ChannelUpdate) and message.short_channel_id in range(SCID, SCID + 10):
                assert {sender, receiver} == {1, 2}
                assert message.message_flags == MUST_BE_ONE | DONT_FORWARD
                assert message.short_channel_id == SCID + receiver  # the alias that the receiver gave
            if isinstance(message, ChannelAnnouncement):
                assert message.short_channel_id == scid_of(501)
            if isinstance(message, NodeAnnouncement):
                assert message.node_id != node_id_of(1)
        for number in (1, 2, 3):
            assert list(net.members[number].gossip.view.topology.rows) == [scid_of(501)]
        channel_id = next(iter(net.members[1].channels))
        told = net.members[1].gossip.own.remote_update(channel_id)
        assert told is not None
        assert told.fee_base_msat == POLICY.fee_base_msat
        assert net.members[1].gossip.own.remote_update(bytes(32)) is None


async def test_the_peer_hears_of_a_private_policy_again_when_it_changes_or_returns(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        wire, _ = net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, announce=False)
        await net.round(times=3)
        assert len(net.sent(1, 2, ChannelUpdate)) == 1
        net.members[1].change(channel_id, policy=POLICY._replace(fee_base_msat=5))
        net.members[1].change(channel_id, policy=POLICY._replace(fee_base_msat=5))
        await net.settle()
        assert len(net.sent(1, 2, ChannelUpdate)) == 2
        net.disconnect(wire)
        net.members[1].change(channel_id, is_connected=False)
        net.connect(1, 2)
        net.members[1].change(channel_id, is_connected=True)
        await net.settle()
        updates = [message for message in net.sent(1, 2, ChannelUpdate) if isinstance(message, ChannelUpdate)]
        assert len(updates) == 3
        assert [update.timestamp for update in updates] == sorted({update.timestamp for update in updates})
        told = net.members[2].gossip.own.remote_update(channel_id)
        assert told is not None
        assert told.fee_base_msat == 5


async def test_a_forged_private_update_is_not_believed(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        _, back = net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, announce=False)
        await net.settle()
        good = net.members[1].gossip.own.remote_update(channel_id)
        assert good is not None
        forged = replace(good, timestamp=good.timestamp + 1, fee_base_msat=10**6)
        back.send(forged.raw)
        ours = replace(good, channel_flags=good.channel_flags ^ 1, timestamp=good.timestamp + 2)
        back.send(ours.raw)
        await net.settle()
        assert net.members[1].gossip.own.remote_update(channel_id) == good


# --- announcement_signatures


async def test_signatures_are_sent_again_on_reconnection_until_the_peers_came(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        wire, _ = net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, depth=5)
        net.members[1].change(channel_id, depth=6)  # the peer has not seen the block yet
        await net.settle()
        assert len(net.sent(1, 2, AnnouncementSignatures)) == 1
        assert net.sent(2, 1, AnnouncementSignatures) == []
        net.disconnect(wire)
        for number in (1, 2):
            net.members[number].change(channel_id, is_connected=False)
        net.connect(1, 2)
        for number in (1, 2):
            net.members[number].change(channel_id, is_connected=True)
        await net.settle()
        assert len(net.sent(1, 2, AnnouncementSignatures)) == 2
        net.members[2].change(channel_id, depth=6)
        await net.settle()
        assert len(net.sent(2, 1, AnnouncementSignatures)) == 1
        for number in (1, 2):
            assert net.members[number].gossip.own.is_announced(channel_id)


async def test_a_peer_that_lost_them_gets_our_signatures_again(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        wire, _ = net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID)
        await net.settle()
        theirs = net.sent(2, 1, AnnouncementSignatures)[0]
        net.disconnect(wire)
        net.members[1].change(channel_id, is_connected=False)
        port = FakePort(2)
        net.members[1].gossip.peer_connected(port)
        net.members[1].change(channel_id, is_connected=True)
        assert port.take(AnnouncementSignatures) == []  # there is nothing to ask for
        net.members[1].gossip.peer_message(port, theirs)
        net.members[1].gossip.peer_message(port, theirs)
        assert len(port.take(AnnouncementSignatures)) == 1


async def test_after_a_restart_a_public_channel_is_still_public(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID)
        await net.settle()
        before = latest(net, 1, 1, 2)
        channel = net.members[1].channels[channel_id]
        net.members[1].gossip.view.store.flush()
        again = net.add(1)
        again.has(channel._replace(is_connected=False))
        port = FakePort(2)
        again.gossip.peer_connected(port)
        again.has(channel)
        net.now += 5
        again.gossip.tick()
        assert again.gossip.own.is_announced(channel_id)
        assert port.take(AnnouncementSignatures) == []
        assert port.take(ChannelUpdate) == [before]


async def test_an_update_that_comes_before_our_announcement_is_not_lost(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, depth=5)
        net.members[1].change(channel_id, depth=6)
        await net.settle()
        net.under_way.clear()
        port, announced_by_2 = FakePort(2), net.members[2]
        gossip = net.members[1].gossip
        gossip.peer_connected(port)
        announced_by_2.change(channel_id, depth=6)
        theirs = net.sent(2, 1, AnnouncementSignatures)[0]
        update = next(m for m in net.sent(2, 1, ChannelUpdate) if m.short_channel_id == SCID)  # type: ignore[attr-defined]
        assert not gossip.own.is_announced(channel_id)
        gossip.peer_message(port, update)
        gossip.peer_message(port, theirs)
        await gossip.intake.idle()
        assert latest(net, 1, 2, 1) == update


async def test_signatures_that_come_before_we_saw_the_block_are_not_lost(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, real_scid=None, depth=0, is_ready=False)
        net.members[2].change(channel_id, scid=SCID, depth=6, is_ready=True)
        await net.settle()
        assert len(net.sent(2, 1, AnnouncementSignatures)) == 1
        net.members[1].change(channel_id, scid=SCID, depth=6, is_ready=True)
        await net.settle()
        assert net.members[1].gossip.own.is_announced(channel_id)
        assert len(net.sent(2, 1, AnnouncementSignatures)) == 1


async def test_wrong_signatures_get_a_warning_and_no_announcement(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        _, back = net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, depth=5)
        net.members[2].change(channel_id, depth=6)
        await net.settle()
        good = net.sent(2, 1, AnnouncementSignatures)[0]
        assert isinstance(good, AnnouncementSignatures)
        port = FakePort(2)
        gossip = net.members[1].gossip
        gossip.peer_connected(port)
        gossip.peer_message(port, replace(good, bitcoin_signature=good.node_signature))
        net.members[1].change(channel_id, depth=6)
        net.members[1].change(channel_id, depth=7)
        assert len(port.take(WarningMessage)) == 1
        assert not gossip.own.is_announced(channel_id)
        gossip.peer_message(port, replace(good, short_channel_id=SCID + 1))
        gossip.peer_message(port, replace(good, channel_id=bytes(32)))
        assert len(port.take(WarningMessage)) == 2
        gossip.peer_message(port, good)
        assert gossip.own.is_announced(channel_id)
        assert back.is_open


async def test_signatures_of_another_peer_are_not_taken(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, depth=5)
        net.members[2].change(channel_id, depth=6)
        await net.settle()
        port = FakePort(3)
        net.members[1].gossip.peer_connected(port)
        net.members[1].gossip.peer_message(port, net.sent(2, 1, AnnouncementSignatures)[0])
        assert len(port.take(WarningMessage)) == 1


async def test_a_reorganisation_changes_the_name_and_both_sign_again(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        channel_id = net.open_channel(1, 2, SCID, depth=5)
        net.members[1].change(channel_id, depth=6)
        await net.settle()
        moved = scid_of(501)
        for number in (1, 2):
            net.members[number].change(channel_id, scid=moved, depth=1)
        await net.settle()
        assert not net.members[2].gossip.own.is_announced(channel_id)
        assert net.members[2].gossip.own.scids() == [moved]


# --- updates


async def announced(net: Net) -> bytes:
    net.connect(1, 2)
    channel_id = net.open_channel(1, 2, SCID)
    await net.round(times=2)
    return channel_id


async def test_policy_changes_are_dampened_and_then_told(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        channel_id = await announced(net)
        first = latest(net, 1, 1, 2)
        assert first is not None
        for fee in range(10, 15):
            net.now += 1
            net.members[1].change(channel_id, policy=POLICY._replace(fee_base_msat=fee))
        second = latest(net, 1, 1, 2)
        assert second is not None
        assert second.fee_base_msat == 10
        await net.round()
        third = latest(net, 2, 1, 2)
        assert third is not None
        assert third.fee_base_msat == 14
        assert first.timestamp < second.timestamp < third.timestamp


async def test_a_short_absence_is_nobodys_business(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        channel_id = await announced(net)
        before = latest(net, 1, 1, 2)
        net.members[1].change(channel_id, is_connected=False)
        await net.round(300, times=3)
        net.members[1].change(channel_id, is_connected=True)
        await net.round()
        assert latest(net, 1, 1, 2) == before


async def test_a_long_absence_disables_the_channel_and_return_enables_it(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        channel_id = await announced(net)
        net.members[1].change(channel_id, is_connected=False)
        await net.round(600, times=3)
        disabled = latest(net, 1, 1, 2)
        assert disabled is not None
        assert disabled.channel_flags & DISABLE
        net.members[1].change(channel_id, is_connected=True)
        enabled = latest(net, 1, 1, 2)
        assert enabled is not None
        assert not enabled.channel_flags & DISABLE
        assert enabled.timestamp > disabled.timestamp


async def test_closing_disables_the_channel_at_once(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        channel_id = await announced(net)
        net.members[1].change(channel_id, policy=POLICY._replace(fee_base_msat=3))
        net.members[1].change(channel_id, is_closing=True)
        update = latest(net, 1, 1, 2)
        assert update is not None
        assert update.channel_flags & DISABLE
        net.members[1].gossip.remove_channel(channel_id)
        assert not net.members[1].gossip.own.is_announced(channel_id)
        net.members[1].gossip.remove_channel(channel_id)


async def test_own_updates_and_announcement_are_kept_alive_and_never_pruned(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        await announced(net)
        before = latest(net, 1, 1, 2)
        node = net.members[1].gossip.view.node(node_id_of(1))
        await net.round(WEEK - 1000)
        assert latest(net, 1, 1, 2) == before
        await net.round(1001)
        update = latest(net, 2, 1, 2)
        assert before is not None
        assert update is not None
        assert update.timestamp - before.timestamp >= WEEK
        await net.round()
        assert net.members[1].gossip.view.node(node_id_of(1)) != node
        net.now += 3 * WEEK
        net.members[1].gossip.prune(net.now)
        assert net.members[1].gossip.view.channel(SCID) is not None


async def test_our_own_words_from_elsewhere_do_not_confuse_us(tmp_path: Path) -> None:
    """A store was lost; a peer brings back an update of ours that is ahead of the clock, with other terms."""
    async with network(tmp_path, 1, 2) as net:
        channel_id = await announced(net)
        own = net.members[1].gossip.own
        strange = own._signed_update(
            own._channels[channel_id], (SCID, 1, direction_of(1, 2), 40, 1, 999, 10, 900_000_000), int(net.now) + 500
        )
        port = FakePort(9)
        net.members[1].gossip.peer_connected(port)
        net.members[1].gossip.peer_message(port, strange)
        await net.settle()
        assert latest(net, 1, 1, 2) == strange
        await net.round(times=2)
        update = latest(net, 1, 1, 2)
        assert update is not None
        assert update.fee_base_msat == POLICY.fee_base_msat
        assert update.timestamp > strange.timestamp


async def test_own_gossip_goes_to_all_peers_whatever_they_asked_for(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        port = FakePort(9)
        net.members[1].gossip.peer_connected(port)
        await announced(net)
        kinds = [type(message) for message in port.take(SignedGossip)]
        assert kinds.count(ChannelAnnouncement) == 1
        assert kinds.count(ChannelUpdate) == 1  # ours, not the peer's
        assert kinds.count(NodeAnnouncement) == 1


# --- the node


async def test_the_nodes_announcement(tmp_path: Path) -> None:
    addresses = tuple(
        parse_address(text) for text in ("node.example:9735", f"{ONION}:9735", "[2001:db8::1]:9736", "203.0.113.7:9735")
    )
    async with network(tmp_path, 1, 2) as net:
        net.members[1].gossip.own.set_profile(NodeProfile("Zoë", b"\xff\x00\x80", addresses, b"\x02\x00"))
        await announced(net)
        raw = net.members[2].gossip.view.node(node_id_of(1))
        message = decode(raw or b"")
        assert isinstance(message, NodeAnnouncement)
        assert message.alias == "Zoë".encode().ljust(32, b"\0")
        assert message.rgb_color == b"\xff\x00\x80"
        assert message.features == b"\x02\x00"
        assert decode_addresses(message.addresses) == sorted(addresses)
        net.members[1].gossip.own.set_profile(NodeProfile("other", b"\xff\x00\x80", (), b""))
        await net.round(times=3)
        newer = decode(net.members[2].gossip.view.node(node_id_of(1)) or b"")
        assert isinstance(newer, NodeAnnouncement)
        assert newer.alias == b"other".ljust(32, b"\0")
        assert newer.timestamp > message.timestamp


async def test_a_node_without_public_channels_stays_quiet(tmp_path: Path) -> None:
    async with network(tmp_path, 1, 2) as net:
        net.connect(1, 2)
        net.open_channel(1, 2, SCID, announce=False)
        await net.round(times=3)
        assert not [m for _, _, m in net.log if isinstance(m, NodeAnnouncement)]


@pytest.mark.parametrize(
    "profile",
    [
        NodeProfile("x" * 33, bytes(3), (), b""),
        NodeProfile("ok", bytes(4), (), b""),
        NodeProfile("ok", bytes(3), (parse_address("a.example:1"), parse_address("b.example:1")), b""),
        NodeProfile("ok", bytes(3), (replace(parse_address("1.2.3.4:1"), port=0),), b""),
    ],
)
async def test_profiles_that_cannot_be(tmp_path: Path, profile: NodeProfile) -> None:
    async with network(tmp_path, 1, config=GossipConfig()) as net:
        with pytest.raises(ValueError):
            net.members[1].gossip.own.set_profile(profile)
