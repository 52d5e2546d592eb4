"""All channels: their drivers, which message goes to which, and what each effect means for the rest of the node.

This is the `Host` of the drivers. What the operator asks of channels is in `channel_verbs`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, assert_never

import structlog
from sqlalchemy import Connection, func, select

from channeld.bolt.messages import (
    ChannelUpdate,
    ErrorMessage,
    FundingCreated,
    Message,
    OpenChannel,
    WarningMessage,
    encode,
)
from channeld.bolt.messages.control import told_to_peer
from channeld.bolt.transactions import ChannelSecrets
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import limits, machine
from channeld.channel.env import ChannelPolicy, Env
from channeld.channel.open import channel_id_of, commitment_feerate_per_kw
from channeld.channel.state import Closed, Closing, FundingCreatedSent, Normal, OpenReceived, State, phase_name
from channeld.node import channel_news, openings, views
from channeld.node.broadcasts import Broadcasts
from channeld.node.bus import EventBus
from channeld.node.driver import NO_REACTION, ChannelDriver, Reaction
from channeld.node.feerates import FeeRates
from channeld.node.identity import Identity
from channeld.node.interface import NodeError
from channeld.node.notes import Notes
from channeld.node.peer import PeerLink
from channeld.node.route_hints import new_alias
from channeld.node.switch import Switch
from channeld.node.watches import Watches
from channeld.storage import Store, StoreFailed, Write, rows, tables
from wallet.bitcoin import OutPoint, Tx

log = structlog.get_logger(__name__)
CHANNEL_TYPES = range(32, 256)
"""BOLT 1, "SHOULD send `error` with the unknown `channel_id` in reply to messages of type `32`-`255` related to unknown
channels." """
FEE_TOLERANCE = 5
"""A commitment's fee rate is left alone while it is within a fifth of what we want."""


class Funder(Protocol):
    """The wallet's part in opening and closing."""

    def need_funding(self, driver: Driver, need: fx.NeedFunding) -> None:
        """Build a transaction, then post FundingTxReady or FundingFailed."""
        ...

    def release_funding(self, txid: bytes) -> None:
        """A funding transaction will never be used."""
        ...

    def need_script(self, driver: Driver, any_segwit: bool) -> None:
        """Post CloseChannel with a script of the wallet; P2WPKH unless `any_segwit`."""
        ...

    def broadcasting(self, tx: Tx, label: str, is_unproven: bool) -> list[Write]:
        """A channel's transaction is about to be published: the wallet's rows about it."""
        ...

    def given_up(self, txid: bytes) -> list[Write]:
        """A channel is over, and its transaction need not be mined any more."""
        ...


