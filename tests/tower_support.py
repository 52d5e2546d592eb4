"""Breaches on demand: revoked commitments whose keys the test holds, for victim and cheater alike."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from channeld.bolt.keys import CommitmentKeys
from channeld.bolt.transactions.scripts import HtlcScripts, to_local_script, to_remote_script
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut, hash160
from wallet.bitcoin.address import REGTEST, address_of
from wallet.bitcoin.script import p2wpkh, p2wpkh_script_code, p2wsh
from wallet.bitcoin.secp import compact_to_der, pubkey_of, sign
from wallet.bitcoin.sighash import SIGHASH_ALL, segwit_v0_sighash
from wallet.bitcoin.tx import SEQUENCE_RBF
from wallet.bitcoind import BitcoindChainSource, BitcoindConfig
from wallet.chain import ChainSource
from wallet.db import Store, make_engine
from wallet.regtest.server import RegtestServer, Settings
from wallet.rpc import RpcClient, RpcConfig
from watchtower.appointment import JusticeKit
from watchtower.client import tables as client_tables
from watchtower.client.towers import Towers
from watchtower.client.values import Backups
from watchtower.justice import Penalty
from watchtower.tower import breach as breaches
from watchtower.tower.config import Config
from watchtower.tower.daemon import Tower

DELAY_BLOCKS = 20
FEE_SAT = 2_000
PREIMAGE = b"\x77" * 32


def secret(name: str) -> bytes:
    """A key that the name stands for."""
    return hashlib.sha256(name.encode()).digest()


def key(name: str) -> bytes:
    """Its public key."""
    return pubkey_of(secret(name))


def p2wpkh_witness(tx: Tx, index: int, owner: bytes, value_sat: int) -> tuple[bytes, ...]:
    """Of an input that spends a P2WPKH output."""
    public = pubkey_of(owner)
    digest = segwit_v0_sighash(tx, index, p2wpkh_script_code(hash160(public)), value_sat)
    return compact_to_der(sign(owner, digest)) + bytes((SIGHASH_ALL,)), public


@dataclass(frozen=True)
class Revoked:
    """A revoked commitment: `tx` is complete, `kit` what the victim knows."""

    name: str
    tx: Tx
    kit: JusticeKit
    to_local: bytes
    htlc_scripts: tuple[bytes, ...]

    def outpoint(self, place: int) -> OutPoint:
        return OutPoint(self.tx.txid(), self.kit.outputs[place].vout)

    def penalty(self, place: int) -> Penalty:
        return self.kit.outputs[place]

    def second_stage(self, place: int, fee_sat: int = 500) -> Tx:
        """The cheater's HTLC transaction (as HTLC-success) on the HTLC at `place`."""
        penalty = self.penalty(place)
        out = TxOut(penalty.amount_sat - fee_sat, p2wsh(self.to_local))
        tx = Tx(2, (TxIn(self.outpoint(place), b"", 1),), (out,), 0)
        digest = segwit_v0_sighash(tx, 0, penalty.script, penalty.amount_sat)
        signatures = [
            compact_to_der(sign(secret(f"{self.name} {side} htlc"), digest)) + bytes((SIGHASH_ALL,))
            for side in ("other", "owner")
        ]
        return tx.with_witness(0, (b"", *signatures, PREIMAGE, penalty.script))

    def theft(self, outpoint: OutPoint, value_sat: int, fee_sat: int = 1_000) -> Tx:
        """The cheater takes a delayed output, after its delay."""
        script = p2wpkh(key("cheater"))
        tx = Tx(2, (TxIn(outpoint, b"", DELAY_BLOCKS),), (TxOut(value_sat - fee_sat, script),), 0)
        digest = segwit_v0_sighash(tx, 0, self.to_local, value_sat)
        signature = compact_to_der(sign(secret(f"{self.name} delayed"), digest)) + bytes((SIGHASH_ALL,))
        return tx.with_witness(0, (signature, b"", self.to_local))


def revoked(
    name: str,
    funding: OutPoint,
    funding_sat: int,
    to_local_sat: int = 400_000,
    to_remote_sat: int = 100_000,
    htlcs_sat: Sequence[int] = (),
    sweep_script: bytes = b"",
) -> Revoked:
    """Spends a P2WPKH output of the key "funds". HTLCs are received ones, so that HTLC-success takes them at once."""
    keys = CommitmentKeys(
        key(f"{name} point"),
        key(f"{name} revocation"),
        key(f"{name} delayed"),
        key(f"{name} owner htlc"),
        key(f"{name} other htlc"),
    )
    to_local = to_local_script(keys.revocation_pubkey, DELAY_BLOCKS, keys.owner_delayed_pubkey)
    to_remote = to_remote_script(key(f"{name} payment"))
    payment_hash = hashlib.sha256(PREIMAGE).digest()
    scripts = tuple(HtlcScripts(keys, True).received(payment_hash, 1_000 + i) for i in range(len(htlcs_sat)))
    outputs: list[TxOut] = []
    penalties: list[Penalty] = []
    if to_local_sat:
        penalties.append(Penalty("to_local", len(outputs), to_local_sat, to_local, (b"\x01",)))
        outputs.append(TxOut(to_local_sat, p2wsh(to_local)))
    if to_remote_sat:
        penalties.append(Penalty("to_remote", len(outputs), to_remote_sat, to_remote, (), 1))
        outputs.append(TxOut(to_remote_sat, p2wsh(to_remote)))
    for script, amount_sat in zip(scripts, htlcs_sat, strict=True):
        tail = (keys.revocation_pubkey,)
        penalties.append(Penalty("htlc", len(outputs), amount_sat, script, tail))
        outputs.append(TxOut(amount_sat, p2wsh(script)))
    left = funding_sat - sum(output.value_sat for output in outputs) - FEE_SAT
    if left > 1_000:
        outputs.append(TxOut(left, p2wpkh(key("change"))))
    unsigned = Tx(2, (TxIn(funding, b"", SEQUENCE_RBF),), tuple(outputs), 0)
    tx = unsigned.with_witness(0, p2wpkh_witness(unsigned, 0, secret("funds"), funding_sat))
    kit = JusticeKit(
        tx.txid(),
        tuple(penalties),
        secret(f"{name} revocation"),
        secret(f"{name} payment"),
        to_local,
        DELAY_BLOCKS,
        sweep_script or p2wpkh(key(f"{name} sweep")),
    )
    return Revoked(name, tx, kit, to_local, scripts)


