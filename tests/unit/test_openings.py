"""Whose channels are borne before they have cost their opener anything."""

from __future__ import annotations

from msgspec.structs import replace

from channeld.bolt.messages import ErrorMessage
from channeld.channel import events as ev
from channeld.channel.chain import FORGET_UNFUNDED_AFTER_BLOCKS
from channeld.channel.state import AwaitingFunding, Closed, Closing, Normal
from channeld.node.openings import MAX_OPENINGS_PER_PEER, MAX_UNPROVEN, is_unproven, refusal
from tests.machine.harness import Pair, Peer, confirm, fund, open_pair, seed_secrets, start_open


def test_a_channel_is_proven_by_its_funding_transaction() -> None:
    pair = open_pair()
    opener, fundee = pair.alice.state, pair.bob.state
    assert isinstance(opener, Normal)
    assert isinstance(fundee, Normal)
    assert opener.params.is_opener
    assert not is_unproven(opener)
    assert not is_unproven(fundee)
    unseen = replace(fundee, funding_depth=0, scid=None)
    assert is_unproven(unseen)
    assert not is_unproven(replace(unseen, funding_depth=1))
    assert not is_unproven(replace(opener, funding_depth=0, scid=None)), "we wanted it"
    trusted = replace(unseen, params=replace(unseen.params, minimum_depth_blocks=0))
    assert not is_unproven(trusted), "zero-conf is for peers that are trusted"


def test_a_proposal_alone_proves_nothing() -> None:
    pair = start_open(Peer("alice", seed_secrets("alice", 7)), Peer("bob", seed_secrets("bob", 7)))
    assert pair.alice.state is not None
    assert pair.bob.state is not None
    assert not is_unproven(pair.alice.state)
    assert is_unproven(pair.bob.state)
    fund(pair)
    assert isinstance(pair.bob.state, AwaitingFunding)
    assert is_unproven(pair.bob.state), "whatever funding_created names may never come"
    confirm(pair)
    assert not is_unproven(pair.bob.state)


def phantom() -> Pair:
    """The opener promised the fundee money, forgot the channel, and never published its funding transaction."""
    alice, bob = (Peer(name, seed_secrets(name, 7)) for name in ("alice", "bob"))
    pair = start_open(alice, bob, push_msat=300_000_000)
    fund(pair)
    pair.bob.step(ev.PeerMessage(ErrorMessage(pair.bob.funded.params.channel_id, b"unknown channel")))
    return pair


def test_phantoms_that_are_closing_count_until_they_are_forgotten() -> None:
    """What we were promised is at stake, so our commitment is published as soon as it can be. The funding transaction
    that never comes cost the opener nothing."""
    bob = phantom().bob
    assert isinstance(bob.state, Closing)
    assert is_unproven(bob.state)
    assert "unfinished" in refusal([bob.state] * MAX_OPENINGS_PER_PEER, [], has_stake=True)
    assert "try again later" in refusal([], [bob.state] * MAX_UNPROVEN, has_stake=False)
    bob.height += FORGET_UNFUNDED_AFTER_BLOCKS
    bob.step(ev.NewBlock())
    assert isinstance(bob.state, Closed)
    assert not is_unproven(bob.state)


def test_limits() -> None:
    proven = open_pair().bob.state
    assert isinstance(proven, Normal)
    unseen = replace(proven, funding_depth=0, scid=None)
    assert not refusal([], [], has_stake=False)
    assert not refusal([unseen] * (MAX_OPENINGS_PER_PEER - 1), [], has_stake=False)
    assert "unfinished" in refusal([unseen] * MAX_OPENINGS_PER_PEER, [], has_stake=True)
    assert not refusal([proven] * 50, [], has_stake=True)
    assert not refusal([], [unseen] * (MAX_UNPROVEN - 1) + [proven] * 500, has_stake=False)
    assert "try again later" in refusal([], [unseen] * MAX_UNPROVEN, has_stake=False)
    assert not refusal([], [unseen] * MAX_UNPROVEN, has_stake=True)
