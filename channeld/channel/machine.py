"""The channel as a pure function: `step(state, event, env) -> Transition`.

One table says which message is handled by what and in which phases; what is out of order is rejected here and nowhere
else. Also here: how a channel begins (`initiate`, `accept`), how it wakes up (`resume`), and how it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

import msgspec
from msgspec.structs import replace

from channeld.bolt.messages import (
    AcceptChannel,
    ChannelReady,
    ChannelReestablish,
    ClosingComplete,
    ClosingSig,
    ClosingSigned,
    CommitmentSigned,
    ErrorMessage,
    FundingCreated,
    FundingSigned,
    Message,
    OpenChannel,
    RevokeAndAck,
    Shutdown,
    SpliceInit,
    SpliceLocked,
    StartBatch,
    Stfu,
    TxAbort,
    TxInitRbf,
    UpdateAddHtlc,
    UpdateFailHtlc,
    UpdateFailMalformedHtlc,
    UpdateFulfillHtlc,
    WarningMessage,
)
from channeld.bolt.messages import UpdateFee as UpdateFeeMessage
from channeld.bolt.messages.control import MAX_REASON_BYTES, MAX_TOLD_BYTES
from channeld.bolt.transactions.spec import Htlc
from channeld.channel import chain, close_legacy, close_simple, closing, normal, reestablish
from channeld.channel import commitments as cm
from channeld.channel import open as opening
from channeld.channel.effects import (
    Broadcast,
    Effect,
    PhaseChanged,
    ReleaseFunding,
    Send,
    WatchFunding,
)
from channeld.channel.env import Env
from channeld.channel.events import (
    AddHtlc,
    CloseChannel,
    CommandRejected,
    Connected,
    Disconnected,
    Event,
    FailHtlc,
    FailMalformedHtlc,
    ForceClose,
    ForgetChannel,
    FulfillHtlc,
    FundingDepth,
    FundingFailed,
    FundingSpent,
    FundingTxReady,
    HtlcOnChain,
    NewBlock,
    OutputsResolved,
    PeerMessage,
    ProtocolViolation,
    Sign,
    UpdateFee,
)
from channeld.channel.state import (
    AnyFunded,
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
    Open,
    OpenParams,
    OpenReceived,
    OpenSent,
    ShuttingDown,
    State,
    Syncing,
    Transition,
    Unconfirmed,
    WaitFundingTx,
    WaitingForRemoteClose,
    phase_name,
    with_fresh_previews,
)
from wallet.bitcoin import Tx

__all__ = [
    "OpenParams",
    "State",
    "Transition",
    "accept",
    "awaited_commitment",
    "awaits_revocation",
    "can_sign",
    "decode_state",
    "encode_state",
    "initiate",
    "phase_name",
    "preparations",
    "resume",
    "step",
    "unresolved_htlcs",
]

# --- how it begins ------------------------------------------------------------------------------------------------

initiate = opening.initiate
accept = opening.accept

# --- one step -----------------------------------------------------------------------------------------------------


def step(state: State, event: Event, env: Env) -> Transition:
    """The next state, and what to do once it is durable. Pure: the same arguments always give the same answer.

    Raises CommandRejected for a command that cannot be carried out, ProtocolViolation for a peer that breaks a rule;
    then nothing has changed.
    """
    transition = _step(state, event, env)
    after = transition.state
    if type(after) is type(state) and not isinstance(after, Closing):
        return transition
    old, new = phase_name(state), phase_name(after)
    if old == new:
        return transition
    return Transition(
        after, (*transition.effects, PhaseChanged(old, new, transition.reason)), transition.writes, transition.reason
    )


def _step(state: State, event: Event, env: Env) -> Transition:
    match event:
        case PeerMessage():
            return _on_message(state, event, env)
        case AddHtlc() | FulfillHtlc() | FailHtlc() | FailMalformedHtlc() | UpdateFee() | Sign() | CloseChannel():
            return _on_command(state, event, env)
        case ForceClose() | ForgetChannel():
            return _on_give_up(state, event, env)
        case Connected() | Disconnected():
            return _on_connection(state, event, env)
        case FundingTxReady() | FundingFailed():
            return _on_wallet(state, event, env)
        case NewBlock() | FundingDepth() | FundingSpent() | OutputsResolved() | HtlcOnChain():
            return _on_chain(state, event, env)
        case _:
            assert_never(event)


# --- messages -----------------------------------------------------------------------------------------------------

Handler = Callable[[Any, Any, Env], Transition]


def _committing(handle: Callable[..., tuple[Any, list[Any], list[Any]]]) -> Handler:
    """A signature or a revocation may have been what a closing channel waited for."""

    def handler(state: Normal | ShuttingDown, message: Message, env: Env) -> Transition:
        following, effects, writes = handle(state, message, env)
        if isinstance(following, ShuttingDown):
            return closing.advance(following, env, effects, writes)
        return Transition(following, tuple(effects), tuple(writes))

    return handler


_OPERATING = (Normal, ShuttingDown)
_OPEN = (AwaitingFunding, Normal, ShuttingDown, NegotiatingLegacy, NegotiatingSimple)

MESSAGES: dict[type[Message], tuple[Handler, tuple[type, ...]]] = {
    AcceptChannel: (opening.on_accept_channel, (OpenSent,)),
    FundingCreated: (opening.on_funding_created, (OpenReceived,)),
    FundingSigned: (opening.on_funding_signed, (FundingCreatedSent,)),
    ChannelReady: (opening.on_channel_ready, _OPEN),
    UpdateFulfillHtlc: (normal.on_update_fulfill_htlc, _OPERATING),
    UpdateFailHtlc: (normal.on_update_fail_htlc, _OPERATING),
    UpdateFailMalformedHtlc: (normal.on_update_fail_malformed_htlc, _OPERATING),
    UpdateFeeMessage: (normal.on_update_fee, _OPERATING),
    CommitmentSigned: (_committing(normal.on_commitment_signed), _OPERATING),
    RevokeAndAck: (_committing(normal.on_revoke_and_ack), _OPERATING),
    ChannelReestablish: (reestablish.on_channel_reestablish, _OPEN),
    Shutdown: (closing.on_shutdown, _OPEN),
    ClosingSigned: (close_legacy.on_closing_signed, (NegotiatingLegacy,)),
    ClosingComplete: (close_simple.on_closing_complete, (NegotiatingSimple,)),
    ClosingSig: (close_simple.on_closing_sig, (NegotiatingSimple,)),
}
"""Which function handles a message, and in which phases it may come."""

MAX_BATCH = 20
"""BOLT 2, "If `batch_size` is strictly greater than 20: MUST send a `warning` and close the connection"."""
NOT_NEGOTIATED = (Stfu, SpliceInit, SpliceLocked, TxInitRbf, TxAbort)
"""Messages of features that we do not offer: the peer gets a warning."""


def _on_message(state: State, event: PeerMessage, env: Env) -> Transition:
    message = event.message
    kind = type(message)
    if kind is ErrorMessage or kind is WarningMessage:
        return _on_complaint(state, message, env)
    if isinstance(state, Closed):
        return Transition(state)
    if isinstance(state, Closing | WaitingForRemoteClose):
        # BOLT 2, "if a channel is in an error state: SHOULD retransmit the error packet and ignore any other packets"
        if not isinstance(message, ChannelReestablish):
            return Transition(state)
        if isinstance(state, WaitingForRemoteClose):
            return Transition(
                reestablish.on_reestablish_while_waiting(state, message, env), tuple(_repeat_error(state))
            )
        return Transition(state, tuple(_repeat_error(state)))
    if isinstance(state, Funded):
        if isinstance(state.link, Offline):
            return Transition(state)
        if isinstance(state.link, Syncing) and kind is not ChannelReestablish:
            # BOLT 2, "MUST wait to receive the other node's `channel_reestablish` message before sending any other
            # messages"
            raise ProtocolViolation(f"{message.NAME} before channel_reestablish", "warning")
    if isinstance(message, UpdateAddHtlc):
        if isinstance(state, Normal | ShuttingDown):
            return normal.on_update_add_htlc(state, message, event.raw, env)
        raise ProtocolViolation(f"update_add_htlc while the channel is {phase_name(state)}", "warning")
    entry = MESSAGES.get(kind)
    if entry is None:
        return _on_unhandled(state, message)
    handler, phases = entry
    if not isinstance(state, phases):
        reason = f"{message.NAME} while the channel is {phase_name(state)}"
        # An opening cannot be repeated on the next connection anyway; a channel with funds is not closed over this.
        raise ProtocolViolation(reason, "warning" if isinstance(state, Funded) else "error")
    return handler(state, message, env)


def _on_unhandled(state: State, message: Message) -> Transition:
    if isinstance(message, NOT_NEGOTIATED):
        raise ProtocolViolation(f"{message.NAME}: this was not negotiated", "warning")
    if isinstance(message, OpenChannel):
        raise ProtocolViolation("open_channel with the id of a channel that exists", "error")
    # Of what is left, `start_batch` announces several commitment_signed: without splices there is one to process.
    if isinstance(message, StartBatch) and message.batch_size > MAX_BATCH:
        raise ProtocolViolation(f"start_batch of {message.batch_size} messages", "warning")
    if isinstance(message, StartBatch) and message.batch_size <= 1:
        # BOLT 2, "If `batch_size` is not strictly greater than 1: MUST ignore the `start_batch` message. SHOULD send a
        # `warning`."
        data = f"start_batch of {message.batch_size} messages: ignored".encode()
        return Transition(state, (Send(WarningMessage(message.channel_id, data)),))
    return Transition(state)


def _on_complaint(state: State, message: Message, env: Env) -> Transition:
    """BOLT 1, "The `error` and `warning` Messages". The driver's log has the text."""
    if isinstance(message, WarningMessage) or isinstance(state, Closed | Closing):
        return Transition(state)
    assert isinstance(message, ErrorMessage)
    reason = f"the peer failed the channel: {printable(message.data)}"
    if isinstance(state, WaitingForRemoteClose):
        return Transition(state)
    if isinstance(state, Funded):
        return chain.on_error(state, reason, env)
    return chain.abandon(state, reason, tell=False)


