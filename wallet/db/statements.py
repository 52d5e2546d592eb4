"""Rows to write, as values: a statement (SQLAlchemy Core, compiled once per connection) and its parameters.

    commit([SAVE_STATE(state, phase, channel_key), SAVE_ADD(channel_key, True, 7, raw)])

The hot path then is one DBAPI `executemany` per statement and transaction, without building SQL again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, cast

from sqlalchemy import BindParameter, ClauseElement, ColumnElement, Table, and_, bindparam, select
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

Parameters = tuple[Any, ...]


class Write(NamedTuple):
    """One row's worth of a transaction."""

    statement: Statement
    parameters: Parameters


class Statement:
    """An insert, update or delete of one table with positional parameters, in the order of `names`.
    `build` makes the construct for a dialect's name."""

    __slots__ = ("build", "names", "table_name", "verb")

    def __init__(self, verb: str, table: Table, build: Callable[[str], ClauseElement], names: Sequence[str]) -> None:
        self.verb = verb
        self.table_name = table.name
        self.build = build
        self.names = tuple(names)

    def __call__(self, *parameters: Any) -> Write:
        assert len(parameters) == len(self.names), f"{self!r} got {len(parameters)} parameters"
        return Write(self, parameters)

    def __repr__(self) -> str:
        return f"<{self.verb} {self.table_name}({', '.join(self.names)})>"


def _bind(name: str) -> BindParameter[Any]:
    return bindparam(f"p_{name}")


def _equals(table: Table, names: Iterable[str]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == _bind(name) for name in names))


def insert(table: Table, *names: str) -> Statement:
    """A new row with all columns, or with those named."""
    columns = names or tuple(column.name for column in table.columns)
    values = {name: _bind(name) for name in columns}
    return Statement("insert", table, lambda _: table.insert().values(values), columns)


def update(table: Table, values: Sequence[str], where: Sequence[str]) -> Statement:
    """New `values` where the columns `where` equal; parameters: values first, then where."""
    bound = {name: _bind(name) for name in values}
    names = (*values, *where)
    return Statement("update", table, lambda _: table.update().where(_equals(table, where)).values(bound), names)


def delete(table: Table, *where: str) -> Statement:
    """Rows where the columns `where` equal."""
    return Statement("delete", table, lambda _: table.delete().where(_equals(table, where)), where)


def delete_below(table: Table, column: str) -> Statement:
    """Rows whose `column` is less than the parameter."""
    return Statement("delete", table, lambda _: table.delete().where(table.c[column] < _bind(column)), (column,))


def lookup(table: Table, columns: Sequence[str], where: Sequence[str]) -> Statement:
    """Reads `columns` of the rows where the columns `where` equal: for `Store.lookup`."""
    wanted = [table.c[name] for name in columns]
    return Statement("select", table, lambda _: select(*wanted).where(_equals(table, where)), where)


def upsert(table: Table, *names: str) -> Statement:
    """A new row, or new values in the row with the same primary key (SQLite and PostgreSQL)."""
    columns = names or tuple(column.name for column in table.columns)
    keys = [column.name for column in table.primary_key]
    values = {name: _bind(name) for name in columns}
    rest = [name for name in columns if name not in keys]

    def build(dialect: str) -> ClauseElement:
        construct: Any = import_module(f"sqlalchemy.dialects.{dialect}").insert(table).values(values)
        if not rest:
            return cast(ClauseElement, construct.on_conflict_do_nothing(index_elements=keys))
        excluded = {name: construct.excluded[name] for name in rest}
        return cast(ClauseElement, construct.on_conflict_do_update(index_elements=keys, set_=excluded))

    return Statement("upsert", table, build, columns)


class Compiled(NamedTuple):
    """A statement's SQL for one dialect. `order` says where each of its placeholders finds its parameter, or is None
    when that is already the order of `names`."""

    sql: str
    order: tuple[int, ...] | None

    def arrange(self, rows: list[Parameters]) -> list[Parameters]:
        """The rows as the placeholders want them."""
        if self.order is None:
            return rows
        return [tuple(row[index] for index in self.order) for row in rows]


def compile_statement(statement: Statement, dialect: Dialect) -> Compiled:
    """Text and parameter order, for dialects with positional placeholders or with `%(name)s` made positional."""
    compiled = statement.build(dialect.name).compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    names = [f"p_{name}" for name in statement.names]
    if compiled.positional:
        assert compiled.positiontup is not None
        order = tuple(names.index(name) for name in compiled.positiontup)
        sql = str(compiled)
    else:
        sql = str(compiled)
        found = sorted((sql.index(f"%({name})s"), index) for index, name in enumerate(names))
        order = tuple(index for _, index in found)
        for name in names:
            sql = sql.replace(f"%({name})s", "%s")
    return Compiled(sql, None if order == tuple(range(len(names))) else order)


def group(jobs: Iterable[Iterable[Write]]) -> list[tuple[Statement, list[Parameters]]]:
    """All writes in order, those of one statement together. The order is kept within each table; between tables it may
    change, which is why foreign keys are deferred."""
    groups: list[tuple[Statement, list[Parameters]]] = []
    last_of_table: dict[str, tuple[Statement, list[Parameters]]] = {}
    for writes in jobs:
        for statement, parameters in writes:
            last = last_of_table.get(statement.table_name)
            if last is not None and last[0] is statement:
                last[1].append(parameters)
            else:
                fresh = (statement, [parameters])
                groups.append(fresh)
                last_of_table[statement.table_name] = fresh
    return groups
