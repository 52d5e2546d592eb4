"""Route blinding: paths whose nodes the sender cannot know, and what each node inside finds out.

Path keys and node ids are 33-byte points, secrets 32 bytes. Source: BOLT 4, "Route Blinding".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from channeld.bolt.codec import Structure, Tlv, TlvStream, structure, tlv_stream
from channeld.bolt.onion.crypto import blinding_factor, derive_key
from channeld.bolt.primitives import (
    U16,
    U32,
    U64,
    Counted,
    DecodeError,
    Point,
    RestBytes,
    SciddirOrPubkeyBytes,
    ShortChannelId,
    Tu32,
    Tu64,
    VarBytes,
    encode_bigsize,
)
from wallet.bitcoin.secp import ecdh, is_valid_pubkey, point_mul, pubkey_of, scalar_mul

_NONCE = bytes(12)  # every rho key encrypts one record only
_MILLION = 1_000_000


class BlindingError(ValueError):
    """`encrypted_recipient_data` that does not decrypt, or decrypts to something that breaks BOLT 4."""


@structure
class PaymentRelay(Structure):
    """What a blinded node takes for relaying a payment: blocks, ppm, msat."""

    cltv_expiry_delta: U16
    fee_proportional_millionths: U32
    fee_base_msat: Tu32 = 0

    def amount_to_forward_msat(self, amount_msat: int) -> int:
        """What is left of an incoming amount; not positive if it does not cover the fee. BOLT 4, "The reader"."""
        divisor = _MILLION + self.fee_proportional_millionths
        return ((amount_msat - self.fee_base_msat) * _MILLION + divisor - 1) // divisor


@structure
class PaymentConstraints(Structure):
    """Limits of a blinded path: the highest expiry (block height) and the least amount (msat) that may use it."""

    max_cltv_expiry: U32
    htlc_minimum_msat: Tu64 = 0


@tlv_stream
class EncryptedData(TlvStream):
    """`encrypted_data_tlv`: the recipient's instructions for one node of the path."""

    padding: Annotated[RestBytes | None, Tlv(1)] = None
    short_channel_id: Annotated[ShortChannelId | None, Tlv(2)] = None
    next_node_id: Annotated[Point | None, Tlv(4)] = None
    path_id: Annotated[RestBytes | None, Tlv(6)] = None
    next_path_key_override: Annotated[Point | None, Tlv(8)] = None
    payment_relay: Annotated[PaymentRelay | None, Tlv(10)] = None
    payment_constraints: Annotated[PaymentConstraints | None, Tlv(12)] = None
    allowed_features: Annotated[RestBytes | None, Tlv(14)] = None

    @property
    def allows_unknown_features(self) -> bool:
        """Whether a bit is set: BOLT 9 defines none for this field, and unknown ones, odd or even, are errors."""
        return any(self.allowed_features or b"")


@structure
class BlindedPathHop(Structure):
    """`blinded_path_hop`: the key to encrypt this hop's onion layer to, and what to put into it."""

    blinded_node_id: Point
    encrypted_recipient_data: VarBytes


@structure
class BlindedPath(Structure):
    """`blinded_path`, as it stands in offers, invoices and reply paths. At least one hop."""

    first_node_id: SciddirOrPubkeyBytes
    first_path_key: Point
    path: Annotated[tuple[BlindedPathHop, ...], Counted("B")]


