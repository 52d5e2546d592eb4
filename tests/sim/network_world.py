"""The simulated world: layer 1, nodes, connections, and what the world knows of channels and payments.

A world is made once for each kind of network, with its channels open, and then copied for each run.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import structlog

from channeld.bolt.transactions import ChannelSecrets
from channeld.channel.chain import signed_local_commitment
from channeld.channel.state import (
    AwaitingFunding,
    Closing,
    Funded,
    Live,
    NegotiatingLegacy,
    NegotiatingSimple,
    Normal,
)
from channeld.node.identity import Identity
from channeld.node.interface import NodeError
from channeld.node.peer import PeerLink
from channeld.routing.values import MAX_AMOUNT_MSAT, Policy
from channeld.storage import StoreFailed
from tests.sim import network_checks as checks
from tests.sim.network_accounts import check_accounts, check_lost
from tests.sim.network_chain import SimChain
from tests.sim.network_checks import ChannelBook, HoldBook, PayBook, Tap
from tests.sim.network_loop import LIFE, Luck, SimLoop, controlled
from tests.sim.network_node import PORT, SimNode, keys_of, use_sim_gossip
from tests.sim.network_restart import check_restart
from tests.sim.network_store import Database, use_cached_statements
from tests.sim.network_tower import SimTower, use_sim_towers
from tests.sim.network_tower_checks import check_towers, unrest_of_towers
from tests.sim.network_wires import Network
from wallet.bitcoin import OutPoint, Tx

KINDS: tuple[tuple[str, ...], ...] = (
    ("ab",),
    ("ab", "bc"),
    ("ab", "bc", "cd"),
    ("ab", "ab"),
    ("ab", "bc", "ca"),
    ("ab", "bd", "ac", "cd"),
    ("ab", "bc", "bc"),
)
"""Kinds of networks: who opened a channel to whom."""
CHANNEL_SAT = 1_000_000
PUSH_MSAT = 400_000_000
LATER_PUSH_MSAT = 50_000_000
FUNDS_SAT = 3_000_000
COINS = 3
SETTLE_SECONDS = 400.0
MOST_BLOCKS = 260
JUSTICE_BLOCKS = 40
"""By then nothing is left to those who cheated: twice the `to_self_delay`."""
ENOUGH_BLOCKS = 7
"""On top of a mutual close: then nothing happens any more but that it is forgotten a hundred blocks later."""
BURIED_EVERY = 4
"""One run of so many sees that, too."""
RESTART_SECONDS = (0.02, 0.3, 2.0)


class Broken(AssertionError):
    """Something that must hold does not."""


@cache
def _secrets(name: str, channel_key: int) -> ChannelSecrets:
    return Identity(keys_of(name).lightning_root()).channel_secrets(channel_key)


@cache
def _node_id(name: str) -> bytes:
    return Identity(keys_of(name).lightning_root()).node_id


class World:
    """One run."""

    def __init__(self, kind: tuple[str, ...], seed: int, image: World | None = None) -> None:
        self.kind = kind
        self.seed = seed
        self.luck = Luck(seed)
        self.loop = SimLoop()
        self.context = contextvars.Context()
        self.network = Network(self.loop, self.luck)
        self.chain: SimChain = SimChain() if image is None else image.chain.copy()
        self.tap = Tap(self)
        self.problems: list[str] = []
        self.node_ids = {name: _node_id(name) for name in sorted(set("".join(kind)))}
        self._names = {node_id: name for name, node_id in self.node_ids.items()}
        self.birthday = self.chain.height + 1 if image is None else None
        self.books: dict[bytes, ChannelBook] = {}
        self.by_funding: dict[OutPoint, ChannelBook] = {}
        self.payments: list[PayBook] = []
        self.holds: list[HoldBook] = []
        self.ordered: Counter[str] = Counter()
        """How many payments each node was told to make that nobody asked it for."""
        self.asking_until = 0.0
        """When the last client will have asked again."""
        self.copies: dict[str, tuple[Database, frozenset[int]]] = {}
        """Of nodes' databases, with the channels that there were."""
        self.losers: set[str] = set()
        """Nodes that were started from a copy."""
        self.poorer: set[str] = set()
        """Nodes that were away for so long that others took what expired."""
        self.first_height = self.chain.height
        self.gift_msat = PUSH_MSAT if image is None else LATER_PUSH_MSAT
        self.public: dict[bytes, tuple[int, bytes, bytes, int]] = {}
        self.nodes: dict[str, SimNode] = {}
        self.towers: dict[str, SimTower] = {}
        """Those that a node was told to use, by name."""
        self.done: Counter[str] = Counter()
        """Actions that had an effect."""
        self.checked_versions: list[int] = []
        """Of the nodes' databases, when all that is on disk was looked at."""
        self.checked: Counter[str] = Counter()
        """How often what must hold was looked at."""
        self.granted_sat: dict[str, int] = dict.fromkeys(self.node_ids, FUNDS_SAT)
        for name in self.node_ids:
            database = Database(None if image is None else image.nodes[name].database)
            self.nodes[name] = SimNode(self, name, database)
        if image is not None:
            self.loop.sleep_until(image.loop.time() + 60)
            self.books = {key: book.copy() for key, book in image.books.items()}
            self.by_funding = {outpoint: self.books[book.channel_id] for outpoint, book in image.by_funding.items()}

    # --- looking

    def name_of(self, node_id: bytes) -> str:
        return self._names[node_id]

    def secrets(self, name: str, channel_key: int) -> ChannelSecrets:
        """A node's secrets of one of its channels."""
        return _secrets(name, channel_key)

    def signed_commitment(self, name: str, book: ChannelBook, state: Funded) -> Tx:
        """A commitment as its owner could publish it, whether it is revoked or not."""
        env = SimpleNamespace(signer=self.secrets(name, book.keys[name]))
        return signed_local_commitment(cast(Any, state), cast(Any, env))

    def problem(self, sentence: str) -> None:
        """Something that must hold does not."""
        if len(self.problems) < 20:
            self.problems.append(sentence)

    # --- nodes

    def node_crashed(self, node: SimNode) -> None:
        """It is started again after a while."""
        if not node.stays_down:
            delay = self.luck.dice.choice(RESTART_SECONDS)
            self.loop.call_later(delay, self.start_again, node, context=self.context)

    def start_again(self, node: SimNode) -> None:
        """Unless it runs already."""
        if not node.life.alive and not node.stays_down:
            node.start()

    def connect(self, name: str, other: str) -> None:
        """One node is told to connect to another."""
        node = self.nodes[name]
        if node.up:
            node.spawn(self._connect(node, other))

    async def _connect(self, node: SimNode, other: str) -> None:
        try:
            await node.api.connect_peer(self.node_ids[other], other, PORT)
        except (NodeError, StoreFailed):
            return

    def fill_graph(self, node: SimNode) -> None:
        """What everybody knows of the network; for a new life."""
        for known in self.public.values():
            _announce(node, known)

    def publish_channels(self) -> None:
        """New channels become known to all nodes, and old ones under new names."""
        for book in self.books.values():
            states = [self.nodes[name].durable().get(key) for name, key in book.keys.items()]
            known = self.public.get(book.channel_id)
            good = [s for s in states if isinstance(s, Normal) and s.scid is not None]
            if not good:
                if known is not None:
                    del self.public[book.channel_id]
                    self._hide(known)
                continue
            scid = good[0].scid
            assert scid is not None
            one, other = sorted(self.node_ids[name] for name in book.names)
            fresh = (scid, one, other, good[0].params.capacity_sat)
            if fresh != known:
                if known is not None:
                    self._hide(known)
                self.public[book.channel_id] = fresh
                for node in self.nodes.values():
                    if node.up:
                        _announce(node, fresh)

    def _hide(self, known: tuple[int, bytes, bytes, int]) -> None:
        for node in self.nodes.values():
            if node.up:
                node.running.gossip.graph.remove_channel(known[0])
                node.running.gossip.core.view.changes += 1

    # --- payments

    def pay(self, payer: str, payee: str, amount_msat: int, cancel: bool = False) -> bool:
        """The payee makes an invoice, and the payer pays it, if both live long enough. Whether both live now."""
        if not self.nodes[payer].up or not self.nodes[payee].up:
            return False
        self.nodes[payee].spawn(self._invoice(payer, payee, amount_msat, cancel))
        return True

    async def _invoice(self, payer: str, payee: str, amount_msat: int, cancel: bool) -> None:
        node = self.nodes[payee]
        try:
            invoice = await node.api.create_invoice(amount_msat, "a payment")
            book = PayBook(payer, payee, invoice.payment_hash, amount_msat)
            self.payments.append(book)
            if self.nodes[payer].up:
                self.nodes[payer].spawn(self._pay(book, invoice.bolt11))
            if cancel:
                await node.api.cancel_invoice(invoice.payment_hash)
        except (StoreFailed, NodeError):
            return

    async def _pay(self, book: PayBook, bolt11: str) -> None:
        try:
            book.result = await self.nodes[book.payer].api.pay(bolt11, timeout_seconds=20)
        except NodeError as error:
            book.result = error

    def state_of(self, book: HoldBook) -> str:
        """What a hold invoice is on disk; empty if there is none."""
        found = self.nodes[book.payee].database.rows(
            "SELECT state FROM invoices WHERE payment_hash=?", book.payment_hash
        )
        return str(found[0][0]) if found else ""

    def decide(self, book: HoldBook) -> None:
        """The owner of a hold invoice that was paid settles or cancels it."""
        node = self.nodes[book.payee]
        if not node.up or self.state_of(book) != "accepted":
            return

        async def say() -> None:
            try:
                if book.settles:
                    await node.api.settle_invoice(book.payment_hash, book.preimage)
                    self.done["held and settled"] += 1
                else:
                    await node.api.cancel_invoice(book.payment_hash)
                    self.done["held and canceled"] += 1
            except (NodeError, StoreFailed):
                return

        node.spawn(say())

    # --- running

    def run(self, seconds: float) -> None:
        """Let it go on, then look at everything."""
        self.loop.run_for(seconds)
        checks.check_step(self)
        self.publish_channels()
        self.stop_if_broken()

    def stop_if_broken(self) -> None:
        """Raises Broken."""
        if self.problems:
            raise Broken("; ".join(self.problems[:3]))

    # --- coming to rest

    def calm(self) -> None:
        """Nobody is away, and nothing is held back, from here on."""
        self.network.apart.clear()
        for end in list(self.network.ends):
            end.release()
        for node in self.nodes.values():
            node.stays_down = False
            node.crash_at_send = None
            if node.life.alive and node.up:
                node.store.disarm()
                node.source.away = False
            self.start_again(node)
        self._reconnect()

    def settle(self) -> None:
        """No more trouble from here on; until everything has come to an end. Raises Broken if it does not."""
        self.luck.turn(1)
        self.chain.level = 253
        self.calm()
        if self.loop.time() < self.asking_until:
            self.run(self.asking_until - self.loop.time() + 0.1)
        for tower in self.towers.values():
            tower.stays_down = tower.is_mute = False
            if tower.up:
                tower.store.disarm()
                tower.source.away = False
        deadline = self.loop.time() + SETTLE_SECONDS
        blocks = 0
        pause = 0.2
        while True:
            for node in self.nodes.values():
                self.start_again(node)
            for tower in self.towers.values():
                tower.start_again()
            for book in self.holds:
                self.decide(book)
            self.run(pause)
            pause = min(2 * pause, 5.0)
            why, blocks_help = self._unrest()
            if why is None and not blocks_help:
                return
            if blocks_help and (why is None or pause > 2):
                blocks += 1
                if blocks == JUSTICE_BLOCKS:
                    checks.check_justice(self)
                    self.stop_if_broken()
                if blocks > MOST_BLOCKS:
                    raise Broken(f"not at rest after {blocks} blocks: {why}, {self._waiting_for_blocks()}")
                self.chain.mine()
                deadline = self.loop.time() + SETTLE_SECONDS
                pause = 0.2
            elif self.loop.time() > deadline:
                raise Broken(f"not at rest after {SETTLE_SECONDS:g} s: {why}")
            elif pause > 3:
                self._reconnect()

    def _reconnect(self) -> None:
        for book in self.books.values():
            one, other = (self.nodes[name] for name in book.names)
            if one.up and other.up and one.running.peers.link(other.node_id) is None:
                self.connect(one.name, other.name)

    def _unrest(self) -> tuple[str | None, bool]:
        """What is not at rest, if anything, and whether blocks may help."""
        for node in self.nodes.values():
            if not node.up:
                return f"{node} is down", False
            tip = node.running.wallet.tip
            if tip is None or tip.hash != self.chain.hashes[-1] or not node.running.chain.synced:
                return f"{node} is not at the tip", False
            if not node.store.is_idle:
                return f"{node} is writing", False
        if self.towers and (trouble := unrest_of_towers(self)) is not None:
            return trouble, False
        found = [self._unrest_of(node, driver) for node in self.nodes.values() for driver in node.drivers()]
        why = next((sentence for sentence, _ in found if sentence), None)
        blocks_help = any(helps for _, helps in found) or bool(self.chain.pool)
        if why is None and not blocks_help:
            for node in self.nodes.values():
                if node.database.rows("SELECT 1 FROM payments WHERE state='in_flight'"):
                    return f"{node} has payments in flight", False
        return why, blocks_help

    def _is_undone(self, state: Funded) -> bool:
        """A cheat that a reorganisation took back before the victim saw it: only the cheater takes the channel for
        closed, and waits for a block that never comes."""
        book = self.books.get(state.params.channel_id)
        return book is not None and bool(book.cheater) and state.params.funding_outpoint not in self.chain.spent

    def _goes_on(self, state: Funded) -> bool:
        """Whether neither side has seen a channel closed."""
        book = self.books[state.params.channel_id]
        return all(isinstance(self.nodes[name].durable().get(key), Normal) for name, key in book.keys.items())

    def _unrest_of(self, node: SimNode, driver: Any) -> tuple[str | None, bool]:
        state = driver.state
        is_undone = isinstance(state, Funded) and self._is_undone(state)
        if is_undone and not self._goes_on(state):
            return None, False
        if isinstance(state, Normal):
            why = _unrest_of(state)
            if why and is_undone:
                return f"{node}: channel {driver.channel_key}: {why}", False
            if why and self.books[state.params.channel_id].fate in ("force", "cheat", "beside", "lost"):
                return None, True  # who was only told of it waits until it is on chain
            return (f"{node}: channel {driver.channel_key}: {why}" if why else None), False
        if isinstance(state, Funded) and not self._may_be_funded(state):
            return None, False  # the opener stopped before it published, or remembered, what it promised
        if isinstance(state, AwaitingFunding) and state.funding_depth >= 6:
            return f"{node}: channel {driver.channel_key} waits for channel_ready", False
        if isinstance(state, Closing | AwaitingFunding):
            return None, self._needs_blocks(node, driver)
        if isinstance(state, NegotiatingLegacy | NegotiatingSimple) and state.closing_txs:
            return None, True
        return f"{node}: channel {driver.channel_key} is {type(state).__name__}", False

    def _may_be_funded(self, state: Funded) -> bool:
        outpoint = state.params.funding_outpoint
        return outpoint in self.chain.outputs or outpoint.txid in self.chain.pool

    def _needs_blocks(self, node: SimNode, driver: Any) -> bool:
        state = driver.state
        if isinstance(state, AwaitingFunding) or state.confirmed_height is None:
            return True
        if state.kind == "mutual":
            return self.seed % BURIED_EVERY == 0 or self.chain.height - state.confirmed_height < ENOUGH_BLOCKS
        stored = node.running.monitor._stored.get(driver.channel_key)
        if stored is None or stored.report is None or set(state.commitments.origins) - state.commitments.learnt:
            return True
        return any(
            output.status in ("waiting", "pending", "needs_preimage")
            or (output.status == "theirs" and output.kind == "htlc" and not output.spending_txid)
            or (output.status == "uneconomic" and output.kind == "htlc" and state.kind == "revoked")
            for output in stored.report.outputs
        )

    def _waiting_for_blocks(self) -> list[str]:
        found = []
        for node in self.nodes.values():
            for driver in node.drivers():
                stored = node.running.monitor._stored.get(driver.channel_key)
                outputs = [] if stored is None or stored.report is None else stored.report.outputs
                state = driver.state
                what = [f"{o.kind} {o.amount_sat} {o.status}" for o in outputs]
                found.append(f"{node} {driver.channel_key} {type(state).__name__} {what}")
        return found

    def check_rest(self) -> None:
        """What holds when everything has come to an end. Raises Broken."""
        checks.check_step(self)
        checks.check_mirrors(self)
        checks.check_kept(self)
        checks.check_justice(self)
        check_accounts(self)
        check_lost(self)
        check_towers(self)
        self.stop_if_broken()
        check_restart(self, self.seed)
        self.stop_if_broken()

    def close(self) -> None:
        """Let go of everything."""
        for node in self.nodes.values():
            node.stays_down = True
            node.crash()
            node.database.close()
        for copied, _ in self.copies.values():
            copied.close()
        for tower in self.towers.values():
            tower.stays_down = True
            tower.crash()
            tower.database.close()
        self.loop.close()


