"""BOLT 7: announcements, which are signed, kept and sent on as they came, and the queries about them."""

import hashlib
from typing import Annotated, ClassVar

from channeld.bolt.codec import GossipMessage, Message, Structure, Tlv, encode, message, structure
from channeld.bolt.primitives import (
    U16,
    U32,
    U64,
    BigSize,
    Byte,
    Bytes32,
    ChainHash,
    ChannelId,
    FixedBytes,
    Point,
    Remaining,
    RestBytes,
    ShortChannelId,
    Signature,
    VarBytes,
)

Rgb = Annotated[bytes, FixedBytes(3)]


class SignedGossip(GossipMessage):
    """A message that begins with the signatures of all that follows them."""

    __slots__ = ()
    SIGNED_FROM: ClassVar[int]

    @property
    def signature_hash(self) -> bytes:
        """The double SHA-256 that is signed; the signatures themselves are not in it, so any will do before."""
        return hashlib.sha256(hashlib.sha256(encode(self)[self.SIGNED_FROM :]).digest()).digest()


@message(256)
class ChannelAnnouncement(SignedGossip):
    """Two nodes prove that they own a channel. The signatures cover everything after the four of them."""

    SIGNED_FROM: ClassVar[int] = 2 + 4 * 64

    node_signature_1: Signature
    node_signature_2: Signature
    bitcoin_signature_1: Signature
    bitcoin_signature_2: Signature
    features: VarBytes
    chain_hash: ChainHash
    short_channel_id: ShortChannelId
    node_id_1: Point
    node_id_2: Point
    bitcoin_key_1: Point
    bitcoin_key_2: Point


@message(257)
class NodeAnnouncement(SignedGossip):
    """What a node calls itself and where it listens. `addresses` holds address descriptors."""

    SIGNED_FROM: ClassVar[int] = 2 + 64

    signature: Signature
    features: VarBytes
    timestamp: U32
    node_id: Point
    rgb_color: Rgb
    alias: Bytes32
    addresses: VarBytes


@message(258)
class ChannelUpdate(SignedGossip):
    """One side's price and limits. `channel_flags`: bit 0 direction, bit 1 disable."""

    SIGNED_FROM: ClassVar[int] = 2 + 64

    signature: Signature
    chain_hash: ChainHash
    short_channel_id: ShortChannelId
    timestamp: U32
    message_flags: Byte
    channel_flags: Byte
    cltv_expiry_delta: U16
    htlc_minimum_msat: U64
    fee_base_msat: U32
    fee_proportional_millionths: U32
    htlc_maximum_msat: U64


@message(259)
class AnnouncementSignatures(Message):
    """The sender's half of the signatures of a `channel_announcement`."""

    channel_id: ChannelId
    short_channel_id: ShortChannelId
    node_signature: Signature
    bitcoin_signature: Signature


@structure
class QueryFlags(Structure):
    """What is wanted for each short_channel_id: an encoding type, then one bigsize each."""

    encoding_type: Byte
    encoded_query_flags: RestBytes


@structure
class EncodedTimestamps(Structure):
    """Times of the last updates: an encoding type, then a `channel_update_timestamps` for each short_channel_id."""

    encoding_type: Byte
    encoded_timestamps: RestBytes


@structure
class ChannelUpdateTimestamps(Structure):
    """0 for a side without a `channel_update`."""

    timestamp_node_id_1: U32
    timestamp_node_id_2: U32


@structure
class ChannelUpdateChecksums(Structure):
    """CRC-32C of each side's `channel_update` without signature and timestamp; 0 for a side without one."""

    checksum_node_id_1: U32
    checksum_node_id_2: U32


@message(261)
class QueryShortChannelIds(Message):
    """Asks for announcements and updates of the channels named. `encoded_short_ids`: encoding type, then the ids."""

    chain_hash: ChainHash
    encoded_short_ids: VarBytes
    query_flags: Annotated[QueryFlags | None, Tlv(1)] = None


@message(262)
class ReplyShortChannelIdsEnd(Message):
    """All that was asked for has been sent."""

    chain_hash: ChainHash
    full_information: Byte


@message(263)
class QueryChannelRange(Message):
    """Asks which channels were opened in a range of blocks. Flags: bit 0 timestamps, bit 1 checksums wanted."""

    chain_hash: ChainHash
    first_blocknum: U32
    number_of_blocks: U32
    query_option: Annotated[BigSize | None, Tlv(1)] = None


@message(264)
class ReplyChannelRange(Message):
    """Some of the channels of a range of blocks; `sync_complete` is 1 in the last reply."""

    chain_hash: ChainHash
    first_blocknum: U32
    number_of_blocks: U32
    sync_complete: Byte
    encoded_short_ids: VarBytes
    timestamps_tlv: Annotated[EncodedTimestamps | None, Tlv(1)] = None
    checksums_tlv: Annotated[tuple[ChannelUpdateChecksums, ...] | None, Remaining(), Tlv(3)] = None


@message(265)
class GossipTimestampFilter(Message):
    """From now on send gossip with a timestamp in this range (seconds)."""

    chain_hash: ChainHash
    first_timestamp: U32
    timestamp_range: U32
