"""Cheating for real: a tower over regtestd, with revoked commitments that the test publishes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tower_support import (
    DELAY_BLOCKS,
    Layer1,
    Revoked,
    key,
    revoked,
    running_client,
    running_tower,
    states,
    tower_config,
    until_searched,
)
from wallet.bitcoin import OutPoint, Tx
from wallet.bitcoin.address import REGTEST, address_of
from wallet.bitcoin.script import p2wpkh
from watchtower.appointment import JusticeKit, Mode
from watchtower.client.connection import TowerUri
from watchtower.client.values import KitMaker
from watchtower.tower.daemon import Tower

CHANNEL = b"\x0c" * 32
HTLCS = (60_000, 80_000)


class KitList:
    """The daemon's side: kits in a list for each channel."""

    def __init__(self) -> None:
        self.channels: dict[bytes, list[JusticeKit | None]] = {}

    def counts(self) -> Mapping[bytes, int]:
        return {channel: len(kits) for channel, kits in self.channels.items()}

    async def kits(self, channel: bytes, first: int, count: int) -> KitMaker | None:
        kits = self.channels.get(channel)
        return None if kits is None else lambda: kits[first : first + count]


@pytest.fixture
async def layer1(tmp_path: Path) -> AsyncIterator[Layer1]:
    async with Layer1(tmp_path / "layer1").running() as layer:
        yield layer


async def back_up(directory: Path, tower: Tower, kits: Sequence[JusticeKit], mode: Mode, **options: Any) -> None:
    """A client gives the tower the kits, and goes away for good."""
    backups = KitList()
    backups.channels[CHANNEL] = list(kits)
    async with running_client(Path(f"{directory}.sqlite"), backups) as towers:
        uri = TowerUri(tower.tower_id, tower.server.address)
        await towers.add(uri, mode, **options)
        await towers.wait_idle()
        (status,) = towers.statuses()
        assert (status.backlog, status.problem, status.sent) == (0, "", len(kits))
        (check,) = await towers.check(tower.watcher.height)
        assert check.up_to_date, check.reasons


async def breach(layer1: Layer1, name: str = "a", htlcs: Sequence[int] = HTLCS, **options: Any) -> Revoked:
    funding = await layer1.fund(1_000_000)
    return revoked(name, funding, 1_000_000, htlcs_sat=htlcs, **options)


async def step(layer1: Layer1, tower: Tower, blocks: int = 1) -> None:
    """Blocks with what is in the mempool, each searched."""
    for _ in range(blocks):
        await layer1.mine()
        await until_searched(tower, await layer1.height())


def sweep_of(cheat: Revoked) -> bytes:
    return cheat.kit.sweep_script


@pytest.mark.parametrize("mode", ["blind", "own"])
async def test_a_revoked_commitment_is_taken_whole(layer1: Layer1, tmp_path: Path, mode: Mode) -> None:
    cheat = await breach(layer1)
    async with running_tower(tower_config(tmp_path / "tower"), layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [cheat.kit], mode)
        await layer1.send(cheat.tx)
        await step(layer1, tower)
        assert len(await layer1.mempool()) == (1 if mode == "blind" else 2)
        await step(layer1, tower)
        assert set(states(tower)) == {"saved"}
        fees = sum(attempt.fee_sat for attempt in next(iter(tower.watcher.breaches.values())).attempts)
        assert await layer1.received(sweep_of(cheat)) == 400_000 + 100_000 + sum(HTLCS) - fees
        await layer1.mine(99)
        await until_searched(tower, await layer1.height())
        assert tower.watcher.open_breaches == []
        assert not tower.watcher._watched
        # A block that leaves the chain now changes nothing.
        await layer1.rpc.call("invalidateblock", await layer1.rpc.call("getbestblockhash"))
        await layer1.mine(2)
        await until_searched(tower, await layer1.height())
        assert tower.watcher.open_breaches == []


async def test_a_tower_that_was_off_catches_up(layer1: Layer1, tmp_path: Path) -> None:
    cheat = await breach(layer1)
    config = tower_config(tmp_path / "tower")
    async with running_tower(config, layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [cheat.kit], "blind")
    await layer1.send(cheat.tx)
    await layer1.mine(DELAY_BLOCKS - 2)
    async with running_tower(config, layer1.source()) as tower:
        await until_searched(tower, await layer1.height())
        await step(layer1, tower)
        assert set(states(tower)) == {"saved"}


