"""What the chain does to a channel, and what a channel does to the chain: depth, spends, deadlines, force-closing.

What happens to the outputs of a commitment that was published is not decided here (BOLT 5): the state keeps what that
takes, that is both sides' latest commitments, signatures, preimages and the peer's secrets.
"""

from __future__ import annotations

from msgspec.structs import replace

from channeld.bolt.messages import ErrorMessage
from channeld.bolt.messages.control import told_to_peer
from channeld.bolt.primitives import short_channel_id
from channeld.bolt.transactions import build_commitment, commitment_number_of
from channeld.bolt.transactions.closing import has_dust_output
from channeld.bolt.transactions.fees import weight_fee_sat
from channeld.bolt.transactions.signing import complete
from channeld.channel import economics, normal, unconfirmed
from channeld.channel import open as opening
from channeld.channel.commitments import AwaitingRevocation, htlc_key
from channeld.channel.effects import (
    Broadcast,
    ChannelUsable,
    CloseCompleted,
    Effect,
    FundingLost,
    HtlcFailed,
    HtlcSettled,
    ReleaseFunding,
    RemoteUnilateralClose,
    Send,
)
from channeld.channel.env import Env
from channeld.channel.events import (
    CommandRejected,
    ForceClose,
    FundingDepth,
    FundingSpent,
    HtlcOnChain,
)
from channeld.channel.state import (
    AnyFunded,
    AwaitingFunding,
    Closed,
    CloseKind,
    Closing,
    FundingCreatedSent,
    Live,
    NegotiatingLegacy,
    NegotiatingSimple,
    Normal,
    Open,
    Opening,
    OpenReceived,
    ShuttingDown,
    Standing,
    Transition,
    WaitingForRemoteClose,
    shared,
)
from channeld.channel.writes import Write
from wallet.bitcoin import Tx

FORGET_UNFUNDED_AFTER_BLOCKS = 2016
_REMOTE_KINDS: dict[CloseKind, str] = {
    "remote_current": "current",
    "remote_next": "next",
    "revoked": "revoked",
    "unknown": "unknown",
}

# --- the funding transaction --------------------------------------------------------------------------------------


def on_funding_depth(state: AnyFunded, event: FundingDepth, env: Env) -> Transition:
    """The funding transaction was buried deeper, or reorganised."""
    params = state.params
    if event.rival_txid and event.rival_depth >= env.policy.irrevocable_depth_blocks:
        reason = f"the funding transaction was double-spent by {event.rival_txid[::-1].hex()}: nothing can be claimed"
        return _came_to_nothing(state, reason, event.rival_txid)
    if event.amount_sat not in (None, params.capacity_sat) and isinstance(state, AwaitingFunding):
        # BOLT 2, "MUST NOT send `channel_ready` unless outpoint ... pays exactly `funding_satoshis`"; no signature that
        # was exchanged is valid for such an output
        reason = f"the funding output has {event.amount_sat} sat instead of {params.capacity_sat}"
        return _forgotten(state, reason, [_error(state, reason)])
    scid = state.scid
    if event.depth > 0:
        scid = short_channel_id(event.block_height, event.tx_index, params.funding_outpoint.vout)
    funding_tx = state.funding_tx
    if event.depth >= env.policy.burial_depth_blocks:
        funding_tx = b""
    following = replace(
        state, funding_depth=event.depth, scid=scid, funding_tx=funding_tx, double_spent_by=event.rival_txid
    )
    effects = _funding_news(state, following)
    if isinstance(following, AwaitingFunding):
        transition = opening.on_funding_depth(following, env)
        return replace(transition, effects=(*effects, *transition.effects))
    return Transition(following, tuple(effects))


def _funding_news(before: AnyFunded, after: AnyFunded) -> list[Effect]:
    """What a change of the funding transaction's depth means for a channel in use."""
    if after.double_spent_by and after.double_spent_by != before.double_spent_by:
        rival = after.double_spent_by[::-1].hex()
        return [FundingLost(f"the funding transaction was double-spent by {rival}: the channel is worth nothing now")]
    if not isinstance(after, Normal) or before.is_deep == after.is_deep:
        return []
    if after.is_deep:
        return [ChannelUsable()] if isinstance(after.link, Live) else []
    depth = after.required_depth_blocks
    return [FundingLost(f"a reorganisation: the channel is not used until its funding is {depth} blocks deep again")]


