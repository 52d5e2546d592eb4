"""RPC methods about single transactions: look up, decode, build, send."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from wallet.bitcoin import SEQUENCE_FINAL, SEQUENCE_RBF, OutPoint, SerializationError, Tx, TxIn, TxOut, hash160
from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import REGTEST, AddressError, address_of, script_of
from wallet.regtest import forms
from wallet.regtest.accept import Candidate
from wallet.regtest.errors import (
    DESERIALIZATION_ERROR,
    INVALID_ADDRESS_OR_KEY,
    INVALID_PARAMETER,
    VERIFY_ALREADY_IN_UTXO_SET,
    VERIFY_ERROR,
    VERIFY_REJECTED,
    RpcError,
)
from wallet.regtest.forms import amount, hex_of, rate
from wallet.regtest.packages import MAX_PACKAGE_COUNT, PackageResult, TxResult, is_child_with_parents_tree
from wallet.regtest.policy import Rejection, fee_for, script_type
from wallet.regtest.rpc.blockchain import find_block
from wallet.regtest.rpc.registry import Call, Json, Param, expect, method, read_amount, read_hash, read_int
from wallet.regtest.store import Coin

_DEFAULT_MAX_FEE_RATE = Decimal("0.10")
_MAX_RATE = 100_000_000
_SEQUENCE_NO_RBF_LOCKTIME = 0xFFFF_FFFE


def decode_tx(hexstring: str, *, try_no_witness: bool = True) -> Tx:
    """A transaction from hex. Raises RpcError(-22)."""
    try:
        return Tx.parse(bytes.fromhex(hexstring))
    except (ValueError, SerializationError):
        hint = " Make sure the tx has at least one input." if try_no_witness else ""
        raise RpcError(DESERIALIZATION_ERROR, f"TX decode failed.{hint}") from None


# Look up.


@method(
    "rawtransactions",
    Param("txid", "hash"),
    Param("verbosity|verbose", "int or bool", 0),
    Param("blockhash", "hash", None),
)
def getrawtransaction(call: Call, txid: bytes, verbosity: int, blockhash: bytes | None) -> Json:
    """Returns a transaction of the mempool or the chain: as hex (0), as an object (1), with what it spends (2)."""
    chain, pool = call.node.chain, call.node.mempool.pool
    if txid == chain.active[0].header.merkle_root:
        raise RpcError(
            INVALID_ADDRESS_OR_KEY,
            "The genesis block coinbase is not considered an ordinary transaction and cannot be retrieved",
        )
    node, tx = None, None
    if blockhash is not None:
        node = find_block(chain, blockhash, "Block hash not found")
        tx = next((tx for tx in chain.block(node).txs if tx.txid() == txid), None)
        if tx is None:
            raise RpcError(
                INVALID_ADDRESS_OR_KEY,
                "No such transaction found in the provided block. Use gettransaction for wallet transactions.",
            )
    elif txid in pool:
        tx = pool.entries[txid].tx
    else:
        found = chain.store.indexed_tx(txid)
        if found is None:
            raise RpcError(
                INVALID_ADDRESS_OR_KEY,
                "No such mempool or blockchain transaction. Use gettransaction for wallet transactions.",
            )
        tx, node = Tx.parse(found.raw), chain.active[found.height]
    if int(verbosity) <= 0:
        return tx.serialize().hex()
    form: dict[str, Json] = {}
    if blockhash is not None and node is not None:
        form["in_active_chain"] = chain.is_active(node)
    spent = _spent(call, tx) if int(verbosity) >= 2 else None
    form.update(forms.transaction(tx, spent, prevouts=True))
    if node is not None:
        form["blockhash"] = hex_of(node.hash)
        if chain.is_active(node):
            form["confirmations"] = chain.height - node.height + 1
            form["time"] = form["blocktime"] = node.header.time
        else:
            form["confirmations"] = 0
    return form


def _spent(call: Call, tx: Tx) -> list[Coin] | None:
    if forms.is_coinbase(tx):
        return None
    coins = []
    for txin in tx.inputs:
        output = call.node.mempool.pool.output(txin.outpoint)
        try:
            coin = Coin(output, 0, False) if output else call.node.chain.store.spent_coin(txin.outpoint)
        except KeyError:
            return None
        coins.append(coin)
    return coins


@method("rawtransactions", Param("hexstring", "string"), Param("iswitness", "bool", None))
def decoderawtransaction(call: Call, hexstring: str, iswitness: bool | None) -> Json:
    """Returns an object representing the serialized, hex-encoded transaction."""
    form = forms.transaction(decode_tx(hexstring, try_no_witness=False))
    del form["hex"]
    return form


@method("rawtransactions", Param("hexstring", "string"))
def decodescript(call: Call, hexstring: str) -> Json:
    """Decode a hex-encoded script, and show the addresses that wrap it."""
    try:
        script = bytes.fromhex(hexstring)
    except ValueError:
        raise RpcError(INVALID_PARAMETER, f"argument must be hexadecimal string (not '{hexstring}')") from None
    form = forms.script_pubkey(script, with_hex=False)
    kind = script_type(script)
    if kind in ("multisig", "nonstandard", "pubkey", "pubkeyhash", "witness_v0_keyhash", "witness_v0_scripthash"):
        form["p2sh"] = address_of(scripts.p2sh(hash160(script)), REGTEST)
    if kind in ("multisig", "nonstandard", "pubkey", "pubkeyhash"):
        witness = _wrapped(script, kind)
        form["segwit"] = {
            **forms.script_pubkey(witness),
            "p2sh-segwit": address_of(scripts.p2sh(hash160(witness)), REGTEST),
        }
    return form


def _wrapped(script: bytes, kind: str) -> bytes:
    if kind == "pubkey" and len(script) == 35:
        return scripts.p2wpkh(script[1:-1])
    if kind == "pubkeyhash":
        return b"\x00\x14" + script[3:23]
    return scripts.p2wsh(script)


# Build.


@method(
    "rawtransactions",
    Param("inputs", "array"),
    Param("outputs", "array or object"),
    Param("locktime", "int", 0),
    Param("replaceable", "bool", True),
    Param("version", "int", 2),
)
def createrawtransaction(
    call: Call, inputs: list[Json], outputs: Json, locktime: int, replaceable: bool, version: int
) -> Json:
    """Create a transaction spending the given inputs and creating new outputs; returns its hex."""
    return build_tx(inputs, outputs, locktime, replaceable, version).serialize().hex()


def build_tx(inputs: list[Json], outputs: Json, locktime: int, replaceable: bool, version: int = 2) -> Tx:
    """The unsigned transaction that `createrawtransaction` and its relatives describe. Raises RpcError."""
    if not 0 <= locktime <= 0xFFFF_FFFF:
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, locktime out of range")
    if not 1 <= version <= 3:
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, version out of range(1~3)")
    default = SEQUENCE_RBF if replaceable else _SEQUENCE_NO_RBF_LOCKTIME if locktime else SEQUENCE_FINAL
    txins = tuple(_read_input(item, default) for item in inputs)
    return Tx(int(version), txins, tuple(read_outputs(outputs)), int(locktime))


def _read_input(item: Json, default_sequence: int) -> TxIn:
    expect(item, "object", "inputs")
    if "txid" not in item:
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, missing txid key")
    txid = read_hash(item["txid"], "txid")
    if "vout" not in item:
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, missing vout key")
    vout = read_int(item["vout"], "vout")
    if vout < 0:
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, vout cannot be negative")
    sequence = read_int(item.get("sequence", default_sequence), "sequence")
    if not 0 <= sequence <= SEQUENCE_FINAL:
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, sequence number is out of range")
    return TxIn(OutPoint(txid, vout), b"", sequence)


def read_outputs(outputs: Json) -> list[TxOut]:
    """Outputs as `{address: amount, "data": hex}` or a list of such objects. Raises RpcError."""
    pairs: list[tuple[str, Json]] = []
    for item in outputs if isinstance(outputs, list) else [outputs]:
        expect(item, "object", "outputs")
        if isinstance(outputs, list) and len(item) != 1:
            raise RpcError(INVALID_PARAMETER, "Invalid parameter, key-value pair must contain exactly one key")
        pairs += item.items()
    read, seen = [], set()
    for key, value in pairs:
        if key == "data":
            data = read_hex(value, "Data")
            read.append(TxOut(0, bytes((scripts.OP_RETURN,)) + scripts.push(data)))
            continue
        script = read_address(key)
        if script in seen:
            raise RpcError(INVALID_PARAMETER, f"Invalid parameter, duplicated address: {key}")
        seen.add(script)
        read.append(TxOut(read_amount(value), script))
    return read


def read_address(text: str) -> bytes:
    """An address's output script. Raises RpcError(-5)."""
    try:
        return script_of(text, REGTEST)
    except AddressError:
        raise RpcError(INVALID_ADDRESS_OR_KEY, f"Invalid Bitcoin address: {text}") from None


