"""Whose turn it is: how many messages are handled between two looks at all sockets, when peers send more than that.

Without it a peer that sends thousands of messages at once would keep everybody waiting until the last one is handled.
It counts messages, not time, so that what happens does not depend on how fast the machine is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

MESSAGES: Final = 32
"""In one turn of the event loop, of all strangers together."""
PREFERRED_MESSAGES: Final = 512
"""The same for peers with channels: enough not to tear apart what belongs into one commitment."""


class Taker(Protocol):
    """A connection."""

    is_preferred: bool

    @property
    def has_more(self) -> bool:
        """Whether there is something to handle, and it may be handled now."""
        ...

    def take(self, most: int) -> int:
        """Handle up to `most` messages; returns how many it was, or somewhat more if they cost more than usual."""
        ...

    def took_all(self) -> None:
        """Nothing waits any more: read on."""
        ...


class Turns:
    """One for all connections that share an event loop's time."""

    def __init__(self) -> None:
        self._preferred: deque[Taker] = deque()
        self._others: deque[Taker] = deque()
        self._room = MESSAGES
        self._is_scheduled = False

    def at_once(self, taker: Taker) -> int:
        """How many messages it may handle right now, without waiting for its turn."""
        if taker.is_preferred:
            return PREFERRED_MESSAGES
        return 0 if self._others else self._room

    def handled(self, taker: Taker, messages: int) -> None:
        """It has handled so many right now."""
        if messages and not taker.is_preferred:
            self._room = max(0, self._room - messages)
            self._schedule()

    def wait(self, taker: Taker) -> None:
        """It has more; its turn will come. Not to be called again before `took_all`."""
        (self._preferred if taker.is_preferred else self._others).append(taker)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        try:
            self._room = max(0, MESSAGES - _serve(self._others, MESSAGES))
            _serve(self._preferred, PREFERRED_MESSAGES)
        finally:
            if self._preferred or self._others or self._room < MESSAGES:
                self._schedule()


def _serve(queue: deque[Taker], room: int) -> int:
    """Those who wait, one after the other; who has more goes to the end. Returns how many messages were handled."""
    used = 0
    while queue and used < room:
        taker = queue.popleft()
        try:
            used += taker.take(room - used)
        finally:
            if taker.has_more:
                queue.append(taker)
            else:
                taker.took_all()
    return used
