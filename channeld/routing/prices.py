"""What edges cost for an amount: the one home of the arithmetic, for many edges at once and for a single one.

`Terms` holds what prices depend on: as columns, or as the numbers of one edge. The functions take both, and the results
are the same to the last bit. For a handful of edges plain numbers are several times as fast as arrays.

Amounts in msat, improbability in nats. Source: BOLT 7, "HTLC Fees".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from channeld.routing.graph import EdgeTable, Flags, Floats
from channeld.routing.scoring import Distribution
from channeld.routing.values import CostModel

MILLION = 1_000_000
FEW_EDGES = 8
"""So many edges are priced one after the other."""

Column = Any
"""An array by edge, or the number of one edge."""


class Terms(NamedTuple):
    """All that the price of an edge depends on, or of many. `allowed` has ignored, disabled and unsuitable edges taken
    out."""

    fee_base_msat: Column
    fee_proportional_millionths: Column
    cltv_expiry_delta: Column
    htlc_minimum_msat: Column
    htlc_maximum_msat: Column
    lower: Column
    upper: Column
    capacity: Column
    used: Column
    fixed_nats: Column
    allowed: Column


class Quote(NamedTuple):
    """What edges cost for one amount: fees (msat), improbability (nats), and the sum of all (msat); the sum is infinite
    where the amount cannot pass."""

    fee_msat: Column
    nats: Column
    cost_msat: Column


class Pricing(NamedTuple):
    """How costs are compared in a search: the model, what a nat costs (msat), and how balances are spread."""

    model: CostModel
    nat_msat: float
    distribution: Distribution


def quote(terms: Terms, amount_msat: int, pricing: Pricing) -> Quote:
    """Exact prices for an HTLC of `amount_msat`."""
    model, nat_msat, distribution = pricing
    millionths = terms.fee_proportional_millionths
    whole, rest = divmod(amount_msat, MILLION)
    fee = terms.fee_base_msat + whole * millionths + rest * millionths // MILLION
    nats = distribution.nats(terms.lower, terms.upper, terms.used, float(amount_msat), terms.capacity)
    nats += terms.fixed_nats
    locked = terms.cltv_expiry_delta * (amount_msat * model.lock_ppb_per_block / 1e9)
    cost = fee * model.fee_weight + locked + model.hop_msat
    if nat_msat:
        cost += nats * nat_msat
    ok = terms.allowed & (terms.htlc_minimum_msat <= amount_msat) & (terms.htlc_maximum_msat >= amount_msat)
    return Quote(fee, nats, _infinite_unless(ok & (nats < math.inf), cost))


def floor(terms: Terms, least_msat: Column, most_msat: int, pricing: Pricing) -> Column:
    """The least cost for any amount of that range (its start may differ by edge); infinite where none can pass."""
    model, nat_msat, distribution = pricing
    cost = terms.fee_proportional_millionths * (least_msat / MILLION)
    cost += 5e-7  # fees are multiples of 1e-6 before rounding: this rights binary fractions, and no more
    cost = np.floor(cost, out=cost) if isinstance(cost, np.ndarray) else float(math.floor(cost))
    cost += terms.fee_base_msat
    if model.fee_weight != 1:
        cost *= model.fee_weight
    if model.lock_ppb_per_block:
        cost += terms.cltv_expiry_delta * (least_msat * model.lock_ppb_per_block / 1e9)
    cost += model.hop_msat
    if nat_msat:
        nats = distribution.nats(terms.lower, terms.upper, terms.used, least_msat, terms.capacity)
        nats += terms.fixed_nats
        cost += nats * nat_msat
    return _infinite_unless(open_to(terms, least_msat, most_msat), cost)


def open_to(terms: Terms, least_msat: Column, most_msat: int) -> Column:
    """Whether some amount of that range can pass."""
    ok = terms.allowed & (terms.htlc_minimum_msat <= most_msat)
    ok &= terms.htlc_maximum_msat >= least_msat
    ok &= terms.upper >= terms.used + least_msat
    return ok


def _infinite_unless(ok: Column, cost: Column) -> Column:
    if isinstance(cost, np.ndarray):
        cost[~ok] = np.inf
        return cost
    return float(cost) if ok else math.inf


@dataclass(slots=True)
class Table:
    """Edges and their terms."""

    edges: EdgeTable
    lower: Floats
    upper: Floats
    capacity: Floats
    used: Floats
    fixed_nats: Floats
    allowed: Flags
    terms: Terms = field(init=False)

    def __post_init__(self) -> None:
        edges = self.edges
        self.terms = Terms(
            *(edges.fee_base_msat, edges.fee_proportional_millionths, edges.cltv_expiry_delta),
            *(edges.htlc_minimum_msat, edges.htlc_maximum_msat, self.lower, self.upper, self.capacity),
            *(self.used, self.fixed_nats, self.allowed),
        )

    def __len__(self) -> int:
        return len(self.allowed)

    def of(self, index: NDArray[np.integer]) -> Terms:
        """The terms of some edges."""
        return Terms(*[column[index] for column in self.terms])

    def of_one(self, index: int) -> Terms:
        """The terms of one edge, as plain numbers."""
        return Terms(*[column.item(index) for column in self.terms])

    def floor(self, least_msat: Floats | float, most_msat: int, pricing: Pricing) -> Floats:
        """`floor` of all edges."""
        if len(self) > FEW_EDGES:
            return np.asarray(floor(self.terms, least_msat, most_msat, pricing), np.float64)
        least = least_msat.tolist() if isinstance(least_msat, np.ndarray) else [least_msat] * len(self)
        return np.array(
            [
                floor(self.of_one(at), least[at], most_msat, pricing) if is_allowed else math.inf
                for at, is_allowed in enumerate(self.allowed.tolist())
            ],
            np.float64,
        )

    def open_to(self, least_msat: Floats | float, most_msat: int) -> Flags:
        """`open_to` of all edges."""
        return np.asarray(open_to(self.terms, least_msat, most_msat), np.bool_)
