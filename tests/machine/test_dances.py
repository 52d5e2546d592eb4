"""Thousands of random dances with disconnections and crashes, on both kinds of channel."""

from __future__ import annotations

from functools import lru_cache

import pytest

from tests.machine.dance import Dance
from tests.machine.harness import Pair, open_pair

DANCES = 300
ACTIONS = 50
KINDS = {
    "anchors, opener has all": {"anchors": True},
    "anchors, balanced": {"anchors": True, "push_msat": 500_000_000},
    "static_remotekey, opener has all": {"anchors": False},
    "static_remotekey, balanced": {"anchors": False, "push_msat": 400_000_000},
    "small": {"anchors": True, "amount_sat": 25_000, "push_msat": 10_000_000},
}


@lru_cache
def opened(kind: str) -> Pair:
    """A channel of a kind, opened once."""
    return open_pair(number=sorted(KINDS).index(kind), **KINDS[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("block", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_dances(kind: str, block: int) -> None:
    for seed in range(block * DANCES, (block + 1) * DANCES):
        dance = Dance(opened(kind).clone(), seed)
        try:
            dance.run(ACTIONS)
        except Exception as error:
            raise AssertionError(f"seed {seed}, after: " + "; ".join(dance.steps[-12:])) from error
