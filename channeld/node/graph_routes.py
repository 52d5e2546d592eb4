"""`route find`: from what the user asks to a request for path finding, and from its answer to reasons.

`search` is pure and slow (tenths of a second on the public network): it runs in a thread, on copies. Amounts in msat,
lock times in blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import asdict

from channeld.bolt.invoice import Invoice, InvoiceError, decode_invoice
from channeld.bolt.primitives import format_short_channel_id
from channeld.defaults import default_fee_limit_msat
from channeld.node.graph_views import CandidateView, RouteHopView, RouteQuery, RoutesView, RouteView
from channeld.node.interface import NodeError
from channeld.routing.hints import hint_edges
from channeld.routing.values import (
    MAX_AMOUNT_MSAT,
    MAX_CLTV_BLOCKS,
    MAX_PARTS,
    EdgeKey,
    HopCost,
    LocalChannel,
    NoRoute,
    Route,
    RouteRequest,
)
from wallet.bitcoin.address import Network

if TYPE_CHECKING:
    from channeld.routing.explanation import Candidate
    from channeld.routing.graph import Graph
    from channeld.routing.scoring import Scorer

FINAL_DELTA_BLOCKS = 18
"""BOLT 11, `c`: what holds without one."""
SPARE_BLOCKS = 16
"""Found between the search and the HTLC's arrival at the strictest node."""


class Asked(NamedTuple):
    """A request that makes sense. `is_own`: this node pays."""

    request: RouteRequest
    max_parts: int
    is_own: bool


def own_query(
    query: RouteQuery, node_id: bytes, network: Network, local: tuple[LocalChannel, ...], graph: Graph, height: int
) -> Asked:
    """What is to be searched. Raises NodeError for what contradicts itself or cannot be."""
    invoice = _invoice(query, network)
    source = query.source or node_id
    is_own = source == node_id
    destination, amount_msat = _destination(query, invoice), _amount(query, invoice)
    if not 1 <= query.max_parts <= MAX_PARTS:
        raise _invalid(f"A payment has 1 to {MAX_PARTS} parts, not {query.max_parts}.")
    if is_own and not local:
        raise NodeError(
            "failed_precondition", "This node has no channel that is open and connected; it cannot pay anybody now."
        )
    if not is_own and graph.node_index(source) is None:
        raise NodeError("not_found", f"The node {source.hex()}, who would pay, has no public channel.")
    delta = query.final_cltv_expiry_delta
    if delta is None:
        delta = invoice.min_final_cltv_expiry_delta if invoice is not None else FINAL_DELTA_BLOCKS
    hints = [hint for hint in invoice.routing_hints if hint and hint[0].pubkey != source] if invoice is not None else []
    request = RouteRequest(
        source=source,
        destination=destination,
        amount_msat=amount_msat,
        final_cltv_expiry_delta=delta,
        block_height=height,
        max_fee_msat=default_fee_limit_msat(amount_msat) if query.max_fee_msat is None else query.max_fee_msat,
        max_cltv_blocks=MAX_CLTV_BLOCKS - SPARE_BLOCKS if query.max_cltv_blocks is None else query.max_cltv_blocks,
        local_channels=local if is_own else None,
        extra_edges=hint_edges(destination, hints),
        ignored_channels=frozenset(EdgeKey(scid, side) for scid in query.avoid_scids for side in (0, 1)),
        ignored_nodes=query.avoid_nodes - {source, destination},
        outgoing_scids=_outgoing(query, source, local if is_own else None, graph),
        incoming_nodes=query.last_hop_nodes or None,
    )
    return Asked(request, query.max_parts, is_own)


def _invoice(query: RouteQuery, network: Network) -> Invoice | None:
    if not query.bolt11:
        return None
    try:
        invoice = decode_invoice(query.bolt11.strip())
    except InvoiceError as error:
        raise _invalid(str(error)) from error
    if invoice.network.name != network.name:
        raise _invalid(f"The invoice is for {invoice.network.name}, this node is on {network.name}.")
    return invoice


def _destination(query: RouteQuery, invoice: Invoice | None) -> bytes:
    if invoice is None:
        if not query.destination:
            raise _invalid("Say who is to be paid: a node id, or an invoice.")
        return query.destination
    if query.destination not in (b"", invoice.payee):
        raise _invalid(f"The invoice is of {invoice.payee.hex()}, not of the destination; leave one of them out.")
    return invoice.payee


