"""The network simulation that crashes everything.

    python -m tests.sim.network --seeds 10000 --from 0 --jobs 2     play many seeds
    python -m tests.sim.network --seed 42 --trace                   play one, and see what happens
    python -m tests.sim.network --replay '{"seed": ...}'            play a story that was printed

Production nodes on databases in memory, fake sockets, a fake layer 1 with Bitcoin Core's script engine, virtual time,
one source of chance. A seed is a story: a list of actions (payments, crashes at commit boundaries, lost connections,
closes, cheats, reorganisations ...). Whatever happens, what `network_checks`, `network_accounts` and `network_restart`
say must hold. A story that breaks it is made as short as it can be, and printed with a command that plays it again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from tests.sim.network_actions import Action, Story, draw, play
from tests.sim.network_world import KINDS, Broken, World, running, world_of

COLLECT_EVERY = 25
_played = 0


class Failure(NamedTuple):
    """A story that broke something, and what."""

    story: Story
    reason: str


class Outcome(NamedTuple):
    """A run: why it failed (empty: it did not), and how much happened."""

    reason: str
    messages: int
    crashes: int
    payments: int
    paid: int
    done: Counter[str]
    """Actions that had an effect."""
    checked: Counter[str]
    """How often what must hold was looked at."""
    trace: tuple[str, ...] = ()


def run(story: Story, trace: bool = False) -> Outcome:
    """Play a story in a world of its own."""
    world = world_of(KINDS[story.kind], story.seed)
    if trace:
        world.tap.trace = []
    gc.disable()
    try:
        with running(world):
            reason = _reason(world, story)
            world.close()
    finally:
        _tidy_up()
    paid = sum(getattr(book.result, "state", "") == "succeeded" for book in world.payments)
    crashes = sum(node.crashes for node in world.nodes.values()) - len(world.nodes)
    trace_lines = tuple(world.tap.trace or ())
    return Outcome(
        reason, world.tap.messages, crashes, len(world.payments), paid, world.done, world.checked, trace_lines
    )


def _reason(world: World, story: Story) -> str:
    try:
        play(world, story)
    except Broken as broken:
        return str(broken)
    except Exception as error:  # a bug of the simulation, or an assertion of the code: both must be seen
        return f"{type(error).__name__}: {error}"
    return ""


def _tidy_up() -> None:
    """The garbage collector costs more than a run: now and then is enough."""
    global _played
    _played += 1
    gc.enable()
    if _played % COLLECT_EVERY == 0:
        gc.collect()


def shrink(story: Story, reason: str, tries: int = 400) -> Failure:
    """The shortest list of actions that still fails (delta debugging: leave out halves, quarters, single ones)."""
    actions = story.actions
    size = max(1, len(actions) // 2)
    while size and tries > 0:
        shorter = None
        for start in range(0, len(actions), size):
            tries -= 1
            candidate = story._replace(actions=actions[:start] + actions[start + size :])
            why = run(candidate).reason
            if why:
                shorter, reason = candidate.actions, why
                break
        if shorter is None:
            size //= 2
        else:
            actions = shorter
            size = min(size, max(1, len(actions) // 2)) if actions else 0
    return Failure(story._replace(actions=actions), reason)


# --- stories as text ----------------------------------------------------------------------------------------------


def to_text(story: Story) -> str:
    """For `--replay`."""
    return json.dumps({"seed": story.seed, "kind": story.kind, "actions": story.actions})


def from_text(text: str) -> Story:
    """The reverse. Raises ValueError."""
    found = json.loads(text)
    actions = [Action(name, salt, tuple(numbers), pause) for name, salt, numbers, pause in found["actions"]]
    return Story(found["seed"], found["kind"], tuple(actions))


def explain(failure: Failure) -> str:
    """What failed, by what, and how to see it again."""
    story = failure.story
    lines = [f"seed {story.seed} fails in a network {' '.join(KINDS[story.kind])}: {failure.reason}"]
    lines.append(f"the shortest story that fails has {len(story.actions)} actions:")
    lines += [f"  {action.name} {' '.join(map(str, action.numbers))}" for action in story.actions]
    lines.append("play it again, seeing everything:")
    lines.append(f"  PYTHONHASHSEED=0 python -m tests.sim.network --trace --replay '{to_text(story)}'")
    return "\n".join(lines)


# --- many ---------------------------------------------------------------------------------------------------------


class Tally(NamedTuple):
    """What a range of seeds came to."""

    failures: list[Failure]
    totals: Counter[str]
    done: Counter[str]
    checked: Counter[str]


def play_range(first: int, count: int, shrinks: bool = True) -> Tally:
    """Seeds `first` to `first + count - 1`."""
    tally = Tally([], Counter(), Counter(), Counter())
    totals = tally.totals
    for seed in range(first, first + count):
        story = draw(seed)
        outcome = run(story)
        totals.update(seeds=1, messages=outcome.messages, crashes=outcome.crashes)
        totals.update(payments=outcome.payments, paid=outcome.paid)
        totals.update(action.name for action in story.actions)
        tally.done.update(outcome.done)
        tally.checked.update(outcome.checked)
        if outcome.reason:
            failure = shrink(story, outcome.reason) if shrinks else Failure(story, outcome.reason)
            tally.failures.append(failure)
    return tally


def _part(end: int, size: int, shrinks: bool, start: int) -> Tally:
    return play_range(start, min(size, end - start), shrinks)


def _play_many(first: int, count: int, jobs: int, shrinks: bool, stats: bool) -> int:
    started = time.monotonic()
    size = 50
    totals: Counter[str] = Counter()
    done: Counter[str] = Counter()
    checked: Counter[str] = Counter()
    failed = 0
    starts = range(first, first + count, size)
    with ExitStack() as stack:
        if jobs > 1:
            pool = stack.enter_context(ProcessPoolExecutor(jobs))
            tallies = pool.map(partial(_part, first + count, size, shrinks), starts)
        else:
            tallies = map(partial(_part, first + count, size, shrinks), starts)
        for tally in tallies:
            totals.update(tally.totals)
            done.update(tally.done)
            checked.update(tally.checked)
            for failure in tally.failures:
                failed += 1
                print(explain(failure), flush=True)
            if totals["seeds"] % 500 < size:
                passed = time.monotonic() - started
                print(f"{totals['seeds']} seeds in {passed:.0f} s, {failed} failed", flush=True)
    print(f"{totals['seeds']} seeds from {first} on in {time.monotonic() - started:.0f} s: {failed} failed")
    print(", ".join(f"{number} {name}" for name, number in sorted(totals.items())))
    if stats:
        _print_stats(totals, done, checked)
    return 1 if failed else 0


def _print_stats(totals: Counter[str], done: Counter[str], checked: Counter[str]) -> None:
    """How often each action was played, and to some effect; how often each thing that must hold was looked at."""
    print(f"\n{'action':<28} {'drawn':>8} {'done':>8}")
    for name in sorted(done):
        print(f"{name:<28} {totals[name]:>8} {done[name]:>8}")
    print(f"\n{'what must hold':<60} {'looked at':>10}")
    for name, number in sorted(checked.items()):
        print(f"{name:<60} {number:>10}")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.network", description="Play the network simulation.")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to play (200)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the shortest story that fails")
    parser.add_argument("--stats", action="store_true", help="tell how often each action and each check happened")
    parser.add_argument("--seed", type=int, help="play this seed alone")
    parser.add_argument("--replay", help="play this story, as printed with a failure")
    parser.add_argument("--trace", action="store_true", help="with --seed and --replay: print all that happens")
    options = parser.parse_args(arguments)
    sys.unraisablehook = lambda _: None  # coroutines of dead processes complain when they are thrown away
    if options.seed is None and options.replay is None:
        return _play_many(options.first, options.seeds, options.jobs, not options.no_shrink, options.stats)
    story = from_text(options.replay) if options.replay is not None else draw(options.seed)
    outcome = run(story, options.trace)
    if outcome.trace:
        print("\n".join(outcome.trace))
    print(outcome.reason or "all is well")
    return 1 if outcome.reason else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is chance too
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.network", *sys.argv[1:]])
    sys.exit(main())
