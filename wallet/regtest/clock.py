"""The daemon's clock, which `setmocktime` can stop."""

from __future__ import annotations

import time

from wallet.regtest.kernel import set_mock_time


class Clock:
    """Seconds since 1970, real or mocked. Mocking also sets the consensus code's clock."""

    def __init__(self) -> None:
        self.mocked = 0
        self.started = time.monotonic()

    def now(self) -> int:
        """Unix time in seconds."""
        return self.mocked or int(time.time())

    def mock(self, seconds: int) -> None:
        """Stop the clock at a time; 0 lets it run again."""
        self.mocked = seconds
        set_mock_time(seconds)

    def uptime(self) -> int:
        """Seconds since the daemon started."""
        return int(time.monotonic() - self.started)
