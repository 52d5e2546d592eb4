"""Opening a channel: what is proposed, accepted and refused (BOLT 2, "Channel Establishment v1")."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from channeld.bolt.features import ChannelType, Feature, optional
from channeld.bolt.messages import (
    AcceptChannel,
    ChannelReady,
    ErrorMessage,
    FundingCreated,
    FundingSigned,
    Message,
    OpenChannel,
    UpdateAddHtlc,
    decode,
    encode,
)
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import AwaitingFunding, Closed, FundingCreatedSent, Normal, OpenReceived, WaitFundingTx
from tests.machine import harness
from tests.machine.harness import FEATURES, HEIGHT, NODE_IDS, Pair, Peer, seed_secrets


def peers(**policy: Any) -> tuple[Peer, Peer]:
    made = ChannelPolicy(**policy)
    return Peer("alice", seed_secrets("alice"), made), Peer("bob", seed_secrets("bob"), made)


def proposal(**changes: Any) -> OpenChannel:
    """A proper `open_channel` of Alice's, changed."""
    alice, bob = peers()
    alice.take(machine.initiate(harness.open_params(bob), alice.env()))
    message = decode(alice.outbox.popleft())
    assert isinstance(message, OpenChannel)
    return dataclasses.replace(message, **changes)


def accept(message: OpenChannel, bob: Peer | None = None, features: frozenset[int] = FEATURES) -> machine.Transition:
    bob = bob or peers()[1]
    return machine.accept(message, NODE_IDS["alice"], features, bob.env(), chain_hash=harness.CHAIN_HASH, local_alias=5)


# --- open_channel -------------------------------------------------------------------------------------------------


def test_what_we_propose_is_accepted() -> None:
    transition = accept(proposal())
    assert isinstance(transition.state, OpenReceived)
    (send,) = transition.effects
    assert isinstance(send, fx.Send)
    answer = send.message
    assert isinstance(answer, AcceptChannel)
    assert answer.channel_type == ChannelType(anchors=True).to_bytes()
    assert answer.channel_reserve_satoshis == 10_000
    assert answer.minimum_depth == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"chain_hash": bytes(32)}, "unknown chain"),
        ({"channel_type": None}, "channel_type is missing"),
        ({"channel_type": b""}, "not a defined channel type"),
        ({"channel_type": b"\x80"}, "not a defined channel type"),
        ({"channel_type": ChannelType(scid_alias=True).to_bytes()}, "option_scid_alias in a public channel"),
        ({"channel_type": ChannelType(zeroconf=True).to_bytes()}, "trusted peers only"),
        ({"push_msat": 1_000_000_001}, "push_msat exceeds the channel"),
        ({"funding_satoshis": 19_999}, "less than 20000 sat"),
        ({"funding_satoshis": 1_000_000_001}, "more than 1000000000 sat"),
        ({"feerate_per_kw": 252}, "too low"),
        ({"feerate_per_kw": 100_001}, "too high"),
        ({"to_self_delay": 2017}, "too long"),
        ({"max_accepted_htlcs": 484}, "greater than 483"),
        ({"max_accepted_htlcs": 0}, "too small"),
        ({"dust_limit_satoshis": 353}, "below 354"),
        ({"dust_limit_satoshis": 10_001, "channel_reserve_satoshis": 10_001}, "above 10000"),
        ({"dust_limit_satoshis": 600, "channel_reserve_satoshis": 599}, "above the reserve"),
        ({"dust_limit_satoshis": 354, "channel_reserve_satoshis": 353}, "reserve"),
        ({"channel_reserve_satoshis": 200_001}, "too large"),
        ({"htlc_minimum_msat": 100_000_001}, "htlc_minimum_msat is too large"),
        ({"max_htlc_value_in_flight_msat": 0}, "no HTLC would ever be possible"),
        ({"funding_pubkey": b"\x02" + bytes(32)}, "a key is not a point"),
        ({"htlc_basepoint": b"\x03" + b"\xff" * 32}, "a key is not a point"),
        ({"first_per_commitment_point": b"\x02" + b"\xff" * 32}, "a key is not a point"),
        ({"push_msat": 999_000_000}, "cannot pay the fee"),
        ({"push_msat": 0, "funding_satoshis": 20_000, "channel_reserve_satoshis": 18_300}, "too large"),
        ({"upfront_shutdown_script": b"\x6a\x01\x00"}, "not a script that can be closed to"),
    ],
)
def test_open_channel_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ev.ProtocolViolation, match=sentence) as violation:
        accept(proposal(**changes))
    assert violation.value.action == "error"


