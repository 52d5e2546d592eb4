"""The JSON shapes that bitcoind gives to scripts, transactions and blocks. Amounts are exact decimals in BTC."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
from embit.descriptor.checksum import add_checksum

from wallet.bitcoin import Block, Tx, TxOut
from wallet.bitcoin.address import REGTEST, address_of
from wallet.regtest.asm import disassemble
from wallet.regtest.chain import BlockNode, Chain
from wallet.regtest.policy import multisig_parts, script_type
from wallet.regtest.store import Coin

Json = Any
_COIN = 100_000_000
TARGET = "7fffff".ljust(64, "0")
DIFFICULTY = 4.656542373906925e-10


def amount(value_sat: int) -> msgspec.Raw:
    """Satoshi as a JSON number in BTC with eight decimals."""
    sign = "-" if value_sat < 0 else ""
    whole, fraction = divmod(abs(value_sat), _COIN)
    return msgspec.Raw(f"{sign}{whole}.{fraction:08d}".encode())


def rate(sat_per_kvb: int) -> msgspec.Raw:
    """A fee rate as a JSON number in BTC per 1000 virtual bytes."""
    return amount(sat_per_kvb)


def satoshis(value: Decimal) -> int:
    """BTC to satoshi. Raises ValueError if there are more than eight decimals or the number is out of range."""
    scaled = value.scaleb(8)
    if not value.is_finite() or scaled != scaled.to_integral_value():
        raise ValueError("Invalid amount")
    return int(scaled)


def hex_of(hash_: bytes) -> str:
    """A hash as bitcoind prints it: reversed."""
    return hash_[::-1].hex()


# Scripts.


def descriptor_of(script: bytes) -> str:
    """The descriptor that bitcoind infers for an output script whose keys it does not know."""
    kind = script_type(script)
    address = address_of(script, REGTEST)
    if kind == "witness_v1_taproot":
        inner = f"rawtr({script[2:].hex()})"
    elif address is not None:
        inner = f"addr({address})"
    elif kind == "pubkey":
        inner = f"pk({script[1:-1].hex()})"
    else:
        parts = multisig_parts(script) if kind == "multisig" else None
        keys = ",".join(key.hex() for key in parts[1]) if parts else ""
        inner = f"multi({parts[0]},{keys})" if parts else f"raw({script.hex()})"
    return str(add_checksum(inner))


@lru_cache(maxsize=4096)
def _script_fields(script: bytes) -> tuple[tuple[str, str], ...]:
    # Descriptor checksums and addresses are slow to compute, and the same scripts come again and again.
    fields = [("asm", disassemble(script)), ("desc", descriptor_of(script)), ("hex", script.hex())]
    address = address_of(script, REGTEST)
    if address is not None:
        fields.append(("address", address))
    return (*fields, ("type", script_type(script)))


def script_pubkey(script: bytes, *, with_hex: bool = True) -> dict[str, Json]:
    """An output script with its address, if it has one."""
    form = dict(_script_fields(script))
    if not with_hex:
        del form["hex"]
    return form


# Transactions.


def transaction(tx: Tx, spent: Sequence[Coin] | None = None, *, prevouts: bool = False) -> dict[str, Json]:
    """A transaction without its place in the chain; the fee and, if asked for, the previous outputs need `spent`."""
    raw = tx.serialize()
    weight = tx.weight()
    form: dict[str, Json] = {
        "txid": tx.txid_hex,
        "hash": hex_of(tx.wtxid()),
        "version": tx.version & 0xFFFF_FFFF,
        "size": len(raw),
        "vsize": (weight + 3) // 4,
        "weight": weight,
        "locktime": tx.locktime,
        "vin": [_input(tx, index, spent[index] if prevouts and spent else None) for index in range(len(tx.inputs))],
        "vout": [_output(output, n) for n, output in enumerate(tx.outputs)],
    }
    if spent:
        form["fee"] = amount(
            sum(coin.output.value_sat for coin in spent) - sum(output.value_sat for output in tx.outputs)
        )
    form["hex"] = raw.hex()
    return form


def is_coinbase(tx: Tx) -> bool:
    """Whether the transaction makes new coins."""
    return len(tx.inputs) == 1 and tx.inputs[0].outpoint == (bytes(32), 0xFFFF_FFFF)


def _input(tx: Tx, index: int, coin: Coin | None) -> dict[str, Json]:
    txin = tx.inputs[index]
    form: dict[str, Json] = {}
    if is_coinbase(tx):
        form["coinbase"] = txin.script_sig.hex()
    else:
        form["txid"] = hex_of(txin.outpoint.txid)
        form["vout"] = txin.outpoint.vout
        form["scriptSig"] = {"asm": disassemble(txin.script_sig, signatures=True), "hex": txin.script_sig.hex()}
    if txin.witness:
        form["txinwitness"] = [item.hex() for item in txin.witness]
    if coin is not None:
        form["prevout"] = {
            "generated": coin.coinbase,
            "height": coin.height,
            "value": amount(coin.output.value_sat),
            "scriptPubKey": script_pubkey(coin.output.script_pubkey),
        }
    form["sequence"] = txin.sequence
    return form


def _output(output: TxOut, n: int) -> dict[str, Json]:
    return {"value": amount(output.value_sat), "n": n, "scriptPubKey": script_pubkey(output.script_pubkey)}


# Blocks.


def confirmations(chain: Chain, node: BlockNode) -> int:
    """1 for the tip; -1 off the active chain."""
    return chain.height - node.height + 1 if chain.is_active(node) else -1


def header(chain: Chain, node: BlockNode) -> dict[str, Json]:
    """A block's header and place."""
    fields = node.header
    form: dict[str, Json] = {
        "hash": hex_of(node.hash),
        "confirmations": confirmations(chain, node),
        "height": node.height,
        "version": fields.version,
        "versionHex": f"{fields.version & 0xFFFF_FFFF:08x}",
        "merkleroot": hex_of(fields.merkle_root),
        "time": fields.time,
        "mediantime": node.median_time,
        "nonce": fields.nonce,
        "bits": f"{fields.bits:08x}",
        "target": TARGET,
        "difficulty": DIFFICULTY,
        "chainwork": f"{node.chainwork:064x}",
        "nTx": node.n_tx,
    }
    if node.previous is not None:
        form["previousblockhash"] = hex_of(node.previous.hash)
    if chain.is_active(node) and node is not chain.tip:
        form["nextblockhash"] = hex_of(chain.active[node.height + 1].hash)
    return form


