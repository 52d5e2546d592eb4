"""A request laid over the graph: which edges may be used, and what each costs for an amount.

Added to the graph's edges are those of the request: the first hops, from the *root*, a node that stands for the payer
as payer (so that a route neither passes the payer nor comes back to it except to end there), and hinted channels.
They have the indices from `Problem.base_edges` on; the root and nodes unknown to the graph come after its nodes.

Amounts in msat, improbability in nats. Source: BOLT 7, "HTLC Fees".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from channeld.routing.graph import EdgeTable, Flags, Floats, Graph, Indices, Ints, Topology
from channeld.routing.prices import Pricing, Table
from channeld.routing.scoring import Distribution, Liquidity, Scorer
from channeld.routing.values import (
    MAX_AMOUNT_MSAT,
    CostModel,
    EdgeKey,
    LocalChannel,
    Policy,
    RouteRequest,
    direction_of,
)

_FEW_EDGES = 64
"""A network with as many is searched without scipy."""
_REACHABLE = 1e300
"""Below infinity: Dijkstra's limit, so that forbidden edges are not followed."""


@dataclass(slots=True)
class Problem:
    """See the module. `target_index` is -1 for a destination that nobody knows. `whole_msat`: the amount of the whole
    payment, of which the request's may be a part: what a failure costs depends on it."""

    request: RouteRequest
    graph: Graph
    topology: Topology
    base: Table
    extra: Table
    extra_keys: list[EdgeKey]
    distribution: Distribution
    root: int
    target_index: int
    nodes: int
    extra_node_ids: list[bytes]
    extra_in: dict[int, list[int]] = field(default_factory=dict)
    whole_msat: int = 0
    _csr: tuple[Indices, Indices, Indices] | None = None

    @property
    def base_edges(self) -> int:
        """The first index of an extra edge."""
        return len(self.base)

    @property
    def nat_msat(self) -> float:
        """What a nat costs in this payment."""
        return self.request.model.nat_msat(self.whole_msat)

    def pricing(self, model: CostModel | None = None) -> Pricing:
        """How this payment's costs are compared, by another model than the request's if one is given."""
        model = model or self.request.model
        return Pricing(model, model.nat_msat(self.whole_msat), self.distribution)

    def key(self, edge: int) -> EdgeKey:
        """The channel and direction of an edge."""
        return self.graph.edge_key(edge) if edge < self.base_edges else self.extra_keys[edge - self.base_edges]

    def node_id(self, node: int) -> bytes:
        """The node at an index."""
        if node == self.root:
            return self.request.source
        return self.graph.node_id(node) if node < self.root else self.extra_node_ids[node - self.root - 1]

    def ends(self, edge: int) -> tuple[int, int]:
        """The nodes of an edge."""
        table, index = self.place(edge)
        return int(table.edges.source[index]), int(table.edges.target[index])

    def place(self, edge: int) -> tuple[Table, int]:
        """Where an edge's columns are."""
        return (self.base, edge) if edge < self.base_edges else (self.extra, edge - self.base_edges)

    def into(self, node: int) -> Iterator[tuple[Table, NDArray[np.integer], int]]:
        """The edges into a node: a table, where they are in it, and what to add for their number among all."""
        topology = self.topology
        if node < topology.nodes:
            yield self.base, topology.in_edges[topology.in_start[node] : topology.in_start[node + 1]], 0
        if node in self.extra_in:
            yield self.extra, np.array(self.extra_in[node]), self.base_edges

    def policy(self, edge: int) -> Policy:
        """What applies to an edge (a first hop is free)."""
        table, index = self.place(edge)
        return Policy(**{name: getattr(table.edges, name)[index].item() for name in Policy.__struct_fields__})

    @property
    def most_msat(self) -> int:
        """What a channel of a route within the fee limit carries at most."""
        return self.request.amount_msat + self.request.fee_limit_msat

    def floor(self, model: CostModel, least_msat: Floats | None = None) -> Floats:
        """`Table.floor` of all edges, the extra ones last; from the amount on, or from what is given by edge."""
        pricing = self.pricing(model)
        return np.concatenate([table.floor(least, self.most_msat, pricing) for table, least in self._from(least_msat)])

    def open_to(self, least_msat: Floats | None = None) -> Flags:
        """`Table.open_to` likewise."""
        return np.concatenate([table.open_to(least, self.most_msat) for table, least in self._from(least_msat)])

    def _from(self, least_msat: Floats | None) -> tuple[tuple[Table, Floats | float], tuple[Table, Floats | float]]:
        if least_msat is None:
            amount_msat = float(self.request.amount_msat)
            return (self.base, amount_msat), (self.extra, amount_msat)
        return (self.base, least_msat[: self.base_edges]), (self.extra, least_msat[self.base_edges :])

    @property
    def sources(self) -> Indices:
        """Where each edge starts."""
        return np.concatenate([self.base.edges.source, self.extra.edges.source])

    @property
    def targets(self) -> Indices:
        """Where each edge ends."""
        return np.concatenate([self.base.edges.target, self.extra.edges.target])

    def distances(self, weights: Floats, *, backward: bool = False) -> Floats:
        """The least sum of weights from the root to every node, or from every node to the destination."""
        if len(weights) <= _FEW_EDGES:
            return self._few_distances(weights, backward)
        start, targets, edges = self.csr()
        ordered = weights[edges]
        shape = (self.nodes, self.nodes)
        if backward:
            matrix = csr_array((ordered, targets, start), shape=shape).T.tocsr()
            return np.asarray(dijkstra(matrix, indices=self.target_index, limit=_REACHABLE), np.float64)
        matrix = csr_array((ordered, targets, start), shape=shape)
        return np.asarray(dijkstra(matrix, indices=self.root, limit=_REACHABLE), np.float64)

    def _few_distances(self, weights: Floats, backward: bool) -> Floats:
        """The same for a small network, where what scipy checks first takes ten times as long as the search
        (Bellman and Ford's, which needs no order)."""
        ends = self.sources.tolist(), self.targets.tolist()
        first, second = reversed(ends) if backward else ends
        edges = [edge for edge in zip(first, second, weights.tolist(), strict=True) if edge[2] <= _REACHABLE]
        found = [np.inf] * self.nodes
        found[self.target_index if backward else self.root] = 0.0
        for _ in range(self.nodes):
            is_shorter = False
            for start, end, weight in edges:
                if (length := found[start] + weight) < found[end] and length <= _REACHABLE:
                    found[end] = length
                    is_shorter = True
            if not is_shorter:
                break
        return np.array(found)

    def part(self, amount_msat: int, max_fee_msat: int) -> Problem:
        """The same problem for a part of the amount; what one reserves the other sees."""
        request = replace(self.request, amount_msat=amount_msat, max_fee_msat=max_fee_msat)
        return dataclasses.replace(self, request=request)

    def reserve(self, edge: int, amount_msat: int) -> None:
        """Counts an HTLC as in flight."""
        table, index = self.place(edge)
        table.used[index] += amount_msat

    def csr(self) -> tuple[Indices, Indices, Indices]:
        """All edges ordered by source: starts by node, targets, edges."""
        if self._csr is None:
            topology, extra = self.topology, self.extra.edges
            order = np.argsort(extra.source, kind="stable")
            sources = extra.source[order]
            ends = np.concatenate(
                [topology.out_start[1:], np.full(self.nodes - topology.nodes, topology.out_start[-1])]
            )
            at = ends[sources]
            added = np.cumsum(np.bincount(sources, minlength=self.nodes))
            start = np.concatenate([[0], ends + added]).astype(np.int32)
            targets = np.insert(topology.out_targets, at, extra.target[order])
            edges = np.insert(topology.out_edges, at, (order + self.base_edges).astype(np.int32))
            self._csr = start, targets, edges
        return self._csr