def printable(data: bytes) -> str:
    """BOLT 1, "if `data` is not composed solely of printable ASCII characters ...: SHOULD NOT print out `data`"."""
    return "".join(chr(byte) if 32 <= byte <= 126 else "." for byte in data[:MAX_REASON_BYTES])


# --- commands -----------------------------------------------------------------------------------------------------


def _on_command(
    state: State,
    event: AddHtlc | FulfillHtlc | FailHtlc | FailMalformedHtlc | UpdateFee | Sign | CloseChannel,
    env: Env,
) -> Transition:
    match event:
        case AddHtlc():
            if isinstance(state, Normal):
                return normal.add_htlc(state, event, env)
            raise CommandRejected(
                "shutting_down" if _is_ending(state) else "not_ready", f"the channel is {phase_name(state)}"
            )
        case FulfillHtlc() | FailHtlc() | FailMalformedHtlc():
            if isinstance(state, Funded):
                return normal.answer_htlc(state, event, env)
            raise CommandRejected("unknown_htlc", f"the channel is {phase_name(state)} and has no HTLCs")
        case UpdateFee():
            if isinstance(state, Normal | ShuttingDown):
                return normal.update_fee(state, event, env)
            raise CommandRejected("not_ready", f"the channel is {phase_name(state)}")
        case Sign():
            return _on_sign(state, env)
        case CloseChannel():
            if isinstance(state, AwaitingFunding | Normal | ShuttingDown | NegotiatingLegacy | NegotiatingSimple):
                return closing.close_channel(state, event, env)
            raise CommandRejected("not_ready", f"the channel is {phase_name(state)}")


