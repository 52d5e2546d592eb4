"""The RPC client: authentication, keep-alive, batches, and every way in which bitcoind may not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.wallet_fakes import FakeBitcoind, FakeError
from wallet.chain import ChainUnavailable
from wallet.rpc import RpcClient, RpcConfig, RpcError, btc_to_sat


@pytest.fixture
async def fake() -> AsyncIterator[FakeBitcoind]:
    server = FakeBitcoind()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(fake: FakeBitcoind) -> AsyncIterator[RpcClient]:
    rpc = RpcClient(RpcConfig(fake.url, "user", "pass", timeout_seconds=5))
    yield rpc
    await rpc.close()


async def test_results_and_errors(fake: FakeBitcoind, client: RpcClient) -> None:
    assert (await client.call("getblockchaininfo"))["blocks"] == 0
    assert (await client.call("getmempoolinfo"))["mempoolminfee"] == Decimal("0.00001")
    with pytest.raises(RpcError) as caught:
        await client.call("getblockhash", 7)
    assert (caught.value.code, caught.value.message) == (-8, "Block height out of range")
    assert "getblockhash" in str(caught.value)
    with pytest.raises(RpcError) as caught:
        await client.call("nosuchmethod")
    assert caught.value.code == -32601


async def test_batch_keeps_order_and_errors_apart(fake: FakeBitcoind, client: RpcClient) -> None:
    fake.chain.mine(2)
    results = await client.batch([("getblockhash", (height,)) for height in (2, 9, 0)])
    assert results[0] == fake.chain.active[2][::-1].hex()
    assert isinstance(results[1], RpcError)
    assert results[2] == fake.chain.active[0][::-1].hex()
    assert await client.batch([]) == []


async def test_cookie_is_read_again_when_it_changes(fake: FakeBitcoind, tmp_path: Path) -> None:
    cookie = tmp_path / ".cookie"
    rpc = RpcClient(RpcConfig(fake.url, cookie_file=cookie))
    try:
        with pytest.raises(ChainUnavailable, match="is bitcoind running"):
            await rpc.call("getbestblockhash")
        cookie.write_text("user:pass")
        await rpc.call("getbestblockhash")
        fake.password = "another"
        (tmp_path / "new").write_text("user:another")
        (tmp_path / "new").rename(cookie)
        await rpc.call("getbestblockhash")
        assert fake.refused == 0
        fake.password = "third"
        with pytest.raises(ChainUnavailable, match="refuses our credentials"):
            await rpc.call("getbestblockhash")
    finally:
        await rpc.close()


async def test_busy_is_retried(fake: FakeBitcoind, client: RpcClient) -> None:
    fake.busy_answers = 2
    await client.call("getbestblockhash")
    assert fake.busy_answers == 0


async def test_lost_connection_and_warm_up(fake: FakeBitcoind, client: RpcClient) -> None:
    await client.call("getbestblockhash")
    fake.down = True
    with pytest.raises(ChainUnavailable):
        await client.call("getbestblockhash")
    fake.down = False
    await client.call("getbestblockhash")

    def warming() -> None:
        raise FakeError(-28, "Loading block index…")

    fake.methods["getbestblockhash"] = warming
    with pytest.raises(ChainUnavailable, match="Loading block index"):
        await client.call("getbestblockhash")
    await fake.stop()
    with pytest.raises(ChainUnavailable, match=r"cannot be reached|closed the connection"):
        await client.call("getblockchaininfo")


async def test_restart_between_calls_is_invisible(fake: FakeBitcoind, client: RpcClient) -> None:
    await client.call("getbestblockhash")
    await fake.stop()
    await fake.start()
    await client.call("getbestblockhash")


def test_btc_to_sat_is_exact() -> None:
    assert btc_to_sat(Decimal("20999999.97690000")) == 2_099_999_997_690_000
    assert btc_to_sat(Decimal("0.00001")) == 1_000
    assert btc_to_sat(1) == 100_000_000
