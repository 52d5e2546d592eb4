"""BOLT 2: channel close, legacy and simple."""

from typing import Annotated

from channeld.bolt.codec import Message, Structure, Tlv, message, structure
from channeld.bolt.primitives import U32, U64, ChannelId, Signature, VarBytes


@structure
class FeeRange(Structure):
    """The fees that the sender of a `closing_signed` would accept, in satoshi, both ends included."""

    min_fee_satoshis: U64
    max_fee_satoshis: U64


@message(38)
class Shutdown(Message):
    """No more HTLCs; the sender wants its balance at `scriptpubkey`."""

    channel_id: ChannelId
    scriptpubkey: VarBytes


@message(39)
class ClosingSigned(Message):
    """A proposed fee and the signature of the closing transaction that pays it."""

    channel_id: ChannelId
    fee_satoshis: U64
    signature: Signature
    fee_range: Annotated[FeeRange | None, Tlv(1)] = None


@message(40)
class ClosingComplete(Message):
    """The closer's transaction, paid for by it, signed in the variants of outputs it accepts."""

    channel_id: ChannelId
    closer_scriptpubkey: VarBytes
    closee_scriptpubkey: VarBytes
    fee_satoshis: U64
    locktime: U32
    closer_output_only: Annotated[Signature | None, Tlv(1)] = None
    closee_output_only: Annotated[Signature | None, Tlv(2)] = None
    closer_and_closee_outputs: Annotated[Signature | None, Tlv(3)] = None


@message(41)
class ClosingSig(Message):
    """The closee's signature of one variant of a `closing_complete`."""

    channel_id: ChannelId
    closer_scriptpubkey: VarBytes
    closee_scriptpubkey: VarBytes
    fee_satoshis: U64
    locktime: U32
    closer_output_only: Annotated[Signature | None, Tlv(1)] = None
    closee_output_only: Annotated[Signature | None, Tlv(2)] = None
    closer_and_closee_outputs: Annotated[Signature | None, Tlv(3)] = None
