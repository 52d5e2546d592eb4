"""What client and tower sign: BIP 340 tagged hashes over fields of fixed length, or behind their length.

Every message names the tower, so that it cannot be shown to another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from wallet.bitcoin.encoding import sha256, tagged_hash
from wallet.bitcoin.secp import InvalidKey, sign, verify, verify_once
from watchtower.appointment import Appointment, Mode

CLOCK_TOLERANCE_SECONDS = 600
_MODES: dict[Mode, int] = {"blind": 1, "own": 2}

Request = Literal["get_session", "get_appointment", "delete_session"]


class SessionTerms(Struct, frozen=True):
    """What the tower has signed for a session. `session_id` is the session's public key; the session ends when a block
    of `expires_height` is searched."""

    tower_id: bytes
    session_id: bytes
    mode: Mode
    max_appointments: int
    max_bytes: int
    max_blob_bytes: int
    reward_permille: int
    reward_script: bytes
    expires_height: int
    signature: bytes = b""

    def digest(self) -> bytes:
        """What the tower signs."""
        numbers = (self.max_appointments, self.max_bytes, self.max_blob_bytes, self.reward_permille)
        return tagged_hash(
            b"watchtower/terms",
            self.tower_id
            + self.session_id
            + bytes((_MODES[self.mode],))
            + b"".join(number.to_bytes(8, "big") for number in (*numbers, self.expires_height))
            + self.reward_script,
        )

    def is_signed(self) -> bool:
        """Whether the tower's signature is right."""
        return is_signed(self.tower_id, self.digest(), self.signature)


class Receipt(Struct, frozen=True):
    """The tower's word that it has the appointment and searches blocks above `accepted_height` for its breach."""

    tower_id: bytes
    session_id: bytes
    locator: bytes
    blob_hash: bytes
    accepted_height: int
    signature: bytes = b""

    def digest(self) -> bytes:
        """What the tower signs."""
        return tagged_hash(
            b"watchtower/receipt",
            self.tower_id + self.session_id + self.locator + self.blob_hash + self.accepted_height.to_bytes(8, "big"),
        )

    def is_signed(self) -> bool:
        """Whether the tower's signature is right."""
        return is_signed(self.tower_id, self.digest(), self.signature)

    def signed(self, secret: bytes) -> Receipt:
        """By the tower."""
        return Receipt(
            self.tower_id,
            self.session_id,
            self.locator,
            self.blob_hash,
            self.accepted_height,
            sign(secret, self.digest()),
        )


def info_digest(tower_id: bytes, nonce: bytes, certificate_hash: bytes) -> bytes:
    """What a tower signs to show who it is: 32 bytes of the client's, and SHA-256 of the connection's certificate."""
    return tagged_hash(b"watchtower/info", tower_id + nonce + certificate_hash)


def create_digest(
    tower_id: bytes, session_id: bytes, mode: Mode, wanted: tuple[int, int], max_reward_permille: int, time: float
) -> bytes:
    """What a session's key signs to be created; `wanted` are appointments and bytes."""
    numbers = (*wanted, max_reward_permille, int(time * 1000))
    return tagged_hash(
        b"watchtower/create",
        tower_id + session_id + bytes((_MODES[mode],)) + b"".join(number.to_bytes(8, "big") for number in numbers),
    )


def batch_digest(tower_id: bytes, session_id: bytes, appointments: Iterable[Appointment]) -> bytes:
    """What a session's key signs for appointments, in order."""
    parts = [tower_id, session_id]
    for locator, blob in appointments:
        parts += (locator, sha256(blob))
    return tagged_hash(b"watchtower/appointments", b"".join(parts))


def request_digest(tower_id: bytes, session_id: bytes, request: Request, time: float, locator: bytes = b"") -> bytes:
    """What a session's key signs for the small requests. `time` is in seconds since 1970, taken to the millisecond."""
    moment = int(time * 1000).to_bytes(8, "big")
    return tagged_hash(b"watchtower/" + request.encode(), tower_id + session_id + moment + locator)


def is_signed(pubkey: bytes, digest: bytes, signature: bytes, once: bool = False) -> bool:
    """Whether `signature` is `pubkey`'s; False too if one of them is none. `once`: for keys that do not come again."""
    try:
        return (verify_once if once else verify)(pubkey, digest, signature)
    except InvalidKey:
        return False
