"""Where HTLCs meet: what comes in over a channel is received here or goes out over another one.

Decisions are made in the transaction that made the HTLC irrevocable, so that none is made twice or forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from channeld.bolt.messages import UpdateAddHtlc, decode
from channeld.bolt.onion.failures import ExpiryTooFar, IncorrectOrUnknownPaymentDetails, TemporaryNodeFailure
from channeld.bolt.onion.payment import Forward, Receive, read_payment_onion
from channeld.bolt.onion.sphinx import OnionError
from channeld.bolt.transactions import Htlc
from channeld.channel import effects as fx
from channeld.node.circuits import HtlcKey, circuit_of
from channeld.node.driver import NO_REACTION, Reaction
from channeld.node.forwarding import Forwarder
from channeld.node.identity import Identity
from channeld.node.payments import PAYMENT_ORIGIN, Payments
from channeld.node.policies import MAX_CLTV_BLOCKS
from channeld.node.receive import Receiver
from channeld.node.refusals import refuse
from channeld.storage import Write, rows

if TYPE_CHECKING:
    from channeld.node.channels import Driver

MAX_ONIONS_PER_CHANNEL = 200_000
"""Remembered until their HTLCs have expired, two weeks at most: about 50 MB. Without a limit a peer could fill memory
with HTLCs that fail at once; two a second that expire in a day are fewer."""

MOST_READ_AHEAD = 1_000
"""HTLCs whose onion was read before they were locked in: 2 kB each, and some never are."""


class Switch:
    """Takes the HTLC effects of all channels to those who care: receiver, payments and forwarder."""

    def __init__(
        self,
        identity: Identity,
        receiver: Receiver,
        payments: Payments,
        forwarder: Forwarder,
        height: Callable[[], int],
    ) -> None:
        self._identity = identity
        self._receiver = receiver
        self._payments = payments
        self._forwarder = forwarder
        self._height = height
        self._ahead: dict[HtlcKey, tuple[bytes, Forward | Receive | OnionError]] = {}
        """HTLCs whose onion was read before they were locked in, with their `update_add_htlc`: another one may come in
        its place after a reconnection."""
        self._onions: dict[bytes, tuple[int, int, int]] = {}
        self._remembered: Counter[int] = Counter()

    def load(self, connection: Connection) -> None:
        """Remember the onions that were seen."""
        for replay_key, channel_key, htlc_id, cltv_expiry in rows.load_onions(connection):
            self._onions[replay_key] = (channel_key, htlc_id, cltv_expiry)
            self._remembered[channel_key] += 1

    # --- incoming

    def read_ahead(self, driver: Driver, htlc_id: int) -> None:
        """Peels the onion of an HTLC that will be locked in, if nothing comes between."""
        raw = driver.adds.get((False, htlc_id))
        if raw is None:
            return
        if len(self._ahead) >= MOST_READ_AHEAD:
            del self._ahead[next(iter(self._ahead))]
        self._ahead[driver.channel_key, htlc_id] = (raw, self._read(raw))

    def _read(self, raw: bytes) -> Forward | Receive | OnionError:
        """What the onion of an `update_add_htlc` in wire form says."""
        add = decode(raw)
        assert isinstance(add, UpdateAddHtlc)
        try:
            return read_payment_onion(
                add.onion_routing_packet,
                add.payment_hash,
                add.amount_msat,
                add.cltv_expiry,
                self._identity.node_secret,
                add.path_key,
            )
        except OnionError as error:
            return error

    def locked_in(self, driver: Driver, htlc: Htlc, must_fail: bool) -> Reaction:
        """An incoming HTLC is irrevocable (perhaps told again): settle it, fail it, or keep it.

        `must_fail`: whatever it is for. Nothing comes of it, so its onion need not be remembered.
        """
        key = (driver.channel_key, htlc.id)
        raw = driver.adds[False, htlc.id]
        ahead = self._ahead.pop(key, None)
        onion = ahead[1] if ahead is not None and ahead[0] == raw else self._read(raw)
        if isinstance(onion, OnionError):
            return refuse(driver, htlc.id, onion)
        replay_key = onion.context.replay_key
        again = replay_key in self._onions
        bound = self._forwarder.is_bound(key) or self._receiver.is_bound(htlc.payment_hash, key)
        if htlc.cltv_expiry > self._height() + MAX_CLTV_BLOCKS and not again and not bound:
            # Refused whenever it comes, so it need not be remembered, which might be for ever.
            # BOLT 4, "A _forwarding node_ MAY, but a _final node_ MUST NOT: [...] return an `expiry_too_far` error."
            details = IncorrectOrUnknownPaymentDetails(htlc.amount_msat, self._height())
            failure = ExpiryTooFar() if isinstance(onion, Forward) else details
            return refuse(driver, htlc.id, onion.context.refusal(failure))
        if must_fail and not bound:
            refusal = onion.context.refusal(TemporaryNodeFailure(), "nothing may come in over this channel now")
            return refuse(driver, htlc.id, refusal)
        if not again:
            if self._remembered[driver.channel_key] >= MAX_ONIONS_PER_CHANNEL:
                refusal = onion.context.refusal(TemporaryNodeFailure(), "too many onions of this channel to remember")
                return refuse(driver, htlc.id, refusal)
            self._remembered[driver.channel_key] += 1
        seen = self._onions.setdefault(replay_key, (driver.channel_key, htlc.id, htlc.cltv_expiry))
        if seen[:2] != (driver.channel_key, htlc.id):
            return refuse(driver, htlc.id, onion.context.refusal(TemporaryNodeFailure(), "the onion was seen before"))
        remember = rows.SAVE_ONION(replay_key, driver.channel_key, htlc.id, htlc.cltv_expiry)
        match onion:
            case Receive():
                reaction = self._receiver.receive(driver, htlc, onion)
            case Forward():
                reaction = self._forwarder.forward(driver, htlc, onion, again)
        return Reaction([remember, *reaction.writes], reaction.events)

    def locked_in_done(self, htlc: Htlc) -> None:
        """What `locked_in` decided is durable."""
        self._receiver.announce(htlc.payment_hash)

    def removed(self, driver: Driver, htlc_id: int) -> None:
        """An incoming HTLC is gone from both commitments."""
        self._receiver.htlc_removed(driver, htlc_id)

    # --- outgoing

    def settled(self, driver: Driver, effect: fx.HtlcSettled) -> Reaction:
        """The preimage of an HTLC that we offered: kept whatever becomes of it."""
        writes: list[Write] = [rows.SAVE_PREIMAGE(effect.payment_hash, effect.payment_preimage)]
        if effect.origin[:1] == PAYMENT_ORIGIN:
            writes.extend(self._payments.settled(effect))
        elif (circuit := circuit_of(effect.origin)) is not None:
            writes.extend(self._forwarder.settled(driver, circuit, effect))
        return Reaction(writes)

    def failed(self, driver: Driver, effect: fx.HtlcFailed) -> Reaction:
        """An HTLC that we offered came to nothing."""
        if effect.origin[:1] == PAYMENT_ORIGIN:
            return Reaction(self._payments.failed(effect))
        if (circuit := circuit_of(effect.origin)) is not None:
            self._forwarder.failed(circuit, effect)
        return NO_REACTION

    def outgoing_done(self, effect: fx.HtlcSettled | fx.HtlcFailed) -> None:
        """What `settled` or `failed` wrote is durable."""
        if effect.origin[:1] == PAYMENT_ORIGIN:
            self._payments.durable(effect.origin)
        elif isinstance(effect, fx.HtlcSettled) and (circuit := circuit_of(effect.origin)) is not None:
            self._forwarder.settled_done(circuit, effect)

    # --- housekeeping

    def expire(self, height: int) -> list[Write]:
        """A block came. Onions whose HTLCs have expired cannot be replayed any more."""
        self._receiver.expire(height)
        expired = [key for key, (_, _, cltv_expiry) in self._onions.items() if cltv_expiry < height]
        for key in expired:
            self._remembered[self._onions.pop(key)[0]] -= 1
        self._remembered = +self._remembered
        return [rows.FORGET_ONIONS_BELOW(height)] if expired else []
