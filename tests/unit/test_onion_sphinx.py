"""Onion packets: BOLT 4's vectors, random routes, and every way a packet can be wrong."""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channeld.bolt.onion.crypto import apply_stream, apply_stream_from, derive_key, hmac256
from channeld.bolt.onion.failures import (
    InvalidOnionBlinding,
    InvalidOnionHmac,
    InvalidOnionKey,
    InvalidOnionPayload,
    InvalidOnionVersion,
)
from channeld.bolt.onion.messages import IgnoredOnionMessage, read_message_onion
from channeld.bolt.onion.payment import Forward, Receive, read_payment_onion
from channeld.bolt.onion.sphinx import BadOnion, OnionError, OnionTooLong, RefusedOnion, build_onion, peel_onion
from channeld.bolt.primitives import decode_bigsize, encode_bigsize
from wallet.bitcoin.secp import InvalidKey, ecdh, pubkey_of

VECTORS = Path(__file__).parent.parent / "vectors" / "bolt04"
SESSION_KEY = b"\x41" * 32
PAYMENT_HASH = b"\x42" * 32
NODE_SECRETS = [bytes([number]) * 32 for number in range(1, 28)]
NODE_IDS = [pubkey_of(secret) for secret in NODE_SECRETS]


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def without_length(payload: str) -> bytes:
    data = bytes.fromhex(payload)
    _, start = decode_bigsize(data)
    return data[start:]


def test_bolt4_vector_builds_and_peels() -> None:
    vector = load("onion-test.json")
    generate = vector["generate"]
    associated_data = bytes.fromhex(generate["associated_data"])
    hops = [(bytes.fromhex(hop["pubkey"]), without_length(hop["payload"])) for hop in generate["hops"]]
    onion = build_onion(hops, bytes.fromhex(generate["session_key"]), associated_data)
    assert onion.packet.hex() == vector["onion"]
    packet: bytes | None = onion.packet
    for (_, payload), secret, shared_secret in zip(hops, vector["decode"], onion.shared_secrets, strict=True):
        assert packet is not None
        assert len(packet) == 1366
        peeled = peel_onion(packet, bytes.fromhex(secret), associated_data)
        assert peeled.payload == payload
        assert peeled.shared_secret == shared_secret
        assert peeled.replay_key == sha256(shared_secret).digest()
        packet = peeled.next_packet
    assert packet is None


@given(st.binary(min_size=32, max_size=32), st.integers(0, 300), st.binary(max_size=200))
def test_the_stream_from_an_offset_is_the_end_of_the_whole(key: bytes, offset: int, data: bytes) -> None:
    assert apply_stream_from(key, offset, data) == apply_stream(key, bytes(offset) + data)[offset:]


@settings(max_examples=40, deadline=None)
@given(
    payloads=st.lists(st.binary(min_size=2, max_size=60), min_size=1, max_size=12),
    session_key=st.binary(min_size=32, max_size=32).filter(lambda key: any(key[1:]) and key[0] < 0xFF),
    associated_data=st.binary(max_size=40),
    size=st.sampled_from([1300, 1301, 2500, 32768]),
)
def test_every_hop_finds_its_payload(
    payloads: list[bytes], session_key: bytes, associated_data: bytes, size: int
) -> None:
    hops = list(zip(NODE_IDS, payloads, strict=False))
    packet: bytes | None = build_onion(hops, session_key, associated_data, size).packet
    for secret, payload in zip(NODE_SECRETS, payloads, strict=False):
        assert packet is not None
        assert len(packet) == size + 66
        peeled = peel_onion(packet, secret, associated_data)
        assert peeled.payload == payload
        assert peeled.is_final == (peeled.next_packet is None)
        packet = peeled.next_packet
    assert packet is None


def test_a_route_that_fills_the_packet_to_the_last_byte() -> None:
    hops = [(node_id, bytes(17)) for node_id in NODE_IDS[:26]]  # 26 * (1 + 17 + 32) = 1300
    packet: bytes | None = build_onion(hops, SESSION_KEY).packet
    for secret in NODE_SECRETS[:26]:
        assert packet is not None
        packet = peel_onion(packet, secret).next_packet
    assert packet is None
    one_more = [*hops[:-1], (hops[-1][0], bytes(18))]
    with pytest.raises(OnionTooLong, match="26 hops do not fit into 1300 bytes"):
        build_onion(one_more, SESSION_KEY)


def test_a_payload_of_253_bytes_has_a_three_byte_length() -> None:
    packet = build_onion([(NODE_IDS[0], bytes(253))], SESSION_KEY).packet
    assert peel_onion(packet, NODE_SECRETS[0]).payload == bytes(253)
    largest = bytes(1300 - 3 - 32)
    assert peel_onion(build_onion([(NODE_IDS[0], largest)], SESSION_KEY).packet, NODE_SECRETS[0]).payload == largest


def test_building_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least one hop"):
        build_onion([], SESSION_KEY)
    with pytest.raises(ValueError, match="less than 2 bytes"):
        build_onion([(NODE_IDS[0], b"\x00")], SESSION_KEY)
    with pytest.raises(InvalidKey):
        build_onion([(NODE_IDS[0], b"ab")], bytes(32))
    with pytest.raises(InvalidKey):
        build_onion([(b"\x02" + b"\xff" * 32, b"ab")], SESSION_KEY)


