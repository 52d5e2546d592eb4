"""Ways to a payee: asked of `channeld.routing`, with our channels as they are now and what a payment's failures taught.

On a large network searches run in a thread, on a snapshot of the graph that is taken between them: a search takes some
milliseconds, a flow up to a tenth of a second, and the libraries half a second to load.

Amounts in msat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog
from msgspec.structs import replace

from channeld.bolt.features import Feature
from channeld.bolt.invoice import RoutingHop
from channeld.bolt.messages import ChannelUpdate, decode
from channeld.channel.state import Funded
from channeld.node import views
from channeld.node.payment_lessons import Lessons, Teacher
from channeld.node.payment_record import PartRecord
from channeld.node.route_hints import hop_to_us
from channeld.routing.hints import hint_edges
from channeld.routing.values import EdgeKey, ExtraEdge, LocalChannel, NoRoute, Route, RouteRequest, direction_of
from channeld.storage import Write, rows

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from channeld.node.channels import Channels, Driver
    from channeld.node.gossip import NodeGossip
    from channeld.routing.graph import Graph
    from channeld.routing.scoring import Scorer

log = structlog.get_logger(__name__)
RELIABLE = 0.5
"""A single way at least so probable is taken without looking for a split."""
SCORES = "scores"
"""Where the database keeps what was learnt."""
SMALL_CHANNELS = 500
"""Networks up to this size are searched at once: copying and a thread would take longer."""
SNAPSHOT_SECONDS = 10.0
"""A snapshot of a large network is used so long: taking one stops everything else for some milliseconds."""
AGAIN_SECONDS = 5.0
"""After so long a payment may offer a channel what it did not pass: others' HTLCs come and go."""
WARM_CHANNELS = 1000
"""From this size on the libraries are loaded before the first payment needs them."""


class Planned(NamedTuple):
    """A part to be sent: over `driver` straight to the payee, or along `route`."""

    driver: Driver
    amount_msat: int
    route: Route | None = None


class Wish(NamedTuple):
    """What to find ways for. `parts`: of the same payment, still good. `outgoing_keys`, `last_hops`: see
    `PaymentRecord`; `incoming`: the channels of ours over which a circular payment comes back, if it is one.
    `payment_hash`: tells its HTLCs that have come back."""

    destination: bytes
    amount_msat: int
    max_fee_msat: int
    final_delta_blocks: int
    max_cltv_blocks: int
    max_parts: int
    hints: Sequence[tuple[RoutingHop, ...]]
    parts: Sequence[PartRecord]
    lessons: Lessons
    outgoing_keys: tuple[int, ...] = ()
    last_hops: tuple[bytes, ...] = ()
    incoming: tuple[Driver, ...] = ()
    payment_hash: bytes = b""


class _WaysBack(NamedTuple):
    """How a circular payment may end: edges that are not in the graph, what the last channels can bring, from whom, and
    the channels of the same peers that it must not take."""

    hinted: list[ExtraEdge]
    most_msat: dict[EdgeKey, int]
    peers: frozenset[bytes]
    other_ways: list[EdgeKey]


