"""A stand-in for bitcoind's RPC server: blocks without proof of work, answers in its shapes, faults on demand."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import pbk
from aiohttp import web
from pbk.script import PrecomputedTransactionData

from wallet.bitcoin import Block, BlockHeader, OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import REGTEST
from wallet.bitcoin.tx import merkle_root

GENESIS = BlockHeader(
    1,
    bytes(32),
    bytes.fromhex("3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a"),
    1296688602,
    0x207FFFFF,
    2,
)
assert GENESIS.hash() == REGTEST.genesis_hash


class FakeError(Exception):
    """An error that bitcoind would answer with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def coinbase(height: int, salt: int = 0, outputs: tuple[TxOut, ...] = (TxOut(50_0000_0000, b"\x51"),)) -> Tx:
    """A coinbase that no other height or salt has."""
    script = b"\x04" + height.to_bytes(4, "little") + b"\x04" + salt.to_bytes(4, "little")
    return Tx(2, (TxIn(OutPoint(bytes(32), 0xFFFF_FFFF), script),), outputs, 0)


class FakeChain:
    """A chain of blocks that tests extend and reorganise."""

    def __init__(self) -> None:
        genesis = Block(GENESIS, (coinbase(0),))
        self.known: dict[bytes, tuple[int, Block]] = {GENESIS.hash(): (0, genesis)}
        self.active: list[bytes] = [GENESIS.hash()]
        self._salt = 0

    @property
    def height(self) -> int:
        return len(self.active) - 1

    def mine(self, count: int = 1, *txs: Tx, payout: tuple[TxOut, ...] | None = None) -> list[bytes]:
        """Add blocks; the first carries `txs`. Returns their hashes."""
        hashes = []
        for _ in range(count):
            self._salt += 1
            height = self.height + 1
            reward = coinbase(height, self._salt) if payout is None else coinbase(height, self._salt, payout)
            body = (reward, *txs)
            root = merkle_root([tx.txid() for tx in body])
            header = BlockHeader(4, self.active[-1], root, 1_700_000_000 + height * 600, 0x207FFFFF, self._salt)
            self.known[header.hash()] = (height, Block(header, body))
            self.active.append(header.hash())
            hashes.append(header.hash())
            txs = ()
        return hashes

    def cut(self, to_height: int) -> None:
        """Drop the blocks above `to_height` from the active chain (they stay known)."""
        del self.active[to_height + 1 :]

    def block(self, height: int) -> Block:
        return self.known[self.active[height]][1]