def read_hex(value: Json, name: str) -> bytes:
    """Bytes from hex. Raises RpcError(-8)."""
    text = expect(value, "string", name)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise RpcError(INVALID_PARAMETER, f"{name} must be hexadecimal string (not '{text}')") from None


# Send.


def max_fee_rate(value: Json) -> int | None:
    """The caller's `maxfeerate` in sat per 1000 virtual bytes, None for no limit. Raises RpcError."""
    limit = read_amount(value)
    if limit >= _MAX_RATE:
        raise RpcError(INVALID_PARAMETER, "Fee rates larger than or equal to 1BTC/kvB are not accepted")
    return limit or None


def _check_burn(txs: list[Tx], value: Json) -> None:
    allowed = read_amount(value)
    for tx in txs:
        if any(scripts.is_unspendable(out.script_pubkey) and out.value_sat > allowed for out in tx.outputs):
            raise RpcError(VERIFY_ERROR, "Unspendable output exceeds maximum configured by user (maxburnamount)")


@method(
    "rawtransactions",
    Param("hexstring", "string"),
    Param("maxfeerate", "amount", _DEFAULT_MAX_FEE_RATE),
    Param("maxburnamount", "amount", 0),
)
def sendrawtransaction(call: Call, hexstring: str, maxfeerate: Json, maxburnamount: Json) -> Json:
    """Submit a raw transaction to the mempool; returns its txid. Sending again what is there already is no error."""
    limit = max_fee_rate(maxfeerate)
    tx = decode_tx(hexstring)
    _check_burn([tx], maxburnamount)
    return hex_of(broadcast(call, tx, limit))


