"""What happens in a run: actions as values, drawn by dice, carried out in a world.

An action names things by small numbers that are taken modulo what there is, so that it still means something when the
actions before it are left out. Its `salt` is its own luck.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple, cast

from channeld.node.interface import NodeError
from channeld.node.payment_views import PaymentLimits, RebalanceOrder
from channeld.storage import StoreFailed
from tests.sim import network_absences as absences
from tests.sim import network_ends as ends
from tests.sim import network_orders as orders
from tests.sim.network_node import PORT, TRUSTING_EVERY, SimNode
from tests.sim.network_store import When
from tests.sim.network_tower import hire
from tests.sim.network_world import KINDS, LATER_PUSH_MSAT, World

PAUSES = (0.0, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 4.0)
AMOUNTS_MSAT = (1_000_000, 7_000_001, 20_000_000, 60_000_000, 150_000_000, 390_000_000, 700_000_000)
LEVELS = (253, 600, 1_500, 4_000)
CLOSERS = ("close", "force", "cheat", "reorganise", "open")
LEFT_MSAT = (20_000_000, 90_000_000, 250_000_000)
"""What is left of a way that a payment counts on."""
PARTS_SHARE = 0.12
TWO_CHANNELS = KINDS.index(("ab", "ab"))
DIAMOND = KINDS.index(("ab", "bd", "ac", "cd"))
TWO_IN_A_ROW = KINDS.index(("ab", "bc", "bc"))
SHARES = (
    ("held", 0.12),
    ("keysend", 0.06),
    ("probe", 0.03),
    ("twice", 0.08),
    ("stop", 0.06),
    ("overdue", 0.025),
    ("lose", 0.04),
    ("old", 0.05),
)
"""In how many stories there are actions of a sort."""
TWO_IN_A_ROW_SHARE = 0.1


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
    story = _enriched(Story(seed, kind, tuple(actions)), random.Random(f"more of {seed}"))
    story = _with_parts(story, random.Random(f"parts of {seed}"))
    return _widened(story, random.Random(f"still more of {seed}"))


def _enriched(story: Story, dice: random.Random) -> Story:
    """With what is in some stories only: towers, ends of several channels, channels out of others."""
    names: list[str] = []
    if dice.random() < 0.3:
        names += dice.choices(("tower", "tower down", "rob"), (3, 4, 3), k=dice.randint(2, 5))
    for name, share in (("heir", 0.07), ("late", 0.05), ("rush", 0.05), ("strike", 0.06), ("snap", 0.04)):
        if dice.random() < share:
            names.append(name)
    actions = list(story.actions)
    for name in names:
        numbers = tuple(dice.randrange(1 << 16) for _ in range(4))
        action = Action(name, dice.randrange(1 << 32), numbers, dice.randrange(len(PAUSES)))
        # Whoever hires a tower does so early, and what ends a channel needs something that came before.
        first, last = {"tower": (0, 2), "heir": (0, len(actions) // 2)}.get(name, (len(actions) // 3, len(actions)))
        place = dice.randint(first, last)
        actions.insert(place, action)
    kind = TWO_CHANNELS if "rush" in names and dice.random() < 0.7 else story.kind
    return story._replace(kind=kind, actions=tuple(actions))


def _with_parts(story: Story, dice: random.Random) -> Story:
    """In some stories money goes several ways, and in circles."""
    if dice.random() > PARTS_SHARE:
        return story
    actions = list(story.actions)
    for name in dice.choices(("parts", "circle"), (3, 2), k=dice.randint(1, 4)):
        _put(actions, name, dice)
    return story._replace(kind=DIAMOND if dice.random() < 0.6 else story.kind, actions=tuple(actions))


def _widened(story: Story, dice: random.Random) -> Story:
    """With other ways to pay, nodes that are away for too long or lose data, and closes as they were done before."""
    names: list[str] = []
    for name, share in SHARES:
        if dice.random() < share:
            names += [name] * (1 + (dice.random() < 0.3))
    actions = list(story.actions)
    for name in names:
        _put(actions, name, dice, len(actions) // 4 if name == "lose" else 0)
    if "lose" in names:
        _put(actions, "copy", dice, 0, len(actions) // 2)
    if "old" in names:
        _put(actions, "close", dice, len(actions) // 2)
    kind = TWO_IN_A_ROW if len(KINDS[story.kind]) == 2 and dice.random() < TWO_IN_A_ROW_SHARE else story.kind
    return story._replace(kind=kind, actions=tuple(actions))


def _put(actions: list[Action], name: str, dice: random.Random, first: int = 0, last: int | None = None) -> None:
    """An action somewhere between two places."""
    numbers = tuple(dice.randrange(1 << 16) for _ in range(4))
    action = Action(name, dice.randrange(1 << 32), numbers, dice.randrange(len(PAUSES)))
    actions.insert(dice.randint(first, len(actions) if last is None else last), action)


def carry_out(world: World, action: Action) -> None:
    """One action, and what follows within its pause. Raises Broken."""
    world.luck.turn(action.salt)
    world.done[action.name] += ACTIONS[action.name](world, *action.numbers)
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


# --- actions ------------------------------------------------------------------------------------------------------


def _pay(world: World, payer: int, payee: int, amount: int, _: int) -> bool:
    return world.pay(*_pair(world, payer, payee), _amount(amount))


def _strike(world: World, way: int, amount: int, victim: int, when: int) -> bool:
    """A payment all along the network, during which a node dies at one of its commits."""
    names = list(world.nodes)
    payer, payee = (names[0], names[-1]) if way % 2 else (names[-1], names[0])
    _crash(world, victim, when, when // 8, 0)
    paying = world.pay(payer, payee, _amount(amount))
    world.run((0.5, 1.5, 4)[way // 2 % 3])
    return paying


def _snap(world: World, way: int, moment: int, number: int, side: int) -> bool:
    """A payment all along the network, during which somebody closes a channel by force."""
    names = list(world.nodes)
    payer, payee = (names[0], names[-1]) if way % 2 else (names[-1], names[0])
    world.pay(payer, payee, _amount(2 + way // 2 % 3), cancel=way % 5 == 0)
    world.run(0.02 + moment % 40 / 100)
    return ends.force(world, number, side)


def _parts(world: World, way: int, left: int, amount: int, victim: int) -> bool:
    """A payment over several ways, one of which cannot carry any more what it could; a node may die meanwhile."""
    linked = {frozenset(link) for link in world.kind}
    ways = [
        names
        for names in permutations(world.nodes, 3)
        if {frozenset(names[:2]), frozenset(names[1:])} <= linked and all(world.nodes[name].up for name in names)
    ]
    if not ways:
        return False
    payer, middle, payee = ways[way % len(ways)]
    left_msat = LEFT_MSAT[left % len(LEFT_MSAT)]
    drained_msat = _spendable_msat(world, middle, payee) - left_msat
    if drained_msat > 0:
        world.pay(middle, payee, drained_msat)
        world.run(1.5)
    if victim % 3:
        _crash(world, victim // 3, victim // 9, victim // 64, 0)
    wanted_msat = _spendable_msat(world, payer) * (30 + amount % 40) // 100
    paying = wanted_msat > 0 and world.pay(payer, payee, wanted_msat)
    world.run((0.5, 2, 6)[amount % 3])
    return paying


def _circle(world: World, number: int, amount: int, out: int, victim: int) -> bool:
    """A node moves money between its channels."""
    node = _node(world, number)
    drivers = node.drivers()
    if len(drivers) < 2:
        return False
    cut = 1 + out % (len(drivers) - 1)
    ids = [driver.channel_id for driver in (drivers if out % 2 else drivers[::-1])]
    order = RebalanceOrder(_amount(amount), tuple(ids[:cut]), tuple(ids[cut:]), PaymentLimits(timeout_seconds=20.0))

    async def move() -> None:
        try:
            await node.api.send(order)
        except (NodeError, StoreFailed):
            return

    if victim % 3 == 0:
        _crash(world, victim // 3, victim // 9, victim // 64, 0)
    if node.up:
        node.spawn(move())
        world.run((0.5, 2, 6)[amount % 3])
    return node.up


def _spendable_msat(world: World, name: str, peer: str = "") -> int:
    """What a node can send now, over all its channels or over those with a peer."""
    node = world.nodes[name]
    drivers = [driver for driver in node.drivers() if not peer or driver.peer_id == world.node_ids[peer]]
    return sum(node.running.channels.available_msat(driver) for driver in drivers)


def _amount(number: int) -> int:
    return AMOUNTS_MSAT[number % len(AMOUNTS_MSAT)] + number % 997


def _cancel(world: World, payer: int, payee: int, amount: int, _: int) -> bool:
    """The payee thinks better of it, perhaps too late."""
    return world.pay(*_pair(world, payer, payee), _amount(amount), cancel=True)


def _wait(world: World, seconds: int, *_: int) -> bool:
    world.run((0.05, 0.5, 2, 8, 30, 70)[seconds % 6])
    return True


def _crash(world: World, number: int, when: int, count: int, _: int) -> bool:
    node = _node(world, number)
    if not node.up:
        return False
    how = ("now", "before", "before", "after", "after", "send before", "send after")[when % 7]
    if how == "now":
        node.crash()
    elif how.startswith("send"):
        node.crash_at_send = (1 + count % 8, how.partition(" ")[2])
    else:
        node.store.crash_at(1 + count % 8, cast(When, how))
    return True


def _down(world: World, number: int, seconds: int, *_: int) -> bool:
    """A node is off for a while."""
    node = _node(world, number)
    if not node.life.alive:
        return False
    node.stays_down = True
    node.crash()

    def back() -> None:
        node.stays_down = False
        world.start_again(node)

    world.loop.call_later((1, 10, 100)[seconds % 3], back, context=world.context)
    return True


def _cut(world: World, link: int, *_: int) -> bool:
    return world.network.cut(*_link(world, link)) > 0


def _hold(world: World, link: int, direction: int, seconds: int, _: int) -> bool:
    """Messages are delayed, one way or both."""
    both = world.network.between(*_link(world, link))
    for place, end in enumerate(both):
        if direction % 3 != place % 2:
            end.held = True
            world.loop.call_later((0.2, 2, 15)[seconds % 3], end.release, context=world.context)
    return bool(both)


def _away(world: World, number: int, seconds: int, *_: int) -> bool:
    """A node's layer 1 does not answer for a while."""
    node = _node(world, number)
    if not node.up:
        return False
    source = node.source
    source.away = True

    def back() -> None:
        source.away = False

    world.loop.call_later((0.5, 5, 30)[seconds % 3], back, context=world.context)
    return True


