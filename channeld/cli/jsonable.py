"""Protobuf messages as JSON for scripts: see `watchtower.rpc.jsonable`."""

from watchtower.rpc.jsonable import enum_name, to_jsonable

__all__ = ["enum_name", "to_jsonable"]
