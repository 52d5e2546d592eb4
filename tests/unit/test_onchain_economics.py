"""No channel is closed over less than closing costs; HTLCs are warned of before they are due; coins are kept for
fees."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from channeld.channel import economics
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.state import Closing, Funded, Normal, State
from channeld.onchain.rates import Rates
from channeld.onchain.reserve import LEAST_SAT, reserve_sat
from tests.machine.harness import HEIGHT, Pair, add, open_pair, preimage_of

EXPIRY = HEIGHT + 100
GRACE, FULFILL = 3, 18


def channel(anchors: bool = True, feerate_per_kw: int = 1000) -> Pair:
    pair = open_pair(anchors=anchors, push_msat=400_000_000, feerate_per_kw=feerate_per_kw)
    for peer in (pair.alice, pair.bob):
        peer.closing_feerate_per_kw = feerate_per_kw
    return pair


def at(pair: Pair, height: int) -> list[fx.Effect]:
    """Alice hears of a block."""
    pair.alice.height = height
    return pair.alice.step(ev.NewBlock())


def state_of(pair: Pair) -> State:
    """Alice's."""
    assert pair.alice.state is not None
    return pair.alice.state


both_types = pytest.mark.parametrize("anchors", [True, False], ids=["anchors", "static_remotekey"])


@both_types
def test_an_expired_htlc_that_is_worth_it_closes_the_channel(anchors: bool) -> None:
    """BOLT 2, "if an HTLC which it offered is in either node's current commitment transaction, AND is past this timeout
    deadline: SHOULD send an `error` to the receiving peer (if connected), and MUST fail the channel"."""
    pair = channel(anchors)
    add(pair.alice, 50_000_000, 1, EXPIRY)
    pair.settle()
    at(pair, EXPIRY + GRACE - 1)
    assert isinstance(pair.alice.state, Normal)
    effects = at(pair, EXPIRY + GRACE)
    assert isinstance(pair.alice.state, Closing)
    assert "expired at block" in pair.alice.state.reason
    assert any(isinstance(effect, fx.Broadcast) for effect in effects)


@both_types
def test_a_fulfilled_htlc_that_is_worth_it_closes_the_channel(anchors: bool) -> None:
    """BOLT 2, "if an HTLC it has fulfilled is in either node's current commitment transaction, AND is past this
    fulfillment deadline: MUST fail the channel"."""
    pair = channel(anchors)
    add(pair.bob, 50_000_000, 1, EXPIRY)
    pair.settle()
    pair.disconnect()
    pair.alice.step(ev.FulfillHtlc(0, preimage_of(1)))
    at(pair, EXPIRY - FULFILL - 1)
    assert isinstance(pair.alice.state, Normal)
    at(pair, EXPIRY - FULFILL)
    assert isinstance(pair.alice.state, Closing)


def test_a_received_htlc_without_preimage_is_never_a_reason() -> None:
    pair = channel()
    add(pair.bob, 50_000_000, 1, EXPIRY)
    pair.settle()
    at(pair, EXPIRY + 50)
    assert isinstance(pair.alice.state, Normal)


@both_types
@pytest.mark.parametrize("amount_sat", [200, 3_000])
def test_an_htlc_worth_less_than_the_close_leaves_the_channel_open(anchors: bool, amount_sat: int) -> None:
    pair = channel(anchors, feerate_per_kw=2500)
    add(pair.alice, amount_sat * 1000, 1, EXPIRY)
    pair.settle()
    at(pair, EXPIRY + 50)
    assert isinstance(pair.alice.state, Normal)
    state = pair.alice.funded
    cost = economics.close_cost_sat(state.commitments, state.params, pair.alice.env())
    (due,) = economics.dues(state.commitments, state.params, pair.alice.env())
    assert due.gain_sat <= cost
    (warned,) = economics.warnings(state.commitments, state.params, pair.alice.env())
    assert not warned.closes
    assert "it stays open" in warned.sentence
    assert "is overdue" in warned.sentence


