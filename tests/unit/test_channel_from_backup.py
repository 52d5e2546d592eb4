"""A channel that was made from `channels.backup`: our commitment is that of the opening, and most likely revoked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from channeld.bolt.messages import ChannelReestablish, ErrorMessage, decode
from channeld.channel import events as ev
from channeld.channel import machine, reestablish
from channeld.channel.state import Closing, Normal, Offline, WaitingForRemoteClose
from tests.machine.harness import Pair, add, open_pair

Lie = Callable[[Pair, ChannelReestablish], ChannelReestablish]


def lost(payments: int) -> Pair:
    """Bob comes back from the file; so much was paid since it was written."""
    pair = open_pair(push_msat=400_000_000)
    saved = pair.bob.committed
    for number in range(payments):
        add(pair.alice, 1_000_000, number)
        pair.settle()
    pair.disconnect()
    state = machine.decode_state(saved)
    assert isinstance(state, Normal)
    pair.bob.committed = machine.encode_state(reestablish.from_backup(state))
    pair.bob.crash()
    pair.bob.step(ev.NewBlock())
    pair.bob.broadcast.clear()
    pair.alice.broadcast.clear()
    return pair


def in_step(pair: Pair, hello: ChannelReestablish) -> ChannelReestablish:
    """As if nothing had been paid."""
    return dataclasses.replace(
        hello, next_commitment_number=1, next_revocation_number=0, your_last_per_commitment_secret=bytes(32)
    )


def nothing(pair: Pair, hello: ChannelReestablish) -> ChannelReestablish:
    """As if the peer had lost all, too; LDK says so of a channel that it has closed."""
    return dataclasses.replace(in_step(pair, hello), next_commitment_number=0)


@pytest.mark.parametrize("lie", [in_step, nothing])
def test_no_lie_of_the_peers_has_the_commitment_published(lie: Lie) -> None:
    pair = lost(3)
    pair.connect()
    hello = decode(pair.alice.outbox[0])
    assert isinstance(hello, ChannelReestablish)
    pair.bob.step(ev.PeerMessage(lie(pair, hello)))
    pair.bob.step(ev.PeerMessage(ErrorMessage(pair.bob.funded.params.channel_id, b"close it")))
    with pytest.raises(ev.CommandRejected):
        pair.bob.step(ev.ForceClose("what the driver does"))
    pair.bob.height += 10_000
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, WaitingForRemoteClose)
    assert not pair.bob.broadcast


@pytest.mark.parametrize("payments", [0, 3])
def test_the_peer_closes_at_once_whatever_was_paid(payments: int) -> None:
    pair = lost(payments)
    pair.connect()
    hello = decode(pair.bob.outbox[0])
    assert isinstance(hello, ChannelReestablish)
    assert hello.next_commitment_number == 0
    pair.alice.step(ev.PeerMessage(hello))
    assert isinstance(pair.alice.state, Closing)
    (commitment,) = pair.alice.broadcast
    pair.bob.step(ev.FundingSpent(commitment, 800_001, 1))
    assert isinstance(pair.bob.state, Closing)
    assert not pair.bob.broadcast


def test_a_proof_that_the_state_is_outdated_is_kept() -> None:
    pair = lost(3)
    pair.connect()
    pair.deliver(pair.alice)
    assert isinstance(pair.bob.state, WaitingForRemoteClose)
    assert "proved" in pair.bob.state.reason
    with pytest.raises(ev.CommandRejected, match="outdated"):
        pair.bob.step(ev.ForceClose("closed by the operator", even_if_outdated=True))
    assert not pair.bob.broadcast


def test_the_operator_may_close_where_there_is_no_peer_any_more() -> None:
    pair = lost(0)
    assert pair.bob.funded.link == Offline()
    pair.bob.step(ev.ForceClose("closed by the operator", even_if_outdated=True))
    assert isinstance(pair.bob.state, Closing)
    assert len(pair.bob.broadcast) == 1
