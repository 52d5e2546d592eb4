"""Which locators are watched: the first 8 bytes of each, in memory, so that a block is compared at once.

Sorted numbers (8 bytes each) and a set of those that came since; what the set has grown to is merged from time to time.
Removing is lazy: a prefix too many costs a look into the database, which has the whole locator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wallet.bitcoin import Block

PREFIX_BYTES = 8
MERGE_AT = 1 << 15
_SIGN = 1 << 63
Prefixes = NDArray[np.uint64]


def prefix_of(locator: bytes) -> int:
    """The first 8 bytes, big-endian."""
    return int.from_bytes(locator[:PREFIX_BYTES], "big")


def to_column(prefix: int) -> int:
    """As a signed 64-bit number of the same order, for databases."""
    return prefix - _SIGN


def from_columns(values: Sequence[int] | NDArray[np.int64]) -> Prefixes:
    """From `to_column`."""
    signed = np.asarray(values, dtype=np.int64)
    return signed.view(np.uint64) ^ np.uint64(_SIGN)


def prefixes_of_txids(txids: Iterable[bytes]) -> Prefixes:
    """In the order of the txids."""
    return np.frombuffer(b"".join([txid[:PREFIX_BYTES] for txid in txids]), dtype=">u8").astype(np.uint64)


def txids_of(block: Block) -> list[bytes]:
    """Of all its transactions."""
    return [tx.txid() for tx in block.txs]


class LocatorIndex:
    """A multiset of prefixes, as far as matching is concerned. `ordered` must be sorted."""

    def __init__(self, ordered: Prefixes | None = None) -> None:
        self._ordered: Prefixes = ordered if ordered is not None else np.empty(0, np.uint64)
        self._fresh: set[int] = set()

    def __len__(self) -> int:
        return len(self._ordered) + len(self._fresh)

    @property
    def memory_bytes(self) -> int:
        """About what it takes."""
        return int(self._ordered.nbytes) + 100 * len(self._fresh)

    def add(self, prefixes: Iterable[int]) -> None:
        """Watch for these too."""
        self._fresh.update(prefixes)
        if len(self._fresh) >= MERGE_AT:
            self._merge()

    def _merge(self) -> None:
        fresh = np.sort(np.fromiter(self._fresh, np.uint64, len(self._fresh)))
        places = np.searchsorted(self._ordered, fresh)
        self._ordered = np.insert(self._ordered, places, fresh)
        self._fresh.clear()

    def __contains__(self, prefix: int) -> bool:
        if prefix in self._fresh:
            return True
        place = int(np.searchsorted(self._ordered, np.uint64(prefix)))
        return place < len(self._ordered) and int(self._ordered[place]) == prefix

    def matches(self, prefixes: Prefixes) -> list[int]:
        """The places of those that are watched."""
        hits: set[int] = set()
        if len(self._ordered):
            places = np.searchsorted(self._ordered, prefixes)
            places[places == len(self._ordered)] = 0
            found: Any = np.nonzero(self._ordered[places] == prefixes)[0]
            hits.update(found.tolist())
        if self._fresh:
            hits.update(place for place, prefix in enumerate(prefixes.tolist()) if prefix in self._fresh)
        return sorted(hits)
