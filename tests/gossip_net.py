"""Several nodes' gossip in one process, connected by queues, with one clock and one layer 1."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from channeld.bolt.features import optional
from channeld.bolt.messages import Message, WarningMessage, decode
from channeld.gossip.interface import GossipConfig
from channeld.gossip.own import ForwardingPolicy, NodeProfile, OwnChannel
from channeld.gossip.service import Gossip
from tests.gossip_support import (
    CAPACITY_SAT,
    CHAIN_HASH,
    GOSSIP_FEATURES,
    NOW,
    FakeFunding,
    funding_of,
    funding_secrets,
    in_order,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    secret_of,
)
from wallet.bitcoin import secp

POLICY = ForwardingPolicy(1000, 10, 40, 1, 900_000_000)


class Wire:
    """One end of a connection: what `sender` sends comes to the other end, in order, when the net delivers."""

    def __init__(self, net: Net, sender: int, receiver: int, features: frozenset[int]) -> None:
        self.node_id = node_id_of(receiver)
        self.remote_features = features
        self.is_congested = False
        self.is_open = True
        self.back: Wire
        self._net = net
        self.sender = sender
        self.receiver = receiver

    def send(self, data: bytes) -> None:
        if self.is_open:
            message = decode(data)
            self._net.log.append((self.sender, self.receiver, message))
            self._net.under_way.append((self, message))


class Member:
    """A node: its gossip, and the keys to sign with."""

    def __init__(self, net: Net, number: int, path: Path, config: GossipConfig) -> None:
        self.number = number
        self.gossip = Gossip(
            new_view(path),
            net.funding,
            self,
            node_id_of(number),
            CHAIN_HASH,
            config,
            lambda: net.now,
            lambda: net.height,
            random.Random(number),
        )
        self.gossip.own.set_profile(NodeProfile(f"node {number}", b"\x01\x02\x03", (), b"\x02"))
        self.channels: dict[bytes, OwnChannel] = {}

    def sign_as_node(self, digest: bytes) -> bytes:
        return secp.sign(secret_of(self.number), digest)

    def sign_as_funder(self, channel_id: bytes, digest: bytes) -> bytes:
        channel = self.channels[channel_id]
        scid = int.from_bytes(channel_id[:8], "big")
        for secret in funding_secrets(scid):
            if secp.pubkey_of(secret) == channel.local_funding_pubkey:
                return secp.sign(secret, digest)
        raise AssertionError("not our funding key")

    def has(self, channel: OwnChannel) -> None:
        """Its gossip hears what a channel looks like."""
        self.channels[channel.channel_id] = channel
        self.gossip.set_channel(channel)

    def change(self, channel_id: bytes, **changes: object) -> None:
        """Something about a channel changes."""
        self.has(self.channels[channel_id]._replace(**changes))  # type: ignore[arg-type]


class Net:
    """All members, their wires, the clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.funding = FakeFunding()
        self.now = float(NOW)
        self.height = 1000
        self.members: dict[int, Member] = {}
        self.under_way: deque[tuple[Wire, Message]] = deque()
        self.log: list[tuple[int, int, Message]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, number: int, config: GossipConfig | None = None) -> Member:
        member = Member(self, number, self.folder / f"gossip{number}", config or GossipConfig())
        self.members[number] = member
        self._tasks += [asyncio.create_task(runner()) for runner in member.gossip.runners()]
        return member

    def connect(self, first: int, second: int, *, offers: tuple[int, ...] = GOSSIP_FEATURES) -> tuple[Wire, Wire]:
        """Both offer the same features."""
        features = optional(*offers)  # type: ignore[arg-type]
        there, back = Wire(self, first, second, features), Wire(self, second, first, features)
        there.back, back.back = back, there
        self.members[first].gossip.peer_connected(there)
        self.members[second].gossip.peer_connected(back)
        return there, back

    def disconnect(self, wire: Wire) -> None:
        for end in (wire, wire.back):
            end.is_open = False
            self.members[end.sender].gossip.peer_disconnected(end)

    async def settle(self) -> None:
        """Deliver and check everything that is under way."""
        while True:
            while self.under_way:
                wire, message = self.under_way.popleft()
                if wire.is_open and not isinstance(message, WarningMessage):
                    self.members[wire.receiver].gossip.peer_message(wire.back, message)
            for member in self.members.values():
                await member.gossip.intake.idle()
            more = [member.gossip.pump() for member in self.members.values()]
            if not any(more) and not self.under_way:
                return

    async def round(self, seconds: float = 60.0, times: int = 1) -> None:
        """Time passes: ticks and flushes."""
        for _ in range(times):
            self.now += seconds
            for member in self.members.values():
                member.gossip.tick()
            await self.settle()
            for member in self.members.values():
                member.gossip.flush()
            await self.settle()

    def sent(self, sender: int, receiver: int, *kinds: type[Message]) -> list[Message]:
        """What went from one to the other."""
        return [m for s, r, m in self.log if (s, r) == (sender, receiver) and (not kinds or isinstance(m, kinds))]

    def plant(self, number: int, scid: int, first: int, second: int, timestamp: int = NOW) -> None:
        """A member knows a channel of others, with updates and nodes."""
        self.funding.outputs[scid] = funding_of(scid)
        view = self.members[number].gossip.view
        view.add_channel(make_announcement(scid, first, second), funding_of(scid), self.now)
        for ends in ((first, second), (second, first)):
            view.set_update(make_update(scid, *ends, timestamp))
        for node in (first, second):
            if view.node(node_id_of(node)) is None:
                view.set_node(make_node(node, timestamp))

    def open_channel(self, first: int, second: int, scid: int, **changes: object) -> bytes:
        """A channel between members; returns its id. `real_scid` is what they know of its place in the chain."""
        changes = {("scid" if name == "real_scid" else name): value for name, value in changes.items()}
        self.funding.outputs[scid] = funding_of(scid)
        channel_id = scid.to_bytes(8, "big").ljust(32, b"\x01")
        keys = [secp.pubkey_of(secret) for secret in funding_secrets(scid)]
        ends = in_order(first, second)
        for member, peer in ((first, second), (second, first)):
            mine = keys[ends.index(member)]
            theirs = keys[ends.index(peer)]
            channel = OwnChannel(
                channel_id=channel_id,
                peer_id=node_id_of(peer),
                scid=scid,
                local_alias=scid + member,
                remote_alias=scid + peer,
                funding_txid=funding_of(scid).txid,
                capacity_sat=CAPACITY_SAT,
                announce=True,
                local_funding_pubkey=mine,
                remote_funding_pubkey=theirs,
                depth=6,
                is_ready=True,
                is_connected=True,
                is_closing=False,
                policy=POLICY,
            )
            self.members[member].has(channel._replace(**changes))  # type: ignore[arg-type]
        return channel_id

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
        for member in self.members.values():
            member.gossip.close()


@asynccontextmanager
async def network(folder: Path, *numbers: int, config: GossipConfig | None = None) -> AsyncIterator[Net]:
    """A net with these members."""
    net = Net(folder)
    for number in numbers:
        net.add(number, config)
    yield net
    await net.stop()