def test_without_anchors_the_first_fee_has_to_do() -> None:
    """BOLT 2, "it considers `feerate_per_kw` too small for timely processing": nothing can lift such a commitment."""
    plain = ChannelType(anchors=False).to_bytes()
    bob = peers()[1]
    bob.feerate_per_kw = 2_000
    accept(proposal(channel_type=plain, feerate_per_kw=1_000), bob)
    accept(proposal(feerate_per_kw=253), bob)
    with pytest.raises(ev.ProtocolViolation, match="feerate_per_kw is too low"):
        accept(proposal(channel_type=plain, feerate_per_kw=999), bob)


def test_both_balances_within_the_reserve_are_refused() -> None:
    message = proposal(funding_satoshis=40_000, push_msat=8_000_000, channel_reserve_satoshis=8_000)
    accept(message)  # the opener keeps 32,000 less the fee
    message = proposal(funding_satoshis=40_000, push_msat=33_000_000, channel_reserve_satoshis=8_000)
    accept(message)  # we would have more than the reserve
    # 9,900 sat each at most: neither side could do anything
    message = proposal(
        funding_satoshis=20_000, push_msat=9_900_000, channel_reserve_satoshis=9_999, dust_limit_satoshis=9_999
    )
    with pytest.raises(ev.ProtocolViolation, match="both balances are within the reserve"):
        accept(message)


def test_large_channels_need_the_feature() -> None:
    message = proposal(funding_satoshis=1 << 24, channel_reserve_satoshis=167_772)
    assert isinstance(accept(message).state, OpenReceived)
    without = FEATURES - {Feature.option_support_large_channel | 1}
    with pytest.raises(ev.ProtocolViolation, match="large channels are not supported"):
        accept(message, features=without)


def test_a_type_that_was_not_negotiated_is_refused() -> None:
    with pytest.raises(ev.ProtocolViolation, match="not negotiated"):
        accept(proposal(), features=FEATURES - {Feature.option_anchors | 1})


def test_option_dual_fund_forbids_version_1() -> None:
    dual = optional(Feature.option_dual_fund)
    bob = dataclasses.replace(peers()[1], features=FEATURES | dual)
    with pytest.raises(ev.ProtocolViolation, match="option_dual_fund"):
        accept(proposal(), bob, FEATURES | dual)


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"amount_sat": 19_999}, "amount_below_minimum"),
        ({"amount_sat": 1_000_000_001}, "amount_above_maximum"),
        ({"push_msat": 1_000_000_001}, "invalid"),
        ({"push_msat": 995_000_000}, "insufficient_balance"),
        ({"upfront_shutdown_script": b"\x51"}, "invalid"),
    ],
)
def test_a_wish_that_cannot_be(wanted: dict[str, Any], code: str) -> None:
    alice, bob = peers()
    with pytest.raises(ev.CommandRejected) as rejection:
        machine.initiate(harness.open_params(bob, **wanted), alice.env())
    assert rejection.value.code == code


def test_our_large_channel_needs_the_peers_feature() -> None:
    alice, bob = peers()
    bob.features = FEATURES - {Feature.option_support_large_channel | 1}
    with pytest.raises(ev.CommandRejected, match="16777216"):
        machine.initiate(harness.open_params(bob, amount_sat=1 << 24), alice.env())


