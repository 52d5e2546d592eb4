"""BOLT 2: normal operation and message retransmission."""

from typing import Annotated

from channeld.bolt.codec import Message, Structure, Tlv, message, structure
from channeld.bolt.primitives import (
    U16,
    U32,
    U64,
    Byte,
    Bytes32,
    ChannelId,
    Counted,
    FixedBytes,
    Point,
    Sha256,
    Signature,
    VarBytes,
)

OnionPacket = Annotated[bytes, FixedBytes(1366)]
HoldTimes = Annotated[bytes, FixedBytes(20 * 4)]
TruncatedHmacs = Annotated[bytes, FixedBytes(210 * 4)]


@structure
class AttributionData(Structure):
    """Who held an HTLC for how long (BOLT 4, "Returning Errors"): 20 u32 and 210 HMACs of 4 bytes, obfuscated."""

    htlc_hold_times: HoldTimes
    truncated_hmacs: TruncatedHmacs


@structure
class NextFunding(Structure):
    """The funding whose signatures the sender waits for. Bit 0 of the flags: retransmit `commitment_signed`."""

    next_funding_txid: Sha256
    retransmit_flags: Byte


@structure
class MyCurrentFundingLocked(Structure):
    """The last locked funding. Bit 0 of the flags: retransmit announcement_signatures."""

    my_current_funding_locked_txid: Sha256
    retransmit_flags: Byte


@message(127)
class StartBatch(Message):
    """The next `batch_size` messages belong together."""

    channel_id: ChannelId
    batch_size: U16
    message_type: Annotated[U16 | None, Tlv(1)] = None


@message(128)
class UpdateAddHtlc(Message):
    """Offers an HTLC. `cltv_expiry` is a block height; `path_key` is there on a blinded path."""

    channel_id: ChannelId
    id: U64
    amount_msat: U64
    payment_hash: Sha256
    cltv_expiry: U32
    onion_routing_packet: OnionPacket
    path_key: Annotated[Point | None, Tlv(0, "blinded_path")] = None


@message(130)
class UpdateFulfillHtlc(Message):
    """Claims an HTLC that the receiver offered."""

    channel_id: ChannelId
    id: U64
    payment_preimage: Bytes32
    attribution_data: Annotated[AttributionData | None, Tlv(1)] = None


@message(131)
class UpdateFailHtlc(Message):
    """Gives an HTLC back; `reason` is an encrypted error onion for its origin."""

    channel_id: ChannelId
    id: U64
    reason: VarBytes
    attribution_data: Annotated[AttributionData | None, Tlv(1)] = None


@message(132)
class CommitmentSigned(Message):
    """Signs the receiver's next commitment and its HTLC transactions, in the order of the outputs."""

    channel_id: ChannelId
    signature: Signature
    htlc_signature: Annotated[tuple[Signature, ...], Counted("H")]
    funding_txid: Annotated[Sha256 | None, Tlv(1)] = None


@message(133)
class RevokeAndAck(Message):
    """Reveals the secret of the sender's previous commitment."""

    channel_id: ChannelId
    per_commitment_secret: Bytes32
    next_per_commitment_point: Point


@message(134)
class UpdateFee(Message):
    """The funder's new fee rate, in satoshi per 1,000 weight."""

    channel_id: ChannelId
    feerate_per_kw: U32


@message(135)
class UpdateFailMalformedHtlc(Message):
    """Gives an HTLC back whose onion could not be read."""

    channel_id: ChannelId
    id: U64
    sha256_of_onion: Sha256
    failure_code: U16


@message(136)
class ChannelReestablish(Message):
    """Where the sender believes the channel to be, after a reconnection."""

    channel_id: ChannelId
    next_commitment_number: U64
    next_revocation_number: U64
    your_last_per_commitment_secret: Bytes32
    my_current_per_commitment_point: Point
    next_funding: Annotated[NextFunding | None, Tlv(1)] = None
    my_current_funding_locked: Annotated[MyCurrentFundingLocked | None, Tlv(5)] = None