def _came_to_nothing(state: AnyFunded, reason: str, rival_txid: bytes | None) -> Transition:
    """The funding transaction will never be in the chain: nobody can claim anything, and what we offered is ours."""
    effects: list[Effect] = []
    writes: list[Write] = []
    if not isinstance(state, WaitingForRemoteClose | Closing):
        commitments, effects, writes = normal.drop_uncommitted(state.commitments, state.params)
        state = replace(state, commitments=commitments)
    c = state.commitments
    offered = {**c.latest_remote.spec.htlcs, **c.remote.spec.htlcs, **c.local.spec.htlcs}
    for htlc in offered.values():
        if htlc.offered and htlc.id in c.origins and htlc.id not in c.learnt:
            effects.append(HtlcFailed(htlc.id, c.origins[htlc.id], htlc.payment_hash, htlc.amount_msat, on_chain=True))
    closed = Closed(
        id=state.params.channel_id,
        remote_node_id=state.params.remote_node_id,
        reason=reason,
        closing_txid=rival_txid,
        capacity_sat=state.params.capacity_sat,
        is_opener=state.params.is_opener,
        funding_outpoint=state.params.funding_outpoint,
    )
    effects.append(CloseCompleted(rival_txid, reason))
    return Transition(closed, tuple(effects), tuple(writes), reason)


# --- deadlines ----------------------------------------------------------------------------------------------------


def on_new_block(state: AnyFunded, env: Env) -> Transition:
    """Nothing may be left to the last block."""
    state = unconfirmed.at_tip(state, env)
    doubt = state.unconfirmed
    if isinstance(state, Open) and doubt is not None and doubt.failure:
        return fail_when_safe(state, doubt.failure, env)
    # BOLT 2, "A non-funding node (fundee): SHOULD forget the channel if it does not see the correct funding
    # transaction after a timeout of 2016 blocks", "even if the promise of `push_msat` is significant".
    unfunded = not isinstance(state, Normal) and not state.params.is_opener and state.scid is None
    if unfunded and env.block_height - state.params.created_height >= FORGET_UNFUNDED_AFTER_BLOCKS:
        return _came_to_nothing(state, "the funding transaction did not confirm in 2016 blocks", None)
    if isinstance(state, NegotiatingLegacy | NegotiatingSimple):
        return _patience(state, env)
    if isinstance(state, Normal | ShuttingDown):
        reason = economics.reason_to_close(state.commitments, state.params, env)
        if reason and doubt is not None and not unconfirmed.waited_for_deadline(doubt, env):
            following, effects = unconfirmed.held(state, reason, failed=False)
            return Transition(following, tuple(effects))
        if reason:
            return fail(state, reason, env)
    return Transition(state)


def _patience(state: NegotiatingLegacy | NegotiatingSimple, env: Env) -> Transition:
    """BOLT 2, "if it doesn't receive a `closing_signed` response after a reasonable amount of time: MUST fail the
    channel"."""
    if _usable_close(state, env) is not None:
        return Transition(state)
    if not state.since_height:
        return Transition(replace(state, since_height=env.block_height))
    waited_blocks = env.block_height - state.since_height
    if waited_blocks < env.policy.closing_patience_blocks:
        return Transition(state)
    return fail(state, f"no closing transaction was agreed on in {waited_blocks} blocks", env)


def _usable_close(state: NegotiatingLegacy | NegotiatingSimple, env: Env) -> Tx | None:
    """The newest closing transaction that can be mined: a peer may have chosen a fee, a locktime or a dust output with
    which it cannot."""
    for raw in reversed(state.closing_txs):
        tx = Tx.parse(raw)
        fee_sat = state.params.capacity_sat - sum(output.value_sat for output in tx.outputs)
        relayed = fee_sat >= weight_fee_sat(tx.weight(), env.policy.min_feerate_per_kw)
        if relayed and tx.locktime <= env.block_height and not has_dust_output(tx):
            return tx
    return None


