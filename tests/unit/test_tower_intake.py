"""What clients may do to a tower, and may not: over its real API, with layer 1 faked."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.tower_support import revoked, running_tower, tower_config, until
from wallet.bitcoin import Block, BlockHeader, OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.secp import pubkey_of, sign
from wallet.chain import (
    BlockConnected,
    BlockDisconnected,
    BlockRef,
    BroadcastOutcome,
    BroadcastResult,
    ChainEvent,
    ChainUnavailable,
    SourceBack,
    Synced,
)
from wallet.db import StorageError
from watchtower.appointment import Appointment, Terms, make_appointment
from watchtower.client.connection import Connection, TowerAway, TowerLies, TowerRefuses, TowerUri
from watchtower.messages import batch_digest
from watchtower.rpc.settings import ConfigError
from watchtower.tower.config import load_config
from watchtower.tower.daemon import Tower, TowerError
from watchtower.tower.limits import Buckets, TokenBucket
from watchtower.tower.sessions import GRACE_BLOCKS
from watchtower.v1 import operator_pb2, operator_pb2_grpc, tower_pb2


class FakeSource:
    """A chain that tests extend; only `follow` matters here."""

    def __init__(self, height: int = 500) -> None:
        self.blocks = [(BlockRef(height, os.urandom(32)), Block(BlockHeader(4, bytes(32), bytes(32), 0, 0, 0), ()))]
        self.events: asyncio.Queue[ChainEvent] = asyncio.Queue()
        self.away = False
        self.asked = 0

    async def start(self) -> None:
        """There already."""

    async def close(self) -> None:
        """Nothing is open."""

    async def follow(self, from_tip: Sequence[BlockRef] | None, **_: object) -> AsyncIterator[ChainEvent]:
        known = max((ref.height for ref in from_tip or ()), default=self.blocks[-1][0].height)
        for ref, block in self.blocks:
            if ref.height > known:
                yield BlockConnected(*ref, block)
        yield Synced(*self.blocks[-1][0])
        while True:
            yield await self.events.get()

    async def get_block(self, block_hash: bytes) -> Block:
        if self.away:
            raise ChainUnavailable("away")
        self.asked += 1
        return next(block for ref, block in self.blocks if ref.hash == block_hash)

    async def get_block_txids(self, block_hash: bytes) -> list[bytes]:
        return [tx.txid() for tx in (await self.get_block(block_hash)).txs]

    async def get_tx(self, txid: bytes, block_hash: bytes) -> Tx | None:
        self.asked += 1
        return next((tx for ref, block in self.blocks for tx in block.txs if tx.txid() == txid), None)

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        return BroadcastResult(BroadcastOutcome.ACCEPTED)

    async def spending_tx_in_mempool(self, outpoint: OutPoint) -> Tx | None:
        return None

    async def fee_rate_sat_per_kw(self, target_blocks: int) -> int:
        return 1_000

    def mine(self, *txs: Tx) -> int:
        block = Block(BlockHeader(4, bytes(32), bytes(32), 0, 0, len(self.blocks)), txs)
        ref = BlockRef(self.blocks[-1][0].height + 1, os.urandom(32))
        self.blocks.append((ref, block))
        self.events.put_nowait(BlockConnected(*ref, block))
        self.events.put_nowait(Synced(*ref))
        return ref.height


@asynccontextmanager
async def tower_of(path: Path, source: FakeSource | None = None, **settings: Any) -> AsyncIterator[Tower]:
    async with running_tower(tower_config(path / "tower", **settings), source or FakeSource()) as tower:  # type: ignore[arg-type]
        yield tower


def connect(tower: Tower, token: str = "") -> Connection:
    return Connection(TowerUri(tower.tower_id, tower.server.address), token)


def some(count: int = 1, size: int = 412) -> list[Appointment]:
    return [Appointment(os.urandom(16), os.urandom(size)) for _ in range(count)]


async def refused(call: Any, kind: str, words: str | None = None) -> None:
    with pytest.raises(TowerRefuses, match=words) as caught:
        await call
    assert caught.value.kind == kind


async def test_appointments_are_confirmed_and_there_after_a_restart(tmp_path: Path) -> None:
    secret, batch = secrets.token_bytes(32), some(3)
    async with tower_of(tmp_path) as tower:
        connection = connect(tower)
        terms = await connection.create_session(secret, "own", 0)
        assert terms.expires_height == 500 + terms_blocks(tower)
        first = await connection.add(secret, batch)
        assert await connection.add(secret, batch) == first, "a repeated call is confirmed with the same receipts"
        assert [receipt.accepted_height for receipt in first] == [500] * 3
        await connection.close()
    async with tower_of(tmp_path, FakeSource(510)) as tower:
        connection = connect(tower)
        found = await connection.get_appointment(secret, batch[1].locator)
        assert (found.appointment.blob, found.state) == (batch[1].blob, "watched")
        session = await connection.get_session(secret)
        assert (session.appointments, session.bytes) == (3, 3 * 412)
        assert await connection.add(secret, batch) == first
        assert tower.sessions.total_appointments == len(tower.watcher.index) == 3
        await connection.close()


def terms_blocks(tower: Tower) -> int:
    return tower.sessions.policy.session_blocks


async def test_bad_appointments_are_refused_with_a_reason(tmp_path: Path) -> None:
    async with tower_of(tmp_path, max_blob_bytes=2_000) as tower:
        connection, secret = connect(tower), secrets.token_bytes(32)
        await refused(connection.add(secret, some()), "not_found", "no such session")
        await connection.create_session(secret, "blind", 0)
        await refused(connection.add(secret, some(1, 2_001)), "invalid_argument", "2000 bytes, not 2001")
        await refused(connection.add(secret, some(1, 28)), "invalid_argument", "more than 28")
        await refused(connection.add(secret, [Appointment(b"short", bytes(100))]), "invalid_argument", "16 bytes")
        await refused(connection.add(secret, some(501)), "invalid_argument", "1 to 500")
        await refused(connection.add(secret, []), "invalid_argument", "1 to 500")
        (one,) = some()
        await connection.add(secret, [one])
        await refused(connection.add(secret, [Appointment(one.locator, bytes(90))]), "already_exists", "never replaced")
        assert tower.sessions.total_appointments == 1
        await connection.close()


async def test_what_is_not_signed_by_the_session_is_refused(tmp_path: Path) -> None:
    async with tower_of(tmp_path) as tower:
        connection, secret, other = connect(tower), secrets.token_bytes(32), secrets.token_bytes(32)
        await connection.create_session(secret, "blind", 0)
        batch = some(2)
        stub = await connection._connected()

        async def send(signature: bytes, appointments: Sequence[Appointment]) -> str:
            wire = [tower_pb2.Appointment(locator=each.locator, blob=each.blob) for each in appointments]
            request = tower_pb2.AddAppointmentsRequest(
                session_id=pubkey_of(secret), appointments=wire, signature=signature
            )
            try:
                await stub.AddAppointments(request)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        good = sign(secret, batch_digest(tower.tower_id, pubkey_of(secret), batch))
        wrong_key = sign(other, batch_digest(tower.tower_id, pubkey_of(secret), batch))
        wrong_tower = sign(secret, batch_digest(pubkey_of(other), pubkey_of(secret), batch))
        for bad in (wrong_key, wrong_tower, b"", bytes(64), good[:-1]):
            assert await send(bad, batch) == "UNAUTHENTICATED"
        assert await send(good, batch[::-1]) == "UNAUTHENTICATED"
        assert await send(good, batch) == "OK"
        assert await send(good, batch) == "OK", "a replay changes nothing"
        assert tower.sessions.total_appointments == 2
        await connection.close()


async def test_requests_of_another_time_are_refused(tmp_path: Path) -> None:
    async with tower_of(tmp_path) as tower:
        secret = secrets.token_bytes(32)
        for clock in (lambda: 1_000.0, lambda: 4e9):
            late = Connection(TowerUri(tower.tower_id, tower.server.address), "", clock)
            await refused(late.create_session(secret, "blind", 0), "invalid_argument", "another time")
            await late.close()


async def test_quotas_rates_and_a_flood_that_hurts_nobody_else(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"appointments_per_second": 0.001, "appointments_burst": 30, "session_appointments": 25}
    async with tower_of(tmp_path, **settings) as tower:
        connection, flooder, other = connect(tower), secrets.token_bytes(32), secrets.token_bytes(32)
        for secret in (flooder, other):
            await connection.create_session(secret, "blind", 0)
        await connection.add(flooder, some(25))
        await refused(connection.add(flooder, some(1)), "failed_precondition", "full")
        results = await asyncio.gather(*(connection.add(flooder, some(4)) for _ in range(40)), return_exceptions=True)
        assert all(isinstance(result, TowerAway | TowerRefuses) for result in results)
        assert any("once" in str(result) or "second" in str(result) for result in results)
        assert len(await connection.add(other, some(20))) == 20
        assert tower.sessions.total_appointments == 45
        assert tower.intake.refused >= 160
        await connection.close()


async def test_one_tower_s_worth_of_bytes(tmp_path: Path) -> None:
    async with tower_of(tmp_path, max_total_bytes=3_000, max_sessions=2) as tower:
        connection, secret = connect(tower), secrets.token_bytes(32)
        await connection.create_session(secret, "blind", 0)
        await connection.add(secret, some(7))
        with pytest.raises(TowerAway, match="full"):
            await connection.add(secret, some(1))
        await connection.create_session(secrets.token_bytes(32), "blind", 0)
        with pytest.raises(TowerAway, match="no more sessions"):
            await connection.create_session(secrets.token_bytes(32), "own", 0)
        await connection.close()


async def test_new_sessions_from_one_address_are_limited(tmp_path: Path) -> None:
    async with tower_of(tmp_path, sessions_per_minute=0.001, sessions_burst=3) as tower:
        connection = connect(tower)
        for _ in range(3):
            await connection.create_session(secrets.token_bytes(32), "blind", 0)
        with pytest.raises(TowerAway, match="Too many new sessions"):
            await connection.create_session(secrets.token_bytes(32), "blind", 0)
        await connection.close()


async def test_sessions_end_and_are_extended(tmp_path: Path) -> None:
    source = FakeSource()
    async with tower_of(tmp_path, source, session_blocks=144) as tower:
        connection, old, renewed = connect(tower), secrets.token_bytes(32), secrets.token_bytes(32)
        for secret in (old, renewed):
            await connection.create_session(secret, "own", 0)
            await connection.add(secret, some(2))
        await refused(connection.create_session(old, "blind", 0), "failed_precondition", "another mode")
        for _ in range(144):
            height = source.mine()
        await searched(tower, height)
        await refused(connection.add(old, some(1)), "failed_precondition", "time is over")
        terms = await connection.create_session(renewed, "own", 0)
        assert terms.expires_height == 500 + 144 + 144
        for _ in range(GRACE_BLOCKS):
            height = source.mine()
        await searched(tower, height)
        await until(lambda: len(tower.sessions) == 1)
        await tower.sessions.wait_removed()
        assert tower.sessions.total_appointments == 2
        await refused(connection.get_session(old), "not_found")
        assert await connection.delete_session(renewed) == 2
        await refused(connection.get_session(renewed), "not_found")
        await tower.sessions.wait_removed()
        assert tower.sessions.total_appointments == 0
        await refused(connection.get_appointment(renewed, bytes(16)), "not_found")
        await connection.close()


class Turnstile:
    """Lets as many commits through as it is told to."""

    def __init__(self) -> None:
        self.turns = threading.Semaphore(0)

    def before(self) -> None:
        self.turns.acquire(timeout=5.0)  # or a test that fails would never end

    def after(self) -> None:
        """Nothing."""


async def test_a_session_that_ends_while_it_still_takes_appointments_is_removed_with_them(tmp_path: Path) -> None:
    """While others are being removed, and the database is slow: no row may stay behind its session."""
    async with tower_of(tmp_path) as tower:
        store, connection = tower.sessions._store, connect(tower)
        store._may_share = False  # the writer's thread waits at the turnstile, not the loop
        first, second = secrets.token_bytes(32), secrets.token_bytes(32)
        for secret in (first, second):
            await connection.create_session(secret, "own", 0)
        await connection.add(first, some())
        hook = store._hook = Turnstile()
        ending = [asyncio.create_task(connection.delete_session(first))]
        hook.turns.release()
        await asyncio.wait(ending)
        await until(lambda: store._unheard == 1)  # its appointments are about to go
        session = tower.sessions.get(pubkey_of(second))
        adding = asyncio.create_task(connection.add(second, some()))
        await until(lambda: session.appointments == 1)
        ending.append(asyncio.create_task(connection.delete_session(second)))
        await until(lambda: session in tower.sessions._ended)
        transactions = store.figures.transactions
        hook.turns.release()  # the first one's appointments are gone, and the second's turn comes
        await until(lambda: store.figures.transactions > transactions)
        for _ in range(2):
            await store.read(lambda _: None)
        hook.turns.release(10)
        await until(lambda: tower.failure is not None or tower.sessions.total_appointments == 0)
        assert tower.failure is None
        await asyncio.gather(adding, *ending)
        await connection.close()


async def test_a_call_that_was_given_up_and_repeated_is_stored_once(tmp_path: Path) -> None:
    """A client gives up after a while; the disk may be slower."""
    async with tower_of(tmp_path) as tower:
        store, connection, secret, batch = tower.sessions._store, connect(tower), secrets.token_bytes(32), some(3)
        await connection.create_session(secret, "own", 0)
        store._may_share = False
        hook = store._hook = Turnstile()
        session = tower.sessions.get(pubkey_of(secret))
        first = asyncio.create_task(connection.add(secret, batch))
        await until(lambda: session.appointments == 3)
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(connection.add(secret, batch))
        await until(lambda: session.waiting == 2)
        hook.turns.release(10)
        assert len(await second) == 3
        assert tower.sessions.total_appointments == 3
        await connection.close()


async def searched(tower: Tower, height: int) -> None:
    while tower.watcher.height < height:
        await tower.watcher.changed()


async def test_a_private_tower_wants_its_token(tmp_path: Path) -> None:
    async with tower_of(tmp_path, access="token") as tower:
        secret, token = secrets.token_bytes(32), tower.config.paths.client_token.read_text().strip()
        stranger, friend = connect(tower), connect(tower, token)
        await refused(stranger.create_session(secret, "own", 0), "unauthenticated", "no token")
        await friend.create_session(secret, "own", 0)
        await stranger.add(secret, some(1))
        await stranger.close()
        await friend.close()


async def test_reward_that_is_not_granted(tmp_path: Path) -> None:
    address = "bcrt1q4w46h2at4w46h2at4w46h2at4w46h2atzmxqe2"
    async with tower_of(tmp_path, reward_permille=20, reward_address=address) as tower:
        connection = connect(tower)
        await refused(connection.create_session(secrets.token_bytes(32), "blind", 19), "failed_precondition", "20 per")
        terms = await connection.create_session(secrets.token_bytes(32), "blind", 20)
        assert (terms.reward_permille, terms.reward_script.hex()) == (20, "0014" + "ab" * 20)
        await connection.close()


async def test_an_impostor_is_recognised(tmp_path: Path) -> None:
    async with tower_of(tmp_path) as tower:
        impostor = Connection(TowerUri(pubkey_of(b"\x01" * 32), tower.server.address))
        with pytest.raises(TowerLies, match="another tower"):
            await impostor.get_info()
        nobody = Connection(TowerUri(tower.tower_id, "127.0.0.1:1"))
        with pytest.raises(TowerAway, match="cannot be reached"):
            await nobody.get_info()


async def test_a_block_with_a_match_that_does_not_decrypt(tmp_path: Path) -> None:
    source = FakeSource()
    tx = Tx(2, (TxIn(OutPoint(os.urandom(32), 0)),), (TxOut(1_000, b"\x51"),), 0)
    async with tower_of(tmp_path, source) as tower:
        connection, secret = connect(tower), secrets.token_bytes(32)
        await connection.create_session(secret, "own", 0)
        await connection.add(secret, [Appointment(tx.txid()[:16], os.urandom(400))])
        await searched(tower, source.mine(tx))
        assert (tower.watcher.undecipherable, tower.watcher.breaches) == (1, {})
        # The same for a block that is past already: it is told so, and nothing breaks.
        past = Tx(2, (TxIn(OutPoint(os.urandom(32), 0)),), (TxOut(1_000, b"\x51"),), 0)
        await searched(tower, source.mine(past))
        stub = await connection._connected()
        batch = [Appointment(past.txid()[:16], os.urandom(400))]
        answer = await stub.AddAppointments(
            tower_pb2.AddAppointmentsRequest(
                session_id=pubkey_of(secret),
                appointments=[tower_pb2.Appointment(locator=batch[0].locator, blob=batch[0].blob)],
                signature=sign(secret, batch_digest(tower.tower_id, pubkey_of(secret), batch)),
            )
        )
        assert list(answer.breached) == [batch[0].locator]
        while tower.watcher.undecipherable < 2:
            await tower.watcher.changed()
        await connection.close()


async def test_many_late_appointments_cost_one_look_into_each_block(tmp_path: Path) -> None:
    """Who stores rubbish under the ids of recent transactions must not keep the tower from new blocks."""
    source = FakeSource()
    txs = [Tx(2, (TxIn(OutPoint(os.urandom(32), 0)),), (TxOut(1_000, b"\x51"),), 0) for _ in range(90)]
    async with tower_of(tmp_path, source) as tower:
        await searched(tower, source.mine(*txs[:45]))
        await searched(tower, source.mine(*txs[45:]))
        connection, secret = connect(tower), secrets.token_bytes(32)
        await connection.create_session(secret, "own", 0)
        await connection.add(secret, [Appointment(tx.txid()[:16], os.urandom(400)) for tx in txs])
        while tower.watcher.undecipherable < len(txs):
            await tower.watcher.changed()
        assert source.asked == 2
        await connection.close()


async def test_a_locator_of_many_sessions_costs_each_its_own_blob_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locator, keys = os.urandom(16), [secrets.token_bytes(32) for _ in range(4)]
    async with tower_of(tmp_path) as tower:
        connection, store = connect(tower), tower.sessions._store
        batches = {key: [Appointment(locator, os.urandom(10_000))] for key in keys}
        for key, batch in batches.items():
            await connection.create_session(key, "own", 0)
            await connection.add(key, batch)
        find, read = store.lookup, 0

        def lookup(*arguments: Any) -> list[tuple[Any, ...]]:
            nonlocal read
            rows = find(*arguments)
            read += sum(len(value) for row in rows for value in row if isinstance(value, bytes))
            return rows

        monkeypatch.setattr(store, "lookup", lookup)
        (receipt,) = await connection.add(keys[2], batches[keys[2]])
        assert receipt.locator == locator
        assert 10_000 <= read < 11_000
        await connection.close()


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_late_appointment_waits_for_layer_1_and_survives_a_restart(tmp_path: Path, stopped: bool) -> None:
    """The client may be gone for good by then."""
    source = FakeSource()
    cheat = revoked("late", OutPoint(os.urandom(32), 0), 1_000_000)
    async with tower_of(tmp_path, source) as tower:
        await searched(tower, source.mine(cheat.tx))
        source.away = True
        connection, secret = connect(tower), secrets.token_bytes(32)
        await connection.create_session(secret, "own", 0)
        await connection.add(secret, [make_appointment(cheat.kit, Terms("own"))])
        await tower.watcher.wait_late()
        assert tower.watcher.breaches == {}
        source.away = stopped
        if not stopped:
            source.events.put_nowait(SourceBack())
            while not tower.watcher.breaches:
                await tower.watcher.changed()
        await connection.close()
    source.away = False
    async with tower_of(tmp_path, source) as tower:
        (found,) = tower.watcher.breaches.values()
        assert found.txid == cheat.tx.txid()
        assert found.attempts


async def test_blocks_that_leave_the_chain(tmp_path: Path) -> None:
    source = FakeSource()
    async with tower_of(tmp_path, source) as tower:
        await searched(tower, source.mine())
        gone = source.blocks.pop()[0]
        source.events.put_nowait(BlockDisconnected(gone.height, gone.hash, None))
        while tower.watcher.height == gone.height:
            await tower.watcher.changed()
        assert tower.watcher.tip == source.blocks[-1][0]


async def test_the_operator_sees_everything(tmp_path: Path) -> None:
    source = FakeSource()
    async with tower_of(tmp_path, source) as tower:
        connection, secret = connect(tower), secrets.token_bytes(32)
        await connection.create_session(secret, "own", 0)
        await connection.add(secret, some(3))
        paths = tower.config.paths
        credentials = grpc.ssl_channel_credentials(paths.tls_cert.read_bytes())
        async with grpc.aio.secure_channel(tower.server.address, credentials) as channel:
            operator: Any = operator_pb2_grpc.OperatorStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="no token"):
                await operator.GetStatus(operator_pb2.GetStatusRequest())
            metadata = (("authorization", f"Bearer {paths.token.read_text().strip()}"),)
            status = await operator.GetStatus(operator_pb2.GetStatusRequest(), metadata=metadata)
            assert (status.sessions, status.appointments, status.blob_bytes) == (1, 3, 3 * 412)
            assert status.synced_to_chain
            sessions = await operator.ListSessions(operator_pb2.ListSessionsRequest(), metadata=metadata)
            assert sessions.sessions[0].session_id == pubkey_of(secret)
            listed = await operator.ListAppointments(
                operator_pb2.ListAppointmentsRequest(limit=2, session_id=pubkey_of(secret)), metadata=metadata
            )
            assert [each.blob_bytes for each in listed.appointments] == [412, 412]
            stream = operator.StreamAlerts(operator_pb2.StreamAlertsRequest(), metadata=metadata)
            await stream.initial_metadata()
            tx = Tx(2, (TxIn(OutPoint(os.urandom(32), 0)),), (TxOut(1_000, b"\x51"),), 0)
            await connection.add(secret, [Appointment(tx.txid()[:16], os.urandom(400))])
            source.mine(tx)
            alert = await stream.read()
            assert (alert.kind, alert.sequence) == ("breach.undecipherable", 1)
            again = operator.StreamAlerts(operator_pb2.StreamAlertsRequest(since_sequence=0), metadata=metadata)
            assert (await again.read()).sequence == 1
        assert tower.metrics is not None
        async with aiohttp.ClientSession() as session, session.get(tower.metrics.url) as response:
            text = await response.text()
        assert "watchtower_appointments 4.0" in text
        assert "watchtower_undecipherable_total 1.0" in text
        async with aiohttp.ClientSession() as session, session.get(tower.metrics.url.replace("metrics", "health")) as r:
            assert r.status == 200
        await connection.close()


def test_token_buckets() -> None:
    bucket = TokenBucket(10, 20, 0.0)
    assert bucket.take(20, 0.0) == 0
    assert bucket.take(5, 0.0) == pytest.approx(0.5)
    assert bucket.take(5, 0.5) == 0
    assert not bucket.is_full(1.0)
    assert bucket.is_full(3.0)
    assert bucket.take(20, 100.0) == 0
    assert bucket.take(5, 10.0) == pytest.approx(0.5), "a clock that is set back takes nothing away"
    assert bucket.take(5, 10.5) == 0
    now = 0.0
    buckets = Buckets(1, 2, lambda: now, most=3)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 1]
    for name in "bcdef":
        assert buckets.take(name) == 0
    assert buckets.take("a") > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reward-permille", "20"], "reward_address"),
        (["--reward-permille", "20", "--reward-address", "nonsense"], "reward_address"),
        (["--reward-permille", "900"], "reward_permille"),
        (["--listen", "here"], "listen"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, arguments: list[str], words: str) -> None:
    def use() -> None:
        config = load_config(["--datadir", str(tmp_path), "--network", "regtest", *arguments])
        _ = config.policy, config.listen_address

    with pytest.raises(ConfigError, match=words):
        use()


async def test_a_database_of_another_kind_or_without_its_key(tmp_path: Path) -> None:
    async with tower_of(tmp_path) as tower:
        paths = tower.config.paths
    paths.identity.rename(tmp_path / "away")

    async def start(**settings: Any) -> None:
        async with tower_of(tmp_path, **settings):
            raise AssertionError("it started")

    with pytest.raises(TowerError, match="put it back"):
        await start()
    (tmp_path / "away").rename(paths.identity)
    with pytest.raises(StorageError, match="regtest, not for signet"):
        await start(network="signet", database=f"sqlite:///{paths.database}")
