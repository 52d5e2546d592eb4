"""Compacting the gossip file: where the records go that still count, and copying them (in a thread, if wanted)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from channeld.gossip.store import READ_BYTES

Offsets = npt.NDArray[np.int64]


class Compaction:
    """A copy of the records that still count: channels first, then updates, then nodes."""

    def __init__(
        self,
        path: Path,
        header: bytes,
        snapshot_bytes: int,
        groups: Sequence[tuple[Sequence[object], int]],
        spent: bytes,
    ) -> None:
        """`groups`: columns of locations of one kind of record, and how many bytes stand before what they point to."""
        located = [_sorted_records(columns, head_bytes) for columns, head_bytes in groups]
        starts = np.concatenate([group[0] for group in located])
        lengths = np.concatenate([group[1] for group in located])
        self.new_path = path.with_suffix(".new")
        self.snapshot_bytes = snapshot_bytes
        self._path = path
        self._header = header
        self._spent = spent
        self._starts = starts
        self._lengths = lengths
        ends = np.cumsum(lengths)
        self._new_starts: Offsets = len(header) + ends - lengths
        order = np.argsort(starts, kind="stable")
        self._old_sorted = starts[order]
        self._new_of_sorted = self._new_starts[order]

    def copy(self) -> None:
        """Writes the new file. Raises OSError (and leaves the old one as it is)."""
        source = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with open(self.new_path, "wb") as target:
                target.write(self._header)
                for start, end in self._runs():
                    while start < end:
                        data = os.pread(source, min(READ_BYTES, end - start), start)
                        if not data:
                            raise OSError(f"{self._path} is shorter than it was")
                        target.write(data)
                        start += len(data)
                target.write(self._spent)
        except OSError:
            self.discard()
            raise
        finally:
            os.close(source)

    def _runs(self) -> list[tuple[int, int]]:
        """Neighbouring records in one piece."""
        ends = self._starts + self._lengths
        breaks = np.flatnonzero(self._starts[1:] != ends[:-1]) + 1
        if not len(self._starts):
            return []
        firsts = np.concatenate([[0], breaks])
        lasts = np.concatenate([breaks, [len(ends)]]) - 1
        return list(zip(self._starts[firsts].tolist(), ends[lasts].tolist(), strict=True))

    def move(self, column: object, shift: int) -> None:
        """Turn a column's old locations into new ones, in place."""
        locations: npt.NDArray[np.uint64] = np.frombuffer(column, dtype=np.uint64)  # type: ignore[call-overload]
        offsets = (locations >> np.uint64(16)).astype(np.int64)
        lengths = locations & np.uint64(0xFFFF)
        kept = (offsets > 0) & (offsets < self.snapshot_bytes)
        moved = np.where(offsets > 0, offsets + shift, 0)
        index = np.searchsorted(self._old_sorted, offsets[kept], side="right") - 1
        moved[kept] = offsets[kept] - self._old_sorted[index] + self._new_of_sorted[index]
        locations[:] = (moved.astype(np.uint64) << np.uint64(16)) | lengths

    def discard(self) -> None:
        """Forget the new file."""
        self.new_path.unlink(missing_ok=True)


def _sorted_records(columns: Sequence[object], head_bytes: int) -> tuple[Offsets, Offsets]:
    """Starts and lengths of the records that these columns of locations point into."""
    locations = np.concatenate([np.frombuffer(column, dtype=np.uint64) for column in columns])  # type: ignore[call-overload]
    locations = np.sort(locations[locations != 0])
    starts = (locations >> np.uint64(16)).astype(np.int64) - head_bytes
    return starts, (locations & np.uint64(0xFFFF)).astype(np.int64) + head_bytes
