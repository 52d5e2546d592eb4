"""secp256k1 over coincurve's `lib`: the few calls that the hot path makes, without its wrappers' copies.

Signatures are 64-byte compact (r, s) with low S everywhere inside; DER only in witnesses.
Public keys are 33 bytes compressed; parsed ones are cached, because parsing costs a sixth of a verification.
The library's calls release the GIL: two threads verify at twice the rate.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT

from wallet.bitcoin.encoding import tagged_hash

_ctx = GLOBAL_CONTEXT.ctx
_COMPRESSED = lib.SECP256K1_EC_COMPRESSED
_NO_SECRET = "a secret key is 32 bytes between 1 and the curve's order"
CURVE_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


class InvalidKey(ValueError):
    """Bytes that are no point on the curve, or a secret outside 1..n-1."""


def _parse(pubkey: bytes) -> Any:
    if len(pubkey) != 33:
        raise InvalidKey(f"a compressed public key has 33 bytes, not {len(pubkey)}")
    point = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ec_pubkey_parse(_ctx, point, pubkey, 33):
        raise InvalidKey(f"{pubkey.hex()} is not a point on secp256k1")
    return point


_parsed = lru_cache(maxsize=16_384)(_parse)


def _serialized(point: Any) -> bytes:
    out = ffi.new("unsigned char[33]")
    size = ffi.new("size_t *", 33)
    lib.secp256k1_ec_pubkey_serialize(_ctx, out, size, point, _COMPRESSED)
    return bytes(ffi.buffer(out, 33))


def _check_secret(secret: bytes) -> None:
    if len(secret) != 32 or not lib.secp256k1_ec_seckey_verify(_ctx, secret):
        raise InvalidKey(_NO_SECRET)


def is_valid_pubkey(pubkey: bytes) -> bool:
    """Whether `pubkey` is a 33-byte compressed point on the curve."""
    try:
        _parsed(pubkey)
    except InvalidKey:
        return False
    return True


def is_valid_secret(secret: bytes) -> bool:
    """Whether `secret` is 32 bytes between 1 and the order less one."""
    return len(secret) == 32 and bool(lib.secp256k1_ec_seckey_verify(_ctx, secret))


def pubkey_of(secret: bytes) -> bytes:
    """The compressed public key of a 32-byte secret. Raises InvalidKey."""
    point = ffi.new("secp256k1_pubkey *")
    if len(secret) != 32 or not lib.secp256k1_ec_pubkey_create(_ctx, point, secret):
        raise InvalidKey(_NO_SECRET)
    return _serialized(point)


def sign(secret: bytes, digest: bytes) -> bytes:
    """Deterministic (RFC 6979) low-S ECDSA over a 32-byte digest: 64 bytes compact. Raises InvalidKey."""
    if len(digest) != 32 or len(secret) != 32:
        raise InvalidKey("signing takes a 32-byte secret and a 32-byte digest")
    signature = ffi.new("secp256k1_ecdsa_signature *")
    if not lib.secp256k1_ecdsa_sign(_ctx, signature, digest, secret, ffi.NULL, ffi.NULL):
        raise InvalidKey("the secret is out of range")
    out = ffi.new("unsigned char[64]")
    lib.secp256k1_ecdsa_signature_serialize_compact(_ctx, out, signature)
    return bytes(ffi.buffer(out, 64))


def sign_low_r(secret: bytes, digest: bytes) -> bytes:
    """Like `sign`, with R below 2^255 as Bitcoin Core grinds it, so that the DER form has at most 70 bytes."""
    signature = sign(secret, digest)
    counter = 0
    raw = ffi.new("secp256k1_ecdsa_signature *")
    out = ffi.new("unsigned char[64]")
    while signature[0] >= 0x80:
        counter += 1
        extra = ffi.new("unsigned char[32]", counter.to_bytes(32, "little"))
        lib.secp256k1_ecdsa_sign(_ctx, raw, digest, secret, lib.secp256k1_nonce_function_rfc6979, extra)
        lib.secp256k1_ecdsa_signature_serialize_compact(_ctx, out, raw)
        signature = bytes(ffi.buffer(out, 64))
    return signature


def verify(pubkey: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether the 64-byte compact `signature` by `pubkey` over `digest` is valid and low-S. Raises InvalidKey."""
    if len(signature) != 64 or len(digest) != 32:
        return False
    parsed = ffi.new("secp256k1_ecdsa_signature *")
    if not lib.secp256k1_ecdsa_signature_parse_compact(_ctx, parsed, signature):
        return False
    return bool(lib.secp256k1_ecdsa_verify(_ctx, parsed, digest, _parsed(pubkey)))


