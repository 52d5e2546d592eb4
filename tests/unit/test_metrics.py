"""The metrics page of a daemon."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry

from channeld.node.metrics import LAGS_KEPT, LoopLag
from watchtower.rpc.listen import ListenError
from watchtower.rpc.metrics import MetricsServer


async def test_health_says_whether_the_chain_is_followed_and_a_taken_port_is_said() -> None:
    healthy = False
    server = MetricsServer(("127.0.0.1", 0), CollectorRegistry(), lambda: healthy)
    await server.start()
    base = server.url.removesuffix("/metrics")
    try:
        async with ClientSession() as session:
            async with session.get(f"{base}/health") as answer:
                assert (answer.status, await answer.text()) == (503, "not in step with the chain\n")
            healthy = True
            async with session.get(f"{base}/health") as answer:
                assert answer.status == 200
        port = int(base.rpartition(":")[2])
        other = MetricsServer(("127.0.0.1", port), CollectorRegistry(), lambda: True)
        with pytest.raises(ListenError, match=f"metrics cannot listen on 127.0.0.1:{port}"):
            await other.start()
        await other.stop()
    finally:
        await server.stop()


async def test_the_lag_of_the_event_loop_is_seen_and_forgotten_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [0.25, *[0.0] * LAGS_KEPT]
    loop = asyncio.get_running_loop()
    now, seen = 0.0, []
    lag = LoopLag(1.0)

    async def sleep(seconds: float) -> None:
        nonlocal now
        seen.append((lag.last_seconds, lag.worst_seconds))
        if len(seen) > len(late):
            raise asyncio.CancelledError
        now += seconds + late[len(seen) - 1]

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(loop, "time", lambda: now)
    try:
        with pytest.raises(asyncio.CancelledError):
            await lag.run()
    finally:
        monkeypatch.undo()
    assert seen[1] == (0.25, 0.25)
    assert seen[2] == (0.0, 0.25)
    assert seen[-1] == (0.0, 0.0)
