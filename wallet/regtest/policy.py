"""Bitcoin Core's relay policy for single transactions: standardness, dust, signature operations, sizes (version 29)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wallet.bitcoin import OutPoint, Tx, TxOut
from wallet.bitcoin import script as scripts
from wallet.bitcoin.encoding import compact_size
from wallet.bitcoin.tx import MAX_MONEY_SAT

MAX_BLOCK_WEIGHT = 4_000_000
MAX_BLOCK_SIGOPS_COST = 80_000
MAX_STANDARD_TX_WEIGHT = 400_000
MAX_STANDARD_TX_SIGOPS_COST = MAX_BLOCK_SIGOPS_COST // 5
MAX_STANDARD_SCRIPTSIG_SIZE = 1650
MAX_P2SH_SIGOPS = 15
MIN_STANDARD_TX_NONWITNESS_SIZE = 65
BYTES_PER_SIGOP = 20
TX_MAX_STANDARD_VERSION = 3
MAX_STANDARD_P2WSH_SCRIPT_SIZE = 3600
MAX_STANDARD_P2WSH_STACK_ITEMS = 100
MAX_STANDARD_P2WSH_STACK_ITEM_SIZE = 80
MAX_STANDARD_TAPSCRIPT_STACK_ITEM_SIZE = 80
MAX_DUST_OUTPUTS_PER_TX = 1
WITNESS_SCALE = 4
_MAX_PUBKEYS_PER_MULTISIG = 20
_TAPROOT_LEAF_TAPSCRIPT = 0xC0
_ANNEX_TAG = 0x50
_OP_NOP_AFTER_PUSHES = scripts.OP_16
_NULL_OUTPOINT = OutPoint(bytes(32), 0xFFFF_FFFF)


@dataclass(frozen=True)
class Policy:
    """What the node relays. Fee rates are sat per 1000 virtual bytes, as in bitcoind's options."""

    min_relay_fee: int = 1000
    incremental_relay_fee: int = 1000
    dust_relay_fee: int = 3000
    block_min_fee: int = 0
    max_mempool_bytes: int = 300_000_000
    expiry_seconds: int = 336 * 3600
    ancestor_count: int = 25
    ancestor_vbytes: int = 101_000
    descendant_count: int = 25
    descendant_vbytes: int = 101_000
    max_datacarrier_bytes: int = 83
    permit_bare_multisig: bool = True
    require_standard: bool = True


class Rejection(Exception):
    """A transaction is not accepted. `reason` and `debug` are bitcoind's; str() joins them as its RPC does.

    `kind` says what may be done: `missing-inputs` (the parents may come), `reconsiderable` (a package may pay for it),
    or `invalid`.
    """

    def __init__(self, reason: str, debug: str = "", kind: str = "invalid") -> None:
        super().__init__(f"{reason}, {debug}" if debug else reason)
        self.reason = reason
        self.debug = debug
        self.kind = kind


