"""Opening a channel, version 1 (BOLT 2, "Channel Establishment v1"): up to the first commitments and
`channel_ready`."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from channeld.bolt.features import ChannelType, Feature, NegotiatedFeatures
from channeld.bolt.keys import ChannelKeys
from channeld.bolt.messages import (
    AcceptChannel,
    ChannelReady,
    FundingCreated,
    FundingSigned,
    OpenChannel,
    decode,
    encode,
)
from channeld.bolt.transactions.commitment import build_commitment
from channeld.bolt.transactions.signing import InvalidSignature, verify_commitment
from channeld.bolt.transactions.spec import CommitmentParams
from channeld.channel import normal, open_rules
from channeld.channel.commitments import (
    AwaitingChannelReady,
    Commitments,
    LocalCommit,
    ReadyToSign,
    RemoteCommit,
    Spec,
    with_previews,
)
from channeld.channel.effects import (
    Broadcast,
    ChannelIdChanged,
    ChannelUsable,
    Effect,
    NeedFunding,
    Send,
    WatchFunding,
)
from channeld.channel.env import ChannelPolicy, Env
from channeld.channel.events import FundingTxReady, ProtocolViolation
from channeld.channel.state import (
    AwaitingFunding,
    ChannelParams,
    Funded,
    FundingCreatedSent,
    Limits,
    Live,
    Normal,
    Open,
    OpenParams,
    OpenReceived,
    OpenSent,
    Transition,
    WaitFundingTx,
    shared,
)
from channeld.channel.writes import Write
from wallet.bitcoin import OutPoint, Tx
from wallet.bitcoin.secp import is_valid_pubkey

ANNOUNCE_CHANNEL = 1
M = TypeVar("M", OpenChannel, AcceptChannel)

# --- as opener ----------------------------------------------------------------------------------------------------


def initiate(wanted: OpenParams, env: Env) -> Transition:
    """Proposes a channel that we fund. Raises CommandRejected if it cannot be what was asked for."""
    negotiated = NegotiatedFeatures(env.local_features, wanted.remote_features)
    channel_type = _wanted_type(wanted, negotiated)
    limits = _our_limits(wanted.amount_sat, 0, env.policy)
    open_rules.check_wanted(wanted, channel_type, limits, negotiated, env)
    keys, signer = env.signer.keys, env.signer
    # BOLT 2, "MUST include `upfront_shutdown_script` with either a valid `shutdown_scriptpubkey` ..., or a zero-length"
    message = OpenChannel(
        chain_hash=wanted.chain_hash,
        temporary_channel_id=wanted.temporary_channel_id,
        funding_satoshis=wanted.amount_sat,
        push_msat=wanted.push_msat,
        dust_limit_satoshis=limits.dust_limit_sat,
        max_htlc_value_in_flight_msat=limits.max_htlc_value_in_flight_msat,
        channel_reserve_satoshis=limits.channel_reserve_sat,
        htlc_minimum_msat=limits.htlc_minimum_msat,
        feerate_per_kw=commitment_feerate_per_kw(env, channel_type.anchors),
        to_self_delay=limits.to_self_delay_blocks,
        max_accepted_htlcs=limits.max_accepted_htlcs,
        funding_pubkey=keys.funding_pubkey,
        revocation_basepoint=keys.revocation_basepoint,
        payment_basepoint=keys.payment_basepoint,
        delayed_payment_basepoint=keys.delayed_payment_basepoint,
        htlc_basepoint=keys.htlc_basepoint,
        first_per_commitment_point=signer.per_commitment_point(0),
        channel_flags=ANNOUNCE_CHANNEL if wanted.announce else 0,
        upfront_shutdown_script=wanted.upfront_shutdown_script,
        channel_type=channel_type.to_bytes(),
    )
    return Transition(OpenSent(wanted=wanted, proposal=encode(message)), (Send(message),))


def commitment_feerate_per_kw(env: Env, anchors: bool) -> int:
    """What a commitment of ours should pay now: within the policy, and lower where anchors can raise it later."""
    policy = env.policy
    most = min(policy.max_feerate_per_kw, policy.max_commitment_feerate_anchors_per_kw if anchors else 1 << 32)
    return max(policy.min_feerate_per_kw, min(env.feerate_per_kw, most))


def _wanted_type(wanted: OpenParams, negotiated: NegotiatedFeatures) -> ChannelType:
    return ChannelType(
        anchors=wanted.anchors and negotiated.has(Feature.option_anchors),
        # BOLT 2, "if `announce_channel` is `true` (not `0`): MUST NOT send `channel_type` with the `option_scid_alias`"
        scid_alias=wanted.scid_alias and not wanted.announce,
        zeroconf=wanted.zero_conf,
    )


def _our_limits(capacity_sat: int, least_reserve_sat: int, policy: ChannelPolicy) -> Limits:
    # BOLT 2, "MUST set `channel_reserve_satoshis` greater than or equal to `dust_limit_satoshis`."
    reserve_sat = capacity_sat * policy.channel_reserve_permille // 1000
    return Limits(
        dust_limit_sat=policy.dust_limit_sat,
        max_htlc_value_in_flight_msat=capacity_sat * policy.max_htlc_value_in_flight_permille,
        channel_reserve_sat=max(reserve_sat, policy.dust_limit_sat, least_reserve_sat),
        htlc_minimum_msat=policy.htlc_minimum_msat,
        to_self_delay_blocks=policy.to_self_delay_blocks,
        max_accepted_htlcs=policy.max_accepted_htlcs,
    )


def _limits(message: OpenChannel | AcceptChannel) -> Limits:
    return Limits(
        dust_limit_sat=message.dust_limit_satoshis,
        max_htlc_value_in_flight_msat=message.max_htlc_value_in_flight_msat,
        channel_reserve_sat=message.channel_reserve_satoshis,
        htlc_minimum_msat=message.htlc_minimum_msat,
        to_self_delay_blocks=message.to_self_delay,
        max_accepted_htlcs=message.max_accepted_htlcs,
        upfront_shutdown_script=message.upfront_shutdown_script or b"",
    )


def _keys(message: OpenChannel | AcceptChannel) -> ChannelKeys:
    return ChannelKeys(
        message.funding_pubkey,
        message.revocation_basepoint,
        message.payment_basepoint,
        message.delayed_payment_basepoint,
        message.htlc_basepoint,
    )


def on_accept_channel(state: OpenSent, message: AcceptChannel, env: Env) -> Transition:
    """The peer accepted: the funding transaction can be built."""
    proposal = _decoded(OpenChannel, state.proposal)
    negotiated = NegotiatedFeatures(env.local_features, state.wanted.remote_features)
    open_rules.check_accept_channel(proposal, message, negotiated, env)
    params = _params(
        proposal, message, state.wanted.remote_node_id, OutPoint(bytes(32), 0), local_is_opener=True, env=env
    )
    following = WaitFundingTx(wanted=state.wanted, proposal=state.proposal, acceptance=encode(message))
    need = NeedFunding(proposal.funding_satoshis, params.funding_script_pubkey, state.wanted.funding_feerate_per_kw)
    return Transition(following, (need,))


def on_funding_tx_ready(state: WaitFundingTx, event: FundingTxReady, env: Env) -> Transition:
    """The wallet built the transaction: the peer gets its first commitment signed. Nothing is broadcast yet."""
    proposal = _decoded(OpenChannel, state.proposal)
    acceptance = _decoded(AcceptChannel, state.acceptance)
    outpoint = event.tx.outpoint(event.output_index)
    params = _params(proposal, acceptance, state.wanted.remote_node_id, outpoint, local_is_opener=True, env=env)
    output = event.tx.outputs[event.output_index]
    assert output.value_sat == params.capacity_sat, "the funding output has the wrong amount"
    assert output.script_pubkey == params.funding_script_pubkey, "the funding output has the wrong script"
    spec = _first_spec(proposal, local_is_opener=True)
    signed, remote, save = normal.sign_remote(params, spec, 0, acceptance.first_per_commitment_point, env)
    message = FundingCreated(proposal.temporary_channel_id, outpoint.txid, event.output_index, signed.signature)
    following = FundingCreatedSent(
        wanted=state.wanted, params=params, funding_tx=event.tx.serialize(), local_spec=spec, remote=remote
    )
    return Transition(following, (Send(message),), (save,))


def on_funding_signed(state: FundingCreatedSent, message: FundingSigned, env: Env) -> Transition:
    """The peer signed our first commitment: the funding transaction may be broadcast."""
    params = state.params
    if message.channel_id != params.channel_id:
        raise ProtocolViolation("funding_signed with another channel_id")
    local = _first_local_commit(params, state.local_spec, message.signature, env, "funding_signed")
    following = _awaiting_funding(
        params, local, state.remote, state.wanted.remote_features, state.wanted.local_alias, state.funding_tx
    )
    funding = Tx.parse(state.funding_tx)
    # BOLT 2, "on receipt of a valid `funding_signed`: SHOULD broadcast the funding transaction."
    effects: list[Effect] = [
        ChannelIdChanged(state.wanted.temporary_channel_id, params.channel_id),
        WatchFunding(params.funding_outpoint, params.funding_script_pubkey, funding.spends()),
        Broadcast(funding, "funding"),
    ]
    return _ready_if_deep(following, effects, [], env)


# --- as fundee ----------------------------------------------------------------------------------------------------


def accept(
    message: OpenChannel,
    remote_node_id: bytes,
    remote_features: frozenset[int],
    env: Env,
    *,
    chain_hash: bytes,
    local_alias: int,
    upfront_shutdown_script: bytes = b"",
) -> Transition:
    """Answers an `open_channel`. Raises ProtocolViolation (action `error`: the opening fails, nothing to keep).

    `local_alias` is a scid that no channel has, drawn at random by the caller.
    """
    negotiated = NegotiatedFeatures(env.local_features, remote_features)
    channel_type = open_rules.check_open_channel(message, remote_node_id, negotiated, chain_hash, env)
    # BOLT 2, "MUST set `channel_reserve_satoshis` greater than or equal to `dust_limit_satoshis` from the
    # `open_channel`"
    limits = _our_limits(message.funding_satoshis, message.dust_limit_satoshis, env.policy)
    keys, signer = env.signer.keys, env.signer
    answer = AcceptChannel(
        temporary_channel_id=message.temporary_channel_id,
        dust_limit_satoshis=limits.dust_limit_sat,
        max_htlc_value_in_flight_msat=limits.max_htlc_value_in_flight_msat,
        channel_reserve_satoshis=limits.channel_reserve_sat,
        htlc_minimum_msat=limits.htlc_minimum_msat,
        minimum_depth=_minimum_depth_blocks(channel_type, remote_node_id, env.policy),
        to_self_delay=limits.to_self_delay_blocks,
        max_accepted_htlcs=limits.max_accepted_htlcs,
        funding_pubkey=keys.funding_pubkey,
        revocation_basepoint=keys.revocation_basepoint,
        payment_basepoint=keys.payment_basepoint,
        delayed_payment_basepoint=keys.delayed_payment_basepoint,
        htlc_basepoint=keys.htlc_basepoint,
        first_per_commitment_point=signer.per_commitment_point(0),
        upfront_shutdown_script=upfront_shutdown_script,
        # BOLT 2, "MUST set `channel_type` to the `channel_type` from `open_channel`."
        channel_type=message.channel_type,
    )
    following = OpenReceived(
        remote_node_id=remote_node_id,
        remote_features=remote_features,
        proposal=encode(message),
        acceptance=encode(answer),
        local_alias=local_alias,
        temporary_channel_id=message.temporary_channel_id,
    )
    return Transition(following, (Send(answer),))


def _minimum_depth_blocks(channel_type: ChannelType, opener: bytes, policy: ChannelPolicy) -> int:
    """What we ask of the funding of a channel that a peer opens.

    BOLT 2, "if `channel_type` includes `option_zeroconf`: MUST set `minimum_depth` to zero", otherwise "a number of
    blocks it considers reasonable to avoid double-spending": none for those whom we trust not to, who may have no way
    to ask for it (LDK uses such a channel at once, but never asks for that type).
    """
    trusted = opener in policy.accept_zero_conf_from
    return 0 if channel_type.zeroconf or trusted else policy.minimum_depth_blocks


def on_funding_created(state: OpenReceived, message: FundingCreated, env: Env) -> Transition:
    """The opener named the funding output and signed our first commitment: we sign its one."""
    proposal, acceptance = _decoded(OpenChannel, state.proposal), _decoded(AcceptChannel, state.acceptance)
    outpoint = OutPoint(message.funding_txid, message.funding_output_index)
    params = _params(proposal, acceptance, state.remote_node_id, outpoint, local_is_opener=False, env=env)
    spec = _first_spec(proposal, local_is_opener=False)
    local = _first_local_commit(params, spec, message.signature, env, "funding_created")
    signed, remote, save = normal.sign_remote(params, spec, 0, proposal.first_per_commitment_point, env)
    following = _awaiting_funding(params, local, remote, state.remote_features, state.local_alias, b"")
    effects: list[Effect] = [
        ChannelIdChanged(state.temporary_channel_id, params.channel_id),
        WatchFunding(params.funding_outpoint, params.funding_script_pubkey),
        Send(FundingSigned(params.channel_id, signed.signature)),
    ]
    return _ready_if_deep(following, effects, [save], env)


# --- both ---------------------------------------------------------------------------------------------------------


def channel_id_of(outpoint: OutPoint) -> bytes:
    """BOLT 2, "Definition of `channel_id`": the funding txid, its last two bytes XORed with the output index."""
    last = int.from_bytes(outpoint.txid[30:], "big") ^ outpoint.vout
    return outpoint.txid[:30] + last.to_bytes(2, "big")


def _decoded(kind: type[M], raw: bytes) -> M:
    message = decode(raw)
    assert isinstance(message, kind)
    return message


def _params(
    proposal: OpenChannel,
    acceptance: AcceptChannel,
    remote_node_id: bytes,
    outpoint: OutPoint,
    *,
    local_is_opener: bool,
    env: Env,
) -> ChannelParams:
    ours, theirs = (proposal, acceptance) if local_is_opener else (acceptance, proposal)
    channel_type = ChannelType.from_bytes(proposal.channel_type or b"")
    commitment = CommitmentParams(
        funding_outpoint=outpoint,
        funding_sat=proposal.funding_satoshis,
        local=_keys(ours),
        remote=_keys(theirs),
        local_is_opener=local_is_opener,
        local_dust_limit_sat=ours.dust_limit_satoshis,
        remote_dust_limit_sat=theirs.dust_limit_satoshis,
        local_to_self_delay=theirs.to_self_delay,
        remote_to_self_delay=ours.to_self_delay,
        anchors=channel_type.anchors,
    )
    return ChannelParams(
        channel_id=channel_id_of(outpoint),
        remote_node_id=remote_node_id,
        commitment=commitment,
        local=_limits(ours),
        remote=_limits(theirs),
        channel_type=channel_type.to_bytes(),
        announce=bool(proposal.channel_flags & ANNOUNCE_CHANNEL),
        minimum_depth_blocks=acceptance.minimum_depth,
        created_height=env.block_height,
    )


def _first_spec(proposal: OpenChannel, *, local_is_opener: bool) -> Spec:
    opener_msat = proposal.funding_satoshis * 1000 - proposal.push_msat
    local_msat, remote_msat = (
        (opener_msat, proposal.push_msat) if local_is_opener else (proposal.push_msat, opener_msat)
    )
    return Spec(proposal.feerate_per_kw, local_msat, remote_msat)


def _first_local_commit(params: ChannelParams, spec: Spec, signature: bytes, env: Env, message: str) -> LocalCommit:
    built = build_commitment(params.commitment, spec.commitment_spec(), "local", 0, env.signer.per_commitment_point(0))
    try:
        verify_commitment(built, signature, ())
    except InvalidSignature as error:
        # BOLT 2, "if `signature` is incorrect OR non-compliant with LOW-S-standard rule"
        raise ProtocolViolation(f"{message}: {error}", tx=built.tx.serialize()) from error
    return LocalCommit(0, spec, built.txid, signature)


def _awaiting_funding(
    params: ChannelParams,
    local: LocalCommit,
    remote: RemoteCommit,
    remote_features: frozenset[int],
    local_alias: int,
    funding_tx: bytes,
) -> AwaitingFunding:
    commitments = Commitments(local=local, remote=remote, remote_next=AwaitingChannelReady())
    return AwaitingFunding(
        params=params,
        commitments=with_previews(commitments, params.commitment),
        link=Live(remote_features),
        local_alias=local_alias,
        funding_tx=funding_tx,
    )


def channel_ready(state: Funded, env: Env) -> ChannelReady:
    """Our `channel_ready`, with the alias that the peer may use for this channel.

    BOLT 2, "MUST set `second_per_commitment_point` to the per-commitment point to be used for commitment transaction
    #1".
    """
    return ChannelReady(state.params.channel_id, env.signer.per_commitment_point(1), state.local_alias)


def _ready_if_deep(state: AwaitingFunding, effects: list[Effect], writes: list[Write], env: Env) -> Transition:
    """Says `channel_ready` if the funding is deep enough, and goes on if both did."""
    following: AwaitingFunding | Normal = state
    if not state.ready_sent and state.is_deep:
        following = state = replace(state, ready_sent=True)
        if isinstance(state.link, Live):
            effects.append(Send(channel_ready(state, env)))
    if state.ready_sent and isinstance(state.commitments.remote_next, ReadyToSign):
        following = _normal(state)
        if isinstance(state.link, Live):
            effects.append(ChannelUsable())
    reason = "channel_ready went both ways" if isinstance(following, Normal) else ""
    return Transition(following, tuple(effects), tuple(writes), reason)


def _normal(state: AwaitingFunding) -> Normal:
    return Normal(**shared(state))


def on_funding_depth(state: AwaitingFunding, env: Env) -> Transition:
    """`funding_depth` of the state has changed."""
    return _ready_if_deep(state, [], [], env)


def on_channel_ready(state: Open, message: ChannelReady, env: Env) -> Transition:
    """The peer considers the funding deep enough; later ones may only change the alias."""
    if message.short_channel_id is not None:
        state = replace(state, remote_alias=message.short_channel_id)
    c = state.commitments
    if not isinstance(c.remote_next, AwaitingChannelReady):
        # BOLT 2, "upon reconnection: MUST ignore any redundant `channel_ready` it receives."
        return Transition(state)
    point = message.second_per_commitment_point
    if not is_valid_pubkey(point):
        raise ProtocolViolation("channel_ready: second_per_commitment_point is not a point")
    state = replace(state, commitments=replace(c, remote_next=ReadyToSign(point)))
    if isinstance(state, AwaitingFunding):
        return _ready_if_deep(state, [], [], env)
    return Transition(state)