def _is_ending(state: State) -> bool:
    return isinstance(
        state, ShuttingDown | NegotiatingLegacy | NegotiatingSimple | WaitingForRemoteClose | Closing | Closed
    )


def _on_sign(state: State, env: Env) -> Transition:
    if isinstance(state, Normal):
        return normal.sign(state, env)
    if isinstance(state, ShuttingDown):
        transition = normal.sign(state, env)
        following = transition.state
        assert isinstance(following, ShuttingDown)
        return closing.advance(following, env, list(transition.effects), list(transition.writes))
    return Transition(state)


def can_sign(state: State) -> bool:
    """Whether `Sign` would do anything: give it after each batch of events if so."""
    return isinstance(state, Funded) and normal.can_sign(state)


def awaits_revocation(state: State) -> bool:
    """Whether nothing can be signed for until the peer has revoked: what is offered now has time."""
    return isinstance(state, Normal) and isinstance(state.commitments.remote_next, cm.AwaitingRevocation)


def awaited_commitment(state: State) -> int | None:
    """The number of the commitment that we signed on this connection or before, while the peer has not revoked the one
    before it; None if it owes nothing."""
    if not isinstance(state, Normal | ShuttingDown) or not isinstance(state.link, Live):
        return None
    following = state.commitments.remote_next
    return following.commit.index if isinstance(following, cm.AwaitingRevocation) else None