def fee_for(rate_per_kvb: int, vsize: int) -> int:
    """The fee in sat at a rate (sat per 1000 virtual bytes) for `vsize`, rounded up as Bitcoin Core does."""
    return -(-rate_per_kvb * vsize // 1000)


def format_money(value_sat: int) -> str:
    """Bitcoin Core's FormatMoney: BTC with at least two decimals."""
    sign = "-" if value_sat < 0 else ""
    whole, fraction = divmod(abs(value_sat), 100_000_000)
    digits = f"{fraction:08d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits}"


def format_rate(fee_sat: int, vsize: int) -> str:
    """Bitcoin Core's CFeeRate::ToString, e.g. `0.00001000 BTC/kvB`."""
    rate = fee_sat * 1000 // vsize if vsize else 0
    return f"{rate // 100_000_000}.{rate % 100_000_000:08d} BTC/kvB"


# Scripts.


def script_ops(script: bytes) -> Iterator[tuple[int, bytes | None]]:
    """(opcode, pushed data or None) one by one. Raises ValueError at a push beyond the script's end."""
    pos, end = 0, len(script)
    while pos < end:
        op = script[pos]
        pos += 1
        if op > scripts.OP_PUSHDATA4:
            yield op, None
            continue
        size = op
        if op >= scripts.OP_PUSHDATA1:
            width = 1 << (op - scripts.OP_PUSHDATA1)
            if pos + width > end:
                raise ValueError("a push without its length")
            size = int.from_bytes(script[pos : pos + width], "little")
            pos += width
        if pos + size > end:
            raise ValueError("a push beyond the end of the script")
        yield op, script[pos : pos + size]
        pos += size


def is_push_only(script: bytes) -> bool:
    """Whether the script consists of pushes alone."""
    try:
        return all(op <= _OP_NOP_AFTER_PUSHES for op, _ in script_ops(script))
    except ValueError:
        return False


def multisig_parts(script: bytes) -> tuple[int, list[bytes]] | None:
    """(required signatures, public keys) of a bare multisig script, or None."""
    if len(script) < 3 or script[-1] != scripts.OP_CHECKMULTISIG:
        return None
    try:
        ops = list(script_ops(script))
    except ValueError:
        return None
    if len(ops) < 4 or not all(scripts.OP_1 <= ops[i][0] <= scripts.OP_16 for i in (0, -2)):
        return None
    keys = [data for _, data in ops[1:-2] if data is not None and len(data) in (33, 65)]
    required, total = ops[0][0] - scripts.OP_1 + 1, ops[-2][0] - scripts.OP_1 + 1
    if len(keys) != len(ops) - 3 or total != len(keys) or required > total:
        return None
    return required, keys


def script_type(script: bytes) -> str:
    """bitcoind's name for the kind of an output script."""
    program = scripts.witness_program(script)
    if program is not None:
        version, data = program
        if version == 0:
            return {20: "witness_v0_keyhash", 32: "witness_v0_scripthash"}.get(len(data), "nonstandard")
        if version == 1 and len(data) == 32:
            return "witness_v1_taproot"
        return "anchor" if script == scripts.P2A_SCRIPT else "witness_unknown"
    if scripts.is_p2sh(script):
        return "scripthash"
    if scripts.is_p2pkh(script):
        return "pubkeyhash"
    if script[:1] == bytes((scripts.OP_RETURN,)) and is_push_only(script[1:]):
        return "nulldata"
    if script and script[-1] == scripts.OP_CHECKSIG and len(script) in (35, 67) and script[0] == len(script) - 2:
        return "pubkey"
    return "multisig" if multisig_parts(script) is not None else "nonstandard"


def _is_standard_script(script: bytes, kind: str, policy: Policy) -> bool:
    if kind == "nonstandard":
        return False
    if kind == "multisig":
        parts = multisig_parts(script)
        return parts is not None and len(parts[1]) <= 3
    return kind != "nulldata" or len(script) <= policy.max_datacarrier_bytes


# Dust.


def dust_threshold(output: TxOut, dust_relay_fee: int) -> int:
    """The least value in sat that is worth spending at `dust_relay_fee` (sat per 1000 virtual bytes)."""
    script = output.script_pubkey
    if scripts.is_unspendable(script):
        return 0
    size = 8 + len(compact_size(len(script))) + len(script)
    size += 32 + 4 + 1 + (107 // WITNESS_SCALE if scripts.witness_program(script) else 107) + 4
    return fee_for(dust_relay_fee, size)


def dust_outputs(tx: Tx, policy: Policy) -> list[int]:
    """Indexes of the outputs below the dust threshold."""
    return [
        vout
        for vout, output in enumerate(tx.outputs)
        if output.value_sat < dust_threshold(output, policy.dust_relay_fee)
    ]


# Whole transactions.


def check_transaction(tx: Tx) -> None:
    """Consensus rules that need no context (CheckTransaction), and no coinbase. Raises Rejection."""
    if not tx.inputs:
        raise Rejection("bad-txns-vin-empty")
    if not tx.outputs:
        raise Rejection("bad-txns-vout-empty")
    if len(tx.serialize_stripped()) * WITNESS_SCALE > MAX_BLOCK_WEIGHT:
        raise Rejection("bad-txns-oversize")
    total = 0
    for output in tx.outputs:
        if output.value_sat < 0:
            raise Rejection("bad-txns-vout-negative")
        if output.value_sat > MAX_MONEY_SAT:
            raise Rejection("bad-txns-vout-toolarge")
        total += output.value_sat
        if total > MAX_MONEY_SAT:
            raise Rejection("bad-txns-txouttotal-toolarge")
    if len({txin.outpoint for txin in tx.inputs}) != len(tx.inputs):
        raise Rejection("bad-txns-inputs-duplicate")
    if len(tx.inputs) == 1 and tx.inputs[0].outpoint == _NULL_OUTPOINT:
        raise Rejection("coinbase" if 2 <= len(tx.inputs[0].script_sig) <= 100 else "bad-cb-length")
    if any(txin.outpoint == _NULL_OUTPOINT for txin in tx.inputs):
        raise Rejection("bad-txns-prevout-null")


def check_standard(tx: Tx, policy: Policy) -> None:
    """IsStandardTx: what an unconfirmed transaction may look like. Raises Rejection."""
    if not 1 <= tx.version <= TX_MAX_STANDARD_VERSION:
        raise Rejection("version")
    if tx.weight() > MAX_STANDARD_TX_WEIGHT:
        raise Rejection("tx-size")
    for txin in tx.inputs:
        if len(txin.script_sig) > MAX_STANDARD_SCRIPTSIG_SIZE:
            raise Rejection("scriptsig-size")
        if not is_push_only(txin.script_sig):
            raise Rejection("scriptsig-not-pushonly")
    data_outputs = 0
    for output in tx.outputs:
        kind = script_type(output.script_pubkey)
        if not _is_standard_script(output.script_pubkey, kind, policy):
            raise Rejection("scriptpubkey")
        if kind == "nulldata":
            data_outputs += 1
        elif kind == "multisig" and not policy.permit_bare_multisig:
            raise Rejection("bare-multisig")
    if len(dust_outputs(tx, policy)) > MAX_DUST_OUTPUTS_PER_TX:
        raise Rejection("dust")
    if data_outputs > 1:
        raise Rejection("multi-op-return")


def check_inputs_standard(tx: Tx, spent: Sequence[TxOut]) -> None:
    """AreInputsStandard: what kinds of outputs may be spent. Raises Rejection."""
    for txin, output in zip(tx.inputs, spent, strict=True):
        kind = script_type(output.script_pubkey)
        if kind in ("nonstandard", "witness_unknown"):
            raise Rejection("bad-txns-nonstandard-inputs")
        if kind == "scripthash":
            redeem = _last_push(txin.script_sig)
            if redeem is None or script_sigops(redeem, accurate=True) > MAX_P2SH_SIGOPS:
                raise Rejection("bad-txns-nonstandard-inputs")


def check_witness_standard(tx: Tx, spent: Sequence[TxOut]) -> None:
    """IsWitnessStandard: sizes of what witnesses hold. Raises Rejection."""
    for txin, output in zip(tx.inputs, spent, strict=True):
        if txin.witness and not _is_witness_standard(txin.witness, txin.script_sig, output.script_pubkey):
            raise Rejection("bad-witness-nonstandard")


def _is_witness_standard(witness: tuple[bytes, ...], script_sig: bytes, script: bytes) -> bool:
    if script == scripts.P2A_SCRIPT:
        return False
    nested = scripts.is_p2sh(script)
    if nested:
        redeem = _last_push(script_sig)
        if redeem is None:
            return False
        script = redeem
    program = scripts.witness_program(script)
    if program is None:
        return False
    if scripts.is_p2wsh(script):
        return (
            len(witness[-1]) <= MAX_STANDARD_P2WSH_SCRIPT_SIZE
            and len(witness) - 1 <= MAX_STANDARD_P2WSH_STACK_ITEMS
            and all(len(item) <= MAX_STANDARD_P2WSH_STACK_ITEM_SIZE for item in witness[:-1])
        )
    if scripts.is_p2tr(script) and not nested:
        return _is_taproot_witness_standard(witness)
    return True


def _is_taproot_witness_standard(stack: tuple[bytes, ...]) -> bool:
    if len(stack) >= 2 and stack[-1][:1] == bytes((_ANNEX_TAG,)):
        return False
    if len(stack) >= 2:
        control = stack[-1]
        if not control:
            return False
        if control[0] & 0xFE == _TAPROOT_LEAF_TAPSCRIPT:
            return all(len(item) <= MAX_STANDARD_TAPSCRIPT_STACK_ITEM_SIZE for item in stack[:-2])
    return bool(stack)


# Signature operations.


def script_sigops(script: bytes, *, accurate: bool) -> int:
    """GetSigOpCount: signature operations in a script; multisig counts its keys if `accurate`, else twenty."""
    count, last = 0, -1
    try:
        for op, _ in script_ops(script):
            if op in (scripts.OP_CHECKSIG, scripts.OP_CHECKSIGVERIFY):
                count += 1
            elif op in (scripts.OP_CHECKMULTISIG, scripts.OP_CHECKMULTISIG + 1):
                known = accurate and scripts.OP_1 <= last <= scripts.OP_16
                count += last - scripts.OP_1 + 1 if known else _MAX_PUBKEYS_PER_MULTISIG
            last = op
    except ValueError:
        pass
    return count


def _last_push(script_sig: bytes) -> bytes | None:
    try:
        ops = list(script_ops(script_sig))
    except ValueError:
        return None
    if not ops or any(op > scripts.OP_16 for op, _ in ops):
        return None
    return ops[-1][1] or b""


def _witness_sigops(witness: tuple[bytes, ...], script: bytes) -> int:
    if scripts.is_p2wpkh(script):
        return 1
    if scripts.is_p2wsh(script) and witness:
        return script_sigops(witness[-1], accurate=True)
    return 0


def sigops_cost(tx: Tx, spent: Sequence[TxOut]) -> int:
    """GetTransactionSigOpCost: what the transaction's signature operations weigh against a block's 80,000."""
    legacy = sum(script_sigops(txin.script_sig, accurate=False) for txin in tx.inputs)
    legacy += sum(script_sigops(output.script_pubkey, accurate=False) for output in tx.outputs)
    cost = legacy * WITNESS_SCALE
    for txin, output in zip(tx.inputs, spent, strict=True):
        script = output.script_pubkey
        if scripts.is_p2sh(script):
            redeem = _last_push(txin.script_sig)
            if redeem is not None:
                cost += script_sigops(redeem, accurate=True) * WITNESS_SCALE
                cost += _witness_sigops(txin.witness, redeem)
        else:
            cost += _witness_sigops(txin.witness, script)
    return cost


def virtual_size(weight: int, sigops: int) -> int:
    """Virtual bytes as the mempool counts them: signature operations can make a transaction larger."""
    return (max(weight, sigops * BYTES_PER_SIGOP) + WITNESS_SCALE - 1) // WITNESS_SCALE
