"""Searches on a large network: in a thread, on a snapshot that is taken now and then; on a small one at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from channeld.bolt.onion.failures import TemporaryChannelFailure
from channeld.node import router as router_module
from channeld.node.payment_lessons import lessons_of
from channeld.node.payment_record import PartRecord, PaymentRecord
from channeld.node.router import AGAIN_SECONDS, SMALL_CHANNELS, SNAPSHOT_SECONDS, Router, Wish
from channeld.routing import Graph, LocalChannel
from channeld.routing.values import NoRoute, Route
from tests.routing_support import NOW, Link, build, node, scid

AMOUNT_MSAT = 1_000_000
PAYEE = 3


class FakeChannels:
    """One channel, to node 1."""

    def __init__(self) -> None:
        self.driver = SimpleNamespace(channel_key=5, peer_id=node(1))

    def all(self) -> Iterator[Any]:
        yield self.driver


class Net:
    """A router over a graph that a test makes."""

    def __init__(self, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graph = graph
        self.now = NOW
        self.view = SimpleNamespace(changes=0, topology=range(graph.channel_count))
        gossip = SimpleNamespace(graph=graph, core=SimpleNamespace(view=self.view))
        channels = FakeChannels()
        self.router = Router(node(0), cast("Any", channels), cast("Any", gossip), lambda: 100, lambda: self.now)
        monkeypatch.setattr(self.router, "_usable", lambda only=(): {scid(0): channels.driver})
        monkeypatch.setattr(self.router, "_local", lambda *_: LocalChannel(scid(0), node(1), 10**9))
        self.threads: list[int] = []
        self.searched: list[Graph] = []
        really = router_module._find

        def find(graph: Graph, *rest: Any) -> Any:
            self.threads.append(threading.get_ident())
            self.searched.append(graph)
            return really(graph, *rest)

        monkeypatch.setattr(router_module, "_find", find)

    async def find(
        self, max_parts: int = 1, amount_msat: int = AMOUNT_MSAT, parts: tuple[PartRecord, ...] = ()
    ) -> Route:
        record = PaymentRecord(
            payment_id=1, payment_hash=b"", bolt11="", destination=b"", amount_msat=1, created_seconds=0, parts=parts
        )
        wish = Wish(node(PAYEE), amount_msat, 10_000, 18, 2_000, max_parts, (), record.good_parts, lessons_of(record))
        found = await self.router.find(wish)
        assert not isinstance(found, NoRoute), found
        assert found[0].route is not None
        return found[0].route


def a_part(route: Route, **fields: Any) -> PartRecord:
    return PartRecord(5, route.total_amount_msat, 0, (), route=route, started_seconds=NOW, **fields)


async def test_a_channel_that_holds_a_part_of_ours_may_carry_some_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last channel has three quarters of what two parts need: one passed, the other came back."""
    net = Net(a_line_and(1), monkeypatch)
    route = await net.find()
    held, lost = a_part(route), a_part(route)
    for part in (held, lost):
        net.router.began(part)
    assert net.router._in_flight == {hop.key: 2 * hop.amount_msat for hop in route.hops}
    failure = {"state": "failed", "end": "told", "failing_hop": 1, "failure_code": TemporaryChannelFailure.CODE}
    lost = replace(lost, ended_seconds=NOW, **failure)
    net.router.ended(lost)
    net.router.learn(lost)
    assert net.router.scorer.bounds(net.graph, route.hops[2].key, NOW) == (0, 2 * AMOUNT_MSAT - 1)
    again = await net.find(amount_msat=AMOUNT_MSAT // 2, parts=(held, lost))
    assert [hop.key for hop in again.hops] == [hop.key for hop in route.hops]
    with pytest.raises(AssertionError, match="into the destination"):
        await net.find(parts=(held, lost))
    net.now += AGAIN_SECONDS + 0.1  # then the payment may ask for the same again: what was learnt has faded a little
    assert (await net.find(parts=(held, lost))).hops[2].key == route.hops[2].key
    net.router.ended(held)
    assert net.router._in_flight == {}


def a_line_and(others: int) -> Graph:
    """0 - 1 - 2 - 3, and channels that lead elsewhere."""
    elsewhere = [Link(10 + number, 11 + number) for number in range(others)]
    return build(Link(0, 1), Link(1, 2), Link(2, PAYEE), *elsewhere)


async def test_a_large_network_is_searched_in_a_thread_on_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(a_line_and(SMALL_CHANNELS), monkeypatch)
    routes = await asyncio.gather(net.find(), net.find())
    assert [len(route.hops) for route in routes] == [3, 3]
    assert threading.get_ident() not in net.threads
    first, second = net.searched
    assert first is second
    assert first is not net.graph
    net.view.changes += 1
    await net.find()
    assert net.searched[-1] is first
    net.now += SNAPSHOT_SECONDS
    await net.find()
    assert net.searched[-1] is not first
    taken = net.searched[-1]
    net.now += 10 * SNAPSHOT_SECONDS
    await net.find()
    assert net.searched[-1] is taken  # nothing has changed


async def test_a_small_network_is_searched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(a_line_and(1), monkeypatch)
    await net.find()
    assert (net.searched, net.threads) == ([net.graph], [threading.get_ident()])
    net.graph.remove_channel(scid(2))
    net.view.changes += 1
    with pytest.raises(AssertionError, match="no usable channel"):
        await net.find()


async def test_libraries_are_loaded_for_large_networks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    monkeypatch.setattr(router_module, "_load_libraries", lambda: loaded.append(threading.get_ident()))
    net = Net(a_line_and(1), monkeypatch)
    await net.router.warm()
    assert loaded == []
    net.view.topology = range(router_module.WARM_CHANNELS)
    await net.router.warm()
    assert len(loaded) == 1
    assert loaded[0] != threading.get_ident()
