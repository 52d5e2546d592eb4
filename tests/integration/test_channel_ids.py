"""Ids of channels that a stranger chooses: none of them may be taken for another channel, or stop the node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from channeld.bolt.messages import (
    AcceptChannel,
    ErrorMessage,
    FundingCreated,
    FundingSigned,
    Message,
    OpenChannel,
    WarningMessage,
    decode,
)
from channeld.channel import machine, normal
from channeld.channel import open as opening
from channeld.channel.state import Funded, FundingCreatedSent
from channeld.node.peer import PeerLink
from tests.integration.world import STEP_SECONDS, TestNode, World, world_in
from tests.machine.harness import FEATURES, NODE_IDS, Peer, open_params, seed_secrets
from wallet.bitcoin import OutPoint
from wallet.bitcoin.address import REGTEST


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


class Stranger:
    """A peer that says what it likes to `node`."""

    def __init__(self, node: TestNode) -> None:
        self.node = node
        self.node_id = NODE_IDS["alice"]
        self.remote_features = FEATURES
        self.heard: list[Message] = []
        self.opener = Peer("alice", seed_secrets("alice"))

    def send(self, data: bytes) -> None:
        self.heard.append(decode(data))

    def send_message(self, message: Message) -> None:
        self.heard.append(message)

    def close(self, reason: str) -> None:
        self.closed = reason

    async def says(self, message: Message) -> Message:
        """Its answer."""
        before = len(self.heard)
        self.node.runtime.channels.peer_message(cast(PeerLink, self), message, b"")
        await self.node.flush()
        await self.node.flush()
        assert not self.node.has_crashed
        return self.heard[before]

    def proposal(self, temporary_channel_id: bytes) -> OpenChannel:
        wanted = open_params(
            Peer("bob", seed_secrets("bob")),
            chain_hash=REGTEST.chain_hash,
            temporary_channel_id=temporary_channel_id,
            announce=False,
        )
        self.opener.take(machine.initiate(wanted, self.opener.env()))
        message = decode(self.opener.outbox.popleft())
        assert isinstance(message, OpenChannel)
        return message

    def funding(self, proposal: OpenChannel, acceptance: AcceptChannel, outpoint: OutPoint) -> FundingCreated:
        """A well-signed `funding_created` that names any output."""
        env = self.opener.env()
        options: Any = {"local_is_opener": True}
        params = opening._params(proposal, acceptance, self.node.node_id, outpoint, env=env, **options)
        spec = opening._first_spec(proposal, **options)
        signed, _, _ = normal.sign_remote(params, spec, 0, acceptance.first_per_commitment_point, env)
        return FundingCreated(proposal.temporary_channel_id, outpoint.txid, outpoint.vout, signed.signature)


async def test_ids_that_are_taken(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 4_000_000)
    closed_id = await world.open(alice, bob, 500_000)
    channel_id = await world.open(alice, bob, 500_000)
    closing = await bob.api.close_channel(closed_id)
    assert closing.closing_txid is not None
    await world.mine(6)
    await bob.wait_gone(closed_id)
    stranger = Stranger(bob)
    for taken in (channel_id, closed_id):
        answer = await stranger.says(stranger.proposal(taken))
        assert isinstance(answer, ErrorMessage)
        assert b"in use" in answer.data
    driver = bob.runtime.channels.by_id(channel_id)
    assert driver is not None
    assert isinstance(driver.state, Funded)
    for number, outpoint in enumerate((driver.state.params.funding_outpoint, OutPoint(closed_id, 0))):
        proposal = stranger.proposal(bytes([number + 1]) * 32)
        acceptance = await stranger.says(proposal)
        assert isinstance(acceptance, AcceptChannel)
        answer = await stranger.says(stranger.funding(proposal, acceptance, outpoint))
        assert isinstance(answer, ErrorMessage)
        assert b"in use" in answer.data
    assert bob.runtime.channels.by_id(channel_id) is driver
    assert (await bob.wait_active(channel_id)).peer_id == alice.node_id


async def test_an_error_never_names_another_channel_than_the_one_that_is_refused(world: World) -> None:
    # BOLT 1, "when sending `error`: MUST fail the channel(s) referred to by the error message": all zeros are all
    # channels with the peer.
    bob = await world.node("bob")
    for is_zero in (True, False):
        stranger = Stranger(bob)
        begun = stranger.proposal(b"\x07" * 32)
        assert isinstance(await stranger.says(begun), AcceptChannel)
        proposal = stranger.proposal(bytes(32) if is_zero else begun.temporary_channel_id)
        answer = await stranger.says(proposal)
        assert isinstance(answer, WarningMessage)
        assert answer.channel_id == proposal.temporary_channel_id
        assert b"in use" in answer.data
        assert "in use" in stranger.closed
        assert bob.runtime.channels.by_id(begun.temporary_channel_id) is not None, "the first proposal stands"
        bob.runtime.channels.peer_error(cast(PeerLink, stranger), ErrorMessage(b"\x07" * 32, b"changed my mind"))
        await bob.flush()
        await bob.flush()


async def test_an_opening_may_be_begun_again(world: World) -> None:
    # BOLT 2, "accept a new `open_channel` message. discard the previous `open_channel` message."
    bob = await world.node("bob")
    stranger = Stranger(bob)
    for _ in range(3):
        proposal = stranger.proposal(b"\x07" * 32)
        acceptance = await stranger.says(proposal)
        assert isinstance(acceptance, AcceptChannel)
        bob.runtime.channels.peer_error(cast(PeerLink, stranger), ErrorMessage(b"\x07" * 32, b"changed my mind"))
        await bob.flush()
        await bob.flush()
    assert await bob.api.list_channels(include_closed=True) == []
    proposal = stranger.proposal(b"\x07" * 32)
    acceptance = await stranger.says(proposal)
    assert isinstance(acceptance, AcceptChannel)
    outpoint = OutPoint(b"\x55" * 32, 1)
    assert isinstance(await stranger.says(stranger.funding(proposal, acceptance, outpoint)), FundingSigned)
    await bob.restart()
    again = Stranger(bob)
    proposal = again.proposal(b"\x08" * 32)
    acceptance = await again.says(proposal)
    assert isinstance(acceptance, AcceptChannel)
    answer = await again.says(again.funding(proposal, acceptance, outpoint))  # the same money twice
    assert isinstance(answer, ErrorMessage)


async def test_no_channel_while_the_height_is_not_known(world: World) -> None:
    bob = await world.node("bob")
    stranger = Stranger(bob)
    bob.runtime.chain.in_step = False
    answer = await stranger.says(stranger.proposal(b"\x07" * 32))
    assert isinstance(answer, ErrorMessage)
    assert b"catching up" in answer.data
    bob.runtime.chain.in_step = True
    assert isinstance(await stranger.says(stranger.proposal(b"\x08" * 32)), AcceptChannel)


async def test_an_error_for_all_channels_fails_them_all_and_no_other_peers(world: World) -> None:
    # BOLT 1, "if `channel_id` is all zero: MUST fail all channels with the sending node."
    alice, bob, carol = [await world.node(name) for name in ("alice", "bob", "carol")]
    await world.fund(alice, 4_000_000)
    await world.fund(carol, 4_000_000)
    with_alice = {await world.open(alice, bob, 500_000), await world.open(alice, bob, 500_000)}
    with_carol = await world.open(carol, bob, 500_000)
    link = alice.runtime.peers.link(bob.node_id)
    assert link is not None
    link.send_message(ErrorMessage(with_carol, b"not mine to fail"))
    link.send_message(ErrorMessage(bytes(32), b"everything is broken"))

    async def failed() -> bool:
        return {c.channel_id for c in await bob.api.list_channels() if c.phase == "closing"} == with_alice

    await bob.until(failed)
    assert (await bob.wait_active(with_carol)).phase == "normal"


async def test_the_id_of_a_channel_that_we_open_is_taken_from_funding_created_on(world: World) -> None:
    # Who is told the funding output by `funding_created` may tell it to somebody else before `funding_signed`.
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(bob, 4_000_000)
    await bob.connect(alice)
    link = alice.runtime.peers.link(bob.node_id)
    assert link is not None
    send, withheld = link.send, asyncio.get_running_loop().create_future()

    def withhold(data: bytes) -> None:
        if isinstance(decode(data), FundingSigned):
            withheld.set_result(data)
        else:
            send(data)

    link.send = withhold  # type: ignore[method-assign]
    opening_it = asyncio.create_task(bob.api.open_channel(alice.node_id, 500_000))
    signed = await asyncio.wait_for(withheld, STEP_SECONDS)
    (driver,) = bob.runtime.channels.of_peer(alice.node_id)
    assert isinstance(driver.state, FundingCreatedSent)
    stranger = Stranger(bob)
    proposal = stranger.proposal(b"\x07" * 32)
    acceptance = await stranger.says(proposal)
    assert isinstance(acceptance, AcceptChannel)
    answer = await stranger.says(stranger.funding(proposal, acceptance, driver.state.params.funding_outpoint))
    assert isinstance(answer, ErrorMessage)
    assert b"in use" in answer.data
    send(signed)
    assert (await opening_it).phase == "awaiting_funding"
    assert not bob.has_crashed
