"""Message retransmission (BOLT 2, "Message Retransmission"): every pair of numbers, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from channeld.bolt.features import Feature
from channeld.bolt.messages import (
    ChannelReestablish,
    CommitmentSigned,
    ErrorMessage,
    Message,
    RevokeAndAck,
    UpdateAddHtlc,
    WarningMessage,
    decode,
)
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import limits, machine, reestablish
from channeld.channel.reestablish import Impossible, InStep, LocalBehind, RemoteBehind
from channeld.channel.state import Closing, Live, NegotiatingLegacy, NegotiatingSimple, Syncing, WaitingForRemoteClose
from tests.machine.harness import FEATURES, Pair, Peer, add, open_pair, script_of


def used(payments: int = 3) -> Pair:
    """A channel with a few revoked commitments on both sides."""
    pair = open_pair(push_msat=400_000_000)
    for number in range(payments):
        add(pair.alice, 1_000_000, number)
        pair.settle()
    return pair


def greeting(peer: Peer) -> ChannelReestablish:
    """What `peer` would say now."""
    effects = machine.step(peer.funded, ev.Connected(peer.features), peer.env()).effects  # type: ignore[arg-type]
    (send,) = effects
    assert isinstance(send, fx.Send)
    assert isinstance(send.message, ChannelReestablish)
    return send.message


def answer_to(peer: Peer, message: ChannelReestablish, **changes: Any) -> reestablish.Answer:
    return reestablish.compare(peer.commitments, dataclasses.replace(message, **changes), peer.signer)


def replies(peer: Peer, message: Message) -> list[type]:
    """Kinds of messages that `peer` sends in answer."""
    peer.outbox.clear()
    peer.step(ev.PeerMessage(message))
    return [type(reply) for reply in peer.sent()]


def test_the_numbers_of_a_fresh_channel() -> None:
    message = greeting(open_pair().alice)
    assert (message.next_commitment_number, message.next_revocation_number) == (1, 0)
    assert message.your_last_per_commitment_secret == bytes(32)


def test_the_numbers_later() -> None:
    pair = used()
    message = greeting(pair.alice)
    c = pair.alice.commitments
    assert (message.next_commitment_number, message.next_revocation_number) == (c.local.index + 1, c.remote.index)
    assert message.your_last_per_commitment_secret == pair.bob.signer.per_commitment_secret(c.remote.index - 1)


def test_in_step_at_rest() -> None:
    pair = used()
    assert answer_to(pair.bob, greeting(pair.alice)) == InStep(())


def test_before_reestablish_nothing_else_is_allowed() -> None:
    pair = used()
    pair.disconnect()
    pair.connect()
    add_message = UpdateAddHtlc(pair.bob.funded.params.channel_id, 3, 1, bytes(32), 1, bytes(1366))
    with pytest.raises(ev.ProtocolViolation, match="before channel_reestablish") as violation:
        pair.bob.step(ev.PeerMessage(add_message))
    assert violation.value.action == "warning"
    assert isinstance(pair.bob.funded.link, Syncing)
    pair.settle()
    assert isinstance(pair.bob.funded.link, Live)
    with pytest.raises(ev.ProtocolViolation, match="middle of a connection"):
        pair.bob.step(ev.PeerMessage(greeting(pair.alice)))


def test_offline_nothing_is_heard() -> None:
    pair = used()
    pair.disconnect()
    before = pair.bob.state
    assert pair.bob.step(ev.PeerMessage(greeting(pair.alice))) == []
    assert pair.bob.state is before


def test_a_second_connection_replaces_the_first() -> None:
    pair = used()
    add(pair.alice, 2_000_000, 9)
    pair.alice.outbox.clear()
    pair.bob.step(ev.Disconnected())
    pair.connect()  # Alice never noticed that the first one was gone
    assert [failed.never_sent for failed in pair.alice.logged(fx.HtlcFailed)] == [True]
    pair.settle()
    assert isinstance(pair.alice.funded.link, Live)


# --- retransmission -----------------------------------------------------------------------------------------------


def test_a_lost_signature_goes_out_again_with_its_updates() -> None:
    pair = used()
    add(pair.alice, 2_000_000, 9)
    pair.alice.sign()
    pair.disconnect()
    pair.connect()
    hello = decode(pair.bob.outbox[0])
    assert replies(pair.alice, hello) == [UpdateAddHtlc, CommitmentSigned]
    pair.bob.outbox.clear()


def test_a_lost_revocation_goes_out_again() -> None:
    pair = used()
    add(pair.alice, 2_000_000, 9)
    pair.alice.sign()
    pair.deliver(pair.alice)
    pair.deliver(pair.alice)  # Bob revokes; it is lost
    revoked = pair.bob.sent()[0]
    pair.disconnect()
    pair.connect()
    hello = decode(pair.alice.outbox[0])
    pair.bob.outbox.clear()
    pair.bob.step(ev.PeerMessage(hello))
    assert pair.bob.sent() == [revoked]


def test_both_lost_revocation_first() -> None:
    pair = used()
    add(pair.alice, 2_000_000, 9)
    pair.alice.sign()
    pair.deliver(pair.alice)
    pair.deliver(pair.alice)  # Bob revokes,
    pair.bob.sign()  # then signs
    assert [type(message) for message in pair.bob.sent()] == [RevokeAndAck, CommitmentSigned]
    pair.disconnect()
    pair.connect()
    assert replies(pair.bob, decode(pair.alice.outbox[0])) == [RevokeAndAck, CommitmentSigned]


def test_both_lost_signature_first() -> None:
    pair = used()
    add(pair.bob, 2_000_000, 8)
    add(pair.alice, 2_000_000, 9)
    pair.alice.sign()
    pair.bob.sign()  # Bob signs,
    pair.deliver(pair.alice)
    pair.deliver(pair.alice)  # then revokes
    assert [type(m) for m in pair.bob.sent()] == [UpdateAddHtlc, CommitmentSigned, RevokeAndAck]
    pair.disconnect()
    pair.connect()
    assert replies(pair.bob, decode(pair.alice.outbox[0])) == [UpdateAddHtlc, CommitmentSigned, RevokeAndAck]
    pair.disconnect()
    pair.connect()
    pair.settle()
    assert len(pair.alice.locked_in) == 1


def test_an_htlc_that_crossed_ours_is_no_fault_when_it_is_said_again() -> None:
    """Alice, who pays the fee, offered all she could before she knew of Bob's HTLCs, and signed after them."""
    pair = open_pair(push_msat=500_000_000)
    alice, bob = pair.alice, pair.bob
    for number in range(1, 31):
        add(bob, 2_000_000, number)
    bob.sign()
    most_msat = limits.available_to_send_msat(alice.commitments, alice.funded.params, alice.policy)
    add(alice, most_msat)
    pair.deliver_all(bob)
    alice.sign()
    assert [type(message) for message in alice.sent()] == [UpdateAddHtlc, RevokeAndAck, CommitmentSigned]
    pair.disconnect()
    pair.connect()
    pair.settle()
    assert [locked_in.htlc.amount_msat for locked_in in bob.locked_in] == [most_msat]
    assert len(alice.locked_in) == 30