# --- failing the channel ------------------------------------------------------------------------------------------


_OUTDATED = "our state is outdated: publishing it would lose everything in the channel"


def force_close(state: AnyFunded, event: ForceClose, env: Env) -> Transition:
    """The operator's or the driver's wish. Raises CommandRejected if our commitment must not be broadcast."""
    if isinstance(state, WaitingForRemoteClose):
        if state.is_from_backup and event.even_if_outdated:
            return fail(state, event.reason, env)
        # BOLT 2, "MUST NOT broadcast its commitment transaction."
        raise CommandRejected("invalid", _OUTDATED)
    if isinstance(state, Closing):
        return _force_closing(state, event, env)
    if event.even_if_outdated:
        return fail(state, event.reason, env)
    held = fail_when_safe(state, event.reason, env, event.tx)
    if isinstance(held.state, Open):
        # The peer hears of it now: if it is honest it publishes its own commitment, which is always safe for us.
        tell = _error(held.state, event.reason, event.tx)
        return Transition(held.state, (tell, *held.effects), held.writes, held.reason)
    return held


def _force_closing(state: Closing, event: ForceClose, env: Env) -> Transition:
    """What closed the channel may have left the chain, and not come back: then our commitment is the way out, which
    competes with it. BOLT 5, "MUST NOT broadcast a commitment transaction for which *it* has exposed the
    `per_commitment_secret`": of that nothing was learnt after the channel began to close."""
    if state.local_tx:
        return Transition(state)  # it is published again after each block
    if state.confirmed_height is not None:
        raise CommandRejected(
            "invalid",
            f"the transaction that closed this channel is in block {state.confirmed_height}: nothing is left to force, "
            "what is ours of it comes home by itself",
        )
    if state.standing == "outdated":
        raise CommandRejected("invalid", _OUTDATED)
    if state.standing == "doubtful" and not event.even_if_outdated:
        raise CommandRejected("invalid", "our commitment may be revoked: publishing it may lose the whole channel")
    tx = signed_local_commitment(state, env)
    raw = tx.serialize()
    following = replace(
        state,
        kind="local",
        closing_tx=raw,
        local_tx=raw,
        reason=event.reason,
        error=event.reason,
        remote_commit_index=None,
    )
    return Transition(following, (_error(state, event.reason), Broadcast(tx, "local commitment")), (), event.reason)


def fail_when_safe(state: Open, reason: str, env: Env, wrongly_signed: bytes = b"") -> Transition:
    """Fails the channel, or keeps in mind that it has to be, while our commitment may be from an old copy."""
    doubt = state.unconfirmed
    if doubt is None or not unconfirmed.is_doubtful(state):
        return fail(state, reason, env, wrongly_signed)
    if unconfirmed.waited_for_failure(doubt, env) and not _may_have_more(state):
        return fail(state, reason, env, wrongly_signed)
    following, effects = unconfirmed.held(state, reason, failed=True)
    return Transition(following, tuple(effects))


def fail(state: Open | WaitingForRemoteClose, reason: str, env: Env, wrongly_signed: bytes = b"") -> Transition:
    """Fails the channel: the peer is told, and our latest commitment is published (BOLT 5, "Failing a Channel"). The
    peer's signature of `wrongly_signed` was not valid."""
    tell = _error(state, reason, wrongly_signed)
    if isinstance(state, AwaitingFunding) and _has_nothing_at_stake(state):
        return _forgotten(state, reason, [tell])
    commitments, effects, writes = normal.drop_uncommitted(state.commitments, state.params)
    state = replace(state, commitments=commitments)
    tx = signed_local_commitment(state, env)
    raw = tx.serialize()
    following = Closing(
        **shared(state),
        kind="local",
        closing_tx=raw,
        local_tx=raw,
        reason=reason,
        error=told_to_peer(reason, wrongly_signed),
        shutdown_scripts=shutdown_scripts(state),
    )
    effects += [tell, Broadcast(tx, "local commitment")]
    return Transition(following, tuple(effects), tuple(writes), reason)


