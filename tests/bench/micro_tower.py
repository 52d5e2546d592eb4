"""What the watchtower's parts cost: `cases()` names functions for the benchmark runner to time."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np

from tests.tower_support import revoked
from wallet.bitcoin import OutPoint
from wallet.bitcoin.encoding import sha256
from wallet.bitcoin.secp import pubkey_of
from watchtower.appointment import Appointment, Mode, Terms, make_appointment
from watchtower.blob import unseal
from watchtower.messages import Receipt, batch_digest
from watchtower.tower.index import LocatorIndex, prefixes_of_txids

FUNDING = OutPoint(b"\x09" * 32, 1)
MODES: tuple[Mode, ...] = ("blind", "own")


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Names and functions; each call of a function does what its name says once."""
    found: list[tuple[str, Callable[[], object]]] = []
    for count in (0, 2, 10):
        kit = revoked("bench", FUNDING, 100_000_000, htlcs_sat=(60_000,) * count).kit
        for mode in MODES:
            terms = Terms(mode)
            size = len(make_appointment(kit, terms).blob)
            name = f"tower: {mode} appointment, {count} HTLCs, {size} bytes"
            found.append((name, partial(make_appointment, kit, terms)))
            found.append((f"{name}: opening it", partial(unseal, kit.txid, make_appointment(kit, terms).blob)))
    tower_id = pubkey_of(b"\x01" * 32)
    batch = [Appointment(os.urandom(16), os.urandom(800)) for _ in range(64)]
    found.append(("tower: hash of a batch of 64", lambda: batch_digest(tower_id, tower_id, batch)))
    receipt = Receipt(tower_id, tower_id, batch[0].locator, sha256(batch[0].blob), 100)
    found.append(("tower: a receipt signed", lambda: receipt.signed(b"\x01" * 32)))
    index = LocatorIndex(np.sort(np.frombuffer(os.urandom(8_000_000), np.uint64)))
    block = prefixes_of_txids([os.urandom(32) for _ in range(4_000)])
    found.append(("tower: 4,000 txids matched with 1,000,000 locators", lambda: index.matches(block)))
    return found
