"""Watchtowers in the simulated world: the production tower on a database that outlives it, and the nodes' own
client half over calls that take a while and may get lost. Only gRPC and TLS are left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc

from tests.sim.network_chain import SimSource
from tests.sim.network_lives import Mortal
from tests.sim.network_loop import LIFE, Life, late_bound
from tests.sim.network_store import Database, SimStore
from wallet.bitcoin import Tx
from wallet.bitcoin.secp import pubkey_of
from watchtower.appointment import Mode
from watchtower.client.connection import Connection, TowerAway, TowerUri
from watchtower.client.pace import Pace
from watchtower.client.towers import Towers, TowersError
from watchtower.rpc import ERROR_KIND_METADATA
from watchtower.rpc.errors import to_status
from watchtower.tower import tables
from watchtower.tower.alerts import Alerts
from watchtower.tower.config import Config
from watchtower.tower.daemon import Tower
from watchtower.tower.sessions import Policy, Sessions
from watchtower.tower.status import StatusBoard
from watchtower.tower.watcher import Watcher
from watchtower.v1 import tower_pb2

if TYPE_CHECKING:
    from tests.sim.network_node import SimNode
    from tests.sim.network_world import World

PORT = 10029
CERTIFICATE_HASH = sha256(b"the certificates of all simulated towers").digest()
CALL_SECONDS = (0.001, 0.01, 0.1)
RESTART_SECONDS = (0.05, 1.0, 5.0)
_REQUESTS: dict[str, Any] = {
    "GetInfo": tower_pb2.GetInfoRequest,
    "CreateSession": tower_pb2.CreateSessionRequest,
    "AddAppointments": tower_pb2.AddAppointmentsRequest,
    "GetSession": tower_pb2.GetSessionRequest,
    "GetAppointment": tower_pb2.GetAppointmentRequest,
    "DeleteSession": tower_pb2.DeleteSessionRequest,
}
Answer = Callable[[Any], None]
"""Takes the response, or an exception."""

for _owner in (Alerts, Pace, Sessions, StatusBoard, Towers, Watcher):
    late_bound(_owner.__init__)
late_bound(Towers.open)


@cache
def _config() -> Config:
    return Config.model_validate({"datadir": Path("/nowhere"), "network": "regtest"})


@cache
def _policy() -> Policy:
    return _config().policy


@cache
def _secret(name: str) -> bytes:
    return sha256(f"tower {name}".encode()).digest()


def open_tables(engine: Any) -> None:
    """An empty database of a tower."""
    tables.open_database(engine, "regtest")


class _Process(Tower):
    """A tower's life: production code but for the database's file and the listening socket."""

    def __init__(self, sim: SimTower) -> None:
        super().__init__(_config(), None)
        self._sim = sim
        self.servicer: Any = None

    async def start(self) -> None:
        sim = self._sim
        await self.load(sim.store)
        identity = (_secret(sim.name), sim.tower_id)
        self.servicer = self._servicer(identity, lambda: CERTIFICATE_HASH)
        self._spawn(self.sessions.run())
        self._spawn(self._follow(sim.source))

    async def load(self, store: SimStore) -> None:
        """What a database knows."""
        sim = self._sim
        self.tower_id = sim.tower_id
        await self._build(store, sim.source, (_secret(sim.name), sim.tower_id), _policy())

    def _fail(self, reason: str) -> None:
        self._sim.world.problem(f"tower {self._sim.name} cannot go on: {reason}")


class SimTower(Mortal):
    """A tower through all its lives."""

    CRASHED_AT_COMMIT = "tower crashed at a commit"

    def __init__(self, world: World, name: str, database: Database | None = None) -> None:
        super().__init__(world, f"tower {name}", Database(database, open_tables))
        self.name = name
        self.tower_id = pubkey_of(_secret(name))
        self.process: _Process | None = None
        self.is_mute = False
        """Takes calls, but its answers get lost."""
        self.offered: set[bytes] = set()
        """Txids of the justice that it sent in any life."""
        self._calls: dict[asyncio.Future[Any], Life] = {}

    @property
    def uri(self) -> TowerUri:
        return TowerUri(self.tower_id, f"{self.name}:{PORT}")

    @property
    def up(self) -> bool:
        """Whether it takes calls."""
        return self.life.alive and self.process is not None and self.process.servicer is not None

    @property
    def running(self) -> _Process:
        assert self.process is not None, self.name
        return self.process

    # --- lives

    def _forget(self) -> None:
        self.process = None

    async def _start(self) -> None:
        world = self.world
        self._open_store()
        self.source = SimSource(world.chain, self.life, world.luck, self._offers)
        self.process = _Process(self)
        await self.process.start()

    def _died(self) -> None:
        for future, client in self._calls.items():
            self.world.loop.call_later(0.001, _give, future, _unavailable(), context=client.context)
        self._calls.clear()
        if not self.stays_down:
            delay = self.world.luck.dice.choice(RESTART_SECONDS)
            self.world.loop.call_later(delay, self.start_again, context=self.world.context)

    def start_again(self) -> None:
        """Unless it runs already."""
        if not self.life.alive and not self.stays_down:
            self.start()

    def _offers(self, tx: Tx) -> None:
        """Only what a revoked commitment in the chain deserves."""
        self.offered.add(tx.txid())
        cheats = {book.cheat_txid for book in self.world.books.values() if book.cheat_txid}
        if not any(txin.outpoint.txid in cheats for txin in tx.inputs):
            self.world.problem(f"tower {self.name} takes what is not of a revoked commitment")

    # --- calls

    def call(self, method: str, data: bytes, client: Life, future: asyncio.Future[Any]) -> None:
        """A request has arrived."""
        if not self.up:
            self._back(client, future, _unavailable())
            return
        self._calls[future] = client
        self.spawn(self._serve(method, data, client, future))

    async def _serve(self, method: str, data: bytes, client: Life, future: asyncio.Future[Any]) -> None:
        request = _REQUESTS[method].FromString(data)
        context = SimpleNamespace(peer=lambda: f"ipv4:{client.name}:1")
        answer: Any
        try:
            answer = (await getattr(self.running.servicer, method)(request, context)).SerializeToString()
            if method == "AddAppointments":
                self._has_on_disk(request)
        except Exception as error:
            status = to_status(error, method)
            if status.kind == "internal":
                self.world.problem(f"tower {self.name}, {method}: {error!r}")
            answer = _error(status.code, status.sentence, status.kind)
        self._calls.pop(future, None)
        if not self.is_mute:
            self._back(client, future, answer)

    def _has_on_disk(self, request: Any) -> None:
        """It confirms nothing that a crash could take away."""
        self.world.checked["confirmed appointments are on disk"] += 1
        for each in request.appointments:
            if not self.holds(each.locator, sha256(each.blob).digest()):
                self.world.problem(f"tower {self.name} confirms an appointment that is not on its disk")

    def _back(self, client: Life, future: asyncio.Future[Any], answer: Any) -> None:
        delay = self.world.luck.dice.choice(CALL_SECONDS)
        self.world.loop.call_later(delay, _give, future, answer, context=client.context)

    def holds(self, locator: bytes, blob_hash: bytes) -> bool:
        """Whether a blob is on its disk."""
        return any(sha256(blob).digest() == blob_hash for blob in self.blobs(locator))

    def blobs(self, locator: bytes) -> list[bytes]:
        """All that is on its disk under a locator."""
        return [blob for (blob,) in self.database.rows("SELECT blob FROM appointments WHERE locator=?", locator)]


async def restarted(tower: SimTower, store: SimStore) -> Tower:
    """Another process of the same tower, as it is right after reading its database."""
    process = _Process(tower)
    await process.load(store)
    return process


def _give(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _error(code: grpc.StatusCode, sentence: str, kind: str = "") -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata((ERROR_KIND_METADATA, kind)) if kind else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, sentence, None)


def _unavailable() -> grpc.aio.AioRpcError:
    return _error(grpc.StatusCode.UNAVAILABLE, "connection reset")


class _Stub:
    """What a gRPC channel gives a client: methods to call."""

    def __init__(self, tower: SimTower, life: Life) -> None:
        self._tower = tower
        self._life = life
        for method in _REQUESTS:
            setattr(self, method, partial(self._call, method))

    async def _call(self, method: str, request: Any, timeout: float, metadata: Sequence[Any]) -> Any:
        tower = self._tower
        loop = tower.world.loop
        future: asyncio.Future[Any] = loop.create_future()
        delay = tower.world.luck.dice.choice(CALL_SECONDS)
        data = request.SerializeToString()
        loop.call_later(delay, tower.call, method, data, self._life, future, context=tower.world.context)
        try:
            raw = await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "the tower does not answer") from None
        return _RESPONSES[method].FromString(raw)

    async def close(self, grace: float | None) -> None:
        """As a channel."""


_RESPONSES = {name: getattr(tower_pb2, f"{name}Response") for name in _REQUESTS}


def use_sim_towers(world: World) -> Callable[[], None]:
    """Clients reach the world's towers; returns what undoes that."""
    original = Connection._open

    async def _open(self: Connection) -> None:
        tower = world.towers.get(self.uri.address.rpartition(":")[0])
        await asyncio.sleep(world.luck.dice.choice(CALL_SECONDS))
        if tower is None or not tower.up:
            raise TowerAway(f"{self.uri.address} cannot be reached: Connection refused")
        life = LIFE.get()
        assert life is not None
        self._channel = self._stub = _Stub(tower, life)
        try:
            await self._identify(CERTIFICATE_HASH)
        except BaseException:
            await self.close()
            raise

    Connection._open = _open  # type: ignore[method-assign]

    def undo() -> None:
        Connection._open = original  # type: ignore[method-assign]

    return undo


