"""BOLT 9: feature flags. A feature vector is a `frozenset[int]` of bit numbers inside, big-endian bytes on the wire.

A `Feature`'s value is its even (compulsory) bit; the odd bit after it says the same thing optionally.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

FeatureBits = frozenset[int]


class Feature(IntEnum):
    """Every feature of BOLT 9, by its even bit."""

    option_data_loss_protect = 0
    option_upfront_shutdown_script = 4
    gossip_queries = 6
    var_onion_optin = 8
    gossip_queries_ex = 10
    option_static_remotekey = 12
    payment_secret = 14
    basic_mpp = 16
    option_support_large_channel = 18
    option_anchors = 22
    option_route_blinding = 24
    option_shutdown_anysegwit = 26
    option_dual_fund = 28
    option_quiesce = 34
    option_attribution_data = 36
    option_onion_messages = 38
    option_provide_storage = 42
    option_channel_type = 44
    option_scid_alias = 46
    option_payment_metadata = 48
    option_zeroconf = 50
    option_simple_close = 60
    option_splice = 62


KEYSEND = 54
"""`keysend`, which BOLT 9 does not have: bLIP 2 gives it this bit, in `node_announcement`."""
BEYOND_BOLT_9: Mapping[int, str] = {KEYSEND: "keysend"}
"""Names of other features, by their even bits."""
NAMED: FeatureBits = frozenset((*map(int, Feature), *BEYOND_BOLT_9))
"""The even bits of all that has a name here."""


class Context(StrEnum):
    """Where a feature is presented, by the letters of BOLT 9's table."""

    INIT = "I"
    NODE_ANNOUNCEMENT = "N"
    CHANNEL_ANNOUNCEMENT = "C"
    INVOICE = "9"
    BLINDED_PATH = "B"
    CHANNEL_TYPE = "T"


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """A row of the table. `assumed`: so widespread that everybody is taken to have it."""

    contexts: frozenset[Context]
    dependencies: tuple[Feature, ...] = ()
    assumed: bool = False


def _row(contexts: str, *dependencies: Feature, assumed: bool = False) -> FeatureInfo:
    return FeatureInfo(frozenset(map(Context, contexts)), dependencies, assumed)


# The table leaves out the contexts of what is assumed, and those of gossip_queries; here are the ones that its earlier
# revisions gave, for peers that still insist on seeing the bits.
FEATURES: Mapping[Feature, FeatureInfo] = {
    Feature.option_data_loss_protect: _row("IN", assumed=True),
    Feature.option_upfront_shutdown_script: _row("IN"),
    Feature.gossip_queries: _row("IN"),
    Feature.var_onion_optin: _row("IN9", assumed=True),
    Feature.gossip_queries_ex: _row("IN"),
    Feature.option_static_remotekey: _row("INT", assumed=True),
    Feature.payment_secret: _row("IN9", assumed=True),
    Feature.basic_mpp: _row("IN9", Feature.payment_secret),
    Feature.option_support_large_channel: _row("IN"),
    Feature.option_anchors: _row("INT"),
    Feature.option_route_blinding: _row("IN9"),
    Feature.option_shutdown_anysegwit: _row("IN"),
    Feature.option_dual_fund: _row("IN"),
    Feature.option_quiesce: _row("IN"),
    Feature.option_attribution_data: _row("IN9"),
    Feature.option_onion_messages: _row("IN"),
    Feature.option_provide_storage: _row("IN"),
    Feature.option_channel_type: _row("IN", assumed=True),
    Feature.option_scid_alias: _row("INT"),
    Feature.option_payment_metadata: _row("9"),
    Feature.option_zeroconf: _row("INT", Feature.option_scid_alias),
    Feature.option_simple_close: _row("IN", Feature.option_shutdown_anysegwit),
    Feature.option_splice: _row("IN"),
}

ASSUMED = frozenset(feature for feature, info in FEATURES.items() if info.assumed)


class IncompatibleFeatures(ValueError):
    """Two feature vectors that cannot work together; the connection has to be closed (BOLT 1, "The init Message")."""


# --- vectors ------------------------------------------------------------------------------------------------------


def decode_features(data: bytes) -> FeatureBits:
    """The bits set in a big-endian vector of any length; the time is linear in it, for it may come from an enemy."""
    places = range(8 * len(data) - 8, -8, -8)
    return frozenset([place + bit for place, byte in zip(places, data, strict=True) if byte for bit in _BITS_OF[byte]])


_BITS_OF = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


def has_unknown_required(data: bytes, known: Iterable[int]) -> bool:
    """Whether a vector has an even bit that is not among `known`. Takes no time worth speaking of."""
    even = int.from_bytes(data, "big") & int.from_bytes(b"\x55" * len(data), "big")
    return bool(even & ~int.from_bytes(encode_features(known), "big"))


