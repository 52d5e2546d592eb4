"""What a unilateral close leaves, spent through Bitcoin Core's engine: by the right side, at the right time only."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from channeld.bolt.transactions import (
    BuiltCommitment,
    CommitmentParams,
    CommitmentSpec,
    Htlc,
    Side,
    build_commitment,
    fees,
    sweep,
)
from channeld.bolt.transactions.onchain import (
    CommitmentOutputs,
    FoundOutput,
    HtlcMatch,
    htlc_tx_inputs,
    identify_outputs,
    preimage_in_witness,
)
from tests.unit.bolt3_support import (
    alice_and_bob,
    channel,
    channels_and_specs,
    mirrored_params,
    mirrored_spec,
    payment_hash,
    preimage,
    script_ok,
)
from wallet.bitcoin.script import p2wpkh
from wallet.bitcoin.secp import pubkey_of, sign
from wallet.bitcoin.sighash import SIGHASH_ALL, segwit_v0_sighash
from wallet.bitcoin.tx import SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut

ALICE, BOB = alice_and_bob()
WALLET_SECRET = b"w" * 32
HOME = p2wpkh(pubkey_of(WALLET_SECRET))
NUMBER = 11
ALICE_POINT, BOB_POINT = ALICE.per_commitment_point(NUMBER), BOB.per_commitment_point(NUMBER)
# Two of each kind share payment hash and amount and differ in the expiry, or in nothing at all.
HTLCS = frozenset(
    Htlc(index, amount_msat, payment_hash(number), expiry, offered)
    for index, (amount_msat, number, expiry, offered) in enumerate(
        [
            (50_000_000, 0, 500, True),
            (50_000_000, 0, 501, True),
            (50_000_999, 0, 501, True),
            (60_000_000, 0, 502, True),
            (50_000_000, 1, 500, False),
            (50_000_000, 1, 501, False),
            (70_000_000, 1, 501, False),
            (1_000, 2, 503, False),
        ]
    )
)
USED_MSAT = sum(htlc.amount_msat for htlc in HTLCS)
SPEC = CommitmentSpec(HTLCS, 253, 6_000_000_000, 4_000_000_000 - USED_MSAT)

both_types = pytest.mark.parametrize("anchors", [True, False], ids=["anchors", "static_remotekey"])


def _spend(spend: sweep.Spend, secret: bytes, feerate_per_kw: int = 253) -> Tx:
    return sweep.sign_spends(sweep.sweep_tx([spend], HOME, feerate_per_kw), [spend], [secret])


def _resigned(spend: sweep.Spend, secret: bytes, tx: Tx) -> Tx:
    """`tx` signed as it is, even if a field breaks what `spend` demands."""
    return tx.with_witness(0, spend.witness(sign(secret, spend.sighash(tx, 0))))


def _check(spend: sweep.Spend, secret: bytes, wrong_secret: bytes) -> Tx:
    """The sweep is valid, within its weight, and invalid with another key, a shorter delay, or an earlier locktime."""
    tx = _spend(spend, secret)
    assert script_ok(tx, 0, spend.output)
    assert tx.weight() <= sweep.sweep_weight([spend], HOME)
    assert not script_ok(_spend(spend, wrong_secret), 0, spend.output)
    if spend.sequence != SEQUENCE_RBF:
        early = tx.replace(inputs=(tx.inputs[0]._replace(sequence=spend.sequence - 1),))
        assert not script_ok(_resigned(spend, secret, early), 0, spend.output)
    if spend.locktime:
        early = tx.replace(locktime=spend.locktime - 1)
        assert not script_ok(_resigned(spend, secret, early), 0, spend.output)
    return tx


def _local(params: CommitmentParams) -> BuiltCommitment:
    return build_commitment(params, SPEC, "local", NUMBER, ALICE_POINT)


def _remote(params: CommitmentParams, spec: CommitmentSpec = SPEC) -> tuple[Tx, CommitmentOutputs]:
    """Bob's commitment as Alice finds it."""
    tx = build_commitment(params, spec, "remote", NUMBER, BOB_POINT).tx
    return tx, identify_outputs(params, tx, "remote", BOB_POINT, spec.htlcs)


