"""The store: durable, grouped, in order, and stopped by the first failure."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.dialects import postgresql

from channeld.storage import migrate, tables
from channeld.storage.store import StorageError, Store, StoreFailed, make_engine
from wallet import store as wallet_store
from wallet.db import statements
from wallet.db.pace import Pace
from watchtower.client import tables as tower_tables

SET_META = statements.upsert(tables.meta)
INSERT_META = statements.insert(tables.meta)
DELETE_META = statements.delete(tables.meta, "key")
INSERT_CHANNEL = statements.insert(tables.channels)
INSERT_ADD = statements.insert(tables.adds)
UPDATE_STATE = statements.update(tables.channels, ["phase", "state"], ["channel_key"])


class CountingHook:
    def __init__(self) -> None:
        self.threads: list[str] = []

    @property
    def commits(self) -> int:
        return len(self.threads)

    def before(self) -> None:
        self.threads.append(threading.current_thread().name)

    def after(self) -> None:
        pass


class FixedPace(Pace):
    """Commits whenever possible in the same thread."""

    def __init__(self, in_the_loop: bool) -> None:
        super().__init__()
        self.in_the_loop = in_the_loop

    def is_for_the_loop(self) -> bool:
        return self.in_the_loop


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = make_engine(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    migrate.upgrade(engine)
    return engine


@pytest.fixture
async def failures() -> list[BaseException]:
    return []


@pytest.fixture
def hook() -> CountingHook:
    return CountingHook()


@pytest.fixture(params=["thread", "loop"])
async def store(
    request: pytest.FixtureRequest, engine: Engine, failures: list[BaseException], hook: CountingHook
) -> AsyncIterator[Store]:
    store = Store(engine, failures.append, hook)
    store._pace = FixedPace(request.param == "loop")
    yield store
    await store.close()


def channel(key: int) -> statements.Write:
    return INSERT_CHANNEL(key, bytes([key]) * 32, bytes(33), "normal", False, b"state", 0)


def _note(order: list[int], number: int, error: BaseException | None) -> None:
    assert error is None
    order.append(number)


async def values(store: Store) -> dict[str, bytes]:
    return await store.read(lambda c: {row.key: row.value for row in c.execute(select(tables.meta))})


async def test_waiting_jobs_share_a_transaction_and_keep_their_order(store: Store, hook: CountingHook) -> None:
    order: list[int] = []
    for number in range(100):
        store.submit([SET_META("n", bytes([number]))], partial(_note, order, number))
    await store.commit([])
    assert order == list(range(100))
    assert await values(store) == {"n": bytes([99])}
    assert hook.commits < 50


async def test_the_loop_commits_only_while_nothing_else_is_under_way(store: Store, hook: CountingHook) -> None:
    """Everybody who comes in the same turn of the event loop shares the writer's next transaction."""
    in_the_loop = store._pace.is_for_the_loop()
    order: list[int] = []
    for number in range(50):
        store.submit([SET_META("n", bytes([number]))], partial(_note, order, number))
        assert not order  # never before `submit` has returned
    await store.commit([])
    assert order == list(range(50))
    assert hook.threads.count("MainThread") == in_the_loop
    await store.commit([SET_META("n", b"last")])
    assert hook.threads[-1] == ("MainThread" if in_the_loop else "writer")
    assert await values(store) == {"n": b"last"}


