"""A database for daemons: rows to write as values, one writer with group commit. It knows no tables."""

from wallet.db.statements import Statement, Write
from wallet.db.store import CommitHook, StorageError, Store, StoreFailed, StoreFigures, make_engine

__all__ = ["CommitHook", "Statement", "StorageError", "Store", "StoreFailed", "StoreFigures", "Write", "make_engine"]
