"""RPC methods about the mempool, fees and mining."""

from __future__ import annotations

from collections.abc import Iterable

from wallet.bitcoin import Block, OutPoint, SerializationError, Tx
from wallet.bitcoin.address import REGTEST, AddressError, script_of
from wallet.regtest import forms
from wallet.regtest.errors import (
    DESERIALIZATION_ERROR,
    INVALID_ADDRESS_OR_KEY,
    INVALID_PARAMETER,
    MISC_ERROR,
    VERIFY_ERROR,
    RpcError,
)
from wallet.regtest.fees import MAX_TARGET_BLOCKS
from wallet.regtest.forms import amount, hex_of, rate
from wallet.regtest.miner import subsidy, witness_commitment
from wallet.regtest.node import BlockRefused
from wallet.regtest.policy import MAX_BLOCK_SIGOPS_COST, MAX_BLOCK_WEIGHT
from wallet.regtest.pool import Entry, Pool
from wallet.regtest.rpc.blockchain import script_of_descriptor
from wallet.regtest.rpc.rawtx import decode_tx
from wallet.regtest.rpc.registry import Call, Json, Param, expect, method, read_amount, read_hash, read_int

_DEFAULT_TRIES = 1_000_000


def _entry(call: Call, txid: bytes) -> Entry:
    entry = call.node.mempool.pool.entries.get(txid)
    if entry is None:
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Transaction not in mempool")
    return entry


def _entry_form(pool: Pool, entry: Entry) -> dict[str, Json]:
    ancestors = pool.ancestors((entry.txid,)).values()
    descendants = pool.descendants((entry.txid,)).values()
    return {
        "vsize": entry.vsize,
        "weight": entry.weight,
        "time": entry.time,
        "height": entry.height,
        "descendantcount": len(descendants),
        "descendantsize": sum(relative.vsize for relative in descendants),
        "ancestorcount": len(ancestors),
        "ancestorsize": sum(relative.vsize for relative in ancestors),
        "wtxid": hex_of(entry.wtxid),
        "fees": {
            "base": amount(entry.fee_sat),
            "modified": amount(entry.modified_fee_sat),
            "ancestor": amount(sum(relative.modified_fee_sat for relative in ancestors)),
            "descendant": amount(sum(relative.modified_fee_sat for relative in descendants)),
        },
        "depends": [hex_of(txid) for txid in entry.parents],
        "spentby": [hex_of(txid) for txid in entry.children],
        "bip125-replaceable": any(txin.sequence < 0xFFFF_FFFE for relative in ancestors for txin in relative.tx.inputs),
        "unbroadcast": entry.txid in pool.unbroadcast,
    }


def _listed(pool: Pool, txids: Iterable[bytes], verbose: bool) -> Json:
    if verbose:
        return {hex_of(txid): _entry_form(pool, pool.entries[txid]) for txid in txids}
    return [hex_of(txid) for txid in txids]


@method("blockchain", Param("verbose", "bool", False), Param("mempool_sequence", "bool", False))
def getrawmempool(call: Call, verbose: bool, mempool_sequence: bool) -> Json:
    """Returns all transaction ids in memory pool as a json array, or as an object with details."""
    pool = call.node.mempool.pool
    if not mempool_sequence:
        return _listed(pool, pool.entries, verbose)
    if verbose:
        raise RpcError(INVALID_PARAMETER, "Verbose results cannot contain mempool sequence values.")
    return {"txids": _listed(pool, pool.entries, False), "mempool_sequence": pool.sequence}


@method("blockchain", Param("txid", "hash"))
def getmempoolentry(call: Call, txid: bytes) -> Json:
    """Returns mempool data for given transaction."""
    return _entry_form(call.node.mempool.pool, _entry(call, txid))


