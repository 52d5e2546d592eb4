"""Closing transactions and the scripts that they may pay to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channeld.bolt.transactions import CommitmentParams, complete, fees
from channeld.bolt.transactions.closing import (
    ClosingBalances,
    ClosingVariant,
    NoClosingTransaction,
    closee_variant,
    closer_variants,
    closing_tx_weight,
    has_dust_output,
    is_op_return_shutdown,
    is_valid_shutdown_script,
    legacy_closing_tx,
    simple_closing_tx,
)
from channeld.bolt.transactions.funding import funding_script_pubkey, funding_sighash
from tests.unit.bolt3_support import alice_and_bob, channel, mirrored_params, script_ok
from wallet.bitcoin.script import P2A_SCRIPT, p2pkh, p2sh, p2tr, p2wpkh, p2wsh
from wallet.bitcoin.secp import verify
from wallet.bitcoin.tx import Tx, TxOut

ALICE, BOB = alice_and_bob()
A_SCRIPT, B_SCRIPT = p2wpkh(ALICE.keys.payment_basepoint), p2wsh(b"\x51")
OP_RETURN_SCRIPT = b"\x6a\x06bitter"
PARAMS = channel(ALICE, BOB)
FUNDING = TxOut(PARAMS.funding_sat, funding_script_pubkey(ALICE.keys.funding_pubkey, BOB.keys.funding_pubkey))


def _balances(local_sat: int, local_script: bytes = A_SCRIPT, remote_script: bytes = B_SCRIPT) -> ClosingBalances:
    return ClosingBalances(local_sat, local_script, PARAMS.funding_sat - local_sat, remote_script)


def _signed(tx: Tx, params: CommitmentParams = PARAMS) -> Tx:
    """Signed by both, checked by both and by Bitcoin Core's engine."""
    alice, bob = ALICE.sign_funding_input(params, tx), BOB.sign_funding_input(mirrored_params(params), tx)
    digest = funding_sighash(tx, 0, params.funding_script(), params.funding_sat)
    assert verify(ALICE.keys.funding_pubkey, digest, alice)
    assert verify(BOB.keys.funding_pubkey, digest, bob)
    signed = complete(params, tx, alice, bob)
    assert signed == complete(mirrored_params(params), tx, bob, alice)
    assert script_ok(signed, 0, FUNDING)
    return signed