class Layer1:
    """regtestd inside this process."""

    def __init__(self, directory: Path) -> None:
        self.server = RegtestServer(directory, Settings(rpc_user="u", rpc_password="p"))
        self.rpc: RpcClient
        self._miner = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Layer1]:
        await self.server.start()
        self.rpc = RpcClient(RpcConfig(self.server.url, "u", "p"))
        self._miner = await self.rpc.call("getnewaddress")
        await self.mine(101)
        try:
            yield self
        finally:
            await self.rpc.close()
            await self.server.stop()

    def source(self) -> BitcoindChainSource:
        config = BitcoindConfig(
            RpcConfig(self.server.url, "u", "p"),
            retry_seconds=(0.05,),
            fallback_feerate_sat_per_kw=1_000,
        )
        return BitcoindChainSource(config, REGTEST)

    async def mine(self, count: int = 1) -> list[str]:
        hashes: list[str] = await self.rpc.call("generatetoaddress", count, self._miner)
        return hashes

    async def mine_only(self, *txs: Tx) -> None:
        """A block with these transactions alone: the mempool's others stay there."""
        await self.rpc.call("generateblock", self._miner, [tx.serialize().hex() for tx in txs])

    async def send(self, tx: Tx) -> None:
        await self.rpc.call("sendrawtransaction", tx.serialize().hex(), 0)

    async def height(self) -> int:
        return int(await self.rpc.call("getblockcount"))

    async def mempool(self) -> list[str]:
        found: list[str] = await self.rpc.call("getrawmempool")
        return found

    async def fund(self, amount_sat: int) -> OutPoint:
        """A confirmed P2WPKH output of the key "funds"."""
        script = p2wpkh(key("funds"))
        txid = await self.rpc.call("sendtoaddress", address_of(script, REGTEST), f"{amount_sat / 1e8:.8f}")
        await self.mine()
        raw = Tx.parse(bytes.fromhex((await self.rpc.call("gettransaction", txid))["hex"]))
        vout = next(i for i, output in enumerate(raw.outputs) if output.script_pubkey == script)
        return raw.outpoint(vout)

    async def received(self, script: bytes) -> int:
        """What the unspent outputs of a script hold (satoshi)."""
        found = await self.rpc.call("scantxoutset", "start", [f"raw({script.hex()})"])
        return round(float(found["total_amount"]) * 1e8)


def tower_config(directory: Path, **settings: Any) -> Config:
    """Of a tower in a test."""
    defaults: dict[str, Any] = {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0", "network": "regtest"}
    return Config(datadir=directory, **{**defaults, **settings})


@asynccontextmanager
async def running_tower(config: Config, source: ChainSource) -> AsyncIterator[Tower]:
    """Started, and in step with the chain."""
    tower = Tower(config, source)
    try:
        await tower.start()
        async with asyncio.timeout(60):
            await tower.watcher.synced_event.wait()
        yield tower
    finally:
        await tower.stop()


@asynccontextmanager
async def running_client(
    database: Path, backups: Backups, prepare: Callable[[Towers], None] = lambda towers: None
) -> AsyncIterator[Towers]:
    """The client half over a database of its own; `prepare` is called before it starts."""
    engine = make_engine(f"sqlite:///{database}")
    client_tables.metadata.create_all(engine)
    failures: list[BaseException] = []
    store = Store(engine, failures.append)
    towers = await Towers.open(store, backups, b"\x05" * 32)
    prepare(towers)
    towers.start()
    try:
        yield towers
    finally:
        await towers.close()
        await store.close()
        assert not failures


async def until_searched(tower: Tower, height: int) -> None:
    """Until the tower has searched the chain's block at `height` and done what follows."""
    async with asyncio.timeout(60):
        while tower.watcher.height < height or not tower.watcher.synced:
            await tower.watcher.changed()


async def until(condition: Callable[[], bool]) -> None:
    """Until something is so that no event tells."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def states(tower: Tower) -> list[str]:
    """Of the only breach's outputs."""
    (breach,) = tower.watcher.breaches.values()
    return [target.state for target in breaches.targets(breach)]
