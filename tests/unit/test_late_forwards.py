"""Which late forwarded HTLCs are failed, which are kept: rules in numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from channeld.bolt.transactions.fees import weight_fee_sat
from channeld.channel import events as ev
from channeld.channel.economics import close_cost_sat, gain_sat
from channeld.channel.state import Funded
from channeld.node.bus import EventBus
from channeld.node.circuits import Circuit, HtlcKey
from channeld.node.event_kinds import EventKind
from channeld.node.late_forwards import LATEST_BLOCKS, NEW_CHANNEL_WEIGHT, LateForwards
from tests.machine.harness import HEIGHT, Pair, Peer, add, open_pair, preimage_of

EXPIRY = HEIGHT + 100
INCOMING, OUTGOING = 1, 2
SMALL_MSAT = 2_350_000
"""Two of them are not worth losing the incoming channel for, three are."""
LARGE_MSAT = 60_000_000


class FakeDriver:
    """A channel that hears everything at once."""

    def __init__(self, channel_key: int, peer: Peer) -> None:
        self.channel_key = channel_key
        self.channel_id = bytes([channel_key]) * 32
        self.peer = peer
        self.heard: list[ev.Event] = []

    @property
    def state(self) -> Funded:
        return self.peer.funded

    def post(self, event: ev.Event, writes: Sequence[Any] = (), done: Callable[[Any], None] | None = None) -> None:
        self.heard.append(event)
        self.peer.step(event)
        if done is not None:
            done(None)


class World:
    """HTLCs of `amounts_msat` that came in from one peer and went out to another, and are late there."""

    def __init__(self, *amounts_msat: int, closed: bool = True) -> None:
        incoming, outgoing = open_pair(feerate_per_kw=1000), open_pair(number=1, feerate_per_kw=1000)
        self.incoming = FakeDriver(INCOMING, incoming.bob)
        self.outgoing = FakeDriver(OUTGOING, outgoing.alice)
        self.drivers = [self.incoming, self.outgoing]
        self.height = EXPIRY - LATEST_BLOCKS
        self.preimages: dict[bytes, bytes] = {}
        self.bus = EventBus()
        self.live: set[HtlcKey] = set()
        self.answered: list[tuple[int, ev.Event]] = []
        for number, amount_msat in enumerate(amounts_msat):
            self._forward(incoming, outgoing, amount_msat, number)
        if closed:
            outgoing.alice.step(ev.ForceClose("a test"))
        self.late = LateForwards(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.bus,
            lambda: self.height,
            self.live,
            lambda circuit, event: self.answered.append((circuit.incoming_id, event)),
            self._give_up,
        )

    def _forward(self, incoming: Pair, outgoing: Pair, amount_msat: int, number: int) -> None:
        add(incoming.alice, amount_msat, number, EXPIRY)
        incoming.settle()
        circuit = Circuit(INCOMING, number, amount_msat, bytes(32), bytes(32), "none", 0)
        (*_, htlc) = incoming.bob.commitments.remote.spec.htlcs.values()
        event = ev.AddHtlc(amount_msat, htlc.payment_hash, EXPIRY - 34, bytes(1366), circuit.origin())
        outgoing.alice.step(event)
        outgoing.settle()
        self.live.add(circuit.key)

    def _give_up(self, circuit: Circuit, event: ev.Event) -> None:
        self.live.discard(circuit.key)
        self.answered.append((circuit.incoming_id, event))

    # --- what the node is

    def all(self) -> list[FakeDriver]:
        return self.drivers

    def by_key(self, channel_key: int) -> FakeDriver | None:
        return next((driver for driver in self.drivers if driver.channel_key == channel_key), None)

    def env(self, driver: FakeDriver) -> Any:
        return driver.peer.env()

    def lookup(self, statement: object, payment_hash: bytes) -> list[tuple[bytes]]:
        found = self.preimages.get(payment_hash)
        return [] if found is None else [(found,)]

    # --- what a test asks

    def look(self, returns: dict[int, int] | None = None) -> None:
        self.late.looked(self.outgoing, returns or {})  # type: ignore[arg-type]

    @property
    def failed(self) -> list[int]:
        return [id for id, event in self.answered if isinstance(event, ev.FailHtlc)]

    def told(self, kind: EventKind) -> int:
        return self.bus.counts[kind]


def test_what_the_amounts_here_mean() -> None:
    world = World(SMALL_MSAT)
    c, params, env = world.incoming.state.commitments, world.incoming.state.params, world.incoming.peer.env()
    (htlc,) = c.remote.spec.htlcs.values()
    another = weight_fee_sat(NEW_CHANNEL_WEIGHT, env.closing_feerate_per_kw)
    gain, cost = gain_sat(c, params, htlc, env), close_cost_sat(c, params, env) + another
    assert 2 * gain <= cost < 3 * gain


def test_one_that_is_not_late_is_left_alone() -> None:
    world = World(SMALL_MSAT)
    world.height -= 1
    world.look({0: 5})
    assert world.outgoing.heard == []
    assert world.answered == []


def test_small_ones_are_failed_and_told_of() -> None:
    world = World(SMALL_MSAT, SMALL_MSAT)
    world.look()
    assert world.failed == [0, 1]
    assert world.told("channel.htlc_given_up") == 2
    world.look()
    assert len(world.answered) == 2


def test_many_small_ones_are_a_large_one() -> None:
    world = World(SMALL_MSAT, SMALL_MSAT, SMALL_MSAT)
    world.look()
    world.look()
    assert world.answered == []
    assert world.told("channel.htlc_stuck") == 3


def test_what_was_failed_before_counts_as_long_as_it_may_have_to_be_paid() -> None:
    world = World(SMALL_MSAT, SMALL_MSAT, SMALL_MSAT)
    world.live.remove((INCOMING, 2))
    world.incoming.peer.step(ev.FailHtlc(2, b"as small"))
    world.look()
    assert world.answered == []
    world.outgoing.post(ev.HtlcOnChain(2, preimage_of(2)))  # it was paid for: nothing more can be lost by it
    world.look()
    assert world.failed == [0, 1]


@pytest.mark.parametrize(
    ("depth", "left", "fails"), [(5, 6, False), (6, 6, True), (2, 2, True), (0, -1, False), (1, -3, True)]
)
def test_a_large_one_is_failed_when_its_return_is_as_deep_as_there_are_blocks_left(
    depth: int, left: int, fails: bool
) -> None:
    world = World(LARGE_MSAT)
    world.height = EXPIRY - left
    world.look({0: depth} if depth else {})
    assert world.failed == ([0] if fails else [])
    assert world.told("channel.htlc_stuck") == (0 if fails else 1)


@pytest.mark.parametrize("amount_msat", [SMALL_MSAT, LARGE_MSAT])
def test_one_whose_preimage_is_known_is_never_failed(amount_msat: int) -> None:
    world = World(amount_msat)
    (htlc,) = world.incoming.state.commitments.remote.spec.htlcs.values()
    world.preimages[htlc.payment_hash] = preimage_of(0)
    world.look({0: 6})
    assert world.outgoing.heard[-1] == ev.HtlcOnChain(0, preimage_of(0))
    assert world.answered == []


def test_over_a_channel_that_stays_open_it_is_fulfilled_at_once() -> None:
    world = World(500_000, closed=False)
    (htlc,) = world.incoming.state.commitments.remote.spec.htlcs.values()
    world.preimages[htlc.payment_hash] = preimage_of(0)
    world.late.at_tip()
    ((id, event),) = world.answered
    assert id == 0
    assert isinstance(event, ev.FulfillHtlc)
    assert event.payment_preimage == preimage_of(0)


def test_an_ended_channel_waits_for_the_look_at_the_chain() -> None:
    """What the last block says is not known before."""
    world = World(SMALL_MSAT)
    world.late.at_tip()
    assert world.answered == []
    world.look()
    assert world.failed == [0]


def test_nothing_is_done_where_the_incoming_channel_has_ended_too() -> None:
    world = World(SMALL_MSAT)
    world.incoming.peer.step(ev.ForceClose("a test"))
    world.look()
    assert world.answered == []
