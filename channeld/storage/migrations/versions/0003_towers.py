"""Watchtowers that the node uses, and what they have confirmed."""

from __future__ import annotations

from alembic import op

from watchtower.client.tables import metadata

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """New tables only."""
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    metadata.drop_all(op.get_bind())
