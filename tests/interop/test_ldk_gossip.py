"""Gossip with LDK: it signs announcements with us, and each learns the network from the other."""

from __future__ import annotations

import asyncio

import pytest

from channeld.v1 import channels_pb2, peers_pb2
from tests.integration.test_gossip_lab import wait_known
from tests.interop.conftest import MixedLab

pytestmark = pytest.mark.interop


async def test_ldk_and_we_tell_each_other_the_network(lab: MixedLab) -> None:
    alice, bob = await lab.daemons("alice", "bob")
    ldk = await lab.ldk("ldk")
    await lab.fund(alice, 3_000_000)
    await lab.fund(bob, 3_000_000)
    first = await lab.open_channel(alice, bob, 1_000_000)
    await bob.client.peers.Connect(peers_pb2.ConnectPeerRequest(node_id=ldk.node_id, host="127.0.0.1", port=ldk.port))
    mark = ldk.mark()
    opened = await bob.client.channels.Open(channels_pb2.OpenChannelRequest(node_id=ldk.node_id, amount_sat=1_000_000))
    await lab.mine(6)
    await ldk.wait("ChannelReady", mark)
    second = await bob.wait_channel(opened.channel.channel_id)
    await wait_known(alice, 2, 2)
    await ldk.call("announce", alias="ldk")  # before its channel is known, nobody would take it

    # Alice hears of LDK's channel, of both its policies, and of LDK itself.
    channels = await wait_known(alice, 2, 3)
    found = channels[second.short_channel_id]
    assert {found.node_id_1, found.node_id_2} == {bob.node_id, ldk.node_id}
    assert all(policy and policy.usable for policy in found.policies)

    # LDK has checked and taken what our daemons say.
    async with asyncio.timeout(20):
        while True:  # each round asks LDK, which tells of its graph only when asked
            graph = {int(channel["scid"]): channel["policies"] for channel in await ldk.call("graph")}
            if len(graph) == 2 and all(all(policies) for policies in graph.values()):
                break
    (alices,) = [c for c in await alice.channels() if c.channel_id == first.channel_id]
    assert set(graph) == {alices.short_channel_id, second.short_channel_id}
    assert all(policy["enabled"] for policies in graph.values() for policy in policies)