class FakeBitcoind:
    """Serves a FakeChain. `calls` lists the methods called; handlers in `methods` may be replaced or removed."""

    def __init__(self, chain: FakeChain | None = None) -> None:
        self.chain = chain or FakeChain()
        self.calls: list[tuple[str, list[Any]]] = []
        self.down = False
        self.busy_answers = self.refused = 0
        self.user, self.password = "user", "pass"
        self.initial_block_download = False
        self.changed = asyncio.Condition()
        self.mempool: dict[bytes, Tx] = {}
        self.methods: dict[str, Callable[..., Any]] = {
            name.removeprefix("rpc_"): getattr(self, name) for name in dir(self) if name.startswith("rpc_")
        }
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def mine(self, count: int = 1, *txs: Tx, payout: tuple[TxOut, ...] | None = None) -> list[bytes]:
        hashes = self.chain.mine(count, *txs, payout=payout)
        await self.notify()
        return hashes

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        expected = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if request.headers.get("Authorization") != expected:
            self.refused += 1
            return web.Response(status=401)
        if self.busy_answers:
            self.busy_answers -= 1
            return web.Response(status=503, text="Work queue depth exceeded")
        body = json.loads(await request.read())
        if self.down:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if isinstance(body, list):
            replies = [await self._answer(call) for call in body]
            return web.json_response([reply for reply, _ in reversed(replies)])
        reply, status = await self._answer(body)
        return web.json_response(reply, status=status)

    async def _answer(self, call: dict[str, Any]) -> tuple[dict[str, Any], int]:
        method, params = call["method"], list(call.get("params", []))
        self.calls.append((method, params))
        result, error, status = None, None, 200
        try:
            if method not in self.methods:
                raise FakeError(-32601, "Method not found")
            result = self.methods[method](*params)
            if asyncio.iscoroutine(result):
                result = await result
        except FakeError as failure:
            error = {"code": failure.code, "message": failure.message}
            status = 404 if failure.code == -32601 else 500
        except TypeError:
            error, status = {"code": -1, "message": f"{method}\n\nhelp text"}, 500
        return {"result": result, "error": error, "id": call["id"]}, status

    # The methods, as bitcoind 25 to 30 answer them

    def rpc_getblockchaininfo(self) -> Any:
        tip = self.chain.active[-1]
        return {
            "chain": "regtest",
            "blocks": self.chain.height,
            "headers": self.chain.height,
            "bestblockhash": tip[::-1].hex(),
            "difficulty": 4.656542373906925e-10,
            "initialblockdownload": self.initial_block_download,
            "pruned": False,
            "warnings": [],
        }

    def rpc_getblockhash(self, height: int) -> str:
        if not 0 <= height <= self.chain.height:
            raise FakeError(-8, "Block height out of range")
        return self.chain.active[height][::-1].hex()

    def rpc_getbestblockhash(self) -> str:
        return self.chain.active[-1][::-1].hex()

    def rpc_getblockheader(self, block_hash: str, verbose: bool = True) -> str:
        assert verbose is False
        return self._known(block_hash).header.serialize().hex()

    def rpc_getblock(self, block_hash: str, verbosity: int = 1) -> str:
        assert verbosity == 0
        return self._known(block_hash).serialize().hex()

    def _known(self, block_hash: str) -> Block:
        found = self.chain.known.get(bytes.fromhex(block_hash)[::-1])
        if found is None:
            raise FakeError(-5, "Block not found")
        return found[1]

    async def rpc_waitfornewblock(self, timeout: int = 0, current_tip: str | None = None) -> Any:
        """As version 30: with `current_tip` it answers at once if the tip is another already."""
        known = bytes.fromhex(current_tip)[::-1] if current_tip else self.chain.active[-1]
        try:
            async with asyncio.timeout(timeout / 1000), self.changed:
                await self.changed.wait_for(lambda: self.chain.active[-1] != known)
        except TimeoutError:
            pass
        return {"hash": self.chain.active[-1][::-1].hex(), "height": self.chain.height}

    def rpc_getmempoolinfo(self) -> Any:
        return {"loaded": True, "size": 0, "mempoolminfee": 0.00001, "minrelaytxfee": 0.00001}

    def rpc_estimatesmartfee(self, conf_target: int, mode: str = "economical") -> Any:
        return {"errors": ["Insufficient data or no feerate found"], "blocks": conf_target}

    def rpc_sendrawtransaction(self, raw: str, maxfeerate: float = 0.1) -> str:
        tx = Tx.parse(bytes.fromhex(raw))
        self.mempool[tx.txid()] = tx
        return tx.txid_hex

    def rpc_getrawtransaction(self, txid: str, verbosity: int = 0, block_hash: str | None = None) -> Any:
        wanted = bytes.fromhex(txid)[::-1]
        pool = self._known(block_hash).txs if block_hash else tuple(self.mempool.values())
        for tx in pool:
            if tx.txid() == wanted:
                return tx.serialize().hex()
        raise FakeError(-5, "No such mempool transaction. Use -txindex or provide a block hash")


def script_ok(tx: Tx, place: int, spent: Sequence[TxOut]) -> bool:
    """Whether Bitcoin Core's script engine accepts input `place`; `spent` are all inputs' outputs."""
    transaction = pbk.Transaction(tx.serialize())
    outputs = [pbk.TransactionOutput(pbk.ScriptPubkey(txout.script_pubkey), txout.value_sat) for txout in spent]
    precomputed = PrecomputedTransactionData(transaction, outputs)
    script = pbk.ScriptPubkey(spent[place].script_pubkey)
    try:
        value_sat = spent[place].value_sat
        return bool(script.verify(value_sat, transaction, precomputed, place, pbk.ScriptVerificationFlags.ALL))
    except pbk.ScriptVerifyException:
        return False
