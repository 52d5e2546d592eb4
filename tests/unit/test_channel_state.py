"""How a channel is stored, and that `step` is a function."""

from __future__ import annotations

import pytest

from channeld.channel import commitments as cm
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.state import Normal
from tests.machine.harness import Pair, add, open_pair, preimage_of


def busy() -> Pair:
    """HTLCs both ways, in all stages."""
    pair = open_pair(push_msat=400_000_000)
    for number in range(5):
        add(pair.alice, 10_000_000 + number, number)
        add(pair.bob, 20_000_000 + number, 10 + number)
    pair.settle()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    pair.bob.step(ev.FailHtlc(1, b"no"))
    pair.bob.sign()
    pair.deliver(pair.bob)
    pair.alice.step(ev.FailMalformedHtlc(2, bytes(32), 0x8001))
    pair.alice.step(ev.UpdateFee(777))
    pair.alice.sign()
    pair.deliver(pair.alice)
    add(pair.alice, 354_000, 20)
    return pair


def test_a_state_survives_storage() -> None:
    pair = busy()
    for peer in (pair.alice, pair.bob):
        assert peer.state is not None
        again = machine.decode_state(machine.encode_state(peer.state))
        assert again == peer.state
        assert machine.encode_state(again) == machine.encode_state(peer.state)


def test_previews_are_not_stored() -> None:
    pair = open_pair()
    before = len(pair.alice.committed)
    for number in range(10):
        add(pair.alice, 1_000_000, number)
    pair.settle()
    # once in each commitment, and its origin
    assert len(pair.alice.committed) - before < 10 * 300


def test_other_versions_and_garbage_are_refused() -> None:
    state = open_pair().alice.state
    assert state is not None
    data = machine.encode_state(state)
    for bad in (b"", b"\x02" + data[1:], data[:-5], b"\x01\xc0"):
        with pytest.raises(machine.UnreadableState):
            machine.decode_state(bad)


def test_a_step_is_a_function() -> None:
    pair = busy()
    assert pair.alice.state is not None
    event = ev.Disconnected()
    first = machine.step(pair.alice.state, event, pair.alice.env())
    second = machine.step(machine.decode_state(machine.encode_state(pair.alice.state)), event, pair.alice.env())
    assert first == second


def test_sums_kept_ready_equal_sums_from_scratch() -> None:
    pair = busy()
    for peer in (pair.alice, pair.bob):
        assert cm.with_previews(peer.commitments, peer.funded.params.commitment) == peer.commitments


def test_a_restart_hands_out_what_is_unanswered() -> None:
    pair = busy()
    pair.bob.crash()
    assert sorted(locked.htlc.id for locked in pair.bob.locked_in) == [2, 3, 4]
    pair.alice.crash()
    assert sorted(locked.htlc.id for locked in pair.alice.locked_in) == [0, 1, 3, 4]
    pair.connect()
    pair.settle()
    assert isinstance(pair.alice.state, Normal)
    assert pair.alice.commitments.local.txid == pair.bob.commitments.remote.txid
