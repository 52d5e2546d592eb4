"""BOLT 4: the message that carries an onion message."""

from channeld.bolt.codec import Message, message
from channeld.bolt.primitives import Point, VarBytes


@message(513)
class OnionMessage(Message):
    """An onion without a payment, along a blinded path."""

    path_key: Point
    onion_message_packet: VarBytes
