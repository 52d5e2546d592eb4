"""The soak's members: whoever asks one that dies asks it again, whenever it dies."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from tests.soak.members import Member


class _Daemon:
    name = "node0"


def _member() -> Member:
    member = Member(cast(Any, _Daemon()))
    member.up.set()
    return member


async def test_a_call_that_ends_with_a_second_death_right_after_the_first_is_made_again() -> None:
    """The connection is closed under a call that began when its member was about to die again."""
    member, calls, called = _member(), 0, asyncio.Event()

    async def call(_daemon: Any) -> str:
        nonlocal calls
        calls += 1
        called.set()
        if calls == 1:
            raise asyncio.CancelledError
        return "paid"

    member.up.clear()
    asking = asyncio.create_task(member.ask(call))
    await asyncio.sleep(0)
    member.up.set()
    member.up.clear()  # the next death: counted before the call wakes up
    member.deaths += 1
    await called.wait()
    await asyncio.sleep(0)
    assert not asking.done()
    member.up.set()
    assert await asking == "paid"
    assert calls == 2


async def test_a_call_that_nothing_explains_the_end_of_is_not_made_again() -> None:
    member = _member()

    async def call(_daemon: Any) -> str:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await member.ask(call)


async def test_whoever_is_canceled_asks_no_more() -> None:
    member = _member()

    async def call(_daemon: Any) -> str:
        await asyncio.Event().wait()
        return "never"

    asking = asyncio.create_task(member.ask(call))
    await asyncio.sleep(0)
    member.up.clear()
    member.deaths += 1
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
