"""A channel's state as the operator sees it."""

from __future__ import annotations

from typing import TypeGuard

from msgspec.structs import replace

from channeld.bolt.features import decode_features, describe
from channeld.bolt.messages import OpenChannel, decode
from channeld.bolt.transactions import Htlc
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
    OpenReceived,
    ShuttingDown,
    State,
    WaitingForRemoteClose,
    phase_name,
)
from channeld.node.interface import ChannelView, HtlcView
from wallet.bitcoin import Tx


def is_usable(state: State | Funded) -> bool:
    """Whether HTLCs may be offered now."""
    return isinstance(state, Normal) and isinstance(state.link, Live) and state.is_deep


def takes_fees(state: State) -> TypeGuard[Normal | ShuttingDown]:
    """Whether its opener may propose another fee rate now: also while it is closed together, for as long as it has
    HTLCs, whose deadlines may yet ask for our commitment."""
    if isinstance(state, ShuttingDown):
        return isinstance(state.link, Live) and state.commitments.has_htlcs
    return is_usable(state)


def available_to_send_msat(state: State | Funded, policy: ChannelPolicy) -> int:
    """The greatest HTLC that could be offered if the peer were connected; 0 outside of normal operation."""
    if not isinstance(state, Normal):
        return 0
    return limits.available_to_send_msat(state.commitments, state.params, policy)


def available_to_receive_msat(state: State | Funded) -> int:
    """About the greatest HTLC that the peer could offer; 0 outside of normal operation."""
    return limits.available_to_receive_msat(state.commitments, state.params) if isinstance(state, Normal) else 0


def balances_msat(state: State | Funded) -> tuple[int, int]:
    """(ours, the peer's) in our latest commitment, without HTLCs and before fees."""
    if not isinstance(state, Funded):
        return 0, 0
    spec = state.commitments.local.spec
    return spec.to_local_msat, spec.to_remote_msat


def htlcs(state: State | Funded) -> list[Htlc]:
    """Every HTLC in a commitment that may be broadcast."""
    if not isinstance(state, Funded):
        return []
    c = state.commitments
    found = {**c.remote.spec.htlcs, **c.latest_remote.spec.htlcs, **c.local.spec.htlcs}
    return list(found.values())


def channel_view(
    state: State, *, channel_id: bytes, peer_id: bytes, connected: bool, failure: str | None, policy: ChannelPolicy
) -> ChannelView:
    """Everything about a channel. `failure` says why it is frozen, if it is."""
    if isinstance(state, Funded):
        return _funded(state, channel_id, peer_id, connected, failure, policy)
    if isinstance(state, Closed):
        return _closed(state, channel_id, peer_id, connected)
    return _opening(state, channel_id, peer_id, connected)


def _funded(
    state: Funded, channel_id: bytes, peer_id: bytes, connected: bool, failure: str | None, policy: ChannelPolicy
) -> ChannelView:
    params, spec = state.params, state.commitments.local.spec
    local_msat, remote_msat = balances_msat(state)
    fee_msat = cm.preview(params.commitment, "local", spec).cost_msat(params.anchors)
    return ChannelView(
        channel_id=channel_id,
        peer_id=peer_id,
        phase=phase_name(state),  # type: ignore[arg-type]
        active=is_usable(state) and failure is None,
        connected=connected,
        opener="local" if params.is_opener else "remote",
        announced=params.announce,
        channel_type=describe(decode_features(params.channel_type)),
        funding_txid=params.funding_outpoint.txid,
        funding_vout=params.funding_outpoint.vout,
        scid=state.scid,
        alias_scid_local=state.local_alias,
        alias_scid_remote=state.remote_alias,
        capacity_sat=params.capacity_sat,
        local_msat=local_msat,
        remote_msat=remote_msat,
        available_to_send_msat=available_to_send_msat(state, policy),
        available_to_receive_msat=available_to_receive_msat(state),
        local_reserve_sat=params.remote.channel_reserve_sat,
        remote_reserve_sat=params.local.channel_reserve_sat,
        feerate_per_kw=spec.feerate_per_kw,
        commitment_fee_sat=fee_msat // 1000,
        local_commitment_number=state.commitments.local.index,
        remote_commitment_number=state.commitments.latest_remote.index,
        htlcs=tuple(HtlcView(h.id, not h.offered, h.amount_msat, h.payment_hash, h.cltv_expiry) for h in htlcs(state)),
        closing_txid=_closing_txid(state),
        status=failure_sentence(failure) or funded_status(state, connected),
    )


