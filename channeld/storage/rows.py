"""The daemon's statements, and the translation of a channel's writes into rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, assert_never

import msgspec
from sqlalchemy import Connection, select

from channeld.channel import writes as channel_writes
from channeld.storage import tables
from channeld.storage.statements import Write, delete, delete_below, insert, lookup, update, upsert

_encode = msgspec.msgpack.encode

SET_META = upsert(tables.meta)

INSERT_CHANNEL = insert(tables.channels)
FORGET_CHANNEL = delete(tables.channels, "channel_key")
UPDATE_CHANNEL = update(tables.channels, ["state"], ["channel_key"])
UPDATE_CHANNEL_PHASE = update(tables.channels, ["channel_id", "phase", "closed", "state"], ["channel_key"])

SAVE_ADD = upsert(tables.adds)
FORGET_ADD = delete(tables.adds, "channel_key", "offered", "htlc_id")
SAVE_REVOCABLE = upsert(tables.revocable)
FORGET_REVOCABLES = delete(tables.revocable, "channel_key")

SAVE_WATCH = upsert(tables.watches)
FORGET_WATCH = delete(tables.watches, "channel_key")

SAVE_PEER = upsert(tables.peers)

SAVE_PEER_STORAGE = upsert(tables.peer_storage)
FIND_PEER_STORAGE = lookup(tables.peer_storage, ["blob"], ["node_id"])
IDLE_PEER_STORAGE = update(tables.peer_storage, ["idle_height"], ["node_id"])
FORGET_PEER_STORAGE = delete(tables.peer_storage, "node_id")

SAVE_INVOICE = upsert(tables.invoices)
FIND_INVOICE = lookup(tables.invoices, ["state"], ["payment_hash"])
SAVE_PAYMENT = upsert(tables.payments)
FIND_PAYMENTS = lookup(tables.payments, ["state"], ["payment_hash"])
FORGET_PAYMENT = delete(tables.payments, "payment_id")
SAVE_PREIMAGE = upsert(tables.preimages)
FIND_PREIMAGE = lookup(tables.preimages, ["payment_preimage"], ["payment_hash"])
SAVE_ONION = upsert(tables.onions)
FORGET_ONIONS_BELOW = delete_below(tables.onions, "cltv_expiry")
SAVE_IDEMPOTENCY = upsert(tables.idempotency)
FIND_IDEMPOTENCY = lookup(tables.idempotency, ["arguments", "reference"], ["key"])

SAVE_POLICY = upsert(tables.channel_policies)
FORGET_POLICY = delete(tables.channel_policies, "channel_key")
SAVE_FORWARD = upsert(tables.forwards)

SAVE_BROADCAST = upsert(tables.broadcasts)
FORGET_BROADCAST = delete(tables.broadcasts, "txid")


def channel_write(channel_key: int, write: channel_writes.Write) -> Write:
    """The row for what a transition wants kept beside its state."""
    match write:
        case channel_writes.SaveAdd(offered, htlc_id, raw):
            return SAVE_ADD(channel_key, offered, htlc_id, raw)
        case channel_writes.ForgetAdd(offered, htlc_id):
            return FORGET_ADD(channel_key, offered, htlc_id)
        case channel_writes.SaveRevocable():
            return SAVE_REVOCABLE(channel_key, write.index, write.txid, _encode(write))
        case _:
            assert_never(write)


class StoredChannel(NamedTuple):
    """A row of `channels` with its adds."""

    channel_key: int
    channel_id: bytes
    peer_id: bytes
    phase: str
    closed: bool
    state: bytes
    created_seconds: int
    adds: dict[tuple[bool, int], bytes]


def load_channels(connection: Connection, *, closed: bool) -> list[StoredChannel]:
    """All channels that are (not) over, with their adds."""
    found: dict[int, StoredChannel] = {}
    for row in connection.execute(select(tables.channels).where(tables.channels.c.closed == closed)):
        key, channel_id, peer_id, phase, is_closed, state, created_seconds = row
        found[key] = StoredChannel(key, channel_id, peer_id, phase, is_closed, state, created_seconds, {})
    for row in connection.execute(select(tables.adds)):
        if row.channel_key in found:
            found[row.channel_key].adds[row.offered, row.htlc_id] = row.raw
    return list(found.values())


def load_meta(connection: Connection) -> dict[str, bytes]:
    """Everything in `meta`."""
    return {row.key: row.value for row in connection.execute(select(tables.meta))}


def load_onions(connection: Connection) -> Iterable[tuple[bytes, int, int, int]]:
    """(replay_key, channel_key, htlc_id, cltv_expiry) of every onion still remembered."""
    return [(row[0], row[1], row[2], row[3]) for row in connection.execute(select(tables.onions))]
