"""What may be added, and what it costs: the limits of BOLT 2, "Normal Operation", for both directions.

Checks of our own commands raise CommandRejected; checks of what the peer sent raise ProtocolViolation.
"""

from __future__ import annotations

from channeld.bolt.transactions import fees
from channeld.bolt.transactions.spec import Htlc
from channeld.channel import commitments as cm
from channeld.channel.commitments import Commitments, FeeUpdate, HtlcAdd, Preview
from channeld.channel.env import ChannelPolicy, Env
from channeld.channel.events import CommandRejected, ProtocolViolation
from channeld.channel.state import ChannelParams, Funded

MAX_CLTV_EXPIRY = 500_000_000
"""From here on a locktime is a time and no height."""
FEE_SPIKE_FACTOR = 2
CROSSING_HTLCS = 4
"""Of the peer's, on their way while we propose a fee rate."""
MINED_IN_TIME_PERMILLE = 500
"""Estimates differ, and jump: a commitment that pays this part of ours is taken to be mined before an HTLC expires."""


def is_too_cheap(params: ChannelParams, feerate_per_kw: int, env: Env) -> bool:
    """Whether our commitment would not be mined in time at this fee rate, which the peer chose. With anchors a child
    pays what is missing (BOLT 5); without, an opener who pays too little could let every deadline of an HTLC pass."""
    return not (params.is_opener or params.anchors) and is_below_timely(feerate_per_kw, env)


def is_below_timely(feerate_per_kw: int, env: Env) -> bool:
    """Whether a commitment that nothing lifts pays less than it takes to be mined in time."""
    return feerate_per_kw * 1000 < env.feerate_per_kw * MINED_IN_TIME_PERMILLE


def check_mined_in_time(c: Commitments, params: ChannelParams, env: Env) -> None:
    """Whether an HTLC that we offer could be taken back in time. Raises CommandRejected."""
    feerate_per_kw = c.local.spec.feerate_per_kw
    if is_too_cheap(params, feerate_per_kw, env):
        raise CommandRejected(
            "fee_too_low",
            f"the commitment's fee rate of {feerate_per_kw} sat/kw, which the peer has to raise, is too low now",
        )


def check_expiry(htlc: Htlc, block_height: int) -> None:
    """Whether an HTLC that we offer has a sane expiry. Raises CommandRejected."""
    # BOLT 2, "MUST set `cltv_expiry` less than 500000000."
    if not block_height < htlc.cltv_expiry < MAX_CLTV_EXPIRY:
        raise CommandRejected("expiry", f"an HTLC cannot expire at block {htlc.cltv_expiry}")


def check_offer(c: Commitments, params: ChannelParams, htlc: Htlc, policy: ChannelPolicy) -> Preview:
    """Whether we may offer `htlc`; returns remote's next commitment with it. Raises CommandRejected."""
    remote = params.remote
    # BOLT 2, "MUST offer `amount_msat` greater than 0." "MUST NOT offer `amount_msat` below the receiving node's
    # `htlc_minimum_msat`"
    if htlc.amount_msat <= 0 or htlc.amount_msat < remote.htlc_minimum_msat:
        least_msat = max(1, remote.htlc_minimum_msat)
        raise CommandRejected("amount_below_minimum", f"the peer takes no HTLC below {least_msat:,} msat")
    after = cm.apply(params.commitment, "remote", cm.next_remote(c), (HtlcAdd(htlc),), True)
    _check_affordable(params, cm.next_remote(c), after)
    # BOLT 2, "if result would be offering more than the remote's `max_accepted_htlcs` HTLCs"
    if after.offered_count > remote.max_accepted_htlcs:
        raise CommandRejected("too_many_htlcs", f"the peer accepts {remote.max_accepted_htlcs} HTLCs at a time")
    # BOLT 2, "if the total value of offered HTLCs would exceed the remote's `max_htlc_value_in_flight_msat`"
    if after.offered_msat > remote.max_htlc_value_in_flight_msat:
        limit_msat = remote.max_htlc_value_in_flight_msat
        raise CommandRejected("in_flight_limit", f"the peer accepts {limit_msat:,} msat of HTLCs at a time")
    _check_own_dust(c, htlc, after, policy)
    return after


