"""A real PostgreSQL server: the writer, both programs' tables and migrations, a tower, and daemons that pay."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, inspect, select, text

from channeld.lab import Lab
from channeld.storage import migrate as node_migrate
from channeld.storage import tables as node_tables
from tests.postgres import Server, find_binaries, running_server
from tests.tower_support import Layer1, revoked, running_tower, states, tower_config, until_searched
from tests.unit import test_tower_intake as intake
from tests.unit.test_tower_client import CHANNELS, Node, quick, revoke, settled, uploaders
from wallet.db import StorageError, Store, StoreFailed, make_engine, migrate, statements
from watchtower.appointment import Terms, make_appointment
from watchtower.client.connection import TowerUri
from watchtower.client.pace import Pace
from watchtower.client.towers import Towers
from watchtower.tower import tables as tower_tables

BINARIES = find_binaries()
pytestmark = pytest.mark.skipif(BINARIES is None, reason="there is no PostgreSQL server (initdb, pg_ctl) here")
SET_META = statements.upsert(node_tables.meta)
INSERT_META = statements.insert(node_tables.meta)
FIND_META = statements.lookup(node_tables.meta, ["value"], ["key"])
INSERT_CHANNEL = statements.insert(node_tables.channels)
INSERT_ADD = statements.insert(node_tables.adds)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    assert BINARIES is not None
    with running_server(BINARIES) as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    return server.new_database()


async def test_the_writer_groups_keeps_order_and_stops_at_the_first_failure(url: str) -> None:
    engine = make_engine(url)
    node_migrate.upgrade(engine)
    failures: list[BaseException] = []
    store = Store(engine, failures.append)
    channel = INSERT_CHANNEL(1, b"\x01" * 32, bytes(33), "normal", False, b"state", 0)
    await asyncio.gather(
        *(store.commit([SET_META("n", bytes((number,))), SET_META("100%", b"%s")]) for number in range(50)),
        # What a row refers to may come later in the same transaction.
        store.commit([INSERT_ADD(1, True, 0, b"x"), channel]),
    )
    assert store.lookup(FIND_META, "n") == [(bytes((49,)),)]
    assert await store.read(_meta) == {"n": bytes((49,)), "100%": b"%s"}
    with pytest.raises(StoreFailed, match="foreign key"):
        await store.commit([INSERT_ADD(7, True, 0, b"x")])
    with pytest.raises(StoreFailed):
        await store.commit([INSERT_META("later", b"1")])
    assert len(failures) == 1
    await store.close()
    again = Store(make_engine(url), failures.append)
    assert (again.lookup(FIND_META, "n"), again.lookup(FIND_META, "later")) == ([(bytes((49,)),)], [])
    await again.close()


def _meta(connection: Connection) -> dict[str, bytes]:
    return {row.key: row.value for row in connection.execute(select(node_tables.meta))}


async def test_a_commit_is_on_disk_though_the_servers_default_is_another(url: str) -> None:
    with make_engine(url).begin() as connection:
        connection.execute(text("ALTER ROLE channeld SET synchronous_commit = off"))
    try:
        for each in (url, f"{url}&options=-c%20statement_timeout%3D5000"):
            store = Store(make_engine(each), lambda error: None)
            assert await store.read(lambda c: c.execute(text("SHOW synchronous_commit")).scalar()) == "on"
            await store.close()
        assert "statement_timeout" in make_engine(each).url.query["options"]
    finally:
        with make_engine(url).begin() as connection:
            connection.execute(text("ALTER ROLE channeld RESET synchronous_commit"))


async def test_two_processes_cannot_have_one_database(url: str) -> None:
    first = Store(make_engine(url), lambda error: None)
    with pytest.raises(StorageError, match="in use by another process"):
        Store(make_engine(url), lambda error: None)
    await first.close()
    await Store(make_engine(url), lambda error: None).close()


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        node_migrate.upgrade(make_engine(f"postgresql://channeld@/x?host={tmp_path}"))


@pytest.mark.parametrize("schema", [node_migrate.SCHEMA, tower_tables.SCHEMA], ids=["channeld", "watchtowerd"])
def test_the_migrations_make_the_tables_that_are_declared(server: Server, schema: migrate.Schema) -> None:
    created, migrated = make_engine(server.new_database()), make_engine(server.new_database())
    migrate.upgrade(created, schema)
    migrate.run_migrations(migrated, schema)
    assert _columns(created, schema) == _columns(migrated, schema)
    assert migrate.current_revision(created, schema) == migrate.current_revision(migrated, schema) == schema.head
    other = tower_tables.SCHEMA if schema is node_migrate.SCHEMA else node_migrate.SCHEMA
    with pytest.raises(StorageError, match=f"no database of {other.program}"):
        migrate.upgrade(created, other)


def _columns(engine: Engine, schema: migrate.Schema) -> dict[str, list[tuple[str, str, bool]]]:
    inspector = inspect(engine)
    names = [table for found in schema.tables for table in found.tables]
    return {
        name: [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)]
        for name in names
    }


async def test_a_tower_confirms_and_remembers(url: str, tmp_path: Path) -> None:
    secret, batch = secrets.token_bytes(32), intake.some(100)
    async with intake.tower_of(tmp_path, database=url) as tower:
        connection = intake.connect(tower)
        await connection.create_session(secret, "own", 0)
        first = await connection.add(secret, batch)
        assert await connection.add(secret, batch) == first
        await connection.close()
    async with intake.tower_of(tmp_path, database=url) as tower:
        connection = intake.connect(tower)
        assert (await connection.get_appointment(secret, batch[7].locator)).appointment.blob == batch[7].blob
        assert await connection.add(secret, batch) == first
        assert await connection.delete_session(secret) == 100
        async with asyncio.timeout(60):
            await tower.sessions.wait_removed()
        assert tower.sessions.total_appointments == 0
        await connection.close()


async def test_a_tower_punishes_and_goes_on_after_a_restart(url: str, tmp_path: Path) -> None:
    async with Layer1(tmp_path / "layer1").running() as layer1:
        cheat = revoked("a", await layer1.fund(1_000_000), 1_000_000, htlcs_sat=(60_000, 80_000))
        secret = secrets.token_bytes(32)
        config = tower_config(tmp_path / "tower", database=url)
        async with running_tower(config, layer1.source()) as tower:
            connection = intake.connect(tower)
            await connection.create_session(secret, "blind", 0)
            await connection.add(secret, [make_appointment(cheat.kit, Terms("blind"))])
            await connection.close()
            await layer1.mine_only(cheat.tx)
            await until_searched(tower, await layer1.height())
            assert len(await layer1.mempool()) == 1
        async with running_tower(config, layer1.source()) as tower:
            await layer1.mine()
            await until_searched(tower, await layer1.height())
            assert states(tower) == ["saved"] * 4
        assert await layer1.received(cheat.kit.sweep_script) > 600_000


async def test_the_client_half_in_a_daemons_database(url: str, tmp_path: Path) -> None:
    node = Node()
    engine = make_engine(url)
    node_migrate.upgrade(engine)
    async with intake.tower_of(tmp_path) as tower:
        for revocations, sent in ((5, 4), (2, 6)):
            store = Store(make_engine(url), lambda error: None)
            towers = await Towers.open(store, node, b"\x05" * 32)
            towers.pace = Pace(busy_share=1.0, quiet_share=1.0)
            towers.start()
            if not towers.all:
                await towers.add(TowerUri(tower.tower_id, tower.server.address), "own")
            for uploader in uploaders(towers):
                quick(uploader)
            revoke(towers, node, CHANNELS[0], revocations)
            await settled(towers)
            assert tower.sessions.total_appointments == sent
            await towers.close()
            await store.close()


async def test_daemons_pay_crash_and_pay_again(server: Server, tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice = lab.add_daemon("alice", "--database", server.new_database())
        bob = lab.add_daemon("bob", "--database", server.new_database())
        await asyncio.gather(alice.start(), bob.start())
        await lab.wait_synced()
        await lab.fund(alice, 1_000_000)
        await lab.open_channel(alice, bob, 500_000)
        await alice.pay((await bob.invoice(20_000_000)).bolt11)
        await alice.kill()
        await alice.start()
        (channel,) = await alice.channels()
        await asyncio.gather(alice.wait_channel(channel.channel_id), bob.wait_channel(channel.channel_id))
        await alice.pay((await bob.invoice(30_000_000)).bolt11)
        (channel,) = await bob.channels()
        assert channel.local_msat == 50_000_000
