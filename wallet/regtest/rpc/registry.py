"""The table of RPC methods: names, parameters with their types, and how a request's parameters are checked."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from wallet.regtest.errors import INVALID_PARAMETER, METHOD_NOT_FOUND, MISC_ERROR, TYPE_ERROR, RpcError

if TYPE_CHECKING:
    from wallet.regtest.faucet import Faucet
    from wallet.regtest.node import Node

Json = Any
_REQUIRED = object()
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, Decimal, float),
    "bool": (bool,),
    "array": (list,),
    "object": (dict,),
}
_KINDS = {"hash": ("string",), "amount": ("number", "string"), "int": ("number",)}
_INT64 = range(-(2**63), 2**63)


class Param(NamedTuple):
    """A parameter: `name` with aliases behind `|`, `kind` one or several JSON types behind ` or `.

    The kinds `hash` (32 bytes as hex), `int` and `amount` (BTC, to be read with `read_amount`) say more.
    """

    name: str
    kind: str
    default: Any = _REQUIRED

    @property
    def names(self) -> list[str]:
        """All names that the parameter answers to."""
        return self.name.split("|")

    @property
    def required(self) -> bool:
        """Whether a call must give it."""
        return self.default is _REQUIRED

    @property
    def types(self) -> list[str]:
        """The JSON types that it may have."""
        return [name for kind in self.kind.split(" or ") for name in _KINDS.get(kind, (kind,))]

    def read(self, value: Json) -> Any:
        """The handler's argument, of a value that has the right JSON type. Raises RpcError."""
        if self.kind == "hash":
            return read_hash(value, self.names[0])
        if self.kind.startswith("int") and not isinstance(value, (bool, str)):
            return read_int(value, self.names[0])
        return value


@dataclass
class Call:
    """What a method may need besides its parameters."""

    node: Node
    faucet: Faucet
    control: Control
    wallet: str | None = None


@dataclass
class Control:
    """What the methods about the daemon itself need."""

    stop: Callable[[], None]
    datadir: str
    debug_log: str
    notifications: list[dict[str, Json]] = field(default_factory=list)
    active: dict[int, tuple[str, float]] = field(default_factory=dict)


Handler = Callable[..., Json | Awaitable[Json]]


@dataclass(frozen=True)
class Method:
    """An RPC method as `help` and the dispatcher see it."""

    category: str
    name: str
    params: tuple[Param, ...]
    handler: Handler
    description: str

    @property
    def usage(self) -> str:
        """The one line that `help` lists."""
        words = [self.name]
        optional = 0
        for param in self.params:
            shown = param.names[0]
            shown = f'"{shown}"' if param.types[0] == "string" else shown
            if not param.required:
                words.append("(")
                optional += 1
            words.append(shown)
        return " ".join(words + [")"] * optional)

    @property
    def help(self) -> str:
        """What `help METHOD` answers."""
        lines = [self.usage, "", self.description]
        if self.params:
            lines += ["", "Arguments:"]
            for number, param in enumerate(self.params, 1):
                needed = "required" if param.required else f"optional, default={_shown(param.default)}"
                lines.append(f"{number}. {param.names[0]}    ({' or '.join(param.types)}, {needed})")
        return "\n".join(lines) + "\n"

    def bind(self, given: Json) -> list[Any]:
        """The handler's arguments from a request's `params`. Raises RpcError as bitcoind does."""
        values = self._named(given) if isinstance(given, dict) else list(given)
        required = sum(param.required for param in self.params)
        if not required <= len(values) <= len(self.params):
            raise RpcError(MISC_ERROR, self.help)
        mismatches = {}
        for position, (param, value) in enumerate(zip(self.params, values, strict=False), 1):
            problem = None if value is None and not param.required else _type_problem(param, value)
            if problem is not None:
                mismatches[f"Position {position} ({param.names[0]})"] = problem
        if mismatches:
            raise RpcError(TYPE_ERROR, f"Wrong type passed:\n{json.dumps(mismatches, indent=4)}")
        arguments = []
        for index, param in enumerate(self.params):
            value = values[index] if index < len(values) else None
            if value is None:
                arguments.append(None if param.required else param.default)
            else:
                arguments.append(param.read(value))
        return arguments

    def _named(self, given: dict[str, Json]) -> list[Json]:
        rest = dict(given)
        values: list[Json] = list(rest.pop("args", []) or [])
        for position, param in enumerate(self.params):
            for name in param.names:
                if name not in rest:
                    continue
                if position < len(values):
                    raise RpcError(
                        INVALID_PARAMETER, f"Parameter {name} specified twice both as positional and named argument"
                    )
                values += [None] * (position - len(values))
                values.append(rest.pop(name))
        if rest:
            raise RpcError(INVALID_PARAMETER, f"Unknown named parameter {next(iter(rest))}")
        return values


