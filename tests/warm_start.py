"""The process that warm starts are forked from: `python -m tests.warm_start FD MODULE...`; see `tests.warm`.

It imports the modules, once. Then, for each request on the socket FD, it forks; the child becomes what
`python -m MODULE ARGUMENTS` would be, and how it ended is written to a pipe that came with the request. There is one
thread and no event loop in here: what is forked has nothing under way. When the other side of the socket ends, however
that may be, so does this process, and with it all that was forked from it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import runpy
import select
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import msgspec

MAX_REQUEST_BYTES = 1 << 17
READY = b"ready"
PR_SET_PDEATHSIG = 1


class Request(msgspec.Struct):
    """`python -m module arguments`, with this environment. Sent with three descriptors: stdout, stderr, and where the
    status goes (4 bytes, little-endian, negative for a signal)."""

    module: str
    arguments: list[str]
    environment: dict[str, str]


class Forked(NamedTuple):
    """In the child: what to become."""

    request: Request
    stdout: int
    stderr: int


def serve(control: socket.socket) -> Forked | None:
    """Answers requests with the child's number. Returns None when the other side is gone, and in every child."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    control.send(READY)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(statuses)
        if control.fileno() not in ready:
            continue
        data, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 3)
        if not data:
            return None
        stdout, stderr, status = descriptors
        has_session, in_session = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.write(in_session, b"\1")
            for descriptor in (control.detach(), woken, wake, has_session, in_session, status, *statuses.values()):
                os.close(descriptor)
            return Forked(msgspec.json.decode(data, type=Request), stdout, stderr)
        os.close(in_session)
        os.read(has_session, 1)
        for descriptor in (has_session, stdout, stderr):
            os.close(descriptor)
        statuses[pid] = status
        control.send(pid.to_bytes(4, "little"))


def _reap(statuses: dict[int, int]) -> None:
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        descriptor = statuses.pop(pid)
        os.write(descriptor, os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
        os.close(descriptor)


def become(forked: Forked, parent: int) -> None:
    """The program, in this process; returns when it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, forked.stdout, forked.stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(forked.request.environment)
    sys.argv = [forked.request.module, *forked.request.arguments]
    gc.enable()
    runpy.run_module(forked.request.module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Until the other side of the socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    for name in sys.argv[2:]:
        import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"an import started {threads - 1} threads: what is forked would lack them"
    gc.freeze()
    parent = os.getpid()
    forked = serve(control)
    if forked is not None:
        become(forked, parent)


if __name__ == "__main__":
    main()