def encode_features(bits: Iterable[int]) -> bytes:
    """The shortest big-endian vector with these bits set."""
    wanted = frozenset(bits)
    if not wanted:
        return b""
    vector = bytearray(max(wanted) // 8 + 1)
    for bit in wanted:
        vector[-1 - bit // 8] |= 1 << bit % 8
    return bytes(vector)


def optional(*features: Feature) -> FeatureBits:
    """The odd bits of `features`."""
    return frozenset(feature | 1 for feature in features)


def required(*features: Feature) -> FeatureBits:
    """The even bits of `features`."""
    return frozenset(int(feature) for feature in features)


def has(bits: FeatureBits, feature: Feature) -> bool:
    """Whether the feature is offered, optionally or not."""
    return int(feature) in bits or feature | 1 in bits


def in_context(bits: FeatureBits, context: Context) -> FeatureBits:
    """The bits of `bits` that BOLT 9 lets stand in `context`."""
    return frozenset(bit for bit in bits if (feature := known_feature(bit)) and context in FEATURES[feature].contexts)


def known_feature(bit: int) -> Feature | None:
    """The feature that a bit, even or odd, belongs to."""
    return _BY_BIT.get(bit & ~1)


_BY_BIT = {int(feature): feature for feature in Feature}


def missing_dependencies(bits: FeatureBits) -> list[tuple[Feature, Feature]]:
    """Pairs of a feature that is set and one that it needs but is neither set nor assumed."""
    present = sorted(feature for feature in Feature if has(bits, feature))
    return [
        (feature, needed)
        for feature in present
        for needed in FEATURES[feature].dependencies
        if not has(bits, needed) and needed not in ASSUMED
    ]


def unknown_required(bits: FeatureBits, supported: FeatureBits) -> list[int]:
    """Even bits of `bits` for what `supported` does not offer and what is not assumed either."""
    return sorted(bit for bit in bits if not bit & 1 and bit not in ASSUMED and not {bit, bit | 1} & supported)


def unknown_even(bits: FeatureBits) -> list[int]:
    """Even bits that nothing here has a name for: who sets them requires what we cannot know."""
    return unknown_required(bits, NAMED)


def describe(bits: Iterable[int]) -> tuple[str, ...]:
    """Names for people, in order of the bits: `option_anchors`, `option_static_remotekey (required)`, `bit 101`."""
    named = []
    for bit in sorted(bits):
        feature = known_feature(bit)
        name = feature.name if feature is not None else BEYOND_BOLT_9.get(bit & ~1, f"bit {bit}")
        named.append(name if bit & 1 else f"{name} (required)")
    return tuple(named)


# --- two nodes ----------------------------------------------------------------------------------------------------


def check_compatible(local: FeatureBits, remote: FeatureBits) -> None:
    """Raises IncompatibleFeatures if the connection must be closed over the remote's `init`.

    BOLT 1, "The init Message": it requires something we do not offer, or its vector lacks a dependency. Beyond that:
    it does not offer what we require (it ought to have closed the connection itself).
    """
    if unknown := unknown_required(remote, local):
        raise IncompatibleFeatures(f"the peer requires {_listed(unknown)}, which we do not support")
    if missing := missing_dependencies(remote):
        feature, needed = missing[0]
        raise IncompatibleFeatures(f"the peer sets {feature.name} without {needed.name}, which that needs")
    if unmet := unknown_required(local, remote):
        raise IncompatibleFeatures(f"the peer does not support {_listed(unmet)}, which we require")


def _listed(bits: list[int]) -> str:
    return ", ".join(feature.name if (feature := known_feature(bit)) is not None else f"bit {bit}" for bit in bits)


@dataclass(frozen=True, slots=True)
class NegotiatedFeatures:
    """What may be used on a connection."""

    local: FeatureBits
    remote: FeatureBits

    def has(self, feature: Feature) -> bool:
        """BOLT 1: both offered it, or we require it (then the peer would not be there without it); or it is assumed."""
        if feature in ASSUMED or int(feature) in self.local:
            return True
        return has(self.local, feature) and has(self.remote, feature)


# --- channel types ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChannelType:
    """BOLT 2, "Defined Channel Types": static_remotekey always, anchors or not, and two variations."""

    anchors: bool = True
    scid_alias: bool = False
    zeroconf: bool = False

    @property
    def features(self) -> FeatureBits:
        """Even bits, as in the `channel_type` record."""
        chosen = {Feature.option_static_remotekey: True, Feature.option_anchors: self.anchors}
        chosen |= {Feature.option_scid_alias: self.scid_alias, Feature.option_zeroconf: self.zeroconf}
        return required(*(feature for feature, wanted in chosen.items() if wanted))

    def to_bytes(self) -> bytes:
        return encode_features(self.features)

    @classmethod
    def from_bytes(cls, data: bytes) -> ChannelType:
        """Raises ValueError for a type that is not defined."""
        bits = decode_features(data)
        found = cls(
            anchors=Feature.option_anchors in bits,
            scid_alias=Feature.option_scid_alias in bits,
            zeroconf=Feature.option_zeroconf in bits,
        )
        if found.features != bits:
            raise ValueError(f"not a defined channel type: {', '.join(describe(bits)) or 'no bits'}")
        return found

    def is_negotiated(self, negotiated: NegotiatedFeatures) -> bool:
        """Whether every feature of the type was negotiated (BOLT 2: a sender should not propose another)."""
        return all(negotiated.has(Feature(bit)) for bit in self.features)
