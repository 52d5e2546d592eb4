"""What a forwarded HTLC is held against: each rule, in BOLT 4's order, with the right data; circuits, failures."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from channeld.bolt.features import Feature, optional
from channeld.bolt.messages import AttributionData, UpdateFailHtlc, encode
from channeld.bolt.onion import failures as f
from channeld.bolt.onion.blinding import BlindedPayInfo, PaymentRelay
from channeld.bolt.onion.payment import BlindedRole, Forward, OnionContext
from channeld.bolt.onion.returns import ReturnPacket, create_failure, read_failure
from channeld.bolt.transactions import Htlc
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.state import Live, Offline, Syncing
from channeld.gossip.own import ForwardingPolicy
from channeld.node.circuits import Circuit, circuit_of
from channeld.node.forwarding import MOST_REASON_BYTES, Forwarder, _knows_blinding, failure_event
from channeld.node.policies import MAX_CLTV_BLOCKS, SOONEST_EXPIRY_BLOCKS, ForwardTerms, check_forward, fee_msat
from tests.machine.harness import open_pair

HEIGHT = 1000
POLICY = ForwardingPolicy(1000, 100, 34, 5_000, 2_000_000)
AMOUNT_MSAT = 1_000_000
FEE_MSAT = 1_100
UPDATE = b"update"


def check(
    incoming_msat: int = AMOUNT_MSAT + FEE_MSAT,
    incoming_expiry: int = HEIGHT + 100 + 34,
    outgoing_msat: int = AMOUNT_MSAT,
    outgoing_expiry: int = HEIGHT + 100,
    policies: tuple[ForwardingPolicy, ...] = (POLICY,),
) -> f.Failure | None:
    terms = ForwardTerms(incoming_msat, incoming_expiry, outgoing_msat, outgoing_expiry)
    return check_forward(terms, policies, HEIGHT, lambda: UPDATE)


def test_what_keeps_every_rule_exactly_is_let_through() -> None:
    assert fee_msat(POLICY, AMOUNT_MSAT) == FEE_MSAT
    assert check() is None
    assert check(incoming_msat=5_000 + 1_000, outgoing_msat=5_000) is None
    assert check(outgoing_expiry=HEIGHT + SOONEST_EXPIRY_BLOCKS + 1) is None
    assert check(incoming_expiry=HEIGHT + MAX_CLTV_BLOCKS) is None


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({"outgoing_msat": 4_999}, f.AmountBelowMinimum(4_999, UPDATE)),
        ({"outgoing_msat": 0}, f.AmountBelowMinimum(0, UPDATE)),
        ({"incoming_msat": AMOUNT_MSAT + FEE_MSAT - 1}, f.FeeInsufficient(AMOUNT_MSAT + FEE_MSAT - 1, UPDATE)),
        ({"incoming_msat": AMOUNT_MSAT - 1}, f.FeeInsufficient(AMOUNT_MSAT - 1, UPDATE)),
        ({"incoming_expiry": HEIGHT + 133}, f.IncorrectCltvExpiry(HEIGHT + 100, UPDATE)),
        ({"incoming_msat": 3_000_000, "outgoing_msat": 2_000_001}, f.TemporaryChannelFailure(UPDATE)),
        ({"outgoing_expiry": HEIGHT + SOONEST_EXPIRY_BLOCKS}, f.ExpiryTooSoon(UPDATE)),
        ({"incoming_expiry": HEIGHT + MAX_CLTV_BLOCKS + 1}, f.ExpiryTooFar()),
        ({"outgoing_msat": 10, "incoming_msat": 5, "outgoing_expiry": 0}, f.AmountBelowMinimum(10, UPDATE)),
    ],
)
def test_what_breaks_a_rule_gets_its_code(terms: dict[str, Any], expected: f.Failure) -> None:
    assert check(**terms) == expected


def test_what_a_blinded_path_leaves_is_enough_whatever_was_rounded() -> None:
    # BOLT 4, "`amt_to_forward = ((amount_msat - fee_base_msat) * 1000000 + 1000000 + fee_proportional_millionths - 1) /
    # (1000000 + fee_proportional_millionths)`"
    relay = PaymentRelay(34, 3_000, 1_000)
    policy = POLICY._replace(fee_base_msat=1_000, fee_proportional_millionths=3_000)
    payinfo = BlindedPayInfo(relay.fee_base_msat, relay.fee_proportional_millionths, 34, 1, AMOUNT_MSAT)
    short = 0
    for amount_msat in range(AMOUNT_MSAT, AMOUNT_MSAT + 2_000):
        incoming_msat = amount_msat + payinfo.fee_msat(amount_msat)
        outgoing_msat = relay.amount_to_forward_msat(incoming_msat)
        terms = ForwardTerms(incoming_msat, HEIGHT + 134, outgoing_msat, HEIGHT + 100, is_blinded=True)
        assert check_forward(terms, (policy,), HEIGHT, lambda: UPDATE) is None
        short += incoming_msat - outgoing_msat < fee_msat(policy, outgoing_msat)
    assert short


def test_the_policy_before_still_holds_for_a_while() -> None:
    dearer = POLICY._replace(fee_base_msat=5_000)
    assert check(policies=(dearer,)) == f.FeeInsufficient(AMOUNT_MSAT + FEE_MSAT, UPDATE)
    assert check(policies=(dearer, POLICY)) is None


def circuit(role: BlindedRole = BlindedRole.NONE) -> Circuit:
    return Circuit(3, 7, AMOUNT_MSAT, b"\x11" * 32, b"\x22" * 32, role.value, 1_700_000_000_000)


def test_a_circuit_survives_as_origin() -> None:
    assert circuit_of(circuit().origin()) == circuit()
    assert circuit_of(b"P" + bytes(9)) is None


def failed(**fields: object) -> fx.HtlcFailed:
    return fx.HtlcFailed(9, circuit().origin(), bytes(32), AMOUNT_MSAT, **fields)  # type: ignore[arg-type]


def message_of(event: ev.Event, *secrets: bytes) -> tuple[int | None, f.Failure]:
    """What the sender reads: which hop failed, and why."""
    assert isinstance(event, ev.FailHtlc)
    assert event.id == 7
    packet = ReturnPacket(event.reason, event.tlvs.get("attribution_data"))
    read = read_failure((circuit().shared_secret, *secrets), packet)
    assert read.attribution is not None
    assert read.attribution.unproven_hop is None
    return read.erring_hop, f.decode_failure(read.failure_message)


def test_failures_are_relayed_with_hold_times() -> None:
    downstream = create_failure(b"\x33" * 32, f.encode_failure(f.MppTimeout()), 5)
    event = failure_event(circuit(), failed(reason=downstream.reason, attribution_data=downstream.attribution_data))
    assert message_of(event, b"\x33" * 32) == (1, f.MppTimeout())


def test_failures_without_a_reason_get_one_of_ours() -> None:
    assert message_of(failure_event(circuit(), failed(never_sent=True))) == (0, f.TemporaryChannelFailure())
    assert message_of(failure_event(circuit(), failed(on_chain=True))) == (0, f.PermanentChannelFailure())
    code = f.InvalidOnionHmac.CODE
    malformed = failure_event(circuit(), failed(failure_code=code, sha256_of_onion=b"\x44" * 32))
    assert message_of(malformed) == (0, f.InvalidOnionHmac(b"\x44" * 32))


def test_a_reason_of_any_length_fits_its_message() -> None:
    for size in (MOST_REASON_BYTES, MOST_REASON_BYTES + 1, 65_491):  # the last is all that a message can carry
        event = failure_event(circuit(), failed(reason=bytes(size), attribution_data=bytes(920)))
        assert isinstance(event, ev.FailHtlc)
        data = event.tlvs.get("attribution_data")
        record = None if data is None else AttributionData.from_bytes(data)
        message = encode(UpdateFailHtlc(bytes(32), 0, event.reason, record))
        assert len(message) <= 65_535
        assert (record is not None) == (size <= MOST_REASON_BYTES)


@pytest.mark.parametrize("link", [Live, Syncing])
def test_a_path_key_is_for_those_who_know_it(link: type[Live | Syncing]) -> None:
    # BOLT 1, "MUST NOT send evenly-typed TLV records in the `extension` without prior negotiation."
    def knows(link: Live | Syncing | Offline) -> bool:
        driver = SimpleNamespace(state=replace(open_pair().alice.funded, link=link))
        return _knows_blinding(cast(Any, driver))

    assert knows(link(optional(Feature.option_route_blinding)))
    assert not knows(link(frozenset())), "another channel with the same peer may be ready"
    assert knows(Offline()), "it is not asked then"


def test_no_other_channel_takes_a_path_key_to_a_peer_that_does_not_know_it() -> None:
    asked, *others = (SimpleNamespace(peer_id=b"peer", state=open_pair().alice.funded) for _ in range(3))
    asked.state = replace(asked.state, link=Offline())  # its peer is back, but it is busy
    others[0].state = replace(others[0].state, link=Live(optional(Feature.option_route_blinding)))
    others[1].state = replace(others[1].state, link=Live(frozenset()))
    channels = SimpleNamespace(usable_with=lambda peer_id: others)
    nothing = cast(Any, None)
    forwarder = Forwarder(nothing, cast(Any, channels), nothing, nothing, lambda: 1, lambda: True, lambda *_: b"")
    onion = Forward(1, 2, 3, None, bytes(1366), None, OnionContext(bytes(32), bytes(32), BlindedRole.NONE))
    incoming, htlc = cast(Any, SimpleNamespace(channel_key=7)), Htlc(0, 1, bytes(32), 9, False)
    offer = forwarder._prepare(incoming, htlc, onion, cast(Any, asked))
    assert list(offer.candidates) == [asked, *others]
    blinded = dataclasses.replace(onion, next_path_key=bytes(33))
    offer = forwarder._prepare(incoming, htlc, blinded, cast(Any, asked))
    assert list(offer.candidates) == [asked, others[0]]


def test_inside_a_blinded_path_all_failures_look_alike() -> None:
    effect = failed(reason=b"whatever")
    inside = failure_event(circuit(BlindedRole.INSIDE), effect)
    assert inside == ev.FailMalformedHtlc(7, b"\x22" * 32, f.InvalidOnionBlinding.CODE)
    event = failure_event(circuit(BlindedRole.INTRODUCTION), effect)
    assert isinstance(event, ev.FailHtlc)
    read = read_failure((circuit().shared_secret,), ReturnPacket(event.reason))
    assert f.decode_failure(read.failure_message) == f.InvalidOnionBlinding(b"\x22" * 32)
