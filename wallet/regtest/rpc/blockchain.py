"""RPC methods about blocks, the chain and its coins."""

from __future__ import annotations

import hashlib
from typing import Any

from wallet.bitcoin import OutPoint
from wallet.bitcoin.address import REGTEST, AddressError, script_of
from wallet.bitcoin.encoding import var_bytes
from wallet.regtest import forms
from wallet.regtest.chain import BlockNode, Chain
from wallet.regtest.errors import INVALID_ADDRESS_OR_KEY, INVALID_PARAMETER, MISC_ERROR, RpcError
from wallet.regtest.forms import amount, hex_of
from wallet.regtest.miner import subsidy
from wallet.regtest.rpc.registry import Call, Json, Param, method, read_hash, read_strings

_HASH = Param("blockhash", "hash")
_MAX_WAIT_MS = 2**31 - 1


def find_block(chain: Chain, block_hash: bytes, message: str = "Block not found") -> BlockNode:
    """The block of that hash. Raises RpcError(-5)."""
    node = chain.nodes.get(block_hash)
    if node is None:
        raise RpcError(INVALID_ADDRESS_OR_KEY, message)
    return node


def _by_height_or_hash(chain: Chain, value: Json) -> BlockNode:
    if isinstance(value, str):
        return find_block(chain, read_hash(value, "hash_or_height"))
    height = int(value)
    if height < 0:
        raise RpcError(INVALID_PARAMETER, f"Target block height {height} is negative")
    if height > chain.height:
        raise RpcError(INVALID_PARAMETER, f"Target block height {height} after current tip {chain.height}")
    return chain.active[height]


@method("blockchain")
def getbestblockhash(call: Call) -> Json:
    """Returns the hash of the best (tip) block in the most-work fully-validated chain."""
    return hex_of(call.node.chain.tip.hash)


@method("blockchain")
def getblockcount(call: Call) -> Json:
    """Returns the height of the most-work fully-validated chain. The genesis block has height 0."""
    return call.node.chain.height


@method("blockchain", Param("height", "int"))
def getblockhash(call: Call, height: int) -> Json:
    """Returns hash of block in best-block-chain at height provided."""
    chain = call.node.chain
    if not 0 <= height <= chain.height:
        raise RpcError(INVALID_PARAMETER, "Block height out of range")
    return hex_of(chain.active[int(height)].hash)


@method("blockchain")
def getblockchaininfo(call: Call) -> Json:
    """Returns an object containing various state info regarding blockchain processing."""
    chain = call.node.chain
    tip = chain.tip
    return {
        "chain": "regtest",
        "blocks": chain.height,
        "headers": chain.height,
        "bestblockhash": hex_of(tip.hash),
        "bits": f"{tip.header.bits:08x}",
        "target": forms.TARGET,
        "difficulty": forms.DIFFICULTY,
        "time": tip.header.time,
        "mediantime": tip.median_time,
        "verificationprogress": 1,
        "initialblockdownload": False,
        "chainwork": f"{tip.chainwork:064x}",
        "size_on_disk": chain.store.path.stat().st_size,
        "pruned": False,
        "warnings": [],
    }


@method("blockchain", _HASH, Param("verbosity|verbose", "int or bool", 1))
def getblock(call: Call, blockhash: bytes, verbosity: int) -> Json:
    """Returns a block: as hex (0), with txids (1), with transactions (2), with what they spend (3)."""
    chain = call.node.chain
    node = find_block(chain, blockhash)
    if int(verbosity) <= 0:
        return chain.raw_block(node).hex()
    return forms.block(chain, node, int(verbosity))


@method("blockchain", _HASH, Param("verbose", "bool", True))
def getblockheader(call: Call, blockhash: bytes, verbose: bool) -> Json:
    """Returns a block's header: as an object, or its 80 bytes as hex."""
    chain = call.node.chain
    node = find_block(chain, blockhash)
    return forms.header(chain, node) if verbose else node.header.serialize().hex()


@method("blockchain")
def getchaintips(call: Call) -> Json:
    """Returns information about all known tips in the block tree, including the main chain and orphaned branches."""
    chain = call.node.chain
    tips = []
    for node in sorted(chain.leaves(), key=lambda leaf: -leaf.height):
        branch = 0
        for ancestor in node.ancestors():
            if chain.is_active(ancestor):
                break
            branch += 1
        status = "active" if node is chain.tip else "invalid" if chain.is_excluded(node) else "valid-fork"
        tips.append({"height": node.height, "hash": hex_of(node.hash), "branchlen": branch, "status": status})
    return tips


