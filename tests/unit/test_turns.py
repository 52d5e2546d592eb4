"""Fairness between connections: bounded work between two turns of the event loop, and nobody is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from channeld.node.turns import MESSAGES, PREFERRED_MESSAGES, Turns


class Peer:
    """Has `left` messages to handle; each costs `cost`."""

    def __init__(self, turns: Turns, left: int, is_preferred: bool = False, cost: int = 1) -> None:
        self.turns = turns
        self.left = left
        self.is_preferred = is_preferred
        self.cost = cost
        self.served: list[int] = []
        self.done = asyncio.Event()
        self.breaks = False

    @property
    def has_more(self) -> bool:
        return self.left > 0

    def take(self, most: int) -> int:
        if self.breaks:
            self.left = 0
            raise ZeroDivisionError
        taken = 0
        while taken < most and self.left:
            self.left -= 1
            taken += self.cost
        if taken:
            self.served.append(taken)
        return taken

    def took_all(self) -> None:
        self.done.set()

    def come(self) -> None:
        """What a connection does when bytes come."""
        self.turns.handled(self, self.take(self.turns.at_once(self)))
        if self.has_more:
            self.turns.wait(self)
        else:
            self.took_all()


async def finish(*peers: Peer) -> None:
    async with asyncio.timeout(60):
        for peer in peers:
            await peer.done.wait()


async def test_all_strangers_together_get_one_share_a_turn() -> None:
    turns = Turns()
    crowd = [Peer(turns, 10 * MESSAGES) for _ in range(20)]
    for peer in crowd:
        peer.come()
    assert sum(sum(peer.served) for peer in crowd) == MESSAGES
    before = MESSAGES
    while any(peer.left for peer in crowd):
        await asyncio.sleep(0)
        served = sum(sum(peer.served) for peer in crowd)
        assert served - before <= MESSAGES
        before = served
    await finish(*crowd)


async def test_many_small_ones_share_a_turn_as_well() -> None:
    turns = Turns()
    crowd = [Peer(turns, 1) for _ in range(3 * MESSAGES)]
    for peer in crowd:
        peer.come()
    assert sum(not peer.left for peer in crowd) == MESSAGES
    await finish(*crowd)
    assert all(peer.served == [1] for peer in crowd)


async def test_everybody_has_its_turn() -> None:
    turns = Turns()
    greedy, modest = Peer(turns, 100 * MESSAGES), Peer(turns, 5)
    greedy.come()
    modest.come()
    await finish(modest)
    assert greedy.left > 90 * MESSAGES
    await finish(greedy)


async def test_preferred_ones_do_not_wait_for_strangers() -> None:
    turns = Turns()
    crowd = [Peer(turns, 100 * MESSAGES) for _ in range(20)]
    for peer in crowd:
        peer.come()
    friend = Peer(turns, PREFERRED_MESSAGES, is_preferred=True)
    friend.come()
    assert friend.done.is_set()
    more = Peer(turns, 3 * PREFERRED_MESSAGES, is_preferred=True)
    more.come()
    await finish(more)
    assert more.served == [PREFERRED_MESSAGES] * 3
    await finish(*crowd)


async def test_what_costs_more_uses_up_more() -> None:
    turns = Turns()
    dear, cheap = Peer(turns, 50, cost=MESSAGES), Peer(turns, 50 * MESSAGES)
    dear.come()
    cheap.come()
    await finish(dear, cheap)
    assert max(dear.served) == MESSAGES
    assert len(dear.served) == 50


async def test_one_that_breaks_holds_up_nobody() -> None:
    caught: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context["exception"]))
    turns = Turns()
    first, broken, last = (Peer(turns, 2 * MESSAGES) for _ in range(3))
    for peer in (first, broken, last):
        peer.come()
    broken.breaks = True
    await finish(first, broken, last)
    assert [type(error) for error in caught] == [ZeroDivisionError]


@pytest.mark.parametrize("is_preferred", [False, True])
async def test_nothing_is_scheduled_without_need(is_preferred: bool) -> None:
    turns = Turns()
    peer = Peer(turns, 0, is_preferred)
    peer.come()
    assert turns.at_once(peer) == (PREFERRED_MESSAGES if is_preferred else MESSAGES)
    assert not turns._is_scheduled
