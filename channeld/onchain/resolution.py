"""A channel's end as a state that can be stored, and the step that folds the world into it.

`advance(state, event, env) -> (state, actions)`. The node commits the state, and only then performs the actions: what
is published can always be published again. The chain's facts are rows of their own; what follows from them is derived.
"""

from __future__ import annotations

from typing import Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from channeld.channel.state import CloseKind
from channeld.onchain.anchor import anchor_plan
from channeld.onchain.classify import is_safe_to_publish
from channeld.onchain.facts import Fact
from channeld.onchain.known import Known
from channeld.onchain.outcomes import REASONABLE_DEPTH_BLOCKS, Outcome, is_over, outcomes
from channeld.onchain.outputs import NEVER, Close, while_off
from channeld.onchain.plans import Attempt, Plan, is_live, plans
from channeld.onchain.rates import Rates
from channeld.onchain.resolve import resolve
from channeld.onchain.shortage import is_idle_child, with_coins_in_use
from wallet.bitcoin import OutPoint, Tx


class Resolution(Struct, frozen=True):
    """What is stored of a channel's end beside the chain's facts. `told` are alarms that were raised, `fees` (sat) what
    every transaction costs this channel that we ever made, by txid: a replaced one may be mined, too."""

    attempts: tuple[Attempt, ...] = ()
    fees: dict[bytes, int] = {}
    told: frozenset[str] = frozenset()
    away: tuple[int, int] = NEVER
    """The first and the last block that this node missed when something of ours was taken."""


class Env(Struct, frozen=True):
    """The world for one step: what the channel knows, what the chain has, the tip's height, fee estimates. `away`: the
    first and the last of the blocks that were caught up with at once, as the node was off. `left`: outputs that a tower
    takes for us (`allies`), not to be bid for."""

    known: Known
    facts: tuple[Fact, ...]
    height: int
    rates: Rates
    away: tuple[int, int] = NEVER
    left: frozenset[OutPoint] = frozenset()


# --- events -------------------------------------------------------------------------------------------------------


class Looked(Struct, frozen=True):
    """Something may have changed: a block, a reorganisation, a preimage, fee rates, a restart."""


class Made(Struct, frozen=True):
    """A plan became a transaction."""

    plan: Plan
    attempt: Attempt


class Answered(Struct, frozen=True):
    """Layer 1 took a transaction (`problem` is empty), or refused it and says why; `underpaid`: for what it pays."""

    txid: bytes
    problem: str
    underpaid: bool = False


class CannotPay(Struct, frozen=True):
    """The wallet has no coins for a plan."""

    plan: Plan


class Gone(Struct, frozen=True):
    """Layer 1 does not have a transaction of ours that was asked about."""

    txid: bytes


Event = Looked | Made | Answered | CannotPay | Gone

# --- actions ------------------------------------------------------------------------------------------------------


class Make(Struct, frozen=True):
    """Build a plan's transaction; answer with Made, or with CannotPay: that leads to plans to try in its place, until
    one can be made."""

    plan: Plan


class Publish(Struct, frozen=True):
    """Offer a transaction to the network; answer with Answered if that differs from its last answer, and look again if
    it was refused for what it pays: there may be a rival to outbid."""

    attempt: Attempt


class PublishCommitment(Struct, frozen=True):
    """Offer our commitment, with its child if there is one."""

    child: Attempt | None


class PublishSeen(Struct, frozen=True):
    """Offer again, in wire form, what closed the channel before a reorganisation: the peer's, or agreed on."""

    raw: bytes


class AskAbout(Struct, frozen=True):
    """Nobody needs this transaction any more: answer with Gone if layer 1 does not have it. What follows may need its
    coins."""

    attempt: Attempt


class Release(Struct, frozen=True):
    """The wallet's coins in a transaction that will not be needed are free."""

    reservation: int


class Tell(Struct, frozen=True):
    """An HTLC that we offered is over."""

    outcome: Outcome


AlarmKind = Literal["onchain.revoked", "onchain.unknown", "onchain.lost"]


class Alarm(Struct, frozen=True):
    """The operator must hear this."""

    kind: AlarmKind
    sentence: str


class Over(Struct, frozen=True):
    """All outputs are irrevocably resolved."""


Action = Make | Publish | PublishCommitment | PublishSeen | AskAbout | Release | Tell | Alarm | Over


class Step(Struct, frozen=True):
    """What a step leads to."""

    state: Resolution
    actions: tuple[Action, ...] = ()
    close: Close | None = None


# --- the step -----------------------------------------------------------------------------------------------------


def advance(state: Resolution, event: Event, env: Env) -> Step:
    """One step. Pure."""
    match event:
        case Looked():
            return _look(state, env)
        case Made():
            return _made(state, event)
        case Answered():
            return _answered(state, event)
        case CannotPay():
            return _cannot_pay(state, event, env)
        case Gone():
            return Step(*_drop(state, [attempt for attempt in state.attempts if attempt.txid == event.txid]))
        case _:
            assert_never(event)


def _look(state: Resolution, env: Env) -> Step:
    close = resolve(env.known, env.facts)
    actions: list[Action] = []
    if close is None:
        return Step(state, tuple(_push_commitment(state, env)))
    dead = [attempt for attempt in state.attempts if _is_dead(attempt, close, env.height)]
    state, released = _drop(state, dead)
    actions += released
    actions += [Tell(outcome) for outcome in outcomes(env.known, close, env.height)]
    state, alarms = _alarms(state, close, env.away)
    actions += alarms
    ours = [output for output in close.outputs if output.outpoint not in env.left]
    for attempt in state.attempts:
        if is_idle_child(attempt, close.outputs):
            actions.append(AskAbout(attempt))
        elif is_live(attempt, ours):
            actions.append(Publish(attempt))
    actions += [Make(plan) for plan in plans(ours, state.attempts, env.rates, env.height)]
    if is_over(env.known, close, env.height):
        actions += [Release(attempt.reservation) for attempt in state.attempts if attempt.reservation]
        actions.append(Over())
    return Step(state, tuple(actions), close)


