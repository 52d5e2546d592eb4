"""`python -m tests.fuzz [TARGET ...] --minutes N`: look for inputs that break something.

One process a target, `--jobs` at a time. What reaches new code is kept in `.fuzz/TARGET` between runs; what breaks
something is written to `.fuzz/TARGET-crash-...`, printed, and makes the exit status 1. `--keep` distils the
corpus of a target into the repository.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.fuzz.target import CORPUS, Target, all_targets

WORK = Path(".fuzz")
KEPT_PER_TARGET = 60
LIMIT_SECONDS = 10
"""For one input."""


def main() -> int:
    """The command line."""
    if "--one" in sys.argv:
        return _drive(sys.argv[1], float(sys.argv[sys.argv.index("--minutes") + 1]))
    targets = all_targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzing with atheris.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all, or some of: {', '.join(targets)}")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default: 2)")
    parser.add_argument("--keep", action="store_true", help="write the distilled corpora into tests/fuzz/corpus")
    chosen = parser.parse_args()
    names = [name for name in chosen.targets if name != "all"] or list(targets)
    unknown = [name for name in names if name not in targets]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are: {', '.join(targets)}")
    if chosen.keep:
        for name in names:
            _keep(targets[name])
        return 0
    print(f"{'target':<18}{'inputs':>12}{'per second':>12}{'coverage':>10}{'corpus':>8}  outcome")
    with ThreadPoolExecutor(max(1, chosen.jobs)) as pool:
        outcomes = list(pool.map(lambda name: _run(name, chosen.minutes), names))
    return 0 if all(outcomes) else 1


def _folder(name: str) -> Path:
    return WORK / name


def _run(name: str, minutes: float) -> bool:
    """One target in a process of its own; False if something was found."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--one", "--minutes", str(minutes)]
    started = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    seconds = time.monotonic() - started
    runs, coverage, corpus = "?", "?", "?"
    for line in ended.stderr.splitlines():
        words = line.split()
        if line.startswith("#") and "cov:" in words:
            runs = words[0].strip("#")
            coverage = words[words.index("cov:") + 1]
            corpus = words[words.index("corp:") + 1].split("/")[0] if "corp:" in words else corpus
    rate = f"{int(runs) / seconds:.0f}" if runs.isdigit() else "?"
    outcome = "nothing found" if ended.returncode == 0 else f"FOUND SOMETHING (status {ended.returncode})"
    print(f"{name:<18}{runs:>12}{rate:>12}{coverage:>10}{corpus:>8}  {outcome}", flush=True)
    if ended.returncode != 0:
        print("\n".join((ended.stdout + ended.stderr).splitlines()[-60:]), flush=True)
    return ended.returncode == 0


def _drive(name: str, minutes: float) -> int:
    """The child of `_run`. Our code is instrumented while it is imported. libFuzzer ends the process."""
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        print("fuzzing needs atheris: pip install 'channeld[fuzz]' (Linux, CPython up to 3.13)", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["channeld", "wallet", "watchtower"]):
        target = all_targets()[name]
    for function in _generated():
        atheris.instrument_func(function)
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    for data in target.inputs():
        (folder / sha256(data).hexdigest()[:40]).write_bytes(data)
    arguments = [
        f"-max_total_time={int(minutes * 60)}",
        f"-max_len={target.max_bytes}",
        f"-timeout={LIMIT_SECONDS}",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={WORK}/{target.name}-",
        "-print_final_stats=0",
    ]

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except BaseException:
            found = WORK / f"{name}-crash-{sha256(data).hexdigest()[:16]}"
            found.write_bytes(data)
            print(f"the input is in {found}", file=sys.stderr)
            raise

    atheris.Setup([name, *arguments, str(folder)], run)
    atheris.Fuzz()
    return 0


def _generated() -> Iterator[Any]:
    """The codec's generated functions, which no import shows to atheris."""
    from channeld.bolt.codec import Structure  # no earlier, or it would not be instrumented

    waiting: list[Any] = [Structure]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        for name in ("_wire_decode", "_wire_encode"):
            function = vars(kind).get(name)
            if function is not None:
                yield getattr(function, "__func__", function)


def _keep(target: Target) -> None:
    """The smallest inputs that together reach all that the corpus reaches, by lines of our code."""
    inputs = sorted({path.read_bytes() for path in _folder(target.name).glob("*") if path.is_file()}, key=len)
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
    file.write_text("".join(f"{data.hex()}\n" for data in kept[:KEPT_PER_TARGET] if data))
    print(f"{target.name}: {len(kept[:KEPT_PER_TARGET])} of {len(inputs)} inputs kept, {len(reached)} lines reached")


def _lines(target: Target, data: bytes) -> set[object]:
    """Pairs of lines that follow each other, in our code, while `data` is played."""
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


if __name__ == "__main__":
    sys.exit(main())
