"""RPC methods that create, load and list the faucet's wallets."""

from __future__ import annotations

from wallet.regtest.rpc.registry import Call, Json, Param, method


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
