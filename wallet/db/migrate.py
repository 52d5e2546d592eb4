"""Bringing a database to a program's schema, before anything else reads it.

A new database gets the declared tables at once and is stamped with the newest revision, as alembic's documentation
advises; tests hold them equal to what the migrations make. alembic itself is only imported when there is something to
migrate: it costs a quarter of a second and ten megabytes.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Column, Engine, MetaData, String, Table, inspect, text

from wallet.db.copies import copy_database
from wallet.db.store import StorageError


class NewerDatabase(StorageError):
    """The database was written by a later version."""


class Schema(NamedTuple):
    """What a program's database has to be: `head` is the newest revision in `scripts`/versions. Each program's revision
    is in a table of its own name, so that one cannot take another's database for its own."""

    program: str
    tables: tuple[MetaData, ...]
    head: str
    scripts: Path
    version_table: str = "alembic_version"


def current_revision(engine: Engine, schema: Schema) -> str | None:
    """The database's revision, or None if it is empty. Raises StorageError if it is no database of the program's."""
    try:
        with engine.connect() as connection:
            present = inspect(connection).get_table_names()
            if schema.version_table in present:
                revision = connection.execute(text(f"SELECT version_num FROM {schema.version_table}")).scalar()
                return str(revision) if revision is not None else None
    except Exception as error:
        raise StorageError(f"the database {name_of(engine)} cannot be opened: {in_words(error)}") from error
    if present:
        raise StorageError(
            f"{name_of(engine)} is no database of {schema.program}: it has other tables. Give {schema.program} an "
            "empty database of its own"
        )
    return None


def upgrade(engine: Engine, schema: Schema) -> None:
    """Migrate to the head if needed, with a copy of the old SQLite file kept beside it.

    Raises NewerDatabase, StorageError. Each migration is one transaction.
    """
    revision = current_revision(engine, schema)
    if revision == schema.head:
        return
    if revision is None:
        _create(engine, schema)
        return
    if not any(path.name.startswith(f"{revision}_") for path in (schema.scripts / "versions").glob("*.py")):
        raise NewerDatabase(
            f"the database {name_of(engine)} is at version {revision}, newer than this {schema.program} knows "
            f"({schema.head}): start it with the newer {schema.program}"
        )
    _back_up(engine, revision)
    run_migrations(engine, schema)


def _create(engine: Engine, schema: Schema) -> None:
    stamp = Table(schema.version_table, MetaData(), Column("version_num", String(32), primary_key=True))
    try:
        with engine.begin() as connection:
            for metadata in (*schema.tables, stamp.metadata):
                metadata.create_all(connection)
            connection.execute(stamp.insert().values(version_num=schema.head))
    except Exception as error:
        raise StorageError(f"the tables of {name_of(engine)} cannot be made: {error}") from error


def run_migrations(engine: Engine, schema: Schema, revision: str = "head") -> None:
    """The migrations up to `revision` that the database lacks, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(schema.scripts).replace("%", "%%"))
    config.attributes["schema"] = schema
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def run_environment() -> None:
    """What a folder of migrations has to call in its `env.py`: alembic's entry point."""
    from alembic import context

    schema: Schema = context.config.attributes["schema"]
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=list(schema.tables),
        version_table=schema.version_table,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _back_up(engine: Engine, revision: str) -> None:
    """Copies `x.sqlite3` to `x.sqlite3.version-<revision>` (SQLite only; others have their own tools)."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    source_path = Path(engine.url.database)
    target_path = source_path.with_name(f"{source_path.name}.version-{revision}")
    try:
        copy_database(source_path, target_path)
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"no copy of {source_path} can be made before it is migrated: {error}") from error


def in_words(error: Exception) -> str:
    """What the database itself said, on one line, without SQLAlchemy's frame around it."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def name_of(engine: Engine) -> str:
    """The database's URL without the password, for sentences."""
    return engine.url.render_as_string(hide_password=True)
