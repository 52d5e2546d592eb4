"""BOLT 2: channel establishment, version 1 and 2."""

from typing import Annotated

from channeld.bolt.codec import Message, Tlv, message
from channeld.bolt.primitives import (
    U16,
    U32,
    U64,
    Byte,
    Bytes32,
    ChainHash,
    ChannelId,
    Point,
    RestBytes,
    Sha256,
    ShortChannelId,
    Signature,
)


@message(32)
class OpenChannel(Message):
    """Proposes a channel that its sender funds. `channel_flags`: bit 0 is announce_channel."""

    chain_hash: ChainHash
    temporary_channel_id: Bytes32
    funding_satoshis: U64
    push_msat: U64
    dust_limit_satoshis: U64
    max_htlc_value_in_flight_msat: U64
    channel_reserve_satoshis: U64
    htlc_minimum_msat: U64
    feerate_per_kw: U32
    to_self_delay: U16
    max_accepted_htlcs: U16
    funding_pubkey: Point
    revocation_basepoint: Point
    payment_basepoint: Point
    delayed_payment_basepoint: Point
    htlc_basepoint: Point
    first_per_commitment_point: Point
    channel_flags: Byte
    upfront_shutdown_script: Annotated[RestBytes | None, Tlv(0)] = None
    channel_type: Annotated[RestBytes | None, Tlv(1)] = None


@message(33)
class AcceptChannel(Message):
    """Agrees to an `open_channel`, with the sender's own limits and keys."""

    temporary_channel_id: Bytes32
    dust_limit_satoshis: U64
    max_htlc_value_in_flight_msat: U64
    channel_reserve_satoshis: U64
    htlc_minimum_msat: U64
    minimum_depth: U32
    to_self_delay: U16
    max_accepted_htlcs: U16
    funding_pubkey: Point
    revocation_basepoint: Point
    payment_basepoint: Point
    delayed_payment_basepoint: Point
    htlc_basepoint: Point
    first_per_commitment_point: Point
    upfront_shutdown_script: Annotated[RestBytes | None, Tlv(0)] = None
    channel_type: Annotated[RestBytes | None, Tlv(1)] = None


@message(34)
class FundingCreated(Message):
    """The outpoint of the funding transaction and the signature of the receiver's first commitment."""

    temporary_channel_id: Bytes32
    funding_txid: Sha256
    funding_output_index: U16
    signature: Signature


@message(35)
class FundingSigned(Message):
    """The signature of the funder's first commitment: the funding transaction may be broadcast."""

    channel_id: ChannelId
    signature: Signature


@message(36)
class ChannelReady(Message):
    """The funding transaction is deep enough; record `short_channel_id` is the alias for the receiver to use."""

    channel_id: ChannelId
    second_per_commitment_point: Point
    short_channel_id: Annotated[ShortChannelId | None, Tlv(1)] = None


@message(64)
class OpenChannel2(Message):
    """Proposes a channel that both sides may fund."""

    chain_hash: ChainHash
    temporary_channel_id: ChannelId
    funding_feerate_perkw: U32
    commitment_feerate_perkw: U32
    funding_satoshis: U64
    dust_limit_satoshis: U64
    max_htlc_value_in_flight_msat: U64
    htlc_minimum_msat: U64
    to_self_delay: U16
    max_accepted_htlcs: U16
    locktime: U32
    funding_pubkey: Point
    revocation_basepoint: Point
    payment_basepoint: Point
    delayed_payment_basepoint: Point
    htlc_basepoint: Point
    first_per_commitment_point: Point
    second_per_commitment_point: Point
    channel_flags: Byte
    upfront_shutdown_script: Annotated[RestBytes | None, Tlv(0)] = None
    channel_type: Annotated[RestBytes | None, Tlv(1)] = None
    require_confirmed_inputs: Annotated[bool, Tlv(2)] = False


@message(65)
class AcceptChannel2(Message):
    """Agrees to an `open_channel2`."""

    temporary_channel_id: ChannelId
    funding_satoshis: U64
    dust_limit_satoshis: U64
    max_htlc_value_in_flight_msat: U64
    htlc_minimum_msat: U64
    minimum_depth: U32
    to_self_delay: U16
    max_accepted_htlcs: U16
    funding_pubkey: Point
    revocation_basepoint: Point
    payment_basepoint: Point
    delayed_payment_basepoint: Point
    htlc_basepoint: Point
    first_per_commitment_point: Point
    second_per_commitment_point: Point
    upfront_shutdown_script: Annotated[RestBytes | None, Tlv(0)] = None
    channel_type: Annotated[RestBytes | None, Tlv(1)] = None
    require_confirmed_inputs: Annotated[bool, Tlv(2)] = False