# --- disagreement -------------------------------------------------------------------------------------------------


def test_the_table_of_answers() -> None:
    pair = used()
    bob, hello = pair.bob, greeting(pair.alice)
    signed, revoked = hello.next_commitment_number, hello.next_revocation_number

    def secret(number: int) -> bytes:
        return bob.signer.per_commitment_secret(number - 1) if number else bytes(32)

    for number in range(revoked + 3):
        answer = answer_to(bob, hello, next_revocation_number=number, your_last_per_commitment_secret=secret(number))
        if number > revoked:
            assert isinstance(answer, LocalBehind)
        elif number == revoked:
            assert answer == InStep(())
        elif number == revoked - 1:
            assert answer == InStep(("revocation",))
        else:
            assert isinstance(answer, RemoteBehind)
        lie = answer_to(bob, hello, next_revocation_number=number, your_last_per_commitment_secret=b"\x07" * 32)
        assert isinstance(lie, Impossible)
    for number in range(1, signed + 3):
        answer = answer_to(bob, hello, next_commitment_number=number)
        if number > signed:
            assert isinstance(answer, Impossible)
        elif number == signed:
            assert answer == InStep(())
        else:
            assert isinstance(answer, RemoteBehind)


@pytest.mark.parametrize("claimed", [(1 << 47) + 1, (1 << 48) - 1, 1 << 48, (1 << 64) - 1])
@pytest.mark.parametrize("secret", [bytes(32), b"\x07" * 32], ids=["zeros", "another"])
def test_a_number_without_a_secret_of_its_own_proves_nothing(claimed: int, secret: bytes) -> None:
    """Else any peer could have us believe that our state is outdated, and our commitment would never be published."""
    pair = used()
    numbers = {"next_revocation_number": claimed, "your_last_per_commitment_secret": secret}
    assert isinstance(answer_to(pair.bob, greeting(pair.alice), **numbers), Impossible)


def synced(pair: Pair) -> None:
    pair.disconnect()
    pair.bob.step(ev.Connected(pair.alice.features))


def test_zero_fails_the_channel() -> None:
    pair = used()
    hello = dataclasses.replace(greeting(pair.alice), next_commitment_number=0)
    synced(pair)
    pair.bob.step(ev.PeerMessage(hello))
    assert isinstance(pair.bob.state, Closing)
    assert pair.bob.state.local_tx
    assert isinstance(pair.bob.sent()[-1], ErrorMessage)


