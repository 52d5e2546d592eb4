"""A forwarded HTLC that nobody answers in time: because it is not worth closing a channel for, or because it does not
come back from a channel that ended on chain. The channel that it came in over must not be lost over a small one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from channeld.bolt.onion.payment import build_payment_onion, final_payload, forward_payload
from channeld.channel import events as ev
from channeld.channel.commitments import Commitments
from channeld.channel.state import Funded
from channeld.node import views
from channeld.node.channels import Driver
from channeld.node.driver import Reaction
from channeld.node.forwarding import names_of
from tests.integration.world import STEP_SECONDS, TestNode, World, world_in
from wallet.bitcoin import Tx
from wallet.chain import BroadcastOutcome, BroadcastResult

CHANNEL_SAT = 1_000_000
AMOUNT_MSAT = 200_000
EXPIRY_BLOCKS = 42
OUTGOING_EXPIRY_BLOCKS = EXPIRY_BLOCKS - 34
LATE_BLOCKS = EXPIRY_BLOCKS - 4
PREIMAGE = bytes(32)
PAYMENT_HASH = sha256(PREIMAGE).digest()


def commitments_of(driver: Driver) -> Commitments:
    """A channel's commitments."""
    assert isinstance(driver.state, Funded)
    return driver.state.commitments


class Line:
    """Alice, Bob and Carol, and an HTLC from Alice over Bob that Carol keeps."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.monkeypatch = monkeypatch
        self.alice: TestNode
        self.bob: TestNode
        self.carol: TestNode
        self.channels: list[bytes] = []
        self.height = 0

    async def start(self, amount_msat: int) -> Line:
        world = self.world
        self.alice, self.bob, self.carol = [await world.node(name) for name in ("alice", "bob", "carol")]
        for node in (self.alice, self.bob):
            await world.fund(node, 20_000_000)
        self.channels = [
            await world.open(self.alice, self.bob, CHANNEL_SAT),
            await world.open(self.bob, self.carol, CHANNEL_SAT, announce=False),
        ]
        await world.mine(6)
        self.monkeypatch.setattr(self.carol.runtime.receiver, "receive", lambda *_: Reaction())
        self.height = self.alice.runtime.wallet.height
        scid, *_ = names_of(self.outgoing)
        last = final_payload(amount_msat, self.height + OUTGOING_EXPIRY_BLOCKS, bytes(32), amount_msat, None)
        first = forward_payload(amount_msat, self.height + OUTGOING_EXPIRY_BLOCKS, scid)
        route = [(self.bob.node_id, first), (self.carol.node_id, last)]
        onion = build_payment_onion(route, bytes([7]) * 32, PAYMENT_HASH)
        add = ev.AddHtlc(amount_msat + 2000, PAYMENT_HASH, self.height + EXPIRY_BLOCKS, onion.packet, b"a test")
        await self.alice.runtime.channels.command(self.first_hop, add)
        wait_until = self.bob.runtime.channels.wait_until
        assert await wait_until(self.outgoing, lambda d: len(commitments_of(d).local.spec.htlcs) == 1, STEP_SECONDS)
        return self

    @property
    def first_hop(self) -> Driver:
        """Alice's."""
        (driver,) = self.alice.runtime.channels.all()
        return driver

    @property
    def last_hop(self) -> Driver:
        """Carol's."""
        (driver,) = self.carol.runtime.channels.all()
        return driver

    @property
    def outgoing(self) -> Driver:
        """Bob's, with Carol."""
        (driver,) = (d for d in self.bob.runtime.channels.all() if d.peer_id == self.carol.node_id)
        return driver

    def told(self, kind: str) -> list[Any]:
        """Events of Bob's."""
        return [event for event in self.bob.runtime.bus._kept if event.kind == kind]

    async def until_told(self, kind: str) -> None:
        async def there() -> bool:
            return bool(self.told(kind))

        await self.bob.until(there)

    async def bob_closes(self, feerate_per_kw: int = 253) -> None:
        """The channel with Carol, in the next block. What Bob thinks that blocks cost from then on."""
        await self.bob.runtime.channels.command(self.outgoing, ev.ForceClose("a test"))
        await self.world.mine(1)

        async def rate(target_blocks: int) -> int:
            return feerate_per_kw

        self.monkeypatch.setattr(self.bob.runtime.chain._source, "fee_rate_sat_per_kw", rate)
        await self.world.mine(1)

    @contextmanager
    def nothing_of_bobs_is_taken(self) -> Iterator[None]:
        """By layer 1, whatever it pays."""

        async def refuse(tx: Tx) -> BroadcastResult:
            return BroadcastResult(BroadcastOutcome.REJECTED, "a test", retriable=True)

        async def refuse_package(txs: Sequence[Tx]) -> list[BroadcastResult]:
            return [await refuse(tx) for tx in txs]

        with self.monkeypatch.context() as patch:
            patch.setattr(self.bob.runtime.chain._source, "broadcast", refuse)
            patch.setattr(self.bob.runtime.chain._source, "broadcast_package", refuse_package)
            yield

    async def bob_rests(self) -> None:
        """He has done all that the last block led to."""
        await self.bob.runtime.monitor.wait_idle()
        await self.bob.flush()


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_small_htlc_that_is_never_answered_closes_no_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    async with world_in(tmp_path) as world:
        line = await Line(world, monkeypatch).start(AMOUNT_MSAT)
        alice, bob, carol, channels = line.alice, line.bob, line.carol, line.channels
        await world.mine(LATE_BLOCKS)
        await alice.wait_no_htlcs(channels[0])
        assert (await alice.wait_active(channels[0])).phase == "normal"
        if restarts:
            await bob.restart()
            await bob.wait_active(channels[1])
        # Carol answers after all: Bob pays her and has nothing from Alice, so there is no fee that he earned.
        (htlc,) = views.htlcs(line.last_hop.state)
        await carol.runtime.channels.command(line.last_hop, ev.FulfillHtlc(htlc.id, PREIMAGE))
        await line.until_told("forward.lost")
        await bob.wait_no_htlcs(channels[1])
        assert await bob.api.list_forwards() == []
        assert sum(c.local_msat for c in await alice.api.list_channels()) == CHANNEL_SAT * 1000


