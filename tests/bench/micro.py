"""Runs the microbenchmarks: every `micro_*.py` here offers `cases()`."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.bench.timing import Timing, measure


def run_micro(only: str = "") -> list[Timing]:
    """All cases whose name or module contains `only`."""
    timings: list[Timing] = []
    for path in sorted(Path(__file__).parent.glob("micro_*.py")):
        module = importlib.import_module(f"tests.bench.{path.stem}")
        timings += [measure(name, call) for name, call in module.cases() if only in name or only in path.stem]
    return timings
