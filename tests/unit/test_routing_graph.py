"""The graph: what messages do to it, in any order, beside a plain dictionary; storing and loading."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from channeld.routing import EdgeKey, Graph, Policy, Scorer, find_route
from channeld.routing.values import NoRoute, RouteRequest
from tests.mainnet import mainnet
from tests.mainnet import node_id as mainnet_node
from tests.routing_support import Link, build, node, policies, policy, scid


class GraphMachine(RuleBasedStateMachine):
    """Gossip in any order; the graph must always be what a dictionary of channels is."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.channels: dict[int, tuple[bytes, bytes, int, list[Policy | None]]] = {}

    @rule(number=st.integers(0, 30), ends=st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True))
    def add(self, number: int, ends: list[int]) -> None:
        first, second = sorted(map(node, ends))
        assert self.graph.add_channel(scid(number), first, second, number * 1000) == (number not in self.channels)
        self.channels.setdefault(number, (first, second, number * 1000, [None, None]))

    @rule(number=st.integers(0, 30), direction=st.integers(0, 1), said=policies)
    def update(self, number: int, direction: int, said: Policy) -> None:
        assert self.graph.update_channel(scid(number), direction, said) == (number in self.channels)
        if number in self.channels:
            self.channels[number][3][direction] = said

    @rule(number=st.integers(0, 30))
    def remove(self, number: int) -> None:
        assert self.graph.remove_channel(scid(number)) == (self.channels.pop(number, None) is not None)

    @rule(number=st.integers(0, 7))
    def remove_node(self, number: int) -> None:
        gone = [key for key, channel in self.channels.items() if node(number) in channel[:2]]
        assert self.graph.remove_node(node(number)) == len(gone)
        for key in gone:
            del self.channels[key]

    @rule()
    def store_and_load(self) -> None:
        self.graph = Graph.from_bytes(self.graph.to_bytes())

    @rule()
    def copy(self) -> None:
        old, self.graph = self.graph, self.graph.copy()
        for channel in list(old.channels()):
            old.update_channel(channel.short_channel_id, 0, policy(base=12345))
            old.remove_channel(channel.short_channel_id)

    @invariant()
    def same_channels(self) -> None:
        assert self.graph.channel_count == len(self.channels)
        for number, (first, second, capacity_sat, said) in self.channels.items():
            channel = self.graph.channel(scid(number))
            assert channel is not None
            assert (channel.node_id_1, channel.node_id_2, channel.capacity_sat) == (first, second, capacity_sat)
            assert list(channel.policies) == said

    @invariant()
    def topology_lists_every_edge_of_every_node(self) -> None:
        topology = self.graph.topology()
        listed: list[tuple[bytes, bytes, EdgeKey]] = []
        for index in range(topology.nodes):
            for at in range(topology.out_start[index], topology.out_start[index + 1]):
                edge = int(topology.out_edges[at])
                assert topology.edges.source[edge] == index
                assert topology.out_targets[at] == topology.edges.target[edge]
                target = self.graph.node_id(int(topology.edges.target[edge]))
                listed.append((self.graph.node_id(index), target, self.graph.edge_key(edge)))
        expected = [
            (*((first, second) if direction == 0 else (second, first)), EdgeKey(scid(number), direction))
            for number, (first, second, _, _) in self.channels.items()
            for direction in (0, 1)
        ]
        assert sorted(listed) == sorted(expected)
        entering = topology.edges.target[topology.in_edges]
        assert (np.diff(entering) >= 0).all()
        assert len(topology.in_edges) == len(expected)


TestGraphMachine = GraphMachine.TestCase
TestGraphMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_updates_need_no_new_order_but_channels_do() -> None:
    graph = build(Link(0, 1))
    before = graph.topology()
    graph.update_channel(scid(0), 1, policy(base=777))
    assert graph.topology() is before
    assert before.edges.fee_base_msat[1] == 777
    graph.add_channel(scid(1), node(1), node(2), 5)
    assert graph.topology().version != before.version


def test_channels_that_make_no_sense() -> None:
    graph = Graph()
    for first, second in ((node(1), node(1)), (node(2), node(1)), (b"\x02", node(1))):
        with pytest.raises(ValueError, match="two node ids"):
            graph.add_channel(1, first, second, 1)
    assert graph.channel_count == graph.node_count == 0


def test_limits_of_64_bits_fit() -> None:
    graph = build(Link(0, 1, policy(base=2**32 - 1, ppm=2**32 - 1, delta=2**16 - 1, least=2**64 - 1, most=2**64 - 1)))
    said = graph.policy(EdgeKey(scid(0), 0))
    assert said == policy(base=2**32 - 1, ppm=2**32 - 1, delta=2**16 - 1, least=1 << 62, most=1 << 62)
    assert Graph.from_bytes(graph.to_bytes()).policy(EdgeKey(scid(0), 0)) == said


def test_node_features() -> None:
    graph = build(Link(0, 1))
    graph.set_node_features(node(1), 1 << 9 | 1 << 14)
    graph.set_node_features(node(5), 1 << 700)
    assert graph.nodes_with(1 << 8).tolist() == [False, True, False]  # optional support is support
    assert graph.nodes_with(1 << 14 | 1 << 8).tolist() == [False, True, False]
    assert graph.nodes_with(1 << 15).tolist() == [False, False, False]
    again = Graph.from_bytes(graph.to_bytes())
    assert again.node_features(node(1)) == 1 << 9 | 1 << 14
    assert again.node_features(node(0)) is None
    graph.remove_node(node(1))
    assert graph.node_features(node(1)) is None


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"nonsense" * 20])
def test_other_bytes_are_no_graph(data: bytes) -> None:
    with pytest.raises(ValueError):
        Graph.from_bytes(data)


def test_an_empty_graph() -> None:
    request = RouteRequest(source=node(0), destination=node(1), amount_msat=1)
    assert isinstance(find_route(Graph.from_bytes(Graph().to_bytes()), Scorer(), request, 0.0), NoRoute)


def test_mainnet_survives_storing() -> None:
    graph = mainnet()
    again = Graph.from_bytes(graph.to_bytes())
    assert (again.channel_count, again.node_count) == (50_808, 17_324)
    channels = graph.node_channels(mainnet_node(0))
    assert len(channels) > 50
    assert again.node_channels(mainnet_node(0)) == channels
    assert graph.topology().out_start[-1] == 2 * 50_808
    assert graph.nbytes < 16_000_000
