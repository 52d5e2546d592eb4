"""BOLT 4: onions whose HMACs are right and whose contents are not, what comes back, blinded paths, onion messages."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from channeld.bolt.onion.attribution import ATTRIBUTION_SIZE, verify_fulfill_attribution
from channeld.bolt.onion.blinding import (
    BlindedPath,
    BlindingError,
    EncryptedData,
    blinded_node_id,
    decrypt_data,
    encrypt_data,
)
from channeld.bolt.onion.failures import UnknownFailure, decode_failure, encode_failure
from channeld.bolt.onion.messages import IgnoredOnionMessage, OnionMessagePayload, ReceiveMessage, read_message_onion
from channeld.bolt.onion.payment import (
    Forward,
    PaymentPayload,
    Receive,
    final_payload,
    forward_payload,
    read_payment_onion,
)
from channeld.bolt.onion.returns import ReturnPacket, create_failure, read_failure, relay_failure
from channeld.bolt.onion.sphinx import BadOnion, OnionError, RefusedOnion, build_onion, peel_onion
from channeld.bolt.primitives import DecodeError
from tests.fuzz.target import Reader, target
from wallet.bitcoin.secp import ecdh, is_valid_pubkey, pubkey_of

SECRETS = [sha256(b"hop %d" % number).digest() for number in range(3)]
NODES = [pubkey_of(secret) for secret in SECRETS]
SESSION = sha256(b"session").digest()
HASH = sha256(b"payment").digest()
PATH_KEY = pubkey_of(sha256(b"path").digest())


def _packet_seeds() -> Iterator[bytes]:
    payloads = [forward_payload(1000, 100, 1 << 40).to_bytes(), final_payload(1000, 100, bytes(32), 1000).to_bytes()]
    yield build_onion(list(zip(NODES, payloads, strict=False)), SESSION, HASH).packet


@target("onion_packet", _packet_seeds, 2000)
def onion_packet(data: bytes) -> None:
    """A packet as it came: refused in one of two ways, or peeled."""
    for path_key in (None, PATH_KEY):
        try:
            peeled = peel_onion(data, SECRETS[0], HASH, path_key)
        except OnionError as error:
            assert isinstance(error, BadOnion if path_key else BadOnion | RefusedOnion)
            continue
        assert peeled.next_packet is None or len(peeled.next_packet) == len(data)


def _payload_seeds() -> Iterator[bytes]:
    head = bytes((0,)) + (1000).to_bytes(5, "big") + (100).to_bytes(4, "big")
    yield head + forward_payload(1000, 100, 1 << 40).to_bytes()
    yield b"\x01" + head[1:] + final_payload(1000, 100, bytes(32), 1000).to_bytes()
    for flags in range(2, 16):
        yield bytes((flags,)) + head[1:] + b"\x0a\x20" + bytes(32) + b"\x0c\x21" + PATH_KEY


@target("onion_payload", _payload_seeds, 1200)
def onion_payload(data: bytes) -> None:
    """Any payload behind a right HMAC, with and without path keys: never money without its rules."""
    reader = Reader(data)
    flags, amount_msat, expiry = reader.number(), reader.number(5), reader.number(4)
    path_key = PATH_KEY if flags & 2 else None
    payload = reader.rest()
    if flags & 4:  # what is in the payload's field 10 is encrypted properly
        secret = ecdh(SECRETS[0], PATH_KEY)
        sealed = encrypt_data(secret, payload)
        fields = PaymentPayload(
            encrypted_recipient_data=sealed, current_path_key=None if path_key else PATH_KEY, amt_to_forward=None
        )
        payload = fields.to_bytes()
    node = NODES[0]
    if path_key is not None:
        node = blinded_node_id(node, ecdh(SECRETS[0], PATH_KEY))
    hops = [(node, payload)] if flags & 1 else [(node, payload), (NODES[1], b"\x02\x00\x00")]
    try:
        packet = build_onion(hops, SESSION, HASH).packet
    except ValueError:  # too long, or too short for a payload
        return
    try:
        read = read_payment_onion(packet, HASH, amount_msat, expiry, SECRETS[0], path_key)
    except OnionError as error:
        assert error.failure.to_bytes() is not None
        if path_key is not None:
            assert isinstance(error, BadOnion)
        return
    match read:
        case Forward():
            assert not flags & 1
            assert (read.short_channel_id is None) != (read.next_node_id is None)
            assert read.next_path_key is None or is_valid_pubkey(read.next_path_key)
            if path_key is not None or read.next_path_key is not None:
                assert 0 < read.amt_to_forward <= amount_msat
                assert 0 < read.outgoing_cltv_value <= expiry
        case Receive():
            assert flags & 1
            assert amount_msat >= read.amt_to_forward
            assert expiry >= read.outgoing_cltv_value


@target("failure", lambda: [b"\x10\x07\x00\x00", b"\x40\x0f" + bytes(12), b"\x00\x13" + bytes(8)])
def failure(data: bytes) -> None:
    """A decrypted failure message is always something, and is written as it was read."""
    found = decode_failure(data)
    assert found.NAME or isinstance(found, UnknownFailure)
    assert decode_failure(encode_failure(found)) == found


@target("error_onion", lambda: [bytes((hop,)) + bytes(292) for hop in range(4)], 3000)
def error_onion(data: bytes) -> None:
    """Error onions from nowhere, from the right place, and damaged on their way."""
    reader = Reader(data)
    how = reader.number()
    secrets = [sha256(b"shared %d" % hop).digest() for hop in range(3)]
    attribution = reader.take(ATTRIBUTION_SIZE) if how & 4 else None
    if how & 8:
        found = verify_fulfill_attribution(secrets, reader.rest() if attribution is None else attribution)
        assert len(found.hold_times) <= len(secrets)
        return
    body = reader.rest()
    hop = how & 3
    if hop == 3:
        packet = ReturnPacket(body, attribution)
    else:
        packet = create_failure(secrets[hop], body, 5 if how & 16 else None)
        for earlier in reversed(range(hop)):
            packet = relay_failure(secrets[earlier], packet, 1 if how & 16 else None)
    read = read_failure(secrets, packet)
    if hop < 3:
        assert read.erring_hop == hop
        assert read.failure_message == body
        if how & 16:
            assert read.attribution is not None
            assert len(read.attribution.hold_times) == hop + 1
    decode_failure(read.failure_message)


@target("blinded", lambda: [b"", b"\x02\x08" + bytes(8), b"\x0a\x08" + bytes(8), b"\x0c\x05" + bytes(5)], 1200)
def blinded(data: bytes) -> None:
    """Instructions inside a blinded path, and blinded paths themselves."""
    secret = ecdh(SECRETS[0], PATH_KEY)
    try:
        found = decrypt_data(secret, encrypt_data(secret, data))
    except BlindingError:
        pass
    else:
        assert found.to_bytes() == data
        if found.payment_relay is not None:
            found.payment_relay.amount_to_forward_msat(1_000_000)
    for kind in (EncryptedData, BlindedPath):
        try:
            value = kind.from_bytes(data)
        except DecodeError:
            continue
        assert value.to_bytes() == data


@target("onion_message", lambda: [b"\x00", b"\x01\x40\x00", b"\x02\x04\x0a" + bytes(40)], 2000)
def onion_message(data: bytes) -> None:
    """Onion messages: what is wrong is ignored, never more."""
    reader = Reader(data)
    how = reader.number()
    body = reader.rest()
    if how & 1:
        secret = ecdh(SECRETS[0], PATH_KEY)
        body = OnionMessagePayload(encrypted_recipient_data=encrypt_data(secret, body)).to_bytes()
    node = blinded_node_id(NODES[0], ecdh(SECRETS[0], PATH_KEY))
    hops = [(node, body)] if how & 2 else [(node, body), (NODES[1], b"\x04\x00")]
    try:
        packet = data if how & 4 else build_onion(hops, SESSION, b"").packet
    except ValueError:  # too long, or too short for a payload
        return
    try:
        read = read_message_onion(packet, PATH_KEY, SECRETS[0])
    except IgnoredOnionMessage:
        return
    assert isinstance(read, ReceiveMessage) == bool(how & 2)
