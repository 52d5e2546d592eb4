"""Attribution data: what lets the sender tell which hop damaged a failure, and how long each hop held the HTLC.

The field is 920 bytes: 20 hold times (u32, units of 100 ms) || 210 HMACs cut to 4 bytes, one per hop and possible
distance to the erring node: the nearest hop has 20, the next one 19, and so on. Failures cover the return packet as it
was before the hop's own stream; fulfils cover an empty packet.

Source: BOLT 4, "Initialization of `attribution_data`", "Intermediate nodes", "Origin node",
"Hold times for successful payments"; BOLT 2, "Removing an HTLC".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from operator import itemgetter

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from channeld.bolt.onion.crypto import apply_stream, derive_key

MAX_HOPS = 20
HOLD_TIME_UNIT_SECONDS = 0.1
_HOLD_TIME_SIZE = 4
_HMAC_SIZE = 4
_HOLD_TIMES_SIZE = MAX_HOPS * _HOLD_TIME_SIZE
_MAX_HOLD_TIME = 0xFFFF_FFFF
ATTRIBUTION_SIZE = _HOLD_TIMES_SIZE + _HMAC_SIZE * MAX_HOPS * (MAX_HOPS + 1) // 2

# Where hop x's HMACs start: x blocks of 20, 19, ... HMACs lie before it. Inside, the greatest distance comes first.
_BLOCKS = [_HOLD_TIMES_SIZE + _HMAC_SIZE * sum(MAX_HOPS - before for before in range(hop)) for hop in range(MAX_HOPS)]


@dataclass(frozen=True, slots=True)
class Attribution:
    """What the sender learns: one hold time (units of 100 ms) per hop in order, up to the first unproven one.

    `unproven_hop` is the first hop whose HMAC is wrong, None if all are right: this hop, or the one before it, changed
    the data, or does not support the feature.
    """

    hold_times: tuple[int, ...]
    unproven_hop: int | None


def add_attribution(
    shared_secret: bytes, attribution_data: bytes | None, hold_time: int, return_packet: bytes = b""
) -> bytes:
    """This node's update of the field, as it goes to the previous hop.

    `attribution_data` is what came from downstream, None at the erring (or final) node; without 920 bytes it counts as
    none, and the field begins here.
    `hold_time` is in units of 100 ms, `return_packet` the failure before this node's stream, empty for a fulfil.
    Costs about 40 us where the field begins, else 55 us.
    """
    own_time = min(max(hold_time, 0), _MAX_HOLD_TIME).to_bytes(_HOLD_TIME_SIZE, "big")
    if attribution_data is not None and len(attribution_data) == ATTRIBUTION_SIZE:
        data = own_time + _shift_right(attribution_data)[_HOLD_TIME_SIZE:]
        words = _split(data)
        covered = [b"".join(pick(words)) for pick in reversed(_COVERED)]
    else:
        data = own_time + _NOTHING
        covered = [data[:size] for size in _COVERED_SIZES]  # all else is zero, here and there
    base = _base(shared_secret, return_packet)
    macs = b"".join([_mac(base, text) for text in covered])
    data = data[:_HOLD_TIMES_SIZE] + macs + data[_BLOCKS[1] :]
    return apply_stream(derive_key(b"ammagext", shared_secret), data)


def verify_fulfill_attribution(shared_secrets: Sequence[bytes], attribution_data: bytes) -> Attribution:
    """The hold times of a payment that succeeded, `shared_secrets` in route order."""
    reader = AttributionReader(len(shared_secrets), attribution_data)
    for secret in shared_secrets[:MAX_HOPS]:
        if not reader.read_hop(secret, b""):
            break
    return reader.result()


class AttributionReader:
    """Takes the layers off at the sender, one hop after the other, and stops being trusted at the first wrong HMAC."""

    def __init__(self, hop_count: int, attribution_data: bytes) -> None:
        self._data = attribution_data
        self._distance = min(hop_count, MAX_HOPS) - 1
        self._hold_times: list[int] = []
        self._unproven_hop = None if len(attribution_data) == ATTRIBUTION_SIZE else 0

    def read_hop(self, shared_secret: bytes, return_packet: bytes) -> bool:
        """Check the next hop against the return packet (its own stream removed); False from the first wrong hop on."""
        if self._unproven_hop is not None or self._distance < 0:
            return False
        data = apply_stream(derive_key(b"ammagext", shared_secret), self._data)
        base = _base(shared_secret, return_packet)
        start = _BLOCKS[0] + _HMAC_SIZE * (MAX_HOPS - 1 - self._distance)
        mac = _mac(base, b"".join(_COVERED[self._distance](_split(data))))
        if not compare_digest(data[start : start + _HMAC_SIZE], mac):
            self._unproven_hop = len(self._hold_times)
            return False
        self._hold_times.append(int.from_bytes(data[:_HOLD_TIME_SIZE], "big"))
        if self._distance:
            self._data = _shift_left(data)
        self._distance -= 1
        return True

    def result(self) -> Attribution:
        """What was learnt so far."""
        return Attribution(tuple(self._hold_times), self._unproven_hop)


_SHA256 = SHA256()


def _base(shared_secret: bytes, return_packet: bytes) -> HMAC:
    """What a hop's HMACs have in common. `cryptography` copies and ends one in half the time of `hmac`."""
    base = HMAC(derive_key(b"um", shared_secret), _SHA256)
    base.update(return_packet)
    return base


