"""Copies of databases in use."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from wallet.db.copies import copy_database, open_database


def make(path: Path, value: str) -> sqlite3.Connection:
    """A database in use, in WAL mode as the daemons' are."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE facts (fact TEXT)")
    database.execute("INSERT INTO facts VALUES (?)", (value,))
    database.commit()
    return database


def facts(path: Path) -> list[str]:
    with closing(open_database(path)) as database:
        return [fact for (fact,) in database.execute("SELECT fact FROM facts")]


def test_a_copy_has_what_is_only_in_the_wal_and_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.write_bytes(b"older")
    with closing(make(tmp_path / "live", "yes")):
        copy_database(tmp_path / "live", target)
        assert facts(target) == ["yes"]
    assert target.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"live", "copy"}


def test_what_a_dead_process_with_our_number_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".copy.{os.getpid()}.new").write_bytes(b"half of a copy")
    with closing(make(tmp_path / "live", "yes")):
        copy_database(tmp_path / "live", tmp_path / "copy")
    assert facts(tmp_path / "copy") == ["yes"]


def test_a_copy_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "live").write_bytes(b"this is no database, but it is longer than a header of SQLite is" * 20)
    (tmp_path / "copy").write_bytes(b"older")
    with pytest.raises(sqlite3.Error):
        copy_database(tmp_path / "live", tmp_path / "copy")
    with pytest.raises(sqlite3.Error):
        copy_database(tmp_path / "missing", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"live", "copy"}
