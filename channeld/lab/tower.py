"""A `watchtowerd` process on a lab's layer 1."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from channeld.lab.lab import Lab
from channeld.lab.processes import ManagedProcess
from watchtower.client.connection import TowerUri
from watchtower.tower.paths import TowerPaths


def tower_process(lab: Lab, directory: Path, *arguments: str) -> ManagedProcess:
    """`watchtowerd` on the lab's layer 1; whoever starts it ends it."""
    command = [sys.executable, "-m", "watchtower", "--datadir", str(directory), "--network", "regtest"]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--bitcoind-url", lab.rpc_url]
    command += ["--bitcoind-cookie", str(lab.cookie_file), "--log-level", "warning", *arguments]
    return ManagedProcess("watchtowerd", command, directory / "stderr.log")


async def start(process: ManagedProcess, paths: TowerPaths) -> TowerUri:
    """Until it is ready."""
    await process.start()
    await process.wait_line("watchtowerd is ready", 60)
    ready = json.loads(await asyncio.to_thread(paths.ready.read_text))
    return TowerUri(bytes.fromhex(ready["tower_id"]), ready["grpc"])
