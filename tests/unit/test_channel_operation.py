"""Normal operation, rule by rule (BOLT 2, "Normal Operation"): HTLCs, fees, their limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from channeld.bolt.messages import (
    AttributionData,
    StartBatch,
    UpdateAddHtlc,
    UpdateFailHtlc,
    UpdateFailMalformedHtlc,
    UpdateFee,
    UpdateFulfillHtlc,
    WarningMessage,
    decode,
    encode,
)
from channeld.channel import commitments as cm
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import limits, machine, normal
from channeld.channel.env import ChannelPolicy
from tests.machine.harness import HEIGHT, add, open_pair, preimage_of
from tests.unit.operation_support import an_add, command, rejected, violates, with_htlc

# --- offering -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount_msat", [0, 999])
def test_the_peers_htlc_minimum_binds_us(amount_msat: int) -> None:
    pair = open_pair(policy=ChannelPolicy(htlc_minimum_msat=1000))
    assert rejected(pair.alice, command(amount_msat)).code == "amount_below_minimum"


@pytest.mark.parametrize("cltv_expiry", [HEIGHT, 500_000_000])
def test_an_expiry_that_is_none(cltv_expiry: int) -> None:
    assert rejected(open_pair().alice, command(1_000_000, cltv_expiry)).code == "expiry"


def test_ids_count_up() -> None:
    pair = open_pair()
    for number in range(3):
        add(pair.alice, 1_000_000, number)
    assert [message.id for message in pair.alice.sent()] == [0, 1, 2]  # type: ignore[attr-defined]


def test_max_accepted_htlcs_binds_us() -> None:
    pair = open_pair(policy=ChannelPolicy(max_accepted_htlcs=2))
    add(pair.alice, 1_000_000)
    add(pair.alice, 1_000_000)
    assert rejected(pair.alice, command(1_000_000)).code == "too_many_htlcs"


def test_max_htlc_value_in_flight_binds_us() -> None:
    pair = open_pair(policy=ChannelPolicy(max_htlc_value_in_flight_permille=100))
    add(pair.alice, 60_000_000)
    assert rejected(pair.alice, command(40_000_001)).code == "in_flight_limit"
    add(pair.alice, 40_000_000)


@pytest.mark.parametrize("anchors", [True, False])
def test_the_opener_keeps_reserve_anchors_and_twice_the_fee(anchors: bool) -> None:
    # BOLT 2, "It is recommended that this "fee spike buffer" can handle twice the current `feerate_per_kw`"
    pair = open_pair(anchors=anchors)
    weight = (1124 if anchors else 724) + 2 * 172
    kept_sat = 10_000 + weight * 2 * 1000 // 1000 + (660 if anchors else 0)
    largest_msat = (1_000_000 - kept_sat) * 1000
    view = limits.available_to_send_msat(pair.alice.commitments, pair.alice.funded.params, pair.alice.policy)
    assert view == largest_msat
    assert rejected(pair.alice, command(largest_msat + 1)).code == "insufficient_balance"
    add(pair.alice, largest_msat)
    pair.settle()
    assert len(pair.bob.locked_in) == 1


def test_the_fundee_keeps_its_reserve() -> None:
    pair = open_pair(push_msat=100_000_000)
    assert rejected(pair.bob, command(90_000_001)).code == "insufficient_balance"
    add(pair.bob, 90_000_000)
    pair.settle()
    assert len(pair.alice.locked_in) == 1


def test_the_fundee_leaves_the_opener_its_fee() -> None:
    # the opener has 11,900 sat: its reserve of 10,000, and not enough for the fee of one more HTLC
    pair = open_pair(push_msat=988_100_000)
    add(pair.bob, 300_000)  # dust costs nothing
    assert rejected(pair.bob, command(400_000_000)).code == "fee_too_high"


def test_dust_exposure_limits_what_we_offer() -> None:
    pair = open_pair(policy=ChannelPolicy(max_dust_exposure_msat=1_000_000))
    add(pair.alice, 353_000)
    add(pair.alice, 353_000)
    assert rejected(pair.alice, command(353_000)).code == "dust_exposure"
    add(pair.alice, 354_000)  # it has an output
    assert limits.available_to_send_msat(pair.alice.commitments, pair.alice.funded.params, pair.alice.policy) > 10**8


def test_offline_nothing_is_offered() -> None:
    pair = open_pair()
    pair.disconnect()
    assert rejected(pair.alice, command(1_000_000)).code == "not_ready"


def test_extra_tlvs_travel() -> None:
    pair = open_pair()
    event = command(1_000_000)
    path_key = pair.alice.signer.per_commitment_point(5)
    pair.alice.step(ev.AddHtlc(1_000_000, event.payment_hash, HEIGHT + 9, bytes(1366), b"o", {"path_key": path_key}))
    (message,) = pair.alice.sent()
    assert isinstance(message, UpdateAddHtlc)
    assert message.path_key == path_key


# --- being offered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"amount_msat": 0}, "below htlc_minimum_msat"),
        ({"amount_msat": 999}, "below htlc_minimum_msat"),
        ({"cltv_expiry": 500_000_000}, "no block height"),
        ({"id": 1}, "id 1, 0 expected"),
        ({"amount_msat": 990_000_001}, "lacks"),
        ({"amount_msat": 988_500_000}, "lacks"),  # the reserve is left, the fee is not
        ({"amount_msat": 2_000_000_000}, "max_htlc_value_in_flight_msat"),
    ],
)
def test_update_add_htlc_is_refused(changes: dict[str, Any], match: str) -> None:
    pair = open_pair(policy=ChannelPolicy(htlc_minimum_msat=1000, max_htlc_value_in_flight_permille=995))
    violates(pair.bob, an_add(pair.bob, **changes), match)


def test_max_accepted_htlcs_binds_the_peer() -> None:
    pair = open_pair(policy=ChannelPolicy(max_accepted_htlcs=1))
    pair.bob.step(ev.PeerMessage(an_add(pair.bob)))
    violates(pair.bob, an_add(pair.bob), "max_accepted_htlcs")


def test_the_same_payment_hash_twice_is_fine() -> None:
    # BOLT 2, "MUST allow multiple HTLCs with the same `payment_hash`."
    pair = open_pair()
    add(pair.alice, 1_000_000, number=3)
    add(pair.alice, 1_000_000, number=3)
    pair.settle()
    assert [locked.htlc.id for locked in pair.bob.locked_in] == [0, 1]


def test_dust_beyond_the_limit_is_to_be_failed_once_committed() -> None:
    pair = open_pair()
    pair.bob.policy = ChannelPolicy(max_dust_exposure_msat=1_000_000)
    for number in range(3):
        add(pair.alice, 353_000, number)
    pair.settle()
    assert [locked.over_dust_exposure for locked in pair.bob.locked_in] == [False, False, True]


def test_an_htlc_is_handed_out_when_it_is_irrevocable_and_not_before() -> None:
    pair = open_pair()
    add(pair.alice, 5_000_000)
    pair.alice.sign()
    pair.deliver(pair.alice)
    pair.deliver(pair.alice)
    pair.deliver(pair.bob)  # revoke_and_ack
    pair.bob.sign()
    pair.deliver(pair.bob)
    assert not pair.bob.locked_in
    assert not machine.unresolved_htlcs(pair.bob.funded)  # type: ignore[arg-type]
    pair.deliver(pair.alice)  # its revoke_and_ack
    assert [locked.htlc.amount_msat for locked in pair.bob.locked_in] == [5_000_000]
    assert len(machine.unresolved_htlcs(pair.bob.funded)) == 1  # type: ignore[arg-type]


def test_an_answer_before_that_is_rejected() -> None:
    pair = open_pair()
    add(pair.alice, 5_000_000)
    pair.deliver(pair.alice)
    assert rejected(pair.bob, ev.FulfillHtlc(0, preimage_of(0))).code == "unknown_htlc"
    assert rejected(pair.bob, ev.FailHtlc(7, b"")).code == "unknown_htlc"


# --- removing -----------------------------------------------------------------------------------------------------


def test_fulfilled_is_known_at_once_and_gone_later() -> None:
    pair = with_htlc()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    pair.deliver(pair.bob)
    (settled,) = pair.alice.logged(fx.HtlcSettled)
    assert (settled.origin, settled.payment_preimage) == (b"payment 0", preimage_of(0))
    assert not pair.bob.logged(fx.HtlcRemoved)
    pair.settle()
    assert pair.bob.logged(fx.HtlcRemoved) == [fx.HtlcRemoved(0, True)]
    assert not pair.bob.adds
    assert pair.bob.commitments.local.spec.to_local_msat == 50_000_000


def test_failed_is_known_only_when_it_is_gone() -> None:
    pair = with_htlc()
    data = AttributionData(bytes(80), bytes(840))
    pair.bob.step(ev.FailHtlc(0, b"because", {"attribution_data": data}))
    pair.bob.sign()
    pair.deliver_all(pair.bob)
    assert not pair.alice.logged(fx.HtlcFailed)
    pair.settle()
    (failed,) = pair.alice.logged(fx.HtlcFailed)
    assert failed.reason == b"because"
    assert failed.attribution_data == data.to_bytes()
    assert pair.alice.commitments.local.spec.to_local_msat == 1_000_000_000


def test_malformed() -> None:
    pair = with_htlc()
    assert rejected(pair.bob, ev.FailMalformedHtlc(0, bytes(32), 5)).code == "invalid"
    pair.bob.step(ev.FailMalformedHtlc(0, bytes(32), 0x8005))
    pair.settle()
    (failed,) = pair.alice.logged(fx.HtlcFailed)
    assert (failed.failure_code, failed.sha256_of_onion, failed.reason) == (0x8005, bytes(32), None)


def test_a_wrong_preimage_of_ours_is_rejected() -> None:
    assert rejected(with_htlc().bob, ev.FulfillHtlc(0, preimage_of(9))).code == "invalid"


def test_answering_twice_is_no_error_and_the_first_answer_counts() -> None:
    pair = with_htlc()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    before = pair.bob.state
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    pair.bob.step(ev.FailHtlc(0, b"no"))
    assert pair.bob.state == before
    pair.settle()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))  # gone for good
    assert len(pair.alice.logged(fx.HtlcSettled)) == 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda c: UpdateFulfillHtlc(c, 7, preimage_of(0)), "no HTLC 7"),
        (lambda c: UpdateFailHtlc(c, 7, b""), "no HTLC 7"),
        (lambda c: UpdateFailMalformedHtlc(c, 7, bytes(32), 0x8000), "no HTLC 7"),
        (lambda c: UpdateFulfillHtlc(c, 0, bytes(32)), "wrong preimage"),
        (lambda c: UpdateFailMalformedHtlc(c, 0, bytes(32), 1), "without BADONION"),
    ],
)
def test_the_peer_removes_wrongly(make: Any, match: str) -> None:
    pair = with_htlc()
    violates(pair.alice, make(pair.alice.funded.params.channel_id), match)


def test_an_htlc_is_removed_once() -> None:
    pair = with_htlc()
    message = UpdateFailHtlc(pair.alice.funded.params.channel_id, 0, b"")
    pair.alice.step(ev.PeerMessage(message))
    violates(pair.alice, message, "no HTLC 0")


def test_a_preimage_survives_what_the_peer_says_next() -> None:
    """A peer that gives a preimage, disconnects and then fails the HTLC: it stays settled, and is reported once."""
    pair = with_htlc()
    channel_id = pair.alice.funded.params.channel_id
    pair.alice.step(ev.PeerMessage(UpdateFulfillHtlc(channel_id, 0, preimage_of(0))))
    pair.reconnect()
    pair.bob.step(ev.FailHtlc(0, b"changed my mind"))
    pair.settle()
    assert len(pair.alice.logged(fx.HtlcSettled)) == 1
    assert not pair.alice.logged(fx.HtlcFailed)
    assert not pair.alice.commitments.learnt


def test_an_answer_given_offline_is_said_after_the_reconnection_and_a_restart() -> None:
    pair = with_htlc()
    pair.disconnect()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    assert not pair.bob.outbox
    pair.bob.crash()
    assert not pair.bob.locked_in  # it is answered
    pair.connect()
    pair.settle()
    assert len(pair.alice.logged(fx.HtlcSettled)) == 1
    assert pair.bob.commitments.local.spec.to_local_msat == 50_000_000


def test_an_answer_that_was_said_but_not_signed_is_said_again() -> None:
    pair = with_htlc()
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    pair.reconnect()
    pair.settle()
    assert len(pair.alice.logged(fx.HtlcSettled)) == 1
    assert not pair.alice.commitments.has_htlcs


def test_an_add_that_was_not_signed_is_reported_as_never_sent() -> None:
    pair = open_pair()
    add(pair.alice, 5_000_000)
    pair.deliver(pair.alice)
    pair.disconnect()
    (failed,) = pair.alice.logged(fx.HtlcFailed)
    assert failed.never_sent
    assert not pair.alice.adds
    assert not pair.bob.adds
    assert pair.alice.commitments.local_next_htlc_id == 0
    assert pair.bob.commitments.remote_next_htlc_id == 0


def test_what_nobody_knows_of_a_long_add_is_not_kept() -> None:
    pair = open_pair(push_msat=500_000_000)
    short, long = ((65_537, b"x"),), ((65_537, bytes(60_000)),)
    path_key = pair.alice.signer.keys.funding_pubkey
    for number, tlvs in enumerate((short, long)):
        message = an_add(pair.alice, unknown_tlvs=tlvs, path_key=path_key)
        pair.alice.receive(encode(message))
        kept = decode(pair.alice.adds[False, number])
        assert kept == (message if tlvs is short else dataclasses.replace(message, unknown_tlvs=()))


def test_a_reason_is_not_kept_at_any_length() -> None:
    """With 483 of them, each of our commits would write 30 MB."""
    pair = open_pair()
    for number in range(2):
        add(pair.alice, 5_000_000, number)
    pair.settle()
    longest = bytes(range(256)) * (normal.MAX_REASON_BYTES // 256)
    pair.bob.step(ev.FailHtlc(0, longest))
    pair.bob.step(ev.FailHtlc(1, longest * 15))
    pair.settle()
    assert [failed.reason for failed in pair.alice.logged(fx.HtlcFailed)] == [longest, longest]


# --- fees ---------------------------------------------------------------------------------------------------------


def test_only_the_opener_sets_the_fee() -> None:
    pair = open_pair()
    assert rejected(pair.bob, ev.UpdateFee(500)).code == "not_opener"
    violates(pair.alice, UpdateFee(pair.alice.funded.params.channel_id, 500), "does not pay")
    pair.alice.step(ev.UpdateFee(500))
    pair.settle()
    for peer in (pair.alice, pair.bob):
        assert peer.commitments.local.spec.feerate_per_kw == 500
        assert peer.commitments.remote.spec.feerate_per_kw == 500


def test_the_same_fee_says_nothing() -> None:
    pair = open_pair()
    assert pair.alice.step(ev.UpdateFee(1000)) == []


@pytest.mark.parametrize("feerate_per_kw", [252, 100_001])
def test_a_fee_out_of_range(feerate_per_kw: int) -> None:
    pair = open_pair()
    assert rejected(pair.alice, ev.UpdateFee(feerate_per_kw)).code == "invalid"
    violates(pair.bob, UpdateFee(pair.bob.funded.params.channel_id, feerate_per_kw), "not between")


def test_many_fees_leave_only_the_last() -> None:
    pair = open_pair()
    for feerate_per_kw in range(500, 600):
        pair.bob.receive(encode(UpdateFee(pair.bob.funded.params.channel_id, feerate_per_kw)))
    assert pair.bob.commitments.theirs.proposed == (cm.FeeUpdate(599),)
    pair = open_pair()
    pair.alice.step(ev.UpdateFee(500))
    pair.alice.step(ev.UpdateFee(600))
    pair.alice.step(ev.Sign())
    pair.settle()
    for peer in pair.alice, pair.bob:
        assert peer.commitments.local.spec.feerate_per_kw == 600
        assert peer.commitments.remote.spec.feerate_per_kw == 600


def test_a_fee_that_cannot_be_paid() -> None:
    pair = open_pair(amount_sat=30_000, push_msat=10_000_000)
    assert rejected(pair.alice, ev.UpdateFee(20_000)).code == "insufficient_balance"
    violates(pair.bob, UpdateFee(pair.bob.funded.params.channel_id, 20_000), "cannot pay")


def test_a_fee_that_eats_up_the_reserve() -> None:
    pair = open_pair(policy=ChannelPolicy(channel_reserve_permille=100))
    add(pair.alice, 850_000_000)
    pair.settle()
    channel_id = pair.bob.funded.params.channel_id
    violation = violates(pair.bob, UpdateFee(channel_id, 50_000), "reserve")
    assert violation.action == "warning"
    violates(pair.bob, UpdateFee(channel_id, 100_000), "reserve")
    pair.bob.receive(encode(UpdateFee(channel_id, 30_000)))
    pair.bob.receive(encode(UpdateFee(channel_id, 20_000)))


@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_that_is_none_is_ignored_with_a_warning(size: int) -> None:
    pair = open_pair()
    before = pair.bob.state
    (sent,) = pair.bob.receive(encode(StartBatch(pair.bob.funded.params.channel_id, size, 132)))
    assert isinstance(sent, fx.Send)
    assert isinstance(sent.message, WarningMessage)
    assert pair.bob.state is before
    pair.bob.outbox.clear()
    add(pair.alice, 5_000_000)
    pair.settle()
    assert len(pair.bob.locked_in) == 1, "the channel goes on"


def test_a_batch_that_is_too_long() -> None:
    pair = open_pair()
    channel_id = pair.bob.funded.params.channel_id
    assert violates(pair.bob, StartBatch(channel_id, 21, 132), "start_batch of 21").action == "warning"
    assert pair.bob.receive(encode(StartBatch(channel_id, 20, 132))) == []


def test_a_fee_that_turns_htlcs_into_dust() -> None:
    pair = open_pair(anchors=False, policy=ChannelPolicy(max_dust_exposure_msat=5_000_000))
    for number in range(3):
        add(pair.alice, 5_000_000, number)
    pair.settle()
    assert rejected(pair.alice, ev.UpdateFee(8000)).code == "dust_exposure"
    violates(pair.bob, UpdateFee(pair.bob.funded.params.channel_id, 8000), "dust")


def test_a_commitment_that_cannot_be_mined_in_time_takes_no_htlcs() -> None:
    """Without anchors nothing lifts it: an opener who pays too little could let every deadline of an HTLC pass, and
    take what was forwarded over us."""
    pair = open_pair(anchors=False, push_msat=400_000_000)
    pair.bob.feerate_per_kw = 2_000
    add(pair.alice, 50_000_000)
    pair.settle()
    assert [locked.must_fail for locked in pair.bob.locked_in] == [False]
    pair.bob.feerate_per_kw = 2_001
    add(pair.alice, 50_000_000, 1)
    pair.settle()
    assert [locked.must_fail for locked in pair.bob.locked_in] == [False, True]
    assert rejected(pair.bob, command(50_000_000)).code == "fee_too_low"
    pair.alice.feerate_per_kw = 2_001
    add(pair.alice, 50_000_000, 2)  # it can pay more whenever it likes
    pair.alice.step(ev.UpdateFee(1_500))
    pair.settle()
    add(pair.bob, 50_000_000)
    pair.settle()
    assert pair.bob.commitments.local.spec.feerate_per_kw == 1_500


def test_anchors_need_no_fee_in_the_commitment() -> None:
    pair = open_pair(push_msat=400_000_000)
    pair.bob.feerate_per_kw = 50_000
    add(pair.alice, 50_000_000)
    pair.settle()
    assert [locked.must_fail for locked in pair.bob.locked_in] == [False]
    add(pair.bob, 50_000_000)


def test_a_fee_may_not_fall_below_what_is_mined_in_time() -> None:
    """BOLT 2, "if the `update_fee` is too low for timely processing": our commitment stays the better one."""
    pair = open_pair(anchors=False, push_msat=400_000_000)
    channel_id = pair.bob.funded.params.channel_id
    pair.bob.feerate_per_kw = 5_000
    assert violates(pair.bob, UpdateFee(channel_id, 999), "too low").action == "warning"
    pair.bob.receive(encode(UpdateFee(channel_id, 1_001)))  # better than before
    pair.bob.feerate_per_kw = 1_800
    pair.bob.receive(encode(UpdateFee(channel_id, 900)))