def block(chain: Chain, node: BlockNode, verbosity: int) -> dict[str, Json]:
    """A block: with txids (1), with transactions (2), with what they spend (3)."""
    raw = chain.raw_block(node)
    parsed = Block.parse(raw)
    form = header(chain, node)
    stripped = 80 + _compact_size_length(len(parsed.txs)) + sum(len(tx.serialize_stripped()) for tx in parsed.txs)
    form["strippedsize"] = stripped
    form["size"] = len(raw)
    form["weight"] = 3 * stripped + len(raw)
    if verbosity == 1:
        form["tx"] = [tx.txid_hex for tx in parsed.txs]
    else:
        form["tx"] = [
            transaction(tx, spent_by(chain, node, parsed, position), prevouts=verbosity >= 3)
            for position, tx in enumerate(parsed.txs)
        ]
    return form


def spent_by(chain: Chain, node: BlockNode, parsed: Block, position: int) -> list[Coin] | None:
    """What a transaction of a block spends; None for coinbases and where a branch's coins are not known."""
    if position == 0:
        return None
    if chain.is_active(node):
        return [chain.store.spent_coin(txin.outpoint) for txin in parsed.txs[position].inputs]
    return None


def _compact_size_length(n: int) -> int:
    return 1 if n < 0xFD else 3 if n <= 0xFFFF else 5
