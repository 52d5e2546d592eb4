"""Partially signed transactions (BIP 174) for the faucet: update, sign, finalise, show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from embit import ec
from embit.psbt import DerivationPath
from embit.script import Script, Witness
from embit.transaction import Transaction, TransactionOutput

from wallet.bitcoin import Tx, TxOut
from wallet.bitcoin import script as scripts
from wallet.bitcoin.encoding import var_bytes
from wallet.bitcoin.secp import xonly
from wallet.errors import PsbtError
from wallet.psbt import Decoded, decode
from wallet.regtest import forms
from wallet.regtest.asm import disassemble
from wallet.regtest.errors import DESERIALIZATION_ERROR, RpcError
from wallet.regtest.faucet import Key, Wallet
from wallet.regtest.forms import Json, amount
from wallet.regtest.policy import multisig_parts, script_type
from wallet.regtest.spend import sign_inputs

_TAP_KEY_SIG: Final = b"\x13"
_HARDENED = 0x8000_0000
_SIGHASH_NAMES = {0: "DEFAULT", 1: "ALL", 2: "NONE", 3: "SINGLE"}


def read(text: str) -> Decoded:
    """A PSBT from base64 or hex. Raises RpcError(-22)."""
    try:
        return decode(text)
    except PsbtError as error:
        raise RpcError(DESERIALIZATION_ERROR, f"TX decode failed {error}") from None


def blank(tx: Tx) -> Decoded:
    """A PSBT that says nothing but the unsigned transaction. Raises RpcError(-22) if it has no inputs or outputs."""
    bare = tx.replace(inputs=tuple(txin._replace(script_sig=b"", witness=()) for txin in tx.inputs))
    maps = bytes(len(tx.inputs) + len(tx.outputs))
    return read((b"psbt\xff\x01\x00" + var_bytes(bare.serialize_stripped()) + b"\x00" + maps).hex())


def text_of(decoded: Decoded) -> str:
    """Base64."""
    return str(decoded.psbt.to_base64())


def is_final(scope: Any) -> bool:
    """Whether an input has what goes into the transaction."""
    return scope.final_scriptwitness is not None or scope.final_scriptsig is not None


# Update and sign.


def update(decoded: Decoded, wallet: Wallet, found: Sequence[TxOut | None], *, derivations: bool) -> list[TxOut | None]:
    """Write what the wallet knows into the PSBT; what each input spends, as far as known.

    `found` are the outputs that chain and mempool know.
    """
    spent: list[TxOut | None] = []
    for index, scope in enumerate(decoded.psbt.inputs):
        output = decoded.spent[index] or found[index]
        spent.append(output)
        key = wallet.keys.get(output.script_pubkey) if output is not None else None
        if output is None or key is None or is_final(scope):
            continue
        _add_utxo(scope, output, wallet, decoded.tx, index)
        if key.kind == "p2sh-segwit":
            scope.redeem_script = Script(scripts.p2wpkh(key.pubkey))
        if derivations:
            _add_derivation(scope, key, wallet)
    for scope, output in zip(decoded.psbt.outputs, decoded.tx.outputs, strict=True):
        key = wallet.keys.get(output.script_pubkey)
        if key is not None and derivations:
            _add_derivation(scope, key, wallet)
    return spent


def _add_utxo(scope: Any, output: TxOut, wallet: Wallet, tx: Tx, index: int) -> None:
    previous = tx.inputs[index].outpoint.txid
    entry = wallet.mempool.pool.entries.get(previous)
    indexed = None if entry else wallet.store.indexed_tx(previous)
    raw = entry.raw if entry else indexed.raw if indexed else None
    if raw is not None and not scripts.is_p2tr(output.script_pubkey):
        scope.non_witness_utxo = Transaction.parse(raw)
    if not scripts.is_p2pkh(output.script_pubkey):
        scope.witness_utxo = TransactionOutput(output.value_sat, Script(output.script_pubkey))


def _add_derivation(scope: Any, key: Key, wallet: Wallet) -> None:
    steps = [int(step.rstrip("h")) | (_HARDENED if step.endswith("h") else 0) for step in key.path.split("/")[1:]]
    derivation = DerivationPath(wallet.fingerprint, steps)
    if key.kind == "bech32m":
        internal = ec.PublicKey.from_xonly(xonly(key.pubkey))
        scope.taproot_internal_key = internal
        scope.taproot_bip32_derivations[internal] = ([], derivation)
    else:
        scope.bip32_derivations[ec.PublicKey.parse(key.pubkey)] = derivation


def sign(decoded: Decoded, wallet: Wallet, spent: Sequence[TxOut | None]) -> None:
    """Add the wallet's signatures."""
    signed = sign_inputs(wallet, decoded.tx, spent)
    for scope, output, txin in zip(decoded.psbt.inputs, spent, signed.inputs, strict=True):
        key = wallet.keys.get(output.script_pubkey) if output is not None else None
        if key is None or is_final(scope):
            continue
        if key.kind == "bech32m" and txin.witness:
            scope.unknown[_TAP_KEY_SIG] = txin.witness[0]
        elif key.kind == "legacy" and txin.script_sig:
            scope.partial_sigs[ec.PublicKey.parse(key.pubkey)] = txin.script_sig[1 : 1 + txin.script_sig[0]]
        elif txin.witness:
            scope.partial_sigs[ec.PublicKey.parse(key.pubkey)] = txin.witness[0]


