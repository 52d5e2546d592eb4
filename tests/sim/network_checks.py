"""What must always hold, watched from outside: at each message, broadcast and event, after each step and at rest.

Nothing here is raised where it is seen, inside of production code, but noted in `World.problems`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from channeld.bolt.messages import CommitmentSigned, RevokeAndAck, UpdateFulfillHtlc, decode
from channeld.bolt.transactions import CommitmentSpec, Htlc, build_commitment
from channeld.channel import machine
from channeld.channel.commitments import AwaitingRevocation, Commitments, Spec, htlc_key
from channeld.channel.state import Closed, Funded, Normal, State
from channeld.channel.writes import SaveRevocable
from channeld.node.circuits import circuit_of
from channeld.node.interface import PaymentView
from wallet.bitcoin import Tx
from wallet.bitcoin.secp import pubkey_of

if TYPE_CHECKING:
    from tests.sim.network_node import SimNode
    from tests.sim.network_world import World

FULFILL, SIGNED, REVOKE = 130, 132, 133
_revocable = msgspec.msgpack.Decoder(SaveRevocable)
REBUILT = 6
"""So many of the newest revoked commitments are built again."""
SMALL_MSAT = 12_000_000
"""Where a channel ends on chain, HTLCs of less may not be worth their fees to those that they belong to."""
BAD_EVENTS = ("channel.violation", "peer.error", "peer.warning")
BUGS = ("channel.frozen", "monitor.failed", "node.failed")


@dataclass
class ChannelBook:
    """What the world knows of a channel. `fate`: what it was told to do; `history`: per node the states that had each
    of its commitments, newest last."""

    channel_id: bytes
    names: tuple[str, str]
    fate: str = ""
    cheater: str = ""
    cheat_txid: bytes = b""
    """Of the revoked commitment that was published."""
    history: dict[str, dict[int, Funded]] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    opener: str = ""
    capacity_msat: int = 0
    gift_msat: int = 0
    """What the opener gave the other side in the beginning."""
    established: bool = False
    revealed: set[tuple[str, int]] = field(default_factory=set)

    def share_msat(self, name: str) -> int:
        """What a side had in the beginning."""
        return self.capacity_msat - self.gift_msat if name == self.opener else self.gift_msat

    def copy(self) -> ChannelBook:
        """For another run of the same world."""
        twin = ChannelBook(self.channel_id, self.names, self.fate, self.cheater)
        twin.history = {name: dict(states) for name, states in self.history.items()}
        twin.keys, twin.opener = dict(self.keys), self.opener
        twin.capacity_msat, twin.gift_msat = self.capacity_msat, self.gift_msat
        twin.established, twin.revealed = self.established, set(self.revealed)
        return twin


@dataclass
class PayBook:
    """A payment that was asked for; `result` is what the caller was told, if it lived to hear it."""

    payer: str
    payee: str
    payment_hash: bytes
    amount_msat: int
    result: PaymentView | Exception | None = None


@dataclass
class HoldBook:
    """A hold invoice, and what its owner will decide."""

    payee: str
    payment_hash: bytes
    preimage: bytes
    settles: bool


class Tap:
    """Listens to everything that leaves a node."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.messages = 0
        self.trace: list[str] | None = None
        self._circuits: dict[tuple[str, int, int], tuple[int, int]] = {}

    def _note(self, node: SimNode, sentence: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.world.loop.time():.4f} {node.name} {sentence}")

    # --- messages

    def sending(self, node: SimNode, peer_id: bytes, data: bytes) -> None:
        """A message goes to the socket."""
        self.messages += 1
        kind = int.from_bytes(data[:2], "big")
        if self.trace is not None:
            self._note(node, f"-> {self.world.name_of(peer_id)}: {decode(data).NAME}")
        if kind not in (FULFILL, SIGNED, REVOKE):
            return
        message = decode(data)
        book = self.world.books.get(message.channel_id)  # type: ignore[attr-defined]
        if book is None or node.name not in book.keys:
            return
        key = book.keys[node.name]
        state = node.durable().get(key)
        if not isinstance(state, Funded):
            self.world.problem(f"{node} sends {message.NAME} for a channel that is {type(state).__name__} on disk")
        elif isinstance(message, UpdateFulfillHtlc):
            self._reveals(node, book, key, state, message)
        elif isinstance(message, CommitmentSigned):
            self._signs(node, key, state.commitments)
        elif isinstance(message, RevokeAndAck):
            self._revokes(node, key, state.commitments, message)

    def _reveals(self, node: SimNode, book: ChannelBook, key: int, state: Funded, message: UpdateFulfillHtlc) -> None:
        """No preimage before its HTLC is irrevocably committed, nor before that we are owed for it is on disk."""
        if (node.name, message.id) in book.revealed:
            return
        self.world.checked["no preimage before its HTLC"] += 1
        c, wanted = state.commitments, htlc_key(message.id, False)
        if wanted not in c.remote.spec.htlcs or wanted not in c.local.spec.htlcs:
            self.world.problem(f"{node} reveals the preimage of HTLC {message.id} before it is irrevocably committed")
            return
        book.revealed.add((node.name, message.id))
        payment_hash = c.remote.spec.htlcs[wanted].payment_hash
        disk = node.database
        forwarded = disk.rows("SELECT 1 FROM forwards WHERE incoming_key=? AND incoming_id=?", key, message.id)
        learnt = disk.rows("SELECT 1 FROM preimages WHERE payment_hash=?", payment_hash)
        received = disk.rows("SELECT 1 FROM invoices WHERE payment_hash=? AND state='settled'", payment_hash)
        if not received and not (forwarded and learnt):
            self.world.problem(f"{node} settles HTLC {message.id}, and nothing on disk says why")

    def _signs(self, node: SimNode, key: int, c: Commitments) -> None:
        self.world.checked["what is signed can be punished"] += 1
        following = c.remote_next
        if not isinstance(following, AwaitingRevocation):
            self.world.problem(f"{node} sends a signature that is not on disk")
            return
        found = node.database.rows(
            "SELECT txid FROM revocable WHERE channel_key=? AND commitment_index=?", key, following.commit.index
        )
        if found != [(following.commit.txid,)]:
            self.world.problem(f"{node} signs commitment {following.commit.index}, which it could not punish")

    def _revokes(self, node: SimNode, key: int, c: Commitments, message: RevokeAndAck) -> None:
        self.world.checked["no secret before the next commitment"] += 1
        secret = self.world.secrets(node.name, key).per_commitment_secret(c.local.index - 1) if c.local.index else b""
        if message.per_commitment_secret != secret:
            self.world.problem(f"{node} reveals a secret other than that of the commitment before the one on disk")

    # --- events

    def published(self, node: SimNode, kind: str, sentence: str, data: dict[str, Any]) -> None:
        """The node tells its operator something."""
        self._note(node, f"{kind}: {sentence}")
        if kind in BUGS:
            self.world.problem(f"{node}: {sentence}")
        elif kind in BAD_EVENTS:
            channel_id = bytes.fromhex(data.get("channel_id", ""))
            book = self.world.books.get(channel_id)
            if channel_id == bytes(32) or (book is not None and book.established and not book.fate):
                self.world.problem(f"{node}: {kind}: {sentence}")
        elif kind == "channel.phase" and data["new"] == "closing":
            book = self.world.books.get(bytes.fromhex(data["channel_id"]))
            if book is not None and book.established and not book.fate:
                self.world.problem(f"{node} closes a channel for no reason: {sentence}")

    def broadcast(self, node: SimNode, tx: Tx) -> None:
        """A transaction is offered to layer 1: never a commitment that is revoked, or not on disk."""
        self._note(node, f"offers {tx.txid_hex[:12]}")
        book = self.world.by_funding.get(tx.inputs[0].outpoint)
        if book is None or node.name not in book.keys or node.name == book.cheater:
            return
        state = node.durable().get(book.keys[node.name])
        known = book.history.get(node.name, {})
        index = next((i for i, kept in known.items() if kept.commitments.local.txid == tx.txid()), None)
        if index is None:
            return
        if isinstance(state, Funded) and index < state.commitments.local.index:
            self.world.problem(f"{node} publishes its revoked commitment {index}")
        if node.name in self.world.losers and index < self._revoked_by(node, book):
            self.world.problem(f"{node}, who lost data, publishes its revoked commitment {index}")

    def _revoked_by(self, node: SimNode, book: ChannelBook) -> int:
        """How many commitments a node has revoked, by what its peer knows."""
        peer = next(name for name in book.names if name != node.name)
        state = self.world.nodes[peer].durable().get(book.keys.get(peer, -1))
        return state.commitments.remote.index if isinstance(state, Funded) else 0

    def circuits(self, node: SimNode, key: int, state: Funded) -> None:
        """No incoming HTLC is forwarded twice."""
        for htlc_id, origin in state.commitments.origins.items():
            circuit = circuit_of(origin)
            if circuit is None:
                continue
            incoming = (node.name, *circuit.key)
            if self._circuits.setdefault(incoming, (key, htlc_id)) != (key, htlc_id):
                self.world.problem(f"{node} forwards HTLC {circuit.key} twice")