def _fees(world: World, level: int, *_: int) -> bool:
    before, world.chain.level = world.chain.level, LEVELS[level % len(LEVELS)]
    world.chain.mine()
    return world.chain.level != before


def _mine(world: World, blocks: int, *_: int) -> bool:
    for _number in range(1 + blocks % 3):
        world.chain.mine()
    return True


def _reorganise(world: World, depth: int, keep: int, *_: int) -> bool:
    """Blocks of the run are replaced by others: never those that the world was made with."""
    first = world.first_height
    if world.chain.height == first:
        world.chain.mine()
        world.run(0.5)
    depth = min(1 + depth % 3, world.chain.height - first)
    if depth > 0:
        world.chain.reorganise(depth, keep=keep % 4 > 0)
    return depth > 0


def _open(world: World, one: int, other: int, amount: int, how: int) -> bool:
    first, second = _pair(world, one, other)
    node = world.nodes[first]
    if not node.up or sum(len(n.drivers()) for n in world.nodes.values()) > 12:
        return False

    async def open_channel() -> None:
        try:
            await node.api.connect_peer(world.node_ids[second], second, PORT)
            await node.api.open_channel(
                world.node_ids[second],
                200_000 + amount * 3,
                LATER_PUSH_MSAT,
                zero_conf=how % 3 == 0 and world.seed % TRUSTING_EVERY == 0,
            )
        except (NodeError, StoreFailed):
            return

    node.spawn(open_channel())
    return True