def preparations(state: State, env: Env) -> list[Callable[[], object]]:
    """What the next commitments need and can be had now: to be called while there is nothing else to do, such as during
    a commit to the database. Changes nothing but caches."""
    return normal.preparations(state, env) if isinstance(state, Funded) else []


def _on_give_up(state: State, event: ForceClose | ForgetChannel, env: Env) -> Transition:
    if isinstance(state, Closed):
        return Transition(state)
    if isinstance(event, ForceClose):
        if isinstance(state, Funded):
            return chain.force_close(state, event, env)
        raise CommandRejected("not_ready", "the channel has no commitment that could be published: forget it instead")
    if isinstance(state, Funded):
        raise CommandRejected("invalid", "the channel may hold funds: close it instead of forgetting it")
    return chain.abandon(state, event.reason, tell=True, tx=event.tx)


# --- the connection -----------------------------------------------------------------------------------------------


def _on_connection(state: State, event: Connected | Disconnected, env: Env) -> Transition:
    if isinstance(state, Closed):
        return Transition(state)
    if not isinstance(state, Funded):
        if isinstance(event, Connected):
            return Transition(state)
        # BOLT 2, "upon disconnection: ... otherwise: SHOULD NOT remember the channel for reconnection."
        return chain.abandon(state, "the connection was lost before the channel was funded", tell=False)
    if isinstance(event, Connected):
        if isinstance(state, Closing | WaitingForRemoteClose):
            linked = replace(state, link=Live(event.remote_features))
            # A channel that was closed together is in no error state: only who does not know is told.
            closed_together = isinstance(linked, Closing) and not linked.error
            effects = [] if closed_together else _repeat_error(linked)
            if isinstance(linked, WaitingForRemoteClose):
                # Some nodes do not close over an `error`, but over the proof that we are behind.
                effects = [Send(reestablish.where_we_stand(linked, env)), *effects]
            return Transition(linked, tuple(effects))
        # A connection may replace one whose end nobody noticed.
        dropped = Transition(state) if isinstance(state.link, Offline) else _disconnected(state)
        assert isinstance(dropped.state, Funded)
        following, effects = reestablish.on_connected(dropped.state, event.remote_features, env)
        return Transition(following, (*dropped.effects, *effects), dropped.writes)
    return _disconnected(state)


def _disconnected(state: AnyFunded) -> Transition:
    commitments, effects, writes = normal.drop_uncommitted(state.commitments, state.params)
    state = replace(state, commitments=commitments, link=Offline())
    if isinstance(state, NegotiatingLegacy):
        # BOLT 2, "negotiation restarts on reconnection"
        state = replace(state, sent=None, received_fee_sat=None)
    elif isinstance(state, NegotiatingSimple):
        state = replace(state, sent=None)
    return Transition(state, tuple(effects), tuple(writes))


def _repeat_error(state: Closing | WaitingForRemoteClose) -> list[Effect]:
    if isinstance(state, WaitingForRemoteClose):
        text = "we lost state, please close the channel"
    else:
        text = state.error or "the channel was closed"
    return [Send(ErrorMessage(state.params.channel_id, text.encode()[:MAX_TOLD_BYTES]))]


