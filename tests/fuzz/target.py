"""What a fuzz target is, and where its inputs are kept."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parent / "corpus"
MODULES = "targets"
PATIENCE_SECONDS = 300
"""For an answer, by the clock: a machine that is busy elsewhere is no finding."""

Run = Callable[[bytes], None]


class Target(NamedTuple):
    """`run` raises on a finding; `seeds` begin the corpus; nothing longer than `max_bytes` is tried."""

    name: str
    run: Run
    seeds: Callable[[], Iterable[bytes]]
    max_bytes: int

    def inputs(self) -> Iterator[bytes]:
        """Seeds, then what was kept of earlier runs."""
        yield from self.seeds()
        file = CORPUS / f"{self.name}.txt"
        if file.exists():
            yield from map(bytes.fromhex, file.read_text().split())


_TARGETS: dict[str, Target] = {}


def target(name: str, seeds: Callable[[], Iterable[bytes]], max_bytes: int = 4096) -> Callable[[Run], Run]:
    """Declares a target."""

    def declare(run: Run) -> Run:
        assert name not in _TARGETS
        _TARGETS[name] = Target(name, run, seeds, max_bytes)
        return run

    return declare


def all_targets() -> dict[str, Target]:
    """Every target by its name."""
    package = importlib.import_module(f"tests.fuzz.{MODULES}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_TARGETS.items()))


def target_of(name: str) -> Target:
    """A target whose module is imported already."""
    return _TARGETS[name]


class Reader:
    """Takes decisions out of an input: structured fuzzing. After its end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return max(0, len(self._data) - self._pos)

    def take(self, size: int) -> bytes:
        """So many bytes, with zeros after the end."""
        taken = self._data[self._pos : self._pos + size]
        self._pos += size
        return taken.ljust(size, b"\x00")

    def number(self, size: int = 1) -> int:
        """A big-endian number of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1, which is at most 65535."""
        return self.number(1 if bound <= 256 else 2) % bound

    def chunk(self) -> bytes:
        """Some bytes, with their length before them."""
        return self.take(min(self.number(2), self.left))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)
