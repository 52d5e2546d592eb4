"""RPC methods that spend a wallet's coins: send, fund, sign."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from wallet.bitcoin import COINBASE_MATURITY_BLOCKS, SEQUENCE_RBF, OutPoint, Tx, TxOut
from wallet.bitcoin.address import REGTEST, AddressError, script_of
from wallet.regtest.errors import (
    INVALID_ADDRESS_OR_KEY,
    INVALID_PARAMETER,
    TYPE_ERROR,
    WALLET_ERROR,
    WALLET_INSUFFICIENT_FUNDS,
    RpcError,
)
from wallet.regtest.faucet import Wallet
from wallet.regtest.forms import amount, hex_of
from wallet.regtest.miner import LAST_SUBSIDY_HEIGHT, subsidy
from wallet.regtest.rpc.rawtx import broadcast, decode_tx, read_hex, read_outputs
from wallet.regtest.rpc.registry import Call, Json, Param, method, read_amount, read_int, read_options, read_strings
from wallet.regtest.rpc.wallet import address_type_of, read_outpoint, wallet_of
from wallet.regtest.spend import Funding, FundingOptions, fund, sign_inputs
from wallet.regtest.unfunded import parse_without_inputs
from wallet.regtest.verifier import verify

_SPARE_COINS = 10
_FALLBACK_FEE = 2000
_FEE_RATE_DECIMALS = 3
_DEFAULT_TARGET_BLOCKS = 6
_ROOM_FOR_FEES_SAT = 1_000_000
_SEQUENCE_NO_RBF = 0xFFFF_FFFE


def fee_rate_for(call: Call, sat_per_vb: Json, conf_target: int | None) -> int:
    """Sat per 1000 virtual bytes: what is asked for, or an estimate, or a fallback; never below the minimum."""
    policy = call.node.mempool.policy
    if sat_per_vb is not None:
        chosen = read_amount(sat_per_vb, decimals=_FEE_RATE_DECIMALS)
        if chosen < policy.min_relay_fee:
            raise RpcError(
                INVALID_PARAMETER,
                f"Fee rate ({chosen / 1000:.3f} sat/vB) is lower than the minimum fee rate setting"
                f" ({policy.min_relay_fee / 1000:.3f} sat/vB)",
            )
        return chosen
    estimate = call.node.fees.estimate(conf_target or _DEFAULT_TARGET_BLOCKS)
    floor = call.node.mempool.pool.min_fee_rate(call.node.clock.now())
    return max(estimate or _FALLBACK_FEE, floor, policy.min_relay_fee)


async def ensure_funds(call: Call, wallet: Wallet, outputs: Iterable[TxOut]) -> None:
    """Mine until the nameless wallet can pay `outputs`; other wallets have what they were sent."""
    needed = sum(output.value_sat for output in outputs) + _ROOM_FOR_FEES_SAT
    chain = call.node.chain

    def short() -> bool:
        return sum(coin.output.value_sat for coin in wallet.spendable()) < needed

    if wallet.name or not short():
        return
    owned = sum(coin.output.value_sat for coin in wallet.coins())
    if needed > owned + sum(subsidy(height) for height in range(chain.height + 1, LAST_SUBSIDY_HEIGHT)):
        return
    script = wallet.new_key(label="mined").script
    goal = chain.height + (1 if owned else COINBASE_MATURITY_BLOCKS + _SPARE_COINS)
    while (chain.height < goal or short()) and chain.height < LAST_SUBSIDY_HEIGHT + COINBASE_MATURITY_BLOCKS:
        if call.node.stopping.is_set():
            break
        await call.node.mine(script)


@method(
    "wallet",
    Param("address", "string"),
    Param("amount", "amount"),
    Param("comment", "string", ""),
    Param("comment_to", "string", ""),
    Param("subtractfeefromamount", "bool", False),
    Param("replaceable", "bool", None),
    Param("conf_target", "int", None),
    Param("estimate_mode", "string", "unset"),
    Param("avoid_reuse", "bool", None),
    Param("fee_rate", "amount", None),
    Param("verbose", "bool", False),
)
async def sendtoaddress(
    call: Call,
    address: str,
    value: Json,
    comment: str,
    comment_to: str,
    subtract: bool,
    replaceable: bool | None,
    conf_target: int | None,
    estimate_mode: str,
    avoid_reuse: bool | None,
    fee_rate: Json,
    verbose: bool,
) -> Json:
    """Send an amount to a given address. The nameless wallet mines the coins first if it has too few."""
    outputs = read_outputs([{address: value}])
    _check_amounts(outputs)
    options = FundingOptions(fee_rate_for(call, fee_rate, conf_target), (0,) if subtract else ())
    txid = await _send(call, outputs, options)
    return {"txid": hex_of(txid), "fee_reason": "Fallback fee"} if verbose else hex_of(txid)


@method(
    "wallet",
    Param("dummy", "string"),
    Param("amounts", "object"),
    Param("minconf", "int", None),
    Param("comment", "string", ""),
    Param("subtractfeefrom", "array", None),
    Param("replaceable", "bool", None),
    Param("conf_target", "int", None),
    Param("estimate_mode", "string", "unset"),
    Param("fee_rate", "amount", None),
    Param("verbose", "bool", False),
)
async def sendmany(
    call: Call,
    dummy: str,
    amounts: dict[str, Json],
    minconf: int | None,
    comment: str,
    subtract: list[Json] | None,
    replaceable: bool | None,
    conf_target: int | None,
    estimate_mode: str,
    fee_rate: Json,
    verbose: bool,
) -> Json:
    """Send multiple times. Amounts are in BTC."""
    if dummy:
        raise RpcError(INVALID_PARAMETER, 'Dummy value must be set to ""')
    outputs = read_outputs(amounts)
    _check_amounts(outputs)
    positions = list(amounts)
    paying = read_strings(subtract or [], "subtractfeefrom")
    chosen = tuple(positions.index(address) for address in paying if address in positions)
    options = FundingOptions(fee_rate_for(call, fee_rate, conf_target), chosen)
    txid = await _send(call, outputs, options)
    return {"txid": hex_of(txid), "fee_reason": "Fallback fee"} if verbose else hex_of(txid)


def _check_amounts(outputs: list[TxOut]) -> None:
    if any(output.value_sat <= 0 for output in outputs):
        raise RpcError(TYPE_ERROR, "Invalid amount for send")


async def _send(call: Call, outputs: list[TxOut], options: FundingOptions) -> bytes:
    wallet = wallet_of(call)
    await ensure_funds(call, wallet, outputs)
    unsigned = Tx(2, (), tuple(outputs), 0)
    funding = fund(wallet, unsigned, {}, options)
    spent = [_find_output(call, txin.outpoint) for txin in funding.tx.inputs]
    try:
        return broadcast(call, sign_inputs(wallet, funding.tx, spent), None)
    except RpcError as error:
        raise RpcError(WALLET_ERROR, error.message) from error


def _find_output(call: Call, outpoint: OutPoint) -> TxOut | None:
    coin = call.node.mempool.judge.find_coin(outpoint, {})
    return coin.output if coin else None


# Raw transactions with the wallet's coins.


@method("wallet", Param("hexstring", "string"), Param("options", "object", None), Param("iswitness", "bool", None))
async def fundrawtransaction(call: Call, hexstring: str, options: Json, iswitness: bool | None) -> Json:
    """Add inputs to a transaction until it has enough in value to meet its out value and its fee."""
    tx = decode_unfunded(hexstring)
    funding = await fund_with_options(call, tx, options)
    return {
        "hex": funding.tx.serialize().hex(),
        "fee": amount(funding.fee_sat),
        "changepos": funding.change_position,
    }


def decode_unfunded(hexstring: str) -> Tx:
    """A transaction from hex that may have no inputs yet, which looks like a witness marker. Raises RpcError(-22)."""
    try:
        raw = bytes.fromhex(hexstring)
    except ValueError:
        raw = b""
    return parse_without_inputs(raw) or decode_tx(hexstring)


_FUND_OPTIONS = (
    Param("add_inputs", "bool", True),
    Param("changeAddress|change_address", "string", None),
    Param("changePosition|change_position", "int", None),
    Param("change_type", "string", None),
    Param("lockUnspents|lock_unspents", "bool", False),
    Param("fee_rate", "amount", None),
    Param("feeRate", "amount", None),
    Param("subtractFeeFromOutputs|subtract_fee_from_outputs", "array", ()),
    Param("input_weights", "array", ()),
    Param("conf_target", "int", None),
    Param("replaceable", "bool", True),
    *(Param(name, "any", None) for name in ("estimate_mode", "include_unsafe", "includeWatching", "include_watching")),
    *(Param(name, "any", None) for name in ("minconf", "maxconf", "solving_data", "max_tx_weight")),
)


async def fund_with_options(call: Call, tx: Tx, given: Json) -> Funding:
    """What `fundrawtransaction` and `walletcreatefundedpsbt` share. Raises RpcError."""
    wallet, options = wallet_of(call), read_options(given, _FUND_OPTIONS)
    preset: dict[OutPoint, TxOut] = {}
    for txin in tx.inputs:
        output = _find_output(call, txin.outpoint)
        if output is None:
            raise RpcError(WALLET_INSUFFICIENT_FUNDS, f"Not found pre-selected input {txin.outpoint}")
        preset[txin.outpoint] = output
    if options["add_inputs"]:
        await ensure_funds(call, wallet, tx.outputs)
    rate = options["fee_rate"]
    if rate is None and options["feeRate"] is not None:
        rate = Decimal(read_amount(options["feeRate"])) / 1000
    change = options["changeAddress"]
    return fund(
        wallet,
        tx,
        preset,
        FundingOptions(
            fee_rate_for(call, rate, options["conf_target"]),
            _read_positions(options["subtractFeeFromOutputs"], len(tx.outputs)),
            _script_of_change(change) if change else None,
            options["changePosition"],
            options["add_inputs"],
            options["lockUnspents"],
            address_type_of(options["change_type"]),
            SEQUENCE_RBF if options["replaceable"] else _SEQUENCE_NO_RBF,
            {read_outpoint(item): read_int(item.get("weight"), "weight") for item in options["input_weights"]},
        ),
    )


def _read_positions(values: Sequence[Json], count: int) -> tuple[int, ...]:
    positions = tuple(read_int(value, "subtractFeeFromOutputs") for value in values)
    if len(set(positions)) != len(positions):
        raise RpcError(INVALID_PARAMETER, "Invalid parameter, duplicated position")
    for position in positions:
        if not 0 <= position < count:
            raise RpcError(INVALID_PARAMETER, f"Invalid parameter, position too large: {position}")
    return positions


def _script_of_change(address: str) -> bytes:
    try:
        return script_of(address, REGTEST)
    except AddressError:
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Change address must be a valid bitcoin address") from None


@method(
    "wallet",
    Param("hexstring", "string"),
    Param("prevtxs", "array", None),
    Param("sighashtype", "string", "DEFAULT for Taproot, ALL otherwise"),
)
def signrawtransactionwithwallet(call: Call, hexstring: str, prevtxs: list[Json] | None, sighashtype: str) -> Json:
    """Sign inputs for raw transaction (serialized, hex-encoded)."""
    wallet = wallet_of(call)
    tx = decode_tx(hexstring)
    given = {read_outpoint(item): _read_prevtx(item) for item in prevtxs or []}
    spent = [given.get(txin.outpoint) or _find_output(call, txin.outpoint) for txin in tx.inputs]
    signed = sign_inputs(wallet, tx, spent)
    errors = _signature_errors(signed, spent)
    form: dict[str, Json] = {"hex": signed.serialize().hex(), "complete": not errors}
    return form | {"errors": errors} if errors else form


def _read_prevtx(item: dict[str, Json]) -> TxOut:
    return TxOut(read_amount(item.get("amount", 0)), read_hex(item.get("scriptPubKey"), "scriptPubKey"))


def _signature_errors(tx: Tx, spent: list[TxOut | None]) -> list[dict[str, Json]]:
    errors = []
    for index, (txin, output) in enumerate(zip(tx.inputs, spent, strict=True)):
        if output is None:
            problem = "Input not found or already spent"
        elif all(other is not None for other in spent):
            known = [other for other in spent if other is not None]
            failure = verify(tx.serialize(), known, only=index)
            if failure is None:
                continue
            problem = failure.error
        elif txin.witness or txin.script_sig:
            continue
        else:
            problem = "Unable to sign input, invalid stack size (possibly missing key)"
        errors.append(
            {
                "txid": hex_of(txin.outpoint.txid),
                "vout": txin.outpoint.vout,
                "witness": [item.hex() for item in txin.witness],
                "scriptSig": txin.script_sig.hex(),
                "sequence": txin.sequence,
                "error": problem,
            }
        )
    return errors
