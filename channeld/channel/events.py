"""What a channel is told: messages, commands, facts of the chain. Input of `machine.step`.

Events are values and are never stored. A command that may not be done raises `CommandRejected` out of `step`
and leaves the state as it was; a peer that breaks a rule raises `ProtocolViolation`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from channeld.bolt.messages import Message
from wallet.bitcoin import Tx


class PeerMessage(Struct, frozen=True):
    """A message from the peer that names this channel. `raw` is its wire form, for `update_add_htlc` only
    (it is stored)."""

    message: Message
    raw: bytes = b""


class Connected(Struct, frozen=True):
    """`init` was exchanged: `features` is what both sides offer (bit numbers of the peer's init that matter)."""

    remote_features: frozenset[int]


class Disconnected(Struct, frozen=True):
    """The connection is gone; whatever was not committed to is forgotten (BOLT 2, "Message Retransmission")."""


class NewBlock(Struct, frozen=True):
    """The chain's tip moved (either way); the height is in `env`."""


class FundingTxReady(Struct, frozen=True):
    """The wallet built the transaction that `NeedFunding` asked for (signed, not broadcast)."""

    tx: Tx
    output_index: int


class FundingFailed(Struct, frozen=True):
    """The wallet could not build it; the opening ends with `reason`, a sentence."""

    reason: str


class FundingDepth(Struct, frozen=True):
    """The funding transaction has `depth` confirmations (0 = reorganised away or only in the mempool)."""

    depth: int
    block_height: int
    tx_index: int
    amount_sat: int | None = None
    """What the funding output really holds. A fundee refuses a channel whose funding output differs from what was
    agreed on; None leaves that unchecked."""
    rival_txid: bytes = b""
    """A transaction in the chain that spends an input of the funding transaction: this one cannot confirm beside it."""
    rival_depth: int = 0


class FundingSpent(Struct, frozen=True):
    """A transaction that spends the funding output is in a block at `block_height`, or in the mempool (None)."""

    tx: Tx
    block_height: int | None
    depth: int


class AddHtlc(Struct, frozen=True):
    """Offer an HTLC. `origin` is the node's own opaque reference (payment part or incoming circuit), stored with the
    HTLC and handed back in its outcome. `tlvs` are extra TLV fields of update_add_htlc, such as `path_key`."""

    amount_msat: int
    payment_hash: bytes
    cltv_expiry: int
    onion_routing_packet: bytes
    origin: bytes
    tlvs: dict[str, Any] = {}


class FulfillHtlc(Struct, frozen=True):
    """Settle a received HTLC with its preimage. Doing it twice is no error."""

    id: int
    payment_preimage: bytes
    tlvs: dict[str, Any] = {}


class FailHtlc(Struct, frozen=True):
    """Fail a received HTLC with an (already encrypted) error onion. Doing it twice is no error."""

    id: int
    reason: bytes
    tlvs: dict[str, Any] = {}


class FailMalformedHtlc(Struct, frozen=True):
    """Fail a received HTLC whose onion could not be read. `failure_code` has BADONION set."""

    id: int
    sha256_of_onion: bytes
    failure_code: int


class UpdateFee(Struct, frozen=True):
    """Propose another fee rate (opener only), sat per 1000 weight units."""

    feerate_per_kw: int


class Sign(Struct, frozen=True):
    """Send `commitment_signed` if there is anything to commit to and no revocation is awaited; else do nothing.
    The driver gives it after every batch of events."""


class CloseChannel(Struct, frozen=True):
    """Close together. `script_pubkey` is where our share goes; `feerate_per_kw` what we would pay, 0 to leave it to the
    peer, who asked for the close."""

    script_pubkey: bytes
    feerate_per_kw: int


class ForceClose(Struct, frozen=True):
    """Publish our latest commitment: at once, unless it may be from an old copy of the database. Then it waits for the
    peer to be compared with, unless `even_if_outdated`, which is for the operator to say."""

    reason: str
    even_if_outdated: bool = False
    tx: bytes = b""
    """The transaction that the peer signed wrongly, if that is why."""


class OutputsResolved(Struct, frozen=True):
    """All outputs of the commitment that ended the channel are spent and buried: nothing is left to do."""


class HtlcOnChain(Struct, frozen=True):
    """What became of an HTLC that we offered, on chain (BOLT 5): its preimage was seen, or None: it came back to us, so
    deep that nothing can change it. Told again and again until the channel is over; only the first time counts."""

    id: int
    payment_preimage: bytes | None = None


class ForgetChannel(Struct, frozen=True):
    """Give up an opening that never got funds. `tx`: as in `ForceClose`."""

    reason: str
    tx: bytes = b""


Event = (
    PeerMessage
    | Connected
    | Disconnected
    | NewBlock
    | FundingTxReady
    | FundingFailed
    | FundingDepth
    | FundingSpent
    | AddHtlc
    | FulfillHtlc
    | FailHtlc
    | FailMalformedHtlc
    | UpdateFee
    | Sign
    | CloseChannel
    | ForceClose
    | OutputsResolved
    | HtlcOnChain
    | ForgetChannel
)

RejectCode = Literal[
    "insufficient_balance",
    "amount_below_minimum",
    "amount_above_maximum",
    "too_many_htlcs",
    "in_flight_limit",
    "dust_exposure",
    "fee_too_high",
    "fee_too_low",
    "expiry",
    "unknown_htlc",
    "not_ready",
    "shutting_down",
    "not_opener",
    "invalid",
]


class CommandRejected(Exception):
    """A local command that the channel cannot carry out now. Nothing changed. `sentence` is for the user."""

    def __init__(self, code: RejectCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class ProtocolViolation(Exception):
    """The peer broke a rule. What to do about it is in `action`:

    - `warning`: send `warning` and close the connection;
    - `error`: send `error`; the channel is failed: our commitment is broadcast if there is one, else it is forgotten;
    - `disconnect`: just close the connection (ignore what came).
    `reason` is a sentence that names the rule's source, `tx` the transaction whose signature was wrong, if that is it.
    """

    def __init__(
        self, reason: str, action: Literal["warning", "error", "disconnect"] = "error", tx: bytes = b""
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.action = action
        self.tx = tx
