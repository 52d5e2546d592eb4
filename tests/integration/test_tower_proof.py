"""Proving that a tower failed: a theft that it let happen, and everything that is no proof."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.integration.test_tower_justice import CHANNEL, KitList
from tests.tower_support import (
    DELAY_BLOCKS,
    Layer1,
    Revoked,
    revoked,
    running_client,
    running_tower,
    tower_config,
)
from wallet.chain import ChainSource
from watchtower.appointment import Mode, Terms, make_justice
from watchtower.client.connection import TowerUri
from watchtower.client.metrics import TowersCollector
from watchtower.client.proving import prove_failure
from watchtower.justice import own_tx
from watchtower.proof import Evidence, FailureProof, NotProven, verify_failure_proof


@pytest.fixture
async def layer1(tmp_path: Path) -> AsyncIterator[Layer1]:
    async with Layer1(tmp_path / "layer1").running() as layer:
        yield layer


async def confirmed(layer1: Layer1, path: Path, cheat: Revoked, mode: Mode) -> Evidence:
    """The tower confirms the appointment; then it is gone for ever."""
    backups = KitList()
    backups.channels[CHANNEL] = [cheat.kit]
    async with (
        running_tower(tower_config(path / "tower"), layer1.source()) as tower,
        running_client(path / "client", backups) as towers,
    ):
        await towers.add(TowerUri(tower.tower_id, tower.server.address), mode)
        await towers.wait_idle()
        registry = CollectorRegistry()
        registry.register(TowersCollector(towers.statuses, lambda channel: channel.hex()))
        assert f'channeld_tower_backed_up{{channel="{CHANNEL.hex()}",'.encode() in generate_latest(registry)
        return await towers.evidence(tower.tower_id, CHANNEL, 0)


async def hashes(layer1: Layer1, source: ChainSource) -> dict[int, bytes]:
    found = {height: await source.get_block_hash(height) for height in range(await layer1.height() + 1)}
    return {height: block_hash for height, block_hash in found.items() if block_hash is not None}


@pytest.mark.parametrize("mode", ["blind", "own"])
async def test_a_theft_that_the_tower_let_happen(layer1: Layer1, tmp_path: Path, mode: Mode) -> None:
    cheat = revoked("a", await layer1.fund(1_000_000), 1_000_000, htlcs_sat=(60_000,))
    evidence = await confirmed(layer1, tmp_path, cheat, mode)
    source = layer1.source()
    await source.start()
    await layer1.mine_only(cheat.tx)
    breach = (cheat.tx.txid(), await layer1.height())
    await layer1.mine(DELAY_BLOCKS - 1)
    stolen = cheat.theft(cheat.outpoint(0), 400_000)
    await layer1.mine_only(stolen)
    theft = (stolen.txid(), await layer1.height())
    proof = await prove_failure(source, evidence, breach, theft)
    chain = await hashes(layer1, source)
    # As somebody else gets it: bytes, and a chain of their own.
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(proof), type=FailureProof)
    assert verify_failure_proof(received, chain.get) == cheat.outpoint(0)
    check_what_is_no_proof(proof, chain)
    with pytest.raises(NotProven, match="not in the block"):
        await prove_failure(source, evidence, breach, (stolen.txid(), theft[1] - 1))
    with pytest.raises(NotProven, match="no block"):
        await prove_failure(source, evidence, breach, (stolen.txid(), 10_000))
    await source.close()


def check_what_is_no_proof(proof: FailureProof, chain: dict[int, bytes]) -> None:
    """Each part of a proof counts."""
    replace = msgspec.structs.replace
    evidence, receipt = proof.evidence, proof.evidence.receipt
    for words, bad in (
        ("another block", replace(proof, breach=replace(proof.breach, height=proof.breach.height + 1))),
        ("not in the block", replace(proof, breach=replace(proof.breach, position=1 - proof.breach.position))),
        ("not readable", replace(proof, theft=replace(proof.theft, raw=b"\x00"))),
        ("another transaction", replace(proof, breach=proof.theft)),
        ("no time", replace(proof, theft=proof.breach)),
        ("another blob", replace(proof, evidence=replace(evidence, blob=evidence.blob[:-1] + b"\x00"))),
        ("not signed", replace(proof, evidence=replace(evidence, receipt=replace(receipt, accepted_height=1)))),
        ("not signed", replace(proof, evidence=replace(evidence, terms=replace(evidence.terms, max_bytes=1)))),
    ):
        with pytest.raises(NotProven, match=words):
            verify_failure_proof(bad, chain.get)


async def test_what_the_client_took_itself_is_no_failure(layer1: Layer1, tmp_path: Path) -> None:
    """Justice by somebody else's hand, and a cheat from before the appointment."""
    cheat = revoked("a", await layer1.fund(1_000_000), 1_000_000)
    await layer1.mine_only(cheat.tx)
    breach = (cheat.tx.txid(), await layer1.height())
    evidence = await confirmed(layer1, tmp_path, cheat, "blind")
    source = layer1.source()
    await source.start()
    await layer1.mine(DELAY_BLOCKS)
    penalty = cheat.penalty(0)
    made = own_tx(make_justice(cheat.kit, Terms("own")), [cheat.outpoint(0)], [penalty], 1_000)
    assert made is not None
    await layer1.mine_only(made[0])
    proof = await prove_failure(source, evidence, breach, (made[0].txid(), await layer1.height()))
    chain = await hashes(layer1, source)
    with pytest.raises(NotProven, match="before the appointment"):
        verify_failure_proof(proof, chain.get)
    await source.close()
