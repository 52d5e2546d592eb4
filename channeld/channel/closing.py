"""Closing together, first part: `shutdown` both ways, and waiting until nothing is left (BOLT 2, "Channel Close")."""

from __future__ import annotations

from msgspec.structs import replace

from channeld.bolt.features import Feature, NegotiatedFeatures
from channeld.bolt.messages import Shutdown
from channeld.channel import close_legacy, close_simple
from channeld.channel.closing_scripts import check_remote_script, is_valid_script
from channeld.channel.commitments import HtlcAdd
from channeld.channel.effects import Effect, NeedShutdownScript, Send
from channeld.channel.env import Env
from channeld.channel.events import CloseChannel, CommandRejected, ProtocolViolation
from channeld.channel.state import (
    AwaitingFunding,
    Live,
    Negotiating,
    NegotiatingLegacy,
    NegotiatingSimple,
    Normal,
    Offline,
    Open,
    ShuttingDown,
    Transition,
    shared,
)
from channeld.channel.writes import Write

# --- our wish -----------------------------------------------------------------------------------------------------


def close_channel(state: Open, event: CloseChannel, env: Env) -> Transition:
    """Closes together, or pays more for a close under way. Raises CommandRejected."""
    if not event.feerate_per_kw and not isinstance(state, AwaitingFunding | Normal) and state.local_script:
        return Transition(state)  # NeedShutdownScript is answered after somebody who has wishes has closed the channel
    script = _our_script(state, event.script_pubkey, env)
    feerate_per_kw = max(event.feerate_per_kw, env.policy.min_feerate_per_kw) if event.feerate_per_kw else 0
    match state:
        case AwaitingFunding() | Normal():
            following = ShuttingDown(**shared(state), local_script=script, closing_feerate_per_kw=feerate_per_kw)
            return advance(following, env, [], [], "we close the channel")
        case ShuttingDown(local_sent=True):
            return Transition(replace(state, closing_feerate_per_kw=feerate_per_kw))
        case ShuttingDown():
            following = replace(state, local_script=script, closing_feerate_per_kw=feerate_per_kw)
            return advance(following, env, [], [])
        case NegotiatingLegacy():
            # BOLT 2, "negotiation restarts on reconnection": the new fee rate counts from then on
            return Transition(replace(state, closing_feerate_per_kw=feerate_per_kw))
        case NegotiatingSimple():
            return close_simple.close_again(state, script, feerate_per_kw, env)


def _our_script(state: Open, wanted: bytes, env: Env) -> bytes:
    upfront = state.params.local.upfront_shutdown_script
    if upfront:
        # BOLT 2, "if it sent a non-zero-length `shutdown_scriptpubkey` in `open_channel` or `accept_channel`: MUST
        # send the same value in `scriptpubkey`."
        if wanted not in (b"", upfront):
            raise CommandRejected(
                "invalid", "the channel can only be closed to the script that was fixed when it opened"
            )
        return upfront
    if not is_valid_script(wanted, state.link, env):
        raise CommandRejected("invalid", "the peer does not accept a script of this kind to close to")
    return wanted


# --- the peer's ---------------------------------------------------------------------------------------------------


def on_shutdown(state: Open, message: Shutdown, env: Env) -> Transition:
    """The peer wants to close, or repeats that it does after a reconnection."""
    check_remote_script(state, message.scriptpubkey, env)
    if any(isinstance(update, HtlcAdd) for update in state.commitments.theirs.proposed):
        # BOLT 2, "if there are updates pending on the receiving node's commitment transaction: MUST NOT send a
        # `shutdown`."
        raise ProtocolViolation("shutdown with HTLCs that were not signed for", "warning")
    script = message.scriptpubkey
    match state:
        case AwaitingFunding() | Normal():
            following = ShuttingDown(
                **shared(state),
                local_script=state.params.local.upfront_shutdown_script,
                remote_script=script,
            )
            return advance(following, env, need_script(following, env), [], "the peer closes the channel")
        case ShuttingDown():
            return advance(replace(state, remote_script=script), env, [], [])
        case NegotiatingLegacy() | NegotiatingSimple():
            if state.sent is not None and state.remote_script == script:
                return Transition(state)  # it is known already, and we have made our offer on this connection
            following = ShuttingDown(
                **shared(state),
                local_script=state.local_script,
                local_sent=True,
                remote_script=script,
                closing_feerate_per_kw=state.closing_feerate_per_kw,
            )
            return _negotiate(following, env, [], [], "", state)


