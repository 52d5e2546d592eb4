"""What is kept of long runs: inputs that together reach what all of them reach."""

from __future__ import annotations

import sys

from tests.fuzz.child import WORK
from tests.fuzz.target import CORPUS, Target

KEPT_PER_TARGET = 60
MAX_KEPT_BYTES = 2_000
"""Longer ones reach little that shorter ones do not."""


def size(target: Target) -> int:
    """How many inputs were found worth keeping between runs."""
    return sum(path.is_file() for path in (WORK / target.name).glob("*"))


def keep(target: Target) -> None:
    """Write the smallest inputs that together reach all that the corpus reaches, by lines of our code."""
    found = {path.read_bytes() for path in (WORK / target.name).glob("*") if path.is_file()}
    inputs = sorted((data for data in found if len(data) <= MAX_KEPT_BYTES), key=lambda data: (len(data), data))
    seeds = set(target.seeds())
    reached: set[object] = set()
    kept: list[bytes] = []
    for data in [*sorted(seeds, key=len), *inputs]:
        lines = _lines(target, data)
        if not lines <= reached:
            reached |= lines
            if data not in seeds:
                kept.append(data)
    file = CORPUS / f"{target.name}.txt"
    kept = [data for data in kept if data][:KEPT_PER_TARGET]
    if kept:
        file.write_text("".join(f"{data.hex()}\n" for data in kept))
    print(f"{target.name}: {len(kept)} of {len(inputs)} inputs kept, {len(reached)} lines reached")


def _lines(target: Target, data: bytes) -> set[object]:
    """Lines of our code that are reached while `data` is played."""
    seen: set[object] = set()

    def local(frame: object, event: str, argument: object) -> object:
        if event == "line":
            seen.add((frame.f_code, frame.f_lineno))  # type: ignore[attr-defined]
        return local

    def trace(frame: object, event: str, argument: object) -> object:
        name = frame.f_code.co_filename  # type: ignore[attr-defined]
        return local if "site-packages" not in name and "/lib/python" not in name else None

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        target.run(data)
    finally:
        sys.settrace(None)
    return seen