def _mac(base: HMAC, covered: bytes) -> bytes:
    """One of the nearest hop's HMACs."""
    mac = base.copy()
    mac.update(covered)
    return mac.finalize()[:_HMAC_SIZE]


_split = struct.Struct("4s" * (ATTRIBUTION_SIZE // 4)).unpack
"""The field as words of 4 bytes: a hold time and an HMAC have as many."""


def _covered(distance: int) -> Callable[[tuple[bytes, ...]], tuple[bytes, ...]]:
    """Picks the words that hmac_0_y covers: the first y + 1 hold times, hmac_1_(y-1), hmac_2_(y-2), ... hmac_y_0."""
    downstream = [_BLOCKS[hop] // 4 + MAX_HOPS - 1 - distance for hop in range(1, distance + 1)]
    if not downstream:
        return lambda words: words[:1]
    return itemgetter(*range(distance + 1), *downstream)


_COVERED = [_covered(distance) for distance in range(MAX_HOPS)]
_COVERED_SIZES = [_HOLD_TIME_SIZE + distance * (_HOLD_TIME_SIZE + _HMAC_SIZE) for distance in reversed(range(MAX_HOPS))]
_NOTHING = bytes(ATTRIBUTION_SIZE - _HOLD_TIME_SIZE)


def _shift_right(data: bytes) -> bytes:
    """Make room for a hop in front: every block moves one hop back and loses its HMAC for the greatest distance."""
    parts = [bytes(_HOLD_TIME_SIZE), data[: _HOLD_TIMES_SIZE - _HOLD_TIME_SIZE], bytes(_HMAC_SIZE * MAX_HOPS)]
    parts.extend(data[_BLOCKS[hop] + _HMAC_SIZE : _BLOCKS[hop + 1]] for hop in range(MAX_HOPS - 1))
    return b"".join(parts)


def _shift_left(data: bytes) -> bytes:
    """Undo `_shift_right`; what was cut off comes back as zeros, which no HMAC that is checked covers."""
    parts = [data[_HOLD_TIME_SIZE:_HOLD_TIMES_SIZE], bytes(_HOLD_TIME_SIZE)]
    ends = [*_BLOCKS[2:], ATTRIBUTION_SIZE]
    for start, end in zip(_BLOCKS[1:], ends, strict=True):
        parts += (bytes(_HMAC_SIZE), data[start:end])
    parts.append(bytes(_HMAC_SIZE))
    return b"".join(parts)
