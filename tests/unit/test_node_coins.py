"""The wallet's part in opening channels, when it fails."""

from __future__ import annotations

from typing import Any, cast

from structlog.testing import capture_logs

from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.node.bus import EventBus
from channeld.node.coins import Coins


class BrokenWallet:
    def plan_tx(self, request: object) -> None:
        raise AssertionError("a bug")


class FakeDriver:
    def __init__(self) -> None:
        self.posted: list[ev.Event] = []

    def post(self, event: ev.Event) -> None:
        self.posted.append(event)


async def test_a_bug_in_the_wallet_ends_the_opening_and_is_heard() -> None:
    nobody = cast(Any, None)
    coins, driver = Coins(cast(Any, BrokenWallet()), nobody, nobody, nobody, EventBus()), FakeDriver()
    with capture_logs() as logs:
        coins.need_funding(cast(Any, driver), fx.NeedFunding(100_000, bytes(34), 253))
        await coins.close()
    (failed,) = driver.posted
    assert isinstance(failed, ev.FundingFailed)
    assert [entry["log_level"] for entry in logs] == ["critical"]