def _amount(query: RouteQuery, invoice: Invoice | None) -> int:
    amount_msat = query.amount_msat or (invoice.amount_msat if invoice is not None else None) or 0
    if amount_msat == 0:
        raise _invalid("Say how much is to be paid.")
    if amount_msat > MAX_AMOUNT_MSAT:
        raise _invalid(f"At most {MAX_AMOUNT_MSAT // 1000:,} sat can be routed at once.")
    return amount_msat


def _outgoing(
    query: RouteQuery, source: bytes, local: tuple[LocalChannel, ...] | None, graph: Graph
) -> frozenset[int] | None:
    """The channels that the first hop may take; None for any."""
    if not query.via_scids and not query.via_nodes:
        return None
    if local is not None:
        own = {channel.short_channel_id: channel.node_id for channel in local}
    else:
        own = {
            channel.short_channel_id: channel.node_id_2 if channel.node_id_1 == source else channel.node_id_1
            for channel in graph.node_channels(source)
        }
    for scid in query.via_scids - own.keys():
        raise _invalid(f"{format_short_channel_id(scid)} is no channel over which the payer can send now.")
    for node_id in query.via_nodes - set(own.values()):
        raise _invalid(f"The payer has no channel with {node_id.hex()} over which it can send now.")
    return frozenset(scid for scid, peer in own.items() if scid in query.via_scids or peer in query.via_nodes)


def _invalid(sentence: str) -> NodeError:
    return NodeError("invalid_argument", sentence)


def search(graph: Graph, scorer: Scorer, asked: Asked, private_scids: frozenset[int], now_seconds: float) -> RoutesView:
    """The way or ways, what each hop costs, and why others lost. `private_scids`: of our own channels."""
    from channeld.routing.costs import lay_out
    from channeld.routing.explanation import explain, hop_costs
    from channeld.routing.flow import find_flow

    started = time.perf_counter()
    request = asked.request
    whole = explain(graph, scorer, request, now_seconds)
    found: tuple[Route, ...] | NoRoute
    if asked.max_parts > 1:
        found = find_flow(graph, scorer, request, now_seconds, asked.max_parts)
    else:
        found = (whole.route,) if isinstance(whole.route, Route) else whole.route

    def hops(costs: Iterable[HopCost]) -> tuple[RouteHopView, ...]:
        private = private_scids if asked.is_own else frozenset()
        return tuple(RouteHopView(**asdict(cost), is_private=cost.short_channel_id in private) for cost in costs)

    def candidate(one: Candidate) -> CandidateView:
        return CandidateView(hops(one.hops), one.fee_msat, one.lock_blocks, one.probability, one.cost_msat, one.reason)

    routes: tuple[Route, ...] = found if isinstance(found, tuple) else ()
    problem = lay_out(graph, scorer, request, now_seconds)
    return RoutesView(
        source=request.source,
        destination=request.destination,
        amount_msat=request.amount_msat,
        reason=found.reason if isinstance(found, NoRoute) else "",
        routes=tuple(RouteView(route, hops(hop_costs(problem, route))) for route in routes),
        cheaper=tuple(map(candidate, whole.cheaper)),
        runners_up=tuple(map(candidate, whole.runners_up)),
        why_split=_why_split(whole.route, routes) if len(routes) > 1 else "",
        aliases={},
        search_seconds=time.perf_counter() - started,
    )


def _why_split(single: Route | NoRoute, routes: tuple[Route, ...]) -> str:
    """One part against all parts."""
    if isinstance(single, NoRoute):
        return f"As one part it does not go: {single.reason}."
    probability, cost_msat, fee_msat = 1.0, 0.0, 0
    for route in routes:
        probability *= route.probability
        cost_msat += route.cost_msat
        fee_msat += route.total_fee_msat
    return (
        f"As one part it would arrive with a probability of {single.probability:.1%} instead of {probability:.1%}, for "
        f"{single.total_fee_msat:,} instead of {fee_msat:,} msat of fees: {single.cost_msat:,.0f} instead of "
        f"{cost_msat:,.0f} msat in all."
    )
