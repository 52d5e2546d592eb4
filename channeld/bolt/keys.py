"""Keys that change with every commitment transaction (BOLT 3, "Key Derivation").

A commitment belongs to one side, its *owner*; the *other* side is who holds the revocation key to it. These two words
are used wherever BOLT 3's "local" and "remote" mean the owner of a transaction and not this node.
Points are 33 bytes compressed, secrets 32 bytes big-endian. Everything here raises `wallet.bitcoin.secp.InvalidKey`
for bytes that are no point or no secret.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

from wallet.bitcoin.secp import point_add_scalar, point_mul_sum, pubkey_of, scalar_add, scalar_mul


class ChannelKeys(msgspec.Struct, frozen=True, cache_hash=True):
    """The public keys that one side gives in `open_channel` or `accept_channel`, 33 bytes each."""

    funding_pubkey: bytes
    revocation_basepoint: bytes
    payment_basepoint: bytes
    delayed_payment_basepoint: bytes
    htlc_basepoint: bytes


class CommitmentKeys(msgspec.Struct, frozen=True):
    """The public keys inside one commitment transaction, 33 bytes each."""

    per_commitment_point: bytes
    revocation_pubkey: bytes
    owner_delayed_pubkey: bytes
    owner_htlc_pubkey: bytes
    other_htlc_pubkey: bytes


def per_commitment_point(per_commitment_secret: bytes) -> bytes:
    """`per_commitment_secret * G`."""
    return pubkey_of(per_commitment_secret)


def derive_pubkey(basepoint: bytes, per_commitment_point: bytes) -> bytes:
    """`basepoint + SHA256(per_commitment_point || basepoint) * G`: the delayed and HTLC keys of a commitment."""
    return point_add_scalar(basepoint, sha256(per_commitment_point + basepoint).digest())


def derive_privkey(basepoint_secret: bytes, basepoint: bytes, per_commitment_point: bytes) -> bytes:
    """The secret of `derive_pubkey(basepoint, per_commitment_point)`."""
    return scalar_add(basepoint_secret, sha256(per_commitment_point + basepoint).digest())


def derive_revocation_pubkey(revocation_basepoint: bytes, per_commitment_point: bytes) -> bytes:
    """The key that punishes: from the other side's `revocation_basepoint` and the owner's `per_commitment_point`."""
    return point_mul_sum(
        (revocation_basepoint, sha256(revocation_basepoint + per_commitment_point).digest()),
        (per_commitment_point, sha256(per_commitment_point + revocation_basepoint).digest()),
    )


def derive_revocation_privkey(
    revocation_basepoint_secret: bytes, revocation_basepoint: bytes, per_commitment_secret: bytes
) -> bytes:
    """The secret of `derive_revocation_pubkey`, once the owner has revealed its `per_commitment_secret`."""
    point = pubkey_of(per_commitment_secret)
    return scalar_add(
        scalar_mul(revocation_basepoint_secret, sha256(revocation_basepoint + point).digest()),
        scalar_mul(per_commitment_secret, sha256(point + revocation_basepoint).digest()),
    )


def derive_commitment_keys(owner: ChannelKeys, other: ChannelKeys, per_commitment_point: bytes) -> CommitmentKeys:
    """All keys of the commitment that `owner` may broadcast, made with its `per_commitment_point`."""
    return CommitmentKeys(
        per_commitment_point,
        derive_revocation_pubkey(other.revocation_basepoint, per_commitment_point),
        derive_pubkey(owner.delayed_payment_basepoint, per_commitment_point),
        derive_pubkey(owner.htlc_basepoint, per_commitment_point),
        derive_pubkey(other.htlc_basepoint, per_commitment_point),
    )