def test_the_type_falls_back_without_anchors() -> None:
    pair = harness.open_pair(anchors=False)
    assert not pair.alice.funded.params.anchors
    assert pair.bob.funded.params.type == ChannelType(anchors=False)


# --- accept_channel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temporary_channel_id": bytes(32)}, "another temporary_channel_id"),
        ({"channel_type": None}, "channel_type is missing"),
        ({"channel_type": ChannelType(anchors=False).to_bytes()}, "another channel_type"),
        ({"minimum_depth": 2017}, "minimum_depth"),
        ({"channel_reserve_satoshis": 353}, "below our dust_limit_satoshis"),
        ({"dust_limit_satoshis": 10_001}, "above our channel_reserve_satoshis"),
        ({"dust_limit_satoshis": 353}, "below 354"),
        ({"max_accepted_htlcs": 484}, "greater than 483"),
        ({"to_self_delay": 2017}, "too long"),
        ({"payment_basepoint": b"\x02" + b"\xff" * 32}, "a key is not a point"),
        ({"upfront_shutdown_script": b"\x51"}, "not a script that can be closed to"),
    ],
)
def test_accept_channel_is_refused(changes: dict[str, Any], sentence: str) -> None:
    alice, bob = peers()
    alice.take(machine.initiate(harness.open_params(bob), alice.env()))
    message = decode(alice.outbox.popleft())
    assert isinstance(message, OpenChannel)
    (send,) = accept(message, bob).effects
    answer = dataclasses.replace(send.message, **changes)  # type: ignore[union-attr]
    with pytest.raises(ev.ProtocolViolation, match=sentence):
        alice.step(ev.PeerMessage(answer))
    alice.step(ev.PeerMessage(send.message))  # type: ignore[union-attr]
    assert isinstance(alice.state, WaitFundingTx)


# --- funding ------------------------------------------------------------------------------------------------------


def started(**wanted: Any) -> Pair:
    return harness.start_open(*peers(), **wanted)


def test_nothing_is_broadcast_before_funding_signed() -> None:
    # BOLT 2, "MUST NOT broadcast the funding transaction before receipt of a valid `funding_signed`."
    pair = started()
    pair.alice.step(ev.FundingTxReady(harness.funding_tx(pair.alice), 1))
    assert not pair.alice.logged(fx.Broadcast)
    pair.deliver(pair.alice)
    assert not pair.alice.logged(fx.Broadcast)
    pair.deliver(pair.bob)
    (broadcast,) = pair.alice.logged(fx.Broadcast)
    assert broadcast.tx == harness.funding_tx(pair.alice)
    assert isinstance(pair.alice.state, AwaitingFunding)


def test_the_channel_id_is_that_of_the_funding_output() -> None:
    pair = started()
    harness.fund(pair)
    txid = harness.funding_tx(pair.alice).txid()
    expected = txid[:31] + bytes((txid[31] ^ 1,))
    for peer in (pair.alice, pair.bob):
        (changed,) = peer.logged(fx.ChannelIdChanged)
        assert changed.new == expected
        (watch,) = peer.logged(fx.WatchFunding)
        assert watch.outpoint == (txid, 1)


def told(peer: Peer, event: ev.Event) -> Message:
    """What would be said about `event`."""
    assert peer.state is not None
    effects = machine.step(peer.state, event, peer.env()).effects
    (message,) = [effect.message for effect in effects if isinstance(effect, fx.Send)]
    return message