@method("blockchain")
def getchainstates(call: Call) -> Json:
    """Returns information about the chainstate."""
    chain = call.node.chain
    return {
        "headers": chain.height,
        "chainstates": [
            {
                "blocks": chain.height,
                "bestblockhash": hex_of(chain.tip.hash),
                "bits": f"{chain.tip.header.bits:08x}",
                "target": forms.TARGET,
                "difficulty": forms.DIFFICULTY,
                "verificationprogress": 1,
                "coins_db_cache_bytes": 0,
                "coins_tip_cache_bytes": 0,
                "validated": True,
            }
        ],
    }


_BURIED = {"bip34": 1, "bip66": 1, "bip65": 1, "csv": 1, "segwit": 0}


@method("blockchain", Param("blockhash", "hash", None))
def getdeploymentinfo(call: Call, blockhash: bytes | None) -> Json:
    """Returns an object containing various state info regarding deployments of consensus changes."""
    chain = call.node.chain
    node = chain.tip if blockhash is None else find_block(chain, blockhash)
    deployments: dict[str, Json] = {
        name: {"type": "buried", "active": node.height + 1 >= height, "height": height}
        for name, height in _BURIED.items()
    }
    always = {"start_time": -1, "timeout": 2**63 - 1, "min_activation_height": 0}
    state = {"status": "active", "since": 0, "status_next": "active"}
    deployments["taproot"] = {"type": "bip9", "height": 0, "active": True, "bip9": {**always, **state}}
    return {"hash": hex_of(node.hash), "height": node.height, "deployments": deployments}


@method("blockchain", Param("nblocks", "int", None), Param("blockhash", "hash", None))
def getchaintxstats(call: Call, nblocks: int | None, blockhash: bytes | None) -> Json:
    """Computes statistics about the total number and rate of transactions in the chain."""
    chain = call.node.chain
    node = chain.tip if blockhash is None else find_block(chain, blockhash)
    if not chain.is_active(node):
        raise RpcError(INVALID_PARAMETER, "Block is not in main chain")
    if nblocks is None:
        nblocks = max(0, min(30 * 24 * 6, node.height - 1))
    if nblocks < 0 or (nblocks > 0 and nblocks >= node.height):
        raise RpcError(INVALID_PARAMETER, "Invalid block count: should be between 0 and the block's height - 1")
    past = chain.active[node.height - nblocks]
    seconds = node.median_time - past.median_time
    form: dict[str, Json] = {
        "time": node.header.time,
        "txcount": node.chain_tx,
        "window_final_block_hash": hex_of(node.hash),
        "window_final_block_height": node.height,
        "window_block_count": nblocks,
    }
    if nblocks > 0:
        form["window_interval"] = seconds
        form["window_tx_count"] = node.chain_tx - past.chain_tx
        if seconds > 0:
            form["txrate"] = (node.chain_tx - past.chain_tx) / seconds
    return form


@method("blockchain", Param("hash_or_height", "int or string"), Param("stats", "array", None))
def getblockstats(call: Call, hash_or_height: Json, stats: list[str] | None) -> Json:
    """Compute per block statistics for a given block. Amounts are in satoshi."""
    chain = call.node.chain
    node = _by_height_or_hash(chain, hash_or_height)
    if not chain.is_active(node):
        raise RpcError(INVALID_PARAMETER, f"Block {hex_of(node.hash)} is not in chain regtest")
    computed = _block_stats(chain, node)
    if not stats:
        return computed
    unknown = [name for name in read_strings(stats, "stats") if name not in computed]
    if unknown:
        raise RpcError(INVALID_PARAMETER, f"Invalid selected statistic '{unknown[0]}'")
    return {name: computed[name] for name in stats}


