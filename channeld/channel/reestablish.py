"""Getting back in step after a connection was lost (BOLT 2, "Message Retransmission")."""

from __future__ import annotations

from typing import Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from channeld.bolt.messages import ChannelReestablish, ErrorMessage, Shutdown, WarningMessage
from channeld.bolt.shachain import MAX_COMMITMENT_NUMBER
from channeld.bolt.transactions.signing import ChannelSecrets
from channeld.channel import chain, closing, normal
from channeld.channel import open as opening
from channeld.channel.commitments import AwaitingRevocation, Commitments, HtlcAdd
from channeld.channel.effects import ChannelUsable, Effect, Send, SendRaw
from channeld.channel.env import Env
from channeld.channel.events import ProtocolViolation
from channeld.channel.state import (
    AnyFunded,
    Live,
    NegotiatingLegacy,
    NegotiatingSimple,
    Normal,
    Offline,
    Open,
    ShuttingDown,
    Syncing,
    Transition,
    WaitingForRemoteClose,
    shared,
)

# --- the comparison -----------------------------------------------------------------------------------------------

Resend = Literal["revocation", "signature"]


class InStep(Struct, frozen=True):
    """Both agree once the messages in `resend` went out again, in this order."""

    resend: tuple[Resend, ...]


class LocalBehind(Struct, frozen=True):
    """The peer proved that we revoked more than we know of: our state is from the past."""


class RemoteBehind(Struct, frozen=True):
    """The peer's state is from the past. It is given time to find out, and to ask us to close."""

    reason: str


class Impossible(Struct, frozen=True):
    """What the peer says fits no history: it lies, or one of us is broken."""

    reason: str


Answer = InStep | LocalBehind | RemoteBehind | Impossible


def compare(c: Commitments, message: ChannelReestablish, signer: ChannelSecrets) -> Answer:
    """What follows from the peer's `channel_reestablish`, whose numbers count what it has received from us."""
    revoked = c.local.index  # we revoked 0 .. revoked - 1
    claimed = message.next_revocation_number
    if claimed > MAX_COMMITMENT_NUMBER:
        return Impossible(f"next_revocation_number {claimed} is beyond the last commitment that a channel can have")
    # BOLT 2, "if `next_revocation_number` equals 0: MUST set `your_last_per_commitment_secret` to all zeroes"
    expected = signer.per_commitment_secret(claimed - 1) if claimed else bytes(32)
    proven = message.your_last_per_commitment_secret == expected
    if claimed > revoked:
        # BOLT 2, "if `next_revocation_number` is greater than expected above, AND `your_last_per_commitment_secret` is
        # correct for that `next_revocation_number` minus 1: MUST NOT broadcast its commitment transaction."
        return (
            LocalBehind() if proven else Impossible(f"next_revocation_number {claimed} without the secret to prove it")
        )
    if not proven:
        # BOLT 2, "if `your_last_per_commitment_secret` does not match the expected values: SHOULD send an `error` and
        # fail"
        return Impossible("your_last_per_commitment_secret is wrong")
    if claimed < revoked - 1:
        return RemoteBehind(f"next_revocation_number {claimed}, but we revoked {revoked} commitments")
    resend_revocation = claimed == revoked - 1

    following = c.remote_next
    wanted = message.next_commitment_number
    signed = c.latest_remote.index
    awaiting = isinstance(following, AwaitingRevocation)
    resend_signature = awaiting and wanted == signed
    if wanted > signed + 1:
        return Impossible(f"next_commitment_number {wanted}, but we signed {signed} only")
    if wanted <= signed and not resend_signature:
        return RemoteBehind(f"next_commitment_number {wanted}, but it revoked commitment {c.remote.index - 1}")
    # BOLT 2, "MUST retransmit `revoke_and_ack` and `commitment_signed` in the same relative order as initially
    # transmitted."
    if resend_revocation and resend_signature and isinstance(following, AwaitingRevocation):
        if c.local.index > following.sent_after_local_index:
            return InStep(("signature", "revocation"))
        return InStep(("revocation", "signature"))
    if resend_revocation:
        return InStep(("revocation",))
    return InStep(("signature",) if resend_signature else ())


_OUTDATED = "the peer proved that our state is outdated: waiting for it to close the channel"

# --- the exchange -------------------------------------------------------------------------------------------------


def on_connected(state: AnyFunded, remote_features: frozenset[int], env: Env) -> tuple[AnyFunded, list[Effect]]:
    """BOLT 2, "MUST transmit `channel_reestablish` for each channel." """
    return replace(state, link=Syncing(remote_features)), [Send(where_we_stand(state, env))]


def where_we_stand(state: AnyFunded, env: Env) -> ChannelReestablish:
    """Our `channel_reestablish`."""
    c = state.commitments
    received = c.remote.index  # the peer revoked 0 .. received - 1
    # BOLT 2, "if `next_commitment_number` is zero: MUST immediately fail the channel and broadcast any relevant latest
    # commitment transaction": that is what we want of the peer if nobody can tell whether our state is outdated.
    is_from_backup = isinstance(state, WaitingForRemoteClose) and state.is_from_backup
    return ChannelReestablish(
        state.params.channel_id,
        0 if is_from_backup else c.local.index + 1,
        received,
        c.remote_secrets.secret(received - 1) if received else bytes(32),
        env.signer.per_commitment_point(c.local.index),
    )


