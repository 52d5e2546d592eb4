"""The wallet and the chain source on regtestd: Bitcoin Core's consensus, a mempool's policy, bitcoind's JSON-RPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from wallet.bitcoin import OutPoint, TxOut
from wallet.bitcoin.address import MAINNET, REGTEST, address_of
from wallet.bitcoind import BitcoindChainSource, BitcoindConfig, RpcConfig
from wallet.chain import (
    BlockConnected,
    BlockDisconnected,
    BroadcastOutcome,
    ChainEvent,
    SourceBack,
    SourceLost,
    Synced,
    WrongChain,
)
from wallet.errors import InsufficientFunds
from wallet.keys import Keys, Seed
from wallet.regtest.server import RegtestServer, Settings
from wallet.store import SqlStore
from wallet.views import Balance
from wallet.wallet import Wallet

RATE = 1_000
STRANGER = bytes.fromhex("0014" + "ab" * 20)
STRANGER_ADDRESS = address_of(STRANGER, REGTEST) or ""


class Rig:
    """A server, a source that follows it, and a wallet that takes in every event."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.settings = Settings(rpc_user="u", rpc_password="p", **settings)  # type: ignore[arg-type]
        self.server = RegtestServer(directory, self.settings)
        self.store = SqlStore(create_engine("sqlite://"))
        self.keys = Keys.from_seed(Seed.create(bytes(16)), REGTEST)
        self.events: list[ChainEvent] = []
        self.changed = asyncio.Condition()
        self.source: BitcoindChainSource
        self.wallet: Wallet
        self.task: asyncio.Task[None]

    async def __aenter__(self) -> Rig:
        await self.server.start()
        config = BitcoindConfig(RpcConfig(self.server.url, "u", "p"), retry_seconds=(0.05,))
        self.source = BitcoindChainSource(config, REGTEST)
        await self.source.start()
        await self.start_wallet()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_wallet()
        await self.source.close()
        await self.server.stop()

    async def start_wallet(self, birthday_height: int = 0) -> None:
        self.wallet = await Wallet.open(
            self.keys, self.store, birthday_height=birthday_height, broadcaster=self.source, rng=random.Random(3)
        )
        self.task = asyncio.ensure_future(self._follow())

    async def stop_wallet(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _follow(self) -> None:
        recent, birthday = self.wallet.follow_from()
        async for event in self.source.follow(recent, birthday_height=birthday):
            await self.store.commit(self.wallet.process(event))
            async with self.changed:
                self.events.append(event)
                self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)

    async def synced(self) -> None:
        best = bytes.fromhex(await self.source.rpc.call("getbestblockhash"))[::-1]
        await self.until(lambda: self.wallet.tip is not None and self.wallet.tip.hash == best)

    async def mine(self, count: int = 1, address: str = STRANGER_ADDRESS) -> None:
        await self.source.rpc.call("generatetoaddress", count, address)
        await self.synced()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path) as rig:
        yield rig


async def funded(rig: Rig) -> None:
    """A mature coinbase of 50 BTC."""
    await rig.mine(1, await rig.wallet.new_address())
    await rig.mine(100)


async def test_wrong_network(rig: Rig) -> None:
    other = BitcoindChainSource(BitcoindConfig(RpcConfig(rig.server.url, "u", "p")), MAINNET)
    with pytest.raises(WrongChain, match="mainnet"):
        await other.start()
    await other.close()


