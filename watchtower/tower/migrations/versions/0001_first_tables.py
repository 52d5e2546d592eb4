"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "meta",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
    )
    op.create_table(
        "sessions",
        sa.Column("session_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("session_id", sa.LargeBinary(length=33), nullable=False),
        sa.Column("terms", sa.LargeBinary(), nullable=False),
        sa.Column("appointments", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_seconds", sa.BigInteger(), nullable=False),
        sa.Column("used_seconds", sa.BigInteger(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("session_key", name="pk_sessions"),
        sa.UniqueConstraint("session_id", name="uq_sessions_session_id"),
    )
    _make_appointments()
    op.create_table(
        "blocks",
        sa.Column("height", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("prefixes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("height", name="pk_blocks"),
    )
    op.create_table(
        "breaches",
        sa.Column("breach_id", _KEY, autoincrement=False, nullable=False),
        sa.Column("txid", sa.LargeBinary(length=32), nullable=False),
        sa.Column("resolved", sa.Boolean(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("breach_id", name="pk_breaches"),
    )
    op.create_table(
        "alerts",
        sa.Column("sequence", _KEY, autoincrement=False, nullable=False),
        sa.Column("milliseconds", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_alerts"),
    )


def _make_appointments() -> None:
    op.create_table(
        "appointments",
        sa.Column("appointment_id", _KEY, autoincrement=False, nullable=False),
        sa.Column("session_key", _KEY, nullable=False),
        sa.Column("locator_prefix", sa.BigInteger(), nullable=False),
        sa.Column("locator", sa.LargeBinary(length=16), nullable=False),
        sa.Column("accepted_height", sa.Integer(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("appointment_id", name="pk_appointments"),
        sa.ForeignKeyConstraint(
            ["session_key"],
            ["sessions.session_key"],
            name="fk_appointments_session_key",
            deferrable=True,
            initially="DEFERRED",
        ),
    )
    op.create_index("ix_appointments_session_key", "appointments", ["session_key"])
    op.create_index("ix_appointments_locator_prefix", "appointments", ["locator_prefix"])


def downgrade() -> None:
    for table in ("alerts", "breaches", "blocks", "appointments", "sessions", "meta"):
        op.drop_table(table)
