"""Copies of SQLite databases, made while they are in use."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from wallet.files import sync_directory


def open_database(path: Path) -> sqlite3.Connection:
    """One that exists: nothing is made. Raises sqlite3.Error."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)


def copy_database(source: Path, target: Path) -> None:
    """A copy that only its owner may read, in one file: `target` is replaced when all is there, and lasts when this
    returns. Raises sqlite3.Error, OSError."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)  # of a process that died; in containers they often have the same number
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with closing(open_database(source)) as read, closing(sqlite3.connect(temporary)) as written:
                read.backup(written)
                written.execute("PRAGMA journal_mode=DELETE")  # without -wal and -shm beside it
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(target)
        sync_directory(target.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)
