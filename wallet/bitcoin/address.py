"""Addresses of the Bitcoin networks, to and from output scripts (BIP 173, BIP 350, base58check by embit)."""

from __future__ import annotations

from typing import NamedTuple

from embit import base58, bech32
from embit.networks import NETWORKS

from wallet.bitcoin import script as scripts


class AddressError(ValueError):
    """Text that is no address of the network at hand; the message is a sentence for the user."""


class Network(NamedTuple):
    """What tells one Bitcoin network from another. `genesis_hash` is in internal byte order."""

    name: str
    hrp: str
    p2pkh_prefix: bytes
    p2sh_prefix: bytes
    invoice_prefix: str
    genesis_hash: bytes
    coin_type: int

    @property
    def chain_hash(self) -> bytes:
        """BOLT 0's `chain_hash`: the genesis block's hash as serialised."""
        return self.genesis_hash


def _network(name: str, embit_name: str, invoice_prefix: str, genesis_hex: str) -> Network:
    params = NETWORKS[embit_name]
    return Network(
        name,
        params["bech32"],
        params["p2pkh"],
        params["p2sh"],
        invoice_prefix,
        bytes.fromhex(genesis_hex)[::-1],
        params["bip32"],
    )


MAINNET = _network("mainnet", "main", "bc", "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f")
TESTNET = _network("testnet", "test", "tb", "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943")
SIGNET = _network("signet", "signet", "tbs", "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6")
REGTEST = _network("regtest", "regtest", "bcrt", "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206")
BY_NAME = {network.name: network for network in (MAINNET, TESTNET, SIGNET, REGTEST)}
_HRP_NETWORKS = {"bc": "mainnet", "tb": "testnet or signet", "bcrt": "regtest"}


def address_of(script_pubkey: bytes, network: Network) -> str | None:
    """The address of an output script, or None if it has none."""
    program = scripts.witness_program(script_pubkey)
    if program is not None:
        encoded: str | None = bech32.encode(network.hrp, program[0], program[1])
        return encoded
    if scripts.is_p2pkh(script_pubkey):
        return str(base58.encode_check(network.p2pkh_prefix + script_pubkey[3:23]))
    if scripts.is_p2sh(script_pubkey):
        return str(base58.encode_check(network.p2sh_prefix + script_pubkey[2:22]))
    return None


def script_of(address: str, network: Network) -> bytes:
    """The output script of an address. Raises AddressError with a sentence that names the mistake."""
    address = address.strip()
    hrp = address.lower().rpartition("1")[0]
    if hrp in _HRP_NETWORKS:
        if hrp != network.hrp:
            raise AddressError(f"{address} is an address of {_HRP_NETWORKS[hrp]}; this is {network.name}")
        version, program = bech32.decode(hrp, address)
        if version is None:
            raise AddressError(f"{address} is not a valid address: a letter is wrong or missing")
        return bytes((scripts.OP_1 + version - 1 if version else scripts.OP_0,)) + scripts.push(bytes(program))
    try:
        raw = bytes(base58.decode_check(address))
    except Exception as error:  # embit raises its own bare classes
        raise AddressError(f"{address!r} is not a Bitcoin address") from error
    if len(raw) == 21 and raw[:1] == network.p2pkh_prefix:
        return scripts.p2pkh(raw[1:])
    if len(raw) == 21 and raw[:1] == network.p2sh_prefix:
        return scripts.p2sh(raw[1:])
    raise AddressError(f"{address} is an address of another network; this is {network.name}")
