"""A daemon and a tower as processes: what payments revoke is backed up, and what was revoked is punished."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from channeld.lab.daemon import DaemonProcess
from channeld.lab.lab import Lab
from channeld.lab.tower import start, tower_process
from channeld.v1 import towers_pb2
from tests.programs import run
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
    ran = await run(*command)
    return ran.status, ran.stdout


async def up_to_date(daemon: DaemonProcess) -> towers_pb2.CheckTowersResponse:
    """Asks until the answer is yes."""

    async def check() -> towers_pb2.CheckTowersResponse | None:
        answer = await daemon.client.towers.Check(towers_pb2.CheckTowersRequest())
        return answer if answer.up_to_date else None

    for _ in range(200):
        if (found := await check()) is not None:
            return found
    raise AssertionError(str(await daemon.client.towers.Check(towers_pb2.CheckTowersRequest())))


async def metrics(daemon: DaemonProcess) -> tuple[str, dict[str, float]]:
    """The page's beginning without "/metrics", and what a scraper reads there."""
    url = json.loads((daemon.paths.directory / "ready.json").read_text())["metrics"]
    async with ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        text = await answer.text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {f"{each.name}{''.join(f' {value}' for _, value in sorted(each.labels.items()))}": each for each in samples}
    return url.removesuffix("/metrics"), {name: each.value for name, each in found.items()}


async def check_metrics(
    daemon: DaemonProcess, uri: TowerUri, channel_id: bytes, channel: towers_pb2.TowerChannel
) -> None:
    """The basics of the node, and for every channel and tower what is backed up of what there is."""
    base, found = await metrics(daemon)
    tower, both = uri.tower_id.hex(), f"{channel_id.hex()} {uri.tower_id.hex()}"
    assert found[f"channeld_tower_up {tower}"] == 1
    assert found[f"channeld_tower_sent_total {tower}"] == channel.backed_up
    assert found[f"channeld_tower_revoked {both}"] == found[f"channeld_tower_backed_up {both}"] == channel.revoked
    assert found[f"channeld_tower_behind_seconds {both}"] == 0
    assert 0 <= found[f"channeld_tower_confirmed_age_seconds {both}"] < 60
    assert found["channeld_channels open"] == found["channeld_peers"] == found["channeld_synced"] == 1
    assert found["channeld_channels_remote_msat"] == 60_000_000
    assert found["channeld_payments_succeeded_total"] == found["channeld_events_total payment.succeeded"] == 3
    assert found["channeld_block_height"] == (await daemon.info()).block_height
    assert found["channeld_database_jobs_total"] >= found["channeld_database_commits_total"] > 6
    assert found["channeld_loop_lag_worst_seconds"] >= found["channeld_loop_lag_seconds"] >= 0
    assert found["channeld_process_resident_memory_bytes"] > 1e7
    async with ClientSession() as session, session.get(f"{base}/health") as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_payments_are_backed_up_to_a_tower_that_came_late_and_one_that_was_away(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob = lab.add_daemon("alice", "--metrics", "127.0.0.1:0"), lab.add_daemon("bob")
        await asyncio.gather(alice.start(), bob.start())
        await lab.wait_synced()
        await lab.fund(alice, 1_000_000)
        opened = await lab.open_channel(alice, bob, 500_000)
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
            await check_metrics(alice, uri, opened.channel_id, channel)
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
        _, found = await metrics(alice)
        assert found["channeld_events_total tower.trouble"] == 1
        assert found[f"channeld_tower_up {uri.tower_id.hex()}"] == 0
        await alice.restart()
        async with tower(lab, directory, "--listen", uri.address):
            await up_to_date(alice)
