"""Broadcasts: published until they are buried or beaten, across restarts and while layer 1 is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from sqlalchemy import create_engine

from channeld.node.broadcasts import BURIED_BLOCKS, Broadcasts
from channeld.node.bus import EventBus
from channeld.storage import Write, rows, tables
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.chain import BroadcastOutcome, BroadcastResult, ChainSource, ChainUnavailable


class FakeSource:
    def __init__(self) -> None:
        self.offered: asyncio.Queue[Tx] = asyncio.Queue()
        self.away = False

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        self.offered.put_nowait(tx)
        if self.away:
            raise ChainUnavailable("layer 1 is away")
        return BroadcastResult(BroadcastOutcome.ACCEPTED)

    async def next(self) -> Tx:
        return await asyncio.wait_for(self.offered.get(), 60)


def spend(vout: int, value_sat: int) -> Tx:
    return Tx(2, (TxIn(OutPoint(b"\x11" * 32, vout)),), (TxOut(value_sat, b"\x51"),), 0)


@pytest.fixture
async def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
async def broadcasts(source: FakeSource) -> AsyncIterator[Broadcasts]:
    broadcasts = Broadcasts(cast(ChainSource, source), EventBus())
    task = asyncio.create_task(broadcasts.run())
    yield broadcasts
    task.cancel()


def statements(writes: list[Write]) -> list[object]:
    return [write.statement for write in writes]


def add(broadcasts: Broadcasts, tx: Tx, channel_key: int) -> None:
    """Added, durable, published."""
    broadcasts.add(tx, "test", channel_key)
    broadcasts.publish(tx.txid())


async def test_nothing_is_published_before_it_is_durable(broadcasts: Broadcasts, source: FakeSource) -> None:
    tx = spend(0, 1000)
    broadcasts.add(tx, "test", 1)
    broadcasts.publish_all()
    for _ in range(3):
        await asyncio.sleep(0)
    assert source.offered.empty()
    broadcasts.publish(tx.txid())
    assert await source.next() == tx


async def test_it_is_published_again_until_it_is_six_deep(broadcasts: Broadcasts, source: FakeSource) -> None:
    tx = spend(0, 1000)
    assert statements(broadcasts.add(tx, "test", 1)) == [rows.SAVE_BROADCAST]
    assert broadcasts.add(tx, "test", 1) == []
    broadcasts.publish(tx.txid())
    assert await source.next() == tx
    broadcasts.publish_all()
    assert await source.next() == tx
    assert statements(broadcasts.scan(tx, tx.txid(), 100)) == [rows.SAVE_BROADCAST]
    assert broadcasts.bury(100 + BURIED_BLOCKS - 2) == []
    assert statements(broadcasts.disconnected(100)) == [rows.SAVE_BROADCAST]
    broadcasts.publish_all()
    assert await source.next() == tx
    broadcasts.scan(tx, tx.txid(), 101)
    assert broadcasts.bury(101 + BURIED_BLOCKS - 1) == [rows.FORGET_BROADCAST(tx.txid())]
    broadcasts.publish(tx.txid())
    broadcasts.publish_all()
    await asyncio.sleep(0)
    assert source.offered.empty()


async def test_what_was_beaten_is_given_up_unless_the_winner_is_reorganised(
    broadcasts: Broadcasts, source: FakeSource
) -> None:
    ours, rival = spend(0, 1000), spend(0, 900)
    add(broadcasts, ours, 1)
    assert await source.next() == ours
    (row,) = broadcasts.scan(rival, rival.txid(), 100)
    assert row.parameters[-1] == 100
    broadcasts.publish_all()
    await asyncio.sleep(0)
    assert source.offered.empty()
    broadcasts.disconnected(100)
    broadcasts.publish_all()
    assert await source.next() == ours
    broadcasts.scan(rival, rival.txid(), 100)
    assert broadcasts.bury(105) == [rows.FORGET_BROADCAST(ours.txid())]


async def test_a_channel_that_is_over_publishes_nothing(broadcasts: Broadcasts, source: FakeSource) -> None:
    first, second, other = spend(0, 1000), spend(1, 1000), spend(2, 1000)
    for tx, channel_key in ((first, 1), (second, 1), (other, 2)):
        add(broadcasts, tx, channel_key)
        assert await source.next() == tx
    forgotten = broadcasts.channel_over(1)
    assert forgotten == [rows.FORGET_BROADCAST(first.txid()), rows.FORGET_BROADCAST(second.txid())]
    broadcasts.publish_all()
    assert await source.next() == other


async def test_while_layer_1_is_away_nothing_is_lost(broadcasts: Broadcasts, source: FakeSource) -> None:
    tx = spend(0, 1000)
    source.away = True
    broadcasts.add(tx, "test", 1)
    broadcasts.publish(tx.txid())
    await asyncio.wait_for(broadcasts.wait_offered(tx.txid()), 60)
    assert await source.next() == tx
    source.away = False
    broadcasts.publish_all()
    assert await source.next() == tx


def loaded(source: FakeSource, tx: Tx) -> Broadcasts:
    """After a restart, with a transaction in the database."""
    with create_engine("sqlite://").connect() as connection:
        tables.metadata.create_all(connection)
        row = {"txid": tx.txid(), "raw": tx.serialize(), "label": "test", "channel_key": None, "created_seconds": 0}
        connection.execute(tables.broadcasts.insert().values(row))
        broadcasts = Broadcasts(cast(ChainSource, source), EventBus())
        broadcasts.load(connection)
    return broadcasts


async def test_what_was_stored_is_published_after_a_restart(source: FakeSource) -> None:
    tx = spend(0, 1000)
    broadcasts = loaded(source, tx)
    task = asyncio.create_task(broadcasts.run())
    broadcasts.publish_all()
    assert await source.next() == tx
    task.cancel()


async def test_what_was_beaten_stays_beaten_over_a_restart(broadcasts: Broadcasts, source: FakeSource) -> None:
    ours, rival = spend(0, 1000), spend(0, 900)
    add(broadcasts, ours, 1)
    (row,) = broadcasts.scan(rival, rival.txid(), 100)
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        tables.metadata.create_all(connection)
        connection.execute(tables.broadcasts.insert().values(row.parameters))
        again = Broadcasts(cast(ChainSource, source), EventBus())
        again.load(connection)
    again.publish_all()
    assert not again._due
    assert again.bury(105) == [rows.FORGET_BROADCAST(ours.txid())]


async def test_of_two_transactions_of_ours_the_other_is_beaten(broadcasts: Broadcasts, source: FakeSource) -> None:
    first, second = spend(0, 1000), spend(0, 900)
    for tx in (first, second):
        add(broadcasts, tx, 1)
        assert await source.next() == tx
    assert len(broadcasts.scan(second, second.txid(), 100)) == 2
    broadcasts.publish_all()
    await asyncio.sleep(0)
    assert source.offered.empty()


async def test_layer_1_is_asked_again_without_waiting_for_a_block(
    broadcasts: Broadcasts, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channeld.node.broadcasts.RETRY_SECONDS", (0.01, 0.02))
    source.away = True
    tx = spend(0, 1000)
    add(broadcasts, tx, 1)
    for _ in range(4):
        assert await source.next() == tx
    source.away = False
    assert await source.next() == tx
    await asyncio.sleep(0)
    assert not broadcasts._due


async def test_who_waits_for_a_transaction_that_need_not_be_offered_any_more_goes_on(
    broadcasts: Broadcasts, source: FakeSource
) -> None:
    """In a block, beaten, or given up with its channel: nobody will ask layer 1 about it again."""
    mined, beaten, given_up = spend(0, 1000), spend(1, 1000), spend(2, 1000)
    rival = spend(1, 900)
    for tx in (mined, beaten, given_up):
        broadcasts.add(tx, "test", 1)
    waiting = [asyncio.create_task(broadcasts.wait_offered(tx.txid())) for tx in (mined, beaten, given_up)]
    await asyncio.sleep(0)
    stored = [*broadcasts.scan(mined, mined.txid(), 100), *broadcasts.scan(rival, rival.txid(), 100)]
    broadcasts.channel_over(1)
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        tables.metadata.create_all(connection)
        for row in stored:
            connection.execute(tables.broadcasts.insert().values(row.parameters))
        again = Broadcasts(cast(ChainSource, source), EventBus())
        again.load(connection)
    for tx in (mined, beaten):
        await asyncio.wait_for(again.wait_offered(tx.txid()), 5)
    assert source.offered.empty()


async def test_who_waits_after_a_restart_has_layer_1_asked(source: FakeSource) -> None:
    """Before the chain was caught up with, which layer 1 may keep from happening, nothing is published by itself."""
    tx = spend(0, 1000)
    broadcasts = loaded(source, tx)
    source.away = True
    task = asyncio.create_task(broadcasts.run())
    await asyncio.wait_for(broadcasts.wait_offered(tx.txid()), 5)
    assert await source.next() == tx
    task.cancel()
