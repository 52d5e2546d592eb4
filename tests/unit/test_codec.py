"""The codec: BOLT 1's vectors for bigsize, integers and TLV streams, and what every declared message has to keep."""

import dataclasses
import json
import struct
from pathlib import Path
from random import Random
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channeld.bolt.codec import (
    MESSAGES,
    FieldSpec,
    GossipMessage,
    Message,
    Nested,
    Structure,
    Tlv,
    TlvStream,
    UnknownMessage,
    decode,
    encode,
    join_tlv_stream,
    message,
    split_tlv_stream,
    structure,
    tlv_stream,
)
from channeld.bolt.messages import Init, Ping, UpdateAddHtlc, UpdateFailHtlc
from channeld.bolt.primitives import (
    S8,
    S16,
    S32,
    S64,
    U16,
    U32,
    U64,
    Array,
    BigSize,
    BigSizeInt,
    Byte,
    Bytes32,
    CompressedPoint,
    Counted,
    DecodeError,
    EncodeError,
    FixedBytes,
    Flag,
    Int,
    Point,
    PrefixedBytes,
    Remaining,
    RemainingBytes,
    RemainingText,
    RestBytes,
    SciddirOrPubkeyBytes,
    ShortBytes,
    ShortChannelId,
    TruncatedInt,
    Tu32,
    Tu64,
    Utf8,
    VarBytes,
    WireType,
    decode_bigsize,
    encode_bigsize,
    format_short_channel_id,
    parse_short_channel_id,
    short_channel_id,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "bolt01"
POINT = b"\x02" + bytes(32)


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


@structure
class N1Tlv3(Structure):
    node_id: Point
    amount_msat_1: U64
    amount_msat_2: U64


@tlv_stream
class N1(TlvStream):
    """Namespace n1 of BOLT 1, appendix B."""

    tlv1: Annotated[Tu64 | None, Tlv(1)] = None
    tlv2: Annotated[ShortChannelId | None, Tlv(2)] = None
    tlv3: Annotated[N1Tlv3 | None, Tlv(3)] = None
    tlv4: Annotated[U16 | None, Tlv(254)] = None


@tlv_stream
class N2(TlvStream):
    """Namespace n2 of BOLT 1, appendix B."""

    tlv1: Annotated[Tu64 | None, Tlv(0)] = None
    tlv2: Annotated[Tu32 | None, Tlv(11)] = None


NAMESPACES: dict[str, type[N1] | type[N2]] = {"n1": N1, "n2": N2}
STREAMS = [(namespace, case) for case in load("tlv-streams.json") for namespace in case["namespaces"]]


# --- BOLT 1, appendix A and D -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", load("bigsize.json")["decode"], ids=lambda case: case["name"])
def test_bigsize_decoding(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["bytes"])
    if "exp_error" in case:
        with pytest.raises(DecodeError, match="minimal" if "canonical" in case["exp_error"] else "missing|cut off"):
            decode_bigsize(data)
    else:
        assert decode_bigsize(data) == (case["value"], len(data))


@pytest.mark.parametrize("case", load("bigsize.json")["encode"], ids=lambda case: case["name"])
def test_bigsize_encoding(case: dict[str, Any]) -> None:
    assert encode_bigsize(case["value"]).hex() == case["bytes"]


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_bigsize_is_unsigned_and_has_64_bits(value: int) -> None:
    with pytest.raises(EncodeError):
        encode_bigsize(value)


@structure
class Signed1(Structure):
    value: S8


@structure
class Signed2(Structure):
    value: S16


@structure
class Signed4(Structure):
    value: S32


@structure
class Signed8(Structure):
    value: S64


@pytest.mark.parametrize("case", load("signed-integers.json"), ids=lambda case: str(case["value"]))
def test_signed_integers(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["bytes"])
    sizes: list[type[Signed1] | type[Signed2] | type[Signed4] | type[Signed8]] = [Signed1, Signed2, Signed4, Signed8]
    for cls in sizes:
        if len(cls(0).to_bytes()) == len(data):
            assert cls(case["value"]).to_bytes() == data
            assert cls.from_bytes(data) == cls(case["value"])


# --- BOLT 1, appendix B and C -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("namespace", "case"), STREAMS, ids=lambda part: str(part)[:60])
def test_tlv_streams(namespace: str, case: dict[str, Any]) -> None:
    cls = NAMESPACES[namespace]
    data = bytes.fromhex(case["stream"])
    if not case["valid"]:
        with pytest.raises(DecodeError):
            cls.from_bytes(data)
        return
    stream = cls.from_bytes(data)
    assert stream.to_bytes() == data, "what was not understood survives"


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("0100", N1(tlv1=0)),
        ("01080100000000000000", N1(tlv1=72057594037927936)),
        ("02080000000000000226", N1(tlv2=short_channel_id(0, 0, 550))),
        ("fd00fe020226", N1(tlv4=550)),
        (f"0331{POINT.hex()}00000000000000010000000000000002", N1(tlv3=N1Tlv3(POINT, 1, 2))),
    ],
)
def test_tlv_values(stream: str, expected: N1) -> None:
    assert N1.from_bytes(bytes.fromhex(stream)) == expected


