"""Rows to write, as values: see `wallet.db.statements`."""

from wallet.db.statements import Statement, Write, delete, delete_below, insert, lookup, update, upsert

__all__ = ["Statement", "Write", "delete", "delete_below", "insert", "lookup", "update", "upsert"]
