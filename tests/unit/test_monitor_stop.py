"""The monitor's task ends when it is told to, whatever happens at that moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from channeld.node.monitor import Monitor


async def test_a_wake_up_does_not_swallow_the_end() -> None:
    """While it races: `asyncio.wait_for` of Python 3.11 forgets that it was cancelled if what it waits for comes at the
    same time, and the node would never stop."""
    monitor: Any = SimpleNamespace(_wake=asyncio.Event(), _cases={1: SimpleNamespace(raced=True)}, _now_due=print)
    ended = asyncio.Event()

    async def run() -> None:
        try:
            while True:
                await Monitor._woken(cast(Monitor, monitor))
        finally:
            ended.set()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    monitor._wake.set()
    await asyncio.sleep(0)  # what it waits for is done, and it has not heard of it
    task.cancel()
    await asyncio.wait((task,), timeout=5)
    assert ended.is_set()
    task.cancel()
