"""Expected weights, fees and dust limits (BOLT 3, "Fees", "Dust Limits" and appendix A; BOLT 5, "Penalty Transactions
Weight Calculation"). Weights are in weight units, fee rates in satoshi per 1000 weight units, rounded down.
"""

from __future__ import annotations

from wallet.bitcoin.script import P2A_SCRIPT, is_p2pkh, is_p2sh, is_p2wpkh, is_p2wsh, is_unspendable, witness_program

COMMITMENT_WEIGHT = 724
COMMITMENT_WEIGHT_ANCHORS = 1124
HTLC_OUTPUT_WEIGHT = 172
HTLC_TIMEOUT_WEIGHT = 663
HTLC_TIMEOUT_WEIGHT_ANCHORS = 666
HTLC_SUCCESS_WEIGHT = 703
HTLC_SUCCESS_WEIGHT_ANCHORS = 706

ANCHOR_SAT = 330
"""What an anchor output holds, satoshi."""
SIGNATURE_WEIGHT = 73
"""A DER signature with its sighash byte, at most."""
TXIN_WEIGHT = 41 * 4
"""An input without its witness: outpoint, empty script, sequence."""
FUNDING_WITNESS_WEIGHT = 222
"""Count, empty item, two signatures, the 2-of-2 script."""
TO_LOCAL_PENALTY_INPUT_WEIGHT = 324
OFFERED_HTLC_PENALTY_INPUT_WEIGHT = 407
OFFERED_HTLC_PENALTY_INPUT_WEIGHT_ANCHORS = 410
ACCEPTED_HTLC_PENALTY_INPUT_WEIGHT = 413
ACCEPTED_HTLC_PENALTY_INPUT_WEIGHT_ANCHORS = 416

DUST_P2PKH_SAT = 546
DUST_P2SH_SAT = 540
DUST_P2WPKH_SAT = 294
DUST_P2WSH_SAT = 330
DUST_P2A_SAT = 240
DUST_UNKNOWN_SEGWIT_SAT = 354


def weight_fee_sat(weight: int, feerate_per_kw: int) -> int:
    """`weight * feerate_per_kw / 1000`, rounded down, satoshi."""
    return weight * feerate_per_kw // 1000


def commit_tx_weight(num_htlcs: int, anchors: bool) -> int:
    """Expected weight of a commitment transaction with `num_htlcs` untrimmed HTLC outputs."""
    return (COMMITMENT_WEIGHT_ANCHORS if anchors else COMMITMENT_WEIGHT) + HTLC_OUTPUT_WEIGHT * num_htlcs


def commit_tx_fee_sat(feerate_per_kw: int, num_htlcs: int, anchors: bool) -> int:
    """Base fee of a commitment transaction with `num_htlcs` untrimmed HTLC outputs, satoshi (without the anchors)."""
    return commit_tx_weight(num_htlcs, anchors) * feerate_per_kw // 1000


def funder_cost_sat(feerate_per_kw: int, num_htlcs: int, anchors: bool) -> int:
    """What the opener pays for a commitment transaction: the base fee and, with anchors, both of them. Satoshi."""
    return commit_tx_fee_sat(feerate_per_kw, num_htlcs, anchors) + (2 * ANCHOR_SAT if anchors else 0)


def htlc_timeout_fee_sat(feerate_per_kw: int, anchors: bool) -> int:
    """Fee inside an HTLC-timeout transaction, satoshi: none with anchors."""
    return 0 if anchors else HTLC_TIMEOUT_WEIGHT * feerate_per_kw // 1000


def htlc_success_fee_sat(feerate_per_kw: int, anchors: bool) -> int:
    """Fee inside an HTLC-success transaction, satoshi: none with anchors."""
    return 0 if anchors else HTLC_SUCCESS_WEIGHT * feerate_per_kw // 1000


def dust_threshold_sat(script_pubkey: bytes) -> int:
    """The least amount, in satoshi, that Bitcoin Core relays in an output to `script_pubkey` (BOLT 3, "Dust Limits").

    A script of no known form gets the largest threshold of all, that of P2PKH.
    """
    if is_unspendable(script_pubkey):
        return 0
    if is_p2wpkh(script_pubkey):
        return DUST_P2WPKH_SAT
    if is_p2wsh(script_pubkey):
        return DUST_P2WSH_SAT
    if script_pubkey == P2A_SCRIPT:
        return DUST_P2A_SAT
    if is_p2sh(script_pubkey):
        return DUST_P2SH_SAT
    if not is_p2pkh(script_pubkey) and witness_program(script_pubkey) is not None:
        return DUST_UNKNOWN_SEGWIT_SAT
    return DUST_P2PKH_SAT


def is_dust(amount_sat: int, script_pubkey: bytes) -> bool:
    """Whether Bitcoin Core would not relay an output of `amount_sat` to `script_pubkey`."""
    return amount_sat < dust_threshold_sat(script_pubkey)
