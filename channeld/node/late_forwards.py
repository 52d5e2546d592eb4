"""Forwarded HTLCs whose outcome is late: the incoming one nears its expiry, and the outgoing one is still out there.

At its expiry the peer closes the channel that an unanswered HTLC came in over. What can be lost by failing it before is
its amount: if the preimage comes after all, we pay for it. What is lost by waiting is that channel, and waiting helps
only if the preimage can still be used: if the HTLC brings more, after the fees for taking it in that close, than losing
the channel costs (`economics`, and the price of another one). So:

- one whose preimage is known, from wherever, is fulfilled;
- one that came back from the chain is failed as soon as that is as deep as there are blocks left;
- those that bring less than it costs to lose their channel are failed. All of one incoming channel count together,
  with those that were failed in this way before and may still be claimed: many small ones are a large one;
- the others are kept, and spoken of: with so much at stake, who kept ours from coming back for so long may well have
  the preimage.

Source: BOLT 2, "`cltv_expiry_delta` Selection"; BOLT 5, "HTLC Output Handling".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, NamedTuple

import structlog

from channeld.bolt.onion import failures as f
from channeld.bolt.transactions import Htlc
from channeld.bolt.transactions.fees import weight_fee_sat
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.commitments import htlc_key
from channeld.channel.economics import close_cost_sat, gain_sat, reason_to_close
from channeld.channel.state import Closing, Funded, Normal, ShuttingDown
from channeld.node.bus import EventBus
from channeld.node.circuits import Circuit, HtlcKey, circuit_of
from channeld.node.event_kinds import EventKind
from channeld.node.refusals import fulfill_event
from channeld.storage import Store, rows

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

log = structlog.get_logger(__name__)
LATEST_BLOCKS = 6
"""So long before an incoming HTLC expires, its peer is told that nothing came of it: time to be away for a while, and
to take the HTLC out of both commitments."""
NEW_CHANNEL_WEIGHT = 700
"""A transaction that funds a channel in the place of one that was closed."""


class _Late(NamedTuple):
    """A circuit whose incoming HTLC expires in `left_blocks`; `id` is that of the outgoing one."""

    id: int
    circuit: Circuit
    incoming: Driver
    htlc: Htlc
    left_blocks: int


class LateForwards:
    """`live` are incoming HTLCs that wait for their outgoing one; `give_up` answers one that will not wait longer."""

    def __init__(
        self,
        store: Store,
        channels: Channels,
        bus: EventBus,
        height: Callable[[], int],
        live: Set[HtlcKey],
        answer: Callable[[Circuit, ev.Event], None],
        give_up: Callable[[Circuit, ev.Event], None],
    ) -> None:
        self._store = store
        self._channels = channels
        self._bus = bus
        self._height = height
        self._live = live
        self._answer = answer
        self._give_up = give_up
        self._told: set[HtlcKey] = set()

    # --- when to look

    def at_tip(self) -> None:
        """The chain was caught up with, and channels have been told of it: those that have not ended are looked at as
        soon as they have heard it. What the chain says of the others, the monitor brings (`looked`)."""
        for driver in self._channels.all():
            if not isinstance(driver.state, Closing):
                self._after_its_news(driver, {})

    def looked(self, driver: Driver, returns: Mapping[int, int]) -> None:
        """The monitor has looked at a channel that ended, and told it all that it found. `returns`: how deep in the
        chain the return of each outgoing HTLC is that came back, by its id."""
        self._after_its_news(driver, returns)

    def _after_its_news(self, driver: Driver, returns: Mapping[int, int]) -> None:
        """Decides once the channel has taken in what it was told before: that may be a preimage."""
        is_closing = isinstance(driver.state, Closing)
        if next(self._late(driver), None) is None:
            return

        def heard(error: Exception | None) -> None:
            if error is None and isinstance(driver.state, Closing) == is_closing:
                self._decide(driver, returns)

        driver.post(ev.NewBlock(), (), heard)

    def _late(self, driver: Driver) -> Iterator[_Late]:
        """Those that went out over a channel, and are late."""
        state = driver.state
        if not isinstance(state, Funded):
            return
        height = self._height()
        for id, origin in state.commitments.origins.items():
            circuit = circuit_of(origin)
            if circuit is None or circuit.key not in self._live:
                continue
            incoming = self._channels.by_key(circuit.incoming_key)
            if incoming is None or not isinstance(incoming.state, Normal | ShuttingDown):
                continue  # that one has ended, too: nothing is left to save
            htlc = incoming.state.commitments.remote.spec.htlcs.get(htlc_key(circuit.incoming_id, False))
            if htlc is None or htlc.cltv_expiry - height > LATEST_BLOCKS:
                continue
            if htlc in machine.unresolved_htlcs(incoming.state):
                yield _Late(id, circuit, incoming, htlc, htlc.cltv_expiry - height)

    # --- what to do

    def _decide(self, driver: Driver, returns: Mapping[int, int]) -> None:
        state = driver.state
        if isinstance(state, Normal | ShuttingDown) and reason_to_close(
            state.commitments, state.params, self._channels.env(driver)
        ):
            return  # what is worth it is taken on chain: the channel is about to end
        for late in list(self._late(driver)):
            known = self._store.lookup(rows.FIND_PREIMAGE, late.htlc.payment_hash)
            if known:
                self._fulfil(driver, late, known[0][0])
            elif returns.get(late.id, 0) >= max(1, late.left_blocks):
                log.info("a forwarded HTLC is failed as it expires", depth=returns[late.id], left=late.left_blocks)
                self._fail(late)
            elif isinstance(state, Normal | ShuttingDown):
                # The channel is not worth closing over it, and the incoming one no more: they are about the same.
                self._fail(late)
            else:
                self._weigh(driver, late)

    def _fulfil(self, driver: Driver, late: _Late, preimage: bytes) -> None:
        """BOLT 5, "if the payment preimage is known: MUST fulfill the corresponding incoming HTLC"."""
        if isinstance(driver.state, Closing):
            driver.post(ev.HtlcOnChain(late.id, preimage))
        else:
            circuit = late.circuit
            self._answer(circuit, fulfill_event(circuit.incoming_id, preimage, circuit.context, circuit.held))

    def _fail(self, late: _Late) -> None:
        refusal = late.circuit.context.refusal(f.PermanentChannelFailure(), "the next node did not answer")
        self._give_up(late.circuit, late.circuit.refusal(refusal))

    def _weigh(self, driver: Driver, late: _Late) -> None:
        incoming = late.incoming.state
        assert isinstance(incoming, Normal | ShuttingDown)
        gain = self._at_stake_sat(late.incoming, incoming)
        env = self._channels.env(late.incoming)
        cost = close_cost_sat(incoming.commitments, incoming.params, env)
        cost += weight_fee_sat(NEW_CHANNEL_WEIGHT, env.closing_feerate_per_kw)
        what = (
            f"HTLC {late.htlc.id} of {late.htlc.amount_msat // 1000} sat, which expires at block "
            f"{late.htlc.cltv_expiry}, went out over channel {driver.channel_id.hex()}, which has ended, and is away"
        )
        if gain <= cost:
            self._tell(
                "channel.htlc_given_up",
                f"{what}: it was failed. A preimage that comes late would be worth {gain} sat with all that is due, "
                f"losing this channel over it would cost about {cost} sat",
                driver,
                late,
            )
            self._fail(late)
        elif late.circuit.key not in self._told:
            self._told.add(late.circuit.key)
            self._tell(
                "channel.htlc_stuck",
                f"{what}: the peer will close this channel then, which costs about {cost} sat, less than {gain} sat "
                "at stake. Coins in the wallet let the HTLC be fetched at higher fees",
                driver,
                late,
            )

    def _at_stake_sat(self, incoming: Driver, state: Normal | ShuttingDown) -> int:
        """What closing the incoming channel would save of all HTLCs that are late there, or were failed as such and
        may still have to be paid for."""
        env = self._channels.env(incoming)
        waiting = {htlc.id: htlc for htlc in machine.unresolved_htlcs(state)}
        total = 0
        for circuit in self._unsettled():
            if circuit.incoming_key != incoming.channel_key:
                continue
            htlc = waiting.get(circuit.incoming_id)
            if htlc is None or htlc.cltv_expiry - self._height() <= LATEST_BLOCKS:
                was = Htlc(circuit.incoming_id, circuit.incoming_msat, b"", 0, False)
                total += gain_sat(state.commitments, state.params, was, env)
        return total

    def _unsettled(self) -> Iterator[Circuit]:
        for driver in self._channels.all():
            if isinstance(driver.state, Funded):
                c = driver.state.commitments
                for id, origin in c.origins.items():
                    circuit = circuit_of(origin) if id not in c.learnt else None
                    if circuit is not None:
                        yield circuit

    def _tell(self, kind: EventKind, sentence: str, driver: Driver, late: _Late) -> None:
        channel_id = late.incoming.channel_id.hex()
        self._bus.publish(
            kind,
            f"channel {channel_id}: {sentence}",
            channel_id=channel_id,
            outgoing_channel_id=driver.channel_id.hex(),
            htlc_id=late.htlc.id,
            amount_msat=late.htlc.amount_msat,
            expiry_height=late.htlc.cltv_expiry,
        )