@method("blockchain", Param("txid", "hash"), Param("verbose", "bool", False))
def getmempoolancestors(call: Call, txid: bytes, verbose: bool) -> Json:
    """If txid is in the mempool, returns all in-mempool ancestors."""
    pool = call.node.mempool.pool
    return _listed(pool, pool.ancestors(_entry(call, txid).parents), verbose)


@method("blockchain", Param("txid", "hash"), Param("verbose", "bool", False))
def getmempooldescendants(call: Call, txid: bytes, verbose: bool) -> Json:
    """If txid is in the mempool, returns all in-mempool descendants."""
    pool = call.node.mempool.pool
    return _listed(pool, pool.descendants(_entry(call, txid).children), verbose)


@method("blockchain")
def getmempoolinfo(call: Call) -> Json:
    """Returns details on the active state of the TX memory pool."""
    mempool, pool = call.node.mempool, call.node.mempool.pool
    policy = mempool.policy
    floor = max(pool.min_fee_rate(call.node.clock.now()), policy.min_relay_fee)
    return {
        "loaded": mempool.loaded,
        "size": len(pool.entries),
        "bytes": sum(entry.vsize for entry in pool.entries.values()),
        "usage": pool.usage,
        "total_fee": amount(sum(entry.fee_sat for entry in pool.entries.values())),
        "maxmempool": policy.max_mempool_bytes,
        "mempoolminfee": rate(floor),
        "minrelaytxfee": rate(policy.min_relay_fee),
        "incrementalrelayfee": rate(policy.incremental_relay_fee),
        "unbroadcastcount": len(pool.unbroadcast),
        "fullrbf": True,
    }


@method("blockchain", Param("outputs", "array"))
def gettxspendingprevout(call: Call, outputs: list[Json]) -> Json:
    """Scans the mempool to find transactions spending any of the given outputs."""
    if not outputs:
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, outputs are missing")
    answers = []
    for item in outputs:
        expect(item, "object", "outputs")
        txid = read_hash(item.get("txid"), "txid")
        vout = read_int(item.get("vout"), "vout")
        if vout < 0:
            raise RpcError(INVALID_PARAMETER, "Invalid parameter, vout cannot be negative")
        form: dict[str, Json] = {"txid": hex_of(txid), "vout": vout}
        spender = call.node.mempool.pool.spenders.get(OutPoint(txid, vout))
        if spender is not None:
            form["spendingtxid"] = hex_of(spender)
        answers.append(form)
    return answers


@method("blockchain")
def savemempool(call: Call) -> Json:
    """Dumps the mempool to disk."""
    call.node.mempool.save()
    return {"filename": str(call.node.store.path)}


# Fees.


@method("util", Param("conf_target", "int"), Param("estimate_mode", "string", "economical"))
def estimatesmartfee(call: Call, conf_target: int, estimate_mode: str) -> Json:
    """Estimates the fee rate (BTC/kvB) for confirmation within conf_target blocks, from what was mined lately."""
    if not 1 <= conf_target <= MAX_TARGET_BLOCKS:
        raise RpcError(INVALID_PARAMETER, f"Invalid conf_target, must be between 1 and {MAX_TARGET_BLOCKS}")
    if estimate_mode.lower() not in ("unset", "economical", "conservative"):
        raise RpcError(
            INVALID_PARAMETER, 'Invalid estimate_mode parameter, must be one of: "unset", "economical", "conservative"'
        )
    target = max(2, int(conf_target))
    found = call.node.fees.estimate(target)
    if found is None:
        return {"errors": ["Insufficient data or no feerate found"], "blocks": target}
    floor = call.node.mempool.pool.min_fee_rate(call.node.clock.now())
    return {"feerate": rate(max(found, floor)), "blocks": target}


@method("hidden", Param("feerate", "amount", None))
def setestimatedfee(call: Call, feerate: Json) -> Json:
    """Not in bitcoind: what estimatesmartfee answers from now on, in BTC/kvB; null: estimate again."""
    call.node.fees.fixed_rate = None if feerate is None else read_amount(feerate)


# Mining.


