"""Between the node's values and the API's messages: views into protobuf, and what requests hold into checked values.

Checks raise `NodeError("invalid_argument")` with the sentence that the client sees.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from channeld.node import interface
from channeld.node.interface import NodeError
from channeld.v1 import (
    channels_pb2,
    events_pb2,
    invoices_pb2,
    node_pb2,
    payments_pb2,
    peers_pb2,
    wallet_pb2,
)

MAX_LIST = 10_000
DEFAULT_LIST = 100
MAX_IDEMPOTENCY_KEY = 200
MAX_SAT = 21_000_000 * 100_000_000
DEFAULT_INVOICE_EXPIRY_SECONDS = 3600
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600

_SIDES = {"local": channels_pb2.SIDE_LOCAL, "remote": channels_pb2.SIDE_REMOTE}
_INVOICE_STATES = {
    "open": invoices_pb2.INVOICE_STATE_OPEN,
    "settled": invoices_pb2.INVOICE_STATE_SETTLED,
    "canceled": invoices_pb2.INVOICE_STATE_CANCELED,
    "expired": invoices_pb2.INVOICE_STATE_EXPIRED,
    "accepted": invoices_pb2.INVOICE_STATE_ACCEPTED,
}
_INVOICE_KINDS = {
    "bolt11": invoices_pb2.INVOICE_KIND_BOLT11,
    "keysend": invoices_pb2.INVOICE_KIND_KEYSEND,
    "blinded": invoices_pb2.INVOICE_KIND_BLINDED,
}
_ADDRESS_KINDS: dict[int, Literal["p2tr", "p2wpkh"]] = {
    wallet_pb2.ADDRESS_KIND_UNSPECIFIED: "p2tr",
    wallet_pb2.ADDRESS_KIND_P2TR: "p2tr",
    wallet_pb2.ADDRESS_KIND_P2WPKH: "p2wpkh",
}


# What requests hold


def _invalid(sentence: str) -> NodeError:
    return NodeError("invalid_argument", sentence)


def node_id(value: bytes) -> bytes:
    """A public key: 33 bytes, compressed."""
    if len(value) != 33 or value[0] not in (2, 3):
        raise _invalid(
            f"A node id is 33 bytes that begin with 02 or 03 (66 hex characters); this one has {len(value)} bytes."
        )
    return value


def hash32(value: bytes, what: str) -> bytes:
    """A hash, preimage or id: 32 bytes. `what` is its name in the sentence, "a payment hash"."""
    if len(value) != 32:
        raise _invalid(f"{what[0].upper()}{what[1:]} has 32 bytes (64 hex characters); this one has {len(value)}.")
    return value


def optional_hash32(request: Any, field: str, what: str) -> bytes | None:
    """The same for a field that may be absent."""
    return hash32(getattr(request, field), what) if request.HasField(field) else None


def amount_sat(value: int, what: str) -> int:
    """An amount of satoshi, more than zero and no more than there can be."""
    if value == 0:
        raise _invalid(f"{what} must be more than 0 sat.")
    if value > MAX_SAT:
        raise _invalid(f"{what} of {value:,} sat is more than there can ever be.")
    return value


def amount_msat(value: int, what: str) -> int:
    """An amount of millisatoshi, more than zero and no more than there can be."""
    if value == 0:
        raise _invalid(f"{what} must be more than 0 msat.")
    if value > MAX_SAT * 1000:
        raise _invalid(f"{what} of {value:,} msat is more than there can ever be.")
    return value


def optional_feerate_per_kw(request: Any) -> int | None:
    """`feerate_per_kw` of a request, in satoshi per 1000 weight units; None lets the daemon estimate."""
    return feerate_per_kw(request.feerate_per_kw) if request.HasField("feerate_per_kw") else None


def feerate_per_kw(value: int) -> int:
    """A feerate in satoshi per 1000 weight units, more than zero."""
    if value == 0:
        raise _invalid("The feerate must be more than 0; 1 sat/vB is 250 sat per 1000 weight units.")
    return value


def seconds(value: float, what: str) -> float:
    """A time to wait: more than zero, at most a week."""
    if not (math.isfinite(value) and 0 < value <= MAX_TIMEOUT_SECONDS):
        raise _invalid(f"{what} must be more than 0 and at most {MAX_TIMEOUT_SECONDS} seconds.")
    return value


def idempotency_key(value: str) -> str:
    """A key of the client's choice; empty means none."""
    if len(value) > MAX_IDEMPOTENCY_KEY:
        raise _invalid(f"An idempotency key has at most {MAX_IDEMPOTENCY_KEY} characters; this one has {len(value)}.")
    return value


