"""Keys and streams that the onion derives from a shared secret. Curve operations are in `wallet.bitcoin.secp`.

Secrets, keys and scalars are 32 bytes, points 33 bytes compressed.
Source: BOLT 4, "Conventions", "Key Generation", "Pseudo Random Byte Stream".
"""

from __future__ import annotations

from hashlib import sha256
from hmac import digest

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

_NONCE = bytes(16)  # 32-bit counter and 96-bit nonce, all zero: no key is used twice


def hmac256(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes."""
    return digest(key, message, "sha256")


def derive_key(key_type: bytes, secret: bytes) -> bytes:
    """The 32-byte key of one type: rho, mu, um, pad, ammag, ammagext, blinded_node_id. BOLT 4, "Key Generation"."""
    return digest(key_type, secret, "sha256")


def blinding_factor(point: bytes, shared_secret: bytes) -> bytes:
    """SHA256(point || shared secret): the factor between one hop's ephemeral (or path) key and the next hop's."""
    return sha256(point + shared_secret).digest()


def apply_stream(key: bytes, data: bytes) -> bytes:
    """`data` XOR the ChaCha20 stream of `key`; zeros in give the bare stream."""
    return Cipher(ChaCha20(key, _NONCE), None).encryptor().update(data)