@pytest.mark.parametrize("features", [FEATURES, FEATURES - {Feature.option_simple_close | 1}])
def test_zero_after_a_close_that_was_agreed_on_leaves_it_at_that(features: frozenset[int]) -> None:
    """LDK forgets a channel as soon as it has the closing transaction, and says so with zeros."""
    pair = open_pair(features=features, push_msat=300_000_000)
    hello = dataclasses.replace(greeting(pair.alice), next_commitment_number=0)
    for peer in (pair.alice, pair.bob):
        peer.step(ev.CloseChannel(script_of(peer.name), 1000))
        pair.deliver(peer)
    pair.settle()
    before = pair.bob.logged(fx.Broadcast)[-1]
    assert before.label == "mutual close"
    synced(pair)
    pair.bob.step(ev.PeerMessage(hello))
    assert isinstance(pair.bob.state, NegotiatingLegacy | NegotiatingSimple)
    assert pair.bob.logged(fx.Broadcast)[-1] == before


@pytest.mark.bolt5("fail.outdated")
def test_who_lost_state_never_broadcasts() -> None:
    """Data loss protection: Bob is restored from an old copy, Alice's greeting proves it."""
    pair = used()
    old = pair.bob.committed
    for number in range(5, 8):
        add(pair.alice, 1_000_000, number)
        pair.settle()
    pair.disconnect()
    pair.bob.committed = old
    pair.bob.crash()
    pair.bob.log.clear()
    pair.bob.broadcast.clear()
    pair.connect()
    pair.deliver(pair.alice)
    assert isinstance(pair.bob.state, WaitingForRemoteClose)
    assert isinstance(pair.bob.sent()[-1], ErrorMessage)
    with pytest.raises(ev.CommandRejected, match="outdated"):
        pair.bob.step(ev.ForceClose("I want my money"))
    for event in (ev.NewBlock(), ev.Disconnected(), ev.Connected(pair.alice.features)):
        pair.bob.height += 10_000
        pair.bob.step(event)
    pair.bob.step(ev.PeerMessage(ErrorMessage(pair.bob.funded.params.channel_id, b"no")))
    pair.bob.crash()
    assert isinstance(pair.bob.state, WaitingForRemoteClose)
    assert not pair.bob.broadcast
    # On each connection it says again what makes the other side close: where it stands, and the error.
    pair.bob.step(ev.Connected(pair.alice.features))
    again = pair.bob.sent()
    assert [type(message) for message in again] == [ChannelReestablish, ErrorMessage]
    assert again[0] == greeting_of_old(pair, old)
    # Alice sees Bob's old numbers: it waits for Bob's error, which makes it close.
    pair.alice.step(ev.PeerMessage(greeting_of_old(pair, old)))
    assert isinstance(pair.alice.sent()[-1], WarningMessage)
    pair.alice.step(ev.PeerMessage(ErrorMessage(pair.alice.funded.params.channel_id, b"we lost state")))
    assert isinstance(pair.alice.state, Closing)
    assert len(pair.alice.broadcast) == 2  # the funding transaction, and now the commitment
    pair.bob.step(ev.FundingSpent(pair.alice.broadcast[-1], 800_001, 1))
    assert isinstance(pair.bob.state, Closing)
    assert pair.bob.state.kind == "unknown"  # Bob cannot know this commitment, but its output is its own
    assert pair.bob.logged(fx.RemoteUnilateralClose)


def greeting_of_old(pair: Pair, old: bytes) -> ChannelReestablish:
    state = machine.decode_state(old)
    (send,) = machine.step(state, ev.Connected(pair.alice.features), pair.bob.env()).effects
    assert isinstance(send, fx.Send)
    assert isinstance(send.message, ChannelReestablish)
    return send.message


def test_who_lies_is_failed() -> None:
    pair = used()
    hello = dataclasses.replace(greeting(pair.alice), next_revocation_number=99)
    synced(pair)
    with pytest.raises(ev.ProtocolViolation, match="without the secret") as violation:
        pair.bob.step(ev.PeerMessage(hello))
    assert violation.value.action == "error"
    pair.bob.step(ev.ForceClose(violation.value.reason))  # what the driver does
    assert isinstance(pair.bob.state, Closing)


def test_a_failed_channel_repeats_its_error() -> None:
    # BOLT 2, "if a channel is in an error state: SHOULD retransmit the error packet and ignore any other packets"
    pair = used()
    hello = greeting(pair.alice)
    pair.bob.step(ev.ForceClose("enough"))
    pair.disconnect()
    pair.bob.step(ev.Connected(pair.alice.features))
    (message,) = pair.bob.sent()
    assert message == ErrorMessage(pair.bob.funded.params.channel_id, b"enough")
    pair.bob.outbox.clear()
    assert replies(pair.bob, hello) == [ErrorMessage]