def verify_once(pubkey: bytes, digest: bytes, signature: bytes) -> bool:
    """Like `verify`, for a key that will not come again: its parsed form takes no other's place in the cache."""
    if len(signature) != 64 or len(digest) != 32:
        return False
    parsed = ffi.new("secp256k1_ecdsa_signature *")
    if not lib.secp256k1_ecdsa_signature_parse_compact(_ctx, parsed, signature):
        return False
    return bool(lib.secp256k1_ecdsa_verify(_ctx, parsed, digest, _parse(pubkey)))


def sign_recoverable(secret: bytes, digest: bytes) -> bytes:
    """Like `sign`, followed by the recovery id: 65 bytes. Raises InvalidKey."""
    if len(digest) != 32 or len(secret) != 32:
        raise InvalidKey("signing takes a 32-byte secret and a 32-byte digest")
    signature = ffi.new("secp256k1_ecdsa_recoverable_signature *")
    if not lib.secp256k1_ecdsa_sign_recoverable(_ctx, signature, digest, secret, ffi.NULL, ffi.NULL):
        raise InvalidKey("the secret is out of range")
    out = ffi.new("unsigned char[64]")
    recovery_id = ffi.new("int *")
    lib.secp256k1_ecdsa_recoverable_signature_serialize_compact(_ctx, out, recovery_id, signature)
    return bytes(ffi.buffer(out, 64)) + bytes((recovery_id[0],))


def recover(digest: bytes, signature: bytes) -> bytes | None:
    """The key behind a 65-byte recoverable `signature` (high or low S) over `digest`; None if there is none."""
    if len(signature) != 65 or len(digest) != 32 or signature[64] > 3:
        return None
    parsed = ffi.new("secp256k1_ecdsa_recoverable_signature *")
    if not lib.secp256k1_ecdsa_recoverable_signature_parse_compact(_ctx, parsed, signature[:64], signature[64]):
        return None
    point = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ecdsa_recover(_ctx, point, parsed, digest):
        return None
    return _serialized(point)


def compact_to_der(signature: bytes) -> bytes:
    """DER of a 64-byte compact signature (no sighash byte). Raises ValueError."""
    parsed = ffi.new("secp256k1_ecdsa_signature *")
    if len(signature) != 64 or not lib.secp256k1_ecdsa_signature_parse_compact(_ctx, parsed, signature):
        raise ValueError("not a compact signature")
    out = ffi.new("unsigned char[72]")
    size = ffi.new("size_t *", 72)
    lib.secp256k1_ecdsa_signature_serialize_der(_ctx, out, size, parsed)
    return bytes(ffi.buffer(out, size[0]))


def der_to_compact(der: bytes) -> bytes:
    """64-byte compact form, S normalised, of a strict DER signature (no sighash byte). Raises ValueError."""
    parsed = ffi.new("secp256k1_ecdsa_signature *")
    if not lib.secp256k1_ecdsa_signature_parse_der(_ctx, parsed, der, len(der)):
        raise ValueError("not a DER signature")
    lib.secp256k1_ecdsa_signature_normalize(_ctx, parsed, parsed)
    out = ffi.new("unsigned char[64]")
    lib.secp256k1_ecdsa_signature_serialize_compact(_ctx, out, parsed)
    return bytes(ffi.buffer(out, 64))


def ecdh(secret: bytes, pubkey: bytes) -> bytes:
    """SHA-256 of the compressed shared point (BOLT 8 and BOLT 4's ECDH), 32 bytes. Raises InvalidKey."""
    out = ffi.new("unsigned char[32]")
    if len(secret) != 32 or not lib.secp256k1_ecdh(_ctx, out, _parsed(pubkey), secret, ffi.NULL, ffi.NULL):
        raise InvalidKey(_NO_SECRET)
    return bytes(ffi.buffer(out, 32))


def point_mul(pubkey: bytes, scalar: bytes) -> bytes:
    """`scalar * pubkey`, compressed. Raises InvalidKey."""
    point = ffi.new("secp256k1_pubkey *", _parsed(pubkey)[0])
    if len(scalar) != 32 or not lib.secp256k1_ec_pubkey_tweak_mul(_ctx, point, scalar):
        raise InvalidKey("the factor is out of range")
    return _serialized(point)


