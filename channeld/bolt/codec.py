"""Declarative messages: a class's annotations are its wire format.

    @message(128)
    class UpdateAddHtlc(Message):
        channel_id: ChannelId
        id: U64
        ...
        path_key: Annotated[Point | None, Tlv(0)] = None

The decorator turns the class into a frozen dataclass with slots and compiles, once, straight-line functions that write
and read it: neighbouring fields of fixed size share one `struct` call. What is generated can be read in
`<class>.__layout__.source`. `@structure` declares a sub-structure, `@tlv_stream` a stream that stands alone.
Errors are looked for a second time, field by field, so that the fast path need not keep track of where it is.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import struct
import types
from collections.abc import Callable
from typing import (
    Annotated,
    Any,
    ClassVar,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from channeld.bolt.primitives import (
    MAX_MESSAGE_BYTES,
    Array,
    Counted,
    DecodeError,
    EncodeError,
    FixedSize,
    Flag,
    Remaining,
    WireType,
    decode_bigsize,
    encode_bigsize,
)

TlvRecord = tuple[int, bytes]
"""Type and value of a TLV record, undecoded."""


class UnknownMessage(ValueError):
    """A message of a type that nobody declared. BOLT 1: odd ones are ignored, even ones close the connection."""

    def __init__(self, type: int, payload: bytes) -> None:
        super().__init__(f"unknown message of type {type}, {len(payload)} bytes of payload")
        self.type = type
        self.payload = payload

    @property
    def may_be_ignored(self) -> bool:
        """It is OK to be odd."""
        return bool(self.type & 1)


class Tlv:
    """Marks a field as an optional TLV record; `record` is the BOLT's name of the record where the field's differs."""

    __slots__ = ("record", "type")

    def __init__(self, type: int, record: str = "") -> None:
        self.type = type
        self.record = record


@dataclasses.dataclass(frozen=True, slots=True)
class FieldSpec:
    """One declared field; `tlv` is None for a field of the fixed part."""

    name: str
    wire: WireType
    tlv: Tlv | None
    default: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """What was compiled for a class: its fields in order, its records by type, and the source of its functions."""

    name: str
    fields: tuple[FieldSpec, ...]
    records: tuple[FieldSpec, ...]
    source: str


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 64 else f"{value[:64].hex()}...({len(value)} bytes)"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return repr(value)


# --- base classes -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Structure:
    """Base of sub-structures: a fixed sequence of fields without a type and without an extension."""

    __layout__: ClassVar[Layout]

    def to_bytes(self) -> bytes:
        """Raises EncodeError naming the field."""
        return self._wire_encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises DecodeError naming the field, also when bytes are left over."""
        value, end = cls._wire_decode(data, 0)
        if end != len(data):
            raise DecodeError(f"{len(data) - end} bytes left over", message=cls.__layout__.name, offset=end)
        return value

    def __repr__(self) -> str:
        values = [(attribute.name, getattr(self, attribute.name)) for attribute in dataclasses.fields(self)]
        shown = [f"{name}={_shown(value)}" for name, value in values if value or type(value) is int]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _wire_encode(self) -> bytes:
        raise TypeError(f"{type(self).__name__} was not declared with a decorator of channeld.bolt.codec")

    @classmethod
    def _wire_decode(cls, data: bytes, pos: int) -> tuple[Self, int]:
        raise TypeError(f"{cls.__name__} was not declared with a decorator of channeld.bolt.codec")


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class TlvStream(Structure):
    """Base of TLV streams. `unknown_tlvs` are odd records nobody declared, in order; they survive a round trip."""

    unknown_tlvs: tuple[TlvRecord, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Message(TlvStream):
    """Base of messages: fields, then an extension that is a TLV stream (BOLT 1, "Lightning Message Format")."""

    TYPE: ClassVar[int]
    NAME: ClassVar[str]


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class GossipMessage(Message):
    """Base of messages that are hashed and sent on: whatever follows their fields is kept as it came."""

    excess_data: bytes = dataclasses.field(default=b"", kw_only=True)
    _raw: bytes = dataclasses.field(default=b"", init=False, compare=False, repr=False)

    @property
    def raw(self) -> bytes:
        """The message with its type, as it was received or as it will be sent."""
        return self._raw or self._wire_encode()


MESSAGES: dict[int, type[Message]] = {}
"""Every declared message by its type."""

_DECODERS: dict[int, Callable[[bytes, int], tuple[Message, int]]] = {}


def encode(message: Message) -> bytes:
    """The 2 byte type, the payload and the extension. Raises EncodeError naming the field."""
    return message._wire_encode()


def decode(data: bytes) -> Message:
    """The message in `data` (2 byte type first). Raises UnknownMessage, or DecodeError naming message and field."""
    if len(data) < 2:
        raise DecodeError(f"a message of {len(data)} bytes has no type")
    type_ = data[0] << 8 | data[1]
    decoder = _DECODERS.get(type_)
    if decoder is None:
        raise UnknownMessage(type_, data[2:])
    return decoder(data, 2)[0]


# --- decorators ---------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Structure)
T = TypeVar("T", bound=TlvStream)
M = TypeVar("M", bound=Message)


@dataclass_transform(frozen_default=True)
def structure(cls: type[S]) -> type[S]:
    """Declares a sub-structure: usable as the type of a field or a record, in messages, onions and invoices."""
    return _compile(cls, cls.__name__, None)


@dataclass_transform(frozen_default=True)
def tlv_stream(cls: type[T]) -> type[T]:
    """Declares a TLV stream: every field is a record, `Annotated[X | None, Tlv(n)] = None`."""
    return _compile(cls, cls.__name__, None)


@dataclass_transform(frozen_default=True)
def message(type_: int, name: str = "") -> Callable[[type[M]], type[M]]:
    """Declares a message of the type `type_`; `name` where the BOLT's is not the class's in snake_case."""

    def declare(cls: type[M]) -> type[M]:
        if type_ in MESSAGES:
            raise ValueError(f"message type {type_} is {MESSAGES[type_].__name__} already")
        bolt_name = name or re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        declared = _compile(cls, bolt_name, type_)
        declared.TYPE, declared.NAME = type_, bolt_name
        MESSAGES[type_] = declared
        _DECODERS[type_] = declared._wire_decode
        return declared

    return declare


# --- TLV streams --------------------------------------------------------------------------------------------------


def split_tlv_stream(data: bytes, pos: int = 0) -> list[TlvRecord]:
    """All records from `pos` on, known or not. Raises DecodeError for what is cut off, not minimal or out of order."""
    records: list[TlvRecord] = []
    last, end = -1, len(data)
    while pos < end:
        start, type_ = pos, None
        try:
            type_, pos = decode_bigsize(data, pos)
            size, pos = decode_bigsize(data, pos)
        except DecodeError as error:
            raise DecodeError(error.reason, tlv_type=type_, offset=start) from None
        if type_ <= last:
            raise DecodeError(f"TLV type {type_} after {last}", tlv_type=type_, offset=start)
        if pos + size > end:
            raise DecodeError(f"record of {size} bytes, {end - pos} left", tlv_type=type_, offset=start)
        records.append((type_, data[pos : pos + size]))
        last, pos = type_, pos + size
    return records


def join_tlv_stream(records: list[TlvRecord]) -> bytes:
    """The stream of `records`, sorted by type. Raises EncodeError for a type that is there twice."""
    out = []
    last = -1
    for type_, value in sorted(records):
        if type_ == last:
            raise EncodeError(f"TLV type {type_} twice")
        out += [encode_bigsize(type_), encode_bigsize(len(value)), value]
        last = type_
    return b"".join(out)


def _read_records(data: bytes, pos: int, table: dict[int, FieldSpec]) -> tuple[dict[int, Any], tuple[TlvRecord, ...]]:
    """Known records decoded, by type, and unknown odd ones (BOLT 1, "Type-Length-Value Format")."""
    known: dict[int, Any] = {}
    unknown: list[TlvRecord] = []
    records = split_tlv_stream(data, pos)
    for index, (type_, value) in enumerate(records):
        spec = table.get(type_)
        field = ""
        try:
            if spec is not None:
                field = spec.name
                known[type_], used = spec.wire.decode(value, 0)
                if used != len(value):
                    raise DecodeError(f"record of {len(value)} bytes, {used} expected")
            elif type_ & 1:
                unknown.append((type_, value))
            else:
                raise DecodeError(f"unknown even TLV type {type_}")
        except DecodeError as error:
            offset = pos + len(join_tlv_stream(records[:index]))
            raise DecodeError(error.reason, field=_path(field, error), tlv_type=type_, offset=offset) from None
    return known, tuple(unknown)


def _write_records(value: Any, layout: Layout) -> bytes:
    """The general way to write a stream: known and unknown records merged."""
    records = []
    for spec in layout.records:  # sorted by type
        content = getattr(value, spec.name)
        if content is not None and content is not False:
            records.append((spec.tlv.type, spec.wire.encode(content)))  # type: ignore[union-attr]
    if value.unknown_tlvs:
        return join_tlv_stream([*value.unknown_tlvs, *records])
    return b"".join([encode_bigsize(type_) + encode_bigsize(len(content)) + content for type_, content in records])


# --- from annotations to wire types -------------------------------------------------------------------------------


class Nested(WireType):
    """A field whose type is itself a declared class."""

    __slots__ = ("_decode", "cls")

    def __init__(self, cls: type[Structure]) -> None:
        self.cls = cls
        self._decode = cls._wire_decode

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, self.cls):
            raise EncodeError(f"{self.cls.__name__} wanted, not {type(value).__name__}")
        return value._wire_encode()

    def decode(self, data: bytes, pos: int) -> tuple[Any, int]:
        return self._decode(data, pos)


