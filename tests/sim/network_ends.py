"""Actions that end channels: together, by force, by cheating, with the victim off and a tower to punish alone, several
at once, in blocks that come all at once; and channels whose funds came out of others that ended."""

from __future__ import annotations

from typing import Any

from channeld.channel.state import Funded, Normal
from channeld.node.interface import NodeError
from channeld.storage import StoreFailed
from tests.sim.network_checks import ChannelBook
from tests.sim.network_node import PORT, SimNode
from tests.sim.network_tower import backlog, hire
from tests.sim.network_tower_checks import owed_by_towers
from tests.sim.network_world import LATER_PUSH_MSAT, World
from wallet.bitcoin import Tx
from wallet.errors import WalletError
from watchtower.appointment import Mode

CHANGE_SAT = 250_000
"""What is left of a wallet that funds a channel with all its coins: fees have to be paid for its end."""
MOST_SAT = 10_000_000
JUSTICE_BLOCKS = 12
"""So soon a tower has punished; below every `to_self_delay`."""
TOWER_MODES: tuple[Mode, ...] = ("own", "blind")


def book_of(world: World, number: int) -> ChannelBook | None:
    """One of the channels that nobody ends."""
    books = [book for book in world.books.values() if book.established and not book.fate]
    return books[number % len(books)] if books else None


def close(world: World, number: int, side: int, *_: int) -> bool:
    """Both sides agree to close a channel."""
    return _command(world, book_of(world, number), side, force=False)


def force(world: World, number: int, side: int, *_: int) -> bool:
    """One side publishes its commitment."""
    return _command(world, book_of(world, number), side, force=True)


def _command(world: World, book: ChannelBook | None, side: int, force: bool) -> bool:
    if book is None:
        return False
    node = world.nodes[book.names[side % 2]]
    if not node.up:
        return False
    book.fate = "force" if force else "close"

    async def end() -> None:
        try:
            await node.api.close_channel(book.channel_id, force=force)
        except (NodeError, StoreFailed):
            return

    node.spawn(end())
    return True


def cheat(world: World, number: int, side: int, age: int, _: int) -> bool:
    """A miner takes a commitment that one side has revoked."""
    found = _cheatable(world, number, side)
    return found is not None and _publish_revoked(world, *found, age)


def _cheatable(world: World, number: int, side: int) -> tuple[ChannelBook, int] | None:
    """A channel and a side that has revoked something there; after a payment, if nobody has."""
    found = _find_cheatable(world, number, side)
    book = book_of(world, number)
    if found is None and book is not None:
        world.pay(book.names[side % 2], book.names[1 - side % 2], 30_000_000 + number)
        world.run(1.5)
        found = _find_cheatable(world, number, side)
    return found


def _find_cheatable(world: World, number: int, side: int) -> tuple[ChannelBook, int] | None:
    books = [book for book in world.books.values() if book.established and not book.fate]
    found = [(book, s % 2) for book in books for s in (side, side + 1) if _revoked(world, book, s)]
    return found[number % len(found)] if found else None


def _revoked(world: World, book: ChannelBook, side: int) -> list[Funded]:
    """The commitments that one side could cheat with; none where the channel ends already."""
    states = [world.nodes[name].durable().get(book.keys.get(name, -1)) for name in book.names]
    theirs = states[1 - side % 2]
    if not all(isinstance(state, Normal) for state in states) or not isinstance(theirs, Normal):
        return []
    funding = theirs.params.funding_outpoint
    if funding in world.chain.spent or funding not in world.chain.outputs:
        return []
    index = theirs.commitments.remote.index
    return [state for number, state in book.history[book.names[side % 2]].items() if number < index]


def _publish_revoked(world: World, book: ChannelBook, side: int, age: int) -> bool:
    """Whether there was one to publish."""
    revoked = _revoked(world, book, side)
    if not revoked:
        return False
    name, old = book.names[side % 2], revoked[age % len(revoked)]
    tx = world.signed_commitment(name, book, old)
    for beside in world.books.values():
        if name in beside.names and not beside.fate:
            beside.fate = "beside"  # of HTLCs that it forwarded, the cheater knows no outcome
    book.fate, book.cheater, book.cheat_txid = "cheat", name, tx.txid()
    world.chain.mine(tx)
    return True


# --- the victim is off ---------------------------------------------------------------------------------------------


def rob(world: World, number: int, side: int, age: int, how: int) -> bool:
    """The victim is off while its peer cheats: the tower punishes alone, and may have troubles of its own."""
    found = _cheatable(world, number, side)
    return found is not None and _rob(world, *found, age, how)