def _tower(world: World, number: int, mode: int, which: int, _: int) -> bool:
    """A node begins to use a tower; there are two."""
    node = _node(world, number)
    if node.up:
        hire(world, node, "u" if which % 4 == 0 else "t", ends.TOWER_MODES[mode % 2])
    return node.up


def _tower_down(world: World, number: int, how: int, count: int, _: int) -> bool:
    """A tower is off for a while, dies at a commit, gives no answers, or has no layer 1."""
    towers = list(world.towers.values())
    if not towers or not towers[number % len(towers)].up:
        return False
    tower = towers[number % len(towers)]
    seconds = (3, 20, 90)[count % 3]
    match how % 7:
        case 0 | 1:
            tower.stays_down = True
            tower.crash()
        case 2 | 3 | 4:
            tower.store.crash_at(1 + count % 8, "before" if how % 7 == 2 else "after")
        case 5:
            tower.is_mute = True
        case 6:
            tower.source.away = True
    source = tower.source

    def back() -> None:
        tower.stays_down = tower.is_mute = source.away = False
        tower.start_again()

    world.loop.call_later(seconds, back, context=world.context)
    return True


def _held(world: World, payer: int, payee: int, amount: int, how: int) -> bool:
    return orders.held(world, *_pair(world, payer, payee), _amount(amount), how)


