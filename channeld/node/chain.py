"""Following layer 1: each block goes to the wallet, the watches and the broadcasts in one transaction; channels hear of
it when the node has caught up with the tip."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from channeld.channel import events as ev
from channeld.node.broadcasts import Broadcasts
from channeld.node.bus import EventBus
from channeld.node.channels import Channels
from channeld.node.feerates import FeeRates
from channeld.node.gossip import NodeGossip
from channeld.node.monitor import Monitor
from channeld.node.wallet_store import to_rows
from channeld.node.watches import Watches
from channeld.storage import Store, Write
from wallet.bitcoin import Block
from wallet.chain import (
    BlockConnected,
    BlockDisconnected,
    ChainSource,
    ChainUnavailable,
    SourceBack,
    SourceLost,
    Synced,
)
from wallet.wallet import Wallet

log = structlog.get_logger(__name__)
PROGRESS_BLOCKS = 1000


class ChainFollower:
    """The one task that moves the node's view of the chain."""

    def __init__(
        self,
        source: ChainSource,
        store: Store,
        wallet: Wallet,
        channels: Channels,
        watches: Watches,
        broadcasts: Broadcasts,
        feerates: FeeRates,
        monitor: Monitor,
        bus: EventBus,
        on_height: Callable[[int], list[Write]],
        on_synced: Callable[[], None],
        gossip: NodeGossip,
    ) -> None:
        self._source = source
        self._store = store
        self._wallet = wallet
        self._channels = channels
        self._watches = watches
        self._broadcasts = broadcasts
        self._feerates = feerates
        self._monitor = monitor
        self._bus = bus
        self._on_height = on_height
        self._on_synced = on_synced
        self._gossip = gossip
        self._lost_since: float | None = time.time()
        self._reason = "waiting for the first contact"
        self.synced = False
        self.in_step = False
        """The height may be relied on: the chain was caught up with, and also after layer 1 was away."""
        self._was_away = False
        self._stale_since = time.monotonic()

    def stale_seconds(self) -> float:
        """For how long the height could not be relied on; 0 while it can."""
        return 0.0 if self.in_step else time.monotonic() - self._stale_since

    @property
    def status(self) -> str:
        """A sentence about layer 1."""
        if self._lost_since is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._lost_since))
            return f"layer 1 is away since {since}: {self._reason}"
        return "following layer 1" if self.synced else "catching up with layer 1"

    def waiting(self, reason: str) -> None:
        """Layer 1 does not answer; called again and again while that lasts."""
        if self.in_step:
            self._stale_since = time.monotonic()
        self.in_step = False
        self._was_away = True
        first = self._reason != reason
        self._reason = reason
        if self._lost_since is None:
            self._lost_since = time.time()
        if first:
            self._bus.publish("chain.lost", f"layer 1 is away: {reason}", reason=reason)

    async def run(self) -> None:
        """Follow for ever. Raises WrongChain and ReorgTooDeep: then the node must stop."""
        await self._source.start()
        blocks, birthday_height = self._wallet.follow_from()
        async for event in self._source.follow(blocks, birthday_height=birthday_height):
            match event:
                case BlockConnected():
                    await self._connected(event)
                case BlockDisconnected():
                    await self._disconnected(event)
                case Synced():
                    await self._caught_up(event)
                case SourceLost(reason):
                    self.waiting(reason)
                case SourceBack():
                    self._back()

    async def _connected(self, event: BlockConnected) -> None:
        self._found()
        self.synced = False
        self.in_step = self.in_step and not self._was_away
        writes = to_rows(self._wallet.process(event))
        writes += self._scan(event.block, event.height)
        writes += self._on_height(event.height)
        await self._store.commit(writes)
        self._gossip.block_connected(event.block, event.height)
        if event.height % PROGRESS_BLOCKS == 0:
            log.info("catching up", height=event.height)

    def _scan(self, block: Block, height: int) -> list[Write]:
        self._monitor.moved()
        writes: list[Write] = []
        for index, tx in enumerate(block.txs):
            txid = tx.txid()
            writes += self._watches.scan(tx, txid, height, index)
            writes += self._broadcasts.scan(tx, txid, height)
            writes += self._monitor.scan(tx, txid, height, index)
        writes += self._broadcasts.bury(height)
        return writes

    async def _disconnected(self, event: BlockDisconnected) -> None:
        self._found()
        self.synced = False
        self.in_step = self.in_step and not self._was_away
        writes = to_rows(self._wallet.process(event))
        writes += self._watches.disconnected(event.height)
        writes += self._broadcasts.disconnected(event.height)
        writes += self._monitor.disconnected(event.height)
        await self._store.commit(writes)
        self._gossip.block_disconnected(event.height)
        self._bus.publish("chain.reorg", f"block {event.height} left the chain", height=event.height)

    async def _caught_up(self, event: Synced) -> None:
        self._found()
        writes = to_rows(self._wallet.process(event))
        if writes:
            await self._store.commit(writes)
        await self._feerates.refresh()
        self.synced = self.in_step = True
        was_away, self._was_away = self._was_away, False
        self._bus.publish(
            "chain.block", f"at block {event.height}", height=event.height, block_hash=event.hash[::-1].hex()
        )
        self._tell_channels(event.height)
        await self._monitor.synced(event.height, was_away)
        await self._publish()
        self._on_synced()

    def _tell_channels(self, height: int) -> None:
        # Facts first: no deadline of a channel counts whose funding output is spent already.
        for channel_key, fact in self._watches.facts(height):
            concerned = self._channels.by_key(channel_key)
            if concerned is not None:
                concerned.post(fact)
        for driver in self._channels.all():
            driver.post(ev.NewBlock())
        self._channels.adjust_fees()

    async def _publish(self) -> None:
        """Everything of ours that is in no block yet."""
        self._broadcasts.publish_all()
        try:
            await self._wallet.rebroadcast()
        except ChainUnavailable as error:
            log.debug("no rebroadcast now", reason=str(error))

    def _found(self) -> None:
        if self._lost_since is not None:
            self._lost_since, self._reason = None, ""

    def _back(self) -> None:
        self._found()
        self.in_step = self.synced  # at the same block as before, unless blocks follow now
        self._bus.publish("chain.back", "layer 1 is back")
        self._broadcasts.publish_all()
