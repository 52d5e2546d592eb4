"""Failure messages: every failure code of BOLT 4 as a typed value.

`encode_failure` gives what `returns.create_failure` takes, `decode_failure` reads what `returns.read_failure` found.
Amounts are in msat, heights and expiries in blocks. Source: BOLT 4, "Failure Messages".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import ClassVar, TypeVar, dataclass_transform

from channeld.bolt.codec import Structure, TlvRecord, join_tlv_stream, split_tlv_stream, structure
from channeld.bolt.primitives import U16, U32, U64, BigSize, DecodeError, Sha256, VarBytes

BADONION = 0x8000
PERM = 0x4000
NODE = 0x2000
UPDATE = 0x1000


@dataclasses.dataclass(frozen=True, slots=True)
class Failure(Structure):
    """Base of all failures. `tlvs` are the records of the optional TLV stream, undecoded."""

    CODE: ClassVar[int] = 0
    NAME: ClassVar[str] = "unknown"

    tlvs: tuple[TlvRecord, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def code(self) -> int:
        """The 2-byte failure_code, flags included."""
        return self.CODE

    @property
    def is_bad_onion(self) -> bool:
        """BADONION: the erring node could not read the onion; the node before it wrote this failure."""
        return bool(self.code & BADONION)

    @property
    def is_permanent(self) -> bool:
        """PERM: trying again will not help."""
        return bool(self.code & PERM)

    @property
    def is_node_failure(self) -> bool:
        """NODE: all channels of the erring node are concerned, not one of them."""
        return bool(self.code & NODE)

    @property
    def is_update(self) -> bool:
        """UPDATE: the parameters of the channel were not met; a channel_update may be inside."""
        return bool(self.code & UPDATE)


@dataclasses.dataclass(frozen=True, slots=True)
class UnknownFailure(Failure):
    """A code nobody defined, or a known one whose data is cut off: only the flags can be trusted."""

    failure_code: int = 0
    data: bytes = b""

    @property
    def code(self) -> int:
        """The 2-byte failure_code as received, 0 when the message was too short to have one."""
        return self.failure_code

    def to_bytes(self) -> bytes:
        """The data as received."""
        return self.data


FAILURES: dict[int, type[Failure]] = {}
"""Every declared failure by its code."""

F = TypeVar("F", bound=Failure)


@dataclass_transform(frozen_default=True)
def failure(code: int) -> Callable[[type[F]], type[F]]:
    """Declares a failure; its BOLT name is the class's in snake_case."""

    def declare(cls: type[F]) -> type[F]:
        declared = structure(cls)
        declared.CODE = code
        declared.NAME = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        FAILURES[code] = declared
        return declared

    return declare


def encode_failure(value: Failure) -> bytes:
    """`failure_code` || data || TLV stream. Raises EncodeError."""
    return value.code.to_bytes(2, "big") + value.to_bytes() + join_tlv_stream(list(value.tlvs))


def decode_failure(message: bytes) -> Failure:
    """The failure in a decrypted `failuremsg`. Never raises: UnknownFailure stands for what cannot be understood.

    Extra bytes that are no TLV stream are ignored, as BOLT 4, "Receiving Failure Codes" asks.
    """
    code = int.from_bytes(message[:2], "big") if len(message) >= 2 else 0
    declared = FAILURES.get(code)
    if declared is None:
        return UnknownFailure(code, message[2:])
    try:
        value, end = declared._wire_decode(message, 2)
    except DecodeError:
        return UnknownFailure(code, message[2:])
    if end == len(message):
        return value
    try:
        return dataclasses.replace(value, tlvs=tuple(split_tlv_stream(message, end)))
    except DecodeError:
        return value


@failure(NODE | 2)
class TemporaryNodeFailure(Failure):
    """General temporary failure of the erring node."""


@failure(PERM | NODE | 2)
class PermanentNodeFailure(Failure):
    """General permanent failure of the erring node."""


@failure(PERM | NODE | 3)
class RequiredNodeFeatureMissing(Failure):
    """The erring node requires a feature that the onion does not have."""


@failure(BADONION | PERM | 4)
class InvalidOnionVersion(Failure):
    """The version byte was not understood."""

    sha256_of_onion: Sha256


@failure(BADONION | PERM | 5)
class InvalidOnionHmac(Failure):
    """The HMAC of the onion was wrong: not for this node, tampered with, or for another payment hash."""

    sha256_of_onion: Sha256


@failure(BADONION | PERM | 6)
class InvalidOnionKey(Failure):
    """The ephemeral key was not a point."""

    sha256_of_onion: Sha256


@failure(UPDATE | 7)
class TemporaryChannelFailure(Failure):
    """The channel cannot take this HTLC now, but may take it, or others, later."""

    channel_update: VarBytes = b""


@failure(PERM | 8)
class PermanentChannelFailure(Failure):
    """The channel cannot take any HTLC."""


@failure(PERM | 9)
class RequiredChannelFeatureMissing(Failure):
    """The channel requires a feature that the onion does not have."""


@failure(PERM | 10)
class UnknownNextPeer(Failure):
    """The short_channel_id leads nowhere from the erring node."""


@failure(UPDATE | 11)
class AmountBelowMinimum(Failure):
    """The amount of the outgoing HTLC is below the channel's htlc_minimum_msat."""

    htlc_msat: U64
    channel_update: VarBytes = b""


@failure(UPDATE | 12)
class FeeInsufficient(Failure):
    """The incoming HTLC pays too small a fee."""

    htlc_msat: U64
    channel_update: VarBytes = b""


@failure(UPDATE | 13)
class IncorrectCltvExpiry(Failure):
    """Incoming less outgoing expiry is below the channel's cltv_expiry_delta."""

    cltv_expiry: U32
    channel_update: VarBytes = b""


@failure(UPDATE | 14)
class ExpiryTooSoon(Failure):
    """The expiry is too near for safe handling."""

    channel_update: VarBytes = b""


@failure(PERM | 15)
class IncorrectOrUnknownPaymentDetails(Failure):
    """From the final node: unknown payment hash, wrong secret, amount or metadata, or an expiry too near.

    `htlc_msat` is what the final HTLC carries, `height` the final node's block height.
    """

    htlc_msat: U64
    height: U32


@failure(18)
class FinalIncorrectCltvExpiry(Failure):
    """The final HTLC expires before what the onion says."""

    cltv_expiry: U32


@failure(19)
class FinalIncorrectHtlcAmount(Failure):
    """The final HTLC carries less than what the onion says."""

    incoming_htlc_amt: U64


@failure(UPDATE | 20)
class ChannelDisabled(Failure):
    """The channel is disabled. `disabled_flags` has no meaning yet."""

    disabled_flags: U16 = 0
    channel_update: VarBytes = b""


@failure(21)
class ExpiryTooFar(Failure):
    """The expiry is more than max_htlc_cltv (2016 blocks) ahead."""


@failure(PERM | 22)
class InvalidOnionPayload(Failure):
    """The payload was not understood or is incomplete: record `type` at `offset` of the TLV stream, 0 if none."""

    type: BigSize = 0
    offset: U16 = 0


@failure(23)
class MppTimeout(Failure):
    """The other parts of a multi-part payment did not come in time."""


@failure(BADONION | PERM | 24)
class InvalidOnionBlinding(Failure):
    """Something went wrong inside a blinded path; all zeros for `sha256_of_onion` are allowed."""

    sha256_of_onion: Sha256
