"""Who may call: whoever can read the token file. A health check needs no token; watching health does."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from watchtower.rpc.errors import Handler, Status, abort
from watchtower.rpc.files import write_private

TOKEN_BYTES = 32
_OPEN = "/grpc.health.v1.Health/Check"
ENDLESS = ("/grpc.health.v1.Health/Watch", "/grpc.reflection.")
"""Calls that last as long as the client likes: each of them takes the place of another."""
_SCHEME = b"Bearer "


class TokenError(Exception):
    """The token file cannot be used; the text is a sentence that says what to do."""


def load_or_make_token(path: Path) -> str:
    """The token (hex) in the file at `path`, made on first start (mode 0600). Raises `TokenError`."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = secrets.token_hex(TOKEN_BYTES)
        write_private(path, token.encode() + b"\n")
        return token
    except UnicodeDecodeError:
        token = ""
    if len(token) != 2 * TOKEN_BYTES or not set(token) <= set("0123456789abcdef"):
        raise TokenError(f"{path} is damaged; remove it, and the daemon makes a new token when it starts.")
    path.chmod(0o600)
    return token


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Turns away calls without the token, before their requests are read, for methods that begin with one of `methods`
    ("": all but health checks). The comparison takes the same time however much of the token is right."""

    def __init__(self, token: str, methods: str | tuple[str, ...] = "") -> None:
        self._expected = _SCHEME + token.encode()
        self._methods = methods

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(details)
        method: str = details.method
        if handler is None or method == _OPEN or not method.startswith(self._methods):
            return handler
        shown = _authorization(details)
        if shown is not None and hmac.compare_digest(shown, self._expected):
            return handler
        sentence = (
            "The call carries no token; send the metadata `authorization: Bearer <the text in the token file>`."
            if shown is None
            else "The token is not this daemon's; read it again from the daemon's token file."
        )
        return _refusal(handler, Status(grpc.StatusCode.UNAUTHENTICATED, sentence, "unauthenticated"))


def _authorization(details: grpc.HandlerCallDetails) -> bytes | None:
    for key, value in details.invocation_metadata:
        if key == "authorization":
            return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return None


def _refusal(handler: Handler, status: Status) -> Handler:
    async def unary(request: Any, context: Any) -> None:
        await abort(context, status)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await abort(context, status)
        yield

    # As a stream of requests, of which none is read: gRPC would wait for a single one, without an end.
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(stream)
    return grpc.stream_unary_rpc_method_handler(unary)
