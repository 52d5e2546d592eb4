"""The daemon's database: tables, migrations, and the one writer."""

from channeld.storage.migrate import NewerDatabase, upgrade
from channeld.storage.statements import Statement, Write
from channeld.storage.store import CommitHook, StorageError, Store, StoreFailed, default_url, make_engine

__all__ = [
    "CommitHook",
    "NewerDatabase",
    "Statement",
    "StorageError",
    "Store",
    "StoreFailed",
    "Write",
    "default_url",
    "make_engine",
    "upgrade",
]