def from_backup(state: Open) -> WaitingForRemoteClose:
    """A channel as `channels.backup` has it. What a peer says cannot show that our commitment is not revoked, and may
    be an answer to what we say; a tower of an honest one that lost its state, too, may punish us. A funding transaction
    that is in no block stays out of it as far as we can help it: a peer that was asked to close may have forgotten the
    channel by then."""
    reason = "what is left of the channel is from channels.backup: waiting for the peer to close it"
    bare = replace(state, unconfirmed=None, link=Offline(), funding_tx=b"")
    return WaitingForRemoteClose(**shared(bare), reason=reason, is_from_backup=True)


def on_reestablish_while_waiting(state: WaitingForRemoteClose, message: ChannelReestablish, env: Env) -> AnyFunded:
    """The peer may prove now what we only suspect."""
    if state.is_from_backup and isinstance(compare(state.commitments, message, env.signer), LocalBehind):
        return replace(state, reason=_OUTDATED, is_from_backup=False)
    return state


def on_channel_reestablish(state: Open, message: ChannelReestablish, env: Env) -> Transition:
    """The peer told where it stands: what it lacks is sent again."""
    if not isinstance(state.link, Syncing):
        raise ProtocolViolation("channel_reestablish in the middle of a connection", "warning")
    answer = compare(state.commitments, message, env.signer)
    if message.next_commitment_number == 0 and not isinstance(answer, LocalBehind):
        # BOLT 2, "if `next_commitment_number` is zero: MUST immediately fail the channel and broadcast any relevant
        # latest commitment transaction." A peer that knows nothing any more cannot punish us either.
        return chain.on_forgotten(state, "channel_reestablish: next_commitment_number is zero", env)
    failure = state.unconfirmed.failure if state.unconfirmed else ""
    if isinstance(answer, InStep | RemoteBehind):
        state = replace(state, unconfirmed=None)
        if failure:
            return chain.fail(state, failure, env)
    match answer:
        case InStep(resend=resend):
            return _back_in_step(state, message, resend, env)
        case LocalBehind():
            tell = ErrorMessage(state.params.channel_id, b"we lost state, please close the channel")
            waiting = WaitingForRemoteClose(**shared(state), reason=_OUTDATED)
            return Transition(waiting, (Send(tell),), (), _OUTDATED)
        case RemoteBehind(reason=reason):
            # BOLT 2, "The other node should wait for that `error` to give the fallen-behind node an opportunity to fix
            # its state first"
            data = f"your state is outdated: {reason}".encode()
            return Transition(state, (Send(WarningMessage(state.params.channel_id, data)),))
        case Impossible(reason=reason):
            raise ProtocolViolation(f"channel_reestablish: {reason}")
        case _:
            assert_never(answer)


def _back_in_step(state: Open, message: ChannelReestablish, resend: tuple[Resend, ...], env: Env) -> Transition:
    assert isinstance(state.link, Syncing)
    c, params = state.commitments, state.params
    effects: list[Effect] = []
    state = replace(state, link=Live(state.link.remote_features))
    if state.ready_sent and message.next_commitment_number == 1 and c.local.index == 0:
        # BOLT 2, "if `next_commitment_number` is 1 in both the `channel_reestablish` it sent and received ...: MUST
        # retransmit `channel_ready`."
        effects.append(Send(opening.channel_ready(state, env)))
    for what in resend:
        if what == "revocation":
            effects.append(Send(normal.revoke_and_ack(params, c.local.index, env)))
        else:
            effects += _signature_again(state, env)
    if isinstance(state, NegotiatingLegacy | NegotiatingSimple) or (
        isinstance(state, ShuttingDown) and state.local_sent
    ):
        # BOLT 2, "if it has sent a previous `shutdown`: MUST retransmit `shutdown`."
        effects.append(Send(Shutdown(params.channel_id, state.local_script)))
    if isinstance(state, Normal | ShuttingDown):
        commitments, proposals = normal.propose_pending(c, params)
        state = replace(state, commitments=commitments)
        effects += proposals
    if isinstance(state, Normal):
        effects.append(ChannelUsable())
    if isinstance(state, ShuttingDown):
        return closing.advance(state, env, effects, [])
    return Transition(state, tuple(effects))


def _signature_again(state: Open, env: Env) -> list[Effect]:
    """The updates that the peer's newest commitment commits to, and our signature of it: it is deterministic."""
    c, params = state.commitments, state.params
    effects: list[Effect] = []
    for update in c.ours.signed:
        if isinstance(update, HtlcAdd):
            effects.append(SendRaw(env.adds[True, update.htlc.id]))
        else:
            effects.append(Send(normal.update_message(params, update)))
    commit = c.latest_remote
    message, _, _ = normal.sign_remote(params, commit.spec, commit.index, commit.point, env)
    effects.append(Send(message))
    return effects
