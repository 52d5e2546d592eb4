"""What the wallet keeps in a database: SQLAlchemy Core tables, reading them, and the statements that change them.

Whoever owns the database includes `metadata` in its migrations and commits the statements ("writes") that the wallet
hands out, together with its own, in one transaction. `SqlStore` is the small store for a wallet that stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Executable,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    insert,
    select,
    update,
)

from wallet.bitcoin import OutPoint, Tx
from wallet.chain import BlockRef
from wallet.coins import NewScript, WalletTx
from wallet.keys import AddressKind, KeyPath

Write = Executable
"""One SQLAlchemy statement with its values bound."""

metadata = MetaData()

meta_table = Table(
    "wallet_meta",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
"""`fingerprint` of the seed (hex), `birthday_height` from which the chain is followed."""

scripts_table = Table(
    "wallet_scripts",
    metadata,
    Column("script_pubkey", LargeBinary(34), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("chain", Integer, nullable=False),
    Column("child", Integer, nullable=False),
)

cursors_table = Table(
    "wallet_cursors",
    metadata,
    Column("kind", String(8), primary_key=True),
    Column("chain", Integer, primary_key=True),
    Column("next_child", Integer, nullable=False),
)

txs_table = Table(
    "wallet_txs",
    metadata,
    Column("txid", LargeBinary(32), primary_key=True),
    Column("raw", LargeBinary, nullable=False),
    Column("height", Integer, index=True),
    Column("block_hash", LargeBinary(32)),
    Column("time_seconds", BigInteger, nullable=False),
    Column("fee_sat", BigInteger),
    Column("own", Boolean, nullable=False),
    Column("fixed", Boolean, nullable=False),
    Column("elastic_vout", Integer),
    Column("replaced_by", LargeBinary(32)),
    Column("label", Text, nullable=False),
)

blocks_table = Table(
    "wallet_blocks",
    metadata,
    Column("height", Integer, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False),
)

reservations_table = Table(
    "wallet_reservations",
    metadata,
    Column("txid", LargeBinary(32), primary_key=True),
    Column("vout", Integer, primary_key=True, autoincrement=False),
    Column("reservation", Integer, nullable=False, index=True),
    Column("expires_at_seconds", BigInteger),
)


class ReservedCoin(NamedTuple):
    """A coin set aside under a reservation's number, for ever or until a Unix time."""

    outpoint: OutPoint
    reservation: int
    expires_at_seconds: int | None


@dataclass(frozen=True)
class Snapshot:
    """Everything the wallet keeps, as read at start."""

    meta: dict[str, str] = field(default_factory=dict)
    scripts: list[NewScript] = field(default_factory=list)
    cursors: list[KeyPath] = field(default_factory=list)
    txs: list[WalletTx] = field(default_factory=list)
    blocks: list[BlockRef] = field(default_factory=list)
    reserved: list[ReservedCoin] = field(default_factory=list)


class WalletStore(Protocol):
    """Where a wallet is kept."""

    def load(self) -> Snapshot:
        """Read everything, once, at start."""
        ...

    async def commit(self, writes: Sequence[Write]) -> None:
        """Make the writes durable, all or none, before returning."""
        ...