# --- after each step ----------------------------------------------------------------------------------------------


def check_step(world: World) -> None:
    """What holds whenever nothing is running, whatever is under way."""
    versions = [node.database.version for node in world.nodes.values()]
    if versions != world.checked_versions:
        world.checked_versions = versions
        funded = [
            (node, key, state)
            for node in world.nodes.values()
            for key, state in node.durable().items()
            if isinstance(state, Funded)
        ]
        for node, key, state in funded:
            _remember(world, node, key, state)
        for node, key, state in funded:
            _conserves(world, node, state)
            if node.name not in world.losers:
                _punishable(world, node, key, state)
                world.tap.circuits(node, key, state)
        for book in world.payments:
            _one_outcome(world, book)
    for node in world.nodes.values():
        if node.up and node.store.is_idle:
            _memory_is_disk(world, node, node.durable())
    for failure in world.loop.failures:
        world.problem(failure)


def _one_outcome(world: World, book: PayBook) -> None:
    """No payment has failed for the payer and was received by the payee."""
    world.checked["no payment both failed and settled"] += 1
    payer, payee = world.nodes[book.payer].database, world.nodes[book.payee].database
    states = {state for (state,) in payer.rows("SELECT state FROM payments WHERE payment_hash=?", book.payment_hash)}
    if states == {"failed"}:  # what failed once may have been asked for again, and have arrived then
        received = payee.rows("SELECT 1 FROM invoices WHERE payment_hash=? AND state='settled'", book.payment_hash)
        if received and not may_be_lost(world, book):
            world.problem(f"{book.payer} -> {book.payee}, {book.amount_msat} msat: failed, and was received")


