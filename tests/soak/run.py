"""A whole soak: the network is built, the load is run, and everything is counted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from channeld.lab import Lab
from channeld.lab.ledger import fee_sat, fetch_tx
from tests.soak.accounts import Lost, Reckoning, own_msat, reckon
from tests.soak.closing import close_everything
from tests.soak.load import Load, Soak
from tests.soak.members import Shape, build


class Result(NamedTuple):
    """`seconds`: how long the load took; `kills`: how many daemons died under it; `closing_fees_sat`: what miners got
    when everything was closed, None if it was not."""

    reckoning: Reckoning
    kills: int
    seconds: float
    closing_fees_sat: int | None


def _quiet(_sentence: str) -> None:
    """Nobody listens."""


async def soak(
    shape: Shape, load: Load, seed: int, say: Callable[[str], None] = _quiet, closes: bool = False
) -> Result:
    """Everything; `closes`: in the end all channels are closed, too. Raises Lost if anything is: with the seed, and
    with the folder of all databases and logs, which then stays."""
    folder = Path(tempfile.mkdtemp(prefix="channeld-soak-"))
    try:
        async with Lab(folder) as lab:
            found = await _run(lab, shape, load, Random(seed), say, closes)
    except Exception as error:
        raise Lost(f"seed {seed}, everything is in {folder}:\n{_told(error)}") from error
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
    return found


def _told(error: BaseException) -> str:
    """What went wrong; of several things, each."""
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(_told(part) for part in error.exceptions)
    return f"{type(error).__name__}: {error}"


async def _run(lab: Lab, shape: Shape, load: Load, rng: Random, say: Callable[[str], None], closes: bool) -> Result:
    members, edges, given_sat = await build(lab, shape, rng)
    say(f"{len(members)} daemons, {len(edges)} channels")
    before_msat = {member.name: await own_msat(member) for member in members}
    funding_fees_sat = sum([await fee_sat(lab, await fetch_tx(lab, edge.channel.funding_txid)) for edge in edges])
    if sum(before_msat.values()) != (given_sat - funding_fees_sat) * 1000:
        raise Lost(f"{given_sat} sat became {sum(before_msat.values())} msat, the fees are {funding_fees_sat} sat")
    run = Soak(lab, members, load, rng, say)
    await run.run()
    say(f"{len(run.paid)} payments and {run.kills} kills in {run.seconds:.1f} s; now counting")
    found = await reckon(run, edges, before_msat)
    fees_sat = None
    if closes:
        say("nothing is lost so far; now all channels are closed")
        fees_sat = await close_everything(lab, members, edges, rng)
    return Result(found, run.kills, run.seconds, fees_sat)
