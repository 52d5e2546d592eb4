"""One channel's secrets, and signatures over its commitments.

Signing and verifying a commitment's many HTLC signatures are pure functions over lists whose elliptic-curve calls
release the interpreter's lock: a caller may spread them over threads by passing a `Parallel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, assert_never

from channeld.bolt.keys import ChannelKeys, derive_privkey, derive_revocation_privkey
from channeld.bolt.shachain import SecretGenerator
from channeld.bolt.transactions.commitment import BuiltCommitment
from channeld.bolt.transactions.funding import funding_sighash, funding_witness
from channeld.bolt.transactions.spec import CommitmentParams
from channeld.bolt.transactions.sweep import Spend
from wallet.bitcoin.encoding import tagged_hash
from wallet.bitcoin.secp import pubkey_of, sign, verify
from wallet.bitcoin.tx import Tx

_T = TypeVar("_T")
_PAIRS_KEPT = 16
_MIN_BATCH = 8
"""Handing fewer signatures than this to another thread costs more than it saves."""


class Parallel(Protocol):
    """Runs jobs, perhaps at the same time, and returns their results in order."""

    workers: int

    def run(self, jobs: Sequence[Callable[[], _T]]) -> list[_T]:
        """The results of all jobs; raises what a job raised."""
        ...


class InvalidSignature(ValueError):
    """A signature of the peer's that does not verify. `htlc_index` says which of `htlc_signatures`, None: the first."""

    def __init__(self, reason: str, htlc_index: int | None = None) -> None:
        super().__init__(reason)
        self.htlc_index = htlc_index


class ChannelSecrets:
    """Everything secret about one channel: five base secrets and the seed of the per-commitment secrets, 32 bytes each.

    `from_seed` makes all of them from one 32-byte seed, so that the seed is all that a backup needs. Raises
    InvalidKey for a secret outside the curve's order.
    """

    __slots__ = (
        "_generator",
        "_pairs",
        "delayed_payment_basepoint_secret",
        "funding_secret",
        "htlc_basepoint_secret",
        "keys",
        "payment_basepoint_secret",
        "revocation_basepoint_secret",
    )

    def __init__(
        self,
        *,
        funding_secret: bytes,
        revocation_basepoint_secret: bytes,
        payment_basepoint_secret: bytes,
        delayed_payment_basepoint_secret: bytes,
        htlc_basepoint_secret: bytes,
        per_commitment_seed: bytes,
    ) -> None:
        self.funding_secret = funding_secret
        self.revocation_basepoint_secret = revocation_basepoint_secret
        self.payment_basepoint_secret = payment_basepoint_secret
        self.delayed_payment_basepoint_secret = delayed_payment_basepoint_secret
        self.htlc_basepoint_secret = htlc_basepoint_secret
        self.keys = ChannelKeys(
            pubkey_of(funding_secret),
            pubkey_of(revocation_basepoint_secret),
            pubkey_of(payment_basepoint_secret),
            pubkey_of(delayed_payment_basepoint_secret),
            pubkey_of(htlc_basepoint_secret),
        )
        self._generator = SecretGenerator(per_commitment_seed)
        self._pairs: dict[int, tuple[bytes, bytes]] = {}

    @classmethod
    def from_seed(cls, seed: bytes, funding_index: int = 0) -> ChannelSecrets:
        """All secrets from a channel's seed.

        Each is BIP 340's tagged hash of the 32-byte seed with the tag `channeld/channel/<name>`, where the name is
        `funding`, `revocation`, `payment`, `delayed`, `htlc` or `per_commitment`. A splice changes the funding key
        alone: its tag ends in `/<funding_index>`, counting from 1, while 0 is the channel's first.
        """
        if len(seed) != 32:
            raise ValueError("a channel's seed has 32 bytes")

        def derived(name: str) -> bytes:
            return tagged_hash(f"channeld/channel/{name}".encode(), seed)

        return cls(
            funding_secret=derived(f"funding/{funding_index}" if funding_index else "funding"),
            revocation_basepoint_secret=derived("revocation"),
            payment_basepoint_secret=derived("payment"),
            delayed_payment_basepoint_secret=derived("delayed"),
            htlc_basepoint_secret=derived("htlc"),
            per_commitment_seed=derived("per_commitment"),
        )

    def per_commitment_secret(self, commitment_number: int) -> bytes:
        """The secret that revokes our commitment of this number (from 0), 32 bytes."""
        return self._pair(commitment_number)[0]

    def per_commitment_point(self, commitment_number: int) -> bytes:
        """The point of our commitment of this number (from 0), 33 bytes."""
        return self._pair(commitment_number)[1]

    def _pair(self, commitment_number: int) -> tuple[bytes, bytes]:
        """(secret, point), kept for a while: a point is told two commitments before it is used, a secret one after."""
        pair = self._pairs.get(commitment_number)
        if pair is None:
            secret = self._generator.secret(commitment_number)
            pair = (secret, pubkey_of(secret))
            if len(self._pairs) >= _PAIRS_KEPT:
                del self._pairs[next(iter(self._pairs))]
            self._pairs[commitment_number] = pair
        return pair

    def htlc_secret(self, per_commitment_point: bytes) -> bytes:
        """Our HTLC key's secret in a commitment (of either side) with this point."""
        return derive_privkey(self.htlc_basepoint_secret, self.keys.htlc_basepoint, per_commitment_point)

    def delayed_secret(self, per_commitment_point: bytes) -> bytes:
        """The secret behind our delayed outputs in our commitment with this point."""
        return derive_privkey(
            self.delayed_payment_basepoint_secret, self.keys.delayed_payment_basepoint, per_commitment_point
        )

    def revocation_secret(self, per_commitment_secret: bytes) -> bytes:
        """The secret that punishes the remote commitment that `per_commitment_secret` revoked."""
        return derive_revocation_privkey(
            self.revocation_basepoint_secret, self.keys.revocation_basepoint, per_commitment_secret
        )

    def secret_for(self, spend: Spend, per_commitment_secret: bytes = b"") -> bytes:
        """The secret that signs `spend`. A penalty needs the `per_commitment_secret` that the peer has revealed.

        Raises ValueError if that is missing, or is not the one for the commitment. Empty if no key signs.
        """
        match spend.key:
            case "delayed":
                return self.delayed_secret(spend.per_commitment_point)
            case "htlc":
                return self.htlc_secret(spend.per_commitment_point)
            case "payment":
                return self.payment_basepoint_secret
            case "funding":
                return self.funding_secret
            case "revocation":
                if not per_commitment_secret or pubkey_of(per_commitment_secret) != spend.per_commitment_point:
                    raise ValueError("a penalty takes the per_commitment_secret of the revoked commitment")
                return self.revocation_secret(per_commitment_secret)
            case "none":
                return b""
            case _:
                assert_never(spend.key)

    def sign_commitment(self, built: BuiltCommitment, parallel: Parallel | None = None) -> tuple[bytes, list[bytes]]:
        """(signature, htlc_signatures) for the peer's commitment, as `commitment_signed` carries them: 64 bytes
        each."""
        if built.side != "remote":
            raise ValueError("what we sign for the peer is the peer's commitment")
        signature = sign(self.funding_secret, built.sighash)
        if not built.htlcs:
            return signature, []
        secret = self.htlc_secret(built.keys.per_commitment_point)
        return signature, sign_all(secret, built.htlc_sighashes, parallel)

    def sign_own_commitment(self, built: BuiltCommitment) -> bytes:
        """Our own signature for our own commitment, to broadcast it: 64 bytes."""
        if built.side != "local":
            raise ValueError("this is not our commitment")
        return sign(self.funding_secret, built.sighash)

    def sign_funding_input(self, params: CommitmentParams, tx: Tx, index: int = 0) -> bytes:
        """Our signature for the input of `tx` that spends the funding output (closing, splice): 64 bytes."""
        return sign(self.funding_secret, funding_sighash(tx, index, params.funding_script(), params.funding_sat))


