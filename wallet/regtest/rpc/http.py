"""JSON-RPC over HTTP as bitcoind does it: authentication, batches, versions 1.0 and 2.0, status codes."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import hmac
import inspect
import logging
import secrets
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from wallet.regtest.errors import (
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    MISC_ERROR,
    PARSE_ERROR,
    RpcError,
    StartupError,
)
from wallet.regtest.rpc.registry import Call, Json, find

log = logging.getLogger(__name__)

COOKIE_USER = "__cookie__"
_MAX_BODY_BYTES = 32 * 1024 * 1024
_WRONG_PASSWORD_DELAY_SECONDS = 0.25
_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_encode = msgspec.json.encode


class Credentials:
    """Who may call: user and password, `rpcauth` lines (`user:salt$hmac`), else a cookie made at each start."""

    def __init__(self, cookie_file: Path, user: str = "", password: str = "", auth_lines: tuple[str, ...] = ()) -> None:
        self.cookie_file = cookie_file
        self.uses_cookie = not password
        self.user = COOKIE_USER if self.uses_cookie else user
        self.password = secrets.token_hex(32) if self.uses_cookie else password
        self._lines = []
        for line in auth_lines:
            name, _, rest = line.partition(":")
            salt, _, digest = rest.partition("$")
            if not name or not salt or not digest:
                raise StartupError(f"-rpcauth={line} is not USER:SALT$HASH")
            self._lines.append((name, salt, digest))

    def write_cookie(self) -> None:
        """Write `user:password` where local clients look for it, readable by the owner alone."""
        if self.uses_cookie:
            self.cookie_file.touch(mode=0o600)
            self.cookie_file.write_text(f"{self.user}:{self.password}")

    def remove_cookie(self) -> None:
        """The cookie is worth nothing after a stop."""
        if self.uses_cookie:
            self.cookie_file.unlink(missing_ok=True)

    def allow(self, header: str | None) -> bool:
        """Whether an Authorization header is right."""
        if header is None or not header.startswith("Basic "):
            return False
        try:
            given = base64.b64decode(header[6:].strip(), validate=True).decode()
        except ValueError:
            return False
        if hmac.compare_digest(given.encode(), f"{self.user}:{self.password}".encode()):
            return True
        name, _, password = given.partition(":")
        for user, salt, digest in self._lines:
            computed = hmac.new(salt.encode(), password.encode(), hashlib.sha256).hexdigest()
            if user == name and hmac.compare_digest(computed, digest):
                return True
        return False


class RpcServer:
    """Listens on one address and answers from the table of methods."""

    def __init__(self, call: Call, credentials: Credentials) -> None:
        self.call = call
        self.credentials = credentials
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._numbers = 0

    async def start(self, host: str, port: int) -> None:
        """Bind and serve; port 0 takes a free one. Raises StartupError."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise StartupError(
                    f"Port {port} on {host} is in use; stop what listens there, or choose another with -rpcport"
                ) from error
            raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Answer what was asked, then close."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.Response:
        if self.call.node.stopping.is_set():
            return web.Response(status=503, text="Rejecting request while shutting down")
        wallet = None
        if request.path.startswith("/wallet/"):
            wallet = request.match_info["path"].removeprefix("wallet/")
        elif request.path != "/":
            return web.Response(status=404)
        if request.method != "POST":
            return web.Response(status=405, text="JSONRPC server handles only POST requests")
        if not self.credentials.allow(request.headers.get("Authorization")):
            if "Authorization" in request.headers:
                # Guessing takes time.
                await asyncio.sleep(_WRONG_PASSWORD_DELAY_SECONDS)
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="jsonrpc"'})
        try:
            body = _decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _response(500, _error_reply(PARSE_ERROR, "Parse error", None, two=False))
        call = Call(self.call.node, self.call.faucet, self.call.control, wallet)
        if isinstance(body, list):
            replies = [await self._one(call, item) for item in body]
            shown = [reply for reply, _ in replies if reply is not None]
            return _response(200, shown) if shown or not body else web.Response(status=204)
        if not isinstance(body, dict):
            return _response(500, _error_reply(PARSE_ERROR, "Top-level object parse error", None, two=False))
        reply, status = await self._one(call, body)
        return web.Response(status=204) if reply is None else _response(status, reply)

    async def _one(self, call: Call, request: Json) -> tuple[Json | None, int]:
        """(reply or None for a notification, HTTP status)."""
        two = isinstance(request, dict) and request.get("jsonrpc") == "2.0"
        identity = request.get("id") if isinstance(request, dict) else None
        notification = two and "id" not in request
        try:
            result = await self._execute(call, request)
        except RpcError as error:
            status = 200 if two else _status_of(error.code)
            reply = _error_reply(error.code, error.message, identity, two=two)
            return (None if notification else reply), status
        if notification:
            return None, 204
        if two:
            return {"jsonrpc": "2.0", "result": result, "id": identity}, 200
        return {"result": result, "error": None, "id": identity}, 200

    async def _execute(self, call: Call, request: Json) -> Json:
        if not isinstance(request, dict):
            raise RpcError(INVALID_REQUEST, "Invalid Request object")
        version = request.get("jsonrpc")
        if version is not None and version not in ("1.0", "1.1", "2.0"):
            raise RpcError(INVALID_REQUEST, "JSON-RPC version not supported")
        name = request.get("method")
        if name is None:
            raise RpcError(INVALID_REQUEST, "Missing method")
        if not isinstance(name, str):
            raise RpcError(INVALID_REQUEST, "Method must be a string")
        params = request.get("params")
        if params is None:
            params = []
        if not isinstance(params, (list, dict)):
            raise RpcError(INVALID_REQUEST, "Params must be an array or object")
        method = find(name)
        arguments = method.bind(params)
        self._numbers += 1
        number = self._numbers
        call.control.active[number] = (name, time.monotonic())
        try:
            result = method.handler(call, *arguments)
            return await result if inspect.isawaitable(result) else result
        except RpcError:
            raise
        except Exception as error:
            # The client hears of it as bitcoind's clients do of an internal error; the log keeps where it came from.
            log.exception("%s failed", name)
            raise RpcError(MISC_ERROR, f"Internal bug detected: {type(error).__name__}: {error}") from error
        finally:
            del call.control.active[number]


def _status_of(code: int) -> int:
    if code == INVALID_REQUEST:
        return 400
    return 404 if code == METHOD_NOT_FOUND else 500


def _error_reply(code: int, message: str, identity: Json, *, two: bool) -> dict[str, Any]:
    error = {"code": code, "message": message}
    if two:
        return {"jsonrpc": "2.0", "error": error, "id": identity}
    return {"result": None, "error": error, "id": identity}


def _response(status: int, body: Json) -> web.Response:
    return web.Response(status=status, body=_encode(body) + b"\n", content_type="application/json")
