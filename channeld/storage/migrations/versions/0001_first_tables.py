"""The first tables."""

from __future__ import annotations

from alembic import op

from channeld.storage.tables import metadata
from wallet import store

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
    store.metadata.create_all(op.get_bind())


def downgrade() -> None:
    metadata.drop_all(op.get_bind())
    store.metadata.drop_all(op.get_bind())
