"""A node's life: layer 1 goes away and comes back, the chain reorganises, peers misbehave, disconnect and cross."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from channeld.bolt.messages import (
    ChannelUpdate,
    ErrorMessage,
    Init,
    Message,
    OpenChannel,
    Ping,
    Pong,
    UpdateFee,
    WarningMessage,
    decode,
    encode,
)
from channeld.node import transport
from channeld.node.interface import NodeError, RescanView
from channeld.node.peer import PeerLink
from tests.integration.world import STEP_SECONDS, TestNode, World, world_in
from wallet.bitcoin.address import REGTEST
from wallet.bitcoin.secp import pubkey_of

REQUIRED_UNKNOWN = (1 << 200).to_bytes(26, "big")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


async def event(node: TestNode, kind: str, words: str = "") -> str:
    """The sentence of the first event of a kind that has these words in it, from the node's start on."""
    async with asyncio.timeout(60):
        async for happened in node.api.events(0):
            if happened.kind == kind and words in happened.sentence:
                return happened.sentence
    raise AssertionError


# --- layer 1 ------------------------------------------------------------------------------------------------------


async def test_layer_1_goes_away_and_comes_back(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 100_000_000)
    channel_id = await world.open(alice, bob, 1_000_000)
    held = await bob.api.create_invoice(2_000, "held", hold=True)
    paying = asyncio.create_task(alice.api.pay(held.bolt11))
    await event(bob, "invoice.accepted")
    await world.stop_chain()
    assert "cannot be reached" in await event(alice, "chain.lost")
    await event(bob, "chain.lost")
    with pytest.raises(NodeError, match="layer 1 is away"):
        await bob.api.settle_invoice(held.payment_hash)
    await bob.api.cancel_invoice(held.payment_hash)
    assert (await paying).state == "failed"
    info = await alice.api.info()
    assert info.chain_status.startswith("layer 1 is away since")
    assert (await alice.api.pay((await bob.api.create_invoice(1_000, "meanwhile")).bolt11)).state == "succeeded"
    closed = await alice.api.close_channel(channel_id)
    assert closed.closing_txid is not None
    await world.start_chain_again()
    await event(alice, "chain.back")
    await event(alice, "chain.broadcast", f"{closed.closing_txid[::-1].hex()}: accepted")
    await world.mine(6)
    await alice.wait_gone(channel_id)
    assert (await alice.api.info()).chain_status == "following layer 1"


async def test_layer_1_is_away_at_the_start(world: World) -> None:
    alice = await world.node("alice")
    await alice.stop()
    await world.stop_chain()
    await alice.start(wait=False)
    assert "cannot be reached" in await event(alice, "chain.lost")
    assert not (await alice.api.info()).synced_to_chain
    await alice.api.new_address()
    await world.start_chain_again()
    await asyncio.wait_for(alice.runtime.wait_synced(), 60)
    assert (await alice.api.info()).chain_status == "following layer 1"


async def test_what_happened_while_a_node_was_off_is_caught_up_with(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 100_000_000)
    await alice.connect(bob)
    opened = await alice.api.open_channel(bob.node_id, 1_000_000, push_msat=300_000_000)
    await bob.stop()
    world.nodes.remove(bob)
    await world.mine(7)
    await bob.start()
    world.nodes.append(bob)
    await alice.wait_active(opened.channel_id)
    await alice.api.close_channel(opened.channel_id)
    await bob.stop()
    world.nodes.remove(bob)
    await world.mine(7)
    await alice.wait_gone(opened.channel_id)
    await bob.start()
    await bob.wait_gone(opened.channel_id)
    assert (await bob.api.balance()).confirmed_sat >= 298_000


async def test_a_reorganisation_takes_the_funding_back_and_the_channel_lives(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 100_000_000)
    await alice.connect(bob)
    opened = await alice.api.open_channel(bob.node_id, 1_000_000, push_msat=300_000_000)
    await world.mine(1)
    await alice.wait_active(opened.channel_id)
    before = (await alice.wait_active(opened.channel_id)).scid
    best = await world.rpc.call("getbestblockhash")
    await world.rpc.call("invalidateblock", best)
    await world.mine_empty(2)
    assert await event(alice, "chain.reorg")
    await alice.wait_not_deep(opened.channel_id)
    invoice = await bob.api.create_invoice(1_000, "still")
    with pytest.raises(NodeError, match="not usable until its funding transaction is in a block again"):
        await alice.api.pay(invoice.bolt11, timeout_seconds=1)
    await world.mine(1)
    assert before is not None
    await alice.wait_scid(opened.channel_id, lambda scid: scid >> 40 == (before >> 40) + 2)
    await bob.wait_scid(opened.channel_id, lambda scid: scid >> 40 == (before >> 40) + 2)
    assert (await alice.api.pay(invoice.bolt11)).state == "succeeded"
    closed = await alice.api.close_channel(opened.channel_id)
    await world.mine(6)
    await alice.wait_gone(opened.channel_id)
    assert closed.closing_txid is not None


