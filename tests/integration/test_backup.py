"""A copy of the database, made while the daemon runs, brings a node back that lost everything but its seed's words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from channeld.__main__ import main
from channeld.lab import Lab
from wallet.seedfile import read_seed


async def test_a_node_comes_back_from_a_copy_and_its_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob = await lab.daemons("alice", "bob")
        await lab.fund(alice, 2_000_000)
        await lab.open_channel(alice, bob, 1_000_000, push_msat=300_000_000)
        of_bob = ["--network", "regtest", "--datadir", str(bob.paths.root)]
        copy = tmp_path / "copy.sqlite"
        assert main([*of_bob, "--back-up-to", str(copy)]) == 0
        assert f"{bob.node_id.hex()} with 1 open channel to {copy}" in capfd.readouterr().out
        assert copy.stat().st_mode & 0o077 == 0
        await alice.pay((await bob.invoice(100_000_000)).bolt11)

        words = read_seed(bob.paths.seed).mnemonic
        await bob.kill()
        await alice.stop()
        shutil.rmtree(bob.paths.directory)
        assert main([*of_bob, "--restore-from", str(copy)]) == 1
        assert "give the words with CHANNELD_SEED_WORDS" in capfd.readouterr().err
        monkeypatch.setenv("CHANNELD_SEED_WORDS", "abandon " * 11 + "about")
        assert main([*of_bob, "--restore-from", str(copy)]) == 1
        assert "but the seed gives" in capfd.readouterr().err
        monkeypatch.setenv("CHANNELD_SEED_WORDS", words)
        assert main([*of_bob, "--restore-from", str(copy)]) == 0
        assert main([*of_bob, "--restore-from", str(copy)]) == 1
        assert "move it away" in capfd.readouterr().err
        monkeypatch.delenv("CHANNELD_SEED_WORDS")

        await bob.start()
        await lab.mine(160)  # more than a failed channel waits for otherwise
        assert await lab.rpc.call("getrawmempool") == []
        assert "not compared with the peer" in (await bob.channels())[0].status
        await alice.start()
        await bob.connect(alice)
        await alice.wait_until(lambda: lab.rpc.call("getrawmempool"))
        await lab.mine(6)

        async def is_coming() -> bool:
            balance = await bob.balance()
            return balance.closing_sat + balance.confirmed_sat + balance.unconfirmed_sat > 395_000

        await bob.wait_until(is_coming)  # with what was paid after the copy
