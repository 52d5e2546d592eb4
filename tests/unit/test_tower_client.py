"""The client half: several towers, one that is away, sessions that are full or forgotten, receipts, restarts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tower_support import key, revoked, running_client, until
from tests.unit.test_tower_intake import FakeSource, tower_of
from wallet.bitcoin import OutPoint
from watchtower.appointment import JusticeKit
from watchtower.client.connection import Connection, TowerUri
from watchtower.client.pace import Pace
from watchtower.client.towers import Towers, TowersError
from watchtower.client.uploader import LAST_RETRY_SECONDS, Uploader
from watchtower.client.values import KitMaker, session_secret
from watchtower.rpc.errors import Refusal
from watchtower.tower.daemon import Tower
from watchtower.tower.sessions import Sessions
from watchtower.v1 import tower_pb2

CHANNELS = (b"\x01" * 32, b"\x02" * 32)


class Node:
    """Revoked commitments, as many as the test says."""

    def __init__(self) -> None:
        self.revoked: dict[bytes, int] = dict.fromkeys(CHANNELS, 0)
        self.asked = 0

    def counts(self) -> Mapping[bytes, int]:
        return dict(self.revoked)

    def kit(self, channel: bytes, number: int) -> JusticeKit | None:
        if number == 3:
            return None  # nothing is worth taking
        return revoked(f"{channel[0]} {number}", OutPoint(channel, number), 1_000_000).kit

    async def kits(self, channel: bytes, first: int, count: int) -> KitMaker | None:
        self.asked += 1
        if channel not in self.revoked:
            return None
        numbers = range(first, min(first + count, self.revoked[channel]))
        return lambda: [self.kit(channel, number) for number in numbers]


def client(path: Path, node: Node) -> AbstractAsyncContextManager[Towers]:
    return running_client(path / "client.sqlite", node, in_a_hurry)


def in_a_hurry(towers: Towers) -> None:
    towers.pace = Pace(busy_share=1.0, quiet_share=1.0)
    for uploader in uploaders(towers):
        quick(uploader)


def uploaders(towers: Towers) -> list[Uploader]:
    return list(towers._uploaders.values())


def quick(uploader: Uploader) -> None:
    uploader.retry_seconds = 0.01
    uploader.gather_seconds = 0.0


def look(towers: Towers) -> None:
    """As if a minute had passed."""
    for uploader in uploaders(towers):
        uploader.look_seconds = 0.02
        uploader._look_again = 0.0
        uploader._wake.set()


async def use(towers: Towers, tower: Tower, **options: Any) -> TowerUri:
    uri = TowerUri(tower.tower_id, tower.server.address)
    await towers.add(uri, "own", **options)
    for uploader in uploaders(towers):
        quick(uploader)
    return uri


async def settled(towers: Towers) -> None:
    async with asyncio.timeout(20):
        await towers.wait_idle()
        assert all(status.backlog == 0 and not status.problem for status in towers.statuses())


def revoke(towers: Towers, node: Node, channel: bytes, count: int) -> None:
    node.revoked[channel] += count
    towers.notify()


async def use_for(towers: Towers, tower: Tower, node: Node, count: int) -> TowerUri:
    """Use a tower, until it has `count` commitments of the first channel."""
    uri = await use(towers, tower)
    revoke(towers, node, CHANNELS[0], count)
    await settled(towers)
    return uri


async def used_tower_that_went_away(path: Path, towers: Towers, node: Node, count: int) -> TowerUri:
    """It has `count` commitments of the first channel."""
    async with tower_of(path) as tower:
        return await use_for(towers, tower, node, count)


async def test_two_towers_and_one_that_comes_late(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path / "1") as first, tower_of(tmp_path / "2") as late, client(tmp_path, node) as towers:
        await use(towers, first)
        revoke(towers, node, CHANNELS[0], 100)
        revoke(towers, node, CHANNELS[1], 2)
        await settled(towers)
        assert first.sessions.total_appointments == 101
        await use(towers, late)
        await settled(towers)
        assert late.sessions.total_appointments == 101
        assert len(first.sessions) == len(late.sessions) == 2
        sessions = {session.terms.session_id for tower in (first, late) for session in tower.sessions.newest(9)}
        assert len(sessions) == 4, "no two sessions share a key"
        checks = await towers.check(500)
        assert [check.reasons for check in checks] == [(), ()]


async def test_a_tower_that_is_away_blocks_nothing_and_gets_everything_later(tmp_path: Path) -> None:
    node = Node()
    async with client(tmp_path, node) as towers:
        uri = await used_tower_that_went_away(tmp_path, towers, node, 2)
        revoke(towers, node, CHANNELS[0], 5)
        await until(lambda: bool(towers.statuses()[0].problem))
        (status,) = towers.statuses()
        assert (status.backlog, status.reachable) == (5, False)
        (channel,) = [channel for channel in status.channels if channel.newest]
        assert channel.behind_seconds > 0
        (check,) = await towers.check(500)
        assert not check.up_to_date
        assert "lacks 5 commitments of 1 channels" in check.reasons[-1]
        async with tower_of(tmp_path, listen=uri.address) as tower:
            await settled(towers)
            assert tower.sessions.total_appointments == 6


async def test_progress_and_receipts_survive_a_restart(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower:
        async with client(tmp_path, node) as towers:
            uri = await use_for(towers, tower, node, 6)
        asked = node.asked
        async with client(tmp_path, node) as towers:
            await settled(towers)
            assert node.asked == asked, "nothing is sent again"
            evidence = await towers.evidence(uri.tower_id, CHANNELS[0], 5)
            assert evidence.receipt.is_signed()
            assert evidence.terms.is_signed()
            with pytest.raises(TowersError, match="no such commitment"):
                await towers.evidence(uri.tower_id, CHANNELS[0], 3)


async def test_a_full_session_is_followed_by_another(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path, session_appointments=70) as tower, client(tmp_path, node) as towers:
        await use_for(towers, tower, node, 150)
        assert tower.sessions.total_appointments == 149
        assert len(tower.sessions) == 3


async def test_a_tower_that_forgets_gets_everything_again(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        await use_for(towers, tower, node, 8)
        (session,) = tower.sessions.newest(9)
        await tower.sessions.end(session)
        (check,) = await towers.check(500)
        assert "does not have commitment 7" in check.reasons[0]
        revoke(towers, node, CHANNELS[0], 1)
        await settled(towers)
        await tower.sessions.wait_removed()
        assert tower.sessions.total_appointments == 8


async def test_what_a_tower_forgot_while_nothing_is_revoked_is_sent_again(tmp_path: Path) -> None:
    """Its session ended while we were off, say: one with the old key would be there, and empty."""
    node = Node()
    async with tower_of(tmp_path) as tower:
        async with client(tmp_path, node) as towers:
            await use(towers, tower)
            revoke(towers, node, CHANNELS[0], 8)
            revoke(towers, node, CHANNELS[1], 2)
            await settled(towers)
        (old,) = [session for session in tower.sessions.newest(9) if session.appointments == 7]
        await tower.sessions.end(old)
        await tower.sessions.wait_removed()
        assert tower.sessions.total_appointments == 2
        async with client(tmp_path, node) as towers:
            await until(lambda: tower.sessions.total_appointments == 9)
            await settled(towers)
            evidence = await towers.evidence(towers.all[0].uri.tower_id, CHANNELS[0], 5)
            assert evidence.terms.is_signed()
        asked = node.asked
        async with client(tmp_path, node) as towers:
            look(towers)
            await until(lambda: len(uploaders(towers)[0]._seen) == 2)
            await settled(towers)
        assert node.asked == asked, "once is enough"


async def test_a_tower_that_was_restored_from_an_old_copy_is_noticed(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower:
        async with client(tmp_path, node) as towers:
            await use_for(towers, tower, node, 8)
        (session,) = tower.sessions.newest(9)
        session.appointments = 6
        async with client(tmp_path, node) as towers:
            await until(lambda: [session.appointments for session in tower.sessions.newest(9)] == [7, 6])
            await settled(towers)


async def test_sessions_that_end_soon_are_extended_though_nothing_is_revoked(tmp_path: Path) -> None:
    """Full ones too: the tower forgets what an ended session holds, and a channel may rest for a year."""
    node, source = Node(), FakeSource()
    policy = {"session_blocks": 1_100, "session_appointments": 4}
    async with tower_of(tmp_path, source, **policy) as tower, client(tmp_path, node) as towers:
        await use_for(towers, tower, node, 7)
        assert len(tower.sessions) == 2
        for _ in range(150):
            height = source.mine()
        while tower.watcher.height < height:
            await tower.watcher.changed()
        assert {session.terms.expires_height for session in tower.sessions.newest(9)} == {500 + 1_100}
        look(towers)
        await until(lambda: {s.terms.expires_height for s in tower.sessions.newest(9)} == {650 + 1_100})
        assert towers.statuses()[0].sessions == 2


@pytest.mark.parametrize("change", [{"session_blocks": 200}, {"reward_permille": 1, "reward_script": b"\x51" * 22}])
async def test_terms_that_take_back_what_was_agreed_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """They would be all that is left to prove by what the tower once signed."""
    node, source = Node(), FakeSource()
    async with tower_of(tmp_path, source, session_blocks=1_100) as tower, client(tmp_path, node) as towers:
        uri = await use_for(towers, tower, node, 1)
        (uploader,) = uploaders(towers)
        uploader.tower = msgspec.structs.replace(uploader.tower, max_reward_permille=10)
        for _ in range(150):
            height = source.mine()
        while tower.watcher.height < height:
            await tower.watcher.changed()
        sessions = tower.sessions
        sessions.policy = msgspec.structs.replace(sessions.policy, **change)
        terms: Any = Sessions._terms
        monkeypatch.setattr(sessions, "_terms", lambda *args: terms(sessions, *args[:-1], None))
        look(towers)
        await until(lambda: "takes back" in towers.statuses()[0].problem)
        evidence = await towers.evidence(uri.tower_id, CHANNELS[0], 0)
        assert evidence.terms.expires_height == 500 + 1_100
        assert hashlib.sha256(evidence.blob).digest() == evidence.receipt.blob_hash


async def test_a_tower_that_goes_away_or_falls_behind_while_nothing_is_revoked_is_noticed(tmp_path: Path) -> None:
    node = Node()
    async with client(tmp_path, node) as towers:
        news: list[str] = []
        towers.on_news = lambda kind, sentence: news.append(kind)
        async with tower_of(tmp_path) as tower:
            uri = await use_for(towers, tower, node, 2)
            tower.watcher.synced = False
            look(towers)
            await until(lambda: "not in step with the chain" in towers.statuses()[0].problem)
            tower.watcher.synced = True
            await until(lambda: towers.statuses()[0].reachable)
        look(towers)
        await until(lambda: "cannot be reached" in towers.statuses()[0].problem)
        async with tower_of(tmp_path, listen=uri.address):
            await until(lambda: towers.statuses()[0].reachable)
            assert news == ["tower.trouble", "tower.works"] * 2


async def test_a_tower_that_is_out_of_step_is_in_trouble_for_as_long_as_that_lasts(tmp_path: Path) -> None:
    """It takes what it is given meanwhile, and that does not make it well."""
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        news: list[str] = []
        towers.on_news = lambda kind, sentence: news.append(kind)
        await use_for(towers, tower, node, 1)
        (uploader,) = uploaders(towers)
        tower.watcher.synced = False
        uploader._look_again = 0.0
        uploader.notify()
        await until(lambda: bool(towers.statuses()[0].problem))
        for _ in range(2):
            revoke(towers, node, CHANNELS[0], 1)
            await towers.wait_idle()
        (status,) = towers.statuses()
        assert "not in step with the chain" in status.problem
        assert (status.backlog, status.reachable, news) == (0, False, ["tower.trouble"])
        tower.watcher.synced = True
        look(towers)
        await until(lambda: towers.statuses()[0].reachable)
        assert news == ["tower.trouble", "tower.works"]


async def test_a_clock_that_the_tower_does_not_believe_does_not_hold_up_backups(tmp_path: Path) -> None:
    """It is of no matter to them."""
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        await use_for(towers, tower, node, 1)
        (uploader,) = uploaders(towers)
        uploader.retry_seconds = 100.0
        uploader._seen.clear()  # as after a start
        uploader._connection._clock = lambda: 1_000.0
        revoke(towers, node, CHANNELS[0], 1)
        uploader._look_again = 0.0
        await until(lambda: "another time" in towers.statuses()[0].problem)
        revoke(towers, node, CHANNELS[0], 150)
        await until(lambda: towers.statuses()[0].backlog == 0)
        assert "another time" in towers.statuses()[0].problem


async def test_a_receipt_that_the_tower_did_not_sign_is_no_backup(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        await use(towers, tower)
        right, tower.intake._secret = tower.intake._secret, b"\x09" * 32
        revoke(towers, node, CHANNELS[0], 3)
        await until(lambda: "receipt is not for what it was given" in towers.statuses()[0].problem)
        assert towers.statuses()[0].backlog == 3
        tower.intake._secret = right
        await until(lambda: towers.statuses()[0].backlog == 0)
        assert tower.sessions.total_appointments == 3, "stored the first time, confirmed now"


async def test_a_tower_that_is_full_gets_no_new_sessions_over_and_over(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path, max_total_bytes=3_000) as tower, client(tmp_path, node) as towers:
        await use(towers, tower)
        revoke(towers, node, CHANNELS[0], 40)
        await until(lambda: "full" in towers.statuses()[0].problem)
        assert len(tower.sessions) == 1
        tower.sessions.policy = msgspec.structs.replace(tower.sessions.policy, max_total_bytes=1 << 30)
        await until(lambda: towers.statuses()[0].backlog == 0)
        assert len(tower.sessions) == 1


async def test_a_tower_that_refuses_every_session_is_not_asked_for_ever_more(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        await use(towers, tower)
        refusal = Refusal("failed_precondition", "No room here.")

        def refuse(*_: object) -> None:
            raise refusal

        tower.intake._check_room = refuse  # type: ignore[assignment,method-assign]
        revoke(towers, node, CHANNELS[0], 2)
        resting = uploaders(towers)[0]._resting
        await until(lambda: CHANNELS[0] in resting and resting[CHANNELS[0]].failures > 5)
        assert towers.statuses()[0].problem == "No room here."
        assert len(tower.sessions) == 2


async def test_a_tower_with_too_little_room_for_a_blob_is_no_backup(tmp_path: Path) -> None:
    """What it cannot take is said, and asked for it the answer is no."""
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        tower.sessions.policy = msgspec.structs.replace(tower.sessions.policy, max_blob_bytes=300)
        news: list[str] = []
        towers.on_news = lambda kind, sentence: news.append(sentence)
        await use_for(towers, tower, node, 2)
        assert tower.sessions.total_appointments == 0
        assert len(news) == 2
        assert "commitment 1 of channel" in news[1]
        (check,) = await towers.check(500)
        assert "2 commitments were too large for it" in check.reasons
    async with tower_of(tmp_path), client(tmp_path, node) as towers:
        (check,) = await towers.check(500)
        assert any("blobs of 300 bytes at most" in reason for reason in check.reasons)


async def test_one_channel_that_fails_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    """However many there are before and behind it, and however much they have to send."""

    class Partly(Node):
        is_bad = True

        async def kits(self, channel: bytes, first: int, count: int) -> KitMaker | None:
            if channel == CHANNELS[0] and self.is_bad:
                raise AssertionError("a bug with this channel")
            return await super().kits(channel, first, count)

    node = Partly()
    others = [bytes((number,)) * 32 for number in range(3, 9)]
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        await use(towers, tower)
        for channel in (CHANNELS[0], *others):
            node.revoked[channel] = 1
        towers.notify()
        await until(lambda: tower.sessions.total_appointments == len(others))
        await until(lambda: towers.statuses()[0].problem == "a bug with this channel")
        assert towers.statuses()[0].backlog == 1
        (uploader,) = uploaders(towers)
        uploader.retry_seconds = 100.0
        await until(lambda: uploader._rests(CHANNELS[0]) > 10.0)
        revoke(towers, node, others[0], 150)
        await until(lambda: towers.statuses()[0].backlog == 1)
        assert towers.statuses()[0].problem == "a bug with this channel"
        node.is_bad = False
        uploader._clock = lambda: time.time() + LAST_RETRY_SECONDS
        uploader._wake.set()
        await settled(towers)


async def test_a_call_without_an_answer_does_not_end_the_backups_of_other_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        await use(towers, tower)
        revoke(towers, node, CHANNELS[0], 1)
        revoke(towers, node, CHANNELS[1], 1)
        await settled(towers)
        take, call_stub = tower.intake.add, Connection._call_stub
        asked, answer, calls = asyncio.Event(), asyncio.Event(), 0

        async def hold(*args: Any) -> Any:
            asked.set()
            await answer.wait()
            return await take(*args)

        async def hurry(self: Connection, method: Any, request: Any, seconds: float, metadata: Any = ()) -> Any:
            nonlocal calls
            calls += isinstance(request, tower_pb2.AddAppointmentsRequest)
            if calls == 2:  # the second channel's, while the first one's is under way
                monkeypatch.setattr(Connection, "_call_stub", call_stub)
                await asked.wait()
                seconds = 0.02
            return await call_stub(self, method, request, seconds, metadata)

        monkeypatch.setattr(tower.intake, "add", hold)
        monkeypatch.setattr(Connection, "_call_stub", hurry)
        revoke(towers, node, CHANNELS[0], 1)
        revoke(towers, node, CHANNELS[1], 1)
        await until(lambda: bool(towers.statuses()[0].problem))
        answer.set()
        await settled(towers)
        assert tower.sessions.total_appointments == 4


async def test_a_tower_that_kept_its_sessions_is_used_again_in_another_mode(tmp_path: Path) -> None:
    """It was removed while it was away."""
    node = Node()
    async with client(tmp_path, node) as towers:
        uri = await used_tower_that_went_away(tmp_path, towers, node, 3)
        await towers.remove(uri.tower_id)
        async with tower_of(tmp_path) as tower:
            await towers.add(TowerUri(tower.tower_id, tower.server.address), "blind")
            await settled(towers)
            assert [session.terms.mode for session in tower.sessions.newest(9)] == ["blind", "own"]


async def test_a_clock_that_is_set_back_does_not_put_off_looking_after_a_tower(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        await use(towers, tower)
        await settled(towers)
        (uploader,) = uploaders(towers)
        uploader._look_again = uploader._clock() + 1_000_000
        uploader._wake.set()
        await until(lambda: uploader._until_look() <= uploader.look_seconds)


async def test_a_removed_tower_forgets_full_sessions_too(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path, session_appointments=4) as tower:
        for _ in range(2):
            async with client(tmp_path, node) as towers:  # the second time with what the database knows
                if not towers.all:
                    uri = await use(towers, tower)
                    revoke(towers, node, CHANNELS[0], 12)
                await settled(towers)
                assert len(tower.sessions) == 3
        async with client(tmp_path, node) as towers:
            await settled(towers)
            await towers.remove(uri.tower_id)
            assert len(tower.sessions) == 0


async def test_pause_resume_move_and_remove(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path) as tower, client(tmp_path, node) as towers:
        uri = await use_for(towers, tower, node, 2)
        await towers.set_state(uri.tower_id, "paused")
        revoke(towers, node, CHANNELS[0], 2)
        (check,) = await towers.check(500)
        assert check.reasons[0] == "it is paused"
        assert tower.sessions.total_appointments == 2
        await towers.set_state(uri.tower_id, "active")
        await settled(towers)
        assert tower.sessions.total_appointments == 3
        await towers.add(uri, "own")
        assert len(towers.all) == 1
        with pytest.raises(TowersError, match="mode own"):
            await towers.add(uri, "blind")
        await towers.forget_channel(CHANNELS[1])
        node.revoked.pop(CHANNELS[1])
        await towers.remove(uri.tower_id)
        await tower.sessions.wait_removed()
        assert (towers.all, len(tower.sessions)) == ([], 0)
        with pytest.raises(TowersError, match="no tower"):
            await towers.remove(uri.tower_id)


async def test_a_tower_that_is_added_twice_at_once_is_one_tower(tmp_path: Path) -> None:
    """A row that is there already would end the daemon: after a failed transaction nothing is written any more."""
    uri = TowerUri(key("tower"), "127.0.0.1:1")
    async with client(tmp_path, Node()) as towers:
        one, other = await asyncio.gather(towers.add(uri, "own"), towers.add(uri, "own"))
        assert one.key == other.key
        assert [known.uri for known in towers.all] == [uri]
        gone = await asyncio.gather(*(towers.remove(uri.tower_id) for _ in range(2)), return_exceptions=True)
        assert [type(each) for each in gone] == [type(None), TowersError]


async def test_a_token_that_is_missing_is_said(tmp_path: Path) -> None:
    node = Node()
    async with tower_of(tmp_path, access="token") as tower, client(tmp_path, node) as towers:
        uri = await use(towers, tower)
        revoke(towers, node, CHANNELS[0], 1)
        await until(lambda: bool(towers.statuses()[0].problem))
        assert "no token" in towers.statuses()[0].problem
        await use(towers, tower, token=tower.config.paths.client_token.read_text().strip())
        await settled(towers)
        assert towers.all[0].uri == uri


@pytest.mark.parametrize("text", ["", "x@y:1", key("t").hex(), f"{key('t').hex()}@host", f"{'00' * 33}@host:1"])
def test_what_is_no_tower(text: str) -> None:
    with pytest.raises(ValueError, match="TOWER_ID@HOST:PORT"):
        TowerUri.parse(text)


def test_session_keys_are_their_own() -> None:
    arguments = [(key("a"), CHANNELS[0], 0), (key("a"), CHANNELS[0], 1), (key("a"), CHANNELS[1], 0)]
    assert len({session_secret(b"\x01" * 32, *each) for each in arguments}) == 3
    uri = TowerUri(key("a"), "host:1")
    assert TowerUri.parse(str(uri)) == uri


async def test_blobs_take_a_tenth_of_a_core_while_payments_are_under_way_and_more_when_they_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, slept = 100.0, 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now, slept
        now, slept = now + seconds, slept + seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = Pace(lambda: now, 0.1, 0.5)
    await pace.repay()
    assert slept == 0.0
    pace.spend(0.05)
    pace.revoked()
    await pace.repay()
    assert slept == pytest.approx(0.45)
    # Half a second's work: after one second without payments it may take half of a core.
    slept = 0.0
    pace.spend(0.25)
    pace.spend(0.25)
    pace.revoked()
    await pace.repay()
    assert slept == pytest.approx(1.0 + (0.5 - 1.0 / 9), abs=0.2)
    # Two towers repay what both have spent, once.
    slept, now = 0.0, now + 10
    pace.spend(0.3)
    await asyncio.gather(pace.repay(), pace.repay())
    assert slept == pytest.approx(0.3)