def wire_type(annotation: Any) -> WireType:
    """The wire type that an annotation (without `Tlv` and `None`) stands for. Raises TypeError when it has none."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        inner = _without_none(inner)
        for mark in marks:
            if isinstance(mark, WireType):
                return mark
            if isinstance(mark, Counted | Remaining):
                return Array(wire_type(get_args(inner)[0]), mark.prefix)
        return wire_type(inner)
    if annotation is bool:
        return Flag()
    if isinstance(annotation, type) and issubclass(annotation, Structure):
        return Nested(annotation)
    raise TypeError(f"{annotation!r} says nothing about its wire format")


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    options = [option for option in get_args(annotation) if option is not type(None)]
    if len(options) != 1:
        raise TypeError(f"{annotation!r} is more than one type")
    return options[0]


def _field_specs(cls: type[Structure]) -> tuple[FieldSpec, ...]:
    hints = get_type_hints(cls, include_extras=True)
    specs = []
    for name in inspect.get_annotations(cls):
        hint = hints[name]
        if get_origin(hint) is ClassVar:
            continue
        tlvs = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Tlv)]
        specs.append(FieldSpec(name, wire_type(hint), tlvs[0] if tlvs else None, cls.__dict__.get(name)))
    return tuple(specs)


# --- the compiler -------------------------------------------------------------------------------------------------


def _compile(cls: type[S], name: str, type_: int | None) -> type[S]:
    specs = _field_specs(cls)
    fields = tuple(spec for spec in specs if spec.tlv is None)
    records = tuple(spec for spec in specs if spec.tlv is not None)
    if specs != fields + records:
        raise TypeError(f"{cls.__name__}: records come after all fields")
    if records and not issubclass(cls, TlvStream):
        raise TypeError(f"{cls.__name__}: records need a TlvStream")
    if any(spec.default is not (False if isinstance(spec.wire, Flag) else None) for spec in records):
        raise TypeError(f"{cls.__name__}: an absent record is None, or False if it is a bool")
    declared = dataclasses.dataclass(frozen=True, slots=True, init=False, repr=False)(cls)
    writer = _Writer(declared, fields, records, type_)
    source = "\n".join([*writer.initializer(), "", *writer.encoder(), "", *writer.decoder(), ""])
    layout = Layout(name, fields, tuple(sorted(records, key=lambda spec: spec.tlv.type)), source)  # type: ignore[union-attr]
    scope = writer.scope
    scope["layout"] = layout
    exec(compile(source, f"<codec of {cls.__name__}>", "exec"), scope)
    declared.__layout__ = layout
    type.__setattr__(declared, "__init__", scope["__init__"])
    declared._wire_encode = scope["_wire_encode"]  # type: ignore[method-assign]
    declared._wire_decode = staticmethod(scope["_wire_decode"])  # type: ignore[method-assign]
    return declared


class _Writer:
    """Writes the source of one class's functions, and collects the names that they refer to."""

    def __init__(
        self, cls: type[Structure], fields: tuple[FieldSpec, ...], records: tuple[FieldSpec, ...], type_: int | None
    ) -> None:
        self.cls = cls
        self.fields = fields
        self.records = records
        self.type = type_
        self.has_stream = issubclass(cls, TlvStream)
        self.is_gossip = issubclass(cls, GossipMessage)
        self.scope: dict[str, Any] = {
            "cls": cls,
            "new": object.__new__,
            "Failure": (struct.error, TypeError, ValueError, AttributeError),
            "Refused": (struct.error, DecodeError),
            "DecodeError": DecodeError,
            "MESSAGE_TYPE": type_,
            "too_long": _too_long,
            "explain_encode": _explain_encode,
            "explain_decode": _explain_decode,
            "read_records": _read_records,
            "write_records": _write_records,
            "table": {spec.tlv.type: spec for spec in records if spec.tlv},
        }

    def _runs(self) -> list[list[int]]:
        """Indices of the fields, those of fixed size that stand together in one list."""
        runs: list[list[int]] = []
        for index, spec in enumerate(self.fields):
            if runs and isinstance(spec.wire, FixedSize) and isinstance(self.fields[runs[-1][0]].wire, FixedSize):
                runs[-1].append(index)
            else:
                runs.append([index])
        return runs

    def _format(self, run: list[int]) -> str:
        return "".join(self.fields[index].wire.format for index in run)  # type: ignore[attr-defined]

    def initializer(self) -> list[str]:
        """The dataclass's own `__init__`, but twice as fast: it fills the slots instead of calling `__setattr__`."""
        positional = ["self"]
        keywords: list[str] = []
        values = {}
        for attribute in dataclasses.fields(self.cls):
            name = attribute.name
            self.scope[f"set_{name}"] = getattr(self.cls, name).__set__
            if attribute.init:
                default = "" if attribute.default is dataclasses.MISSING else f"={attribute.default!r}"
                (keywords if attribute.kw_only else positional).append(name + default)
            values[name] = name if attribute.init else repr(attribute.default)
        parameters = [*positional, *(["*", *keywords] if keywords else [])]
        return [f"def __init__({', '.join(parameters)}):", *(self._filled("self", values, 4) or ["    pass"])]

    @staticmethod
    def _filled(target: str, values: dict[str, str], indent: int) -> list[str]:
        """Fills the slots of `target` with the values (expressions) of its attributes."""
        return [f"{' ' * indent}set_{name}({target}, {value})" for name, value in values.items()]

    def _made(self, values: dict[str, str], indent: int = 8) -> list[str]:
        """Makes `value` without calling `__init__`, whose arguments cost as much as the slots; what is not given is as
        declared."""
        declared = {attribute.name: repr(attribute.default) for attribute in dataclasses.fields(self.cls)}
        return [f"{' ' * indent}value = new(cls)", *self._filled("value", {**declared, **values}, indent)]

    def encoder(self) -> list[str]:
        lines = ["def _wire_encode(self):"]
        if self.is_gossip:
            lines += ["    if self._raw:", "        return self._raw"]
        lines += ["    try:"]
        parts = []
        guards = []
        for number, run in enumerate(self._runs()):
            wire = self.fields[run[0]].wire
            lines += [f"        v{index} = self.{self.fields[index].name}" for index in run]
            if isinstance(wire, FixedSize):
                prefix = "H" if self.type is not None and number == 0 else ""
                self.scope[f"pack{number}"] = struct.Struct(">" + prefix + self._format(run)).pack
                arguments = ([str(self.type)] if prefix else []) + [f"v{index}" for index in run]
                parts.append(f"pack{number}({', '.join(arguments)})")
                checks = (self.fields[index].wire.guard(f"v{index}") for index in run)  # type: ignore[attr-defined]
                guards += [check for check in checks if check]
            else:
                self.scope[f"encode{number}"] = wire.encode
                parts.append(f"encode{number}(v{run[0]})")
        if self.type is not None and not (parts and parts[0].startswith("pack0")):
            self.scope["HEAD"] = self.type.to_bytes(2, "big")
            parts.insert(0, "HEAD")
        if guards:
            lines += [f"        if {' or '.join(guards)}:", "            raise ValueError"]
        lines += [f"        out = {' + '.join(parts) or 'b' + repr('')}"]
        lines += self._tail_encoder()
        lines += ["    except Failure as error:", "        raise explain_encode(layout, self, error) from None"]
        if self.type is not None:
            lines += [f"    if len(out) > {MAX_MESSAGE_BYTES}:", "        raise too_long(layout, out)"]
        return [*lines, "    return out"]

    def _tail_encoder(self) -> list[str]:
        if self.is_gossip:
            return [
                "        if self.unknown_tlvs:",
                "            raise ValueError('what follows a gossip message is its excess_data')",
                "        out += self.excess_data",
            ]
        if not self.has_stream:
            return []
        present = [f"self.{spec.name} is not {spec.default}" for spec in self.records]
        return [
            f"        if {' or '.join([*present, 'self.unknown_tlvs'])}:",
            "            out += write_records(self, layout)",
        ]

    def decoder(self) -> list[str]:
        lines = ["def _wire_decode(data, start):", "    try:", "        pos = start"]
        for number, run in enumerate(self._runs()):
            wire = self.fields[run[0]].wire
            if isinstance(wire, FixedSize):
                packed = struct.Struct(">" + self._format(run))
                self.scope[f"unpack{number}"] = packed.unpack_from
                lines += [f"        {', '.join(f'v{index}' for index in run)}, = unpack{number}(data, pos)"]
                lines += [f"        pos += {packed.size}"]
                checks = (self.fields[index].wire.check(f"v{index}") for index in run)  # type: ignore[attr-defined]
                refused = [check for check in checks if check]
                if refused:
                    lines += [f"        if {' or '.join(refused)}:", "            raise DecodeError('')"]
            else:
                self.scope[f"decode{number}"] = wire.decode
                lines += [f"        v{run[0]}, pos = decode{number}(data, pos)"]
        lines += self._tail_decoder()
        lines += ["    except Refused as error:"]
        lines += ["        raise explain_decode(layout, MESSAGE_TYPE, data, start, error) from None"]
        return lines

    def _tail_decoder(self) -> list[str]:
        values = {spec.name: f"v{index}" for index, spec in enumerate(self.fields)}
        if self.is_gossip:
            made = self._made({**values, "excess_data": "data[pos:]", "_raw": "data"})
            return [*made, "        return value, len(data)"]
        if not self.has_stream:
            return [*self._made(values), "        return value, pos"]
        lines = ["        if pos == len(data):", *self._made(values, 12), "            return value, pos"]
        lines += ["        known, unknown = read_records(data, pos, table)"]
        for spec in self.records:
            values[spec.name] = f"known.get({spec.tlv.type}, {spec.default!r})"  # type: ignore[union-attr]
        values["unknown_tlvs"] = "unknown"
        return [*lines, *self._made(values), "        return value, len(data)"]


