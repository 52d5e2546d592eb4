"""A funding transaction that leaves the chain, or is double-spent, after the channel was in use."""

from __future__ import annotations

from hashlib import sha256

import pytest

from channeld.bolt.messages import ErrorMessage
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.chain import FORGET_UNFUNDED_AFTER_BLOCKS
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import Closed, Closing, Normal, phase_name
from channeld.node import views
from tests.machine import harness
from tests.machine.harness import HEIGHT, Pair, Peer, add, fund, open_pair, seed_secrets, start_open

RIVAL = sha256(b"a double spend").digest()


def depth(peer: Peer, depth: int, rival_depth: int = 0) -> list[fx.Effect]:
    capacity_sat = peer.funded.params.capacity_sat
    rival = RIVAL if rival_depth else b""
    return peer.step(ev.FundingDepth(depth, HEIGHT if depth else 0, 7, capacity_sat, rival, rival_depth))


# --- a coinbase ---------------------------------------------------------------------------------------------------


def test_a_coinbase_has_to_be_mature() -> None:
    """Before, no commitment can be mined: a miner who funds channels with its rewards could let every deadline of an
    HTLC pass."""
    alice, bob = (Peer(name, seed_secrets(name, 7)) for name in ("alice", "bob"))
    pair = start_open(alice, bob, push_msat=300_000_000)
    fund(pair)
    for deep, ready in ((3, False), (99, False), (100, True)):
        for peer in (alice, bob):
            peer.step(ev.FundingDepth(deep, HEIGHT, 0, peer.funded.params.capacity_sat))
        pair.settle()
        assert isinstance(bob.state, Normal) == ready
        assert bob.funded.is_deep == ready
        if not ready:
            missing = 100 - deep
            assert bob.state is not None
            assert f"{missing} more confirmation" in views.why_unusable(bob.state, None)


# --- reorganised --------------------------------------------------------------------------------------------------


def test_nothing_is_offered_until_the_funding_is_deep_again() -> None:
    pair = open_pair(push_msat=300_000_000)
    (lost,) = depth(pair.alice, 0)
    assert isinstance(lost, fx.FundingLost)
    with pytest.raises(ev.CommandRejected, match="not deep enough"):
        add(pair.alice, 1_000_000)
    assert depth(pair.alice, 2) == []
    with pytest.raises(ev.CommandRejected, match="not deep enough"):
        add(pair.alice, 1_000_000)
    assert depth(pair.alice, 3) == [fx.ChannelUsable()]
    add(pair.alice, 1_000_000)


def test_what_comes_in_meanwhile_is_failed() -> None:
    """The opener could double-spend its funding: a preimage that Bob gives away then is a gift."""
    pair = open_pair(push_msat=300_000_000)
    depth(pair.bob, 0)
    add(pair.alice, 1_000_000)
    pair.settle()
    (locked_in,) = pair.bob.locked_in
    assert locked_in.unfunded
    pair.bob.crash()
    assert [again.unfunded for again in pair.bob.locked_in] == [True]


def test_the_opener_trusts_itself() -> None:
    pair = open_pair(push_msat=300_000_000)
    depth(pair.alice, 0)
    add(pair.bob, 1_000_000)
    pair.settle()
    (locked_in,) = pair.alice.locked_in
    assert not locked_in.unfunded


def test_htlcs_under_way_are_still_resolved() -> None:
    pair = open_pair(push_msat=300_000_000)
    add(pair.alice, 1_000_000)
    pair.settle()
    for peer in (pair.alice, pair.bob):
        depth(peer, 0)
    pair.bob.step(ev.FailHtlc(0, b"no"))
    pair.settle()
    assert not pair.alice.commitments.has_htlcs


def test_a_channel_without_minimum_depth_needs_none() -> None:
    alice, bob = Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob"))
    bob.policy = ChannelPolicy(accept_zero_conf_from=frozenset({harness.NODE_IDS["alice"]}))
    pair = harness.start_open(alice, bob, zero_conf=True, announce=False)
    harness.fund(pair)
    assert isinstance(alice.state, Normal)
    assert depth(alice, 0) == []
    add(alice, 1_000_000)


# --- double-spent -------------------------------------------------------------------------------------------------


def with_htlcs() -> Pair:
    """One HTLC of Alice's is locked in, one of Bob's, and one of Bob's was not signed for."""
    pair = open_pair(push_msat=300_000_000)
    add(pair.alice, 40_000_000, 0)
    add(pair.bob, 50_000_000, 1)
    pair.settle()
    add(pair.bob, 1_000_000, 2)
    return pair


