"""Thousands of random dances with disconnections and crashes, on both kinds of channel."""

from __future__ import annotations

from functools import lru_cache

import pytest

from channeld.bolt.features import Feature
from tests.machine.dance import ClosingDance, Dance
from tests.machine.harness import FEATURES, Pair, open_pair

DANCES = 150
ACTIONS = 50
KINDS = {
    "anchors, opener has all": {"anchors": True},
    "anchors, balanced": {"anchors": True, "push_msat": 500_000_000},
    "static_remotekey, opener has all": {"anchors": False},
    "static_remotekey, balanced": {"anchors": False, "push_msat": 400_000_000},
    "small": {"anchors": True, "amount_sat": 25_000, "push_msat": 10_000_000},
}

CLOSING_KINDS = {
    "legacy": {"push_msat": 300_000_000, "features": FEATURES - {Feature.option_simple_close | 1}},
    "legacy, fundee has nothing": {"features": FEATURES - {Feature.option_simple_close | 1}},
    "simple": {"push_msat": 300_000_000},
    "simple, fundee has nothing": {},
}


@lru_cache
def opened(kind: str) -> Pair:
    """A channel of a kind, opened once."""
    kinds = {**KINDS, **CLOSING_KINDS}
    return open_pair(number=sorted(kinds).index(kind), **kinds[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("block", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_dances(kind: str, block: int) -> None:
    for seed in range(block * DANCES, (block + 1) * DANCES):
        dance = Dance(opened(kind).clone(), seed)
        try:
            dance.run(ACTIONS)
        except Exception as error:
            raise AssertionError(f"seed {seed}, after: " + "; ".join(dance.steps[-12:])) from error


@pytest.mark.parametrize("kind", CLOSING_KINDS)
def test_closing_dances(kind: str) -> None:
    for seed in range(100):
        dance = ClosingDance(opened(kind).clone(), seed)
        try:
            dance.run(ACTIONS)
        except Exception as error:
            raise AssertionError(f"seed {seed}, after: " + "; ".join(dance.steps[-12:])) from error