# --- opening ------------------------------------------------------------------------------------------------------


async def test_openings_that_cannot_be_are_refused_with_a_sentence(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 1_000_000)

    async def refused(node_id: bytes, amount_sat: int, push_msat: int = 0) -> NodeError:
        with pytest.raises(NodeError) as caught:
            await alice.api.open_channel(node_id, amount_sat, push_msat=push_msat)
        return caught.value

    assert "is not connected" in (await refused(bob.node_id, 100_000)).sentence
    await alice.connect(bob)
    for amount_sat in (0, 19_999):
        assert "at least 20,000 sat" in (await refused(bob.node_id, amount_sat)).sentence
    error = await refused(bob.node_id, 2_000_000)
    assert error.kind == "resource_exhausted"
    assert "the wallet can fund a channel of" in error.sentence
    assert "within the channel's amount" in (await refused(bob.node_id, 100_000, 100_000_001)).sentence
    bob.runtime.channels.policy = type(bob.runtime.channels.policy)(min_funding_sat=500_000)
    error = await refused(bob.node_id, 100_000)
    assert "the channel was not opened: the peer failed the channel" in error.sentence
    assert await alice.api.list_channels() == []
    assert (await alice.api.balance()).reserved_sat == 0


async def test_the_same_key_opens_one_channel(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 10_000_000)
    await alice.connect(bob)
    views = await asyncio.gather(
        *(alice.api.open_channel(bob.node_id, 100_000, idempotency_key="open") for _ in range(3))
    )
    assert len({view.channel_id for view in views}) == 1
    await alice.restart()
    again = await alice.api.open_channel(bob.node_id, 100_000, idempotency_key="open")
    assert again.channel_id == views[0].channel_id
    assert len(await alice.api.list_channels()) == 1


async def test_sending_coins_with_a_key_moves_money_once(world: World) -> None:
    alice = await world.node("alice")
    await world.fund(alice, 1_000_000)
    target = await world.rpc.call("getnewaddress")
    sent = [await alice.api.send_coins(target, 100_000, 300, "send") for _ in range(2)]
    await alice.restart()
    sent.append(await alice.api.send_coins(target, 100_000, 300, "send"))
    assert len({tx.txid for tx in sent}) == 1
    await world.mine(1)
    fee_sat = sent[0].fee_sat
    assert fee_sat is not None
    assert (await alice.api.balance()).confirmed_sat == 1_000_000 - 100_000 - fee_sat
    for address, amount_sat, words in (
        (target, 0, "positive"),
        (target, 10_000_000, "not enough"),
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", 1_000, "address of mainnet"),
        ("nonsense", 1_000, "not a Bitcoin address"),
    ):
        with pytest.raises(NodeError, match=words):
            await alice.api.send_coins(address, amount_sat, 300)


# --- peers --------------------------------------------------------------------------------------------------------


class Stranger:
    """A peer that says whatever a test wants."""

    def __init__(self, connection: transport.Connection) -> None:
        self.connection = connection
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.closed = asyncio.Event()
        connection.on_close(lambda reason: self.closed.set())
        connection.set_receiver(lambda data: self.heard.put_nowait(decode(data)))

    @classmethod
    async def meet(cls, node: TestNode, init: Message | None = None) -> Stranger:
        connection = await transport.connect("127.0.0.1", node.port, os.urandom(32), node.node_id)
        stranger = cls(connection)
        stranger.say(init or Init(b"", b"\x02\xaa\xaa\xa2", networks=(REGTEST.chain_hash,)))
        return stranger

    def say(self, message: Message) -> None:
        self.connection.send(encode(message))

    async def hears(self, kind: type[Message], fits: Callable[[Message], bool] = lambda _: True) -> Message:
        async with asyncio.timeout(60):
            while True:
                message = await self.heard.get()
                if isinstance(message, kind) and fits(message):
                    return message

    async def is_dropped(self) -> None:
        await asyncio.wait_for(self.closed.wait(), 60)


