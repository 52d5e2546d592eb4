"""What happens in a run: actions as values, drawn by dice, carried out in a world.

An action names things by small numbers that are taken modulo what there is, so that it still means something when the
actions before it are left out. Its `salt` is its own luck.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from channeld.channel.chain import signed_local_commitment
from channeld.channel.state import Normal
from channeld.node.interface import NodeError
from channeld.storage import StoreFailed
from tests.sim.network_checks import ChannelBook
from tests.sim.network_node import PORT, SimNode
from tests.sim.network_store import When
from tests.sim.network_world import KINDS, LATER_PUSH_MSAT, World

PAUSES = (0.0, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 4.0)
AMOUNTS_MSAT = (1_000_000, 7_000_001, 20_000_000, 60_000_000, 150_000_000, 390_000_000, 700_000_000)
LEVELS = (253, 600, 1_500, 4_000)
CLOSERS = ("close", "force", "cheat", "reorganise", "open")


class Action(NamedTuple):
    """`name` of a function below, its numbers, and how long the world goes on afterwards (an index of PAUSES)."""

    name: str
    salt: int
    numbers: tuple[int, ...] = ()
    pause: int = 0


class Story(NamedTuple):
    """All there is to a run: the kind of network (an index of KINDS) and what happens in it."""

    seed: int
    kind: int
    actions: tuple[Action, ...]


def draw(seed: int) -> Story:
    """The story of a seed."""
    dice = random.Random(seed)
    kind = dice.choice((0, 0, 1, 1, 1, 2, 3, 4))
    names = (
        ["pay"] * 8 + ["crash"] * 5 + ["cut"] * 3 + ["hold", "wait", "wait", "fees", "cancel", "down", "mine", "away"]
    )
    if dice.random() < 0.4:
        names += [dice.choice(CLOSERS)] * 2
    if dice.random() < 0.2:
        names += CLOSERS
    actions = []
    for _ in range(dice.randint(4, 14)):
        numbers = tuple(dice.randrange(1 << 16) for _ in range(4))
        actions.append(Action(dice.choice(names), dice.randrange(1 << 32), numbers, dice.randrange(len(PAUSES))))
    return Story(seed, kind, tuple(actions))


def carry_out(world: World, action: Action) -> None:
    """One action, and what follows within its pause. Raises Broken."""
    world.luck.turn(action.salt)
    ACTIONS[action.name](world, *action.numbers)
    world.run(PAUSES[action.pause])


def play(world: World, story: Story) -> None:
    """The whole story, until everything has come to rest. Raises Broken."""
    for node in world.nodes.values():
        node.start()
    world.run(0.5)
    for action in story.actions:
        carry_out(world, action)
    world.settle()
    world.check_rest()


# --- choosing -----------------------------------------------------------------------------------------------------


def _node(world: World, number: int) -> SimNode:
    nodes = list(world.nodes.values())
    return nodes[number % len(nodes)]


def _pair(world: World, one: int, other: int) -> tuple[str, str]:
    names = list(world.nodes)
    first = names.pop(one % len(names))
    return first, names[other % len(names)]


def _link(world: World, number: int) -> tuple[str, str]:
    link = world.kind[number % len(world.kind)]
    return link[0], link[1]


def _book(world: World, number: int) -> ChannelBook | None:
    books = [book for book in world.books.values() if book.established and not book.fate]
    return books[number % len(books)] if books else None


# --- actions ------------------------------------------------------------------------------------------------------


def _pay(world: World, payer: int, payee: int, amount: int, _: int) -> None:
    world.pay(*_pair(world, payer, payee), _amount(amount))


def _strike(world: World, way: int, amount: int, victim: int, when: int) -> None:
    """A payment all along the network, during which a node dies at one of its commits."""
    names = list(world.nodes)
    payer, payee = (names[0], names[-1]) if way % 2 else (names[-1], names[0])
    _crash(world, victim, when, when // 8, 0)
    world.pay(payer, payee, _amount(amount))
    world.run((0.5, 1.5, 4)[way // 2 % 3])


def _snap(world: World, way: int, moment: int, number: int, side: int) -> None:
    """A payment all along the network, during which somebody closes a channel by force."""
    names = list(world.nodes)
    payer, payee = (names[0], names[-1]) if way % 2 else (names[-1], names[0])
    world.pay(payer, payee, _amount(2 + way // 2 % 3), cancel=way % 5 == 0)
    world.run(0.02 + moment % 40 / 100)
    _force(world, number, side)


def _amount(number: int) -> int:
    return AMOUNTS_MSAT[number % len(AMOUNTS_MSAT)] + number % 997


def _cancel(world: World, payer: int, payee: int, amount: int, _: int) -> None:
    """The payee thinks better of it, perhaps too late."""
    world.pay(*_pair(world, payer, payee), _amount(amount), cancel=True)


def _wait(world: World, seconds: int, *_: int) -> None:
    world.run((0.05, 0.5, 2, 8, 30, 70)[seconds % 6])


def _crash(world: World, number: int, when: int, count: int, _: int) -> None:
    node = _node(world, number)
    if not node.up:
        return
    how = ("now", "before", "before", "after", "after", "send before", "send after")[when % 7]
    if how == "now":
        node.crash()
    elif how.startswith("send"):
        node.crash_at_send = (1 + count % 8, how.partition(" ")[2])
    else:
        node.store.crash_at(1 + count % 8, cast(When, how))


def _down(world: World, number: int, seconds: int, *_: int) -> None:
    """A node is off for a while."""
    node = _node(world, number)
    if node.life.alive:
        node.stays_down = True
        node.crash()

        def back() -> None:
            node.stays_down = False
            world.start_again(node)

        world.loop.call_later((1, 10, 100)[seconds % 3], back, context=world.context)


def _cut(world: World, link: int, *_: int) -> None:
    world.network.cut(*_link(world, link))


def _hold(world: World, link: int, direction: int, seconds: int, _: int) -> None:
    """Messages are delayed, one way or both."""
    ends = world.network.between(*_link(world, link))
    for place, end in enumerate(ends):
        if direction % 3 != place % 2:
            end.held = True
            world.loop.call_later((0.2, 2, 15)[seconds % 3], end.release, context=world.context)


def _away(world: World, number: int, seconds: int, *_: int) -> None:
    """A node's layer 1 does not answer for a while."""
    node = _node(world, number)
    if not node.up:
        return
    source = node.source
    source.away = True

    def back() -> None:
        source.away = False

    world.loop.call_later((0.5, 5, 30)[seconds % 3], back, context=world.context)


