"""BOLT 1: setup, control and peer storage messages."""

from typing import Annotated

from channeld.bolt.codec import Message, Tlv, message
from channeld.bolt.primitives import U16, ChainHash, ChannelId, Remaining, RestBytes, VarBytes

MAX_REASON_BYTES = 400
MAX_TOLD_BYTES = 32_000
"""With the transaction: that of a commitment with some 350 HTLCs."""


@message(1, name="warning")
class WarningMessage(Message):
    """Something is wrong but nothing has to fail. `channel_id` of zeros: about no channel in particular."""

    channel_id: ChannelId
    data: VarBytes


@message(7)
class PeerStorage(Message):
    """A blob of at most 65,531 bytes to be kept for the sender."""

    blob: VarBytes


@message(9)
class PeerStorageRetrieval(Message):
    """The blob that the receiver had stored last."""

    blob: VarBytes


@message(16)
class Init(Message):
    """The first message of a connection. The receiver combines `globalfeatures` and `features` with OR."""

    globalfeatures: VarBytes
    features: VarBytes
    networks: Annotated[tuple[ChainHash, ...] | None, Remaining(), Tlv(1)] = None
    remote_addr: Annotated[RestBytes | None, Tlv(3)] = None


@message(17, name="error")
class ErrorMessage(Message):
    """The channel named fails. `channel_id` of zeros: all channels do."""

    channel_id: ChannelId
    data: VarBytes


@message(18)
class Ping(Message):
    """Asks for a pong of `num_pong_bytes`, unless that is 65,532 or more."""

    num_pong_bytes: U16
    ignored: VarBytes


@message(19)
class Pong(Message):
    """Answers a ping with as many bytes as it asked for."""

    ignored: VarBytes


def told_to_peer(reason: str, tx: bytes = b"") -> str:
    """The text of an `error` or a `warning`.

    BOLT 1, "when failure was caused by an invalid signature check: SHOULD include the raw, hex-encoded transaction".
    One that is too long is left out: a part of it would help nobody.
    """
    words = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
    with_tx = f"{words}: {tx.hex()}"
    return with_tx if tx and len(with_tx) <= MAX_TOLD_BYTES else words
