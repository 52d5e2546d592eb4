"""BOLT 2: interactive transaction construction, quiescence and splicing."""

from typing import Annotated

from channeld.bolt.codec import Message, Tlv, message
from channeld.bolt.primitives import (
    S64,
    U8,
    U32,
    U64,
    ChannelId,
    Counted,
    Point,
    Sha256,
    Signature,
    VarBytes,
)


@message(2)
class Stfu(Message):
    """No more updates from the sender until the connection ends or the protocol that follows is done."""

    channel_id: ChannelId
    initiator: U8


@message(66)
class TxAddInput(Message):
    """Adds an input. For the channel's own output `prevtx` is empty and `shared_input_txid` names its transaction."""

    channel_id: ChannelId
    serial_id: U64
    prevtx: VarBytes
    prevtx_vout: U32
    sequence: U32
    shared_input_txid: Annotated[Sha256 | None, Tlv(0)] = None


@message(67)
class TxAddOutput(Message):
    """Adds an output of `sats` satoshi."""

    channel_id: ChannelId
    serial_id: U64
    sats: U64
    script: VarBytes


@message(68)
class TxRemoveInput(Message):
    """Takes back an input that the sender added."""

    channel_id: ChannelId
    serial_id: U64


@message(69)
class TxRemoveOutput(Message):
    """Takes back an output that the sender added."""

    channel_id: ChannelId
    serial_id: U64


@message(70)
class TxComplete(Message):
    """The sender has nothing to change."""

    channel_id: ChannelId


@message(71)
class TxSignatures(Message):
    """Witnesses of the sender's inputs, in the order of the transaction; each is a serialized witness stack."""

    channel_id: ChannelId
    txid: Sha256
    witnesses: Annotated[tuple[VarBytes, ...], Counted("H")]
    shared_input_signature: Annotated[Signature | None, Tlv(0)] = None


@message(72)
class TxInitRbf(Message):
    """Proposes to replace a transaction by one with the fee rate `feerate` (satoshi per 1,000 weight)."""

    channel_id: ChannelId
    locktime: U32
    feerate: U32
    funding_output_contribution: Annotated[S64 | None, Tlv(0)] = None
    require_confirmed_inputs: Annotated[bool, Tlv(2)] = False


@message(73)
class TxAckRbf(Message):
    """Agrees to a `tx_init_rbf`."""

    channel_id: ChannelId
    funding_output_contribution: Annotated[S64 | None, Tlv(0)] = None
    require_confirmed_inputs: Annotated[bool, Tlv(2)] = False


@message(74)
class TxAbort(Message):
    """Gives up the negotiation of a transaction; the channel goes on."""

    channel_id: ChannelId
    data: VarBytes


@message(77)
class SpliceLocked(Message):
    """The splice transaction is deep enough for the sender."""

    channel_id: ChannelId
    splice_txid: Sha256


@message(80)
class SpliceInit(Message):
    """Proposes to replace the funding output; a negative contribution takes satoshi out."""

    channel_id: ChannelId
    funding_contribution_satoshis: S64
    funding_feerate_perkw: U32
    locktime: U32
    funding_pubkey: Point
    require_confirmed_inputs: Annotated[bool, Tlv(2)] = False


@message(81)
class SpliceAck(Message):
    """Agrees to a `splice_init`."""

    channel_id: ChannelId
    funding_contribution_satoshis: S64
    funding_pubkey: Point
    require_confirmed_inputs: Annotated[bool, Tlv(2)] = False
