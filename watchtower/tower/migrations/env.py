"""alembic's entry point."""

from wallet.db.migrate import run_environment

run_environment()
