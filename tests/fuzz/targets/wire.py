"""What comes over the wire: messages, TLV streams, features, addresses, the handshake."""

from __future__ import annotations

from collections.abc import Iterator

from channeld.bolt.codec import join_tlv_stream, split_tlv_stream
from channeld.bolt.features import decode_features, describe, encode_features, has_unknown_required
from channeld.bolt.messages import (
    MESSAGES,
    DecodeError,
    NodeAnnouncement,
    UnknownMessage,
    decode,
    decode_addresses,
    encode,
    encode_addresses,
    parse_address,
)
from channeld.bolt.noise import InitiatorHandshake, NoiseError, ResponderHandshake
from channeld.bolt.primitives import decode_bigsize, encode_bigsize
from tests.fuzz.target import Reader, target
from wallet.bitcoin.secp import pubkey_of

ALICE, BOB = b"\x11" * 32, b"\x21" * 32


def message_seeds() -> Iterator[bytes]:
    """Every type that is known, with filling that suits lengths, keys and records."""
    key = pubkey_of(ALICE)
    for type_ in MESSAGES:
        for filling in (bytes(2), bytes(400), key * 12, bytes(96) + key * 8):
            yield type_.to_bytes(2, "big") + filling
    update = "0102" + "00" * 64 + "06226e46111a0b59caaf126043eb5bbf28c34f3a5e332a1fc7b2b73cf188910f" + "00" * 40
    yield bytes.fromhex(update)


@target("messages", message_seeds, 65_535)
def messages(data: bytes) -> None:
    """A message that is understood is written back as it came."""
    try:
        message = decode(data)
    except (DecodeError, UnknownMessage):
        return
    assert encode(message) == data
    assert repr(message)
    if isinstance(message, NodeAnnouncement):
        try:
            decode_addresses(message.addresses)
        except DecodeError:
            return


@target("tlv", lambda: [bytes.fromhex("0100020103"), bytes.fromhex("fd00fe020226"), b""])
def tlv(data: bytes) -> None:
    """TLV streams and BigSize are canonical."""
    try:
        records = split_tlv_stream(data)
    except DecodeError:
        records = None
    if records is not None:
        assert join_tlv_stream(records) == data
    try:
        value, end = decode_bigsize(data)
    except DecodeError:
        return
    assert encode_bigsize(value) == data[:end]


@target("features", lambda: [b"\x80\x00", b"\x02\xaa\xaa"], 65_535)
def features(data: bytes) -> None:
    """Bits there and back; leading zeros are the only thing lost."""
    bits = decode_features(data)
    assert encode_features(bits) == data.lstrip(b"\x00")
    assert has_unknown_required(data, ()) == any(not bit & 1 for bit in bits)
    if len(bits) < 100:
        assert len(describe(bits)) == len(bits)


@target(
    "addresses", lambda: [b"\x01\x7f\x00\x00\x01\x26\x07", b"\x05\x04a.de\x26\x07", b"\x02" + bytes(16) + b"\x00\x01"]
)
def addresses(data: bytes) -> None:
    """Descriptors there and back; what people would type is read back too."""
    try:
        found = decode_addresses(data)
    except DecodeError:
        return
    again = decode_addresses(encode_addresses(found))
    assert sorted(again) == sorted(found)
    for address in found:
        try:
            parse_address(str(address))
        except ValueError:  # a DNS name may hold any byte
            continue


@target("address_text", lambda: [b"127.0.0.1:9735", b"[::1]:1", b"a.onion:9735", b"host:0"])
def address_text(data: bytes) -> None:
    """`host:port` as people type it."""
    try:
        address = parse_address(data.decode("utf-8", "replace"))
    except ValueError:
        return
    assert decode_addresses(address.to_bytes()) in ([address], []) or str(address)


def _handshake_seeds() -> Iterator[bytes]:
    initiator = InitiatorHandshake(ALICE, b"\x12" * 32, pubkey_of(BOB))
    responder = ResponderHandshake(BOB, b"\x22" * 32)
    first = initiator.start()
    second = responder.receive(first)
    third = initiator.receive(second)
    yield b"\x00" + first
    yield b"\x01" + second
    yield b"\x02" + third


@target("noise", _handshake_seeds)
def noise(data: bytes) -> None:
    """Acts one to three, and what follows: NoiseError or a session that goes on."""
    reader = Reader(data)
    which = reader.below(4)
    initiator = InitiatorHandshake(ALICE, b"\x12" * 32, pubkey_of(BOB))
    responder = ResponderHandshake(BOB, b"\x22" * 32)
    try:
        if which == 0:
            responder.receive(reader.rest())
            return
        first = initiator.start()
        if which == 1:
            initiator.receive(reader.rest())
            return
        third = initiator.receive(responder.receive(first))
        responder.receive(reader.rest() if which == 2 else third)
        assert responder.session is not None
        decrypter = responder.session.decrypter
        while reader.left:
            decrypter.receive(reader.chunk())
            assert decrypter.buffered_bytes <= 65_535 + 2 + 32
    except NoiseError:
        return
