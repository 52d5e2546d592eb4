"""Token buckets and marks: how much gossip about one thing, and from one peer, is listened to."""

from __future__ import annotations

from collections.abc import Hashable


class TokenBuckets:
    """A bucket for each key: `burst` tokens, one more each `refill_seconds`. Full buckets take no memory."""

    def __init__(self, burst: int, refill_seconds: float) -> None:
        self._refill_seconds = refill_seconds
        self._spare_seconds = (burst - 1) * refill_seconds
        self._full_at: dict[Hashable, float] = {}

    def has(self, key: Hashable, now: float) -> bool:
        """Whether a token is there."""
        full_at = self._full_at.get(key)
        return full_at is None or full_at - now <= self._spare_seconds

    def take(self, key: Hashable, now: float) -> bool:
        """Take a token; False if there is none."""
        full_at = self._full_at.get(key, now)
        if full_at < now:
            full_at = now
        elif full_at - now > self._spare_seconds:
            return False
        self._full_at[key] = full_at + self._refill_seconds
        return True

    def clean(self, now: float) -> None:
        """Forget the buckets that are full again."""
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}

    def __len__(self) -> int:
        return len(self._full_at)


class Conduct:
    """A peer's marks for gossip that it should not have sent; half of them are forgotten each `half_life_seconds`.

    From `limit` marks on its gossip is not listened to, until enough of them are forgotten.
    """

    __slots__ = ("_at", "_half_life_seconds", "_limit", "_marks", "_warned_at")

    def __init__(self, limit: float = 100.0, half_life_seconds: float = 600.0) -> None:
        self._limit = limit
        self._half_life_seconds = half_life_seconds
        self._marks = 0.0
        self._at = 0.0
        self._warned_at = float("-inf")

    def marks(self, now: float) -> float:
        """What counts against the peer now."""
        elapsed = max(0.0, now - self._at)
        return self._marks * float(0.5 ** (elapsed / self._half_life_seconds))

    def blame(self, weight: float, now: float) -> None:
        """Something wrong came."""
        self._marks = self.marks(now) + weight
        self._at = now

    def is_throttled(self, now: float) -> bool:
        """Whether the peer's gossip is ignored."""
        return self.marks(now) >= self._limit

    def may_warn(self, now: float, every_seconds: float = 60.0) -> bool:
        """True at most once in `every_seconds`: one warning is enough for a burst of nonsense."""
        if now - self._warned_at < every_seconds:
            return False
        self._warned_at = now
        return True
