"""The daemon's schema, and bringing a database to it; how that is done is in `wallet.db.migrate`."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from channeld.storage import tables
from wallet import store as wallet_store
from wallet.db import migrate
from wallet.db.migrate import NewerDatabase, Schema
from watchtower.client import tables as tower_tables

HEAD = "0006"
"""The newest revision under `migrations/versions` (a test compares)."""
SCHEMA = Schema(
    "channeld",
    (tables.metadata, wallet_store.metadata, tower_tables.metadata),
    HEAD,
    Path(__file__).parent / "migrations",
)


def current_revision(engine: Engine) -> str | None:
    """See `wallet.db.migrate.current_revision`."""
    return migrate.current_revision(engine, SCHEMA)


def upgrade(engine: Engine) -> None:
    """See `wallet.db.migrate.upgrade`. Raises NewerDatabase, StorageError."""
    migrate.upgrade(engine, SCHEMA)


def run_migrations(engine: Engine, revision: str = "head") -> None:
    """The migrations up to `revision` that the database lacks, in one transaction."""
    migrate.run_migrations(engine, SCHEMA, revision)


__all__ = ["HEAD", "SCHEMA", "NewerDatabase", "current_revision", "run_migrations", "upgrade"]