def _fees(world: World, level: int, *_: int) -> None:
    world.chain.level = LEVELS[level % len(LEVELS)]
    world.chain.mine()


def _mine(world: World, blocks: int, *_: int) -> None:
    for _number in range(1 + blocks % 3):
        world.chain.mine()


def _reorganise(world: World, depth: int, keep: int, *_: int) -> None:
    """Blocks of the run are replaced by others: never those that the world was made with."""
    first = world.first_height
    depth = min(1 + depth % 3, world.chain.height - first)
    if depth > 0:
        world.chain.reorganise(depth, keep=keep % 4 > 0)


def _close(world: World, number: int, side: int, *_: int) -> None:
    _command(world, _book(world, number), side, force=False)


def _force(world: World, number: int, side: int, *_: int) -> None:
    _command(world, _book(world, number), side, force=True)


def _command(world: World, book: ChannelBook | None, side: int, force: bool) -> None:
    if book is None:
        return
    node = world.nodes[book.names[side % 2]]
    if not node.up:
        return
    book.fate = "force" if force else "close"

    async def close() -> None:
        try:
            await node.api.close_channel(book.channel_id, force=force)
        except (NodeError, StoreFailed):
            return

    node.spawn(close())


def _cheat(world: World, number: int, side: int, age: int, _: int) -> None:
    """A miner takes a commitment that one side has revoked."""
    book = _book(world, number)
    if book is None:
        return
    name = book.names[side % 2]
    other = world.nodes[book.names[1 - side % 2]]
    states = [world.nodes[n].durable().get(book.keys[n]) for n in book.names]
    if not all(isinstance(state, Normal) for state in states):
        return
    theirs = other.durable()[book.keys[other.name]]
    assert isinstance(theirs, Normal)
    revoked = [s for i, s in book.history[name].items() if i < theirs.commitments.remote.index]
    if not revoked:
        return
    secrets = world.secrets(name, book.keys[name])
    old = revoked[age % len(revoked)]
    tx = signed_local_commitment(cast(Any, old), cast(Any, SimpleNamespace(signer=secrets)))
    if old.params.funding_outpoint in world.chain.spent or old.params.funding_outpoint not in world.chain.outputs:
        return
    for beside in world.books.values():
        if name in beside.names and not beside.fate:
            beside.fate = "beside"  # of HTLCs that it forwarded, the cheater knows no outcome
    book.fate, book.cheater = "cheat", name
    world.chain.mine(tx)


def _open(world: World, one: int, other: int, amount: int, _: int) -> None:
    first, second = _pair(world, one, other)
    node = world.nodes[first]
    if not node.up or sum(len(n.drivers()) for n in world.nodes.values()) > 12:
        return

    async def open_channel() -> None:
        try:
            await node.api.connect_peer(world.node_ids[second], second, PORT)
            await node.api.open_channel(world.node_ids[second], 200_000 + amount * 3, LATER_PUSH_MSAT)
        except (NodeError, StoreFailed):
            return

    node.spawn(open_channel())


ACTIONS: dict[str, Callable[..., None]] = {
    "pay": _pay,
    "cancel": _cancel,
    "strike": _strike,
    "snap": _snap,
    "wait": _wait,
    "crash": _crash,
    "down": _down,
    "cut": _cut,
    "hold": _hold,
    "away": _away,
    "fees": _fees,
    "mine": _mine,
    "reorganise": _reorganise,
    "close": _close,
    "force": _force,
    "cheat": _cheat,
    "open": _open,
}

__all__ = ["ACTIONS", "KINDS", "Action", "Story", "carry_out", "draw", "play"]