def _check_own_dust(c: Commitments, htlc: Htlc, after: Preview, policy: ChannelPolicy) -> None:
    # BOLT 2, "when offering an HTLC: ... if the `amount_msat` plus the dust balance of the remote transaction is
    # greater than `max_dust_htlc_exposure_msat`: SHOULD NOT send this HTLC", and the same for the local transaction
    limit_msat = policy.max_dust_exposure_msat
    if htlc.amount_msat < after.offered_limit_msat and after.dust_msat > limit_msat:
        raise CommandRejected("dust_exposure", f"more than {limit_msat:,} msat would be in HTLCs too small to claim")
    local = cm.next_local(c)
    if htlc.amount_msat < local.offered_limit_msat:
        unacked = (update.htlc for update in (*c.ours.proposed, *c.ours.signed) if isinstance(update, HtlcAdd))
        dust_msat = sum(h.amount_msat for h in unacked if h.amount_msat < local.offered_limit_msat)
        if local.dust_msat + dust_msat + htlc.amount_msat > limit_msat:
            raise CommandRejected(
                "dust_exposure", f"more than {limit_msat:,} msat would be in HTLCs too small to claim"
            )


def _sat(amount_msat: int) -> str:
    """In whole satoshi, rounded up."""
    return f"{-(-amount_msat // 1000):,} sat"


def _check_affordable(params: ChannelParams, before: Preview, after: Preview) -> None:
    left_msat = after.spec.to_local_msat - params.remote.channel_reserve_sat * 1000
    if params.is_opener:
        left_msat -= opener_buffer_msat(params, after)
    if left_msat < 0:
        # BOLT 2, "MUST NOT offer `amount_msat` if, after adding that HTLC to its commitment transaction, it cannot pay
        # the fee ... while maintaining its channel reserve"
        raise CommandRejected(
            "insufficient_balance", f"{_sat(-left_msat)} are missing, with the channel's reserve and fee set aside"
        )
    if not params.is_opener and after.untrimmed > before.untrimmed:
        # BOLT 2, "SHOULD NOT offer `amount_msat` if, once the remote node adds that HTLC to its commitment
        # transaction, it cannot pay the fee"
        spare_msat = after.spec.to_remote_msat - params.local.channel_reserve_sat * 1000
        if spare_msat < after.cost_msat(params.anchors):
            raise CommandRejected("fee_too_high", "the peer cannot pay the commitment's fee for another HTLC")


def opener_buffer_msat(params: ChannelParams, after: Preview, *, more_untrimmed: int = 0, more_trimmed: int = 0) -> int:
    """What we, as opener, keep above the reserve: fee and anchors if the fee rate doubles and one more HTLC comes.

    BOLT 2, "It is recommended that this "fee spike buffer" can handle twice the current `feerate_per_kw`". If our own
    dust limit is lower than the peer's, HTLCs that have no output in its commitment may have one in ours.
    """
    commitment = params.commitment
    trimmed = 0
    if commitment.local_dust_limit_sat < commitment.remote_dust_limit_sat or not params.anchors:
        trimmed = after.offered_count + after.received_count - after.untrimmed + more_trimmed
    return after.cost_msat(params.anchors, 1 + more_untrimmed + trimmed, FEE_SPIKE_FACTOR)


def available_to_send_msat(c: Commitments, params: ChannelParams, policy: ChannelPolicy) -> int:
    """The largest HTLC that we could offer now, msat; 0 if none."""
    view, remote = cm.next_remote(c), params.remote
    room_msat = min(
        view.spec.to_local_msat - remote.channel_reserve_sat * 1000,
        remote.max_htlc_value_in_flight_msat - view.offered_msat,
    )
    own_msat = view.spec.to_local_msat - remote.channel_reserve_sat * 1000
    with_output, without = own_msat, own_msat
    if params.is_opener:
        with_output -= opener_buffer_msat(params, view, more_untrimmed=1)
        without -= opener_buffer_msat(params, view, more_trimmed=1)
    dust_room_msat = policy.max_dust_exposure_msat - view.dust_msat
    local = cm.next_local(c)
    candidates = (
        min(room_msat, with_output),
        min(room_msat, without, view.offered_limit_msat - 1),
        min(room_msat, without, view.offered_limit_msat - 1, dust_room_msat),
        min(room_msat, without, dust_room_msat, policy.max_dust_exposure_msat - local.dust_msat),
    )
    for amount_msat in candidates:
        if amount_msat <= 0:
            continue
        try:
            check_offer(c, params, Htlc(c.local_next_htlc_id, amount_msat, b"", 0, True), policy)
        except CommandRejected:
            continue
        return amount_msat
    return 0


