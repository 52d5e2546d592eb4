"""The table in docs/enforcement.md: what each side ended with. Tests of cheats compare what they measure with it;
`CHEATING_TABLE=1 pytest tests/integration/test_cheating.py` writes what it measures into it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cheating import Ending, Victim

DOCUMENT = Path(__file__).parents[1] / "docs" / "enforcement.md"
TOLERANCE_SAT = 2_000
"""Who is first in the mempool decides which of several transactions with different fees are made."""


def check(scenario: str, victim: Victim, ending: Ending) -> None:
    """Raises AssertionError if the table says something else."""
    measured = _row(victim, ending)
    if os.environ.get("CHEATING_TABLE"):
        _write(scenario, victim.watcher, measured)
    told = _told(scenario, victim.watcher)
    owned_sat, claimed_sat, victim_sat, taken_sat, commitment_sat, justice_sat, _ = told
    assert measured[:2] == [owned_sat, claimed_sat]
    # Fees are what varies: a bid is raised as often as a rival or the mempool's minimum is met before the next block.
    fees_sat = TOLERANCE_SAT + 4 * justice_sat
    assert abs(measured[2] - victim_sat) <= fees_sat, (measured, told)
    assert abs(measured[3] - taken_sat) <= TOLERANCE_SAT, (measured, told)
    assert abs(measured[4] - commitment_sat) <= TOLERANCE_SAT // 4, (measured, told)
    assert abs(measured[5] - justice_sat) <= fees_sat, (measured, told)


def _row(victim: Victim, ending: Ending) -> list[int]:
    """The numbers of a row, all in sat."""
    return [
        victim.owned_sat,
        victim.claimed_sat,
        ending.victim_sat,
        ending.cheater_sat + ending.cheater_fee_sat,
        ending.commitment_fee_sat,
        ending.justice_fee_sat,
        ending.cheater_fee_sat,
    ]


def _beginning(scenario: str, watcher: str) -> str:
    return f"| {scenario} | {watcher} |"


def _told(scenario: str, watcher: str) -> list[int]:
    (line,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(_beginning(scenario, watcher))]
    return [int(cell.replace(",", "")) for cell in line.strip("| ").split("|")[2:]]


def _write(scenario: str, watcher: str, numbers: list[int]) -> None:
    beginning = _beginning(scenario, watcher)
    row = beginning + "".join(f" {number:,} |" for number in numbers)
    lines = DOCUMENT.read_text().splitlines()
    known = [place for place, line in enumerate(lines) if line.startswith(beginning)]
    if known:
        lines[known[0]] = row
    else:
        lines.insert(max(place for place, line in enumerate(lines) if line.startswith("|")) + 1, row)
    DOCUMENT.write_text("\n".join(lines) + "\n")
