"""regtestd's HTTP: authentication, batches, JSON-RPC 1.0 and 2.0, status codes, nonsense; ZeroMQ."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from tests.integration.regtestd_support import Client
from wallet.bitcoin import Block, Tx
from wallet.regtest.errors import StartupError
from wallet.regtest.server import RegtestServer, Settings

BURN = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RegtestServer]:
    async with RegtestServer(tmp_path) as running:
        yield running


@pytest.fixture
async def rpc(server: RegtestServer) -> AsyncIterator[Client]:
    async with Client.of(server) as client:
        yield client


async def test_who_may_call(tmp_path: Path) -> None:
    digest = hmac.new(b"5a17", b"secret", hashlib.sha256).hexdigest()
    settings = Settings(rpc_user="alice", rpc_password="hunter2", rpc_auth=(f"bob:5a17${digest}",))
    call = {"method": "getblockcount"}
    async with RegtestServer(tmp_path, settings) as server:
        assert not server.cookie_file.exists()
        for auth, status in (
            (("alice", "hunter2"), 200),
            (("bob", "secret"), 200),
            (("alice", "wrong"), 401),
            (("bob", "hunter2"), 401),
            (("", ""), 401),
        ):
            async with Client(server.url, auth) as client:
                assert (await client.post(call))[0] == status
        async with Client(server.url, ("a", "b")) as client:
            for header in ("", "Basic", "Basic !!!", "Bearer x"):
                async with client.session.post(server.url, json=call, headers={"Authorization": header}) as response:
                    assert response.status == 401
                    assert response.headers["WWW-Authenticate"] == 'Basic realm="jsonrpc"'


async def test_the_cookie_is_private_and_gone_after_the_stop(tmp_path: Path) -> None:
    async with RegtestServer(tmp_path) as server:
        cookie = server.cookie_file
        assert cookie == tmp_path / "regtest" / ".cookie"
        assert cookie.stat().st_mode & 0o777 == 0o600
        assert cookie.read_text() == ":".join(server.auth)
        assert server.port_file.read_text() == f"{server.rpc_port}\n"
    assert not cookie.exists()
    assert not server.port_file.exists()


async def test_replies_of_version_1_and_2(rpc: Client) -> None:
    assert await rpc.post({"method": "getblockcount"}) == (200, {"result": 0, "error": None, "id": None})
    assert await rpc.post({"jsonrpc": "1.0", "id": "x", "method": "getblockcount", "params": []}) == (
        200,
        {"result": 0, "error": None, "id": "x"},
    )
    assert await rpc.post({"jsonrpc": "2.0", "id": 1, "method": "getblockcount"}) == (
        200,
        {"jsonrpc": "2.0", "result": 0, "id": 1},
    )
    error = {"code": -32601, "message": "Method not found"}
    assert await rpc.post({"jsonrpc": "2.0", "id": 1, "method": "x"}) == (
        200,
        {"jsonrpc": "2.0", "error": error, "id": 1},
    )
    assert await rpc.post({"id": 1, "method": "x"}) == (404, {"result": None, "error": error, "id": 1})
    assert await rpc.post({"jsonrpc": "2.0", "method": "getblockcount"}) == (204, b"")
    assert await rpc.post({"jsonrpc": "2.0", "method": "x"}) == (204, b"")


async def test_batches(rpc: Client) -> None:
    status, replies = await rpc.post(
        [
            {"id": 1, "method": "getblockcount"},
            {"id": 2, "method": "nonsense"},
            {"jsonrpc": "2.0", "method": "getblockcount"},
            {"jsonrpc": "2.0", "id": 3, "method": "getbestblockhash"},
            5,
        ]
    )
    assert status == 200
    assert [reply["id"] for reply in replies] == [1, 2, 3, None]
    assert replies[1]["error"]["code"] == -32601
    assert replies[3]["error"]["code"] == -32600
    assert await rpc.post([]) == (200, [])
    assert await rpc.post([{"jsonrpc": "2.0", "method": "getblockcount"}]) == (204, b"")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 500, -32700),
        (b"\xff\xfe", 500, -32700),
        (b"5", 500, -32700),
        (b"", 500, -32700),
        (b'{"id":1}', 400, -32600),
        (b'{"id":1,"method":5}', 400, -32600),
        (b'{"id":1,"method":"getblockcount","params":5}', 400, -32600),
        (b'{"id":1,"method":"getblockcount","jsonrpc":"3.0"}', 400, -32600),
        (b'{"id":1,"method":"getblock","params":[[[]]]}', 500, -3),
    ],
)
async def test_nonsense(rpc: Client, body: bytes, status: int, code: int) -> None:
    answered, reply = await rpc.post(body)
    assert (answered, reply["error"]["code"]) == (status, code)
    assert await rpc.getblockcount() == 0


async def test_other_verbs_and_paths(rpc: Client) -> None:
    async with rpc.session.get(rpc.url) as response:
        assert response.status == 405
        assert await response.text() == "JSONRPC server handles only POST requests"
    assert (await rpc.post({"method": "getblockcount"}, "/other"))[0] == 404
    assert (await rpc.post({"method": "getblockcount"}, "/wallet/any"))[0] == 200


async def test_what_a_start_may_fail_on(tmp_path: Path) -> None:
    async with RegtestServer(tmp_path / "one") as first:
        with pytest.raises(StartupError, match=r"Cannot obtain a lock on directory .*already running"):
            await RegtestServer(tmp_path / "one").start()
        taken = RegtestServer(tmp_path / "two", Settings(rpc_port=first.rpc_port))
        with pytest.raises(StartupError, match=f"Port {first.rpc_port} on 127.0.0.1 is in use"):
            await taken.start()
        async with Client.of(first) as rpc:
            assert await rpc.getblockcount() == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="Cannot use"):
        await RegtestServer(tmp_path / "file").start()
    with pytest.raises(StartupError, match="is not USER:SALT"):
        await RegtestServer(tmp_path / "three", Settings(rpc_auth=("nonsense",))).start()
    with pytest.raises(StartupError, match="ZeroMQ cannot publish"):
        await RegtestServer(tmp_path / "four", Settings(zmq=(("pubrawtx", "nonsense"),))).start()
    async with RegtestServer(tmp_path / "four"):
        pass


async def test_a_server_can_be_started_again_after_it_failed(tmp_path: Path) -> None:
    async with RegtestServer(tmp_path / "one") as first:
        second = RegtestServer(tmp_path / "two", Settings(rpc_port=first.rpc_port))
        with pytest.raises(StartupError):
            await second.start()
    await second.start()
    await second.stop()


async def test_blocks_at_an_interval(tmp_path: Path) -> None:
    async with RegtestServer(tmp_path, Settings(block_interval_seconds=0.01, block_address=BURN)) as server:
        async with Client.of(server) as rpc:
            assert (await rpc.waitforblockheight(3))["height"] >= 3
            tip = await rpc.getblock(await rpc.getbestblockhash(), 2)
        assert tip["tx"][0]["vout"][0]["scriptPubKey"]["address"] == BURN


async def test_zeromq_notifications(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/zmq"
    kinds = ("pubhashblock", "pubrawblock", "pubrawtx", "pubhashtx", "pubsequence")
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    settings = Settings(zmq=tuple((kind, address) for kind in kinds))
    async with RegtestServer(tmp_path, settings) as server, Client.of(server) as rpc:
        assert {entry["type"] for entry in await rpc.getzmqnotifications()} == set(kinds)
        await rpc.sendtoaddress(BURN, 1)
        await rpc.generatetoaddress(1, BURN)
        socket.connect(address)
        socket.subscribe(b"")
        seen: dict[bytes, list[bytes]] = {}
        # A subscription takes effect some time after it is made: mine until something arrives.
        while b"rawblock" not in seen:
            await rpc.generatetoaddress(1, BURN)
            while await socket.poll(10):
                topic, body, _ = await socket.recv_multipart()
                seen.setdefault(topic, []).append(body)
        seen.clear()
        txid = await rpc.sendtoaddress(BURN, 1)
        (tip,) = await rpc.generatetoaddress(1, BURN)
        while len(seen.get(b"sequence", ())) < 2 or b"rawblock" not in seen:
            topic, body, number = await socket.recv_multipart()
            assert len(number) == 4
            seen.setdefault(topic, []).append(body)
        assert seen[b"hashblock"] == [bytes.fromhex(tip)]
        assert Block.parse(seen[b"rawblock"][0]).header.hash()[::-1].hex() == tip
        assert Tx.parse(seen[b"rawtx"][0]).txid_hex == txid
        assert seen[b"hashtx"][0] == bytes.fromhex(txid)
        assert seen[b"sequence"][0][:33] == bytes.fromhex(txid) + b"A"
        assert seen[b"sequence"][1] == bytes.fromhex(tip) + b"C"
    socket.close(0)
    context.term()
