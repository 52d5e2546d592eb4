"""Script verification by Bitcoin Core's interpreter, under the flags that its mempool uses.

libbitcoinkernel's C interface verifies under consensus flags only and says no more than yes or no. The library also
exports the interpreter itself, which takes the standardness flags (low S, minimal pushes, null failures and so on) and
names the error. It is called through ctypes, after a check that the objects lie in memory as expected; where that check
fails, as with another build of the library, consensus flags must do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import pbk
import pbk.capi.bindings as capi
from pbk.capi.library import BITCOINKERNEL_LIB

from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut

MANDATORY_FLAGS = int(pbk.ScriptVerificationFlags.ALL)
_SIGPUSHONLY = 1 << 5
STANDARD_FLAGS = ((1 << 21) - 1) & ~_SIGPUSHONLY

_VERIFY = "_Z12VerifyScriptRK7CScriptS1_PK14CScriptWitness19script_verify_flagsRK20BaseSignatureCheckerP13ScriptError_t"
_CHECKER = "_ZN34GenericTransactionSignatureCheckerI12CTransactionE"
_CHECKER_CREATE = _CHECKER + "C1EPKS0_jRKlRK26PrecomputedTransactionData19MissingDataBehavior"
_CHECKER_DESTROY = _CHECKER + "D1Ev"
_CHECKER_WORDS = 512
_MISSING_DATA_FAIL = 1
_SCRIPT_SIG_OFFSET = 40
_SCRIPT_SIZE_OFFSET = 36
_WITNESS_OFFSET = 88
_VECTOR_SIZE = 24

# ScriptErrorString() by ScriptError's number.
_ERRORS = (
    "No error",
    "unknown error",
    "Script evaluated without error but finished with a false/empty top stack element",
    "OP_RETURN was encountered",
    "Script number overflowed or is non-minimally encoded",
    "Script is too big",
    "Push value size limit exceeded",
    "Operation limit exceeded",
    "Stack size limit exceeded",
    "Signature count negative or greater than pubkey count",
    "Pubkey count negative or limit exceeded",
    "Script failed an OP_VERIFY operation",
    "Script failed an OP_EQUALVERIFY operation",
    "Script failed an OP_CHECKMULTISIGVERIFY operation",
    "Script failed an OP_CHECKSIGVERIFY operation",
    "Script failed an OP_NUMEQUALVERIFY operation",
    "Opcode missing or not understood",
    "Attempted to use a disabled opcode",
    "Operation not valid with the current stack size",
    "Operation not valid with the current altstack size",
    "Invalid OP_IF construction",
    "Negative locktime",
    "Locktime requirement not satisfied",
    "Signature hash type missing or not understood",
    "Non-canonical DER signature",
    "Data push larger than necessary",
    "Only push operators allowed in signatures",
    "Non-canonical signature: S value is unnecessarily high",
    "Dummy CHECKMULTISIG argument must be zero",
    "Public key is neither compressed or uncompressed",
    "Stack size must be exactly one after execution",
    "OP_IF/NOTIF argument must be minimal",
    "Signature must be zero for failed CHECK(MULTI)SIG operation",
    "NOPx reserved for soft-fork upgrades",
    "Witness version reserved for soft-fork upgrades",
    "Taproot version reserved for soft-fork upgrades",
    "OP_SUCCESSx reserved for soft-fork upgrades",
    "Public key version reserved for soft-fork upgrades",
    "Witness program has incorrect length",
    "Witness program was passed an empty witness",
    "Witness program hash mismatch",
    "Witness requires empty scriptSig",
    "Witness requires only-redeemscript scriptSig",
    "Witness provided for non-witness script",
    "Using non-compressed keys in segwit",
    "Invalid Schnorr signature size",
    "Invalid Schnorr signature hash type",
    "Invalid Schnorr signature",
    "Invalid Taproot control block size",
    "Too much signature validation relative to witness weight",
    "OP_CHECKMULTISIG(VERIFY) is not available in tapscript",
    "OP_IF/NOTIF argument must be minimal in tapscript",
    "Empty public key in tapscript",
    "Using OP_CODESEPARATOR in non-witness script",
    "Signature is found in scriptCode",
)


class ScriptFailure(NamedTuple):
    """Why an input does not satisfy the script it spends. `mandatory` failures break consensus, others only policy."""

    input_index: int
    error: str
    mandatory: bool


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


class _Interpreter(NamedTuple):
    verify: Any
    create_checker: Any
    destroy_checker: Any


def _bind() -> _Interpreter | None:
    pointer = ctypes.c_void_p
    try:
        verify = getattr(BITCOINKERNEL_LIB, _VERIFY)
        create = getattr(BITCOINKERNEL_LIB, _CHECKER_CREATE)
        destroy = getattr(BITCOINKERNEL_LIB, _CHECKER_DESTROY)
    except AttributeError:
        return None
    verify.restype = ctypes.c_bool
    verify.argtypes = [pointer, pointer, pointer, ctypes.c_uint64, pointer, ctypes.POINTER(ctypes.c_int)]
    create.restype = None
    create.argtypes = [pointer, pointer, ctypes.c_uint, ctypes.POINTER(ctypes.c_int64), pointer, ctypes.c_int]
    destroy.restype = None
    destroy.argtypes = [pointer]
    return _Interpreter(verify, create, destroy)


def _layout_is_known() -> bool:
    # A transaction with a three-byte scriptSig and two witness items: are they where the offsets say?
    probe = Tx(2, (TxIn(OutPoint(bytes(32), 0), b"\x51\x52\x53", 0, (b"a", b"bc")),), (TxOut(1, b"\x51"),), 0)
    tx = _Transaction(probe.serialize(), ())
    script = tx.input_address(0) + _SCRIPT_SIG_OFFSET
    witness = tx.input_address(0) + _WITNESS_OFFSET
    begin, end = (ctypes.c_uint64.from_address(witness + offset).value for offset in (0, 8))
    return (
        ctypes.string_at(script, 3) == b"\x51\x52\x53"
        and ctypes.c_uint32.from_address(script + _SCRIPT_SIZE_OFFSET).value == 3
        and end - begin == 2 * _VECTOR_SIZE
    )


@cache
def _interpreter() -> _Interpreter | None:
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    bound = _bind()
    return bound if bound is not None and _layout_is_known() else None


def verifies_standard_flags() -> bool:
    """Whether the interpreter itself can be called, so that policy rules are checked and errors named."""
    return _interpreter() is not None


class _Transaction:
    """The library's own objects for one transaction and the outputs it spends, freed with this one."""

    def __init__(self, raw: bytes, spent: Sequence[TxOut]) -> None:
        self.pointer = capi.btck_transaction_create(raw, len(raw))
        if not self.pointer:
            raise ValueError("the transaction cannot be decoded")
        self.scripts = [capi.btck_script_pubkey_create(out.script_pubkey, len(out.script_pubkey)) for out in spent]
        self.outputs = [
            capi.btck_transaction_output_create(script, out.value_sat)
            for script, out in zip(self.scripts, spent, strict=True)
        ]
        array = (ctypes.POINTER(capi.btck_TransactionOutput) * len(spent))(*self.outputs) if spent else None
        self.precomputed = capi.btck_precomputed_transaction_data_create(self.pointer, array, len(spent))

    def __del__(self) -> None:
        if not self.pointer:
            return
        capi.btck_precomputed_transaction_data_destroy(self.precomputed)
        for output in self.outputs:
            capi.btck_transaction_output_destroy(output)
        for script in self.scripts:
            capi.btck_script_pubkey_destroy(script)
        capi.btck_transaction_destroy(self.pointer)

    def input_address(self, index: int) -> int:
        return _address(capi.btck_transaction_get_input_at(self.pointer, index))

    def interpret(self, interpreter: _Interpreter, index: int, value_sat: int, flags: int) -> int:
        """Run the interpreter on one input: 0, or the number of the error."""
        # The handle is a shared_ptr to the transaction, whose first word is the pointer wanted.
        transaction = ctypes.c_uint64.from_address(_address(self.pointer)).value
        place = (ctypes.c_uint64 * _CHECKER_WORDS)()
        checker = ctypes.addressof(place)
        amount = ctypes.c_int64(value_sat)
        error = ctypes.c_int(1)
        interpreter.create_checker(
            checker, transaction, index, ctypes.byref(amount), _address(self.precomputed), _MISSING_DATA_FAIL
        )
        try:
            txin = self.input_address(index)
            valid = interpreter.verify(
                txin + _SCRIPT_SIG_OFFSET,
                _address(self.scripts[index]),
                txin + _WITNESS_OFFSET,
                flags,
                checker,
                ctypes.byref(error),
            )
        finally:
            interpreter.destroy_checker(checker)
        return 0 if valid else max(1, error.value)

    def check(self, index: int, value_sat: int) -> int:
        """The C interface's verdict under consensus flags: 0 or 1."""
        status = ctypes.c_ubyte(0)
        valid = capi.btck_script_pubkey_verify(
            self.scripts[index],
            value_sat,
            self.pointer,
            self.precomputed,
            index,
            MANDATORY_FLAGS,
            status,
        )
        return 0 if valid else 1


def _error_text(number: int) -> str:
    return _ERRORS[number] if number < len(_ERRORS) else "unknown error"


def verify(
    raw: bytes, spent: Sequence[TxOut], flags: int = STANDARD_FLAGS, *, only: int | None = None
) -> ScriptFailure | None:
    """Run the scripts of all inputs (or of input `only`) of the serialised transaction `raw`; None: all satisfied.

    `spent` are the outputs that the inputs spend, in order. Raises ValueError if `raw` cannot be decoded.
    """
    tx = _Transaction(raw, spent)
    interpreter = _interpreter()
    for index, output in enumerate(spent):
        if only is not None and index != only:
            continue
        if interpreter is None:
            if tx.check(index, output.value_sat):
                return ScriptFailure(index, _error_text(1), True)
            continue
        error = tx.interpret(interpreter, index, output.value_sat, flags)
        if not error:
            continue
        mandatory = tx.interpret(interpreter, index, output.value_sat, flags & MANDATORY_FLAGS)
        return ScriptFailure(index, _error_text(mandatory or error), bool(mandatory))
    return None
