"""Several that fight for one client: his node, his towers. They must not bid against each other with his money."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.test_tower_justice import back_up, breach, step
from tests.tower_support import Layer1, running_tower, states, tower_config, until_searched
from watchtower.appointment import Mode
from watchtower.tower.daemon import Tower


@pytest.fixture
async def layer1(tmp_path: Path) -> AsyncIterator[Layer1]:
    async with Layer1(tmp_path / "layer1").running() as layer:
        yield layer


def fees_sat(tower: Tower) -> list[int]:
    """Of all that a tower ever offered."""
    (known,) = tower.watcher.breaches.values()
    return [attempt.fee_sat for attempt in known.attempts]


@pytest.mark.parametrize("modes", [("own", "blind"), ("blind", "own")])
async def test_two_towers_do_not_bid_against_each_other(
    layer1: Layer1, tmp_path: Path, modes: tuple[Mode, Mode]
) -> None:
    cheat = await breach(layer1)
    configs = [tower_config(tmp_path / name) for name in ("first", "second")]
    sources = [layer1.source(), layer1.source()]
    for config, mode in zip(configs, modes, strict=True):
        async with running_tower(config, layer1.source()) as tower:
            await back_up(config.datadir / "client", tower, [cheat.kit], mode)
    await layer1.mine_only(cheat.tx)
    rates = [1_000, 1_000]
    for number, source in enumerate(sources):

        async def rate(target_blocks: int, number: int = number) -> int:
            return rates[number]

        source.fee_rate_sat_per_kw = rate  # type: ignore[method-assign]
    async with running_tower(configs[0], sources[0]) as first, running_tower(configs[1], sources[1]) as second:
        await until_searched(second, await layer1.height())
        before = set(await layer1.mempool())
        for _ in range(3):
            await layer1.mine_only()
            for tower in (first, second):
                await until_searched(tower, await layer1.height())
        assert set(await layer1.mempool()) == before
        assert fees_sat(second) == []
        # Estimates rise: who hears of it first pays more, and the other leaves it at that.
        rates[1] = 4_000
        await layer1.mine_only()
        await until_searched(second, await layer1.height())
        raised = await sources[1].spending_tx_in_mempool(cheat.outpoint(0))
        assert raised is not None
        assert raised.txid()[::-1].hex() not in before
        rates[0] = 4_000
        await layer1.mine_only()
        for tower in (first, second):
            await until_searched(tower, await layer1.height())
        assert await sources[0].spending_tx_in_mempool(cheat.outpoint(0)) == raised
        await step(layer1, first)
        await until_searched(second, await layer1.height())
        assert set(states(first)) == set(states(second)) == {"saved"}
