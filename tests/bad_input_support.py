"""Two daemons with a channel between them, `channelctl` as a process, and the question whether anything was lost."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from channeld.lab import DaemonProcess, Lab
from channeld.v1 import payments_pb2, peers_pb2, wallet_pb2
from tests.programs import Ran, run

SUCCEEDED = payments_pb2.PAYMENT_STATE_SUCCEEDED
CAPACITY_SAT = 1_000_000
PUSHED_SAT = 300_000
ON_CHAIN_SAT = 2_000_000


async def ctl(daemon: DaemonProcess, *arguments: str) -> Ran:
    """`channelctl` for a daemon."""
    command = [sys.executable, "-m", "channeld.cli.main", "--datadir", str(daemon.paths.root), "--network", "regtest"]
    ran = await run(*command, *arguments)
    return ran._replace(stderr=" ".join(ran.stderr.split()))  # sentences as they are, wherever lines were broken


async def ctl_fails(daemon: DaemonProcess, status: int, words: str, *arguments: str) -> None:
    """`channelctl` says a sentence with these words in it, prints no result, and exits with `status`."""
    ran = await ctl(daemon, *arguments)
    assert words.lower() in ran.stderr.lower(), ran
    assert ran.status == status, ran
    assert "Traceback" not in ran.stderr
    assert not ran.stdout, ran


async def refused(call: Awaitable[Any], code: str, words: str) -> None:
    """A gRPC call ends with this status and a sentence with these words in it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code().name == code, caught.value.details()
    sentence = caught.value.details() or ""
    assert sentence
    assert words.lower() in sentence.lower(), sentence


class Net:
    """Alice, with money on chain and most of a channel, and Bob, with the rest of it."""

    def __init__(self, lab: Lab, alice: DaemonProcess, bob: DaemonProcess, channel_id: bytes) -> None:
        self.lab = lab
        self.alice = alice
        self.bob = bob
        self.channel_id = channel_id

    async def owned(self) -> tuple[wallet_pb2.GetBalanceResponse, ...]:
        """What the two own."""
        return await self.alice.balance(), await self.bob.balance()

    @asynccontextmanager
    async def nothing_lost(self) -> AsyncIterator[None]:
        """Afterwards both daemons are the same processes and own what they owned, and their channel pays both ways."""
        before = await self._at_rest()
        pids = [daemon.process.pid for daemon in (self.alice, self.bob)]
        yield
        await self.own(*before)
        await self.pays_both_ways()
        await self.own(*before)
        assert [daemon.process.pid for daemon in (self.alice, self.bob)] == pids

    async def _at_rest(self) -> tuple[wallet_pb2.GetBalanceResponse, ...]:
        """What they own once no HTLC is on its way any more (no event tells when the last one is gone)."""
        for _ in range(500):
            owned = await self.owned()
            if not any(balance.pending_htlcs_msat for balance in owned):
                return owned
        raise AssertionError(str(owned))

    async def own(self, *expected: wallet_pb2.GetBalanceResponse) -> None:
        """They own this, as soon as the last HTLC has left the channel."""
        found: tuple[wallet_pb2.GetBalanceResponse, ...] = ()
        for _ in range(500):
            if (found := await self.owned()) == expected:
                return
        raise AssertionError(f"{found} instead of {expected}")

    async def pays_both_ways(self) -> None:
        """The channel works, and is the same as before."""
        for payer, payee in ((self.alice, self.bob), (self.bob, self.alice)):
            channel = await payer.wait_channel(self.channel_id)
            assert channel.capacity_sat == CAPACITY_SAT
            payment = await payer.pay((await payee.invoice(7_000)).bolt11)
            assert payment.state == SUCCEEDED, payment.failure


@asynccontextmanager
async def net_in(directory: Path) -> AsyncIterator[Net]:
    """Layer 1, Alice and Bob as processes, and their channel."""
    async with Lab(directory) as lab:
        alice, bob = await lab.daemons("alice", "bob")
        await lab.fund(alice, ON_CHAIN_SAT)
        channel = await lab.open_channel(alice, bob, CAPACITY_SAT, push_msat=PUSHED_SAT * 1000)
        yield Net(lab, alice, bob, channel.channel_id)


async def peer_address(daemon: DaemonProcess, node_id: bytes) -> str:
    """Where a daemon says that a peer is."""
    peers = (await daemon.client.peers.List(peers_pb2.ListPeersRequest())).peers
    return next(str(peer.address) for peer in peers if peer.node_id == node_id)
