"""What an opening may look like: every MUST and MAY of BOLT 2, "The `open_channel` Message" and "The `accept_channel`
Message". Our own wishes raise CommandRejected, what the peer sent raises ProtocolViolation."""

from __future__ import annotations

from channeld.bolt.features import ChannelType, Feature, NegotiatedFeatures
from channeld.bolt.messages import AcceptChannel, OpenChannel
from channeld.bolt.transactions.closing import is_valid_shutdown_script
from channeld.bolt.transactions.fees import funder_cost_sat
from channeld.channel.env import ChannelPolicy, Env
from channeld.channel.events import CommandRejected, ProtocolViolation
from channeld.channel.limits import is_below_timely
from channeld.channel.state import Limits, OpenParams
from wallet.bitcoin.secp import is_valid_pubkey

LARGE_CHANNEL_SAT = 1 << 24
MIN_DUST_LIMIT_SAT = 354
MAX_DUST_LIMIT_SAT = 10_000
"""More would turn too much of what the peer owes us into fees."""
MAX_ACCEPTED_HTLCS = 483
MAX_MINIMUM_DEPTH_BLOCKS = 2016
"""What we would wait for the funding transaction, at most."""
MAX_HTLC_MINIMUM_PERMILLE = 100
MAX_RESERVE_PERMILLE = 200
_ANNOUNCE_CHANNEL = 1


def check_wanted(
    wanted: OpenParams, channel_type: ChannelType, limits: Limits, negotiated: NegotiatedFeatures, env: Env
) -> None:
    """Whether we may propose this. Raises CommandRejected with a sentence for the user."""
    policy = env.policy
    amount_sat = wanted.amount_sat
    if amount_sat < policy.min_funding_sat:
        raise CommandRejected("amount_below_minimum", f"a channel needs at least {policy.min_funding_sat} sat")
    if amount_sat > policy.max_funding_sat:
        raise CommandRejected("amount_above_maximum", f"a channel may have at most {policy.max_funding_sat} sat")
    # BOLT 2, "if both nodes advertised `option_support_large_channel`: MAY set `funding_satoshis` greater than or
    # equal to 2^24 satoshi."
    if amount_sat >= LARGE_CHANNEL_SAT and not negotiated.has(Feature.option_support_large_channel):
        raise CommandRejected("amount_above_maximum", f"the peer takes no channel of {LARGE_CHANNEL_SAT} sat or more")
    # BOLT 2, "MUST set `push_msat` to equal or less than 1000 * `funding_satoshis`."
    if not 0 <= wanted.push_msat <= amount_sat * 1000:
        raise CommandRejected("invalid", "push_msat must be between nothing and the channel's amount")
    if not channel_type.is_negotiated(negotiated):
        raise CommandRejected("invalid", "the peer does not support this type of channel")
    script = wanted.upfront_shutdown_script
    if script and not is_valid_shutdown_script(
        script,
        negotiated.has(Feature.option_shutdown_anysegwit),
        negotiated.has(Feature.option_simple_close),
    ):
        raise CommandRejected("invalid", "a channel cannot be closed to this script")
    feerate_per_kw = max(policy.min_feerate_per_kw, env.feerate_per_kw)
    opener_sat = (
        amount_sat - (wanted.push_msat + 999) // 1000 - funder_cost_sat(feerate_per_kw, 0, channel_type.anchors)
    )
    if opener_sat < limits.channel_reserve_sat:
        raise CommandRejected("insufficient_balance", "after the push too little is left for reserve and fee")