def lay_out(graph: Graph, scorer: Scorer, request: RouteRequest, now_seconds: float) -> Problem:
    """The problem of a request. Raises ValueError for amounts and limits that make no sense."""
    if not 0 < request.amount_msat <= MAX_AMOUNT_MSAT:
        raise ValueError(f"an amount must be between 1 and {MAX_AMOUNT_MSAT:,} msat")
    topology = graph.topology()
    root = topology.nodes
    known = scorer.liquidity(graph, topology, now_seconds)
    extra_nodes: dict[bytes, int] = {}

    def index_of(node_id: bytes) -> int:
        index = graph.node_index(node_id)
        return extra_nodes.setdefault(node_id, root + 1 + len(extra_nodes)) if index is None else index

    hop_nats = request.model.hop_nats
    rows = _local_rows(request)
    for row in rows:
        row.source, row.target = root, index_of(row.target_id)
    for edge in request.extra_edges:
        if edge.source == request.source:
            continue  # our own channels are in `local_channels`; a path that starts with us is not paid by routing
        key = EdgeKey(edge.short_channel_id, direction_of(edge.source, edge.target))
        lower, upper = _narrowed(scorer.extra_bounds(key, edge.liquidity_msat, now_seconds), request.liquidity.get(key))
        ends = index_of(edge.source), index_of(edge.target)
        limit = max(upper, edge.liquidity_msat)
        policy = request.policies.get(key, edge.policy)
        rows.append(_Row(key, edge.source, edge.target, policy, lower, upper, limit, hop_nats, *ends))
    source, target = graph.node_index(request.source), graph.node_index(request.destination)
    edges = _overridden(graph, topology.edges, request.policies)
    allowed = _allowed(graph, topology, edges, request, source, target)
    fixed = np.full(len(allowed), hop_nats)
    if known.extra_nats is not None:
        fixed += known.extra_nats
    used = _used(graph, request, len(allowed))
    _narrow(known, graph, request)
    base = Table(edges, known.lower, known.upper, known.capacity, used, fixed, allowed)
    extra, keys = _extra_table(rows, request), [row.key for row in rows]
    if source is not None:
        own = topology.out_edges[topology.out_start[source] : topology.out_start[source + 1]]
        if request.local_channels is None:
            own_keys = [graph.edge_key(edge) for edge in own.tolist()]
            extra, keys = _joined(_public_first_hops(base, own, own_keys, request, root), extra), own_keys + keys
        allowed[own] = False
    problem = Problem(
        request=request,
        graph=graph,
        topology=topology,
        base=base,
        extra=extra,
        extra_keys=keys,
        distribution=known.distribution,
        root=root,
        target_index=extra_nodes.get(request.destination, -1) if target is None else target,
        nodes=root + 1 + len(extra_nodes),
        extra_node_ids=list(extra_nodes),
        whole_msat=request.amount_msat,
    )
    for index, end in enumerate(extra.edges.target.tolist()):
        problem.extra_in.setdefault(end, []).append(index)
    return problem


