"""Per-commitment secrets: made from a seed, and kept compactly by who receives them (BOLT 3,
"Per-commitment Secret Requirements" and "Efficient Per-commitment Secret Storage").

BOLT 3 counts secrets down from index 2^48 - 1. Everything public here counts commitments up from 0 instead,
as the rest of the project does; `secret_index` converts.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

INDEX_BITS = 48
MAX_INDEX = (1 << INDEX_BITS) - 1
MAX_COMMITMENT_NUMBER = MAX_INDEX - 1
"""The last commitment's number: 2^48 - 1 secrets can be made, because that at index 0 would be the seed itself."""


class InconsistentSecret(ValueError):
    """A per-commitment secret that was not made from the same seed as those before it."""


def secret_index(commitment_number: int) -> int:
    """BOLT 3's index of the secret for a commitment number (the first commitment, 0, has index 2^48 - 1).

    Raises ValueError outside 0..2^48 - 2.
    """
    if not 0 <= commitment_number <= MAX_COMMITMENT_NUMBER:
        raise ValueError(f"there is no commitment number {commitment_number}")
    return MAX_INDEX - commitment_number


def derive_secret(base: bytes, bits: int, index: int) -> bytes:
    """The secret at `index` from that (`base`) at the index which differs from it only in the lowest `bits` bits,
    where it has zeros."""
    node = bytearray(base)
    for bit in range(bits - 1, -1, -1):
        if index >> bit & 1:
            node[bit >> 3] ^= 1 << (bit & 7)
            node[:] = sha256(node).digest()
    return bytes(node)


def generate_from_seed(seed: bytes, index: int) -> bytes:
    """The secret at BOLT 3's `index`, from a 32-byte seed: one SHA-256 per bit set in `index`."""
    return derive_secret(seed, INDEX_BITS, index)


class SecretGenerator:
    """Our own secrets, made from a seed. Keeps the inner node of the last 2^16 and 2^8, so that neighbours are
    cheap."""

    __slots__ = ("_nodes", "_seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError("a seed has 32 bytes")
        self._seed = seed
        self._nodes: dict[int, tuple[int, bytes]] = {}

    def secret(self, commitment_number: int) -> bytes:
        """The 32-byte secret for a commitment number. Raises ValueError outside 0..2^48 - 2."""
        index = secret_index(commitment_number)
        return derive_secret(self._node(8, index), 8, index)

    def _node(self, bits: int, index: int) -> bytes:
        prefix = index >> bits
        cached = self._nodes.get(bits)
        if cached is not None and cached[0] == prefix:
            return cached[1]
        base, above = (self._node(16, index), 16) if bits < 16 else (self._seed, INDEX_BITS)
        node = derive_secret(base, above, prefix << bits)
        self._nodes[bits] = (prefix, node)
        return node


class SecretStore(msgspec.Struct, frozen=True, array_like=True):
    """The other side's revealed secrets, all of them, in at most 48 entries. An immutable value: `insert` returns a
    new one.

    Secrets come in order, so the count alone says which index every entry has: entry `b` is the last one received whose
    index ends in exactly `b` zero bits.
    """

    count: int = 0
    """How many secrets were received: those of commitments 0 to `count - 1`."""
    entries: tuple[bytes, ...] = ()

    def insert(self, commitment_number: int, secret: bytes) -> SecretStore:
        """With the secret of the next commitment, which must be number `count`.

        Raises InconsistentSecret if it does not fit those before it, ValueError for a number out of order or a secret
        that has not 32 bytes.
        """
        if commitment_number != self.count:
            raise ValueError(f"the next secret is that of commitment {self.count}, not {commitment_number}")
        if len(secret) != 32:
            raise ValueError("a per-commitment secret has 32 bytes")
        index = secret_index(commitment_number)
        bucket = _trailing_zeros(index)
        for b in range(bucket):
            # Received in descending order, entry b now is the one at index + 2^b.
            if derive_secret(secret, bucket, index + (1 << b)) != self.entries[b]:
                raise InconsistentSecret(f"the secret of commitment {commitment_number} does not fit those before it")
        return SecretStore(self.count + 1, (*self.entries[:bucket], secret, *self.entries[bucket + 1 :]))

    def secret(self, commitment_number: int) -> bytes:
        """The secret of a revoked commitment. Raises KeyError if it was not received."""
        if not 0 <= commitment_number < self.count:
            raise KeyError(f"the secret of commitment {commitment_number} was not received")
        index = secret_index(commitment_number)
        last = secret_index(self.count - 1)
        for bucket, entry in enumerate(self.entries):
            if index >> bucket << bucket == _entry_index(bucket, last):
                return derive_secret(entry, bucket, index)
        raise AssertionError("every received secret can be derived from an entry")


def _trailing_zeros(index: int) -> int:
    return (index & -index).bit_length() - 1


def _entry_index(bucket: int, last: int) -> int:
    """The lowest index >= `last` that ends in exactly `bucket` zero bits."""
    multiple = -(-last >> bucket)
    return (multiple | 1) << bucket
