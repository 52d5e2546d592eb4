"""Funding outputs: which ones to look for in blocks, and what was seen of them (depth, spends)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from msgspec import Struct
from sqlalchemy import Connection, select

from channeld.channel import events as ev
from channeld.storage import Write, rows, tables
from wallet.bitcoin import OutPoint, Tx

_Key = TypeVar("_Key", bytes, OutPoint)


class Watch(Struct):
    """One channel's funding output and its history on chain, as far as processed blocks tell."""

    channel_key: int
    outpoint: OutPoint
    script_pubkey: bytes
    confirmed_height: int | None = None
    tx_index: int | None = None
    amount_sat: int | None = None
    spent_height: int | None = None
    spending_tx: Tx | None = None
    inputs: tuple[OutPoint, ...] = ()
    """What the funding transaction spends, once it is known."""
    rival_txid: bytes = b""
    """Another transaction that spends one of them: a double spend."""
    rival_height: int | None = None
    news: bool = True
    """Something changed that the channel has not been told."""

    def row(self) -> Write:
        """As stored."""
        return rows.SAVE_WATCH(
            self.channel_key,
            self.outpoint.txid,
            self.outpoint.vout,
            self.script_pubkey,
            self.confirmed_height,
            self.tx_index,
            self.amount_sat,
            self.spent_height,
            None if self.spending_tx is None else self.spending_tx.serialize(),
            b"".join(outpoint.serialize() for outpoint in self.inputs),
            self.rival_txid,
            self.rival_height,
        )


class ChannelFact(NamedTuple):
    """An event for a channel."""

    channel_key: int
    event: ev.Event


DEEP_BLOCKS = 150
"""Depths beyond this are told no more: nobody asks for more confirmations."""


