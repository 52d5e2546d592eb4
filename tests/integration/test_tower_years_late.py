"""A tower whose database is more than a thousand blocks behind the chain: it searches them all, in order, for the
appointments of the time when they came, and takes what is still there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.integration.test_tower_justice import back_up, breach, step
from tests.tower_support import DELAY_BLOCKS, Layer1, running_tower, tower_config, until_searched
from watchtower.tower import breach as breaches
from watchtower.tower import tables
from watchtower.tower.daemon import Tower
from watchtower.tower.sessions import GRACE_BLOCKS

YEARS_BLOCKS = 1_000
SESSION_BLOCKS = 300


@pytest.fixture
async def layer1(tmp_path: Path) -> AsyncIterator[Layer1]:
    async with Layer1(tmp_path / "layer1").running() as layer:
        yield layer


def saved_and_lost(tower: Tower, txid: bytes) -> dict[str, str]:
    """State by kind of output, of one breach."""
    (found,) = [known for known in tower.watcher.breaches.values() if known.txid == txid]
    return {f"{target.penalty.kind} {target.penalty.vout}": target.state for target in breaches.targets(found)}


async def test_what_is_left_is_taken_and_what_is_lost_is_told(layer1: Layer1, tmp_path: Path) -> None:
    """Of the first breach the cheater took its balance when it could; nobody touched the second; the third came when
    the session was long over."""
    robbed, untouched, late = [await breach(layer1, name, (60_000, 80_000)) for name in ("a", "b", "c")]
    config = tower_config(tmp_path / "tower", session_blocks=SESSION_BLOCKS)
    async with running_tower(config, layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [robbed.kit, untouched.kit, late.kit], "own")
        watched_until = tower.watcher.height + SESSION_BLOCKS + GRACE_BLOCKS
    await layer1.send(robbed.tx)
    await layer1.send(untouched.tx)
    await layer1.mine(DELAY_BLOCKS)
    theft = robbed.theft(robbed.outpoint(0), 400_000)
    await layer1.send(theft)
    await layer1.mine(YEARS_BLOCKS)
    await layer1.send(late.tx)
    await layer1.mine(2)
    assert await layer1.height() > watched_until
    async with running_tower(config, layer1.source()) as tower:
        await until_searched(tower, await layer1.height())
        await step(layer1, tower)
        assert sorted(saved_and_lost(tower, robbed.tx.txid()).values()) == ["lost", "saved", "saved", "saved"]
        assert set(saved_and_lost(tower, untouched.tx.txid()).values()) == {"saved"}
        assert len(tower.watcher.breaches) == 2
        assert await layer1.received(untouched.kit.sweep_script) > 630_000
        assert await layer1.received(robbed.kit.sweep_script) > 230_000
        kinds = [alert.kind for alert in tower.watcher._alerts._known]
        assert kinds.count("breach.seen") == 2
        assert kinds.count("output.lost") == 1
        left = tower.watcher._store.read_now(
            lambda c: c.execute(select(func.count()).select_from(tables.appointments)).scalar()
        )
        assert left == 0  # the third's time was over, long before it was of use
