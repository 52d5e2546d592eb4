"""Edges that invoices bring: routing hints (BOLT 11, `r`) and blinded paths (BOLT 4, "Route Blinding").

Amounts in msat, deltas in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from channeld.bolt.invoice import RoutingHop
from channeld.routing.values import MAX_AMOUNT_MSAT, ExtraEdge, Policy

BLINDED_DESTINATION = bytes(33)
"""Stands for the recipient behind blinded paths: no node has this id."""


class BlindedPathTerms(Struct, frozen=True):
    """The start of a blinded path and its aggregated terms. BOLT 12, `blinded_payinfo`."""

    first_node_id: bytes
    fee_base_msat: int
    fee_proportional_millionths: int
    cltv_expiry_delta: int
    htlc_minimum_msat: int = 0
    htlc_maximum_msat: int = MAX_AMOUNT_MSAT


def hint_edges(destination: bytes, hints: Sequence[Sequence[RoutingHop]]) -> tuple[ExtraEdge, ...]:
    """The hinted channels; each hint is a chain from a public node to `destination`. A channel named twice counts once,
    with the terms named last."""
    edges: dict[tuple[int, bytes], ExtraEdge] = {}
    for hint in hints:
        targets = [*(hop.pubkey for hop in hint[1:]), destination]
        for hop, target in zip(hint, targets, strict=True):
            policy = Policy(
                enabled=True,
                htlc_minimum_msat=0,
                htlc_maximum_msat=MAX_AMOUNT_MSAT,
                fee_base_msat=hop.fee_base_msat,
                fee_proportional_millionths=hop.fee_proportional_millionths,
                cltv_expiry_delta=hop.cltv_expiry_delta,
            )
            edges[hop.short_channel_id, hop.pubkey] = ExtraEdge(hop.short_channel_id, hop.pubkey, target, policy)
    return tuple(edges.values())


def blinded_edges(paths: Sequence[BlindedPathTerms]) -> tuple[ExtraEdge, ...]:
    """One edge a blinded path, from its first node to `BLINDED_DESTINATION`; `short_channel_id` is the path's index.

    The request's destination must be `BLINDED_DESTINATION`, and its `final_cltv_expiry_delta` 0: the terms contain it.
    """
    return tuple(
        ExtraEdge(
            index,
            path.first_node_id,
            BLINDED_DESTINATION,
            Policy(
                enabled=True,
                htlc_minimum_msat=path.htlc_minimum_msat,
                htlc_maximum_msat=path.htlc_maximum_msat,
                fee_base_msat=path.fee_base_msat,
                fee_proportional_millionths=path.fee_proportional_millionths,
                cltv_expiry_delta=path.cltv_expiry_delta,
            ),
        )
        for index, path in enumerate(paths)
    )
