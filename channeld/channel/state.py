"""A channel's state: one struct per phase, a tagged union, stored as MessagePack.

    OpenSent -> WaitFundingTx -> FundingCreatedSent -.                              (as opener)
    OpenReceived ------------------------------------+-> AwaitingFunding -> Normal -> ShuttingDown -.   (as fundee)
                                                                                                    |
                      Closed <- Closing <- NegotiatingLegacy or NegotiatingSimple <-----------------'

Any phase from AwaitingFunding on may go to Closing when the channel fails, or to WaitingForRemoteClose when the peer
proves that our state is too old to be broadcast, or when it comes from a backup. An opening that fails is Closed
without a `closing_txid`.
The connection is no phase but the field `link`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from channeld.bolt.features import ChannelType
from channeld.bolt.primitives import tx_index_of
from channeld.bolt.transactions.funding import funding_script_pubkey
from channeld.bolt.transactions.spec import CommitmentParams
from channeld.channel.commitments import Commitments, RemoteCommit, Spec, with_previews
from channeld.channel.effects import Effect
from channeld.channel.writes import Write
from wallet.bitcoin import COINBASE_MATURITY_BLOCKS, OutPoint

# --- the connection -----------------------------------------------------------------------------------------------


class Offline(Struct, frozen=True, tag="offline"):
    """No connection to the peer."""


class Syncing(Struct, frozen=True, tag="syncing"):
    """Connected; `channel_reestablish` was sent and that of the peer is awaited. `remote_features`: bits of its
    init."""

    remote_features: frozenset[int]


class Live(Struct, frozen=True, tag="live"):
    """Connected and in step."""

    remote_features: frozenset[int]


Link = Offline | Syncing | Live

# --- constants of a channel ---------------------------------------------------------------------------------------


class Limits(Struct, frozen=True):
    """What one side said in `open_channel` or `accept_channel`: what it accepts, and what it demands of the other.

    `dust_limit_sat` holds for its own commitment; reserve and delay (blocks) bind the other side. An empty
    `upfront_shutdown_script` means none.
    """

    dust_limit_sat: int
    max_htlc_value_in_flight_msat: int
    channel_reserve_sat: int
    htlc_minimum_msat: int
    to_self_delay_blocks: int
    max_accepted_htlcs: int
    upfront_shutdown_script: bytes = b""


class ChannelParams(Struct, frozen=True, kw_only=True):
    """What never changes after the opening."""

    channel_id: bytes
    remote_node_id: bytes
    commitment: CommitmentParams
    local: Limits
    remote: Limits
    channel_type: bytes
    announce: bool
    minimum_depth_blocks: int
    """How deep the funding must be before we say `channel_ready`: what the fundee asked for."""
    created_height: int

    @property
    def is_opener(self) -> bool:
        """Whether we opened the channel, and pay its fees."""
        return self.commitment.local_is_opener

    @property
    def anchors(self) -> bool:
        """`option_anchors`."""
        return self.commitment.anchors

    @property
    def capacity_sat(self) -> int:
        """What the funding output holds, satoshi."""
        return self.commitment.funding_sat

    @property
    def funding_outpoint(self) -> OutPoint:
        """The output that the commitments spend."""
        return self.commitment.funding_outpoint

    @property
    def funding_script_pubkey(self) -> bytes:
        """Its P2WSH script."""
        return funding_script_pubkey(self.commitment.local.funding_pubkey, self.commitment.remote.funding_pubkey)

    @property
    def type(self) -> ChannelType:
        """`channel_type`, decoded."""
        return ChannelType.from_bytes(self.channel_type)


# --- opening ------------------------------------------------------------------------------------------------------


class OpenParams(Struct, frozen=True, kw_only=True):
    """What is asked for when we open. Amounts in sat or msat, fee rate of the funding transaction in sat per 1000
    weight.

    `temporary_channel_id` (32 bytes) and `local_alias` (a scid that no channel has) are drawn at random by the caller.
    """

    remote_node_id: bytes
    remote_features: frozenset[int]
    chain_hash: bytes
    temporary_channel_id: bytes
    local_alias: int
    amount_sat: int
    push_msat: int = 0
    announce: bool = True
    funding_feerate_per_kw: int = 253
    zero_conf: bool = False
    scid_alias: bool = False
    anchors: bool = True
    """Prefer `option_anchors` where the peer supports it."""
    upfront_shutdown_script: bytes = b""


class OpenSent(Struct, frozen=True, kw_only=True, tag="open_sent"):
    """We sent `open_channel` (its wire form is `proposal`)."""

    wanted: OpenParams
    proposal: bytes


class WaitFundingTx(Struct, frozen=True, kw_only=True, tag="wait_funding_tx"):
    """The peer accepted (`acceptance`, wire form); the wallet builds the funding transaction."""

    wanted: OpenParams
    proposal: bytes
    acceptance: bytes


class FundingCreatedSent(Struct, frozen=True, kw_only=True, tag="funding_created_sent"):
    """We sent `funding_created`; without the peer's signature for our commitment nothing may be broadcast."""

    wanted: OpenParams
    params: ChannelParams
    funding_tx: bytes
    local_spec: Spec
    remote: RemoteCommit


