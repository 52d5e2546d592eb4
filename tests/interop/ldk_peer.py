"""Drives one LDK node (tests/interop/ldk/) as a child process: commands in, events out, one JSON line each."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "ldk"
# Most of LDK's WebAssembly runs a few times only in a test: checking and optimising it costs more than it saves.
NODE = ("node", "--wasm-lazy-validation", "--wasm-tiering-budget=20000000")
Event = dict[str, Any]
WAIT_SECONDS = 60.0
"""More than anything takes that does not hang, also on a machine that does much else."""


def missing() -> str | None:
    """Why LDK cannot run here, as a sentence; None if it can."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return "LDK as a peer needs Node.js 20 and npm"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < 18:
        return f"LDK as a peer needs Node.js 18 or newer, not {version.strip()}"
    return None


def install() -> None:
    """Installs the locked npm packages and makes one file of them, once, also when several test processes want them at
    the same time; again when they change. Raises RuntimeError."""
    done = HERE / "node_modules" / ".installed"
    sources = [HERE / name for name in ("package.json", "package-lock.json", "lightning.mjs")]
    wanted = sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    with (HERE / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_text() == wanted and (HERE / "build" / "lightning.mjs").exists():
            return
        _npm("ci", "--no-audit", "--no-fund", "--include=dev")
        _npm("run", "--silent", "bundle")
        done.write_text(wanted)


def _npm(*command: str) -> None:
    result = subprocess.run(["npm", *command], cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    if result.returncode:
        raise RuntimeError(f"npm could not install LDK: {result.stderr.strip()[-500:]}")


class LdkError(Exception):
    """LDK refused a command, or its process died."""


class LdkPeer:
    """One LDK node. `events` keeps everything it said; `wait` awaits a matching one, from `mark()` on."""

    def __init__(self, datadir: Path, seed: bytes, rpc_url: str, rpc_auth: str, port: int, **config: Any) -> None:
        self.config = {
            "datadir": str(datadir),
            "seed": seed.hex(),
            "rpc_url": rpc_url,
            "rpc_auth": rpc_auth,
            "port": port,
            **config,
        }
        self.port = port
        self.node_id = b""
        self.events: list[Event] = []
        self._arrived = asyncio.Condition()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts (or restarts) the process and waits until it listens."""
        mark = self.mark()
        self._process = await asyncio.create_subprocess_exec(
            *NODE,
            str(HERE / "main.mjs"),
            json.dumps(self.config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        self._reader = asyncio.create_task(self._read(self._process))
        ready = await self.wait("ready", since=mark)
        self.node_id = bytes.fromhex(ready["node_id"])

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            message = json.loads(line)
            if "re" in message:
                future = self._answers.pop(message["re"])
                if future.done():
                    continue  # nobody waits any more
                if "err" in message:
                    future.set_exception(LdkError(message["err"]))
                else:
                    future.set_result(message["ok"])
                continue
            async with self._arrived:
                self.events.append(message)
                self._arrived.notify_all()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(LdkError("the LDK process ended"))
        self._answers.clear()
        async with self._arrived:
            self.events.append({"ev": "exit"})
            self._arrived.notify_all()

    async def call(self, command: str, timeout_seconds: float = WAIT_SECONDS, **arguments: Any) -> Any:
        """The command's result. Raises LdkError."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._count += 1
        future = self._answers[self._count] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"n": self._count, "cmd": command, **arguments}).encode() + b"\n")
        return await asyncio.wait_for(future, timeout_seconds)

    def mark(self) -> int:
        """A position in the events; give it to `wait`."""
        return len(self.events)

    async def wait(
        self,
        name: str,
        since: int = 0,
        where: Callable[[Event], bool] | None = None,
        timeout_seconds: float = WAIT_SECONDS,
    ) -> Event:
        """The first event called `name` from `since` on for which `where` holds. Fails at once if the process ends."""
        position = since

        def find() -> Event | None:
            nonlocal position
            while position < len(self.events):
                event = self.events[position]
                position += 1
                if event["ev"] == name and (where is None or where(event)):
                    return event
                if event["ev"] in ("exit", "panic"):
                    raise LdkError(f"LDK ended while {name} was awaited: {event}")
            return None

        async with asyncio.timeout(timeout_seconds), self._arrived:
            while (found := find()) is None:
                await self._arrived.wait()
        return found

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def crash(self) -> None:
        """kill -9, once what LDK has seen is on its disk: with a manager older than its monitors it would close."""
        await self.call("info")
        await self.kill()

    async def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self.is_running:
            self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None

    async def stop(self) -> None:
        """Ends the process; the end of its standard input is enough."""
        if self._process is not None and self.is_running:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                self._process.kill()
        await self.kill()