def available_to_receive_msat(c: Commitments, params: ChannelParams) -> int:
    """About the largest HTLC that the peer could offer now, msat, if it keeps a fee spike buffer as we do."""
    view, local = cm.next_local(c), params.local
    room_msat = view.spec.to_remote_msat - local.channel_reserve_sat * 1000
    if not params.is_opener:
        room_msat -= view.cost_msat(params.anchors, 2, FEE_SPIKE_FACTOR)
    elif view.spec.to_local_msat - params.remote.channel_reserve_sat * 1000 < view.cost_msat(params.anchors, 1):
        room_msat = min(room_msat, view.received_limit_msat - 1)
    if view.received_count >= local.max_accepted_htlcs:
        return 0
    return max(0, min(room_msat, local.max_htlc_value_in_flight_msat - view.received_msat))


def check_received_add(c: Commitments, params: ChannelParams, htlc: Htlc, after: Preview) -> None:
    """Whether the peer may offer `htlc`; `after` is our next commitment with it. Raises ProtocolViolation."""
    local = params.local
    # BOLT 2, "receiving an `amount_msat` equal to 0, OR less than its own `htlc_minimum_msat`"
    if htlc.amount_msat == 0 or htlc.amount_msat < local.htlc_minimum_msat:
        raise ProtocolViolation(f"update_add_htlc: {htlc.amount_msat:,} msat is below htlc_minimum_msat")
    # BOLT 2, "if sending node sets `cltv_expiry` to greater or equal to 500000000"
    if htlc.cltv_expiry >= MAX_CLTV_EXPIRY:
        raise ProtocolViolation(f"update_add_htlc: cltv_expiry {htlc.cltv_expiry} is no block height")
    # BOLT 2, "if a sending node adds more than receiver `max_accepted_htlcs` HTLCs to its local commitment transaction,
    # OR adds more than receiver `max_htlc_value_in_flight_msat` worth of offered HTLCs"
    if after.received_count > local.max_accepted_htlcs:
        raise ProtocolViolation(f"update_add_htlc: more than max_accepted_htlcs ({local.max_accepted_htlcs})")
    if after.received_msat > local.max_htlc_value_in_flight_msat:
        raise ProtocolViolation("update_add_htlc: more than max_htlc_value_in_flight_msat")
    # BOLT 2, "receiving an `amount_msat` that the sending node cannot afford at the current `feerate_per_kw` (while
    # maintaining its channel reserve and any `to_local_anchor` and `to_remote_anchor` costs)"
    left_msat = after.spec.to_remote_msat - local.channel_reserve_sat * 1000
    if not params.is_opener:
        left_msat -= after.cost_msat(params.anchors, -_crossing_htlcs(c, after))
    if left_msat < 0:
        raise ProtocolViolation(
            f"update_add_htlc: the sender lacks {-left_msat:,} msat for it, its reserve and the fee"
        )


def check_own_fee(c: Commitments, params: ChannelParams, feerate_per_kw: int, env: Env) -> None:
    """Whether we may propose `feerate_per_kw`. Raises CommandRejected."""
    policy = env.policy
    if not policy.min_feerate_per_kw <= feerate_per_kw <= policy.max_feerate_per_kw:
        raise CommandRejected("invalid", f"{feerate_per_kw} sat/kw is outside what we accept ourselves")
    update = FeeUpdate(feerate_per_kw)
    after = cm.apply(params.commitment, "remote", cm.next_remote(c), (update,), True)
    left_msat = after.spec.to_local_msat - params.remote.channel_reserve_sat * 1000 - after.cost_msat(params.anchors)
    if left_msat < 0:
        raise CommandRejected("insufficient_balance", f"{_sat(-left_msat)} are missing to pay {feerate_per_kw} sat/kw")
    if not params.anchors and feerate_per_kw > cm.next_remote(c).spec.feerate_per_kw:
        # BOLT 2, "if the dust balance of the remote transaction at the updated `feerate_per_kw` is greater than
        # `max_dust_htlc_exposure_msat`: MAY NOT send `update_fee`"
        local = cm.apply(params.commitment, "local", cm.next_local(c), (update,), True)
        if max(after.dust_msat, local.dust_msat) > policy.max_dust_exposure_msat:
            raise CommandRejected("dust_exposure", f"{feerate_per_kw} sat/kw would make too much of the HTLCs dust")