@structure
class BlindedPayInfo(Structure):
    """`blinded_payinfo`: what a payer has to know of a path that it cannot look into. Amounts in msat, delta in blocks.

    Source: BOLT 12, "Invoices".
    """

    fee_base_msat: U32
    fee_proportional_millionths: U32
    cltv_expiry_delta: U16
    htlc_minimum_msat: U64
    htlc_maximum_msat: U64
    features: VarBytes = b""

    def fee_msat(self, amount_msat: int) -> int:
        """What the path takes of a payment of which `amount_msat` arrives."""
        return self.fee_base_msat + -(-amount_msat * self.fee_proportional_millionths // _MILLION)


@dataclass(frozen=True, slots=True)
class CreatedPath:
    """A new path, and the path key its last node will be handed: the recipient may remember it to know its own path."""

    path: BlindedPath
    last_path_key: bytes


def create_blinded_path(hops: Sequence[tuple[bytes, EncryptedData]], session_key: bytes) -> CreatedPath:
    """A path over `hops`, pairs (node id, instructions), introduction node first and the recipient last.

    `session_key` must be fresh and random. Instructions are padded by `pad_alike` if the caller wants that.
    Raises ValueError (no hops), EncodeError, wallet.bitcoin.secp.InvalidKey. Costs about 150 us a hop.
    """
    if not hops:
        raise ValueError("a blinded path needs at least one hop")
    secret, first_path_key = session_key, pubkey_of(session_key)
    path_key = first_path_key
    blinded = []
    for node_id, data in hops:
        blinding_secret = ecdh(secret, node_id)
        encrypted = encrypt_data(blinding_secret, data.to_bytes())
        blinded.append(BlindedPathHop(blinded_node_id(node_id, blinding_secret), encrypted))
        if len(blinded) < len(hops):
            secret = scalar_mul(secret, blinding_factor(path_key, blinding_secret))
            path_key = pubkey_of(secret)
    return CreatedPath(BlindedPath(hops[0][0], first_path_key, tuple(blinded)), path_key)


def prepend_hops(hops: Sequence[tuple[bytes, EncryptedData]], session_key: bytes, path: BlindedPath) -> BlindedPath:
    """A path that reaches somebody else's `path` through `hops`: the last of them learns its first path key.

    The instructions of that last hop must lead to the introduction node of `path`. For onion messages; payments go to
    the introduction node by an ordinary onion. BOLT 4, "The reader of the `blinded_path`". Raises as above.
    """
    if not hops:
        raise ValueError("no hops to prepend")
    node_id, data = hops[-1]
    last = (node_id, dataclasses.replace(data, next_path_key_override=path.first_path_key))
    first = create_blinded_path([*hops[:-1], last], session_key).path
    return BlindedPath(first.first_node_id, first.first_path_key, first.path + path.path)


def pad_alike(datas: Sequence[EncryptedData]) -> list[EncryptedData]:
    """The instructions with `padding` such that all encode to the same length: they tell nobody who is last."""
    bare = [dataclasses.replace(data, padding=None) for data in datas]
    sizes = [len(data.to_bytes()) for data in bare]
    target = max(sizes, default=0) + 2
    while True:
        paddings = [_padding(target - size) for size in sizes]
        if None not in paddings:
            return [dataclasses.replace(data, padding=padding) for data, padding in zip(bare, paddings, strict=True)]
        target += 1


def _padding(size: int) -> bytes | None:
    """The value of a padding record that has `size` bytes in all; None where the length's own length is in the way."""
    for length in (size - 2, size - 4):
        if length >= 0 and 1 + len(encode_bigsize(length)) + length == size:
            return bytes(length)
    return None


def aggregate_relay(relays: Sequence[PaymentRelay], min_final_cltv_expiry_delta: int) -> PaymentRelay:
    """What the whole path costs a sender, from the relays of its nodes (without the recipient), first node first.

    BOLT 4, "The creator of `encrypted_recipient_data`".
    """
    base_msat, proportional = 0, 0
    for relay in reversed(relays):
        factor = _MILLION + relay.fee_proportional_millionths
        base_msat = -(-(relay.fee_base_msat * _MILLION + base_msat * factor) // _MILLION)
        proportional = -(
            -(
                (proportional + relay.fee_proportional_millionths) * _MILLION
                + proportional * relay.fee_proportional_millionths
            )
            // _MILLION
        )
    delta = sum(relay.cltv_expiry_delta for relay in relays) + min_final_cltv_expiry_delta
    return PaymentRelay(delta, proportional, base_msat)


def blinded_node_id(node_id: bytes, blinding_secret: bytes) -> bytes:
    """The public key that stands for `node_id` in the path."""
    return point_mul(node_id, derive_key(b"blinded_node_id", blinding_secret))


def blinded_node_secret(node_secret: bytes, blinding_secret: bytes) -> bytes:
    """The private key of `blinded_node_id`, known to the node alone."""
    return scalar_mul(node_secret, derive_key(b"blinded_node_id", blinding_secret))


def encrypt_data(blinding_secret: bytes, data: bytes) -> bytes:
    """`encrypted_recipient_data` of an encoded `encrypted_data_tlv`."""
    return ChaCha20Poly1305(derive_key(b"rho", blinding_secret)).encrypt(_NONCE, data, None)


def decrypt_data(blinding_secret: bytes, encrypted: bytes) -> EncryptedData:
    """This node's instructions; `blinding_secret` is ECDH of the node's secret and the path key.

    Raises BlindingError for a wrong tag, a malformed stream, an unknown even record, two next nodes, or a
    `next_path_key_override` that is no point: the next node could not read the message that it goes into.
    """
    try:
        clear = ChaCha20Poly1305(derive_key(b"rho", blinding_secret)).decrypt(_NONCE, encrypted, None)
        data = EncryptedData.from_bytes(clear)
    except InvalidTag:
        raise BlindingError("encrypted_recipient_data does not decrypt") from None
    except DecodeError as error:
        raise BlindingError(str(error)) from None
    if data.short_channel_id is not None and data.next_node_id is not None:
        raise BlindingError("encrypted_recipient_data has both short_channel_id and next_node_id")
    override = data.next_path_key_override
    if override is not None and not is_valid_pubkey(override):
        raise BlindingError("next_path_key_override is not a point")
    return data


def next_path_key(path_key: bytes, blinding_secret: bytes, data: EncryptedData) -> bytes:
    """The path key to send along to the next node: the override, or this node's key times a known factor."""
    if data.next_path_key_override is not None:
        return data.next_path_key_override
    return point_mul(path_key, blinding_factor(path_key, blinding_secret))
