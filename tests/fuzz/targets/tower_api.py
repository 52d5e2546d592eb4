"""gRPC requests to a tower that runs: anything that parses, unsigned or signed by its session's key."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from tests.fuzz.target import PATIENCE_SECONDS, Reader, target
from tests.tower_support import tower_config
from tests.unit.test_tower_intake import FakeSource
from wallet.bitcoin.secp import pubkey_of, sign
from watchtower.appointment import Appointment
from watchtower.messages import batch_digest, create_digest, request_digest
from watchtower.rpc.errors import Refusal
from watchtower.tower.daemon import Tower
from watchtower.tower.service import MODES, TowerServicer
from watchtower.v1 import tower_pb2

KEYS = [sha256(b"session %d" % number).digest() for number in range(4)]
(SERVICE,) = tower_pb2.DESCRIPTOR.services_by_name.values()
SMALL = {"GetSession": "get_session", "GetAppointment": "get_appointment", "DeleteSession": "delete_session"}


class Running(NamedTuple):
    """A tower, and what its server calls."""

    tower: Tower
    servicer: TowerServicer


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _running() -> Running:
    return _loop().run_until_complete(_start())


async def _start() -> Running:
    folder = Path(_folder().name)
    config = tower_config(folder, metrics="")
    tower = Tower(config, FakeSource())  # type: ignore[arg-type]
    await tower.start()
    await asyncio.wait_for(tower.watcher.synced_event.wait(), 20)
    identity = sha256(b"tower").digest(), tower.tower_id
    parts = (tower.sessions, tower.intake, tower.watcher)
    return Running(tower, TowerServicer(identity, "regtest", "1", *parts, lambda: bytes(32), lambda peer: None))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


class Context:
    """What the service asks of a call."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def _sign(tower_id: bytes, name: str, request: Any, secret: bytes) -> None:
    """As the session's owner would."""
    request.session_id = pubkey_of(secret)
    if name == "AddAppointments":
        batch = [Appointment(each.locator, each.blob) for each in request.appointments]
        request.signature = sign(secret, batch_digest(tower_id, request.session_id, batch))
        return
    request.time_seconds = time.time()
    if name == "CreateSession":
        mode = MODES.get(request.mode)
        if mode is not None:
            wanted = (request.appointments, request.bytes)
            numbers = (wanted, request.max_reward_permille, request.time_seconds)
            request.signature = sign(secret, create_digest(tower_id, request.session_id, mode, *numbers))
    else:
        locator = request.locator if name == "GetAppointment" else b""
        digest = request_digest(tower_id, request.session_id, SMALL[name], request.time_seconds, locator)  # type: ignore[arg-type]
        request.signature = sign(secret, digest)


def _seeds() -> Iterator[bytes]:
    create = tower_pb2.CreateSessionRequest(
        mode=tower_pb2.MODE_OWN, appointments=5, bytes=5_000, max_reward_permille=1000
    )
    batch = [tower_pb2.Appointment(locator=bytes((number,)) * 16, blob=bytes(400 + number)) for number in range(3)]
    requests = {
        "GetInfo": tower_pb2.GetInfoRequest(nonce=bytes(32)),
        "CreateSession": create,
        "AddAppointments": tower_pb2.AddAppointmentsRequest(appointments=batch),
        "GetAppointment": tower_pb2.GetAppointmentRequest(locator=bytes(16)),
        "GetSession": tower_pb2.GetSessionRequest(),
        "DeleteSession": tower_pb2.DeleteSessionRequest(),
    }
    steps = []
    for name, request in requests.items():
        index = [method.name for method in SERVICE.methods].index(name)
        body = request.SerializeToString()
        steps += [bytes((index, signed, 1)) + len(body).to_bytes(2, "big") + body for signed in (0, 1)]
    yield b"".join(steps)
    yield from steps
    yield steps[3] + steps[5] + steps[5] + steps[7] + steps[9] + steps[11] + steps[5]


@target("tower_grpc", _seeds, 4000)
def tower_grpc(data: bytes) -> None:
    """Requests one after another; what the tower counts stays what it holds."""
    _loop().run_until_complete(_play(_running(), Reader(data)))


async def _play(running: Running, reader: Reader) -> None:
    tower, servicer = running
    while reader.left:
        method = SERVICE.methods[reader.below(len(SERVICE.methods))]
        is_signed, secret = reader.below(2), KEYS[reader.below(len(KEYS))]
        try:
            request = getattr(tower_pb2, method.input_type.name).FromString(reader.chunk())
        except DecodeError:
            continue
        if is_signed and method.name != "GetInfo":
            _sign(tower.tower_id, method.name, request, secret)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await getattr(servicer, method.name)(request, Context())
        except Refusal as refusal:
            assert str(refusal)
        else:
            assert answer.SerializeToString() is not None
        sessions = tower.sessions
        assert 0 <= sessions.total_appointments <= len(KEYS) * sessions.policy.session_appointments
