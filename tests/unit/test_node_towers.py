"""The node's side of its towers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from channeld.node.towers import MAX_SCRIPTS, ChannelBackups
from wallet.coins import GAP_LIMIT


class Database:
    """Counts what is written."""

    def __init__(self) -> None:
        self.commits = 0

    async def commit(self, writes: object) -> None:
        self.commits += 1
        await asyncio.sleep(0)


class Purse:
    """Gives out scripts."""

    def __init__(self) -> None:
        self.given = 0

    async def new_script(self) -> bytes:
        self.given += 1
        number = self.given
        await asyncio.sleep(0)
        return number.to_bytes(34, "big")


async def test_many_channels_take_few_scripts_of_the_wallet() -> None:
    """A wallet that is restored from its words must not lose sight of the coins behind a row of unused scripts."""
    purse = Purse()
    backups = ChannelBackups(cast(Any, Database()), cast(Any, None), cast(Any, purse))
    scripts = [await backups._script(key) for key in range(2 * GAP_LIMIT)]
    assert purse.given == len(set(scripts)) == MAX_SCRIPTS < GAP_LIMIT // 2
    assert [await backups._script(key) for key in range(2 * GAP_LIMIT)] == scripts


async def test_two_towers_that_ask_at_once_get_the_same_script() -> None:
    """The blob of a commitment is the same for both, and can be made again."""
    backups = ChannelBackups(cast(Any, Database()), cast(Any, None), cast(Any, Purse()))
    first, second = await asyncio.gather(backups._script(7), backups._script(7))
    assert first == second == await backups._script(7)