async def test_an_htlc_that_is_too_dear_to_fetch_closes_no_other_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob's channel with Carol is in the chain, and fees are such that the HTLC is not worth taking back."""
    async with world_in(tmp_path) as world:
        line = await Line(world, monkeypatch).start(4_000_000)
        await line.bob_closes(feerate_per_kw=5_000)
        await world.mine(LATE_BLOCKS)
        await line.alice.wait_no_htlcs(line.channels[0])
        assert (await line.alice.wait_active(line.channels[0])).phase == "normal"
        (report,) = line.told("channel.htlc_given_up")
        assert report.data["amount_msat"] == 4_002_000


async def test_a_large_htlc_is_kept_and_told_of_until_it_is_back_as_deep_as_there_are_blocks_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob's HTLC-timeout transaction is not mined at first: who keeps it out may have the preimage."""
    async with world_in(tmp_path) as world:
        line = await Line(world, monkeypatch).start(100_000_000)
        await line.bob_closes()
        with line.nothing_of_bobs_is_taken():
            await world.mine(LATE_BLOCKS - 3)
            await line.until_told("channel.htlc_stuck")
        await world.mine(1)
        await line.bob_rests()
        await world.mine(1)
        await line.bob_rests()
        assert len(views.htlcs(line.first_hop.state)) == 1
        await world.mine(1)
        await line.alice.wait_no_htlcs(line.channels[0])
        assert (await line.alice.wait_active(line.channels[0])).phase == "normal"
        assert len(line.told("channel.htlc_stuck")) == 1
        assert line.told("channel.htlc_given_up") == []