def sign_all(secret: bytes, digests: Sequence[bytes], parallel: Parallel | None = None) -> list[bytes]:
    """64-byte compact signatures of all digests with one secret, in order."""
    if parallel is None or len(digests) < 2 * _MIN_BATCH:
        return [sign(secret, digest) for digest in digests]
    batches = parallel.run([_sign_job(secret, digests[part]) for part in _parts(len(digests), parallel.workers)])
    return [signature for batch in batches for signature in batch]


def first_invalid(
    pubkey: bytes, digests: Sequence[bytes], signatures: Sequence[bytes], parallel: Parallel | None = None
) -> int | None:
    """Index of the first signature (64 bytes compact) by `pubkey` that does not verify or has a high S; None if all do.

    The two sequences must be equally long. Raises InvalidKey for a bad key.
    """
    if parallel is None or len(digests) < 2 * _MIN_BATCH:
        return _first_invalid(pubkey, digests, signatures)
    parts = list(_parts(len(digests), parallel.workers))
    results = parallel.run([_verify_job(pubkey, digests[part], signatures[part]) for part in parts])
    for part, result in zip(parts, results, strict=True):
        if result is not None:
            return int(part.start) + result
    return None


def verify_commitment(
    built: BuiltCommitment, signature: bytes, htlc_signatures: Sequence[bytes], parallel: Parallel | None = None
) -> None:
    """Checks `commitment_signed` for the commitment that it signs: that of the side which receives it.

    Raises InvalidSignature if a signature is wrong, has a high S, or if their number differs from that of the outputs.
    """
    if len(htlc_signatures) != len(built.htlcs):
        raise InvalidSignature(f"{len(htlc_signatures)} HTLC signatures for {len(built.htlcs)} HTLC outputs")
    _, signer = built.params.owner_and_other(built.side)
    if not verify(signer.funding_pubkey, built.sighash, signature):
        raise InvalidSignature(f"the signature of commitment {built.commitment_number} is not valid")
    index = first_invalid(built.keys.other_htlc_pubkey, built.htlc_sighashes, htlc_signatures, parallel)
    if index is not None:
        htlc = built.htlcs[index].htlc
        raise InvalidSignature(f"HTLC signature {index} (HTLC {htlc.id}) is not valid", index)


def complete(params: CommitmentParams, tx: Tx, local_signature: bytes, remote_signature: bytes, index: int = 0) -> Tx:
    """`tx` with the witness of input `index`, which spends the funding output; compact signatures."""
    witness = funding_witness(
        params.local.funding_pubkey, local_signature, params.remote.funding_pubkey, remote_signature
    )
    return tx.with_witness(index, witness)


def _first_invalid(pubkey: bytes, digests: Sequence[bytes], signatures: Sequence[bytes]) -> int | None:
    for index, (digest, signature) in enumerate(zip(digests, signatures, strict=True)):
        if not verify(pubkey, digest, signature):
            return index
    return None


def _parts(count: int, workers: int) -> Iterator[slice]:
    size = max(_MIN_BATCH, -(-count // max(1, workers)))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _sign_job(secret: bytes, digests: Sequence[bytes]) -> Callable[[], list[bytes]]:
    return lambda: [sign(secret, digest) for digest in digests]


def _verify_job(pubkey: bytes, digests: Sequence[bytes], signatures: Sequence[bytes]) -> Callable[[], int | None]:
    return lambda: _first_invalid(pubkey, digests, signatures)
