"""What the client half is given by its daemon, and what it tells."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from msgspec import Struct
from sqlalchemy import Connection

from wallet.bitcoin.secp import is_valid_secret
from wallet.db import Write
from wallet.db.statements import Statement
from watchtower.appointment import JusticeKit, Mode, Terms
from watchtower.client.connection import TowerUri
from watchtower.messages import SessionTerms

T = TypeVar("T")
TowerState = Literal["active", "paused"]
NewsKind = Literal["tower.trouble", "tower.works"]
KitMaker = Callable[[], Sequence[JusticeKit | None]]
"""Makes kits, in any thread: what takes time."""


class Storage(Protocol):
    """The daemon's database; `wallet.db.Store` is one."""

    async def commit(self, writes: Sequence[Write]) -> None: ...
    async def read(self, query: Callable[[Connection], T]) -> T: ...
    def lookup(self, statement: Statement, *parameters: Any) -> list[tuple[Any, ...]]: ...


class Backups(Protocol):
    """The revoked commitments that towers need, by channel (32 bytes that name a channel for good)."""

    def counts(self) -> Mapping[bytes, int]:
        """For each channel how many of its remote commitments are revoked: they have the numbers below."""
        ...

    async def kits(self, channel: bytes, first: int, count: int) -> KitMaker | None:
        """Reads what the kits of the commitments `first` to `first + count - 1` are made from; None if the channel is
        gone. A kit is None where nothing is worth taking. The same kits each time."""
        ...


class KnownTower(Struct, frozen=True):
    """A tower that the client uses."""

    key: int
    uri: TowerUri
    mode: Mode
    max_reward_permille: int
    token: str
    state: TowerState
    added_seconds: int


class KnownSession(Struct, frozen=True):
    """A session with a tower, for one channel: what its blobs were made from."""

    number: int
    terms: SessionTerms
    ladder_per_kw: tuple[int, ...]
    gone: bool = False
    """The tower has forgotten it: it is kept for its receipts, which prove what the tower promised."""

    @property
    def blob_terms(self) -> Terms:
        """For `make_appointment`."""
        terms = self.terms
        return Terms(terms.mode, terms.reward_permille, terms.reward_script, self.ladder_per_kw)


class ChannelBackup(Struct, frozen=True):
    """How far a tower is with a channel. `behind_seconds` is how long it has been behind, 0 if it is not;
    `acknowledged_seconds` when it took the last appointment (since 1970, 0: never)."""

    channel: bytes
    newest: int
    backed_up: int
    behind_seconds: float
    acknowledged_seconds: float

    @property
    def backlog(self) -> int:
        """Commitments that the tower does not have."""
        return self.newest - self.backed_up


class TowerStatus(Struct, frozen=True):
    """A tower at a glance. `problem` is a sentence, empty while all is well."""

    tower: KnownTower
    reachable: bool
    problem: str
    problem_since_seconds: float
    channels: tuple[ChannelBackup, ...]
    sent: int
    sessions: int

    @property
    def backlog(self) -> int:
        """Of all channels."""
        return sum(channel.backlog for channel in self.channels)


class Check(Struct, frozen=True):
    """The answer to "is my tower up to date?": yes if `reasons` is empty."""

    tower: KnownTower
    reasons: tuple[str, ...]

    @property
    def up_to_date(self) -> bool:
        """Yes or no."""
        return not self.reasons


def session_secret(master: bytes, tower_id: bytes, channel: bytes, number: int) -> bytes:
    """The key of a session: nothing in it tells that two sessions are of one client."""
    for attempt in range(256):
        message = tower_id + channel + number.to_bytes(4, "big") + bytes((attempt,))
        secret = hmac.digest(master, b"watchtower session" + message, "sha256")
        if is_valid_secret(secret):
            return secret
    raise AssertionError("no hash is a valid key")