def broadcast(call: Call, tx: Tx, limit: int | None) -> bytes:
    """Take a transaction into the mempool; its txid. Raises RpcError as `sendrawtransaction`."""
    node, txid = call.node, tx.txid()
    if node.chain.store.has_coins_of(txid):
        raise RpcError(VERIFY_ALREADY_IN_UTXO_SET, "Transaction outputs already in utxo set")
    if txid in node.mempool.pool:
        return txid
    try:
        candidate = node.mempool.test(tx)
        if _exceeds(candidate, limit):
            raise RpcError(VERIFY_ERROR, "Fee exceeds maximum configured by user (e.g. -maxtxfee, maxfeerate)")
        node.mempool.admit(candidate)
    except Rejection as rejection:
        code = VERIFY_ERROR if rejection.kind == "missing-inputs" else VERIFY_REJECTED
        raise RpcError(code, str(rejection)) from rejection
    return txid


def _exceeds(candidate: Candidate, limit: int | None) -> bool:
    return limit is not None and candidate.fee_sat > fee_for(limit, candidate.vsize)


@method("rawtransactions", Param("rawtxs", "array"), Param("maxfeerate", "amount", _DEFAULT_MAX_FEE_RATE))
def testmempoolaccept(call: Call, rawtxs: list[Json], maxfeerate: Json) -> Json:
    """Returns what the mempool would say of raw transactions, without taking them in."""
    if not 1 <= len(rawtxs) <= MAX_PACKAGE_COUNT:
        raise RpcError(INVALID_PARAMETER, f"Array must contain between 1 and {MAX_PACKAGE_COUNT} transactions.")
    limit = max_fee_rate(maxfeerate)
    txs = [_decode_member(item) for item in rawtxs]
    if len(txs) == 1:
        return [_test_one(call, txs[0], limit)]
    result = call.node.packages.test(txs, limit)
    return _tested_package(txs, result)


def _decode_member(item: Json) -> Tx:
    text = expect(item, "string", "rawtx")
    try:
        return Tx.parse(bytes.fromhex(text))
    except (ValueError, SerializationError):
        raise RpcError(
            DESERIALIZATION_ERROR, f"TX decode failed: {text} Make sure the tx has at least one input."
        ) from None


