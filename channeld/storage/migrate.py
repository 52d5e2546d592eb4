"""Bringing a database to this version's schema, before anything else reads it.

A new database gets the declared tables at once and is stamped with HEAD, as alembic's documentation advises; a test
holds them equal to what the migrations make. alembic itself is only imported when there is something to migrate: it
costs a quarter of a second and ten megabytes.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Column, Engine, MetaData, String, Table, inspect, text

from channeld.storage import tables
from channeld.storage.store import StorageError
from wallet import store as wallet_store
from watchtower.client import tables as tower_tables

HEAD = "0004"
"""The newest revision under `migrations/versions` (a test compares)."""
_SCRIPTS = Path(__file__).parent / "migrations"


class NewerDatabase(StorageError):
    """The database was written by a later version."""


def current_revision(engine: Engine) -> str | None:
    """The database's revision, or None if it is new. Raises StorageError if it is no database of ours."""
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except Exception as error:
        raise StorageError(f"the database {_name(engine)} cannot be opened: {error}") from error
    return str(revision) if revision is not None else None


def upgrade(engine: Engine) -> None:
    """Migrate to HEAD if needed, with a copy of the old SQLite file kept beside it.

    Raises NewerDatabase, StorageError. Each migration is one transaction.
    """
    revision = current_revision(engine)
    if revision == HEAD:
        return
    if revision is None:
        _create(engine)
        return
    if not _is_known(revision):
        raise NewerDatabase(
            f"the database {_name(engine)} is at version {revision}, newer than this channeld knows ({HEAD}): "
            "start it with the newer channeld"
        )
    _back_up(engine, revision)
    run_migrations(engine)


def _create(engine: Engine) -> None:
    stamp = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
    with engine.begin() as connection:
        for metadata in (tables.metadata, wallet_store.metadata, tower_tables.metadata, stamp.metadata):
            metadata.create_all(connection)
        connection.execute(stamp.insert().values(version_num=HEAD))


def run_migrations(engine: Engine, revision: str = "head") -> None:
    """The migrations up to `revision` that the database lacks, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _is_known(revision: str) -> bool:
    return any(path.name.startswith(f"{revision}_") for path in (_SCRIPTS / "versions").glob("*.py"))


def _back_up(engine: Engine, revision: str) -> None:
    """Copies `x.sqlite3` to `x.sqlite3.before-<head>` (SQLite only; others have their own tools)."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    source_path = Path(engine.url.database)
    target_path = source_path.with_name(f"{source_path.name}.version-{revision}")
    target_path.unlink(missing_ok=True)
    with sqlite3.connect(source_path) as source, sqlite3.connect(target_path) as target:
        source.backup(target)
    source.close()
    target.close()


def _name(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)