def point_add_scalar(pubkey: bytes, scalar: bytes) -> bytes:
    """`pubkey + scalar * G`, compressed. Raises InvalidKey."""
    point = ffi.new("secp256k1_pubkey *", _parsed(pubkey)[0])
    if len(scalar) != 32 or not lib.secp256k1_ec_pubkey_tweak_add(_ctx, point, scalar):
        raise InvalidKey("the summand is out of range, or the sum is the point at infinity")
    return _serialized(point)


def point_mul_sum(*terms: tuple[bytes, bytes]) -> bytes:
    """The sum of `scalar * pubkey` over (pubkey, scalar) terms, compressed. Raises InvalidKey."""
    points = []
    for pubkey, scalar in terms:
        point = ffi.new("secp256k1_pubkey *", _parsed(pubkey)[0])
        if len(scalar) != 32 or not lib.secp256k1_ec_pubkey_tweak_mul(_ctx, point, scalar):
            raise InvalidKey("a factor is out of range")
        points.append(point)
    total = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ec_pubkey_combine(_ctx, total, ffi.new("secp256k1_pubkey *[]", points), len(points)):
        raise InvalidKey("the sum is the point at infinity")
    return _serialized(total)


def point_add(*pubkeys: bytes) -> bytes:
    """The sum of compressed points. Raises InvalidKey (also for the point at infinity)."""
    points = [_parsed(pubkey) for pubkey in pubkeys]
    total = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ec_pubkey_combine(_ctx, total, ffi.new("secp256k1_pubkey *[]", points), len(points)):
        raise InvalidKey("the sum is the point at infinity")
    return _serialized(total)


def scalar_add(secret: bytes, scalar: bytes) -> bytes:
    """`secret + scalar` modulo the order. Raises InvalidKey."""
    out = ffi.new("unsigned char[32]", secret)
    if not lib.secp256k1_ec_seckey_tweak_add(_ctx, out, scalar):
        raise InvalidKey("the sum is out of range")
    return bytes(ffi.buffer(out, 32))


def scalar_mul(secret: bytes, scalar: bytes) -> bytes:
    """`secret * scalar` modulo the order. Raises InvalidKey."""
    out = ffi.new("unsigned char[32]", secret)
    if not lib.secp256k1_ec_seckey_tweak_mul(_ctx, out, scalar):
        raise InvalidKey("the product is out of range")
    return bytes(ffi.buffer(out, 32))


def scalar_negate(secret: bytes) -> bytes:
    """`-secret` modulo the order. Raises InvalidKey."""
    out = ffi.new("unsigned char[32]", secret)
    if not lib.secp256k1_ec_seckey_negate(_ctx, out):
        raise InvalidKey("the secret is out of range")
    return bytes(ffi.buffer(out, 32))


def xonly(pubkey: bytes) -> bytes:
    """The 32-byte x coordinate of a compressed key (BIP 340)."""
    return pubkey[1:]


def taproot_tweak_secret(secret: bytes, merkle_root: bytes = b"") -> bytes:
    """The secret behind a taproot output key (BIP 341); `merkle_root` is empty for key-path-only outputs."""
    pubkey = pubkey_of(secret)
    if pubkey[0] == 3:
        secret = scalar_negate(secret)
    return scalar_add(secret, tagged_hash(b"TapTweak", pubkey[1:] + merkle_root))


def taproot_output_key(internal: bytes, merkle_root: bytes = b"") -> bytes:
    """The 32-byte output key of a 32-byte x-only internal key (BIP 341). Raises InvalidKey."""
    return point_add_scalar(b"\x02" + internal, tagged_hash(b"TapTweak", internal + merkle_root))[1:]


def sign_schnorr(secret: bytes, digest: bytes, aux_random: bytes = bytes(32)) -> bytes:
    """BIP 340 signature over 32 bytes, 64 bytes. Deterministic unless `aux_random` is fresh. Raises InvalidKey."""
    _check_secret(secret)
    keypair = ffi.new("secp256k1_keypair *")
    lib.secp256k1_keypair_create(_ctx, keypair, secret)
    out = ffi.new("unsigned char[64]")
    if not lib.secp256k1_schnorrsig_sign32(_ctx, out, digest, keypair, aux_random):
        raise InvalidKey("signing failed")
    return bytes(ffi.buffer(out, 64))


def verify_schnorr(output_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether a BIP 340 signature over 32 bytes is valid for a 32-byte x-only key."""
    key = ffi.new("secp256k1_xonly_pubkey *")
    if len(signature) != 64 or len(output_key) != 32 or not lib.secp256k1_xonly_pubkey_parse(_ctx, key, output_key):
        return False
    return bool(lib.secp256k1_schnorrsig_verify(_ctx, signature, digest, len(digest), key))
