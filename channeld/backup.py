"""Copies of the database while the daemon runs, and starting again from one.

A copy is out of date as soon as a channel moves on, and publishing an outdated commitment costs the channel. So a data
directory that was made from a copy has a mark: while it is there, no commitment is published by itself before the
channel's peer was compared with, however long that takes. An honest peer then closes the channel, and our side of it
comes back.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.engine import make_url

from channeld.config import Config
from channeld.node.identity import Identity
from channeld.paths import write_private
from wallet.bitcoin.address import BY_NAME
from wallet.db.copies import copy_database, open_database
from wallet.keys import Keys, Seed

NEVER_BLOCKS = 1 << 31
_MARK = (
    b"The database here was made from a copy. While this file exists, no commitment is published before the peer of\n"
    b"its channel was compared with. Delete it when `channelctl channel list` shows none of the copy's channels.\n"
)


class BackupError(Exception):
    """No copy can be made, or used; the text is a sentence that says what to do."""


class Copied(NamedTuple):
    """What is in a copy."""

    network: str
    node_id: bytes
    channels: int
    """Those that are not over."""


def back_up(config: Config, target: Path) -> Copied:
    """Copies the database to the file `target`, replacing it only when all is there; the daemon may run. Raises
    BackupError."""
    source = _sqlite_file(config)
    if not source.exists():
        raise BackupError(f"there is no database at {source}: give the --datadir and --network of the daemon")
    _copy(source, target)
    return inspect(target)


def restore(config: Config, source: Path, seed: Seed) -> Copied:
    """Makes the database and the mark from a copy. The data directory must be locked, and have no database. Raises
    BackupError."""
    target = _sqlite_file(config)
    if target.exists():
        raise BackupError(f"there is a database at {target} already: move it away, with its -wal and -shm, but keep it")
    copied = inspect(source)
    if copied.network != config.network:
        raise BackupError(f"{source} is of the network {copied.network}: start with --network {copied.network}")
    node_id = Identity(Keys.from_seed(seed, BY_NAME[config.network]).lightning_root()).node_id
    if copied.node_id != node_id:
        raise BackupError(f"{source} is of the node {copied.node_id.hex()}, but the seed gives {node_id.hex()}")
    write_private(config.paths.restored, _MARK)  # before there is a database that could be started without it
    _copy(source, target)
    return copied


def inspect(path: Path) -> Copied:
    """What a copy holds. Raises BackupError if it is none."""
    try:
        with closing(open_database(path)) as database:
            (health,) = database.execute("PRAGMA quick_check").fetchone()
            meta = dict(database.execute("SELECT key, value FROM meta WHERE key IN ('network', 'node_id')"))
            (channels,) = database.execute("SELECT count(*) FROM channels WHERE NOT closed").fetchone()
    except (sqlite3.Error, OSError) as error:
        raise BackupError(f"{path} cannot be read as a database of channeld: {error}") from error
    if health != "ok" or len(meta.get("node_id", b"")) != 33:
        raise BackupError(f"{path} is damaged, or no database of channeld: {health}")
    return Copied(meta["network"].decode(), meta["node_id"], channels)


def _sqlite_file(config: Config) -> Path:
    if not config.database:
        return config.paths.database
    url = make_url(config.database)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise BackupError("this is for SQLite; PostgreSQL has its own tools, such as pg_dump and replication")
    return Path(url.database)


def _copy(source: Path, target: Path) -> None:
    try:
        copy_database(source, target)
    except (sqlite3.Error, OSError) as error:
        raise BackupError(f"{source} cannot be copied to {target}: {error}") from error
