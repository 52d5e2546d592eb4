"""How long each target ran, in all: the table in `RECORD.md`."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

RECORD = Path(__file__).parent / "RECORD.md"
HEAD = """# How long each target was fuzzed

The sum of all runs with `--record`, in minutes of processor time. "Found": runs that ended with a finding; what was
found is fixed and has a test ([security.md](../../docs/security.md)).

| target | minutes | inputs | found |
|---|---|---|---|
"""


class Sum(NamedTuple):
    """Of one target's runs."""

    cpu_minutes: float = 0.0
    inputs: int = 0
    found: int = 0

    def plus(self, other: Sum) -> Sum:
        """Both together."""
        return Sum(self.cpu_minutes + other.cpu_minutes, self.inputs + other.inputs, self.found + other.found)


def read(file: Path = RECORD) -> dict[str, Sum]:
    """The table as it is. Raises ValueError if it is none."""
    if not file.exists():
        return {}
    lines = [line for line in file.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {
        name: Sum(float(minutes), int(inputs.replace(",", "")), int(found))
        for name, minutes, inputs, found in rows
        if name not in ("target", "**all**")
    }


def add(name: str, run: Sum, file: Path = RECORD) -> None:
    """One more run. Several processes may do it at the same time."""
    with file.open("a+") as table:
        fcntl.flock(table, fcntl.LOCK_EX)
        known = read(file)
        known[name] = known.get(name, Sum()).plus(run)
        table.truncate(0)
        table.write(HEAD + "".join(_lines(known)))


def _lines(known: dict[str, Sum]) -> Iterable[str]:
    total = Sum()
    for name, entry in sorted(known.items()):
        total = total.plus(entry)
        yield _line(name, entry)
    yield _line("**all**", total)


def _line(name: str, entry: Sum) -> str:
    return f"| {name} | {entry.cpu_minutes:.1f} | {entry.inputs:,} | {entry.found} |\n"
