"""Spending from a faucet wallet: coin selection, change, signatures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from wallet.bitcoin import SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut, hash160
from wallet.bitcoin import script as scripts
from wallet.bitcoin.secp import (
    compact_to_der,
    sign_low_r,
    sign_schnorr,
    taproot_tweak_secret,
)
from wallet.bitcoin.sighash import SIGHASH_ALL, SIGHASH_DEFAULT, SighashCache, segwit_v0_sighash, taproot_sighash
from wallet.regtest.errors import WALLET_ERROR, WALLET_INSUFFICIENT_FUNDS, RpcError
from wallet.regtest.faucet import Key, Wallet, WalletCoin
from wallet.regtest.legacy import legacy_sighash
from wallet.regtest.policy import dust_threshold, fee_for

_INPUT_WEIGHTS = {
    "legacy": 4 * (36 + 1 + 107 + 4),
    "p2sh-segwit": 4 * 64 + 108,
    "bech32": 4 * 41 + 108,
    "bech32m": 4 * 41 + 66,
}
_SEGWIT_MARKER_WEIGHT = 2
_UNKNOWN_INPUT_WEIGHT = 4 * 41 + 108


@dataclass(frozen=True)
class Funding:
    """A funded, unsigned transaction: its fee in sat, and where the change is (-1: none)."""

    tx: Tx
    fee_sat: int
    change_position: int


@dataclass(frozen=True)
class FundingOptions:
    """How to fund. `fee_rate` is sat per 1000 virtual bytes; `subtract_from` lists outputs that pay the fee."""

    fee_rate: int
    subtract_from: tuple[int, ...] = ()
    change_script: bytes | None = None
    change_position: int | None = None
    add_inputs: bool = True
    lock: bool = False
    change_kind: str = "bech32"
    sequence: int = SEQUENCE_RBF
    external_weights: Mapping[OutPoint, int] | None = None


def sign_inputs(wallet: Wallet, tx: Tx, spent: Sequence[TxOut | None]) -> Tx:
    """Sign all inputs that spend the wallet's scripts. Taproot needs all of `spent`."""
    known = [output for output in spent if output is not None]
    complete = len(known) == len(tx.inputs)
    cache = SighashCache(tx, known if complete else ())
    signed = list(tx.inputs)
    for index, output in enumerate(spent):
        key = wallet.keys.get(output.script_pubkey) if output is not None else None
        if key is None or output is None or (key.kind == "bech32m" and not complete):
            continue
        signed[index] = _sign_input(key, tx, index, output, known, cache)
    return tx.replace(inputs=tuple(signed))


def _sign_input(key: Key, tx: Tx, index: int, output: TxOut, spent: Sequence[TxOut], cache: SighashCache) -> TxIn:
    txin = tx.inputs[index]
    if key.kind == "bech32m":
        digest = taproot_sighash(tx, index, spent, SIGHASH_DEFAULT, cache=cache)
        return txin._replace(witness=(sign_schnorr(taproot_tweak_secret(key.secret), digest),))
    pubkey = key.pubkey
    if key.kind == "legacy":
        digest = legacy_sighash(tx, index, output.script_pubkey, SIGHASH_ALL)
        signature = compact_to_der(sign_low_r(key.secret, digest)) + bytes((SIGHASH_ALL,))
        return txin._replace(script_sig=scripts.push(signature) + scripts.push(pubkey), witness=())
    code = scripts.p2wpkh_script_code(hash160(pubkey))
    digest = segwit_v0_sighash(tx, index, code, output.value_sat, SIGHASH_ALL, cache)
    signature = compact_to_der(sign_low_r(key.secret, digest)) + bytes((SIGHASH_ALL,))
    script_sig = scripts.push(scripts.p2wpkh(pubkey)) if key.kind == "p2sh-segwit" else b""
    return txin._replace(script_sig=script_sig, witness=(signature, pubkey))