def _error(state: AnyFunded, reason: str, tx: bytes = b"") -> Send:
    return Send(ErrorMessage(state.params.channel_id, told_to_peer(reason, tx).encode()))


def signed_local_commitment(state: AnyFunded, env: Env) -> Tx:
    """Our latest commitment with both signatures. It is never one that we revoked: `local` changes in the same step
    that reveals the secret of the one before."""
    params, local = state.params.commitment, state.commitments.local
    point = env.signer.per_commitment_point(local.index)
    built = build_commitment(params, local.spec.commitment_spec(), "local", local.index, point)
    assert built.txid == local.txid, "our commitment is not the one that the peer signed"
    return complete(params, built.tx, env.signer.sign_own_commitment(built), local.remote_sig)


def _has_nothing_at_stake(state: AwaitingFunding) -> bool:
    # BOLT 5, "if a *local commitment transaction* has NOT ever contained a `to_local` or HTLC output: MAY simply forget
    # the channel."
    to_local_sat = state.commitments.local.spec.to_local_msat // 1000
    return not state.params.is_opener and to_local_sat < state.params.local.dust_limit_sat


def _may_have_more(state: Open) -> bool:
    """Whether a copy from the opening, which would be forgotten, may be older than what the channel has got for us
    since: the peer's commitment pays that, whenever it comes. Waiting for it costs nothing."""
    return isinstance(state, AwaitingFunding) and _has_nothing_at_stake(state) and unconfirmed.is_doubtful(state)


def _forgotten(state: AwaitingFunding, reason: str, effects: list[Effect]) -> Transition:
    closed = Closed(
        id=state.params.channel_id,
        remote_node_id=state.params.remote_node_id,
        reason=reason,
        capacity_sat=state.params.capacity_sat,
        funding_outpoint=state.params.funding_outpoint,
    )
    return Transition(closed, (*effects, CloseCompleted(None, reason)), (), reason)


def abandon(state: Opening, reason: str, *, tell: bool, tx: bytes = b"") -> Transition:
    """Gives up an opening that has no funds yet. `tx` was signed wrongly by the peer."""
    effects: list[Effect] = []
    if isinstance(state, OpenReceived):
        id, remote_node_id = state.temporary_channel_id, state.remote_node_id
    else:
        id, remote_node_id = state.wanted.temporary_channel_id, state.wanted.remote_node_id
    if tell:
        # BOLT 1, "for all error messages sent before (and including) the `funding_created` message: MUST use
        # `temporary_channel_id` in lieu of `channel_id`." After it the peer may know the other one only.
        named = state.params.channel_id if isinstance(state, FundingCreatedSent) else id
        effects.append(Send(ErrorMessage(named, told_to_peer(reason, tx).encode())))
    if isinstance(state, FundingCreatedSent):
        effects.append(ReleaseFunding(state.params.funding_outpoint.txid))
    closed = Closed(id=id, remote_node_id=remote_node_id, reason=reason)
    return Transition(closed, (*effects, CloseCompleted(None, reason)), (), reason)


def on_error(state: Open, reason: str, env: Env) -> Transition:
    """The peer failed the channel (BOLT 1, "MUST fail the channel referred to by `channel_id`")."""
    return _closed_together_anyway(state, env) or fail_when_safe(state, reason, env)


def on_forgotten(state: Open, reason: str, env: Env) -> Transition:
    """The peer knows nothing of the channel any more (BOLT 2, "MUST immediately fail the channel and broadcast any
    relevant latest commitment transaction"), and cannot punish us either. LDK says so as soon as it has the closing
    transaction, or has closed by force, and it does punish then: an old copy has no "relevant latest" one."""
    if (closed := _closed_together_anyway(state, env)) is not None:
        return closed
    if _may_have_more(state):
        held = fail_when_safe(state, reason, env)
        return replace(held, effects=(_error(state, reason), *held.effects))
    return fail_when_safe(state, reason, env) if env.policy.database_is_copy else fail(state, reason, env)


