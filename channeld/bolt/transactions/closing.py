"""Mutual closing transactions: `closing_signed` (legacy) and `closing_complete`/`closing_sig` (`option_simple_close`),
and which scripts may be closed to (BOLT 2, "Closing Initiation"; BOLT 3, "Closing Transaction")."""

from __future__ import annotations

from typing import Literal

import msgspec

from channeld.bolt.transactions import fees
from wallet.bitcoin.script import (
    OP_PUSHDATA1,
    OP_RETURN,
    is_p2pkh,
    is_p2sh,
    is_p2wpkh,
    is_p2wsh,
    is_unspendable,
    witness_program,
)
from wallet.bitcoin.tx import SEQUENCE_FINAL, SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut

ClosingVariant = Literal["closer_output_only", "closee_output_only", "closer_and_closee_outputs"]
"""The `closing_tlvs`, each a signature over another transaction."""


class NoClosingTransaction(ValueError):
    """The outputs that were asked for do not make a transaction: none is left, or the fee exceeds a balance."""


def is_op_return_shutdown(script: bytes) -> bool:
    """`OP_RETURN` and a single push of 6 to 80 bytes, in the one form that BOLT 2 allows for each length."""
    if len(script) < 2 or script[0] != OP_RETURN:
        return False
    if 6 <= script[1] <= 75:
        return len(script) == 2 + script[1]
    return script[1] == OP_PUSHDATA1 and len(script) >= 3 and 76 <= script[2] <= 80 and len(script) == 3 + script[2]


def is_valid_shutdown_script(
    script: bytes, option_shutdown_anysegwit: bool, option_simple_close: bool = False, *, legacy: bool = False
) -> bool:
    """Whether `script` may be in `shutdown` with these features (BOLT 2, "Closing Initiation: `shutdown`").

    `legacy` also accepts P2PKH and P2SH, which old nodes may still send and BOLT 2 lets a receiver accept.
    """
    if is_p2wpkh(script) or is_p2wsh(script):
        return True
    if option_shutdown_anysegwit:
        program = witness_program(script)
        if program is not None and program[0] >= 1:
            return True
    if option_simple_close and is_op_return_shutdown(script):
        return True
    return legacy and (is_p2pkh(script) or is_p2sh(script))


