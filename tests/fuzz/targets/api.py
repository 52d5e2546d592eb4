"""gRPC requests: whatever parses is answered, or refused with a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError

from channeld.api.background import Background
from channeld.api.channels import ChannelsServicer
from channeld.api.invoices import InvoicesServicer
from channeld.api.payments import PaymentsServicer
from channeld.api.peers import PeersServicer
from channeld.api.wallet import WalletServicer
from channeld.node.interface import NodeError
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2, peers_pb2, wallet_pb2
from tests.fake_node import FakeNode
from tests.fuzz.target import Reader, target

Method = tuple[Callable[[Any, Any], Any], type[Any]]
MODULES: tuple[tuple[Any, Any], ...] = (
    (ChannelsServicer, channels_pb2),
    (InvoicesServicer, invoices_pb2),
    (PaymentsServicer, payments_pb2),
    (PeersServicer, peers_pb2),
    (WalletServicer, wallet_pb2),
)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _methods() -> list[Method]:
    """Every method that answers one request with one response."""
    return _loop().run_until_complete(_make_methods())


async def _make_methods() -> list[Method]:
    node, background = FakeNode(), Background()
    methods: list[Method] = []
    for servicer, module in MODULES:
        (service,) = module.DESCRIPTOR.services_by_name.values()
        try:
            made = servicer(node, background)
        except TypeError:
            made = servicer(node)
        unary = [method for method in service.methods if not method.client_streaming and not method.server_streaming]
        methods += [(getattr(made, method.name), getattr(module, method.input_type.name)) for method in unary]
    return methods


def _seeds() -> Iterator[bytes]:
    for index, (_, request) in enumerate(_methods()):
        for filling in (b"", b"\x02" * 33, b"\x01" * 32):
            made = request()
            for field in request.DESCRIPTOR.fields:
                if field.type == field.TYPE_BYTES and filling:
                    setattr(made, field.name, filling)
                elif field.type in (field.TYPE_UINT64, field.TYPE_UINT32) and filling:
                    setattr(made, field.name, 1)
            yield bytes((index,)) + made.SerializeToString()


@target("grpc", _seeds, 600)
def grpc(data: bytes) -> None:
    """Any request to any method that does not wait for money to move."""
    reader = Reader(data)
    methods = _methods()
    method, kind = methods[reader.below(len(methods))]
    try:
        request = kind.FromString(reader.rest())
    except DecodeError:
        return

    async def call() -> None:
        async with asyncio.timeout(5):
            try:
                answer = await method(request, None)
            except NodeError as error:
                assert error.sentence
                return
            assert answer.SerializeToString() is not None

    _loop().run_until_complete(call())
