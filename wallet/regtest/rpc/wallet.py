"""RPC methods about a wallet's addresses, balances and coins."""

from __future__ import annotations

from wallet.bitcoin import OutPoint
from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import REGTEST, AddressError, address_of, script_of
from wallet.regtest import forms
from wallet.regtest.errors import (
    INVALID_ADDRESS_OR_KEY,
    INVALID_PARAMETER,
    WALLET_ERROR,
    RpcError,
)
from wallet.regtest.faucet import ADDRESS_TYPES, Wallet, WalletCoin
from wallet.regtest.forms import amount, hex_of
from wallet.regtest.rpc.registry import (
    Call,
    Json,
    Param,
    expect,
    method,
    read_amount,
    read_hash,
    read_int,
    read_options,
    read_strings,
)


def wallet_of(call: Call) -> Wallet:
    """The wallet that the request is about. Raises RpcError."""
    return call.faucet.get(call.wallet)


# Addresses.


def address_type_of(value: str | None) -> str:
    """One of bitcoind's address types, `bech32` by default. Raises RpcError(-5)."""
    kind = value or "bech32"
    if kind not in ADDRESS_TYPES:
        raise RpcError(INVALID_ADDRESS_OR_KEY, f"Unknown address type '{kind}'")
    return kind


@method("wallet", Param("label", "string", ""), Param("address_type", "string", None))
def getnewaddress(call: Call, label: str, address_type: str | None) -> Json:
    """Returns a new Bitcoin address for receiving payments."""
    return wallet_of(call).new_key(address_type_of(address_type), label=label).address


@method("wallet", Param("address_type", "string", None))
def getrawchangeaddress(call: Call, address_type: str | None) -> Json:
    """Returns a new Bitcoin address, for receiving change."""
    return wallet_of(call).new_key(address_type_of(address_type), change=True).address


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
    Param("minconf", "int", 0),
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


_COIN_OPTIONS = (
    Param("minimumAmount", "amount", 0),
    Param("maximumAmount", "amount", 21_000_000),
    Param("maximumCount", "int", 0),
    Param("minimumSumAmount", "amount", None),
    Param("include_immature_coinbase", "bool", False),
)


@method(
    "wallet",
    Param("minconf", "int", 1),
    Param("maxconf", "int", 9_999_999),
    Param("addresses", "array", None),
    Param("include_unsafe", "bool", True),
    Param("query_options", "object", None),
)
def listunspent(
    call: Call, minconf: int, maxconf: int, addresses: list[str] | None, include_unsafe: bool, query_options: Json
) -> Json:
    """Returns array of unspent transaction outputs with between minconf and maxconf (inclusive) confirmations."""
    wallet = wallet_of(call)
    options = read_options(query_options, _COIN_OPTIONS)
    least, most = read_amount(options["minimumAmount"]), read_amount(options["maximumAmount"])
    wanted = set(read_strings(addresses, "addresses")) if addresses else None
    answers = []
    for coin in wallet.coins():
        if not minconf <= coin.depth <= maxconf or not (coin.mature or options["include_immature_coinbase"]):
            continue
        if coin.outpoint in wallet.locked or not least <= coin.output.value_sat <= most:
            continue
        if (wanted is None or coin.key.address in wanted) and (include_unsafe or coin.trusted):
            answers.append(_unspent(wallet, coin))
    return answers[: options["maximumCount"] or None]


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
    outpoints = {read_outpoint(item) for item in transactions}
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


def read_outpoint(item: Json) -> OutPoint:
    """An outpoint from `{"txid", "vout"}`. Raises RpcError."""
    expect(item, "object", "transactions")
    return OutPoint(read_hash(item.get("txid"), "txid"), read_int(item.get("vout"), "vout"))
