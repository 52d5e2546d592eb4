"""Real daemons tell each other the network; what is private stays where it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from channeld.gossip.view import PublicChannel
from channeld.lab import DaemonProcess, Lab
from channeld.lab.known import KnownNetwork


async def wait_known(daemon: DaemonProcess, channels: int, nodes: int) -> dict[int, PublicChannel]:
    """Until it knows so many channels, with both policies, and nodes."""

    async def reached() -> KnownNetwork | None:
        found = daemon.network()
        complete = all(channel.policies[0] and channel.policies[1] for channel in found.channels.values())
        return found if (len(found.channels), len(found.nodes)) == (channels, nodes) and complete else None

    found = await daemon.wait_until(reached)
    assert isinstance(found, KnownNetwork)
    return found.channels


async def test_a_line_of_daemons_learns_its_network(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob, carol = await lab.daemons("alice", "bob", "carol")
        await asyncio.gather(lab.fund(alice, 3_000_000), lab.fund(bob, 3_000_000))
        first = await lab.open_channel(alice, bob, 1_000_000)
        second = await lab.open_channel(bob, carol, 1_000_000)
        private = await lab.open_channel(alice, bob, 500_000, private=True)
        for daemon in (alice, bob, carol):
            channels = await wait_known(daemon, 2, 3)
            ends = {frozenset((channel.node_id_1, channel.node_id_2)) for channel in channels.values()}
            assert ends == {frozenset((alice.node_id, bob.node_id)), frozenset((bob.node_id, carol.node_id))}
            assert all(policy and policy.usable for channel in channels.values() for policy in channel.policies)
        hidden = next(c for c in await alice.channels() if c.channel_id == private.channel_id)
        assert hidden.short_channel_id not in carol.network().channels

        await carol.kill()
        await carol.start()
        assert len(carol.network().channels) == 2

        dave = lab.add_daemon("dave")  # comes late and knows only carol
        await dave.start()
        await dave.connect(carol)
        assert len(await wait_known(dave, 2, 3)) == 2

        await alice.close_channel(first.channel_id)
        await lab.mine(73)
        for daemon in (alice, bob, carol, dave):
            channels = await wait_known(daemon, 1, 2)
            assert {frozenset((c.node_id_1, c.node_id_2)) for c in channels.values()} == {
                frozenset((bob.node_id, carol.node_id))
            }
        assert second.channel_id