def _unrest_of(state: Normal) -> str | None:
    c = state.commitments
    if not isinstance(state.link, Live):
        return "not connected"
    if c.has_htlcs or c.pending:
        return "HTLCs"
    if not c.is_settled:
        return "updates under way"
    return None


def _announce(node: SimNode, known: tuple[int, bytes, bytes, int]) -> None:
    scid, one, other, capacity_sat = known
    graph = node.running.gossip.graph
    graph.add_channel(scid, one, other, capacity_sat)
    policy = Policy(True, 1, min(capacity_sat * 1000, MAX_AMOUNT_MSAT), 1000, 1, 34)
    graph.update_channel(scid, 0, policy)
    graph.update_channel(scid, 1, policy)
    node.running.gossip.core.view.changes += 1


# --- the process, while a world runs -------------------------------------------------------------------------------


@contextmanager
def running(world: World) -> Iterator[World]:
    """Time, chance, logs and messages are the world's."""
    with ExitStack() as stack:
        stack.enter_context(controlled(world.loop, world.luck))
        stack.callback(use_sim_gossip())
        stack.callback(use_cached_statements())
        stack.callback(use_sim_towers(world))
        stack.callback(_listen_to_logs(world))
        stack.callback(_listen_to_links(world))
        yield world


def _listen_to_logs(world: World) -> Any:
    """What a node calls critical is a bug."""
    kept = structlog.get_config()

    def note(_logger: Any, method: str, event: dict[str, Any]) -> Any:
        if method == "critical":
            life = LIFE.get()
            if life is None or life.alive:
                world.problem(f"{life}: {event.pop('event')}: {event}")
        raise structlog.DropEvent

    wrapper = structlog.make_filtering_bound_logger(50)
    structlog.configure(processors=[cast(Any, note)], wrapper_class=wrapper, cache_logger_on_first_use=False)
    return lambda: structlog.configure(**kept)