# Finalise.


def finalize(decoded: Decoded, spent: Sequence[TxOut | None]) -> None:
    """Turn signatures into final scripts and witnesses where there are enough of them."""
    for scope, output in zip(decoded.psbt.inputs, spent, strict=True):
        if is_final(scope) or output is None:
            continue
        built = _finalized(scope, output.script_pubkey)
        if built is None:
            continue
        script_sig, witness = built
        if script_sig:
            scope.final_scriptsig = Script(script_sig)
        if witness:
            scope.final_scriptwitness = Witness(list(witness))
        _clear(scope)


def _clear(scope: Any) -> None:
    scope.partial_sigs.clear()
    scope.bip32_derivations.clear()
    scope.taproot_bip32_derivations.clear()
    scope.unknown.pop(_TAP_KEY_SIG, None)
    scope.sighash_type = scope.redeem_script = scope.witness_script = None
    scope.taproot_internal_key = scope.taproot_merkle_root = None


def _finalized(scope: Any, script: bytes) -> tuple[bytes, tuple[bytes, ...]] | None:
    signatures = {bytes(key.sec()): bytes(signature) for key, signature in scope.partial_sigs.items()}
    if scripts.is_p2tr(script):
        signature = scope.unknown.get(_TAP_KEY_SIG)
        return (b"", (bytes(signature),)) if signature else None
    script_sig = b""
    if scripts.is_p2sh(script):
        if scope.redeem_script is None:
            return None
        script = bytes(scope.redeem_script.data)
        script_sig = scripts.push(script)
    if scripts.is_p2wsh(script):
        if scope.witness_script is None:
            return None
        inner = bytes(scope.witness_script.data)
        stack = _satisfy(inner, signatures)
        return (script_sig, (*stack, inner)) if stack is not None else None
    stack = _satisfy(script, signatures)
    if stack is None:
        return None
    if scripts.is_p2wpkh(script):
        return script_sig, stack
    return b"".join(scripts.push(item) if item else b"\x00" for item in stack) + script_sig, ()


def _satisfy(script: bytes, signatures: dict[bytes, bytes]) -> tuple[bytes, ...] | None:
    kind = script_type(script)
    if kind in ("witness_v0_keyhash", "pubkeyhash"):
        wanted = script[2:] if kind == "witness_v0_keyhash" else script[3:23]
        return next(
            ((signature, key) for key, signature in signatures.items() if scripts.p2wpkh(key)[2:] == wanted), None
        )
    if kind == "pubkey":
        signature = signatures.get(script[1:-1])
        return (signature,) if signature else None
    parts = multisig_parts(script)
    if parts is None:
        return None
    have = [signatures[key] for key in parts[1] if key in signatures][: parts[0]]
    return (b"", *have) if len(have) == parts[0] else None


def extract(decoded: Decoded) -> Tx | None:
    """The signed transaction, if every input is final."""
    inputs = []
    for scope, txin in zip(decoded.psbt.inputs, decoded.tx.inputs, strict=True):
        if not is_final(scope):
            return None
        script_sig = bytes(scope.final_scriptsig.data) if scope.final_scriptsig is not None else b""
        items = scope.final_scriptwitness.items if scope.final_scriptwitness is not None else ()
        inputs.append(txin._replace(script_sig=script_sig, witness=tuple(bytes(item) for item in items)))
    return decoded.tx.replace(inputs=tuple(inputs))


