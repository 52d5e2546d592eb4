"""What a client keeps of its towers: tables for the daemon's database, and rows to write.

There is no table of waiting backups: which commitments are revoked is in the daemon's own state, so that the queue is
the difference between that and `tower_backups`, and costs a payment nothing.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, ForeignKey, Integer, LargeBinary, String, Table, func, select

from wallet.db.columns import KEY, named_metadata
from wallet.db.statements import delete, insert, lookup, update, upsert

metadata = named_metadata()


def _tower_key() -> Column[int]:
    reference = ForeignKey("towers.tower_key", deferrable=True, initially="DEFERRED")
    return Column("tower_key", KEY, reference, primary_key=True, autoincrement=False)


towers = Table(
    "towers",
    metadata,
    Column("tower_key", KEY, primary_key=True, autoincrement=False),
    Column("tower_id", LargeBinary(33), nullable=False, unique=True),
    Column("address", String(255), nullable=False),
    Column("mode", String(8), nullable=False),
    Column("max_reward_permille", Integer, nullable=False),
    Column("token", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("added_seconds", BigInteger, nullable=False),
)
"""`state` is "active" or "paused"."""

tower_sessions = Table(
    "tower_sessions",
    metadata,
    _tower_key(),
    Column("channel", LargeBinary(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("terms", LargeBinary, nullable=False),
)
"""A session's key is derived from tower, channel and number. `terms` is a `watchtower.client.values.KnownSession`."""

tower_backups = Table(
    "tower_backups",
    metadata,
    _tower_key(),
    Column("channel", LargeBinary(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
)
"""The tower has all revoked commitments of the channel with numbers below `count`; when it took the last."""

tower_receipts = Table(
    "tower_receipts",
    metadata,
    _tower_key(),
    Column("channel", LargeBinary(32), primary_key=True),
    Column("commitment", BigInteger, primary_key=True, autoincrement=False),
    Column("session_number", Integer, nullable=False),
    Column("locator", LargeBinary(16), nullable=False),
    Column("blob_hash", LargeBinary(32), nullable=False),
    Column("accepted_height", Integer, nullable=False),
    Column("signature", LargeBinary(64), nullable=False),
)
"""The tower's word for each appointment: with the blob, which can be made again, it proves a failure."""

INSERT_TOWER = insert(towers)
UPDATE_STATE = update(towers, ["state"], ["tower_key"])
UPDATE_ADDRESS = update(towers, ["address", "token"], ["tower_key"])
DELETE_TOWER = delete(towers, "tower_key")
SAVE_SESSION = upsert(tower_sessions)
SAVE_BACKUP = upsert(tower_backups)
SAVE_RECEIPT = upsert(tower_receipts)
FIND_RECEIPT = lookup(
    tower_receipts,
    ["session_number", "locator", "blob_hash", "accepted_height", "signature"],
    ["tower_key", "channel", "commitment"],
)
DELETE_OF_TOWER = tuple(delete(table, "tower_key") for table in (tower_receipts, tower_backups, tower_sessions))
DELETE_OF_CHANNEL = tuple(
    delete(table, "tower_key", "channel") for table in (tower_receipts, tower_backups, tower_sessions)
)


def count_receipts(connection: Connection, tower_key: int, channel: bytes, session_number: int) -> int:
    """How many appointments the tower has confirmed in a session."""
    table = tower_receipts.c
    query = select(func.count()).where(
        table.tower_key == tower_key, table.channel == channel, table.session_number == session_number
    )
    return int(connection.execute(query).scalar_one())