@given(
    st.integers(0, PARAMS.funding_sat),
    st.integers(0, 20_000),
    st.booleans(),
    st.sampled_from((354, 546)),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_legacy_closing(local_sat: int, fee_sat: int, local_is_opener: bool, dust: int, omit_local: bool) -> None:
    balances = _balances(local_sat)
    after = local_sat - fee_sat * local_is_opener, PARAMS.funding_sat - local_sat - fee_sat * (not local_is_opener)

    def close(balances: ClosingBalances, *, ours: bool) -> Tx:
        return legacy_closing_tx(
            PARAMS.funding_outpoint,
            balances,
            local_is_opener=local_is_opener == ours,
            fee_sat=fee_sat,
            dust_limit_sat=dust,
            omit_local=omit_local and ours,
            omit_remote=omit_local and not ours,
        )

    expected = [TxOut(sat, script) for sat, script in zip(after, (A_SCRIPT, B_SCRIPT), strict=True) if sat >= dust]
    if omit_local:
        expected = [output for output in expected if output.script_pubkey != A_SCRIPT]
    if min(after) < 0 or not expected:
        with pytest.raises(NoClosingTransaction):
            close(balances, ours=True)
        return
    tx = close(balances, ours=True)
    assert (tx.version, tx.locktime, tx.inputs[0].sequence) == (2, 0, 0xFFFF_FFFF)
    assert list(tx.outputs) == sorted(expected)
    assert tx == close(ClosingBalances(balances.remote_sat, B_SCRIPT, balances.local_sat, A_SCRIPT), ours=False)
    scripts = {output.script_pubkey for output in tx.outputs}
    weight = closing_tx_weight(A_SCRIPT if A_SCRIPT in scripts else None, B_SCRIPT if B_SCRIPT in scripts else None)
    assert weight - 6 <= _signed(tx).weight() <= weight


def test_equal_amounts_are_ordered_by_script() -> None:
    tx = legacy_closing_tx(
        PARAMS.funding_outpoint,
        ClosingBalances(5_000_000, B_SCRIPT, 5_000_000, A_SCRIPT),
        local_is_opener=True,
        fee_sat=0,
        dust_limit_sat=354,
    )
    assert [output.script_pubkey for output in tx.outputs] == [A_SCRIPT, B_SCRIPT]


def test_balances_are_rounded_down_each() -> None:
    assert ClosingBalances.from_msat(1_999, A_SCRIPT, 5_000, B_SCRIPT) == ClosingBalances(1, A_SCRIPT, 5, B_SCRIPT)


def test_dust_to_the_script_fails_a_legacy_close() -> None:
    def close(script: bytes) -> Tx:
        balances = _balances(400, local_script=script)
        return legacy_closing_tx(
            PARAMS.funding_outpoint, balances, local_is_opener=False, fee_sat=500, dust_limit_sat=354
        )

    assert not has_dust_output(close(A_SCRIPT))
    assert has_dust_output(close(p2pkh(bytes(20))))


VARIANTS: tuple[ClosingVariant, ...] = ("closer_output_only", "closee_output_only", "closer_and_closee_outputs")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("local_is_closer", [True, False])
def test_simple_closing(variant: ClosingVariant, local_is_closer: bool) -> None:
    balances = _balances(4_000_000)
    tx = simple_closing_tx(
        PARAMS.funding_outpoint,
        balances,
        local_is_closer=local_is_closer,
        fee_sat=1_000,
        locktime=812_345,
        variant=variant,
    )
    assert (tx.version, tx.locktime, tx.inputs[0].sequence) == (2, 812_345, 0xFFFF_FFFD)
    local = TxOut(4_000_000 - 1_000 * local_is_closer, A_SCRIPT)
    remote = TxOut(6_000_000 - 1_000 * (not local_is_closer), B_SCRIPT)
    closer, closee = (local, remote) if local_is_closer else (remote, local)
    expected = {"closer_output_only": [closer], "closee_output_only": [closee]}.get(variant, [local, remote])
    assert list(tx.outputs) == expected
    _signed(tx)


@pytest.mark.parametrize("local_is_closer", [True, False])
def test_op_return_outputs_hold_nothing(local_is_closer: bool) -> None:
    balances = _balances(4_000_000, local_script=OP_RETURN_SCRIPT)
    tx = simple_closing_tx(
        PARAMS.funding_outpoint,
        balances,
        local_is_closer=local_is_closer,
        fee_sat=1_000,
        locktime=0,
        variant="closer_and_closee_outputs",
    )
    remote_sat = 6_000_000 - (0 if local_is_closer else 1_000)
    assert tx.outputs == (TxOut(0, OP_RETURN_SCRIPT), TxOut(remote_sat, B_SCRIPT))
    _signed(tx)


def test_the_closer_cannot_pay_more_than_it_has() -> None:
    with pytest.raises(NoClosingTransaction, match="cannot pay a fee of 1001 sat from 1000 sat"):
        simple_closing_tx(
            PARAMS.funding_outpoint,
            _balances(1_000),
            local_is_closer=True,
            fee_sat=1_001,
            locktime=0,
            variant="closee_output_only",
        )


@pytest.mark.parametrize(
    ("local_sat", "fee_sat", "uneconomical", "local_script", "expected"),
    [
        (1_000_000, 1_000, False, A_SCRIPT, {"closer_and_closee_outputs"}),
        (1_000_000, 1_000, True, A_SCRIPT, {"closee_output_only"}),
        (1_000_000, 1_000, True, OP_RETURN_SCRIPT, {"closer_and_closee_outputs"}),
        (1_293, 1_000, False, A_SCRIPT, {"closee_output_only"}),
        (1_294, 1_000, False, A_SCRIPT, {"closer_and_closee_outputs"}),
        (5_000_000, 1_000, False, A_SCRIPT, {"closer_output_only", "closer_and_closee_outputs"}),
        (5_000_000, 1_000, True, A_SCRIPT, {"closer_output_only", "closer_and_closee_outputs"}),
        (9_999_670, 1_000, False, A_SCRIPT, {"closer_output_only", "closer_and_closee_outputs"}),
        (9_999_671, 1_000, False, A_SCRIPT, {"closer_output_only"}),
        (10_000_000, 1_000, False, OP_RETURN_SCRIPT, {"closer_output_only"}),
    ],
)
def test_what_the_closer_signs(
    local_sat: int, fee_sat: int, uneconomical: bool, local_script: bytes, expected: set[str]
) -> None:
    balances = _balances(local_sat, local_script=local_script)
    msat = balances.local_sat * 1000, balances.remote_sat * 1000
    variants = closer_variants(msat, balances, fee_sat=fee_sat, uneconomical=uneconomical)
    assert set(variants) == expected
    assert len(variants) == len(expected)


def test_a_fee_that_leaves_only_dust_is_refused() -> None:
    with pytest.raises(NoClosingTransaction, match="only dust"):
        closer_variants((10_000_000_000, 0), _balances(10_000_000), fee_sat=9_999_900)


@pytest.mark.parametrize(
    ("local_sat", "local_script", "uneconomical", "offered", "expected"),
    [
        (293, A_SCRIPT, False, VARIANTS, "closer_output_only"),
        (294, A_SCRIPT, False, VARIANTS, "closer_and_closee_outputs"),
        (294, A_SCRIPT, True, VARIANTS, "closer_output_only"),
        (294, OP_RETURN_SCRIPT, True, VARIANTS, "closer_and_closee_outputs"),
        (0, OP_RETURN_SCRIPT, False, VARIANTS, "closer_and_closee_outputs"),
        (5_000, A_SCRIPT, False, ("closee_output_only",), "closee_output_only"),
        (5_000, A_SCRIPT, False, (), "closee_output_only"),
    ],
)
def test_what_the_closee_checks(
    local_sat: int,
    local_script: bytes,
    uneconomical: bool,
    offered: tuple[ClosingVariant, ...],
    expected: ClosingVariant,
) -> None:
    balances = _balances(local_sat, local_script=local_script)
    assert closee_variant(balances, frozenset(offered), uneconomical=uneconomical) == expected


def _program(version: int, size: int) -> bytes:
    return bytes((0x50 + version, size)) + bytes(size)


@pytest.mark.parametrize(
    ("script", "plain", "anysegwit", "simple_close", "legacy"),
    [
        (A_SCRIPT, True, True, True, True),
        (B_SCRIPT, True, True, True, True),
        (p2tr(bytes(32)), False, True, False, False),
        (P2A_SCRIPT, False, True, False, False),
        (_program(16, 2), False, True, False, False),
        (_program(16, 40), False, True, False, False),
        (_program(2, 41), False, False, False, False),
        (_program(2, 1), False, False, False, False),
        (b"\x00\x15" + bytes(21), False, False, False, False),
        (p2pkh(bytes(20)), False, False, False, True),
        (p2sh(bytes(20)), False, False, False, True),
        (b"\x6a\x06" + bytes(6), False, False, True, False),
        (b"\x6a\x4b" + bytes(75), False, False, True, False),
        (b"\x6a\x4c\x4c" + bytes(76), False, False, True, False),
        (b"\x6a\x4c\x50" + bytes(80), False, False, True, False),
        (b"\x6a\x05" + bytes(5), False, False, False, False),
        (b"\x6a\x06" + bytes(7), False, False, False, False),
        (b"\x6a\x06" + bytes(5), False, False, False, False),
        (b"\x6a\x4c\x4b" + bytes(75), False, False, False, False),
        (b"\x6a\x4c\x51" + bytes(81), False, False, False, False),
        (b"\x6a\x4c", False, False, False, False),
        (b"\x6a", False, False, False, False),
        (b"", False, False, False, False),
    ],
)
def test_shutdown_scripts(script: bytes, plain: bool, anysegwit: bool, simple_close: bool, legacy: bool) -> None:
    assert is_valid_shutdown_script(script, False) == plain
    assert is_valid_shutdown_script(script, True) == (plain or anysegwit)
    assert is_valid_shutdown_script(script, False, True) == (plain or simple_close)
    assert is_valid_shutdown_script(script, True, True) == (plain or anysegwit or simple_close)
    assert is_valid_shutdown_script(script, False, legacy=True) == (plain or legacy)
    assert is_op_return_shutdown(script) == (simple_close and not plain)


@pytest.mark.parametrize(
    ("script", "threshold_sat"),
    [
        (p2pkh(bytes(20)), 546),
        (p2sh(bytes(20)), 540),
        (p2wpkh(bytes(33)), 294),
        (p2wsh(b""), 330),
        (p2tr(bytes(32)), 354),
        (P2A_SCRIPT, 240),
        (_program(3, 40), 354),
        (_program(0x10, 2), 354),
        (OP_RETURN_SCRIPT, 0),
        (b"\x51", 546),
    ],
)
def test_dust_limits(script: bytes, threshold_sat: int) -> None:
    assert fees.dust_threshold_sat(script) == threshold_sat
    assert not fees.is_dust(threshold_sat, script)
    assert threshold_sat == 0 or fees.is_dust(threshold_sat - 1, script)