# --- finding out what was wrong -----------------------------------------------------------------------------------


def _too_long(layout: Layout, out: bytes) -> EncodeError:
    return EncodeError(f"{len(out)} bytes, at most {MAX_MESSAGE_BYTES} fit", message=layout.name)


def _path(field: str, error: DecodeError | EncodeError) -> str:
    return f"{field}.{error.field}" if error.field else field


def _explain_encode(layout: Layout, value: Any, error: Exception) -> EncodeError:
    """The field that cannot be written, found by trying one after another."""
    for spec in layout.fields + layout.records:
        content = getattr(value, spec.name)
        if spec.tlv is not None and (content is None or content is False):
            continue
        try:
            spec.wire.encode(content)
        except EncodeError as found:
            return EncodeError(found.reason, message=layout.name, field=_path(spec.name, found))
        except (TypeError, AttributeError, ValueError, OverflowError) as found:
            return EncodeError(str(found), message=layout.name, field=spec.name)
    return EncodeError(getattr(error, "reason", str(error)), message=layout.name, field=getattr(error, "field", ""))


def _explain_decode(
    layout: Layout, message_type: int | None, data: bytes, pos: int, error: struct.error | DecodeError
) -> DecodeError:
    """The field that cannot be read, found by reading one after another; a record names itself."""
    for spec in layout.fields:
        try:
            _, pos = spec.wire.decode(data, pos)
        except DecodeError as found:
            field = _path(spec.name, found)
            return DecodeError(found.reason, message=layout.name, field=field, message_type=message_type, offset=pos)
    if not isinstance(error, DecodeError):
        raise AssertionError(f"{layout.name}: compiled and plain decoder disagree") from error
    return DecodeError(
        error.reason,
        message=layout.name,
        field=error.field,
        message_type=message_type,
        tlv_type=error.tlv_type,
        offset=error.offset,
    )
