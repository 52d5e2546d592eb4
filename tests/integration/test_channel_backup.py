"""`channels.backup` and the seed's words bring back what is in channels, whatever happened after it was written."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from channeld.__main__ import main
from channeld.lab import Lab
from channeld.lab.daemon import DaemonProcess
from tests.programs import run
from wallet.seedfile import read_seed


async def told(daemon: DaemonProcess, kind: str, **details: object) -> None:
    """Until the daemon has told of something, which may be long ago."""
    async with asyncio.timeout(60), daemon.events(0) as events:
        async for event in events:
            if event.kind == kind and details.items() <= json.loads(event.data_json).items():
                return


def arguments(daemon: DaemonProcess) -> list[str]:
    return ["--network", "regtest", "--datadir", str(daemon.paths.root)]


@pytest.mark.parametrize("closes", ["the peer", "the lost node"])
async def test_the_words_and_the_file_bring_the_money_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, closes: str
) -> None:
    file = tmp_path / "elsewhere" / "channels.backup"
    file.parent.mkdir()
    async with Lab(tmp_path) as lab:
        alice, bob = lab.add_daemon("alice"), lab.add_daemon("bob", "--channel-backup", str(file))
        await alice.start()
        await bob.start()
        await lab.fund(bob, 2_000_000)
        channel = await lab.open_channel(bob, alice, 1_000_000, push_msat=300_000_000)
        await told(bob, "backup.written", path=str(file), channels=1)
        assert file.read_bytes() != bob.paths.channels_backup.read_bytes(), "each has a nonce of its own"
        await alice.pay((await bob.invoice(100_000_000)).bolt11)
        await bob.pay((await alice.invoice(50_000_000)).bolt11)
        if closes == "the lost node":
            await bob.close_channel(channel.channel_id, force=True)
            await lab.mine(1)

        words = read_seed(bob.paths.seed).mnemonic
        await bob.kill()
        shutil.rmtree(bob.paths.directory)
        monkeypatch.setenv("CHANNELD_SEED_WORDS", "abandon " * 11 + "about")
        assert main([*arguments(bob), "--restore-from", str(file)]) == 1
        assert "damaged, or of another seed" in capfd.readouterr().err
        monkeypatch.setenv("CHANNELD_SEED_WORDS", words)
        assert main([*arguments(bob), "--restore-from", str(file)]) == 0
        assert f"{bob.node_id.hex()} with 1 open channel from {file}" in capfd.readouterr().out
        monkeypatch.delenv("CHANNELD_SEED_WORDS")
        bob.paths.database.rename(bob.paths.database.with_suffix(".away"))
        ran = await run(*bob.process.command)
        assert ran.status == 1, "it would tell peers that it knows no channel of theirs"
        assert f"channeld.sqlite is missing, but {file} has 1 of its channels: put the database back" in ran.stderr
        bob.paths.database.with_suffix(".away").rename(bob.paths.database)

        await bob.start()  # it knows where Alice is
        if closes == "the peer":
            await alice.wait_until(lambda: lab.rpc.call("getrawmempool"))
        await lab.mine(150)
        await told(bob, "onchain.published", what="sweep")
        await lab.mine(1)
        assert (await bob.balance()).confirmed_sat > 1_740_000


async def test_with_the_words_alone_a_peer_gives_the_backup_back(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob = await lab.daemons("alice", "bob")
        await lab.fund(bob, 2_000_000)
        await lab.open_channel(bob, alice, 1_000_000, push_msat=300_000_000)
        async with asyncio.timeout(60):
            while not keeps_something(alice):
                await alice.pay((await bob.invoice(1_000)).bolt11)
        words = read_seed(bob.paths.seed).mnemonic
        await bob.kill()
        shutil.rmtree(bob.paths.directory)
        bob.process.set_module("channeld", {"CHANNELD_SEED_WORDS": words})
        await bob.start()
        bob.process.set_module("channeld")
        await bob.connect(alice)
        file = bob.paths.channels_backup
        await told(bob, "backup.unknown_channels", channels=1, path=str(file))
        await told(bob, "backup.written", channels=1)
        await bob.stop()
        for part in bob.paths.directory.glob("channeld.sqlite*"):
            part.unlink()
        assert main([*arguments(bob), "--restore-from", str(file)]) == 0
        await bob.start()
        await lab.mine(1)
        await told(bob, "onchain.published", what="sweep")
        await lab.mine(1)
        assert (await bob.balance()).confirmed_sat > 1_690_000


def keeps_something(daemon: DaemonProcess) -> bool:
    """Whether a daemon's database has a peer's blob."""
    with closing(sqlite3.connect(daemon.paths.database)) as database:
        (blobs,) = database.execute("SELECT count(*) FROM peer_storage").fetchone()
    return bool(blobs)
