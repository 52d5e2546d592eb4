"""Strangers that flood a node's port, as a process of their own: `python -m tests.flooder NODE_ID@HOST:PORT KIND...`

KIND is a flood's name, with a number of connections behind it if it is not to be the usual one (`pings=20`). It says
"flooding" when all connections of all floods are under way, goes on until SIGTERM, and then prints a JSON object: for
each flood the messages (or connections) that it sent, and the connections that the node refused or ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from channeld.bolt.features import ChannelType, encode_features
from channeld.bolt.messages import (
    ChannelUpdate,
    ErrorMessage,
    Init,
    NodeAnnouncement,
    OnionMessage,
    OpenChannel,
    Ping,
    QueryChannelRange,
    UpdateFee,
    encode,
)
from channeld.bolt.noise import InitiatorHandshake, Session
from channeld.node.features import LOCAL_FEATURES
from wallet.bitcoin.address import REGTEST
from wallet.bitcoin.secp import pubkey_of

FEATURES = encode_features(LOCAL_FEATURES)
POINT = pubkey_of(b"\x11" * 32)
BATCH = 50
"""Messages between two looks at whether the node still reads."""
AGAIN_SECONDS = 0.02
"""Before a connection is tried again that did not come about, or was ended at once."""


class Victim(NamedTuple):
    """Whom to flood."""

    node_id: bytes
    host: str
    port: int


class Tally:
    """What one flood has done so far."""

    def __init__(self, connections: int) -> None:
        self.connections = connections
        self.sent = 0
        self.ended = 0
        self.begun = asyncio.Event()


class Line:
    """A connection after the handshake and `init`, whose frames are written as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session) -> None:
        self.reader = reader
        self.writer = writer
        self._encrypter = session.encrypter

    @classmethod
    async def open(cls, victim: Victim) -> Line:
        """By a node that nobody has heard of. Raises OSError, asyncio.IncompleteReadError."""
        reader, writer = await asyncio.open_connection(victim.host, victim.port)
        try:
            handshake = InitiatorHandshake(os.urandom(32), os.urandom(32), victim.node_id)
            writer.write(handshake.start())
            writer.write(handshake.receive(await reader.readexactly(handshake.expected_bytes)))
        except BaseException:
            writer.transport.abort()
            raise
        assert handshake.session is not None
        line = cls(reader, writer, handshake.session)
        line.say(encode(Init(b"", FEATURES, networks=(REGTEST.chain_hash,))))
        return line

    def say(self, message: bytes) -> None:
        """Without looking whether it can be sent."""
        self.writer.write(self._encrypter.encrypt_message(message))

    async def read_for_ever(self) -> None:
        """Take in what comes, and let it go. Raises OSError."""
        while await self.reader.read(1 << 18):
            pass

    def close(self) -> None:
        """At once."""
        self.writer.transport.abort()


Flood = Callable[[Victim, Tally], Awaitable[None]]


async def _again(one: Flood, victim: Victim, tally: Tally) -> None:
    """One connection after another, whenever the last one was ended."""
    while True:
        try:
            await one(victim, tally)
        except (OSError, asyncio.IncompleteReadError):
            pass
        tally.ended += 1
        await asyncio.sleep(AGAIN_SECONDS)


# --- before the handshake is done


async def half_open(victim: Victim, tally: Tally) -> None:
    """Connects, begins the handshake or not, and waits."""
    reader, writer = await asyncio.open_connection(victim.host, victim.port)
    tally.sent += 1
    if tally.sent % 2:
        writer.write(b"\x00" + os.urandom(20))
    if tally.sent >= tally.connections:
        tally.begun.set()
    try:
        await reader.read()
    finally:
        writer.transport.abort()


async def bad_handshakes(victim: Victim, tally: Tally) -> None:
    """Acts that look right: each costs the node the elliptic curve."""
    for _ in range(BATCH):
        reader, writer = await asyncio.open_connection(victim.host, victim.port)
        writer.write(b"\x00" + pubkey_of(os.urandom(32)) + os.urandom(16))
        tally.sent += 1
        with suppress(ConnectionResetError):
            await reader.read()
        writer.transport.abort()
        tally.begun.set()


async def newcomers(victim: Victim, tally: Tally) -> None:
    """A new node each time, which says hello and something unreadable."""
    line = await Line.open(victim)
    line.say(b"\x00\x80" + bytes(10))
    tally.sent += 1
    tally.begun.set()
    try:
        await line.read_for_ever()
    finally:
        line.close()


# --- messages at full speed


def _storm(make: Callable[[], Iterator[bytes]], *, reads: bool = True) -> Flood:
    """All that the socket takes. Whoever does not read (`reads`) writes on, until the node gives up."""

    async def flood(victim: Victim, tally: Tally) -> None:
        line = await Line.open(victim)
        reading = asyncio.ensure_future(line.read_for_ever()) if reads else None
        try:
            messages = make()
            while reading is None or not reading.done():
                for _ in range(BATCH):
                    line.say(next(messages))
                await line.writer.drain()
                tally.sent += BATCH
                tally.begun.set()
                await asyncio.sleep(0)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            line.close()

    return flood


def _unknown() -> Iterator[bytes]:
    """The least that a message can be; odd, so that it must be ignored."""
    while True:
        yield b"\xff\xff"


def _pings() -> Iterator[bytes]:
    """Four bytes that ask for 64 kB."""
    while True:
        yield encode(Ping(65_531, b""))


