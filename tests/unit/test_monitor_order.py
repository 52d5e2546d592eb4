"""Which channel the monitor attends to first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from channeld.bolt.transactions import Htlc
from channeld.node.monitor import Monitor


def case(*expiries: int) -> Any:
    htlcs = {number: Htlc(number, 1_000_000, bytes(32), expiry, True) for number, expiry in enumerate(expiries)}
    local = SimpleNamespace(spec=SimpleNamespace(htlcs=htlcs))
    return SimpleNamespace(state=SimpleNamespace(commitments=SimpleNamespace(local=local)))


async def test_channels_whose_htlcs_expire_first_come_first() -> None:
    """With one coin in the wallet, one commitment a block can be lifted."""
    monitor = Monitor(*cast(Any, [None] * 6))
    monitor._in_step = True
    monitor._cases = {1: case(), 2: case(900), 3: case(950, 800), 4: case()}
    monitor._due = dict.fromkeys((1, 2, 3, 4, 5))
    order: list[Any] = []

    async def guarded(case: Any, work: Any) -> None:
        work.close()
        order.append(case)

    monitor._guarded = guarded  # type: ignore[method-assign]
    await monitor._round()
    assert order == [monitor._cases[number] for number in (3, 2, 1, 4)]
    assert not monitor._due
