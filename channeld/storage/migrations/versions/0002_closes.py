"""What happens to channels on chain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "close_facts",
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("txid", sa.LargeBinary(length=32), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_key"],
            ["channels.channel_key"],
            name=op.f("fk_close_facts_channel_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("channel_key", "txid", name=op.f("pk_close_facts")),
    )
    op.create_index(op.f("ix_close_facts_height"), "close_facts", ["height"], unique=False)
    op.create_table(
        "closes",
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("resolution", sa.LargeBinary(), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=True),
        sa.Column("over", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_key"],
            ["channels.channel_key"],
            name=op.f("fk_closes_channel_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("channel_key", name=op.f("pk_closes")),
    )


def downgrade() -> None:
    op.drop_table("closes")
    op.drop_index(op.f("ix_close_facts_height"), table_name="close_facts")
    op.drop_table("close_facts")