def _found(tx: Tx, index: int | None) -> FoundOutput:
    assert index is not None
    return FoundOutput(tx.outpoint(index), tx.outputs[index])


@given(channels_and_specs(max_htlcs=20), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_output_is_recognised(
    case: tuple[CommitmentParams, CommitmentSpec, dict[bytes, bytes]], alice_owns: bool
) -> None:
    params, spec, _ = case
    assume((spec.to_local_msat if params.local_is_opener else spec.to_remote_msat) >= 660_000)
    side: Side = "local" if alice_owns else "remote"
    point = ALICE_POINT if alice_owns else BOB_POINT
    built = build_commitment(params, spec, side, NUMBER, point)
    found = identify_outputs(params, built.tx, side, point, spec.htlcs)
    assert found.keys == built.keys
    assert found.unknown == ()
    for place, index in (
        (found.to_local, built.to_local_index),
        (found.to_remote, built.to_remote_index),
        (found.to_local_anchor, built.to_local_anchor_index),
        (found.to_remote_anchor, built.to_remote_anchor_index),
    ):
        assert place == (None if index is None else _found(built.tx, index))
    assert len(found.htlcs) == len(built.htlcs)
    for match, output in zip(found.htlcs, built.htlcs, strict=True):
        assert match.outpoint == output.outpoint
        assert match.witness_script == output.witness_script
        assert match.offered_by_owner == output.offered_by_owner
        # Which of several indistinguishable HTLCs an output is, is nobody's business; what matters is equal.
        assert msgspec.structs.replace(match.htlc, id=0, amount_msat=0) == msgspec.structs.replace(
            output.htlc, id=0, amount_msat=0
        )
        assert match.htlc.amount_msat // 1000 == output.amount_sat


@both_types
def test_revoked_outputs_are_recognised_without_balances_and_amounts(anchors: bool) -> None:
    params = channel(ALICE, BOB, anchors=anchors)
    tx, complete_match = _remote(params)
    unknown_amounts = [msgspec.structs.replace(htlc, amount_msat=0) for htlc in HTLCS]
    found = identify_outputs(params, tx, "remote", BOB_POINT, unknown_amounts)
    assert [match.witness_script for match in found.htlcs] == [match.witness_script for match in complete_match.htlcs]
    assert sweep.penalties(params, found) == sweep.penalties(params, complete_match)
    assert len(sweep.penalties(params, found)) == 1 + 7
    without = identify_outputs(params, tx, "remote", BOB_POINT, [])
    assert without.htlcs == ()
    assert [output.outpoint for output in without.unknown] == [match.outpoint for match in complete_match.htlcs]


@both_types
def test_penalties_take_everything(anchors: bool) -> None:
    params = channel(ALICE, BOB, anchors=anchors)
    _, found = _remote(params)
    revealed = BOB.per_commitment_secret(NUMBER)
    spends = sweep.penalties(params, found)
    assert len(spends) == 8
    for spend in spends:
        _check(spend, ALICE.secret_for(spend, revealed), BOB.revocation_basepoint_secret)
    secrets = [ALICE.secret_for(spend, revealed) for spend in spends]
    together = sweep.sign_spends(sweep.sweep_tx(spends, HOME, 1_000, locktime=800_000), spends, secrets)
    assert all(script_ok(together, index, spend.output) for index, spend in enumerate(spends))
    assert together.weight() <= sweep.sweep_weight(spends, HOME)
    fee_sat = sum(spend.output.value_sat for spend in spends) - together.outputs[0].value_sat
    assert together.weight() <= fee_sat <= sweep.sweep_weight(spends, HOME) + 1
    with pytest.raises(ValueError, match="per_commitment_secret of the revoked commitment"):
        ALICE.secret_for(spends[0], BOB.per_commitment_secret(NUMBER + 1))
    with pytest.raises(ValueError, match="per_commitment_secret of the revoked commitment"):
        ALICE.secret_for(spends[0])


def test_expected_penalty_weights_are_those_of_bolt_5() -> None:
    for anchors in (False, True):
        params = channel(ALICE, BOB, anchors=anchors)
        params = msgspec.structs.replace(params, remote_to_self_delay=65_535)
        htlcs = [msgspec.structs.replace(htlc, cltv_expiry=800_000) for htlc in HTLCS]
        spec = msgspec.structs.replace(SPEC, htlcs=frozenset(htlcs))
        _, found = _remote(params, spec)
        assert found.to_local is not None
        to_local = sweep.revoked_output(params, found.keys, *found.to_local)
        offered, accepted = fees.OFFERED_HTLC_PENALTY_INPUT_WEIGHT, fees.ACCEPTED_HTLC_PENALTY_INPUT_WEIGHT
        if anchors:
            offered = fees.OFFERED_HTLC_PENALTY_INPUT_WEIGHT_ANCHORS
            accepted = fees.ACCEPTED_HTLC_PENALTY_INPUT_WEIGHT_ANCHORS
        # BOLT 5 counts more bytes for `to_self_delay` than any value of it takes.
        assert to_local.input_weight == fees.TO_LOCAL_PENALTY_INPUT_WEIGHT - 4
        for match in found.htlcs:
            weight = sweep.revoked_htlc(found.keys, match).input_weight
            assert weight == (offered if match.offered_by_owner else accepted)


@both_types
def test_own_commitment_pays_us_after_the_delay(anchors: bool) -> None:
    params = channel(ALICE, BOB, anchors=anchors)
    built = _local(params)
    spend = sweep.delayed_output(params, built.keys, *_found(built.tx, built.to_local_index))
    assert spend.sequence == params.local_to_self_delay == 144
    _check(spend, ALICE.secret_for(spend), ALICE.delayed_payment_basepoint_secret)


def _second_stage(params: CommitmentParams) -> list[tuple[Tx, TxOut]]:
    """(Alice's HTLC transaction with its witness, the output that it spends) for all her commitment's HTLCs."""
    built = _local(params)
    seen = build_commitment(mirrored_params(params), mirrored_spec(SPEC), "remote", NUMBER, ALICE_POINT)
    _, signatures = BOB.sign_commitment(seen)
    result = []
    for output, signature in zip(built.htlcs, signatures, strict=True):
        own = sign(ALICE.htlc_secret(ALICE_POINT), output.owner_sighash())
        item = b"" if output.offered_by_owner else preimage(1)
        tx = output.htlc_tx().with_witness(0, output.witness(signature, own, item))
        result.append((tx, built.tx.outputs[output.output_index]))
    return result


@both_types
def test_second_stage_pays_its_owner_late_and_the_other_at_once_if_revoked(anchors: bool) -> None:
    params = channel(ALICE, BOB, anchors=anchors)
    built = _local(params)
    second_stage = _second_stage(params)
    assert len(second_stage) == 7
    bobs = identify_outputs(mirrored_params(params), built.tx, "remote", ALICE_POINT, mirrored_spec(SPEC).htlcs)
    for tx, spent in second_stage:
        assert script_ok(tx, 0, spent)
        if tx.locktime:
            expected = fees.HTLC_TIMEOUT_WEIGHT_ANCHORS if anchors else fees.HTLC_TIMEOUT_WEIGHT
            assert not script_ok(tx.replace(locktime=tx.locktime - 1), 0, spent)
        else:
            expected = fees.HTLC_SUCCESS_WEIGHT_ANCHORS if anchors else fees.HTLC_SUCCESS_WEIGHT
        assert expected - 8 <= tx.weight() <= expected
        own = sweep.delayed_output(params, built.keys, *_found(tx, 0))
        _check(own, ALICE.secret_for(own), BOB.delayed_payment_basepoint_secret)
        penalty = sweep.revoked_output(mirrored_params(params), built.keys, *_found(tx, 0))
        _check(penalty, BOB.secret_for(penalty, ALICE.per_commitment_secret(NUMBER)), BOB.htlc_basepoint_secret)
        ((index, match),) = htlc_tx_inputs(tx, bobs)
        assert index == 0
        assert preimage_in_witness(match, tx.inputs[0].witness) == (None if tx.locktime else preimage(1))


@pytest.mark.bolt5("htlc.remote_sighash", "htlc.local_sighash")
def test_htlc_transactions_of_anchors_take_a_wallets_inputs() -> None:
    params = channel(ALICE, BOB)
    built = _local(params)
    seen = build_commitment(mirrored_params(params), mirrored_spec(SPEC), "remote", NUMBER, ALICE_POINT)
    _, signatures = BOB.sign_commitment(seen)
    batch = [(o, s) for o, s in zip(built.htlcs, signatures, strict=True) if not o.offered_by_owner]
    assert len(batch) == 3
    coin, change = TxOut(100_000, HOME), TxOut(90_000, HOME)
    tx = sweep.htlc_batch_tx([output for output, _ in batch])
    assert sum(o.value_sat for o in tx.outputs) == sum(output.amount_sat for output, _ in batch)
    tx = tx.replace(inputs=(*tx.inputs, TxIn(OutPoint(b"c" * 32, 0))), outputs=(*tx.outputs, change))
    for index, (output, signature) in enumerate(batch):
        own = sign(ALICE.htlc_secret(ALICE_POINT), output.owner_sighash(tx, index))
        tx = tx.with_witness(index, output.witness(signature, own, preimage(1)))
    wallet_code = b"\x76\xa9" + HOME[1:] + b"\x88\xac"
    wallet_signature = sign(WALLET_SECRET, segwit_v0_sighash(tx, 3, wallet_code, coin.value_sat, SIGHASH_ALL))
    from_wallet = sweep.Spend(OutPoint(b"c" * 32, 0), coin, b"", "none", b"", 0, 0, (pubkey_of(WALLET_SECRET),))
    tx = tx.with_witness(3, from_wallet.witness(wallet_signature))
    spent = [built.tx.outputs[output.output_index] for output, _ in batch] + [coin]
    assert all(script_ok(tx, index, output) for index, output in enumerate(spent))
    # An output that Bob's signature covers may not change, one that was added may.
    stolen = tx.replace(outputs=(tx.outputs[0]._replace(script_pubkey=HOME), *tx.outputs[1:]))
    assert not script_ok(stolen, 0, spent[0])

    by_expiry = [output for output in built.htlcs if output.offered_by_owner]
    with pytest.raises(ValueError, match="different locktimes"):
        sweep.htlc_batch_tx(by_expiry)
    with pytest.raises(ValueError, match="only HTLC transactions of option_anchors"):
        sweep.htlc_batch_tx(_local(channel(ALICE, BOB, anchors=False)).htlcs)
    with pytest.raises(ValueError, match="only HTLC transactions of option_anchors"):
        sweep.htlc_batch_tx([])


@both_types
def test_peers_commitment_pays_us(anchors: bool) -> None:
    params = channel(ALICE, BOB, anchors=anchors)
    _, found = _remote(params)
    assert found.to_remote is not None
    spend = sweep.to_remote_output(params, *found.to_remote)
    assert (spend.sequence == 1) == anchors
    _check(spend, ALICE.secret_for(spend), BOB.payment_basepoint_secret)

    def claim(match: HtlcMatch) -> sweep.Spend:
        if match.offered_by_owner:
            return sweep.remote_htlc_with_preimage(params, found.keys, match, preimage(1))
        return sweep.remote_htlc_after_timeout(params, found.keys, match)

    assert len(found.htlcs) == 7
    for match in found.htlcs:
        spend = claim(match)
        claimed = _check(spend, ALICE.secret_for(spend), ALICE.htlc_basepoint_secret)
        assert claimed.locktime == (0 if match.offered_by_owner else match.htlc.cltv_expiry)
        assert htlc_tx_inputs(claimed, found) == [(0, match)]
        revealed = preimage(1) if match.offered_by_owner else None
        assert preimage_in_witness(match, claimed.inputs[0].witness) == revealed
        if match.offered_by_owner:
            with pytest.raises(ValueError, match="HTLC that we offered"):
                sweep.remote_htlc_after_timeout(params, found.keys, match)
            with pytest.raises(ValueError, match="its preimage claims"):
                sweep.remote_htlc_with_preimage(params, found.keys, match, preimage(0))
        else:
            with pytest.raises(ValueError, match="its preimage claims"):
                sweep.remote_htlc_with_preimage(params, found.keys, match, preimage(0))
    everything = [claim(match) for match in found.htlcs]
    together = sweep.sweep_tx(everything, HOME, 253, locktime=100)
    assert together.locktime == 502
    signed = sweep.sign_spends(together, everything, [ALICE.secret_for(spend) for spend in everything])
    assert all(script_ok(signed, index, spend.output) for index, spend in enumerate(everything))


@pytest.mark.parametrize("ours", [True, False], ids=["own commitment", "peer's commitment"])
def test_anchors(ours: bool) -> None:
    params = channel(ALICE, BOB)
    side: Side = "local" if ours else "remote"
    point = ALICE_POINT if ours else BOB_POINT
    built = build_commitment(params, SPEC, side, NUMBER, point)
    mine = _found(built.tx, built.to_local_anchor_index if ours else built.to_remote_anchor_index)
    theirs = _found(built.tx, built.to_remote_anchor_index if ours else built.to_local_anchor_index)
    spend = sweep.anchor_output(params, *mine)
    assert spend.output.value_sat == fees.ANCHOR_SAT
    with pytest.raises(sweep.Uneconomical):
        sweep.sweep_tx([spend], HOME, 253)
    tx = _child(spend, ALICE.secret_for(spend))
    assert script_ok(tx, 0, spend.output)
    assert not script_ok(_child(spend, BOB.funding_secret), 0, spend.output)
    for funding_pubkey, found in ((ALICE.keys.funding_pubkey, mine), (BOB.keys.funding_pubkey, theirs)):
        old = sweep.old_anchor_output(funding_pubkey, *found)
        tx = _child(old, b"")
        assert ALICE.secret_for(old) == b""
        assert old.sequence == 16
        assert script_ok(tx, 0, old.output)
        assert not script_ok(tx.replace(inputs=(tx.inputs[0]._replace(sequence=15), tx.inputs[1])), 0, old.output)


def _child(spend: sweep.Spend, secret: bytes) -> Tx:
    """A child that a wallet's coin pays for; its own witness is left out."""
    tx = Tx(2, (spend.txin(), TxIn(OutPoint(b"c" * 32, 1))), (TxOut(50_000, HOME),), 0)
    return sweep.sign_spends(tx, [spend], [secret])


def test_sign_spends_checks_what_it_signs() -> None:
    params = channel(ALICE, BOB)
    _, found = _remote(params)
    assert found.to_remote is not None
    spend = sweep.to_remote_output(params, *found.to_remote)
    tx = sweep.sweep_tx([spend], HOME, 253)
    for other in (tx.inputs[0]._replace(sequence=SEQUENCE_RBF), tx.inputs[0]._replace(outpoint=OutPoint(bytes(32), 0))):
        with pytest.raises(ValueError, match="is not the spend"):
            sweep.sign_spends(tx.replace(inputs=(other,)), [spend], [b"x" * 32])


def test_spends_survive_storage() -> None:
    _, found = _remote(channel(ALICE, BOB))
    for spend in sweep.penalties(channel(ALICE, BOB), found):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(spend), type=sweep.Spend) == spend
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=CommitmentOutputs) == found
