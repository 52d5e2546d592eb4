"""Forwarding: an HTLC that came in goes out over another channel, and its outcome comes back.

A circuit (incoming HTLC -> outgoing HTLC) is the `origin` of the outgoing HTLC: it becomes durable with it, and lives
as long. The incoming HTLC stays unanswered until the outgoing one has an outcome:

- the preimage came: a row in `forwards` in the same transaction, and the incoming HTLC is fulfilled at once;
- the outgoing HTLC is gone for good without: only then the incoming one is failed.

After a crash each unanswered incoming HTLC is handed out again. It is then fulfilled (there is a row in `forwards`),
waits (there is a circuit), or is failed (neither: it was never offered, or came back). It is never forwarded again.
Source: BOLT 2, "Forwarding HTLCs"; BOLT 4, "Failure Messages", "Returning Errors".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from channeld.bolt.features import Feature, has
from channeld.bolt.onion import failures as f
from channeld.bolt.onion.payment import BlindedRole, Forward
from channeld.bolt.onion.returns import ReturnPacket, create_failure, relay_failure
from channeld.bolt.transactions import Htlc
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.state import Funded, Normal, Offline
from channeld.node import views
from channeld.node.bus import EventBus
from channeld.node.circuits import Circuit, HtlcKey, circuit_of, held_since
from channeld.node.driver import Reaction
from channeld.node.interface import ForwardView
from channeld.node.late_forwards import LateForwards
from channeld.node.policies import ForwardTerms, Policies, check_forward
from channeld.node.refusals import after_a_while, fulfill_event, refuse
from channeld.storage import Store, Write, rows, tables

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

MOST_REASON_BYTES = 64_567
"""A longer error onion leaves no room for `attribution_data` in a message of 65,535 bytes."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """An HTLC that looks for a channel. `candidates`: those not tried yet; `update`: of the channel asked for."""

    incoming: Driver
    circuit: Circuit
    event: ev.AddHtlc
    candidates: tuple[Driver, ...]
    update: bytes


class Forwarder:
    """Decides about HTLCs whose onion says that we relay, and brings their outcomes back."""

    def __init__(
        self,
        store: Store,
        channels: Channels,
        policies: Policies,
        bus: EventBus,
        height: Callable[[], int],
        knows_height: Callable[[], bool],
        public_update: Callable[[int, bytes], bytes],
    ) -> None:
        self._store = store
        self._channels = channels
        self._policies = policies
        self._bus = bus
        self._height = height
        self._knows_height = knows_height
        self._public_update = public_update
        self._live: set[HtlcKey] = set()
        self._settled: dict[HtlcKey, tuple[bytes, int]] = {}
        self._earned: set[HtlcKey] = set()
        self._by_scid: dict[int, Driver] = {}
        self.late = LateForwards(store, channels, bus, height, self._live, self._answer, self._give_up)

    def load(self, connection: Connection) -> None:
        """Circuits, and incoming HTLCs whose preimage came before their channel could be told; after the channels."""
        table, preimages = tables.forwards, tables.preimages
        circuits: set[HtlcKey] = set()
        for driver in self._channels.all():
            state = driver.state
            if not isinstance(state, Funded):
                continue
            circuits.update(
                circuit.key for origin in state.commitments.origins.values() if (circuit := circuit_of(origin))
            )
            for htlc in machine.unresolved_htlcs(state):
                self._live.add((driver.channel_key, htlc.id))
                query = select(preimages.c.payment_preimage, table.c.received_ms).where(
                    table.c.incoming_key == driver.channel_key,
                    table.c.incoming_id == htlc.id,
                    preimages.c.payment_hash == table.c.payment_hash,
                )
                found = connection.execute(query).first()
                if found is not None:
                    self._settled[driver.channel_key, htlc.id] = (found[0], found[1])
        self._live.intersection_update(circuits)  # an incoming HTLC that was answered earns nothing any more

    # --- incoming

    def is_bound(self, key: HtlcKey) -> bool:
        """Whether an incoming HTLC was forwarded: its answer is that of the outgoing one and of nobody else."""
        return key in self._live or key in self._settled

    def forward(self, driver: Driver, htlc: Htlc, onion: Forward, again: bool) -> Reaction:
        """What to do about an HTLC that is irrevocable; `again`: it was handed out before, in an earlier life."""
        key = (driver.channel_key, htlc.id)
        context = onion.context
        settled = self._settled.pop(key, None)
        if settled is not None:
            preimage, received_ms = settled
            return Reaction(events=[fulfill_event(htlc.id, preimage, context, held_since(received_ms))])
        if key in self._live:
            return Reaction()
        if again:
            return refuse(driver, htlc.id, context.refusal(f.TemporaryChannelFailure(), "interrupted"))
        if not self._knows_height():  # nobody can say whether there is time left
            return refuse(driver, htlc.id, context.refusal(f.TemporaryNodeFailure(), "layer 1 is away"))
        asked = self._asked(onion)
        if asked is None:
            return refuse(driver, htlc.id, context.refusal(f.UnknownNextPeer()))
        failure = self._check(asked, htlc, onion)
        if failure is not None:
            return refuse(driver, htlc.id, context.refusal(failure))
        self._live.add(key)
        self._offer(self._prepare(driver, htlc, onion, asked))
        return Reaction()

    def _asked(self, onion: Forward) -> Driver | None:
        """The channel that the onion names."""
        if onion.next_node_id is not None:
            drivers = [d for d in self._channels.of_peer(onion.next_node_id) if isinstance(d.state, Funded)]
            return next((d for d in drivers if views.is_usable(d.state)), drivers[0] if drivers else None)
        scid = onion.short_channel_id
        assert scid is not None
        driver = self._by_scid.get(scid)
        if driver is None or scid not in names_of(driver):
            self._by_scid = {name: d for d in self._channels.all() for name in names_of(d)}
            driver = self._by_scid.get(scid)
        return driver

    def _check(self, asked: Driver, htlc: Htlc, onion: Forward) -> f.Failure | None:
        is_blinded = onion.next_path_key is not None
        incoming, outgoing = (htlc.amount_msat, htlc.cltv_expiry), (onion.amt_to_forward, onion.outgoing_cltv_value)
        terms = ForwardTerms(*incoming, *outgoing, is_blinded)
        failure = check_forward(
            terms, self._policies.accepted(asked), self._height(), lambda: self._update(asked, onion)
        )
        if failure is None and not isinstance(asked.state, Normal):
            return f.ChannelDisabled(0, self._update(asked, onion))
        if failure is None and is_blinded and not _knows_blinding(asked):
            return f.UnknownNextPeer()  # it would have to end the connection over a record it does not know
        return failure

    def _update(self, asked: Driver, onion: Forward) -> bytes:
        """Our public update; nothing for a channel that is not public, or was named by its alias."""
        # BOLT 4, "if it returns a `channel_update`: MUST set `short_channel_id` to the `short_channel_id` used by the
        # incoming onion", and "Nodes which do not provide a `channel_update` are expected to set the `channel_update`
        # `len` field to zero."
        state = asked.state
        if not isinstance(state, Funded) or state.scid is None or onion.short_channel_id != state.scid:
            return b""
        return self._public_update(state.scid, asked.peer_id)

    def _prepare(self, driver: Driver, htlc: Htlc, onion: Forward, asked: Driver) -> _Offer:
        # BOLT 4, "Non-strict Forwarding": another channel with the same peer does as well.
        others = [d for d in self._channels.usable_with(asked.peer_id) if d is not asked]
        if onion.next_path_key is not None:  # the channel asked for may not have heard yet who its peer is now
            others = [d for d in others if _knows_blinding(d)]
        context = onion.context
        circuit = Circuit(
            driver.channel_key,
            htlc.id,
            htlc.amount_msat,
            context.shared_secret,
            context.sha256_of_onion,
            context.role.value,
            int(time.time() * 1000),
        )
        event = ev.AddHtlc(
            onion.amt_to_forward,
            htlc.payment_hash,
            onion.outgoing_cltv_value,
            onion.next_packet,
            circuit.origin(),
            {"path_key": onion.next_path_key} if onion.next_path_key is not None else {},
        )
        return _Offer(driver, circuit, event, (asked, *others), self._update(asked, onion))

    def _offer(self, offer: _Offer) -> None:
        """To the first candidate. Its commit comes no earlier than that of the incoming channel's batch, which is
        under way: commits come in order."""
        candidate, *rest = offer.candidates

        def done(error: Exception | None) -> None:
            if error is None:
                return
            if rest:
                self._offer(_Offer(offer.incoming, offer.circuit, offer.event, tuple(rest), offer.update))
                return
            self._live.discard(offer.circuit.key)
            refusal = offer.circuit.context.refusal(_failure_for(error, offer), str(error))
            self._fail_back(offer.circuit, lambda: offer.circuit.refusal(refusal))

        candidate.post(offer.event, (), done)

    # --- outcomes

    def settled(self, driver: Driver, circuit: Circuit, effect: fx.HtlcSettled) -> list[Write]:
        """The preimage is known: passed back at once, before the outgoing HTLC's removal is committed.

        One that comes after the incoming HTLC was answered otherwise (`expire`) is paid by us, and is no forward."""
        held = circuit.held
        event = fulfill_event(
            circuit.incoming_id, effect.payment_preimage, circuit.context, held, effect.attribution_data
        )
        self._answer(circuit, event)
        if circuit.key not in self._live:
            return []
        self._live.discard(circuit.key)
        self._earned.add(circuit.key)
        return [
            rows.SAVE_FORWARD(
                circuit.incoming_key,
                circuit.incoming_id,
                driver.channel_key,
                effect.id,
                effect.payment_hash,
                circuit.incoming_msat,
                effect.amount_msat,
                circuit.received_ms,
                int(time.time() * 1000),
            )
        ]

    def failed(self, circuit: Circuit, effect: fx.HtlcFailed) -> None:
        """The outgoing HTLC is gone for good: so is the incoming one."""
        self._live.discard(circuit.key)
        self._fail_back(circuit, lambda: failure_event(circuit, effect))

    def _fail_back(self, circuit: Circuit, event: Callable[[], ev.Event]) -> None:
        """At once, or after a while as introduction node."""
        if circuit.context.role is BlindedRole.INTRODUCTION:
            after_a_while(lambda _: self._answer(circuit, event()))
        else:
            self._answer(circuit, event())

    def _give_up(self, circuit: Circuit, event: ev.Event) -> None:
        """It is answered before the outgoing HTLC is gone for good."""
        self._live.discard(circuit.key)
        self._answer(circuit, event)

    def _answer(self, circuit: Circuit, event: ev.Event) -> None:
        """Tells the incoming channel, after the batch that is under way: its commit must come before. An incoming
        channel that is over has been settled on chain."""

        def post() -> None:
            incoming = self._channels.by_key(circuit.incoming_key)
            if incoming is not None:
                incoming.post(event)

        asyncio.get_running_loop().call_soon(post)

    def settled_done(self, circuit: Circuit, effect: fx.HtlcSettled) -> None:
        """What `settled` wrote is durable."""
        if circuit.key not in self._earned:
            self._bus.publish(
                "forward.lost",
                f"{effect.amount_msat:,} msat were paid on after the incoming HTLC had been failed: it was too small "
                "to close a channel for",
                payment_hash=effect.payment_hash.hex(),
                amount_msat=effect.amount_msat,
            )
            return
        self._earned.discard(circuit.key)
        earned_msat = circuit.incoming_msat - effect.amount_msat
        self._bus.publish(
            "forward.settled",
            f"forwarded {effect.amount_msat:,} msat, {earned_msat:,} msat earned",
            payment_hash=effect.payment_hash.hex(),
            amount_msat=effect.amount_msat,
            fee_msat=earned_msat,
        )

    # --- history

    async def history(self, limit: int, offset: int) -> list[ForwardView]:
        """What was forwarded, the newest first."""
        table, incoming, outgoing = tables.forwards, tables.channels.alias(), tables.channels.alias()
        query = (
            select(table, incoming.c.channel_id.label("came_over"), outgoing.c.channel_id.label("went_over"))
            .join(incoming, incoming.c.channel_key == table.c.incoming_key)
            .join(outgoing, outgoing.c.channel_key == table.c.outgoing_key)
            .order_by(table.c.settled_ms.desc(), table.c.incoming_key, table.c.incoming_id)
            .limit(limit)
            .offset(offset)
        )
        found = await self._store.read(lambda c: list(c.execute(query)))
        return [
            ForwardView(
                incoming_channel_id=row.came_over,
                outgoing_channel_id=row.went_over,
                payment_hash=row.payment_hash,
                incoming_msat=row.incoming_msat,
                outgoing_msat=row.outgoing_msat,
                fee_msat=row.incoming_msat - row.outgoing_msat,
                received_seconds=row.received_ms / 1000,
                settled_seconds=row.settled_ms / 1000,
            )
            for row in found
        ]


def names_of(driver: Driver) -> tuple[int, ...]:
    """The short_channel_ids by which others may ask for a channel."""
    state = driver.state
    if not isinstance(state, Funded):
        return ()
    names = [] if state.local_alias is None else [state.local_alias]
    # BOLT 2, "if `channel_type` has `option_scid_alias` set: MUST NOT allow incoming HTLCs to this channel using the
    # real `short_channel_id`"
    if state.scid is not None and not state.params.type.scid_alias:
        names.append(state.scid)
    return tuple(names)


def failure_event(circuit: Circuit, effect: fx.HtlcFailed) -> ev.Event:
    """How the failure of the outgoing HTLC looks to the incoming side."""
    context, held = circuit.context, circuit.held
    if context.role is not BlindedRole.NONE:
        # BOLT 4, "A _forwarding node_ MUST: if `path_key` is set [...] return an `invalid_onion_blinding` error."
        return circuit.refusal(context.refusal(f.InvalidOnionBlinding(circuit.sha256_of_onion)))
    if effect.reason is not None and len(effect.reason) > MOST_REASON_BYTES:
        packet = relay_failure(circuit.shared_secret, ReturnPacket(effect.reason))
    elif effect.reason is not None:
        packet = relay_failure(circuit.shared_secret, ReturnPacket(effect.reason, effect.attribution_data), held)
    elif effect.failure_code is not None:
        # BOLT 2, "otherwise, a receiving node which has an outgoing HTLC canceled by `update_fail_malformed_htlc`: MUST
        # return an error in the `update_fail_htlc` sent to the link which originally sent the HTLC, using the
        # `failure_code` given and setting the data to `sha256_of_onion`."
        message = effect.failure_code.to_bytes(2, "big") + (effect.sha256_of_onion or bytes(32))
        packet = create_failure(circuit.shared_secret, message, held)
    else:
        own: f.Failure = f.TemporaryChannelFailure() if effect.never_sent else f.PermanentChannelFailure()
        packet = create_failure(circuit.shared_secret, f.encode_failure(own), held)
    tlvs = {} if packet.attribution_data is None else {"attribution_data": packet.attribution_data}
    return ev.FailHtlc(circuit.incoming_id, packet.reason, tlvs)


def _knows_blinding(driver: Driver) -> bool:
    """Whether the peer may be sent a `path_key`, be it over another channel than this one, which may be out of step."""
    state = driver.state
    if not isinstance(state, Funded) or isinstance(state.link, Offline):
        return True  # nothing is sent now
    return has(state.link.remote_features, Feature.option_route_blinding)


def _failure_for(error: Exception, offer: _Offer) -> f.Failure:
    """Why no channel took an HTLC, in BOLT 4's terms."""
    if isinstance(error, ev.CommandRejected):
        if error.code == "amount_below_minimum":
            return f.AmountBelowMinimum(offer.event.amount_msat, offer.update)
        if error.code == "expiry":
            return f.ExpiryTooSoon(offer.update)
    return f.TemporaryChannelFailure(offer.update)
