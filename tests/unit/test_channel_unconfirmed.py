"""A state that may be from an old copy of the database is not published before the peer was compared with, unless
waiting any longer would cost more (BOLT 2, "A fallen-behind node must know it cannot broadcast")."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec import structs

from channeld.bolt.messages import ChannelReestablish, ErrorMessage, decode
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import unconfirmed
from channeld.channel.state import AwaitingFunding, Closed, Closing, Normal, WaitingForRemoteClose
from tests.machine import harness
from tests.machine.harness import HEIGHT, Pair, Peer, add, open_pair, preimage_of, seed_secrets

ERROR = b"internal error"


def restarted(payments: int = 3) -> Pair:
    """Bob was started again and is at the tip, the peer is not there yet. Payment 0 of Bob's is under way."""
    pair = open_pair(push_msat=400_000_000)
    add(pair.bob, 50_000_000, 0)
    for number in range(1, payments):
        add(pair.alice, 1_000_000, number)
        pair.settle()
    pair.disconnect()
    start_again(pair.bob)
    return pair


def start_again(peer: Peer) -> None:
    peer.crash()
    peer.broadcast.clear()
    peer.log.clear()
    peer.step(ev.NewBlock())


def old_copy(pair: Pair) -> None:
    """Bob is started from an old copy: the channel went on without it."""
    pair.connect()
    pair.settle()
    copy = pair.bob.committed
    for number in range(5, 8):
        add(pair.alice, 1_000_000, number)
        pair.settle()
    pair.disconnect()
    pair.bob.committed = copy
    start_again(pair.bob)


def fails(peer: Peer) -> None:
    """What a peer says that gave the channel up."""
    peer.step(ev.PeerMessage(ErrorMessage(peer.funded.params.channel_id, ERROR)))


def blocks(peer: Peer, count: int, seconds_each: int = 600) -> None:
    for _ in range(count):
        peer.height += 1
        peer.time_seconds += seconds_each
        peer.step(ev.NewBlock())


def overdue(peer: Peer) -> None:
    """The next block makes the offered HTLC overdue."""
    peer.height = HEIGHT + 100 + peer.policy.timeout_grace_blocks - 1


# --- a peer's error -----------------------------------------------------------------------------------------------


def test_an_error_before_states_were_compared_publishes_nothing() -> None:
    pair = restarted()
    old_copy(pair)
    pair.connect()
    fails(pair.bob)
    assert isinstance(pair.bob.state, Normal)
    assert not pair.bob.broadcast
    (told,) = pair.bob.logged(fx.StateUnconfirmed)
    assert "internal error" in told.reason
    pair.deliver(pair.alice)  # its channel_reestablish: we lost state
    assert isinstance(pair.bob.state, WaitingForRemoteClose)
    assert not pair.bob.broadcast


def test_an_error_fails_the_channel_as_soon_as_states_were_compared() -> None:
    pair = restarted()
    pair.connect()
    fails(pair.bob)
    assert not pair.bob.broadcast
    pair.deliver(pair.alice)
    assert isinstance(pair.bob.state, Closing)
    assert "internal error" in pair.bob.state.reason
    assert pair.bob.broadcast


def test_an_error_is_remembered_over_connections_and_counts_in_the_end() -> None:
    pair = restarted()
    pair.connect()
    fails(pair.bob)
    pair.disconnect()
    blocks(pair.bob, pair.bob.policy.unconfirmed_failure_blocks - 1)
    assert isinstance(pair.bob.state, Normal)
    blocks(pair.bob, 1)
    assert isinstance(pair.bob.state, Closing)
    assert pair.bob.broadcast


def test_an_error_is_remembered_over_restarts() -> None:
    pair = restarted()
    pair.connect()
    fails(pair.bob)
    pair.disconnect()
    start_again(pair.bob)
    assert "internal error" in unconfirmed.sentence(pair.bob.funded)
    blocks(pair.bob, pair.bob.policy.unconfirmed_failure_blocks - 1)
    assert isinstance(pair.bob.state, Normal)
    start_again(pair.bob)  # it may be another copy of the database: the wait begins again
    pair.connect()
    pair.deliver(pair.alice)
    assert isinstance(pair.bob.state, Closing)
    assert "internal error" in pair.bob.state.reason


