"""The gRPC ports against whoever has no token: calls that never end must not take the room of those that count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from channeld.api import server as api
from channeld.paths import data_paths
from channeld.v1 import node_pb2, node_pb2_grpc
from tests.api_support import bearer, connected, serving
from tests.fake_node import FakeNode
from tests.tower_support import running_tower, tower_config
from tests.unit.test_tower_intake import FakeSource
from watchtower.tower import server as tower_server
from watchtower.tower.daemon import Tower
from watchtower.v1 import tower_pb2, tower_pb2_grpc

SECONDS = 60
ROOM = 6
"""Calls at a time, in these tests."""
INFO = tower_pb2.GetInfoRequest(nonce=bytes(32))


def without_request(channel: Any, method: str) -> Any:
    """A call whose request never comes."""
    return channel.stream_unary(method, request_serializer=None, response_deserializer=None)()


async def code_of(call: Any) -> grpc.StatusCode:
    return await asyncio.wait_for(call.code(), SECONDS)


async def test_calls_without_a_token_end_before_their_request_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "MAX_CONCURRENT_CALLS", ROOM)
    paths = data_paths("regtest", tmp_path)
    async with serving(FakeNode(), paths) as server, connected(server, paths) as channel:
        for method in ("GetInfo", "Stop") * ROOM:
            call = without_request(channel, f"/channeld.v1.Node/{method}")
            assert await code_of(call) == grpc.StatusCode.UNAUTHENTICATED
        for _ in range(2 * ROOM):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert await code_of(watch) == grpc.StatusCode.UNAUTHENTICATED
        answer = await node_pb2_grpc.NodeStub(channel).GetInfo(node_pb2.GetInfoRequest(), metadata=bearer(paths))
        assert answer.alias == "fake"


@pytest.fixture
async def tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tower]:
    monkeypatch.setattr(tower_server, "MAX_CONCURRENT_CALLS", ROOM)
    monkeypatch.setattr(tower_server, "CALLS_PER_ADDRESS", ROOM - 2)
    monkeypatch.setattr(tower_server, "REQUEST_SECONDS", 0.2)
    async with running_tower(tower_config(tmp_path), FakeSource()) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture
async def client(tower: Tower) -> AsyncIterator[grpc.aio.Channel]:
    credentials = grpc.ssl_channel_credentials(tower.config.paths.tls_cert.read_bytes())
    async with grpc.aio.secure_channel(tower.server.address, credentials) as channel:
        yield channel


async def test_nobody_watches_a_tower_for_ever(tower: Tower, client: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(client)
    assert (await health.Check(health_pb2.HealthCheckRequest(service=""))).status
    questions = reflection_pb2.ServerReflectionRequest(list_services="")
    for _ in range(ROOM):
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert await code_of(watch) == grpc.StatusCode.UNAUTHENTICATED
        listing = reflection_pb2_grpc.ServerReflectionStub(client).ServerReflectionInfo(iter([questions]))
        assert await code_of(listing) == grpc.StatusCode.UNAUTHENTICATED
    assert (await tower_pb2_grpc.TowerStub(client).GetInfo(INFO)).tower_id == tower.tower_id


async def test_a_call_to_a_tower_brings_its_request_soon(tower: Tower, client: grpc.aio.Channel) -> None:
    waiting = [without_request(client, "/watchtower.v1.Tower/GetInfo") for _ in range(ROOM)]
    codes = [await code_of(call) for call in waiting]
    assert codes.count(grpc.StatusCode.DEADLINE_EXCEEDED) == ROOM - 2
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 2, "so many from an address, and no more"
    assert (await tower_pb2_grpc.TowerStub(client).GetInfo(INFO)).tower_id == tower.tower_id


async def test_a_call_that_ends_without_a_request_is_told_so(client: grpc.aio.Channel) -> None:
    call = without_request(client, "/watchtower.v1.Tower/GetInfo")
    await call.done_writing()
    assert await code_of(call) == grpc.StatusCode.INVALID_ARGUMENT


async def test_what_was_refused_leaves_nothing_behind(tower: Tower, client: grpc.aio.Channel) -> None:
    stub = tower_pb2_grpc.TowerStub(client)
    for _ in range(3 * ROOM):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetSession(tower_pb2.GetSessionRequest(session_id=b"?"))
    assert (await stub.GetInfo(INFO)).tower_id == tower.tower_id
