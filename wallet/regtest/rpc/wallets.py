"""RPC methods that create, load and list the faucet's wallets, and look their transactions up."""

from __future__ import annotations

from wallet.bitcoin import Tx, TxOut
from wallet.bitcoin.address import REGTEST, address_of
from wallet.regtest import forms
from wallet.regtest.errors import INVALID_ADDRESS_OR_KEY, RpcError
from wallet.regtest.faucet import Wallet
from wallet.regtest.forms import amount, hex_of
from wallet.regtest.rpc.registry import Call, Json, Param, method
from wallet.regtest.rpc.wallet import wallet_of


@method(
    "wallet",
    Param("wallet_name", "string"),
    Param("disable_private_keys", "bool", False),
    Param("blank", "bool", False),
    Param("passphrase", "string", ""),
    Param("avoid_reuse", "bool", False),
    Param("descriptors", "bool", True),
    Param("load_on_startup", "bool", None),
    Param("external_signer", "bool", False),
)
def createwallet(call: Call, wallet_name: str, *ignored: Json) -> Json:
    """Creates and loads a new wallet."""
    return {"name": call.faucet.create(wallet_name).name}


@method("wallet", Param("filename", "string"), Param("load_on_startup", "bool", None))
def loadwallet(call: Call, filename: str, load_on_startup: bool | None) -> Json:
    """Loads a wallet from disk."""
    return {"name": call.faucet.load(filename).name}


@method("wallet", Param("wallet_name", "string", None), Param("load_on_startup", "bool", None))
def unloadwallet(call: Call, wallet_name: str | None, load_on_startup: bool | None) -> Json:
    """Unloads the named wallet, or that of the request's path."""
    call.faucet.unload(call.faucet.get(wallet_name if wallet_name is not None else call.wallet).name)
    return {}


@method("wallet")
def listwallets(call: Call) -> Json:
    """Returns a list of currently loaded wallets."""
    return sorted(call.faucet.loaded)


@method("wallet")
def listwalletdir(call: Call) -> Json:
    """Returns a list of wallets on disk."""
    return {"wallets": [{"name": name} for name in call.faucet.names()]}


@method("wallet", Param("txid", "hash"), Param("include_watchonly", "bool", None), Param("verbose", "bool", False))
def gettransaction(call: Call, txid: bytes, include_watchonly: bool | None, verbose: bool) -> Json:
    """Get detailed information about in-wallet transaction."""
    wallet, chain = wallet_of(call), call.node.chain
    entry = call.node.mempool.pool.entries.get(txid)
    found = None if entry else chain.store.indexed_tx(txid)
    if entry is None and found is None:
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Invalid or non-wallet transaction id")
    tx = entry.tx if entry else Tx.parse(found.raw) if found else None
    assert tx is not None
    spent = entry.spent if entry else _spent(call, tx)
    debit = sum(output.value_sat for output in spent if output.script_pubkey in wallet.keys)
    credit = sum(output.value_sat for output in tx.outputs if output.script_pubkey in wallet.keys)
    if not debit and not any(output.script_pubkey in wallet.keys for output in tx.outputs):
        raise RpcError(INVALID_ADDRESS_OR_KEY, "Invalid or non-wallet transaction id")
    fee = sum(output.value_sat for output in tx.outputs) - sum(output.value_sat for output in spent) if debit else 0
    form: dict[str, Json] = {"amount": amount(credit - debit - fee)}
    if debit:
        form["fee"] = amount(fee)
    if found is not None:
        block = chain.active[found.height]
        form |= {
            "confirmations": chain.height - found.height + 1,
            "blockhash": hex_of(block.hash),
            "blockheight": found.height,
            "blockindex": found.position,
            "blocktime": block.header.time,
        }
    else:
        form |= {"confirmations": 0, "trusted": bool(debit)}
    seconds = entry.time if entry else form["blocktime"]
    form |= {"txid": tx.txid_hex, "wtxid": hex_of(tx.wtxid()), "walletconflicts": [], "mempoolconflicts": []}
    form |= {"time": seconds, "timereceived": seconds, "bip125-replaceable": "yes" if entry else "no"}
    form["details"] = _details(wallet, tx, debit, fee)
    form["hex"] = tx.serialize().hex()
    if verbose:
        form["decoded"] = {key: value for key, value in forms.transaction(tx).items() if key != "hex"}
    return form | {"lastprocessedblock": {"hash": hex_of(chain.tip.hash), "height": chain.height}}


def _spent(call: Call, tx: Tx) -> tuple[TxOut, ...]:
    if forms.is_coinbase(tx):
        return ()
    return tuple(call.node.store.spent_coin(txin.outpoint).output for txin in tx.inputs)


def _details(wallet: Wallet, tx: Tx, debit: int, fee: int) -> list[dict[str, Json]]:
    details = []
    for vout, output in enumerate(tx.outputs):
        key = wallet.keys.get(output.script_pubkey)
        if key is not None and key.change and debit:
            continue
        address = address_of(output.script_pubkey, REGTEST)
        shown: dict[str, Json] = {"address": address} if address else {}
        if debit:
            sent = {"category": "send", "amount": amount(-output.value_sat), "vout": vout, "fee": amount(fee)}
            details.append({**shown, **sent, "abandoned": False})
        if key is not None:
            category = "generate" if forms.is_coinbase(tx) else "receive"
            got = {"category": category, "amount": amount(output.value_sat), "label": key.label, "vout": vout}
            details.append({**shown, **got, "abandoned": False})
    return details
