"""BOLT 7, "The node_announcement Message": address descriptors, as in `node_announcement` and `init`'s remote_addr."""

import base64
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from channeld.bolt.primitives import DecodeError


class AddressType(IntEnum):
    """First byte of a descriptor. Type 3, Tor v2, is gone: it is read over and never written."""

    IPV4 = 1
    IPV6 = 2
    TOR_V3 = 4
    DNS = 5


_TOR_V2_TYPE = 3
_PAYLOAD_BYTES = {AddressType.IPV4: 4, AddressType.IPV6: 16, _TOR_V2_TYPE: 10, AddressType.TOR_V3: 35}


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a node listens; `host` is as people write it: `1.2.3.4`, `2001:db8::1`, `....onion`, a DNS name."""

    type: AddressType
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.type is AddressType.IPV6 else f"{self.host}:{self.port}"

    def to_bytes(self) -> bytes:
        """The descriptor. Raises ValueError if the host is none of its type or the port is not 1..65535."""
        if not 1 <= self.port <= 65535:
            raise ValueError(f"{self.port} is not a port")
        return bytes((self.type,)) + self._host_bytes() + self.port.to_bytes(2, "big")

    def _host_bytes(self) -> bytes:
        match self.type:
            case AddressType.IPV4:
                return ipaddress.IPv4Address(self.host).packed
            case AddressType.IPV6:
                return ipaddress.IPv6Address(self.host).packed
            case AddressType.TOR_V3:
                onion = base64.b32decode(self.host.removesuffix(".onion").upper())
                if len(onion) != 35 or onion[-1] != 3:
                    raise ValueError(f"{self.host!r} is not a version 3 onion service")
                return onion
            case AddressType.DNS:
                name = self.host.encode("ascii")
                if not 1 <= len(name) <= 255:
                    raise ValueError(f"{self.host!r} is not a DNS name of 1 to 255 bytes")
                return bytes((len(name),)) + name


def parse_address(text: str) -> Address:
    """`host:port`, with an IPv6 host in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{text!r} is not host:port")
    host = host.removeprefix("[").removesuffix("]")
    address = Address(_type_of(host), host, int(port))
    address.to_bytes()
    return address


def _type_of(host: str) -> AddressType:
    if host.endswith(".onion"):
        return AddressType.TOR_V3
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return AddressType.DNS
    return AddressType.IPV4 if version == 4 else AddressType.IPV6


def encode_addresses(addresses: list[Address]) -> bytes:
    """`addresses` of a `node_announcement`, in ascending order of types. Raises ValueError for a bad one."""
    return b"".join(address.to_bytes() for address in sorted(addresses))


def decode_addresses(data: bytes) -> list[Address]:
    """The usable ones. Raises DecodeError when one is cut off.

    An unknown type ends the list without an error; Tor v2, port 0, what is no name, and what is no version 3 onion
    service are left out.
    """
    found = (_address(*descriptor) for descriptor in _descriptors(data))
    return [address for address in found if address is not None]


def count_hostnames(data: bytes) -> int:
    """How many DNS hostnames there are, usable or not. Raises DecodeError as `decode_addresses`."""
    return sum(type_ == AddressType.DNS for type_, _, _ in _descriptors(data))


def _descriptors(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Type, host and port of each, up to the first of an unknown type."""
    pos = 0
    while pos < len(data):
        type_ = data[pos]
        if type_ == AddressType.DNS:
            start = pos + 2
            end = start + (data[pos + 1] if pos + 1 < len(data) else 0)
        elif type_ in _PAYLOAD_BYTES:
            start = pos + 1
            end = start + _PAYLOAD_BYTES[type_]
        else:
            break
        if end + 2 > len(data):
            raise DecodeError(f"address descriptor of type {type_} cut off", field="addresses", offset=pos)
        yield type_, data[start:end], int.from_bytes(data[end : end + 2], "big")
        pos = end + 2


def _address(type_: int, host: bytes, port: int) -> Address | None:
    if type_ == _TOR_V2_TYPE or port == 0:
        return None
    kind = AddressType(type_)
    match kind:
        case AddressType.IPV4 | AddressType.IPV6:
            return Address(kind, str(ipaddress.ip_address(host)), port)
        case AddressType.TOR_V3:
            if host[-1] != 3:  # the version is the last byte
                return None
            return Address(kind, base64.b32encode(host).decode().lower() + ".onion", port)
        case AddressType.DNS:
            return Address(kind, host.decode("ascii"), port) if host.isascii() and host else None
