"""Copies of the database while the daemon runs, and starting again from one, or from a `channels.backup`.

A copy is out of date as soon as a channel moves on, and publishing an outdated commitment costs the channel. So a data
directory that was made from a copy has a mark: while it is there, no commitment is published by itself before the
channel's peer was compared with, however long that takes. An honest peer then closes the channel, and our side of it
comes back. What a `channels.backup` has is older still: its channels wait for their peers to close them, and never
publish a commitment by themselves.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Table
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from channeld.channel.machine import UnreadableState, decode_state, encode_state
from channeld.channel.reestablish import from_backup
from channeld.channel.state import AwaitingFunding, Funded, Normal, ShuttingDown, phase_name
from channeld.config import Config
from channeld.node.channel_backup import MAGIC, ChannelsBackup, NoBackup, backup_key, unseal
from channeld.node.identity import Identity
from channeld.node.watches import Watch
from channeld.paths import write_private
from channeld.storage import StorageError, make_engine, tables, upgrade
from wallet.bitcoin import Tx
from wallet.bitcoin.address import BY_NAME
from wallet.db.copies import copy_database, open_database
from wallet.keys import Keys, Seed
from wallet.store import meta_table

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
    if target.exists() and target.samefile(source):  # the daemon would go on with a file that has no name any more
        raise BackupError(f"{target} is the database itself: name another file")
    if target.is_file() and _begins_so(target):
        raise BackupError(f"{target} is a backup of channels: name another file")
    _copy(source, target)
    return inspect(target)


def restore(config: Config, source: Path, seed: Seed) -> Copied:
    """Makes the database from a copy, with the mark, or from a `channels.backup`. The data directory must be locked,
    and have no database. Raises BackupError."""
    target = _sqlite_file(config)
    if target.exists():
        raise BackupError(f"there is a database at {target} already: move it away, with its -wal and -shm, but keep it")
    for suffix in ("-wal", "-journal"):  # SQLite would write its changes into whatever bears the name
        if (left := target.with_name(target.name + suffix)).exists():
            raise BackupError(f"{left} is left of another database: move it to where that one is, and try again")
    identity = _identity(config, seed)
    found = _channels_backup(source, backup_key(identity))
    copied = inspect(source) if found is None else Copied(found.network, found.node_id, len(found.channels))
    if copied.network != config.network:
        raise BackupError(f"{source} is of the network {copied.network}: start with --network {copied.network}")
    node_id = identity.node_id
    if copied.node_id != node_id:
        raise BackupError(f"{source} is of the node {copied.node_id.hex()}, but the seed gives {node_id.hex()}")
    if found is None:
        write_private(config.paths.restored, _MARK)  # before there is a database that could be started without it
        _copy(source, target)
    else:
        _make(found, target)
    return copied


def is_missing(config: Config) -> bool:
    """Whether the database is a file that is not there. Raises BackupError."""
    return not (config.database and _is_elsewhere(config)) and not _sqlite_file(config).exists()


def check_not_lost(config: Config, seed: Seed) -> int | None:
    """For a database that is missing or empty: raises BackupError if there is a `channels.backup` of one that had
    channels. With a new one, the node would tell their peers that it knows none of them. The first block that may
    concern the seed, if there is one of a node without channels."""
    heights: list[int] = []
    key = backup_key(_identity(config, seed))
    for path in config.channel_backups:
        found = _channels_backup(path, key) if path.exists() else None
        if found is not None:
            heights.append(found.birthday_height)
        if found is not None and found.channels:
            where = f"{_sqlite_file(config)} is missing" if is_missing(config) else "the database is empty"
            raise BackupError(
                f"{where}, but {path} has {len(found.channels)} of its channels: put the "
                f"database back, or make a new one with --restore-from {path}, or move that file away"
            )
    return min(heights, default=None)


def check_no_other(config: Config) -> None:
    """Before a new seed is made: raises BackupError if there is a `channels.backup`, of whatever seed."""
    for path in config.channel_backups:
        if path.is_file() and _begins_so(path):
            raise BackupError(
                f"there is no seed, but {path} is the channels' backup of a node: if it is this one's, bring it back "
                f"with CHANNELD_SEED_WORDS and --restore-from {path}; else move that file away, or name another"
            )


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


def _identity(config: Config, seed: Seed) -> Identity:
    return Identity(Keys.from_seed(seed, BY_NAME[config.network]).lightning_root())


def _sqlite_file(config: Config) -> Path:
    if not config.database:
        return config.paths.database
    if _is_elsewhere(config):
        raise BackupError(
            "this is for SQLite; PostgreSQL has its own tools, such as pg_dump and replication. What --restore-from "
            "makes of a channels.backup is SQLite, too: leave --database out, also when the daemon is started then"
        )
    return Path(make_url(config.database).database or "")


def _is_elsewhere(config: Config) -> bool:
    """Whether the database is no file. Raises BackupError."""
    try:
        url = make_url(config.database)
    except ArgumentError as error:
        raise BackupError(f"the database's URL cannot be used: {error}") from error
    return url.get_backend_name() != "sqlite" or not url.database


def _copy(source: Path, target: Path) -> None:
    try:
        copy_database(source, target)
    except (sqlite3.Error, OSError) as error:
        raise BackupError(f"{source} cannot be copied to {target}: {error}") from error


def _channels_backup(source: Path, key: bytes) -> ChannelsBackup | None:
    """What is in a `channels.backup`; None if the file is something else. Raises BackupError."""
    try:
        return unseal(source.read_bytes(), key) if _begins_so(source) else None
    except OSError as error:
        raise BackupError(f"{source} cannot be read: {error.strerror}") from error
    except NoBackup as error:
        sentence = f"{source} cannot be used: {error}. Check the words, their passphrase, and --network"
        raise BackupError(sentence) from error


def _begins_so(source: Path) -> bool:
    """Whether it is a `channels.backup`. Raises BackupError."""
    try:
        with source.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise BackupError(f"{source} cannot be read: {error.strerror}") from error


def _make(backup: ChannelsBackup, target: Path) -> None:
    """The database of a node that has these channels, and nothing else."""
    temporary = target.with_name(f".{target.name}.making")
    try:
        temporary.unlink(missing_ok=True)
        engine = make_engine(f"sqlite:///{temporary}")
        upgrade(engine)
        with engine.begin() as connection:
            for table, row in _rows(backup):
                connection.execute(table.insert().values(row))
        engine.dispose()
        copy_database(temporary, target)
    except UnreadableState as error:
        sentence = f"this channeld cannot read the backup: {error}. Use the one that wrote it, or a later one"
        raise BackupError(sentence) from error
    except (StorageError, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise BackupError(f"the database {target} cannot be made: {error}") from error
    finally:
        for suffix in ("", "-wal", "-shm"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def _rows(backup: ChannelsBackup) -> Iterator[tuple[Table, tuple[Any, ...]]]:
    yield tables.meta, ("network", backup.network.encode())
    yield tables.meta, ("node_id", backup.node_id)
    yield meta_table, ("birthday_height", str(backup.birthday_height))
    for peer in backup.peers:
        yield tables.peers, (peer.node_id, peer.host, peer.port, 0)
    for saved in backup.channels:
        state = decode_state(saved.state)
        assert isinstance(state, Funded)
        inputs = Tx.parse(state.funding_tx).spends() if state.funding_tx else ()
        if isinstance(state, AwaitingFunding | Normal | ShuttingDown):  # later nothing is revoked any more
            state = from_backup(state)
        key, params = saved.channel_key, state.params
        phase, blob = phase_name(state), encode_state(state)
        row = (key, saved.channel_id, saved.peer_id, phase, False, blob, saved.created_seconds)
        yield tables.channels, row
        watch = Watch(key, params.funding_outpoint, params.funding_script_pubkey, inputs=inputs)
        yield tables.watches, watch.row().parameters
