"""Circuits: which incoming HTLC an outgoing one answers for."""

from __future__ import annotations

import time

import msgspec
from msgspec import Struct

from channeld.bolt.onion.payment import BlindedRole, OnionContext
from channeld.bolt.onion.sphinx import OnionError
from channeld.channel import events as ev
from channeld.node.refusals import hold_time, refusal_event

FORWARD_ORIGIN = b"F"
HtlcKey = tuple[int, int]
"""(channel_key, htlc id) of an incoming HTLC."""


class Circuit(Struct, frozen=True, array_like=True):
    """The incoming side, as kept with the outgoing HTLC. `received_ms`: Unix time in milliseconds."""

    incoming_key: int
    incoming_id: int
    incoming_msat: int
    shared_secret: bytes
    sha256_of_onion: bytes
    role: str
    received_ms: int

    @property
    def key(self) -> HtlcKey:
        """Which HTLC that is."""
        return self.incoming_key, self.incoming_id

    @property
    def context(self) -> OnionContext:
        """What it takes to refuse it."""
        return OnionContext(self.shared_secret, self.sha256_of_onion, BlindedRole(self.role))

    @property
    def held(self) -> int:
        """For how long the incoming HTLC was kept until now, in units of 100 ms."""
        return held_since(self.received_ms)

    def origin(self) -> bytes:
        """For `AddHtlc`."""
        return FORWARD_ORIGIN + _encode(self)

    def refusal(self, error: OnionError) -> ev.Event:
        """The incoming HTLC's failure, of our own making."""
        return refusal_event(self.incoming_id, error, self.held)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Circuit).decode


def circuit_of(origin: bytes) -> Circuit | None:
    """The circuit in an HTLC's origin; None if the HTLC is not a forwarded one."""
    return _decode(origin[1:]) if origin[:1] == FORWARD_ORIGIN else None


def held_since(received_ms: int) -> int:
    """In units of 100 ms."""
    return hold_time(time.time() - received_ms / 1000)
