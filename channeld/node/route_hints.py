"""How others find us over channels that are not announced: aliases, and hints of invoices."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from channeld.bolt.invoice import RoutingHop
from channeld.bolt.messages import ChannelUpdate
from channeld.channel.state import Funded, Normal

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

UNTOLD_TERMS = (1000, 200, 144)
"""What the common nodes ask for at most unless they are told otherwise: base fee (msat), millionths, blocks."""
MAX_ROUTE_HINTS = 5


def route_hints(channels: Channels, is_announced: Callable[[bytes], bool]) -> list[tuple[RoutingHop, ...]]:
    """One hint for each usable channel that is not announced: how the peer finds us over it (BOLT 11, `r`).
    `is_announced`: whether others know of a channel, by its id. One that will be announced needs no hint where another
    one is known, and nobody could pay us without where none is."""
    drivers = [driver for driver in channels.all() if isinstance(driver.state, Normal)]
    # BOLT 11, "if there is NOT a public channel associated with its public key: MUST include at least one `r` field."
    is_known = any(is_announced(driver.channel_id) for driver in drivers)
    hints: list[tuple[RoutingHop, ...]] = []
    for driver in drivers:
        state = driver.state
        assert isinstance(state, Normal)
        if state.params.announce and is_known:
            continue
        hop = hop_to_us(driver, channels.update_of_peer(driver.channel_id))
        if hop is not None and len(hints) < MAX_ROUTE_HINTS:
            hints.append((hop,))
    return hints


def hop_to_us(driver: Driver, update: ChannelUpdate | None) -> RoutingHop | None:
    """A channel as a hop from its peer to us, by the terms of `update`, the peer's last one; before one came, what is
    enough for most: too little fails, too much is spent once. None while neither side has named the channel."""
    state = driver.state
    assert isinstance(state, Funded)
    # BOLT 2, "if `channel_type` has `option_scid_alias` set: MUST NOT use the real `short_channel_id` in BOLT 11 `r`
    # fields."
    real = None if state.params.type.scid_alias else state.scid
    scid = state.remote_alias if state.remote_alias is not None else real
    if scid is None:
        return None
    if update is None:
        return RoutingHop(driver.peer_id, scid, *UNTOLD_TERMS)
    fees = (update.fee_base_msat, update.fee_proportional_millionths)
    return RoutingHop(driver.peer_id, scid, *fees, update.cltv_expiry_delta)


def new_alias() -> int:
    """A random short_channel_id that no channel on the chain has: its block height is in the far future (BOLT 2)."""
    return 16_000_000 << 40 | int.from_bytes(os.urandom(5), "big")