async def test_mine_send_bump_confirm(rig: Rig) -> None:
    await funded(rig)
    assert rig.wallet.balance() == Balance(50_0000_0000, 0, 0, 0)
    for kind in ("p2tr", "p2wpkh"):
        address = await rig.wallet.new_address(kind)
        await rig.wallet.send(address, 10_0000_0000, RATE)
    sent = await rig.wallet.send(STRANGER_ADDRESS, 35_0000_0000, RATE)
    assert sent.broadcast is not None
    assert sent.broadcast.outcome is BroadcastOutcome.ACCEPTED
    entry = await rig.source.rpc.call("getmempoolentry", sent.tx.txid_hex)
    assert entry["vsize"] * RATE // 250 <= sent.fee_sat <= entry["vsize"] * RATE // 250 + 5
    bumped = await rig.wallet.bump(sent.txid, 3 * RATE)
    assert bumped.method == "rbf"
    pool = await rig.source.rpc.call("getrawmempool")
    assert bumped.tx.txid_hex in pool
    assert sent.tx.txid_hex not in pool
    await rig.mine()
    fees = sum(info.fee_sat or 0 for info in rig.wallet.transactions() if info.height is not None)
    assert rig.wallet.balance() == Balance(15_0000_0000 - fees, 0, 0, 0)
    assert (await rig.source.broadcast(bumped.tx)).outcome is BroadcastOutcome.ALREADY_MINED
    assert await rig.source.get_tx(bumped.txid) == bumped.tx


async def test_child_pays_and_packages(rig: Rig) -> None:
    await funded(rig)
    channel = await rig.wallet.create_tx([TxOut(1_000_000, b"\x00\x20" + b"\x01" * 32)], 253)
    result = await rig.wallet.publish(channel, label="channel")
    assert result is not None
    assert result.ok
    bumped = await rig.wallet.bump(channel.txid, 5_000)
    assert bumped.method == "cpfp"
    assert set(await rig.source.rpc.call("getrawmempool")) == {channel.tx.txid_hex, bumped.tx.txid_hex}
    spender = await rig.source.spending_tx_in_mempool(OutPoint(channel.txid, channel.change_vout or 0))
    assert spender == bumped.tx
    await rig.mine()
    vout = channel.vout_of(b"\x00\x20" + b"\x01" * 32)
    found = await rig.source.utxo(OutPoint(channel.txid, vout))
    assert found == (TxOut(1_000_000, b"\x00\x20" + b"\x01" * 32), 1, False)


async def test_reorganisation(rig: Rig) -> None:
    await funded(rig)
    address = await rig.wallet.new_address("p2wpkh")
    sent = await rig.wallet.send(address, 1_0000_0000, RATE)
    await rig.mine(3)
    assert rig.wallet.transaction(sent.txid).confirmations == 3
    best = await rig.source.rpc.call("getblockhash", 102)
    await rig.source.rpc.call("invalidateblock", best)
    await rig.source.rpc.call("generateblock", STRANGER_ADDRESS, [])
    await rig.until(lambda: any(isinstance(event, BlockDisconnected) for event in rig.events))
    await rig.synced()
    assert [event.height for event in rig.events if isinstance(event, BlockDisconnected)] == [104, 103, 102]
    assert rig.wallet.height == 102
    assert rig.wallet.transaction(sent.txid).confirmations == 0
    assert rig.wallet.balance() == Balance(0, 50_0000_0000 - sent.fee_sat, 0, 0)
    results = await rig.wallet.rebroadcast()
    assert results[sent.txid].ok
    await rig.mine()
    assert rig.wallet.balance() == Balance(50_0000_0000 - sent.fee_sat, 0, 0, 0)


async def test_offline_then_only_the_missing_blocks(rig: Rig) -> None:
    await funded(rig)
    await rig.stop_wallet()
    address = await rig.wallet.new_address()
    await rig.source.rpc.call("generatetoaddress", 4, address)
    rig.events.clear()
    await rig.start_wallet()
    await rig.synced()
    assert [event.height for event in rig.events if isinstance(event, BlockConnected)] == [102, 103, 104, 105]
    assert rig.wallet.balance() == Balance(50_0000_0000, 0, 200_0000_0000, 0)


