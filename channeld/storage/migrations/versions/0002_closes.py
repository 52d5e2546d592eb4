"""What happens to channels on chain."""

from __future__ import annotations

from alembic import op

from channeld.storage.tables import close_facts, closes, metadata

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = [close_facts, closes]


def upgrade() -> None:
    """New tables only. A fresh database has them already: the first migration makes what the metadata names."""
    metadata.create_all(op.get_bind(), tables=TABLES)


def downgrade() -> None:
    metadata.drop_all(op.get_bind(), tables=TABLES)
