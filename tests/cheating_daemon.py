"""`channeld`, but it keeps every state that its channels ever had, and goes back to one of them when it is told to: a
cheat. For tests of those who must not fall for it; it is not packaged, and nothing that is packaged knows of it.

It is the very daemon. A hook on its commits keeps the states, each with the peer's signatures on the commitment that
was ours then. Having gone back, the daemon believes in the old state: it publishes the old commitment, claims HTLCs
with its HTLC transactions, raises fees, and takes what is delayed when the delay is over, all by its own honest code.

It says on which port it listens for that ("cheats on port N"): one JSON object a line, one JSON answer a line.

{"do": "states", "channel_id": HEX}             [{"number": N, "local_msat": M, "incoming": I, "outgoing": O}, ...]
{"do": "hold", "channel_id": HEX}               HTLCs that come in over it are not answered from now on
{"do": "release", "channel_id": HEX}            those are fulfilled now, and others are answered again
{"do": "go back", "channel_id": HEX, "number": N}   the commitment that is published now, in wire form
{"do": "stages", "channel_id": HEX, "count": N} its HTLC transactions in wire form, as soon as there are so many
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from channeld.bolt.transactions import Htlc
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.state import Closing, Normal
from channeld.config import Config, load_config
from channeld.daemon import Daemon
from channeld.node.channels import Driver
from channeld.node.driver import NO_REACTION, Reaction
from channeld.node.interface import NodeError
from channeld.node.runtime import Runtime
from watchtower.rpc import logs
from watchtower.rpc.lock import locked

WAIT_SECONDS = 60.0


class Keeper:
    """Reads all channels' states after every commit, in the writer's thread."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self.states: dict[int, list[bytes]] = {}

    def before(self) -> None:
        """Nothing."""

    def after(self) -> None:
        """A commit is durable: whatever is new in it is kept."""
        if self._connection is None:
            self._connection = sqlite3.connect(self._database, check_same_thread=False)
        for channel_key, state in self._connection.execute("SELECT channel_key, state FROM channels WHERE NOT closed"):
            kept = self.states.setdefault(channel_key, [])
            if not kept or kept[-1] != state:
                kept.append(state)

    def of(self, channel_key: int) -> dict[int, Normal]:
        """By the number of our commitment: the last state that had it."""
        decoded = (machine.decode_state(state) for state in self.states.get(channel_key, []))
        return {state.commitments.local.index: state for state in decoded if isinstance(state, Normal)}


class Cheat:
    """What can be asked for."""

    def __init__(self, runtime: Runtime, keeper: Keeper) -> None:
        self._runtime = runtime
        self._keeper = keeper
        self._held: dict[bytes, list[Htlc]] = {}
        self._answer = runtime._switch.locked_in
        runtime._switch.locked_in = self._locked_in  # type: ignore[method-assign]
        self.commands: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "states": self.states,
            "hold": self.hold,
            "release": self.release,
            "go back": self.go_back,
            "stages": self.stages,
        }

    def _locked_in(self, driver: Driver, htlc: Htlc, must_fail: bool) -> Reaction:
        if driver.channel_id not in self._held:
            return self._answer(driver, htlc, must_fail)
        self._held[driver.channel_id].append(htlc)
        return NO_REACTION

    def _driver(self, asked: dict[str, Any]) -> Driver:
        driver = self._runtime.channels.by_id(bytes.fromhex(asked["channel_id"]))
        assert driver is not None
        return driver

    def _preimage(self, payment_hash: bytes) -> bytes | None:
        record = self._runtime.invoices.lookup(payment_hash)
        return None if record is None else record.payment_preimage

    async def states(self, asked: dict[str, Any]) -> list[dict[str, int]]:
        """What there is to go back to, the oldest first."""
        found = []
        for number, state in sorted(self._keeper.of(self._driver(asked).channel_key).items()):
            spec = state.commitments.local.spec
            outgoing = sum(htlc.offered for htlc in spec.htlcs.values())
            found.append(
                {
                    "number": number,
                    "local_msat": spec.to_local_msat,
                    "incoming": len(spec.htlcs) - outgoing,
                    "outgoing": outgoing,
                    "expiry": max((htlc.cltv_expiry for htlc in spec.htlcs.values()), default=0),
                }
            )
        return found

    async def hold(self, asked: dict[str, Any]) -> None:
        """Do not answer HTLCs."""
        self._held[self._driver(asked).channel_id] = []

    async def release(self, asked: dict[str, Any]) -> int:
        """Fulfil what was held. How many there were."""
        driver = self._driver(asked)
        held = self._held.pop(driver.channel_id)
        for htlc in held:
            preimage = self._preimage(htlc.payment_hash)
            assert preimage is not None
            await self._runtime.channels.command(driver, ev.FulfillHtlc(htlc.id, preimage))
        return len(held)

    async def go_back(self, asked: dict[str, Any]) -> str:
        """Believe in an old state, claim what its HTLCs can be claimed for, and close without the peer."""
        driver = self._driver(asked)
        old = self._keeper.of(driver.channel_key)[asked["number"]]
        await _until(lambda: not driver._busy)
        driver.link = None
        driver.state = old
        driver.post(ev.Disconnected())
        for htlc in old.commitments.local.spec.htlcs.values():
            preimage = None if htlc.offered else self._preimage(htlc.payment_hash)
            if preimage is not None:
                try:
                    await self._runtime.channels.command(driver, ev.FulfillHtlc(htlc.id, preimage))
                except NodeError:
                    pass  # the old state has claimed it already
        await self._runtime.channels.command(driver, ev.ForceClose("an old state"))
        assert isinstance(driver.state, Closing)
        return driver.state.local_tx.hex()

    async def stages(self, asked: dict[str, Any]) -> list[str]:
        """What its monitor made of the old commitment's HTLCs, wallet's coins for the fees included."""
        stored = self._runtime.monitor._stored
        channel_key = self._driver(asked).channel_key

        def made() -> list[str]:
            if channel_key not in stored:
                return []
            attempts = stored[channel_key].resolution.attempts
            return [attempt.raw.hex() for attempt in attempts if attempt.group in ("htlc", "presigned")]

        await _until(lambda: len(made()) >= asked["count"])
        return made()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        while line := await reader.readline():
            asked = json.loads(line)
            try:
                answer: dict[str, Any] = {"answer": await self.commands[asked["do"]](asked)}
            except Exception as error:  # the test hears of it, whatever it is
                answer = {"error": repr(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def run(config: Config) -> None:
    """The daemon's life, with the cheat beside it."""
    keeper = Keeper(config.paths.database)
    daemon = Daemon(config, keeper)
    try:
        await daemon.start()
        assert daemon.runtime is not None
        cheat = Cheat(daemon.runtime, keeper)
        server = await asyncio.start_server(cheat.serve, "127.0.0.1", 0)
        sys.stdout.write(f"cheats on port {server.sockets[0].getsockname()[1]}\n")
        async with server:
            await daemon.serve()
    finally:
        await daemon.stop()


if __name__ == "__main__":
    config = load_config(sys.argv[1:])
    with locked(config.paths.lock, "channeld"):
        logs.set_up(config.paths.log, config.log_level)
        asyncio.run(run(config))
