"""Actions in which a node is away until HTLCs expire, or comes back with an old copy of its database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channeld.channel.commitments import HtlcFulfill
from channeld.channel.state import Funded, Normal
from tests.sim.network_checks import ChannelBook
from tests.sim.network_node import SimNode
from tests.sim.network_orders import hold
from tests.sim.network_store import Database

if TYPE_CHECKING:
    from tests.sim.network_world import World

BLOCK_SECONDS = 200.0
"""An HTLC past its deadline waits six blocks and a quarter of an hour for a peer that must be compared with."""
FINAL_DELTA_BLOCKS = 42
AFTERWARDS_BLOCKS = 14
"""On top of the last expiry: what is taken by then is buried, and told upstream."""
MOST_BLOCKS = 170
WORTH_MSAT = 60_000_000
"""An HTLC of so much is worth closing a channel for."""
GRACE_BLOCKS = 10


def overdue(world: World, way: int, amount_msat: int, who: int, how: int) -> bool:
    """The payee holds a payment, and somebody along the way is away until all of its HTLCs have expired: the payee,
    who lets it pass; or another one, and the payee may settle it meanwhile. No channel but those of the one who is
    away may end for it."""
    names = list(world.nodes)
    payer, payee = (names[0], names[-1]) if way % 2 else (names[-1], names[0])
    world.calm()
    world.run(1.5)
    book = hold(world, payer, payee, amount_msat, how, FINAL_DELTA_BLOCKS)
    for _ in range(6):
        world.run(0.5)
        if world.state_of(book) == "accepted":
            break
    absent = world.nodes[names[who % len(names)]]
    expiries = _expiries(world, absent, book.payment_hash)
    if world.state_of(book) != "accepted" or not expiries or not absent.up:
        return False
    _go(world, absent)
    if how // 8 % 3 and absent.name != payee:
        world.decide(book)
        if absent.name != payer and book.settles:
            world.poorer.add(absent.name)
    blocks = max(expiries) - world.chain.height + AFTERWARDS_BLOCKS
    for _ in range(min(blocks, MOST_BLOCKS)):
        world.run(BLOCK_SECONDS)
        world.chain.mine()
    _check_ended(world, absent)
    absent.stays_down = False
    world.start_again(absent)
    world.run(2)
    for ended in world.books.values():
        if absent.name in ended.names and _is_alive(world, ended):
            ended.fate = ""
    return True


def _is_alive(world: World, book: ChannelBook) -> bool:
    """Whether a channel has come through: nothing that expired is in it."""
    states = [world.nodes[name].durable().get(book.keys.get(name, -1)) for name in book.names]
    return all(isinstance(state, Normal) and not state.commitments.has_htlcs for state in states)


def _check_ended(world: World, absent: SimNode) -> None:
    """No HTLC that is worth a close is left in a channel to an expiry that has passed: neither one that was offered,
    nor one whose preimage is known."""
    for node in world.nodes.values():
        if node is absent:
            continue
        for state in node.durable().values():
            if not isinstance(state, Normal):
                continue
            world.checked["no expired HTLC is left in a channel"] += 1
            c = state.commitments
            known = {removal.id for removal in c.removals() if isinstance(removal, HtlcFulfill)}
            for htlc in c.local.spec.htlcs.values():
                is_ours = htlc.offered or htlc.id in known
                if is_ours and htlc.amount_msat >= WORTH_MSAT and htlc.cltv_expiry + GRACE_BLOCKS < world.chain.height:
                    world.problem(f"{node} left HTLC {htlc.id} in a channel, which expired at {htlc.cltv_expiry}")


def _expiries(world: World, absent: SimNode, payment_hash: bytes) -> list[int]:
    """Of the HTLCs of this payment; none if the node has others, or none of it: of those, nobody says what becomes."""
    found = []
    for node in world.nodes.values():
        for state in node.durable().values():
            if not isinstance(state, Funded):
                continue
            c = state.commitments
            every = [*c.local.spec.htlcs.values(), *c.latest_remote.spec.htlcs.values()]
            if node is absent and (any(h.payment_hash != payment_hash for h in every) or c.pending):
                return []
            found += [(node, htlc.cltv_expiry) for htlc in every if htlc.payment_hash == payment_hash]
    return [expiry for _, expiry in found] if any(node is absent for node, _ in found) else []


def _go(world: World, absent: SimNode) -> None:
    for book in world.books.values():
        if absent.name in book.names and not book.fate:
            book.fate = "force"
    absent.stays_down = True
    absent.crash()


# --- an old copy of the database -----------------------------------------------------------------------------------


def copy(world: World, number: int) -> bool:
    """Somebody copies a node's database."""
    node = list(world.nodes.values())[number % len(world.nodes)]
    kept = world.copies.pop(node.name, None)
    if kept is not None:
        kept[0].close()
    world.copies[node.name] = Database(node.database), frozenset(node.durable())
    return True


def lose(world: World, number: int) -> bool:
    """A node's disk dies, and it is started from the copy: where the copy is old, only the peer can say so."""
    names = [name for name in world.copies if name not in world.losers]
    if not names:
        return False
    name = names[number % len(names)]
    node = world.nodes[name]
    copied, keys = world.copies[name]
    books = [book for book in world.books.values() if name in book.names]
    if frozenset(node.durable()) != keys or any(book.fate for book in books) or world.towers:
        return False  # of a channel that the copy knows nothing of, nothing can come back
    is_old = _is_old(node, copied)
    node.stays_down = True
    node.crash()
    world.losers.add(name)
    for book in books:
        book.fate = "lost"
    node.use(copied)
    del world.copies[name]
    node.stays_down = False
    world.start_again(node)
    world.run(2)
    return is_old


def _is_old(node: SimNode, copied: Database) -> bool:
    then = dict(copied.rows("SELECT channel_key, state FROM channels"))
    return any(blob != then.get(key) for key, blob in node.database.rows("SELECT channel_key, state FROM channels"))
