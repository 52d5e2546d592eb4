"""Rates: what a client may do in a second, and how much at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable


class TokenBucket:
    """Fills by `per_second` up to `burst`."""

    __slots__ = ("_burst", "_level", "_per_second", "_stamp")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._level = burst
        self._stamp = now

    def take(self, amount: float, now: float) -> float:
        """0 if there was so much, which is taken then; else the seconds until there will be."""
        passed = max(0.0, now - self._stamp)  # a clock that is set back takes nothing away
        self._level = min(self._burst, self._level + passed * self._per_second)
        self._stamp = now
        wanted = min(amount, self._burst)
        if self._level >= wanted:
            self._level -= amount
            return 0.0
        return (wanted - self._level) / self._per_second

    def is_full(self, now: float) -> bool:
        """Whether it need not be remembered."""
        return self._level + (now - self._stamp) * self._per_second >= self._burst


class Buckets:
    """A bucket for each of many; full ones are forgotten now and then."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float], most: int = 10_000) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._most = most
        self._buckets: dict[Hashable, TokenBucket] = {}

    def take(self, who: Hashable, amount: float = 1.0) -> float:
        """See `TokenBucket.take`."""
        now = self._clock()
        bucket = self._buckets.get(who)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._buckets = {key: kept for key, kept in self._buckets.items() if not kept.is_full(now)}
            bucket = self._buckets[who] = TokenBucket(self._per_second, self._burst, now)
        return bucket.take(amount, now)
