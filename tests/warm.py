"""Daemons of tests start warm: forked from a process that has imported everything already.

That takes a seventh of the CPU time, and they are processes of their own as ever. What a program does until everything
is imported is tested by those that ask for the fixture `cold_starts`: there programs start as they do for users.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from channeld.lab.processes import Child, ManagedProcess, spawn_program
from tests.warm_start import READY, Request

PROGRAMS = (
    "channeld.config",
    "channeld.api.server",
    "channeld.daemon",
    "channeld.gossip.bulk",
    "channeld.gossip.checksums",
    "channeld.node.metrics",
    "channeld.routing.flow",
    "channeld.cli.lncli_graph",
    "channeld.cli.lncli_payments",
    "channeld.cli.score_commands",
    "channeld.cli.tower_commands",
    "wallet.bitcoind",
    "wallet.regtest.options",
    "wallet.regtest.server",
    "watchtower.rpc.commandline",
    "watchtower.rpc.lock",
    "watchtower.rpc.logs",
    "watchtower.tower.daemon",
    "sqlalchemy.dialects.sqlite",
    "cryptography.hazmat.backends.openssl.backend",
    "encodings.idna",
    "uvloop",
)
"""What programs import, some of it only when it is needed first. Nothing of it may start threads."""
NO_THREADS = {"OPENBLAS_NUM_THREADS": "1"}
"""What keeps numpy from starting some."""
START_SECONDS = 60.0


class WarmChild:
    """A forked process. See `channeld.lab.processes.Child`."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, status: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout: asyncio.StreamReader | None = stdout
        self._returncode: int | None = None
        self._ended = asyncio.ensure_future(self._end(status))

    async def _end(self, status: asyncio.StreamReader) -> int:
        try:
            ended = int.from_bytes(await status.readexactly(4), "little", signed=True)
        except asyncio.IncompleteReadError:
            ended = -signal.SIGKILL  # with what it was forked from
        self._returncode = ended
        return ended

    @property
    def returncode(self) -> int | None:
        return self._returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)


class WarmStarts:
    """The process to fork from; it is started when it is needed first."""

    def __init__(self, modules: Sequence[str] = PROGRAMS) -> None:
        self._modules = modules
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def spawn(self, command: Sequence[str], stderr: BinaryIO, env: Mapping[str, str]) -> Child:
        """A `channeld.lab.processes.Spawn`."""
        if list(command[:2]) != [sys.executable, "-m"]:
            return await spawn_program(command, stderr, env)
        control = self._control or self._start()
        request = Request(command[2], list(command[3:]), dict(env))
        read_stdout, stdout = os.pipe()
        read_status, status = os.pipe()
        socket.send_fds(control, [msgspec.json.encode(request)], [stdout, stderr.fileno(), status])
        os.close(stdout)
        os.close(status)
        pid = int.from_bytes(control.recv(4), "little")
        return WarmChild(pid, await _reader(read_stdout), await _reader(read_status))

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm_start", str(theirs.fileno()), *self._modules]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **NO_THREADS}
        )
        theirs.close()
        ours.settimeout(START_SECONDS)
        assert ours.recv(len(READY)) == READY, "the process that warm starts are forked from ended"
        self._control = ours
        return ours

    def running(self) -> list[int]:
        """The processes that were forked from it and have not ended."""
        if self._process is None:
            return []
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [int(pid) for pid in children if not _is_over(pid)]

    def close(self) -> None:
        """Ends it, and with it all that was forked from it."""
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait(START_SECONDS)


def _is_over(pid: str) -> bool:
    """It has ended, whether that was noted yet or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", 0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


@contextmanager
def warm_starts() -> Iterator[WarmStarts]:
    """All that labs start until the end of the block."""
    warm = WarmStarts()
    before = ManagedProcess.spawn
    ManagedProcess.spawn = staticmethod(warm.spawn)
    try:
        yield warm
    finally:
        ManagedProcess.spawn = before
        warm.close()