def test_a_bad_signature_ends_the_opening() -> None:
    pair = started()
    pair.alice.step(ev.FundingTxReady(harness.funding_tx(pair.alice), 1))
    created = decode(pair.alice.outbox.popleft())
    assert isinstance(created, FundingCreated)
    with pytest.raises(ev.ProtocolViolation, match="funding_created") as violation:
        pair.bob.step(ev.PeerMessage(dataclasses.replace(created, signature=b"\x11" * 64)))
    assert violation.value.action == "error"
    # BOLT 1, "for all error messages sent before (and not including) the `funding_signed` message: MUST use
    # `temporary_channel_id` in lieu of `channel_id`."
    temporary = harness.open_params(pair.bob).temporary_channel_id
    assert told(pair.bob, ev.ForgetChannel("bad", violation.value.tx)) == ErrorMessage(
        temporary, f"bad: {violation.value.tx.hex()}".encode()
    )
    pair.bob.step(ev.PeerMessage(created))
    signed = decode(pair.bob.outbox.popleft())
    assert isinstance(signed, FundingSigned)
    with pytest.raises(ev.ProtocolViolation, match="funding_signed") as violation:
        pair.alice.step(ev.PeerMessage(dataclasses.replace(signed, signature=b"\x11" * 64)))
    # BOLT 1, "for all error messages sent before (and including) the `funding_created` message", and no others: the
    # fundee has forgotten the temporary id.
    assert told(pair.alice, ev.ForgetChannel("bad", violation.value.tx)) == ErrorMessage(
        signed.channel_id, f"bad: {violation.value.tx.hex()}".encode()
    )
    with pytest.raises(ev.ProtocolViolation, match="channel_id"):
        pair.alice.step(ev.PeerMessage(dataclasses.replace(signed, channel_id=bytes(32))))
    assert isinstance(pair.alice.state, FundingCreatedSent)


def test_an_opening_is_forgotten_when_the_connection_goes() -> None:
    pair = started()
    pair.alice.step(ev.FundingTxReady(harness.funding_tx(pair.alice), 1))
    effects = pair.alice.step(ev.Disconnected())
    assert isinstance(pair.alice.state, Closed)
    assert any(isinstance(e, fx.ReleaseFunding) for e in effects)
    assert any(isinstance(e, fx.CloseCompleted) and e.closing_txid is None for e in effects)
    assert machine.phase_name(pair.alice.state) == "forgotten"
    pair.bob.step(ev.Disconnected())
    assert isinstance(pair.bob.state, Closed)


def test_an_opening_is_forgotten_at_a_restart() -> None:
    pair = started()
    pair.alice.crash()
    assert isinstance(pair.alice.state, Closed)


def test_the_wallet_cannot_fund() -> None:
    pair = started()
    effects = pair.alice.step(ev.FundingFailed("there are no coins"))
    assert isinstance(pair.alice.state, Closed)
    assert pair.alice.state.reason == "there are no coins"
    assert isinstance(effects[0], fx.Send)  # the peer gets an error
    late = pair.alice.step(ev.FundingTxReady(harness.funding_tx(pair.alice), 1))
    assert [type(effect) for effect in late] == [fx.ReleaseFunding]


def test_force_close_of_an_opening_is_rejected_and_forgetting_works() -> None:
    pair = started()
    with pytest.raises(ev.CommandRejected):
        pair.alice.step(ev.ForceClose("no"))
    pair.alice.step(ev.ForgetChannel("enough"))
    assert isinstance(pair.alice.state, Closed)


def test_messages_out_of_order_end_an_opening() -> None:
    pair = started()
    point = pair.alice.signer.per_commitment_point(1)
    with pytest.raises(ev.ProtocolViolation, match="channel_ready while the channel is opening"):
        pair.alice.step(ev.PeerMessage(ChannelReady(bytes(32), point)))
    with pytest.raises(ev.ProtocolViolation, match="update_add_htlc"):
        pair.alice.step(ev.PeerMessage(UpdateAddHtlc(bytes(32), 0, 1, bytes(32), 1, bytes(1366))))


# --- channel_ready ------------------------------------------------------------------------------------------------


