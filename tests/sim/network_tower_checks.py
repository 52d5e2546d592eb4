"""What must hold of towers: what they confirmed they have, and it is good for what it is kept for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from channeld.channel.state import Funded
from tests.sim.network_loop import Life
from tests.sim.network_store import Database, SimStore
from tests.sim.network_tower import SimTower, backlog, confirmed, restarted
from watchtower.blob import locator_of, unseal
from watchtower.justice import check, decode

if TYPE_CHECKING:
    from tests.sim.network_checks import ChannelBook
    from tests.sim.network_node import SimNode
    from tests.sim.network_world import World

OPENED = 3
"""So many of the newest blobs of a channel are opened."""
BAD_ALERTS = ("output.lost", "justice.failed", "breach.undecipherable", "breach.unusable")
WORTH_SAT = 8_000
"""An output of less may cost more than it holds when fees are high."""


def unrest_of_towers(world: World) -> str | None:
    """What keeps towers from being at rest, if anything."""
    for tower in world.towers.values():
        if not tower.up or not tower.running.watcher.synced:
            return f"tower {tower.name} is not in step"
        if tower.running.watcher.height != world.chain.height:
            return f"tower {tower.name} is not at the tip"
        if not tower.store.is_idle:
            return f"tower {tower.name} is writing"
    for node in world.nodes.values():
        if backlog(node):
            return f"{node} has towers that lack {backlog(node)} commitments"
    return None


def check_towers(world: World) -> None:
    """Everything of this module; all are at rest."""
    for tower in world.towers.values():
        for kind, sentence in tower.database.rows("SELECT kind, sentence FROM alerts"):
            if kind in BAD_ALERTS:
                world.problem(f"tower {tower.name}: {kind}: {sentence}")
        _check_restart(world, tower)
    for node in world.nodes.values():
        if node.database.rows("SELECT 1 FROM towers"):
            _check_backups(world, node)


def _check_backups(world: World, node: SimNode) -> None:
    """Every tower of the node has every revoked commitment of every channel, and the newest blobs open."""
    count = len(node.database.rows("SELECT 1 FROM towers WHERE state='active'"))
    for book in world.books.values():
        key = book.keys.get(node.name)
        state = node.durable().get(-1 if key is None else key)
        if key is None or not isinstance(state, Funded):
            continue
        world.checked["towers have all that is revoked"] += 1
        revoked = state.commitments.remote_secrets.count
        for number in range(revoked):
            held = confirmed(node, key, number)
            if len(held) < count:
                world.problem(f"{len(held)} of {count} towers of {node} confirmed commitment {number}")
            if number >= revoked - OPENED:
                for tower_id, locator, blob_hash in held:
                    _check_blob(world, node, book, number, (tower_id, locator, blob_hash))


def _check_blob(world: World, node: SimNode, book: ChannelBook, number: int, held: tuple[bytes, bytes, bytes]) -> None:
    tower_id, locator, blob_hash = held
    tower = next(tower for tower in world.towers.values() if tower.tower_id == tower_id)
    peer = next(name for name in book.names if name != node.name)
    what = f"commitment {number} of {peer}, which {tower.name} confirmed to {node}"
    if not tower.holds(locator, blob_hash):
        world.problem(f"{what}: there is no such blob")
    revoked = book.history[peer].get(number)
    if revoked is None:
        return  # nobody ever saw it whole
    txid = revoked.commitments.local.txid
    if locator != locator_of(txid):
        world.problem(f"{what}: the locator is of another transaction")
        return
    tx = world.signed_commitment(peer, book, revoked)
    for blob in tower.blobs(locator):
        world.checked["blobs open and fit"] += 1
        try:
            check(decode(unseal(txid, blob)), tx)
        except ValueError as error:
            world.problem(f"{what}: {error!r}")


# --- a cheat that a tower has to punish alone ----------------------------------------------------------------------


def owed_by_towers(world: World, victim: SimNode, book: ChannelBook) -> list[str]:
    """What towers that confirmed the revoked commitment which was published have not taken of it."""
    cheater_history = book.history[book.cheater]
    number = next(n for n, s in cheater_history.items() if s.commitments.local.txid == book.cheat_txid)
    held = {tower_id for tower_id, _, _ in confirmed(victim, book.keys[victim.name], number)}
    if not any(tower.tower_id in held for tower in world.towers.values()):
        return []
    tx = world.chain.spent[cheater_history[number].params.funding_outpoint]
    offered = {txid for tower in world.towers.values() for txid in tower.offered}
    spenders = [(output, world.chain.spent.get(tx.outpoint(vout))) for vout, output in enumerate(tx.outputs)]
    return [
        f"{output.value_sat} sat"
        for output, spender in spenders
        if output.value_sat > WORTH_SAT and (spender is None or spender.txid() not in offered)
    ]


# --- restarts -----------------------------------------------------------------------------------------------------


def _check_restart(world: World, tower: SimTower) -> None:
    """A second process made from the disk knows the same."""
    world.checked["a tower's restart changes nothing"] += 1
    life = Life(f"tower {tower.name} again")
    database = Database(tower.database)
    found: list[dict[str, Any]] = []

    async def read() -> None:
        store = SimStore(database, life, world.luck, life.end)
        found.append(_memory(await restarted(tower, store)))
        store.release()

    task = world.loop.create_task(read(), context=life.context)
    world.loop.run_for(1)
    life.end()
    database.close()
    if not found:
        world.problem(f"tower {tower.name} could not be started again: {task}")
        return
    lazily_removed = ("locators",)
    for what, kept in _memory(tower.running).items():
        missing = found[0][what] - kept if what in lazily_removed else found[0][what] != kept
        if missing:
            text = f"tower {tower.name} would have other {what} after a restart: {found[0][what]}, not {kept}"
            world.problem(text[:500])


def _memory(process: Any) -> dict[str, Any]:
    """What a tower knows, as values."""
    watcher, sessions = process.watcher, process.sessions
    return {
        "breaches": watcher.breaches,
        "watched outputs": {outpoint: keys for outpoint, keys in watcher._watched.items() if keys},
        "blocks": [(block.ref, block.prefixes.tobytes()) for block in watcher._blocks],
        "locators": {*watcher.index._ordered.tolist(), *watcher.index._fresh},
        "sessions": {s.key: (s.terms, s.appointments, s.bytes) for s in sessions._by_key.values()},
    }


__all__ = ["check_towers", "owed_by_towers", "unrest_of_towers"]
