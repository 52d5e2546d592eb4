"""What the operator does with channels: open, list, close."""

from __future__ import annotations

import asyncio
import os

from msgspec.structs import replace
from sqlalchemy import select

from channeld.bolt.features import Feature
from channeld.channel import events as ev
from channeld.channel import machine, unconfirmed
from channeld.channel.state import (
    Closed,
    Closing,
    Funded,
    NegotiatingLegacy,
    NegotiatingSimple,
    Opening,
    ShuttingDown,
    State,
    WaitingForRemoteClose,
)
from channeld.node import views
from channeld.node.broadcasts import Broadcasts
from channeld.node.channels import Channels, Driver
from channeld.node.coins import Coins
from channeld.node.feerates import FeeRates
from channeld.node.idempotency import Idempotency, Mark
from channeld.node.interface import ChannelView, NodeError
from channeld.node.monitor_warnings import htlc_warnings
from channeld.node.peer import PeerLink
from channeld.node.peers import Peers
from channeld.node.route_hints import new_alias
from channeld.storage import Store, tables

OPEN_TIMEOUT_SECONDS = 60.0
CLOSE_TIMEOUT_SECONDS = 15.0
HTLC_PATIENCE_SECONDS = 3.0
"""HTLCs that are just being settled hold a close up no longer; others may take days."""
MIN_CHANNEL_SAT = 20_000
OUTDATED = (
    "this channel's state was not compared with the peer since the daemon started: if the database is an old copy, a "
    "forced close loses everything in the channel. Wait until the peer was connected, or, if you are sure, repeat with "
    "--even-if-outdated"
)
FROM_BACKUP = (
    "this channel's state is that of channels.backup, from when it was opened: if anything was paid over it since, a "
    "forced close loses everything in the channel. Wait for the peer to close it (`channelctl peer connect` calls it), "
    "or, if there is no hope of that and you are sure that nothing was paid, repeat with --even-if-outdated"
)
COPIED = (
    "who closed this channel has a copy of this node or of its keys, and may have revoked our commitment since: a "
    "forced close may lose everything in the channel. Wait for the closing transaction to be mined again, or, if you "
    "are sure that no other copy of this node ran, repeat with --even-if-outdated"
)


