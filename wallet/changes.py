"""What changed in memory and has to be persisted."""

from __future__ import annotations

from collections.abc import Iterable

from wallet import store as rows
from wallet.coins import Ledger
from wallet.store import Snapshot, Write


class Changes:
    """Turns the ledger's changes into writes; knows which rows exist, so that an insert is an insert."""

    def __init__(self, ledger: Ledger, snapshot: Snapshot) -> None:
        self._ledger = ledger
        self._pending: list[Write] = []
        self._stored_txs = {wallet_tx.txid for wallet_tx in snapshot.txs}
        self._stored_cursors = {(path.kind, path.chain) for path in snapshot.cursors}

    def add(self, writes: Iterable[Write]) -> None:
        """Writes that go with the next ones."""
        self._pending += writes

    def collect(self) -> list[Write]:
        """All writes since this was asked last."""
        writes, self._pending = self._pending, []
        scripts, cursors = self._ledger.book.drain()
        writes += [rows.insert_script(script) for script in scripts]
        for path in cursors:
            known = (path.kind, path.chain) in self._stored_cursors
            self._stored_cursors.add((path.kind, path.chain))
            writes.append(rows.update_cursor(path) if known else rows.insert_cursor(path))
        for txid, wallet_tx in self._ledger.changed.items():
            known = txid in self._stored_txs
            self._stored_txs.add(txid)
            writes.append(rows.update_tx(wallet_tx) if known else rows.insert_tx(wallet_tx))
        self._ledger.changed.clear()
        return writes
