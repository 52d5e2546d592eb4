"""`channeld` on a slow disk: each commit takes a random time (SLOW_DISK_SECONDS at most) before it is durable, and as
long again until the node hears of it. Whoever kills it at random moments mostly hits a commit.
"""

from __future__ import annotations

import os
import random
import sys
import time

from channeld.__main__ import run_daemon
from channeld.config import load_config


class SlowDisk:
    """`CommitHook`: sleeps in the writer thread, where a disk would keep it waiting."""

    def __init__(self, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self._random = random.Random()

    def before(self) -> None:
        time.sleep(self._random.uniform(0, self._most_seconds))

    def after(self) -> None:
        time.sleep(self._random.uniform(0, self._most_seconds))


if __name__ == "__main__":
    disk = SlowDisk(float(os.environ.pop("SLOW_DISK_SECONDS")))
    sys.exit(run_daemon(load_config(sys.argv[1:]), disk))