def combine(texts: Iterable[str]) -> Decoded:
    """All that several PSBTs of one transaction say. Raises RpcError."""
    first, *rest = (read(text) for text in texts)
    for other in rest:
        if other.tx != first.tx:
            raise RpcError(-8, "PSBTs not compatible (different transactions)")
        for mine, theirs in zip(first.psbt.inputs, other.psbt.inputs, strict=True):
            internal = mine.taproot_internal_key
            mine.update(theirs)
            mine.taproot_internal_key = mine.taproot_internal_key or internal
        for mine, theirs in zip(first.psbt.outputs, other.psbt.outputs, strict=True):
            internal = mine.taproot_internal_key
            mine.update(theirs)
            mine.taproot_internal_key = mine.taproot_internal_key or internal
    return read(text_of(first))


# Show.


def form(decoded: Decoded) -> dict[str, Json]:
    """What `decodepsbt` answers."""
    tx = forms.transaction(decoded.tx)
    del tx["hex"]
    shown: dict[str, Json] = {
        "tx": tx,
        "global_xpubs": [],
        "psbt_version": 0,
        "proprietary": [],
        "unknown": {key.hex(): value.hex() for key, value in decoded.psbt.unknown.items()},
        "inputs": [_input_form(scope) for scope in decoded.psbt.inputs],
        "outputs": [_scope_form(scope) for scope in decoded.psbt.outputs],
    }
    known = [output.value_sat for output in decoded.spent if output is not None]
    if len(known) == len(decoded.spent):
        shown["fee"] = amount(sum(known) - sum(output.value_sat for output in decoded.tx.outputs))
    return shown


def _input_form(scope: Any) -> dict[str, Json]:
    shown: dict[str, Json] = {}
    if scope.witness_utxo is not None:
        shown["witness_utxo"] = {
            "amount": amount(scope.witness_utxo.value),
            "scriptPubKey": forms.script_pubkey(bytes(scope.witness_utxo.script_pubkey.data)),
        }
    if scope.non_witness_utxo is not None:
        previous = forms.transaction(Tx.parse(scope.non_witness_utxo.serialize()))
        del previous["hex"]
        shown["non_witness_utxo"] = previous
    if scope.partial_sigs:
        shown["partial_signatures"] = {
            key.sec().hex(): bytes(signature).hex() for key, signature in scope.partial_sigs.items()
        }
    if scope.sighash_type is not None:
        name = _SIGHASH_NAMES.get(scope.sighash_type & 0x1F, "UNKNOWN")
        shown["sighash"] = name + ("|ANYONECANPAY" if scope.sighash_type & 0x80 else "")
    shown |= _scope_form(scope)
    if scope.final_scriptsig is not None:
        script = bytes(scope.final_scriptsig.data)
        shown["final_scriptSig"] = {"asm": disassemble(script, signatures=True), "hex": script.hex()}
    if scope.final_scriptwitness is not None:
        shown["final_scriptwitness"] = [bytes(item).hex() for item in scope.final_scriptwitness.items]
    unknown = dict(scope.unknown)
    signature = unknown.pop(_TAP_KEY_SIG, None)
    if signature is not None:
        shown["taproot_key_path_sig"] = signature.hex()
    if unknown:
        shown["unknown"] = {key.hex(): value.hex() for key, value in unknown.items()}
    return shown


def _scope_form(scope: Any) -> dict[str, Json]:
    shown: dict[str, Json] = {}
    for name in ("redeem_script", "witness_script"):
        script = getattr(scope, name)
        if script is not None:
            raw = bytes(script.data)
            shown[name] = {"asm": disassemble(raw), "hex": raw.hex(), "type": script_type(raw)}
    if scope.bip32_derivations:
        shown["bip32_derivs"] = [
            {"pubkey": key.sec().hex(), "master_fingerprint": path.fingerprint.hex(), "path": _path_text(path)}
            for key, path in scope.bip32_derivations.items()
        ]
    if scope.taproot_bip32_derivations:
        shown["taproot_bip32_derivs"] = [
            {
                "pubkey": key.xonly().hex(),
                "master_fingerprint": path.fingerprint.hex(),
                "path": _path_text(path),
                "leaf_hashes": [leaf.hex() for leaf in leaves],
            }
            for key, (leaves, path) in scope.taproot_bip32_derivations.items()
        ]
    if scope.taproot_internal_key is not None:
        shown["taproot_internal_key"] = scope.taproot_internal_key.xonly().hex()
    return shown


def _path_text(path: Any) -> str:
    steps = (f"{step & ~_HARDENED}{'h' if step & _HARDENED else ''}" for step in path.derivation)
    return "/".join(("m", *steps))
