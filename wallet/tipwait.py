"""Waiting for a new block: ZeroMQ when bitcoind offers it, else a long poll, else asking every second.

Whatever the way, waiting ends after a while even without news, so that a lost notification or a dead connection
costs seconds and not blocks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from wallet.chain import BlockRef
from wallet.rpc import RPC_METHOD_NOT_FOUND, RpcClient, RpcError

if TYPE_CHECKING:
    import zmq.asyncio

_log = structlog.get_logger(__name__)
_TOPICS = {"pubhashblock": b"hashblock", "pubrawblock": b"rawblock"}


class TipWaiter:
    """Returns from `wait` when layer 1's tip may have changed. Raises ChainUnavailable when it does not answer."""

    def __init__(
        self,
        rpc: RpcClient,
        *,
        zmq_address: str | None = None,
        zmq_check_seconds: float = 15.0,
        long_poll_seconds: float = 20.0,
        poll_seconds: float = 1.0,
    ) -> None:
        self._rpc = rpc
        self._zmq_address = zmq_address
        self._zmq_check_seconds = zmq_check_seconds
        self._long_poll_seconds = long_poll_seconds
        self._poll_seconds = poll_seconds
        self._topic = b"hashblock"
        self._socket: zmq.asyncio.Socket | None = None
        self._context: zmq.asyncio.Context | None = None
        self._missed = 0
        self._long_poll_takes_tip: bool | None = True
        """None: bitcoind has no long poll at all."""

    @property
    def way(self) -> str:
        """How blocks are waited for: `zmq`, `long poll` or `poll`."""
        if self._socket is not None:
            return "zmq"
        return "poll" if self._long_poll_takes_tip is None else "long poll"

    async def start(self) -> None:
        """Ask bitcoind which notifications it publishes, unless an address is configured, and subscribe."""
        if self._zmq_address is None:
            await self._discover()
        if self._zmq_address is not None and self._socket is None:
            self._subscribe(self._zmq_address)
        _log.info("waiting for blocks", way=self.way, zmq=self._zmq_address)

    def _subscribe(self, address: str) -> None:
        import zmq.asyncio  # 5 MB that only those pay who use it

        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, self._topic)
        self._socket.connect(address)

    async def close(self) -> None:
        """Unsubscribe."""
        if self._socket is not None and self._context is not None:
            self._socket.close(0)
            self._context.term()
            self._socket = self._context = None

    async def _discover(self) -> None:
        try:
            offered = await self._rpc.call("getzmqnotifications")
        except RpcError as error:
            _log.debug("no notifications by ZeroMQ", reason=error.message)
            return
        for kind, topic in _TOPICS.items():
            for entry in offered:
                if entry.get("type") == kind:
                    self._zmq_address = _reachable(str(entry["address"]), self._rpc.url)
                    self._topic = topic
                    return

    async def wait(self, tip: BlockRef) -> None:
        """Until layer 1's tip may no longer be `tip`."""
        if self._socket is not None:
            await self._wait_zmq(self._socket, tip)
        elif self._long_poll_takes_tip is None:
            await asyncio.sleep(self._poll_seconds)
            await self._rpc.call("getbestblockhash")
        else:
            await self._wait_long_poll(tip)

    async def _wait_zmq(self, socket: zmq.asyncio.Socket, tip: BlockRef) -> None:
        try:
            async with asyncio.timeout(self._zmq_check_seconds):
                await socket.recv_multipart()
        except TimeoutError:
            if await self._best() == tip.hash:
                return
            self._missed += 1
            if self._missed > 1:
                _log.warning("bitcoind's block notifications do not arrive: asking instead", zmq=self._zmq_address)
                await self.close()
            return
        self._missed = 0
        while await socket.poll(0):
            await socket.recv_multipart()

    async def _wait_long_poll(self, tip: BlockRef) -> None:
        """`waitfornewblock`, which takes the tip that we know from version 30 on; before, that is asked beside it."""
        milliseconds = int(self._long_poll_seconds * 1000)
        patience = self._long_poll_seconds + 30
        try:
            if self._long_poll_takes_tip:
                known = tip.hash[::-1].hex()
                await self._rpc.call("waitfornewblock", milliseconds, known, timeout_seconds=patience)
                return
            waiting = asyncio.ensure_future(self._rpc.call("waitfornewblock", milliseconds, timeout_seconds=patience))
            try:
                await self._await_or_notice(waiting, tip)
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
        except RpcError as error:
            if error.code == RPC_METHOD_NOT_FOUND:
                self._long_poll_takes_tip = None
            elif self._long_poll_takes_tip:
                self._long_poll_takes_tip = False
            else:
                _log.debug("waitfornewblock fails: asking every second instead", reason=error.message)
                self._long_poll_takes_tip = None

    async def _await_or_notice(self, waiting: asyncio.Future[object], tip: BlockRef) -> None:
        """bitcoind counts new blocks from when it begins to wait, which may be after one came: so look again beside."""
        for seconds in (0.0, 0.1, 1.0):
            await asyncio.wait([waiting], timeout=seconds)
            if waiting.done() or await self._best() != tip.hash:
                break
        else:
            await waiting
        if waiting.done():
            waiting.result()

    async def _best(self) -> bytes:
        best: str = await self._rpc.call("getbestblockhash")
        return bytes.fromhex(best)[::-1]


def _reachable(address: str, rpc_url: str) -> str:
    """bitcoind tells where it binds; a wildcard means: where its RPC is."""
    for wildcard in ("0.0.0.0", "[::]", "*"):
        if address.startswith(f"tcp://{wildcard}:"):
            host = urlsplit(rpc_url).hostname or "127.0.0.1"
            return address.replace(wildcard, f"[{host}]" if ":" in host else host, 1)
    return address