VALID = [bytes.fromhex(case["stream"]) for namespace, case in STREAMS if namespace == "n1" and case["valid"]]
INVALID = [bytes.fromhex(case["stream"]) for namespace, case in STREAMS if namespace == "n1" and not case["valid"]]


@given(st.sampled_from([stream for stream in VALID if stream]), st.sampled_from(VALID + INVALID))
def test_appended_tlv_streams(first: bytes, second: bytes) -> None:
    """BOLT 1, "TLV Stream Decoding Failure": invalid after valid fails; a higher valid one after a lower does not."""
    higher = second in VALID and (not second or split_tlv_stream(second)[0][0] > split_tlv_stream(first)[-1][0])
    if higher:
        assert N1.from_bytes(first + second).to_bytes() == first + second
    else:
        with pytest.raises(DecodeError):
            N1.from_bytes(first + second)


def test_init_extensions() -> None:
    cases = load("init-extensions.json")
    for valid in cases["valid"]:
        assert encode(decode(bytes.fromhex(valid))).hex() == valid
    for invalid in cases["invalid"]:
        with pytest.raises(DecodeError, match=r"^init: ") as caught:
            decode(bytes.fromhex(invalid))
        assert caught.value.message_type == 16


records = st.dictionaries(st.integers(0, 2**64 - 1), st.binary(max_size=300), max_size=6)


@given(records)
def test_tlv_streams_split_and_join(content: dict[int, bytes]) -> None:
    in_order = sorted(content.items())
    assert split_tlv_stream(join_tlv_stream(list(content.items()))) == in_order


def test_a_type_stands_once_in_a_stream() -> None:
    with pytest.raises(EncodeError, match="TLV type 1 twice"):
        N1(tlv1=5, unknown_tlvs=((1, b"x"),)).to_bytes()


def test_an_error_in_a_record_says_which_and_where() -> None:
    with pytest.raises(DecodeError) as caught:
        N1.from_bytes(bytes.fromhex("010003022a2a"))
    error = caught.value
    assert (error.message, error.field, error.tlv_type, error.offset) == ("N1", "tlv3.node_id", 3, 2)


# --- all messages -------------------------------------------------------------------------------------------------


def values_of(wire: WireType) -> st.SearchStrategy[Any]:
    """Everything that fits into a wire type."""
    match wire:
        case Int():
            bits = 8 * wire.size
            low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if wire.format.islower() else (0, (1 << bits) - 1)
            return st.integers(low, high)
        case CompressedPoint():
            return st.tuples(st.sampled_from([b"\2", b"\3"]), st.binary(min_size=32, max_size=32)).map(b"".join)
        case FixedBytes():
            seeds = st.integers(0, 2**32 - 1)
            return st.one_of(st.just(bytes(wire.size)), seeds.map(lambda seed: Random(seed).randbytes(wire.size)))
        case PrefixedBytes() | RemainingBytes():
            return st.binary(max_size=40)
        case RemainingText():
            return st.text(max_size=20)
        case BigSizeInt():
            return st.integers(0, 2**64 - 1)
        case TruncatedInt():
            return st.integers(0, (1 << (8 * wire.max_bytes)) - 1)
        case Array():
            return st.lists(values_of(wire.element), max_size=3).map(tuple)
        case Nested():
            return instances_of(wire.cls)
        case Flag():
            return st.just(True)
    raise AssertionError(f"no strategy for {wire}")


def instances_of(cls: type[Structure]) -> st.SearchStrategy[Any]:
    """Any value of a declared class; some have records that nobody knows."""

    def content(spec: FieldSpec) -> st.SearchStrategy[Any]:
        present = values_of(spec.wire)
        return present if spec.tlv is None else st.one_of(st.just(spec.default), present)

    arguments = {spec.name: content(spec) for spec in cls.__layout__.fields + cls.__layout__.records}
    if issubclass(cls, GossipMessage):
        arguments["excess_data"] = st.binary(max_size=10)
    elif issubclass(cls, TlvStream):
        custom = st.dictionaries(st.integers(300, 400).map(lambda n: 2 * n + 1), st.binary(max_size=5), max_size=2)
        arguments["unknown_tlvs"] = custom.map(lambda records: tuple(sorted(records.items())))
    return st.fixed_dictionaries(arguments).map(lambda given: cls(**given))