def _narrow(known: Liquidity, graph: Graph, request: RouteRequest) -> None:
    """Applies the bounds that hold for certain to what scoring knows of public channels."""
    for key, bounds in request.liquidity.items():
        if (place := graph.edge(key)) is not None:
            known.lower[place], known.upper[place] = _narrowed((known.lower[place], known.upper[place]), bounds)


def _narrowed(known: tuple[float, float], bounds: tuple[int, int] | None) -> tuple[float, float]:
    """What is known of a balance, as far as it is within bounds that hold for certain."""
    if bounds is None:
        return known
    least, most = bounds
    return min(max(known[0], least), most), min(max(known[1], least), most)


@dataclass(slots=True)
class _Row:
    """An extra edge."""

    key: EdgeKey
    source_id: bytes
    target_id: bytes
    policy: Policy
    lower: float
    upper: float
    capacity: float
    nats: float
    source: int = -1
    target: int = -1


def _local_rows(request: RouteRequest) -> list[_Row]:
    """The edges from the root that our channels are, with their balances; free of charge."""
    return [
        _Row(
            EdgeKey(channel.short_channel_id, direction_of(request.source, channel.node_id)),
            request.source,
            channel.node_id,
            _free(channel),
            *(channel.spendable_msat,) * 3,
            0.0,
        )
        for channel in request.local_channels or ()
        if request.outgoing_scids is None or channel.short_channel_id in request.outgoing_scids
    ]


def _public_first_hops(base: Table, own: Indices, keys: list[EdgeKey], request: RouteRequest, root: int) -> Table:
    """The source's public channels as edges from the root; free of charge."""
    edges = base.edges
    nothing = np.zeros(len(own), np.int64)
    allowed = base.allowed[own]
    if request.outgoing_scids is not None:
        allowed &= np.array([key.short_channel_id in request.outgoing_scids for key in keys], np.bool_)
    return Table(
        EdgeTable(
            source=np.full(len(own), root, np.int32),
            target=edges.target[own],
            known=edges.known[own],
            enabled=edges.enabled[own],
            htlc_minimum_msat=edges.htlc_minimum_msat[own],
            htlc_maximum_msat=edges.htlc_maximum_msat[own],
            fee_base_msat=nothing,
            fee_proportional_millionths=nothing,
            cltv_expiry_delta=nothing,
            capacity_msat=base.capacity[own],
        ),
        base.lower[own],
        base.upper[own],
        base.capacity[own],
        base.used[own],
        np.zeros(len(own)),
        allowed,
    )


def _joined(first: Table, second: Table) -> Table:
    """Both tables' edges."""

    def join(one: object, other: object, columns: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in columns}

    edges = EdgeTable(**join(first.edges, second.edges, tuple(each.name for each in dataclasses.fields(EdgeTable))))
    names = tuple(each.name for each in dataclasses.fields(Table) if each.init and each.name != "edges")
    return Table(edges, **join(first, second, names))


