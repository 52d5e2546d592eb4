"""Partially signed transactions (BIP 174, with BIP 371's taproot fields): to and from other wallets and signers.

embit reads and writes the format; what is signed and whether it is signed rightly is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple

from embit import compact, ec
from embit.base import EmbitError
from embit.psbt import PSBT, DerivationPath, InputScope, OutputScope, read_string, ser_string
from embit.script import Script
from embit.transaction import Transaction, TransactionInput, TransactionOutput

from wallet.bitcoin import OutPoint, Tx, TxOut, hash160, secp
from wallet.bitcoin import script as scripts
from wallet.bitcoin.sighash import SIGHASH_ALL, SighashCache, segwit_v0_sighash, taproot_sighash
from wallet.bitcoin.tx import MAX_MONEY_SAT
from wallet.errors import PsbtError
from wallet.keys import AddressKind, KeyPath, Keys

_TAP_KEY_SIG: Final = b"\x13"
"""PSBT_IN_TAP_KEY_SIG (BIP 371), which embit keeps among the unknown fields."""

_EMBIT_ERRORS: Final = (
    EmbitError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,
    AssertionError,
)
"""What embit raises (or asserts) over garbage, and SerializationError, which is a ValueError."""


_VERSION_2: Final = "this PSBT has fields of version 2; version 0 (BIP 174) is understood"
_IN_TAP_BIP32_DERIVATION: Final = 0x16
_OUT_TAP_BIP32_DERIVATION: Final = 0x07
_GLOBALS_OF_VERSION_2: Final = frozenset((b"\x02", b"\x03", b"\x04", b"\x05", b"\x06"))
_INPUTS_OF_VERSION_2: Final = frozenset((b"\x0e", b"\x0f", b"\x10", b"\x11", b"\x12"))
_OUTPUTS_OF_VERSION_2: Final = frozenset((b"\x03", b"\x04"))
"""Fields of BIP 370, which "must be excluded" in version 0. embit would believe them rather than the transaction."""


def _with_real_leaf_hashes(stream: Any) -> Any:
    """The value that comes next, for embit, which believes any number of leaf hashes and would count for ever."""
    value = read_string(stream)
    if 32 * compact.read_from(BytesIO(value)) > len(value):
        raise PsbtError("this is no readable PSBT: a taproot derivation has fewer leaf hashes than it says")
    again = BytesIO()
    ser_string(again, value)
    again.seek(0)
    return again


class _Input(InputScope):  # type: ignore[misc]
    def read_value(self, stream: Any, k: bytes) -> None:
        """One field."""
        if k in _INPUTS_OF_VERSION_2:
            raise PsbtError(_VERSION_2)
        super().read_value(_with_real_leaf_hashes(stream) if k[0] == _IN_TAP_BIP32_DERIVATION else stream, k)

    @property
    def vin(self) -> Any:
        """embit takes a sequence of 0 for none at all."""
        sequence = 0xFFFF_FFFF if self.sequence is None else self.sequence
        return TransactionInput(self.txid, self.vout, sequence=sequence)


class _Output(OutputScope):  # type: ignore[misc]
    def read_value(self, stream: Any, k: bytes) -> None:
        """One field."""
        if k in _OUTPUTS_OF_VERSION_2:
            raise PsbtError(_VERSION_2)
        super().read_value(_with_real_leaf_hashes(stream) if k[0] == _OUT_TAP_BIP32_DERIVATION else stream, k)


class _Psbt(PSBT):  # type: ignore[misc]
    PSBTIN_CLS = _Input
    PSBTOUT_CLS = _Output

    def parse_unknowns(self) -> None:
        """Global fields. embit makes as many inputs and outputs as version 2 says that there are."""
        if _GLOBALS_OF_VERSION_2 & self.unknown.keys():
            raise PsbtError(_VERSION_2)
        super().parse_unknowns()


class InputInfo(NamedTuple):
    """What a signer has to know of an input. `path` if it is ours; `previous` is the transaction that it spends from,
    which signers want for P2WPKH to be sure of the amount."""

    txout: TxOut
    path: KeyPath | None
    previous: Tx | None


def encode(tx: Tx, inputs: Sequence[InputInfo], output_paths: Sequence[KeyPath | None], keys: Keys) -> str:
    """An unsigned transaction as base64 PSBT, with the derivation of our inputs and of our change."""
    unsigned = tx.replace(inputs=tuple(txin._replace(witness=(), script_sig=b"") for txin in tx.inputs))
    psbt = _Psbt(Transaction.parse(unsigned.serialize_stripped()), unknown={})
    for scope, info in zip(psbt.inputs, inputs, strict=True):
        scope.unknown = {}
        scope.witness_utxo = TransactionOutput(info.txout.value_sat, Script(info.txout.script_pubkey))
        if info.previous is not None and not scripts.is_p2tr(info.txout.script_pubkey):
            scope.non_witness_utxo = Transaction.parse(info.previous.serialize())
        if info.path is not None:
            _describe(scope, info.path, keys)
    for scope, path in zip(psbt.outputs, output_paths, strict=True):
        scope.unknown = {}
        if path is not None:
            _describe(scope, path, keys)
    return str(psbt.to_base64())


def _describe(scope: Any, path: KeyPath, keys: Keys) -> None:
    derivation = DerivationPath(keys.fingerprint, keys.derivation(path))
    pubkey = keys.pubkey(path)
    if path.kind is AddressKind.P2TR:
        internal = ec.PublicKey.from_xonly(secp.xonly(pubkey))
        scope.taproot_internal_key = internal
        scope.taproot_bip32_derivations[internal] = ([], derivation)
    else:
        scope.bip32_derivations[ec.PublicKey.parse(pubkey)] = derivation


class Decoded(NamedTuple):
    """A PSBT that was read: the unsigned transaction, what its inputs spend (None if it does not say), the fields."""

    tx: Tx
    spent: tuple[TxOut | None, ...]
    psbt: Any


def decode(text: str) -> Decoded:
    """Read a PSBT, base64 or hex. Raises PsbtError with a sentence."""
    text = "".join(text.split())
    try:
        psbt = _Psbt.from_string(text)
        if psbt.version == 2:
            raise PsbtError(_VERSION_2)
        for scope in psbt.inputs:
            scope.verify(ignore_missing=True)
        tx = Tx.parse(psbt.tx.serialize())
        spent = tuple(_spent_by(scope) for scope in psbt.inputs)
    except PsbtError:
        raise
    except _EMBIT_ERRORS as error:
        raise PsbtError(f"this is no readable PSBT: {str(error) or 'a field has a wrong length'}") from error
    if not tx.inputs or not tx.outputs:
        raise PsbtError("this is no readable PSBT: its transaction has no inputs or no outputs")
    return Decoded(tx, spent, psbt)


def _spent_by(scope: Any) -> TxOut | None:
    utxo = scope.witness_utxo
    if scope.non_witness_utxo is not None:
        full = scope.non_witness_utxo.vout[scope.vout]
        if utxo is not None and utxo.serialize() != full.serialize():
            raise PsbtError("the PSBT contradicts itself about what an input spends")
        utxo = full
    if utxo is None:
        return None
    if int(utxo.value) > MAX_MONEY_SAT:
        raise PsbtError("this is no readable PSBT: an input spends more than there is")
    return TxOut(int(utxo.value), bytes(utxo.script_pubkey.data))


def sign(
    decoded: Decoded, keys: Keys, known: Callable[[OutPoint], tuple[TxOut, KeyPath] | None]
) -> tuple[str, list[int]]:
    """Add our signatures: (base64 PSBT, which inputs were signed).

    `known` says what of ours an outpoint is. Amounts of our own inputs are those that we know, not those that the PSBT
    claims; a lie about others only spoils the signature. Raises PsbtError if what an input spends must be known and is
    not.
    """
    tx, psbt = decoded.tx, decoded.psbt
    ours = {place: found for place, txin in enumerate(tx.inputs) if (found := known(txin.outpoint)) is not None}
    spent = [ours[place][0] if place in ours else txout for place, txout in enumerate(decoded.spent)]
    everything = [txout for txout in spent if txout is not None]
    complete = len(everything) == len(spent)
    cache = SighashCache(tx, everything if complete else ())
    for place, (txout, path) in ours.items():
        scope = psbt.inputs[place]
        if scope.sighash_type not in (None, 0, SIGHASH_ALL):
            raise PsbtError(f"input {place} asks for signature hash type {scope.sighash_type}: only ALL is signed")
        if path.kind is AddressKind.P2TR and not complete:
            raise PsbtError("the PSBT does not say what all its inputs spend, which a taproot signature covers")
        view = everything if complete else [txout] * len(spent)
        witness = keys.witness(tx, place, path, view, cache)
        if path.kind is AddressKind.P2TR:
            scope.unknown[_TAP_KEY_SIG] = witness[0]
        else:
            scope.partial_sigs[ec.PublicKey.parse(witness[1])] = witness[0]
    return str(psbt.to_base64()), sorted(ours)


def complete(decoded: Decoded) -> Tx:
    """The signed transaction. Raises PsbtError that names an input whose signature is missing or wrong."""
    tx, inputs = decoded.tx, list(decoded.tx.inputs)
    for place, scope in enumerate(decoded.psbt.inputs):
        script_sig, witness = _final(scope, decoded.spent[place], place)
        inputs[place] = inputs[place]._replace(script_sig=script_sig, witness=witness)
    signed = tx.replace(inputs=tuple(inputs))
    _verify(signed, decoded.spent)
    return signed


def _final(scope: Any, txout: TxOut | None, place: int) -> tuple[bytes, tuple[bytes, ...]]:
    script_sig = bytes(scope.final_scriptsig.data) if scope.final_scriptsig else b""
    if scope.final_scriptwitness:
        return script_sig, tuple(bytes(item) for item in scope.final_scriptwitness.items)
    if script_sig:
        return script_sig, ()
    if txout is not None and scripts.is_p2tr(txout.script_pubkey) and _TAP_KEY_SIG in scope.unknown:
        return b"", (bytes(scope.unknown[_TAP_KEY_SIG]),)
    if txout is not None and scripts.is_p2wpkh(txout.script_pubkey):
        for pubkey, signature in scope.partial_sigs.items():
            if hash160(pubkey.sec()) == txout.script_pubkey[2:]:
                return b"", (bytes(signature), bytes(pubkey.sec()))
    raise PsbtError(f"input {place} of the PSBT is not signed completely")


def _verify(tx: Tx, spent: Sequence[TxOut | None]) -> None:
    """Check the signatures that can be checked without a script interpreter; layer 1 checks the rest."""
    known = [txout for txout in spent if txout is not None]
    complete_view = known if len(known) == len(spent) else None
    cache = SighashCache(tx, known)
    for place, (txin, txout) in enumerate(zip(tx.inputs, spent, strict=True)):
        if txout is None or not txin.witness:
            continue
        if scripts.is_p2wpkh(txout.script_pubkey):
            good = _verify_p2wpkh(tx, place, txout, cache)
        elif scripts.is_p2tr(txout.script_pubkey) and len(txin.witness) == 1 and complete_view is not None:
            good = _verify_p2tr(tx, place, complete_view, cache)
        else:
            continue
        if not good:
            raise PsbtError(f"the signature of input {place} is wrong")


def _verify_p2wpkh(tx: Tx, place: int, txout: TxOut, cache: SighashCache) -> bool:
    witness = tx.inputs[place].witness
    if len(witness) != 2 or not witness[0] or hash160(witness[1]) != txout.script_pubkey[2:]:
        return False
    code = scripts.p2wpkh_script_code(txout.script_pubkey[2:])
    digest = segwit_v0_sighash(tx, place, code, txout.value_sat, witness[0][-1], cache)
    try:
        return secp.verify(witness[1], digest, secp.der_to_compact(witness[0][:-1]))
    except ValueError:
        return False


def _verify_p2tr(tx: Tx, place: int, spent: Sequence[TxOut], cache: SighashCache) -> bool:
    signature = tx.inputs[place].witness[0]
    if len(signature) not in (64, 65):
        return False
    try:
        digest = taproot_sighash(tx, place, spent, signature[64] if len(signature) == 65 else 0, cache=cache)
    except ValueError:
        return False
    return secp.verify_schnorr(spent[place].script_pubkey[2:], digest, signature[:64])