messages = st.one_of([instances_of(cls) for cls in sorted(MESSAGES.values(), key=lambda cls: cls.TYPE)])


@settings(max_examples=400, deadline=None)
@given(messages)
def test_every_message_survives_a_round_trip(sent: Message) -> None:
    data = encode(sent)
    received = decode(data)
    assert received == sent
    assert hash(received) == hash(sent)
    assert encode(received) == data
    assert encode(dataclasses.replace(received)) == data, "without what was kept of the bytes"


@settings(max_examples=400, deadline=None)
@given(messages)
def test_compiled_and_plain_encoding_agree(sent: Message) -> None:
    """The fields one after another give the same bytes as the straight-line code."""
    layout = sent.__layout__
    body = b"".join(spec.wire.encode(getattr(sent, spec.name)) for spec in layout.fields)
    present = [(spec, getattr(sent, spec.name)) for spec in layout.records]
    stream = [(spec.tlv.type, spec.wire.encode(value)) for spec, value in present if spec.tlv and value != spec.default]
    tail = join_tlv_stream(stream + list(sent.unknown_tlvs))
    if isinstance(sent, GossipMessage):
        tail += sent.excess_data
    assert encode(sent) == sent.TYPE.to_bytes(2, "big") + body + tail


@settings(max_examples=300, deadline=None)
@given(messages, st.data())
def test_a_message_cut_off_is_refused_by_name(sent: Message, data: st.DataObject) -> None:
    whole = encode(sent)
    fixed = 2 + sum(len(spec.wire.encode(getattr(sent, spec.name))) for spec in sent.__layout__.fields)
    cut = data.draw(st.integers(2, max(2, fixed - 1)))
    if cut >= fixed:
        return
    with pytest.raises(DecodeError) as caught:
        decode(whole[:cut])
    assert caught.value.message == sent.NAME
    assert caught.value.message_type == sent.TYPE
    assert caught.value.field in {spec.name for spec in sent.__layout__.fields}


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=300))
def test_garbage_raises_decode_error_only(type_: int, payload: bytes) -> None:
    data = type_.to_bytes(2, "big") + payload
    try:
        received = decode(data)
    except DecodeError as error:
        named = error.message_type
    else:
        named = received.TYPE
        assert encode(received) == data
    assert named == type_