class SqlStore:
    """A WalletStore on a database of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        metadata.create_all(engine)

    @classmethod
    def open(cls, url: str) -> SqlStore:
        """By SQLAlchemy URL, such as `sqlite:///wallet.db`; tables are made if they are missing."""
        return cls(create_engine(url))

    def load(self) -> Snapshot:
        """Read everything."""
        with self._engine.connect() as connection:
            return load_snapshot(connection)

    async def commit(self, writes: Sequence[Write]) -> None:
        """One transaction for all writes."""
        self.commit_now(writes)

    def commit_now(self, writes: Sequence[Write]) -> None:
        """`commit`, for callers without an event loop."""
        with self._engine.begin() as connection:
            for write in writes:
                connection.execute(write)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def load_snapshot(connection: Connection) -> Snapshot:
    """Read the wallet's tables."""
    rows = connection.execute
    return Snapshot(
        meta={row.name: row.value for row in rows(select(meta_table))},
        scripts=[
            NewScript(row.script_pubkey, KeyPath(AddressKind(row.kind), row.chain, row.child))
            for row in rows(select(scripts_table))
        ],
        cursors=[KeyPath(AddressKind(row.kind), row.chain, row.next_child) for row in rows(select(cursors_table))],
        txs=[
            WalletTx(
                row.txid,
                Tx.parse(row.raw),
                row.height,
                row.block_hash,
                row.time_seconds,
                row.fee_sat,
                row.own,
                row.fixed,
                row.elastic_vout,
                row.replaced_by,
                row.label,
            )
            for row in rows(select(txs_table))
        ],
        blocks=[BlockRef(row.height, row.hash) for row in rows(select(blocks_table).order_by(blocks_table.c.height))],
        reserved=[
            ReservedCoin(OutPoint(row.txid, row.vout), row.reservation, row.expires_at_seconds)
            for row in rows(select(reservations_table))
        ],
    )


def insert_meta(name: str, value: str) -> Write:
    """A new entry."""
    return insert(meta_table).values(name=name, value=value)


def update_meta(name: str, value: str) -> Write:
    """Change an entry."""
    return update(meta_table).where(meta_table.c.name == name).values(value=value)


def insert_scripts(scripts: Sequence[NewScript]) -> Write:
    """Scripts that are looked for from now on."""
    return insert(scripts_table).values(
        [
            {"script_pubkey": script, "kind": path.kind.value, "chain": path.chain, "child": path.child}
            for script, path in scripts
        ]
    )


def insert_cursor(path: KeyPath) -> Write:
    """A chain's next path to give out, for the first time."""
    return insert(cursors_table).values(kind=path.kind.value, chain=path.chain, next_child=path.child)


def update_cursor(path: KeyPath) -> Write:
    """A chain's next path to give out."""
    table = cursors_table
    return (
        update(table).where(table.c.kind == path.kind.value, table.c.chain == path.chain).values(next_child=path.child)
    )


def insert_tx(wallet_tx: WalletTx) -> Write:
    """A new transaction."""
    return insert(txs_table).values(txid=wallet_tx.txid, **_tx_columns(wallet_tx))


def update_tx(wallet_tx: WalletTx) -> Write:
    """What is noted about a transaction."""
    return update(txs_table).where(txs_table.c.txid == wallet_tx.txid).values(**_tx_columns(wallet_tx))


def _tx_columns(wallet_tx: WalletTx) -> dict[str, object]:
    return {
        "raw": wallet_tx.tx.serialize(),
        "height": wallet_tx.height,
        "block_hash": wallet_tx.block_hash,
        "time_seconds": wallet_tx.time_seconds,
        "fee_sat": wallet_tx.fee_sat,
        "own": wallet_tx.own,
        "fixed": wallet_tx.fixed,
        "elastic_vout": wallet_tx.elastic_vout,
        "replaced_by": wallet_tx.replaced_by,
        "label": wallet_tx.label,
    }


def insert_block(block: BlockRef) -> Write:
    """A block was processed."""
    return insert(blocks_table).values(height=block.height, hash=block.hash)


def delete_block(height: int) -> Write:
    """A block left the chain."""
    return delete(blocks_table).where(blocks_table.c.height == height)


def delete_blocks_below(height: int) -> Write:
    """Blocks too deep to be undone need not be remembered."""
    return delete(blocks_table).where(blocks_table.c.height < height)


def insert_reserved(coins: Sequence[ReservedCoin]) -> Write:
    """Coins that are set aside."""
    return insert(reservations_table).values(
        [
            {
                "txid": coin.outpoint.txid,
                "vout": coin.outpoint.vout,
                "reservation": coin.reservation,
                "expires_at_seconds": coin.expires_at_seconds,
            }
            for coin in coins
        ]
    )


def delete_reservation(reservation: int) -> Write:
    """The coins of a reservation are free again, or spent."""
    return delete(reservations_table).where(reservations_table.c.reservation == reservation)
