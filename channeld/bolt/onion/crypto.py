"""Keys and streams that the onion derives from a shared secret. Curve operations are in `wallet.bitcoin.secp`.

Secrets, keys and scalars are 32 bytes, points 33 bytes compressed.
Source: BOLT 4, "Conventions", "Key Generation", "Pseudo Random Byte Stream".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from hmac import digest

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

_BLOCK_SIZE = 64
_NONCE = bytes(12)  # no key is used twice


def hmac256(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes."""
    return digest(key, message, "sha256")


def derive_key(key_type: bytes, secret: bytes) -> bytes:
    """The 32-byte key of one type: rho, mu, um, pad, ammag, ammagext, blinded_node_id. BOLT 4, "Key Generation"."""
    mac = _keyed(key_type).copy()  # a third of what a new one costs
    mac.update(secret)
    return mac.finalize()


@cache
def _keyed(key_type: bytes) -> HMAC:
    return HMAC(key_type, SHA256())


def blinding_factor(point: bytes, shared_secret: bytes) -> bytes:
    """SHA256(point || shared secret): the factor between one hop's ephemeral (or path) key and the next hop's."""
    return sha256(point + shared_secret).digest()


def stream_cipher(key: bytes, first_block: int = 0) -> Callable[[bytes], bytes]:
    """Turns data into `data` XOR the ChaCha20 stream of `key`, from its block `first_block` (64 bytes each) on; called
    again, it goes on where it was."""
    return Cipher(ChaCha20(key, first_block.to_bytes(4, "little") + _NONCE), None).encryptor().update


def apply_stream(key: bytes, data: bytes) -> bytes:
    """`data` XOR the ChaCha20 stream of `key`; zeros in give the bare stream."""
    return stream_cipher(key)(data)


def apply_stream_from(key: bytes, offset: int, data: bytes) -> bytes:
    """`data` XOR the stream from its byte `offset` on."""
    first_block, skipped = divmod(offset, _BLOCK_SIZE)
    return stream_cipher(key, first_block)(bytes(skipped) + data)[skipped:]