async def _mine(call: Call, script: bytes, count: int) -> list[str]:
    hashes = []
    for _ in range(count):
        if call.node.stopping.is_set():
            break
        try:
            block = await call.node.mine(script)
        except BlockRefused as error:
            raise RpcError(MISC_ERROR, f"TestBlockValidity failed: {error}") from error
        hashes.append(hex_of(block.header.hash()))
    return hashes


@method("mining", Param("nblocks", "int"), Param("address", "string"), Param("maxtries", "int", _DEFAULT_TRIES))
async def generatetoaddress(call: Call, nblocks: int, address: str, maxtries: int) -> Json:
    """Mine to a specified address and return the block hashes."""
    try:
        script = script_of(address, REGTEST)
    except AddressError:
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Error: Invalid address") from None
    return await _mine(call, script, int(nblocks))


@method(
    "hidden",
    Param("num_blocks", "int"),
    Param("descriptor", "string"),
    Param("maxtries", "int", _DEFAULT_TRIES),
)
async def generatetodescriptor(call: Call, num_blocks: int, descriptor: str, maxtries: int) -> Json:
    """Mine to an addr() or raw() descriptor and return the block hashes."""
    return await _mine(call, script_of_descriptor(descriptor), int(num_blocks))


@method("hidden")
def generate(call: Call) -> Json:
    """Replaced by the -generate option of bitcoin-cli."""
    raise RpcError(
        -32601, "generate\n\nhas been replaced by the -generate cli option. Refer to -help for more information.\n"
    )


@method("hidden", Param("output", "string"), Param("transactions", "array"), Param("submit", "bool", True))
async def generateblock(call: Call, output: str, transactions: list[Json], submit: bool) -> Json:
    """Mine a set of ordered transactions (raw, or txids of the mempool) to an address; their fees go to nobody."""
    script = script_of_descriptor(output)
    pool = call.node.mempool.pool
    txs: list[Tx] = []
    for item in transactions:
        text = expect(item, "string", "transactions")
        if len(text) == 64:
            entry = pool.entries.get(read_hash(text, "txid"))
            if entry is None:
                raise RpcError(INVALID_ADDRESS_OR_KEY, f"Transaction {text} not in mempool.")
            tx = entry.tx
        else:
            tx = decode_tx(text)
        txs.append(tx)
    if not submit:
        block = call.node.miner.build(script, txs, 0)
        return {"hash": hex_of(block.header.hash()), "hex": block.serialize().hex()}
    try:
        block = await call.node.mine(script, txs)
    except BlockRefused as error:
        raise RpcError(VERIFY_ERROR, f"TestBlockValidity failed: {error}") from error
    return {"hash": hex_of(block.header.hash())}


@method("mining", Param("hexdata", "string"), Param("dummy", "string", "ignored"))
async def submitblock(call: Call, hexdata: str, dummy: str) -> Json:
    """Attempts to submit new block to network. Null, or why it did not become part of the chain."""
    try:
        raw = bytes.fromhex(hexdata)
        block = Block.parse(raw)
        if not block.txs:
            raise SerializationError("no transactions")
    except (ValueError, SerializationError):
        raise RpcError(DESERIALIZATION_ERROR, "Block decode failed") from None
    return await call.node.submit_block(block, raw)


@method("mining", Param("txid", "hash"), Param("dummy", "int", 0), Param("fee_delta", "int", 0))
def prioritisetransaction(call: Call, txid: bytes, dummy: Json, fee_delta: Json) -> Json:
    """Accepts the transaction into mined blocks at a higher (or lower) priority: fee_delta in satoshi."""
    if dummy:
        raise RpcError(
            INVALID_PARAMETER, "Priority is no longer supported, dummy argument to prioritisetransaction must be 0."
        )
    call.node.mempool.pool.prioritise(txid, read_int(fee_delta, "fee_delta"))
    return True