def test_a_peer_that_is_behind_itself_confirms_ours() -> None:
    pair = restarted(5)
    pair.connect()
    fails(pair.bob)
    hello = next(m for m in pair.alice.sent() if isinstance(m, ChannelReestablish))
    behind = dataclasses.replace(hello, next_commitment_number=hello.next_commitment_number - 1)
    pair.bob.step(ev.PeerMessage(behind))
    assert isinstance(pair.bob.state, Closing)


def test_once_compared_an_error_counts_at_once() -> None:
    pair = restarted()
    pair.connect()
    pair.settle()
    assert pair.bob.funded.unconfirmed is None
    pair.disconnect()
    pair.connect()
    fails(pair.bob)
    assert isinstance(pair.bob.state, Closing)


def test_who_claims_more_than_it_can_prove_does_not_get_our_state() -> None:
    # BOLT 2, "if `your_last_per_commitment_secret` does not match the expected values: SHOULD send an `error` and fail
    # the channel": the error makes an honest peer publish its own
    pair = restarted()
    pair.connect()
    hello = decode(pair.alice.outbox[0])
    assert isinstance(hello, ChannelReestablish)
    pair.bob.outbox.clear()
    with pytest.raises(ev.ProtocolViolation) as violation:
        pair.bob.step(ev.PeerMessage(dataclasses.replace(hello, next_revocation_number=99)))
    pair.bob.step(ev.ForceClose(violation.value.reason))  # what the driver does
    assert isinstance(pair.bob.state, Normal)
    assert [type(message) for message in pair.bob.sent()] == [ErrorMessage]
    assert not pair.bob.broadcast
    pair.disconnect()
    pair.connect()
    pair.settle()
    assert isinstance(pair.bob.state, Closing)  # it was failed, and now it is safe


def test_a_peer_that_knows_nothing_any_more_gets_the_commitment() -> None:
    # BOLT 2, "if `next_commitment_number` is zero: MUST immediately fail the channel and broadcast"
    pair = restarted()
    pair.connect()
    hello = decode(pair.alice.outbox[0])
    assert isinstance(hello, ChannelReestablish)
    nothing = dataclasses.replace(
        hello, next_commitment_number=0, next_revocation_number=0, your_last_per_commitment_secret=bytes(32)
    )
    pair.bob.step(ev.PeerMessage(nothing))
    assert isinstance(pair.bob.state, Closing)
    assert pair.bob.broadcast


@pytest.mark.parametrize("closes", ["nothing is known", "error", "deadline"])
def test_a_database_that_is_a_copy_waits_for_ever(closes: str) -> None:
    """LDK knows nothing of a channel that it has closed by force, and punishes all the same."""
    pair = restarted()
    pair.bob.policy = structs.replace(pair.bob.policy, database_is_copy=True)
    pair.connect()
    hello = decode(pair.alice.outbox[0])
    assert isinstance(hello, ChannelReestablish)
    if closes == "nothing is known":
        nothing = dataclasses.replace(
            hello, next_commitment_number=0, next_revocation_number=0, your_last_per_commitment_secret=bytes(32)
        )
        pair.bob.step(ev.PeerMessage(nothing))
    elif closes == "error":
        fails(pair.bob)
    else:
        overdue(pair.bob)
    blocks(pair.bob, 500)
    assert isinstance(pair.bob.state, Normal)
    assert len(pair.bob.logged(fx.StateUnconfirmed)) == 1
    assert not pair.bob.broadcast
    pair.disconnect()
    pair.connect()
    pair.settle()
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Closing), "now the peer was compared with"


