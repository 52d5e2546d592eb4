"""The API's server: who may call, where it listens, how it starts and ends, what errors look like."""

from __future__ import annotations

import asyncio
import datetime
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest
import structlog
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from channeld.api import errors
from channeld.api.server import MAX_REQUEST_BYTES, ApiError, ApiServer
from channeld.node.interface import ErrorKind, NodeError
from channeld.paths import DataPaths, data_paths
from channeld.storage import StoreFailed
from channeld.v1 import (
    events_pb2,
    events_pb2_grpc,
    invoices_pb2,
    invoices_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
    wallet_pb2,
    wallet_pb2_grpc,
)
from tests.api_support import bearer, connected, serving
from tests.fake_node import FakeNode
from watchtower.rpc.tls import RENEW_BEFORE_EXPIRY, VALIDITY, Certificate, TlsError

GET_INFO = node_pb2.GetInfoRequest()


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    return data_paths("regtest", tmp_path)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def server(node: FakeNode, paths: DataPaths) -> AsyncIterator[ApiServer]:
    async with serving(node, paths) as running:
        yield running


@pytest.fixture
async def channel(server: ApiServer, paths: DataPaths) -> AsyncIterator[grpc.aio.Channel]:
    async with connected(server, paths) as connection:
        yield connection


@pytest.fixture
def token(server: ApiServer, paths: DataPaths) -> tuple[tuple[str, str], ...]:
    return bearer(paths)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Files


async def test_first_start_makes_private_files_and_says_where_it_listens(server: ApiServer, paths: DataPaths) -> None:
    assert mode(paths.directory) == 0o700
    assert mode(paths.token) == mode(paths.tls_key) == 0o600
    assert len(bytes.fromhex(paths.token.read_text())) == 32
    assert paths.grpc_address.read_text() == f"{server.address}\n"
    assert server.address.startswith("127.0.0.1:")
    assert not server.address.endswith(":0")


async def test_token_and_certificate_survive_a_restart_and_the_address_file_does_not(paths: DataPaths) -> None:
    async with serving(FakeNode(), paths):
        before = paths.token.read_bytes(), paths.tls_cert.read_bytes(), paths.tls_key.read_bytes()
    assert not paths.grpc_address.exists()
    async with serving(FakeNode(), paths):
        assert (paths.token.read_bytes(), paths.tls_cert.read_bytes(), paths.tls_key.read_bytes()) == before


async def test_a_readable_token_file_is_closed_again(paths: DataPaths) -> None:
    async with serving(FakeNode(), paths):
        paths.token.chmod(0o644)
    async with serving(FakeNode(), paths):
        assert mode(paths.token) == 0o600


@pytest.mark.parametrize("content", [b"", b"abc\n", b"\xff\xfe", b"Z" * 64])
async def test_a_damaged_token_file_is_an_error_with_a_way_out(paths: DataPaths, content: bytes) -> None:
    paths.directory.mkdir(parents=True)
    paths.token.write_bytes(content)
    with pytest.raises(ApiError, match="is damaged; remove it"):
        await ApiServer(FakeNode(), paths).start()


# Who may call


async def test_the_token_opens_the_door(channel: Any, token: Any) -> None:
    answer = await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=token)
    assert answer.alias == "fake"


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ((), "carries no token"),
        ((("authorization", "Bearer " + "0" * 64),), "not this daemon's"),
        ((("authorization", ""),), "not this daemon's"),
        ((("authorization", "Basic dXNlcjpwYXNz"),), "not this daemon's"),
    ],
)
async def test_without_the_right_token_nothing_happens(
    channel: Any, node: FakeNode, metadata: Any, sentence: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node_pb2_grpc.NodeStub(channel).Stop(node_pb2.StopRequest(), metadata=metadata)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert sentence in str(refused.value.details())
    assert node.calls == {}


async def test_streams_need_the_token_as_well(channel: Any, node: FakeNode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest())))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    stream = payments_pb2_grpc.PaymentsStub(channel).PayStream()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.read()
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert node.listeners == 0


async def test_health_needs_no_token_but_to_watch_it_does(channel: Any, token: Any) -> None:
    for service in ("", "channeld.v1.Payments"):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), metadata=token)
    assert (await anext(aiter(watch))).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_reflection_lists_every_service_and_needs_the_token(channel: Any, token: Any) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answer = await anext(aiter(stub.ServerReflectionInfo(iter([request]), metadata=token)))
    names = {service.name for service in answer.list_services_response.service}
    kinds = ("Node", "Peers", "Wallet", "Channels", "Invoices", "Payments", "Events")
    assert {f"channeld.v1.{kind}" for kind in kinds} <= names
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(stub.ServerReflectionInfo(iter([request]))))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_another_daemons_certificate_is_not_accepted(
    server: ApiServer, paths: DataPaths, tmp_path: Path, token: Any
) -> None:
    other = data_paths("regtest", tmp_path / "other")
    other.directory.mkdir(parents=True)
    _, cert = Certificate(other).load_or_make()
    async with connected(server, paths, cert) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=token)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


