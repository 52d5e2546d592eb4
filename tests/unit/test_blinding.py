"""Route blinding, payment onions and onion messages: BOLT 4's vectors and the readers' rules."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channeld.bolt.codec import join_tlv_stream
from channeld.bolt.onion import failures
from channeld.bolt.onion.blinding import (
    BlindedPath,
    BlindedPathHop,
    BlindingError,
    EncryptedData,
    PaymentConstraints,
    PaymentRelay,
    aggregate_relay,
    blinded_node_id,
    blinded_node_secret,
    create_blinded_path,
    decrypt_data,
    encrypt_data,
    next_path_key,
    pad_alike,
    prepend_hops,
)
from channeld.bolt.onion.crypto import derive_key
from channeld.bolt.onion.messages import (
    ForwardMessage,
    IgnoredOnionMessage,
    OnionMessagePayload,
    ReceiveMessage,
    build_message_onion,
    read_message_onion,
)
from channeld.bolt.onion.payment import (
    BlindedRole,
    Forward,
    PaymentPayload,
    Receive,
    blinded_payloads,
    build_payment_onion,
    final_payload,
    forward_payload,
    keysend_payload,
    read_payment_onion,
)
from channeld.bolt.onion.sphinx import BadOnion, OnionTooLong, RefusedOnion, build_onion, peel_onion
from channeld.bolt.primitives import decode_bigsize, parse_short_channel_id
from wallet.bitcoin.secp import ecdh, pubkey_of

VECTORS = Path(__file__).parent.parent / "vectors" / "bolt04"
SESSION_KEY = b"\x21" * 32
PAYMENT_HASH = b"\x42" * 32
SECRETS = [bytes([0x41 + number]) * 32 for number in range(6)]
NODE_IDS = [pubkey_of(secret) for secret in SECRETS]


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def unhex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def data_of(tlvs: dict[str, Any]) -> EncryptedData:
    """EncryptedData out of a vector's readable form."""
    relay, constraints = tlvs.get("payment_relay"), tlvs.get("payment_constraints")
    features = None
    if "allowed_features" in tlvs:
        mask = sum(1 << bit for bit in tlvs["allowed_features"]["features"])
        features = mask.to_bytes((mask.bit_length() + 7) // 8, "big")
    unknown = [(int(name[12:]), bytes.fromhex(value)) for name, value in tlvs.items() if name.startswith("unknown_tag")]
    return EncryptedData(
        padding=unhex(tlvs.get("padding")),
        short_channel_id=parse_short_channel_id(tlvs["short_channel_id"]) if "short_channel_id" in tlvs else None,
        next_node_id=unhex(tlvs.get("next_node_id")),
        path_id=unhex(tlvs.get("path_id")),
        next_path_key_override=unhex(tlvs.get("next_path_key_override")),
        payment_relay=PaymentRelay(**relay) if relay else None,
        payment_constraints=PaymentConstraints(**constraints) if constraints else None,
        allowed_features=features,
        unknown_tlvs=tuple(unknown),
    )


# --- route-blinding-test.json -------------------------------------------------------------------------------------


def test_bolt4_vector_of_route_blinding() -> None:
    vector = load("route-blinding-test.json")
    hops = vector["generate"]["hops"]
    datas = [data_of(hop["tlvs"]) for hop in hops]
    for hop, data in zip(hops, datas, strict=True):
        assert data.to_bytes().hex() == hop["encoded_tlvs"]
        secret = ecdh(bytes.fromhex(hop["path_privkey"]), bytes.fromhex(hop["node_id"]))
        assert secret.hex() == hop["shared_secret"]
        assert derive_key(b"rho", secret).hex() == hop["rho"]
        assert pubkey_of(bytes.fromhex(hop["path_privkey"])).hex() == hop["path_key"]
        assert encrypt_data(secret, data.to_bytes()).hex() == hop["encrypted_data"]
        assert blinded_node_id(bytes.fromhex(hop["node_id"]), secret).hex() == hop["blinded_node_id"]
    node_ids = [bytes.fromhex(hop["node_id"]) for hop in hops]
    eve = create_blinded_path(list(zip(node_ids[2:], datas[2:], strict=True)), bytes.fromhex(hops[2]["session_key"]))
    assert eve.last_path_key.hex() == hops[3]["path_key"]
    bob = list(zip(node_ids[:2], datas[:2], strict=True))
    bob[1] = (bob[1][0], dataclasses.replace(bob[1][1], next_path_key_override=None))
    whole = prepend_hops(bob, bytes.fromhex(hops[0]["session_key"]), eve.path)
    route = vector["route"]
    expected = tuple(
        BlindedPathHop(bytes.fromhex(hop["blinded_node_id"]), bytes.fromhex(hop["encrypted_data"]))
        for hop in route["hops"]
    )
    assert whole == BlindedPath(bytes.fromhex(route["first_node_id"]), bytes.fromhex(route["first_path_key"]), expected)
    assert BlindedPath.from_bytes(whole.to_bytes()) == whole


def test_bolt4_vector_of_unblinding() -> None:
    vector = load("route-blinding-test.json")
    for hop, encrypted in zip(vector["unblind"]["hops"], vector["route"]["hops"], strict=True):
        path_key = bytes.fromhex(hop["path_key"])
        node_secret = bytes.fromhex(hop["node_privkey"])
        secret = ecdh(node_secret, path_key)
        assert blinded_node_secret(node_secret, secret).hex() == hop["blinded_privkey"]
        data = decrypt_data(secret, bytes.fromhex(encrypted["encrypted_data"]))
        assert data.to_bytes().hex() == hop["decrypted_data"]
        without_override = dataclasses.replace(data, next_path_key_override=None)
        assert next_path_key(path_key, secret, without_override).hex() == hop["next_path_key"]
        if "next_path_key_override" in hop:
            assert next_path_key(path_key, secret, data).hex() == hop["next_path_key_override"]


def test_what_does_not_decrypt_is_a_blinding_error() -> None:
    secret = b"\x05" * 32
    good = encrypt_data(secret, EncryptedData(path_id=b"x").to_bytes())
    assert decrypt_data(secret, good).path_id == b"x"
    for broken, reason in [
        (good[:-1] + bytes([good[-1] ^ 1]), "does not decrypt"),
        (b"", "does not decrypt"),
        (encrypt_data(secret, b"\x10\x00"), "unknown even"),
        (encrypt_data(secret, b"\x02"), "bigsize missing"),
        (encrypt_data(secret, EncryptedData(short_channel_id=1, next_node_id=NODE_IDS[0]).to_bytes()), "both"),
    ]:
        with pytest.raises(BlindingError, match=reason):
            decrypt_data(secret, broken)


@given(st.lists(st.integers(0, 600), min_size=1, max_size=6))
def test_padding_makes_all_instructions_as_long(sizes: list[int]) -> None:
    datas = [EncryptedData(path_id=bytes(size), padding=b"old") for size in sizes]
    padded = pad_alike(datas)
    assert len({len(data.to_bytes()) for data in padded}) == 1
    assert [data.path_id for data in padded] == [data.path_id for data in datas]


def test_no_hops_no_path() -> None:
    with pytest.raises(ValueError, match="at least one hop"):
        create_blinded_path([], SESSION_KEY)
    path = create_blinded_path([(NODE_IDS[0], EncryptedData())], SESSION_KEY).path
    with pytest.raises(ValueError, match="no hops"):
        prepend_hops([], SESSION_KEY, path)


# --- blinded-payment-onion-test.json ------------------------------------------------------------------------------


def test_bolt4_vector_of_a_payment_to_a_blinded_path() -> None:
    vector = load("blinded-payment-onion-test.json")
    generate = vector["generate"]
    route = generate["blinded_route"]
    path = BlindedPath(
        bytes.fromhex(route["first_node_id"]),
        bytes.fromhex(route["first_path_key"]),
        tuple(
            BlindedPathHop(bytes.fromhex(hop["blinded_node_id"]), bytes.fromhex(hop["encrypted_data"]))
            for hop in route["hops"]
        ),
    )
    full = generate["full_route"]["hops"]
    relays = [hop["tlvs"]["encrypted_recipient_data"].get("payment_relay") for hop in full[1:-1]]
    info = generate["blinded_payinfo"]
    assert aggregate_relay([PaymentRelay(**relay) for relay in relays], 0) == PaymentRelay(
        info["cltv_expiry_delta"], info["fee_proportional_millionths"], info["fee_base_msat"]
    )
    amount_msat, cltv = generate["final_amount_msat"], generate["final_cltv"]
    total_msat = full[-1]["tlvs"]["total_amount_msat"]
    hops = [(bytes.fromhex(full[0]["pubkey"]), forward_payload(110125, 749150, parse_short_channel_id("0x0x10")))]
    hops += blinded_payloads(path, amount_msat, cltv, total_msat)
    for (node_id, payload), expected in zip(hops, full, strict=True):
        assert node_id.hex() == expected["pubkey"]
        raw = bytes.fromhex(expected["payload"])
        assert payload.to_bytes() == raw[decode_bigsize(raw)[1] :]
    payment_hash = bytes.fromhex(generate["associated_data"])
    onion = build_payment_onion(hops, bytes.fromhex(generate["session_key"]), payment_hash)
    assert onion.packet.hex() == generate["onion"]

    packet: bytes = onion.packet
    path_key, amount, expiry = None, 110125, 749150
    for node in vector["decrypt"]["hops"][:-1]:
        assert packet.hex() == node["onion"]
        read = read_payment_onion(packet, payment_hash, amount, expiry, bytes.fromhex(node["node_privkey"]), path_key)
        assert isinstance(read, Forward)
        assert read.next_path_key == unhex(node.get("next_path_key"))
        packet, path_key = read.next_packet, read.next_path_key
        amount, expiry = read.amt_to_forward, read.outgoing_cltv_value
    last = vector["decrypt"]["hops"][-1]
    assert packet.hex() == last["onion"]
    received = read_payment_onion(packet, payment_hash, amount, expiry, bytes.fromhex(last["node_privkey"]), path_key)
    assert isinstance(received, Receive)
    assert received.path_id is not None
    assert received.path_id.hex() == full[-1]["tlvs"]["encrypted_recipient_data"]["path_id"]
    assert (received.amt_to_forward, received.outgoing_cltv_value, received.total_msat) == (100000, 749000, 150000)
    assert received.payment_secret is None
    assert (amount, expiry) == (100000, 749000)


# --- payments over ordinary routes --------------------------------------------------------------------------------


def test_a_payment_over_three_nodes() -> None:
    hops = [
        (NODE_IDS[0], forward_payload(1010, 530, 77)),
        (NODE_IDS[1], forward_payload(1000, 520, 78)),
        (NODE_IDS[2], final_payload(1000, 520, b"\x07" * 32, 3000, b"meta", ((65537, b"custom"),))),
    ]
    packet = build_payment_onion(hops, SESSION_KEY, PAYMENT_HASH).packet
    first = read_payment_onion(packet, PAYMENT_HASH, 1020, 540, SECRETS[0])
    assert isinstance(first, Forward)
    assert (first.amt_to_forward, first.outgoing_cltv_value, first.short_channel_id) == (1010, 530, 77)
    assert first.next_node_id is None
    assert first.next_path_key is None
    second = read_payment_onion(first.next_packet, PAYMENT_HASH, 1010, 530, SECRETS[1])
    assert isinstance(second, Forward)
    assert second.short_channel_id == 78
    third = read_payment_onion(second.next_packet, PAYMENT_HASH, 1000, 520, SECRETS[2])
    assert isinstance(third, Receive)
    assert (third.amt_to_forward, third.outgoing_cltv_value, third.total_msat) == (1000, 520, 3000)
    assert (third.payment_secret, third.payment_metadata, third.path_id) == (b"\x07" * 32, b"meta", None)
    assert third.custom_records == ((65537, b"custom"),)
    assert len({first.context.replay_key, second.context.replay_key, third.context.replay_key}) == 3


def test_keysend_and_the_default_of_total_msat() -> None:
    preimage = b"\x09" * 32
    payment_hash = sha256(preimage).digest()
    packet = build_payment_onion([(NODE_IDS[0], keysend_payload(5, 6, preimage))], SESSION_KEY, payment_hash).packet
    read = read_payment_onion(packet, payment_hash, 7, 8, SECRETS[0])
    assert isinstance(read, Receive)
    assert (read.keysend_preimage, read.total_msat, read.payment_secret) == (preimage, 5, None)


def refused(hops: list[tuple[bytes, PaymentPayload]], amount_msat: int = 1000, cltv_expiry: int = 500) -> RefusedOnion:
    packet = build_payment_onion(hops, SESSION_KEY, PAYMENT_HASH).packet
    with pytest.raises(RefusedOnion) as caught:
        read_payment_onion(packet, PAYMENT_HASH, amount_msat, cltv_expiry, SECRETS[0])
    assert caught.value.shared_secret == peel_onion(packet, SECRETS[0], PAYMENT_HASH).shared_secret
    return caught.value


def test_incomplete_payloads_name_what_is_missing() -> None:
    last = (NODE_IDS[1], final_payload(1, 1, bytes(32), 1))
    for hops, tlv_type in [
        ([(NODE_IDS[0], PaymentPayload(outgoing_cltv_value=5))], 2),
        ([(NODE_IDS[0], PaymentPayload(amt_to_forward=5))], 4),
        ([(NODE_IDS[0], PaymentPayload(5, 5)), last], 6),
        ([(NODE_IDS[0], PaymentPayload(5, 5, current_path_key=NODE_IDS[3]))], 10),
        ([(NODE_IDS[0], PaymentPayload(5, 5, encrypted_recipient_data=b"x"))], 12),
    ]:
        assert refused(hops).failure == failures.InvalidOnionPayload(tlv_type, 0)


def test_unknown_even_records_are_named_with_their_offset() -> None:
    packet = build_onion([(NODE_IDS[0], bytes.fromhex("0201050401051400"))], SESSION_KEY, PAYMENT_HASH).packet
    with pytest.raises(RefusedOnion) as caught:
        read_payment_onion(packet, PAYMENT_HASH, 1000, 500, SECRETS[0])
    assert caught.value.failure == failures.InvalidOnionPayload(20, 6)


def test_a_final_htlc_with_less_than_the_onion_says() -> None:
    hops = [(NODE_IDS[0], final_payload(1000, 500, bytes(32), 1000))]
    assert refused(hops, amount_msat=999).failure == failures.FinalIncorrectHtlcAmount(999)
    assert refused(hops, cltv_expiry=499).failure == failures.FinalIncorrectCltvExpiry(499)


# --- payments over blinded paths ----------------------------------------------------------------------------------

RELAY = PaymentRelay(10, 1000, 100)
LIMITS = PaymentConstraints(1000, 50)


def blinded_onion(
    change: Callable[[EncryptedData], EncryptedData] = lambda data: data, change_final: bool = False
) -> tuple[bytes, bytes]:
    """An onion over nodes 0 (introduction), 1 and 2 (recipient), and the path key that node 1 will get."""
    middle = EncryptedData(short_channel_id=5, payment_relay=RELAY, payment_constraints=LIMITS)
    datas = [middle, EncryptedData(next_node_id=NODE_IDS[2], payment_relay=RELAY), EncryptedData(path_id=b"id")]
    index = 2 if change_final else 0
    datas[index] = change(datas[index])
    path = create_blinded_path(list(zip(NODE_IDS, datas, strict=False)), b"\x33" * 32).path
    hops = blinded_payloads(path, 10_000, 500, 10_000)
    packet = build_payment_onion(hops, SESSION_KEY, PAYMENT_HASH).packet
    secret = ecdh(SECRETS[0], path.first_path_key)
    return packet, next_path_key(path.first_path_key, secret, EncryptedData())


def test_amounts_and_expiries_shrink_along_the_path() -> None:
    packet, path_key = blinded_onion()
    first = read_payment_onion(packet, PAYMENT_HASH, 10_221, 520, SECRETS[0])
    assert isinstance(first, Forward)
    assert (first.amt_to_forward, first.outgoing_cltv_value) == (10_111, 510)
    assert (first.short_channel_id, first.next_node_id, first.next_path_key) == (5, None, path_key)
    assert first.context.role is BlindedRole.INTRODUCTION
    second = read_payment_onion(first.next_packet, PAYMENT_HASH, 10_111, 510, SECRETS[1], path_key)
    assert isinstance(second, Forward)
    assert (second.short_channel_id, second.next_node_id) == (None, NODE_IDS[2])
    assert second.context.role is BlindedRole.INSIDE
    third = read_payment_onion(
        second.next_packet, PAYMENT_HASH, second.amt_to_forward, 500, SECRETS[2], second.next_path_key
    )
    assert isinstance(third, Receive)
    assert (third.amt_to_forward, third.total_msat, third.path_id) == (10_000, 10_000, b"id")
    refusal = third.context.refusal(failures.MppTimeout())
    assert isinstance(refusal, BadOnion)
    assert refusal.failure_code == 0xC018


@pytest.mark.parametrize(
    ("change", "amount_msat", "cltv_expiry"),
    [
        (lambda data: data, 49, 520),
        (lambda data: data, 100, 520),
        (lambda data: data, 20_000, 1001),
        (lambda data: data, 20_000, 10),
        (lambda data: dataclasses.replace(data, payment_relay=None), 20_000, 520),
        (lambda data: dataclasses.replace(data, short_channel_id=None), 20_000, 520),
        (lambda data: dataclasses.replace(data, next_node_id=NODE_IDS[1]), 20_000, 520),
        (lambda data: dataclasses.replace(data, allowed_features=b"\x02"), 20_000, 520),
        # The next node could not even read `update_add_htlc`, and would end the connection again and again.
        (lambda data: dataclasses.replace(data, next_path_key_override=b"\x02" + b"\xff" * 32), 20_000, 520),
    ],
    ids=["minimum", "fee", "max expiry", "expiry delta", "no relay", "no next", "two next", "features", "override"],
)
def test_the_introduction_node_hides_what_is_wrong(
    change: Callable[[EncryptedData], EncryptedData], amount_msat: int, cltv_expiry: int
) -> None:
    packet, _ = blinded_onion(change)
    with pytest.raises(RefusedOnion) as caught:
        read_payment_onion(packet, PAYMENT_HASH, amount_msat, cltv_expiry, SECRETS[0])
    assert caught.value.failure == failures.InvalidOnionBlinding(sha256(packet).digest())


@pytest.mark.parametrize(
    "records",
    [
        [(10, b"data"), (12, NODE_IDS[3]), (20, b"")],
        [(10, b"data"), (12, b"\x05" + NODE_IDS[3][1:])],
        [(4, b"\x00\x05"), (10, b"data"), (12, NODE_IDS[3])],
    ],
    ids=["unknown even record", "no point", "padded number"],
)
def test_an_introduction_node_hides_that_it_cannot_read_its_payload(records: list[tuple[int, bytes]]) -> None:
    # BOLT 4, "if `current_path_key` is set in the onion payload and it is not the final node: MUST return an
    # `invalid_onion_blinding` error."
    payload = join_tlv_stream(records)
    last = (NODE_IDS[1], final_payload(1, 1, bytes(32), 1).to_bytes())
    packet = build_onion([(NODE_IDS[0], payload), last], SESSION_KEY, PAYMENT_HASH).packet
    with pytest.raises(RefusedOnion) as caught:
        read_payment_onion(packet, PAYMENT_HASH, 1000, 500, SECRETS[0])
    assert caught.value.failure == failures.InvalidOnionBlinding(sha256(packet).digest())
    alone = build_onion([(NODE_IDS[0], payload)], SESSION_KEY, PAYMENT_HASH).packet
    with pytest.raises(RefusedOnion) as caught:
        read_payment_onion(alone, PAYMENT_HASH, 1000, 500, SECRETS[0])
    assert isinstance(caught.value.failure, failures.InvalidOnionPayload), "the final node has nothing to hide"


def test_nodes_inside_answer_malformed_whatever_is_wrong() -> None:
    packet, path_key = blinded_onion()
    first = read_payment_onion(packet, PAYMENT_HASH, 10_221, 520, SECRETS[0])
    assert isinstance(first, Forward)
    inner = first.next_packet
    for wrong_packet, amount_msat, key in [(inner, 100, path_key), (inner, 10_111, NODE_IDS[4]), (packet, 1, path_key)]:
        with pytest.raises(BadOnion) as caught:
            read_payment_onion(wrong_packet, PAYMENT_HASH, amount_msat, 510, SECRETS[1], key)
        assert caught.value.failure == failures.InvalidOnionBlinding(sha256(wrong_packet).digest())


@pytest.mark.parametrize(
    "payload",
    [
        PaymentPayload(current_path_key=NODE_IDS[3]),
        PaymentPayload(amt_to_forward=5),
        PaymentPayload(5, 5, total_amount_msat=5, payment_metadata=b""),
        PaymentPayload(5, 5, total_amount_msat=5, unknown_tlvs=((65537, b""),)),
        PaymentPayload(5, 5, total_amount_msat=5, short_channel_id=1),
        PaymentPayload(1 << 40, 5, total_amount_msat=5),
        PaymentPayload(5, 501, total_amount_msat=5),
    ],
    ids=["second key", "no total", "metadata", "custom record", "channel", "amount", "expiry"],
)
def test_payloads_a_blinded_recipient_refuses(payload: PaymentPayload) -> None:
    created = create_blinded_path([(NODE_IDS[0], EncryptedData(path_id=b"p"))], b"\x33" * 32)
    hop = created.path.path[0]
    payload = dataclasses.replace(payload, encrypted_recipient_data=hop.encrypted_recipient_data)
    packet = build_payment_onion([(hop.blinded_node_id, payload)], SESSION_KEY, PAYMENT_HASH).packet
    with pytest.raises(BadOnion) as caught:
        read_payment_onion(packet, PAYMENT_HASH, 1000, 500, SECRETS[0], created.last_path_key)
    assert caught.value.failure_code == 0xC018


def test_a_recipient_that_is_its_own_introduction_node_answers_openly() -> None:
    created = create_blinded_path([(NODE_IDS[0], EncryptedData(path_id=b"p"))], b"\x33" * 32)
    hops = blinded_payloads(created.path, 1000, 500, 1000)
    packet = build_payment_onion(hops, SESSION_KEY, PAYMENT_HASH).packet
    read = read_payment_onion(packet, PAYMENT_HASH, 1000, 500, SECRETS[0])
    assert isinstance(read, Receive)
    assert read.path_id == b"p"
    with pytest.raises(RefusedOnion) as caught:
        read_payment_onion(packet, PAYMENT_HASH, 999, 500, SECRETS[0])
    assert caught.value.failure == failures.FinalIncorrectHtlcAmount(999)


def test_an_introduction_node_given_by_a_channel_must_be_resolved_first() -> None:
    hop = BlindedPathHop(NODE_IDS[0], b"")
    with pytest.raises(ValueError, match="not given by its node id"):
        blinded_payloads(BlindedPath(bytes(9), NODE_IDS[1], (hop,)), 1, 1, 1)


def test_somebody_elses_path_without_hops() -> None:
    empty = BlindedPath.from_bytes(NODE_IDS[0] + NODE_IDS[1] + b"\x00")
    with pytest.raises(ValueError, match="no hops"):
        blinded_payloads(empty, 1, 1, 1)
    with pytest.raises(ValueError, match="no hops"):
        build_message_onion(empty, OnionMessagePayload(), SESSION_KEY)


# --- onion messages -----------------------------------------------------------------------------------------------


def test_bolt4_vector_of_an_onion_message() -> None:
    vector = load("blinded-onion-message-onion-test.json")
    hops = vector["generate"]["hops"]
    datas = []
    for hop in hops:
        tlvs = {key: value for key, value in hop["tlvs"].items() if key != "path_key_override_secret"}
        datas.append(data_of(tlvs))
        assert datas[-1].to_bytes().hex() == hop["encrypted_data_tlv"]
    node_ids = [pubkey_of(bytes.fromhex(hop["privkey"])) for hop in vector["decrypt"]["hops"]]
    dave = create_blinded_path(list(zip(node_ids[1:], datas[1:], strict=True)), b"\x01" * 32)
    path = prepend_hops([(node_ids[0], datas[0])], b"\x63" * 32, dave.path)
    route = vector["route"]
    assert path.first_node_id.hex() == route["first_node_id"]
    assert path.first_path_key.hex() == route["first_path_key"]
    for made, expected in zip(path.path, route["hops"], strict=True):
        assert made.blinded_node_id.hex() == expected["blinded_node_id"]
        assert made.encrypted_recipient_data.hex() == expected["encrypted_recipient_data"]
    message = vector["onionmessage"]
    payload = OnionMessagePayload(unknown_tlvs=((1, bytes.fromhex(message["unknown_tag_1"])),))
    session_key = bytes.fromhex(vector["generate"]["session_key"])
    packet = build_message_onion(path, payload, session_key)
    assert packet.hex() == message["onion_message_packet"]

    path_key = path.first_path_key
    for node in vector["decrypt"]["hops"][:-1]:
        assert node["onion_message"] == "0201" + path_key.hex() + len(packet).to_bytes(2, "big").hex() + packet.hex()
        read = read_message_onion(packet, path_key, bytes.fromhex(node["privkey"]))
        assert isinstance(read, ForwardMessage)
        assert read.next_node_id == bytes.fromhex(node["next_node_id"])
        packet, path_key = read.packet, read.path_key
    received = read_message_onion(packet, path_key, bytes.fromhex(vector["decrypt"]["hops"][-1]["privkey"]))
    assert isinstance(received, ReceiveMessage)
    assert received.payload.unknown_tlvs == payload.unknown_tlvs
    assert received.path_id == bytes.fromhex(hops[-1]["tlvs"]["path_id"])


def message_path(middle: EncryptedData, last: EncryptedData) -> BlindedPath:
    return create_blinded_path([(NODE_IDS[0], middle), (NODE_IDS[1], last)], b"\x33" * 32).path


def test_large_messages_take_the_large_packet_and_carry_a_reply_path() -> None:
    reply = create_blinded_path([(NODE_IDS[2], EncryptedData(path_id=b"reply"))], b"\x44" * 32).path
    path = message_path(EncryptedData(short_channel_id=9), EncryptedData())
    packet = build_message_onion(path, OnionMessagePayload(reply, invoice=bytes(3000)), SESSION_KEY)
    assert len(packet) == 32834
    first = read_message_onion(packet, path.first_path_key, SECRETS[0])
    assert isinstance(first, ForwardMessage)
    assert (first.short_channel_id, first.next_node_id) == (9, None)
    second = read_message_onion(first.packet, first.path_key, SECRETS[1])
    assert isinstance(second, ReceiveMessage)
    assert (second.payload.reply_path, second.payload.invoice, second.path_id) == (reply, bytes(3000), None)
    with pytest.raises(OnionTooLong):
        build_message_onion(path, OnionMessagePayload(invoice=bytes(32768)), SESSION_KEY)
    with pytest.raises(ValueError, match="comes from the path"):
        build_message_onion(path, OnionMessagePayload(encrypted_recipient_data=b""), SESSION_KEY)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (EncryptedData(), "no next node"),
        (EncryptedData(next_node_id=NODE_IDS[1], path_id=b""), "path_id"),
        (EncryptedData(next_node_id=NODE_IDS[1], allowed_features=b"\x01"), "allowed_features"),
        (EncryptedData(next_node_id=NODE_IDS[1], next_path_key_override=b"\x02" + b"\xff" * 32), "not a point"),
    ],
)
def test_instructions_a_relaying_node_ignores(middle: EncryptedData, reason: str) -> None:
    path = message_path(middle, EncryptedData())
    packet = build_message_onion(path, OnionMessagePayload(), SESSION_KEY)
    with pytest.raises(IgnoredOnionMessage, match=reason):
        read_message_onion(packet, path.first_path_key, SECRETS[0])