def _free(channel: LocalChannel) -> Policy:
    return Policy(
        enabled=True,
        htlc_minimum_msat=channel.htlc_minimum_msat,
        htlc_maximum_msat=min(channel.htlc_maximum_msat, MAX_AMOUNT_MSAT),
        fee_base_msat=0,
        fee_proportional_millionths=0,
        cltv_expiry_delta=0,
    )


def _extra_table(rows: Sequence[_Row], request: RouteRequest) -> Table:
    def column(name: str) -> Ints:
        return np.array([getattr(row.policy, name) for row in rows], np.int64)

    edges = EdgeTable(
        source=np.array([row.source for row in rows], np.int32),
        target=np.array([row.target for row in rows], np.int32),
        known=np.ones(len(rows), np.bool_),
        enabled=np.array([row.policy.enabled for row in rows], np.bool_),
        htlc_minimum_msat=column("htlc_minimum_msat"),
        htlc_maximum_msat=column("htlc_maximum_msat"),
        fee_base_msat=column("fee_base_msat"),
        fee_proportional_millionths=column("fee_proportional_millionths"),
        cltv_expiry_delta=column("cltv_expiry_delta"),
        capacity_msat=np.array([row.capacity for row in rows], np.float64),
    )
    used = [
        0
        if request.local_channels is not None and row.source_id == request.source
        else request.in_flight.get(row.key, 0)
        for row in rows
    ]
    allowed = [
        row.policy.enabled
        and row.key not in request.ignored_channels
        and row.target_id not in request.ignored_nodes
        and row.source_id not in request.ignored_nodes
        and _may_end(request, row)
        for row in rows
    ]
    return Table(
        edges,
        np.array([row.lower for row in rows], np.float64),
        np.array([row.upper for row in rows], np.float64),
        edges.capacity_msat,
        np.array(used, np.float64),
        np.array([row.nats for row in rows], np.float64),
        np.array(allowed, np.bool_),
    )


def _may_end(request: RouteRequest, row: _Row) -> bool:
    last = row.target_id == request.destination
    return request.incoming_nodes is None or not last or row.source_id in request.incoming_nodes


def _overridden(graph: Graph, edges: EdgeTable, policies: Mapping[EdgeKey, Policy]) -> EdgeTable:
    """The edges with other terms for some; those are copied, the graph's own stay as they are."""
    places = {index: policy for key, policy in policies.items() if (index := graph.edge(key)) is not None}
    if not places:
        return edges
    columns = {name: getattr(edges, name).copy() for name in Policy.__struct_fields__}
    for index, policy in places.items():
        for name, column in columns.items():
            column[index] = getattr(policy, name)
    return dataclasses.replace(edges, **columns)


def _allowed(
    graph: Graph,
    topology: Topology,
    edges: EdgeTable,
    request: RouteRequest,
    source: int | None,
    target: int | None,
) -> Flags:
    """Which of the graph's edges may be used at all."""
    allowed = edges.enabled.copy()
    for key in request.ignored_channels:
        if (edge := graph.edge(key)) is not None:
            allowed[edge] = False
    banned = [index for node_id in request.ignored_nodes if (index := graph.node_index(node_id)) is not None]
    for node in banned:
        allowed[topology.out_edges[topology.out_start[node] : topology.out_start[node + 1]]] = False
        allowed[topology.in_edges[topology.in_start[node] : topology.in_start[node + 1]]] = False
    for node in graph.unfit_nodes():
        # BOLT 7, "MUST NOT route a payment _through_ the node"; the first hops of whoever pays are edges of the root.
        if node != source:
            allowed[topology.out_edges[topology.out_start[node] : topology.out_start[node + 1]]] = False
    if request.required_features:
        suitable = graph.nodes_with(request.required_features)
        if source is not None:
            suitable[source] = True  # whoever pays does not forward
        allowed &= suitable[edges.source]
    if target is not None and request.incoming_nodes is not None:
        entering = topology.in_edges[topology.in_start[target] : topology.in_start[target + 1]]
        for edge in entering.tolist():
            allowed[edge] &= graph.node_id(int(edges.source[edge])) in request.incoming_nodes
    return allowed


def _used(graph: Graph, request: RouteRequest, size: int) -> Floats:
    used = np.zeros(size)
    for key, amount_msat in request.in_flight.items():
        if (edge := graph.edge(key)) is not None:
            used[edge] += amount_msat
    return used