class Router:
    """Finds ways, and learns from what becomes of them."""

    def __init__(
        self,
        node_id: bytes,
        channels: Channels,
        gossip: NodeGossip,
        height: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._node_id = node_id
        self._channels = channels
        self._gossip = gossip
        self._height = height
        self._now = now
        self._scorer: Scorer | None = None
        self._stored = b""
        self._learnt = False
        self._searching = asyncio.Lock()
        self._snapshot: tuple[int, float, Graph] | None = None
        self._in_flight: dict[EdgeKey, int] = {}
        """What our parts that are out hold on each channel, of all payments."""
        self._teacher = Teacher(lambda: self.scorer, lambda: gossip.graph, now)

    def load(self, connection: Connection) -> None:
        """What was learnt in earlier lives; read when it is first needed."""
        self._stored = rows.load_meta(connection).get(SCORES, b"")

    def save(self) -> list[Write]:
        """What was learnt since the last time, to be kept: knowledge, not money, so now and then is enough."""
        if not self._learnt or self._scorer is None:
            return []
        self._learnt = False
        self._scorer.forget_old(self._now())
        return [rows.SET_META(SCORES, self._scorer.export())]

    @property
    def scorer(self) -> Scorer:
        """What was learnt; made at the first use, because its libraries are large."""
        if self._scorer is None:
            from channeld.routing.scoring import Scorer

            self._scorer = Scorer()
            if self._stored:
                try:
                    self._scorer.import_(self._stored)
                except ValueError as error:
                    log.warning("what was learnt of other channels cannot be read", reason=str(error))
                self._stored = b""
        return self._scorer

    def began(self, part: PartRecord) -> None:
        """A part is out from now on."""
        for hop in part.route.hops if part.route is not None else ():
            self._in_flight[hop.key] = self._in_flight.get(hop.key, 0) + hop.amount_msat

    def ended(self, part: PartRecord) -> None:
        """It is not out any more."""
        for hop in part.route.hops if part.route is not None else ():
            left_msat = self._in_flight.pop(hop.key, 0) - hop.amount_msat
            if left_msat > 0:
                self._in_flight[hop.key] = left_msat

    def learn(self, part: PartRecord) -> None:
        """What the end of a part teaches; after `ended`."""
        self._learnt |= self._teacher.teach(part, self._in_flight)

    async def warm(self) -> None:
        """Load the libraries, if the network is so large that payments will want them."""
        if len(self._gossip.core.view.topology) >= WARM_CHANNELS:
            await asyncio.to_thread(_load_libraries)

    # --- what there is

    def knows_ways(self, hints: Sequence[tuple[RoutingHop, ...]]) -> bool:
        """Whether there is any network to look for a way in."""
        return bool(len(self._gossip.core.view.topology) or hints)

    def known_timestamp(self, key: EdgeKey) -> int:
        """Of the latest `channel_update` that gossip has of a direction; 0 for none."""
        raw = self._gossip.core.view.update(key.short_channel_id, key.direction)
        update = decode(raw) if raw is not None else None
        return update.timestamp if isinstance(update, ChannelUpdate) else 0

    def takes_parts(self, node_id: bytes) -> bool:
        """Whether a node says publicly that it receives payments in several parts."""
        features = self._gossip.graph.node_features(node_id)
        return features is not None and bool(features & 0b11 << Feature.basic_mpp)

    def local_channels(self) -> tuple[LocalChannel, ...]:
        """Our channels that can carry something now, private ones among them, with what they can send."""
        return tuple(self._local(scid, driver) for scid, driver in self._usable().items())

    def _usable(self, only: tuple[int, ...] = ()) -> dict[int, Driver]:
        """Our channels by a short_channel_id that is known here: the real one, or our alias."""
        found: dict[int, Driver] = {}
        for driver in self._channels.all():
            state = driver.state
            if only and driver.channel_key not in only:
                continue
            if driver.failure is None and isinstance(state, Funded) and views.is_usable(state):
                scid = state.scid if state.scid is not None else state.local_alias
                if scid is not None:
                    found[scid] = driver
        return found

    # --- finding

    async def find(self, wish: Wish) -> list[Planned] | NoRoute:
        """Parts for the wish's amount, one if that is likely to do."""
        if self._scorer is None:
            await asyncio.to_thread(_load_libraries)
        drivers = self._usable(wish.outgoing_keys)
        request = self._request(wish, drivers)
        if isinstance(request, NoRoute):
            return request
        try:
            found = await self._search(request, wish.max_parts)
        except ValueError as error:
            return NoRoute(str(error))
        if isinstance(found, NoRoute):
            return found
        return [Planned(drivers[r.hops[0].short_channel_id], r.total_amount_msat, r) for r in found]

    async def _search(self, request: RouteRequest, max_parts: int) -> tuple[Route, ...] | NoRoute:
        """Raises ValueError for an amount that makes no sense."""
        now = self._now()
        if self._gossip.graph.channel_count <= SMALL_CHANNELS:
            single = _find(self._gossip.graph, self.scorer, request, now, 1)
            if max_parts <= 1 or _is_reliable(single):
                return single
        async with self._searching:
            graph, scorer = self._copied(), self.scorer.copy()
            return await asyncio.to_thread(_find, graph, scorer, request, now, max_parts)

    def _copied(self) -> Graph:
        """The graph for a thread; `_searching` is held, so that no other thread looks at it."""
        changes, now = self._gossip.core.view.changes, self._now()
        taken = self._snapshot
        graph = self._gossip.graph
        is_fresh = taken is not None and (
            taken[0] == changes or (graph.channel_count > SMALL_CHANNELS and 0 <= now - taken[1] < SNAPSHOT_SECONDS)
        )
        if taken is None or not is_fresh:
            taken = self._snapshot = changes, now, graph.copy()
        return taken[2]

    def _request(self, wish: Wish, drivers: dict[int, Driver]) -> RouteRequest | NoRoute:
        used = dict(self._in_flight)
        returned: dict[int, int] = {}
        for part in wish.parts:
            if part.state != "arrived":
                continue
            # A probe's: the payment would need this money at the same time.
            returned[part.channel_key] = returned.get(part.channel_key, 0) + part.amount_msat
            for hop in part.route.hops if part.route is not None else ():
                used[hop.key] = used.get(hop.key, 0) + hop.amount_msat
        edges = list(hint_edges(wish.destination, wish.hints))
        ignored = set(wish.lessons.ignored_channels)
        liquidity = self._not_more(wish.lessons)
        incoming_nodes = frozenset(wish.last_hops) or None
        if wish.incoming:
            back = self._back_over(wish.incoming, wish.payment_hash)
            if isinstance(back, NoRoute):
                return back
            edges.extend(back.hinted)
            liquidity.update((key, (most_msat, most_msat)) for key, most_msat in back.most_msat.items())
            incoming_nodes = back.peers
            ignored.update(back.other_ways)
        local = (self._local(scid, driver, wish.lessons, returned) for scid, driver in drivers.items())
        return RouteRequest(
            source=self._node_id,
            destination=wish.destination,
            amount_msat=wish.amount_msat,
            final_cltv_expiry_delta=wish.final_delta_blocks,
            block_height=self._height(),
            max_fee_msat=wish.max_fee_msat,
            max_cltv_blocks=wish.max_cltv_blocks,
            local_channels=tuple(local),
            extra_edges=tuple(edges),
            in_flight=used,
            ignored_channels=frozenset(ignored),
            ignored_nodes=wish.lessons.ignored_nodes,
            incoming_nodes=incoming_nodes,
            policies=wish.lessons.policies,
            liquidity=liquidity,
        )

    def _not_more(self, lessons: Lessons) -> dict[EdgeKey, tuple[int, int]]:
        """Bounds on what channels can send that have just failed the payment; what the scorer knows fades at once."""
        since = self._now() - AGAIN_SECONDS
        recent = {key: [each for each in stuck if each.ended_seconds > since] for key, stuck in lessons.stuck.items()}
        return {key: (0, min(each.amount_msat for each in stuck) - 1) for key, stuck in recent.items() if stuck}

    def _local(
        self, scid: int, driver: Driver, lessons: Lessons | None = None, returned: dict[int, int] | None = None
    ) -> LocalChannel:
        state = driver.state
        assert isinstance(state, Funded)
        spendable_msat = self._channels.available_msat(driver)
        if lessons is not None:
            spendable_msat = min(spendable_msat, lessons.most_msat.get(driver.channel_key, spendable_msat))
        if returned is not None:
            spendable_msat = max(0, spendable_msat - returned.get(driver.channel_key, 0))
        return LocalChannel(scid, driver.peer_id, spendable_msat, state.params.remote.htlc_minimum_msat)

    # --- back to us

    def _back_over(self, drivers: Sequence[Driver], payment_hash: bytes) -> _WaysBack | NoRoute:
        """The last channels of a circular payment, those of them that can be used now."""
        usable = [driver for driver in drivers if driver.failure is None and views.is_usable(driver.state)]
        if not usable:
            return NoRoute("no channel that the payment should come back over is usable now")
        named: list[Driver] = []
        hinted: list[ExtraEdge] = []
        most_msat: dict[EdgeKey, int] = {}
        for driver in usable:
            found = self._way_back(driver)
            if found is None:
                continue
            key, edges = found
            most_msat[key] = _most_back_msat(driver, payment_hash)
            hinted += [replace(edge, liquidity_msat=most_msat[key]) for edge in edges]
            named.append(driver)
        if not named:
            return NoRoute("the peer has not named the channel that the payment should come back over yet")
        peers = frozenset(driver.peer_id for driver in named)
        return _WaysBack(hinted, most_msat, peers, list(self._other_ways_in(peers, named)))

    def _way_back(self, driver: Driver) -> tuple[EdgeKey, list[ExtraEdge]] | None:
        """A channel's direction to us, and the edge for it unless the graph has it; None while it has no name."""
        state = driver.state
        assert isinstance(state, Funded)
        direction = direction_of(driver.peer_id, self._node_id)
        if state.scid is not None and self._gossip.graph.policy(EdgeKey(state.scid, direction)) is not None:
            return EdgeKey(state.scid, direction), []
        hop = hop_to_us(driver, self._channels.update_of_peer(driver.channel_id))
        if hop is None:
            return None
        return EdgeKey(hop.short_channel_id, direction), list(hint_edges(self._node_id, [(hop,)]))

    def _other_ways_in(self, peers: Iterable[bytes], drivers: Sequence[Driver]) -> Iterable[EdgeKey]:
        """The other channels of these peers with us, in the direction to us."""
        for peer_id in peers:
            for other in self._channels.of_peer(peer_id):
                scid = other.state.scid if isinstance(other.state, Funded) else None
                if other not in drivers and scid is not None:
                    yield EdgeKey(scid, direction_of(peer_id, self._node_id))


def _most_back_msat(driver: Driver, payment_hash: bytes) -> int:
    """What a channel could bring back of a payment in all, HTLCs that it has brought already included."""
    come = (htlc for htlc in views.htlcs(driver.state) if not htlc.offered and htlc.payment_hash == payment_hash)
    return views.available_to_receive_msat(driver.state) + sum(htlc.amount_msat for htlc in come)


def _is_reliable(found: tuple[Route, ...] | NoRoute) -> bool:
    return not isinstance(found, NoRoute) and found[0].probability >= RELIABLE


def _find(
    graph: Graph, scorer: Scorer, request: RouteRequest, now: float, max_parts: int
) -> tuple[Route, ...] | NoRoute:
    """One way if it is likely to do or nothing else is allowed, else a flow. Raises ValueError."""
    from channeld.routing.search import find_route

    single = find_route(graph, scorer, request, now)
    found: tuple[Route, ...] | NoRoute = (single,) if isinstance(single, Route) else single
    if max_parts <= 1 or _is_reliable(found):
        return found
    from channeld.routing.flow import find_flow

    return find_flow(graph, scorer, request, now, max_parts)


def _load_libraries() -> None:
    """What finding a single way needs: numpy and scipy."""
    import channeld.routing.search  # noqa: F401