async def is_alive(node: TestNode) -> None:
    """The node talks to a well-behaved stranger."""
    stranger = await Stranger.meet(node)
    stranger.say(Ping(7, b""))
    pong = await stranger.hears(Pong)
    assert isinstance(pong, Pong)
    assert pong.ignored == bytes(7)
    stranger.connection.close()


async def test_garbage_on_the_wire_does_no_harm(world: World) -> None:
    bob = await world.node("bob")
    for garbage in (b"", b"\x00" * 50, os.urandom(50), os.urandom(70_000), b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", bob.port)
        writer.write(garbage)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
    for frame in (b"\x00", b"\xff\xfe", b"\x00\x80" + bytes(10), b"\x00\x64rubbish"):
        stranger = await Stranger.meet(bob)
        await stranger.hears(Init)
        stranger.connection.send(frame)
        await stranger.hears(WarningMessage)
        await stranger.is_dropped()
    await is_alive(bob)


async def test_what_bolt_1_says_about_init_and_unknown_messages(world: World) -> None:
    bob = await world.node("bob")
    first = await Stranger.meet(bob, Ping(0, b""))
    await first.is_dropped()
    assert isinstance(first.heard.get_nowait(), Init)
    assert first.heard.empty(), "before its init nothing but ours is said"
    other_chain = await Stranger.meet(bob, Init(b"", b"", networks=(bytes(32),)))
    assert b"no blockchain in common" in (await other_chain.hears(WarningMessage)).data  # type: ignore[attr-defined]
    demanding = await Stranger.meet(bob, Init(b"", REQUIRED_UNKNOWN))
    assert b"requires" in (await demanding.hears(WarningMessage)).data  # type: ignore[attr-defined]
    even = await Stranger.meet(bob)
    even.connection.send((40_000).to_bytes(2, "big") + b"even")
    assert b"40000 is even" in (await even.hears(WarningMessage)).data  # type: ignore[attr-defined]
    await even.is_dropped()
    odd = await Stranger.meet(bob)
    odd.connection.send((40_001).to_bytes(2, "big") + b"odd")
    odd.say(Ping(65_535, b""))
    odd.say(Ping(3, b"ignored"))
    pong = await odd.hears(Pong)
    assert pong.ignored == bytes(3)  # type: ignore[attr-defined]
    odd.say(UpdateFee(os.urandom(32), 253))
    odd.say(WarningMessage(bytes(32), b"\xff\x00 careful"))
    odd.say(ErrorMessage(bytes(32), b"all is lost"))
    await is_alive(bob)
    assert not odd.closed.is_set()


def proposal(**changes: object) -> OpenChannel:
    point = pubkey_of(b"\x11" * 32)
    fine = OpenChannel(
        chain_hash=REGTEST.chain_hash,
        temporary_channel_id=os.urandom(32),
        funding_satoshis=1_000_000,
        push_msat=0,
        dust_limit_satoshis=354,
        max_htlc_value_in_flight_msat=10**9,
        channel_reserve_satoshis=10_000,
        htlc_minimum_msat=1,
        feerate_per_kw=253,
        to_self_delay=144,
        max_accepted_htlcs=30,
        funding_pubkey=point,
        revocation_basepoint=point,
        payment_basepoint=point,
        delayed_payment_basepoint=point,
        htlc_basepoint=point,
        first_per_commitment_point=point,
        channel_flags=0,
        upfront_shutdown_script=b"",
        channel_type=b"\x40\x10\x00",
    )
    return replace(fine, **changes)  # type: ignore[arg-type]


async def test_a_peer_has_few_openings_at_a_time_and_bad_ones_are_refused(world: World) -> None:
    bob = await world.node("bob")
    stranger = await Stranger.meet(bob)
    bad = proposal(funding_satoshis=1_000)
    stranger.say(bad)
    answer = await stranger.hears(ErrorMessage)
    assert answer.channel_id == bad.temporary_channel_id  # type: ignore[attr-defined]
    for _ in range(4):
        stranger.say(proposal())
    one_more = proposal()
    stranger.say(one_more)
    answer = await stranger.hears(ErrorMessage)
    assert answer.channel_id == one_more.temporary_channel_id  # type: ignore[attr-defined]
    assert b"unfinished channels" in answer.data  # type: ignore[attr-defined]
    assert len(await bob.api.list_channels()) == 4
    stranger.connection.close()

    async def none_left() -> bool:
        return not await bob.api.list_channels()

    await bob.until(none_left)


async def test_peers_that_call_each_other_at_once_keep_one_connection(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await asyncio.gather(alice.connect(bob), bob.connect(alice))
    for node in (alice, bob):
        assert (await node.api.info()).num_peers == 1
    await alice.connect(bob)
    (view,) = await bob.api.list_peers()
    assert view.connected


async def test_a_lost_connection_comes_back_by_itself(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 10_000_000)
    channel_id = await world.open(alice, bob, 100_000)
    with pytest.raises(NodeError, match="there are channels with this peer"):
        await alice.api.disconnect_peer(bob.node_id)
    await alice.api.disconnect_peer(bob.node_id, force=True)
    await alice.wait_active(channel_id)
    await bob.restart()
    await alice.wait_active(channel_id)
    await alice.restart()
    await bob.wait_active(channel_id)


async def test_connecting_to_nobody_is_told(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    with pytest.raises(NodeError, match="own id"):
        await alice.api.connect_peer(alice.node_id, "127.0.0.1", bob.port)
    with pytest.raises(NodeError, match="no connection to"):
        await alice.api.connect_peer(bob.node_id, "127.0.0.1", 1)
    with pytest.raises(NodeError, match="no connection to"):
        await alice.api.connect_peer(pubkey_of(b"\x44" * 32), "127.0.0.1", bob.port)  # somebody else lives there
    with pytest.raises(NodeError, match="is no node id"):
        await alice.api.connect_peer(b"\x05" * 33, "127.0.0.1", bob.port)
    assert await alice.api.list_peers() == []


async def test_terms_told_at_once_over_a_new_channel_are_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may answer our `channel_ready` with its `channel_update` at once, before gossip looks at the channel: it
    looks a little later, once however much changes. The peer does not say it again."""
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.fund(alice, 2_000_000)
    gossip, heard = bob.runtime.gossip, asyncio.Event()
    hears = gossip.peer_message

    def hear(link: PeerLink, message: Message) -> None:
        hears(link, message)
        if isinstance(message, ChannelUpdate):
            heard.set()

    monkeypatch.setattr(gossip, "touched", gossip._touched.add)  # later never comes
    monkeypatch.setattr(gossip, "peer_message", hear)
    channel_id = await world.open(alice, bob, 1_000_000, announce=False)
    await asyncio.wait_for(heard.wait(), STEP_SECONDS)
    update = bob.runtime.channels.update_of_peer(channel_id)
    assert update is not None
    assert (update.fee_base_msat, update.fee_proportional_millionths) == (1000, 1)
    (hint,) = bob.runtime._route_hints()
    assert hint[0].cltv_expiry_delta == update.cltv_expiry_delta


async def test_a_rescan_says_how_far_it_is(world: World) -> None:
    alice = await world.node("alice")
    await world.fund(alice, 1_000_000)
    await world.mine(3)
    height = alice.runtime.wallet.height
    assert [view async for view in alice.api.rescan(height - 2)] == [RescanView(height, height, 0, 0)]
    first = alice.api.rescan(0)
    assert (await anext(first)).height == 99
    with pytest.raises(NodeError, match="under way"):
        await anext(alice.api.rescan(0))
    await first.aclose()  # type: ignore[attr-defined]
    last = [view async for view in alice.api.rescan(0)][-1]
    assert (last.height, last.found_coins) == (height, 0)
    with pytest.raises(NodeError, match=f"the last is {height}"):
        await anext(alice.api.rescan(height + 1))
    assert (await alice.api.balance()).confirmed_sat == 1_000_000


async def test_who_calls_us_while_we_call_is_connected(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two connections one stays; that ours was not the one is no failure."""
    alice, bob = await world.node("alice"), await world.node("bob")

    async def lose(*_: Any) -> None:
        await bob.connect(alice)
        await alice.until(alice.api.list_peers)
        raise transport.TransportError("the connection ended before init: closed by the peer")

    monkeypatch.setattr(alice.runtime.peers, "_call", lose)
    assert (await alice.api.connect_peer(bob.node_id, "127.0.0.1", bob.port)).connected