def need_script(state: ShuttingDown, env: Env) -> list[Effect]:
    """Asks for our script if we have none."""
    if state.local_script:
        return []
    remote = frozenset() if isinstance(state.link, Offline) else state.link.remote_features
    negotiated = NegotiatedFeatures(env.local_features, remote)
    return [NeedShutdownScript(negotiated.has(Feature.option_shutdown_anysegwit))]


# --- progress -----------------------------------------------------------------------------------------------------


def advance(state: ShuttingDown, env: Env, effects: list[Effect], writes: list[Write], reason: str = "") -> Transition:
    """Sends `shutdown` as soon as it may be sent, and negotiates as soon as nothing is left."""
    c = state.commitments
    if not isinstance(state.link, Live):
        return Transition(state, tuple(effects), tuple(writes), reason)
    if state.local_script and not state.local_sent and not c.ours.proposed:
        if not is_valid_script(state.local_script, state.link, env):
            state = replace(state, local_script=b"")
            effects += need_script(state, env)
            return Transition(state, tuple(effects), tuple(writes), reason)
        effects.append(Send(Shutdown(state.params.channel_id, state.local_script)))
        state = replace(state, local_sent=True, first_late_htlc_id=c.remote_next_htlc_id)
    if state.local_sent and state.remote_script and c.is_settled and not c.has_htlcs:
        # BOLT 2, "Once shutdown is complete, the channel is empty of HTLCs, there are no commitments for which a
        # revocation is owed, and all updates are included on both commitments"
        return _negotiate(state, env, effects, writes, "nothing is left in the channel")
    return Transition(state, tuple(effects), tuple(writes), reason)


def _negotiate(
    state: ShuttingDown,
    env: Env,
    effects: list[Effect],
    writes: list[Write],
    reason: str,
    before: Negotiating | None = None,
) -> Transition:
    """Starts negotiating, or starts again on a new connection, with what this connection supports. What was signed
    `before` may still confirm, and a peer that begins again and again is not waited for any longer."""
    assert isinstance(state.link, Live)
    closing_txs, since_height = (before.closing_txs, before.since_height) if before is not None else ((), 0)
    negotiated = NegotiatedFeatures(env.local_features, state.link.remote_features)
    following: NegotiatingLegacy | NegotiatingSimple
    if negotiated.has(Feature.option_simple_close):
        following = NegotiatingSimple(
            **shared(state),
            local_script=state.local_script,
            remote_script=state.remote_script,
            # Both sides offer a transaction, each paying for its own. The one who did not ask for the close offers the
            # least that is relayed, so that the other's counts, unless that one cannot pay.
            closing_feerate_per_kw=state.closing_feerate_per_kw or env.policy.min_feerate_per_kw,
            closing_txs=closing_txs,
            since_height=since_height,
        )
        following, more = close_simple.propose(following, env)
    else:
        following = NegotiatingLegacy(
            **shared(state),
            local_script=state.local_script,
            remote_script=state.remote_script,
            closing_feerate_per_kw=state.closing_feerate_per_kw or env.closing_feerate_per_kw,
            closing_txs=closing_txs,
            since_height=since_height,
        )
        following, more = close_legacy.begin(following, env)
    return Transition(following, (*effects, *more), tuple(writes), reason)
