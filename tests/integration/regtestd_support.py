"""Raw JSON-RPC over HTTP against a running regtestd: what a program that expects bitcoind sends and sees."""

from __future__ import annotations

import base64
from decimal import Decimal
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from wallet.regtest.server import RegtestServer

decode = msgspec.json.Decoder(float_hook=Decimal).decode


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, code: int, message: str, status: int) -> None:
        super().__init__(f"{code} (HTTP {status}): {message}")
        self.code = code
        self.message = message
        self.status = status


class Client:
    """Calls methods as attributes: `await client.getblockcount()`; keyword arguments are sent by name."""

    def __init__(self, url: str, auth: tuple[str, str]) -> None:
        self.url = url
        word = base64.b64encode(":".join(auth).encode()).decode()
        self.session = aiohttp.ClientSession(headers={"Authorization": f"Basic {word}"})

    @classmethod
    def of(cls, server: RegtestServer) -> Client:
        return cls(server.url, server.auth)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    async def post(self, body: Any, path: str = "/", **options: Any) -> tuple[int, Any]:
        """(HTTP status, decoded answer or None) of any body."""
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.session.post(self.url + path, data=raw, **options) as response:
            answer = await response.read()
            return response.status, decode(answer) if answer.startswith((b"{", b"[")) else answer

    async def call(self, method: str, *params: Any, path: str = "/", **named: Any) -> Any:
        """A result. Raises Refused."""
        given = {"args": params, **named} if named else params
        status, answer = await self.post({"id": 7, "method": method, "params": given}, path)
        assert answer["id"] == 7
        if answer["error"] is not None:
            assert answer["result"] is None
            raise Refused(answer["error"]["code"], answer["error"]["message"], status)
        assert status == 200
        return answer["result"]

    def __getattr__(self, name: str) -> Any:
        async def call(*params: Any, **named: Any) -> Any:
            return await self.call(name, *params, **named)

        return call
