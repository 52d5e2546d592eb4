"""Idempotency keys: the same key twice does a thing once, also across restarts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from channeld.node.interface import NodeError
from channeld.storage import Store, Write, rows

T = TypeVar("T")
Mark = Callable[[bytes], Sequence[Write]]
MAX_KEY_LENGTH = 255


class _Running(NamedTuple):
    arguments: bytes
    reference: asyncio.Future[bytes]


class Idempotency:
    """Runs calls at most once per key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[str, _Running] = {}

    async def once(
        self,
        key: str,
        verb: str,
        arguments: Sequence[Any],
        do: Callable[[Mark], Awaitable[T]],
        again: Callable[[bytes], Awaitable[T]],
    ) -> T:
        """`do(mark)` the first time, `again(reference)` afterwards. `do` calls `mark(reference)` when it moves money,
        and commits the rows that it returns in the transaction that does so; if it raises before, the key is free.

        Raises NodeError `aborted` if the key was used for something else.
        """
        if not key:
            return await do(lambda _: ())
        if len(key) > MAX_KEY_LENGTH:
            raise NodeError("invalid_argument", f"an idempotency key has at most {MAX_KEY_LENGTH} characters")
        digest = hashlib.sha256(msgspec.msgpack.encode([verb, *arguments])).digest()
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Running(digest, asyncio.get_running_loop().create_future())
            try:
                stored = self._store.lookup(rows.FIND_IDEMPOTENCY, key)
                if stored:
                    _check(stored[0][0], digest)
                    running.reference.set_result(stored[0][1])
                    return await again(stored[0][1])
                return await do(lambda reference: self._mark(key, verb, running, reference))
            except BaseException as error:
                if not running.reference.done():
                    running.reference.set_exception(
                        error if isinstance(error, NodeError) else NodeError("internal", "the first call failed")
                    )
                    running.reference.exception()  # nobody may be waiting
                raise
            finally:
                # A call that was given up may have rows on their way: the key is busy until those are durable.
                self._store.submit((), lambda _: self._forget(key))
        _check(running.arguments, digest)
        reference = await asyncio.shield(running.reference)
        await self._store.commit(())  # what the first call has submitted is durable: it may be spoken of
        return await again(reference)

    def _forget(self, key: str) -> None:
        del self._running[key]

    def _mark(self, key: str, verb: str, running: _Running, reference: bytes) -> Sequence[Write]:
        if not running.reference.done():
            running.reference.set_result(reference)
        return (rows.SAVE_IDEMPOTENCY(key, verb, running.arguments, reference, int(time.time())),)


def _check(stored: bytes, asked: bytes) -> None:
    if stored != asked:
        raise NodeError("aborted", "this idempotency key was used before, for something else: take a new key")
