"""The daemons of a soak, and calls to them that survive their deaths."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, NamedTuple, TypeVar

import grpc

from channeld.lab import DaemonProcess, Lab
from channeld.v1 import channels_pb2

T = TypeVar("T")
FEERATES = ((0, 0), (1000, 1), (1000, 100), (137, 777), (0, 2500))
"""(base msat, millionths): what members ask for forwarding."""

SPARE_SAT = 100_000
"""What an opener has beside each channel: for fees."""


class Member:
    """One daemon. `up` is set while it can be asked."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.up = asyncio.Event()
        self.up.set()
        self.deaths = 0

    @property
    def name(self) -> str:
        """The daemon's."""
        return self.daemon.name

    async def ask(self, call: Callable[[DaemonProcess], Awaitable[T]]) -> T:
        """What `call` returns; asked again after the daemon's death. Errors that the daemon itself answers with are
        raised: AioRpcError."""
        while True:
            await self.up.wait()
            deaths = self.deaths
            try:
                return await call(self.daemon)
            except grpc.aio.AioRpcError as error:
                if answered(error):
                    raise
                if deaths == self.deaths and self.up.is_set():
                    raise  # it lives, and yet cannot be reached
            except asyncio.CancelledError:  # its connection was closed under the call
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                if deaths == self.deaths and self.up.is_set():
                    raise  # it may have died again before this call woke up: then `deaths` counts that already

    async def die_and_return(self, away_seconds: float) -> None:
        """kill -9, and start again after so long."""
        self.up.clear()
        self.deaths += 1
        await self.daemon.kill()
        await asyncio.sleep(away_seconds)
        await self.daemon.start()
        self.up.set()


def answered(error: grpc.aio.AioRpcError) -> bool:
    """Whether the daemon itself said so: its answers say what kind of an error it is."""
    trailing: Any = error.trailing_metadata()
    return any(key == "channeld-error" for key, _ in trailing or ())


class Edge(NamedTuple):
    """A channel of the network, as it was when it was opened."""

    opener: Member
    other: Member
    channel: channels_pb2.Channel


class Shape(NamedTuple):
    """What a network looks like: `extra_channels` beside those that connect everybody; capacities in sat.
    `slow_disk_seconds`: how long a commit may take on top, and as long again until the node hears of it."""

    members: int
    extra_channels: int
    capacity_sat: tuple[int, int] = (400_000, 4_000_000)
    is_line: bool = False
    slow_disk_seconds: float = 0.0


class Network(NamedTuple):
    """What was built. `given_sat`: what the members got on chain, all together."""

    members: list[Member]
    edges: list[Edge]
    given_sat: int


async def build(lab: Lab, shape: Shape, rng: Random) -> Network:
    """Daemons, funded; public channels between them with random balances and policies, known to everybody."""
    members = [Member(_daemon(lab, f"node{number}", shape.slow_disk_seconds)) for number in range(shape.members)]
    await asyncio.gather(*(member.daemon.start() for member in members))
    await lab.wait_synced()
    plans = _plans(members, shape, rng)
    given_sat = 0
    for opener, _, capacity_sat, _ in plans:  # a coin for each channel
        amount_sat = capacity_sat + SPARE_SAT
        await lab.rpc.call("sendtoaddress", await opener.daemon.new_address(), f"{amount_sat / 1e8:.8f}")
        given_sat += amount_sat
    await lab.mine(1)
    edges = [await _open(*plan) for plan in plans]
    await lab.mine(6)
    for edge in edges:
        await asyncio.gather(*(m.daemon.wait_channel(edge.channel.channel_id) for m in (edge.opener, edge.other)))
    for member in members:
        base, proportional = rng.choice(FEERATES)
        request = channels_pb2.SetPolicyRequest(fee_base_msat=base, fee_proportional_millionths=proportional)
        await member.daemon.client.channels.SetPolicy(request)
    await lab.wait_graph(*(edge.channel for edge in edges))
    return Network(members, edges, given_sat)


def _daemon(lab: Lab, name: str, slow_disk_seconds: float) -> DaemonProcess:
    if not slow_disk_seconds:
        return lab.add_daemon(name)
    return lab.add_daemon(name, env={"SLOW_DISK_SECONDS": str(slow_disk_seconds)}, module="tests.slow_disk_daemon")


def _plans(members: list[Member], shape: Shape, rng: Random) -> list[tuple[Member, Member, int, int]]:
    """(opener, other, capacity in sat, pushed msat): a tree or a line, and then some."""
    pairs: list[tuple[Member, Member]] = []
    for number in range(1, len(members)):
        earlier = members[number - 1] if shape.is_line else members[rng.randrange(number)]
        pairs.append((earlier, members[number]))
    for _ in range(shape.extra_channels):
        first, second = rng.sample(members, 2)
        pairs.append((first, second))
    plans = []
    for first, second in pairs:
        opener, other = (first, second) if rng.random() < 0.5 else (second, first)
        capacity_sat = rng.randint(*shape.capacity_sat)
        plans.append((opener, other, capacity_sat, int(capacity_sat * 1000 * rng.uniform(0.2, 0.8))))
    return plans


async def _open(opener: Member, other: Member, capacity_sat: int, push_msat: int) -> Edge:
    await opener.daemon.connect(other.daemon)
    return Edge(opener, other, await opener.daemon.open_channel(other.daemon, capacity_sat, push_msat=push_msat))