def page(request: Any) -> tuple[int, int]:
    """How many, and how many to leave out before them."""
    limit = request.limit if request.HasField("limit") else DEFAULT_LIST
    if not 1 <= limit <= MAX_LIST:
        raise _invalid(f"The limit must be from 1 to {MAX_LIST}; it is {limit}.")
    return limit, request.offset


def address_kind(value: int) -> Literal["p2tr", "p2wpkh"]:
    """Which kind of address; one that this daemon does not know is an error."""
    kind = _ADDRESS_KINDS.get(value)
    if kind is None:
        raise _invalid(f"There is no address kind {value}; there are p2tr and p2wpkh.")
    return kind


# What answers hold


def info(view: interface.NodeInfo) -> node_pb2.GetInfoResponse:
    return node_pb2.GetInfoResponse(
        node_id=view.node_id,
        alias=view.alias,
        color=view.color,
        version=view.version,
        network=view.network,
        block_height=view.block_height,
        block_hash=view.block_hash,
        synced_to_chain=view.synced_to_chain,
        chain_status=view.chain_status,
        listen=view.listen,
        num_peers=view.num_peers,
        num_active_channels=view.num_active_channels,
        num_pending_channels=view.num_pending_channels,
        num_inactive_channels=view.num_inactive_channels,
        features=view.features,
        uptime_seconds=view.uptime_seconds,
    )


def peer(view: interface.PeerView) -> peers_pb2.Peer:
    return peers_pb2.Peer(
        node_id=view.node_id,
        address=view.address,
        connected=view.connected,
        inbound=view.inbound,
        features=view.features,
        num_channels=view.num_channels,
        ping_seconds=view.ping_seconds,
        last_error=view.last_error,
    )


def balance(view: interface.BalanceView) -> wallet_pb2.GetBalanceResponse:
    return wallet_pb2.GetBalanceResponse(
        confirmed_sat=view.confirmed_sat,
        unconfirmed_sat=view.unconfirmed_sat,
        immature_sat=view.immature_sat,
        reserved_sat=view.reserved_sat,
        channels_local_msat=view.channels_local_msat,
        channels_remote_msat=view.channels_remote_msat,
        pending_htlcs_msat=view.pending_htlcs_msat,
        closing_sat=view.closing_sat,
    )


def coin(view: interface.CoinView) -> wallet_pb2.Coin:
    return wallet_pb2.Coin(
        txid=view.txid,
        vout=view.vout,
        amount_sat=view.amount_sat,
        address=view.address,
        confirmations=view.confirmations,
        reserved=view.reserved,
    )


def transaction(view: interface.TransactionView) -> wallet_pb2.Transaction:
    return wallet_pb2.Transaction(
        txid=view.txid,
        amount_sat=view.amount_sat,
        fee_sat=view.fee_sat,
        confirmations=view.confirmations,
        label=view.label,
        created_seconds=view.created_seconds,
    )


def _htlc(view: interface.HtlcView) -> channels_pb2.Htlc:
    return channels_pb2.Htlc(
        id=view.id,
        incoming=view.incoming,
        amount_msat=view.amount_msat,
        payment_hash=view.payment_hash,
        cltv_expiry=view.cltv_expiry,
    )


def policy(view: interface.PolicyView) -> channels_pb2.ForwardingPolicy:
    return channels_pb2.ForwardingPolicy(
        channel_id=view.channel_id,
        fee_base_msat=view.fee_base_msat,
        fee_proportional_millionths=view.fee_proportional_millionths,
        cltv_expiry_delta_blocks=view.cltv_expiry_delta,
        htlc_minimum_msat=view.htlc_minimum_msat,
        htlc_maximum_msat=view.htlc_maximum_msat,
    )


def forward(view: interface.ForwardView) -> channels_pb2.Forward:
    return channels_pb2.Forward(
        incoming_channel_id=view.incoming_channel_id,
        outgoing_channel_id=view.outgoing_channel_id,
        payment_hash=view.payment_hash,
        incoming_msat=view.incoming_msat,
        outgoing_msat=view.outgoing_msat,
        fee_msat=view.fee_msat,
        received_seconds=view.received_seconds,
        settled_seconds=view.settled_seconds,
    )