@method("mining")
def getprioritisedtransactions(call: Call) -> Json:
    """Returns a map of all user-created fee deltas by txid, and whether the tx is present in mempool."""
    pool = call.node.mempool.pool
    answer: dict[str, Json] = {}
    for txid, delta in pool.deltas.items():
        answer[hex_of(txid)] = {"fee_delta": delta, "in_mempool": txid in pool}
        if txid in pool:
            answer[hex_of(txid)]["modified_fee"] = pool.entries[txid].modified_fee_sat
    return answer


@method("mining")
def getmininginfo(call: Call) -> Json:
    """Returns a json object containing mining-related information."""
    chain = call.node.chain
    bits = f"{chain.tip.header.bits:08x}"
    return {
        "blocks": chain.height,
        "bits": bits,
        "difficulty": forms.DIFFICULTY,
        "target": forms.TARGET,
        "networkhashps": _hashes_per_second(call, 120),
        "pooledtx": len(call.node.mempool.pool.entries),
        "blockmintxfee": rate(call.node.mempool.policy.block_min_fee),
        "chain": "regtest",
        "next": {
            "height": chain.height + 1,
            "bits": bits,
            "difficulty": forms.DIFFICULTY,
            "target": forms.TARGET,
        },
        "warnings": [],
    }


def _hashes_per_second(call: Call, nblocks: int) -> float:
    chain = call.node.chain
    first = chain.active[max(0, chain.height - max(1, nblocks))]
    seconds = chain.tip.header.time - first.header.time
    return (chain.tip.chainwork - first.chainwork) / seconds if seconds > 0 else 0


@method("mining", Param("nblocks", "int", 120), Param("height", "int", -1))
def getnetworkhashps(call: Call, nblocks: int, height: int) -> Json:
    """Returns the estimated network hashes per second."""
    return _hashes_per_second(call, int(nblocks))


@method("mining", Param("template_request", "object", None))
def getblocktemplate(call: Call, template_request: dict[str, Json] | None) -> Json:
    """Returns data needed to construct a block to work on (BIP 22, 23, 145)."""
    rules = expect((template_request or {}).get("rules", []), "array", "rules")
    if "segwit" not in rules:
        raise RpcError(
            INVALID_PARAMETER,
            'getblocktemplate must be called with the segwit rule set (call with {"rules": ["segwit"]})',
        )
    node, tip = call.node, call.node.chain.tip
    template = node.miner.template()
    numbers = {entry.txid: number for number, entry in enumerate(template.entries, 1)}
    return {
        "capabilities": ["proposal"],
        "version": 0x2000_0000,
        "rules": ["csv", "!segwit", "taproot"],
        "vbavailable": {},
        "vbrequired": 0,
        "previousblockhash": hex_of(tip.hash),
        "transactions": [
            {
                "data": entry.raw.hex(),
                "txid": hex_of(entry.txid),
                "hash": hex_of(entry.wtxid),
                "depends": [numbers[parent] for parent in entry.parents],
                "fee": entry.fee_sat,
                "sigops": entry.sigops,
                "weight": entry.weight,
            }
            for entry in template.entries
        ],
        "coinbaseaux": {},
        "coinbasevalue": subsidy(tip.height + 1) + template.fees_sat,
        "longpollid": f"{hex_of(tip.hash)}{node.mempool.pool.sequence}",
        "target": forms.TARGET,
        "mintime": tip.median_time + 1,
        "mutable": ["time", "transactions", "prevblock"],
        "noncerange": "00000000ffffffff",
        "sigoplimit": MAX_BLOCK_SIGOPS_COST,
        "sizelimit": MAX_BLOCK_WEIGHT,
        "weightlimit": MAX_BLOCK_WEIGHT,
        "curtime": node.miner.block_time(tip),
        "bits": f"{tip.header.bits:08x}",
        "height": tip.height + 1,
        "default_witness_commitment": witness_commitment([entry.tx for entry in template.entries]).hex(),
    }
