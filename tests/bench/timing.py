"""Timing small things honestly: repeats until it means something, takes the best of several rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds a call: the least disturbed round, and the median round."""

    name: str
    best_seconds: float
    median_seconds: float


def measure(name: str, call: Callable[[], object], rounds: int = 5, round_seconds: float = 0.04) -> Timing:
    """Times `call` in `rounds` rounds of about `round_seconds` each."""
    call()
    count = 1
    while True:
        spent = _spent(call, count)
        if spent > round_seconds / 4:
            break
        count *= 4
    count = max(1, int(count * round_seconds / spent))
    samples = sorted(_spent(call, count) / count for _ in range(rounds))
    return Timing(name, samples[0], samples[len(samples) // 2])


def _spent(call: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - started
