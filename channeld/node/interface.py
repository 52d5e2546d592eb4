"""What the node offers to its API: views (values) and verbs. The gRPC services are written against this.

Verbs raise `NodeError`: its `kind` becomes a gRPC status, its text is a sentence that says what to do next.
Ids are bytes in internal order. `idempotency_key` on money-moving verbs: the same key (with the same arguments) again
moves nothing and returns the first answer; with other arguments it is an error. Keys are stored durably.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from channeld.node.graph_views import GraphService

from channeld.node.payment_views import AttemptView, PaymentOrder, PaymentUpdate
from channeld.node.payment_views import PaymentView as PaymentView

ErrorKind = Literal[
    "invalid_argument",  # the request itself is wrong
    "not_found",  # no such peer, channel, invoice, payment
    "already_exists",  # paid before, already connected with other data ...
    "failed_precondition",  # not now: wrong state
    "resource_exhausted",  # not enough money, too many
    "unavailable",  # layer 1 or the peer is away: try again
    "deadline_exceeded",
    "aborted",  # an idempotency key used with other arguments
    "internal",
]


class NodeError(Exception):
    """A verb that could not be done. Nothing was lost."""

    def __init__(self, kind: ErrorKind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence


class NodeInfo(Struct, frozen=True):
    node_id: bytes
    alias: str
    color: str
    version: str
    network: str
    block_height: int
    block_hash: bytes
    synced_to_chain: bool
    chain_status: str
    """A sentence: "following bitcoind", "layer 1 is away since ... (reason)"."""
    listen: tuple[str, ...]
    num_peers: int
    num_active_channels: int
    num_pending_channels: int
    num_inactive_channels: int
    features: tuple[str, ...]
    uptime_seconds: int


class PeerView(Struct, frozen=True):
    node_id: bytes
    address: str
    connected: bool
    inbound: bool
    features: tuple[str, ...]
    num_channels: int
    ping_seconds: float | None
    last_error: str


class BalanceView(Struct, frozen=True):
    confirmed_sat: int
    unconfirmed_sat: int
    immature_sat: int
    reserved_sat: int
    channels_local_msat: int
    channels_remote_msat: int
    pending_htlcs_msat: int
    closing_sat: int
    """In channels that are closing and whose outputs are not ours on chain yet."""


class CoinView(Struct, frozen=True):
    txid: bytes
    vout: int
    amount_sat: int
    address: str
    confirmations: int
    reserved: bool


class HtlcView(Struct, frozen=True):
    id: int
    incoming: bool
    amount_msat: int
    payment_hash: bytes
    cltv_expiry: int


class ChannelView(Struct, frozen=True):
    channel_id: bytes
    peer_id: bytes
    phase: str
    """opening, awaiting_funding, normal, shutting_down, negotiating, closing, closed, forgotten ..."""
    active: bool
    """Usable now: normal and the peer connected and reestablished."""
    connected: bool
    opener: Literal["local", "remote"]
    announced: bool
    channel_type: tuple[str, ...]
    funding_txid: bytes | None
    funding_vout: int
    scid: int | None
    alias_scid_local: int | None
    alias_scid_remote: int | None
    capacity_sat: int
    local_msat: int
    remote_msat: int
    available_to_send_msat: int
    available_to_receive_msat: int
    local_reserve_sat: int
    remote_reserve_sat: int
    feerate_per_kw: int
    commitment_fee_sat: int
    local_commitment_number: int
    remote_commitment_number: int
    htlcs: tuple[HtlcView, ...]
    closing_txid: bytes | None
    status: str
    """A sentence for the operator, e.g. "waiting for 2 more confirmations of the funding transaction"."""


class OutputView(Struct, frozen=True):
    """One output of what ended a channel, or an HTLC without one. Heights are None where there is nothing to say."""

    kind: str
    """to_local, to_remote (the commitment owner's view), anchor, htlc, htlc_tx (of an HTLC transaction), trimmed_htlc
    (no output), closing (of a mutual close), unknown."""
    owner: Literal["local", "remote"]
    """Whose it is by right."""
    amount_sat: int
    status: str
    """waiting, needs_preimage, pending (our transaction is on its way), uneconomic, taken (by us), lost, theirs, ours
    (in the wallet as it is), none (no output)."""
    status_text: str
    """A sentence."""
    txid: bytes | None
    vout: int
    taken_by: Literal["local", "remote", "anyone", ""]
    spending_txid: bytes | None
    spent_height: int | None
    fee_sat: int | None
    """Its part of the fee of our transaction that took it."""
    free_height: int | None
    """From this block on we may take it."""
    deadline_height: int | None
    """From this block on the other side may."""
    htlc: HtlcView | None


class ClosedChannelView(Struct, frozen=True):
    """How a channel ended, or is ending, and what became of every satoshi in it."""

    channel: ChannelView
    kind: str
    """mutual, local, remote_current, remote_next, revoked, unknown."""
    closing_txid: bytes
    height: int
    commitment_number: int | None
    commitment_fee_sat: int
    irrevocable_height: int
    """At this height the closing transaction is 100 blocks deep."""
    over: bool
    outputs: tuple[OutputView, ...]


class InvoiceView(Struct, frozen=True):
    """`state` accepted: a hold invoice whose payment waits for `settle_invoice` or `cancel_invoice`; at
    `deadline_height` less a margin it goes back by itself. `kind`: bolt11, keysend (nobody asked for it: no `bolt11`),
    blinded. `custom_records`: what the payer sent along, (type, value)."""

    payment_hash: bytes
    bolt11: str
    state: Literal["open", "accepted", "settled", "canceled", "expired"]
    amount_msat: int | None
    received_msat: int
    description: str
    created_seconds: int
    expiry_seconds: int
    settled_seconds: int | None
    payment_preimage: bytes | None
    is_hold: bool = False
    kind: Literal["bolt11", "keysend", "blinded"] = "bolt11"
    custom_records: tuple[tuple[int, bytes], ...] = ()
    deadline_height: int | None = None


class ForwardView(Struct, frozen=True):
    """An HTLC that was forwarded and paid. `fee_msat` is what was earned."""

    incoming_channel_id: bytes
    outgoing_channel_id: bytes
    payment_hash: bytes
    incoming_msat: int
    outgoing_msat: int
    fee_msat: int
    received_seconds: float
    settled_seconds: float


class PolicyView(Struct, frozen=True):
    """What is asked for forwarding over a channel. The delta is in blocks."""

    channel_id: bytes
    fee_base_msat: int
    fee_proportional_millionths: int
    cltv_expiry_delta: int
    htlc_minimum_msat: int
    htlc_maximum_msat: int


class DecodedInvoice(Struct, frozen=True):
    network: str
    amount_msat: int | None
    payment_hash: bytes
    payee: bytes
    description: str
    description_hash: bytes | None
    created_seconds: int
    expiry_seconds: int
    expired: bool
    min_final_cltv_expiry_delta: int
    fallback_addresses: tuple[str, ...]
    route_hints: tuple[tuple[dict[str, Any], ...], ...]
    """Each hop: `node_id` (bytes), `short_channel_id` (int), `fee_base_msat`, `fee_proportional_millionths`,
    `cltv_expiry_delta` (BOLT 11, field `r`)."""
    features: tuple[str, ...]
    payment_metadata: bytes | None


class TransactionView(Struct, frozen=True):
    txid: bytes
    amount_sat: int
    fee_sat: int | None
    confirmations: int
    label: str
    created_seconds: int


class RescanView(Struct, frozen=True):
    """How far a rescan is; `found` are unspent outputs that were not known before."""

    height: int
    tip_height: int
    found_coins: int
    found_sat: int


class NodeEvent(Struct, frozen=True):
    """One thing that happened. `kind` is dotted ("peer.connected", "channel.usable", "invoice.settled",
    "payment.succeeded", "chain.block" ...: `event_kinds` has all); `data` holds JSON-able values (ids as hex; amounts
    with their unit in the name)."""

    sequence: int
    time_seconds: float
    kind: str
    sentence: str
    data: dict[str, Any]


class NodeService(Protocol):
    """The verbs. All are coroutines; amounts in the unit that their names say."""

    @property
    def graph(self) -> GraphService:
        """The public network, ways through it, and what payments have taught."""
        ...

    async def info(self) -> NodeInfo: ...
    async def stop(self) -> None:
        """Asks the daemon to stop and returns at once: the API, which asks, is one of the things that stop."""
        ...

    def events(self, since_sequence: int | None = None) -> AsyncIterator[NodeEvent]: ...

    async def connect_peer(self, node_id: bytes, host: str, port: int, timeout_seconds: float = 10) -> PeerView: ...
    async def disconnect_peer(self, node_id: bytes, force: bool = False) -> None: ...
    async def list_peers(self) -> list[PeerView]: ...

    async def new_address(self, kind: Literal["p2tr", "p2wpkh"] = "p2tr") -> str: ...
    async def balance(self) -> BalanceView: ...
    async def coins(self) -> list[CoinView]: ...
    async def transactions(self) -> list[TransactionView]: ...
    async def send_coins(
        self, address: str, amount_sat: int | None, feerate_per_kw: int | None, idempotency_key: str = ""
    ) -> TransactionView:
        """`amount_sat` None sends everything."""
        ...

    async def bump(self, txid: bytes, feerate_per_kw: int) -> TransactionView:
        """The feerate is a target, so asking twice costs no more than asking once, without a key."""
        ...

    def rescan(self, from_height: int) -> AsyncIterator[RescanView]:
        """Looks for the wallet's money in blocks that were looked at before; gives how far it is."""
        ...

    async def open_channel(
        self,
        node_id: bytes,
        amount_sat: int,
        push_msat: int = 0,
        announce: bool = True,
        zero_conf: bool = False,
        feerate_per_kw: int | None = None,
        close_to_address: str = "",
        idempotency_key: str = "",
    ) -> ChannelView:
        """Returns when the funding transaction is broadcast (the channel awaits confirmations)."""
        ...

    async def list_channels(self, include_closed: bool = False) -> list[ChannelView]: ...
    async def get_channel(self, channel_id: bytes) -> ChannelView: ...
    async def closed_channel(self, channel_id: bytes) -> ClosedChannelView:
        """A channel whose funding output is spent: each output, who took it, at what fee, when it comes free."""
        ...

    async def close_channel(
        self,
        channel_id: bytes,
        force: bool = False,
        address: str = "",
        feerate_per_kw: int | None = None,
        idempotency_key: str = "",
        even_if_outdated: bool = False,
    ) -> ChannelView:
        """Returns when the closing transaction is broadcast, or when the peer is awaited (see `status`). A forced close
        of a channel whose state was not compared with the peer since the start needs `even_if_outdated`."""
        ...

    async def set_policy(
        self,
        channel_id: bytes | None,
        fee_base_msat: int | None = None,
        fee_proportional_millionths: int | None = None,
        cltv_expiry_delta: int | None = None,
        htlc_minimum_msat: int | None = None,
        htlc_maximum_msat: int | None = None,
    ) -> list[PolicyView]:
        """What to ask for forwarding over a channel, or (None) over all; what is None stays as it is."""
        ...

    async def list_forwards(self, limit: int = 100, offset: int = 0) -> list[ForwardView]: ...

    async def create_invoice(
        self,
        amount_msat: int | None,
        description: str,
        expiry_seconds: int = 3600,
        description_hash: bytes | None = None,
        payment_preimage: bytes | None = None,
        min_final_cltv_expiry_delta: int | None = None,
        idempotency_key: str = "",
        hold: bool = False,
        payment_hash: bytes | None = None,
    ) -> InvoiceView:
        """`hold`: what is paid waits for `settle_invoice`. With `payment_hash` instead of a preimage it does so in any
        case: somebody else knows the preimage."""
        ...

    async def settle_invoice(self, payment_hash: bytes, payment_preimage: bytes | None = None) -> InvoiceView:
        """Takes an accepted payment. The preimage may be left out if this node made it."""
        ...

    async def list_invoices(self, limit: int = 100, offset: int = 0) -> list[InvoiceView]: ...
    async def get_invoice(self, payment_hash: bytes) -> InvoiceView: ...
    async def cancel_invoice(self, payment_hash: bytes) -> InvoiceView: ...
    async def decode(self, text: str) -> DecodedInvoice: ...

    async def pay(
        self,
        bolt11: str,
        amount_msat: int | None = None,
        max_fee_msat: int | None = None,
        timeout_seconds: float = 60,
        idempotency_key: str = "",
    ) -> PaymentView:
        """Pays and waits for the outcome. On time-out the payment goes on and the view says in_flight."""
        ...

    async def send(self, order: PaymentOrder, idempotency_key: str = "") -> PaymentView:
        """The same for every sort of payment. A probe takes no key."""
        ...

    async def start_payment(self, order: PaymentOrder, idempotency_key: str = "") -> PaymentView:
        """The same, but returns as soon as the payment exists durably: see `track_payment`."""
        ...

    def track_payment(self, payment_hash: bytes) -> AsyncIterator[PaymentUpdate]:
        """What has become of a payment (itself unless it is over, then each attempt), what becomes of it, and its end.
        Probes too, while they last. Raises NodeError at the first step."""
        ...

    async def cancel_payment(self, payment_hash: bytes) -> PaymentView:
        """Nothing more is tried. What is out may still arrive: then the payment succeeds."""
        ...

    async def list_payments(self, limit: int = 100, offset: int = 0) -> list[PaymentView]:
        """The newest first, without probes."""
        ...

    async def get_payment(self, payment_hash: bytes) -> PaymentView: ...
    async def list_attempts(self, payment_hash: bytes) -> list[AttemptView]:
        """All attempts of a payment, in order."""
        ...