def _test_one(call: Call, tx: Tx, limit: int | None) -> Json:
    form: dict[str, Json] = {"txid": tx.txid_hex, "wtxid": hex_of(tx.wtxid())}
    try:
        candidate = call.node.mempool.test(tx)
    except Rejection as rejection:
        return form | _refusal(rejection)
    return form | _allowed(candidate, limit)


def _allowed(candidate: Candidate, limit: int | None) -> dict[str, Json]:
    if _exceeds(candidate, limit):
        return {"allowed": False, "reject-reason": "max-fee-exceeded"}
    effective = candidate.modified_fee_sat * 1000 // candidate.vsize
    return {
        "allowed": True,
        "vsize": candidate.vsize,
        "fees": {
            "base": amount(candidate.fee_sat),
            "effective-feerate": rate(effective),
            "effective-includes": [hex_of(candidate.wtxid)],
        },
    }


def _refusal(rejection: Rejection) -> dict[str, Json]:
    if rejection.kind == "missing-inputs":
        return {"allowed": False, "reject-reason": "missing-inputs"}
    form: dict[str, Json] = {"allowed": False, "reject-reason": rejection.reason}
    if rejection.debug:
        form["reject-details"] = str(rejection)
    return form


def _tested_package(txs: list[Tx], result: PackageResult) -> list[Json]:
    answers = []
    for tx in txs:
        wtxid = tx.wtxid()
        form: dict[str, Json] = {"txid": tx.txid_hex, "wtxid": hex_of(wtxid)}
        if result.message not in ("success", "transaction failed"):
            form["package-error"] = result.message
        found = result.results.get(wtxid)
        if found is not None and found.candidate is not None:
            form |= _allowed(found.candidate, None)
        elif found is not None and found.rejection is not None:
            form |= _refusal(found.rejection)
        answers.append(form)
    return answers


@method(
    "rawtransactions",
    Param("package", "array"),
    Param("maxfeerate", "amount", _DEFAULT_MAX_FEE_RATE),
    Param("maxburnamount", "amount", 0),
)
def submitpackage(call: Call, package: list[Json], maxfeerate: Json, maxburnamount: Json) -> Json:
    """Submit a child with its parents to the mempool; the child may pay for them."""
    if not 1 <= len(package) <= MAX_PACKAGE_COUNT:
        raise RpcError(INVALID_PARAMETER, f"Array must contain between 1 and {MAX_PACKAGE_COUNT} transactions.")
    limit = max_fee_rate(maxfeerate)
    txs = [_decode_member(item) for item in package]
    _check_burn(txs, maxburnamount)
    if len(txs) > 1 and not is_child_with_parents_tree(txs):
        raise RpcError(
            VERIFY_ERROR,
            "package topology disallowed. not child-with-parents or parents depend on each other.",
        )
    result = call.node.packages.submit(txs, limit)
    return {
        "package_msg": result.message,
        "tx-results": {hex_of(tx.wtxid()): _submitted(call, tx, result.results.get(tx.wtxid())) for tx in txs},
        "replaced-transactions": [hex_of(txid) for txid in result.replaced],
    }


def _submitted(call: Call, tx: Tx, found: TxResult | None) -> dict[str, Json]:
    form: dict[str, Json] = {"txid": tx.txid_hex}
    if found is None:
        return form | {"error": "package-not-validated"}
    if found.other_wtxid is not None:
        return form | {"other-wtxid": hex_of(found.other_wtxid)}
    if found.rejection is not None:
        return form | {"error": str(found.rejection)}
    if found.entry is not None:
        return form | {"vsize": found.entry.vsize, "fees": {"base": amount(found.entry.fee_sat)}}
    assert found.candidate is not None
    fees: dict[str, Any] = {"base": amount(found.candidate.fee_sat)}
    if found.effective is not None:
        fee, vsize, wtxids = found.effective
        fees["effective-feerate"] = rate(fee * 1000 // vsize)
        fees["effective-includes"] = [hex_of(wtxid) for wtxid in wtxids]
    return form | {"vsize": found.candidate.vsize, "fees": fees}