@pytest.mark.parametrize(
    ("commit_seconds", "cpu_share", "expected"),
    [(0.0005, 0.3, True), (0.0005, 0.9, False), (0.004, 0.3, False), (0.0015, 0.6, True)],
)
def test_the_loop_commits_on_a_quick_disk_while_it_is_idle(
    commit_seconds: float, cpu_share: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("wallet.db.pace.perf_counter", lambda: now[0])
    monkeypatch.setattr("wallet.db.pace.thread_time", lambda: now[0] * cpu_share)
    pace = Pace()
    answers = []
    for _ in range(60):
        answers.append(pace.is_for_the_loop())
        pace.took(commit_seconds)
        now[0] += 0.005
    assert not any(answers[:8])  # a disk is slow until it has shown otherwise
    assert answers[-1] is expected
    pace.took(0.1)
    assert not pace.is_for_the_loop()


async def test_order_is_kept_within_a_table(store: Store) -> None:
    await asyncio.gather(
        store.commit([INSERT_META("a", b"1"), INSERT_META("b", b"1")]),
        store.commit([DELETE_META("a"), INSERT_META("a", b"2")]),
        store.commit([DELETE_META("b")]),
    )
    assert await values(store) == {"a": b"2"}


async def test_a_row_may_come_before_what_it_refers_to(store: Store) -> None:
    await asyncio.gather(
        store.commit([channel(1), INSERT_ADD(1, True, 0, b"x")]),
        store.commit([channel(2), INSERT_ADD(2, True, 0, b"y"), UPDATE_STATE("closing", b"new", 2)]),
    )
    rows = await store.read(lambda c: list(c.execute(select(tables.channels.c.channel_key, tables.channels.c.phase))))
    assert [tuple(row) for row in rows] == [(1, "normal"), (2, "closing")]


async def test_a_failed_transaction_stops_everything(store: Store, failures: list[BaseException]) -> None:
    await store.commit([INSERT_META("a", b"1")])
    with pytest.raises(StoreFailed):
        await store.commit([INSERT_META("b", b"1"), INSERT_META("a", b"2")])
    with pytest.raises(StoreFailed):
        await store.commit([INSERT_META("c", b"3")])
    assert len(failures) == 1
    assert isinstance(failures[0], sqlite3.IntegrityError)
    assert await values(store) == {"a": b"1"}


async def test_a_dangling_reference_is_refused(store: Store) -> None:
    with pytest.raises(StoreFailed, match="FOREIGN KEY"):
        await store.commit([INSERT_ADD(7, True, 0, b"x")])


async def test_sqlite_is_durable(engine: Engine, store: Store) -> None:
    def pragmas(connection: object) -> tuple[object, ...]:
        return tuple(
            connection.execute(text(f"PRAGMA {name}")).scalar()  # type: ignore[attr-defined]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        )

    assert await store.read(pragmas) == ("wal", 2, 1)


def test_the_migrations_make_the_tables_that_are_declared(engine: Engine, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    migrated = make_engine(f"sqlite:///{tmp_path / 'migrated.sqlite3'}")
    migrate.run_migrations(migrated)
    assert _schema(migrated) == _schema(engine)
    assert migrate.current_revision(migrated) == migrate.current_revision(engine) == migrate.HEAD
    with engine.connect() as connection:
        declared = [tables.metadata, wallet_store.metadata, tower_tables.metadata]
        assert compare_metadata(MigrationContext.configure(connection), declared) == []  # type: ignore[arg-type]


def _schema(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE name <> 'alembic_version'"))
        return {row.name: " ".join(row.sql.split()) for row in rows if row.sql}


def test_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == migrate.HEAD


def test_an_older_database_is_copied_and_migrated(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite3"
    old = make_engine(f"sqlite:///{path}")
    migrate.run_migrations(old, "0001")
    with old.begin() as connection:
        connection.execute(tables.meta.insert().values(key="network", value=b"regtest"))
    migrate.upgrade(old)
    assert _schema(old) == _schema(engine)
    copy = make_engine(f"sqlite:///{path}.version-0001")
    assert migrate.current_revision(copy) == "0001"
    for each in (old, copy):
        with each.connect() as connection:
            assert connection.execute(select(tables.meta.c.value)).scalar() == b"regtest"


def test_a_newer_database_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migrate.NewerDatabase, match="version 9999, newer than this channeld knows"):
        migrate.upgrade(engine)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match="cannot be opened"):
        migrate.upgrade(make_engine(f"sqlite:///{path}"))


def test_every_statement_compiles_for_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    compiled = statements.compile_statement(UPDATE_STATE, dialect)
    assert compiled.sql == "UPDATE channels SET phase=%s::VARCHAR, state=%s WHERE channels.channel_key = %s::BIGINT"
    assert "ON CONFLICT (key) DO UPDATE" in statements.compile_statement(SET_META, dialect).sql
