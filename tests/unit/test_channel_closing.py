"""Closing together (BOLT 2, "Channel Close"): shutdown, closing_signed, and what follows on chain."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from channeld.bolt.features import Feature
from channeld.bolt.messages import (
    ClosingComplete,
    ClosingSigned,
    CommitmentSigned,
    ErrorMessage,
    FeeRange,
    Shutdown,
    UpdateAddHtlc,
    UpdateFee,
    decode,
    encode,
)
from channeld.bolt.transactions.closing import ClosingBalances, simple_closing_tx
from channeld.channel import close_legacy, reestablish
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import (
    Closed,
    Closing,
    NegotiatingLegacy,
    NegotiatingSimple,
    Normal,
    ShuttingDown,
    phase_name,
)
from tests.machine import harness
from tests.machine.harness import FEATURES, HEIGHT, Pair, Peer, add, open_pair, preimage_of, script_of
from tests.unit.closing_support import OP_RETURN, P2TR, close, closed_by, paid, shut, simple
from wallet.bitcoin import Tx

LEGACY = FEATURES - {Feature.option_simple_close | 1}


# --- shutdown -----------------------------------------------------------------------------------------------------


def test_shutdown_asks_for_our_script_and_answers() -> None:
    pair = open_pair()
    close(pair.alice)
    pair.deliver(pair.alice)
    assert isinstance(pair.bob.state, ShuttingDown)
    assert pair.bob.logged(fx.NeedShutdownScript) == [fx.NeedShutdownScript(any_segwit=True)]
    assert not pair.bob.outbox
    close(pair.bob, P2TR)
    assert Shutdown(pair.bob.funded.params.channel_id, P2TR) in pair.bob.sent()


def test_a_script_of_the_nodes_own_that_comes_late_changes_nothing() -> None:
    """Bob's node was asked for a script, and the operator, who has wishes, was quicker."""
    pair = open_pair(push_msat=300_000_000)
    add(pair.bob, 2_000_000)  # not signed for: Bob's shutdown has to wait
    close(pair.alice)
    pair.deliver(pair.alice)
    close(pair.bob, P2TR, feerate_per_kw=5000)
    for _ in range(2):
        close(pair.bob, script_of("bob"), feerate_per_kw=0)
        assert isinstance(pair.bob.state, ShuttingDown)
        assert (pair.bob.state.local_script, pair.bob.state.closing_feerate_per_kw) == (P2TR, 5000)
        pair.bob.sign()
        assert pair.bob.state.local_sent
    pair.settle()
    pair.alice.step(ev.FailHtlc(0, bytes(292)))
    pair.settle()
    assert P2TR in {output.script_pubkey for output in closed_by(pair.bob).outputs}
    before = pair.bob.state
    assert isinstance(before, NegotiatingSimple)
    close(pair.bob, script_of("bob"), feerate_per_kw=0)
    assert pair.bob.state == before


def test_the_upfront_script_answers_by_itself_and_is_enforced() -> None:
    pair = open_pair(upfront_shutdown_script=script_of("cold"))
    with pytest.raises(ev.CommandRejected, match="fixed when it opened"):
        close(pair.alice, script_of("hot"))
    with pytest.raises(ev.ProtocolViolation, match="upfront_shutdown_script") as violation:
        pair.bob.step(ev.PeerMessage(Shutdown(pair.bob.funded.params.channel_id, script_of("hot"))))
    assert violation.value.action == "warning"
    close(pair.bob)
    pair.deliver(pair.bob)
    assert Shutdown(pair.alice.funded.params.channel_id, script_of("cold")) in pair.alice.sent()


@pytest.mark.parametrize("script", [b"", b"\x51", b"\x6a\x05hello", b"\x00\x15" + bytes(21)])
def test_scripts_that_nobody_can_be_paid_to(script: bytes) -> None:
    pair = open_pair()
    with pytest.raises(ev.CommandRejected):
        close(pair.alice, script)
    with pytest.raises(ev.ProtocolViolation) as violation:
        pair.bob.step(ev.PeerMessage(Shutdown(pair.bob.funded.params.channel_id, script)))
    assert violation.value.action == "warning"


