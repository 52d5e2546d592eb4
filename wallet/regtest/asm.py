"""Scripts as bitcoind prints them: opcode names, short pushes as numbers, signatures with their hash type."""

from __future__ import annotations

from wallet.bitcoin import script as scripts
from wallet.bitcoin.secp import der_to_compact
from wallet.regtest.policy import script_ops

_NAMES = (
    "NOP VER IF NOTIF VERIF VERNOTIF ELSE ENDIF VERIFY RETURN TOALTSTACK FROMALTSTACK 2DROP 2DUP 3DUP 2OVER 2ROT "
    "2SWAP IFDUP DEPTH DROP DUP NIP OVER PICK ROLL ROT SWAP TUCK CAT SUBSTR LEFT RIGHT SIZE INVERT AND OR XOR "
    "EQUAL EQUALVERIFY RESERVED1 RESERVED2 1ADD 1SUB 2MUL 2DIV NEGATE ABS NOT 0NOTEQUAL ADD SUB MUL DIV MOD "
    "LSHIFT RSHIFT BOOLAND BOOLOR NUMEQUAL NUMEQUALVERIFY NUMNOTEQUAL LESSTHAN GREATERTHAN LESSTHANOREQUAL "
    "GREATERTHANOREQUAL MIN MAX WITHIN RIPEMD160 SHA1 SHA256 HASH160 HASH256 CODESEPARATOR CHECKSIG "
    "CHECKSIGVERIFY CHECKMULTISIG CHECKMULTISIGVERIFY NOP1 CHECKLOCKTIMEVERIFY CHECKSEQUENCEVERIFY NOP4 NOP5 NOP6 "
    "NOP7 NOP8 NOP9 NOP10 CHECKSIGADD "
)
_NAMES_FROM_NOP = _NAMES.split()
_OP_NOP = 0x61
_HASH_TYPES = {
    0x01: "ALL",
    0x02: "NONE",
    0x03: "SINGLE",
    0x81: "ALL|ANYONECANPAY",
    0x82: "NONE|ANYONECANPAY",
    0x83: "SINGLE|ANYONECANPAY",
}
_MAX_NUMBER_SIZE = 4


def op_name(op: int) -> str:
    """An opcode's name; the constants are written as numbers."""
    if op == scripts.OP_1NEGATE:
        return "-1"
    if scripts.OP_1 <= op <= scripts.OP_16:
        return str(op - scripts.OP_1 + 1)
    if op == scripts.OP_1 - 1:
        return "OP_RESERVED"
    if _OP_NOP <= op < _OP_NOP + len(_NAMES_FROM_NOP):
        return f"OP_{_NAMES_FROM_NOP[op - _OP_NOP]}"
    return "OP_INVALIDOPCODE" if op == 0xFF else "OP_UNKNOWN"


def _number(data: bytes) -> int:
    value = int.from_bytes(data, "little")
    if data and data[-1] & 0x80:
        return -(value & ~(0x80 << 8 * (len(data) - 1)))
    return value


def _push_text(data: bytes, *, signatures: bool) -> str:
    if len(data) <= _MAX_NUMBER_SIZE:
        return str(_number(data))
    if signatures and data[-1] in _HASH_TYPES and _is_signature(data[:-1]):
        return f"{data[:-1].hex()}[{_HASH_TYPES[data[-1]]}]"
    return data.hex()


def _is_signature(der: bytes) -> bool:
    if not 8 <= len(der) <= 72 or der[0] != 0x30 or der[1] != len(der) - 2:
        return False
    try:
        der_to_compact(der)
    except ValueError:
        return False
    return True


def disassemble(script: bytes, *, signatures: bool = False) -> str:
    """The script in words; with `signatures`, what looks like one shows its hash type; `[error]` where it breaks."""
    words = []
    try:
        for op, data in script_ops(script):
            words.append(op_name(op) if data is None else _push_text(data, signatures=signatures))
    except ValueError:
        words.append("[error]")
    return " ".join(words)
