"""What is kept for peers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "peer_storage",
        sa.Column("node_id", sa.LargeBinary(length=33), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.Column("idle_height", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_peer_storage")),
    )


def downgrade() -> None:
    op.drop_table("peer_storage")