def why_unusable(state: State, failure: str | None) -> str:
    """Of a channel whose peer is connected."""
    if failure is not None:
        return "one is frozen after an internal error"
    return funded_status(state, True) if isinstance(state, Funded) else "it is being opened"


def failure_sentence(failure: str | None) -> str:
    """For a frozen channel."""
    return f"frozen after an internal error ({failure}); restart the daemon" if failure else ""


def _closing_txid(state: Funded) -> bytes | None:
    if isinstance(state, Closing):
        return Tx.parse(state.closing_tx).txid()
    if isinstance(state, NegotiatingLegacy | NegotiatingSimple) and state.closing_txs:
        return Tx.parse(state.closing_txs[-1]).txid()
    return None


def funded_status(state: Funded, connected: bool) -> str:
    """How a channel is doing, as the end of a sentence."""
    away = "" if connected else "; the peer is not connected"
    match state:
        case AwaitingFunding():
            missing = max(0, state.required_depth_blocks - state.funding_depth)
            if missing:
                more = "1 more confirmation" if missing == 1 else f"{missing} more confirmations"
                return f"waiting for {more} of the funding transaction{away}"
            return f"waiting for the peer to see the funding transaction{away}"
        case Normal(is_deep=False):
            if state.double_spent_by:
                return f"the funding transaction was double-spent by {state.double_spent_by[::-1].hex()}{away}"
            again = "in a block again" if (n := state.required_depth_blocks) <= 1 else f"{n} blocks deep again"
            return f"open, but not usable until its funding transaction is {again}{away}"
        case Normal():
            return "open" if is_usable(state) else f"open, but not usable now{away or '; getting back in step'}"
        case ShuttingDown():
            waiting = " when its HTLCs are settled" if state.commitments.has_htlcs else ""
            return f"closing together{waiting}{away}"
        case NegotiatingLegacy() | NegotiatingSimple():
            if state.closing_txs:
                return "the closing transaction is broadcast and waits for confirmations"
            return f"agreeing on the closing transaction's fee{away}"
        case WaitingForRemoteClose():
            return state.reason
        case Closing():
            where = f"in block {state.confirmed_height}" if state.confirmed_height else "not in a block yet"
            final = ", and final when it is 100 blocks deep" if state.buried else ""
            return f"{state.reason}; the closing transaction is {where}{final}"
        case _:
            return phase_name(state)  # type: ignore[arg-type]


def _bare(
    state: State, channel_id: bytes, peer_id: bytes, connected: bool, *, local_opener: bool, capacity_sat: int
) -> ChannelView:
    return ChannelView(
        channel_id=channel_id,
        peer_id=peer_id,
        phase=phase_name(state),
        active=False,
        connected=connected,
        opener="local" if local_opener else "remote",
        announced=False,
        channel_type=(),
        funding_txid=None,
        funding_vout=0,
        scid=None,
        alias_scid_local=None,
        alias_scid_remote=None,
        capacity_sat=capacity_sat,
        local_msat=0,
        remote_msat=0,
        available_to_send_msat=0,
        available_to_receive_msat=0,
        local_reserve_sat=0,
        remote_reserve_sat=0,
        feerate_per_kw=0,
        commitment_fee_sat=0,
        local_commitment_number=0,
        remote_commitment_number=0,
        htlcs=(),
        closing_txid=None,
        status="",
    )


def _opening(state: State, channel_id: bytes, peer_id: bytes, connected: bool) -> ChannelView:
    local_opener = not isinstance(state, OpenReceived)
    if isinstance(state, FundingCreatedSent):
        capacity_sat = state.params.capacity_sat
    else:
        proposal = decode(state.proposal)  # type: ignore[union-attr]
        assert isinstance(proposal, OpenChannel)
        capacity_sat = proposal.funding_satoshis
    bare = _bare(state, channel_id, peer_id, connected, local_opener=local_opener, capacity_sat=capacity_sat)
    return replace(bare, status="being opened: nothing is on chain yet")


def _closed(state: Closed, channel_id: bytes, peer_id: bytes, connected: bool) -> ChannelView:
    bare = _bare(state, channel_id, peer_id, connected, local_opener=state.is_opener, capacity_sat=state.capacity_sat)
    outpoint = state.funding_outpoint
    return replace(
        bare,
        funding_txid=outpoint.txid if outpoint else None,
        funding_vout=outpoint.vout if outpoint else 0,
        local_msat=state.to_local_msat,
        remote_msat=state.to_remote_msat,
        closing_txid=state.closing_txid,
        status=state.reason,
    )
