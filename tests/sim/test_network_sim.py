"""The network simulation: 200 seeds, stories that broke something once, and that a run is a function of its seed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.sim import network
from tests.sim.network_actions import draw

SEEDS = 200
AT_ONCE = 20

ONCE_BROKEN = (
    # A forwarded HTLC whose preimage came in an earlier life stayed on the list of those under way.
    '{"seed": 23, "kind": 1, "actions": [["crash", 2342814580, [14041, 15649, 64620, 31198], 1], '
    '["pay", 2709484913, [50205, 21923, 58892, 4427], 6]]}',
    # Of a payment that had succeeded, parts that were still out at a restart were never noted as settled.
    '{"seed": 1162, "kind": 4, "actions": [["hold", 806912294, [10255, 27218, 49925, 38220], 6], '
    '["pay", 1928282269, [37473, 27372, 7433, 40158], 6], ["crash", 2347304343, [33105, 11051, 59929, 28873], 6], '
    '["wait", 275607447, [23866, 18904, 65142, 1048], 1]]}',
    # The onion of an HTLC that came after our `shutdown` was remembered in memory only.
    '{"seed": 40051, "kind": 1, "actions": [["pay", 428146049, [20874, 54551, 13350, 40012], 1], '
    '["close", 1841207800, [61430, 63463, 7703, 21592], 7]]}',
    # A tower's disk kept one block more than its memory.
    '{"seed": 5004, "kind": 2, "actions": [["tower", 1134328332, [26831, 22333, 16029, 56999], 1], '
    '["overdue", 1391063018, [45947, 50344, 748, 900], 0], ["close", 2036251339, [63510, 49211, 62949, 63861], 5]]}',
)


IN_PARTS = (
    # A payment over both ways of a diamond loses a part, finds another way, and then money goes in a circle.
    '{"seed": 17, "kind": 5, "actions": [["parts", 3593256741, [62552, 37074, 10333, 54608], 4], '
    '["circle", 1807288009, [35481, 3620, 25637, 20974], 4]]}',
    '{"seed": 18, "kind": 5, "actions": [["parts", 2518775933, [23690, 28709, 23662, 5486], 4], '
    '["circle", 4236849488, [29654, 21724, 7096, 17501], 4]]}',
)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_whatever_happens(first: int) -> None:
    tally = network.play_range(first, AT_ONCE)
    assert not tally.failures, "\n\n".join(map(network.explain, tally.failures))
    assert tally.totals["paid"] > AT_ONCE // 2


@pytest.mark.parametrize("text", ONCE_BROKEN)
def test_what_broke_once_does_not_break_again(text: str) -> None:
    assert network.run(network.from_text(text)).reason == ""


@pytest.mark.parametrize("text", IN_PARTS)
def test_payments_in_parts_lose_some_of_them_and_arrive(text: str) -> None:
    played = network.run(network.from_text(text))
    assert (played.reason, played.crashes > 0) == ("", True)
    assert played.checked["a lost part was made up for"] == 1
    assert played.checked["a circle is closed or never was"] == 1


def test_a_story_survives_being_printed() -> None:
    story = draw(7)
    assert network.from_text(network.to_text(story)) == story


def test_a_run_is_a_function_of_its_seed() -> None:
    """Also in another process, whose sets have another order."""
    here = network.run(draw(5), trace=True)
    assert here.reason == ""
    command = [sys.executable, "-m", "tests.sim.network", "--seed", "5", "--trace"]
    there = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert there.stdout.splitlines() == [*here.trace, "all is well"]
