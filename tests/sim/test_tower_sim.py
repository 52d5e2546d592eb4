"""Seeded random cheats against one tower of a client, or two, over regtestd: races, reorganisations, fee spikes,
restarts, layer 1 away.

Whatever happens, the cheater ends with nothing that the towers had the means to take, and what the victim gets is all
that was at stake, less the fees of the transactions that are in the chain. TOWER_SIM_RUNS says how many runs.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.integration.test_tower_justice import back_up
from tests.tower_support import (
    DELAY_BLOCKS,
    Layer1,
    Revoked,
    revoked,
    running_tower,
    states,
    tower_config,
    until_searched,
)
from wallet.bitcoin import Tx
from wallet.bitcoind import BitcoindChainSource
from wallet.chain import BroadcastResult, ChainUnavailable
from watchtower.appointment import Mode
from watchtower.tower.daemon import Tower

RUNS = int(os.environ.get("TOWER_SIM_RUNS", "8"))


@pytest.fixture
async def layer1(tmp_path: Path) -> AsyncIterator[Layer1]:
    async with Layer1(tmp_path / "layer1").running() as layer:
        yield layer


class Fight:
    """One run: the cheater and the chain do what the dice say, the tower what it can."""

    def __init__(self, layer1: Layer1, path: Path, seed: int) -> None:
        self.layer1 = layer1
        self.dice = random.Random(seed)
        self.modes: list[Mode] = [self.dice.choice(("blind", "own")) for _ in range(self.dice.randint(1, 2))]
        self.configs = [tower_config(path / f"tower{number}") for number in range(len(self.modes))]
        self.stacks = [AsyncExitStack() for _ in self.modes]
        self.rate = 1_000
        self.is_away = False
        self.towers: dict[int, Tower] = {}
        self.cheat: Revoked
        self.stages: list[Tx] = []

    @property
    def mode(self) -> Mode:
        """What the client can count on."""
        return "own" if "own" in self.modes else "blind"

    @property
    def best(self) -> Tower:
        """One that can do most."""
        return self.towers[self.modes.index(self.mode)]

    async def start_tower(self, number: int) -> None:
        tower = running_tower(self.configs[number], self._source())
        self.towers[number] = await self.stacks[number].enter_async_context(tower)

    async def stop(self) -> None:
        for stack in self.stacks:
            await stack.aclose()

    def _source(self) -> BitcoindChainSource:
        source = self.layer1.source()
        broadcast = source.broadcast

        async def rate(target_blocks: int) -> int:
            return self.rate

        async def offer(tx: Tx) -> BroadcastResult:
            if self.is_away:
                raise ChainUnavailable("away")
            return await broadcast(tx)

        source.fee_rate_sat_per_kw = rate  # type: ignore[method-assign]
        source.broadcast = offer  # type: ignore[method-assign]
        return source

    async def searched(self) -> None:
        for tower in self.towers.values():
            await until_searched(tower, await self.layer1.height())

    async def restart(self, missed_blocks: int = 0) -> None:
        number = self.dice.randrange(len(self.modes))
        await self.stacks[number].aclose()
        if missed_blocks:
            await self.layer1.mine_only()
        await self.start_tower(number)
        await self.searched()

    async def reorganise(self) -> None:
        """One or two blocks are replaced by empty ones and one more; the mempool gets back what was in them."""
        depth = self.dice.randint(1, 2)
        victim = await self.layer1.rpc.call("getblockhash", await self.layer1.height() - depth + 1)
        await self.layer1.rpc.call("invalidateblock", victim)
        for _ in range(depth + 1):
            await self.layer1.mine_only()

    async def turn(self) -> None:
        match self.dice.choice(("mine", "mine", "empty", "race", "restart", "reorganise", "fees", "away")):
            case "mine":
                await self.layer1.mine()
            case "empty":
                await self.layer1.mine_only()
            case "race":
                await self.race()
            case "restart":
                await self.restart(self.dice.randint(0, 1))
            case "reorganise":
                await self.reorganise()
            case "fees":
                self.rate = self.dice.choice((300, 1_000, 5_000, 20_000))
            case "away":
                self.is_away = not self.is_away
        await self.searched()

    async def race(self) -> None:
        """The cheater's miner takes an HTLC transaction, if it still can."""
        left = [
            place
            for place, penalty in enumerate(self.cheat.kit.outputs)
            if penalty.kind == "htlc" and self.cheat.second_stage(place) not in self.stages
        ]
        if left:
            stage = self.cheat.second_stage(self.dice.choice(left))
            found = await self.layer1.rpc.call(
                "gettxout", stage.inputs[0].outpoint.txid[::-1].hex(), stage.inputs[0].outpoint.vout, False
            )
            if found is not None:
                self.stages.append(stage)
                await self.layer1.mine_only(stage)

    async def run(self, path: Path) -> None:
        for number in range(len(self.modes)):
            await self.start_tower(number)
        htlcs = tuple(self.dice.randint(20_000, 90_000) for _ in range(self.dice.randint(0, 3)))
        funding = await self.layer1.fund(1_000_000)
        self.cheat = revoked("a", funding, 1_000_000, htlcs_sat=htlcs)
        for number, mode in enumerate(self.modes):
            await back_up(path / f"client{number}", self.towers[number], [self.cheat.kit], mode)
        await self.layer1.mine_only(self.cheat.tx)
        await self.searched()
        for _ in range(self.dice.randint(4, 9)):
            await self.turn()
        await self.end()

    def fees(self) -> dict[bytes, int]:
        """Of all transactions that the towers ever made."""
        known = [breach for tower in self.towers.values() for breach in tower.watcher.breaches.values()]
        return {attempt.txid: attempt.fee_sat for breach in known for attempt in breach.attempts}

    async def end(self) -> None:
        """The dust settles well before the cheater's delay ends."""
        self.is_away = False
        for _ in range(6):
            await self.layer1.mine()
            await self.searched()


@pytest.mark.parametrize("seed", range(RUNS))
async def test_the_cheater_gets_nothing(layer1: Layer1, tmp_path: Path, seed: int) -> None:
    fight = Fight(layer1, tmp_path, seed)
    try:
        await fight.run(tmp_path)
        (known,) = fight.best.watcher.breaches.values()
        assert known.height is not None
        found = states(fight.best)
        assert set(found) <= {"saved", "second stage"}, (fight.mode, found)
        if fight.mode == "own":
            assert found.count("saved") == len(fight.cheat.kit.outputs)
        mined = {spend.txid for spend in known.spends}
        fees = sum(fee_sat for txid, fee_sat in fight.fees().items() if txid in mined)
        lost = sum(
            fight.cheat.penalty(place).amount_sat
            for place, state in enumerate(found[: len(fight.cheat.kit.outputs)])
            if state == "second stage"
        )
        at_stake = sum(penalty.amount_sat for penalty in fight.cheat.kit.outputs)
        if fight.mode == "own":
            lost = 500 * found.count("second stage")  # the fee of the cheater's own transactions
        assert await layer1.received(fight.cheat.kit.sweep_script) == at_stake - lost - fees
        assert (await layer1.height()) < known.height + DELAY_BLOCKS + 30
    finally:
        await fight.stop()
