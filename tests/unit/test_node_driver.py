"""The driver with a toy machine: durable before spoken, everything that waits in one commit, mistakes in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import structlog

from channeld.bolt.messages import ErrorMessage, Ping, WarningMessage
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.node.driver import (
    MAX_WAITING_BYTES,
    MESSAGE_BYTES,
    MOST_GATHERED,
    ChannelDriver,
    ChannelFrozen,
    Reaction,
)
from channeld.storage import StoreFailed, Write, rows
from tests.unit.driver_support import BUG, FakeHost, FakeLink, State, ToyMachine, say


@pytest.fixture
async def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def toy() -> ToyMachine:
    return ToyMachine()


@pytest.fixture
async def driver(host: FakeHost, toy: ToyMachine) -> ChannelDriver[State]:
    return ChannelDriver(toy, host, (), 1, bytes(32))


@pytest.fixture
async def link(driver: ChannelDriver[State], host: FakeHost) -> FakeLink:
    link = FakeLink()
    driver.post_connected(link, frozenset())
    await host.commit()
    return link


async def test_nothing_is_said_before_it_is_durable(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    say(driver, link, "one")
    await asyncio.sleep(0)
    assert link.words() == []
    await host.commit()
    assert link.words() == [b"one", b"signature"]


async def test_what_is_settled_is_durable_and_was_said(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    before = driver.settled
    assert before == driver.state
    say(driver, link, "one")
    await asyncio.sleep(0)
    assert driver.state != before
    assert driver.settled == before
    await host.commit()
    assert driver.settled == driver.state
    say(driver, link, "two")
    with structlog.testing.capture_logs():
        await host.commit(StoreFailed("the disk is full"))
    assert "two" in driver.state
    assert driver.settled is not None
    assert "two" not in driver.settled


async def test_what_waits_shares_one_commit_and_one_signature(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    say(driver, link, "one")
    await asyncio.sleep(0)
    for word in ("two", "three", "four"):
        say(driver, link, word)
    assert len(host.commits) == 1
    await host.commit()
    assert link.words() == [b"one", b"signature"]
    await host.commit()
    assert link.words() == [b"one", b"signature", b"two", b"three", b"four", b"signature"]
    assert host.commits == []


OFFER = ev.AddHtlc(1000, bytes(32), 500, b"", b"")


@pytest.fixture
def waiting_driver(driver: ChannelDriver[State], link: FakeLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver while the peer's revocation is awaited. A slow machine is not what ends the gathering."""
    monkeypatch.setattr(ToyMachine, "is_waiting", True)
    monkeypatch.setattr("channeld.node.driver.GATHER_SECONDS", 60.0)