def _about_channels() -> Iterator[bytes]:
    """Channels that are not there: each message is answered with an `error`."""
    while True:
        yield encode(UpdateFee(os.urandom(32), 1000))


def _errors() -> Iterator[bytes]:
    """Each is an event, and a line in the log."""
    while True:
        yield encode(ErrorMessage(os.urandom(32), b"all is lost" * 30))


def _updates() -> Iterator[bytes]:
    """Of channels that nobody knows, with signatures that are none."""
    rest = (REGTEST.chain_hash,)
    while True:
        scid = 1 << 40 | int.from_bytes(os.urandom(5))
        timestamp = 1_900_000_000 - 7 * 24 * 3600
        yield encode(ChannelUpdate(os.urandom(64), *rest, scid, timestamp, 1, 0, 40, 1, 1000, 100, 990_000_000))


def _nodes() -> Iterator[bytes]:
    while True:
        node_id = b"\x02" + os.urandom(32)
        yield encode(NodeAnnouncement(os.urandom(64), b"", 1_800_000_000, node_id, bytes(3), bytes(32), b""))


def _announcements() -> Iterator[bytes]:
    """Four keys and four signatures, all wrong: they have to be verified to be refused."""
    keys = sorted(pubkey_of(bytes((number,)) * 32) for number in range(1, 5))
    while True:
        scid = 1 << 40 | int.from_bytes(os.urandom(5))
        body = b"\x00\x00" + REGTEST.chain_hash + scid.to_bytes(8) + b"".join(keys)
        yield b"\x01\x00" + b"".join(b"\x01" + os.urandom(31) + b"\x01" + os.urandom(31) for _ in range(4)) + body


def _queries() -> Iterator[bytes]:
    while True:
        yield encode(QueryChannelRange(REGTEST.chain_hash, 0, 0xFFFF_FFFF, 3))


def _onion_messages() -> Iterator[bytes]:
    while True:
        yield encode(OnionMessage(POINT, b"\x00" + POINT + os.urandom(1332)))


# --- channels that will never be


def _opening() -> OpenChannel:
    return OpenChannel(
        chain_hash=REGTEST.chain_hash,
        temporary_channel_id=os.urandom(32),
        funding_satoshis=1_000_000,
        push_msat=0,
        dust_limit_satoshis=354,
        max_htlc_value_in_flight_msat=1_000_000_000,
        channel_reserve_satoshis=10_000,
        htlc_minimum_msat=1,
        feerate_per_kw=1000,
        to_self_delay=144,
        max_accepted_htlcs=483,
        funding_pubkey=POINT,
        revocation_basepoint=POINT,
        payment_basepoint=POINT,
        delayed_payment_basepoint=POINT,
        htlc_basepoint=POINT,
        first_per_commitment_point=POINT,
        channel_flags=0,
        upfront_shutdown_script=b"",
        channel_type=ChannelType(anchors=True).to_bytes(),
    )


async def openings(victim: Victim, tally: Tally) -> None:
    """A new node each time that proposes channels, stays, and waits for more to come of it than it will do itself."""
    line = await Line.open(victim)
    try:
        for _ in range(4):
            line.say(encode(_opening()))
            tally.sent += 1
        if tally.sent >= 4 * tally.connections:
            tally.begun.set()
        await line.read_for_ever()
    finally:
        line.close()


FLOODS: dict[str, tuple[Flood, int]] = {
    "half_open": (half_open, 1000),
    "bad_handshakes": (bad_handshakes, 20),
    "newcomers": (newcomers, 20),
    "unknown": (_storm(_unknown), 4),
    "pings": (_storm(_pings), 4),
    "deaf": (_storm(_pings, reads=False), 30),
    "about_channels": (_storm(_about_channels), 4),
    "errors": (_storm(_errors), 4),
    "updates": (_storm(_updates), 4),
    "announcements": (_storm(_announcements), 4),
    "nodes": (_storm(_nodes), 4),
    "queries": (_storm(_queries), 4),
    "onion_messages": (_storm(_onion_messages), 4),
    "openings": (openings, 250),
}
"""Each with its usual number of connections."""


async def flood(victim: Victim, kinds: list[tuple[str, int]]) -> None:
    """Until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    tallies = {kind: Tally(count) for kind, count in kinds}
    tasks = [
        asyncio.create_task(_again(FLOODS[kind][0], victim, tallies[kind]))
        for kind, count in kinds
        for _ in range(count)
    ]
    waiting = asyncio.ensure_future(stopped.wait())
    begun = asyncio.ensure_future(asyncio.gather(*(tally.begun.wait() for tally in tallies.values())))
    await asyncio.wait((waiting, begun), return_when=asyncio.FIRST_COMPLETED)
    print("flooding", flush=True)
    await waiting
    begun.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, begun, return_exceptions=True)
    print(json.dumps({kind: {"sent": tally.sent, "ended": tally.ended} for kind, tally in tallies.items()}), flush=True)


def main() -> None:
    """The command line."""
    node, *names = sys.argv[1:]
    node_id, _, address = node.partition("@")
    host, _, port = address.rpartition(":")
    kinds = []
    for name in names:
        kind, _, count = name.partition("=")
        kinds.append((kind, int(count) if count else FLOODS[kind][1]))
    asyncio.run(flood(Victim(bytes.fromhex(node_id), host, int(port)), kinds))


if __name__ == "__main__":
    main()
