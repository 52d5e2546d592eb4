"""Whether an HTLC is worth closing a channel for, and which will soon ask for it.

BOLT 2 has a channel failed when an HTLC passes its deadline. What that saves is the HTLC; what it costs is a commitment
that has to be lifted, HTLC transactions and sweeps. Where it saves less than it costs, the channel stays: the peer may
still answer, and in no case is more lost than closing would have cost for sure. A peer that fulfils such HTLCs late,
after the incoming ones had to be failed, is borne until that has cost as much as a close: not again and again.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from channeld.bolt.transactions import Htlc, commitment_fee_sat, is_trimmed
from channeld.bolt.transactions import fees as weights
from channeld.channel.commitments import Commitments, HtlcFulfill, htlc_key
from channeld.channel.env import Env
from channeld.channel.state import ChannelParams

CHILD_WEIGHT = 750
"""A child on our anchor: the anchor, a coin of the wallet, change."""
WALLET_PART_WEIGHT = 450
"""A coin of the wallet and its change in an HTLC transaction."""
SWEEP_WEIGHT = 580
"""A transaction that sweeps one delayed output."""
WARN_BLOCKS = 24
"""So many blocks before an HTLC is due, it is warned of."""


class Due(Struct, frozen=True):
    """An HTLC for which the channel has to be closed at `height`, if it is worth that: `gain_sat` is what closing would
    save of it, after the fees for taking it."""

    htlc: Htlc
    height: int
    gain_sat: int

    @property
    def reason(self) -> str:
        """Why the channel would be closed, a sentence."""
        if self.htlc.offered:
            return f"HTLC {self.htlc.id} that we offered expired at block {self.htlc.cltv_expiry} and was not removed"
        return f"HTLC {self.htlc.id} that we fulfilled expires at block {self.htlc.cltv_expiry}"


class Warned(Struct, frozen=True):
    """What the operator should know before an HTLC is due. `closes`: the channel will be closed."""

    htlc_id: int
    offered: bool
    due_height: int
    closes: bool
    sentence: str


def dues(c: Commitments, params: ChannelParams, env: Env) -> Iterator[Due]:
    """Every HTLC with a deadline, in any commitment that may be broadcast, each once.

    BOLT 2, "if an HTLC which it offered is in either node's current commitment transaction, AND is past this timeout
    deadline", and "if an HTLC it has fulfilled is in either node's current commitment transaction, AND is past this
    fulfillment deadline".
    """
    policy = env.policy
    fulfilled = {htlc_key(removal.id, False) for removal in c.removals() if isinstance(removal, HtlcFulfill)}
    everywhere = {**c.latest_remote.spec.htlcs, **c.remote.spec.htlcs, **c.local.spec.htlcs}
    for key, htlc in everywhere.items():
        if htlc.offered:
            height = htlc.cltv_expiry + policy.timeout_grace_blocks
        elif key in fulfilled:
            height = htlc.cltv_expiry - policy.fulfill_deadline_blocks
        else:
            continue
        yield Due(htlc, height, gain_sat(c, params, htlc, env))


def gain_sat(c: Commitments, params: ChannelParams, htlc: Htlc, env: Env) -> int:
    """What our commitment brings of an HTLC after the fees for taking it, satoshi; 0 if it has no output there."""
    feerate = c.local.spec.feerate_per_kw
    if is_trimmed(params.commitment, htlc, feerate, "local"):
        return 0
    rate = env.closing_feerate_per_kw
    weight = SWEEP_WEIGHT
    inside = 0
    if params.anchors:
        own = weights.HTLC_TIMEOUT_WEIGHT_ANCHORS if htlc.offered else weights.HTLC_SUCCESS_WEIGHT_ANCHORS
        weight += own + WALLET_PART_WEIGHT
    elif htlc.offered:
        inside = weights.htlc_timeout_fee_sat(feerate, False)
    else:
        inside = weights.htlc_success_fee_sat(feerate, False)
    return max(0, htlc.amount_msat // 1000 - inside - weights.weight_fee_sat(weight, rate))


def close_cost_sat(c: Commitments, params: ChannelParams, env: Env) -> int:
    """What it costs us to have our commitment mined and our balance swept, satoshi: less where the peer pays the
    commitment's own fee."""
    spec = c.local.spec.commitment_spec()
    own_fee = commitment_fee_sat(params.commitment, spec, "local")
    cost = own_fee if params.is_opener else 0
    rate = env.closing_feerate_per_kw
    if params.anchors:
        weight = weights.commit_tx_weight(len(spec.htlcs), True)
        if weights.weight_fee_sat(weight, rate) > own_fee:
            cost += weights.weight_fee_sat(weight + CHILD_WEIGHT, rate) - own_fee
    return cost + weights.weight_fee_sat(SWEEP_WEIGHT, rate)


def reason_to_close(c: Commitments, params: ChannelParams, env: Env) -> str:
    """Why the channel has to go on chain now (a sentence), or nothing. All HTLCs that are due count together."""
    due = [due for due in dues(c, params, env) if env.block_height >= due.height]
    if not due:
        return ""
    if _at_stake_sat(c, due) <= close_cost_sat(c, params, env):
        return ""
    return max(due, key=lambda d: d.gain_sat).reason


def _at_stake_sat(c: Commitments, due: list[Due]) -> int:
    """What is lost if the channel is not closed over these HTLCs, with what was lost in this way before."""
    return sum(d.gain_sat for d in due) + c.paid_late_msat // 1000


def warnings(c: Commitments, params: ChannelParams, env: Env) -> list[Warned]:
    """HTLCs that are due within WARN_BLOCKS, or were and are not worth it, the first due first."""
    near = sorted(
        (due for due in dues(c, params, env) if due.height - env.block_height <= WARN_BLOCKS),
        key=lambda due: (due.height, due.htlc.offered, due.htlc.id),
    )
    if not near:
        return []
    cost = close_cost_sat(c, params, env)
    closes = _at_stake_sat(c, near) > cost
    return [_warned(due, cost, closes, env.block_height) for due in near]


def _warned(due: Due, cost_sat: int, closes: bool, height: int) -> Warned:
    htlc = due.htlc
    verb = "offered" if htlc.offered else "fulfilled"
    what = f"HTLC {htlc.id} that we {verb} ({htlc.amount_msat // 1000} sat)"
    left = due.height - height
    when = f"is due in {left} block{'' if left == 1 else 's'}, at {due.height}" if left > 0 else "is overdue"
    if closes:
        then = f"then the channel is closed, which costs about {cost_sat} sat to save {due.gain_sat} sat"
    else:
        then = f"closing the channel would cost about {cost_sat} sat to save {due.gain_sat} sat: it stays open"
    return Warned(htlc.id, htlc.offered, due.height, closes, f"{what} {when}; {then}")