def test_newer_scripts_need_their_feature() -> None:
    plain = LEGACY - {Feature.option_shutdown_anysegwit | 1}
    pair = open_pair(features=plain)
    with pytest.raises(ev.CommandRejected):
        close(pair.alice, P2TR)
    with pytest.raises(ev.CommandRejected):
        close(open_pair(features=LEGACY).alice, OP_RETURN)
    close(open_pair(features=LEGACY).alice, P2TR)
    close(open_pair().alice, OP_RETURN)
    # BOLT 2: "old nodes may send non-segwit scripts, which may be accepted"
    pair.bob.step(ev.PeerMessage(Shutdown(pair.bob.funded.params.channel_id, b"\xa9\x14" + bytes(20) + b"\x87")))
    assert isinstance(pair.bob.state, ShuttingDown)


def test_no_htlc_after_shutdown() -> None:
    pair = open_pair(push_msat=100_000_000)
    close(pair.alice)
    with pytest.raises(ev.CommandRejected) as rejection:
        add(pair.alice, 1_000_000)
    assert rejection.value.code == "shutting_down"
    pair.deliver(pair.alice)
    message = UpdateAddHtlc(pair.bob.funded.params.channel_id, 0, 1_000_000, bytes(32), HEIGHT + 9, bytes(1366))
    with pytest.raises(ev.ProtocolViolation, match="after shutdown"):
        pair.bob.step(ev.PeerMessage(message))
    with pytest.raises(ev.CommandRejected):
        add(pair.bob, 1_000_000)


def test_shutdown_waits_until_our_updates_are_signed_for() -> None:
    # BOLT 2, "if there are updates pending on the receiving node's commitment transaction: MUST NOT send a `shutdown`."
    pair = open_pair()
    add(pair.alice, 5_000_000)
    close(pair.alice)
    assert [type(message) for message in pair.alice.sent()] == [UpdateAddHtlc]
    pair.alice.sign()
    assert [type(message) for message in pair.alice.sent()] == [UpdateAddHtlc, CommitmentSigned, Shutdown]


def test_a_shutdown_over_unsigned_htlcs_is_refused() -> None:
    pair = open_pair()
    add(pair.alice, 5_000_000)
    pair.deliver(pair.alice)
    with pytest.raises(ev.ProtocolViolation, match="not signed for"):
        pair.bob.step(ev.PeerMessage(Shutdown(pair.bob.funded.params.channel_id, script_of("alice"))))


def test_htlcs_that_came_after_our_shutdown_are_failed() -> None:
    # BOLT 2, "SHOULD fail to route any HTLC added after it has sent `shutdown`."
    pair = open_pair(push_msat=500_000_000)
    add(pair.bob, 1_000_000, 0)
    pair.deliver(pair.bob)
    close(pair.alice)
    add(pair.bob, 1_000_000, 1)
    add(pair.bob, 1_000_000, 2)
    pair.bob.sign()
    pair.settle()
    locked = pair.alice.locked_in
    assert [(each.htlc.id, each.must_fail) for each in locked] == [(0, False), (1, True), (2, True)]
    pair.alice.crash()
    assert pair.alice.locked_in == locked


def test_htlcs_are_resolved_first() -> None:
    pair = open_pair()
    add(pair.alice, 50_000_000)
    pair.settle()
    shut(pair)
    pair.settle()
    assert isinstance(pair.alice.state, ShuttingDown)
    pair.alice.step(ev.UpdateFee(500))
    pair.settle()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    pair.settle()
    assert isinstance(pair.alice.state, NegotiatingSimple)
    assert paid(closed_by(pair.bob), "bob") > 49_000


def test_close_before_the_funding_is_confirmed() -> None:
    pair = harness.start_open(Peer("alice", harness.seed_secrets("alice")), Peer("bob", harness.seed_secrets("bob")))
    harness.fund(pair)
    shut(pair)
    pair.settle()
    assert isinstance(pair.alice.state, NegotiatingSimple)
    assert closed_by(pair.alice)


def test_close_while_the_peer_is_away() -> None:
    pair = open_pair()
    pair.disconnect()
    close(pair.alice)
    assert isinstance(pair.alice.state, ShuttingDown)
    assert not pair.alice.outbox
    pair.alice.crash()
    pair.connect()
    pair.settle()
    assert isinstance(pair.bob.state, ShuttingDown)
    close(pair.bob)
    pair.settle()
    assert isinstance(pair.bob.state, NegotiatingSimple)


