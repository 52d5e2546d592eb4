"""The messages: declared as the BOLT documents have them, and what belongs to the gossip ones."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channeld.bolt.codec import MESSAGES, Nested
from channeld.bolt.messages import (
    Address,
    AddressType,
    ChannelAnnouncement,
    ChannelUpdate,
    DecodeError,
    EncodeError,
    Init,
    NodeAnnouncement,
    QueryChannelRange,
    QueryFlags,
    QueryShortChannelIds,
    ReplyChannelRange,
    decode,
    decode_addresses,
    encode,
    encode_addresses,
    parse_address,
)
from channeld.bolt.messages.gossip import ChannelUpdateChecksums, ChannelUpdateTimestamps, EncodedTimestamps
from channeld.bolt.messages.queries import (
    QUERY_CHANNEL_ANNOUNCEMENT,
    WANT_CHECKSUMS,
    WANT_TIMESTAMPS,
    channel_update_checksum,
    crc32c,
    decode_query_flags,
    decode_short_ids,
    decode_timestamps,
    encode_query_flags,
    encode_short_ids,
    encode_timestamps,
)
from channeld.bolt.primitives import (
    Array,
    BigSizeInt,
    CompressedPoint,
    FixedSize,
    Flag,
    PrefixedBytes,
    RemainingBytes,
    WireType,
    parse_short_channel_id,
)

VECTORS = Path(__file__).parent.parent / "vectors"
TABLE = json.loads((VECTORS / "messages.json").read_text())
POINT = b"\x02" + bytes(32)

# --- the declarations against the documents -----------------------------------------------------------------------

PLAIN = {
    "byte": "B",
    "u8": "B",
    "u16": "H",
    "u32": "I",
    "u64": "Q",
    "s64": "q",
    "short_channel_id": "Q",
    "sha256": "32s",
    "chain_hash": "32s",
    "channel_id": "32s",
    "signature": "64s",
    "point": "point",
    "bigsize": "bigsize",
    "20*u32": "80s",
    "210*sha256[..4]": "840s",
}


def documented(fields: list[list[str]]) -> list[tuple[str, str]]:
    """Name and wire format of the fields in a document; lengths and counts go into what they count."""
    result = []
    lengths: dict[str, str] = {}
    for index, (type_, name) in enumerate(fields):
        count, star, element = type_.partition("*")
        counted_later = any(other.startswith(f"{name}*") for other, _ in fields[index + 1 :])
        if counted_later:
            lengths[name] = PLAIN[type_]
        elif type_ in PLAIN:
            result.append((name, PLAIN[type_]))
        elif not star:
            assert name == "tlvs"
        elif count.isdigit():
            assert element == "byte"
            result.append((name, f"{count}s"))
        else:
            prefix = "" if count == "..." else lengths[count]
            result.append((name, f"{prefix}*{documented_element(element)}"))
    return result


def documented_element(element: str) -> str:
    if element == "byte" or element in PLAIN:
        return PLAIN[element] if element != "byte" else "byte"
    parts = [wire for _, wire in documented(TABLE["subtypes"][element])]
    return parts[0] if len(parts) == 1 else "{" + ",".join(parts) + "}"


def declared(wire: WireType) -> str:
    """The same notation for what the code declares."""
    prefixes = {0: "", 1: "B", 2: "H"}
    match wire:
        case CompressedPoint():
            return "point"
        case FixedSize():
            return wire.format
        case PrefixedBytes():
            return f"{prefixes[wire.prefix_bytes]}*byte"
        case RemainingBytes():
            return "*byte"
        case BigSizeInt():
            return "bigsize"
        case Array():
            return f"{prefixes[wire.prefix_bytes]}*{declared(wire.element)}"
        case Nested():
            return "{" + ",".join(declared(spec.wire) for spec in wire.cls.__layout__.fields) + "}"
        case Flag():
            return ""
    raise AssertionError(f"no notation for {wire}")


def test_exactly_the_documented_messages_are_declared() -> None:
    ours = {cls.NAME: type_ for type_, cls in MESSAGES.items() if type_ < 32768}
    assert ours == {name: entry["type"] for name, entry in TABLE["messages"].items()}


@pytest.mark.parametrize("name", TABLE["messages"])
def test_a_message_is_as_documented(name: str) -> None:
    entry = TABLE["messages"][name]
    cls = MESSAGES[entry["type"]]
    in_camel_case = re.sub("(?:^|_)([a-z])", lambda match: match[1].upper(), name)
    assert cls.__name__ in (in_camel_case, in_camel_case + "Message")
    assert [(spec.name, declared(spec.wire)) for spec in cls.__layout__.fields] == documented(entry["fields"])
    assert not any(spec.name in ("len", "tlvs") for spec in cls.__layout__.fields)


@pytest.mark.parametrize("name", TABLE["messages"])
def test_the_records_of_a_message_are_as_documented(name: str) -> None:
    entry = TABLE["messages"][name]
    layout = MESSAGES[entry["type"]].__layout__
    streams = [type_ for type_, field in entry["fields"] if field == "tlvs"]
    expected = TABLE["streams"][streams[0]] if streams else {}
    assert {spec.tlv.record or spec.name: spec.tlv.type for spec in layout.records if spec.tlv} == {
        record: content["type"] for record, content in expected.items()
    }
    for spec in layout.records:
        assert spec.tlv is not None
        fields = documented(expected[spec.tlv.record or spec.name]["fields"])
        if isinstance(spec.wire, Nested):
            assert [(inner.name, declared(inner.wire)) for inner in spec.wire.cls.__layout__.fields] == fields
        else:
            assert [declared(spec.wire)] == [wire for _, wire in fields] or (not fields and isinstance(spec.wire, Flag))


# --- gossip queries -----------------------------------------------------------------------------------------------

QUERIES = json.loads((VECTORS / "bolt07" / "extended-queries.json").read_text())


def flag_bits(names: str) -> int:
    known = {"WANT_TIMESTAMPS": WANT_TIMESTAMPS, "WANT_CHECKSUMS": WANT_CHECKSUMS}
    return sum(known[name.strip()] for name in names.split("|"))


def check_short_ids(encoded: bytes, expected: dict[str, Any]) -> None:
    """Arrays that were compressed can be carried, but are not read: that encoding must not be used any more."""
    if expected["encoding"] == "UNCOMPRESSED":
        ids = [parse_short_channel_id(text) for text in expected["array"]]
        assert decode_short_ids(encoded) == ids
        assert encode_short_ids(reversed(ids)) == encoded
    else:
        with pytest.raises(DecodeError, match="encoding type 1 must not be used"):
            decode_short_ids(encoded)


@pytest.mark.parametrize("case", QUERIES, ids=lambda case: case["msg"]["type"])
def test_extended_queries(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    expected = case["msg"]
    received = decode(data)
    assert encode(received) == data
    assert type(received).__name__ == expected["type"]
    match received:
        case QueryChannelRange():
            assert received.chain_hash.hex() == expected["chainHash"]
            assert received.first_blocknum == expected["firstBlockNum"]
            assert received.number_of_blocks == expected["numberOfBlocks"]
            wanted = expected["tlvStream"]["records"] if "tlvStream" in expected else []
            assert received.query_option == (flag_bits(wanted[0]) if wanted else None)
        case ReplyChannelRange():
            check_reply(received, expected)
        case QueryShortChannelIds():
            assert received.chain_hash.hex() == expected["chainHash"]
            check_short_ids(received.encoded_short_ids, expected["shortChannelIds"])
            records = expected["tlvStream"]["records"]
            assert (received.query_flags is not None) == bool(records)
            if received.query_flags is not None and records[0]["encoding"] == "UNCOMPRESSED":
                assert decode_query_flags(received.query_flags) == records[0]["array"]
                assert encode_query_flags(records[0]["array"]) == received.query_flags
        case _:
            pytest.fail(f"unexpected {received}")


def check_reply(received: ReplyChannelRange, expected: dict[str, Any]) -> None:
    assert received.chain_hash.hex() == expected["chainHash"]
    assert received.first_blocknum == expected["firstBlockNum"]
    assert received.number_of_blocks == expected["numberOfBlocks"]
    assert received.sync_complete == expected["complete"]
    check_short_ids(received.encoded_short_ids, expected["shortChannelIds"])
    if "timestamps" not in expected:
        assert received.timestamps_tlv is None
        assert received.checksums_tlv is None
        return
    pairs = expected["timestamps"]["timestamps"]
    assert received.timestamps_tlv is not None
    if expected["timestamps"]["encoding"] == "UNCOMPRESSED":
        times = [ChannelUpdateTimestamps(pair["timestamp1"], pair["timestamp2"]) for pair in pairs]
        assert decode_timestamps(received.timestamps_tlv) == times
        assert encode_timestamps(times) == received.timestamps_tlv
    else:
        with pytest.raises(DecodeError):
            decode_timestamps(received.timestamps_tlv)
    sums = expected["checksums"]["checksums"]
    assert received.checksums_tlv == tuple(ChannelUpdateChecksums(s["checksum1"], s["checksum2"]) for s in sums)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.lists(st.integers(0, 31), max_size=20))
def test_arrays_of_queries(ids: list[int], flags: list[int]) -> None:
    assert decode_short_ids(encode_short_ids(ids)) == sorted(ids)
    assert decode_query_flags(encode_query_flags(flags)) == flags


def test_broken_arrays_of_queries() -> None:
    assert decode_short_ids(b"") == []
    assert encode_short_ids([]) == b"\0"
    with pytest.raises(DecodeError, match="whole number"):
        decode_short_ids(b"\0" + bytes(9))
    with pytest.raises(DecodeError):
        decode_timestamps(EncodedTimestamps(0, bytes(12)))
    with pytest.raises(DecodeError):
        decode_query_flags(QueryFlags(0, b"\xfd\x00"))
    with pytest.raises(DecodeError):
        decode_query_flags(QueryFlags(2, bytes((QUERY_CHANNEL_ANNOUNCEMENT,))))


# --- gossip -------------------------------------------------------------------------------------------------------

UPDATE = ChannelUpdate(b"\x11" * 64, bytes(32), 7, 1_700_000_000, 1, 0, 34, 1, 1000, 100, 10**9)
SIG = bytes(64)
ANNOUNCEMENT = ChannelAnnouncement(SIG, SIG, SIG, SIG, b"", bytes(32), 1, POINT, POINT, POINT, POINT)


def test_crc32c_of_rfc_3720() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_checksum_of_an_update_leaves_out_signature_and_timestamp() -> None:
    same = dataclasses.replace(UPDATE, signature=bytes(64), timestamp=1)
    assert channel_update_checksum(same) == channel_update_checksum(UPDATE)
    assert channel_update_checksum(dataclasses.replace(UPDATE, fee_base_msat=1001)) != channel_update_checksum(UPDATE)


@pytest.mark.parametrize(
    ("gossip", "signatures"),
    [
        (UPDATE, 1),
        (NodeAnnouncement(bytes(64), b"\x01", 5, POINT, b"\x01\x02\x03", bytes(32), b""), 1),
        (ANNOUNCEMENT, 4),
    ],
    ids=lambda value: getattr(value, "NAME", ""),
)
def test_gossip_is_hashed_and_sent_on_as_it_came(
    gossip: ChannelUpdate | NodeAnnouncement | ChannelAnnouncement, signatures: int
) -> None:
    wire = encode(gossip) + b"future fields, not even a TLV stream"
    received = decode(wire)
    assert isinstance(received, type(gossip))
    assert received.raw == wire
    assert encode(received) is wire
    assert received != gossip
    assert received.excess_data == b"future fields, not even a TLV stream"
    signed = wire[2 + 64 * signatures :]
    assert received.signature_hash == hashlib.sha256(hashlib.sha256(signed).digest()).digest()
    assert encode(dataclasses.replace(received, excess_data=b"")) == encode(gossip), "no stale bytes in a changed copy"
    with pytest.raises(EncodeError):
        encode(dataclasses.replace(gossip, unknown_tlvs=((1, b""),)))


# --- addresses ----------------------------------------------------------------------------------------------------

ONION = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion"


@pytest.mark.parametrize(
    ("text", "type_", "descriptor"),
    [
        ("1.2.3.4:9735", AddressType.IPV4, "01010203042607"),
        ("[2001:db8::1]:1", AddressType.IPV6, "0220010db80000000000000000000000010001"),
        ("node.example:65535", AddressType.DNS, "050c" + b"node.example".hex() + "ffff"),
        (f"{ONION}:9735", AddressType.TOR_V3, None),
    ],
)
def test_addresses(text: str, type_: AddressType, descriptor: str | None) -> None:
    address = parse_address(text)
    assert address.type is type_
    assert str(address) == text
    assert decode_addresses(address.to_bytes()) == [address]
    if descriptor is not None:
        assert address.to_bytes().hex() == descriptor


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "1.2.3.4:²", "a.onion:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_lists_of_addresses() -> None:
    ipv4, ipv6 = Address(AddressType.IPV4, "1.2.3.4", 1), Address(AddressType.IPV6, "::1", 2)
    dns = Address(AddressType.DNS, "a.b", 3)
    encoded = encode_addresses([dns, ipv6, ipv4])
    assert decode_addresses(encoded) == [ipv4, ipv6, dns]
    assert decode_addresses(b"") == []
    assert decode_addresses(encoded + b"\x06whatever") == [ipv4, ipv6, dns], "an unknown type ends the list"
    tor_v2, port_zero = b"\x03" + bytes(10) + b"\x00\x01", b"\x01\x01\x02\x03\x04\x00\x00"
    assert decode_addresses(tor_v2 + port_zero + ipv6.to_bytes()) == [ipv6]
    onion_of_version_5 = b"\x04" + bytes(34) + b"\x05" + b"\x00\x01"
    assert decode_addresses(onion_of_version_5 + dns.to_bytes()) == [dns]
    for cut in (1, 5, 6, 8):
        with pytest.raises(DecodeError, match="cut off"):
            decode_addresses(encoded[:cut])


@given(st.binary(max_size=80))
def test_any_bytes_are_addresses_or_refused(data: bytes) -> None:
    try:
        found = decode_addresses(data)
    except DecodeError:
        return
    assert decode_addresses(encode_addresses(found)) == sorted(found)


def test_init_tells_networks_and_address() -> None:
    init = Init(b"", b"\x02", networks=(bytes(32), b"\x01" * 32), remote_addr=parse_address("1.2.3.4:5").to_bytes())
    data = encode(init)
    assert data.hex() == "0010" + "0000" + "000102" + "0140" + "00" * 32 + "01" * 32 + "0307" + "01010203040005"
    assert decode(data) == init
    with pytest.raises(DecodeError, match=r"init\.networks"):
        decode(bytes.fromhex("0010" + "0000" + "000102" + "0121" + "00" * 33))