# Errors


def test_every_kind_of_error_has_a_status_of_its_own() -> None:
    full = errors.to_status(StoreFailed("the database could not be written: database or disk is full"), "Pay")
    assert (full.code, full.kind) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
    assert "disk is full. The daemon stops: make room" in full.sentence
    statuses = [errors.to_status(NodeError(kind, "No."), "Pay") for kind in get_args(ErrorKind)]
    assert [status.kind for status in statuses] == list(get_args(ErrorKind))
    assert len({status.code for status in statuses}) == len(statuses)


async def test_a_node_error_becomes_its_status_its_sentence_and_its_kind(channel: Any, token: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await wallet_pb2_grpc.WalletStub(channel).Send(
            wallet_pb2.SendRequest(address="bcrt1qsomebody", amount_sat=5_000_000), metadata=token
        )
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "The wallet has 1,000,000 sat" in str(failed.value.details())
    trailing: Any = failed.value.trailing_metadata()
    assert dict(trailing)[errors.ERROR_KIND_METADATA] == "resource_exhausted"


async def test_a_bug_is_logged_under_an_id_and_its_text_stays_inside(channel: Any, node: FakeNode, token: Any) -> None:
    node.bug = KeyError("secret detail")
    with structlog.testing.capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as failed:
        await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=token)
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    details = str(failed.value.details())
    assert "secret detail" not in details
    (entry,) = [entry for entry in logs if entry["event"] == "api_call_failed"]
    assert entry["error_id"] in details
    assert entry["exc_info"] is node.bug
    node.bug = None
    assert (await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=token)).alias == "fake"


async def test_an_oversized_request_is_refused_and_the_server_lives_on(channel: Any, token: Any) -> None:
    request = invoices_pb2.CreateInvoiceRequest(description="x" * (MAX_REQUEST_BYTES + 1))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await invoices_pb2_grpc.InvoicesStub(channel).Create(request, metadata=token)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=token)).alias == "fake"


async def test_garbage_instead_of_a_request_is_refused_and_the_server_lives_on(channel: Any, token: Any) -> None:
    call = channel.unary_unary("/channeld.v1.Payments/Pay")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"\xff\xff\xff\xff", metadata=token)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    stream = channel.stream_stream("/channeld.v1.Payments/PayStream")(metadata=token)
    await stream.write(b"\xff\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.read()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=token)).alias == "fake"


async def test_an_unknown_method_is_unimplemented(channel: Any, token: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary("/channeld.v1.Node/Nothing")(b"", metadata=token)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


# Where it listens


async def test_a_port_in_use_is_named_in_a_sentence(paths: DataPaths) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ApiError, match=rf"127\.0\.0\.1:{port}: another program uses that port"):
            await ApiServer(FakeNode(), paths, port=port).start()
    assert not paths.grpc_address.exists()


async def test_a_second_daemon_does_not_share_the_port(server: ApiServer, tmp_path: Path) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(ApiError, match="another program uses that port"):
        await ApiServer(FakeNode(), data_paths("regtest", tmp_path / "second"), port=port).start()


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("192.0.2.7", 0, "does not have that address"),
        ("no-such-host.invalid", 0, "no such host"),
        ("127.0.0.1", 70_000, "a port is a number"),
    ],
)
async def test_an_address_that_cannot_be_is_named_in_a_sentence(
    paths: DataPaths, host: str, port: int, sentence: str
) -> None:
    with pytest.raises(ApiError, match=sentence):
        await ApiServer(FakeNode(), paths, host, port).start()


async def test_on_all_interfaces_the_address_is_one_to_connect_to(paths: DataPaths) -> None:
    server = ApiServer(FakeNode(), paths, "0.0.0.0", hosts=("node.example",))
    await server.start()
    try:
        assert server.address.startswith("127.0.0.1:")
        async with connected(server, paths) as channel:
            answer = await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=bearer(paths))
        assert answer.network == "regtest"
    finally:
        await server.stop(grace_seconds=0)


# How it ends