def _closed_together_anyway(state: Open, env: Env) -> Transition | None:
    # BOLT 5, "if it has received a valid `closing_signed` message that includes a sufficient fee: SHOULD use this
    # fee to perform a *mutual close*."
    if not isinstance(state, NegotiatingLegacy | NegotiatingSimple):
        return None
    closing_tx = _usable_close(state, env)
    return None if closing_tx is None else Transition(state, (Broadcast(closing_tx, "mutual close"),))


# --- the funding output was spent ---------------------------------------------------------------------------------


def on_funding_spent(state: AnyFunded, event: FundingSpent, env: Env) -> Transition:
    """Somebody closed the channel on chain."""
    if _is_no_funding(state, event.tx):
        return _came_to_nothing(state, "what the peer named as the funding output is none", None)
    kind, number = classify(state, event.tx)
    negotiating = isinstance(state, NegotiatingLegacy | NegotiatingSimple)
    if kind == "mutual" and negotiating and event.block_height is None:
        return Transition(state)  # the peer may still need our signature again
    raw = event.tx.serialize()
    effects: list[Effect] = []
    writes: list[Write] = []
    standing = _standing(state, kind, number)
    if isinstance(state, Closing):
        known = state.closing_tx == raw or state.kind == kind == "local"
        following = replace(
            state,
            kind=kind,
            closing_tx=raw,
            confirmed_height=event.block_height,
            remote_commit_index=number,
            standing=standing,
        )
    else:
        known = False
        if not isinstance(state, WaitingForRemoteClose):
            commitments, effects, writes = normal.drop_uncommitted(state.commitments, state.params)
            state = replace(state, commitments=commitments)
        reason = _sentence(kind)
        following = Closing(
            **shared(state),
            kind=kind,
            closing_tx=raw,
            reason=reason,
            error="the funding output is spent" if kind != "mutual" else "",
            confirmed_height=event.block_height,
            remote_commit_index=number,
            shutdown_scripts=shutdown_scripts(state),
            standing=standing,
        )
    if kind in _REMOTE_KINDS and not known:
        effects.append(RemoteUnilateralClose(event.tx, _REMOTE_KINDS[kind]))
    # BOLT 5, "*irrevocably resolved*": until then a reorganisation may bring a commitment instead, a revoked one too.
    buried = event.block_height is not None and event.depth >= env.policy.burial_depth_blocks
    following = replace(following, buried=kind == "mutual" and buried)
    return Transition(following, tuple(effects), tuple(writes), following.reason)


def _is_no_funding(state: AnyFunded, spending: Tx) -> bool:
    """Whether the spend of an output that the peer named, and that was never seen in the chain, proves that it is not
    the funding output: that of a P2WSH output shows its script. An outpoint commits to what it is, in any chain."""
    if not state.is_unseen:
        return False
    script, outpoint = state.params.commitment.funding_script(), state.params.funding_outpoint
    return any(txin.outpoint == outpoint and txin.witness[-1:] != (script,) for txin in spending.inputs)


def _standing(state: AnyFunded, kind: CloseKind, number: int | None) -> Standing:
    """Of our commitment, by what was known before and what was seen now. Who publishes ours in our place, or spends the
    output without a commitment, has a copy of us, which may have gone on."""
    lost = isinstance(state, WaitingForRemoteClose) or (kind == "unknown" and number is not None)
    if lost or (isinstance(state, Closing) and state.standing == "outdated"):
        return "outdated"
    before = state.standing == "doubtful" if isinstance(state, Closing) else unconfirmed.is_doubtful(state)
    return "doubtful" if before or kind in ("local", "unknown") else "latest"


def _sentence(kind: CloseKind) -> str:
    sentences: dict[CloseKind, str] = {
        "mutual": "closed together",
        "local": "our commitment was published",
        "remote_current": "the peer published its commitment",
        "remote_next": "the peer published its newest commitment",
        "revoked": "the peer published a revoked commitment",
        "unknown": "the funding output was spent by a transaction that we do not know",
    }
    return sentences[kind]


