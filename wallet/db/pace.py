"""Who commits: the writer's thread, or the event loop's where that is quicker."""

from __future__ import annotations

from time import perf_counter, thread_time
from typing import Final

QUICK_SECONDS: Final = 0.002
"""So long the event loop may be kept from everything else by a commit: less than by looking for a path."""
BUSY_SHARE: Final = 0.7
WINDOW_SECONDS: Final = 0.02
_NEW: Final = 1 / 8
"""The weight of the last commit in the mean: one that took long is remembered for a while."""


class Pace:
    """How long commits take here, and how busy the event loop is.

    To hand a commit over to another thread, and to be woken by it, costs nearly as much as a quick disk takes to sync.
    It is worth that only if the event loop has something to do meanwhile. A disk counts as slow until it has shown
    otherwise. Use from the event loop's thread.
    """

    def __init__(self) -> None:
        self._commit_seconds = 8 * QUICK_SECONDS
        self._since_seconds = perf_counter()
        self._used_seconds = thread_time()
        self._is_busy = True

    def took(self, seconds: float) -> None:
        """A commit took so long."""
        self._commit_seconds += (seconds - self._commit_seconds) * _NEW

    def is_for_the_loop(self) -> bool:
        """Whether the event loop had better make the next commit itself."""
        now = perf_counter()
        elapsed = now - self._since_seconds
        if elapsed >= WINDOW_SECONDS:
            used = thread_time()
            self._is_busy = used - self._used_seconds > BUSY_SHARE * elapsed
            self._since_seconds, self._used_seconds = now, used
        return self._commit_seconds < QUICK_SECONDS and not self._is_busy
