"""What the wallet keeps in a database: SQLAlchemy Core tables, reading them, and the statements that change them.

Whoever owns the database includes `metadata` in its migrations and commits the `Write`s that the wallet hands out,
together with its own, in one transaction. `SqlStore` is the small store for a wallet that stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

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

Verb = Literal["insert", "update", "delete", "delete_below"]


class Write(NamedTuple):
    """A change of rows as a value, for any writer: `parameters` are those of the columns `values` (what is set), then
    those of `where` (which rows; `delete_below`: rows whose one `where` column is less)."""

    verb: Verb
    table: Table
    values: tuple[str, ...]
    where: tuple[str, ...]
    parameters: tuple[Any, ...]

    def statement(self) -> Executable:
        """The same for SQLAlchemy to execute."""
        values = dict(zip(self.values, self.parameters, strict=False))
        columns = self.table.c
        if self.verb == "insert":
            return insert(self.table).values(values)
        keys = list(zip(self.where, self.parameters[len(self.values) :], strict=True))
        if self.verb == "delete_below":
            return delete(self.table).where(*(columns[name] < value for name, value in keys))
        condition = [columns[name] == value for name, value in keys]
        if self.verb == "update":
            return update(self.table).where(*condition).values(values)
        return delete(self.table).where(*condition)


def _insert(table: Table, **values: Any) -> Write:
    return Write("insert", table, tuple(values), (), tuple(values.values()))


def _update(table: Table, values: dict[str, Any], where: dict[str, Any]) -> Write:
    return Write("update", table, tuple(values), tuple(where), (*values.values(), *where.values()))


def _delete(table: Table, **where: Any) -> Write:
    return Write("delete", table, (), tuple(where), tuple(where.values()))


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
                connection.execute(write.statement())

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
    return _insert(meta_table, name=name, value=value)


def update_meta(name: str, value: str) -> Write:
    """Change an entry."""
    return _update(meta_table, {"value": value}, {"name": name})


def insert_script(script: NewScript) -> Write:
    """A script that is looked for from now on."""
    path = script.path
    return _insert(
        scripts_table, script_pubkey=script.script_pubkey, kind=path.kind.value, chain=path.chain, child=path.child
    )


def insert_cursor(path: KeyPath) -> Write:
    """A chain's next path to give out, for the first time."""
    return _insert(cursors_table, kind=path.kind.value, chain=path.chain, next_child=path.child)


def update_cursor(path: KeyPath) -> Write:
    """A chain's next path to give out."""
    return _update(cursors_table, {"next_child": path.child}, {"kind": path.kind.value, "chain": path.chain})


def insert_tx(wallet_tx: WalletTx) -> Write:
    """A new transaction."""
    return _insert(txs_table, txid=wallet_tx.txid, **_tx_columns(wallet_tx))


def update_tx(wallet_tx: WalletTx) -> Write:
    """What is noted about a transaction."""
    return _update(txs_table, _tx_columns(wallet_tx), {"txid": wallet_tx.txid})


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
    return _insert(blocks_table, height=block.height, hash=block.hash)


def delete_block(height: int) -> Write:
    """A block left the chain."""
    return _delete(blocks_table, height=height)


def delete_blocks_below(height: int) -> Write:
    """Blocks too deep to be undone need not be remembered."""
    return Write("delete_below", blocks_table, (), ("height",), (height,))


def insert_reserved(coin: ReservedCoin) -> Write:
    """A coin that is set aside."""
    return _insert(
        reservations_table,
        txid=coin.outpoint.txid,
        vout=coin.outpoint.vout,
        reservation=coin.reservation,
        expires_at_seconds=coin.expires_at_seconds,
    )


def delete_reservation(reservation: int) -> Write:
    """The coins of a reservation are free again, or spent."""
    return _delete(reservations_table, reservation=reservation)
