"""Encrypted connections over real sockets: messages, back-pressure, closing, and strangers who misbehave."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from coincurve import PrivateKey

from channeld.bolt.noise import InitiatorHandshake
from channeld.node import transport, turns
from channeld.node.transport import Connection, ConnectionClosed, Listener, TransportError, connect, listen

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.:DeprecationWarning")

ALICE, BOB = b"\x11" * 32, b"\x21" * 32
ALICE_ID, BOB_ID = (PrivateKey(key).public_key.format() for key in (ALICE, BOB))


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Peer:
    """A connection whose messages and end can be waited for."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        connection.on_close(self.closed.set_result)
        connection.set_receiver(self.inbox.put_nowait)

    async def receive(self) -> bytes:
        return await asyncio.wait_for(self.inbox.get(), 60)

    async def reason(self) -> str:
        return await asyncio.wait_for(asyncio.shield(self.closed), 60)


class Server:
    """Bob, listening; each connection that comes is put into a queue."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self.listener: Listener

    async def dial(self, key: bytes = ALICE) -> tuple[Connection, Connection]:
        """Both ends of a new connection, ours first."""
        ours = await connect("127.0.0.1", self.listener.port, key, BOB_ID)
        return ours, await asyncio.wait_for(self.accepted.get(), 60)

    async def pair(self) -> tuple[Peer, Peer]:
        ours, theirs = await self.dial()
        return Peer(ours), Peer(theirs)

    def raw_socket(self) -> socket.socket:
        """A blocking socket that knows nothing of BOLT 8."""
        return socket.create_connection(("127.0.0.1", self.listener.port), timeout=10)

    async def check_alive(self) -> None:
        alice, bob = await self.pair()
        alice.connection.send(b"still there?")
        assert await bob.receive() == b"still there?"
        alice.connection.close()
        await bob.reason()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    made.listener = await listen("127.0.0.1", 0, BOB, made.accepted.put_nowait)
    yield made
    await made.listener.close()


async def read_to_end(sock: socket.socket) -> bytes:
    """What comes until the other side ends the connection; a reset is an end as well."""

    def read() -> bytes:
        data = b""
        try:
            while chunk := sock.recv(4096):
                data += chunk
        except ConnectionResetError:
            pass
        return data

    with sock:
        return await asyncio.to_thread(read)


# --- messages -----------------------------------------------------------------------------------------------------


async def test_both_sides_talk_and_know_each_other(server: Server) -> None:
    alice, bob = await server.pair()
    assert alice.connection.remote_node_id == BOB_ID
    assert bob.connection.remote_node_id == ALICE_ID
    assert (alice.connection.inbound, bob.connection.inbound) == (False, True)
    assert bob.connection.remote_address[0] == "127.0.0.1"
    messages = [bytes([number % 256]) * (number * 7 % 3000) for number in range(1500)]
    for message in messages:
        alice.connection.send(message)
        bob.connection.send(message[::-1])
    assert [await bob.receive() for _ in messages] == messages
    assert [await alice.receive() for _ in messages] == [message[::-1] for message in messages]


async def test_what_is_sent_in_one_turn_is_written_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = await server.dial()
    bob = Peer(theirs)
    written: list[int] = []
    real = ours._transport

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def write(self, data: bytes) -> None:
            written.append(len(data))
            real.write(data)

    monkeypatch.setattr(ours, "_transport", Spy())
    for _ in range(10):
        ours.send(bytes(100))
    assert not written
    for _ in range(10):
        assert await bob.receive() == bytes(100)
    assert written == [10 * (18 + 100 + 16)]


async def test_messages_that_came_with_the_handshake_wait_for_the_receiver(server: Server) -> None:
    ours, theirs = await server.dial()
    ours.send(b"first")
    ours.send(b"second")
    marker = await server.dial(b"\x13" * 32)  # a later connection is through, so what came before has arrived
    assert marker[1].remote_node_id == PrivateKey(b"\x13" * 32).public_key.format()
    bob = Peer(theirs)
    assert [await bob.receive(), await bob.receive()] == [b"first", b"second"]


async def test_handshake_and_first_message_in_one_segment(server: Server) -> None:
    with server.raw_socket() as sock:
        handshake = InitiatorHandshake(ALICE, b"\x12" * 32, BOB_ID)
        sock.sendall(handshake.start())
        act_two = await asyncio.to_thread(sock.recv, 50)
        act_three = handshake.receive(act_two)
        assert handshake.session is not None
        sock.sendall(act_three + handshake.session.encrypter.encrypt_message(b"early bird"))
        bob = Peer(await asyncio.wait_for(server.accepted.get(), 60))
        assert await bob.receive() == b"early bird"
        bob.connection.send(b"worm")
        frame = await asyncio.to_thread(sock.recv, 1000)
        assert handshake.session.decrypter.receive(frame) == [b"worm"]


async def test_handshake_byte_by_byte(server: Server) -> None:
    with server.raw_socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handshake = InitiatorHandshake(ALICE, b"\x12" * 32, BOB_ID)
        for byte in handshake.start():
            await asyncio.to_thread(sock.sendall, bytes((byte,)))
        for byte in handshake.receive(await asyncio.to_thread(sock.recv, 50)):
            await asyncio.to_thread(sock.sendall, bytes((byte,)))
        theirs = await asyncio.wait_for(server.accepted.get(), 60)
        assert theirs.remote_node_id == ALICE_ID


async def test_small_messages_are_not_held_back(server: Server) -> None:
    for connection in await server.dial():
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_messages_of_any_size_up_to_the_limit(server: Server) -> None:
    alice, bob = await server.pair()
    for size in (0, 1, 2, 65534, 65535):
        alice.connection.send(bytes(size))
        assert await bob.receive() == bytes(size)
    with pytest.raises(ValueError, match="65535"):
        alice.connection.send(bytes(65536))
    alice.connection.send(b"after")
    assert await bob.receive() == b"after"


# --- back-pressure ------------------------------------------------------------------------------------------------


async def test_a_paused_receiver_gets_nothing_and_then_everything(server: Server) -> None:
    ours, theirs = await server.dial()
    received: list[bytes] = []
    pauses: asyncio.Queue[int] = asyncio.Queue()
    done = asyncio.Event()

    def receive(message: bytes) -> None:
        received.append(message)
        if len(received) % 10 == 0:
            theirs.pause_receiving()
            pauses.put_nowait(len(received))
        if message == b"end":
            done.set()

    theirs.set_receiver(receive)
    for number in range(95):
        ours.send(number.to_bytes(2, "big"))
    ours.send(b"end")
    for count in range(10, 100, 10):
        assert await asyncio.wait_for(pauses.get(), 60) == count
        assert len(received) == count, "nothing comes while it is paused"
        theirs.resume_receiving()
    await asyncio.wait_for(done.wait(), 60)
    assert received == [*(number.to_bytes(2, "big") for number in range(95)), b"end"]


async def test_senders_of_bulk_data_wait_for_slow_readers(server: Server) -> None:
    ours, theirs = await server.dial()
    count = 0
    chunk = bytes(60_000)
    while not ours.is_congested:
        ours.send(chunk)
        count += 1
        await asyncio.sleep(0)
        assert count < 2000, "somewhere it has to end: nobody reads"
    draining = asyncio.ensure_future(ours.drain())
    bob = Peer(theirs)
    for _ in range(count):
        assert await bob.receive() == chunk
    await asyncio.wait_for(draining, 60)
    assert not ours.is_congested


async def test_who_never_reads_is_dropped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_UNSENT_BYTES", 1024 * 1024)
    ours, _ = await server.dial()
    alice = Peer(ours)
    while ours.close_reason is None:
        ours.send(bytes(60_000))
    with pytest.raises(ConnectionClosed, match="does not read"):
        ours.send(b"more")
    assert await alice.reason() == "the peer does not read what we send"
    with pytest.raises(ConnectionClosed):
        await ours.drain()
    await server.check_alive()


async def test_who_stops_reading_is_dropped_after_a_while(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.05)
    ours, _ = await server.dial()
    alice = Peer(ours)
    while not ours.is_congested:
        ours.send(bytes(60_000))
        await asyncio.sleep(0)
    draining = asyncio.ensure_future(ours.drain())
    assert await alice.reason() == "the peer stopped reading"
    with pytest.raises(ConnectionClosed):
        await draining


# --- closing ------------------------------------------------------------------------------------------------------


async def test_what_was_sent_before_close_arrives(server: Server) -> None:
    alice, bob = await server.pair()
    for number in range(200):
        bob.connection.send(bytes(1000))
        alice.connection.send(number.to_bytes(2, "big"))
    alice.connection.send(b"error: goodbye")
    alice.connection.close("enough")
    assert [await bob.receive() for _ in range(201)][-1] == b"error: goodbye"
    assert await bob.reason() == "closed by the peer"
    assert await alice.reason() == "enough"
    await asyncio.wait_for(alice.connection.wait_closed(), 60)
    await asyncio.wait_for(bob.connection.wait_closed(), 60)
    for peer in (alice, bob):
        with pytest.raises(ConnectionClosed):
            peer.connection.send(b"too late")
        peer.connection.close("again")
    assert alice.connection.close_reason == "enough"


async def test_nothing_is_received_after_close(server: Server) -> None:
    alice, bob = await server.pair()
    bob.connection.send(b"one")
    assert await alice.receive() == b"one"
    alice.connection.close()
    bob.connection.send(b"two")
    await bob.reason()
    await asyncio.wait_for(alice.connection.wait_closed(), 60)
    assert alice.inbox.empty()


async def test_a_peer_that_does_not_close_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LINGER_SECONDS", 0.05)
    with server.raw_socket() as sock:
        handshake = InitiatorHandshake(ALICE, b"\x12" * 32, BOB_ID)
        sock.sendall(handshake.start())
        sock.sendall(handshake.receive(await asyncio.to_thread(sock.recv, 50)))
        theirs = await asyncio.wait_for(server.accepted.get(), 60)
        theirs.close()
        await asyncio.wait_for(theirs.wait_closed(), 60)


async def test_a_late_close_callback_is_called_as_well(server: Server) -> None:
    ours, _ = await server.dial()
    ours.close("why not")
    reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ours.on_close(reason.set_result)
    assert await asyncio.wait_for(reason, 60) == "why not"


async def test_a_reset_is_an_end_with_a_reason(server: Server) -> None:
    alice, bob = await server.pair()
    alice.connection._transport.abort()
    assert await bob.reason()
    assert await alice.reason()
    await server.check_alive()


async def test_a_failing_receiver_ends_its_connection_only(server: Server) -> None:
    ours, theirs = await server.dial()
    alice = Peer(ours)
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))

    def broken(message: bytes) -> None:
        raise AssertionError("a bug")

    theirs.set_receiver(broken)
    ours.send(b"trigger")
    await alice.reason()
    assert theirs.close_reason is not None
    assert "a bug" in theirs.close_reason
    assert any("a bug" in str(context.get("exception")) for context in failures)
    await server.check_alive()


# --- strangers ----------------------------------------------------------------------------------------------------


def flipped(act: bytes, position: int) -> bytes:
    return act[:position] + bytes((act[position] ^ 1,)) + act[position + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda act: b"GET / HTTP/1.1\r\nHost: example\r\n\r\n" + bytes(50),
        lambda act: b"\x01" + act[1:],
        lambda act: flipped(act, 49),
        lambda act: b"\x00\x04" + act[2:],
        lambda act: bytes(100_000),
    ],
    ids=["garbage", "version", "tag", "key", "oversized"],
)
async def test_a_bad_act_one_is_not_answered(server: Server, spoil: Callable[[bytes], bytes]) -> None:
    sock = server.raw_socket()
    sock.sendall(spoil(InitiatorHandshake(ALICE, b"\x12" * 32, BOB_ID).start()))
    assert await read_to_end(sock) == b""
    assert server.accepted.empty()
    await server.check_alive()


@pytest.mark.parametrize("position", [0, 10, 60])
async def test_a_bad_act_three_is_not_answered(server: Server, position: int) -> None:
    sock = server.raw_socket()
    handshake = InitiatorHandshake(ALICE, b"\x12" * 32, BOB_ID)
    sock.sendall(handshake.start())
    act_three = handshake.receive(await asyncio.to_thread(sock.recv, 50))
    sock.sendall(flipped(act_three, position))
    assert await read_to_end(sock) == b""
    assert server.accepted.empty()
    await server.check_alive()


async def test_acts_cut_off_are_no_connection(server: Server) -> None:
    for size in (0, 1, 49):
        sock = server.raw_socket()
        sock.sendall(InitiatorHandshake(ALICE, b"\x12" * 32, BOB_ID).start()[:size])
        sock.shutdown(socket.SHUT_WR)
        assert await read_to_end(sock) == b""
    await server.check_alive()


async def test_garbage_after_the_handshake_ends_the_connection(server: Server) -> None:
    sock = server.raw_socket()
    handshake = InitiatorHandshake(ALICE, b"\x12" * 32, BOB_ID)
    sock.sendall(handshake.start())
    sock.sendall(handshake.receive(await asyncio.to_thread(sock.recv, 50)))
    bob = Peer(await asyncio.wait_for(server.accepted.get(), 60))
    sock.sendall(bytes(100))
    assert await bob.reason() == "a frame of the peer is not authentic"
    assert await read_to_end(sock) == b""
    await server.check_alive()


async def test_half_open_connections_are_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT_SECONDS", 0.05)
    assert await read_to_end(server.raw_socket()) == b""
    monkeypatch.undo()
    await server.check_alive()


async def test_idle_strangers_cannot_keep_others_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_HANDSHAKES", 3)
    idle = [server.raw_socket() for _ in range(4)]
    assert await read_to_end(idle[0]) == b"", "the one that waited longest has to go"
    await server.check_alive()
    for sock in idle[1:]:
        sock.close()


async def test_those_who_do_not_let_go_after_the_end_hold_few_sockets(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_LINGERING", 3)
    pairs = [await server.dial() for _ in range(4)]
    for _, theirs in pairs:
        theirs.close("enough of you")
    await asyncio.wait_for(pairs[0][1].wait_closed(), transport.LINGER_SECONDS / 2)
    assert list(pairs[1][1].lingering) == [theirs for _, theirs in pairs[1:]]
    for ours, _ in pairs:
        ours.close()
    await asyncio.gather(*(theirs.wait_closed() for _, theirs in pairs))
    assert not pairs[1][1].lingering


@pytest.mark.parametrize("is_preferred", [False, True])
async def test_more_than_a_turns_messages_right_before_the_end(server: Server, is_preferred: bool) -> None:
    ours, theirs = await server.dial()
    theirs.is_preferred = is_preferred
    count = 3 * turns.PREFERRED_MESSAGES
    for number in range(count):
        ours.send(number.to_bytes(2, "big"))
    ours.close()
    bob = Peer(theirs)
    assert [await bob.receive() for _ in range(count)] == [number.to_bytes(2, "big") for number in range(count)]
    assert await bob.reason() == "closed by the peer"
    await asyncio.wait_for(theirs.wait_closed(), 60)


async def test_who_has_more_to_say_does_not_keep_others_waiting(server: Server) -> None:
    loud, quiet = await server.dial(), await server.dial()
    heard = 0
    begun, done = asyncio.Event(), asyncio.Event()

    def hear(_: bytes) -> None:
        nonlocal heard
        heard += not done.is_set()
        begun.set()

    loud[1].set_receiver(hear)
    quiet[1].set_receiver(lambda _: done.set())
    for _ in range(20_000):
        loud[0].send(b"la")
    await asyncio.wait_for(begun.wait(), 60)
    quiet[0].send(b"may I?")
    await asyncio.wait_for(done.wait(), 60)
    assert heard < 10_000


# --- dialling -----------------------------------------------------------------------------------------------------


async def serve_raw(answer: Callable[[bytes], bytes | None]) -> asyncio.Server:
    """A server that is no Lightning node: answers what comes first, or (None) nothing, and then waits."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        act_one = await reader.readexactly(50)
        reply = answer(act_one)
        if reply is not None:
            writer.write(reply)
            if not reply:
                writer.close()
                return
        await reader.read()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda act: bytes(50), "not a public key"),
        (lambda act: b"\x07" + bytes(49), "handshake version 7"),
        (lambda act: b"", "the peer closed during the handshake"),
        (lambda act: act, "act 2 is not authentic"),
    ],
    ids=["garbage", "version", "hang up", "echo"],
)
async def test_dialling_something_else(answer: Callable[[bytes], bytes | None], reason: str) -> None:
    raw = await serve_raw(answer)
    with pytest.raises(TransportError, match=reason):
        await connect("127.0.0.1", raw.sockets[0].getsockname()[1], ALICE, BOB_ID)
    raw.close()