def test_a_script_that_the_peer_turns_out_not_to_take() -> None:
    pair = open_pair()
    pair.disconnect()
    close(pair.alice, P2TR)
    pair.bob.features = LEGACY - {Feature.option_shutdown_anysegwit | 1}
    pair.connect()
    pair.settle()
    assert pair.alice.logged(fx.NeedShutdownScript) == [fx.NeedShutdownScript(any_segwit=False)]
    close(pair.alice)
    pair.settle()
    assert isinstance(pair.bob.state, ShuttingDown)


# --- closing_signed -----------------------------------------------------------------------------------------------


def legacy(push_msat: int = 300_000_000, feerates: tuple[int, int] = (1000, 1000), **options: Any) -> Pair:
    """Alice's `closing_signed` is on the wire."""
    pair = open_pair(push_msat=push_msat, features=LEGACY, **options)
    shut(pair, feerates)
    assert isinstance(pair.alice.state, NegotiatingLegacy)
    return pair


def test_legacy_two_messages() -> None:
    pair = legacy()
    (offer,) = pair.alice.sent()
    assert isinstance(offer, ClosingSigned)
    assert offer.fee_satoshis == 676
    assert offer.fee_range == FeeRange(171, 1352)
    pair.settle()
    tx = closed_by(pair.alice)
    assert tx == closed_by(pair.bob)
    assert (paid(tx, "alice"), paid(tx, "bob")) == (700_000 - 676, 300_000)
    assert isinstance(pair.alice.state, NegotiatingLegacy)  # until it is in a block


def test_legacy_dust_is_left_out() -> None:
    pair = legacy(push_msat=353_000)
    pair.settle()
    (output,) = closed_by(pair.bob).outputs
    assert output.script_pubkey == script_of("alice")


def answer_with(pair: Pair, fee_sat: int, fee_range: FeeRange | None) -> ClosingSigned:
    """A `closing_signed` of Bob's with any fee, properly signed."""
    state = pair.bob.state
    assert isinstance(state, NegotiatingLegacy)
    tx = close_legacy._our_tx(state, fee_sat)
    signature = pair.bob.signer.sign_funding_input(state.params.commitment, tx)
    return ClosingSigned(state.params.channel_id, fee_sat, signature, fee_range)


def test_legacy_the_opener_takes_a_fee_in_its_range() -> None:
    pair = legacy()
    pair.alice.outbox.clear()
    pair.alice.step(ev.PeerMessage(answer_with(pair, 1000, FeeRange(900, 5000))))
    (reply,) = pair.alice.sent()
    assert isinstance(reply, ClosingSigned)
    assert reply.fee_satoshis == 1000
    pair.settle()
    assert closed_by(pair.alice) == closed_by(pair.bob)


def test_legacy_no_common_fee() -> None:
    pair = legacy()
    with pytest.raises(ev.ProtocolViolation, match="171 to 1352") as violation:
        pair.alice.step(ev.PeerMessage(answer_with(pair, 5000, FeeRange(4000, 6000))))
    assert violation.value.action == "warning"
    with pytest.raises(ev.ProtocolViolation, match="outside") as violation:
        pair.alice.step(ev.PeerMessage(answer_with(pair, 5000, FeeRange(1000, 6000))))
    assert violation.value.action == "error"


def test_legacy_the_fundee_stays_with_what_it_said() -> None:
    pair = legacy(feerates=(300, 5000))
    # Bob's floor is above what Alice would pay: it proposes something in both ranges, then nothing else
    offer = decode(pair.alice.outbox.popleft())
    assert isinstance(offer, ClosingSigned)
    low = dataclasses.replace(offer, fee_range=FeeRange(0, 200))
    pair.bob.step(ev.PeerMessage(resigned(pair, low, 100)))
    (reply,) = pair.bob.sent()
    assert isinstance(reply, ClosingSigned)
    assert reply.fee_satoshis == 200
    with pytest.raises(ev.ProtocolViolation, match="we agreed to 200"):
        pair.bob.step(ev.PeerMessage(resigned(pair, low, 150)))


