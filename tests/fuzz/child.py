"""`python -m tests.fuzz.child MODULE TARGET MINUTES`: one target, in a process of its own, until its time is over.

Only what the target imports is instrumented. Time is the process's own: `LIMIT_SECONDS` for an input, and the minutes
for all, are the same on a busy machine.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.target import Target, target_of

WORK = Path(".fuzz")
DONE = "== done:"
LIMIT_SECONDS = 5.0
"""Of processor time, for one input."""
HANGING_SECONDS = 600
"""Of the clock, for one input: it waits for something that does not come."""


class Done(NamedTuple):
    """What a run was, in the last line that it prints."""

    inputs: int = 0
    cpu_seconds: float = 0.0
    slowest_seconds: float = 0.0

    def __str__(self) -> str:
        return f"{DONE} {self.inputs} {self.cpu_seconds:.2f} {self.slowest_seconds:.3f}"

    @classmethod
    def parse(cls, line: str) -> Done:
        """What `str` wrote."""
        inputs, cpu, slowest = line.removeprefix(DONE).split()
        return cls(int(inputs), float(cpu), float(slowest))


def log_of(name: str) -> Path:
    """What a target's last run printed."""
    return WORK / f"{name}.log"


class Clock:
    """Counts inputs and their time."""

    def __init__(self, target: Target, minutes: float) -> None:
        self._target = target
        self._started = time.process_time()
        self._until = self._started + minutes * 60
        self._inputs = 0
        self._slowest_seconds = 0.0

    def run(self, data: bytes) -> None:
        """One input; ends the process after the last one."""
        before = time.process_time()
        try:
            self._target.run(data)
            taken = time.process_time() - before
            assert taken < LIMIT_SECONDS, f"it took {taken:.1f} seconds"
        except BaseException:
            found = WORK / f"{self._target.name}-crash-{sha256(data).hexdigest()[:16]}"
            found.write_bytes(data)
            print(self.done(), f"the input is in {found}", sep="\n", flush=True)
            raise
        self._inputs += 1
        self._slowest_seconds = max(self._slowest_seconds, taken)
        if before + taken > self._until:
            print(self.done(), flush=True)
            os._exit(0)  # libFuzzer has no way to be told; what it found worth keeping is in files

    def done(self) -> Done:
        """So far."""
        return Done(self._inputs, time.process_time() - self._started, self._slowest_seconds)


def main() -> int:
    """The command line. libFuzzer ends the process."""
    module, name, minutes = sys.argv[1:]
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        print("fuzzing needs atheris: pip install 'channeld[fuzz]' (Linux, CPython up to 3.13)", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["channeld", "wallet", "watchtower"]):
        importlib.import_module(module)
    for function in _generated():
        atheris.instrument_func(function)
    _be_quiet()
    target = target_of(name)
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in target.inputs():
        (folder / sha256(data).hexdigest()[:40]).write_bytes(data)
    arguments = [
        f"-max_len={target.max_bytes}",
        f"-timeout={HANGING_SECONDS}",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={WORK}/{target.name}-",
    ]
    atheris.Setup([name, *arguments, str(folder)], Clock(target, float(minutes)).run)
    atheris.Fuzz()
    return 0


def _be_quiet() -> None:
    """Our own log would take most of the time."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


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


if __name__ == "__main__":
    sys.exit(main())