# --- nodes and their towers ---------------------------------------------------------------------------------------


def hire(world: World, node: SimNode, name: str, mode: Mode) -> SimTower:
    """A node is told to use a tower, which is started if there was none of this name."""
    tower = world.towers.get(name)
    if tower is None:
        tower = world.towers[name] = SimTower(world, name)
        tower.start()
    if node.up:
        node.spawn(_hire(node, tower, mode))
    return tower


async def _hire(node: SimNode, tower: SimTower, mode: Mode) -> None:
    known = node.running.towers.all
    try:
        await known.add(tower.uri, mode)
    except TowersError:
        return  # it is used in the other mode


def backlog(node: SimNode) -> int:
    """Commitments that the node's towers lack, by what the node knows."""
    return sum(status.backlog for status in node.running.towers.all.statuses())


def confirmed(node: SimNode, channel_key: int, number: int) -> list[tuple[bytes, bytes, bytes]]:
    """By the node's disk: (tower id, locator, hash of the blob) of a commitment of the peer."""
    query = (
        "SELECT tower_id, locator, blob_hash FROM tower_receipts JOIN towers USING (tower_key) "
        "WHERE channel=? AND commitment=?"
    )
    rows = node.database.rows(query, channel_key.to_bytes(32, "big"), number)
    return cast("list[tuple[bytes, bytes, bytes]]", rows)


__all__ = ["SimTower", "backlog", "confirmed", "hire", "restarted", "use_sim_towers"]
