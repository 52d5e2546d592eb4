"""What path finding is asked and what it answers: plain values, without numpy.

A hop is a channel and the node at its far end. Amounts in msat, lock times in blocks, probabilities 0..1.
Source: BOLT 4 (payloads), BOLT 7, "HTLC Fees".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

MAX_HOPS = 20
"""As many as fit an onion of 1300 bytes with the payloads of BOLT 4."""

MAX_PARTS = 16
"""Of one payment at a time."""

MAX_CLTV_BLOCKS = 2016
"""What other nodes accept at most from now on, the usual limit of the network."""

MAX_AMOUNT_MSAT = 10**15
"""10,000 BTC; below it no fee of 32 bits overflows 64 bits."""

FREE_FEE_MSAT = 1_000_000
"""The default fee limit of small payments; that of large ones is the amount itself."""


class EdgeKey(NamedTuple):
    """One direction of a channel; 0 is from the lexicographically lesser node id. BOLT 7, `channel_update`."""

    short_channel_id: int
    direction: int


def direction_of(source: bytes, target: bytes) -> int:
    """The direction bit of an edge between two node ids. BOLT 7, `channel_flags`."""
    return int(source > target)


class Policy(Struct, frozen=True):
    """What a node asks for forwarding over a channel: the content of its `channel_update`."""

    enabled: bool
    htlc_minimum_msat: int
    htlc_maximum_msat: int
    fee_base_msat: int
    fee_proportional_millionths: int
    cltv_expiry_delta: int

    def fee_msat(self, amt_to_forward_msat: int) -> int:
        """BOLT 7, "HTLC Fees"."""
        return self.fee_base_msat + amt_to_forward_msat * self.fee_proportional_millionths // 1_000_000


class ExtraEdge(Struct, frozen=True):
    """A channel that is not in the public graph: of an invoice's hint, or a whole blinded path as one edge.

    `liquidity_msat`: what is assumed to pass for certain; the scorer's knowledge lowers it.
    """

    short_channel_id: int
    source: bytes
    target: bytes
    policy: Policy
    liquidity_msat: int = MAX_AMOUNT_MSAT


class LocalChannel(Struct, frozen=True):
    """A channel of ours, for the first hop: how much the peer can be offered now. Costs nothing."""

    short_channel_id: int
    node_id: bytes
    spendable_msat: int
    htlc_minimum_msat: int = 0
    htlc_maximum_msat: int = MAX_AMOUNT_MSAT


class CostModel(Struct, frozen=True):
    """How fees, time and risk are compared: everything in msat.

    cost = fees + amount * blocks * lock_ppb_per_block / 10^9 + (failure_base + amount * failure_ppm / 10^6) * nats
           + hops * hop_msat
    where nats = -ln(probability that all hops have the liquidity). One nat is a chance of 37 %.
    """

    fee_weight: float = 1.0
    lock_ppb_per_block: int = 15
    failure_base_msat: int = 10_000
    failure_ppm: int = 500
    hop_msat: int = 100
    online_probability: float = 0.995
    """The prior that a hop answers at all, whatever its liquidity."""

    def nat_msat(self, amount_msat: int) -> float:
        """What it is worth to make delivery of `amount_msat` more likely by one nat."""
        return self.failure_base_msat + amount_msat * self.failure_ppm / 1e6

    @property
    def hop_nats(self) -> float:
        """Improbability of every hop besides the first."""
        return -math.log(self.online_probability)


FEES_ONLY = CostModel(lock_ppb_per_block=0, failure_base_msat=0, failure_ppm=0, hop_msat=1, online_probability=1.0)
"""Plain cheapest-path routing; 1 msat a hop, so that of equal fees the shorter way wins."""


class RouteRequest(Struct, frozen=True, kw_only=True):
    """What to find. `source` to itself is a circular payment.

    `amount_msat`: what the destination gets. `final_cltv_expiry_delta`: blocks left at the destination.
    `max_fee_msat`: None for the amount itself, at least 1000 sat. `max_cltv_blocks`: from now to the first expiry.
    `local_channels`: if given, the only ones for the first hop; if None, the source's channels in the graph are,
    with unknown balances. `in_flight`: msat of HTLCs that are out, by direction. `outgoing_scids`, `incoming_nodes`:
    if given, the first hop's channel, and the last hop's sender, are one of these.
    `policies`: terms that take the place of the graph's in this search alone. `liquidity`: the least and the most
    (msat, what is in flight included) that a direction can send, for certain: what the scorer knows is cut to that.
    `required_features`: bits that every forwarding node must have announced, as an int of feature bits.
    """

    source: bytes
    destination: bytes
    amount_msat: int
    final_cltv_expiry_delta: int = 18
    block_height: int = 0
    max_fee_msat: int | None = None
    max_cltv_blocks: int = MAX_CLTV_BLOCKS
    max_hops: int = MAX_HOPS
    local_channels: tuple[LocalChannel, ...] | None = None
    extra_edges: tuple[ExtraEdge, ...] = ()
    in_flight: Mapping[EdgeKey, int] = {}
    ignored_channels: frozenset[EdgeKey] = frozenset()
    ignored_nodes: frozenset[bytes] = frozenset()
    outgoing_scids: frozenset[int] | None = None
    incoming_nodes: frozenset[bytes] | None = None
    policies: Mapping[EdgeKey, Policy] = {}
    liquidity: Mapping[EdgeKey, tuple[int, int]] = {}
    required_features: int = 0
    model: CostModel = CostModel()

    @property
    def fee_limit_msat(self) -> int:
        """`max_fee_msat` or its default."""
        return max(self.amount_msat, FREE_FEE_MSAT) if self.max_fee_msat is None else self.max_fee_msat


class Hop(Struct, frozen=True):
    """A channel of a route, and the node at its far end.

    `amount_msat`, `cltv_expiry`: of the HTLC on this channel (absolute: above `block_height`).
    `amt_to_forward_msat`, `outgoing_cltv_value`: of the onion payload for `node_id`: the next HTLC, or for the last
    node its own. `fee_msat`, `cltv_expiry_delta`: what `node_id` keeps. `probability`: of this channel alone.
    """

    short_channel_id: int
    direction: int
    node_id: bytes
    amount_msat: int
    cltv_expiry: int
    amt_to_forward_msat: int
    outgoing_cltv_value: int
    fee_msat: int
    cltv_expiry_delta: int
    probability: float

    @property
    def key(self) -> EdgeKey:
        """The channel's direction."""
        return EdgeKey(self.short_channel_id, self.direction)


class Route(Struct, frozen=True):
    """A way from `source` to the last hop's node. `total_amount_msat`: the first HTLC, fees included.

    `total_cltv_blocks`: from now to the first HTLC's expiry. `cost_msat`: what the search minimised.
    """

    source: bytes
    hops: tuple[Hop, ...]
    total_amount_msat: int
    total_fee_msat: int
    total_cltv_blocks: int
    probability: float
    cost_msat: float

    @property
    def amount_msat(self) -> int:
        """What arrives."""
        return self.hops[-1].amt_to_forward_msat


class NoRoute(Struct, frozen=True):
    """No way: a sentence for the user."""

    reason: str


class HopCost(Struct, frozen=True):
    """What one channel adds to the cost: its source's fee, the risk of locked funds, and of failure."""

    key: EdgeKey
    source: bytes
    target: bytes
    amount_msat: int
    fee_msat: int
    lock_blocks: int
    lock_cost_msat: float
    probability: float
    improbability_cost_msat: float

    @property
    def short_channel_id(self) -> int:
        """The channel's."""
        return self.key.short_channel_id

    @property
    def cost_msat(self) -> float:
        """All of it."""
        return self.fee_msat + self.lock_cost_msat + self.improbability_cost_msat