def may_be_lost(world: World, book: PayBook) -> bool:
    """On chain an HTLC may not be worth its fees, and a commitment of old knows nothing of newer HTLCs: whose they are
    is what punishing it says. Who was away for too long, or lost its data, may have lost more."""
    fates = {kept.fate for kept in world.books.values()}
    has_lost = bool(world.poorer or world.losers or "cheat" in fates)
    return has_lost or ("force" in fates and book.amount_msat < SMALL_MSAT)


def _remember(world: World, node: SimNode, key: int, state: Funded) -> None:
    params = state.params
    book = world.books.get(params.channel_id)
    if book is None:
        other = world.name_of(params.remote_node_id)
        book = ChannelBook(params.channel_id, (node.name, other))
        book.opener = node.name if params.is_opener else other
        book.capacity_msat, book.gift_msat = params.capacity_sat * 1000, world.gift_msat
        world.books[params.channel_id] = book
        world.by_funding[params.funding_outpoint] = book
    book.keys.setdefault(node.name, key)
    states = book.history.setdefault(node.name, {})
    index = state.commitments.local.index
    states.setdefault(index, state)
    if isinstance(state, Normal) and not book.established:
        others = [world.nodes[name].durable().get(book.keys.get(name, -1)) for name in book.names]
        book.established = all(isinstance(found, Normal) for found in others)


def _conserves(world: World, node: SimNode, state: Funded) -> None:
    world.checked["balances conserve"] += 1
    c, capacity_msat = state.commitments, state.params.capacity_sat * 1000
    for spec in (c.local.spec, c.remote.spec, c.latest_remote.spec):
        total = spec.to_local_msat + spec.to_remote_msat + sum(h.amount_msat for h in spec.htlcs.values())
        if total != capacity_msat or min(spec.to_local_msat, spec.to_remote_msat) < 0:
            world.problem(f"{node}: a commitment holds {total} msat of {capacity_msat} msat")


def _punishable(world: World, node: SimNode, key: int, state: Funded) -> None:
    """Whatever the peer may publish that it revoked can be punished with what is on disk."""
    c = state.commitments
    world.checked["whatever is revoked can be punished"] += c.remote.index
    book = world.books[state.params.channel_id]
    peer = next(name for name in book.names if name != node.name)
    kept = dict(node.database.rows("SELECT commitment_index, txid FROM revocable WHERE channel_key=?", key))
    theirs = book.history.get(peer, {})
    for index, known in theirs.items():
        if index > c.latest_remote.index:
            world.problem(f"{peer} holds commitment {index}, of which {node} knows nothing")
        elif kept.get(index) != known.commitments.local.txid:
            world.problem(f"{node} could not punish commitment {index} of {peer}: it is not on disk")
    for index in range(c.remote.index):
        if index not in kept:
            world.problem(f"{node} could not punish commitment {index} of {peer}: nothing of it is on disk")
    if c.remote_secrets.count < c.remote.index:
        world.problem(f"{node} has {c.remote_secrets.count} secrets for {c.remote.index} revoked commitments")
    elif c.remote.index:
        point = pubkey_of(c.remote_secrets.secret(c.remote.index - 1))
        if point != world.secrets(peer, book.keys.get(peer, -1)).per_commitment_point(c.remote.index - 1):
            world.problem(f"{node} has a wrong secret for commitment {c.remote.index - 1} of {peer}")