def check_open_channel(
    message: OpenChannel, remote_node_id: bytes, negotiated: NegotiatedFeatures, chain_hash: bytes, env: Env
) -> ChannelType:
    """Whether we accept what a peer proposes. Raises ProtocolViolation, else returns the channel's type."""
    policy = env.policy
    channel_type = _check_type(message, remote_node_id, negotiated, policy)
    amount_sat = message.funding_satoshis
    _refuse(
        "open_channel",
        # BOLT 2, "the `chain_hash` value is set to a hash of a chain that is unknown to the receiver."
        (message.chain_hash != chain_hash, "unknown chain"),
        # BOLT 2, "`funding_satoshis` is too small."
        (amount_sat < policy.min_funding_sat, f"less than {policy.min_funding_sat} sat"),
        (amount_sat > policy.max_funding_sat, f"more than {policy.max_funding_sat} sat"),
        # BOLT 2, "`funding_satoshis` is greater than or equal to 2^24 and the receiver does not support
        # `option_support_large_channel`."
        (
            amount_sat >= LARGE_CHANNEL_SAT and not negotiated.has(Feature.option_support_large_channel),
            "large channels are not supported",
        ),
        # BOLT 2, "`push_msat` is greater than `funding_satoshis` * 1000."
        (message.push_msat > amount_sat * 1000, "push_msat exceeds the channel"),
        # BOLT 2, "it considers `feerate_per_kw` too small for timely processing or unreasonably large."
        (
            message.feerate_per_kw < policy.min_feerate_per_kw
            or (not channel_type.anchors and is_below_timely(message.feerate_per_kw, env)),
            "feerate_per_kw is too low",
        ),
        (message.feerate_per_kw > policy.max_feerate_per_kw, "feerate_per_kw is too high"),
        # BOLT 2, "MUST set `dust_limit_satoshis` less than or equal to `channel_reserve_satoshis` from the
        # `open_channel`"
        (
            policy.dust_limit_sat > message.channel_reserve_satoshis,
            f"channel_reserve_satoshis is below our dust limit of {policy.dust_limit_sat}",
        ),
        # BOLT 2, "if `option_dual_fund` has been negotiated: fail the channel."
        (negotiated.has(Feature.option_dual_fund), "option_dual_fund was negotiated"),
    )
    _check_common("open_channel", message, amount_sat, policy)
    _check_upfront_script("open_channel", message, negotiated)
    _check_first_balances(message, channel_type)
    return channel_type


def _check_type(
    message: OpenChannel, remote_node_id: bytes, negotiated: NegotiatedFeatures, policy: ChannelPolicy
) -> ChannelType:
    # BOLT 2, "if the message doesn't include a `channel_type`: fail the channel."
    if message.channel_type is None:
        raise ProtocolViolation("open_channel: channel_type is missing")
    try:
        channel_type = ChannelType.from_bytes(message.channel_type)
    except ValueError as error:
        # BOLT 2, "the `channel_type` is not suitable."
        raise ProtocolViolation(f"open_channel: {error}") from error
    _refuse(
        "open_channel",
        (not channel_type.is_negotiated(negotiated), "the channel_type was not negotiated"),
        (
            channel_type.scid_alias and bool(message.channel_flags & _ANNOUNCE_CHANNEL),
            "option_scid_alias in a public channel",
        ),
        # BOLT 2, "the `channel_type` includes `option_zeroconf` and it does not trust the sender to open an
        # unconfirmed"
        (
            channel_type.zeroconf and remote_node_id not in policy.accept_zero_conf_from,
            "zero-conf channels are accepted from trusted peers only",
        ),
    )
    return channel_type


def check_accept_channel(
    proposal: OpenChannel, message: AcceptChannel, negotiated: NegotiatedFeatures, env: Env
) -> None:
    """Whether the peer's answer fits our proposal. Raises ProtocolViolation."""
    zeroconf = ChannelType.from_bytes(proposal.channel_type or b"").zeroconf
    _refuse(
        "accept_channel",
        # BOLT 2, "The `temporary_channel_id` MUST be the same as the `temporary_channel_id` in the `open_channel`
        # message."
        (message.temporary_channel_id != proposal.temporary_channel_id, "another temporary_channel_id"),
        # BOLT 2, "if the message doesn't include a `channel_type`: MUST fail the channel."
        (message.channel_type is None, "channel_type is missing"),
        # BOLT 2, "if `channel_type` does not match the `channel_type` from `open_channel`: MUST fail the channel."
        (message.channel_type != proposal.channel_type, "another channel_type"),
        # BOLT 2, "if `minimum_depth` is unreasonably large: MAY fail the channel."
        (message.minimum_depth > MAX_MINIMUM_DEPTH_BLOCKS, f"minimum_depth {message.minimum_depth} is too large"),
        # BOLT 2, "if `channel_type` includes `option_zeroconf`: MUST set `minimum_depth` to zero."
        (zeroconf and message.minimum_depth != 0, "minimum_depth is not zero with option_zeroconf"),
        # BOLT 2, "if `channel_reserve_satoshis` is less than `dust_limit_satoshis` within the `open_channel` message"
        (
            message.channel_reserve_satoshis < proposal.dust_limit_satoshis,
            "channel_reserve_satoshis is below our dust_limit_satoshis",
        ),
        # BOLT 2, "if `channel_reserve_satoshis` from the `open_channel` message is less than `dust_limit_satoshis`"
        (
            proposal.channel_reserve_satoshis < message.dust_limit_satoshis,
            "dust_limit_satoshis is above our channel_reserve_satoshis",
        ),
    )
    _check_common("accept_channel", message, proposal.funding_satoshis, env.policy)
    _check_upfront_script("accept_channel", message, negotiated)


