"""Programs that a test runs from start to end, started as labs start theirs."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from channeld.lab.processes import ManagedProcess

RUN_SECONDS = 60.0


class Ran(NamedTuple):
    """What a program said, and its exit status."""

    status: int
    stdout: str
    stderr: str


async def run(*command: str, env: Mapping[str, str] | None = None) -> Ran:
    """A program from start to end, on a terminal wide enough for its tables."""
    with tempfile.TemporaryFile() as stderr:
        process = await ManagedProcess.spawn(command, stderr, {**os.environ, "COLUMNS": "400", **(env or {})})
        assert process.stdout is not None
        try:
            async with asyncio.timeout(RUN_SECONDS):
                stdout = await process.stdout.read()
                status = await process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        stderr.seek(0)
        return Ran(status, stdout.decode(), stderr.read().decode())
