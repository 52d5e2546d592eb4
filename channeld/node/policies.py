"""What we ask for forwarding, channel by channel: kept, changed while running, and held against each HTLC.

Amounts in msat, deltas in blocks. Source: BOLT 4, "Failure Messages"; BOLT 7, "HTLC Fees".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, select

from channeld.bolt.onion import failures as f
from channeld.channel.state import Funded
from channeld.gossip.own import ForwardingPolicy
from channeld.node.interface import NodeError
from channeld.storage import Store, rows, tables

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

DEFAULT_FEE_BASE_MSAT = 1000
DEFAULT_FEE_PROPORTIONAL_MILLIONTHS = 1
MAX_CLTV_BLOCKS = 2016
"""`max_htlc_cltv`: an HTLC that lasts longer is not taken."""
SOONEST_EXPIRY_BLOCKS = 3
"""An outgoing HTLC that expires sooner would have its channel closed before the payee could answer."""
GRACE_SECONDS = 600.0
"""BOLT 7: "SHOULD accept HTLCs that pay an older fee, for some reasonable time after sending `channel_update`"."""
MAX_U32 = 0xFFFF_FFFF


class StoredPolicy(Struct, frozen=True):
    """What the operator chose; None leaves the default."""

    fee_base_msat: int | None = None
    fee_proportional_millionths: int | None = None
    cltv_expiry_delta: int | None = None
    htlc_minimum_msat: int | None = None
    htlc_maximum_msat: int | None = None


class ForwardTerms(Struct, frozen=True):
    """An HTLC that came, and the one that its onion asks for. `is_blinded`: the latter follows from the former."""

    incoming_msat: int
    incoming_expiry: int
    outgoing_msat: int
    outgoing_expiry: int
    is_blinded: bool = False

    @property
    def fee_msat(self) -> int:
        """What is left for us, as it is held against our terms. Inside a blinded path BOLT 4 rounds `amt_to_forward`
        up, which may cost us 1 msat of what a payer has paid."""
        return self.incoming_msat - self.outgoing_msat + self.is_blinded


def fee_msat(policy: ForwardingPolicy, outgoing_msat: int) -> int:
    """BOLT 7, "HTLC Fees"."""
    return policy.fee_base_msat + outgoing_msat * policy.fee_proportional_millionths // 1_000_000


def check_forward(
    terms: ForwardTerms,
    policies: tuple[ForwardingPolicy, ...],
    block_height: int,
    channel_update: Callable[[], bytes],
) -> f.Failure | None:
    """Why an HTLC may not be forwarded, if any of BOLT 4's rules says so; the first in the BOLT's order.

    `policies`: those of the outgoing channel that hold, the current one first; whoever keeps any of them is let
    through. `channel_update`: the current one in wire form, asked for only if it is needed.
    """
    first: f.Failure | None = None
    for policy in policies:
        failure = _check_policy(terms, policy, channel_update)
        if failure is None:
            return _check_expiry(terms, block_height, channel_update)
        first = first or failure
    return first


def _check_policy(
    terms: ForwardTerms, policy: ForwardingPolicy, channel_update: Callable[[], bytes]
) -> f.Failure | None:
    if terms.outgoing_msat < max(1, policy.htlc_minimum_msat):
        return f.AmountBelowMinimum(terms.outgoing_msat, channel_update())
    if terms.fee_msat < fee_msat(policy, terms.outgoing_msat):
        return f.FeeInsufficient(terms.incoming_msat, channel_update())
    if terms.incoming_expiry - terms.outgoing_expiry < policy.cltv_expiry_delta:
        return f.IncorrectCltvExpiry(terms.outgoing_expiry, channel_update())
    if terms.outgoing_msat > policy.htlc_maximum_msat:
        return f.TemporaryChannelFailure(channel_update())
    return None


def _check_expiry(terms: ForwardTerms, block_height: int, channel_update: Callable[[], bytes]) -> f.Failure | None:
    if terms.outgoing_expiry <= block_height + SOONEST_EXPIRY_BLOCKS:
        return f.ExpiryTooSoon(channel_update())
    if terms.incoming_expiry > block_height + MAX_CLTV_BLOCKS:
        return f.ExpiryTooFar()
    return None


class Policies:
    """The policies of all channels."""

    def __init__(self, store: Store, channels: Channels, now: Callable[[], float]) -> None:
        self._store = store
        self._channels = channels
        self._now = now
        self.on_changed: Callable[[Driver], None] = lambda driver: None
        self._stored: dict[int, StoredPolicy] = {}
        self._former: dict[int, tuple[ForwardingPolicy, float]] = {}

    def load(self, connection: Connection) -> None:
        """What was chosen before."""
        decode = msgspec.msgpack.Decoder(StoredPolicy).decode
        for key, blob in connection.execute(select(tables.channel_policies)):
            self._stored[key] = decode(blob)

    def of(self, driver: Driver) -> ForwardingPolicy:
        """What a funded channel asks now."""
        state = driver.state
        assert isinstance(state, Funded)
        limits = state.params.remote
        # BOLT 7, "MUST set this to less than or equal to `max_htlc_value_in_flight_msat` it received from the peer."
        most = min(1000 * state.params.capacity_sat, limits.max_htlc_value_in_flight_msat)
        chosen = self._stored.get(driver.channel_key, StoredPolicy())
        return ForwardingPolicy(
            _or(chosen.fee_base_msat, DEFAULT_FEE_BASE_MSAT),
            _or(chosen.fee_proportional_millionths, DEFAULT_FEE_PROPORTIONAL_MILLIONTHS),
            _or(chosen.cltv_expiry_delta, self._channels.policy.cltv_expiry_delta_blocks),
            max(_or(chosen.htlc_minimum_msat, 0), limits.htlc_minimum_msat),
            min(_or(chosen.htlc_maximum_msat, most), most),
        )

    def accepted(self, driver: Driver) -> tuple[ForwardingPolicy, ...]:
        """The current policy, and for a while the one before."""
        former = self._former.get(driver.channel_key)
        if former is None:
            return (self.of(driver),)
        if self._now() - former[1] > GRACE_SECONDS:
            del self._former[driver.channel_key]
            return (self.of(driver),)
        return (self.of(driver), former[0])

    async def change(self, driver: Driver, wanted: StoredPolicy) -> ForwardingPolicy:
        """Fields that are None stay as they are. Durable when it returns. Raises NodeError."""
        self._check(driver, wanted)
        key = driver.channel_key
        before = self.of(driver)
        given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        chosen = replace(self._stored.get(key, StoredPolicy()), **given)
        await self._store.commit([rows.SAVE_POLICY(key, msgspec.msgpack.encode(chosen))])
        self._stored[key] = chosen
        after = self.of(driver)
        if after != before:
            self._former[key] = (before, self._now())
        self.on_changed(driver)
        return after

    def _check(self, driver: Driver, wanted: StoredPolicy) -> None:
        if not isinstance(driver.state, Funded):
            raise NodeError("failed_precondition", "the channel is not open yet: it has no policy")
        for name, value in msgspec.structs.asdict(wanted).items():
            if value is not None and value < 0:
                raise NodeError("invalid_argument", f"{name} must not be negative")
        for name, value in (("fee_base_msat", wanted.fee_base_msat), ("fee rate", wanted.fee_proportional_millionths)):
            if value is not None and value > MAX_U32:
                raise NodeError("invalid_argument", f"{name} is at most {MAX_U32}")
        least = self._channels.policy.cltv_expiry_delta_blocks
        if wanted.cltv_expiry_delta is not None and not least <= wanted.cltv_expiry_delta <= MAX_CLTV_BLOCKS // 2:
            raise NodeError(
                "invalid_argument",
                f"the CLTV delta must be between {least} blocks (fewer would put money at risk) and "
                f"{MAX_CLTV_BLOCKS // 2}",
            )
        minimum, maximum = wanted.htlc_minimum_msat, wanted.htlc_maximum_msat
        current = self.of(driver)
        if _or(minimum, current.htlc_minimum_msat) > _or(maximum, current.htlc_maximum_msat):
            raise NodeError("invalid_argument", "the smallest HTLC would be larger than the largest")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