def _check_common(name: str, message: OpenChannel | AcceptChannel, amount_sat: int, policy: ChannelPolicy) -> None:
    """What holds for the fields that both messages have."""
    points = (
        message.funding_pubkey,
        message.revocation_basepoint,
        message.payment_basepoint,
        message.delayed_payment_basepoint,
        message.htlc_basepoint,
        message.first_per_commitment_point,
    )
    reserve_sat, dust_sat = message.channel_reserve_satoshis, message.dust_limit_satoshis
    _refuse(
        name,
        # BOLT 2, "`to_self_delay` is unreasonably large."
        (message.to_self_delay > policy.max_to_self_delay_blocks, f"to_self_delay {message.to_self_delay} is too long"),
        # BOLT 2, "`max_accepted_htlcs` is greater than 483."
        (message.max_accepted_htlcs > MAX_ACCEPTED_HTLCS, "max_accepted_htlcs is greater than 483"),
        (message.max_accepted_htlcs == 0, "max_accepted_htlcs is too small"),
        # BOLT 2, "are not valid secp256k1 pubkeys in compressed format."
        (not all(map(is_valid_pubkey, points)), "a key is not a point"),
        # BOLT 2, "`dust_limit_satoshis` is greater than `channel_reserve_satoshis`."; accept_channel demands its
        # reserve of us: what it may not be less than is our own dust limit
        (isinstance(message, OpenChannel) and dust_sat > reserve_sat, "dust_limit_satoshis is above the reserve"),
        # BOLT 2, "`dust_limit_satoshis` is smaller than `354 satoshis`"
        (dust_sat < MIN_DUST_LIMIT_SAT, f"dust_limit_satoshis is below {MIN_DUST_LIMIT_SAT}"),
        # BOLT 2, "it considers `dust_limit_satoshis` too large"
        (dust_sat > MAX_DUST_LIMIT_SAT, f"dust_limit_satoshis is above {MAX_DUST_LIMIT_SAT}"),
        # BOLT 2, "it considers `htlc_minimum_msat` too large."
        (message.htlc_minimum_msat > amount_sat * MAX_HTLC_MINIMUM_PERMILLE, "htlc_minimum_msat is too large"),
        # BOLT 2, "it considers `max_htlc_value_in_flight_msat` too small."
        (message.max_htlc_value_in_flight_msat < message.htlc_minimum_msat, "no HTLC would ever be possible"),
        (message.max_htlc_value_in_flight_msat == 0, "max_htlc_value_in_flight_msat is too small"),
        # BOLT 2, "it considers `channel_reserve_satoshis` too large."
        (
            reserve_sat * 1000 > max(amount_sat * MAX_RESERVE_PERMILLE, MAX_DUST_LIMIT_SAT * 1000),
            f"channel_reserve_satoshis {reserve_sat} is too large",
        ),
    )


def _check_upfront_script(name: str, message: OpenChannel | AcceptChannel, negotiated: NegotiatedFeatures) -> None:
    script = message.upfront_shutdown_script
    # BOLT 2, "MUST include `upfront_shutdown_script` with either a valid `shutdown_scriptpubkey` as required by
    # `shutdown` `scriptpubkey`, or a zero-length `shutdown_scriptpubkey`"
    any_segwit = negotiated.has(Feature.option_shutdown_anysegwit)
    simple_close = negotiated.has(Feature.option_simple_close)
    if script and not is_valid_shutdown_script(script, any_segwit, simple_close, legacy=True):
        raise ProtocolViolation(f"{name}: upfront_shutdown_script is not a script that can be closed to")


def _check_first_balances(message: OpenChannel, channel_type: ChannelType) -> None:
    opener_msat = message.funding_satoshis * 1000 - message.push_msat
    cost_msat = funder_cost_sat(message.feerate_per_kw, 0, channel_type.anchors) * 1000
    reserve_msat = message.channel_reserve_satoshis * 1000
    _refuse(
        "open_channel",
        # BOLT 2, "the funder's amount for the initial commitment transaction is not sufficient for full fee payment"
        (opener_msat < cost_msat, "the funder cannot pay the fee of the first commitment"),
        # BOLT 2, "both `to_local` and `to_remote` amounts for the initial commitment transaction are less than or
        # equal to `channel_reserve_satoshis`"
        (
            opener_msat - cost_msat <= reserve_msat and message.push_msat <= reserve_msat,
            "both balances are within the reserve",
        ),
    )


def _refuse(name: str, *checks: tuple[bool, str]) -> None:
    for broken, sentence in checks:
        if broken:
            raise ProtocolViolation(f"{name}: {sentence}")
