"""`channeld`, but it kills itself (SIGKILL) at a commit that the environment names. For tests of what survives.

CRASH_AT is the number of the commit, counting from 1 as soon as there is a file CRASH_FILE; CRASH_WHEN is `before` or
`after` it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from channeld.__main__ import run_daemon
from channeld.config import load_config


class KillHook:
    """Counts commits in the writer thread."""

    def __init__(self, commit: int, when: str, file: Path) -> None:
        self._left = commit
        self._when = when
        self._file = file

    def before(self) -> None:
        if self._when == "before":
            self._count()

    def after(self) -> None:
        if self._when == "after":
            self._count()

    def _count(self) -> None:
        if not self._file.exists():
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    take = os.environ.pop
    hook = KillHook(int(take("CRASH_AT")), take("CRASH_WHEN"), Path(take("CRASH_FILE")))
    sys.exit(run_daemon(load_config(sys.argv[1:]), hook))
