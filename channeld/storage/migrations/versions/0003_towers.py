"""Watchtowers that the node uses, and what they have confirmed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "towers",
        sa.Column(
            "tower_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("tower_id", sa.LargeBinary(length=33), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("max_reward_permille", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("added_seconds", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tower_key", name=op.f("pk_towers")),
        sa.UniqueConstraint("tower_id", name=op.f("uq_towers_tower_id")),
    )
    op.create_table(
        "tower_backups",
        sa.Column(
            "tower_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("channel", sa.LargeBinary(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("milliseconds", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tower_key"],
            ["towers.tower_key"],
            name=op.f("fk_tower_backups_tower_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tower_key", "channel", name=op.f("pk_tower_backups")),
    )
    op.create_table(
        "tower_receipts",
        sa.Column(
            "tower_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("channel", sa.LargeBinary(length=32), nullable=False),
        sa.Column("commitment", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("session_number", sa.Integer(), nullable=False),
        sa.Column("locator", sa.LargeBinary(length=16), nullable=False),
        sa.Column("blob_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("accepted_height", sa.Integer(), nullable=False),
        sa.Column("signature", sa.LargeBinary(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["tower_key"],
            ["towers.tower_key"],
            name=op.f("fk_tower_receipts_tower_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tower_key", "channel", "commitment", name=op.f("pk_tower_receipts")),
    )
    op.create_table(
        "tower_sessions",
        sa.Column(
            "tower_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("channel", sa.LargeBinary(length=32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("terms", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tower_key"],
            ["towers.tower_key"],
            name=op.f("fk_tower_sessions_tower_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("tower_key", "channel", "number", name=op.f("pk_tower_sessions")),
    )


def downgrade() -> None:
    op.drop_table("tower_sessions")
    op.drop_table("tower_receipts")
    op.drop_table("tower_backups")
    op.drop_table("towers")