@pytest.mark.parametrize("mode", ["blind", "own"])
async def test_the_cheater_is_faster_with_its_htlc_transaction(layer1: Layer1, tmp_path: Path, mode: Mode) -> None:
    """Blind, the rest is taken; own, the second stage too."""
    cheat = await breach(layer1)
    async with running_tower(tower_config(tmp_path / "tower"), layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [cheat.kit], mode)
        stolen = cheat.second_stage(2)
        await layer1.mine_only(cheat.tx)
        await until_searched(tower, await layer1.height())
        await layer1.mine_only(stolen)
        await until_searched(tower, await layer1.height())
        await step(layer1, tower)
        if mode == "own":
            assert states(tower) == ["saved", "saved", "second stage", "saved", "saved"]
            return
        assert states(tower) == ["saved", "saved", "second stage", "saved"]
        second = stolen.outpoint(0)
        await step(layer1, tower, DELAY_BLOCKS)
        await layer1.send(cheat.theft(second, stolen.outputs[0].value_sat))
        await step(layer1, tower)


@pytest.mark.parametrize("mode", ["blind", "own"])
@pytest.mark.parametrize("rival_fee_sat", [20_000, 59_000], ids=["outbid", "too dear"])
async def test_a_rival_in_the_mempool_is_outbid_within_the_block(
    layer1: Layer1, tmp_path: Path, mode: Mode, rival_fee_sat: int
) -> None:
    """Up to the budget, and what has no rival is not held up. Whatever the tower makes of it is done before the next
    block, which the rival would be in."""
    cheat = await breach(layer1)
    config = tower_config(tmp_path / "tower")
    async with running_tower(config, layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [cheat.kit], mode)
    rival = cheat.second_stage(2, rival_fee_sat)
    await layer1.mine_only(cheat.tx)
    await layer1.send(rival)
    async with running_tower(config, layer1.source()) as tower:
        await until_searched(tower, await layer1.height())
        (known,) = tower.watcher.breaches.values()
        bids = [attempt for attempt in known.attempts if attempt.outpoints == (cheat.outpoint(2),)]
        assert known.height == await layer1.height()
        is_outbid = rival_fee_sat < 54_000
        assert (rival.txid()[::-1].hex() not in await layer1.mempool()) == is_outbid
        assert bool(bids[-1].problem) != is_outbid
        assert all(
            not attempt.problem for attempt in known.attempts if len(attempt.outpoints) == 1 and attempt not in bids
        )
        if not is_outbid and mode == "own":
            assert 53_500 < bids[-1].fee_sat <= 54_000, "nine tenths of the output"
        if not is_outbid and mode == "blind":
            assert bids[-1].feerate_per_kw == 40_000, "the highest that was signed for"
        await step(layer1, tower)
        assert states(tower)[:4] == ["saved", "saved", "saved" if is_outbid else "second stage", "saved"]


async def test_fees_rise_twentyfold_in_between(layer1: Layer1, tmp_path: Path) -> None:
    cheat = await breach(layer1)
    source = layer1.source()
    rates = [1_000]

    async def rate(target_blocks: int) -> int:
        return rates[0]

    source.fee_rate_sat_per_kw = rate  # type: ignore[method-assign]
    async with running_tower(tower_config(tmp_path / "tower"), source) as tower:
        await back_up(tmp_path / "client", tower, [cheat.kit], "blind")
        await layer1.mine_only(cheat.tx)
        await until_searched(tower, await layer1.height())
        (cheap,) = await layer1.mempool()
        rates[0] = 20_000
        await layer1.mine_only()
        await until_searched(tower, await layer1.height())
        (dear,) = await layer1.mempool()
        assert dear != cheap
        await step(layer1, tower)
        assert set(states(tower)) == {"saved"}
        (known,) = tower.watcher.breaches.values()
        assert [attempt.feerate_per_kw for attempt in known.attempts] == [1_000, 40_000]


