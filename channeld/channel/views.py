"""What to show of a channel: values for the API and the logs, in one struct. Reads a state, changes nothing."""

from __future__ import annotations

from msgspec import Struct

from channeld.bolt.features import ChannelType
from channeld.bolt.messages import OpenChannel, decode
from channeld.bolt.transactions.spec import Htlc, Side
from channeld.channel import commitments as cm
from channeld.channel import limits
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import (
    AwaitingFunding,
    Closed,
    Closing,
    Funded,
    FundingCreatedSent,
    Live,
    NegotiatingLegacy,
    NegotiatingSimple,
    Normal,
    Offline,
    OpenReceived,
    OpenSent,
    ShuttingDown,
    State,
    WaitFundingTx,
    WaitingForRemoteClose,
    phase_name,
)
from wallet.bitcoin import OutPoint, Tx


class ChannelSummary(Struct, frozen=True, kw_only=True):
    """A channel for people and programs outside. Amounts in sat or msat.

    `local_msat` and `remote_msat` are without pending HTLCs and before the commitment's fee, which the opener pays.
    `local_reserve_sat` is what we must keep, `remote_reserve_sat` what the peer must keep.
    """

    channel_id: bytes
    remote_node_id: bytes
    phase: str
    connected: bool = False
    active: bool = False
    """HTLCs can be offered now."""
    is_opener: bool = False
    announce: bool = False
    channel_type: ChannelType = ChannelType()
    funding_outpoint: OutPoint | None = None
    scid: int | None = None
    local_alias: int | None = None
    remote_alias: int | None = None
    capacity_sat: int = 0
    local_msat: int = 0
    remote_msat: int = 0
    available_to_send_msat: int = 0
    available_to_receive_msat: int = 0
    local_reserve_sat: int = 0
    remote_reserve_sat: int = 0
    feerate_per_kw: int = 0
    commitment_fee_sat: int = 0
    local_commitment_number: int = 0
    remote_commitment_number: int = 0
    htlcs: tuple[Htlc, ...] = ()
    closing_txid: bytes | None = None
    status: str = ""
    """A sentence."""


def channel_id(state: State) -> bytes:
    """The channel's id: the temporary one until the funding transaction is known to both."""
    match state:
        case OpenSent(wanted=wanted) | WaitFundingTx(wanted=wanted) | FundingCreatedSent(wanted=wanted):
            return wanted.temporary_channel_id
        case OpenReceived(temporary_channel_id=id):
            return id
        case Closed(id=id):
            return id
        case _:
            return state.params.channel_id


def remote_node_id(state: State) -> bytes:
    """Whose channel it is: 33 bytes."""
    match state:
        case OpenSent(wanted=wanted) | WaitFundingTx(wanted=wanted) | FundingCreatedSent(wanted=wanted):
            return wanted.remote_node_id
        case OpenReceived(remote_node_id=id) | Closed(remote_node_id=id):
            return id
        case _:
            return state.params.remote_node_id


def view(state: State, policy: ChannelPolicy) -> ChannelSummary:
    """Everything there is to show."""
    if isinstance(state, Funded):
        return _funded(state, policy)
    base = ChannelSummary(channel_id=channel_id(state), remote_node_id=remote_node_id(state), phase=phase_name(state))
    if isinstance(state, Closed):
        return _closed(state)
    if isinstance(state, OpenReceived):
        return _proposed(state.proposal, base.channel_id, base.remote_node_id, False)
    if isinstance(state, FundingCreatedSent):
        proposed = state.params
        return ChannelSummary(
            channel_id=base.channel_id,
            remote_node_id=base.remote_node_id,
            phase=base.phase,
            connected=True,
            is_opener=True,
            announce=proposed.announce,
            channel_type=proposed.type,
            funding_outpoint=proposed.funding_outpoint,
            capacity_sat=proposed.capacity_sat,
            status="waiting for the peer's signature of the first commitment",
        )
    return _proposed(state.proposal, base.channel_id, base.remote_node_id, True)


def _proposed(proposal: bytes, id: bytes, node_id: bytes, is_opener: bool) -> ChannelSummary:
    message = decode(proposal)
    assert isinstance(message, OpenChannel)
    return ChannelSummary(
        channel_id=id,
        remote_node_id=node_id,
        phase="opening",
        connected=True,
        is_opener=is_opener,
        announce=bool(message.channel_flags & 1),
        channel_type=ChannelType.from_bytes(message.channel_type or b""),
        capacity_sat=message.funding_satoshis,
        status="the peers agree on the channel's terms",
    )