@settings(max_examples=300, deadline=None)
@given(messages, st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_read_or_refused(sent: Message, position: int, change: int) -> None:
    data = bytearray(encode(sent))
    data[2 + position % max(1, len(data) - 2) if len(data) > 2 else 0] ^= change
    try:
        received = decode(bytes(data))
    except (DecodeError, UnknownMessage):
        return
    assert encode(received) == bytes(data)


@pytest.mark.parametrize("cls", MESSAGES.values(), ids=lambda cls: cls.NAME)
def test_bytes_of_a_wrong_length_are_never_sent(cls: type[Message]) -> None:
    """struct alone would pad or cut them in silence."""
    sample = minimal(cls)
    for spec in cls.__layout__.fields:
        if isinstance(spec.wire, FixedBytes):
            for wrong in (b"\x02" * (spec.wire.size - 1), b"\x02" * (spec.wire.size + 1), None, "x"):
                with pytest.raises(EncodeError) as caught:
                    encode(changed(sample, spec.name, wrong))
                assert (caught.value.message, caught.value.field) == (cls.NAME, spec.name)
        if isinstance(spec.wire, Int):
            for wrong_number in (1 << (8 * spec.wire.size), "1", None, -(1 << 63) - 1):
                with pytest.raises(EncodeError) as caught:
                    encode(changed(sample, spec.name, wrong_number))
                assert caught.value.field == spec.name


def changed(value: Message, field: str, content: object) -> Message:
    return type(value)(**{spec.name: getattr(value, spec.name) for spec in value.__layout__.fields} | {field: content})


def minimal(cls: type[Message]) -> Message:
    def least(wire: WireType) -> Any:
        match wire:
            case Int():
                return 0
            case FixedBytes():
                return b"\x02" * wire.size
            case Array():
                return ()
        return b""

    return cls(**{spec.name: least(spec.wire) for spec in cls.__layout__.fields})


def test_messages_cannot_be_changed() -> None:
    ping = Ping(1, b"")
    with pytest.raises(dataclasses.FrozenInstanceError):
        ping.num_pong_bytes = 2  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        ping.other = 2  # type: ignore[attr-defined]
    assert ping == Ping(1, b"")
    assert ping != Ping(2, b"")


def test_unknown_types_are_told_apart() -> None:
    for type_, may_be_ignored in ((32769, True), (32770, False)):
        with pytest.raises(UnknownMessage) as caught:
            decode(type_.to_bytes(2, "big") + b"payload")
        assert (caught.value.type, caught.value.payload, caught.value.may_be_ignored) == (
            type_,
            b"payload",
            may_be_ignored,
        )
    for short in (b"", b"\0"):
        with pytest.raises(DecodeError):
            decode(short)


def test_a_message_has_at_most_65535_bytes() -> None:
    assert len(encode(Ping(0, bytes(65529)))) == 65535
    assert len(encode(UpdateFailHtlc(bytes(32), 0, bytes(65491)))) == 65535
    with pytest.raises(EncodeError, match="65535"):
        encode(UpdateFailHtlc(bytes(32), 0, bytes(65492)))
    with pytest.raises(EncodeError, match=r"^ping.ignored: 65536 bytes"):
        encode(Ping(0, bytes(65536)))
    with pytest.raises(EncodeError, match="at most 65535"):
        encode(Init(b"", b"", unknown_tlvs=((1001, bytes(65535)),)))


def test_errors_name_message_and_field() -> None:
    htlc = UpdateAddHtlc(bytes(32), 1, 2, bytes(32), 3, bytes(1366))
    with pytest.raises(DecodeError, match=r"^update_add_htlc\.payment_hash: needs 32 bytes, 12 left$") as caught:
        decode(encode(htlc)[:62])
    assert (caught.value.field, caught.value.offset) == ("payment_hash", 50)
    with pytest.raises(DecodeError, match=r"^update_add_htlc\.path_key: not a compressed point$") as caught:
        decode(encode(htlc) + b"\x00\x21" + b"\x04" + bytes(32))
    assert (caught.value.tlv_type, caught.value.offset) == (0, 1452)
    with pytest.raises(EncodeError, match=r"^update_add_htlc\.path_key: 33 bytes wanted, not 32$"):
        encode(dataclasses.replace(htlc, path_key=bytes(32)))


def test_repr_is_for_people() -> None:
    assert repr(Ping(0, b"\xab")) == "Ping(num_pong_bytes=0, ignored=ab)"
    assert repr(UpdateFailHtlc(bytes(32), 0, bytes(100))).endswith("...(100 bytes))")


# --- structures, and what may be declared ---------------------------------------------------------------------------


@structure
class Leaf(Structure):
    flags: Byte
    name: ShortBytes


@structure
class Tree(Structure):
    """One of each."""

    kind: U16
    where: SciddirOrPubkeyBytes
    number: BigSize
    leaves: Annotated[tuple[Leaf, ...], Counted("B")]
    single: Leaf
    points: Annotated[tuple[Point, ...], Counted("H")]
    after: U32
    rest: Annotated[tuple[VarBytes, ...], Remaining()]


@tlv_stream
class Payload(TlvStream):
    """As in an onion or an offer."""

    tree: Annotated[Tree | None, Tlv(2)] = None
    note: Annotated[Utf8 | None, Tlv(3)] = None
    total_msat: Annotated[Tu64 | None, Tlv(8)] = None
    wanted: Annotated[bool, Tlv(9)] = False
    leaves: Annotated[tuple[Leaf, ...] | None, Remaining(), Tlv(10)] = None
    inner: Annotated[N1 | None, Tlv(66)] = None
    data: Annotated[RestBytes | None, Tlv(68)] = None


TREE = Tree(7, b"\1" + bytes(8), 300, (Leaf(1, b"a"), Leaf(2, b"")), Leaf(3, b"xyz"), (POINT,), 9, (b"", b"end"))


def test_structures_nest() -> None:
    data = TREE.to_bytes()
    leaves, points = "02" + "010161" + "0200", f"0001{POINT.hex()}"
    assert data.hex() == f"0007010000000000000000fd012c{leaves}030378797a{points}00000009" + "0000" + "0003656e64"
    assert Tree.from_bytes(data) == TREE
    with pytest.raises(DecodeError, match=r"^Tree\.leaves\.name: length missing"):
        Tree.from_bytes(data[:16])
    with pytest.raises(DecodeError, match=r"^Tree\.single\.name: length 3, but 0 bytes left"):
        Tree.from_bytes(data[:22])
    with pytest.raises(DecodeError, match=r"^Leaf: 1 bytes left over"):
        Leaf.from_bytes(b"\0\0\0")
    with pytest.raises(EncodeError, match=r"^Tree\.single\.name: 256 bytes"):
        dataclasses.replace(TREE, single=Leaf(0, bytes(256))).to_bytes()
    with pytest.raises(EncodeError, match=r"^Tree\.single: Leaf wanted, not int"):
        dataclasses.replace(TREE, single=5).to_bytes()  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match=r"^Tree\.where: "):
        dataclasses.replace(TREE, where=b"\5" * 33).to_bytes()
    with pytest.raises(EncodeError, match=r"^Tree\.leaves: 256 elements"):
        dataclasses.replace(TREE, leaves=(Leaf(0, b""),) * 256).to_bytes()
    with pytest.raises(DecodeError, match=r"^Tree\.where: neither"):
        Tree.from_bytes(b"\0\7\4" + data[3:])


