"""`make demo` tells its whole story, and leaves nothing running: at its end, when it is interrupted, when it fails."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from channeld.lab import demo
from channeld.lab.lab import Lab
from channeld.lab.ledger import Account, Ledger
from channeld.lab.stage import DemoFailed, Stage


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that have to do with a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_text()
            except OSError:
                continue  # it ended meanwhile
            if str(folder) in command:
                found.append(command.replace("\0", " "))
    return found


def assert_nothing_left(folder: Path) -> None:
    """No process, no file."""
    assert not left_running(folder)
    assert not list(folder.iterdir())


async def start(folder: Path, module: str = "channeld.lab.demo") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "100"},
    )


@pytest.mark.timeout(300)
async def test_the_whole_story(tmp_path: Path) -> None:
    """Its processes start warm, which saves half the time; the tests below start it as users do."""
    process = await start(tmp_path, "tests.warm_demo")
    told = (await process.communicate())[0].decode()
    assert process.returncode == 0, told
    story = (
        *("Alice opens a channel", "Alice pays Bob 250,000 sat", "kill -9", "a helmet, after the crash"),
        *("Alice and Bob close together", "Gossip has told everybody", "went through Bob", "went through Carol"),
        *("Erin's machine hangs", "kill -9", "Bob forwarded", "Dave forwarded", "All channels are closed together"),
        *("A watchtower runs", "Bob copies his database", "the loan, paid back", "she switches her node off"),
        *("Bob puts his old copy back", "The tower opens the envelope"),
        "Alice is back and finds to_local, 700,000 sat",
    )
    position = 0
    for step in story:
        assert step in told[position:], f"{step!r} is missing in:\n{told}"
        position = told.index(step, position)
    assert "The payment arrived" in told or "failed cleanly" in told
    for line in told.splitlines():
        if line.strip().startswith("unexplained"):
            assert set(line.split()[1:]) == {"0"}, told
    assert "Nothing is missing, nothing is left running." in told
    assert told.splitlines()[-1] == "0 processes still run."
    assert_nothing_left(tmp_path)


async def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    process = await start(tmp_path)
    assert process.stdout is not None
    async for line in process.stdout:
        if b"Alice connects to Bob" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == 130, rest
    assert "nothing is left running" in rest
    assert_nothing_left(tmp_path)


@pytest.mark.usefixtures("cold_starts")  # whose command lines tell what they belong to
def test_a_demo_that_fails_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(stage: Stage) -> Ledger:
        (alice,) = await stage.cast("alice")
        alice.process.freeze()
        raise DemoFailed("the sky fell down")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "ACTS", (("a failure", fails),))
    assert demo.main() == 1
    assert "The demonstration failed: the sky fell down" in capsys.readouterr().out
    assert_nothing_left(tmp_path)


def test_a_demo_that_loses_money_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def loses(stage: Stage) -> Ledger:
        stage.say("nothing happens")
        ledger = Ledger()
        ledger.accounts["Alice"] = Account("Alice", before_msat=3000, after_msat=2000)
        return ledger

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "ACTS", (("a loss", loses),))
    assert demo.main() == 1
    assert "1000 msat of Alice are missing" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 40])
def test_no_amount_of_the_accounts_is_cut(tmp_path: Path, width: int) -> None:
    ledger = Ledger()
    for name in ("Alice", "Bob", "Carol", "Dave", "Erin"):
        ledger.accounts[name] = Account(name, 5_449_529_000, 1_000_000_000, 379_813_614, 5_449_529_000)
    written = io.StringIO()
    Stage(Console(file=written, width=width), Lab(tmp_path)).accounts(ledger.table())
    text = written.getvalue()
    assert "…" not in text
    for amount, label in (("5,449,529", "on chain before"), ("379,813.614", "  out of channels")):
        assert [line.split().count(amount) for line in text.splitlines() if line.startswith(label)] == [5]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