def _rob(world: World, book: ChannelBook, side: int, age: int, how: int) -> bool:
    victim = world.nodes[book.names[1 - side % 2]]
    if not victim.up:
        return False
    if not victim.database.rows("SELECT 1 FROM towers"):
        hire(world, victim, "t", TOWER_MODES[how % 2 == 1])
    world.run(0.2)
    for _ in range(how // 2 % 4 * 2):  # sometimes it is robbed before the tower has everything
        if not victim.up or not backlog(victim):
            break
        world.run(1)
    victim.stays_down = True
    victim.crash()
    robbed = _publish_revoked(world, book, side, age)
    if robbed:
        if how // 8 % 3 == 0:
            world.run(0.02)
            for tower in world.towers.values():
                tower.crash()
        _await_justice(world, victim, book)
    victim.stays_down = False
    world.start_again(victim)
    return robbed


def _await_justice(world: World, victim: SimNode, book: ChannelBook) -> None:
    if not owed_by_towers(world, victim, book):
        return
    for tower in world.towers.values():
        tower.stays_down = tower.is_mute = False
        if tower.up:
            tower.source.away = False
    for _ in range(JUSTICE_BLOCKS):
        for tower in world.towers.values():
            tower.start_again()
        world.run(2)
        world.chain.mine()
        if victim.life.alive:
            return  # it was off for a while only, and has seen to it itself
        owed = owed_by_towers(world, victim, book)
        if not owed:
            world.done["justice by a tower alone"] += 1
            world.checked["a tower punishes alone"] += 1
            return
    world.problem(f"towers of {victim} did not take {', '.join(owed)} of what {book.cheater} revoked and published")


# --- many at once --------------------------------------------------------------------------------------------------


def late(world: World, number: int, side: int, age: int, how: int) -> bool:
    """A channel ends while the other side is off, or has no layer 1; then it sees three blocks at once."""
    cheats = how // 2 % 2 == 1
    book = book_of(world, number)
    if cheats and (found := _cheatable(world, number, side)) is not None:
        book, side = found
    if book is None:
        return False
    other = world.nodes[book.names[1 - side % 2]]
    if not other.up:
        return False
    is_off = bool(how % 2)
    if is_off:
        other.stays_down = True
        other.crash()
    else:
        other.source.away = True
    source = other.source
    if cheats:
        ended = _publish_revoked(world, book, side, age)
    else:
        ended = _command(world, book, side, force=True)
        world.run(0.5)
    for _ in range(3):
        world.chain.mine()
    world.run(0.3)
    source.away = False
    if is_off:
        other.stays_down = False
        world.start_again(other)
    return ended


def rush(world: World, number: int, side: int, age: int, how: int) -> bool:
    """All channels between two nodes end at once."""
    first = book_of(world, number)
    if first is None:
        return False
    books = [b for b in world.books.values() if set(b.names) == set(first.names) and b.established and not b.fate]
    cheats = how % 2 == 0 and _cheatable(world, number, side) is not None
    ended = 0
    for place, book in enumerate(books):
        cheater_side = side if book.names == first.names else side + 1
        if cheats and place == 0:
            ended += _publish_revoked(world, book, cheater_side, age)
        else:
            ended += _command(
                world, book, side + place * (how // 2 % 2), force=cheats or bool((how >> (2 + place)) % 2)
            )
    world.run(0.3)
    for _ in range(1 + how // 4 % 3):
        world.chain.mine()
    return ended > 1


# --- a channel out of another one ----------------------------------------------------------------------------------


def heir(world: World, number: int, side: int, how: int, age: int) -> bool:
    """What came out of a channel funds the next one between the same nodes, which may end badly, too."""
    book = book_of(world, number)
    if book is None:
        return False
    opener, other = world.nodes[book.names[side % 2]], world.nodes[book.names[1 - side % 2]]
    world.connect(opener.name, other.name)
    world.run(2)
    by_force = how % 4 == 3
    if not _command(world, book, side + by_force, force=by_force):
        return False
    for _ in range(6):
        world.run(1)
        world.chain.mine()
        if _came_out(world, opener, book):
            break
    world.run(1)
    fresh = _fund_again(world, opener, other, book)
    if fresh is None:
        return False
    for place in range(4):
        payer, payee = (opener, other) if place % 2 == 0 else (other, opener)
        world.pay(payer.name, payee.name, 20_000_000 + place)
        world.run(0.3)
    cheater_side = fresh.names.index(other.name)
    match how // 4 % 4:
        case 0:
            if _publish_revoked(world, fresh, cheater_side, age):
                world.done["heir cheated"] += 1
        case 1:
            _command(world, fresh, age, force=True)
        case 2:
            _rob(world, fresh, cheater_side, age, how)
    return True


def _came_out(world: World, node: SimNode, book: ChannelBook) -> set[bytes]:
    """Txids of the transactions that brought a channel's money to the node's wallet."""
    if not node.up:
        return set()
    funding = next(outpoint for outpoint, found in world.by_funding.items() if found is book)
    ending = world.chain.spent.get(funding)
    if ending is None:
        return set()
    places = range(len(ending.outputs))
    txs: list[Tx | None] = [ending, *(world.chain.spent.get(ending.outpoint(vout)) for vout in places)]
    txids = {tx.txid() for tx in txs if tx is not None}
    return txids & {coin.outpoint.txid for coin in node.running.wallet.coins()}


def _fund_again(world: World, opener: SimNode, other: SimNode, book: ChannelBook) -> ChannelBook | None:
    """A new channel that takes nearly all of the opener's coins, once it is open."""
    sources = _came_out(world, opener, book)
    if not sources or not other.up:
        return None
    before = set(world.books)
    opener.spawn(_open(world, opener, other))
    for _ in range(8):
        world.run(1)
        fresh = next((b for key, b in world.books.items() if key not in before and opener.name in b.names), None)
        funding = next((outpoint for outpoint, found in world.by_funding.items() if found is fresh), None)
        if fresh is not None and fresh.established and funding in world.chain.outputs:
            assert funding is not None
            tx = next(tx for txs in world.chain.blocks.values() for tx in txs if tx.txid() == funding.txid)
            return fresh if sources & {txin.outpoint.txid for txin in tx.inputs} else None
        world.chain.mine()
    return None


async def _open(world: World, opener: SimNode, other: SimNode) -> Any:
    running = opener.running
    try:
        most_sat = running.wallet.max_amount_sat(running.feerates.funding_per_kw) - CHANGE_SAT
        await opener.api.connect_peer(other.node_id, other.name, PORT)
        await opener.api.open_channel(other.node_id, min(most_sat, MOST_SAT), LATER_PUSH_MSAT)
    except (NodeError, StoreFailed, WalletError):
        return
