"""The database: one writer with group commit, one reader thread.

All jobs that wait when a transaction starts share it: that is where throughput comes from. The writer is a thread;
where the event loop has nothing to do but to wait for it, and the disk is quick, the loop commits by itself (`Pace`). A
transaction that fails is fatal: memory would be ahead of the disk, so nothing is written any more, `on_failure` is told
and the node stops.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from wallet.db.pace import Pace
from wallet.db.statements import Compiled, Statement, Write, compile_statement, group

T = TypeVar("T")
_SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000", "temp_store=MEMORY")
_CLAIM_KEY = 0x6368616E6E656C64
"""Of the advisory lock: there is one writer to a database."""
_KEEPALIVES = ("tcp_keepalives_idle = 10", "tcp_keepalives_interval = 5", "tcp_keepalives_count = 3")
"""So that the server lets go of the lock when the machine that held it is gone."""


class StorageError(Exception):
    """The database cannot be used; the message is a sentence for the operator."""


class StoreFailed(StorageError):
    """A transaction failed; from then on nothing is written."""


class CommitHook(Protocol):
    """What tests put around commits: called in the thread that commits, right before and right after each one."""

    def before(self) -> None: ...
    def after(self) -> None: ...


class StoreFigures(NamedTuple):
    """Since the start: transactions, and the jobs that were committed in them."""

    transactions: int = 0
    jobs: int = 0


class _Job(NamedTuple):
    writes: Sequence[Write]
    done: Callable[[StoreFailed | None], None]


def make_engine(url: str) -> Engine:
    """An engine whose SQLite connections are durable (WAL, synchronous=FULL) and begin when SQLAlchemy begins.
    `postgresql://` means the driver psycopg. Raises StorageError for a URL that cannot be used."""
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "postgresql":
            # Whatever the server's default is: a commit that may be lost in a crash is none.
            options = " ".join((*parsed.normalized_query.get("options", ()), "-c synchronous_commit=on"))
            parsed = parsed.update_query_dict({"options": options})
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise StorageError(
                f"{parsed.get_backend_name()} is no database that is known here: give a URL such as "
                "sqlite:////path/to/file or postgresql://user:password@host/name"
            )
        # The writer's connection is used by two threads, by one at a time.
        shared = {"check_same_thread": False} if parsed.get_backend_name() == "sqlite" else {}
        engine = create_engine(parsed, poolclass=NullPool, connect_args=shared)
    except (ArgumentError, NoSuchModuleError) as error:
        raise StorageError(
            f"the database's URL cannot be used ({error}): it looks like postgresql://user:password@host/name"
        ) from error
    except ModuleNotFoundError as error:
        raise StorageError(
            f"PostgreSQL needs the Python package {error.name}: pip install 'channeld[postgres]'"
        ) from error
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            connection.isolation_level = None
            for pragma in _SQLITE_PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    return engine


class _Claim:
    """That nobody else writes to a PostgreSQL database: a lock that its server holds as long as the connection lives.
    (For SQLite the lock on the data directory does that.) Raises StorageError."""

    def __init__(self, engine: Engine) -> None:
        self._connection = None
        if engine.dialect.name != "postgresql":
            return
        try:
            connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        except SQLAlchemyError as error:
            raise StorageError(f"the database cannot be opened: {error}") from error
        for setting in _KEEPALIVES:
            connection.execute(text(f"SET {setting}"))
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _CLAIM_KEY}).scalar():
            connection.close()
            raise StorageError(
                f"the database {engine.url.render_as_string(hide_password=True)} is in use by another process: "
                "two at once would lose money"
            )
        self._connection = connection

    def release(self) -> None:
        """Others may use the database."""
        if self._connection is not None:
            self._connection.close()


class Store:
    """An open database. Use from the event loop's thread, except `read_now` (at start). Raises StorageError if it
    cannot be opened, or another process has it."""

    def __init__(
        self,
        engine: Engine,
        on_failure: Callable[[BaseException], None],
        commit_hook: CommitHook | None = None,
    ) -> None:
        self._engine = engine
        self._on_failure = on_failure
        self._hook = commit_hook
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._finder: _Connection | None = None
        self._claim = _Claim(engine)
        self._writer = _Connection(engine)
        self._may_share = engine.dialect.name == "sqlite"
        """Whether the loop may commit: never over a network."""
        self._pace = Pace()
        self._unheard = 0
        """Jobs that were submitted and whose `done` was not called yet."""
        self.figures = StoreFigures()
        self._thread = threading.Thread(target=self._write_forever, name="writer", daemon=True)
        self._thread.start()

    def submit(self, writes: Sequence[Write], done: Callable[[StoreFailed | None], None]) -> None:
        """Commit `writes` (an empty sequence too) as one; then, in the loop, `done(None)`, or `done(StoreFailed)`. Jobs
        are committed, and their `done` called, in the order of submission."""
        alone = self._unheard == 0  # else the writer has the connection, and what comes now may share a transaction
        self._unheard += 1
        job = _Job(writes, done)
        if alone and self._may_share and self._pace.is_for_the_loop():
            self._commit([job], self._loop.call_soon)
        else:
            self._jobs.put(job)

    def commit_nowait(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """Like `submit`, with a future."""
        future: asyncio.Future[None] = self._loop.create_future()

        def done(error: StoreFailed | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.submit(writes, done)
        return future

    async def commit(self, writes: Sequence[Write]) -> None:
        """Returns when `writes` are durable. Raises StoreFailed. Cancelling the wait does not undo the commit."""
        await self.commit_nowait(writes)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """`query` in the reader thread, on what is committed."""
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        return await self._loop.run_in_executor(self._reader, self.read_now, query)

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """`query` in this thread."""
        with self._engine.connect() as connection:
            return query(connection)

    def lookup(self, statement: Statement, *parameters: Any) -> list[tuple[Any, ...]]:
        """A few rows by key, here and now: what a call on the hot path must know. About 20 us."""
        if self._finder is None:
            self._finder = _Connection(self._engine)
        return self._finder.rows(statement, parameters)

    async def close(self) -> None:
        """Commit what waits, then close."""
        self._may_share = False
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        if self._reader is not None:
            self._reader.shutdown()
        if self._finder is not None:
            self._finder.close()
        self._claim.release()
        self._engine.dispose()

    # --- the writer --------------------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        closing = False
        while not closing:
            jobs: list[_Job] = []
            job = self._jobs.get()
            while True:
                if job is None:
                    closing = True
                    break
                jobs.append(job)
                if self._jobs.empty():
                    break
                job = self._jobs.get()
            if jobs:
                self._commit(jobs, self._call)
        self._writer.close()

    def _commit(self, jobs: Sequence[_Job], call: Callable[..., object]) -> None:
        """In one transaction. What follows is `call`ed in the loop."""
        seconds = 0.0
        if self._failure is None:
            try:
                groups = group(job.writes for job in jobs)
                if groups:
                    began = perf_counter()
                    self._writer.transaction(groups, self._hook)
                    seconds = perf_counter() - began
                    self.figures = StoreFigures(self.figures.transactions + 1, self.figures.jobs + len(jobs))
            except BaseException as error:
                self._failure = error
                call(self._on_failure, error)
        call(self._finish, jobs, self._failure, seconds)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            assert self._loop.is_closed()  # nobody is left to be told

    def _finish(self, jobs: Sequence[_Job], failure: BaseException | None, seconds: float) -> None:
        self._unheard -= len(jobs)
        if seconds:
            self._pace.took(seconds)
        for job in jobs:
            job.done(None if failure is None else StoreFailed(f"the database could not be written: {failure}"))


class _Connection:
    """A raw DBAPI connection, for one thread at a time, with statements compiled once."""

    def __init__(self, engine: Engine) -> None:
        self._dialect = engine.dialect
        self._pooled = engine.raw_connection()
        self._cursor = self._pooled.cursor()
        self._begins_itself = engine.dialect.name != "sqlite"
        self._compiled: dict[Statement, Compiled] = {}

    def _compile(self, statement: Statement) -> Compiled:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = compile_statement(statement, self._dialect)
        return compiled

    def rows(self, statement: Statement, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """What a `lookup` finds; the transaction that some databases begin for it ends here."""
        compiled = self._compile(statement)
        self._cursor.execute(compiled.sql, compiled.arrange([parameters])[0])
        found = [tuple(row) for row in self._cursor.fetchall()]
        if self._begins_itself:
            self._pooled.rollback()
        return found

    def transaction(self, groups: list[tuple[Statement, list[tuple[Any, ...]]]], hook: CommitHook | None) -> None:
        """All or nothing. Raises whatever the driver raises, after rolling back."""
        cursor = self._cursor
        if not self._begins_itself:
            cursor.execute("BEGIN IMMEDIATE")
        try:
            for statement, rows in groups:
                compiled = self._compile(statement)
                if len(rows) == 1:
                    cursor.execute(compiled.sql, compiled.arrange(rows)[0])
                else:
                    cursor.executemany(compiled.sql, compiled.arrange(rows))
            if hook is not None:
                hook.before()
            self._pooled.commit()
        except BaseException:
            self._pooled.rollback()
            raise
        if hook is not None:
            hook.after()

    def close(self) -> None:
        self._cursor.close()
        self._pooled.close()
