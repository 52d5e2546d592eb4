"""Sockets without a system: bytes arrive in order, later, and not all of them if the connection is cut."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from tests.sim.network_loop import LIFE, Life, Luck, SimLoop

CONNECT_SECONDS = 0.01
TICK_SECONDS = 1e-6


class End(asyncio.Transport):
    """One side's transport."""

    def __init__(self, network: Network, life: Life | None, peer_name: str) -> None:
        super().__init__()
        self.network = network
        self.life = life
        self.other: End
        self._protocol: asyncio.Protocol
        self._peer_name = peer_name
        self._waiting: deque[bytes | None] = deque()
        """Has arrived, but is held back: on the way by the network, or the protocol does not read. None: end."""
        self._under_way = 0
        self._last_arrival = 0.0
        self._lost = 0
        """So many chunks under way will never arrive."""
        self.latency = network.luck.dice.choice((0.001, 0.005, 0.02, 0.08))
        self.held = False
        self._broken = False
        self._reading = True
        self._closing = False
        self._ended = False

    # --- the transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self._peer_name, 9735) if name == "peername" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._call(0.0, self._hand_over)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The network takes everything."""

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing and not (self.life is not None and not self.life.alive):
            self.other.expect(bytes(data))

    def write_eof(self) -> None:
        if not self._closing:
            self.other.expect(None)

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.write_eof()
        self.end(None)

    def abort(self) -> None:
        if not self._ended:
            self.other.reset_by_peer()
        self.end(None)

    # --- the network

    def _call(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        context = self.life.context if self.life is not None else None
        self.network.loop.call_later(delay, callback, *args, context=context)

    def expect(self, data: bytes | None) -> None:
        """The other side wrote something."""
        if self._broken:
            return
        loop = self.network.loop
        jitter = self.network.luck.dice.random() * self.latency
        # In order: the loop does not say which of two timers comes first if both are due at once.
        self._last_arrival = max(loop.time() + self.latency + jitter, self._last_arrival + TICK_SECONDS)
        self._under_way += 1
        context = self.life.context if self.life is not None else None
        loop.call_at(self._last_arrival, self._arrive, data, context=context)

    def _arrive(self, data: bytes | None) -> None:
        self._under_way -= 1
        if self._under_way < self._lost:
            self._lost = self._under_way
            return
        self._waiting.append(data)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting and not self.held and not self._ended:
            if self._waiting[0] is None:
                self._waiting.popleft()
                self._protocol.eof_received()
                self.other.end_soon()
                self.end(None)
            elif self._reading:
                data = self._waiting.popleft()
                assert data is not None
                self._protocol.data_received(data)
            else:
                return

    def release(self) -> None:
        """What the network held back goes on."""
        self.held = False
        self._call(0.0, self._hand_over)

    def lose(self) -> None:
        """Of what is under way, only some arrives, and nothing after it; what was held back is lost, too."""
        self._broken = True
        if self.held:
            self._waiting.clear()
            self.held = False
        self._lost = self.network.luck.dice.randint(0, self._under_way)

    def reset_by_peer(self, delay: float = 0.0) -> None:
        """After what still arrives, the connection is gone."""
        loop = self.network.loop
        after = max(self._last_arrival - loop.time() + TICK_SECONDS, self.latency) + delay
        self._call(after, self.end, ConnectionResetError(errno.ECONNRESET, "connection reset by peer"))

    def end_soon(self) -> None:
        """The other side has read our end."""
        self._call(self.latency, self.end, None)

    def end(self, error: Exception | None) -> None:
        """The socket is gone; the protocol hears of it."""
        if self._ended:
            return
        self._ended = self._closing = True
        self.network.ends.pop(self, None)
        self._call(0.0, self._protocol.connection_lost, error)


class Server:
    """What `create_server` returns."""

    def __init__(self, network: Network, address: tuple[str, int]) -> None:
        self._network = network
        self.sockets = (_Bound(address),)

    def close(self) -> None:
        self._network.listeners.pop(self.sockets[0].address, None)

    async def wait_closed(self) -> None:
        """It is."""


class _Bound:
    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    def getsockname(self) -> tuple[str, int]:
        return self.address


class Network:
    """All connections. Each node listens under its own name as host."""

    def __init__(self, loop: SimLoop, luck: Luck) -> None:
        self.loop = loop
        self.luck = luck
        loop.network = self
        self.listeners: dict[tuple[str, int], tuple[Callable[[], Any], Life]] = {}
        self.ends: dict[End, None] = {}
        self.apart: set[frozenset[str]] = set()
        """Pairs of hosts between which no new connection comes about."""

    def listen(self, factory: Callable[[], Any], host: str, port: int) -> Server:
        life = LIFE.get()
        assert life is not None
        self.listeners[host, port] = (factory, life)
        return Server(self, (host, port))

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[End, Any]:
        await asyncio.sleep(CONNECT_SECONDS)
        life = LIFE.get()
        assert life is not None
        found = self.listeners.get((host, port))
        if found is None or not found[1].alive or frozenset((life.name, host)) in self.apart:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        accept, remote_life = found
        near, far = End(self, life, host), End(self, remote_life, life.name)
        near.other, far.other = far, near
        self.ends[near] = self.ends[far] = None
        protocol = factory()
        near.set_protocol(protocol)
        protocol.connection_made(near)

        def arrive() -> None:
            served = accept()
            far.set_protocol(served)
            served.connection_made(far)

        far._protocol = asyncio.Protocol()
        far._call(0.0, arrive)
        return near, protocol

    def between(self, one: str, other: str) -> list[End]:
        """Both ends of all connections between two hosts."""
        names = {one, other}
        return [e for e in self.ends if e.life is not None and {e.life.name, e._peer_name} == names]

    def cut(self, one: str, other: str) -> int:
        """The connections between two hosts break: some of what is under way is lost, and each side notices in its own
        time. How many there were."""
        ends = self.between(one, other)
        for end in ends:
            end.lose()
            end.reset_by_peer(self.luck.dice.choice((0.0, 0.0, 0.05, 1.0)))
        return len(ends) // 2

    def crashed(self, life: Life) -> None:
        """A process is gone: its sockets are closed by the system."""
        for end in [e for e in self.ends if e.life is life]:
            self.ends.pop(end)
            end._ended = end._closing = True
            if end.other in self.ends:
                end.other.lose()
                end.other.reset_by_peer()
        for address in [a for a, (_, owner) in self.listeners.items() if owner is life]:
            del self.listeners[address]
