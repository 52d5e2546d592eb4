"""A daemon and a tower as processes: what payments revoke is backed up, and what was revoked is punished."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.v1 import towers_pb2
from tests.bench.tower import start, tower_process
from watchtower.client.connection import TowerUri
from watchtower.tower.paths import tower_paths


@asynccontextmanager
async def tower(lab: Lab, directory: Path, *arguments: str) -> AsyncIterator[TowerUri]:
    process = tower_process(lab, directory, *arguments)
    try:
        yield await start(process, tower_paths("regtest", directory))
    finally:
        await process.terminate()


async def channelctl(daemon: DaemonProcess, *arguments: str) -> tuple[int, str]:
    """Exit status and what it prints."""
    command = (sys.executable, "-m", "channeld.cli.main", "--datadir", str(daemon.paths.root), "tower", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def up_to_date(daemon: DaemonProcess) -> towers_pb2.CheckTowersResponse:
    """Asks until the answer is yes."""

    async def check() -> towers_pb2.CheckTowersResponse | None:
        answer = await daemon.client.towers.Check(towers_pb2.CheckTowersRequest())
        return answer if answer.up_to_date else None

    for _ in range(200):
        if (found := await check()) is not None:
            return found
    raise AssertionError(str(await daemon.client.towers.Check(towers_pb2.CheckTowersRequest())))


async def test_payments_are_backed_up_to_a_tower_that_came_late_and_one_that_was_away(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob = await lab.daemons("alice", "bob")
        await lab.fund(alice, 1_000_000)
        await lab.open_channel(alice, bob, 500_000)
        for _ in range(3):
            await alice.pay((await bob.invoice(20_000_000)).bolt11)
        directory = tmp_path / "tower"
        async with tower(lab, directory) as uri:
            await alice.client.towers.Add(towers_pb2.AddTowerRequest(uri=str(uri)))
            await up_to_date(alice)
            (listed,) = (await alice.client.towers.List(towers_pb2.ListTowersRequest())).towers
            (channel,) = listed.channels
            assert channel.revoked == channel.backed_up >= 6
            assert listed.sent == channel.backed_up
            assert await channelctl(alice, "check") == (0, f"{uri}: yes\n")
            status, text = await channelctl(alice, "stats", "--json")
            assert (status, json.loads(text)["towers"][0]["channels"][0]["backed_up"]) == (0, channel.backed_up)
            assert "works" in (await channelctl(alice, "list"))[1]
            assert (await channelctl(alice, "pause", uri.tower_id.hex()[:6]))[0] == 0
            assert "it is paused" in (await channelctl(alice, "check"))[1]
            assert (await channelctl(alice, "resume", uri.tower_id.hex()))[0] == 0
            assert (await channelctl(alice, "remove", "ffff"))[0] == 3
        # Away: payments go on, the backlog grows.
        for _ in range(2):
            await alice.pay((await bob.invoice(10_000_000)).bolt11)
        (listed,) = (await alice.client.towers.List(towers_pb2.ListTowersRequest())).towers
        assert listed.backlog >= 2
        status, text = await channelctl(alice, "check")
        assert (status, "cannot be reached" in text) == (1, True)
        await alice.restart()
        async with tower(lab, directory, "--listen", uri.address):
            await up_to_date(alice)
