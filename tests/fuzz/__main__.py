"""`python -m tests.fuzz [TARGET ...] --minutes N`: look for inputs that break something.

One process a target, `--jobs` at a time; a minute is one of processor time, so that it means the same on a busy
machine. What reaches new code is kept in `.fuzz/TARGET` between runs; what breaks something is written to
`.fuzz/TARGET-crash-...`, printed, and makes the exit status 1. `--keep` distils the corpus of a target into the
repository, `--record` adds to `RECORD.md`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz import distil, record
from tests.fuzz.child import DONE, Done, log_of
from tests.fuzz.target import Target, all_targets

SHOWN_LINES = 60
LIBFUZZER_STATUSES = (70, 71, 77)
"""An input took too long, or too much memory, or raised; after the first two nobody says how many there were."""


def main() -> int:
    """The command line."""
    targets = all_targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzing with atheris.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all, or some of: {', '.join(targets)}")
    parser.add_argument("--minutes", type=float, default=1.0, help="of processor time for each target (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default: 2)")
    parser.add_argument("--record", action="store_true", help="add the runs to tests/fuzz/RECORD.md")
    parser.add_argument("--keep", action="store_true", help="write the distilled corpora into tests/fuzz/corpus")
    chosen = parser.parse_args()
    names = [name for name in chosen.targets if name != "all"] or list(targets)
    unknown = [name for name in names if name not in targets]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are: {', '.join(targets)}")
    if chosen.keep:
        for name in names:
            distil.keep(targets[name])
        return 0
    print(f"{'target':<18}{'inputs':>12}{'CPU minutes':>13}{'per second':>12}{'slowest s':>11}{'corpus':>8}  outcome")

    def run(name: str) -> bool:
        return _run(targets[name], chosen.minutes, chosen.record)

    with ThreadPoolExecutor(max(1, chosen.jobs)) as pool:
        outcomes = list(pool.map(run, names))
    return 0 if all(outcomes) else 1


def _run(target: Target, minutes: float, is_recorded: bool) -> bool:
    """One target in a process of its own; False if something was found."""
    log = log_of(target.name)
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tests.fuzz.child", target.run.__module__, target.name, str(minutes)]
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    lines = log.read_text(errors="replace").splitlines()
    done = next((Done.parse(line) for line in reversed(lines) if line.startswith(DONE)), Done())
    per_second = done.inputs / done.cpu_seconds if done.cpu_seconds else 0
    is_over = status == 0 and done.cpu_seconds > 0
    has_run = bool(done.cpu_seconds) or status in LIBFUZZER_STATUSES
    failure = "FOUND SOMETHING" if has_run else "DID NOT RUN"
    outcome = "nothing found" if is_over else f"{failure} (status {status})"
    print(
        f"{target.name:<18}{done.inputs:>12}{done.cpu_seconds / 60:>13.1f}{per_second:>12.0f}"
        f"{done.slowest_seconds:>11.2f}{distil.size(target):>8}  {outcome}",
        flush=True,
    )
    if not is_over:
        print("\n".join(lines[-SHOWN_LINES:]), flush=True)
    if is_recorded and has_run:
        record.add(target.name, record.Sum(done.cpu_seconds / 60, done.inputs, int(not is_over)))
    return is_over


if __name__ == "__main__":
    sys.exit(main())
