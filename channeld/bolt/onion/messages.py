"""Onion messages: the payload of each hop, building one for a path, and what the node that peels one has to do.

Every hop is blinded and nothing is ever answered to the previous hop: what is wrong is ignored.
Source: BOLT 4, "Onion Messages".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from channeld.bolt.codec import Tlv, TlvStream, tlv_stream
from channeld.bolt.onion.blinding import BlindedPath, BlindingError, decrypt_data, next_path_key
from channeld.bolt.onion.sphinx import MESSAGE_PAYLOADS_SIZES, OnionError, OnionTooLong, build_onion, peel_onion
from channeld.bolt.primitives import DecodeError, RestBytes

_FIRST_FINAL_TYPE = 64


@tlv_stream
class OnionMessagePayload(TlvStream):
    """`onionmsg_tlv`. The three BOLT 12 streams stay undecoded here."""

    reply_path: Annotated[BlindedPath | None, Tlv(2)] = None
    encrypted_recipient_data: Annotated[RestBytes | None, Tlv(4)] = None
    invoice_request: Annotated[RestBytes | None, Tlv(64)] = None
    invoice: Annotated[RestBytes | None, Tlv(66)] = None
    invoice_error: Annotated[RestBytes | None, Tlv(68)] = None

    @property
    def final_fields(self) -> int:
        """How many records of type 64 and above there are; more than one makes the message invalid."""
        named = (self.invoice_request, self.invoice, self.invoice_error)
        unknown = sum(tlv_type >= _FIRST_FINAL_TYPE for tlv_type, _ in self.unknown_tlvs)
        return sum(field is not None for field in named) + unknown


class IgnoredOnionMessage(Exception):
    """An onion message that BOLT 4 says to ignore; nothing is answered."""


@dataclass(frozen=True, slots=True)
class ForwardMessage:
    """Send `packet` and `path_key` as `onion_message` to `next_node_id`, or over `short_channel_id` (one is set)."""

    packet: bytes
    path_key: bytes
    next_node_id: bytes | None
    short_channel_id: int | None


@dataclass(frozen=True, slots=True)
class ReceiveMessage:
    """A message for this node. `path_id` says through which path of ours it came, None if it had none."""

    payload: OnionMessagePayload
    path_id: bytes | None


def build_message_onion(path: BlindedPath, payload: OnionMessagePayload, session_key: bytes) -> bytes:
    """The `onion_message_packet` (1366 or 32834 bytes) that takes `payload` to the end of `path`.

    It goes out with `path.first_path_key` to the node `path.first_node_id`; reach a path that begins at no peer of ours
    with `blinding.prepend_hops`. Raises OnionTooLong, EncodeError, InvalidKey (the path may hold anything), and
    ValueError when `encrypted_recipient_data` is set already or the path has no hops.
    """
    if payload.encrypted_recipient_data is not None:
        raise ValueError("encrypted_recipient_data comes from the path")
    if not path.path:
        raise ValueError("the blinded path has no hops")
    hops = []
    for hop in path.path[:-1]:
        middle = OnionMessagePayload(encrypted_recipient_data=hop.encrypted_recipient_data)
        hops.append((hop.blinded_node_id, middle.to_bytes()))
    last = path.path[-1]
    final = OnionMessagePayload(
        payload.reply_path,
        last.encrypted_recipient_data,
        payload.invoice_request,
        payload.invoice,
        payload.invoice_error,
        unknown_tlvs=payload.unknown_tlvs,
    )
    hops.append((last.blinded_node_id, final.to_bytes()))
    return _build_smallest(hops, session_key)


def _build_smallest(hops: Sequence[tuple[bytes, bytes]], session_key: bytes) -> bytes:
    small, large = MESSAGE_PAYLOADS_SIZES
    try:
        return build_onion(hops, session_key, b"", small).packet
    except OnionTooLong:
        return build_onion(hops, session_key, b"", large).packet


def read_message_onion(packet: bytes, path_key: bytes, node_secret: bytes) -> ForwardMessage | ReceiveMessage:
    """Peel the onion of an `onion_message` and say what it asks for. Raises IgnoredOnionMessage. Costs about 200 us.

    A message whose next node is this node itself (a dummy hop of the recipient's) comes back as a ForwardMessage.
    """
    try:
        peeled = peel_onion(packet, node_secret, b"", path_key)
        payload = OnionMessagePayload.from_bytes(peeled.payload)
        if payload.encrypted_recipient_data is None or peeled.blinding_secret is None:
            raise IgnoredOnionMessage("encrypted_recipient_data is missing")
        data = decrypt_data(peeled.blinding_secret, payload.encrypted_recipient_data)
    except (OnionError, DecodeError, BlindingError) as error:
        raise IgnoredOnionMessage(str(error)) from error
    if data.allows_unknown_features:
        raise IgnoredOnionMessage("unknown bits in allowed_features")
    if peeled.next_packet is None:
        if payload.final_fields > 1:
            raise IgnoredOnionMessage("more than one payload field")
        return ReceiveMessage(payload, data.path_id)
    if payload.final_fields or payload.reply_path is not None or payload.unknown_tlvs:
        raise IgnoredOnionMessage("other fields than encrypted_recipient_data for a relaying node")
    if data.path_id is not None:
        raise IgnoredOnionMessage("path_id for a relaying node")
    if data.next_node_id is None and data.short_channel_id is None:
        raise IgnoredOnionMessage("no next node")
    next_key = next_path_key(path_key, peeled.blinding_secret, data)
    return ForwardMessage(peeled.next_packet, next_key, data.next_node_id, data.short_channel_id)
