"""Forwarding: policies of channels, and what was forwarded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "forwards",
        sa.Column(
            "incoming_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("incoming_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("outgoing_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("outgoing_id", sa.BigInteger(), nullable=False),
        sa.Column("payment_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("incoming_msat", sa.BigInteger(), nullable=False),
        sa.Column("outgoing_msat", sa.BigInteger(), nullable=False),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.Column("settled_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("incoming_key", "incoming_id", name=op.f("pk_forwards")),
    )
    op.create_index(op.f("ix_forwards_settled_ms"), "forwards", ["settled_ms"], unique=False)
    op.create_table(
        "channel_policies",
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("policy", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_key"],
            ["channels.channel_key"],
            name=op.f("fk_channel_policies_channel_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("channel_key", name=op.f("pk_channel_policies")),
    )


def downgrade() -> None:
    op.drop_table("channel_policies")
    op.drop_index(op.f("ix_forwards_settled_ms"), table_name="forwards")
    op.drop_table("forwards")