def test_a_double_spend_ends_the_channel_when_it_is_irrevocable() -> None:
    pair = with_htlcs()
    bob = pair.bob
    bob.log.clear()
    (lost,) = depth(bob, 0, 1)
    assert isinstance(lost, fx.FundingLost)
    assert "double-spent" in lost.reason
    assert depth(bob, 0, 99) == []  # told once
    assert isinstance(bob.state, Normal)
    depth(bob, 0, 100)
    assert isinstance(bob.state, Closed)
    assert phase_name(bob.state) == "closed"
    assert bob.state.closing_txid == RIVAL
    assert "double-spent" in bob.state.reason
    failed = {effect.origin: effect for effect in bob.logged(fx.HtlcFailed)}
    assert failed[b"payment 1"].on_chain
    assert failed[b"payment 2"].never_sent
    assert bob.logged(fx.CloseCompleted)
    assert not bob.broadcast


def test_who_needs_no_depth_is_not_believed_after_a_double_spend() -> None:
    alice, bob = Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob"))
    bob.policy = ChannelPolicy(accept_zero_conf_from=frozenset({harness.NODE_IDS["alice"]}))
    pair = start_open(alice, bob, zero_conf=True, announce=False, push_msat=300_000_000)
    fund(pair)
    depth(bob, 0, 1)
    assert not views.is_usable(bob.funded)
    assert bob.state is not None
    assert "double-spent" in views.why_unusable(bob.state, None)
    add(alice, 1_000_000)
    pair.settle()
    (locked_in,) = bob.locked_in
    assert locked_in.unfunded
    with pytest.raises(ev.CommandRejected, match="not deep enough"):
        add(bob, 1_000_000)
    assert depth(bob, 0) == [fx.ChannelUsable()]
    add(bob, 1_000_000)


def test_a_double_spend_that_is_reorganised_away_leaves_the_channel_alive() -> None:
    pair = with_htlcs()
    depth(pair.bob, 0, 50)
    assert pair.bob.funded.double_spent_by == RIVAL
    depth(pair.bob, 3)
    assert pair.bob.funded.double_spent_by == b""
    assert pair.bob.funded.is_deep


def test_a_closing_channel_ends_with_its_funding() -> None:
    pair = with_htlcs()
    pair.bob.step(ev.ForceClose("no"))
    depth(pair.bob, 0, 100)
    assert isinstance(pair.bob.state, Closed)


def test_a_preimage_that_was_learnt_is_not_taken_back() -> None:
    pair = with_htlcs()
    pair.alice.step(ev.FulfillHtlc(0, harness.preimage_of(1)))
    pair.deliver(pair.alice)
    assert pair.bob.logged(fx.HtlcSettled)
    depth(pair.bob, 0, 100)
    assert b"payment 1" not in {effect.origin for effect in pair.bob.logged(fx.HtlcFailed)}


# --- never confirmed ----------------------------------------------------------------------------------------------


def pushed() -> Pair:
    """The opener promised money, and never broadcasts."""
    pair = harness.start_open(
        Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")), push_msat=300_000_000
    )
    harness.fund(pair)
    return pair


def test_a_phantom_is_forgotten_after_2016_blocks() -> None:
    # BOLT 2, "forgetting it is recommended (even if the promise of `push_msat` is significant)"
    bob = pushed().bob
    bob.step(ev.PeerMessage(ErrorMessage(bob.funded.params.channel_id, b"no")))
    assert isinstance(bob.state, Closing)
    bob.height = HEIGHT + FORGET_UNFUNDED_AFTER_BLOCKS - 1
    bob.step(ev.NewBlock())
    assert isinstance(bob.state, Closing)
    bob.height += 1
    bob.step(ev.NewBlock())
    assert isinstance(bob.state, Closed)
    assert phase_name(bob.state) == "forgotten"


def test_a_funding_that_was_seen_is_not_forgotten_over_a_reorganisation() -> None:
    """It confirmed late and was reorganised: it will be back in the next block."""
    bob = pushed().bob
    bob.height = HEIGHT + FORGET_UNFUNDED_AFTER_BLOCKS - 1
    depth(bob, 1)
    bob.step(ev.NewBlock())
    bob.height += 1
    depth(bob, 0)
    bob.step(ev.NewBlock())
    assert not isinstance(bob.state, Closed)


def test_the_opener_never_forgets() -> None:
    alice = pushed().alice
    alice.height = HEIGHT + 10 * FORGET_UNFUNDED_AFTER_BLOCKS
    alice.step(ev.NewBlock())
    assert not isinstance(alice.state, Closed)