def affordable_feerate_per_kw(c: Commitments, params: ChannelParams) -> int:
    """The highest fee rate that we could pay as opener, with the HTLCs that have an output now, and some that the peer
    may add before it hears of it: it might fail the channel over a fee that we cannot pay with those."""
    view = cm.next_remote(c)
    spare_sat = view.spec.to_local_msat // 1000 - params.remote.channel_reserve_sat
    if params.anchors:
        spare_sat -= 2 * fees.ANCHOR_SAT
    weight = fees.commit_tx_weight(view.untrimmed + CROSSING_HTLCS, params.anchors)
    return max(0, spare_sat) * 1000 // weight


def check_received_fee(c: Commitments, params: ChannelParams, feerate_per_kw: int, after: Preview, env: Env) -> None:
    """Whether the peer may set `feerate_per_kw`; `after` is our next commitment with it. Raises ProtocolViolation."""
    policy = env.policy
    if params.is_opener:
        # BOLT 2, "if the sender is not responsible for paying the Bitcoin fee"
        raise ProtocolViolation("update_fee from the side that does not pay the fee")
    # BOLT 2, "if the `update_fee` is too low for timely processing, OR is unreasonably large"
    if not policy.min_feerate_per_kw <= feerate_per_kw <= policy.max_feerate_per_kw:
        raise ProtocolViolation(
            f"update_fee: {feerate_per_kw} sat/kw is not between {policy.min_feerate_per_kw} and "
            f"{policy.max_feerate_per_kw}"
        )
    falls = feerate_per_kw < cm.next_local(c).spec.feerate_per_kw
    if falls and is_too_cheap(params, feerate_per_kw, env):
        # BOLT 2, "if the `update_fee` is too low for timely processing": the commitment that we have is better.
        raise ProtocolViolation(f"update_fee: {feerate_per_kw} sat/kw is too low to be mined in time", "warning")
    left_msat = after.spec.to_remote_msat - after.cost_msat(params.anchors, -_crossing_htlcs(c, after))
    if left_msat < 0:
        # BOLT 2, "if the sender cannot afford the new fee rate on the receiving node's current commitment transaction"
        raise ProtocolViolation(f"update_fee: the sender cannot pay {feerate_per_kw} sat/kw")
    rises = feerate_per_kw > cm.next_local(c).spec.feerate_per_kw
    if rises and left_msat < params.local.channel_reserve_sat * 1000:
        # BOLT 2, "Each side of a channel maintains this reserve so it always has something to lose": a fee that eats it
        # up would make cheating free.
        raise ProtocolViolation(f"update_fee: at {feerate_per_kw} sat/kw nothing is left of the reserve", "warning")
    if not params.anchors and feerate_per_kw > cm.next_local(c).spec.feerate_per_kw:
        # BOLT 2, "if the dust balance of the remote transaction at the updated `feerate_per_kw` is greater then
        # `max_dust_htlc_exposure_msat`: MAY fail the channel"
        remote = cm.apply(params.commitment, "remote", cm.next_remote(c), (FeeUpdate(feerate_per_kw),), False)
        if max(after.dust_msat, remote.dust_msat) > policy.max_dust_exposure_msat:
            raise ProtocolViolation(f"update_fee: {feerate_per_kw} sat/kw would make too much of the HTLCs dust")


def _crossing_htlcs(c: Commitments, after: Preview) -> int:
    """HTLCs of ours in the next commitment that the opener need not have known when it chose a fee rate, or offered an
    HTLC, that it says again after a reconnection (BOLT 2, "the recipient can add new HTLCs before it receives the
    `update_fee`"). It would be excused as well if the connection had lasted."""
    adds = (update.htlc for update in c.ours.acked if isinstance(update, HtlcAdd))
    return sum(htlc.amount_msat >= after.offered_limit_msat for htlc in adds)


def exceeds_dust_exposure(state: Funded, htlc: Htlc, policy: ChannelPolicy) -> bool:
    """Whether a received HTLC is dust beyond the limit in either commitment, and has to be failed.

    BOLT 2, "when receiving an HTLC: ... SHOULD fail this HTLC once it's committed; SHOULD NOT reveal a preimage".
    Of the received dust, what came later than `htlc` does not count: the first ones are within the limit.
    """
    limit_msat = policy.max_dust_exposure_msat
    for view in (cm.next_local(state.commitments), cm.next_remote(state.commitments)):
        if htlc.amount_msat >= view.received_limit_msat or view.dust_msat <= limit_msat:
            continue
        dust_msat = sum(
            other.amount_msat
            for other in view.spec.htlcs.values()
            if other.amount_msat < (view.offered_limit_msat if other.offered else view.received_limit_msat)
            and (other.offered or other.id <= htlc.id)
        )
        if dust_msat > limit_msat:
            return True
    return False