# --- wallet and chain ---------------------------------------------------------------------------------------------


def _on_wallet(state: State, event: FundingTxReady | FundingFailed, env: Env) -> Transition:
    if isinstance(event, FundingTxReady):
        if isinstance(state, WaitFundingTx):
            return opening.on_funding_tx_ready(state, event, env)
        return Transition(state, (ReleaseFunding(event.tx.txid()),))  # too late: the opening ended meanwhile
    if isinstance(state, WaitFundingTx):
        return chain.abandon(state, event.reason, tell=True)
    return Transition(state)


def _on_chain(
    state: State, event: NewBlock | FundingDepth | FundingSpent | OutputsResolved | HtlcOnChain, env: Env
) -> Transition:
    if not isinstance(state, Funded):
        return Transition(state)
    match event:
        case NewBlock():
            return chain.on_new_block(state, env)
        case FundingDepth():
            return chain.on_funding_depth(state, event, env)
        case FundingSpent():
            return chain.on_funding_spent(state, event, env)
        case OutputsResolved():
            return chain.on_outputs_resolved(state)
        case HtlcOnChain():
            return chain.on_htlc_on_chain(state, event)


# --- waking up ----------------------------------------------------------------------------------------------------


def resume(state: State, env: Env) -> Transition:
    """After a restart: the connection is gone, and what may not have been done is done again."""
    if isinstance(state, Closed):
        return Transition(state)
    if not isinstance(state, Funded):
        return chain.abandon(state, "the daemon stopped before the channel was funded", tell=False)
    if isinstance(state, Open):
        failure = state.unconfirmed.failure if state.unconfirmed else ""
        state = replace(state, unconfirmed=Unconfirmed(failure=failure))
    transition = _disconnected(state)
    following = transition.state
    assert isinstance(following, Funded)
    params = following.params
    watch = WatchFunding(params.funding_outpoint, params.funding_script_pubkey)
    effects: list[Effect] = [watch]
    if following.funding_tx:
        funding = Tx.parse(following.funding_tx)
        effects = [replace(watch, inputs=funding.spends()), Broadcast(funding, "funding")]
    if isinstance(following, NegotiatingLegacy | NegotiatingSimple):
        effects += [Broadcast(Tx.parse(raw), "mutual close") for raw in following.closing_txs[-1:]]
    if isinstance(following, Closing):
        effects += chain.closing_effects(following)
    if isinstance(following, ShuttingDown):
        effects += closing.need_script(following, env)
    effects += transition.effects
    effects += [normal.locked_in(following, htlc, env) for htlc in cm.unanswered(following.commitments)]
    return Transition(following, tuple(effects), transition.writes)


def unresolved_htlcs(state: State) -> list[Htlc]:
    """Received HTLCs that are irrevocably committed and neither fulfilled nor failed by us, in order of their ids."""
    return cm.unanswered(state.commitments) if isinstance(state, Funded) else []


# --- storage ------------------------------------------------------------------------------------------------------

STATE_VERSION = 1
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[State] = msgspec.msgpack.Decoder(State)


class UnreadableState(ValueError):
    """Bytes that are not a state of this version."""


def encode_state(state: State) -> bytes:
    """The state as bytes: a version, then MessagePack. What can be computed from the rest is left out."""
    if isinstance(state, Funded):
        bare = replace(state.commitments, next_local=None, next_remote=None)
        state = replace(state, commitments=bare)
    return bytes((STATE_VERSION,)) + _encoder.encode(state)


def decode_state(data: bytes) -> State:
    """The reverse. Raises UnreadableState."""
    if data[:1] != bytes((STATE_VERSION,)):
        raise UnreadableState(f"a channel state of version {data[:1].hex() or 'none'}, {STATE_VERSION} expected")
    try:
        return with_fresh_previews(_decoder.decode(data[1:]))
    except msgspec.DecodeError as error:
        raise UnreadableState(f"a channel state that cannot be read: {error}") from error