def fund(wallet: Wallet, tx: Tx, preset: Mapping[OutPoint, TxOut], options: FundingOptions) -> Funding:
    """Add inputs and change until the outputs and the fee are paid. Raises RpcError(-6) if the wallet has too little.

    `preset` are the outputs that the inputs already there spend.
    """
    target = sum(output.value_sat for output in tx.outputs)
    change_script = options.change_script or _peek_change(wallet, options)
    change = TxOut(0, change_script)
    dust = dust_threshold(change, wallet.mempool.policy.dust_relay_fee)
    available = _available(wallet, set(preset)) if options.add_inputs else []
    chosen: list[WalletCoin] = []
    total = sum(output.value_sat for output in preset.values())
    while True:
        fee = fee_for(options.fee_rate, _vsize(wallet, tx, preset, chosen, (), options))
        fee_with_change = fee_for(options.fee_rate, _vsize(wallet, tx, preset, chosen, (change,), options))
        needed = 0 if options.subtract_from else fee
        if tx.inputs or chosen:
            rest = total - target - (0 if options.subtract_from else fee_with_change)
            if rest >= dust:
                return _finish(wallet, tx, chosen, change._replace(value_sat=rest), fee_with_change, options)
            if total - target >= needed:
                paid = total - target + (fee if options.subtract_from else 0)
                return _finish(wallet, tx, chosen, None, paid, options)
        if not available:
            raise RpcError(WALLET_INSUFFICIENT_FUNDS, "Insufficient funds")
        coin = available.pop(0)
        chosen.append(coin)
        total += coin.output.value_sat


def _available(wallet: Wallet, taken: Collection[OutPoint]) -> list[WalletCoin]:
    return [coin for coin in wallet.spendable() if coin.outpoint not in taken]


def _peek_change(wallet: Wallet, options: FundingOptions) -> bytes:
    return wallet.new_key(options.change_kind, change=True).script


def _vsize(
    wallet: Wallet,
    tx: Tx,
    preset: Mapping[OutPoint, TxOut],
    chosen: Sequence[WalletCoin],
    extra: tuple[TxOut, ...],
    options: FundingOptions,
) -> int:
    bare = tx.replace(inputs=(), outputs=tx.outputs + extra)
    weight = 4 * len(bare.serialize_stripped()) + _SEGWIT_MARKER_WEIGHT
    for txin in tx.inputs:
        external = (options.external_weights or {}).get(txin.outpoint)
        output = preset.get(txin.outpoint)
        key = wallet.keys.get(output.script_pubkey) if output else None
        weight += external or (_INPUT_WEIGHTS[key.kind] if key else _UNKNOWN_INPUT_WEIGHT)
    weight += sum(_INPUT_WEIGHTS[coin.key.kind] for coin in chosen)
    return (weight + 3) // 4


def _finish(
    wallet: Wallet,
    tx: Tx,
    chosen: Sequence[WalletCoin],
    change: TxOut | None,
    fee_sat: int,
    options: FundingOptions,
) -> Funding:
    outputs = list(tx.outputs)
    share, rest = divmod(fee_sat, len(options.subtract_from) or 1)
    for number, position in enumerate(options.subtract_from):
        value = outputs[position].value_sat - share - (rest if number == 0 else 0)
        if value < dust_threshold(outputs[position], wallet.mempool.policy.dust_relay_fee):
            raise RpcError(WALLET_INSUFFICIENT_FUNDS, "The transaction amount is too small to pay the fee")
        outputs[position] = outputs[position]._replace(value_sat=value)
    position = -1
    if change is not None:
        position = len(outputs) if options.change_position is None else options.change_position
        if not 0 <= position <= len(outputs):
            raise RpcError(WALLET_ERROR, "Change position out of range")
        outputs.insert(position, change)
    added = tuple(TxIn(coin.outpoint, b"", options.sequence) for coin in chosen)
    funded = tx.replace(inputs=tx.inputs + added, outputs=tuple(outputs))
    if options.lock:
        wallet.locked |= {txin.outpoint for txin in funded.inputs}
    return Funding(funded, fee_sat, position)