def _keysend(world: World, payer: int, payee: int, amount: int, how: int) -> bool:
    return orders.keysend(world, *_pair(world, payer, payee), _amount(amount), how)


def _probe(world: World, payer: int, payee: int, amount: int, how: int) -> bool:
    return orders.probe(world, *_pair(world, payer, payee), _amount(amount), how)


def _twice(world: World, payer: int, payee: int, amount: int, how: int) -> bool:
    return orders.twice(world, *_pair(world, payer, payee), _amount(amount), how)


def _stop(world: World, number: int, *_: int) -> bool:
    return orders.stop(world, number)


def _overdue(world: World, way: int, amount: int, who: int, how: int) -> bool:
    return absences.overdue(world, way, _amount(amount), who, how)


def _copy(world: World, number: int, *_: int) -> bool:
    return absences.copy(world, number)


def _lose(world: World, number: int, *_: int) -> bool:
    return absences.lose(world, number)


def _old(world: World, number: int, *_: int) -> bool:
    """A node is started again with a release that knows no `option_simple_close`."""
    node = _node(world, number)
    node.is_old_fashioned = True
    node.crash()
    return True


ACTIONS: dict[str, Callable[..., bool]] = {
    "pay": _pay,
    "cancel": _cancel,
    "strike": _strike,
    "snap": _snap,
    "parts": _parts,
    "circle": _circle,
    "wait": _wait,
    "crash": _crash,
    "down": _down,
    "cut": _cut,
    "hold": _hold,
    "away": _away,
    "fees": _fees,
    "mine": _mine,
    "reorganise": _reorganise,
    "close": ends.close,
    "force": ends.force,
    "cheat": ends.cheat,
    "rob": ends.rob,
    "late": ends.late,
    "rush": ends.rush,
    "heir": ends.heir,
    "open": _open,
    "held": _held,
    "keysend": _keysend,
    "probe": _probe,
    "twice": _twice,
    "stop": _stop,
    "overdue": _overdue,
    "copy": _copy,
    "lose": _lose,
    "old": _old,
    "tower": _tower,
    "tower down": _tower_down,
}

__all__ = ["ACTIONS", "KINDS", "Action", "Story", "carry_out", "draw", "play"]
