"""Real daemons under load that die at random moments: nothing is lost. `python -m tests.soak` runs the long versions.

A failure names its seed; SOAK_SEED repeats it (but for the processes' own timing).
"""

from __future__ import annotations

import os

import pytest

from tests.soak.load import Load
from tests.soak.members import Shape
from tests.soak.run import soak

SEED = int(os.environ.get("SOAK_SEED", "2026"))


@pytest.mark.timeout(300)
async def test_ten_daemons_pay_each_other_and_die_at_random() -> None:
    # Amounts that one channel carries: when a part of a payment is lost with the dead, the payee keeps the others for a
    # minute (BOLT 4, "Basic Multi-Part Payments"), which the long version has the time for.
    shape = Shape(members=10, extra_channels=5, capacity_sat=(2_000_000, 6_000_000))
    load = Load(payments=80, workers=16, kills=3, amount_msat=(1_000, 15_000_000), blocks=2)
    result = await soak(shape, load, SEED)
    assert result.kills == load.kills
    assert result.reckoning.payments == load.payments
    assert result.reckoning.succeeded > load.payments // 2
    assert result.reckoning.forwards > 0


@pytest.mark.timeout(300)
async def test_kill_9_under_constant_load_on_slow_disks() -> None:
    shape = Shape(3, extra_channels=1, capacity_sat=(3_000_000, 6_000_000), is_line=True, slow_disk_seconds=0.01)
    load = Load(payments=120, workers=30, kills=4, away_seconds=0.2, amount_msat=(1_000, 20_000_000))
    result = await soak(shape, load, SEED)
    assert result.kills == load.kills
    assert result.reckoning.payments == load.payments
    assert result.reckoning.succeeded > load.payments // 3