def _closed(state: Closed) -> ChannelSummary:
    return ChannelSummary(
        channel_id=state.id,
        remote_node_id=state.remote_node_id,
        phase=phase_name(state),
        is_opener=state.is_opener,
        funding_outpoint=state.funding_outpoint,
        capacity_sat=state.capacity_sat,
        closing_txid=state.closing_txid,
        status=state.reason,
    )


def _funded(state: Funded, policy: ChannelPolicy) -> ChannelSummary:
    c, params = state.commitments, state.params
    spec = c.local.spec
    active = isinstance(state, Normal) and isinstance(state.link, Live)
    return ChannelSummary(
        channel_id=params.channel_id,
        remote_node_id=params.remote_node_id,
        phase=phase_name(state),  # type: ignore[arg-type]
        connected=not isinstance(state.link, Offline),
        active=active,
        is_opener=params.is_opener,
        announce=params.announce,
        channel_type=params.type,
        funding_outpoint=params.funding_outpoint,
        scid=state.scid,
        local_alias=state.local_alias,
        remote_alias=state.remote_alias,
        capacity_sat=params.capacity_sat,
        local_msat=spec.to_local_msat,
        remote_msat=spec.to_remote_msat,
        available_to_send_msat=available_to_send_msat(state, policy),
        available_to_receive_msat=available_to_receive_msat(state),
        local_reserve_sat=params.remote.channel_reserve_sat,
        remote_reserve_sat=params.local.channel_reserve_sat,
        feerate_per_kw=spec.feerate_per_kw,
        commitment_fee_sat=_fee_sat(state, "local"),
        local_commitment_number=c.local.index,
        remote_commitment_number=c.latest_remote.index,
        htlcs=tuple(sorted(_htlcs(state), key=lambda htlc: (htlc.offered, htlc.id))),
        closing_txid=closing_txid(state),
        status=_status(state),
    )


def available_to_send_msat(state: State | Funded, policy: ChannelPolicy) -> int:
    """The largest HTLC that could be offered if the peer were connected, msat; 0 outside of normal operation."""
    if not isinstance(state, Normal):
        return 0
    return limits.available_to_send_msat(state.commitments, state.params, policy)


def available_to_receive_msat(state: State | Funded) -> int:
    """About the largest HTLC that the peer could offer, msat; 0 outside of normal operation."""
    return limits.available_to_receive_msat(state.commitments, state.params) if isinstance(state, Normal) else 0


def _htlcs(state: Funded) -> list[Htlc]:
    c = state.commitments
    return list({**c.latest_remote.spec.htlcs, **c.local.spec.htlcs}.values())


def _fee_sat(state: Funded, side: Side) -> int:
    params = state.params.commitment
    sums = cm.preview(params, side, state.commitments.local.spec)
    return sums.cost_msat(params.anchors) // 1000


def closing_txid(state: Funded) -> bytes | None:
    """The transaction that ends the channel, as far as it is known."""
    if isinstance(state, Closing):
        return Tx.parse(state.closing_tx).txid()
    if isinstance(state, NegotiatingLegacy | NegotiatingSimple) and state.closing_txs:
        return Tx.parse(state.closing_txs[-1]).txid()
    return None


def _status(state: Funded) -> str:
    away = "; the peer is not connected" if isinstance(state.link, Offline) else ""
    match state:
        case AwaitingFunding(funding_depth=depth, params=params):
            missing = params.minimum_depth_blocks - depth
            if missing > 0:
                plural = "s" if missing > 1 else ""
                return f"waiting for {missing} more confirmation{plural} of the funding transaction{away}"
            return f"waiting for the peer's channel_ready{away}"
        case Normal():
            return f"ready{away}"
        case ShuttingDown():
            return f"closing: waiting until all HTLCs are resolved{away}"
        case NegotiatingLegacy(closing_txs=txs) | NegotiatingSimple(closing_txs=txs):
            if txs:
                return f"closing: waiting for the closing transaction to confirm{away}"
            return f"closing: agreeing on the closing transaction{away}"
        case WaitingForRemoteClose(reason=reason):
            return reason
        case Closing(reason=reason, confirmed_height=height):
            return f"{reason}; " + (f"in block {height}" if height else "not confirmed yet")
        case _:
            raise AssertionError(f"unknown phase {type(state).__name__}")
