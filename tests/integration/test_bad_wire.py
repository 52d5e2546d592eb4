"""What strangers send to a daemon's port, before and after the handshake: it lives on, and its channel still pays.

BOLT 8 ends a connection at the first act or frame that is not authentic, without a word; BOLT 1 says which messages
are ignored, and which end the connection after a `warning`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from channeld.bolt.messages import (
    ChannelReady,
    ChannelReestablish,
    ClosingSigned,
    CommitmentSigned,
    ErrorMessage,
    FundingCreated,
    FundingSigned,
    Init,
    Message,
    Ping,
    Pong,
    RevokeAndAck,
    Shutdown,
    UpdateAddHtlc,
    UpdateFailHtlc,
    UpdateFailMalformedHtlc,
    UpdateFee,
    UpdateFulfillHtlc,
    WarningMessage,
    decode,
    encode,
)
from channeld.bolt.noise import InitiatorHandshake, Session
from channeld.bolt.primitives import MAX_MESSAGE_BYTES
from channeld.lab import DaemonProcess
from channeld.node import transport
from channeld.v1 import peers_pb2
from tests.bad_input_support import Net, net_in
from wallet.bitcoin.address import MAINNET, REGTEST
from wallet.bitcoin.secp import pubkey_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 60
REQUIRED_UNKNOWN = (1 << 200).to_bytes(26, "big")
FEATURES = b"\x02\xaa\xaa\xa2"
POINT = pubkey_of(b"\x11" * 32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Net]:
    async with net_in(tmp_path_factory.mktemp("lab")) as made:
        yield made


class RawPeer:
    """A TCP connection to a daemon on which a test writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def call(cls, daemon: DaemonProcess) -> RawPeer:
        host, _, port = daemon.address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def shake_hands(self, node_id: bytes) -> Session:
        """All three acts, as they should be."""
        handshake = InitiatorHandshake(os.urandom(32), os.urandom(32), node_id)
        self.writer.write(handshake.start())
        act_two = await asyncio.wait_for(self.reader.readexactly(handshake.expected_bytes), SECONDS)
        self.writer.write(handshake.receive(act_two))
        assert handshake.session is not None
        return handshake.session

    async def rest(self) -> bytes:
        """What still comes until the daemon ends the connection."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    def close(self) -> None:
        self.writer.transport.abort()


class Stranger:
    """A peer that says whatever a test wants, over a good connection."""

    def __init__(self, connection: transport.Connection) -> None:
        self._connection = connection
        self._heard: asyncio.Queue[Message] = asyncio.Queue()
        self._closed = asyncio.Event()
        connection.on_close(lambda _: self._closed.set())
        connection.set_receiver(lambda data: self._heard.put_nowait(decode(data)))

    @classmethod
    async def meet(cls, daemon: DaemonProcess, init: Message | None = None) -> Stranger:
        """`init` is its first message."""
        host, _, port = daemon.address.rpartition(":")
        stranger = cls(await transport.connect(host, int(port), os.urandom(32), daemon.node_id))
        stranger.say(init or Init(b"", FEATURES, networks=(REGTEST.chain_hash,)))
        return stranger

    def say(self, *messages: Message) -> None:
        for message in messages:
            self.say_raw(encode(message))

    def say_raw(self, data: bytes) -> None:
        self._connection.send(data)

    async def hears(self, fits: Callable[[Message], bool]) -> Message:
        async with asyncio.timeout(SECONDS):
            while not fits(message := await self._heard.get()):
                pass
        return message

    async def is_answered(self) -> None:
        """The daemon has read everything so far, and goes on with this connection."""
        size = 1 + os.urandom(1)[0]
        self.say(Ping(size, b""))
        await self.hears(lambda message: isinstance(message, Pong) and len(message.ignored) == size)
        assert not self._closed.is_set()

    async def is_warned_and_dropped(self, words: str) -> None:
        warning = await self.hears(lambda message: isinstance(message, WarningMessage))
        assert isinstance(warning, WarningMessage)
        assert words in warning.data.decode()
        await asyncio.wait_for(self._closed.wait(), SECONDS)

    async def is_dropped_without_a_word(self) -> None:
        """BOLT 1, "MUST wait to receive `init` before sending any other messages." """
        await asyncio.wait_for(self._closed.wait(), SECONDS)
        heard = [self._heard.get_nowait() for _ in range(self._heard.qsize())]
        assert [type(message) for message in heard] == [Init]

    def close(self) -> None:
        self._connection.close()


def messages_of(channel_id: bytes) -> list[Message]:
    """Each kind of message that is about a channel, for this one."""
    return [
        ChannelReady(channel_id, POINT),
        UpdateAddHtlc(channel_id, 0, 1_000, bytes(32), 500, bytes(1366)),
        UpdateFulfillHtlc(channel_id, 0, bytes(32)),
        UpdateFailHtlc(channel_id, 0, bytes(292)),
        UpdateFailMalformedHtlc(channel_id, 0, bytes(32), 0x8000 | 0x4000 | 5),
        UpdateFee(channel_id, 100_000),
        CommitmentSigned(channel_id, bytes(64), ()),
        RevokeAndAck(channel_id, bytes(32), POINT),
        FundingCreated(channel_id, bytes(32), 0, bytes(64)),
        FundingSigned(channel_id, bytes(64)),
        Shutdown(channel_id, b"\x00\x14" + bytes(20)),
        ClosingSigned(channel_id, 300, bytes(64)),
        WarningMessage(channel_id, b"careful"),
        ErrorMessage(channel_id, b"this channel failed"),
    ]


# --- before the handshake is done ---------------------------------------------------------------------------------


async def test_garbage_instead_of_a_handshake(net: Net) -> None:
    async with net.nothing_lost():
        for garbage in (
            bytes(50),
            b"\x00\x02" + b"\xff" * 48,
            os.urandom(50),
            os.urandom(70_000),
            b"GET / HTTP/1.1\r\nHost: channeld\r\nUser-Agent: somebody\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        ):
            peer = await RawPeer.call(net.bob)
            peer.writer.write(garbage)
            assert await peer.rest() == b"", garbage[:20]
            peer.close()


async def test_wrong_handshakes(net: Net) -> None:
    async with net.nothing_lost():
        good = InitiatorHandshake(os.urandom(32), os.urandom(32), net.bob.node_id).start()
        for_another = InitiatorHandshake(os.urandom(32), os.urandom(32), net.alice.node_id).start()
        for act_one in (b"\x01" + good[1:], good[:-1] + bytes([good[-1] ^ 1]), for_another):
            peer = await RawPeer.call(net.bob)
            peer.writer.write(act_one)
            assert await peer.rest() == b""
            peer.close()
        for place in (0, 1, 65):
            peer = await RawPeer.call(net.bob)
            handshake = InitiatorHandshake(os.urandom(32), os.urandom(32), net.bob.node_id)
            peer.writer.write(handshake.start())
            act_three = bytearray(handshake.receive(await asyncio.wait_for(peer.reader.readexactly(50), SECONDS)))
            act_three[place] ^= 1
            peer.writer.write(act_three)
            assert await peer.rest() == b""
            peer.close()
        assert (await net.bob.info()).num_peers == 1


async def test_truncated_handshakes(net: Net) -> None:
    async with net.nothing_lost():
        for size in (0, 1, 49):
            act_one = InitiatorHandshake(os.urandom(32), os.urandom(32), net.bob.node_id).start()
            peer = await RawPeer.call(net.bob)
            peer.writer.write(act_one[:size])
            peer.writer.write_eof()
            assert await peer.rest() == b""
            peer.close()


async def test_half_open_connections_do_not_keep_an_honest_peer_out(net: Net) -> None:
    """More of them than the daemon lets wait: silent ones, ones that stop in an act, ones that never say `init`."""
    async with net.nothing_lost():
        peers = [await RawPeer.call(net.bob) for _ in range(transport.MAX_HANDSHAKES + 20)]
        for peer in peers[::2]:
            peer.writer.write(b"\x00" + os.urandom(20))
        for peer in peers[:20]:
            assert await peer.rest() == b""  # who has kept the daemon waiting longest had to go
        silent = [await RawPeer.call(net.bob) for _ in range(10)]
        for peer in silent:
            await peer.shake_hands(net.bob.node_id)
        request = peers_pb2.DisconnectPeerRequest(node_id=net.bob.node_id, force=True)
        await net.alice.client.peers.Disconnect(request)
        await net.alice.connect(net.bob)
        await net.alice.wait_channel(net.channel_id)
        assert (await net.bob.info()).num_peers == 1
        for peer in [*peers, *silent]:
            peer.close()


# --- frames -------------------------------------------------------------------------------------------------------


async def test_frames_that_are_not_authentic(net: Net) -> None:
    async with net.nothing_lost():
        for place in (0, 17, 18, -1):
            peer = await RawPeer.call(net.bob)
            session = await peer.shake_hands(net.bob.node_id)
            frame = bytearray(session.encrypter.encrypt_message(encode(Init(b"", FEATURES))))
            frame[place] ^= 1
            peer.writer.write(frame)
            answered = session.decrypter.receive(await peer.rest())
            assert all(isinstance(decode(data), Init) for data in answered)  # nothing but what it says to everyone
            peer.close()


async def test_truncated_frames(net: Net) -> None:
    async with net.nothing_lost():
        for size in (1, 17, 18, 19, -1):
            peer = await RawPeer.call(net.bob)
            session = await peer.shake_hands(net.bob.node_id)
            peer.writer.write(session.encrypter.encrypt_message(encode(Init(b"", FEATURES)))[:size])
            peer.writer.write_eof()
            answered = session.decrypter.receive(await peer.rest())
            assert all(isinstance(decode(data), Init) for data in answered)
            peer.close()


async def test_oversized_frames(net: Net) -> None:
    """The length has two bytes, so that no frame is larger than a message may be; the largest are read and let go."""
    async with net.nothing_lost():
        stranger = await Stranger.meet(net.bob)
        for _ in range(20):
            stranger.say_raw((40_001).to_bytes(2, "big") + bytes(MAX_MESSAGE_BYTES - 2))
        stranger.say(Ping(65_535, bytes(65_000)))  # asks for more than a pong can hold: no answer (BOLT 1)
        await stranger.is_answered()
        stranger.close()
        raw = await RawPeer.call(net.bob)
        session = await raw.shake_hands(net.bob.node_id)
        raw.writer.write(session.encrypter.encrypt_message(encode(Init(b"", FEATURES))))
        header = session.encrypter.cipher.encrypt(b"\xff\xff")
        raw.writer.write(header + os.urandom(MAX_MESSAGE_BYTES + 16 + 100_000))
        await raw.rest()
        raw.close()


# --- messages -----------------------------------------------------------------------------------------------------


async def test_garbage_messages(net: Net) -> None:
    async with net.nothing_lost():
        for data in (b"", b"\x00", b"\x00\x80" + bytes(10), b"\x00\x20" + bytes(100), b"\x00\x88" + os.urandom(31)):
            stranger = await Stranger.meet(net.bob)
            stranger.say_raw(data)
            await stranger.is_warned_and_dropped("cannot be read")
        assert (await net.bob.info()).num_peers == 1


async def test_unknown_messages(net: Net) -> None:
    async with net.nothing_lost():
        even = await Stranger.meet(net.bob)
        even.say_raw((40_000).to_bytes(2, "big") + os.urandom(100))
        await even.is_warned_and_dropped("40000 is even")
        odd = await Stranger.meet(net.bob)
        for type_ in (40_001, 65_535, 999):
            odd.say_raw(type_.to_bytes(2, "big") + os.urandom(100))
        await odd.is_answered()
        odd.close()


@pytest.mark.parametrize("whose", ["unknown", "alice's"])
async def test_messages_for_channels_that_are_not_this_peers(net: Net, whose: str) -> None:
    """For Alice's channel most of all: what a stranger says of it, an `error` included, is nothing to it."""
    async with net.nothing_lost():
        channel_id = net.channel_id if whose == "alice's" else os.urandom(32)
        for daemon in (net.alice, net.bob):
            stranger = await Stranger.meet(daemon)
            # BOLT 1, "SHOULD send `error` with the unknown `channel_id` in reply to messages of type `32`-`255` related
            # to unknown channels."
            for message in (*messages_of(channel_id), ChannelReestablish(channel_id, 1, 0, bytes(32), POINT)):
                stranger.say(message)
                if isinstance(message, WarningMessage | ErrorMessage):
                    await stranger.is_answered()
                    continue
                answer = await stranger.hears(lambda message: isinstance(message, ErrorMessage))
                assert isinstance(answer, ErrorMessage)
                assert answer.channel_id == channel_id
                assert b"unknown" in answer.data
            stranger.say(ErrorMessage(bytes(32), b"all is lost"))
            await stranger.is_answered()
            stranger.close()
        for daemon in (net.alice, net.bob):
            (channel,) = await daemon.channels()
            assert channel.active


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (Init(b"", REQUIRED_UNKNOWN, networks=(REGTEST.chain_hash,)), "requires"),
        (Init(REQUIRED_UNKNOWN, b"", networks=(REGTEST.chain_hash,)), "requires"),
        (Init(b"", FEATURES, networks=(MAINNET.chain_hash,)), "no blockchain in common"),
    ],
)
async def test_a_wrong_init(net: Net, first: Message, words: str) -> None:
    async with net.nothing_lost():
        stranger = await Stranger.meet(net.bob, first)
        await stranger.is_warned_and_dropped(words)
        assert (await net.bob.info()).num_peers == 1


@pytest.mark.parametrize("first", [Ping(1, b""), UpdateFee(bytes(32), 253)])
async def test_another_first_message_than_init(net: Net, first: Message) -> None:
    async with net.nothing_lost():
        stranger = await Stranger.meet(net.bob, first)
        await stranger.is_dropped_without_a_word()
        assert (await net.bob.info()).num_peers == 1
