"""What is needed to notice a double-spent funding transaction, and where a broadcast was beaten; openings that came to
nothing go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_CHILDREN = ("adds", "revocable", "watches", "close_facts", "closes", "onions", "channel_policies")


def upgrade() -> None:
    op.add_column("watches", sa.Column("funding_inputs", sa.LargeBinary(), nullable=True))
    op.add_column("watches", sa.Column("rival_txid", sa.LargeBinary(length=32), nullable=True))
    op.add_column("watches", sa.Column("rival_height", sa.BigInteger(), nullable=True))
    op.add_column("broadcasts", sa.Column("beaten_height", sa.BigInteger(), nullable=True))
    unused = " AND ".join(f"channel_key NOT IN (SELECT channel_key FROM {child})" for child in _CHILDREN)
    op.execute(f"DELETE FROM channels WHERE phase = 'forgotten' AND {unused}")


def downgrade() -> None:
    op.drop_column("broadcasts", "beaten_height")
    op.drop_column("watches", "rival_height")
    op.drop_column("watches", "rival_txid")
    op.drop_column("watches", "funding_inputs")
