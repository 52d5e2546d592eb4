"""What the operator should hear before it is urgent: HTLCs that will soon have their channel closed, a wallet too empty
to pay for that, and closing transactions that nobody mines."""

from __future__ import annotations

import structlog

from channeld.channel import economics
from channeld.channel.state import Closing, NegotiatingLegacy, NegotiatingSimple, Normal, ShuttingDown, State
from channeld.node.bus import EventBus
from channeld.node.channels import Channels, Driver
from channeld.onchain.rates import Rates
from channeld.onchain.reserve import reserve_sat
from wallet.wallet import Wallet

log = structlog.get_logger(__name__)
STUCK_CLOSE_BLOCKS = 36
"""A closing transaction that waits longer is spoken of."""


def htlc_warnings(state: State, channels: Channels, driver: Driver) -> list[economics.Warned]:
    """HTLCs of an open channel that are due soon, with the decision and its price."""
    if not isinstance(state, Normal | ShuttingDown):
        return []
    return economics.warnings(state.commitments, state.params, channels.env(driver))


def _waits_for(state: State) -> bytes:
    """The transaction (wire form) that should close a channel and is in no block; our own commitment is lifted without
    being asked."""
    match state:
        case NegotiatingSimple() | NegotiatingLegacy():
            return state.closing_txs[-1] if state.closing_txs else b""
        case Closing(confirmed_height=None, local_tx=b""):
            return state.closing_tx
        case _:
            return b""


def _way_out(driver: Driver) -> str:
    close = f"channelctl channel close {driver.channel_id.hex()}"
    forced = f"without the peer: {close} --force"
    if isinstance(driver.state, NegotiatingSimple):
        return f"To pay more: {close} --feerate RATE; {forced}"
    return f"It is published again after each block; {forced}"


class Warnings:
    """Told once per cause, at each block."""

    def __init__(self, wallet: Wallet, channels: Channels, bus: EventBus) -> None:
        self._wallet = wallet
        self._channels = channels
        self._bus = bus
        self._told: dict[tuple[int, int, bool], bool] = {}
        self._short = False
        self._failed: set[int] = set()
        self._waiting: dict[bytes, tuple[int, bool]] = {}
        """Closing transactions (wire form) in no block: at which height each was first seen waiting, and whether that
        was told."""

    def look(self, rates: Rates, height: int) -> None:
        """At the tip: which HTLCs come due, which closing transactions are not mined, whether the reserve suffices."""
        self._look_at_htlcs()
        self._look_at_closes(height)
        self._look_at_reserve(rates)

    def _look_at_closes(self, height: int) -> None:
        """Nothing is at risk while a closing transaction waits, but only the operator can say what it may cost."""
        waiting: dict[bytes, tuple[int, bool]] = {}
        for driver in self._channels.all():
            raw = _waits_for(driver.state)
            if not raw:
                continue
            since, told = self._waiting.get(raw, (height, False))
            stuck = height - since >= STUCK_CLOSE_BLOCKS
            waiting[raw] = (since, stuck)
            if stuck and not told:
                channel_id = driver.channel_id.hex()
                self._bus.publish(
                    "channel.close_stuck",
                    f"channel {channel_id}: its closing transaction was not mined in {STUCK_CLOSE_BLOCKS} blocks. "
                    f"{_way_out(driver)}",
                    channel_id=channel_id,
                )
        self._waiting = waiting

    def _warnings_of(self, driver: Driver) -> list[economics.Warned]:
        """None of a channel with a bug: the others, and all that follows at this block, must not wait for that."""
        try:
            return htlc_warnings(driver.state, self._channels, driver)
        except Exception as error:
            channel_id = driver.channel_id.hex()
            log.critical("warnings failed", channel=channel_id, exc_info=error)
            if driver.channel_key not in self._failed:
                self._failed.add(driver.channel_key)
                sentence = f"channel {channel_id}: its HTLCs cannot be warned of: {error!r}"
                self._bus.publish("monitor.failed", sentence, channel_id=channel_id)
            return []

    def _look_at_htlcs(self) -> None:
        near: dict[tuple[int, int, bool], bool] = {}
        for driver in self._channels.all():
            for warned in self._warnings_of(driver):
                key = (driver.channel_key, warned.htlc_id, warned.offered)
                near[key] = warned.closes
                if self._told.get(key) is not warned.closes:
                    self._bus.publish(
                        "channel.htlc_due",
                        f"channel {driver.channel_id.hex()}: {warned.sentence}",
                        channel_id=driver.channel_id.hex(),
                        htlc_id=warned.htlc_id,
                        incoming=not warned.offered,
                        due_height=warned.due_height,
                        closes=warned.closes,
                    )
        self._told = near

    def _look_at_reserve(self, rates: Rates) -> None:
        """Sending leaves the reserve in the wallet; closing may use it."""
        needed = reserve_sat((driver.state for driver in self._channels.all()), rates)
        self._wallet.keep_back_sat = needed
        balance = self._wallet.balance()
        there = balance.confirmed_sat + balance.unconfirmed_sat
        short = there < needed
        if short and not self._short:
            self._bus.publish(
                "wallet.reserve_low",
                f"the wallet has {there} sat, but closing all channels in a hurry would take {needed} sat of fees: "
                "send some to it, or fees may be too low when it counts",
                available_sat=there,
                needed_sat=needed,
            )
        self._short = short
