"""Virtual time, lives and luck: what makes a run of real nodes a function of its seed.

The event loop's clock jumps to the next timer, threads are calls, and everything that happens belongs to a *life*: a
process, from its start to its crash. What is left of a life that ended is never run, so a crash needs no cooperation.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop
from typing import Any

import coincurve.utils

from channeld.node import transport

EPOCH_SECONDS = 1_800_000_000
"""What `time.time()` says when the loop's clock is at 0."""
THREAD_SECONDS = 0.002
"""How long a call in another thread takes."""


class Life:
    """A process, from its start to its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.context = contextvars.copy_context()
        self.context.run(LIFE.set, self)
        self.tasks: list[asyncio.Task[Any]] = []

    def end(self) -> None:
        """kill -9: nothing of it runs any more, not even what would tidy up."""
        self.alive = False
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ', dead'}>"


LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


class Stuck(AssertionError):
    """Nothing will ever happen again."""


class SimLoop(asyncio.BaseEventLoop):
    """Time is virtual, and there are neither sockets nor threads: `network` makes connections."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.network: Any = None
        self.set_task_factory(_start_task)
        self.set_exception_handler(self._note_failure)
        self.failures: list[str] = []
        self.steps = 0
        self._over = False

    def close(self) -> None:
        """The world ends. What the garbage collector still wakes up of it finds a loop that does nothing."""
        self._over = True
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]

    def __del__(self, _warn: Any = None) -> None:
        """There are no sockets that somebody could have forgotten to close."""

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        if self._over:
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(callback, *args, context=context)

    def time(self) -> float:
        return self._now

    def sleep_until(self, when: float) -> None:
        """Time passes while nobody lives: a world that was kept is woken at the time at which it was left."""
        self._now = max(self._now, when)

    def _note_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context.get('message')}: {error!r}")

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            self._jump()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            life = handle._context.get(LIFE)
            if life is not None and not life.alive:
                continue
            self.steps += 1
            handle._run()

    def _jump(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        while scheduled:
            handle = heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                continue
            self._now = max(self._now, handle._when)
            self._ready.append(handle)  # type: ignore[attr-defined]
            return
        raise Stuck("nothing will ever happen again")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is thrown away when its time comes."""

    def _write_to_self(self) -> None:
        """There is nobody to wake up."""

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Whenever the garbage collector comes along is no time that a seed could know."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Done at once; the answer comes a moment later."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            result, error = func(*args), None
        except Exception as failure:
            result, error = None, failure

        def answer() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.call_later(THREAD_SECONDS, answer)
        return future

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(protocol_factory, host, port)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return self.network.listen(protocol_factory, host, port)

    def run_for(self, seconds: float) -> None:
        """Let the world go on for so long."""
        self.call_later(seconds, self.stop, context=contextvars.Context())
        self.run_forever()


def _start_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    context = options.get("context")
    life = LIFE.get() if context is None else context.get(LIFE)
    if life is not None:
        life.tasks.append(task)
    return task


class Luck:
    """All chance of a run. `turn` begins a part whose chance depends on its own number alone, so that a run stays much
    the same when another part is left out; what must be unique is unique all the same."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self._bytes = random.Random(f"bytes {seed}")
        self._turns = 0

    def turn(self, salt: int) -> None:
        """A new part."""
        self._turns += 1
        self.dice.seed(salt)
        self._bytes.seed(f"{salt} {self._turns}")
        random.seed(salt)

    def urandom(self, size: int) -> bytes:
        """For `os.urandom`."""
        return self._bytes.randbytes(size)


class _SeededRandom(random.Random):
    """`random.Random()` and `random.SystemRandom()` draw from the run's luck."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(int.from_bytes(os.urandom(8), "big") if seed is None else seed)


@contextmanager
def controlled(loop: SimLoop, luck: Luck) -> Iterator[None]:
    """Time and chance are the run's, for the whole process."""
    replaced = [
        (time, "time", lambda: EPOCH_SECONDS + loop.time()),
        (time, "monotonic", loop.time),
        (time, "thread_time", _processor_time()),
        (os, "urandom", luck.urandom),
        (random, "_urandom", luck.urandom),
        (random, "Random", _SeededRandom),
        (random, "SystemRandom", _SeededRandom),
        (coincurve.utils, "urandom", luck.urandom),
        (transport, "_new_ephemeral_key", lambda: _secret(luck)),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, substitute in replaced:
        setattr(owner, name, substitute)
    try:
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


def _processor_time() -> Callable[[], float]:
    """Every look at it costs `THREAD_SECONDS`."""
    looks = itertools.count()
    return lambda: next(looks) * THREAD_SECONDS


def late_bound(function: Any) -> None:
    """Clocks that are a function's defaults are looked up when they are read, so that they may be the simulation's."""
    function = getattr(function, "__func__", function)
    clocks = {time.time: lambda: time.time(), time.monotonic: lambda: time.monotonic()}
    defaults = function.__defaults__ or ()
    assert any(clock in clocks for clock in defaults if callable(clock)), function
    function.__defaults__ = tuple(clocks.get(each, each) if callable(each) else each for each in defaults)


def _secret(luck: Luck) -> bytes:
    """A valid secret key: below the order of the curve."""
    return b"\x01" + luck.urandom(31)
