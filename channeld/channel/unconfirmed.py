"""A state that may be out of date: after a start, until the peer was compared with.

A daemon that was started from an old copy of its database looks to itself like any other, but its commitment may be
revoked: who publishes it loses everything in the channel (BOLT 2, "Message Retransmission"). The peer's
`channel_reestablish` tells; before it came, our commitment is published only if waiting longer would cost more.

What an HTLC past its deadline is worth, and what the whole channel is worth, decide how long that is: the peer is given
`unconfirmed_deadline_blocks` (and time enough to be called) for an HTLC, and `unconfirmed_failure_blocks` if it merely
said `error`, as nothing is lost while a failed channel waits. A peer that lies can have us publish an old state all the
same: it is asked to prove that we are behind, not that we are not.
"""

from __future__ import annotations

from msgspec.structs import replace

from channeld.channel.effects import Effect, StateUnconfirmed
from channeld.channel.env import Env
from channeld.channel.state import AnyFunded, AwaitingFunding, Funded, Normal, ShuttingDown, Unconfirmed


def is_doubtful(state: Funded) -> bool:
    """Whether our commitment may be revoked for all we know. From the closing negotiation on nothing is revoked any
    more, and without a funding transaction in the chain nothing ever was."""
    doubt = state.unconfirmed
    if doubt is None:
        return False
    if isinstance(state, AwaitingFunding):
        return doubt.since_height is None or state.funding_depth > 0 or state.params.minimum_depth_blocks == 0
    return isinstance(state, Normal | ShuttingDown)


def at_tip(state: AnyFunded, env: Env) -> AnyFunded:
    """From the first block at the tip on the peer is called: the wait begins."""
    doubt = state.unconfirmed
    if doubt is None or doubt.since_height is not None:
        return state
    begun = replace(doubt, since_height=env.block_height, since_seconds=env.time_seconds)
    return replace(state, unconfirmed=begun)


def waited_for_deadline(doubt: Unconfirmed, env: Env) -> bool:
    """Whether an HTLC past its deadline may wait no longer."""
    policy = env.policy
    if doubt.since_height is None or policy.database_is_copy:
        return False
    # A clock that was put back tells nothing: then blocks have to do.
    is_too_soon = 0 <= env.time_seconds - doubt.since_seconds < policy.unconfirmed_deadline_seconds
    return env.block_height - doubt.since_height >= policy.unconfirmed_deadline_blocks and not is_too_soon


def waited_for_failure(doubt: Unconfirmed, env: Env) -> bool:
    """Whether a channel that was failed may wait no longer."""
    policy = env.policy
    if doubt.since_height is None or policy.database_is_copy:
        return False
    return env.block_height - doubt.since_height >= policy.unconfirmed_failure_blocks


def held(state: AnyFunded, reason: str, *, failed: bool) -> tuple[AnyFunded, list[Effect]]:
    """Our commitment is not published now, in spite of `reason`. `failed`: it will be as soon as that is safe."""
    doubt = state.unconfirmed
    assert doubt is not None
    if failed and not doubt.failure:
        doubt = replace(doubt, failure=reason)
    effects: list[Effect] = [] if doubt.told == reason else [StateUnconfirmed(reason)]
    return replace(state, unconfirmed=replace(doubt, told=reason)), effects


def sentence(state: Funded) -> str:
    """For the operator: that this channel waits, and what for; empty if it does not."""
    if not is_doubtful(state):
        return ""
    doubt = state.unconfirmed
    assert doubt is not None
    why = f" although {doubt.failure or doubt.told}" if doubt.failure or doubt.told else ""
    return f"not compared with the peer since the start: our commitment is not published yet{why}"