def peel_bad(packet: bytes, associated_data: bytes = b"", path_key: bytes | None = None) -> BadOnion:
    with pytest.raises(BadOnion) as caught:
        peel_onion(packet, NODE_SECRETS[0], associated_data, path_key)
    assert caught.value.sha256_of_onion == sha256(packet).digest()
    return caught.value


def test_bad_onions_name_their_code_and_hash() -> None:
    packet = build_onion([(NODE_IDS[0], b"hello"), (NODE_IDS[1], b"world")], SESSION_KEY, PAYMENT_HASH).packet
    version = peel_bad(b"\x01" + packet[1:], PAYMENT_HASH)
    assert version.failure_code == 0xC004
    assert isinstance(version.failure, InvalidOnionVersion)
    key = peel_bad(packet[:1] + b"\x02" + b"\xff" * 32 + packet[34:], PAYMENT_HASH)
    assert key.failure_code == 0xC006
    assert isinstance(key.failure, InvalidOnionKey)
    hmac = peel_bad(packet, b"\x43" * 32)
    assert hmac.failure_code == 0xC005
    assert isinstance(hmac.failure, InvalidOnionHmac)
    assert peel_bad(b"").failure_code == 0xC004
    assert peel_bad(packet[:65], PAYMENT_HASH).failure_code == 0xC005


@settings(max_examples=60, deadline=None)
@given(position=st.integers(1, 1365), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, flip: int) -> None:
    packet = bytearray(build_onion([(NODE_IDS[0], b"hello")], SESSION_KEY, PAYMENT_HASH).packet)
    packet[position] ^= flip
    assert peel_bad(bytes(packet), PAYMENT_HASH).failure_code in (0xC005, 0xC006)


def test_everything_behind_a_path_key_is_invalid_onion_blinding() -> None:
    packet = build_onion([(NODE_IDS[0], b"hello")], SESSION_KEY, PAYMENT_HASH).packet
    for broken, path_key in [
        (packet, NODE_IDS[5]),
        (b"\x01" + packet[1:], NODE_IDS[5]),
        (packet, b"\x02" + b"\xff" * 32),
        (b"", NODE_IDS[5]),
    ]:
        error = peel_bad(broken, PAYMENT_HASH, path_key)
        assert error.failure_code == 0xC018
        assert isinstance(error.failure, InvalidOnionBlinding)


def authenticated(head: bytes, size: int = 1300) -> bytes:
    """A packet for node 0 whose unwrapped payloads begin with `head`."""
    shared_secret = ecdh(SESSION_KEY, NODE_IDS[0])
    payloads = apply_stream(derive_key(b"rho", shared_secret), head + bytes(size - len(head)))
    return b"\x00" + pubkey_of(SESSION_KEY) + payloads + hmac256(derive_key(b"mu", shared_secret), payloads)


@pytest.mark.parametrize(
    "head",
    [b"\x00", b"\x01", b"\xfd\x00\x10", b"\xfd\x05\x00", b"\xfd\x04\xf2", b"\xff" * 9, b"\xfe\x00\x01\x00\x00"],
    ids=["legacy", "reserved", "not minimal", "too long", "hmac cut", "huge", "past the end"],
)
def test_impossible_lengths_are_invalid_payloads(head: bytes) -> None:
    with pytest.raises(RefusedOnion) as caught:
        peel_onion(authenticated(head), NODE_SECRETS[0])
    assert caught.value.failure == InvalidOnionPayload()
    assert caught.value.shared_secret == ecdh(SESSION_KEY, NODE_IDS[0])


def test_payloads_of_no_size_are_refused() -> None:
    with pytest.raises(RefusedOnion):
        peel_onion(authenticated(b"", 0), NODE_SECRETS[0])


RECORDS = st.tuples(
    st.sampled_from([2, 4, 6, 8, 10, 12, 14, 16, 18, 65537, 5482373484]),
    st.binary(max_size=9) | st.sampled_from([NODE_IDS[3], bytes(32), b"\x02" + b"\xff" * 32, bytes(41)]),
)


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(RECORDS, max_size=5, unique_by=lambda record: record[0]).map(sorted),
    tail=st.binary(max_size=2),
    is_final=st.booleans(),
)
def test_reading_any_payload_gives_an_instruction_or_an_answer(
    records: list[tuple[int, bytes]], tail: bytes, is_final: bool
) -> None:
    payload = b"".join(encode_bigsize(kind) + encode_bigsize(len(value)) + value for kind, value in records) + tail
    hops = [(NODE_IDS[0], payload.ljust(2, b"\x00"))] + [(NODE_IDS[1], b"ab")] * (not is_final)
    packet = build_onion(hops, SESSION_KEY, PAYMENT_HASH).packet
    with contextlib.suppress(OnionError):
        read = read_payment_onion(packet, PAYMENT_HASH, 1 << 60, 1 << 30, NODE_SECRETS[0])
        assert isinstance(read, Receive if is_final else Forward)
    with pytest.raises(OnionError):
        read_payment_onion(packet, PAYMENT_HASH, 1000, 500, NODE_SECRETS[0], NODE_IDS[2])


@settings(max_examples=100, deadline=None)
@given(packet=st.binary(max_size=200) | st.binary(min_size=1330, max_size=1370).map(lambda raw: b"\x00\x02" + raw))
def test_garbage_is_refused(packet: bytes) -> None:
    with pytest.raises(BadOnion):
        read_payment_onion(packet, PAYMENT_HASH, 1000, 500, NODE_SECRETS[0])
    with pytest.raises(IgnoredOnionMessage):
        read_message_onion(packet, NODE_IDS[2], NODE_SECRETS[0])
