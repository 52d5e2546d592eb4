"""We lose everything but the seed's words and `channels.backup`: LDK sees an outdated peer, and closes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from channeld.__main__ import main
from tests.integration.test_channel_backup import told
from tests.interop.conftest import MixedLab
from tests.interop.steps import CAPACITY_SAT, ldk_opens, ldk_pays, pay_ldk, set_layer1_feerate, we_open
from wallet.seedfile import read_seed

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]
FUNDS_SAT = 2 * CAPACITY_SAT
FEES_SAT = 10_000


async def test_ldk_closes_what_we_have_lost(lab: MixedLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "channels.backup"
    alice = lab.add_daemon("alice", "--channel-backup", str(file))
    await alice.start()
    await lab.fund(alice, FUNDS_SAT)
    await set_layer1_feerate(lab, 253)  # what these LDKs pay: less is not taken without anchors
    ldk, caller = await lab.ldk("ldk"), await lab.ldk("caller")
    await we_open(lab, alice, ldk, push_msat=400_000_000)
    await ldk_opens(lab, caller, alice, push_msat=600_000_000, anchors=False)
    await told(alice, "backup.written", path=str(file), channels=2)
    for peer in (ldk, caller):
        await pay_ldk(alice, peer, 20_000_000)
        await ldk_pays(peer, alice, 30_000_000)
    owned_sat = sum(channel.local_msat for channel in await alice.channels()) // 1000
    on_chain_sat = (await alice.balance()).confirmed_sat

    words = read_seed(alice.paths.seed).mnemonic
    await alice.kill()
    shutil.rmtree(alice.paths.directory)
    monkeypatch.setenv("CHANNELD_SEED_WORDS", words)
    restoring = ["--network", "regtest", "--datadir", str(alice.paths.root), "--restore-from", str(file)]
    assert main(restoring) == 0
    monkeypatch.delenv("CHANNELD_SEED_WORDS")
    await alice.start()  # it knows whom it called, not where those are who call
    await lab.connect_ldk(caller, alice)

    async def closed() -> bool:
        return len(await lab.rpc.call("getrawmempool")) >= 2

    await alice.wait_until(closed)
    await lab.mine(6)
    await told(alice, "onchain.published", what="sweep")

    async def is_back() -> bool:
        return (await alice.balance()).confirmed_sat >= on_chain_sat + owned_sat - FEES_SAT

    for _ in range(6):
        if not await is_back():
            await lab.mine(1)
    assert await is_back()
