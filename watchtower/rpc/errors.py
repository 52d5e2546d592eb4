"""From an exception to a gRPC status, for any daemon: the one place where that is decided."""

from __future__ import annotations

import contextlib
import secrets
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, NamedTuple, Protocol, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from wallet.db import StorageError
from watchtower.rpc import ERROR_KIND_METADATA

ErrorKind = Literal[
    "invalid_argument",
    "not_found",
    "already_exists",
    "failed_precondition",
    "resource_exhausted",
    "unauthenticated",
    "permission_denied",
    "unavailable",
    "deadline_exceeded",
    "aborted",
    "internal",
]

_CODES: dict[str, grpc.StatusCode] = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "failed_precondition": grpc.StatusCode.FAILED_PRECONDITION,
    "resource_exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "aborted": grpc.StatusCode.ABORTED,
    "internal": grpc.StatusCode.INTERNAL,
}

_log = structlog.get_logger(__name__)

Handler = Any  # grpc.RpcMethodHandler: the stubs do not know its fields


class Status(NamedTuple):
    """How a call ends that did not go well."""

    code: grpc.StatusCode
    sentence: str
    kind: str


class Refusal(Exception):
    """What a user meets: a kind (one of `ErrorKind`) and a sentence that says what to do."""

    def __init__(self, kind: ErrorKind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind: str = kind
        self.sentence = sentence


class RefusalLike(Protocol):
    """What a daemon's own exception for its users must have."""

    kind: Any
    sentence: str


def to_status(error: Exception, method: str, expected: type[Exception] = Refusal) -> Status:
    """The status for `error`. What is not `expected` (a `RefusalLike`) is a bug: it is logged, and the client gets its
    id in the log."""
    if isinstance(error, expected):
        refusal = cast(RefusalLike, error)
        return Status(_CODES[refusal.kind], refusal.sentence, refusal.kind)
    if isinstance(error, DecodeError):
        sentence = "The request is not a protobuf message that this method takes; see the .proto files."
        return Status(grpc.StatusCode.INVALID_ARGUMENT, sentence, "invalid_argument")
    if isinstance(error, StorageError):  # of which its log is full already
        advice = "The daemon stops: make room on its disk if need be, start it again, and see what became of the call"
        sentence = f"The daemon failed: {error}. {advice}."
        return Status(grpc.StatusCode.UNAVAILABLE, sentence, "unavailable")
    error_id = secrets.token_hex(4)
    _log.error("api_call_failed", method=method, error_id=error_id, exc_info=error)
    sentence = f"The daemon made a mistake; its log says what went wrong, under the error id {error_id}."
    return Status(grpc.StatusCode.INTERNAL, sentence, "internal")


class WrappingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Puts something around the handlers of methods that begin with `methods`, once for each."""

    def __init__(self, methods: str) -> None:
        self._methods = methods
        self._wrapped: dict[str, Handler] = {}

    @abstractmethod
    def wrap(self, handler: Handler, method: str) -> Handler:
        """What is called instead of `handler`."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        method: str = details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(details)
            if handler is None or not method.startswith(self._methods):
                return handler
            wrapped = self._wrapped[method] = self.wrap(handler, method)
        return wrapped


class ErrorInterceptor(WrappingInterceptor):
    """Ends calls whose handler raises with the status of what it raised (health and reflection know themselves how to
    fail)."""

    def __init__(self, methods: str, expected: type[Exception] = Refusal) -> None:
        super().__init__(methods)
        self._expected = expected

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The same, with an end for each failure."""
        return _guard(handler, method, self._expected)


def replace_behaviour(handler: Handler, *, unary: Callable[..., Any], stream: Callable[..., Any]) -> Handler:
    """`handler` with another behaviour: `unary` if it answers once, `stream` (an async generator) if it streams.

    The new behaviour gets requests as bytes: only there can it be decided how a call ends whose request is garbage.
    """
    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return kind(
        stream if handler.response_streaming else unary,
        request_deserializer=None,
        response_serializer=handler.response_serializer,
    )


async def abort(context: Any, status: Status) -> None:
    """Ends the call with `status`; raises, so that nothing comes after it."""
    await context.abort(status.code, status.sentence, ((ERROR_KIND_METADATA, status.kind),))


def _guard(handler: Handler, method: str, expected: type[Exception]) -> Handler:
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    decode = handler.request_deserializer

    async def decode_each(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield decode(request)

    read = decode_each if handler.request_streaming else decode

    async def unary(request: Any, context: Any) -> Any:
        try:
            return await behaviour(read(request), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, to_status(error, method, expected))

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async with contextlib.aclosing(behaviour(read(request), context)) as responses:
                async for response in responses:
                    yield response
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, to_status(error, method, expected))

    return replace_behaviour(handler, unary=unary, stream=stream)