def _listen_to_links(world: World) -> Any:
    original = PeerLink.send

    def send(self: PeerLink, data: bytes) -> None:
        link = self
        life = LIFE.get()
        if life is not None:
            if not life.alive:
                return
            node = world.nodes[life.name]
            if not link.is_closed:
                world.tap.sending(node, link.node_id, data)
                if link.is_ready and node.dies_at_send():
                    return
        original(link, data)

    PeerLink.send = send  # type: ignore[method-assign]

    def undo() -> None:
        PeerLink.send = original  # type: ignore[method-assign]

    return undo


# --- making worlds ------------------------------------------------------------------------------------------------


@cache
def image_of(kind: tuple[str, ...]) -> World:
    """A network of this kind at rest: nobody runs, everything is on disk."""
    world = World(kind, 0)
    with running(world):
        for node in world.nodes.values():
            node.start()
        world.run(2)
        _fund(world)
        for link in kind:
            _open(world, *link)
        world.settle()
        checks.check_step(world)
        world.stop_if_broken()
        for node in world.nodes.values():
            node.stays_down = True
            node.crash()
    for book in world.books.values():
        book.established = True
    return world


def _fund(world: World) -> None:
    scripts: list[bytes] = []

    async def ask(node: SimNode) -> None:
        scripts.extend([await node.running.coins.new_script(any_segwit=True) for _ in range(COINS)])

    for node in world.nodes.values():
        node.spawn(ask(node))
        world.run(1)
    world.chain.faucet(scripts, FUNDS_SAT // COINS)
    world.chain.mine()
    world.run(2)


def _open(world: World, opener: str, other: str) -> None:
    node = world.nodes[opener]
    failures: list[BaseException] = []

    async def open_channel() -> None:
        try:
            await node.api.connect_peer(world.node_ids[other], other, PORT)
            await node.api.open_channel(world.node_ids[other], CHANNEL_SAT, PUSH_MSAT)
        except BaseException as error:
            failures.append(error)
            raise

    node.spawn(open_channel())
    world.run(2)
    for _ in range(6):
        world.chain.mine()
        world.run(1.5)
    if failures:
        raise failures[0]


def world_of(kind: tuple[str, ...], seed: int) -> World:
    """A world of its own, with all nodes down."""
    return World(kind, seed, image_of(kind))
