"""What the daemon chooses where nobody said, and `channelctl` tells beforehand: without any dependency, for both."""

from __future__ import annotations

LEAST_FEE_LIMIT_MSAT = 10_000


def default_fee_limit_msat(amount_msat: int) -> int:
    """What a payment may cost (msat) where nobody said: 1 % of it, but at least `LEAST_FEE_LIMIT_MSAT`."""
    return max(LEAST_FEE_LIMIT_MSAT, amount_msat // 100)