class Driver(ChannelDriver[State]):
    """A channel's driver, and what the node knows of the channel beside its state."""

    peer_id: bytes
    secrets: ChannelSecrets
    created_seconds: int
    stored_as: tuple[bytes, str] | None = None
    """`channel_id` and phase in the database; None before the first commit."""
    is_proposal = False
    """The peer proposed the channel (it may have become a real one since)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.watchers: set[asyncio.Event] = set()
        self.ids = {self.channel_id}
        """Under which ids messages come: the temporary one, then the real one."""

    @property
    def is_over(self) -> bool:
        """Closed, forgotten: nothing more will happen."""
        return isinstance(self.state, Closed)

    @property
    def is_shown_as_closed(self) -> bool:
        """Over for people; it may still be watched."""
        return self.is_over or (isinstance(self.state, Closing) and self.state.buried)


class Channels:
    """The registry and host of all channels that are not over."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        bus: EventBus,
        feerates: FeeRates,
        watches: Watches,
        broadcasts: Broadcasts,
        policy: ChannelPolicy,
        local_features: frozenset[int],
        chain_hash: bytes,
        height: Callable[[], int],
    ) -> None:
        self._store = store
        self._identity = identity
        self._bus = bus
        self._feerates = feerates
        self._watches = watches
        self._broadcasts = broadcasts
        self.policy = policy
        self._local_features = local_features
        self._chain_hash = chain_hash
        self._height = height
        self._by_key: dict[int, Driver] = {}
        self._by_id: dict[tuple[bytes, bytes], Driver] = {}
        self._by_peer: dict[bytes, dict[int, Driver]] = {}
        self._taken_ids: set[bytes] = set()
        """Ids in the database, of channels that are over too, and those about to be: strangers choose ids, and no two
        rows may have the same one."""
        self._last_key = 0
        self._switch: Switch | None = None
        self._funder: Funder | None = None
        self._links: dict[bytes, PeerLink] = {}
        self._notes = Notes(self.has_stake)
        self.on_batch_done: Callable[[Driver], None] = lambda driver: None
        """Hears of every channel about which something may have changed, after it is durable."""
        self.update_of_peer: Callable[[bytes], ChannelUpdate | None] = lambda channel_id: None
        """The peer's policy towards us, by `channel_id`."""

        self.knows_height: Callable[[], bool] = lambda: True
        """Whether layer 1 is followed."""
        self.on_closing: Callable[[Driver], None] = _nobody
        """Who must hear of every change of a channel that ends on chain."""
        self.on_forgotten: Callable[[int], list[Write]] = lambda channel_key: []
        """Who may have rows about a channel whose own row goes."""

    def connect_parts(self, switch: Switch, funder: Funder) -> None:
        """The parts that in turn need the channels; before `load`."""
        self._switch = switch
        self._funder = funder

    @property
    def switch(self) -> Switch:
        assert self._switch is not None
        return self._switch

    @property
    def funder(self) -> Funder:
        assert self._funder is not None
        return self._funder

    # --- start

    def load(self, connection: Connection) -> None:
        """Channels as they were committed last."""
        self._taken_ids = set(connection.execute(select(tables.channels.c.channel_id)).scalars())
        self._last_key = connection.execute(select(func.max(tables.channels.c.channel_key))).scalar() or 0
        for stored in rows.load_channels(connection, closed=False):
            state = machine.decode_state(stored.state)
            driver = self._new_driver(state, stored.channel_key, stored.channel_id, stored.peer_id, stored.adds)
            driver.created_seconds = stored.created_seconds
            driver.stored_as = (stored.channel_id, stored.phase)
            driver.is_proposal = openings.is_unproven(state)

    def resume(self) -> None:
        """Let all channels go on where they stopped; once, after everything is loaded."""
        for driver in list(self._by_key.values()):
            resumed = machine.resume(driver.state, self.env(driver))
            driver.state = resumed.state
            driver.start(resumed.effects, resumed.writes)

    def _new_driver(
        self,
        state: State,
        channel_key: int,
        channel_id: bytes,
        peer_id: bytes,
        adds: dict[tuple[bool, int], bytes] | None = None,
    ) -> Driver:
        driver = Driver(machine, self, state, channel_key, channel_id, adds)
        driver.peer_id = peer_id
        driver.secrets = self._identity.channel_secrets(channel_key)
        driver.created_seconds = int(time.time())
        self._by_key[channel_key] = driver
        self._by_id[peer_id, channel_id] = driver
        self._taken_ids.add(channel_id)
        self._by_peer.setdefault(peer_id, {})[channel_key] = driver
        return driver

    def take_key(self) -> int:
        """A channel number that this seed has never had, whatever database it is used with: peers know the revocation
        secrets of the channels that other databases had. Later ones are greater; all are below 2^63."""
        milliseconds = int(time.time() * 1000)
        drawn = milliseconds << 20 | int.from_bytes(os.urandom(4), "big") >> 12
        self._last_key = max(drawn, self._last_key + 1)
        return self._last_key

    def add(
        self,
        transition: machine.Transition,
        channel_key: int,
        channel_id: bytes,
        link: PeerLink,
        extra: Sequence[Write] = (),
    ) -> Driver:
        """A new channel, from `machine.initiate` or `machine.accept`; `extra` rows go into its first transaction."""
        driver = self._new_driver(transition.state, channel_key, channel_id, link.node_id)
        driver.link = link
        driver.start(transition.effects, transition.writes, extra)
        return driver

    async def command(self, driver: Driver, event: ev.Event, writes: Sequence[Write] = ()) -> None:
        """Post a command and wait until it is durable. Raises NodeError if the channel refuses it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def finish(error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            elif isinstance(error, ev.CommandRejected):
                done.set_exception(NodeError("failed_precondition", error.sentence))
            else:
                done.set_exception(NodeError("internal", str(error)))

        driver.post(event, writes, finish)
        await done

    # --- the registry

    def all(self) -> Iterator[Driver]:
        """Every channel that is not over."""
        return iter(list(self._by_key.values()))

    def by_key(self, channel_key: int) -> Driver | None:
        """A channel by its number."""
        return self._by_key.get(channel_key)

    def by_id(self, channel_id: bytes) -> Driver | None:
        """A channel by its id, temporary ones too."""
        return next((driver for driver in self._by_key.values() if driver.channel_id == channel_id), None)

    def is_known(self, channel_id: bytes) -> bool:
        """Whether the database has the channel, over or not."""
        return channel_id in self._taken_ids

    def of_peer(self, node_id: bytes) -> list[Driver]:
        """The channels with a peer."""
        return list(self._by_peer.get(node_id, {}).values())

    def count_with(self, node_id: bytes) -> int:
        """How many channels there are with a peer, without those that only a reorganisation could bring back."""
        return sum(not driver.is_shown_as_closed for driver in self._by_peer.get(node_id, {}).values())

    def has_stake(self, node_id: bytes) -> bool:
        """Whether there is a channel with a peer that cost it something, or that we wanted."""
        return any(not (d.is_over or openings.is_unproven(d.state)) for d in self._by_peer.get(node_id, {}).values())

    def is_in_use_with(self, node_id: bytes) -> bool:
        """Whether there is a channel with a peer that has been usable, and is not closed."""
        return any(isinstance(driver.state, Normal) for driver in self.of_peer(node_id))

    def _forget(self, driver: Driver) -> None:
        """The channel is over: from memory; its row stays, unless it never held money."""
        self._by_key.pop(driver.channel_key, None)
        self._taken_ids -= driver.ids
        if driver.stored_as is not None:
            self._taken_ids.add(driver.channel_id)
        for channel_id in driver.ids:
            self._by_id.pop((driver.peer_id, channel_id), None)
        with_peer = self._by_peer.get(driver.peer_id, {})
        with_peer.pop(driver.channel_key, None)
        if not with_peer:
            self._by_peer.pop(driver.peer_id, None)

    # --- peers

    def peer_connected(self, link: PeerLink) -> None:
        """All channels with this peer go on over `link`."""
        self._links[link.node_id] = link
        for driver in self.of_peer(link.node_id):
            driver.post_connected(link, link.remote_features)

    def peer_disconnected(self, link: PeerLink) -> None:
        """The connection is gone."""
        if self._links.get(link.node_id) is link:
            del self._links[link.node_id]
        for driver in self.of_peer(link.node_id):
            driver.post_disconnected(link)

    def peer_message(self, link: PeerLink, message: Message, raw: bytes) -> None:
        """A message about a channel."""
        if isinstance(message, OpenChannel):
            self._on_open_channel(link, message)
            return
        channel_id = getattr(message, "channel_id", None) or getattr(message, "temporary_channel_id", None)
        if channel_id is None:
            log.debug("message ignored", peer=link.node_id.hex(), message=message.NAME)
            return
        driver = self._by_id.get((link.node_id, channel_id))
        if driver is not None:
            if (
                isinstance(message, FundingCreated)
                and isinstance(driver.state, OpenReceived)
                and not self._reserve_id(driver, message)
            ):
                driver.post_caused(ev.ForgetChannel("the funding output's channel_id is in use"), len(raw), link)
                return
            driver.post_message(message, raw, link)
            return
        log.debug("message about an unknown channel", peer=link.node_id.hex(), message=message.NAME)
        if message.TYPE in CHANNEL_TYPES:
            link.send_message(ErrorMessage(channel_id, b"this channel is unknown here"))

    def _reserve_id(self, driver: Driver, message: FundingCreated) -> bool:
        """Whether the channel may get the id that its funding output gives it; then nobody else may. Of several, the
        first counts."""
        if len(driver.ids) > 1:
            return True
        channel_id = channel_id_of(OutPoint(message.funding_txid, message.funding_output_index))
        if channel_id in self._taken_ids:
            return False
        self._taken_ids.add(channel_id)
        driver.ids.add(channel_id)
        return True

    def peer_error(self, link: PeerLink, message: ErrorMessage) -> None:
        """BOLT 1: `channel_id` names the channel that fails; all zeros: all of them."""
        if message.channel_id == bytes(32):
            drivers = self.of_peer(link.node_id)
        else:
            driver = self._by_id.get((link.node_id, message.channel_id))
            drivers = [driver] if driver is not None else []
        raw = encode(message) if drivers else b""
        for driver in drivers:
            driver.post_message(message, raw, link)

    def _on_open_channel(self, link: PeerLink, message: OpenChannel) -> None:
        temporary_id = message.temporary_channel_id
        # BOLT 1: an `error` with such an id would fail another channel with this peer, or, with zeros, all of them.
        is_anothers = not any(temporary_id) or (link.node_id, temporary_id) in self._by_id
        if is_anothers or temporary_id in self._taken_ids:
            refusal = "this temporary_channel_id is in use"
        elif not self.knows_height():  # else its 2,016 blocks could be over at once
            refusal = "this node is catching up with layer 1; try again later"
        else:
            everybody = (d.state for d in self._by_key.values())
            with_peer = [d.state for d in self.of_peer(link.node_id)]
            refusal = openings.refusal(with_peer, everybody, self.has_stake(link.node_id))
        channel_key = self.take_key()
        try:
            if refusal:
                raise ev.ProtocolViolation(refusal, "warning" if is_anothers else "error")
            accepted = machine.accept(
                message,
                link.node_id,
                link.remote_features,
                self._env(self._identity.channel_secrets(channel_key), {}),
                chain_hash=self._chain_hash,
                local_alias=new_alias(),
                upfront_shutdown_script=b"",
            )
        except ev.ProtocolViolation as violation:
            if self._notes.may_tell(link.node_id):
                self._bus.publish(
                    "channel.refused",
                    f"refused a channel of {link.node_id.hex()}: {violation.reason}",
                    node_id=link.node_id.hex(),
                )
            words = told_to_peer(violation.reason).encode()
            if violation.action == "error":
                link.send_message(ErrorMessage(temporary_id, words))
            else:
                link.send_message(WarningMessage(temporary_id, words))
                link.close(violation.reason)
            return
        self.add(accepted, channel_key, temporary_id, link).is_proposal = True

    # --- Host

    def env(self, driver: ChannelDriver[State]) -> Env:
        """The world as this channel sees it now."""
        assert isinstance(driver, Driver)
        return self._env(driver.secrets, driver.adds)

    def new_env(self, channel_key: int) -> Env:
        """The same for a channel that is about to be."""
        return self._env(self._identity.channel_secrets(channel_key), {})

    def _env(self, secrets: ChannelSecrets, adds: Mapping[tuple[bool, int], bytes]) -> Env:
        return Env(
            time_seconds=int(time.time()),
            block_height=self._height(),
            feerate_per_kw=self._feerates.commitment_per_kw,
            closing_feerate_per_kw=self._feerates.closing_per_kw,
            policy=self.policy,
            signer=secrets,
            adds=adds,
            local_features=self._local_features,
        )

    def rows(self, driver: ChannelDriver[State], before: State | None) -> Iterable[Write]:
        """The channel's row, if there is anything new."""
        assert isinstance(driver, Driver)
        state = driver.state
        if state is before:
            return ()
        if isinstance(state, Closing | Closed):
            self.on_closing(driver)
        phase = phase_name(state)
        blob = machine.encode_state(state)
        stored_as, driver.stored_as = driver.stored_as, (driver.channel_id, phase)
        key = driver.channel_key
        was_unproven = before is not None and openings.is_unproven(before)
        if phase == "forgotten" and (
            stored_as is None or was_unproven or stored_as[1] in ("opening", "awaiting_funding")
        ):
            # Strangers can have as many as they like: nothing stays of what never held money.
            driver.stored_as = None
            if stored_as is None:
                return ()
            return (*self.on_forgotten(key), rows.FORGET_POLICY(key), rows.FORGET_CHANNEL(key))
        if stored_as is None:
            return (
                rows.INSERT_CHANNEL(
                    key, driver.channel_id, driver.peer_id, phase, driver.is_over, blob, driver.created_seconds
                ),
            )
        if stored_as == driver.stored_as and not driver.is_over:
            return (rows.UPDATE_CHANNEL(blob, key),)
        return (rows.UPDATE_CHANNEL_PHASE(driver.channel_id, phase, driver.is_over, blob, key),)

    def submit(self, writes: Sequence[Write], done: Callable[[StoreFailed | None], None]) -> None:
        """To the one writer."""
        self._store.submit(writes, done)

    def read_ahead(self, driver: ChannelDriver[State], htlc_id: int) -> None:
        """Its onion is peeled."""
        assert isinstance(driver, Driver)
        self.switch.read_ahead(driver, htlc_id)

    def react(self, driver: ChannelDriver[State], effect: fx.Effect) -> Reaction:
        """Rows and answers that belong into the same transaction."""
        assert isinstance(driver, Driver)
        match effect:
            case fx.HtlcLockedIn():
                return self.switch.locked_in(driver, effect.htlc, effect.must_fail)
            case fx.HtlcSettled():
                return self.switch.settled(driver, effect)
            case fx.HtlcFailed():
                return self.switch.failed(driver, effect)
            case fx.Broadcast():
                writes = self._broadcasts.add(effect.tx, effect.label, driver.channel_key)
                is_unproven = openings.is_unproven(driver.state)
                return Reaction([*writes, *self.funder.broadcasting(effect.tx, effect.label, is_unproven)])
            case fx.WatchFunding():
                return Reaction(self._watch(driver, effect))
            case fx.ChannelIdChanged():
                driver.channel_id = effect.new
                self._route(driver, effect.new)
                return NO_REACTION
            case fx.Send() if isinstance(driver.state, FundingCreatedSent):
                self._route(driver, driver.state.params.channel_id)  # funding_signed has the real id already
                return NO_REACTION
            case fx.CloseCompleted():
                key = driver.channel_key
                writes = [row for txid in self._broadcasts.of_channel(key) for row in self.funder.given_up(txid)]
                writes += [*self._watches.remove(key), *self._broadcasts.channel_over(key)]
                return Reaction([*writes, rows.FORGET_REVOCABLES(key)])
            case _:
                return NO_REACTION

    def _watch(self, driver: Driver, effect: fx.WatchFunding) -> list[Write]:
        return self._watches.add(driver.channel_key, effect.outpoint, effect.script_pubkey, effect.inputs)

    def _route(self, driver: Driver, channel_id: bytes) -> None:
        driver.ids.add(channel_id)
        self._taken_ids.add(channel_id)
        self._by_id[driver.peer_id, channel_id] = driver

    def perform(self, driver: ChannelDriver[State], effect: fx.Effect) -> None:
        """What follows once it is durable."""
        assert isinstance(driver, Driver)
        match effect:
            case fx.HtlcLockedIn():
                self.switch.locked_in_done(effect.htlc)
            case fx.HtlcSettled() | fx.HtlcFailed():
                self.switch.outgoing_done(effect)
            case fx.HtlcRemoved():
                self.switch.removed(driver, effect.id)
            case fx.Broadcast():
                self._broadcasts.publish(effect.tx.txid())
            case fx.NeedFunding():
                self.funder.need_funding(driver, effect)
            case fx.ReleaseFunding():
                self.funder.release_funding(effect.txid)
            case fx.NeedShutdownScript():
                self.funder.need_script(driver, effect.any_segwit)
            case fx.CloseCompleted():
                self._forget(driver)
                self._tell(driver, effect)
            case (
                fx.PhaseChanged()
                | fx.ChannelUsable()
                | fx.RemoteUnilateralClose()
                | fx.FundingLost()
                | fx.StateUnconfirmed()
            ):
                self._tell(driver, effect)
            case fx.WatchFunding() | fx.ChannelIdChanged() | fx.Send() | fx.SendRaw() | fx.Disconnect():
                pass
            case _:
                assert_never(effect)

    def _is_told_of(self, driver: Driver) -> bool:
        """Whether the operator hears of everything that happens to a channel. Strangers can propose channels and give
        them up as often as they like."""
        is_cheap = openings.is_unproven(driver.state) or phase_name(driver.state) == "forgotten"
        return not (driver.is_proposal and is_cheap) or self._notes.may_tell(driver.peer_id)

    def _tell(self, driver: Driver, happened: channel_news.News) -> None:
        """The operator hears of what happens to a channel."""
        if isinstance(happened, channel_news.CHEAP) and not self._is_told_of(driver):
            return
        kind, sentence, details = channel_news.told(happened, driver.channel_id, driver.peer_id)
        self._bus.publish(kind, sentence, **details)

    def frozen(self, driver: ChannelDriver[State], event: object, error: BaseException) -> None:
        """A bug: this channel stops, but for watching the chain; the others live on."""
        cause = type(event).__name__
        log.critical("channel frozen by a bug", channel=driver.channel_id.hex(), cause=cause, exc_info=error)
        self._bus.publish(
            "channel.frozen",
            f"channel {driver.channel_id.hex()} is frozen: {driver.failure}. Please report this; restart to go on",
            channel_id=driver.channel_id.hex(),
        )

    def violated(self, driver: ChannelDriver[State], violation: ev.ProtocolViolation) -> None:
        """The peer broke a rule."""
        assert isinstance(driver, Driver)
        self._tell(driver, violation)

    # --- waiting for a phase

    async def wait_until(self, driver: Driver, reached: Callable[[Driver], bool], timeout_seconds: float) -> bool:
        """Until `reached` holds after a commit, or the time is over; whether it holds."""
        if reached(driver):
            return True
        changed = asyncio.Event()
        driver.watchers.add(changed)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not reached(driver):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return False
        finally:
            driver.watchers.discard(changed)
        return True

    def batch_done(self, driver: ChannelDriver[State]) -> None:
        """A batch is durable and performed."""
        assert isinstance(driver, Driver)
        for watcher in driver.watchers:
            watcher.set()
        self.on_batch_done(driver)

    # --- fees

    def adjust_fees(self) -> None:
        """Where we pay the fee and it is off by more than a fifth, propose another (BOLT 2, "Updating Fees")."""
        for driver in self.all():
            state = driver.state
            if not views.takes_fees(state) or not state.params.is_opener:
                continue
            wanted = commitment_feerate_per_kw(self.env(driver), state.params.anchors)
            current = state.commitments.latest_remote.spec.feerate_per_kw
            if wanted > current:  # rather as much as there is than nothing
                wanted = max(current, min(wanted, limits.affordable_feerate_per_kw(state.commitments, state.params)))
            if abs(wanted - current) * FEE_TOLERANCE > current:
                driver.post(ev.UpdateFee(wanted))

    # --- for payments

    def usable_with(self, node_id: bytes) -> list[Driver]:
        """Channels with a peer over which HTLCs may go now."""
        return [d for d in self.of_peer(node_id) if d.failure is None and views.is_usable(d.state)]

    def available_msat(self, driver: Driver) -> int:
        """The most that can be offered over a channel now."""
        return views.available_to_send_msat(driver.state, self.policy)

    def why_unreachable(self, node_id: bytes) -> str:
        """Why `usable_with` is empty, as a sentence."""
        drivers = [driver for driver in self.of_peer(node_id) if not driver.is_shown_as_closed]
        if not drivers:
            return f"there is no channel with {node_id.hex()}: open one first"
        if node_id not in self._links:
            return f"{node_id.hex()} is not connected: the channel cannot be used now, try again later"
        reasons = {views.why_unusable(driver.state, driver.failure) for driver in drivers}
        return f"no channel with {node_id.hex()} is usable now: {', '.join(sorted(reasons))}"


def _nobody(_driver: Driver) -> None:
    """Nobody has to hear of it."""
