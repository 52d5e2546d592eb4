"""The tower's database. Blobs that hold structures are MessagePack; ids and hashes are bytes in internal order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    select,
)

from wallet.db import StorageError, Write
from wallet.db.columns import KEY, named_metadata
from wallet.db.migrate import Schema, upgrade
from wallet.db.statements import delete, delete_below, insert, lookup, update, upsert

metadata = named_metadata()

meta = Table("meta", metadata, Column("key", String(64), primary_key=True), Column("value", LargeBinary))
"""`network`."""

sessions = Table(
    "sessions",
    metadata,
    Column("session_key", KEY, primary_key=True, autoincrement=False),
    Column("session_id", LargeBinary(33), nullable=False, unique=True),
    Column("terms", LargeBinary, nullable=False),
    Column("appointments", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_seconds", BigInteger, nullable=False),
    Column("used_seconds", BigInteger, nullable=False),
    Column("ended", Boolean, nullable=False),
)
"""`terms` is a `watchtower.messages.SessionTerms`. An ended session's appointments are being removed."""

appointments = Table(
    "appointments",
    metadata,
    Column("appointment_id", KEY, primary_key=True, autoincrement=False),
    Column(
        "session_key",
        KEY,
        ForeignKey("sessions.session_key", deferrable=True, initially="DEFERRED"),
        nullable=False,
        index=True,
    ),
    Column("locator_prefix", BigInteger, nullable=False, index=True),
    Column("locator", LargeBinary(16), nullable=False),
    Column("accepted_height", Integer, nullable=False),
    Column("blob", LargeBinary, nullable=False),
)
"""`locator_prefix` is the first 8 bytes as a number (`tower.index.to_column`): its index is what the tower reads at
start. Rows come in at the end of the table; with the locator as the key they would be spread all over it."""

blocks = Table(
    "blocks",
    metadata,
    Column("height", Integer, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("prefixes", LargeBinary, nullable=False),
)
"""The last blocks that were searched; `prefixes` are those of their txids, 8 bytes each, empty for older ones."""

breaches = Table(
    "breaches",
    metadata,
    Column("breach_id", KEY, primary_key=True, autoincrement=False),
    Column("txid", LargeBinary(32), nullable=False),
    Column("resolved", Boolean, nullable=False),
    Column("record", LargeBinary, nullable=False),
)
"""`breach_id` is the appointment's id, `record` a `watchtower.tower.breach.Breach`."""

alerts = Table(
    "alerts",
    metadata,
    Column("sequence", KEY, primary_key=True, autoincrement=False),
    Column("milliseconds", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("sentence", Text, nullable=False),
    Column("data", Text, nullable=False),
)

HEAD = "0001"
"""The newest revision under `migrations/versions` (a test compares)."""
SCHEMA = Schema("watchtowerd", (metadata,), HEAD, Path(__file__).parent / "migrations", "watchtower_version")

INSERT_SESSION = insert(sessions)
UPDATE_TERMS = update(sessions, ["terms", "ended"], ["session_key"])
UPDATE_USE = update(sessions, ["appointments", "bytes", "used_seconds"], ["session_key"])
DELETE_SESSION = delete(sessions, "session_key")
INSERT_APPOINTMENT = insert(appointments)
DELETE_APPOINTMENT = delete(appointments, "appointment_id")
FIND_APPOINTMENTS = lookup(appointments, ["appointment_id", "session_key", "locator"], ["locator_prefix"])
"""Without their blobs: any number of sessions may have one under the same locator."""
READ_APPOINTMENT = lookup(
    appointments, ["appointment_id", "session_key", "locator", "accepted_height", "blob"], ["appointment_id"]
)
SAVE_BLOCK = upsert(blocks)
DELETE_BLOCK = delete(blocks, "height")
DELETE_BLOCKS_BELOW = delete_below(blocks, "height")
SAVE_BREACH = upsert(breaches)
INSERT_ALERT = insert(alerts)
DELETE_ALERTS_BELOW = delete_below(alerts, "sequence")


def open_database(engine: Engine, network: str) -> None:
    """Makes or migrates the tables. Raises StorageError for a database of another kind, version or network."""
    upgrade(engine, SCHEMA)
    with engine.begin() as connection:
        known = connection.execute(select(meta.c.value).where(meta.c.key == "network")).scalar()
        if known is None:
            connection.execute(meta.insert().values(key="network", value=network.encode()))
    if known is not None and bytes(known) != network.encode():
        raise StorageError(f"the database is for {bytes(known).decode()}, not for {network}")


def ids_of_session(connection: Connection, session_key: int, limit: int) -> list[int]:
    """Of some appointments of a session."""
    query = select(appointments.c.appointment_id).where(appointments.c.session_key == session_key).limit(limit)
    return [int(row[0]) for row in connection.execute(query)]


def delete_appointments(ids: Sequence[int]) -> list[Write]:
    """Rows to delete."""
    return [DELETE_APPOINTMENT(key) for key in ids]
