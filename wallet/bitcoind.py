"""ChainSource over Bitcoin Core's JSON-RPC (version 25 and later), and over anything that speaks the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from wallet.bitcoin import Block, BlockHeader, OutPoint, SerializationError, Tx, TxOut
from wallet.bitcoin.address import Network
from wallet.chain import (
    REORG_LIMIT_BLOCKS,
    BlockRef,
    BroadcastOutcome,
    BroadcastResult,
    ChainError,
    ChainEvent,
    ChainUnavailable,
    UnspentOutput,
    WrongChain,
)
from wallet.fees import FEERATE_FLOOR_SAT_PER_KW, sat_per_kw_from_kvb
from wallet.follow import ChainMoved, ChainState, Follower
from wallet.rpc import (
    RPC_INVALID_ADDRESS_OR_KEY,
    RPC_INVALID_PARAMETER,
    RPC_METHOD_NOT_FOUND,
    RPC_MISC_ERROR,
    RPC_VERIFY_ALREADY_IN_CHAIN,
    RPC_VERIFY_ERROR,
    RPC_VERIFY_REJECTED,
    RpcClient,
    RpcConfig,
    RpcError,
    btc_to_sat,
)
from wallet.tipwait import TipWaiter

__all__ = ["BitcoindChainSource", "BitcoindConfig", "RpcClient", "RpcConfig", "RpcError"]

_log = structlog.get_logger(__name__)
_LONGER_TARGETS_BLOCKS = (6, 24, 144, 1008)
_ALREADY_KNOWN = ("txn-already-in-mempool", "txn-same-nonwitness-data-in-mempool")
_ALREADY_MINED = ("already in block chain", "already in utxo set", "txn-already-known")
_RETRIABLE = (
    "non-final",
    "non-bip68-final",
    "missing",
    "txn-mempool-conflict",
    "insufficient fee",
    "min relay fee not met",
    "mempool min fee not met",
    "mempool full",
    "too-long-mempool-chain",
    "too many",
    "replacement",
    "spends-conflicting",
    "premature-spend-of-coinbase",
    "package",
    "truc-violation",
    "cluster",
)
"""Rejections that time, a fee change or another transaction may lift; scripts and formats do not mend themselves."""
_UNDERPAID = (
    "insufficient fee",
    "min relay fee not met",
    "mempool min fee not met",
    "mempool full",
    "replacement-failed",
)
"""Rejections that a higher fee lifts: the last is of packages, and of clusters that would become worse."""
_ORPHANED = ("bad-txns-inputs-missingorspent", "missing-inputs", "missing inputs")


@dataclass(frozen=True, slots=True)
class BitcoindConfig:
    """How to use bitcoind. Without `zmq_address`, what getzmqnotifications offers is used, else a long poll."""

    rpc: RpcConfig = field(default_factory=RpcConfig)
    zmq_address: str | None = None
    fallback_feerate_sat_per_kw: int = 2_500
    fee_cache_seconds: float = 30.0
    reorg_limit_blocks: int = REORG_LIMIT_BLOCKS
    retry_seconds: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    zmq_check_seconds: float = 15.0
    long_poll_seconds: float = 20.0
    poll_seconds: float = 1.0


class BitcoindChainSource:
    """Implements `wallet.chain.ChainSource`. `on_waiting` hears why layer 1 is waited for, in a sentence."""

    def __init__(
        self,
        config: BitcoindConfig,
        network: Network,
        *,
        on_waiting: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rpc = RpcClient(config.rpc)
        self._config = config
        self._network = network
        self._on_waiting = on_waiting
        self._clock = clock
        self._tip: BlockRef | None = None
        self._fees: dict[int, tuple[float, BlockRef | None, int]] = {}
        self._waiters: list[TipWaiter] = []

    # Starting and following

    async def start(self) -> None:
        """Wait until bitcoind answers, telling why it has to be waited for. Raises WrongChain."""
        attempt = 0
        while True:
            try:
                await self._check_chain()
                return
            except (ChainUnavailable, RpcError) as error:
                _log.warning("waiting for layer 1", reason=str(error))
                if self._on_waiting is not None:
                    self._on_waiting(str(error))
                delays = self._config.retry_seconds
                await asyncio.sleep(delays[min(attempt, len(delays) - 1)])
                attempt += 1

    async def _check_chain(self) -> None:
        genesis = _hash(await self.rpc.call("getblockhash", 0))
        if genesis != self._network.genesis_hash:
            raise WrongChain(
                f"bitcoind at {self.rpc.url} follows a chain with genesis block {genesis[::-1].hex()}, but the network "
                f"{self._network.name} starts with {self._network.genesis_hash[::-1].hex()}"
            )
        await self.chain_state()

    async def close(self) -> None:
        """Close all connections."""
        for waiter in self._waiters:
            await waiter.close()
        self._waiters.clear()
        await self.rpc.close()

    async def follow(
        self, from_tip: Sequence[BlockRef] | BlockRef | None, *, birthday_height: int | None = None
    ) -> AsyncIterator[ChainEvent]:
        """See ChainSource.follow."""
        waiter = TipWaiter(
            self.rpc,
            zmq_address=self._config.zmq_address,
            zmq_check_seconds=self._config.zmq_check_seconds,
            long_poll_seconds=self._config.long_poll_seconds,
            poll_seconds=self._config.poll_seconds,
        )
        self._waiters.append(waiter)
        started = False

        async def wait(tip: BlockRef) -> None:
            nonlocal started
            if not started:
                await waiter.start()
                started = True
                return  # what came before the subscription is found by looking once more
            await waiter.wait(tip)

        follower = Follower(
            self,
            wait,
            reorg_limit_blocks=self._config.reorg_limit_blocks,
            retry_seconds=self._config.retry_seconds,
        )
        try:
            async for event in follower.run(from_tip, birthday_height):
                yield event
        finally:
            await waiter.close()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def tip(self) -> BlockRef:
        """bitcoind's tip as last seen. Raises ChainUnavailable before the first contact."""
        if self._tip is None:
            raise ChainUnavailable("layer 1 has not answered yet")
        return self._tip

    def height(self) -> int:
        """The height of `tip()`."""
        return self.tip().height

    # Blocks

    async def chain_state(self) -> ChainState:
        """The present tip, asked now."""
        info = await self.rpc.call("getblockchaininfo")
        self._tip = BlockRef(int(info["blocks"]), _hash(info["bestblockhash"]))
        return ChainState(self._tip, bool(info.get("initialblockdownload", False)))

    async def hashes(self, heights: range) -> list[bytes]:
        """Block hashes of the chain at `heights`. Raises ChainMoved if one is above the tip."""
        results = await self.rpc.batch([("getblockhash", (height,)) for height in heights])
        for result in results:
            if isinstance(result, RpcError):
                raise ChainMoved(str(result)) if result.code == RPC_INVALID_PARAMETER else result
        return [_hash(result) for result in results]

    async def get_block_hash(self, height: int) -> bytes | None:
        """The hash of the chain's block at `height`, or None above the tip."""
        try:
            return _hash(await self.rpc.call("getblockhash", height))
        except RpcError as error:
            if error.code == RPC_INVALID_PARAMETER:
                return None
            raise

    async def get_header(self, block_hash: bytes) -> BlockHeader | None:
        """The header of a block of any branch, or None if bitcoind does not know it."""
        try:
            raw = await self.rpc.call("getblockheader", _hex(block_hash), False)
        except RpcError as error:
            if error.code == RPC_INVALID_ADDRESS_OR_KEY:
                return None
            raise
        return BlockHeader.parse(bytes.fromhex(raw))

    async def get_block(self, block_hash: bytes) -> Block:
        """A block. Raises ChainMoved if bitcoind does not know it, ChainError if it was pruned."""
        raw = await self._getblock(block_hash, 0)
        try:
            return Block.parse(bytes.fromhex(raw))
        except SerializationError as error:
            raise ChainError(f"bitcoind's block {_hex(block_hash)} is not readable: {error}") from error

    async def get_block_txids(self, block_hash: bytes) -> list[bytes]:
        """The ids of a block's transactions. Raises as `get_block` does."""
        return [_hash(txid) for txid in (await self._getblock(block_hash, 1))["tx"]]

    async def _getblock(self, block_hash: bytes, verbosity: int) -> Any:
        try:
            return await self.rpc.call("getblock", _hex(block_hash), verbosity)
        except RpcError as error:
            if error.code == RPC_INVALID_ADDRESS_OR_KEY:
                raise ChainMoved(f"bitcoind does not know block {_hex(block_hash)}") from error
            if error.code == RPC_MISC_ERROR and "pruned" in error.message:
                raise ChainError(
                    f"bitcoind at {self.rpc.url} has pruned block {_hex(block_hash)}, which is needed: "
                    "use one that keeps blocks for longer (prune=0)"
                ) from error
            raise

    # Transactions and outputs

    async def get_tx(self, txid: bytes, block_hash: bytes | None = None) -> Tx | None:
        """A transaction in the mempool, in the index if bitcoind has one, or in the given block; else None."""
        params: list[Any] = [_hex(txid), 0]
        if block_hash is not None:
            params.append(_hex(block_hash))
        try:
            raw = await self.rpc.call("getrawtransaction", *params)
        except RpcError as error:
            if error.code == RPC_INVALID_ADDRESS_OR_KEY:
                return None
            raise
        return Tx.parse(bytes.fromhex(raw))

    async def utxo(self, outpoint: OutPoint, *, include_mempool: bool = True) -> UnspentOutput | None:
        """The output if it exists and nothing spends it."""
        found = await self.rpc.call("gettxout", _hex(outpoint.txid), outpoint.vout, include_mempool)
        if found is None:
            return None
        txout = TxOut(btc_to_sat(found["value"]), bytes.fromhex(found["scriptPubKey"]["hex"]))
        return UnspentOutput(txout, int(found["confirmations"]), bool(found["coinbase"]))

    async def spending_tx_in_mempool(self, outpoint: OutPoint) -> Tx | None:
        """The unconfirmed transaction that spends `outpoint`, if there is one."""
        query = [{"txid": _hex(outpoint.txid), "vout": outpoint.vout}]
        (answer,) = await self.rpc.call("gettxspendingprevout", query)
        spender = answer.get("spendingtxid")
        return None if spender is None else await self.get_tx(_hash(spender))

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        """Offer one transaction. Raises ChainUnavailable."""
        try:
            await self.rpc.call("sendrawtransaction", tx.serialize().hex(), 0)
        except RpcError as error:
            return await self._rejection(tx, error)
        return BroadcastResult(BroadcastOutcome.ACCEPTED)

    async def _rejection(self, tx: Tx, error: RpcError) -> BroadcastResult:
        message = error.message
        if error.code == RPC_VERIFY_ALREADY_IN_CHAIN:
            return BroadcastResult(BroadcastOutcome.ALREADY_MINED, message)
        if error.code == RPC_METHOD_NOT_FOUND:
            raise error
        result = _judge(message)
        if result.outcome is BroadcastOutcome.REJECTED and error.code == RPC_VERIFY_ERROR and await self._is_mined(tx):
            return BroadcastResult(BroadcastOutcome.ALREADY_MINED, message)
        if error.code not in (RPC_VERIFY_ERROR, RPC_VERIFY_REJECTED):
            _log.warning("unexpected answer to a broadcast", code=error.code, message=message, txid=tx.txid_hex)
        return result

    async def _is_mined(self, tx: Tx) -> bool:
        """Missing inputs are what a mined transaction's own inputs look like: is one of its outputs there?"""
        txid = tx.txid()
        for vout in range(len(tx.outputs)):
            found = await self.utxo(OutPoint(txid, vout), include_mempool=False)
            if found is not None:
                return True
        try:
            known = await self.rpc.call("getrawtransaction", _hex(txid), 1)
        except RpcError:
            return False
        return int(known.get("confirmations", 0)) > 0

    async def broadcast_package(self, txs: Sequence[Tx]) -> list[BroadcastResult]:
        """Offer parents and their child (last) together (submitpackage). A bitcoind without it, or with one for regtest
        alone (version 25), gets them one by one: an error of the whole call says nothing of any of them."""
        if len(txs) < 2:
            return [await self.broadcast(tx) for tx in txs]
        try:
            answer = await self._submit_package([tx.serialize().hex() for tx in txs])
        except RpcError as error:
            if error.code != RPC_METHOD_NOT_FOUND:
                _log.info("no package is taken: its transactions go one by one", reason=error.message)
            return [await self.broadcast(tx) for tx in txs]
        by_wtxid = answer.get("tx-results", {})
        results = []
        for tx in txs:
            entry = by_wtxid.get(_hex(tx.wtxid()), {})
            took = "txid" in entry and "vsize" in entry
            reason = entry.get("error") or ("" if took else answer.get("package_msg", ""))
            results.append(await self._package_result(tx, reason, entry))
        if not results[-1].ok and all(result.ok for result in results[:-1]):
            results[-1] = await self.broadcast(txs[-1])  # a package whose parents were mined meanwhile is no package
        return results

    async def _submit_package(self, raws: list[str]) -> Any:
        """Without a limit for fee rates: the child's own is judged, and one that lifts a large commitment is high."""
        try:
            return await self.rpc.call("submitpackage", raws, 0)
        except RpcError as error:
            if error.code != RPC_MISC_ERROR:
                raise
            return await self.rpc.call("submitpackage", raws)  # before version 27 it knew no limit

    async def _package_result(self, tx: Tx, reason: str, entry: dict[str, Any]) -> BroadcastResult:
        if "other-wtxid" in entry:
            return BroadcastResult(BroadcastOutcome.ALREADY_KNOWN, "same transaction with another witness")
        if not reason or reason == "success":
            return BroadcastResult(BroadcastOutcome.ACCEPTED)
        return await self._rejection(tx, RpcError(RPC_VERIFY_ERROR, reason, "submitpackage"))

    # Fees

    async def fee_rate_sat_per_kw(self, target_blocks: int) -> int:
        """See FeeEstimator. Raises ChainUnavailable only if bitcoind never answered this question. An answer is good
        for a while, but only until the next block: that is when estimates change, and what waits is priced anew."""
        now, tip = self._clock(), self._tip
        cached = self._fees.get(target_blocks)
        if cached is not None and cached[1] == tip and now - cached[0] < self._config.fee_cache_seconds:
            return cached[2]
        targets = [target_blocks, *(known for known in self._fees if known != target_blocks)]
        try:
            rates = await self._estimate(targets)
        except ChainUnavailable:
            if cached is not None:
                return cached[2]
            raise
        self._fees.update({target: (now, tip, rate) for target, rate in rates.items()})
        return rates[target_blocks]

    async def _estimate(self, targets_blocks: Sequence[int]) -> dict[int, int]:
        """Fee rates (sat per 1,000 weight units) by target. All that was ever asked for goes into one request: who asks
        for one target after a block asks for the others right afterwards."""
        wanted = {target: _with_longer(target) for target in targets_blocks}
        asked = sorted({each for chain in wanted.values() for each in chain})
        calls: list[tuple[str, Sequence[Any]]] = [("getmempoolinfo", ())]
        calls += [("estimatesmartfee", (target,)) for target in asked]
        mempool, *answers = await self.rpc.batch(calls)
        if isinstance(mempool, RpcError):
            raise mempool
        floor = sat_per_kw_from_kvb(btc_to_sat(max(mempool["mempoolminfee"], mempool.get("minrelaytxfee", 0))))
        floor = max(floor, FEERATE_FLOOR_SAT_PER_KW)
        estimates = {
            target: sat_per_kw_from_kvb(btc_to_sat(answer["feerate"]))
            for target, answer in zip(asked, answers, strict=True)
            if not isinstance(answer, RpcError) and "feerate" in answer
        }
        fallback = self._config.fallback_feerate_sat_per_kw
        return {
            target: max(floor, next((estimates[each] for each in chain if each in estimates), fallback))
            for target, chain in wanted.items()
        }


def _with_longer(target_blocks: int) -> list[int]:
    """A target, and those to go by if bitcoind has no data for it: the nearest first."""
    return [max(2, target_blocks), *(longer for longer in _LONGER_TARGETS_BLOCKS if longer > target_blocks)]


def _judge(message: str) -> BroadcastResult:
    """What bitcoind's words for a rejection mean."""
    lower = message.lower()
    if any(word in lower for word in _ALREADY_KNOWN):
        return BroadcastResult(BroadcastOutcome.ALREADY_KNOWN, message)
    if any(word in lower for word in _ALREADY_MINED):
        return BroadcastResult(BroadcastOutcome.ALREADY_MINED, message)
    retriable, underpaid, orphaned = (
        any(word in lower for word in words) for words in (_RETRIABLE, _UNDERPAID, _ORPHANED)
    )
    return BroadcastResult(BroadcastOutcome.REJECTED, message, retriable, underpaid, orphaned)


def _hash(text: str) -> bytes:
    return bytes.fromhex(text)[::-1]


def _hex(block_hash: bytes) -> str:
    return block_hash[::-1].hex()