@both_types
@pytest.mark.parametrize("amount_sat", [200, 3_000])
def test_a_peer_that_pays_late_again_and_again_is_borne_until_it_has_cost_as_much_as_a_close(
    anchors: bool, amount_sat: int
) -> None:
    """Each incoming HTLC was failed meanwhile, so each such preimage is our loss."""
    pair = channel(anchors, feerate_per_kw=2500)
    lost_sat = number = 0
    while isinstance(state_of(pair), Normal):
        expiry = pair.alice.height + 100
        add(pair.alice, amount_sat * 1000, number, expiry)
        pair.settle()
        at(pair, expiry + GRACE + 40)
        state = pair.alice.funded
        cost_sat = economics.close_cost_sat(state.commitments, state.params, pair.alice.env())
        if isinstance(state, Normal):
            pair.bob.step(ev.FulfillHtlc(number, preimage_of(number)))
            pair.settle()
            lost_sat += amount_sat
            number += 1
    assert cost_sat - amount_sat <= lost_sat <= cost_sat + amount_sat


def test_who_pays_in_time_is_not_held_to_anything() -> None:
    pair = channel(feerate_per_kw=2500)
    for number in range(3):
        add(pair.alice, 50_000_000, number, EXPIRY)
    pair.settle()
    at(pair, EXPIRY + GRACE - 1)
    for number in range(3):
        pair.bob.step(ev.FulfillHtlc(number, preimage_of(number)))
    pair.settle()
    assert pair.alice.funded.commitments.paid_late_msat == 0


def test_small_htlcs_together_may_be_worth_it() -> None:
    pair = channel()
    for number in range(12):
        add(pair.alice, 4_000_000, number, EXPIRY)
    pair.settle()
    at(pair, EXPIRY + GRACE)
    assert isinstance(pair.alice.state, Closing)


def test_warned_before_it_is_due_with_reason_and_cost() -> None:
    pair = channel()
    add(pair.alice, 50_000_000, 1, EXPIRY)
    pair.settle()
    state = pair.alice.funded
    pair.alice.height = EXPIRY + GRACE - economics.WARN_BLOCKS - 1
    assert economics.warnings(state.commitments, state.params, pair.alice.env()) == []
    pair.alice.height += 1
    (warned,) = economics.warnings(state.commitments, state.params, pair.alice.env())
    assert warned.closes
    assert warned.due_height == EXPIRY + GRACE
    cost = economics.close_cost_sat(state.commitments, state.params, pair.alice.env())
    assert f"is due in {economics.WARN_BLOCKS} blocks" in warned.sentence
    assert f"costs about {cost} sat" in warned.sentence
    assert "(50000 sat)" in warned.sentence


def test_reserve_grows_with_fees_and_htlcs_and_is_for_anchors_only() -> None:
    cheap, dear = Rates(((1, 253),)), Rates(((1, 10_000),))
    pair = channel()
    states = [state_of(pair)]
    assert reserve_sat([], dear) == 0
    assert reserve_sat([state_of(channel(False))], dear) == 0
    assert reserve_sat(states, cheap) == 0  # the commitment pays enough by itself
    assert reserve_sat(states, Rates(((1, 1_100),))) == LEAST_SAT
    without = reserve_sat(states, dear)
    assert 10_000 < without < 30_000
    assert reserve_sat(states * 3, dear) == 3 * without
    add(pair.alice, 50_000_000, 1, EXPIRY)
    pair.settle()
    assert without + 10_000 < reserve_sat([state_of(pair)], dear) < without + 20_000


def test_what_strangers_propose_takes_nothing_of_the_wallet() -> None:
    """The reserve is kept from all other uses: whoever opens channels to us must not be able to raise it for less than
    what they hold for us."""
    dear = Rates(((1, 50_000),))
    empty = open_pair().bob.state
    assert isinstance(empty, Funded)
    assert reserve_sat([empty] * 100, dear) == 0, "nothing in them is ours"
    promised = channel().bob.state
    assert isinstance(promised, Funded)
    assert reserve_sat([promised], dear) > 50_000
    unseen = replace(promised, scid=None, funding_depth=0)
    assert reserve_sat([unseen] * 100, dear) == 0, "a commitment without its funding cannot be lifted"
    little = open_pair(push_msat=10_000_000).bob.state
    assert isinstance(little, Funded)
    assert reserve_sat([little] * 100, dear) == 100 * 5_000, "no child pays more than half of what it brings"
