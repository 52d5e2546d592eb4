"""Calls that anybody may make: each brings its request soon, and nobody has too many of them at a time.

A server takes so many calls at a time; one whose request does not come would take a place for ever.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from watchtower.rpc.errors import Handler, Status, WrappingInterceptor, abort

NOTHING_CAME = Status(
    grpc.StatusCode.INVALID_ARGUMENT, "The call has no request; see the .proto files.", "invalid_argument"
)
TOO_SLOW = Status(
    grpc.StatusCode.DEADLINE_EXCEEDED, "The call's request did not come in time; call again.", "deadline_exceeded"
)
TOO_MANY = Status(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many calls from there at a time; try again soon.", "resource_exhausted"
)


class PatienceInterceptor(WrappingInterceptor):
    """For methods that begin with `methods` and take and give one message each: the request must come within `seconds`;
    a network address has at most `calls` at a time."""

    def __init__(self, methods: str, seconds: float, calls: int) -> None:
        super().__init__(methods)
        self._seconds = seconds
        self._calls = calls
        self._busy: Counter[str] = Counter()

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same, within the limits; a method that takes or gives a stream as it is."""
        if handler.unary_unary is None:
            return handler
        behaviour, decode = handler.unary_unary, handler.request_deserializer or (lambda request: request)

        async def answer(requests: AsyncIterator[bytes], context: Any) -> Any:
            address = context.peer().rpartition(":")[0] or context.peer()
            if self._busy[address] >= self._calls:
                await abort(context, TOO_MANY)
            self._busy[address] += 1
            try:
                return await behaviour(decode(await self._request(requests, context)), context)
            finally:
                self._busy[address] -= 1
                if not self._busy[address]:
                    del self._busy[address]

        # As a stream of requests: otherwise gRPC itself would wait for the only one, without an end.
        return grpc.stream_unary_rpc_method_handler(
            answer, request_deserializer=None, response_serializer=handler.response_serializer
        )

    async def _request(self, requests: AsyncIterator[bytes], context: Any) -> Any:
        try:
            async with asyncio.timeout(self._seconds):
                async for request in requests:
                    return request
        except TimeoutError:
            await abort(context, TOO_SLOW)
        return await abort(context, NOTHING_CAME)
