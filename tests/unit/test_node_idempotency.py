"""Idempotency keys when calls overlap: done once, and everybody gets an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.node.idempotency import Idempotency, Mark
from channeld.storage import Store, make_engine, rows
from channeld.storage.migrate import upgrade


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    engine = make_engine(f"sqlite:///{tmp_path / 'test.sqlite3'}")
    upgrade(engine)
    failures: list[BaseException] = []
    store = Store(engine, failures.append)
    yield store
    await store.close()
    assert failures == []


class Counted:
    """A call that moves money, and how often it did."""

    def __init__(self, store: Store) -> None:
        self.store, self.done = store, 0
        self.keys = Idempotency(store)
        self.slow = asyncio.Event()

    async def do(self, mark: Mark) -> str:
        self.done += 1
        await self.store.commit(list(mark(b"reference")))
        return "first"

    async def again(self, reference: bytes) -> str:
        assert reference == b"reference"
        await self.slow.wait()
        return "again"

    def call(self) -> asyncio.Task[str]:
        return asyncio.create_task(self.keys.once("key", "pay", (1,), self.do, self.again))


async def _both(first: asyncio.Task[str], second: asyncio.Task[str]) -> tuple[str, str]:
    return await first, await second


async def test_two_repetitions_at_once_are_both_answered(store: Store) -> None:
    counted = Counted(store)
    assert await counted.call() == "first"
    first, second = counted.call(), counted.call()
    await asyncio.sleep(0)
    counted.slow.set()
    assert await asyncio.wait_for(_both(first, second), 60) == ("again", "again")
    assert counted.done == 1


async def test_a_repetition_hears_of_nothing_that_is_not_durable(store: Store) -> None:
    counted, durable = Counted(store), []

    async def again(reference: bytes) -> str:
        durable.append(store.lookup(rows.FIND_IDEMPOTENCY, "key") != [])
        return "again"

    calls = [counted.keys.once("key", "pay", (1,), counted.do, again) for _ in range(3)]
    assert await asyncio.wait_for(asyncio.gather(*calls), 60) == ["first", "again", "again"]
    assert durable == [True, True]


async def test_a_call_given_up_while_it_is_stored_is_not_done_twice(store: Store) -> None:
    counted = Counted(store)
    counted.slow.set()
    first = counted.call()
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await counted.call() == "again"
    assert counted.done == 1
