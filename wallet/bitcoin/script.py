"""Script opcodes and templates: what a Lightning node and its wallet put into outputs and witnesses."""

from __future__ import annotations

from wallet.bitcoin.encoding import hash160, sha256

OP_0 = 0x00
OP_PUSHDATA1 = 0x4C
OP_PUSHDATA2 = 0x4D
OP_PUSHDATA4 = 0x4E
OP_1NEGATE = 0x4F
OP_1 = 0x51
OP_2 = 0x52
OP_16 = 0x60
OP_IF = 0x63
OP_NOTIF = 0x64
OP_ELSE = 0x67
OP_ENDIF = 0x68
OP_VERIFY = 0x69
OP_RETURN = 0x6A
OP_IFDUP = 0x73
OP_DROP = 0x75
OP_DUP = 0x76
OP_SWAP = 0x7C
OP_SIZE = 0x82
OP_EQUAL = 0x87
OP_EQUALVERIFY = 0x88
OP_HASH160 = 0xA9
OP_CHECKSIG = 0xAC
OP_CHECKSIGVERIFY = 0xAD
OP_CHECKMULTISIG = 0xAE
OP_CHECKLOCKTIMEVERIFY = 0xB1
OP_CHECKSEQUENCEVERIFY = 0xB2

P2A_SCRIPT = bytes((OP_1, 2, 0x4E, 0x73))
"""Pay-to-anchor: `OP_1 <4e73>`, spendable by anyone with an empty witness."""


def push(data: bytes) -> bytes:
    """The shortest push of `data` by length (not by small-integer opcodes)."""
    n = len(data)
    if n < OP_PUSHDATA1:
        return bytes((n,)) + data
    if n <= 0xFF:
        return bytes((OP_PUSHDATA1, n)) + data
    if n <= 0xFFFF:
        return bytes((OP_PUSHDATA2,)) + n.to_bytes(2, "little") + data
    return bytes((OP_PUSHDATA4,)) + n.to_bytes(4, "little") + data


def script_num(n: int) -> bytes:
    """A minimal push of the integer `n`: OP_0, OP_1NEGATE, OP_1 to OP_16, else little-endian with a sign bit."""
    if n == 0:
        return bytes((OP_0,))
    if n == -1:
        return bytes((OP_1NEGATE,))
    if 1 <= n <= 16:
        return bytes((OP_1 + n - 1,))
    magnitude = abs(n)
    raw = bytearray(magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "little"))
    if raw[-1] & 0x80:
        raw.append(0)
    if n < 0:
        raw[-1] |= 0x80
    return push(bytes(raw))


def p2pkh(pubkey_hash: bytes) -> bytes:
    """Script for a 20-byte public key hash."""
    return b"\x76\xa9\x14" + pubkey_hash + b"\x88\xac"


def p2sh(script_hash: bytes) -> bytes:
    """Script for a 20-byte script hash."""
    return b"\xa9\x14" + script_hash + b"\x87"


def p2wpkh(pubkey: bytes) -> bytes:
    """Witness v0 script for a 33-byte compressed public key (BIP 141)."""
    return b"\x00\x14" + hash160(pubkey)


def p2wsh(witness_script: bytes) -> bytes:
    """Witness v0 script for a witness script (BIP 141)."""
    return b"\x00\x20" + sha256(witness_script)


def p2tr(output_key: bytes) -> bytes:
    """Witness v1 script for a 32-byte x-only output key (BIP 341)."""
    return b"\x51\x20" + output_key


def p2wpkh_script_code(pubkey_hash: bytes) -> bytes:
    """What BIP 143 signs for a P2WPKH input with this 20-byte hash."""
    return p2pkh(pubkey_hash)


def witness_program(script_pubkey: bytes) -> tuple[int, bytes] | None:
    """(version, program) if the script is a witness program (BIP 141), else None."""
    n = len(script_pubkey)
    if not 4 <= n <= 42 or script_pubkey[1] != n - 2 or not 2 <= n - 2 <= 40:
        return None
    op = script_pubkey[0]
    if op == OP_0:
        return 0, script_pubkey[2:]
    if OP_1 <= op <= OP_16:
        return op - OP_1 + 1, script_pubkey[2:]
    return None


def is_p2wpkh(script_pubkey: bytes) -> bool:
    """`OP_0 <20 bytes>`."""
    return len(script_pubkey) == 22 and script_pubkey[:2] == b"\x00\x14"


def is_p2wsh(script_pubkey: bytes) -> bool:
    """`OP_0 <32 bytes>`."""
    return len(script_pubkey) == 34 and script_pubkey[:2] == b"\x00\x20"


def is_p2tr(script_pubkey: bytes) -> bool:
    """`OP_1 <32 bytes>`."""
    return len(script_pubkey) == 34 and script_pubkey[:2] == b"\x51\x20"


def is_p2pkh(script_pubkey: bytes) -> bool:
    """`OP_DUP OP_HASH160 <20 bytes> OP_EQUALVERIFY OP_CHECKSIG`."""
    return len(script_pubkey) == 25 and script_pubkey[:3] == b"\x76\xa9\x14" and script_pubkey[23:] == b"\x88\xac"


def is_p2sh(script_pubkey: bytes) -> bool:
    """`OP_HASH160 <20 bytes> OP_EQUAL`."""
    return len(script_pubkey) == 23 and script_pubkey[:2] == b"\xa9\x14" and script_pubkey[22] == OP_EQUAL


def is_unspendable(script_pubkey: bytes) -> bool:
    """Provably unspendable: starts with OP_RETURN, or too long to run."""
    return script_pubkey[:1] == bytes((OP_RETURN,)) or len(script_pubkey) > 10_000
