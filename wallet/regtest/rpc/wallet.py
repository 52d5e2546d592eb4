"""RPC methods of the faucet's wallets."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from wallet.bitcoin import SEQUENCE_RBF, OutPoint, Tx, TxOut
from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import REGTEST, AddressError, address_of, script_of
from wallet.regtest import forms
from wallet.regtest.errors import (
    INVALID_ADDRESS_OR_KEY,
    INVALID_PARAMETER,
    WALLET_ERROR,
    WALLET_INSUFFICIENT_FUNDS,
    RpcError,
)
from wallet.regtest.faucet import ADDRESS_TYPES, Wallet, WalletCoin
from wallet.regtest.forms import amount, hex_of
from wallet.regtest.miner import HALVING_INTERVAL
from wallet.regtest.policy import COINBASE_MATURITY
from wallet.regtest.rpc.rawtx import broadcast, decode_tx, read_outputs
from wallet.regtest.rpc.registry import Call, Json, Param, expect, method, read_amount, read_hash, read_int
from wallet.regtest.spend import Funding, FundingOptions, fund, sign_inputs
from wallet.regtest.unfunded import parse_without_inputs
from wallet.regtest.verifier import verify

_SPARE_COINS = 10
_FALLBACK_FEE = 2000
_USELESS_HEIGHT = 30 * HALVING_INTERVAL


def wallet_of(call: Call) -> Wallet:
    """The wallet that the request is about. Raises RpcError."""
    return call.faucet.get(call.wallet)


# Addresses.


def _address_type(value: str | None) -> str:
    kind = value or "bech32"
    if kind not in ADDRESS_TYPES:
        raise RpcError(INVALID_ADDRESS_OR_KEY, f"Unknown address type '{kind}'")
    return kind


@method("wallet", Param("label", "string", ""), Param("address_type", "string", None))
def getnewaddress(call: Call, label: str, address_type: str | None) -> Json:
    """Returns a new Bitcoin address for receiving payments."""
    return wallet_of(call).new_key(_address_type(address_type), label=label).address


@method("wallet", Param("address_type", "string", None))
def getrawchangeaddress(call: Call, address_type: str | None) -> Json:
    """Returns a new Bitcoin address, for receiving change."""
    return wallet_of(call).new_key(_address_type(address_type), change=True).address


@method("wallet", Param("address", "string"), Param("label", "string"))
def setlabel(call: Call, address: str, label: str) -> Json:
    """Sets the label associated with the given address."""
    wallet = wallet_of(call)
    script = _own_script(wallet, address)
    wallet.set_label(script, label)


def _own_script(wallet: Wallet, address: str) -> bytes:
    try:
        script = script_of(address, REGTEST)
    except AddressError:
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Invalid Bitcoin address") from None
    if script not in wallet.keys:
        raise RpcError(WALLET_ERROR, "Address not found in wallet")
    return script


@method("wallet", Param("address", "string"))
def getaddressinfo(call: Call, address: str) -> Json:
    """Return information about the given bitcoin address."""
    wallet = wallet_of(call)
    try:
        script = script_of(address, REGTEST)
    except AddressError:
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Invalid address") from None
    key = wallet.keys.get(script)
    form: dict[str, Json] = {
        "address": address_of(script, REGTEST),
        "scriptPubKey": script.hex(),
        "ismine": key is not None,
        "solvable": key is not None,
        "iswatchonly": False,
        "isscript": scripts.is_p2sh(script) or scripts.is_p2wsh(script) or scripts.is_p2tr(script),
        "iswitness": False,
    }
    program = scripts.witness_program(script)
    if program is not None:
        form |= {"iswitness": True, "witness_version": program[0], "witness_program": program[1].hex()}
    if key is not None:
        form |= {
            "pubkey": key.pubkey.hex(),
            "hdkeypath": key.path,
            "hdmasterfingerprint": wallet.fingerprint.hex(),
            "ischange": key.change,
        }
    form["labels"] = [key.label] if key is not None and not key.change else []
    return form


# Balances.


def _sum(coins: list[WalletCoin]) -> Json:
    return amount(sum(coin.output.value_sat for coin in coins))


@method(
    "wallet",
    Param("dummy", "string", "*"),
    Param("minconf", "number", 0),
    Param("include_watchonly", "bool", None),
    Param("avoid_reuse", "bool", None),
)
def getbalance(call: Call, dummy: str, minconf: int, include_watchonly: bool | None, avoid_reuse: bool | None) -> Json:
    """Returns the total available balance."""
    if dummy != "*":
        raise RpcError(-32, 'dummy first argument must be excluded or set to "*".')
    coins = wallet_of(call).coins()
    return _sum([coin for coin in coins if coin.mature and coin.trusted and coin.depth >= minconf])


@method("wallet")
def getbalances(call: Call) -> Json:
    """Returns an object with all balances."""
    coins = list(wallet_of(call).coins())
    tip = call.node.chain.tip
    return {
        "mine": {
            "trusted": _sum([coin for coin in coins if coin.mature and coin.trusted]),
            "untrusted_pending": _sum([coin for coin in coins if not coin.trusted]),
            "immature": _sum([coin for coin in coins if not coin.mature]),
        },
        "lastprocessedblock": {"hash": hex_of(tip.hash), "height": tip.height},
    }


@method("wallet")
def getwalletinfo(call: Call) -> Json:
    """Returns an object containing various wallet state info."""
    wallet = wallet_of(call)
    coins = list(wallet.coins())
    tip = call.node.chain.tip
    return {
        "walletname": wallet.name,
        "walletversion": 169900,
        "format": "sqlite",
        "balance": _sum([coin for coin in coins if coin.mature and coin.trusted]),
        "unconfirmed_balance": _sum([coin for coin in coins if not coin.trusted]),
        "immature_balance": _sum([coin for coin in coins if not coin.mature]),
        "txcount": len({coin.outpoint.txid for coin in coins}),
        "keypoolsize": 1000,
        "keypoolsize_hd_internal": 1000,
        "paytxfee": amount(0),
        "private_keys_enabled": True,
        "avoid_reuse": False,
        "scanning": False,
        "descriptors": True,
        "external_signer": False,
        "blank": False,
        "flags": ["descriptor_wallet"],
        "lastprocessedblock": {"hash": hex_of(tip.hash), "height": tip.height},
    }


@method(
    "wallet",
    Param("minconf", "number", 1),
    Param("maxconf", "number", 9_999_999),
    Param("addresses", "array", None),
    Param("include_unsafe", "bool", True),
    Param("query_options", "object", None),
)
def listunspent(
    call: Call, minconf: int, maxconf: int, addresses: list[str] | None, include_unsafe: bool, query_options: Json
) -> Json:
    """Returns array of unspent transaction outputs with between minconf and maxconf (inclusive) confirmations."""
    wallet = wallet_of(call)
    options = query_options or {}
    least = read_amount(options.get("minimumAmount", 0))
    most = read_amount(options.get("maximumAmount", 21_000_000))
    wanted = set(addresses) if addresses else None
    answers = []
    for coin in wallet.coins():
        if not minconf <= coin.depth <= maxconf or (not coin.mature and not options.get("include_immature_coinbase")):
            continue
        if coin.outpoint in wallet.locked or not least <= coin.output.value_sat <= most:
            continue
        if (wanted is None or coin.key.address in wanted) and (include_unsafe or coin.trusted):
            answers.append(_unspent(wallet, coin))
    return answers[: int(options.get("maximumCount", len(answers)) or len(answers))]


def _unspent(wallet: Wallet, coin: WalletCoin) -> dict[str, Json]:
    key = coin.key
    form: dict[str, Json] = {
        "txid": hex_of(coin.outpoint.txid),
        "vout": coin.outpoint.vout,
        "address": key.address,
        "label": key.label,
        "scriptPubKey": key.script.hex(),
        "amount": amount(coin.output.value_sat),
        "confirmations": coin.depth,
    }
    if coin.depth == 0:
        ancestors = wallet.mempool.pool.ancestors((coin.outpoint.txid,)).values()
        form["ancestorcount"] = len(ancestors)
        form["ancestorsize"] = sum(entry.vsize for entry in ancestors)
        form["ancestorfees"] = sum(entry.modified_fee_sat for entry in ancestors)
    if key.kind == "p2sh-segwit":
        form["redeemScript"] = scripts.p2wpkh(key.pubkey).hex()
    form |= {"spendable": True, "solvable": True, "desc": forms.descriptor_of(key.script)}
    form |= {"parent_descs": [], "safe": coin.trusted or coin.depth > 0}
    return form


@method("wallet", Param("unlock", "bool"), Param("transactions", "array", None), Param("persistent", "bool", False))
def lockunspent(call: Call, unlock: bool, transactions: list[Json] | None, persistent: bool) -> Json:
    """Updates list of temporarily unspendable outputs."""
    wallet = wallet_of(call)
    if transactions is None:
        if unlock:
            wallet.locked.clear()
        return True
    outpoints = {_read_outpoint(item) for item in transactions}
    if unlock:
        if not outpoints <= wallet.locked:
            raise RpcError(INVALID_PARAMETER, "Invalid parameter, expected locked output")
        wallet.locked -= outpoints
    else:
        if outpoints & wallet.locked and not persistent:
            raise RpcError(INVALID_PARAMETER, "Invalid parameter, output already locked")
        wallet.locked |= outpoints
    return True


@method("wallet")
def listlockunspent(call: Call) -> Json:
    """Returns list of temporarily unspendable outputs."""
    return [{"txid": hex_of(outpoint.txid), "vout": outpoint.vout} for outpoint in wallet_of(call).locked]


def _read_outpoint(item: Json) -> OutPoint:
    expect(item, "object", "transactions")
    return OutPoint(read_hash(item.get("txid"), "txid"), read_int(item.get("vout"), "vout"))


# Sending.


def fee_rate_for(call: Call, sat_per_vb: Json, conf_target: int | None) -> int:
    """Sat per 1000 virtual bytes: what is asked for, or an estimate, or a fallback; never below the minimum."""
    policy = call.node.mempool.policy
    if sat_per_vb is not None:
        chosen = int(Decimal(str(sat_per_vb)) * 1000)
        if chosen < policy.min_relay_fee:
            raise RpcError(
                INVALID_PARAMETER,
                f"Fee rate ({sat_per_vb} sat/vB) is lower than the minimum fee rate setting"
                f" ({policy.min_relay_fee / 1000:.3f} sat/vB)",
            )
        return chosen
    estimate = call.node.fees.estimate(int(conf_target or 6))
    floor = call.node.mempool.pool.min_fee_rate(call.node.clock.now())
    return max(estimate or _FALLBACK_FEE, floor, policy.min_relay_fee)


async def ensure_funds(call: Call, wallet: Wallet, outputs: list[TxOut]) -> None:
    """Mine until the nameless wallet can pay `outputs`; other wallets have what they were sent."""
    needed = sum(output.value_sat for output in outputs) + 1_000_000

    def short() -> bool:
        return sum(coin.output.value_sat for coin in wallet.spendable()) < needed

    if wallet.name or not short():
        return
    script = wallet.new_key(label="mined").script
    goal = call.node.chain.height + (1 if any(wallet.coins()) else COINBASE_MATURITY + _SPARE_COINS)
    while (call.node.chain.height < goal or short()) and call.node.chain.height < _USELESS_HEIGHT:
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
    Param("conf_target", "number", None),
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
    Param("minconf", "number", None),
    Param("comment", "string", ""),
    Param("subtractfeefrom", "array", None),
    Param("replaceable", "bool", None),
    Param("conf_target", "number", None),
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
    subtract: list[str] | None,
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
    chosen = tuple(positions.index(address) for address in subtract or () if address in positions)
    options = FundingOptions(fee_rate_for(call, fee_rate, conf_target), chosen)
    txid = await _send(call, outputs, options)
    return {"txid": hex_of(txid), "fee_reason": "Fallback fee"} if verbose else hex_of(txid)


def _check_amounts(outputs: list[TxOut]) -> None:
    if any(output.value_sat <= 0 for output in outputs):
        raise RpcError(-3, "Invalid amount for send")


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
    funding = await fund_with_options(call, tx, options or {})
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


async def fund_with_options(call: Call, tx: Tx, options: Mapping[str, Json]) -> Funding:
    """What `fundrawtransaction` and `walletcreatefundedpsbt` share. Raises RpcError."""
    wallet = wallet_of(call)
    preset: dict[OutPoint, TxOut] = {}
    for txin in tx.inputs:
        output = _find_output(call, txin.outpoint)
        if output is None:
            raise RpcError(WALLET_INSUFFICIENT_FUNDS, f"Not found pre-selected input {txin.outpoint}")
        preset[txin.outpoint] = output
    add_inputs = bool(options.get("add_inputs", True))
    if add_inputs:
        await ensure_funds(call, wallet, list(tx.outputs))
    rate = options.get("fee_rate")
    if rate is None and options.get("feeRate") is not None:
        rate = Decimal(read_amount(options["feeRate"])) / 1000
    change = options.get("changeAddress", options.get("change_address"))
    weights = {_read_outpoint(item): int(item["weight"]) for item in options.get("input_weights", [])}
    return fund(
        wallet,
        tx,
        preset,
        FundingOptions(
            fee_rate_for(call, rate, options.get("conf_target")),
            tuple(options.get("subtractFeeFromOutputs", options.get("subtract_fee_from_outputs", ()))),
            script_of_change(change) if change else None,
            options.get("changePosition", options.get("change_position")),
            add_inputs,
            bool(options.get("lockUnspents", options.get("lock_unspents", False))),
            _address_type(options.get("change_type")),
            SEQUENCE_RBF if options.get("replaceable", True) else 0xFFFF_FFFE,
            weights,
        ),
    )


def script_of_change(address: str) -> bytes:
    """The change address's script. Raises RpcError(-5)."""
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
    given = {_read_outpoint(item): _read_prevtx(item) for item in prevtxs or []}
    spent = [given.get(txin.outpoint) or _find_output(call, txin.outpoint) for txin in tx.inputs]
    signed = sign_inputs(wallet, tx, spent)
    errors = _signature_errors(signed, spent)
    form: dict[str, Json] = {"hex": signed.serialize().hex(), "complete": not errors}
    return form | {"errors": errors} if errors else form


def _read_prevtx(item: dict[str, Json]) -> TxOut:
    script = bytes.fromhex(expect(item.get("scriptPubKey"), "string", "scriptPubKey"))
    return TxOut(read_amount(item.get("amount", 0)), script)


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
