"""What the operator is warned of does not depend on each channel being in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from channeld.channel.economics import Warned
from channeld.node import monitor_warnings
from channeld.node.bus import EventBus
from channeld.node.monitor_warnings import Warnings
from channeld.onchain.rates import Rates
from tests.machine.harness import open_pair
from wallet.views import Balance


def test_a_bug_in_one_channel_stops_neither_the_others_warnings_nor_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, sound = (
        SimpleNamespace(
            state=open_pair(push_msat=400_000_000).alice.state, channel_key=key, channel_id=bytes([key]) * 32
        )
        for key in (1, 2)
    )
    bus = EventBus()
    channels = SimpleNamespace(all=lambda: iter((broken, sound)))
    wallet = SimpleNamespace(keep_back_sat=0, balance=lambda: Balance(0, 0, 0, 0))

    def warnings(state: Any, channels: Any, driver: Any) -> list[Warned]:
        if driver is broken:
            raise AssertionError("a bug")
        return [Warned(0, True, 100, True, "it is due")]

    monkeypatch.setattr(monitor_warnings, "htlc_warnings", warnings)
    looking = Warnings(cast(Any, wallet), cast(Any, channels), bus)
    for _ in range(2):
        looking.look(Rates(((1, 50_000),)), 100)
    assert bus.counts["channel.htlc_due"] == 1
    assert bus.counts["monitor.failed"] == 1, "it is heard, once"
    assert wallet.keep_back_sat > 0
