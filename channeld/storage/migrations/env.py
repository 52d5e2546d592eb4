"""alembic's entry point: runs on the connection that `channeld.storage.migrate` hands over."""

from __future__ import annotations

from alembic import context

from channeld.storage.tables import metadata
from wallet import store
from watchtower.client import tables as tower_tables

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=[metadata, store.metadata, tower_tables.metadata],
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
