"""The floor: what this machine's cryptography and disk cost, measured in the same run as everything else.

A payment over one channel needs at the very least, over both nodes together: an onion built and peeled (two ECDH), the
HTLC signed and verified on both commitments, and the two commitments of each of its two rounds signed and verified.
Under load one commitment carries many HTLCs, so its own signature is shared; the floor of a batched payment
leaves it out.
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.bench.timing import Timing, measure
from wallet.bitcoin import secp


class Floor(NamedTuple):
    """Measured primitives, and what follows for a payment (seconds over both nodes)."""

    timings: list[Timing]
    payment_alone_seconds: float
    payment_batched_seconds: float


def measure_floor() -> Floor:
    """Measures the primitives of this machine."""
    secret, digest = hashlib.sha256(b"floor").digest(), hashlib.sha256(b"message").digest()
    pubkey = secp.pubkey_of(secret)
    signature = secp.sign(secret, digest)
    cipher, nonce, text = ChaCha20Poly1305(secret), bytes(12), bytes(1452)
    timings = [
        measure("ECDSA sign", lambda: secp.sign(secret, digest)),
        measure("ECDSA verify", lambda: secp.verify(pubkey, digest, signature)),
        measure("ECDH", lambda: secp.ecdh(secret, pubkey)),
        measure("ChaCha20-Poly1305, 1.4 kB", lambda: cipher.encrypt(nonce, text, b"")),
        _commit_timing(),
    ]
    sign, verify, ecdh = (timing.best_seconds for timing in timings[:3])
    batched = 2 * (sign + verify) + 2 * ecdh
    return Floor(timings, batched + 4 * (sign + verify), batched)


def _commit_timing() -> Timing:
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "floor.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
        blob = bytes(2000)

        def commit() -> None:
            connection.execute("BEGIN")
            connection.execute("INSERT OR REPLACE INTO t VALUES (1, ?)", (blob,))
            connection.execute("COMMIT")

        timing = measure("SQLite commit, WAL, synchronous=FULL", commit)
        connection.close()
        return timing
