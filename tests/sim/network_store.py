"""Databases in memory that outlive their nodes, and the store's one writer without its thread: each transaction takes
some virtual time, and a node may be killed right before or right after it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Literal, TypeVar, cast

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from channeld.storage import Store, StoreFailed, Write, make_engine, upgrade
from tests.sim.network_loop import Life, Luck
from wallet.db.statements import compile_statement, group
from wallet.db.store import _Connection, _Job

When = Literal["before", "after"]
T = TypeVar("T")
_numbers = iter(range(1 << 62))


@lru_cache
def _empty(make_tables: Callable[[Engine], None]) -> sqlite3.Connection:
    """An empty database of the present version."""
    name = f"file:sim-template-{next(_numbers)}?mode=memory&cache=shared"
    connection = sqlite3.connect(name, uri=True)
    engine = make_engine(f"sqlite:///{name}&uri=true")
    make_tables(engine)
    engine.dispose()
    return connection


@lru_cache
def _base() -> Engine:
    engine = create_engine("sqlite://")
    engine.connect().close()
    return engine


class Database:
    """A node's or a tower's disk, a copy of `image` or with empty tables. It is there as long as this object is."""

    def __init__(self, image: Database | None = None, make_tables: Callable[[Engine], None] = upgrade) -> None:
        self.name = f"file:sim-{next(_numbers)}?mode=memory&cache=shared"
        self._keeper = sqlite3.connect(self.name, uri=True, isolation_level=None)
        (_empty(make_tables) if image is None else image._keeper).backup(self._keeper)
        self.engine = self._make_engine()
        self.version = 0
        """Counts the transactions."""
        self._reading: Connection | None = None

    def _make_engine(self) -> Engine:
        """Engines share a dialect, and so what SQLAlchemy compiled."""
        base = _base()
        engine = Engine(NullPool(cast(Any, self._connect), dialect=base.dialect), base.dialect, base.url)
        engine._compiled_cache = base._compiled_cache
        return engine

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.name, uri=True, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What is durable."""
        return self._keeper.execute(query, parameters).fetchall()

    def reading(self) -> Connection:
        """A connection for queries of whichever life: opening one for each would take longer than most queries."""
        if self._reading is None:
            self._reading = self.engine.connect()
        return self._reading

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()
        self._keeper.close()


@cache
def _compile(statement: Any, dialect: str) -> Any:
    from sqlalchemy.dialects import sqlite

    assert dialect == "sqlite"
    return compile_statement(statement, sqlite.dialect(paramstyle="qmark"))


def _tell(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.done(None)


class SimStore(Store):
    """The store of one life. `on_crash` is told that this life ends here."""

    def __init__(self, database: Database, life: Life, luck: Luck, on_crash: Callable[[], None]) -> None:
        self._engine = database.engine
        self._database = database
        self._life = life
        self._luck = luck
        self._on_crash = on_crash
        self._loop = asyncio.get_running_loop()
        self._reader = None
        self._finder = None
        self._waiting: list[_Job] = []
        self._busy = False
        self._crash: tuple[int, When] | None = None
        self._writer = _Connection(database.engine)
        self.commits = 0

    @property
    def is_idle(self) -> bool:
        """Nothing waits to become durable."""
        return not self._busy

    def crash_at(self, commits: int, when: When) -> None:
        """The process dies at the n-th commit from here on."""
        self._crash = (commits, when)

    def disarm(self) -> None:
        """It does not."""
        self._crash = None

    def submit(self, writes: Sequence[Write], done: Callable[[StoreFailed | None], None]) -> None:
        if not self._life.alive:
            return
        self._waiting.append(_Job(writes, done))
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        delay = self._luck.dice.choice((0.0, 0.0005, 0.0005, 0.003, 0.02))
        self._loop.call_later(delay, self._write, context=self._life.context)

    def _write(self) -> None:
        jobs, self._waiting = self._waiting, []
        has_rows = any(True for job in jobs for _ in job.writes)
        if has_rows and self._dies("before"):
            return
        if has_rows:
            self._writer.transaction(group(job.writes for job in jobs), None)
            self._database.version += 1
        self._loop.call_soon(_tell, jobs, context=self._life.context)
        if has_rows:
            self.commits += 1
            if self._dies("after"):
                return
        self._busy = False
        if self._waiting:
            self._begin()

    def _dies(self, when: When) -> bool:
        if self._crash is None or self._crash[1] != when:
            return False
        left = self._crash[0] - 1
        self._crash = (left, when)
        if left == 0:
            self._on_crash()
        return left == 0

    def read_now(self, query: Callable[[Connection], T]) -> T:
        connection = self._database.reading()
        try:
            return query(connection)
        finally:
            connection.rollback()

    async def close(self) -> None:
        """Commit what waits, then close."""
        while self._busy:
            await self.commit([])
        self.release()

    def release(self) -> None:
        """Let go of the connections."""
        self._writer.close()
        if self._finder is not None:
            self._finder.close()


def use_cached_statements() -> Callable[[], None]:
    """Statements are compiled once in the process, not once a life; returns what undoes that."""
    module: Any = import_module("wallet.db.store")
    original, module.compile_statement = module.compile_statement, lambda found, dialect: _compile(found, dialect.name)

    def undo() -> None:
        module.compile_statement = original

    return undo
