"""`watchtowerctl` and `watchtowerd` as processes."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from channeld.lab.lab import Lab
from channeld.lab.processes import ProcessEnded
from channeld.lab.tower import start, tower_process
from tests.programs import Ran, run
from watchtower.appointment import Appointment
from watchtower.client.connection import Connection
from watchtower.tower.paths import tower_paths


async def ctl(directory: Path, *arguments: str) -> Ran:
    return await run(sys.executable, "-m", "watchtower.cli.main", "--datadir", str(directory), *arguments)


async def ctl_json(directory: Path, *arguments: str) -> Any:
    status, out, error = await ctl(directory, *arguments, "--json")
    assert status == 0, error
    return json.loads(out)


async def test_a_tower_s_life(tmp_path: Path) -> None:
    directory = tmp_path / "tower"
    async with Lab(tmp_path) as lab:
        status, _, error = await ctl(directory, "status")
        assert (status, "not running" in error) == (5, True)
        process = tower_process(lab, directory)
        uri = await start(process, tower_paths("regtest", directory))
        connection = Connection(uri)
        await connection.create_session(b"\x21" * 32, "blind", 0)
        await connection.add(b"\x21" * 32, [Appointment(b"\x11" * 16, bytes(500))])
        await connection.close()
        found = await ctl_json(directory, "status")
        assert (found["sessions"], found["appointments"], found["synced_to_chain"]) == (1, 1, True)
        assert found["tower_id"] == uri.tower_id.hex()
        (session,) = (await ctl_json(directory, "sessions"))["sessions"]
        assert session["mode"] == "blind"
        (appointment,) = (await ctl_json(directory, "appointments", "--session", session["session_id"]))["appointments"]
        assert appointment["locator"] == "11" * 16
        assert (await ctl_json(directory, "breaches"))["breaches"] == []
        texts = await asyncio.gather(*(ctl(directory, name) for name in ("status", "sessions", "breaches")))
        assert [status for status, _, _ in texts] == [0, 0, 0]
        assert "in step" in texts[0][1]
        assert "no breaches" in texts[2][1]
        assert (await ctl(directory, "appointments", "--session", "zz"))[0] == 2
        second = tower_process(lab, directory)
        await second.start()
        with pytest.raises(ProcessEnded, match="in use by another watchtowerd"):
            await second.wait_line("watchtowerd is ready", 20)
        assert (await ctl(directory, "stop"))[0] == 0
        assert await process.wait() == 0