class Watches:
    """All funding outputs of channels that are not over. Looking up a block costs one set lookup per input and output
    transaction."""

    def __init__(self) -> None:
        self._by_key: dict[int, Watch] = {}
        self._by_outpoint: dict[OutPoint, Watch] = {}
        self._by_txid: dict[bytes, list[Watch]] = {}
        self._by_input: dict[OutPoint, list[Watch]] = {}

    def load(self, connection: Connection) -> None:
        """As they were when the node stopped."""
        for row in connection.execute(select(tables.watches)):
            spending = None if row.spending_tx is None else Tx.parse(row.spending_tx)
            self._insert(
                Watch(
                    row.channel_key,
                    OutPoint(row.txid, row.vout),
                    row.script_pubkey,
                    row.confirmed_height,
                    row.tx_index,
                    row.amount_sat,
                    row.spent_height,
                    spending,
                    _outpoints(row.funding_inputs or b""),
                    row.rival_txid or b"",
                    row.rival_height,
                )
            )

    def add(
        self, channel_key: int, outpoint: OutPoint, script_pubkey: bytes, inputs: tuple[OutPoint, ...] = ()
    ) -> list[Write]:
        """Watch from now on; the row to store. `inputs` of the funding transaction, if it is known."""
        watch = self._by_key.get(channel_key)
        if watch is None:
            watch = Watch(channel_key, outpoint, script_pubkey, inputs=inputs)
            self._insert(watch)
        elif inputs and not watch.inputs:
            self._know_inputs(watch, inputs)
        else:
            return []
        return [watch.row()]

    def _know_inputs(self, watch: Watch, inputs: tuple[OutPoint, ...]) -> None:
        watch.inputs = inputs
        for spent in inputs:
            self._by_input.setdefault(spent, []).append(watch)

    def _insert(self, watch: Watch) -> None:
        self._by_key[watch.channel_key] = watch
        self._by_outpoint[watch.outpoint] = watch
        self._by_txid.setdefault(watch.outpoint.txid, []).append(watch)
        self._know_inputs(watch, watch.inputs)

    def remove(self, channel_key: int) -> list[Write]:
        """The channel is over."""
        watch = self._by_key.pop(channel_key, None)
        if watch is None:
            return []
        del self._by_outpoint[watch.outpoint]
        _take_out(self._by_txid, watch.outpoint.txid, watch)
        for spent in watch.inputs:
            _take_out(self._by_input, spent, watch)
        return [rows.FORGET_WATCH(channel_key)]

    def get(self, channel_key: int) -> Watch | None:
        """What is known about a channel's funding output."""
        return self._by_key.get(channel_key)

    def channel_of(self, outpoint: OutPoint) -> int | None:
        """Whose funding output this is, if any channel's that is not over."""
        watch = self._by_outpoint.get(outpoint)
        return None if watch is None else watch.channel_key

    # --- blocks

    def scan(self, tx: Tx, txid: bytes, height: int, tx_index: int) -> list[Write]:
        """A transaction is in the block at `height`: is it a funding, does it spend one, or what one should spend?"""
        writes = []
        for watch in self._by_txid.get(txid, ()):
            if _pays(tx, watch):
                watch.confirmed_height, watch.tx_index, watch.news = height, tx_index, True
                watch.amount_sat = tx.outputs[watch.outpoint.vout].value_sat
                if not watch.inputs:
                    self._know_inputs(watch, tx.spends())
                writes.append(watch.row())
        for txin in tx.inputs:
            for robbed in self._by_input.get(txin.outpoint, ()):
                if robbed.outpoint.txid != txid:
                    robbed.rival_txid, robbed.rival_height, robbed.news = txid, height, True
                    writes.append(robbed.row())
            spent = self._by_outpoint.get(txin.outpoint)
            if spent is not None:
                spent.spent_height, spent.spending_tx, spent.news = height, tx, True
                writes.append(spent.row())
        return writes

    def disconnected(self, height: int) -> list[Write]:
        """The block at `height` left the chain."""
        writes = []
        for watch in self._by_key.values():
            changed = False
            if watch.confirmed_height is not None and watch.confirmed_height >= height:
                watch.confirmed_height = watch.tx_index = None
                changed = True
            if watch.spent_height is not None and watch.spent_height >= height:
                watch.spent_height = None
                changed = True
            if watch.rival_height is not None and watch.rival_height >= height:
                watch.rival_txid, watch.rival_height = b"", None
                changed = True
            if changed:
                watch.news = True
                writes.append(watch.row())
        return writes

    def facts(self, height: int) -> Iterator[ChannelFact]:
        """What the channels should be told at this tip: depths while they count, spends, and what changed."""
        for watch in self._by_key.values():
            news, watch.news = watch.news, False
            depth = 0 if watch.confirmed_height is None else height - watch.confirmed_height + 1
            if news or 0 < depth <= DEEP_BLOCKS or watch.rival_height is not None:
                rival_depth = 0 if watch.rival_height is None else height - watch.rival_height + 1
                fact = ev.FundingDepth(
                    depth,
                    watch.confirmed_height or 0,
                    watch.tx_index or 0,
                    watch.amount_sat,
                    watch.rival_txid,
                    rival_depth,
                )
                yield ChannelFact(watch.channel_key, fact)
            if watch.spending_tx is not None and (news or watch.spent_height is not None):
                spent_depth = 0 if watch.spent_height is None else height - watch.spent_height + 1
                spent = ev.FundingSpent(watch.spending_tx, watch.spent_height, spent_depth)
                yield ChannelFact(watch.channel_key, spent)


def _take_out(watches: dict[_Key, list[Watch]], key: _Key, watch: Watch) -> None:
    """One of those under a key; a key without any goes."""
    watches[key].remove(watch)
    if not watches[key]:
        del watches[key]


def _outpoints(data: bytes) -> tuple[OutPoint, ...]:
    """The reverse of writing 36 bytes each."""
    chunks = (data[start : start + 36] for start in range(0, len(data), 36))
    return tuple(OutPoint(chunk[:32], int.from_bytes(chunk[32:], "little")) for chunk in chunks)


def _pays(tx: Tx, watch: Watch) -> bool:
    vout = watch.outpoint.vout
    return vout < len(tx.outputs) and tx.outputs[vout].script_pubkey == watch.script_pubkey