def test_streams_hold_structures_and_streams() -> None:
    full = Payload(TREE, "grüß", 0, True, (Leaf(0, b""),), N1(tlv1=5), b"", unknown_tlvs=((5, b"?"), (70001, b"")))
    assert Payload.from_bytes(full.to_bytes()) == full
    assert Payload().to_bytes() == b""
    assert Payload(total_msat=0).to_bytes() == b"\x08\x00", "zero is there, unlike nothing"
    with pytest.raises(DecodeError, match=r"Payload\.note: not UTF-8"):
        Payload.from_bytes(b"\x03\x01\xff")
    with pytest.raises(DecodeError, match=r"Payload\.wanted: record of 1 bytes, 0 expected"):
        Payload.from_bytes(b"\x09\x01\x00")
    with pytest.raises(DecodeError, match=r"Payload\.inner: unknown even TLV type 0"):
        Payload.from_bytes(b"\x42\x02\x00\x00")
    with pytest.raises(EncodeError, match=r"Payload\.total_msat"):
        Payload(total_msat=1 << 64).to_bytes()


def test_custom_even_records_can_be_sent() -> None:
    """An onion may carry one that its reader, but not we, know."""
    assert Payload(unknown_tlvs=((5482373484, bytes(32)),)).to_bytes().hex() == "ff0000000146c6616c20" + "00" * 32


@pytest.mark.parametrize("type_", [0, 2, 128])
def test_the_type_of_a_message_is_declared_once(type_: int) -> None:
    if type_ not in MESSAGES:
        return
    with pytest.raises(ValueError, match="already"):

        @message(type_)
        class Again(Message):
            field: U16


def test_declarations_that_cannot_work_are_refused() -> None:
    with pytest.raises(TypeError, match="says nothing"):

        @structure
        class NoWireType(Structure):
            field: int

    with pytest.raises(TypeError, match="records need a TlvStream"):

        @structure
        class RecordsInStructure(Structure):
            field: Annotated[U16 | None, Tlv(1)] = None

    with pytest.raises(TypeError, match="absent record is None"):

        @tlv_stream
        class StrangeDefault(TlvStream):
            field: Annotated[U16, Tlv(1)] = 5

    with pytest.raises(TypeError, match="after all fields"):

        @message(60001)
        class RecordFirst(Message):
            field: Annotated[U16 | None, Tlv(1)] = None
            other: Annotated[U16, "not a record"] = 0

    assert 60001 not in MESSAGES


def test_short_channel_ids_for_people() -> None:
    scid = short_channel_id(539268, 845, 1)
    assert format_short_channel_id(scid) == "539268x845x1"
    assert parse_short_channel_id("539268x845x1") == scid
    assert struct.pack(">Q", scid).hex() == "083a8400034d0001"
    for bad in ("1x2", "1x2x65536", "16777216x0x0", "ax1x1", "1x2x-3", "1x2x3x4", "²x1x1"):
        with pytest.raises(ValueError):
            parse_short_channel_id(bad)


@structure
class Signatures(Structure):
    signatures: Annotated[tuple[Bytes32, ...], Counted("H")]


def test_arrays_of_fixed_bytes_are_guarded_as_well() -> None:
    for wrong in ((bytes(32), bytes(31)), ("x" * 32,), (bytes(33),), (bytes(31), bytes(33)), (None,), 5):
        with pytest.raises(EncodeError, match=r"^Signatures\.signatures: "):
            Signatures(wrong).to_bytes()  # type: ignore[arg-type]
    full = Signatures(tuple(bytes([number]) * 32 for number in range(200)))
    assert Signatures.from_bytes(full.to_bytes()) == full
    with pytest.raises(DecodeError, match=r"^Signatures\.signatures: needs 32 bytes, 31 left"):
        Signatures.from_bytes(full.to_bytes()[:-1])