@pytest.mark.usefixtures("waiting_driver")
async def test_what_is_offered_gathers_while_a_revocation_is_awaited(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    for _ in range(10):
        driver.post(OFFER)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert host.commits == []
    say(driver, link, "revoked")
    await host.commit()
    assert driver.state == ("Connected", *["AddHtlc"] * 10, "revoked")
    assert host.commits == []


@pytest.mark.usefixtures("waiting_driver")
async def test_what_is_offered_does_not_wait_for_a_revocation_for_ever(
    driver: ChannelDriver[State], host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channeld.node.driver.GATHER_SECONDS", 0.001)
    driver.post(OFFER)
    while not host.commits:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await host.commit()
    assert driver.state == ("Connected", "AddHtlc")


@pytest.mark.usefixtures("waiting_driver")
async def test_what_gathers_has_a_limit(driver: ChannelDriver[State], host: FakeHost) -> None:
    for _ in range(MOST_GATHERED):
        driver.post(OFFER)
        await asyncio.sleep(0)
    await host.commit()
    assert len(driver.state) == 1 + MOST_GATHERED


@pytest.mark.usefixtures("waiting_driver")
async def test_nothing_else_waits_for_more_offers(driver: ChannelDriver[State], host: FakeHost, link: FakeLink) -> None:
    driver.post(OFFER)
    await asyncio.sleep(0)
    say(driver, link, "revoked")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(host.commits) == 1
    await host.commit()
    assert driver.state == ("Connected", "AddHtlc", "revoked")


async def test_an_offer_that_can_be_signed_for_does_not_wait(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    driver.post(OFFER)
    await host.commit()
    assert driver.state == ("Connected", "AddHtlc", "signed")


async def test_what_is_durable_goes_out_before_what_is_done_ahead(
    driver: ChannelDriver[State],
    host: FakeHost,
    link: FakeLink,
    toy: ToyMachine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link writes what it was given in the next turn of the event loop."""
    order: list[str] = []
    for name in ("first", "second", "third"):
        toy.jobs.append(partial(order.append, name))
    submit = host.submit

    def submit_and_finish(writes: Sequence[Write], done: Callable[[StoreFailed | None], None]) -> None:
        submit(writes, done)
        host.commits.pop()
        loop.call_soon(done, None)

    def send(data: bytes) -> None:
        order.append("said")
        loop.call_soon(order.append, "written")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(host, "submit", submit_and_finish)
    monkeypatch.setattr(link, "send", send)
    say(driver, link, "one")
    for _ in range(6):
        await asyncio.sleep(0)
    assert order == ["said", "said", "written", "written", "first", "second", "third"]


async def test_a_bug_in_what_is_done_ahead_stops_nothing(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink, toy: ToyMachine
) -> None:
    done: list[str] = []
    toy.jobs = [partial(int, "no number"), partial(done.append, "after it")]
    say(driver, link, "one")
    with structlog.testing.capture_logs() as logs:
        await host.commit()
        for _ in range(3):
            await asyncio.sleep(0)
    assert done == ["after it"]
    assert [entry["event"] for entry in logs] == ["nothing came of working ahead"]
    assert (driver.failure, link.words()) == (None, [b"one", b"signature"])


async def test_an_htlc_that_came_in_is_read_ahead(driver: ChannelDriver[State], host: FakeHost, link: FakeLink) -> None:
    say(driver, link, "add")
    await host.commit()
    await asyncio.sleep(0)
    assert host.read == [7]


async def test_rows_of_a_transition_are_in_its_commit_and_in_memory(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    say(driver, link, "add")
    writes = await host.commit()
    assert host.statements(writes) == [rows.SAVE_ADD, rows.SET_META]
    assert driver.adds == {(False, 7): b"raw add"}
    say(driver, link, "lock")
    assert rows.FORGET_ADD in host.statements(await host.commit())
    assert driver.adds == {}
    assert host.performed == [fx.HtlcRemoved(7, True)]


async def test_an_answer_is_part_of_the_batch_that_asked_for_it(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    paid = rows.SET_META("paid", b"1")
    host.reactions[fx.HtlcRemoved] = Reaction([paid], [ev.FulfillHtlc(7, bytes(32))])
    say(driver, link, "lock")
    writes = await host.commit()
    assert paid in writes
    assert driver.state == ("Connected", "lock", "fulfilled", "signed")
    assert link.words() == [b"fulfill", b"signature"]


async def test_a_command_hears_when_it_is_durable_or_refused(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    answers: list[Any] = []
    extra = rows.SET_META("extra", b"1")
    driver.post(ev.CloseChannel(b"", 253), [extra], answers.append)
    driver.post(ev.UpdateFee(1), [rows.SET_META("never", b"1")], answers.append)
    await asyncio.sleep(0)
    assert [type(answer) for answer in answers] == [ev.CommandRejected]
    writes = await host.commit()
    assert answers[1:] == [None]
    assert extra in writes
    assert rows.SET_META("never", b"1") not in writes


@pytest.mark.parametrize("action", ["warning", "error", "disconnect"])
async def test_a_broken_rule_becomes_a_message_in_one_place(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink, action: str
) -> None:
    say(driver, link, action)
    say(driver, link, "too late")
    await host.commit()
    kinds = {"warning": [WarningMessage], "error": [ErrorMessage], "disconnect": []}[action]
    complaints = [message for message in link.sent if not isinstance(message, Ping)]
    assert [type(message) for message in complaints] == kinds
    assert all(message.data == f"{action} please".encode() for message in complaints)  # type: ignore[attr-defined]
    assert bool(link.closed) == (action != "error")
    assert driver.state == (("Connected", "closed: error please") if action == "error" else ("Connected",))


async def test_a_bug_freezes_the_channel_and_keeps_what_was_done_before(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    answers: list[Any] = []
    say(driver, link, "one")
    driver.post(BUG)
    say(driver, link, "two")
    await host.commit()
    assert driver.state == ("Connected", "one")
    assert link.words() == [b"one"]
    assert isinstance(host.frozen_by[0], AssertionError)
    driver.post(ev.CloseChannel(b"", 253), (), answers.append)
    await asyncio.sleep(0)
    assert isinstance(answers[0], ChannelFrozen)
    assert host.commits == []


@pytest.mark.parametrize("bug", ["reaction", "answer"])
async def test_a_bug_at_the_start_freezes_one_channel_and_does_what_it_promised(
    driver: ChannelDriver[State], host: FakeHost, bug: str
) -> None:
    """All channels are started one after the other: what stops one must not stop the node, nor keep a transaction from
    being published."""
    if bug == "reaction":
        host.broken.add(fx.HtlcRemoved)
    else:
        host.reactions[fx.HtlcRemoved] = Reaction(events=[BUG])
    over = fx.CloseCompleted(None, "over")
    driver.start([fx.HtlcRemoved(1, True), over], [])
    assert driver.failure is not None
    assert len(host.frozen_by) == 1
    await host.commit()
    assert host.performed[-1] == over


async def test_what_waited_behind_a_bug_is_answered(driver: ChannelDriver[State], host: FakeHost) -> None:
    answers: list[Any] = []
    driver.post(BUG)
    driver.post(ev.CloseChannel(b"", 253), (), answers.append)
    await host.commit()
    assert [type(answer) for answer in answers] == [ChannelFrozen]


async def test_a_frozen_channel_still_watches_the_chain(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    driver.post(BUG)
    driver.post(ev.NewBlock())  # waits behind the bug
    await host.commit()
    say(driver, link, "one")
    driver.post(ev.FulfillHtlc(1, bytes(32)))  # or its deadline would not be known
    await host.commit()
    assert driver.state == ("Connected", "block", "fulfilled")  # and nothing is signed any more
    assert fx.CloseCompleted(None, "over") in host.performed
    assert len(host.frozen_by) == 1


async def test_a_frozen_channel_is_closed_even_if_a_reaction_fails(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    driver.post(BUG)
    await host.commit()
    host.broken.add(fx.HtlcRemoved)
    driver.post(ev.NewBlock())
    await host.commit()
    assert driver.state == ("Connected", "block")
    assert host.performed == [fx.CloseCompleted(None, "over")]


async def test_a_bug_after_the_commit_freezes_and_the_rest_is_done(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    host.broken_later.add(fx.HtlcRemoved)
    driver.post(ev.NewBlock())
    await host.commit()
    assert driver.failure is not None
    assert host.performed == [fx.CloseCompleted(None, "over")]
    driver.post(ev.NewBlock())
    await host.commit()
    assert driver.state == ("Connected", "block", "signed", "block")


async def test_a_bug_outside_of_the_machine_freezes_as_well(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    answers: list[Any] = []
    host.unstorable = True
    say(driver, link, "one")
    driver.post(ev.CloseChannel(b"", 253), (), answers.append)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert driver.failure is not None
    assert [type(answer) for answer in answers] == [ChannelFrozen]
    assert [*driver.state] == ["Connected"]  # what is on the disk
    assert link.words() == []
    host.unstorable = False
    driver.post(ev.NewBlock())
    await host.commit()
    assert driver.state == ("Connected", "block")


async def test_after_a_failed_commit_nothing_is_taken(driver: ChannelDriver[State], host: FakeHost) -> None:
    driver.post(ev.NewBlock())
    await host.commit(StoreFailed("the disk is full"))
    driver.post(ev.NewBlock())
    await asyncio.sleep(0)
    assert host.commits == []


async def test_messages_of_another_connection_are_dropped(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    say(driver, link, "old")
    await asyncio.sleep(0)
    newer = FakeLink()
    driver.post(ev.Disconnected())
    driver.post_connected(newer, frozenset())
    say(driver, link, "from the old one")
    say(driver, newer, "new")
    await host.commit()
    await host.commit()
    assert link.words() == [b"old", b"signature"]
    assert newer.words() == [b"new", b"signature"]
    assert "from the old one" not in driver.state


async def test_a_failed_commit_says_nothing(driver: ChannelDriver[State], host: FakeHost, link: FakeLink) -> None:
    answers: list[Any] = []
    say(driver, link, "one")
    driver.post(ev.CloseChannel(b"", 253), (), answers.append)
    failure = StoreFailed("the disk is full")
    await host.commit(failure)
    assert link.words() == []
    assert answers == [failure]
    assert driver.failure is not None


async def test_a_refused_event_that_nobody_asked_for_is_logged(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    with structlog.testing.capture_logs() as logs:
        driver.post(ev.UpdateFee(1))
        host.reactions[fx.HtlcRemoved] = Reaction((), [ev.UpdateFee(2)])
        driver.post(ev.NewBlock())
        await host.commit()
    assert [entry["event"] for entry in logs] == ["command rejected", "answer rejected"]
    assert driver.failure is None


ENOUGH = MAX_WAITING_BYTES // MESSAGE_BYTES
"""Short messages that may wait."""


def say_until_held(driver: ChannelDriver[State], link: FakeLink, word: str, raw: bytes = b"") -> int:
    """How many messages the channel takes before it has had enough."""
    for count in range(1, 2 * ENOUGH):
        driver.post_message(Ping(0, word.encode()), raw, link)
        if link.holders:
            return count
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("size_bytes", [0, 60_000])
async def test_a_peer_is_not_read_while_too_much_waits_for_a_commit(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink, size_bytes: int
) -> None:
    say(driver, link, "slow")
    await asyncio.sleep(0)
    count = say_until_held(driver, link, "more", bytes(size_bytes))
    assert count == MAX_WAITING_BYTES // (MESSAGE_BYTES + size_bytes) + 1
    for again in (1, 2):
        await host.commit()
        assert link.holders == set(), "the next batch has taken all of it"
        assert driver.state.count("more") == again * count
        assert say_until_held(driver, link, "more", bytes(size_bytes)) == count


async def test_what_an_idle_channel_takes_at_once_holds_nobody_for_long(
    driver: ChannelDriver[State], link: FakeLink
) -> None:
    say_until_held(driver, link, "at once")
    await asyncio.sleep(0)
    assert link.holders == set()


async def test_commands_of_ours_hold_no_peer(driver: ChannelDriver[State], host: FakeHost, link: FakeLink) -> None:
    for _ in range(2 * ENOUGH):
        driver.post(ev.NewBlock())
    assert link.holders == set()


async def test_a_channel_that_stops_holds_nobody(driver: ChannelDriver[State], host: FakeHost, link: FakeLink) -> None:
    """A bug after a commit: what waited is dropped, and so is what comes now."""
    host.broken_later.add(fx.HtlcRemoved)
    say(driver, link, "lock")
    await asyncio.sleep(0)
    say_until_held(driver, link, "more")
    await host.commit()
    assert driver.failure is not None
    assert link.holders == set()
    for _ in range(2 * ENOUGH):
        say(driver, link, "even more")
    assert link.holders == set()


async def test_connections_that_come_and_go_meanwhile_leave_nothing(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    say(driver, link, "slow")
    await asyncio.sleep(0)
    driver.post_disconnected(link)
    for _ in range(100):
        passing = FakeLink()
        driver.post_connected(passing, frozenset())
        say(driver, passing, "never mind")
        driver.post(ev.NewBlock())
        driver.post_disconnected(passing)
    newer = FakeLink()
    driver.post_connected(newer, frozenset())
    say(driver, newer, "new")
    await host.commit()
    assert driver.state == (
        "Connected",
        "slow",
        "signed",
        "Disconnected",
        *["block"] * 100,
        "Connected",
        "new",
        "signed",
    )
    assert driver.link is newer


async def test_a_connection_that_was_used_is_not_forgotten(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    driver.post_disconnected(link)
    await host.commit()
    assert driver.state == ("Connected", "Disconnected")
    assert driver.link is None


async def test_who_comes_again_finds_the_same_inbox(
    driver: ChannelDriver[State], host: FakeHost, link: FakeLink
) -> None:
    """A new connection is no way to have more wait; what waits for the old one still counts."""
    say(driver, link, "slow")
    await asyncio.sleep(0)
    say_until_held(driver, link, "more")
    newer = FakeLink()
    driver.post(ev.Disconnected())
    driver.post_connected(newer, frozenset())
    assert say_until_held(driver, newer, "again") == 1
    await host.commit()
    assert link.holders == newer.holders == set()
    assert driver.state.count("again") == 1


# --- a peer that does not revoke ----------------------------------------------------------------------------------


async def ends(link: FakeLink, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the connection is closed, as soon as it is."""
    closed = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(link, "close", closed.set_result)
    reason: str = await asyncio.wait_for(closed, 60)
    return reason


async def test_a_peer_that_does_not_revoke_is_asked_again_on_a_new_connection(
    driver: ChannelDriver[State],
    host: FakeHost,
    link: FakeLink,
    toy: ToyMachine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("channeld.node.driver.REVOCATION_SECONDS", 0.001)
    toy.awaited = 7
    say(driver, link, "hello")
    await host.commit()
    assert "no revoke_and_ack came" in await ends(link, monkeypatch)
    (told,) = (message for message in link.sent if isinstance(message, WarningMessage))
    assert b"no revoke_and_ack came" in told.data


async def test_only_who_owes_the_same_revocation_all_the_time_is_disconnected(
    driver: ChannelDriver[State],
    host: FakeHost,
    link: FakeLink,
    toy: ToyMachine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It revokes and gets the next signature; then it is we who do not read, or are busy."""
    monkeypatch.setattr("channeld.node.driver.REVOCATION_SECONDS", 0.001)
    looks = 0
    enough = asyncio.Event()

    def awaited(state: State) -> int | None:
        nonlocal looks
        looks += 1
        if looks == 20:
            link.hold(toy)
        if looks == 40:
            enough.set()
        return min(looks, 21)

    monkeypatch.setattr(toy, "awaited_commitment", awaited)
    say(driver, link, "hello")
    await host.commit()
    await asyncio.wait_for(enough.wait(), 60)
    assert not link.closed
    say(driver, link, "slow")  # its commit is not through yet
    link.let_go(toy)
    enough.clear()
    looks = 30
    await asyncio.wait_for(enough.wait(), 60)
    assert not link.closed
    await host.commit()
    assert "no revoke_and_ack came" in await ends(link, monkeypatch)