def _memory_is_disk(world: World, node: SimNode, durable: dict[int, State]) -> None:
    """What is in memory is what a restart would find."""
    world.checked["memory is what the disk says"] += 1
    drivers = {driver.channel_key: driver for driver in node.drivers()}
    if any(driver._busy or driver._inbox for driver in drivers.values()):
        return
    adds: dict[int, dict[tuple[bool, int], bytes]] = {}
    for key, offered, htlc_id, raw in node.database.rows("SELECT channel_key, offered, htlc_id, raw FROM adds"):
        adds.setdefault(key, {})[bool(offered), htlc_id] = raw
    for key, state in durable.items():
        driver = drivers.get(key)
        if driver is None:
            if not isinstance(state, Closed):
                world.problem(f"{node} has forgotten channel {key}, which is on disk")
            continue
        if (
            driver.failure is None
            and driver.state is not state
            and machine.encode_state(driver.state) != node.stored_state(key)
        ):
            world.problem(f"{node} remembers channel {key} otherwise than its disk")
        if driver.adds != adds.get(key, {}):
            world.problem(f"{node} remembers other HTLCs of channel {key} than its disk")


# --- at rest ------------------------------------------------------------------------------------------------------


def _mirrored(spec: Spec) -> Spec:
    htlcs = {
        key ^ 1: type(htlc)(htlc.id, htlc.amount_msat, htlc.payment_hash, htlc.cltv_expiry, not htlc.offered)
        for key, htlc in spec.htlcs.items()
    }
    return Spec(spec.feerate_per_kw, spec.to_remote_msat, spec.to_local_msat, htlcs)


def check_mirrors(world: World) -> None:
    """Both sides of a channel that is alive say the same."""
    for book in world.books.values():
        one, other = (world.nodes[name].durable().get(book.keys.get(name, -1)) for name in book.names)
        if not isinstance(one, Normal) or not isinstance(other, Normal):
            continue
        world.checked["both sides mirror each other at rest"] += 1
        for mine, theirs in ((one.commitments, other.commitments), (other.commitments, one.commitments)):
            if mine.local.txid != theirs.remote.txid or mine.local.index != theirs.remote.index:
                world.problem(f"{book.names}: commitment {mine.local.index} is not what the other side thinks")
            if mine.local.spec != _mirrored(theirs.remote.spec):
                world.problem(f"{book.names}: the commitments do not mirror each other")
            if mine.local_next_htlc_id != theirs.remote_next_htlc_id:
                world.problem(f"{book.names}: the HTLCs are numbered differently")
            if mine.origins:
                world.problem(f"{book.names}: HTLCs {sorted(mine.origins)} have no outcome")


def check_kept(world: World) -> None:
    """What was kept of revoked commitments is enough to build them again, and so to take all of their outputs."""
    for node in world.nodes.values():
        for key, state in node.durable().items():
            if isinstance(state, Funded):
                first = state.commitments.remote.index - REBUILT
                query = "SELECT details FROM revocable WHERE channel_key=? AND commitment_index BETWEEN ? AND ?"
                for (details,) in node.database.rows(query, key, first, first + REBUILT - 1):
                    _rebuild(world, node, state, _revocable.decode(details))


def _rebuild(world: World, node: SimNode, state: Funded, kept: SaveRevocable) -> None:
    world.checked["what was kept rebuilds revoked commitments"] += 1
    htlcs = frozenset(
        Htlc(number, amount_msat, payment_hash, cltv_expiry, offered)
        for number, (offered, amount_msat, payment_hash, cltv_expiry) in enumerate(kept.htlcs)
    )
    spec = CommitmentSpec(htlcs, kept.feerate_per_kw, kept.to_local_msat, kept.to_remote_msat)
    point = pubkey_of(state.commitments.remote_secrets.secret(kept.index))
    try:
        txid = build_commitment(state.params.commitment, spec, "remote", kept.index, point).txid
    except ValueError:
        txid = b""
    if txid != kept.txid:
        world.problem(f"{node} has forgotten what it takes to punish commitment {kept.index}")


def check_justice(world: World) -> None:
    """Who published a revoked commitment has nothing of it."""
    for book in world.books.values():
        if not book.cheater:
            continue
        victim = world.nodes[next(name for name in book.names if name != book.cheater)]
        funding = next(outpoint for outpoint, found in world.by_funding.items() if found is book)
        closing = world.chain.spent.get(funding)
        if closing is None or closing.txid() != book.cheat_txid:
            continue  # a reorganisation took the cheat back: no more than an attempt
        todo = [closing]
        world.checked["cheaters end with nothing"] += 1
        while todo:
            tx = todo.pop()
            for vout, output in enumerate(tx.outputs):
                spender = world.chain.spent.get(tx.outpoint(vout))
                if victim.running.wallet.is_ours(output.script_pubkey) or output.value_sat <= 330:
                    continue
                if spender is None:
                    world.problem(f"{output.value_sat} sat of a revoked commitment were not taken from {book.cheater}")
                else:
                    todo.append(spender)