async def test_stop_ends_event_streams_and_waits_for_calls(node: FakeNode, paths: DataPaths) -> None:
    async with serving(node, paths) as server, connected(server, paths) as channel:
        token = bearer(paths)
        stream = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(), metadata=token)
        await stream.initial_metadata()
        await make_usable_channel(node)
        node.pay_gate.clear()
        paying = asyncio.ensure_future(
            payments_pb2_grpc.PaymentsStub(channel).Pay(
                payments_pb2.PayRequest(bolt11=node.remote_invoice(1000)), metadata=token
            )
        )
        await node.paying.wait()
        stopping = asyncio.ensure_future(server.stop(grace_seconds=30))
        seen = [event.kind async for event in stream]
        assert seen[-1] == "chain.block"
        assert not paying.done()
        node.pay_gate.set()
        assert (await paying).payment.state == payments_pb2.PAYMENT_STATE_SUCCEEDED
        await stopping
        assert node.listeners == 0


async def test_a_client_that_goes_away_does_not_stop_its_payment(channel: Any, node: FakeNode, token: Any) -> None:
    await make_usable_channel(node)
    node.pay_gate.clear()
    bolt11 = node.remote_invoice(5_000)
    call = payments_pb2_grpc.PaymentsStub(channel).Pay(payments_pb2.PayRequest(bolt11=bolt11), metadata=token)
    await node.paying.wait()
    call.cancel()
    outcomes = node.events()
    following = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    node.pay_gate.set()
    assert (await following).kind == "payment.succeeded"


async def make_usable_channel(node: FakeNode, amount_sat: int = 100_000) -> None:
    peer = await node.connect_peer(bytes.fromhex("03" + "22" * 32), "127.0.0.1", 9736)
    await node.open_channel(peer.node_id, amount_sat)
    node.mine(3)


# The certificate


def names(cert: bytes) -> set[str]:
    extension = x509.load_pem_x509_certificate(cert).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(name.value) for name in extension.value}


def test_the_certificate_names_the_local_host_and_what_is_configured(paths: DataPaths) -> None:
    paths.directory.mkdir(parents=True)
    _, cert = Certificate(paths, ("node.example", "192.0.2.1")).load_or_make()
    assert names(cert) == {"localhost", "127.0.0.1", "::1", "node.example", "192.0.2.1"}
    assert Certificate(paths).load_or_make()[1] == cert
    _, wider = Certificate(paths, ("other.example",)).load_or_make()
    assert "other.example" in names(wider)


def test_the_certificate_is_renewed_before_it_expires(paths: DataPaths) -> None:
    paths.directory.mkdir(parents=True)
    _, first = Certificate(paths).load_or_make()
    soon = datetime.datetime.now(datetime.UTC) + VALIDITY - RENEW_BEFORE_EXPIRY
    assert Certificate(paths, now=lambda: soon - datetime.timedelta(days=1)).load_or_make()[1] == first
    _, second = Certificate(paths, now=lambda: soon + datetime.timedelta(days=1)).load_or_make()
    assert second != first
    assert paths.tls_cert.read_bytes() == second
    assert x509.load_pem_x509_certificate(second).not_valid_after_utc > soon + RENEW_BEFORE_EXPIRY
    assert mode(paths.tls_key) == 0o600


async def test_a_running_server_renews_its_certificate(paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        """A clock that can be put forward."""

        ahead = datetime.timedelta(0)

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime.now(tz) + cls.ahead

    paths.directory.mkdir(parents=True)
    certificate = Certificate(paths, now=lambda: Clock.now(datetime.UTC))
    monkeypatch.setattr("channeld.api.server.Certificate", lambda *_: certificate)
    async with serving(FakeNode(), paths) as server:
        first = paths.tls_cert.read_bytes()
        async with connected(server, paths) as channel:
            await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=bearer(paths))
        assert paths.tls_cert.read_bytes() == first
        Clock.ahead = VALIDITY - datetime.timedelta(days=1)
        async with connected(server, paths, first) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await node_pb2_grpc.NodeStub(channel).GetInfo(GET_INFO, metadata=bearer(paths))
        assert paths.tls_cert.read_bytes() != first
        assert mode(paths.tls_key) == 0o600


@pytest.mark.parametrize("name", ["tls_cert", "tls_key"])
def test_a_damaged_certificate_is_an_error_with_a_way_out(paths: DataPaths, name: str) -> None:
    paths.directory.mkdir(parents=True)
    Certificate(paths).load_or_make()
    file: Path = getattr(paths, name)
    file.write_bytes(b"garbage")
    with pytest.raises(TlsError, match="damaged"):
        Certificate(paths).load_or_make()


def test_a_key_of_another_certificate_is_an_error_with_a_way_out(paths: DataPaths, tmp_path: Path) -> None:
    other = data_paths("regtest", tmp_path / "other")
    for each in (paths, other):
        each.directory.mkdir(parents=True)
        Certificate(each).load_or_make()
    paths.tls_key.write_bytes(other.tls_key.read_bytes())
    with pytest.raises(TlsError, match="is not the key of"):
        Certificate(paths).load_or_make()
