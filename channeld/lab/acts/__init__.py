"""The acts of `make demo`, in order. An act is a coroutine that plays on a `Stage` and returns its books."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from channeld.lab.acts import channel, cheat, network
from channeld.lab.ledger import Ledger
from channeld.lab.stage import Stage

Act = Callable[[Stage], Awaitable[Ledger]]

ACTS: tuple[tuple[str, Act], ...] = (
    ("a channel", channel.play),
    ("a network", network.play),
    ("a cheat", cheat.play),
)