class OpenReceived(Struct, frozen=True, kw_only=True, tag="open_received"):
    """We answered `open_channel` (`proposal`) with `accept_channel` (`acceptance`), both in wire form."""

    remote_node_id: bytes
    remote_features: frozenset[int]
    proposal: bytes
    acceptance: bytes
    local_alias: int
    temporary_channel_id: bytes


# --- funded -------------------------------------------------------------------------------------------------------


class Unconfirmed(Struct, frozen=True):
    """Since the daemon started, the peer has not shown that our state is not from an old copy of the database. Set at
    each start, gone with the peer's `channel_reestablish` (`channeld.channel.unconfirmed`)."""

    since_height: int | None = None
    """The tip when the chain was caught up with; then the peer began to be called."""
    since_seconds: int = 0
    failure: str = ""
    """Why the channel fails as soon as our commitment may be published; kept over further starts."""
    told: str = ""
    """What the operator was told last."""


class Funded(Struct, frozen=True, kw_only=True):
    """What all phases share once there are commitments."""

    params: ChannelParams
    commitments: Commitments
    link: Link = Offline()
    local_alias: int | None = None
    remote_alias: int | None = None
    scid: int | None = None
    """The real short_channel_id, once the funding transaction is in a block."""
    funding_depth: int = 0
    funding_tx: bytes = b""
    """As opener: to be broadcast until it is in a block."""
    ready_sent: bool = False
    """We said `channel_ready`."""
    unconfirmed: Unconfirmed | None = None
    double_spent_by: bytes = b""
    """The txid of a transaction in the chain that spends an input of the funding transaction."""

    @property
    def is_deep(self) -> bool:
        """Whether the funding transaction is as deep as it has to be: a reorganisation may have changed that. One that
        was double-spent is not, also where no depth was asked for."""
        return self.funding_depth >= self.required_depth_blocks and not self.double_spent_by

    @property
    def required_depth_blocks(self) -> int:
        """How deep the funding transaction has to be. What a coinbase pays cannot be spent for 100 blocks, so that no
        commitment could be mined, whatever HTLCs it has: only who is trusted may fund with one and use it before."""
        least = self.params.minimum_depth_blocks
        is_coinbase = self.scid is not None and tx_index_of(self.scid) == 0
        return max(least, COINBASE_MATURITY_BLOCKS) if is_coinbase and least else least

    @property
    def is_unseen(self) -> bool:
        """Whether the peer names a funding output that was never in the chain: there may be none."""
        return not (self.params.is_opener or self.funding_depth > 0 or self.scid is not None)


class AwaitingFunding(Funded, frozen=True, kw_only=True, tag="awaiting_funding"):
    """The funding transaction is not deep enough for both sides: `channel_ready` has not gone both ways."""


class Normal(Funded, frozen=True, kw_only=True, tag="normal"):
    """HTLCs may flow."""


class ShuttingDown(Funded, frozen=True, kw_only=True, tag="shutting_down"):
    """One side wants to close. No new HTLCs; those that are there have to go first. Empty scripts: not known yet."""

    local_script: bytes = b""
    local_sent: bool = False
    """We sent `shutdown`; before, our updates that are under way had to be signed for."""
    first_late_htlc_id: int | None = None
    """HTLCs of the peer's from this id on came after that."""
    remote_script: bytes = b""
    closing_feerate_per_kw: int = 0


class LegacyOffer(Struct, frozen=True):
    """The last `closing_signed` we sent on this connection."""

    fee_sat: int
    min_fee_sat: int
    max_fee_sat: int


class NegotiatingLegacy(Funded, frozen=True, kw_only=True, tag="negotiating_legacy"):
    """`closing_signed` goes back and forth until the fees match; it starts again with each connection."""

    local_script: bytes
    remote_script: bytes
    closing_feerate_per_kw: int
    sent: LegacyOffer | None = None
    received_fee_sat: int | None = None
    closing_txs: tuple[bytes, ...] = ()
    """All that were signed by both and broadcast, the last one last."""
    since_height: int = 0
    """From which block on the peer is waited for; 0 before the first."""


class SentClosingComplete(Struct, frozen=True):
    """A `closing_complete` of ours that the peer has not answered."""

    closer_script: bytes
    closee_script: bytes
    fee_sat: int
    locktime: int
    variants: tuple[Literal["closer_output_only", "closee_output_only", "closer_and_closee_outputs"], ...]


