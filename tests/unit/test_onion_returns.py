"""Failures coming back: BOLT 4's vectors, blame, hold times, and every failure message."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channeld.bolt.codec import structure
from channeld.bolt.onion import failures
from channeld.bolt.onion.attribution import (
    ATTRIBUTION_SIZE,
    Attribution,
    add_attribution,
    verify_fulfill_attribution,
)
from channeld.bolt.onion.crypto import derive_key
from channeld.bolt.onion.failures import FAILURES, Failure, UnknownFailure, decode_failure, encode_failure
from channeld.bolt.onion.returns import ReadFailure, ReturnPacket, create_failure, read_failure, relay_failure

VECTORS = Path(__file__).parent.parent / "vectors" / "bolt04"
SECRETS = [bytes([number]) * 32 for number in range(1, 31)]


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def test_bolt4_vector_of_a_simple_error() -> None:
    vector = load("onion-error-test.json")
    hops = vector["generate"]["hops"]
    secrets = [bytes.fromhex(hop["hop_shared_secret"]) for hop in hops]
    for secret, hop in zip(secrets, hops, strict=True):
        assert derive_key(b"ammag", secret).hex() == hop["ammag_key"]
    assert derive_key(b"um", secrets[4]).hex() == hops[4]["um_key"]
    message = bytes.fromhex(vector["generate"]["failure_message"])
    packet = create_failure(secrets[4], message)
    for secret in reversed(secrets[:4]):
        packet = relay_failure(secret, packet)
    assert packet.reason.hex() == vector["errorpacket"]
    assert packet.attribution_data is None
    assert read_failure(secrets, packet) == ReadFailure(4, message, None)
    assert decode_failure(message) == failures.TemporaryNodeFailure()


def test_bolt4_vector_of_attribution_data() -> None:
    vector = load("attribution-test.json")
    hops = vector["hops"]
    secrets = [bytes.fromhex(hop["shared_secret"]) for hop in hops]
    message = bytes.fromhex(vector["failure_message"])
    packet: ReturnPacket | None = None
    fulfill: bytes | None = None
    for hop, secret in zip(reversed(hops), reversed(secrets), strict=True):
        hold_time = hop["hold_time"]
        packet = (
            create_failure(secret, message, hold_time) if packet is None else relay_failure(secret, packet, hold_time)
        )
        fulfill = add_attribution(secret, fulfill, hold_time)
        assert packet.reason.hex() == hop["error_packet"]
        assert packet.attribution_data is not None
        assert packet.attribution_data.hex() == hop["attribution_data"]
        assert fulfill.hex() == hop["fulfill_attribution_data"]
    assert packet is not None
    assert fulfill is not None
    assert read_failure(secrets, packet) == ReadFailure(4, message, Attribution((5, 4, 3, 2, 1), None))
    assert verify_fulfill_attribution(secrets, fulfill) == Attribution((5, 4, 3, 2, 1), None)
    value = decode_failure(message)
    assert value == failures.IncorrectOrUnknownPaymentDetails(100, 800000, tlvs=((34001, b"\x80" * 300),))
    assert encode_failure(value) == message


@settings(max_examples=30, deadline=None)
@given(hops=st.integers(1, 27), data=st.data(), message=st.binary(max_size=1200))
def test_the_sender_finds_the_erring_hop(hops: int, data: st.DataObject, message: bytes) -> None:
    erring = data.draw(st.integers(0, hops - 1))
    packet = create_failure(SECRETS[erring], message, erring)
    for hop in reversed(range(erring)):
        packet = relay_failure(SECRETS[hop], packet, hop)
    read = read_failure(SECRETS[:hops], packet)
    assert (read.erring_hop, read.failure_message) == (erring, message)
    assert read.attribution is not None
    if hops <= 20:
        assert read.attribution == Attribution(tuple(range(erring + 1)), None)


def test_whoever_changes_the_packet_is_found() -> None:
    for culprit in range(5):
        packet = create_failure(SECRETS[4], b"\x20\x02", 7)
        for hop in reversed(range(4)):
            if hop + 1 == culprit:
                damaged = bytes([packet.reason[0] ^ 1]) + packet.reason[1:]
                packet = ReturnPacket(damaged, packet.attribution_data)
            packet = relay_failure(SECRETS[hop], packet, 7)
        if culprit == 0:
            packet = ReturnPacket(packet.reason[:-1] + b"\x00", packet.attribution_data)
        read = read_failure(SECRETS[:5], packet)
        assert read.erring_hop is None
        assert read.failure_message == b""
        assert read.attribution == Attribution((7,) * culprit, culprit)


def test_attribution_that_starts_in_the_middle_reaches_as_far() -> None:
    packet = create_failure(SECRETS[3], b"\x20\x02")
    packet = relay_failure(SECRETS[2], packet)
    packet = relay_failure(SECRETS[1], packet, 11)
    packet = relay_failure(SECRETS[0], packet, 12)
    read = read_failure(SECRETS[:4], packet)
    assert read == ReadFailure(3, b"\x20\x02", Attribution((12, 11), 2))


def test_attribution_of_the_wrong_size() -> None:
    assert add_attribution(SECRETS[0], bytes(919), 4) == add_attribution(SECRETS[0], None, 4)
    packet = create_failure(SECRETS[0], b"\x20\x02")
    read = read_failure(SECRETS[:1], ReturnPacket(packet.reason, bytes(10)))
    assert read == ReadFailure(0, b"\x20\x02", Attribution((), 0))
    relayed = relay_failure(SECRETS[1], ReturnPacket(packet.reason, bytes(10)), 3)
    assert relayed.attribution_data is not None
    assert len(relayed.attribution_data) == ATTRIBUTION_SIZE


def test_hold_times_are_cut_to_their_field() -> None:
    attribution = add_attribution(SECRETS[0], None, 1 << 40)
    assert verify_fulfill_attribution(SECRETS[:1], attribution).hold_times == (0xFFFFFFFF,)
    assert verify_fulfill_attribution(SECRETS[:1], add_attribution(SECRETS[0], None, -5)).hold_times == (0,)


@settings(max_examples=60, deadline=None)
@given(reason=st.binary(max_size=400), attribution=st.none() | st.binary(max_size=1000))
def test_garbage_from_the_next_hop_is_read_without_a_complaint(reason: bytes, attribution: bytes | None) -> None:
    read = read_failure(SECRETS[:3], ReturnPacket(reason, attribution))
    assert read.erring_hop is None
    assert len(relay_failure(SECRETS[0], ReturnPacket(reason, attribution), 1).reason) == len(reason)


def test_padding_hides_the_length() -> None:
    assert len(create_failure(SECRETS[0], bytes(2)).reason) == 256 + 36
    assert len(create_failure(SECRETS[0], bytes(256)).reason) == 256 + 36
    assert len(create_failure(SECRETS[0], bytes(257)).reason) == 1024 + 36
    assert len(create_failure(SECRETS[0], bytes(3000)).reason) == 3000 + 36
    with pytest.raises(ValueError, match="65536 bytes"):
        create_failure(SECRETS[0], bytes(65536))


EXAMPLES: list[tuple[Failure, str]] = [
    (failures.TemporaryNodeFailure(), "2002"),
    (failures.PermanentNodeFailure(), "6002"),
    (failures.RequiredNodeFeatureMissing(), "6003"),
    (failures.InvalidOnionVersion(b"\x01" * 32), "c004" + "01" * 32),
    (failures.InvalidOnionHmac(b"\x01" * 32), "c005" + "01" * 32),
    (failures.InvalidOnionKey(b"\x01" * 32), "c006" + "01" * 32),
    (failures.TemporaryChannelFailure(b"abc"), "10070003616263"),
    (failures.PermanentChannelFailure(), "4008"),
    (failures.RequiredChannelFeatureMissing(), "4009"),
    (failures.UnknownNextPeer(), "400a"),
    (failures.AmountBelowMinimum(7, b"a"), "100b0000000000000007000161"),
    (failures.FeeInsufficient(8), "100c00000000000000080000"),
    (failures.IncorrectCltvExpiry(9), "100d000000090000"),
    (failures.ExpiryTooSoon(), "100e0000"),
    (failures.IncorrectOrUnknownPaymentDetails(10, 11), "400f000000000000000a0000000b"),
    (failures.FinalIncorrectCltvExpiry(12), "00120000000c"),
    (failures.FinalIncorrectHtlcAmount(13), "0013000000000000000d"),
    (failures.ChannelDisabled(), "101400000000"),
    (failures.ExpiryTooFar(), "0015"),
    (failures.InvalidOnionPayload(5482373484, 3), "4016ff0000000146c6616c0003"),
    (failures.MppTimeout(), "0017"),
    (failures.InvalidOnionBlinding(bytes(32)), "c018" + "00" * 32),
]


def test_the_examples_cover_every_code() -> None:
    assert {type(value) for value, _ in EXAMPLES} == set(FAILURES.values())
    assert len(FAILURES) == 22


@pytest.mark.parametrize(("value", "encoded"), EXAMPLES, ids=[value.NAME for value, _ in EXAMPLES])
def test_failures_round_trip(value: Failure, encoded: str) -> None:
    raw = bytes.fromhex(encoded)
    assert encode_failure(value) == raw
    assert decode_failure(raw) == value
    with_tlv = dataclasses.replace(value, tlvs=((34001, b"x"),))
    assert decode_failure(encode_failure(with_tlv)) == with_tlv
    assert decode_failure(raw + b"\xff") == value
    assert value.is_bad_onion == bool(raw[0] & 0x80)
    assert value.is_permanent == bool(raw[0] & 0x40)
    assert value.is_node_failure == bool(raw[0] & 0x20)
    assert value.is_update == bool(raw[0] & 0x10)


def test_what_is_not_understood_keeps_its_flags() -> None:
    assert decode_failure(b"") == UnknownFailure(0, b"")
    assert decode_failure(b"\x40") == UnknownFailure(0, b"")
    unknown = decode_failure(b"\x6f\xffdata")
    assert unknown == UnknownFailure(0x6FFF, b"data")
    assert unknown.is_permanent
    assert unknown.is_node_failure
    assert encode_failure(unknown) == b"\x6f\xffdata"
    cut_off = decode_failure(bytes.fromhex("400f000000000000"))
    assert cut_off == UnknownFailure(0x400F, bytes(6))


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.sampled_from(list(FAILURES)).map(lambda code: code.to_bytes(2, "big") + b"\x00\x05"))
def test_decoding_a_failure_never_raises(message: bytes) -> None:
    assert decode_failure(message).code == (int.from_bytes(message[:2], "big") if len(message) > 1 else 0)


def test_a_failure_must_be_declared_to_be_encoded() -> None:
    @structure
    class Undeclared(Failure):
        """Has no code."""

    assert Undeclared().code == 0
