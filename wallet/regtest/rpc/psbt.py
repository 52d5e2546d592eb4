"""RPC methods about partially signed transactions (BIP 174)."""

from __future__ import annotations

from wallet.bitcoin import TxOut
from wallet.psbt import Decoded
from wallet.regtest import psbt
from wallet.regtest.errors import DESERIALIZATION_ERROR, INVALID_PARAMETER, RpcError
from wallet.regtest.forms import amount
from wallet.regtest.rpc.rawtx import build_tx, decode_tx
from wallet.regtest.rpc.registry import Call, Json, Param, expect, method
from wallet.regtest.rpc.spending import fund_with_options
from wallet.regtest.rpc.wallet import wallet_of

_DEFAULT_SIGHASH = "DEFAULT for Taproot, ALL otherwise"


def _found(call: Call, decoded: Decoded) -> list[TxOut | None]:
    judge = call.node.mempool.judge
    coins = [judge.find_coin(txin.outpoint, {}) for txin in decoded.tx.inputs]
    return [coin.output if coin is not None else None for coin in coins]


@method(
    "rawtransactions",
    Param("inputs", "array"),
    Param("outputs", "array or object"),
    Param("locktime", "int", 0),
    Param("replaceable", "bool", True),
    Param("version", "int", 2),
)
def createpsbt(call: Call, inputs: list[Json], outputs: Json, locktime: int, replaceable: bool, version: int) -> Json:
    """Creates a transaction in the Partially Signed Transaction format."""
    return psbt.text_of(psbt.blank(build_tx(inputs, outputs, locktime, replaceable, version)))


@method(
    "rawtransactions",
    Param("hexstring", "string"),
    Param("permitsigdata", "bool", False),
    Param("iswitness", "bool", None),
)
def converttopsbt(call: Call, hexstring: str, permitsigdata: bool, iswitness: bool | None) -> Json:
    """Converts a network serialized transaction to a PSBT."""
    tx = decode_tx(hexstring)
    if not permitsigdata and any(txin.script_sig or txin.witness for txin in tx.inputs):
        raise RpcError(DESERIALIZATION_ERROR, "Inputs must not have scriptSigs and scriptWitnesses")
    return psbt.text_of(psbt.blank(tx))


@method("rawtransactions", Param("psbt", "string"))
def decodepsbt(call: Call, text: str) -> Json:
    """Return a JSON object representing the serialized, base64-encoded partially signed Bitcoin transaction."""
    return psbt.form(psbt.read(text))


@method("rawtransactions", Param("txs", "array"))
def combinepsbt(call: Call, txs: list[Json]) -> Json:
    """Combine multiple partially signed Bitcoin transactions into one transaction."""
    if not txs:
        raise RpcError(INVALID_PARAMETER, "Parameter 'txs' cannot be empty")
    return psbt.text_of(psbt.combine(expect(text, "string", "txs") for text in txs))


@method("rawtransactions", Param("psbt", "string"), Param("extract", "bool", True))
def finalizepsbt(call: Call, text: str, extract: bool) -> Json:
    """Finalize the inputs of a PSBT; if all are final, the network serialized transaction."""
    decoded = psbt.read(text)
    psbt.finalize(decoded, decoded.spent)
    tx = psbt.extract(decoded)
    if tx is not None and extract:
        return {"hex": tx.serialize().hex(), "complete": True}
    return {"psbt": psbt.text_of(decoded), "complete": tx is not None}


@method(
    "wallet",
    Param("psbt", "string"),
    Param("sign", "bool", True),
    Param("sighashtype", "string", _DEFAULT_SIGHASH),
    Param("bip32derivs", "bool", True),
    Param("finalize", "bool", True),
)
def walletprocesspsbt(call: Call, text: str, sign: bool, sighashtype: str, bip32derivs: bool, finalize: bool) -> Json:
    """Update a PSBT with input information from our wallet and then sign inputs that we can sign for."""
    if sighashtype not in ("DEFAULT", "ALL", _DEFAULT_SIGHASH):
        raise RpcError(INVALID_PARAMETER, f"'{sighashtype}' is not a valid sighash parameter.")
    wallet, decoded = wallet_of(call), psbt.read(text)
    spent = psbt.update(decoded, wallet, _found(call, decoded), derivations=bip32derivs)
    if sign:
        psbt.sign(decoded, wallet, spent)
    if finalize:
        psbt.finalize(decoded, spent)
    tx = psbt.extract(decoded)
    answer: dict[str, Json] = {"psbt": psbt.text_of(decoded), "complete": tx is not None}
    return answer | {"hex": tx.serialize().hex()} if tx is not None else answer


@method(
    "wallet",
    Param("inputs", "array", None),
    Param("outputs", "array or object"),
    Param("locktime", "int", 0),
    Param("options", "object", None),
    Param("bip32derivs", "bool", True),
    Param("version", "int", 2),
)
async def walletcreatefundedpsbt(
    call: Call,
    inputs: list[Json] | None,
    outputs: Json,
    locktime: int,
    options: dict[str, Json] | None,
    bip32derivs: bool,
    version: int,
) -> Json:
    """Creates and funds a transaction in the Partially Signed Transaction format."""
    chosen = {"add_inputs": not inputs, **(options or {})}
    tx = build_tx(inputs or [], outputs, locktime, bool(chosen.get("replaceable", True)), version)
    funding = await fund_with_options(call, tx, chosen)
    decoded = psbt.blank(funding.tx)
    psbt.update(decoded, wallet_of(call), _found(call, decoded), derivations=bip32derivs)
    return {
        "psbt": psbt.text_of(decoded),
        "fee": amount(funding.fee_sat),
        "changepos": funding.change_position,
    }
