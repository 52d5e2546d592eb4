"""Bitcoin Core's JSON-RPC over HTTP: one keep-alive session, batches, cookie or password authentication."""

from __future__ import annotations

import asyncio
import itertools
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from wallet.chain import ChainError, ChainUnavailable

RPC_MISC_ERROR: Final = -1
RPC_INVALID_ADDRESS_OR_KEY: Final = -5
RPC_INVALID_PARAMETER: Final = -8
RPC_VERIFY_ERROR: Final = -25
RPC_VERIFY_REJECTED: Final = -26
RPC_VERIFY_ALREADY_IN_CHAIN: Final = -27
RPC_IN_WARMUP: Final = -28
RPC_METHOD_NOT_FOUND: Final = -32601

_SAT_PER_BTC = 100_000_000
_BUSY_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_NOT_REPEATABLE = ("generate", "sendto", "sendmany", "stop", "send", "bumpfee")
_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_encode = msgspec.json.encode


class RpcError(ChainError):
    """bitcoind answered with an error: its `code` and `message`, and the `method` that was called."""

    def __init__(self, code: int, message: str, method: str = "") -> None:
        super().__init__(f"{method}: {message} (code {code})" if method else f"{message} (code {code})")
        self.code = code
        self.message = message
        self.method = method


@dataclass(frozen=True, slots=True)
class RpcConfig:
    """Where bitcoind's RPC is, and as whom to speak to it: user and password, or a cookie file that it writes."""

    url: str = "http://127.0.0.1:8332"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    cookie_file: Path | None = None
    timeout_seconds: float = 60.0


def btc_to_sat(amount: Decimal | int | str) -> int:
    """Satoshi of an amount in BTC as bitcoind writes it. Exact."""
    return int((Decimal(amount) * _SAT_PER_BTC).to_integral_value())


class RpcClient:
    """Calls bitcoind. Raises RpcError for its errors and ChainUnavailable when no answer is to be had."""

    def __init__(self, config: RpcConfig) -> None:
        self._config = config
        self._ids = itertools.count(1)
        self._session: aiohttp.ClientSession | None = None
        self._auth: dict[str, str] = {}
        self._cookie_stamp: tuple[int, int] | None = None

    @property
    def url(self) -> str:
        """Where this client calls."""
        return self._config.url

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, method: str, *params: Any, timeout_seconds: float | None = None) -> Any:
        """The result of one call. Fractional numbers come as Decimal. Raises RpcError, ChainUnavailable."""
        request = {"jsonrpc": "1.0", "id": next(self._ids), "method": method, "params": params}
        reply = await self._exchange(request, _repeatable(method), timeout_seconds)
        if not isinstance(reply, dict):
            raise ChainUnavailable(f"{self.url} is no bitcoind: its answer to {method} is no JSON-RPC object")
        return self._result(reply, method)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Results in order; a failed call's place holds its RpcError. Raises ChainUnavailable for the whole."""
        if not calls:
            return []
        requests = [
            {"jsonrpc": "1.0", "id": index, "method": method, "params": params}
            for index, (method, params) in enumerate(calls)
        ]
        replies = await self._exchange(requests, all(_repeatable(method) for method, _ in calls), None)
        if isinstance(replies, dict):
            self._result(replies, calls[0][0])
        if not isinstance(replies, list) or len(replies) != len(calls):
            raise ChainUnavailable(f"{self.url} is no bitcoind: its answer to a batch is not a list of answers")
        results: list[Any] = [None] * len(calls)
        for reply in replies:
            index = reply["id"]
            try:
                results[index] = self._result(reply, calls[index][0])
            except RpcError as error:
                results[index] = error
        return results

    def _result(self, reply: dict[str, Any], method: str) -> Any:
        error = reply.get("error")
        if error is None:
            return reply.get("result")
        code, message = int(error.get("code", RPC_MISC_ERROR)), str(error.get("message", ""))
        if code == RPC_IN_WARMUP:
            raise ChainUnavailable(f"bitcoind at {self.url} is starting: {message}")
        raise RpcError(code, message, method)

    async def _exchange(self, request: Any, repeatable: bool, timeout_seconds: float | None) -> Any:
        """Post, with a second try for what a keep-alive connection or a renewed cookie may explain."""
        body = _encode(request)
        busy = iter(_BUSY_RETRY_SECONDS)
        renewed = reconnected = False
        while True:
            try:
                status, text = await self._post(body, timeout_seconds)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
                if reconnected or not repeatable:
                    raise ChainUnavailable(f"bitcoind at {self.url} closed the connection") from error
                reconnected = True
                continue
            except TimeoutError as error:
                raise ChainUnavailable(f"bitcoind at {self.url} did not answer in time") from error
            except (aiohttp.ClientError, OSError) as error:
                # aiohttp makes errors of its own that have a text, but no number.
                own_text = error.strerror if isinstance(error, OSError) and error.errno is None else None
                raise ChainUnavailable(f"bitcoind at {self.url} cannot be reached: {own_text or error}") from error
            if status == 503:
                delay = next(busy, None)
                if delay is None:
                    raise ChainUnavailable(f"bitcoind at {self.url} is too busy: {text[:200].decode(errors='replace')}")
                await asyncio.sleep(delay)
                continue
            if status in (401, 403):
                if status == 401 and not renewed and self._config.cookie_file is not None:
                    self._cookie_stamp, renewed = None, True
                    continue
                raise ChainUnavailable(
                    f"bitcoind at {self.url} refuses our credentials (HTTP {status}): "
                    "check the RPC user and password or the cookie file, and bitcoind's rpcallowip"
                )
            try:
                return _decode(text)
            except msgspec.DecodeError as error:
                raise ChainUnavailable(f"{self.url} is no bitcoind: HTTP {status} without JSON") from error

    async def _post(self, body: bytes, timeout_seconds: float | None) -> tuple[int, bytes]:
        if self._session is None:
            # bitcoind drops idle connections after 30 seconds (rpcservertimeout)
            connector = aiohttp.TCPConnector(limit=12, keepalive_timeout=15)
            self._session = aiohttp.ClientSession(connector=connector)
        timeout = aiohttp.ClientTimeout(total=timeout_seconds or self._config.timeout_seconds)
        async with self._session.post(
            self._config.url, data=body, headers=self._credentials(), timeout=timeout, allow_redirects=False
        ) as response:
            return response.status, await response.read()

    def _credentials(self) -> dict[str, str]:
        path = self._config.cookie_file
        if path is None:
            if not self._auth and self._config.user is not None:
                self._auth = _authorization(f"{self._config.user}:{self._config.password or ''}")
            return self._auth
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._cookie_stamp:
                self._auth, self._cookie_stamp = _authorization(path.read_text().strip()), stamp
        except OSError as error:
            raise ChainUnavailable(f"no RPC cookie at {path}: is bitcoind running? ({error.strerror})") from error
        return self._auth


def _authorization(user_and_password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(user_and_password.encode()).decode()}


def _repeatable(method: str) -> bool:
    """Whether calling twice does what calling once does (sendrawtransaction does, generate does not)."""
    return method == "sendrawtransaction" or not method.startswith(_NOT_REPEATABLE)