async def test_dialling_who_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT_SECONDS", 0.05)
    raw = await serve_raw(lambda act: None)
    with pytest.raises(TransportError, match="in time"):
        await connect("127.0.0.1", raw.sockets[0].getsockname()[1], ALICE, BOB_ID)
    raw.close()


async def test_dialling_can_be_cancelled() -> None:
    reached = asyncio.Event()

    def nothing(act: bytes) -> None:
        reached.set()

    raw = await serve_raw(nothing)
    dialling = asyncio.ensure_future(connect("127.0.0.1", raw.sockets[0].getsockname()[1], ALICE, BOB_ID))
    await asyncio.wait_for(reached.wait(), 60)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    raw.close()


async def test_dialling_another_node_than_the_one_wanted(server: Server) -> None:
    with pytest.raises(TransportError, match=r"^no connection to 127.0.0.1:\d+: "):
        await connect("127.0.0.1", server.listener.port, ALICE, ALICE_ID)
    await server.check_alive()


async def test_dialling_a_closed_port(server: Server) -> None:
    port = server.listener.port
    await server.listener.close()
    with pytest.raises(TransportError, match=f"no connection to 127.0.0.1:{port}: .*refused"):
        await connect("127.0.0.1", port, ALICE, BOB_ID)


async def test_keys_that_are_none() -> None:
    with pytest.raises(ValueError):
        await connect("127.0.0.1", 1, ALICE, bytes(33))
    with pytest.raises(ValueError):
        await connect("127.0.0.1", 1, bytes(32), BOB_ID)
    with pytest.raises(ValueError):
        await listen("127.0.0.1", 0, bytes(32), lambda _: None)


async def test_a_port_in_use(server: Server) -> None:
    with pytest.raises(OSError, match=r"in use|98"):
        await listen("127.0.0.1", server.listener.port, BOB, lambda _: None)


async def test_closing_the_listener_leaves_connections(server: Server) -> None:
    alice, bob = await server.pair()
    idle = server.raw_socket()
    await server.listener.close()
    alice.connection.send(b"we go on")
    assert await bob.receive() == b"we go on"
    assert await read_to_end(idle) == b""
    alice.connection.close()
    await bob.reason()
