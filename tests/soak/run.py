"""A whole soak: the network is built, the load is run, and everything is counted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from channeld.lab import Lab
from tests.soak.accounts import Lost, Reckoning, own_msat, reckon
from tests.soak.load import Load, Soak
from tests.soak.members import Shape, build


class Result(NamedTuple):
    """`seconds`: how long the load took; `kills`: how many daemons died under it."""

    reckoning: Reckoning
    kills: int
    seconds: float


def _quiet(_sentence: str) -> None:
    """Nobody listens."""


async def soak(shape: Shape, load: Load, seed: int, say: Callable[[str], None] = _quiet) -> Result:
    """Everything. Raises Lost if anything is: with the seed, and with the folder of all databases and logs, which then
    stays."""
    folder = Path(tempfile.mkdtemp(prefix="channeld-soak-"))
    try:
        async with Lab(folder) as lab:
            found = await _run(lab, shape, load, Random(seed), say)
    except Exception as error:
        raise Lost(f"seed {seed}, everything is in {folder}:\n{error}") from error
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
    return found


async def _run(lab: Lab, shape: Shape, load: Load, rng: Random, say: Callable[[str], None]) -> Result:
    members, edges = await build(lab, shape, rng)
    say(f"{len(members)} daemons, {len(edges)} channels")
    before_msat = {member.name: await own_msat(member) for member in members}
    run = Soak(lab, members, load, rng, say)
    await run.run()
    say(f"{len(run.paid)} payments and {run.kills} kills in {run.seconds:.1f} s; now counting")
    return Result(await reckon(run, edges, before_msat), run.kills, run.seconds)