METHODS: dict[str, Method] = {}


def method(category: str, *params: Param, name: str | None = None) -> Callable[[Handler], Handler]:
    """Register a function as an RPC method; its docstring is the method's description."""

    def register(handler: Handler) -> Handler:
        named = name or handler.__name__
        METHODS[named] = Method(category, named, params, handler, inspect.cleandoc(handler.__doc__ or ""))
        return handler

    return register


def find(name: str) -> Method:
    """The method of that name. Raises RpcError(-32601)."""
    found = METHODS.get(name)
    if found is None:
        raise RpcError(METHOD_NOT_FOUND, "Method not found")
    return found


# Reading values.


def json_type(value: Json) -> str:
    """bitcoind's name for a JSON value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    return next(name for name, types in _JSON_TYPES.items() if isinstance(value, types))


def _type_problem(param: Param, value: Json) -> str | None:
    if param.kind == "any":
        return None
    actual = json_type(value)
    if actual in param.types:
        return None
    expected = param.types[0]
    return f"JSON value of type {actual} is not of expected type {expected}"


def _shown(value: Any) -> str:
    return "null" if value is None else json.dumps(value) if not isinstance(value, Decimal) else str(value)


def expect(value: Json, kind: str, name: str) -> Json:
    """A member of an array or object, checked for its type. Raises RpcError(-3)."""
    actual = json_type(value)
    if actual != kind:
        raise RpcError(TYPE_ERROR, f"JSON value of type {actual} for field {name} is not of expected type {kind}")
    return value


def read_hash(value: Json, name: str) -> bytes:
    """32 bytes in internal order from reversed hex. Raises RpcError(-8)."""
    text = expect(value, "string", name)
    if len(text) != 64:
        raise RpcError(INVALID_PARAMETER, f"{name} must be of length 64 (not {len(text)}, for '{text}')")
    try:
        return bytes.fromhex(text)[::-1]
    except ValueError:
        raise RpcError(INVALID_PARAMETER, f"{name} must be hexadecimal string (not '{text}')") from None


def read_options(given: Json, known: Sequence[Param]) -> dict[str, Any]:
    """All `known` options by their first name, from an object of named ones. Raises RpcError."""
    rest = dict(given or {})
    options: dict[str, Any] = {}
    for param in known:
        value = next((rest.pop(name) for name in param.names if name in rest), None)
        problem = None if value is None else _type_problem(param, value)
        if problem is not None:
            raise RpcError(TYPE_ERROR, problem)
        options[param.names[0]] = param.default if value is None else param.read(value)
    if rest:
        raise RpcError(TYPE_ERROR, f"Unexpected key {next(iter(rest))}")
    return options


def read_amount(value: Json, *, decimals: int = 8) -> int:
    """A number or text in units of 10^-decimals: BTC to satoshi, unless told otherwise. Raises RpcError(-3)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        raise RpcError(TYPE_ERROR, "Amount is not a number or string")
    try:
        scaled = Decimal(str(value)).scaleb(decimals)
        sat = int(scaled)
    except (ArithmeticError, ValueError):
        raise RpcError(TYPE_ERROR, "Invalid amount") from None
    if sat != scaled:
        raise RpcError(TYPE_ERROR, "Invalid amount")
    if not 0 <= sat <= 21_000_000 * 100_000_000:
        raise RpcError(TYPE_ERROR, "Amount out of range")
    return sat


def read_int(value: Json, name: str) -> int:
    """A whole number of 64 bits. Raises RpcError(-3) for what is no number, -1 for other numbers."""
    if json_type(value) != "number":
        raise RpcError(
            TYPE_ERROR, f"JSON value of type {json_type(value)} for field {name} is not of expected type number"
        )
    if value != int(value) or int(value) not in _INT64:
        raise RpcError(MISC_ERROR, "JSON integer out of range")
    return int(value)


def read_strings(values: list[Json], name: str) -> list[str]:
    """An array of strings. Raises RpcError(-3)."""
    return [expect(value, "string", name) for value in values]