class NegotiatingSimple(Funded, frozen=True, kw_only=True, tag="negotiating_simple"):
    """`option_simple_close`: each side may have its own closing transaction signed, as often as it likes."""

    local_script: bytes
    remote_script: bytes
    closing_feerate_per_kw: int
    sent: SentClosingComplete | None = None
    closing_txs: tuple[bytes, ...] = ()
    """All that were signed by both and broadcast, the last one last."""
    since_height: int = 0
    """From which block on the peer is waited for; 0 before the first."""


class WaitingForRemoteClose(Funded, frozen=True, kw_only=True, tag="waiting_for_remote_close"):
    """The peer proved that we lost state: our commitment is revoked and must never be broadcast (BOLT 2,
    "Message Retransmission"). The peer was asked to close."""

    reason: str
    is_from_backup: bool = False
    """Our state is that of a `channels.backup`, as it was at the opening; the peer has not proved that it is outdated.
    Whatever the peer says instead, only the operator may have our commitment published."""


CloseKind = Literal["mutual", "local", "remote_current", "remote_next", "revoked", "unknown"]
Standing = Literal["latest", "doubtful", "outdated"]
"""Of our own commitment: surely not revoked; perhaps, by another copy of this node; surely (BOLT 2, "MUST NOT broadcast
its commitment transaction")."""


class Closing(Funded, frozen=True, kw_only=True, tag="closing"):
    """The channel ends on chain by `closing_tx` (wire form): ours, or what was seen to spend the funding output.

    `local_tx` is our own commitment with its witness if we published it, `error` what the peer is told when it comes
    back.
    """

    kind: CloseKind
    closing_tx: bytes
    reason: str
    local_tx: bytes = b""
    error: str = ""
    confirmed_height: int | None = None
    remote_commit_index: int | None = None
    """The number of the peer's commitment that was seen, for the secret that revokes it."""
    shutdown_scripts: tuple[bytes, ...] = ()
    """Where both sides wanted their shares when the channel failed while it was being closed together: such a closing
    transaction may still confirm."""
    buried: bool = False
    """Closed together, and so deep that it counts as closed for people. It can still be undone: nothing is forgotten
    before it is irrevocable."""
    standing: Standing = "doubtful"
    """Of our commitment, which may have to be published if what closed the channel leaves the chain for good."""


class Closed(Struct, frozen=True, kw_only=True, tag="closed"):
    """It is over. `closing_txid` is None if there never were funds."""

    id: bytes
    remote_node_id: bytes
    reason: str
    closing_txid: bytes | None = None
    kind: CloseKind | None = None
    capacity_sat: int = 0
    to_local_msat: int = 0
    to_remote_msat: int = 0
    is_opener: bool = False
    funding_outpoint: OutPoint | None = None


Opening = OpenSent | WaitFundingTx | FundingCreatedSent | OpenReceived
Negotiating = NegotiatingLegacy | NegotiatingSimple
Open = AwaitingFunding | Normal | ShuttingDown | NegotiatingLegacy | NegotiatingSimple
"""Phases in which the peer is talked to."""
AnyFunded = Open | WaitingForRemoteClose | Closing
State = Opening | AnyFunded | Closed

OperatingState = TypeVar("OperatingState", Normal, ShuttingDown)

PHASES: dict[type, str] = {
    OpenSent: "opening",
    WaitFundingTx: "opening",
    FundingCreatedSent: "opening",
    OpenReceived: "opening",
    AwaitingFunding: "awaiting_funding",
    Normal: "normal",
    ShuttingDown: "shutting_down",
    NegotiatingLegacy: "negotiating",
    NegotiatingSimple: "negotiating",
    WaitingForRemoteClose: "waiting_for_remote_close",
    Closing: "closing",
    Closed: "closed",
}


def phase_name(state: State) -> str:
    """The phase for people: opening, awaiting_funding, normal, shutting_down, negotiating, waiting_for_remote_close,
    closing, closed (also while that could be undone); forgotten if it is closed and never had funds."""
    if isinstance(state, Closed) and state.closing_txid is None:
        return "forgotten"
    if isinstance(state, Closing) and state.buried:
        return PHASES[Closed]
    return PHASES[type(state)]


def shared(state: Funded) -> dict[str, Any]:
    """The fields that all funded phases have, to make the next phase's struct."""
    return {name: getattr(state, name) for name in _SHARED}


_SHARED = Funded.__struct_fields__


def with_fresh_previews(state: State) -> State:
    """What decoding leaves out: the previews of both commitments."""
    if not isinstance(state, Funded):
        return state
    return replace(state, commitments=with_previews(state.commitments, state.params.commitment))


class Transition(Struct, frozen=True):
    """What a step leads to: the new state, and what has to be done once it is stored together with `writes`.

    `reason` is a sentence for the log when the phase changed.
    """

    state: State
    effects: tuple[Effect, ...] = ()
    writes: tuple[Write, ...] = ()
    reason: str = ""
