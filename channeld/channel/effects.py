"""What a transition asks of the world, after the state is durable. Output of `machine.step`.

The order matters and is kept. Effects are not stored: what must survive a crash follows from the state (see
`machine.resume`), or is written by the node's handlers in the same transaction (`HtlcSettled` and the like).
"""

from __future__ import annotations

from msgspec import Struct

from channeld.bolt.messages import Message
from channeld.bolt.transactions import Htlc
from wallet.bitcoin import OutPoint, Tx


class Send(Struct, frozen=True):
    """Send a message to the peer, if connected; else drop it (reestablish repeats what is owed)."""

    message: Message


class SendRaw(Struct, frozen=True):
    """Send stored wire bytes again (an `update_add_htlc` on reestablish)."""

    data: bytes


class Disconnect(Struct, frozen=True):
    """Close the connection to the peer, after what was sent; `reason` goes to the log."""

    reason: str


class NeedFunding(Struct, frozen=True):
    """Build (not broadcast) a transaction that pays `amount_sat` to `script_pubkey`;
    answer with FundingTxReady or FundingFailed."""

    amount_sat: int
    script_pubkey: bytes
    feerate_per_kw: int


class ReleaseFunding(Struct, frozen=True):
    """The funding transaction will not be used: free its coins."""

    txid: bytes


class Broadcast(Struct, frozen=True):
    """Publish, and publish again until it is buried. `label` says what it is ("funding", "mutual close", ...)."""

    tx: Tx
    label: str


class WatchFunding(Struct, frozen=True):
    """Report confirmations (FundingDepth) and spends (FundingSpent) of the funding output, from now on
    and after restarts. `inputs` are those of the funding transaction, if it is known."""

    outpoint: OutPoint
    script_pubkey: bytes
    inputs: tuple[OutPoint, ...] = ()


class ChannelIdChanged(Struct, frozen=True):
    """The temporary channel id became the real one."""

    old: bytes
    new: bytes


class ChannelUsable(Struct, frozen=True):
    """`channel_ready` went both ways: HTLCs may flow (also repeated after each reestablish)."""


class PhaseChanged(Struct, frozen=True):
    """For the event stream and logs: the channel's phase went from one name to another, because of `reason`."""

    old: str
    new: str
    reason: str = ""


class HtlcLockedIn(Struct, frozen=True):
    """An incoming HTLC is irrevocably committed on both sides: settle, fail or forward it (BOLT 2, "Forwarding HTLCs").
    Its stored `update_add_htlc` has the onion. Handed out again after a restart until it is answered."""

    htlc: Htlc
    over_dust_exposure: bool = False
    """It is one dust HTLC too many: fail it, and do not reveal its preimage (BOLT 2, "Bounding exposure to trimmed
    in-flight HTLCs")."""
    unfunded: bool = False
    """The same, because the peer could still take the channel's money back: its funding transaction left the chain."""
    too_late: bool = False
    """The same, because it was added after we said `shutdown`, and the close would never come (BOLT 2, "SHOULD fail to
    route any HTLC added after it has sent `shutdown`")."""
    too_cheap: bool = False
    """The same, because the commitment pays too little to be mined before the HTLC expires, and nothing can lift it."""

    @property
    def must_fail(self) -> bool:
        """Whatever it is for."""
        return self.over_dust_exposure or self.unfunded or self.too_late or self.too_cheap


class HtlcSettled(Struct, frozen=True):
    """The peer gave the preimage of an HTLC that we offered: act on it at once (it comes before the removal
    is committed)."""

    id: int
    origin: bytes
    payment_hash: bytes
    amount_msat: int
    payment_preimage: bytes
    attribution_data: bytes | None = None


class HtlcFailed(Struct, frozen=True):
    """An HTLC that we offered was removed for good by a failure: only now may its incoming side be failed.
    Exactly one of `reason` (error onion) and `failure_code` (malformed: with `sha256_of_onion`) is set, or neither
    if the HTLC was never committed (then it may be tried again elsewhere) or ended on chain."""

    id: int
    origin: bytes
    payment_hash: bytes
    amount_msat: int
    reason: bytes | None = None
    failure_code: int | None = None
    sha256_of_onion: bytes | None = None
    never_sent: bool = False
    attribution_data: bytes | None = None
    on_chain: bool = False
    """It came back to us on chain: there is no reason of anybody's (`permanent_channel_failure`)."""


class HtlcRemoved(Struct, frozen=True):
    """An incoming HTLC that we fulfilled or failed is gone from both commitments for good."""

    id: int
    fulfilled: bool


class NeedShutdownScript(Struct, frozen=True):
    """The peer closes the channel and we have no script yet: answer with CloseChannel. `any_segwit`: newer witness
    versions (P2TR) are allowed, not only P2WPKH and P2WSH."""

    any_segwit: bool


class CloseCompleted(Struct, frozen=True):
    """The channel is over; `closing_txid` is what closed it (None if it never had funds). Balances in sat."""

    closing_txid: bytes | None
    reason: str


class StateUnconfirmed(Struct, frozen=True):
    """Our commitment would be published because of `reason` (a sentence), but it may be from an old copy of the
    database: the peer is waited for first."""

    reason: str


class FundingLost(Struct, frozen=True):
    """The funding transaction is no longer as deep as it has to be, or was double-spent: the channel cannot be used.
    `reason` is a sentence."""

    reason: str


class RemoteUnilateralClose(Struct, frozen=True):
    """The peer's commitment (or an unknown transaction) spent the funding output.
    `kind`: current, next, revoked, unknown."""

    tx: Tx
    kind: str


Effect = (
    Send
    | SendRaw
    | Disconnect
    | NeedFunding
    | ReleaseFunding
    | Broadcast
    | WatchFunding
    | ChannelIdChanged
    | ChannelUsable
    | PhaseChanged
    | HtlcLockedIn
    | HtlcSettled
    | HtlcFailed
    | HtlcRemoved
    | NeedShutdownScript
    | CloseCompleted
    | RemoteUnilateralClose
    | FundingLost
    | StateUnconfirmed
)