def resigned(pair: Pair, message: ClosingSigned, fee_sat: int) -> ClosingSigned:
    """Alice's `closing_signed` with another fee."""
    state = pair.alice.state
    assert isinstance(state, NegotiatingLegacy)
    signature = pair.alice.signer.sign_funding_input(state.params.commitment, close_legacy._our_tx(state, fee_sat))
    return dataclasses.replace(message, fee_satoshis=fee_sat, signature=signature)


@pytest.mark.parametrize("least_sat", [700_001, 1 << 63])
def test_legacy_a_range_that_the_opener_cannot_pay(least_sat: int) -> None:
    pair = legacy(feerates=(300, 5000))
    offer = decode(pair.alice.outbox.popleft())
    assert isinstance(offer, ClosingSigned)
    absurd = dataclasses.replace(offer, fee_range=FeeRange(least_sat, (1 << 64) - 1))
    with pytest.raises(ev.ProtocolViolation, match="we accept"):
        pair.bob.step(ev.PeerMessage(resigned(pair, absurd, 1000)))


@pytest.mark.parametrize("push_msat", [0, 300_000])
def test_legacy_fees_leave_an_output(push_msat: int) -> None:
    pair = open_pair(features=LEGACY, amount_sat=20_000, push_msat=push_msat, feerate_per_kw=253)
    shut(pair, (60_000, 60_000))
    pair.settle()
    (output,) = closed_by(pair.bob).outputs
    assert output.script_pubkey == script_of("alice")


def test_legacy_without_fee_range_the_fees_approach_each_other() -> None:
    pair = legacy()
    pair.alice.outbox.clear()
    pair.alice.step(ev.PeerMessage(answer_with(pair, 1500, None)))
    reply = decode(pair.alice.outbox.popleft())
    assert isinstance(reply, ClosingSigned)
    # BOLT 2, "MUST propose a value "strictly between" the received `fee_satoshis` and its previously-sent
    # `fee_satoshis`"
    assert reply.fee_satoshis == (1500 + 676) // 2
    pair.alice.step(ev.PeerMessage(answer_with(pair, 1300, None)))
    reply = decode(pair.alice.outbox.popleft())
    assert isinstance(reply, ClosingSigned)
    assert reply.fee_satoshis == 1300
    assert paid(closed_by(pair.alice), "alice") == 700_000 - 1300


def test_legacy_without_fee_range_there_is_a_limit() -> None:
    pair = legacy()
    pair.alice.outbox.clear()
    pair.alice.step(ev.PeerMessage(answer_with(pair, 20_000, None)))
    reply = decode(pair.alice.outbox.popleft())
    assert isinstance(reply, ClosingSigned)
    assert reply.fee_satoshis == 1352
    with pytest.raises(ev.ProtocolViolation, match="beyond our 171 to 1352"):
        pair.alice.step(ev.PeerMessage(answer_with(pair, 19_000, None)))


def test_legacy_bad_signature() -> None:
    pair = legacy()
    message = dataclasses.replace(answer_with(pair, 676, None), signature=b"\x11" * 64)
    with pytest.raises(ev.ProtocolViolation, match="not valid") as violation:
        pair.alice.step(ev.PeerMessage(message))
    assert violation.value.action == "warning"


def test_legacy_the_peer_may_leave_its_own_output_out() -> None:
    pair = legacy()
    pair.deliver(pair.alice)
    state = pair.bob.state
    assert isinstance(state, NegotiatingLegacy)
    tx = Tx.parse(state.closing_txs[-1])
    without = tx._replace(outputs=tuple(o for o in tx.outputs if o.script_pubkey == script_of("alice")))
    bare = Tx(without.version, tuple(i._replace(witness=()) for i in without.inputs), without.outputs, 0)
    signature = pair.bob.signer.sign_funding_input(state.params.commitment, bare)
    pair.alice.step(ev.PeerMessage(ClosingSigned(state.params.channel_id, 676, signature)))
    assert closed_by(pair.alice).outputs == bare.outputs


def test_legacy_starts_again_after_a_reconnection() -> None:
    pair = legacy()
    pair.reconnect()
    assert closed_by(pair.alice) == closed_by(pair.bob)
    pair.alice.crash()
    assert pair.alice.logged(fx.Broadcast)[-1].label == "mutual close"
    pair.disconnect()
    pair.connect()
    pair.settle()


