"""What a channel may look at while it decides: time, chain, fees, policy, signer. Input of `machine.step`."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from channeld.bolt.transactions.signing import ChannelSecrets, Parallel


class ChannelPolicy(Struct, frozen=True):
    """What the operator wants of a channel. Amounts in sat or msat, delays in blocks. Defaults are the daemon's."""

    dust_limit_sat: int = 354
    channel_reserve_permille: int = 10
    to_self_delay_blocks: int = 144
    max_to_self_delay_blocks: int = 2016
    max_accepted_htlcs: int = 483
    htlc_minimum_msat: int = 1
    max_htlc_value_in_flight_permille: int = 1000
    max_dust_exposure_msat: int = 50_000_000
    minimum_depth_blocks: int = 3
    min_funding_sat: int = 20_000
    max_funding_sat: int = 10 * 100_000_000
    accept_zero_conf_from: frozenset[bytes] = frozenset()
    """Node ids that we trust not to double-spend their funding."""
    announce: bool = True
    min_feerate_per_kw: int = 253
    max_feerate_per_kw: int = 100_000
    max_commitment_feerate_anchors_per_kw: int = 2_500
    cltv_expiry_delta_blocks: int = 34
    fulfill_deadline_blocks: int = 18
    """Force-close this many blocks before a fulfilled incoming HTLC expires (BOLT 2, "cltv_expiry_delta Selection")."""
    timeout_grace_blocks: int = 3
    """Force-close this many blocks after an offered HTLC expired."""
    unconfirmed_deadline_blocks: int = 6
    """After a start, an HTLC past its deadline waits so many blocks for the peer to be compared with: those that
    `cltv_expiry_delta_blocks` has to spare."""
    unconfirmed_deadline_seconds: int = 900
    """And so long: an absent peer is called every five minutes."""
    unconfirmed_failure_blocks: int = 144
    """The same for a channel that was failed without such an HTLC."""
    database_is_copy: bool = False
    """`--restore-from` made the database: it does not get less doubtful by waiting."""
    closing_patience_blocks: int = 1008
    """So long a closing transaction is negotiated for before our commitment is published instead."""
    burial_depth_blocks: int = 6
    """From this depth on the funding transaction is not published again, and a channel that was closed together is
    shown as closed. It is watched until that is irrevocable."""
    irrevocable_depth_blocks: int = 100
    """From this depth on nothing is undone (BOLT 5)."""


class Env(Struct, frozen=True):
    """The world as one `step` sees it. `time_seconds` is Unix time; fee rates are sat per 1000 weight units."""

    time_seconds: int
    block_height: int
    feerate_per_kw: int
    """What a commitment should pay now (already low for anchors)."""
    closing_feerate_per_kw: int
    policy: ChannelPolicy
    signer: ChannelSecrets
    """This channel's secrets; deterministic (RFC 6979), so `step` stays a function."""
    adds: Mapping[tuple[bool, int], bytes]
    """Wire form of the stored `update_add_htlc` by (offered, id): what `SaveAdd` kept."""
    local_features: frozenset[int]
    parallel: Parallel | None = None
    """Runs many signatures at once, in threads; the results are the same without."""