def test_zero_with_proof_that_we_are_behind_does_not() -> None:
    pair = restarted()
    old_copy(pair)
    pair.connect()
    hello = decode(pair.alice.outbox[0])
    assert isinstance(hello, ChannelReestablish)
    pair.bob.step(ev.PeerMessage(dataclasses.replace(hello, next_commitment_number=0)))
    assert isinstance(pair.bob.state, WaitingForRemoteClose)
    assert not pair.bob.broadcast


# --- deadlines ----------------------------------------------------------------------------------------------------


def test_deadlines_of_an_old_copy_publish_nothing_while_the_peer_may_come() -> None:
    pair = restarted()
    old_copy(pair)
    overdue(pair.bob)
    start_again(pair.bob)
    blocks(pair.bob, 5)
    assert isinstance(pair.bob.state, Normal)
    assert not pair.bob.broadcast
    (told,) = pair.bob.logged(fx.StateUnconfirmed)  # once, not at each block
    assert "expired" in told.reason
    pair.connect()
    pair.deliver(pair.alice)
    assert isinstance(pair.bob.state, WaitingForRemoteClose)


def test_deadlines_count_as_soon_as_states_were_compared() -> None:
    pair = restarted()
    overdue(pair.bob)
    start_again(pair.bob)
    blocks(pair.bob, 1)
    assert isinstance(pair.bob.state, Normal)
    pair.connect()
    pair.settle()
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Closing)


def test_a_peer_that_never_comes_back_does_not_cost_the_htlc() -> None:
    """In time: the rest of `cltv_expiry_delta` has to do for what is left of closing."""
    pair = restarted()
    policy = pair.bob.policy
    assert policy.unconfirmed_deadline_blocks < policy.fulfill_deadline_blocks - 6
    blocks(pair.bob, policy.unconfirmed_deadline_blocks)
    overdue(pair.bob)
    blocks(pair.bob, 1)
    assert isinstance(pair.bob.state, Closing)  # it had waited long enough before


def test_a_deadline_waits_for_blocks_and_for_time() -> None:
    """Blocks that layer 1 itself was behind with come all at once: they leave the peer no time to be called."""
    pair = restarted()
    overdue(pair.bob)
    start_again(pair.bob)
    blocks(pair.bob, 50, seconds_each=1)
    assert isinstance(pair.bob.state, Normal)
    pair.bob.time_seconds += pair.bob.policy.unconfirmed_deadline_seconds
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Closing)


def test_a_clock_that_is_put_back_does_not_hold_up_a_deadline() -> None:
    pair = restarted()
    overdue(pair.bob)
    start_again(pair.bob)
    pair.bob.time_seconds -= 86_400
    blocks(pair.bob, pair.bob.policy.unconfirmed_deadline_blocks - 1, seconds_each=1)
    assert isinstance(pair.bob.state, Normal)
    blocks(pair.bob, 1, seconds_each=1)
    assert isinstance(pair.bob.state, Closing)


def test_the_wait_begins_when_the_chain_was_caught_up_with() -> None:
    pair = restarted()
    pair.bob.height = HEIGHT + 5_000  # off for weeks
    pair.bob.time_seconds += 600 * 5_000
    start_again(pair.bob)
    assert isinstance(pair.bob.state, Normal)
    blocks(pair.bob, pair.bob.policy.unconfirmed_deadline_blocks - 1)
    assert isinstance(pair.bob.state, Normal)
    blocks(pair.bob, 1)
    assert isinstance(pair.bob.state, Closing)


def test_a_fulfilled_htlc_is_brought_home_in_time() -> None:
    pair = open_pair(push_msat=400_000_000)
    add(pair.alice, 50_000_000, 0)
    pair.settle()
    pair.disconnect()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    start_again(pair.bob)
    pair.bob.height = HEIGHT + 100 - pair.bob.policy.fulfill_deadline_blocks
    start_again(pair.bob)
    assert isinstance(pair.bob.state, Normal)
    blocks(pair.bob, pair.bob.policy.unconfirmed_deadline_blocks)
    assert isinstance(pair.bob.state, Closing)