# --- on chain -----------------------------------------------------------------------------------------------------


def test_a_mutual_close_is_shown_as_closed_when_it_is_buried_and_is_over_when_it_is_irrevocable() -> None:
    pair = simple()
    pair.settle()
    tx = closed_by(pair.alice)
    for peer in (pair.alice, pair.bob):
        peer.step(ev.FundingSpent(tx, None, 0))
        assert isinstance(peer.state, NegotiatingSimple)
        peer.step(ev.FundingSpent(tx, HEIGHT + 1, 1))
        assert isinstance(peer.state, Closing)
        assert peer.state.kind == "mutual"
        peer.step(ev.FundingSpent(tx, HEIGHT + 1, 5))
        assert isinstance(peer.state, Closing)
        peer.crash()
        assert phase_name(peer.state) == "closing"
        peer.step(ev.FundingSpent(tx, HEIGHT + 1, 6))
        assert phase_name(peer.state) == "closed"
        assert peer.logged(fx.PhaseChanged)[-1] == fx.PhaseChanged("closing", "closed", "closed together")
        peer.crash()
        # A reorganisation of six blocks: what it takes to punish a revoked commitment is still there.
        peer.step(ev.FundingSpent(tx, None, 0))
        assert phase_name(peer.state) == "closing"
        peer.step(ev.FundingSpent(tx, HEIGHT + 3, 99))
        assert phase_name(peer.state) == "closed"
        assert isinstance(peer.state, Closing)
        assert not peer.logged(fx.CloseCompleted)
        peer.step(ev.OutputsResolved())
        assert isinstance(peer.state, Closed)
        assert peer.state.closing_txid == tx.txid()
        assert peer.logged(fx.CloseCompleted) == [fx.CloseCompleted(tx.txid(), "closed together")]
        assert not peer.logged(fx.RemoteUnilateralClose)


def test_nobody_hears_of_an_error_because_a_channel_was_closed_together() -> None:
    """BOLT 2, "if a channel is in an error state: SHOULD retransmit the error packet": this one is in none."""
    pair = simple()
    pair.settle()
    alice = pair.alice
    assert isinstance(alice.state, NegotiatingSimple)
    before = reestablish.where_we_stand(alice.state, alice.env())
    alice.step(ev.FundingSpent(closed_by(alice), HEIGHT + 1, 1))
    alice.step(ev.Disconnected())
    assert [effect for effect in alice.step(ev.Connected(FEATURES)) if isinstance(effect, fx.Send)] == []
    (told,) = alice.step(ev.PeerMessage(before))
    assert isinstance(told, fx.Send)
    assert told.message == ErrorMessage(alice.funded.params.channel_id, b"the channel was closed")


def test_a_reorganisation_to_the_other_sides_closing_transaction() -> None:
    pair = simple()
    pair.settle()
    state = pair.alice.state
    assert isinstance(state, NegotiatingSimple)
    first, second = (Tx.parse(raw) for raw in state.closing_txs)
    for tx in (first, second):
        pair.alice.step(ev.FundingSpent(tx, HEIGHT + 1, 1))
        assert isinstance(pair.alice.state, Closing)
        assert (pair.alice.state.kind, pair.alice.state.closing_tx) == ("mutual", tx.serialize())
    pair.bob.step(ev.ForceClose("impatient"))
    pair.bob.step(ev.FundingSpent(second, HEIGHT + 1, 1))
    assert isinstance(pair.bob.state, Closing)
    assert pair.bob.state.kind == "mutual"


@pytest.mark.bolt5("fail.mutual")
def test_an_error_during_a_close_does_not_force_it() -> None:
    pair = simple()
    pair.settle()
    pair.alice.step(ev.PeerMessage(ErrorMessage(pair.alice.funded.params.channel_id, b"oops")))
    assert isinstance(pair.alice.state, NegotiatingSimple)


def test_messages_of_closing_too_early() -> None:
    pair = open_pair()
    early = ClosingSigned(pair.bob.funded.params.channel_id, 1, bytes(64))
    with pytest.raises(ev.ProtocolViolation, match="closing_signed while the channel is normal") as violation:
        pair.bob.receive(encode(early))
    assert violation.value.action == "warning"
    assert isinstance(pair.bob.state, Normal)


