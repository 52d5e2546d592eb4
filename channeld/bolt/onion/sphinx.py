"""The onion packet itself: wrapping payloads for a route, and taking off one layer.

A packet is `version` (1 byte, 0) || `public_key` (33) || `hop_payloads` (1300 for payments) || `hmac` (32). It stays
raw bytes everywhere: 1366 for a payment, any size for an onion message.

Source: BOLT 4, "Packet Structure", "Packet Construction", "Onion Decryption", "Filler Generation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from channeld.bolt.onion.crypto import (
    apply_stream,
    apply_stream_from,
    blinding_factor,
    derive_key,
    hmac256,
    stream_cipher,
)
from channeld.bolt.onion.failures import (
    Failure,
    InvalidOnionBlinding,
    InvalidOnionHmac,
    InvalidOnionKey,
    InvalidOnionPayload,
    InvalidOnionVersion,
)
from channeld.bolt.primitives import DecodeError, decode_bigsize, encode_bigsize
from wallet.bitcoin.secp import InvalidKey, ecdh, is_valid_pubkey, point_mul, pubkey_of, scalar_mul

PAYMENT_PAYLOADS_SIZE = 1300
PAYMENT_PACKET_SIZE = 1366
MESSAGE_PAYLOADS_SIZES = (1300, 32768)
"""Sizes of `onionmsg_payloads` to choose from: small ones look like payments. BOLT 4, "Onion Messages"."""

_VERSION = b"\x00"
_HMAC_SIZE = 32
_OVERHEAD = 1 + 33 + _HMAC_SIZE
_NO_HMAC = bytes(_HMAC_SIZE)

_BadOnionFailure = InvalidOnionVersion | InvalidOnionHmac | InvalidOnionKey | InvalidOnionBlinding


class OnionError(Exception):
    """An onion that this node refuses; `failure` is the answer, the subclass says how it travels."""

    def __init__(self, reason: str, failure: Failure) -> None:
        super().__init__(f"{reason} ({failure.NAME})")
        self.reason = reason
        self.failure = failure


class BadOnion(OnionError):
    """Answer with `update_fail_malformed_htlc` and these two fields: there is no secret to encrypt a failure with.

    BOLT 2, "Removing an HTLC".
    """

    def __init__(self, reason: str, failure: _BadOnionFailure) -> None:
        super().__init__(reason, failure)
        self.failure_code = failure.CODE
        self.sha256_of_onion = failure.sha256_of_onion


class RefusedOnion(OnionError):
    """Answer with `update_fail_htlc`: the failure, encrypted under `shared_secret` (`returns.create_failure`)."""

    def __init__(self, reason: str, failure: Failure, shared_secret: bytes) -> None:
        super().__init__(reason, failure)
        self.shared_secret = shared_secret


class OnionTooLong(ValueError):
    """The payloads of a route do not fit the packet: take a shorter route or smaller payloads."""


@dataclass(frozen=True, slots=True)
class Onion:
    """A packet to send to the first hop, and one shared secret per hop, to read errors with."""

    packet: bytes
    shared_secrets: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Peeled:
    """One layer off: this hop's payload (TLV stream without its length) and what to hand on."""

    payload: bytes
    next_packet: bytes | None  # None: this node is the final one
    shared_secret: bytes
    blinding_secret: bytes | None = None  # shared with the maker of the blinded path, if a path_key came along

    @property
    def is_final(self) -> bool:
        """Whether this node is the onion's destination."""
        return self.next_packet is None

    @property
    def replay_key(self) -> bytes:
        """SHA256 of the shared secret: remember it until the HTLC's expiry has passed, refuse what repeats it."""
        return sha256(self.shared_secret).digest()


def build_onion(
    hops: Sequence[tuple[bytes, bytes]],
    session_key: bytes,
    associated_data: bytes = b"",
    payloads_size: int = PAYMENT_PAYLOADS_SIZE,
) -> Onion:
    """Wrap one payload a hop, first hop first, as pairs (node id, TLV stream without its length).

    `session_key` must be fresh and random: one that is used twice links the two packets. `associated_data` is the
    payment hash for a payment and empty for a message. Costs about 75 us a hop.
    Raises OnionTooLong, wallet.bitcoin.secp.InvalidKey (a node id or session key), ValueError (no hops).
    Source: BOLT 4, "Packet Construction".
    """
    if not hops:
        raise ValueError("an onion needs at least one hop")
    frames = [_frame(payload) for _, payload in hops]
    if sum(map(len, frames)) + _HMAC_SIZE * len(frames) > payloads_size:
        raise OnionTooLong(f"the payloads of {len(hops)} hops do not fit into {payloads_size} bytes")
    first_key, secrets = _shared_secrets([node_id for node_id, _ in hops], session_key)
    rho_keys = [derive_key(b"rho", secret) for secret in secrets]
    filler = _filler(frames, rho_keys, payloads_size)

    payloads = apply_stream(derive_key(b"pad", session_key), bytes(payloads_size))
    mac = _NO_HMAC
    for frame, rho, secret in zip(reversed(frames), reversed(rho_keys), reversed(secrets), strict=True):
        head = frame + mac
        payloads = apply_stream(rho, head + payloads[: payloads_size - len(head)])
        if filler:
            payloads, filler = payloads[: -len(filler)] + filler, b""
        mac = hmac256(derive_key(b"mu", secret), payloads + associated_data)
    return Onion(b"".join((_VERSION, first_key, payloads, mac)), tuple(secrets))