def test_channel_ready_waits_for_minimum_depth() -> None:
    pair = started()
    harness.fund(pair)
    harness.confirm(pair, depth=2)
    assert isinstance(pair.bob.state, AwaitingFunding)
    assert not pair.bob.state.ready_sent
    harness.confirm(pair, depth=3)
    assert isinstance(pair.bob.state, Normal)
    assert isinstance(pair.alice.state, Normal)
    assert pair.alice.state.scid == HEIGHT << 40 | 7 << 16 | 1
    assert pair.alice.state.remote_alias == pair.bob.state.local_alias
    assert pair.bob.logged(fx.ChannelUsable)


def test_channel_ready_from_the_opener_may_come_early() -> None:
    pair = started()
    harness.fund(pair)
    ready = ChannelReady(pair.bob.funded.params.channel_id, pair.alice.signer.per_commitment_point(1), 77)
    pair.bob.step(ev.PeerMessage(ready))
    assert isinstance(pair.bob.state, AwaitingFunding)
    assert pair.bob.state.remote_alias == 77
    pair.bob.step(ev.FundingDepth(3, HEIGHT, 7, 1_000_000))
    assert isinstance(pair.bob.state, Normal)


def test_a_redundant_channel_ready_changes_the_alias_only() -> None:
    pair = harness.open_pair()
    before = pair.bob.commitments
    other_point = pair.alice.signer.per_commitment_point(9)
    pair.bob.step(ev.PeerMessage(ChannelReady(pair.bob.funded.params.channel_id, other_point, 99)))
    assert pair.bob.commitments == before
    assert pair.bob.funded.remote_alias == 99


def test_channel_ready_is_repeated_until_operation_has_begun() -> None:
    # BOLT 2, "if `next_commitment_number` is 1 in both the `channel_reestablish` it sent and received"
    pair = started()
    harness.fund(pair)
    for peer in (pair.alice, pair.bob):
        peer.step(ev.FundingDepth(3, HEIGHT, 7, 1_000_000))
    pair.disconnect()  # both channel_ready are lost
    assert isinstance(pair.alice.state, AwaitingFunding)
    pair.connect()
    pair.settle()
    assert isinstance(pair.alice.state, Normal)
    assert isinstance(pair.bob.state, Normal)
    harness.add(pair.alice, 1_000_000)
    pair.settle()
    pair.disconnect()
    pair.connect()
    pair.alice.log.clear()
    pair.settle()
    assert not any(isinstance(e.message, ChannelReady) for e in pair.alice.logged(fx.Send))


def test_depth_that_is_reached_while_offline_is_announced_later() -> None:
    pair = started()
    harness.fund(pair)
    pair.disconnect()
    for peer in (pair.alice, pair.bob):
        peer.step(ev.FundingDepth(3, HEIGHT, 7, 1_000_000))
        assert not peer.outbox
    pair.connect()
    pair.settle()
    assert isinstance(pair.alice.state, Normal)


def test_a_channel_that_awaits_its_funding_survives_a_restart() -> None:
    pair = started()
    harness.fund(pair)
    pair.alice.log.clear()
    pair.alice.crash()
    assert isinstance(pair.alice.state, AwaitingFunding)
    assert pair.alice.logged(fx.WatchFunding)
    assert [b.label for b in pair.alice.logged(fx.Broadcast)] == ["funding"]
    pair.bob.crash()
    pair.connect()
    pair.settle()
    harness.confirm(pair)
    assert isinstance(pair.alice.state, Normal)


def test_the_funding_output_must_hold_what_was_agreed_on() -> None:
    pair = started()
    harness.fund(pair)
    pair.bob.step(ev.FundingDepth(3, HEIGHT, 7, 999_999))
    assert isinstance(pair.bob.state, Closed)
    assert pair.bob.state.reason == "the funding output has 999999 sat instead of 1000000"
    assert isinstance(pair.bob.sent()[-1], ErrorMessage)


