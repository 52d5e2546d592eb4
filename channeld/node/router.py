"""Ways to a payee that is no peer of ours: asked of `channeld.routing`, with our channels as they are now, the hints of
the invoice, and what failures have taught.

Amounts in msat. Source: BOLT 4, "Receiving Failure Codes".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import structlog

from channeld.bolt.features import Feature
from channeld.bolt.invoice import Invoice, RoutingHop
from channeld.bolt.onion import failures as f
from channeld.bolt.onion.failures import decode_failure
from channeld.bolt.onion.payment import PaymentPayload, final_payload, forward_payload
from channeld.bolt.onion.returns import ReturnPacket, read_failure
from channeld.channel import effects as fx
from channeld.channel.state import Funded
from channeld.node import failures, views
from channeld.node.payment_record import PartRecord
from channeld.routing.hints import hint_edges
from channeld.routing.values import EdgeKey, LocalChannel, NoRoute, Route, RouteRequest
from channeld.storage import Write, rows

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from channeld.node.channels import Channels, Driver
    from channeld.node.gossip import NodeGossip
    from channeld.routing.scoring import Scorer

log = structlog.get_logger(__name__)
MAX_CLTV_BLOCKS = 2000
"""Others take HTLCs of up to 2016 blocks; blocks are found meanwhile."""
RELIABLE = 0.5
"""A single way at least so probable is taken without looking for a split."""
MAX_PARTS = 16
SCORES = "scores"
"""Where the database keeps what was learnt."""
MOST_STUCK = 3
"""So often a channel may lack money in one payment before it is left alone."""


class Planned(NamedTuple):
    """A part to be sent: over `driver` straight to the payee, or along `route`."""

    driver: Driver
    amount_msat: int
    route: Route | None = None


class Session:
    """What a payment knows while it is alive. `deadline`: Unix time from which on nothing new is tried. `stopped`: why
    nothing is tried any more."""

    def __init__(
        self, invoice: Invoice, amount_msat: int, max_fee_msat: int, deadline: float, final_delta: int
    ) -> None:
        self.invoice = invoice
        self.amount_msat = amount_msat
        self.max_fee_msat = max_fee_msat
        self.deadline = deadline
        self.final_delta = final_delta
        self.ignored_channels: set[EdgeKey] = set()
        self.ignored_nodes: set[bytes] = set()
        self.stopped = ""
        self._stuck: dict[EdgeKey, int] = {}

    def stuck(self, key: EdgeKey) -> None:
        """A channel could not carry a part."""
        self._stuck[key] = self._stuck.get(key, 0) + 1
        if self._stuck[key] >= MOST_STUCK:
            self.ignored_channels.add(key)


class Reading(NamedTuple):
    """A failure that came back. `hop` counts from 0, the first node after us; None if nobody's words could be read."""

    hop: int | None
    failure: f.Failure | None
    unproven_hop: int | None
    sentence: str


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

    def knows_ways(self, invoice: Invoice) -> bool:
        """Whether there is any network to look for a way in."""
        return bool(len(self._gossip.core.view.topology) or self._hints(invoice))

    def _hints(self, invoice: Invoice) -> list[tuple[RoutingHop, ...]]:
        """Hints that do not begin at this very node: our own channels we know better."""
        return [hint for hint in invoice.routing_hints if hint and hint[0].pubkey != self._node_id]

    # --- finding

    async def find(
        self, session: Session, amount_msat: int, max_fee_msat: int, in_flight: Iterable[PartRecord], max_parts: int
    ) -> list[Planned] | NoRoute:
        """Parts for `amount_msat`, one if that is likely to do. `in_flight`: the payment's parts that are out."""
        from channeld.routing.flow import find_flow
        from channeld.routing.search import find_route

        drivers = self._usable()
        request = self._request(session, amount_msat, max_fee_msat, in_flight, drivers)
        graph, now = self._gossip.graph, self._now()
        try:
            single = find_route(graph, self.scorer, request, now)
            reliable = isinstance(single, Route) and single.probability >= RELIABLE
            if reliable or max_parts <= 1 or not session.invoice.has(Feature.basic_mpp):
                found: tuple[Route, ...] | NoRoute = (single,) if isinstance(single, Route) else single
            else:  # seconds at worst: not in the loop's thread
                copies = graph.copy(), self.scorer.copy()
                found = await asyncio.to_thread(find_flow, *copies, request, now, max_parts)
        except ValueError as error:
            return NoRoute(str(error))
        if isinstance(found, NoRoute):
            return found
        return [Planned(drivers[r.hops[0].short_channel_id], r.total_amount_msat, r) for r in found]

    def _usable(self) -> dict[int, Driver]:
        """Our channels by a short_channel_id that is known here: the real one, or our alias."""
        found: dict[int, Driver] = {}
        for driver in self._channels.all():
            state = driver.state
            if driver.failure is None and isinstance(state, Funded) and views.is_usable(state):
                scid = state.scid if state.scid is not None else state.local_alias
                if scid is not None:
                    found[scid] = driver
        return found

    def local_channels(self) -> tuple[LocalChannel, ...]:
        """Our channels that can carry something now, private ones among them, with what they can send."""
        return tuple(self._local(scid, driver) for scid, driver in self._usable().items())

    def _request(
        self,
        session: Session,
        amount_msat: int,
        max_fee_msat: int,
        in_flight: Iterable[PartRecord],
        drivers: dict[int, Driver],
    ) -> RouteRequest:
        used: dict[EdgeKey, int] = {}
        for part in in_flight:
            for hop in part.route.hops if part.route is not None else ():
                used[hop.key] = used.get(hop.key, 0) + hop.amount_msat
        local = tuple(self._local(scid, driver) for scid, driver in drivers.items())
        return RouteRequest(
            source=self._node_id,
            destination=session.invoice.payee,
            amount_msat=amount_msat,
            final_cltv_expiry_delta=session.final_delta,
            block_height=self._height(),
            max_fee_msat=max_fee_msat,
            max_cltv_blocks=MAX_CLTV_BLOCKS,
            local_channels=local,
            extra_edges=hint_edges(session.invoice.payee, self._hints(session.invoice)),
            in_flight=used,
            ignored_channels=frozenset(session.ignored_channels),
            ignored_nodes=frozenset(session.ignored_nodes),
        )

    def _local(self, scid: int, driver: Driver) -> LocalChannel:
        state = driver.state
        assert isinstance(state, Funded)
        spendable_msat = self._channels.available_msat(driver)
        return LocalChannel(scid, driver.peer_id, spendable_msat, state.params.remote.htlc_minimum_msat)

    def payloads(self, session: Session, route: Route) -> list[tuple[bytes, PaymentPayload]]:
        """What the onion says to each hop."""
        hops = route.hops
        invoice = session.invoice
        relays = [
            (hop.node_id, forward_payload(hop.amt_to_forward_msat, hop.outgoing_cltv_value, after.short_channel_id))
            for hop, after in pairwise(hops)
        ]
        last = hops[-1]
        final = final_payload(
            last.amt_to_forward_msat,
            last.outgoing_cltv_value,
            invoice.payment_secret,
            session.amount_msat,
            invoice.payment_metadata,
        )
        return [*relays, (last.node_id, final)]

    # --- learning

    def succeeded(self, part: PartRecord) -> None:
        """A part was settled."""
        if part.route is not None:
            self._learnt = True
            self.scorer.route_succeeded(self._gossip.graph, part.route, self._now())

    def refused(self, session: Session, part: PartRecord) -> None:
        """Our own channel did not take a part, or lost it: not over this one again."""
        if part.route is not None:
            session.ignored_channels.add(part.route.hops[0].key)

    def failed(self, session: Session, part: PartRecord, effect: fx.HtlcFailed, reading: Reading) -> None:
        """A part came back: what may not be tried again, and whether anything may."""
        route = part.route
        assert route is not None
        self._learnt = True
        hops = route.hops
        last = len(hops) - 1
        if effect.reason is None and effect.failure_code is None:
            self.refused(session, part)
        elif effect.failure_code is not None:
            if last == 0:
                session.stopped = reading.sentence
            session.ignored_nodes.add(hops[0].node_id)
        elif reading.hop is None:
            self._blame(session, route, reading.unproven_hop)
        elif reading.hop == last:
            self.scorer.route_failed(self._gossip.graph, route, len(hops), self._now())
            if not isinstance(reading.failure, f.MppTimeout):
                session.stopped = reading.sentence
        else:
            self._relay_failed(session, route, reading.hop, reading.failure)

    def _relay_failed(self, session: Session, route: Route, hop: int, failure: f.Failure | None) -> None:
        following = route.hops[hop + 1]
        graph, now = self._gossip.graph, self._now()
        if failure is not None and failure.is_node_failure:
            self.scorer.node_failed(route.hops[hop].node_id, now)
            session.ignored_nodes.add(route.hops[hop].node_id)
        elif isinstance(failure, f.TemporaryChannelFailure):
            self.scorer.route_failed(graph, route, hop + 1, now)
            session.stuck(following.key)
        else:
            for passed in route.hops[: hop + 1]:
                self.scorer.passed(graph, passed.key, passed.amount_msat, now)
            session.ignored_channels.add(following.key)

    def _blame(self, session: Session, route: Route, unproven_hop: int | None) -> None:
        """Nobody says who failed: whoever damaged the attribution, or else all channels between others."""
        nodes = [hop.node_id for hop in route.hops[:-1]]
        if unproven_hop is not None and unproven_hop < len(nodes):
            self.scorer.node_failed(nodes[unproven_hop], self._now())
            session.ignored_nodes.add(nodes[unproven_hop])
            return
        session.ignored_channels.update(hop.key for hop in route.hops[1:])
        if not nodes:
            session.stopped = "it failed, and the reason that came back cannot be read"


def read(part: PartRecord, effect: fx.HtlcFailed) -> Reading:
    """Who failed a part, and why, with a sentence for who paid."""
    if effect.never_sent:
        return Reading(None, None, None, "the connection was lost before the payment was sent; nothing was paid")
    if effect.failure_code is not None:
        return Reading(None, None, None, failures.explain_code(effect.failure_code))
    if effect.reason is None:
        return Reading(None, None, None, "the channel was closed, and the payment with it")
    found = read_failure(part.shared_secrets, ReturnPacket(effect.reason, effect.attribution_data))
    unproven = found.attribution.unproven_hop if found.attribution is not None else None
    if found.erring_hop is None:
        return Reading(None, None, unproven, "it failed, and the reason that came back cannot be read")
    failure = decode_failure(found.failure_message)
    sentence = failures.explain(failure)
    if part.route is not None and found.erring_hop < len(part.route.hops) - 1:
        sentence = f"{sentence} (said {part.route.hops[found.erring_hop].node_id.hex()})"
    return Reading(found.erring_hop, failure, unproven, sentence)