def classify(state: AnyFunded, tx: Tx) -> tuple[CloseKind, int | None]:
    """What a transaction that spends the funding output is; with the commitment's number if it is one of the peer's."""
    c, txid = state.commitments, tx.txid()
    if txid == c.local.txid:
        return "local", None
    if txid == c.remote.txid:
        return "remote_current", c.remote.index
    if isinstance(c.remote_next, AwaitingRevocation) and txid == c.remote_next.commit.txid:
        return "remote_next", c.remote_next.commit.index
    number = commitment_number_of(state.params.commitment, tx)
    if number is not None:
        return ("revoked", number) if number < c.remote.index else ("unknown", number)
    # Not only what we broadcast: the peer may have used a signature of ours that it never answered.
    scripts = shutdown_scripts(state)
    if scripts and all(output.script_pubkey in scripts for output in tx.outputs):
        return "mutual", None
    return "unknown", None


def shutdown_scripts(state: AnyFunded) -> tuple[bytes, ...]:
    """Where a closing transaction may pay, if one can have been signed."""
    match state:
        case ShuttingDown():
            return tuple(script for script in (state.local_script, state.remote_script) if script)
        case NegotiatingLegacy() | NegotiatingSimple():
            signed = (output.script_pubkey for raw in state.closing_txs for output in Tx.parse(raw).outputs)
            return tuple(dict.fromkeys((state.local_script, state.remote_script, *signed)))
        case Closing(shutdown_scripts=scripts):
            return scripts
        case _:
            return ()


def on_htlc_on_chain(state: AnyFunded, event: HtlcOnChain) -> Transition:
    """An HTLC that we offered ended on chain: its outcome is reported once."""
    c = state.commitments
    if not isinstance(state, Closing) or event.id not in c.origins or event.id in c.learnt:
        return Transition(state)
    key = htlc_key(event.id, True)
    specs = (c.latest_remote.spec, c.remote.spec, c.local.spec)
    htlc = next((spec.htlcs[key] for spec in specs if key in spec.htlcs), None)
    if htlc is None:
        return Transition(state)
    origin = c.origins[event.id]
    if event.payment_preimage is not None:
        settled = HtlcSettled(event.id, origin, htlc.payment_hash, htlc.amount_msat, event.payment_preimage)
        return Transition(replace(state, commitments=replace(c, learnt=c.learnt | {event.id})), (settled,))
    origins = {id: kept for id, kept in c.origins.items() if id != event.id}
    failed = HtlcFailed(event.id, origin, htlc.payment_hash, htlc.amount_msat, on_chain=True)
    return Transition(replace(state, commitments=replace(c, origins=origins)), (failed,))


def on_outputs_resolved(state: AnyFunded) -> Transition:
    """All outputs of the commitment that closed the channel are dealt with."""
    if not isinstance(state, Closing):
        raise CommandRejected("invalid", "the channel is not closing")
    spec = state.commitments.local.spec
    txid = Tx.parse(state.closing_tx).txid()
    closed = Closed(
        id=state.params.channel_id,
        remote_node_id=state.params.remote_node_id,
        reason=state.reason,
        closing_txid=txid,
        kind=state.kind,
        capacity_sat=state.params.capacity_sat,
        to_local_msat=spec.to_local_msat,
        to_remote_msat=spec.to_remote_msat,
        is_opener=state.params.is_opener,
        funding_outpoint=state.params.funding_outpoint,
    )
    return Transition(closed, (CloseCompleted(txid, state.reason),), (), state.reason)


def closing_effects(state: Closing) -> list[Effect]:
    """What a closing channel does again after a restart."""
    effects: list[Effect] = []
    if state.local_tx:
        effects.append(Broadcast(Tx.parse(state.local_tx), "local commitment"))
    if state.kind == "mutual":
        effects.append(Broadcast(Tx.parse(state.closing_tx), "mutual close"))
    if state.kind in _REMOTE_KINDS:
        effects.append(RemoteUnilateralClose(Tx.parse(state.closing_tx), _REMOTE_KINDS[state.kind]))
    return effects
