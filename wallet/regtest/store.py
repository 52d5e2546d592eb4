"""What `regtestd` keeps on disk, in one SQLite file: all blocks, the active chain's coins and transaction index, keys.

The file is the truth; the kernel's directory beside it can be rebuilt from the blocks in here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from wallet.bitcoin import Block, OutPoint, Tx, TxOut
from wallet.bitcoin.encoding import compact_size
from wallet.bitcoin.script import is_unspendable
from wallet.regtest.errors import StartupError

_VERSION = 1
_SCHEMA = """
CREATE TABLE blocks (
    seq INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, header BLOB NOT NULL, n_tx INTEGER NOT NULL,
    failed INTEGER NOT NULL DEFAULT 0, raw BLOB NOT NULL);
CREATE TABLE invalidated (hash BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE active (height INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE txs (
    txid BLOB PRIMARY KEY, height INTEGER NOT NULL, position INTEGER NOT NULL, start INTEGER NOT NULL,
    size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE coins (
    txid BLOB NOT NULL, vout INTEGER NOT NULL, value_sat INTEGER NOT NULL, script BLOB NOT NULL,
    height INTEGER NOT NULL, coinbase INTEGER NOT NULL, PRIMARY KEY (txid, vout)) WITHOUT ROWID;
CREATE INDEX coins_by_script ON coins (script);
CREATE TABLE wallets (name TEXT PRIMARY KEY, seed BLOB NOT NULL, loaded INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE keys (
    script BLOB PRIMARY KEY, wallet TEXT NOT NULL, kind TEXT NOT NULL, change INTEGER NOT NULL, number INTEGER NOT NULL,
    secret BLOB NOT NULL, label TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mempool (place INTEGER PRIMARY KEY, raw BLOB NOT NULL, time INTEGER NOT NULL, delta_sat INTEGER NOT NULL);
CREATE TABLE deltas (txid BLOB PRIMARY KEY, delta_sat INTEGER NOT NULL) WITHOUT ROWID;
"""
_HEADER_SIZE = 80


class Coin(NamedTuple):
    """An unspent output, the height of its block, and whether a coinbase made it."""

    output: TxOut
    height: int
    coinbase: bool


class StoredBlock(NamedTuple):
    """What the block index needs of a stored block; `failed` if consensus refused it."""

    hash: bytes
    header: bytes
    n_tx: int
    failed: bool


class IndexedTx(NamedTuple):
    """A confirmed transaction: its bytes, its block's height and its place in the block."""

    raw: bytes
    height: int
    position: int


class Store:
    """The SQLite file. Not for two threads at once. All writes happen inside `transaction()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            self._migrate()
        except sqlite3.DatabaseError as error:
            raise StartupError(f"{path} is not a database that regtestd can read: {error}") from error

    def _migrate(self) -> None:
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self.db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={_VERSION};COMMIT;")
        elif version != _VERSION:
            raise StartupError(f"{self.path} was written by another version of regtestd; use another -datadir")

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Group writes: all of them are kept, or none. May be nested; only the outermost commits."""
        if self.db.in_transaction:
            yield
            return
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    # Blocks, in the active chain or not.

    def add_block(self, block_hash: bytes, raw: bytes, n_tx: int, *, failed: bool) -> None:
        """Keep a block for good."""
        self.db.execute(
            "INSERT OR IGNORE INTO blocks (hash, header, n_tx, failed, raw) VALUES (?, ?, ?, ?, ?)",
            (block_hash, raw[:_HEADER_SIZE], n_tx, failed, raw),
        )

    def blocks(self) -> Iterator[StoredBlock]:
        """All blocks in the order in which they came."""
        for block_hash, header, n_tx, failed in self.db.execute(
            "SELECT hash, header, n_tx, failed FROM blocks ORDER BY seq"
        ):
            yield StoredBlock(block_hash, header, n_tx, bool(failed))

    def raw_block(self, block_hash: bytes) -> bytes | None:
        """A block's serialisation, or None if it was never stored."""
        row = self.db.execute("SELECT raw FROM blocks WHERE hash = ?", (block_hash,)).fetchone()
        return row[0] if row else None

    def block_size(self, block_hash: bytes) -> int:
        """Size of a stored block's serialisation in bytes, 0 if unknown."""
        row = self.db.execute("SELECT length(raw) FROM blocks WHERE hash = ?", (block_hash,)).fetchone()
        return row[0] if row else 0

    def set_failed(self, block_hash: bytes) -> None:
        """Remember that consensus refused the block."""
        self.db.execute("UPDATE blocks SET failed = 1 WHERE hash = ?", (block_hash,))

    def invalidated(self) -> set[bytes]:
        """The blocks that the user declared invalid."""
        return {row[0] for row in self.db.execute("SELECT hash FROM invalidated")}

    def set_invalidated(self, hashes: Iterable[bytes]) -> None:
        """Replace the set of blocks that the user declared invalid."""
        self.db.execute("DELETE FROM invalidated")
        self.db.executemany("INSERT INTO invalidated VALUES (?)", [(block_hash,) for block_hash in hashes])

    def active_hashes(self) -> list[bytes]:
        """Hashes of the active chain from height 1 up."""
        return [row[0] for row in self.db.execute("SELECT hash FROM active ORDER BY height")]

    # The active chain's coins and transactions.

    def connect(self, block: Block, block_hash: bytes, height: int) -> None:
        """Apply a block on top of the active chain."""
        start = _HEADER_SIZE + len(compact_size(len(block.txs)))
        indexed: list[tuple[bytes, int, int, int, int]] = []
        added: list[tuple[bytes, int, int, bytes, int, bool]] = []
        spent: list[OutPoint] = []
        for position, tx in enumerate(block.txs):
            txid, size = tx.txid(), len(tx.serialize())
            indexed.append((txid, height, position, start, size))
            start += size
            added += _coin_rows(tx, txid, height, position == 0)
            if position:
                spent += [txin.outpoint for txin in tx.inputs]
        self.db.execute("INSERT INTO active VALUES (?, ?)", (height, block_hash))
        self.db.executemany("INSERT INTO txs VALUES (?, ?, ?, ?, ?)", indexed)
        self.db.executemany("INSERT INTO coins VALUES (?, ?, ?, ?, ?, ?)", added)
        self.db.executemany("DELETE FROM coins WHERE txid = ? AND vout = ?", spent)

    def disconnect(self, block: Block, height: int) -> None:
        """Take the active chain's last block back."""
        restored = []
        for tx in block.txs[1:]:
            for outpoint in tx.inputs:
                coin = self.spent_coin(outpoint.outpoint)
                restored.append((*outpoint.outpoint, *coin.output, coin.height, coin.coinbase))
        txids = [(tx.txid(),) for tx in block.txs]
        self.db.executemany("INSERT OR REPLACE INTO coins VALUES (?, ?, ?, ?, ?, ?)", restored)
        self.db.executemany("DELETE FROM coins WHERE txid = ?", txids)
        self.db.executemany("DELETE FROM txs WHERE txid = ?", txids)
        self.db.execute("DELETE FROM active WHERE height = ?", (height,))

    def coin(self, outpoint: OutPoint) -> Coin | None:
        """An unspent output of the active chain."""
        row = self.db.execute(
            "SELECT value_sat, script, height, coinbase FROM coins WHERE txid = ? AND vout = ?", outpoint
        ).fetchone()
        return Coin(TxOut(row[0], row[1]), row[2], bool(row[3])) if row else None

    def spent_coin(self, outpoint: OutPoint) -> Coin:
        """An output of a transaction in the active chain, spent or not. Raises KeyError if there is none."""
        found = self.indexed_tx(outpoint.txid)
        if found is None:
            raise KeyError(f"no transaction with output {outpoint} in the active chain")
        return Coin(Tx.parse(found.raw).outputs[outpoint.vout], found.height, found.position == 0)

    def has_coins_of(self, txid: bytes) -> bool:
        """Whether any output of the transaction is unspent in the active chain."""
        return self.db.execute("SELECT 1 FROM coins WHERE txid = ? LIMIT 1", (txid,)).fetchone() is not None

    def indexed_tx(self, txid: bytes) -> IndexedTx | None:
        """A transaction of the active chain."""
        row = self.db.execute(
            "SELECT substr(b.raw, t.start + 1, t.size), t.height, t.position FROM txs t "
            "JOIN active a ON a.height = t.height JOIN blocks b ON b.hash = a.hash WHERE t.txid = ?",
            (txid,),
        ).fetchone()
        return IndexedTx(*row) if row else None

    def wallet_coins(self, wallet: str) -> Iterator[tuple[OutPoint, Coin]]:
        """The unspent outputs of the active chain that pay a wallet's scripts."""
        for txid, vout, value_sat, script, height, coinbase in self.db.execute(
            "SELECT c.txid, c.vout, c.value_sat, c.script, c.height, c.coinbase FROM keys k "
            "CROSS JOIN coins c ON c.script = k.script WHERE k.wallet = ?",
            (wallet,),
        ):
            yield OutPoint(txid, vout), Coin(TxOut(value_sat, script), height, bool(coinbase))

    def all_coins(self) -> Iterator[tuple[OutPoint, Coin]]:
        """Every unspent output, ordered by outpoint."""
        for txid, vout, value_sat, script, height, coinbase in self.db.execute(
            "SELECT txid, vout, value_sat, script, height, coinbase FROM coins ORDER BY txid, vout"
        ):
            yield OutPoint(txid, vout), Coin(TxOut(value_sat, script), height, bool(coinbase))

    # The mempool, while the daemon is down.

    def save_mempool(self, rows: Iterable[tuple[bytes, int, int]], deltas: Iterable[tuple[bytes, int]]) -> None:
        """Keep (raw, time in seconds, fee delta in sat) of all unconfirmed transactions, and deltas of unknown ones."""
        with self.transaction():
            self.db.execute("DELETE FROM mempool")
            self.db.execute("DELETE FROM deltas")
            self.db.executemany("INSERT INTO mempool (raw, time, delta_sat) VALUES (?, ?, ?)", rows)
            self.db.executemany("INSERT INTO deltas VALUES (?, ?)", deltas)

    def saved_mempool(self) -> tuple[list[tuple[bytes, int, int]], list[tuple[bytes, int]]]:
        """What `save_mempool` kept."""
        rows = self.db.execute("SELECT raw, time, delta_sat FROM mempool ORDER BY place").fetchall()
        return rows, self.db.execute("SELECT txid, delta_sat FROM deltas").fetchall()


def _coin_rows(tx: Tx, txid: bytes, height: int, coinbase: bool) -> Iterator[tuple[bytes, int, int, bytes, int, bool]]:
    for vout, (value_sat, script) in enumerate(tx.outputs):
        if not is_unspendable(script):
            yield txid, vout, value_sat, script, height, coinbase