def test_an_error_counts_if_no_closing_transaction_can_be_mined() -> None:
    # BOLT 5, "a valid `closing_signed` message that includes a sufficient fee"
    pair = simple()
    pair.settle()
    pair.alice.policy = ChannelPolicy(min_feerate_per_kw=5_000)
    pair.alice.step(ev.PeerMessage(ErrorMessage(pair.alice.funded.params.channel_id, b"oops")))
    assert isinstance(pair.alice.state, Closing)
    assert pair.alice.state.kind == "local"


def test_a_closing_transaction_with_a_dust_output_is_none_that_can_be_mined() -> None:
    """The closee has to sign it (BOLT 2 lets it refuse only its own dust); nobody relays it."""
    pair = open_pair(push_msat=1_000_000)
    shut(pair)
    while not isinstance(pair.alice.state, NegotiatingSimple):
        pair.deliver(pair.bob)
    while not isinstance(pair.bob.state, NegotiatingSimple):
        pair.deliver(pair.alice)
    alice, bob = pair.alice, pair.bob
    params = bob.funded.params
    tx = simple_closing_tx(
        params.funding_outpoint,
        ClosingBalances(1_000, script_of("bob"), 999_000, script_of("alice")),
        local_is_closer=True,
        fee_sat=900,
        locktime=0,
        variant="closer_and_closee_outputs",
    )
    signature = bob.signer.sign_funding_input(params.commitment, tx)
    alice.step(
        ev.PeerMessage(
            ClosingComplete(
                params.channel_id,
                script_of("bob"),
                script_of("alice"),
                900,
                0,
                closer_and_closee_outputs=signature,
            )
        )
    )
    assert min(output.value_sat for output in closed_by(alice).outputs) == 100
    alice.step(ev.NewBlock())
    alice.height += alice.policy.closing_patience_blocks
    alice.step(ev.NewBlock())
    assert isinstance(alice.state, Closing)
    assert alice.state.kind == "local"


@pytest.mark.parametrize("features", [FEATURES, LEGACY])
def test_a_peer_that_never_answers_is_not_waited_for_for_ever(features: frozenset[int]) -> None:
    # BOLT 2, "if it doesn't receive a `closing_signed` response after a reasonable amount of time: MUST fail the
    # channel"
    pair = open_pair(features=features, push_msat=300_000_000)
    shut(pair)
    while not isinstance(pair.alice.state, NegotiatingLegacy | NegotiatingSimple):
        pair.deliver(pair.bob)
    pair.disconnect()
    alice = pair.alice
    alice.step(ev.NewBlock())
    alice.height += alice.policy.closing_patience_blocks - 1
    alice.step(ev.NewBlock())
    assert not isinstance(alice.state, Closing)
    # Nor is one that comes back now and then, and begins again.
    pair.connect()
    shutdown = Shutdown(alice.funded.params.channel_id, script_of("bob"))
    for sender in (pair.bob, pair.alice):
        pair.deliver(sender)  # channel_reestablish
    while shutdown in pair.bob.sent():
        pair.deliver(pair.bob)
    pair.disconnect()
    alice.step(ev.NewBlock())
    assert isinstance(alice.state, NegotiatingLegacy | NegotiatingSimple)
    alice.height += 1
    alice.step(ev.NewBlock())
    assert isinstance(alice.state, Closing)


def test_a_closing_transaction_that_can_be_mined_is_waited_for() -> None:
    pair = simple()
    pair.settle()
    for _ in range(3):
        pair.alice.height += pair.alice.policy.closing_patience_blocks
        pair.alice.step(ev.NewBlock())
    assert isinstance(pair.alice.state, NegotiatingSimple)


def test_fees_may_change_until_the_last_htlc_is_gone_and_not_after() -> None:
    # BOLT 2, "if no HTLCs remain in either commitment transaction ...: MUST NOT send any `update` message"
    pair = simple()
    message = UpdateFee(pair.bob.funded.params.channel_id, 500)
    with pytest.raises(ev.ProtocolViolation, match="update_fee while the channel is negotiating") as violation:
        pair.bob.step(ev.PeerMessage(message))
    assert violation.value.action == "warning"
    with pytest.raises(ev.CommandRejected):
        pair.alice.step(ev.UpdateFee(500))
