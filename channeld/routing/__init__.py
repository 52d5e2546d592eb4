"""Path finding: the public network as arrays, what has been learnt of its liquidity, and the best ways through it.

    graph = Graph()                                       # fed by gossip
    scorer = Scorer()                                     # fed by the results of payments
    find_route(graph, scorer, request, now_seconds)       # -> Route | NoRoute: one path
    find_flow(graph, scorer, request, max_parts, now_seconds)   # -> tuple[Route, ...] | NoRoute: several parts
    explain(graph, scorer, request, now_seconds)          # -> Explanation: why this one

Pure arithmetic: no clock, no I/O. numpy, scipy and OR-Tools are imported at the first use of the names above that
need them, so that a daemon without a graph does not pay for them; the values (`RouteRequest`, `Route` ...) need none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from channeld.routing.hints import BlindedPathTerms, blinded_edges, hint_edges
from channeld.routing.values import (
    FEES_ONLY,
    MAX_CLTV_BLOCKS,
    MAX_HOPS,
    CostModel,
    EdgeKey,
    ExtraEdge,
    Hop,
    LocalChannel,
    NoRoute,
    Policy,
    Route,
    RouteRequest,
    direction_of,
)

if TYPE_CHECKING:
    from channeld.routing.explanation import Explanation, explain
    from channeld.routing.flow import find_flow
    from channeld.routing.graph import Graph
    from channeld.routing.scoring import Scorer
    from channeld.routing.search import find_route

_LAZY = {
    "Explanation": "explanation",
    "explain": "explanation",
    "find_flow": "flow",
    "Graph": "graph",
    "Scorer": "scoring",
    "find_route": "search",
}

__all__ = [
    "FEES_ONLY",
    "MAX_CLTV_BLOCKS",
    "MAX_HOPS",
    "BlindedPathTerms",
    "CostModel",
    "EdgeKey",
    "Explanation",
    "ExtraEdge",
    "Graph",
    "Hop",
    "LocalChannel",
    "NoRoute",
    "Policy",
    "Route",
    "RouteRequest",
    "Scorer",
    "blinded_edges",
    "direction_of",
    "explain",
    "find_flow",
    "find_route",
    "hint_edges",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"channeld.routing.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