def _frame(payload: bytes) -> bytes:
    if len(payload) < 2:
        raise ValueError("a payload of less than 2 bytes is reserved")
    return encode_bigsize(len(payload)) + payload


def _shared_secrets(node_ids: Sequence[bytes], session_key: bytes) -> tuple[bytes, list[bytes]]:
    """The first hop's ephemeral key, and every hop's secret. BOLT 4, "Blinding Ephemeral Onion Keys"."""
    secret_key = session_key
    first_key = ephemeral_key = pubkey_of(session_key)
    secrets = [ecdh(secret_key, node_ids[0])]
    for node_id in node_ids[1:]:
        secret_key = scalar_mul(secret_key, blinding_factor(ephemeral_key, secrets[-1]))
        ephemeral_key = pubkey_of(secret_key)
        secrets.append(ecdh(secret_key, node_id))
    return first_key, secrets


def _filler(frames: Sequence[bytes], rho_keys: Sequence[bytes], payloads_size: int) -> bytes:
    """What the hops' own zero padding will look like at the last hop. BOLT 4, "Filler Generation"."""
    filler = b""
    for frame, rho in zip(frames[:-1], rho_keys[:-1], strict=True):
        padded = filler + bytes(len(frame) + _HMAC_SIZE)
        filler = apply_stream_from(rho, payloads_size - len(filler), padded)
    return filler


def peel_onion(
    packet: bytes, node_secret: bytes, associated_data: bytes = b"", path_key: bytes | None = None
) -> Peeled:
    """Take off this node's layer; `path_key` comes with the message when this node is inside a blinded path.

    Costs about 110 us (70 us at the final node). Replays must be refused by the caller: `Peeled.replay_key`.
    Raises BadOnion or RefusedOnion; behind a path_key always BadOnion with invalid_onion_blinding, whatever is wrong.
    Source: BOLT 4, "Onion Decryption", "Failure Messages".
    """
    if path_key is None:
        return _peel(packet, node_secret, associated_data, None)
    try:
        blinding_secret = ecdh(node_secret, path_key)
        blinded_secret = scalar_mul(node_secret, derive_key(b"blinded_node_id", blinding_secret))
        return _peel(packet, blinded_secret, associated_data, blinding_secret)
    except (InvalidKey, OnionError) as error:
        raise BadOnion(f"inside a blinded path: {error}", InvalidOnionBlinding(sha256(packet).digest())) from error


def _peel(packet: bytes, node_secret: bytes, associated_data: bytes, blinding_secret: bytes | None) -> Peeled:
    if packet[:1] != _VERSION:
        raise BadOnion("the onion's version is not 0", InvalidOnionVersion(sha256(packet).digest()))
    if len(packet) < _OVERHEAD:
        raise BadOnion("the onion is cut off", InvalidOnionHmac(sha256(packet).digest()))
    ephemeral_key, payloads, mac = packet[1:34], packet[34:-_HMAC_SIZE], packet[-_HMAC_SIZE:]
    if not is_valid_pubkey(ephemeral_key):
        raise BadOnion("the onion's key is not a point", InvalidOnionKey(sha256(packet).digest()))
    shared_secret = ecdh(node_secret, ephemeral_key)
    expected = hmac256(derive_key(b"mu", shared_secret), payloads + associated_data)
    if not compare_digest(expected, mac):
        raise BadOnion("the onion's hmac is wrong", InvalidOnionHmac(sha256(packet).digest()))
    decrypt = stream_cipher(derive_key(b"rho", shared_secret))
    clear = decrypt(payloads)
    payload, end = _unframe(clear, shared_secret)
    next_mac = clear[end : end + _HMAC_SIZE]
    next_packet = None
    if next_mac != _NO_HMAC:
        next_key = point_mul(ephemeral_key, blinding_factor(ephemeral_key, shared_secret))
        start = end + _HMAC_SIZE
        next_packet = b"".join((_VERSION, next_key, clear[start:], decrypt(bytes(start)), next_mac))
    return Peeled(payload, next_packet, shared_secret, blinding_secret)


def _unframe(clear: bytes, shared_secret: bytes) -> tuple[bytes, int]:
    """The payload at the start of the unwrapped bytes, and where it ends."""
    try:
        length, start = decode_bigsize(clear)
    except DecodeError as error:
        raise RefusedOnion(str(error), InvalidOnionPayload(), shared_secret) from None
    end = start + length
    if length < 2:
        raise RefusedOnion(f"a payload of {length} bytes", InvalidOnionPayload(), shared_secret)
    if end + _HMAC_SIZE > len(clear):
        raise RefusedOnion("the payload is longer than the packet", InvalidOnionPayload(), shared_secret)
    return clear[start:end], end
