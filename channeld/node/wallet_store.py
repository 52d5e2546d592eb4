"""The wallet's rows in the node's database, written by the node's one writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from channeld.storage import Statement, Store, Write
from channeld.storage.statements import delete, delete_below, insert, update
from wallet import store as wallet_store

_statements: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], Statement] = {}


def to_rows(writes: Sequence[wallet_store.Write]) -> list[Write]:
    """The same changes for the node's writer."""
    return [Write(_statement(write), write.parameters) for write in writes]


def _statement(write: wallet_store.Write) -> Statement:
    key = (write.verb, write.table.name, write.values, write.where)
    known = _statements.get(key)
    if known is None:
        known = _statements[key] = _make(write)
    return known


def _make(write: wallet_store.Write) -> Statement:
    match write.verb:
        case "insert":
            return insert(write.table, *write.values)
        case "update":
            return update(write.table, write.values, write.where)
        case "delete":
            return delete(write.table, *write.where)
        case "delete_below":
            return delete_below(write.table, *write.where)
        case _:
            assert_never(write.verb)


class NodeWalletStore:
    """A `wallet.store.WalletStore` over the node's database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self) -> wallet_store.Snapshot:
        """Read everything, at start."""
        return self._store.read_now(wallet_store.load_snapshot)

    async def commit(self, writes: Sequence[wallet_store.Write]) -> None:
        """Durable when this returns, and so is all that was submitted before (also without `writes`)."""
        await self._store.commit(to_rows(writes))
