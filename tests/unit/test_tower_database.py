"""The tower's database: what its migrations make, and whose it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from channeld.storage import migrate as node_migrate
from wallet.db import StorageError, make_engine, migrate
from watchtower.tower import tables


def engine_in(path: Path, name: str = "tower") -> Engine:
    return make_engine(f"sqlite:///{path / name}.sqlite")


def test_the_migrations_make_the_tables_that_are_declared(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    migrated = engine_in(tmp_path)
    migrate.run_migrations(migrated, tables.SCHEMA)
    assert migrate.current_revision(migrated, tables.SCHEMA) == tables.HEAD
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": tables.SCHEMA.version_table})
        assert compare_metadata(context, tables.metadata) == []
    config = Config()
    config.set_main_option("script_location", str(tables.SCHEMA.scripts))
    assert ScriptDirectory.from_config(config).get_current_head() == tables.HEAD
    tables.open_database(migrated, "regtest")
    tables.open_database(migrated, "regtest")
    with pytest.raises(StorageError, match="regtest, not for signet"):
        tables.open_database(migrated, "signet")


def test_a_database_of_a_newer_watchtowerd_is_refused(tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    tables.open_database(engine, "regtest")
    with engine.begin() as connection:
        connection.execute(text("UPDATE watchtower_version SET version_num = '9999'"))
    with pytest.raises(migrate.NewerDatabase, match="version 9999, newer than this watchtowerd knows") as caught:
        tables.open_database(engine, "regtest")
    assert str(caught.value).endswith("start it with the newer watchtowerd")


def test_neither_program_takes_the_others_database(tmp_path: Path) -> None:
    """One PostgreSQL URL given to both would be an easy mistake."""
    tower, node = engine_in(tmp_path), engine_in(tmp_path, "node")
    tables.open_database(tower, "regtest")
    node_migrate.upgrade(node)
    with pytest.raises(StorageError, match=r"no database of channeld.*an empty database of its own"):
        node_migrate.upgrade(tower)
    with pytest.raises(StorageError, match="no database of watchtowerd"):
        tables.open_database(node, "regtest")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://user@host/name", "mysql is no database that is known here"),
        ("nonsense", "it looks like postgresql://user:password@host/name"),
        ("postgresql+nothing://host/name", "it looks like postgresql://"),
    ],
)
def test_urls_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        make_engine(url)


def test_a_missing_driver_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"pip install 'channeld\[postgres\]'"):
        make_engine("postgresql://host/name")