class ClosingBalances(msgspec.Struct, frozen=True):
    """Where a channel without HTLCs pays: each side's balance (rounded down to satoshi) and script."""

    local_sat: int
    local_script: bytes
    remote_sat: int
    remote_script: bytes

    @classmethod
    def from_msat(
        cls, to_local_msat: int, local_script: bytes, to_remote_msat: int, remote_script: bytes
    ) -> ClosingBalances:
        """From the last commitment's balances; each is rounded down by itself (BOLT 3)."""
        return cls(to_local_msat // 1000, local_script, to_remote_msat // 1000, remote_script)


def legacy_closing_tx(
    funding_outpoint: OutPoint,
    balances: ClosingBalances,
    *,
    local_is_opener: bool,
    fee_sat: int,
    dust_limit_sat: int,
    omit_local: bool = False,
    omit_remote: bool = False,
) -> Tx:
    """The transaction of `closing_signed`, without witness (BOLT 3, "Legacy Closing Transaction").

    The opener pays `fee_sat`. Outputs below `dust_limit_sat` disappear: the signer's own `dust_limit_satoshis`, so give
    ours to sign, the peer's to verify. A side may leave its own output out: `omit_local` for ours, `omit_remote` to
    verify a peer that did. Raises NoClosingTransaction if the opener cannot pay, or no output is left.
    """
    local_sat, remote_sat = balances.local_sat, balances.remote_sat
    if local_is_opener:
        local_sat -= fee_sat
    else:
        remote_sat -= fee_sat
    if local_sat < 0 or remote_sat < 0:
        raise NoClosingTransaction(f"the opener cannot pay a closing fee of {fee_sat} sat")
    outputs = []
    if local_sat >= dust_limit_sat and not omit_local:
        outputs.append(TxOut(local_sat, balances.local_script))
    if remote_sat >= dust_limit_sat and not omit_remote:
        outputs.append(TxOut(remote_sat, balances.remote_script))
    return _closing_tx(funding_outpoint, outputs, SEQUENCE_FINAL, 0)


def simple_closing_tx(
    funding_outpoint: OutPoint,
    balances: ClosingBalances,
    *,
    local_is_closer: bool,
    fee_sat: int,
    locktime: int,
    variant: ClosingVariant,
) -> Tx:
    """One transaction of `closing_complete`, without witness (BOLT 3, "Closing Transaction").

    The closer pays `fee_sat`; an `OP_RETURN` output holds nothing. Raises NoClosingTransaction if the closer cannot
    pay.
    """
    closer, closee = _closer_and_closee(balances, local_is_closer, fee_sat)
    outputs = []
    if variant != "closee_output_only":
        outputs.append(closer)
    if variant != "closer_output_only":
        outputs.append(closee)
    return _closing_tx(funding_outpoint, outputs, SEQUENCE_RBF, locktime)


def closer_variants(
    balances_msat: tuple[int, int], balances: ClosingBalances, *, fee_sat: int, uneconomical: bool = False
) -> tuple[ClosingVariant, ...]:
    """Which signatures we put into `closing_complete` (BOLT 2, "The sender of `closing_complete`").

    `balances_msat` is (ours, theirs), which decides who has less. `uneconomical` says that our output is not worth
    having. Raises NoClosingTransaction if we cannot pay `fee_sat`, or every output is dust.
    """
    closer, closee = _closer_and_closee(balances, True, fee_sat)
    closer_dust = fees.is_dust(*closer)
    closee_dust = fees.is_dust(*closee)
    if closer_dust and closee_dust:
        raise NoClosingTransaction(f"a fee of {fee_sat} sat leaves only dust")
    if balances_msat[0] < balances_msat[1]:
        if closer_dust or (uneconomical and not is_unspendable(closer.script_pubkey)):
            return ("closee_output_only",)
        return ("closer_and_closee_outputs",)
    if closee_dust:
        return ("closer_output_only",)
    return "closer_output_only", "closer_and_closee_outputs"


def closee_variant(
    balances: ClosingBalances, offered: frozenset[ClosingVariant], *, uneconomical: bool = False
) -> ClosingVariant:
    """Which signature of a peer's `closing_complete` we must check and answer (BOLT 2, "The receiver of
    `closing_complete`").

    The result may be missing in `offered`: that is the peer's fault. `uneconomical` says that our output is not
    worth having.
    """
    script = balances.local_script
    if fees.is_dust(balances.local_sat, script) or (uneconomical and not is_unspendable(script)):
        return "closer_output_only"
    if "closer_and_closee_outputs" in offered:
        return "closer_and_closee_outputs"
    return "closee_output_only"


def closing_tx_weight(local_script: bytes | None, remote_script: bytes | None) -> int:
    """Expected weight of a signed closing transaction with outputs to these scripts (None: left out)."""
    outputs = sum(9 + len(script) for script in (local_script, remote_script) if script is not None)
    return 4 * (10 + outputs) + fees.TXIN_WEIGHT + 2 + fees.FUNDING_WITNESS_WEIGHT


def has_dust_output(tx: Tx) -> bool:
    """Whether Bitcoin Core would not relay one of its outputs: such a legacy closing transaction fails the channel."""
    return any(fees.is_dust(*output) for output in tx.outputs)


def _closer_and_closee(balances: ClosingBalances, local_is_closer: bool, fee_sat: int) -> tuple[TxOut, TxOut]:
    local = TxOut(balances.local_sat, balances.local_script)
    remote = TxOut(balances.remote_sat, balances.remote_script)
    closer, closee = (local, remote) if local_is_closer else (remote, local)
    if fee_sat > closer.value_sat:
        raise NoClosingTransaction(f"the closer cannot pay a fee of {fee_sat} sat from {closer.value_sat} sat")
    return _empty_if_op_return(closer._replace(value_sat=closer.value_sat - fee_sat)), _empty_if_op_return(closee)


def _empty_if_op_return(output: TxOut) -> TxOut:
    return output._replace(value_sat=0) if is_unspendable(output.script_pubkey) else output


def _closing_tx(funding_outpoint: OutPoint, outputs: list[TxOut], sequence: int, locktime: int) -> Tx:
    if not outputs:
        raise NoClosingTransaction("no output is left")
    return Tx(2, (TxIn(funding_outpoint, b"", sequence),), tuple(sorted(outputs)), locktime)
