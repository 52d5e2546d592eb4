"""Protobuf messages as JSON for scripts: the fields' own names, ids in hex as people read them, integers as integers.

(protobuf's own JSON writes 64-bit integers as strings and bytes as base64.)
"""

from __future__ import annotations

import json
import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_REVERSED = ("txid", "block_hash")
_SCID = "short_channel_id"
_EMBEDDED_JSON = "_json"


def to_jsonable(message: Message) -> dict[str, Any]:
    """Every field of `message`, in the order of the .proto file; null where an optional one is absent."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            result[field.name] = None
        elif field.name.endswith(_EMBEDDED_JSON):
            result[field.name.removesuffix(_EMBEDDED_JSON)] = json.loads(getattr(message, field.name) or "{}")
        elif field.type == FieldDescriptor.TYPE_ENUM:
            result[field.name] = enum_name(message, field.name)
        else:
            value = getattr(message, field.name)
            result[field.name] = [_value(field, each) for each in value] if field.is_repeated else _value(field, value)
    return result


def enum_name(message: Message, field_name: str) -> str:
    """`succeeded` for PAYMENT_STATE_SUCCEEDED; the number if this program does not know it."""
    number: int = getattr(message, field_name)
    descriptor: Any = message.DESCRIPTOR.fields_by_name[field_name].enum_type
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", descriptor.name).upper() + "_"
    return str(value.name).removeprefix(prefix).lower()


def _value(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return to_jsonable(value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value[::-1].hex() if field.name.endswith(_REVERSED) else value.hex()
    if field.name.endswith(_SCID):
        return f"{value >> 40}x{value >> 16 & 0xFFFFFF}x{value & 0xFFFF}"
    return value
