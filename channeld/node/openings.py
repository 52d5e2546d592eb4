"""Channels that others propose, and that have cost them nothing so far: how many of those are borne.

A `funding_created` may name a transaction that never comes. The channel is kept for 2,016 blocks all the same (BOLT 2),
with a row in the database: without a limit, strangers could fill memory and disk for the price of handshakes.
"""

from __future__ import annotations

from collections.abc import Iterable

from channeld.channel.state import Funded, OpenReceived, State

MAX_OPENINGS_PER_PEER = 4
MAX_UNPROVEN = 200
"""Of all peers together."""


def is_unproven(state: State) -> bool:
    """The peer proposed the channel, and its funding transaction was never seen in the chain. A channel that may be
    used without (zero-conf) is with a peer that is trusted."""
    if isinstance(state, Funded):
        return state.is_unseen and state.params.minimum_depth_blocks > 0
    return isinstance(state, OpenReceived)


def refusal(with_peer: Iterable[State], everybody: Iterable[State], has_stake: bool) -> str:
    """Why one more proposal is not borne; nothing if it is. `has_stake`: the peer has a channel that did cost it
    something."""
    unfinished = sum(not isinstance(state, Funded) or state.scid is None for state in with_peer)
    if unfinished >= MAX_OPENINGS_PER_PEER:
        return f"there are {unfinished} unfinished channels between us already"
    if not has_stake and sum(map(is_unproven, everybody)) >= MAX_UNPROVEN:
        return "too many channels wait for their funding transactions; try again later"
    return ""
