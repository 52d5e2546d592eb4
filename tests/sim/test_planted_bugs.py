"""The simulation sees bugs that are planted on purpose: each is caught by a story that the unbroken code survives."""

from __future__ import annotations

import pytest

from tests.sim import network
from tests.sim.network_actions import Story, draw
from tests.sim.network_plants import PLANTS, Plant, planted

MORE_SEEDS = 40
"""So many are tried if none of those that caught a bug once does so any more."""


def _stories(plant: Plant) -> list[Story]:
    known = [draw(found) if isinstance(found, int) else network.from_text(found) for found in plant.caught_by]
    return known + [draw(seed) for seed in range(MORE_SEEDS)]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_the_simulation_sees(plant: Plant) -> None:
    for story in _stories(plant):
        with planted(plant):
            broken = network.run(story).reason
        if broken and not network.run(story).reason:
            return
    raise AssertionError(f"nobody sees that {plant.what}")


def test_a_failure_is_told_by_the_shortest_story_that_fails() -> None:
    plant = next(plant for plant in PLANTS if plant.name == "speaks first")
    with planted(plant):
        (failure,) = network.play_range(6, 1).failures
    assert 1 <= len(failure.story.actions) <= 2
    told = network.explain(failure)
    assert failure.reason in told
    replay = told.rpartition("--replay '")[2].rstrip("'")
    with planted(plant):
        assert network.run(network.from_text(replay)).reason == failure.reason
    assert network.run(network.from_text(replay)).reason == ""
