"""Cheating for real: Bob publishes revoked commitments of channels whose owners are alive, or dead with only a tower
watching. All are processes of their own over regtestd; Bob is `tests.cheating_daemon`.

Whatever was measured must be what the table in docs/enforcement.md says: `CHEATING_TABLE=1` writes it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.cheating import CAPACITY_SAT, DELAY_BLOCKS, HELD_SAT, RETURNED_SAT, Ending, Scene, Watcher, begin
from tests.cheating_table import check

pytestmark = pytest.mark.asyncio(loop_scope="module")
EVERYONE: tuple[Watcher, ...] = ("node", "own tower", "blind tower")
ANCHORS_SAT = 660
BACK_BLOCKS = 24
"""So long before the cheater's delay ends, those who were off are back."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with Scene(tmp_path_factory.mktemp("cheating")) as scene:
        yield scene


async def reckon(scene: Scene, scenario: str) -> dict[Watcher, Ending]:
    """After the dead have come back: the endings, which must be those of the table."""
    await scene.come_back()
    await scene.until_spent()
    await scene.lab.mine(1)
    found: dict[Watcher, Ending] = {}
    for victim in scene.victims:
        ending = found[victim.watcher] = await scene.ending(victim)
        assert ending.total_sat == CAPACITY_SAT
        assert ending.left_sat <= ANCHORS_SAT
        check(scenario, victim, ending)
    return found


def all_taken(endings: dict[Watcher, Ending]) -> None:
    """Bob has nothing, and the victims have more than they owned."""
    for ending in endings.values():
        assert ending.cheater_sat <= 0
        assert ending.victim_sat + ending.justice_fee_sat + ending.cheater_fee_sat >= CAPACITY_SAT - 5_000


async def test_nobody_watches(scene: Scene) -> None:
    """That the cheat is one: undisturbed it pays."""
    await scene.prepare(["nobody"], htlcs=False)
    (victim,) = scene.victims
    await scene.cheat(htlcs=False)
    await scene.lab.mine(1 + DELAY_BLOCKS)
    await scene.until_taken()
    await scene.lab.mine(1)
    ending = (await reckon(scene, "nobody watches"))["nobody"]
    assert victim.claimed_sat - 1_000 < ending.cheater_sat <= victim.claimed_sat
    assert ending.victim_sat < victim.owned_sat


async def test_without_htlcs(scene: Scene) -> None:
    await scene.prepare(EVERYONE, htlcs=False)
    await scene.cheat(htlcs=False)
    await scene.lab.mine(1)
    await scene.until_justice()
    await scene.lab.mine(1)
    all_taken(await reckon(scene, "no HTLCs"))


async def test_with_htlcs_both_ways(scene: Scene) -> None:
    await scene.prepare(EVERYONE, htlcs=True)
    await scene.cheat(htlcs=True)
    await scene.lab.mine(1)
    await scene.until_justice()
    await scene.lab.mine(1)
    all_taken(await reckon(scene, "HTLCs both ways"))


async def test_second_stage_transactions_are_faster(scene: Scene) -> None:
    """Bob mines himself: right after his commitments, both HTLC transactions of each."""
    await scene.prepare(EVERYONE, htlcs=True)
    await scene.expired()
    await scene.cheat(htlcs=True)
    await scene.lab.mine(1)
    await scene.mine_only(*[tx for victim in scene.victims for tx in await scene.bob.stages(victim, 2)])
    await scene.until_justice()
    await scene.lab.mine(3)
    await scene.until_taken("blind tower")
    # Whatever is not taken by now is Bob's when his delay is over.
    await scene.lab.mine(DELAY_BLOCKS)
    await scene.until_taken()
    await scene.lab.mine(1)
    endings = await reckon(scene, "HTLC transactions are faster")
    second_stage_sat = HELD_SAT + RETURNED_SAT
    blind = endings.pop("blind tower")
    assert second_stage_sat - 5_000 < blind.cheater_sat + blind.cheater_fee_sat <= second_stage_sat + ANCHORS_SAT
    assert blind.victim_sat > CAPACITY_SAT - second_stage_sat - 5_000
    all_taken(endings)


async def test_off_during_the_breach(scene: Scene) -> None:
    """Node and tower miss it, and are back before the delay ends."""
    await scene.prepare(EVERYONE, htlcs=False)
    await scene.tower.terminate()
    await scene.victims[0].daemon.stop()
    await scene.cheat(htlcs=False)
    await scene.lab.mine(DELAY_BLOCKS - BACK_BLOCKS)
    await asyncio.gather(scene.start_tower(), begin(scene.victims[0].daemon))
    await scene.until_justice()
    await scene.lab.mine(1)
    all_taken(await reckon(scene, "off during the breach"))


async def test_a_reorganisation_drops_justice(scene: Scene) -> None:
    """The block with the justice transactions leaves the chain; Bob's HTLC-success transactions take its place."""
    await scene.prepare(EVERYONE, htlcs=True)
    await scene.cheat(htlcs=True)
    await scene.lab.mine(1)
    stages = [tx for victim in scene.victims for tx in await scene.bob.stages(victim, 1)]
    await scene.until_justice()
    await scene.lab.mine(1)
    await scene.reorganise(*stages)
    await scene.until_justice()
    await scene.lab.mine(3)
    all_taken(await reckon(scene, "a reorganisation drops justice"))


async def test_fees_rise_twentyfold(scene: Scene) -> None:
    """Right after justice was published; miners take nothing that pays less from then on."""
    await scene.prepare(EVERYONE, htlcs=True)
    await scene.cheat(htlcs=True)
    await scene.lab.mine(1)
    await scene.until_justice()
    await scene.set_fee(40)
    await scene.mine_only()
    await scene.until_justice(least_feerate_per_kw=10_000)
    await scene.lab.mine(1)
    all_taken(await reckon(scene, "fees rise twentyfold"))
