"""What must not be where others may read it: seed, token and preimages in no log, the data directory for its owner."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import pytest

from channeld.lab import Lab
from tests.bad_input_support import SUCCEEDED
from wallet.seedfile import read_seed

CHANNEL_SAT = 500_000


@pytest.mark.usefixtures("cold_starts")
async def test_logs_tell_no_secrets_and_files_are_private(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob = (lab.add_daemon(name, env={"CHANNELD_LOG_LEVEL": "debug"}) for name in ("alice", "bob"))
        bob.paths.directory.mkdir(parents=True, exist_ok=True)
        bob.paths.directory.chmod(0o755)
        await asyncio.gather(alice.start(), bob.start())
        await lab.wait_synced()
        await lab.fund(alice, 1_000_000)
        await lab.open_channel(alice, bob, CHANNEL_SAT)
        preimage = os.urandom(32)
        invoice = await bob.invoice(1_000_000, payment_preimage=preimage)
        assert invoice.payment_hash == hashlib.sha256(preimage).digest()
        payment = await alice.pay(invoice.bolt11)
        assert payment.state == SUCCEEDED
        assert payment.payment_preimage == preimage
        for daemon in (alice, bob):
            seed = read_seed(daemon.paths.seed)
            said = daemon.paths.log.read_text() + (daemon.paths.root / "stderr.log").read_text()
            assert "debug" in said
            assert invoice.payment_hash.hex() in said, "payments are told"
            for secret in (preimage.hex(), seed.mnemonic, daemon.paths.token.read_text().strip(), repr(preimage)):
                assert secret not in said
            there = (path for path in daemon.paths.directory.rglob("*") if path.suffix != ".new")  # those come and go
            files = [path for path in there if path.is_file()]
            assert {daemon.paths.seed, daemon.paths.token, daemon.paths.database, daemon.paths.log} <= set(files)
            assert {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {
                path.name: 0 for path in files
            }
        assert stat.S_IMODE(alice.paths.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(bob.paths.directory.stat().st_mode) == 0o755, "an operator's own decision is left alone"
