"""How much of the processor making blobs may take: payments come first, towers may lag behind them for a while.

One for all towers of a client, so that a second tower does not double what payments have to give.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BUSY_SHARE = 0.08
"""Of one core, while commitments are being revoked."""
QUIET_SHARE = 0.5
"""Of one core, when nothing was revoked for `QUIET_SECONDS`: what was left behind is caught up with soon."""
QUIET_SECONDS = 1.0
_SLICE_SECONDS = 0.2


class Pace:
    """What was spent is repaid by waiting, before more is spent."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        busy_share: float = BUSY_SHARE,
        quiet_share: float = QUIET_SHARE,
    ) -> None:
        self._clock = clock
        self._shares = busy_share, quiet_share
        self._revoked_at = -QUIET_SECONDS
        self._debt_seconds = 0.0
        self._lock = asyncio.Lock()

    def revoked(self) -> None:
        """Payments are under way."""
        self._revoked_at = self._clock()

    def spend(self, seconds: float) -> None:
        """So much of the processor's time was used."""
        self._debt_seconds += seconds

    @property
    def share(self) -> float:
        """Of one core, now."""
        busy, quiet = self._shares
        return quiet if self._clock() - self._revoked_at >= QUIET_SECONDS else busy

    async def repay(self) -> None:
        """Returns when more may be spent. Looks again all the time whether payments are still under way."""
        async with self._lock:
            while self._debt_seconds > 0:
                ratio = (1 - self.share) / self.share
                wait = min(self._debt_seconds * ratio, _SLICE_SECONDS)
                if wait <= 0:
                    break
                await asyncio.sleep(wait)
                self._debt_seconds -= wait / ratio
            self._debt_seconds = 0.0
