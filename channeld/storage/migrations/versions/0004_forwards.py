"""Forwarding: policies of channels, and what was forwarded."""

from __future__ import annotations

from alembic import op

from channeld.storage.tables import channel_policies, forwards, metadata

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = [channel_policies, forwards]


def upgrade() -> None:
    """New tables only. A fresh database has them already: the first migration makes what the metadata names."""
    metadata.create_all(op.get_bind(), tables=TABLES)


def downgrade() -> None:
    metadata.drop_all(op.get_bind(), tables=TABLES)