@pytest.mark.parametrize("mode", ["blind", "own"])
async def test_a_reorganisation_drops_the_justice_transaction(layer1: Layer1, tmp_path: Path, mode: Mode) -> None:
    cheat = await breach(layer1)
    async with running_tower(tower_config(tmp_path / "tower"), layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [cheat.kit], mode)
        await layer1.mine_only(cheat.tx)
        await until_searched(tower, await layer1.height())
        (block,) = await layer1.mine()
        await until_searched(tower, await layer1.height())
        assert set(states(tower)) == {"saved"}
        await layer1.rpc.call("invalidateblock", block)
        await layer1.mine_only()
        await layer1.mine_only()
        await until_searched(tower, await layer1.height())
        assert set(states(tower)) == {"open"}
        await step(layer1, tower)
        assert set(states(tower)) == {"saved"}


async def test_a_reorganisation_replaces_the_breach(layer1: Layer1, tmp_path: Path) -> None:
    """Another revoked commitment is mined instead of the first: both are known, one counts."""
    funding = await layer1.fund(1_000_000)
    first = revoked("a", funding, 1_000_000, htlcs_sat=HTLCS)
    second = revoked("b", funding, 1_000_000, to_local_sat=700_000)
    async with running_tower(tower_config(tmp_path / "tower"), layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [first.kit, second.kit], "own")
        await layer1.mine_only(first.tx)
        await until_searched(tower, await layer1.height())
        await layer1.rpc.call("invalidateblock", await layer1.rpc.call("getbestblockhash"))
        await layer1.mine_only(second.tx)
        await layer1.mine_only()
        await until_searched(tower, await layer1.height())
        heights = {known.txid: known.height for known in tower.watcher.breaches.values()}
        assert heights == {first.tx.txid(): None, second.tx.txid(): await layer1.height() - 1}
        await step(layer1, tower)
        assert await layer1.received(sweep_of(second)) > 790_000


async def test_the_share_of_a_reward_tower(layer1: Layer1, tmp_path: Path) -> None:
    cheat = await breach(layer1, htlcs=())
    reward = p2wpkh(key("tower"))
    config = tower_config(tmp_path / "tower", reward_permille=50, reward_address=address_of(reward, REGTEST))
    async with running_tower(config, layer1.source()) as tower:
        await back_up(tmp_path / "client", tower, [cheat.kit], "blind", max_reward_permille=50)
        await layer1.send(cheat.tx)
        await step(layer1, tower, 2)
        assert await layer1.received(reward) == 25_000


async def test_an_appointment_for_a_block_already_past(layer1: Layer1, tmp_path: Path) -> None:
    cheat = await breach(layer1)
    async with running_tower(tower_config(tmp_path / "tower"), layer1.source()) as tower:
        await layer1.mine_only(cheat.tx)
        await layer1.mine_only(cheat.second_stage(2))
        await layer1.mine(3)
        await until_searched(tower, await layer1.height())
        await back_up(tmp_path / "client", tower, [cheat.kit], "own")
        await tower.watcher.wait_late()
        await step(layer1, tower)
        assert states(tower) == ["saved", "saved", "second stage", "saved", "saved"]


async def test_a_blob_that_is_of_no_use_and_another_client(layer1: Layer1, tmp_path: Path) -> None:
    """A blob that does not decrypt, and one whose signatures are wrong, hurt nobody else."""
    cheat = await breach(layer1)
    wrong_key = JusticeKit(
        **{f: getattr(cheat.kit, f) for f in cheat.kit.__struct_fields__} | {"revocation_secret": b"\x33" * 32}
    )
    async with running_tower(tower_config(tmp_path / "tower"), layer1.source()) as tower:
        await back_up(tmp_path / "liar", tower, [wrong_key], "blind")
        await back_up(tmp_path / "client", tower, [cheat.kit], "blind")
        await layer1.mine_only(cheat.tx)
        await until_searched(tower, await layer1.height())
        await step(layer1, tower)
        assert await layer1.received(sweep_of(cheat)) > 630_000


def test_txs_are_what_they_seem() -> None:
    """The support's own check: nothing of it is accepted by accident."""
    cheat = revoked("x", OutPoint(bytes(32), 0), 1_000_000, htlcs_sat=HTLCS)
    assert Tx.parse(cheat.tx.serialize()) == cheat.tx
    assert cheat.kit.txid == cheat.tx.txid()
