"""The monitor's rows: facts of the chain, how each close is going, what to tell of it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, select

from channeld.channel.writes import SaveRevocable
from channeld.onchain.facts import Fact
from channeld.onchain.report import CloseReport
from channeld.onchain.resolution import Resolution
from channeld.storage import Write, tables
from channeld.storage.statements import delete, upsert
from wallet.bitcoin import Tx

SAVE_FACT = upsert(tables.close_facts)
FORGET_FACTS_AT = delete(tables.close_facts, "height")
FORGET_FACTS_OF = delete(tables.close_facts, "channel_key")
SAVE_CLOSE = upsert(tables.closes)

_encode = msgspec.msgpack.encode
_resolution = msgspec.msgpack.Decoder(Resolution)
_report = msgspec.msgpack.Decoder(CloseReport)
_revocable = msgspec.msgpack.Decoder(SaveRevocable)


class StoredClose(NamedTuple):
    """A row of `closes`."""

    resolution: Resolution
    report: CloseReport | None
    over: bool


def save_fact(channel_key: int, fact: Fact, position: int) -> Write:
    """A fact's row."""
    return SAVE_FACT(channel_key, fact.txid, fact.height, position, fact.tx.serialize())


def save_close(channel_key: int, close: StoredClose) -> Write:
    """A close's row."""
    report = None if close.report is None else _encode(close.report)
    return SAVE_CLOSE(channel_key, _encode(close.resolution), report, close.over)


def load_facts(connection: Connection) -> dict[int, list[Fact]]:
    """All facts by channel, in the chain's order."""
    found: dict[int, list[Fact]] = {}
    table = tables.close_facts
    for row in connection.execute(select(table).order_by(table.c.height, table.c.position)):
        found.setdefault(row.channel_key, []).append(Fact(row.height, row.txid, Tx.parse(row.raw)))
    return found


def load_closes(connection: Connection) -> dict[int, StoredClose]:
    """Closes that are not over."""
    table = tables.closes
    return {
        row.channel_key: StoredClose(
            _resolution.decode(row.resolution), None if row.report is None else _report.decode(row.report), row.over
        )
        for row in connection.execute(select(table).where(~table.c.over))
    }


def load_report(connection: Connection, channel_id: bytes) -> CloseReport | None:
    """What there is to tell of a channel's end, also long after it is over."""
    channels, closes = tables.channels, tables.closes
    query = select(closes.c.report).join(channels, channels.c.channel_key == closes.c.channel_key)
    blob = connection.execute(query.where(channels.c.channel_id == channel_id)).scalar()
    return None if blob is None else _report.decode(blob)


def load_revocable(connection: Connection, channel_key: int, number: int) -> SaveRevocable | None:
    """What was kept of the peer's commitment `number`."""
    table = tables.revocable
    query = select(table.c.details).where(table.c.channel_key == channel_key, table.c.commitment_index == number)
    blob = connection.execute(query).scalar()
    return None if blob is None else _revocable.decode(blob)
