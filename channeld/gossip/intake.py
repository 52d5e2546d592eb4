"""Gossip from peers: queued, checked in batches, and put into the view.

    offer -> rules -> queue -> signatures (a batch, all cores) -> funding on layer 1 (announcements) -> view, relay

Messages that hang on an announcement whose funding is still being looked up wait with it; updates that came before
their announcement are kept for a short while. Every queue has a bound: what does not fit is dropped, and had again
later.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import structlog

from channeld.bolt.messages import ChannelAnnouncement, ChannelUpdate, NodeAnnouncement, SignedGossip
from channeld.bolt.primitives import format_short_channel_id
from channeld.gossip import validate
from channeld.gossip.interface import Funding, FundingSource, FundingUnknown, GossipConfig, Refusal
from channeld.gossip.limits import TokenBuckets
from channeld.gossip.store import StoreFull
from channeld.gossip.verify import SignatureChecker, Signed
from channeld.gossip.view import NetworkView

log = structlog.get_logger(__name__)

BATCH_MESSAGES = 512
FUNDING_CHUNK = 32
MAX_QUEUED = 60_000
MAX_QUEUED_FROM_PEER = 20_000
MAX_PENDING = 20_000
MAX_ORPHANS = 5_000
MAX_BLACKLISTED = 10_000

_UNKNOWN_NODE = Refusal("its node has no known channel")
_TOO_OFTEN = Refusal("it comes too often")
_BLACKLISTED = Refusal("its node is blacklisted")
_BAD_SIGNATURE = Refusal("a signature is wrong (BOLT 7)", blame=True)


class IntakeListener(Protocol):
    """Who hears what became of what was offered."""

    def accepted(self, message: SignedGossip, origins: set[bytes]) -> None:
        """It is in the view now; `origins` are the peers that sent it."""
        ...

    def refused(self, message: SignedGossip, origins: set[bytes], refusal: Refusal) -> None:
        """It was not taken."""
        ...

    def unknown_channel(self, scid: int, origin: bytes) -> None:
        """An update came for a channel without an announcement."""
        ...


class Item:
    """A message under way, and the peers that sent it; it takes a place in the queue of the first, `sender`."""

    __slots__ = ("awaits_funding", "message", "origins", "raw", "received_at", "sender")

    def __init__(self, message: SignedGossip, raw: bytes, sender: bytes, received_at: float) -> None:
        self.message = message
        self.raw = raw
        self.sender = sender
        self.origins = {sender}
        self.received_at = received_at
        self.awaits_funding = False


class _Pending:
    """An announcement with good signatures, and what waits for its funding."""

    __slots__ = ("item", "message", "nodes", "updates")

    def __init__(self, item: Item, message: ChannelAnnouncement) -> None:
        self.item = item
        self.message = message
        self.updates: dict[int, Item] = {}
        self.nodes: dict[bytes, Item] = {}


class Intake:
    """Run `run` in one task and `run_funding` in a few."""

    def __init__(
        self,
        view: NetworkView,
        funding: FundingSource,
        checker: SignatureChecker,
        listener: IntakeListener,
        chain_hash: bytes,
        config: GossipConfig,
        clock: Callable[[], float],
        height: Callable[[], int],
    ) -> None:
        self.blacklist: OrderedDict[bytes, None] = OrderedDict()
        self.dropped = 0
        """Messages that found no room."""
        self._view = view
        self._funding = funding
        self._checker = checker
        self._listener = listener
        self._chain_hash = chain_hash
        self._config = config
        self._clock = clock
        self._height = height
        self._queue: deque[Item] = deque()
        self._under_way: dict[bytes, Item] = {}
        self._queued_from: Counter[bytes] = Counter()
        self._pending: dict[int, _Pending] = {}
        self._pending_nodes: dict[bytes, set[int]] = {}
        self._to_fund: deque[_Pending] = deque()
        self._orphans: OrderedDict[tuple[int, int], Item] = OrderedDict()
        self._limits = TokenBuckets(config.update_burst, config.update_refill_seconds)
        self._in_batch = False
        self._work = asyncio.Event()
        self._funding_work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- in

    def offer(self, message: SignedGossip, origin: bytes) -> None:
        """A message from the peer `origin`. Returns at once."""
        raw = message.raw
        known = self._under_way.get(raw)
        if known is not None:
            known.origins.add(origin)
            return
        now = self._clock()
        refusal = self._check(message, raw, now)
        if refusal is not None:
            self._listener.refused(message, {origin}, refusal)
            return
        queued = self._queued_from[origin]
        if len(self._queue) >= MAX_QUEUED or queued >= MAX_QUEUED_FROM_PEER:
            self.dropped += 1
            return
        self._queued_from[origin] = queued + 1
        self._under_way[raw] = item = Item(message, raw, origin, now)
        if not self._queue:
            self._work.set()
            self._idle.clear()
        self._queue.append(item)

    def _check(self, message: SignedGossip, raw: bytes, now: float) -> Refusal | None:
        view = self._view
        if len(raw) > validate.MAX_BYTES[type(message)]:
            return validate.TOO_LONG
        if isinstance(message, ChannelUpdate):
            refusal = validate.check_update(message, self._chain_hash, view, self._config, now)
            if refusal is None and not self._limits.has((message.short_channel_id, message.channel_flags & 1), now):
                return _TOO_OFTEN
            return refusal
        if isinstance(message, ChannelAnnouncement):
            return validate.check_announcement(message, self._chain_hash, view.topology, self.blacklist, self._height())
        assert isinstance(message, NodeAnnouncement)
        refusal = validate.check_node(message, view, self._config, self.blacklist, now)
        return refusal or (None if self._limits.has(message.node_id, now) else _TOO_OFTEN)

    async def idle(self) -> None:
        """Until nothing is under way."""
        await self._idle.wait()

    @property
    def queued(self) -> int:
        """How many messages wait for their signatures or funding to be looked at."""
        return len(self._queue) + len(self._pending)

    def tick(self, now: float) -> None:
        """Let go of what waited for too long."""
        while self._orphans:
            key, item = next(iter(self._orphans.items()))
            if now - item.received_at < self._config.orphan_seconds:
                break
            del self._orphans[key]
        self._limits.clean(now)

    # --- signatures

    async def run(self) -> None:
        """Check what is queued, batch after batch, for ever."""
        while True:
            await self._work.wait()
            batch = [self._queue.popleft() for _ in range(min(BATCH_MESSAGES, len(self._queue)))]
            if not self._queue:
                self._work.clear()
            self._in_batch = True
            try:
                await self._process(batch)
            except StoreFull as error:
                log.error("gossip dropped", reason=str(error), messages=len(batch))
                self.dropped += len(batch)
            finally:
                self._in_batch = False
                self._done(batch)

    def _done(self, batch: list[Item]) -> None:
        for sender, count in Counter([item.sender for item in batch]).items():
            self._queued_from[sender] -= count
            if not self._queued_from[sender]:
                del self._queued_from[sender]
        for item in batch:
            if not item.awaits_funding:
                self._under_way.pop(item.raw, None)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._queue and not self._pending and not self._in_batch:
            self._idle.set()

    async def _process(self, batch: list[Item]) -> None:
        announced = {
            item.message.short_channel_id: item.message
            for item in batch
            if isinstance(item.message, ChannelAnnouncement)
        }
        new_nodes = {node for message in announced.values() for node in (message.node_id_1, message.node_id_2)}
        signed: list[Signed] = []
        checked: list[Item] = []
        for item in batch:
            message = item.message
            signer: bytes | None = None
            if isinstance(message, ChannelUpdate):
                signer = self._signer(message, announced)
                if signer is None:
                    self._keep_orphan(item, message)
                    continue
                # BOLT 7 blacklists nodes, not only their announcements.
                refusal = _BLACKLISTED if signer in self.blacklist else None
            else:
                refusal = self._unknown_node(message, new_nodes)
            if refusal is not None:
                self._listener.refused(message, item.origins, refusal)
                continue
            checked.append(item)
            signed.append((message, item.raw, signer))
        self._take(checked, await self._checker.check(signed))

    def _take(self, checked: list[Item], results: list[bool]) -> None:
        """What was checked goes on if its signatures are good."""
        others: list[Item] = []
        for item, is_good in zip(checked, results, strict=True):
            message = item.message
            if not is_good:
                self._listener.refused(message, item.origins, _BAD_SIGNATURE)
            elif isinstance(message, ChannelAnnouncement):
                self._await_funding(item, message)
            else:  # what hangs on announcements of the same batch: after them
                others.append(item)
        for item in others:
            message = item.message
            if isinstance(message, ChannelUpdate):
                self._update_signed(item, message)
            elif isinstance(message, NodeAnnouncement):
                self._node_signed(item, message)

    def _unknown_node(self, message: SignedGossip, new_nodes: set[bytes]) -> Refusal | None:
        # BOLT 7, "if `node_id` is NOT previously known from a `channel_announcement` message [...]: SHOULD ignore"
        if not isinstance(message, NodeAnnouncement):
            return None
        node_id = message.node_id
        known = node_id in self._view.topology.node_index or node_id in self._pending_nodes or node_id in new_nodes
        return None if known else _UNKNOWN_NODE

    def _signer(self, update: ChannelUpdate, announced: dict[int, ChannelAnnouncement]) -> bytes | None:
        # BOLT 7, "The `node_id` for the signature verification is taken from the corresponding `channel_announcement`"
        scid, direction = update.short_channel_id, update.channel_flags & 1
        topology = self._view.topology
        row = topology.rows.get(scid)
        if row is not None:
            return topology.node_ids[topology.nodes[direction][row]]
        pending = self._pending.get(scid)
        announcement = pending.message if pending is not None else announced.get(scid)
        if announcement is None:
            return None
        return announcement.node_id_2 if direction else announcement.node_id_1

    def _keep_orphan(self, item: Item, update: ChannelUpdate) -> None:
        # BOLT 7, "if the `short_channel_id` does NOT match a previous `channel_announcement`: MUST ignore
        # `channel_update`s that do NOT correspond to one of its own channels": nothing is done with it until one comes.
        scid = update.short_channel_id
        self._orphans[scid, update.channel_flags & 1] = item
        if len(self._orphans) > MAX_ORPHANS:
            self._orphans.popitem(last=False)
        for origin in item.origins:
            self._listener.unknown_channel(scid, origin)

    # --- what has good signatures

    def _update_signed(self, item: Item, message: ChannelUpdate) -> None:
        row = self._view.topology.rows.get(message.short_channel_id)
        if row is not None:
            self._apply_update(item, message, row)
        elif (pending := self._pending.get(message.short_channel_id)) is not None:
            _keep_newer(pending.updates, message.channel_flags & 1, item)

    def _node_signed(self, item: Item, message: NodeAnnouncement) -> None:
        if message.node_id in self._view.topology.node_index:
            self._apply_node(item, message)
        else:
            for scid in self._pending_nodes.get(message.node_id, ()):
                _keep_newer(self._pending[scid].nodes, message.node_id, item)

    def _apply_update(self, item: Item, message: ChannelUpdate, row: int) -> None:
        refusal = validate.check_newer(message, self._view, row, self._config)
        if refusal is None and not self._limits.take(
            (message.short_channel_id, message.channel_flags & 1), self._clock()
        ):
            refusal = _TOO_OFTEN
        if refusal is not None:
            self._listener.refused(message, item.origins, refusal)
            return
        self._view.set_update(message)
        self._listener.accepted(message, item.origins)

    def _apply_node(self, item: Item, message: NodeAnnouncement) -> None:
        now = self._clock()
        refusal = validate.check_node(message, self._view, self._config, self.blacklist, now)
        if refusal is None and not self._limits.take(message.node_id, now):
            refusal = _TOO_OFTEN
        if refusal is not None:
            self._listener.refused(message, item.origins, refusal)
            return
        self._view.set_node(message)
        self._listener.accepted(message, item.origins)

    # --- funding

    def _await_funding(self, item: Item, message: ChannelAnnouncement) -> None:
        scid = message.short_channel_id
        if scid in self._pending or validate.is_known(message, self._view.topology):
            return
        if len(self._pending) >= MAX_PENDING:
            self.dropped += 1
            return
        item.awaits_funding = True
        pending = _Pending(item, message)
        self._pending[scid] = pending
        for node_id in (message.node_id_1, message.node_id_2):
            self._pending_nodes.setdefault(node_id, set()).add(scid)
        if not self._to_fund:
            self._funding_work.set()
        self._to_fund.append(pending)

    async def run_funding(self) -> None:
        """Look at the outputs of announced channels, some at a time, for ever."""
        while True:
            await self._funding_work.wait()
            chunk = [self._to_fund.popleft() for _ in range(min(FUNDING_CHUNK, len(self._to_fund)))]
            if not self._to_fund:
                self._funding_work.clear()
            if not chunk:
                continue
            chunk.sort(key=lambda pending: pending.message.short_channel_id)
            try:
                found = await self._funding.lookup([pending.message.short_channel_id for pending in chunk])
            except FundingUnknown as error:
                log.info("announcements dropped", reason=str(error), channels=len(chunk))
                found = []
            try:
                for pending, funding in zip(chunk, found, strict=False):
                    self._resolve(pending, funding)
            except StoreFull as error:
                log.error("announcements dropped", reason=str(error), channels=len(chunk))
            finally:
                for pending in chunk:
                    self._forget_pending(pending)
                self._check_idle()

    def _resolve(self, pending: _Pending, funding: Funding | None) -> None:
        message, item = pending.message, pending.item
        # BOLT 7, "MAY accept the message if the output is close to 6 confirmations"
        refusal = validate.check_funding(message, funding, self._config.announce_depth_blocks - 1)
        if refusal is not None or funding is None:
            assert refusal is not None
            self._listener.refused(message, item.origins, refusal)
            return
        if message.short_channel_id in self._view.topology.rows and not self._replaces(message, funding):
            return
        self._view.add_channel(message, funding, self._clock())
        self._listener.accepted(message, item.origins)
        row = self._view.topology.rows[message.short_channel_id]
        for update in pending.updates.values():
            assert isinstance(update.message, ChannelUpdate)
            self._apply_update(update, update.message, row)
        if self._orphans:
            self._offer_orphans(message.short_channel_id)
        for node in pending.nodes.values():
            assert isinstance(node.message, NodeAnnouncement)
            self._apply_node(node, node.message)

    def _offer_orphans(self, scid: int) -> None:
        """Updates whose announcement came at last."""
        for direction in (0, 1):
            orphan = self._orphans.pop((scid, direction), None)
            if orphan is not None:
                for origin in orphan.origins:
                    self.offer(orphan.message, origin)

    def _replaces(self, message: ChannelAnnouncement, funding: Funding) -> bool:
        """Another announcement of a known `short_channel_id`, with good signatures and funding."""
        if validate.is_known(message, self._view.topology):
            return False
        scid = message.short_channel_id
        if self._view.funding_txid(scid) != funding.txid:
            self._view.forget(scid)  # a reorganisation put another transaction there
            return True
        # BOLT 7, "if it has previously received a valid `channel_announcement`, for the same transaction, in the same
        # block, but for a different `node_id_1` or `node_id_2`: SHOULD blacklist the previous message's `node_id_1` and
        # `node_id_2`, as well as this `node_id_1` and `node_id_2` AND forget any channels connected to them."
        log.warning("nodes blacklisted: one channel, announced twice", channel=format_short_channel_id(scid))
        row = self._view.topology.rows[scid]
        for node_id in (*self._view.topology.node_ids_of(row), message.node_id_1, message.node_id_2):
            self.blacklist[node_id] = None
            for channel in self._view.topology.channels_of(node_id):
                self._view.forget(channel)
        while len(self.blacklist) > MAX_BLACKLISTED:
            self.blacklist.popitem(last=False)
        return False

    def _forget_pending(self, pending: _Pending) -> None:
        message = pending.message
        scid = message.short_channel_id
        if self._pending.get(scid) is not pending:
            return
        del self._pending[scid]
        self._under_way.pop(pending.item.raw, None)
        for node_id in (message.node_id_1, message.node_id_2):
            scids = self._pending_nodes[node_id]
            scids.discard(scid)
            if not scids:
                del self._pending_nodes[node_id]


def _keep_newer(waiting: dict[int, Item] | dict[bytes, Item], key: object, item: Item) -> None:
    known = waiting.get(key)  # type: ignore[call-overload]
    if known is None or known.message.timestamp < item.message.timestamp:  # type: ignore[attr-defined]
        waiting[key] = item  # type: ignore[index]
