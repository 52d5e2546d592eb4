"""What the wallet shows to its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wallet.bitcoin import OutPoint, Tx
from wallet.chain import BroadcastResult
from wallet.keys import AddressKind


@dataclass(frozen=True, slots=True)
class Balance:
    """Disjoint sums in satoshi: together they are everything the wallet owns on chain.

    `confirmed_sat` can be spent, `unconfirmed_sat` is in no block yet (own change of it can be spent),
    `immature_sat` was mined less than 100 blocks ago, `reserved_sat` is set aside for transactions being made.
    """

    confirmed_sat: int
    unconfirmed_sat: int
    immature_sat: int
    reserved_sat: int

    @property
    def total_sat(self) -> int:
        """All of it."""
        return self.confirmed_sat + self.unconfirmed_sat + self.immature_sat + self.reserved_sat


@dataclass(frozen=True, slots=True)
class CoinInfo:
    """A coin for its owner to look at."""

    outpoint: OutPoint
    value_sat: int
    address: str
    kind: AddressKind
    confirmations: int
    mature: bool
    reserved: bool


@dataclass(frozen=True, slots=True)
class TxInfo:
    """A transaction for its owner to look at. `amount_sat` is what it adds to the wallet, fee included, so negative
    for what was sent. `fee_sat` is None where the inputs are somebody else's. `replaced_by`: it will not be mined."""

    txid: bytes
    tx: Tx
    amount_sat: int
    fee_sat: int | None
    height: int | None
    confirmations: int
    time_seconds: int
    own: bool
    replaced_by: bytes | None
    label: str


@dataclass(frozen=True, slots=True)
class SentTx:
    """What was sent, or sent again for a higher fee. `broadcast` is None if layer 1 is away: it is sent when it is
    back (`Wallet.rebroadcast`). `method`: `send`, `rbf` (took the other's place), `cpfp` (a child that pays for it),
    or `none` (it pays as much already)."""

    txid: bytes
    tx: Tx
    fee_sat: int
    broadcast: BroadcastResult | None
    method: Literal["send", "rbf", "cpfp", "none"] = "send"
