"""Child processes that never outlive their parent: own sessions, ended with it, also when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class ProcessEnded(Exception):
    """A child ended that should run; the text has its last words."""


def _die_with_parent() -> list[str]:
    """What goes before a command so that the kernel kills it when its parent dies. A `preexec_fn` could do the same,
    but it makes Python fork by itself, which gRPC's threads in the parent do not survive."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv is not None else []


class Child(Protocol):
    """A process that was started: as `asyncio.subprocess.Process` is."""

    pid: int
    stdout: asyncio.StreamReader | None

    @property
    def returncode(self) -> int | None:
        """How it ended (negative: by this signal); None while it runs."""
        ...

    async def wait(self) -> int:
        """Until it ends; its `returncode`."""
        ...


Spawn = Callable[[Sequence[str], BinaryIO, Mapping[str, str]], Awaitable[Child]]
"""Starts a command in a session of its own, its stderr going to the file, with this environment and no other."""


async def spawn_program(command: Sequence[str], stderr: BinaryIO, env: Mapping[str, str]) -> Child:
    """A program as the operating system starts it."""
    return await asyncio.create_subprocess_exec(
        *_die_with_parent(),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        env=env,
        start_new_session=True,
    )


class ManagedProcess:
    """One child; its output goes to `log_path`, lines of stdout can be waited for."""

    spawn: ClassVar[Spawn] = staticmethod(spawn_program)
    """How children come to life; tests have a quicker way."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = log_path
        self._env = {**os.environ, **(env or {})}
        self._process: Child | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: list[str] = []
        self._news = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the running child."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What it wrote to stdout since its last start."""
        return "\n".join(self._lines)

    def set_module(self, module: str, env: Mapping[str, str] | None = None) -> None:
        """What Python runs at the next start, with more variables in its environment."""
        self.command[self.command.index("-m") + 1] = module
        self._env = {**os.environ, **(env or {})}

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        """Start (again)."""
        assert not self.is_running
        self._lines, self._news = [], asyncio.Event()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = await type(self).spawn(self.command, log, self._env)
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: Child) -> None:
        assert process.stdout is not None
        async for raw in process.stdout:
            self._lines.append(raw.decode(errors="replace").rstrip("\n"))
            self._news.set()
        await process.wait()
        self._news.set()

    async def wait_line(self, beginning: str, timeout_seconds: float = START_SECONDS) -> str:
        """The first line of stdout that begins so. Raises ProcessEnded, TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                for line in self._lines:
                    if line.startswith(beginning):
                        return line
                if not self.is_running:
                    raise ProcessEnded(f"{self.name} ended with status {self.returncode}: {self.last_words()}")
                self._news.clear()
                await self._news.wait()

    def last_words(self) -> str:
        """The end of what it wrote, for error messages."""
        stderr = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        return "\n".join([*self._lines[-10:], *stderr[-20:]])

    async def wait(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Until it ends by itself; its exit status."""
        assert self._process is not None
        async with asyncio.timeout(timeout_seconds):
            status = await self._process.wait()
            if self._reader is not None:
                await self._reader
        return status

    async def terminate(self) -> int | None:
        """Ask it to stop; kill it if it does not."""
        if not self.is_running:
            return self.returncode
        self._signal(signal.SIGTERM)
        self.thaw()
        try:
            return await self.wait()
        except TimeoutError:
            await self.kill()
            raise ProcessEnded(f"{self.name} did not stop in {STOP_SECONDS:g} s and was killed") from None

    async def kill(self) -> None:
        """kill -9, and what it may have started too."""
        if self.is_running:
            self._signal(signal.SIGKILL)
            await self.wait()

    def freeze(self) -> None:
        """It stops for as long as it takes, as a machine does that swaps or whose cable was pulled (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