def test_the_fundee_forgets_after_2016_blocks() -> None:
    pair = started()
    harness.fund(pair)
    for peer in (pair.alice, pair.bob):
        peer.height = HEIGHT + 2015
        peer.step(ev.NewBlock())
        assert isinstance(peer.state, AwaitingFunding)
        peer.height += 1
        peer.step(ev.NewBlock())
    assert isinstance(pair.alice.state, AwaitingFunding)  # its money is in it
    assert isinstance(pair.bob.state, Closed)


def test_zero_conf_needs_no_block() -> None:
    policy = ChannelPolicy(accept_zero_conf_from=frozenset({NODE_IDS["alice"]}))
    alice, bob = peers()
    bob.policy = policy
    pair = harness.start_open(alice, bob, zero_conf=True)
    harness.fund(pair)
    assert isinstance(alice.state, Normal)
    assert isinstance(bob.state, Normal)
    assert alice.state.scid is None
    assert alice.state.remote_alias == bob.state.local_alias
    harness.confirm(pair, depth=1)
    assert alice.state is not None
    assert pair.alice.funded.scid == HEIGHT << 40 | 7 << 16 | 1


def test_who_may_open_unconfirmed_need_not_say_so_in_the_type() -> None:
    """LDK never asks for `option_zeroconf`; both use the channel at once if the accepter's `minimum_depth` is zero."""
    alice, bob = peers()
    bob.policy = ChannelPolicy(accept_zero_conf_from=frozenset({NODE_IDS["alice"]}))
    pair = harness.start_open(alice, bob)
    harness.fund(pair)
    assert isinstance(alice.state, Normal)
    assert isinstance(bob.state, Normal)
    assert not bob.state.params.type.zeroconf
    assert bob.state.remote_alias == alice.state.local_alias


def test_zero_conf_with_a_minimum_depth_is_refused() -> None:
    alice, bob = peers()
    bob.policy = ChannelPolicy(accept_zero_conf_from=frozenset({NODE_IDS["alice"]}))
    alice.take(machine.initiate(harness.open_params(bob, zero_conf=True), alice.env()))
    message = decode(alice.outbox.popleft())
    assert isinstance(message, OpenChannel)
    (send,) = accept(message, bob).effects
    answer = dataclasses.replace(send.message, minimum_depth=1)  # type: ignore[union-attr]
    with pytest.raises(ev.ProtocolViolation, match="minimum_depth is not zero"):
        alice.step(ev.PeerMessage(answer))


def test_scid_alias_is_for_private_channels() -> None:
    private = harness.open_pair(announce=False, scid_alias=True)
    assert private.alice.funded.params.type.scid_alias
    assert not private.alice.funded.params.announce
    public = harness.open_pair(announce=True, scid_alias=True)
    assert not public.alice.funded.params.type.scid_alias


def test_push_and_fee_rate() -> None:
    pair = harness.open_pair(push_msat=123_456_789, feerate_per_kw=50_000)
    assert pair.bob.commitments.local.spec.to_local_msat == 123_456_789
    # anchors: the fee of a commitment may be raised later, so it starts low
    assert pair.bob.commitments.local.spec.feerate_per_kw == 2_500
    plain = harness.open_pair(anchors=False, feerate_per_kw=50_000)
    assert plain.bob.commitments.local.spec.feerate_per_kw == 50_000


def test_upfront_shutdown_script_is_kept() -> None:
    script = harness.script_of("cold")
    pair = harness.open_pair(upfront_shutdown_script=script)
    assert pair.alice.funded.params.local.upfront_shutdown_script == script
    assert pair.bob.funded.params.remote.upfront_shutdown_script == script


def test_the_wire_form_of_what_is_stored_is_read_again() -> None:
    pair = started()
    for peer in (pair.alice, pair.bob):
        assert peer.state is not None
        assert machine.decode_state(machine.encode_state(peer.state)) == peer.state
    assert isinstance(pair.bob.state, OpenReceived)
    assert encode(decode(pair.bob.state.proposal)) == pair.bob.state.proposal