# --- the operator, and what is safe anyway ------------------------------------------------------------------------


def test_the_operator_decides() -> None:
    pair = restarted()
    assert unconfirmed.is_doubtful(pair.bob.funded)
    pair.bob.step(ev.ForceClose("closed by the operator", even_if_outdated=True))
    assert isinstance(pair.bob.state, Closing)


def test_a_channel_without_a_restart_is_never_doubtful() -> None:
    pair = open_pair()
    assert not unconfirmed.is_doubtful(pair.bob.funded)
    fails(pair.bob)
    assert isinstance(pair.bob.state, Closing)


def test_an_opening_that_came_to_nothing_is_forgotten_on_error() -> None:
    """The opener crashed before it knew of the channel: nothing is in the chain, so nothing can be outdated."""
    pair = harness.start_open(Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")))
    harness.fund(pair)
    start_again(pair.bob)
    fails(pair.bob)
    assert isinstance(pair.bob.state, Closed)


def test_a_channel_whose_funding_is_in_the_chain_is_not_forgotten_on_error() -> None:
    """The copy may be from the opening, and the channel may have got money since."""
    pair = harness.start_open(Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")))
    harness.fund(pair)
    pair.bob.crash()
    pair.bob.step(ev.FundingDepth(2, HEIGHT, 7, pair.bob.funded.params.capacity_sat))
    pair.bob.step(ev.NewBlock())
    fails(pair.bob)
    assert not isinstance(pair.bob.state, Closed)


@pytest.mark.parametrize("said", ["error", "zero"])
def test_what_an_old_copy_knows_nothing_of_is_not_forgotten_ever(said: str) -> None:
    """Bob's copy is from the opening, and most of the channel is his by now: Alice's commitment pays him. Nothing is
    lost by waiting for it, and all by not looking any more."""
    pair = harness.start_open(Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")))
    harness.fund(pair)
    alice, bob = pair.alice, pair.bob
    copy = bob.committed
    harness.confirm(pair)
    add(alice, 700_000_000)
    pair.settle()
    bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    pair.settle()
    pair.disconnect()
    bob.committed = copy
    bob.crash()
    bob.step(ev.FundingDepth(6, HEIGHT, 7, bob.funded.params.capacity_sat))
    bob.step(ev.NewBlock())
    if said == "error":
        fails(bob)
    else:
        bob.step(ev.Connected(alice.features))
        channel_id, point = bob.funded.params.channel_id, alice.signer.per_commitment_point(0)
        bob.step(ev.PeerMessage(ChannelReestablish(channel_id, 0, 0, bytes(32), point)))
        bob.step(ev.Disconnected())
    blocks(bob, 2 * bob.policy.unconfirmed_failure_blocks)
    assert isinstance(bob.state, AwaitingFunding)
    assert "not compared with the peer" in unconfirmed.sentence(bob.funded)
    alice.step(ev.ForceClose("test"))
    bob.step(ev.FundingSpent(alice.broadcast[-1], bob.height, 1))
    assert isinstance(bob.state, Closing)
    assert (bob.state.kind, bob.state.standing) == ("unknown", "outdated")


def test_an_opening_is_forgotten_once_states_were_compared() -> None:
    pair = harness.start_open(Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")))
    harness.fund(pair)
    pair.disconnect()
    pair.bob.crash()
    pair.bob.step(ev.FundingDepth(2, HEIGHT, 7, pair.bob.funded.params.capacity_sat))
    pair.bob.step(ev.NewBlock())
    pair.connect()
    fails(pair.bob)
    assert isinstance(pair.bob.state, AwaitingFunding)
    pair.deliver(pair.alice)
    assert isinstance(pair.bob.state, Closed)


def test_an_error_before_the_chain_was_caught_up_with_waits_for_that() -> None:
    pair = harness.start_open(Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")))
    harness.fund(pair)
    pair.bob.crash()
    fails(pair.bob)
    assert not isinstance(pair.bob.state, Closed)
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Closed)