def _push_commitment(state: Resolution, env: Env) -> list[Action]:
    """Our commitment is in no block: publish it again, and lift it if it pays too little. Where the peer's was and left
    the chain, that one: we have none of ours out."""
    if not env.known.local_tx:
        seen = env.known.seen_tx
        return [PublishSeen(seen)] if seen and is_safe_to_publish(env.known, Tx.parse(seen)) else []
    plan = anchor_plan(env.known, state.attempts, env.rates, env.height)
    actions: list[Action] = [PublishCommitment(child_of(env.known.local_tx, state))]
    rival = child_of(env.known.rival_tx, state)
    if rival is not None:
        actions.append(Publish(rival))
    if plan is not None:
        actions.append(Make(plan))
    return actions


def child_of(commitment: bytes, state: Resolution) -> Attempt | None:
    """The transaction that lifts a commitment (wire form) by our anchor."""
    txid = Tx.parse(commitment).txid() if commitment else None
    children = (a for a in state.attempts if a.group == "anchor" and a.outpoints[0].txid == txid)
    return next(children, None)


def is_raced(state: Resolution, close: Close) -> bool:
    """Whether a transaction of ours is out whose outputs others may take: it can be replaced at any time."""
    raced = (attempt for attempt in state.attempts if attempt.group not in ("sweep", "anchor"))
    return any(is_live(attempt, close.outputs) for attempt in raced)


def _is_dead(attempt: Attempt, close: Close, height: int) -> bool:
    """Whether it can never confirm any more: what it spends was taken by another transaction, or does not exist in this
    chain, so deep that this will not change."""
    outputs = {output.outpoint: output for output in close.outputs}
    for outpoint in attempt.outpoints:
        output = outputs.get(outpoint)
        if output is None:
            return close.depth(height) >= REASONABLE_DEPTH_BLOCKS
        by = output.spent
        if by is not None and by.txid != attempt.txid and by.depth(height) >= REASONABLE_DEPTH_BLOCKS:
            return True
    return False


def _drop(state: Resolution, dead: list[Attempt]) -> tuple[Resolution, tuple[Action, ...]]:
    if not dead:
        return state, ()
    gone = {attempt.txid for attempt in dead}
    kept = tuple(attempt for attempt in state.attempts if attempt.txid not in gone)
    released = tuple(Release(attempt.reservation) for attempt in dead if attempt.reservation)
    return replace(state, attempts=kept), released


def _made(state: Resolution, event: Made) -> Step:
    """What it replaces is forgotten. The wallet's coins in that were released before the new one was made, which may
    have taken them again."""
    attempt = event.attempt
    kept = tuple(other for other in state.attempts if other.txid not in (attempt.txid, event.plan.replaces))
    fees = {**state.fees, attempt.txid: attempt.own_fee_sat}
    return Step(replace(state, attempts=(*kept, attempt), fees=fees), (Publish(attempt),))


def _cannot_pay(state: Resolution, event: CannotPay, env: Env) -> Step:
    close = resolve(env.known, env.facts)
    outputs = () if close is None else close.outputs
    instead = with_coins_in_use(event.plan, state.attempts, outputs, env.rates, env.height)
    return Step(state, tuple(Make(plan) for plan in instead), close)


def _answered(state: Resolution, event: Answered) -> Step:
    attempts = tuple(
        replace(attempt, problem=event.problem, underpaid=event.underpaid) if attempt.txid == event.txid else attempt
        for attempt in state.attempts
    )
    return Step(replace(state, attempts=attempts))


# --- alarms -------------------------------------------------------------------------------------------------------

_OF_CLOSE: dict[CloseKind, tuple[AlarmKind, str]] = {
    "revoked": ("onchain.revoked", "the peer published revoked commitment {number}: everything in it is being taken"),
    "unknown": (
        "onchain.unknown",
        "the funding output was spent by a transaction that we do not know: our state is too old, or the keys have "
        "leaked. What can be told to be ours is being saved; the rest may be lost",
    ),
}


def _alarms(state: Resolution, close: Close, away: tuple[int, int]) -> tuple[Resolution, list[Action]]:
    """BOLT 5, "MUST inform the user of potentially lost funds", and what else must not go unheard; each once."""
    found: dict[str, Alarm] = {}
    if close.kind in _OF_CLOSE:
        kind, sentence = _OF_CLOSE[close.kind]
        found[kind] = Alarm(kind, sentence.format(number=close.commitment_number))
    for output in close.outputs:
        if output.taker == "remote" and output.owner == "local" and output.final and output.outpoint is not None:
            if output.htlc is not None and output.htlc.payment_hash in close.preimages:
                continue  # it paid for that
            missed = while_off(output, away)
            if missed:
                state = replace(state, away=away)
            found[f"onchain.lost {output.outpoint}"] = Alarm(
                "onchain.lost",
                f"the peer took {output.amount_sat} sat of {output.kind} that were ours{missed}: {output.outpoint}",
            )
    fresh = {key: alarm for key, alarm in found.items() if key not in state.told}
    if not fresh:
        return state, []
    return replace(state, told=state.told | fresh.keys()), list(fresh.values())
