"""gRPC requests, the daemon's and the tower's: whatever parses is answered, or refused with a sentence."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError

from channeld.api.background import Background
from channeld.api.channels import ChannelsServicer
from channeld.api.graph import GraphServicer
from channeld.api.invoices import InvoicesServicer
from channeld.api.payments import PaymentsServicer
from channeld.api.peers import PeersServicer
from channeld.api.wallet import WalletServicer
from channeld.node.interface import NodeError
from channeld.v1 import channels_pb2, graph_pb2, invoices_pb2, payments_pb2, peers_pb2, wallet_pb2
from tests.fake_node import FakeNode
from tests.fuzz.target import PATIENCE_SECONDS, Reader, target
from watchtower.rpc.errors import Refusal

Method = tuple[Callable[[Any, Any], Any], type[Any]]
MOST_ANSWERS = 20
"""Read of a stream; then the client goes away."""
MODULES: tuple[tuple[Any, Any], ...] = (
    (ChannelsServicer, channels_pb2),
    (GraphServicer, graph_pb2),
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
    """Every method that takes one request."""
    return _loop().run_until_complete(_make_methods())


async def _make_methods() -> list[Method]:
    node, background = FakeNode(), Background()
    methods: list[Method] = []
    for servicer, module in MODULES:
        (service,) = module.DESCRIPTOR.services_by_name.values()
        parts = (node, background, asyncio.Event())
        taken = len(inspect.signature(servicer).parameters)
        made = servicer(*parts[:taken])
        single = [method for method in service.methods if not method.client_streaming]
        methods += [(getattr(made, method.name), getattr(module, method.input_type.name)) for method in single]
    return methods


def _seeds() -> Iterator[bytes]:
    for index, (_, request) in enumerate(_methods()):
        for filling in (b"", b"\x02" * 33, b"\x01" * 32):
            made = request()
            for field in request.DESCRIPTOR.fields:
                whole = field.type in (field.TYPE_UINT64, field.TYPE_UINT32)
                value = 1 if whole else filling if field.type == field.TYPE_BYTES else None
                if value is not None and filling:
                    if field.is_repeated:
                        getattr(made, field.name).append(value)
                    else:
                        setattr(made, field.name, value)
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

    _loop().run_until_complete(_call(method, request))


async def _call(method: Callable[[Any, Any], Any], request: Any) -> None:
    """All of the answer, or the beginning of a stream. A stream may wait for more, as they do."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = method(request, None)
            if inspect.isawaitable(answer):
                assert (await answer).SerializeToString() is not None
                return
            left = MOST_ANSWERS
            async for part in answer:
                assert part.SerializeToString() is not None
                left -= 1
                if not left:
                    break
            await answer.aclose()
    except (NodeError, Refusal) as error:
        assert error.sentence