async def test_restored_from_words(rig: Rig) -> None:
    await funded(rig)
    sent = await rig.wallet.send(STRANGER_ADDRESS, 1_0000_0000, RATE)
    await rig.mine()
    before = rig.wallet.balance()
    await rig.stop_wallet()
    rig.store = SqlStore(create_engine("sqlite://"))
    rig.keys = Keys.from_seed(Seed.restore(Seed.create(bytes(16)).mnemonic), REGTEST)
    await rig.start_wallet()
    await rig.synced()
    assert rig.wallet.balance() == before
    assert rig.wallet.transaction(sent.txid).fee_sat == sent.fee_sat


async def test_layer_1_restarts(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await funded(rig)
        port = rig.server.rpc_port
        await rig.server.stop()
        await rig.until(lambda: isinstance(rig.events[-1], SourceLost))
        sent = await rig.wallet.send(STRANGER_ADDRESS, 1_0000_0000, RATE)
        assert sent.broadcast is None
        rig.server = RegtestServer(tmp_path, Settings(rpc_user="u", rpc_password="p", rpc_port=port))
        await rig.server.start()
        await rig.until(lambda: any(isinstance(event, SourceBack) for event in rig.events))
        assert (await rig.wallet.rebroadcast())[sent.txid].ok
        await rig.mine()
        assert rig.wallet.transaction(sent.txid).confirmations == 1


async def test_blocks_announced_over_zmq(tmp_path: Path, unused_tcp_port: int) -> None:
    zmq_address = f"tcp://127.0.0.1:{unused_tcp_port}"
    async with Rig(tmp_path, zmq=(("pubhashblock", zmq_address),)) as rig:
        await rig.until(lambda: any(isinstance(event, Synced) for event in rig.events))
        for _ in range(3):
            await rig.mine()
        await rig.until(lambda: rig.events[-1] == Synced(3, rig.wallet.tip.hash if rig.wallet.tip else b""))


async def test_what_the_mempool_refuses(rig: Rig) -> None:
    await funded(rig)
    made = await rig.wallet.create_tx([TxOut(1_000_000, STRANGER)], RATE)
    witness = made.tx.inputs[0].witness
    spoiled = made.tx.with_witness(0, (bytes(64), *witness[1:]))
    result = await rig.source.broadcast(spoiled)
    assert (result.outcome, result.retriable) == (BroadcastOutcome.REJECTED, False)
    later = made.tx.replace(locktime=500)
    result = await rig.source.broadcast(rig.wallet.sign(later, made.spent))
    assert (result.outcome, result.retriable) == (BroadcastOutcome.REJECTED, True)
    unknown = made.tx.replace(inputs=(made.tx.inputs[0]._replace(outpoint=OutPoint(b"\x07" * 32, 0)),))
    result = await rig.source.broadcast(unknown)
    assert (result.outcome, result.retriable) == (BroadcastOutcome.REJECTED, True)
    with pytest.raises(InsufficientFunds):
        await rig.wallet.send(STRANGER_ADDRESS, 1_000_000, RATE)
    await rig.wallet.release(made.reservation)
    assert await rig.source.fee_rate_sat_per_kw(6) >= 253


async def test_many_inputs_of_both_kinds_in_one_transaction(rig: Rig) -> None:
    await funded(rig)
    outputs = [TxOut(1_0000_0000, await rig.wallet.new_script(kind)) for kind in ["p2tr", "p2wpkh"] * 10]  # type: ignore[arg-type]
    split = await rig.wallet.create_tx(outputs, RATE)
    await rig.wallet.publish(split, fixed=False)
    await rig.mine()
    sent = await rig.wallet.send(STRANGER_ADDRESS, None, RATE)
    assert sent.broadcast is not None
    assert len(sent.tx.inputs) == 21
    entry = await rig.source.rpc.call("getmempoolentry", sent.tx.txid_hex)
    assert entry["vsize"] * RATE // 250 <= sent.fee_sat <= (entry["vsize"] + 6) * RATE // 250
    await rig.mine()
    assert rig.wallet.balance().total_sat == 0
