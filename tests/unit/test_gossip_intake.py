"""What peers say, and what is made of it: a test a rule of BOLT 7."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from channeld.bolt.messages import ChannelAnnouncement, SignedGossip, decode, encode_addresses, parse_address
from channeld.gossip import intake as intake_module
from channeld.gossip.intake import Intake
from channeld.gossip.interface import GossipConfig
from channeld.gossip.verify import SignatureChecker, Signed
from tests.gossip_support import (
    CAPACITY_SAT,
    CHAIN_HASH,
    NOW,
    FakeFunding,
    Recorder,
    funding_of,
    make_announcement,
    make_node,
    make_update,
    new_view,
    node_id_of,
    scid_of,
)

PEER, OTHER = node_id_of(90), node_id_of(91)
SCID = scid_of(100)
HEIGHT = 1000
WEEK = 7 * 24 * 3600


class World:
    """An intake with what it needs, and a clock that is set by hand."""

    def __init__(self, path: Path, config: GossipConfig) -> None:
        self.view = new_view(path)
        self.funding = FakeFunding()
        self.heard = Recorder()
        self.now = float(NOW)
        self.checker = SignatureChecker(2)
        self.intake = Intake(
            self.view,
            self.funding,
            self.checker,
            self.heard,
            CHAIN_HASH,
            config,
            lambda: self.now,
            lambda: HEIGHT,
        )

    async def offer(self, *messages: SignedGossip, peer: bytes = PEER) -> None:
        """As they come over the wire, until nothing is under way."""
        for message in messages:
            again = decode(message.raw)
            assert isinstance(again, SignedGossip)
            self.intake.offer(again, peer)
        await self.intake.idle()

    def fund(self, *scids: int, confirmations: int = 100) -> None:
        for scid in scids:
            self.funding.outputs[scid] = funding_of(scid, confirmations)

    async def know(self, scid: int = SCID, first: int = 1, second: int = 2) -> None:
        """A channel with both updates."""
        self.fund(scid)
        await self.offer(
            make_announcement(scid, first, second),
            make_update(scid, first, second),
            make_update(scid, second, first),
        )
        assert scid in self.view.topology.rows

    @property
    def reasons(self) -> list[str]:
        return [refusal.reason for _, refusal in self.heard.refusals]

    @property
    def blamed(self) -> bool:
        return any(refusal.blame for _, refusal in self.heard.refusals)


@asynccontextmanager
async def running(path: Path, config: GossipConfig | None = None) -> AsyncIterator[World]:
    world = World(path / "gossip", config or GossipConfig())
    tasks = [asyncio.create_task(world.intake.run())]
    tasks += [asyncio.create_task(world.intake.run_funding()) for _ in range(2)]
    yield world
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    world.checker.close()
    world.view.store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as found:
        yield found


async def test_a_network_is_taken_in(world: World) -> None:
    await world.know()
    await world.offer(make_node(1, alias=b"alice"), make_node(2))
    assert world.view.update(SCID, 0)
    assert world.view.update(SCID, 1)
    assert world.view.node(node_id_of(1)) == make_node(1, alias=b"alice").raw
    assert world.heard.refusals == []
    assert [origins for _, origins in world.heard.taken] == [{PEER}] * 5


async def test_all_in_one_batch_and_in_any_order(world: World) -> None:
    world.fund(SCID)
    await world.offer(
        make_node(1), make_update(SCID, 1, 2), make_update(SCID, 2, 1), make_node(2), make_announcement(SCID, 1, 2)
    )
    assert SCID in world.view.topology.rows
    assert world.view.update(SCID, 0)
    assert world.view.update(SCID, 1)
    assert world.view.node(node_id_of(1))
    assert world.view.node(node_id_of(2))


async def test_who_else_sent_it_is_remembered(world: World) -> None:
    world.fund(SCID)
    world.intake.offer(make_announcement(SCID, 1, 2), PEER)
    world.intake.offer(make_announcement(SCID, 1, 2), OTHER)
    await world.intake.idle()
    assert [origins for _, origins in world.heard.taken] == [{PEER, OTHER}]
    assert world.funding.lookups == 1


@pytest.mark.parametrize(
    "field", ["node_signature_1", "node_signature_2", "bitcoin_signature_1", "bitcoin_signature_2"]
)
async def test_each_signature_of_an_announcement_counts(world: World, field: str) -> None:
    world.fund(SCID)
    good = make_announcement(SCID, 1, 2)
    bad = bytearray(getattr(good, field))
    bad[40] ^= 1
    await world.offer(replace(good, **{field: bytes(bad)}))  # type: ignore[arg-type]
    assert world.reasons == ["a signature is wrong (BOLT 7)"]
    assert world.blamed
    assert len(world.view.topology) == 0
    assert world.funding.lookups == 0


async def test_what_follows_the_fields_is_signed_for(world: World) -> None:
    world.fund(SCID, scid_of(101))
    await world.offer(make_announcement(SCID, 1, 2, excess=b"future"))
    assert world.view.announcement(SCID) == make_announcement(SCID, 1, 2, excess=b"future").raw
    good = make_announcement(scid_of(101), 1, 2)
    changed = decode(good.raw + b"x")
    assert isinstance(changed, SignedGossip)
    await world.offer(changed)
    assert world.blamed


Make = Callable[[], ChannelAnnouncement]
REFUSED_ANNOUNCEMENTS: dict[str, tuple[Make, str, bool]] = {
    "another chain": (lambda: make_announcement(SCID, 1, 2, chain_hash=bytes(32)), "another chain", False),
    "node ids in the wrong order": (
        lambda: (m := make_announcement(SCID, 1, 2)) and replace(m, node_id_1=m.node_id_2, node_id_2=m.node_id_1),
        "lesser",
        True,
    ),
    "one node on both ends": (
        lambda: (m := make_announcement(SCID, 1, 2)) and replace(m, node_id_1=m.node_id_2),
        "lesser",
        True,
    ),
    "keys that are no points": (
        lambda: replace(make_announcement(SCID, 1, 2), bitcoin_key_1=b"\x02" + b"\xff" * 32),
        "signature",
        True,
    ),
    "a block that is not there yet": (lambda: make_announcement(scid_of(HEIGHT + 1), 1, 2), "not there yet", False),
    "a huge one": (lambda: make_announcement(SCID, 1, 2, excess=bytes(3000)), "longer", False),
    "no such output": (lambda: make_announcement(scid_of(200), 1, 2), "no unspent output", False),
}


@pytest.mark.parametrize("case", REFUSED_ANNOUNCEMENTS)
async def test_announcements_that_are_refused(world: World, case: str) -> None:
    make, reason, blame = REFUSED_ANNOUNCEMENTS[case]
    world.fund(SCID, scid_of(HEIGHT + 1))
    await world.offer(make())
    assert len(world.view.topology) == 0
    assert reason in world.reasons[0]
    assert world.blamed is blame


async def test_the_output_must_pay_to_the_keys(world: World) -> None:
    world.funding.outputs[SCID] = funding_of(scid_of(300))
    await world.offer(make_announcement(SCID, 1, 2))
    assert "bitcoin keys" in world.reasons[0]
    assert world.blamed


@pytest.mark.parametrize(("confirmations", "taken"), [(3, False), (4, False), (5, True), (6, True)])
async def test_the_output_must_be_about_six_blocks_deep(world: World, confirmations: int, taken: bool) -> None:
    world.fund(SCID, confirmations=confirmations)
    await world.offer(make_announcement(SCID, 1, 2))
    assert (SCID in world.view.topology.rows) is taken


async def test_layer_1_being_away_concludes_nothing(world: World) -> None:
    world.fund(SCID)
    world.funding.away = True
    await world.offer(make_announcement(SCID, 1, 2), make_update(SCID, 1, 2))
    assert len(world.view.topology) == 0
    assert world.heard.refusals == []
    world.funding.away = False
    await world.know()


async def test_channels_with_unknown_even_features_are_kept_but_not_routed_through(world: World) -> None:
    world.fund(SCID, scid_of(101))
    await world.offer(make_announcement(SCID, 1, 2, features=b"\x01"))
    await world.offer(make_announcement(scid_of(101), 1, 2, features=b"\x02"))
    routable = {channel.scid: channel.routable for channel in world.view.channels()}
    assert routable == {SCID: False, scid_of(101): True}


async def test_a_channel_announced_twice_blacklists_its_nodes(world: World) -> None:
    await world.know()
    await world.know(scid_of(101), 2, 3)
    await world.know(scid_of(102), 3, 4)
    await world.offer(make_announcement(SCID, 3, 5))
    assert list(world.view.topology.rows) == []
    assert set(world.intake.blacklist) == {node_id_of(number) for number in (1, 2, 3, 5)}
    await world.offer(make_announcement(SCID, 1, 2))
    assert world.reasons[-1] == "its node is blacklisted"


async def test_another_transaction_at_the_same_place_replaces_the_channel(world: World) -> None:
    await world.know()
    world.funding.outputs[SCID] = funding_of(SCID)._replace(txid=b"\x77" * 32)
    await world.offer(make_announcement(SCID, 3, 4))
    row = world.view.topology.rows[SCID]
    assert set(world.view.topology.node_ids_of(row)) == {node_id_of(3), node_id_of(4)}
    assert world.intake.blacklist == {}


# --- updates


async def test_updates_of_unknown_channels_wait_a_while(world: World) -> None:
    world.fund(SCID)
    await world.offer(make_update(SCID, 1, 2))
    assert world.heard.unknown == [SCID]
    await world.offer(make_announcement(SCID, 1, 2))
    assert (world.view.update(SCID, 0) or world.view.update(SCID, 1)) == make_update(SCID, 1, 2).raw


async def test_updates_do_not_wait_for_ever(world: World) -> None:
    world.fund(SCID)
    await world.offer(make_update(SCID, 1, 2))
    world.now += 601
    world.intake.tick(world.now)
    await world.offer(make_announcement(SCID, 1, 2))
    assert not world.view.update(SCID, 0)
    assert not world.view.update(SCID, 1)


async def test_orphans_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MAX_ORPHANS", 3)
    await world.offer(*(make_update(scid_of(block), 1, 2) for block in range(200, 210)))
    world.fund(scid_of(200), scid_of(209))
    await world.offer(make_announcement(scid_of(200), 1, 2), make_announcement(scid_of(209), 1, 2))
    assert not world.view.topology.has_update(world.view.topology.rows[scid_of(200)])
    assert world.view.topology.has_update(world.view.topology.rows[scid_of(209)])


async def test_an_update_by_the_other_node_is_refused(world: World) -> None:
    await world.know()
    good = make_update(SCID, 1, 2, NOW + 1, base=7)
    await world.offer(replace(good, channel_flags=good.channel_flags ^ 1))
    assert world.reasons == ["a signature is wrong (BOLT 7)"]
    assert world.blamed


async def test_a_signature_with_high_s_is_no_signature(world: World) -> None:
    await world.know()
    good = make_update(SCID, 1, 2, NOW + 1, base=7)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    flipped = order - int.from_bytes(good.signature[32:], "big")
    await world.offer(replace(good, signature=good.signature[:32] + flipped.to_bytes(32, "big")))
    assert world.reasons == ["a signature is wrong (BOLT 7)"]
    assert world.intake.blacklist == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"timestamp": NOW - 1, "base": 7}, "older"),
        ({"timestamp": NOW}, "known"),
        ({"timestamp": NOW, "base": 7}, "contradicts"),
        ({"timestamp": NOW + 3600}, "changes nothing"),
        ({"timestamp": NOW + 25 * 3600}, "future"),
        ({"timestamp": NOW - 2 * WEEK - 1}, "too old"),
        ({"timestamp": NOW + 1, "chain_hash": bytes(32)}, "another chain"),
        ({"timestamp": NOW + 1, "base": 7, "message_flags": 3}, "not to be forwarded"),
        ({"timestamp": NOW + 1, "base": 7, "excess": bytes(600)}, "longer"),
    ],
)
async def test_updates_that_are_refused(world: World, change: dict[str, int], reason: str) -> None:
    await world.know()
    before = world.view.update(SCID, 0), world.view.update(SCID, 1)
    await world.offer(make_update(SCID, 1, 2, **change))  # type: ignore[arg-type]
    assert reason in world.reasons[0]
    assert not world.blamed
    assert (world.view.update(SCID, 0), world.view.update(SCID, 1)) == before


async def test_newer_updates_replace_older_ones(world: World) -> None:
    await world.know()
    newer = make_update(SCID, 1, 2, NOW + 1, base=7)
    await world.offer(newer)
    assert world.view.update(SCID, newer.channel_flags & 1) == newer.raw


async def test_a_keep_alive_is_taken(world: World) -> None:
    await world.know()
    world.now += WEEK
    same = make_update(SCID, 1, 2, NOW + WEEK)
    await world.offer(same)
    assert world.view.update(SCID, same.channel_flags & 1) == same.raw


async def test_of_two_updates_under_way_the_newer_one_stays(world: World) -> None:
    world.fund(SCID)
    newer, older = make_update(SCID, 1, 2, NOW + 5, base=5), make_update(SCID, 1, 2, NOW + 4, base=4)
    await world.offer(make_announcement(SCID, 1, 2), newer, older)
    assert world.view.update(SCID, newer.channel_flags & 1) == newer.raw


@pytest.mark.parametrize(
    ("minimum", "maximum", "disabled", "usable"),
    [
        (1, 1000 * CAPACITY_SAT, False, True),
        (1, 1000 * CAPACITY_SAT + 1, False, False),
        (2_000, 1_999, False, False),
        (1, 1_000_000, True, False),
    ],
)
async def test_what_may_be_routed_by(world: World, minimum: int, maximum: int, disabled: bool, usable: bool) -> None:
    await world.know()
    update = make_update(SCID, 1, 2, NOW + 1, minimum=minimum, maximum=maximum, disabled=disabled)
    await world.offer(update)
    channel = world.view.channel(SCID)
    assert channel is not None
    policy = channel.policies[update.channel_flags & 1]
    assert policy is not None
    assert policy.usable is usable


async def test_spent_channels_may_only_be_disabled(world: World) -> None:
    await world.know()
    world.view.set_spent(SCID, 900)
    await world.offer(make_update(SCID, 1, 2, NOW + 1, base=7))
    assert world.reasons == ["its channel is spent"]
    last = make_update(SCID, 1, 2, NOW + 2, disabled=True)
    await world.offer(last)
    assert world.view.update(SCID, last.channel_flags & 1) == last.raw


async def test_a_flood_of_updates_is_slowed_down(world: World) -> None:
    await world.know()
    await world.offer(*(make_update(SCID, 1, 2, NOW + step, base=step) for step in range(1, 51)))
    row = world.view.topology.rows[SCID]
    direction = make_update(SCID, 1, 2).channel_flags & 1
    assert world.view.topology.timestamp[direction][row] < NOW + 11
    assert "it comes too often" in world.reasons
    world.now += 60
    await world.offer(make_update(SCID, 1, 2, NOW + 60, base=60))
    assert world.view.topology.timestamp[direction][row] == NOW + 60
    other = make_update(SCID, 2, 1, NOW + 60, base=60)
    await world.offer(other)
    assert world.view.update(SCID, 1 - direction) == other.raw


async def test_forged_updates_take_no_tokens(world: World) -> None:
    await world.know()
    for step in range(1, 30):
        forged = make_update(SCID, 3, 4, NOW + step, base=step)
        direction = make_update(SCID, 1, 2).channel_flags & 1
        await world.offer(replace(forged, channel_flags=direction))
    real = make_update(SCID, 1, 2, NOW + 100, base=9)
    await world.offer(real)
    assert world.view.update(SCID, real.channel_flags & 1) == real.raw


# --- nodes


async def test_nodes_without_a_channel_are_ignored(world: World) -> None:
    await world.offer(make_node(7))
    assert world.reasons == ["its node has no known channel"]
    assert world.view.node(node_id_of(7)) is None


DNS = [encode_addresses([parse_address(f"host{number}.example:9735")]) for number in (1, 2)]


@pytest.mark.parametrize(
    ("change", "reason", "blame"),
    [
        ({"timestamp": NOW}, "known", False),
        ({"timestamp": NOW - 1}, "known", False),
        ({"timestamp": NOW + 25 * 3600}, "future", False),
        ({"timestamp": NOW + 1, "addresses": DNS[0] + DNS[1]}, "more than one DNS", False),
        # what cannot be used is announced all the same
        ({"timestamp": NOW + 1, "addresses": DNS[0] + DNS[1][:-2] + bytes(2)}, "more than one DNS", False),
        ({"timestamp": NOW + 1, "addresses": b"\x01\x7f\x00"}, "cannot be read", True),
        ({"timestamp": NOW + 1, "addresses": bytes(5000)}, "longer", False),
    ],
)
async def test_nodes_that_are_refused(world: World, change: dict[str, int], reason: str, blame: bool) -> None:
    await world.know()
    await world.offer(make_node(1))
    await world.offer(make_node(1, **change))  # type: ignore[arg-type]
    assert reason in world.reasons[0]
    assert world.blamed is blame
    assert world.view.node(node_id_of(1)) == make_node(1).raw


async def test_a_nodes_signature_counts(world: World) -> None:
    await world.know()
    await world.offer(replace(make_node(1), alias=b"mallory".ljust(32, b"\0")))
    assert world.blamed
    assert world.view.node(node_id_of(1)) is None


async def test_a_node_id_that_is_no_key(world: World) -> None:
    await world.offer(replace(make_node(1), node_id=b"\x02" + b"\xff" * 32))
    assert "not a valid public key" in world.reasons[0]
    assert world.blamed


# --- bounds


async def test_queues_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.know()
    monkeypatch.setattr(intake_module, "MAX_QUEUED_FROM_PEER", 3)
    for step in range(10):
        world.intake.offer(make_update(SCID, 1, 2, NOW + 1 + step, base=step), PEER)
    world.intake.offer(make_update(SCID, 2, 1, NOW + 50, base=1), OTHER)
    assert world.intake.dropped == 7
    await world.intake.idle()
    assert world.intake.queued == 0
    monkeypatch.setattr(intake_module, "MAX_QUEUED", 0)
    world.intake.offer(make_update(SCID, 2, 1, NOW + 51, base=2), OTHER)
    assert world.intake.dropped == 8
    world.intake.offer(make_update(SCID, 2, 1, NOW + 1), OTHER)


async def test_repeating_what_another_sent_makes_no_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.know()
    monkeypatch.setattr(intake_module, "MAX_QUEUED_FROM_PEER", 1)
    monkeypatch.setattr(intake_module, "BATCH_MESSAGES", 1)
    check, batches = world.checker.check, 0

    async def check_and_offer(signed: Sequence[Signed]) -> list[bool]:
        nonlocal batches
        batches += 1
        if batches == 2:  # the first is done with; what OTHER sent itself is being checked
            world.intake.offer(make_update(SCID, 1, 2, NOW + 2, base=2), OTHER)
        return await check(signed)

    monkeypatch.setattr(world.checker, "check", check_and_offer)
    first = make_update(SCID, 1, 2, NOW + 1, base=1)
    for update, peer in ((first, PEER), (first, OTHER), (make_update(SCID, 2, 1, NOW + 1, base=1), OTHER)):
        world.intake.offer(update, peer)
    await world.intake.idle()
    assert (batches, world.intake.dropped) == (2, 1)


async def test_pending_announcements_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MAX_PENDING", 2)
    scids = [scid_of(block) for block in range(100, 106)]
    world.fund(*scids)
    await world.offer(*(make_announcement(scid, 1, 2) for scid in scids))
    assert len(world.view.topology) == 2
    await world.offer(make_announcement(scids[5], 1, 2))
    assert len(world.view.topology) == 3


async def test_announcements_wait_for_funding_without_holding_up_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.know()
        gate, asked = asyncio.Event(), asyncio.Event()
        lookup = world.funding.lookup

        async def slow(scids: list[int]) -> object:
            asked.set()
            await gate.wait()
            return await lookup(scids)

        world.funding.lookup = slow  # type: ignore[assignment,method-assign]
        world.fund(scid_of(101))
        world.intake.offer(make_announcement(scid_of(101), 3, 4), PEER)
        await asked.wait()
        update = make_update(SCID, 1, 2, NOW + 1, base=7)
        for message in (make_update(scid_of(101), 3, 4), make_node(3), update):
            world.intake.offer(message, PEER)
        world.heard.more.clear()
        await world.heard.more.wait()
        assert world.view.update(SCID, update.channel_flags & 1) == update.raw
        assert scid_of(101) not in world.view.topology.rows
        gate.set()
        await world.intake.idle()
        assert world.view.topology.has_update(world.view.topology.rows[scid_of(101)])
        assert world.view.node(node_id_of(3)) == make_node(3).raw


async def test_a_full_store_drops_gossip_and_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.know()
    with monkeypatch.context() as patch:
        patch.setattr("channeld.gossip.store.MAX_TAIL_BYTES", -1)
        await world.offer(make_update(SCID, 1, 2, NOW + 1, base=7))
        assert world.intake.dropped == 1
    newer = make_update(SCID, 1, 2, NOW + 2, base=8)
    await world.offer(newer)
    assert world.view.update(SCID, newer.channel_flags & 1) == newer.raw