def _block_stats(chain: Chain, node: BlockNode) -> dict[str, Json]:
    parsed = chain.block(node)
    fees, rates, sizes, weights = [], [], [], []
    total_out = 0
    for position, tx in enumerate(parsed.txs):
        spent = forms.spent_by(chain, node, parsed, position)
        if spent is None:
            continue
        out = sum(output.value_sat for output in tx.outputs)
        fee = sum(coin.output.value_sat for coin in spent) - out
        total_out += out
        fees.append(fee)
        rates.append(4 * fee // tx.weight())
        sizes.append(len(tx.serialize()))
        weights.append(tx.weight())
    count, inputs = len(fees), sum(len(tx.inputs) for tx in parsed.txs[1:])
    outputs = sum(len(tx.outputs) for tx in parsed.txs)
    return {
        "avgfee": sum(fees) // count if count else 0,
        "avgfeerate": 4 * sum(fees) // sum(weights) if count else 0,
        "avgtxsize": sum(sizes) // count if count else 0,
        "blockhash": hex_of(node.hash),
        "height": node.height,
        "ins": inputs,
        "maxfee": max(fees, default=0),
        "maxfeerate": max(rates, default=0),
        "maxtxsize": max(sizes, default=0),
        "medianfee": sorted(fees)[count // 2] if count else 0,
        "mediantime": node.median_time,
        "mediantxsize": sorted(sizes)[count // 2] if count else 0,
        "minfee": min(fees, default=0),
        "minfeerate": min(rates, default=0),
        "mintxsize": min(sizes, default=0),
        "outs": outputs,
        "subsidy": subsidy(node.height),
        "swtxs": sum(tx.has_witness for tx in parsed.txs[1:]),
        "time": node.header.time,
        "total_out": total_out,
        "total_size": sum(sizes),
        "total_weight": sum(weights),
        "totalfee": sum(fees),
        "txs": len(parsed.txs),
        "utxo_increase": outputs - inputs,
    }


# Coins.


@method("blockchain", Param("txid", "hash"), Param("n", "int"), Param("include_mempool", "bool", True))
def gettxout(call: Call, txid: bytes, n: int, include_mempool: bool) -> Json:
    """Returns details about an unspent transaction output, or null."""
    chain, pool = call.node.chain, call.node.mempool.pool
    outpoint = OutPoint(txid, n)
    output = pool.output(outpoint) if include_mempool else None
    coin = None if output is not None else chain.store.coin(outpoint)
    if include_mempool and outpoint in pool.spenders:
        return None
    if output is None and coin is None:
        return None
    shown = output or (coin.output if coin else None)
    assert shown is not None
    return {
        "bestblock": hex_of(chain.tip.hash),
        "confirmations": chain.height - coin.height + 1 if coin else 0,
        "value": amount(shown.value_sat),
        "scriptPubKey": forms.script_pubkey(shown.script_pubkey),
        "coinbase": coin.coinbase if coin else False,
    }


@method("blockchain", Param("hash_type", "string", "hash_serialized_3"))
def gettxoutsetinfo(call: Call, hash_type: str) -> Json:
    """Returns statistics about the unspent transaction output set."""
    if hash_type not in ("hash_serialized_3", "none"):
        raise RpcError(INVALID_PARAMETER, f"'{hash_type}' is not a valid hash_type")
    chain = call.node.chain
    digest = hashlib.sha256()
    txids: set[bytes] = set()
    count = total = bogosize = 0
    for outpoint, coin in chain.store.all_coins():
        count += 1
        txids.add(outpoint.txid)
        total += coin.output.value_sat
        bogosize += 50 + len(coin.output.script_pubkey)
        digest.update(outpoint.serialize())
        digest.update((coin.height << 1 | coin.coinbase).to_bytes(4, "little"))
        digest.update(coin.output.value_sat.to_bytes(8, "little") + var_bytes(coin.output.script_pubkey))
    form: dict[str, Json] = {
        "height": chain.height,
        "bestblock": hex_of(chain.tip.hash),
        "txouts": count,
        "bogosize": bogosize,
        "total_amount": amount(total),
        "transactions": len(txids),
        "disk_size": chain.store.path.stat().st_size,
    }
    if hash_type != "none":
        form["hash_serialized_3"] = hex_of(hashlib.sha256(digest.digest()).digest())
    return form


@method("blockchain", Param("action", "string"), Param("scanobjects", "array", None))
def scantxoutset(call: Call, action: str, scanobjects: list[Json] | None) -> Json:
    """Scans the unspent outputs for those that pay addr() or raw() descriptors."""
    if action in ("status", "abort"):
        return None if action == "status" else False
    if action != "start" or scanobjects is None:
        raise RpcError(INVALID_PARAMETER, f"Invalid action '{action}'")
    described = [item.get("desc") if isinstance(item, dict) else item for item in scanobjects]
    wanted = {script_of_descriptor(text) for text in read_strings(described, "scanobjects")}
    chain = call.node.chain
    unspents, total, count = [], 0, 0
    for outpoint, coin in chain.store.all_coins():
        count += 1
        if coin.output.script_pubkey not in wanted:
            continue
        total += coin.output.value_sat
        unspents.append(
            {
                "txid": hex_of(outpoint.txid),
                "vout": outpoint.vout,
                "scriptPubKey": coin.output.script_pubkey.hex(),
                "desc": forms.descriptor_of(coin.output.script_pubkey),
                "amount": amount(coin.output.value_sat),
                "coinbase": coin.coinbase,
                "height": coin.height,
                "blockhash": hex_of(chain.active[coin.height].hash),
                "confirmations": chain.height - coin.height + 1,
            }
        )
    return {
        "success": True,
        "txouts": count,
        "height": chain.height,
        "bestblock": hex_of(chain.tip.hash),
        "unspents": unspents,
        "total_amount": amount(total),
    }


def script_of_descriptor(text: str) -> bytes:
    """The output script of an address, or of an addr() or raw() descriptor. Raises RpcError(-5)."""
    inner = text.partition("#")[0]
    try:
        if inner.startswith("raw(") and inner.endswith(")"):
            return bytes.fromhex(inner[4:-1])
        if inner.startswith("addr(") and inner.endswith(")"):
            inner = inner[5:-1]
        return script_of(inner, REGTEST)
    except (AddressError, ValueError):
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Error: Invalid address or descriptor") from None


# Branches.


@method("hidden", _HASH)
async def invalidateblock(call: Call, blockhash: bytes) -> Json:
    """Permanently marks a block as invalid, as if it violated a consensus rule."""
    await call.node.invalidate(find_block(call.node.chain, blockhash))


@method("hidden", _HASH)
async def reconsiderblock(call: Call, blockhash: bytes) -> Json:
    """Removes invalidity status of a block, its ancestors and its descendants."""
    await call.node.reconsider(find_block(call.node.chain, blockhash))


@method("blockchain", _HASH)
async def preciousblock(call: Call, blockhash: bytes) -> Json:
    """Treats a block as if it were received before others with the same work."""
    await call.node.prefer(find_block(call.node.chain, blockhash))


# Waiting.


def _tip(call: Call) -> dict[str, Json]:
    tip = call.node.chain.tip
    return {"hash": hex_of(tip.hash), "height": tip.height}


async def _wait(call: Call, timeout: Json, done: Any) -> Json:
    if timeout < 0:
        raise RpcError(MISC_ERROR, "Negative timeout")
    loop = call.node.loop
    deadline = loop.time() + min(float(timeout), _MAX_WAIT_MS) / 1000 if timeout else None
    while not done() and not call.node.stopping.is_set():
        left = None if deadline is None else deadline - loop.time()
        if left is not None and left <= 0:
            break
        await call.node.wait_for_tip(left)
    return _tip(call)


@method("blockchain", Param("timeout", "int", 0), Param("current_tip", "hash", None))
async def waitfornewblock(call: Call, timeout: Json, current_tip: bytes | None) -> Json:
    """Waits for any new block and returns useful info about it. The timeout is in milliseconds; 0: none."""
    before = current_tip or call.node.chain.tip.hash
    return await _wait(call, timeout, lambda: call.node.chain.tip.hash != before)


@method("blockchain", _HASH, Param("timeout", "int", 0))
async def waitforblock(call: Call, blockhash: bytes, timeout: Json) -> Json:
    """Waits for a specific new block to be the tip. The timeout is in milliseconds; 0: none."""
    return await _wait(call, timeout, lambda: call.node.chain.tip.hash == blockhash)


@method("blockchain", Param("height", "int"), Param("timeout", "int", 0))
async def waitforblockheight(call: Call, height: int, timeout: Json) -> Json:
    """Waits for (at least) block height. The timeout is in milliseconds; 0: none."""
    return await _wait(call, timeout, lambda: call.node.chain.height >= height)