class ChannelVerbs:
    """Open, close, list; each returns views."""

    def __init__(
        self,
        store: Store,
        channels: Channels,
        peers: Peers,
        coins: Coins,
        broadcasts: Broadcasts,
        feerates: FeeRates,
        idempotency: Idempotency,
        chain_hash: bytes,
    ) -> None:
        self._store = store
        self._channels = channels
        self._peers = peers
        self._coins = coins
        self._broadcasts = broadcasts
        self._feerates = feerates
        self._idempotency = idempotency
        self._chain_hash = chain_hash
        self._openings: set[asyncio.Task[None]] = set()

    # --- looking

    def view(self, driver: Driver) -> ChannelView:
        """A channel that is not over."""
        view = views.channel_view(
            driver.state,
            channel_id=driver.channel_id,
            peer_id=driver.peer_id,
            connected=self._peers.link(driver.peer_id) is not None,
            failure=driver.failure,
            policy=self._channels.policy,
        )
        warnings = [warned.sentence for warned in htlc_warnings(driver.state, self._channels, driver)]
        if isinstance(driver.state, Funded) and (doubt := unconfirmed.sentence(driver.state)):
            warnings.insert(0, doubt)
        return replace(view, status="; ".join([view.status, *warnings])) if warnings else view

    async def list_all(self, include_closed: bool) -> list[ChannelView]:
        """All channels, the oldest first."""
        drivers = [d for d in self._channels.all() if include_closed or not d.is_shown_as_closed]
        found = [self.view(driver) for driver in drivers]
        if include_closed:
            found += [self._closed_view(row) for row in await self._closed_rows()]
        return found

    async def _closed_rows(self) -> list[tuple[bytes, bytes, bytes]]:
        table = tables.channels
        query = select(table.c.channel_id, table.c.peer_id, table.c.state).where(table.c.closed)
        return await self._store.read(
            lambda c: [(row[0], row[1], row[2]) for row in c.execute(query.order_by(table.c.channel_key))]
        )

    def _closed_view(self, row: tuple[bytes, bytes, bytes]) -> ChannelView:
        channel_id, peer_id, blob = row
        return views.channel_view(
            machine.decode_state(blob),
            channel_id=channel_id,
            peer_id=peer_id,
            connected=self._peers.link(peer_id) is not None,
            failure=None,
            policy=self._channels.policy,
        )

    async def get(self, channel_id: bytes) -> ChannelView:
        """Raises NodeError if there never was such a channel."""
        driver = self._channels.by_id(channel_id)
        if driver is not None:
            return self.view(driver)
        for row in await self._closed_rows():
            if row[0] == channel_id:
                return self._closed_view(row)
        raise NodeError("not_found", f"there is no channel {channel_id.hex()}")

    # --- opening

    async def open(
        self,
        node_id: bytes,
        amount_sat: int,
        push_msat: int,
        announce: bool,
        zero_conf: bool,
        feerate_per_kw: int | None,
        close_to_address: str,
        idempotency_key: str,
    ) -> ChannelView:
        """Returns when the funding transaction is broadcast."""
        return await self._idempotency.once(
            idempotency_key,
            "open_channel",
            (node_id, amount_sat, push_msat, announce, zero_conf, feerate_per_kw, close_to_address),
            lambda mark: self._open(
                node_id, amount_sat, push_msat, announce, zero_conf, feerate_per_kw, close_to_address, mark
            ),
            self._opened_before,
        )

    async def _open(
        self,
        node_id: bytes,
        amount_sat: int,
        push_msat: int,
        announce: bool,
        zero_conf: bool,
        feerate_per_kw: int | None,
        close_to_address: str,
        mark: Mark,
    ) -> ChannelView:
        if amount_sat < MIN_CHANNEL_SAT:
            raise NodeError("invalid_argument", f"a channel holds at least {MIN_CHANNEL_SAT:,} sat, not {amount_sat:,}")
        if not 0 <= push_msat <= amount_sat * 1000:
            raise NodeError("invalid_argument", "what is pushed to the peer must be within the channel's amount")
        link = self._peers.link(node_id)
        if link is None:
            raise NodeError(
                "failed_precondition",
                f"{node_id.hex()} is not connected: connect to it first, or give its address as node_id@host:port",
            )
        feerate = feerate_per_kw or self._feerates.funding_per_kw
        self._coins.check_affordable(amount_sat, feerate)
        wanted = machine.OpenParams(
            remote_node_id=node_id,
            remote_features=link.remote_features,
            chain_hash=self._chain_hash,
            temporary_channel_id=os.urandom(32),
            local_alias=new_alias(),
            amount_sat=amount_sat,
            push_msat=push_msat,
            announce=announce,
            funding_feerate_per_kw=feerate,
            zero_conf=zero_conf,
            scid_alias=not announce and link.negotiated.has(Feature.option_scid_alias),
            upfront_shutdown_script=self._coins.script_of(close_to_address) if close_to_address else b"",
        )
        driver = self._propose(wanted, link, mark)
        waiting = asyncio.create_task(self._left_or_given_up(driver))
        self._openings.add(waiting)
        waiting.add_done_callback(self._openings.discard)
        await asyncio.shield(waiting)
        return await self._opened(driver)

    async def _left_or_given_up(self, driver: Driver) -> None:
        """Also when the caller is gone: a peer that says nothing must not keep the wallet's coins."""
        if not await self._channels.wait_until(driver, _has_left_opening, OPEN_TIMEOUT_SECONDS):
            driver.post(ev.ForgetChannel("the peer took too long"))

    def _propose(self, wanted: machine.OpenParams, link: PeerLink, mark: Mark) -> Driver:
        channel_key = self._channels.take_key()
        try:
            transition = machine.initiate(wanted, self._channels.new_env(channel_key))
        except ev.CommandRejected as rejection:
            raise NodeError("invalid_argument", rejection.sentence) from rejection
        extra = mark(channel_key.to_bytes(8, "big"))
        return self._channels.add(transition, channel_key, wanted.temporary_channel_id, link, extra)

    async def _opened(self, driver: Driver) -> ChannelView:
        state = driver.state
        if isinstance(state, Closed):
            raise NodeError("failed_precondition", f"the channel was not opened: {state.reason}")
        if isinstance(state, Opening):
            raise NodeError("deadline_exceeded", "the peer did not answer in time; the opening was given up")
        await self._broadcasts.wait_offered(state.params.funding_outpoint.txid)
        return self.view(driver)

    async def _opened_before(self, reference: bytes) -> ChannelView:
        channel_key = int.from_bytes(reference, "big")
        driver = self._channels.by_key(channel_key)
        if driver is not None:
            await self._channels.wait_until(driver, _has_left_opening, OPEN_TIMEOUT_SECONDS)
            return await self._opened(driver)
        table = tables.channels
        query = select(table.c.channel_id).where(table.c.channel_key == channel_key)
        channel_id = await self._store.read(lambda c: c.execute(query).scalar())
        if channel_id is None:
            raise NodeError("failed_precondition", "the first call with this key came to nothing: no channel was made")
        view = await self.get(channel_id)
        if view.phase == "forgotten":
            raise NodeError("failed_precondition", f"the channel was not opened: {view.status}")
        return view

    # --- closing

    async def close(
        self,
        channel_id: bytes,
        force: bool,
        address: str,
        feerate_per_kw: int | None,
        idempotency_key: str,
        even_if_outdated: bool = False,
    ) -> ChannelView:
        """Returns when the closing transaction is broadcast, or when somebody else has to act. `even_if_outdated`:
        publish our commitment though the peer could not be asked since the start whether it is the newest."""

        async def again(reference: bytes) -> ChannelView:
            return await self.get(reference)

        return await self._idempotency.once(
            idempotency_key,
            "close_channel",
            (channel_id, force, address, feerate_per_kw, *([True] if even_if_outdated else [])),
            lambda mark: self._close(channel_id, force, address, feerate_per_kw, even_if_outdated, mark),
            again,
        )

    async def _close(
        self,
        channel_id: bytes,
        force: bool,
        address: str,
        feerate_per_kw: int | None,
        even_if_outdated: bool,
        mark: Mark,
    ) -> ChannelView:
        driver = self._channels.by_id(channel_id)
        if driver is None or driver.is_shown_as_closed:
            view = await self.get(channel_id)
            raise NodeError("failed_precondition", f"this channel is over already: {view.status}")
        if isinstance(driver.state, Opening):
            event: ev.Event = ev.ForgetChannel("given up by the operator")
        elif force:
            doubt = doubt_of(driver.state)
            if doubt and not even_if_outdated:
                raise NodeError("failed_precondition", doubt)
            event = ev.ForceClose("closed by the operator", even_if_outdated=True)
        else:
            link = self._peers.link(driver.peer_id)
            if link is None:
                raise NodeError(
                    "unavailable", "the peer is not connected: try again when it is back, or close by force"
                )
            if address:
                script = self._coins.script_of(address)
            else:
                any_segwit = link.negotiated.has(Feature.option_shutdown_anysegwit)
                script = chosen_script(driver.state) or await self._coins.new_script(any_segwit)
            event = ev.CloseChannel(script, feerate_per_kw or self._feerates.closing_per_kw)
        await self._channels.command(driver, event, mark(channel_id))
        patience = HTLC_PATIENCE_SECONDS if views.htlcs(driver.state) else CLOSE_TIMEOUT_SECONDS
        await self._channels.wait_until(driver, self._close_is_out_of_our_hands, patience)
        view = await self.get(driver.channel_id)
        if view.closing_txid is not None:
            await self._broadcasts.wait_offered(view.closing_txid)
        return view

    def _close_is_out_of_our_hands(self, driver: Driver) -> bool:
        state = driver.state
        if not isinstance(state, Funded) or isinstance(state, Closing):
            return True
        if isinstance(state, NegotiatingSimple):
            return bool(state.closing_txs) and state.sent is None  # ours, not just the peer's
        if isinstance(state, NegotiatingLegacy):
            return bool(state.closing_txs)
        return self._peers.link(driver.peer_id) is None


def _has_left_opening(driver: Driver) -> bool:
    return not isinstance(driver.state, Opening)


def chosen_script(state: State) -> bytes:
    """Where our share goes if nobody says anything else: what was fixed when the channel opened, or is on its way since
    it was closed; else empty."""
    if not isinstance(state, Funded):
        return b""
    if isinstance(state, ShuttingDown | NegotiatingLegacy | NegotiatingSimple) and state.local_script:
        return state.local_script
    return state.params.local.upfront_shutdown_script


def doubt_of(state: State) -> str:
    """Why our commitment may be revoked for all we know; empty if it is not."""
    if isinstance(state, Closing):
        gone = not state.local_tx and state.confirmed_height is None
        return COPIED if gone and state.standing == "doubtful" else ""
    if isinstance(state, WaitingForRemoteClose) and state.is_from_backup:
        return FROM_BACKUP
    return OUTDATED if isinstance(state, Funded) and unconfirmed.is_doubtful(state) else ""
