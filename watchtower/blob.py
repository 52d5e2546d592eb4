"""Locators, and blobs that only the breach transaction opens.

The key is a tagged hash of the whole transaction id, of which the tower knows half until the transaction appears. The
nonce is derived from key and content (as in a synthetic-IV cipher): two different contents for the same commitment, in
two modes say, never share a nonce, and making an appointment again gives the same bytes. Contents are compressed and
padded, so that a blob's size tells little about how many HTLCs there were.
"""

from __future__ import annotations

import hmac
import zlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wallet.bitcoin.encoding import tagged_hash

LOCATOR_BYTES = 16
OVERHEAD_BYTES = 12 + 16
MIN_PADDED_BYTES = 384
MAX_CONTENT_BYTES = 2 << 20
"""What a blob may unpack to: more is somebody's joke. (966 HTLCs come to a third of it.)"""
_LENGTH_BYTES = 4


class Undecipherable(ValueError):
    """The blob is not for this transaction, or it is damaged."""


def locator_of(txid: bytes) -> bytes:
    """The first 16 bytes of a transaction id (internal order)."""
    return txid[:LOCATOR_BYTES]


def seal(txid: bytes, content: bytes) -> bytes:
    """`content` for whoever sees the transaction: nonce (12 bytes), ciphertext, tag (16 bytes)."""
    key = _key(txid)
    packed = zlib.compress(content, 6)
    padded = len(packed).to_bytes(_LENGTH_BYTES, "big") + packed
    padded += bytes(padded_size(len(padded)) - len(padded))
    nonce = hmac.digest(tagged_hash(b"watchtower/nonce", key), padded, "sha256")[:12]
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, padded, None)


def unseal(txid: bytes, blob: bytes) -> bytes:
    """What `seal` was given. Raises Undecipherable."""
    try:
        padded = ChaCha20Poly1305(_key(txid)).decrypt(blob[:12], blob[12:], None)
    except (InvalidTag, ValueError) as error:
        raise Undecipherable("the blob does not decrypt under the transaction's id") from error
    length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(padded[_LENGTH_BYTES : _LENGTH_BYTES + length], MAX_CONTENT_BYTES)
    except zlib.error as error:
        raise Undecipherable("the blob's content is damaged") from error
    if not unpacker.eof:
        raise Undecipherable("the blob's content is cut off, or too large")
    return content


def padded_size(size: int) -> int:
    """Sizes rounded up to one of two steps an octave, at least 384: half more at most."""
    if size <= MIN_PADDED_BYTES:
        return MIN_PADDED_BYTES
    step = 1 << ((size - 1).bit_length() - 2)
    return -(-size // step) * step


def _key(txid: bytes) -> bytes:
    return tagged_hash(b"watchtower/blob", txid)
