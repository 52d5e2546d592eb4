"""Where the daemon's database is by default; how it is written: see `wallet.db.store`."""

from __future__ import annotations

from pathlib import Path

from wallet.db.store import CommitHook, StorageError, Store, StoreFailed, make_engine

DATABASE_NAME = "channeld.sqlite3"


def default_url(directory: Path) -> str:
    """SQLite in the data directory."""
    return f"sqlite:///{directory / DATABASE_NAME}"


__all__ = ["CommitHook", "StorageError", "Store", "StoreFailed", "default_url", "make_engine"]
