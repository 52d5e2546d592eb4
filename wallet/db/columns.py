"""What tables of all packages have in common."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, MetaData

KEY = BigInteger().with_variant(Integer(), "sqlite")
"""An integer that is the row's own id on SQLite too."""


def named_metadata() -> MetaData:
    """Whose constraints have names: migrations must be able to speak of them on every database."""
    return MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