def channel(view: interface.ChannelView) -> channels_pb2.Channel:
    return channels_pb2.Channel(
        channel_id=view.channel_id,
        peer_id=view.peer_id,
        phase=view.phase,
        active=view.active,
        connected=view.connected,
        opener=_SIDES[view.opener],
        announced=view.announced,
        channel_type=view.channel_type,
        funding_txid=view.funding_txid,
        funding_vout=view.funding_vout,
        short_channel_id=view.scid,
        local_alias_short_channel_id=view.alias_scid_local,
        remote_alias_short_channel_id=view.alias_scid_remote,
        capacity_sat=view.capacity_sat,
        local_msat=view.local_msat,
        remote_msat=view.remote_msat,
        available_to_send_msat=view.available_to_send_msat,
        available_to_receive_msat=view.available_to_receive_msat,
        local_reserve_sat=view.local_reserve_sat,
        remote_reserve_sat=view.remote_reserve_sat,
        feerate_per_kw=view.feerate_per_kw,
        commitment_fee_sat=view.commitment_fee_sat,
        local_commitment_number=view.local_commitment_number,
        remote_commitment_number=view.remote_commitment_number,
        htlcs=[_htlc(htlc) for htlc in view.htlcs],
        closing_txid=view.closing_txid,
        status=view.status,
    )


def _closing_output(view: interface.OutputView) -> channels_pb2.ClosingOutput:
    return channels_pb2.ClosingOutput(
        kind=view.kind,
        owner=_SIDES[view.owner],
        amount_sat=view.amount_sat,
        status=view.status,
        status_text=view.status_text,
        txid=view.txid,
        vout=view.vout,
        taken_by=view.taken_by,
        spending_txid=view.spending_txid,
        spent_height=view.spent_height,
        fee_sat=view.fee_sat,
        free_height=view.free_height,
        deadline_height=view.deadline_height,
        htlc=None if view.htlc is None else _htlc(view.htlc),
    )


def closing(view: interface.ClosedChannelView) -> channels_pb2.GetClosingResponse:
    return channels_pb2.GetClosingResponse(
        channel=channel(view.channel),
        kind=view.kind,
        closing_txid=view.closing_txid,
        height=view.height,
        commitment_number=view.commitment_number,
        commitment_fee_sat=view.commitment_fee_sat,
        irrevocable_height=view.irrevocable_height,
        over=view.over,
        outputs=[_closing_output(output) for output in view.outputs],
    )


def invoice(view: interface.InvoiceView) -> invoices_pb2.Invoice:
    return invoices_pb2.Invoice(
        payment_hash=view.payment_hash,
        bolt11=view.bolt11,
        state=_INVOICE_STATES[view.state],
        amount_msat=view.amount_msat,
        received_msat=view.received_msat,
        description=view.description,
        created_seconds=view.created_seconds,
        expiry_seconds=view.expiry_seconds,
        settled_seconds=view.settled_seconds,
        payment_preimage=view.payment_preimage if view.state == "settled" else None,
        is_hold=view.is_hold,
        kind=_INVOICE_KINDS[view.kind],
        custom_records=[invoices_pb2.CustomRecord(type=kind, value=value) for kind, value in view.custom_records],
        deadline_height=view.deadline_height,
    )


def _hop_hint(hop: dict[str, Any]) -> payments_pb2.HopHint:
    return payments_pb2.HopHint(
        node_id=hop["node_id"],
        short_channel_id=hop["short_channel_id"],
        fee_base_msat=hop["fee_base_msat"],
        fee_proportional_millionths=hop["fee_proportional_millionths"],
        cltv_expiry_delta_blocks=hop["cltv_expiry_delta"],
    )


def decoded_invoice(view: interface.DecodedInvoice) -> payments_pb2.DecodeResponse:
    return payments_pb2.DecodeResponse(
        network=view.network,
        amount_msat=view.amount_msat,
        payment_hash=view.payment_hash,
        payee=view.payee,
        description=view.description,
        description_hash=view.description_hash,
        created_seconds=view.created_seconds,
        expiry_seconds=view.expiry_seconds,
        expired=view.expired,
        min_final_cltv_expiry_delta_blocks=view.min_final_cltv_expiry_delta,
        fallback_addresses=view.fallback_addresses,
        route_hints=[payments_pb2.RouteHint(hops=[_hop_hint(hop) for hop in hops]) for hops in view.route_hints],
        features=view.features,
        payment_metadata=view.payment_metadata,
    )


def event(value: interface.NodeEvent) -> events_pb2.Event:
    return events_pb2.Event(
        sequence=value.sequence,
        time_seconds=value.time_seconds,
        kind=value.kind,
        sentence=value.sentence,
        data_json=json.dumps(value.data, separators=(",", ":")),
    )