def test_messages_that_are_ignored() -> None:
    path = message_path(EncryptedData(next_node_id=NODE_IDS[1]), EncryptedData())
    encrypted = path.path[0].encrypted_recipient_data
    blinded = path.path[0].blinded_node_id

    def read(payload: OnionMessagePayload, is_final: bool) -> ForwardMessage | ReceiveMessage:
        hops = [(blinded, payload.to_bytes())]
        hops += [] if is_final else [(path.path[1].blinded_node_id, b"\x04\x00")]
        packet = build_onion(hops, SESSION_KEY).packet
        return read_message_onion(packet, path.first_path_key, SECRETS[0])

    assert isinstance(read(OnionMessagePayload(None, encrypted), is_final=False), ForwardMessage)
    assert isinstance(read(OnionMessagePayload(None, encrypted, invoice=b"i"), is_final=True), ReceiveMessage)
    with pytest.raises(IgnoredOnionMessage, match="is missing"):
        read(OnionMessagePayload(invoice=b"i"), is_final=True)
    with pytest.raises(IgnoredOnionMessage, match="more than one payload"):
        read(OnionMessagePayload(None, encrypted, b"r", b"i"), is_final=True)
    with pytest.raises(IgnoredOnionMessage, match="more than one payload"):
        read(OnionMessagePayload(None, encrypted, b"r", unknown_tlvs=((65, b""),)), is_final=True)
    with pytest.raises(IgnoredOnionMessage, match="other fields"):
        read(OnionMessagePayload(None, encrypted, unknown_tlvs=((1, b""),)), is_final=False)
    with pytest.raises(IgnoredOnionMessage, match="does not decrypt"):
        read(OnionMessagePayload(None, encrypted + b"x"), is_final=False)
    with pytest.raises(IgnoredOnionMessage, match="hmac is wrong"):
        read_message_onion(build_onion([(blinded, b"\x04\x00")], SESSION_KEY).packet, NODE_IDS[3], SECRETS[0])
    unknown_even = build_onion([(blinded, b"\x06\x00")], SESSION_KEY).packet
    with pytest.raises(IgnoredOnionMessage, match="unknown even"):
        read_message_onion(unknown_even, path.first_path_key, SECRETS[0])
