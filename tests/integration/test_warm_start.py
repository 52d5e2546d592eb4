"""What starts warm in tests behaves as what starts cold."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from channeld.lab.processes import ManagedProcess
from tests.warm import WarmStarts

Start = Callable[..., ManagedProcess]


@pytest.fixture(params=["warm", "cold"])
async def program(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    """Makes a process that tells of itself; it is not started yet."""
    if request.param == "cold":
        request.getfixturevalue("cold_starts")
    made: list[ManagedProcess] = []

    def make(*arguments: str) -> ManagedProcess:
        command = [sys.executable, "-m", "tests.start_teller", *arguments]
        made.append(ManagedProcess("program", command, tmp_path / "log", {"WORD": "a word"}))
        return made[-1]

    yield make
    for process in made:
        await process.kill()


async def test_what_it_is_given_and_how_it_ends(program: Start) -> None:
    first, second = program("one", "two"), program("one", "two")
    for process in (first, second):
        await process.start()
        assert process.is_running
        assert await process.wait() == 7
        assert not process.is_running
        assert process.last_words().endswith("last words")
        given, chance = process.output.splitlines()
        assert given == "['one', 'two'] a word True False [0, 1, 2, 3]", "3 is the folder that it reads itself"
        assert 0 <= float(chance) < 1
    assert first.output != second.output, "each has random numbers of its own"


async def test_it_is_killed(program: Start) -> None:
    process = program("wait")
    await process.start()
    await process.wait_line("['wait']")
    await process.kill()
    assert process.returncode == -9


async def test_an_unknown_module(program: Start) -> None:
    process = program()
    process.set_module("tests.nothing_of_the_kind")
    await process.start()
    assert await process.wait() == 1
    assert "nothing_of_the_kind" in process.last_words()


async def test_what_is_warm_ends_with_what_it_was_forked_from(tmp_path: Path) -> None:
    warm = WarmStarts(())
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.start_teller", "wait"]
        child = await warm.spawn(command, log, {**os.environ, "WORD": "a word"})
    assert child.stdout is not None
    await child.stdout.readline()
    assert warm.running() == [child.pid]
    warm.close()
    async with asyncio.timeout(60):
        assert await child.wait() == -9
