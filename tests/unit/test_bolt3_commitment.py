"""Commitments against a slow construction straight from BOLT 3's text, and against Bitcoin Core's engine."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from channeld.bolt.keys import derive_commitment_keys
from channeld.bolt.transactions import (
    CommitmentParams,
    CommitmentSpec,
    Htlc,
    InvalidSignature,
    Side,
    build_commitment,
    commitment_fee_sat,
    commitment_number_of,
    complete,
    is_trimmed,
    num_untrimmed,
    prepare_commitment,
    verify_commitment,
)
from channeld.bolt.transactions.fees import commit_tx_weight
from channeld.bolt.transactions.funding import funding_script_pubkey
from channeld.bolt.transactions.onchain import identify_outputs
from channeld.bolt.transactions.scripts import HtlcScripts, anchor_script, to_local_script, to_remote_script
from tests.unit.bolt3_support import (
    alice_and_bob,
    channel,
    channels_and_specs,
    mirrored_params,
    mirrored_spec,
    payment_hash,
    script_ok,
)
from wallet.bitcoin.script import p2wpkh, p2wsh
from wallet.bitcoin.secp import CURVE_ORDER, InvalidKey, sign
from wallet.bitcoin.sighash import SIGHASH_ALL, SIGHASH_ANYONECANPAY, SIGHASH_SINGLE, segwit_v0_sighash
from wallet.bitcoin.tx import OutPoint, Tx, TxIn, TxOut

ALICE, BOB = alice_and_bob()
SIDES: tuple[Side, ...] = ("local", "remote")


def _htlc_fee_sat(params: CommitmentParams, feerate_per_kw: int, offered_by_owner: bool) -> int:
    if params.anchors:
        return 0
    return feerate_per_kw * (663 if offered_by_owner else 703) // 1000


def _slow_commitment(
    params: CommitmentParams, spec: CommitmentSpec, side: Side, number: int, point: bytes
) -> tuple[Tx, list[tuple[Htlc, Tx, bytes]]]:
    """(commitment, [(HTLC, its HTLC transaction, what the other side signs)]), step by step as the text has it."""
    owner_is_local = side == "local"
    owner, other = (params.local, params.remote) if owner_is_local else (params.remote, params.local)
    delay = params.local_to_self_delay if owner_is_local else params.remote_to_self_delay
    dust = params.local_dust_limit_sat if owner_is_local else params.remote_dust_limit_sat
    keys = derive_commitment_keys(owner, other, point)
    htlc_scripts = HtlcScripts(keys, params.anchors)
    to_local = to_local_script(keys.revocation_pubkey, delay, keys.owner_delayed_pubkey)

    outputs: list[tuple[int, bytes, int, Htlc | None, bytes]] = []
    for htlc in spec.htlcs:
        by_owner = htlc.offered == owner_is_local
        if htlc.amount_msat // 1000 - _htlc_fee_sat(params, spec.feerate_per_kw, by_owner) < dust:
            continue
        script = (
            htlc_scripts.offered(htlc.payment_hash)
            if by_owner
            else htlc_scripts.received(htlc.payment_hash, htlc.cltv_expiry)
        )
        outputs.append((htlc.amount_msat // 1000, p2wsh(script), htlc.cltv_expiry, htlc, script))
    untrimmed = len(outputs)
    fee_sat = ((1124 if params.anchors else 724) + 172 * untrimmed) * spec.feerate_per_kw // 1000
    fee_sat += 660 if params.anchors else 0
    local_sat, remote_sat = spec.to_local_msat // 1000, spec.to_remote_msat // 1000
    if params.local_is_opener:
        local_sat = max(local_sat - fee_sat, 0)
    else:
        remote_sat = max(remote_sat - fee_sat, 0)
    owner_sat, other_sat = (local_sat, remote_sat) if owner_is_local else (remote_sat, local_sat)
    if owner_sat >= dust:
        outputs.append((owner_sat, p2wsh(to_local), 0, None, b""))
    if other_sat >= dust:
        basepoint = other.payment_basepoint
        script = p2wsh(to_remote_script(basepoint)) if params.anchors else p2wpkh(basepoint)
        outputs.append((other_sat, script, 0, None, b""))
    if params.anchors and (owner_sat >= dust or untrimmed):
        outputs.append((330, p2wsh(anchor_script(owner.funding_pubkey)), 0, None, b""))
    if params.anchors and (other_sat >= dust or untrimmed):
        outputs.append((330, p2wsh(anchor_script(other.funding_pubkey)), 0, None, b""))
    outputs.sort(key=lambda entry: entry[:3] + ((entry[3].id,) if entry[3] else (0,)))

    obscured = number ^ params.obscuring_factor()
    txin = TxIn(params.funding_outpoint, b"", 0x80 << 24 | obscured >> 24)
    locktime = 0x20 << 24 | obscured & 0xFFFFFF
    tx = Tx(2, (txin,), tuple(TxOut(sat, script) for sat, script, *_ in outputs), locktime)
    sighash_type = SIGHASH_SINGLE | SIGHASH_ANYONECANPAY if params.anchors else SIGHASH_ALL
    htlc_txs = []
    for index, (sat, _, expiry, maybe_htlc, script) in enumerate(outputs):
        if maybe_htlc is not None:
            by_owner = maybe_htlc.offered == owner_is_local
            paid = TxOut(sat - _htlc_fee_sat(params, spec.feerate_per_kw, by_owner), p2wsh(to_local))
            spend = TxIn(OutPoint(tx.txid(), index), b"", 1 if params.anchors else 0)
            htlc_tx = Tx(2, (spend,), (paid,), expiry if by_owner else 0)
            htlc_txs.append((maybe_htlc, htlc_tx, segwit_v0_sighash(htlc_tx, 0, script, sat, sighash_type)))
    return tx, htlc_txs


@given(channels_and_specs(), st.integers(0, 2**48 - 1), st.sampled_from(SIDES))
@settings(max_examples=150, deadline=None)
def test_equals_the_slow_construction(
    case: tuple[CommitmentParams, CommitmentSpec, dict[bytes, bytes]], number: int, side: Side
) -> None:
    params, spec, _ = case
    point = (ALICE if side == "local" else BOB).per_commitment_point(7)
    tx, htlc_txs = _slow_commitment(params, spec, side, number, point)
    if sum(output.value_sat for output in tx.outputs) > params.funding_sat:
        with pytest.raises(ValueError, match="exceed the channel's"):  # an opener that cannot pay for the anchors
            build_commitment(params, spec, side, number, point)
        return
    built = build_commitment(params, spec, side, number, point)
    assert built.tx == tx
    assert built.txid == tx.txid()
    script = params.funding_script()
    assert built.sighash == segwit_v0_sighash(tx, 0, script, params.funding_sat)
    assert [output.htlc for output in built.htlcs] == [htlc for htlc, _, _ in htlc_txs]
    assert [output.htlc_tx() for output in built.htlcs] == [htlc_tx for _, htlc_tx, _ in htlc_txs]
    assert built.htlc_sighashes == [digest for _, _, digest in htlc_txs]
    assert all(tx.outputs[o.output_index] == TxOut(o.amount_sat, o.script_pubkey) for o in built.htlcs)
    assert built.fee_sat == params.funding_sat - sum(output.value_sat for output in tx.outputs)
    assert set(built.trimmed) == {h for h in spec.htlcs if is_trimmed(params, h, spec.feerate_per_kw, side)}
    assert {output.htlc for output in built.htlcs} == spec.htlcs - set(built.trimmed)
    assert len(built.htlcs) == num_untrimmed(params, spec, side)
    assert commitment_number_of(params, tx) == number

    owner, other = params.owner_and_other(side)
    expected = {
        built.to_local_index: p2wsh(built.to_local_script),
        built.to_local_anchor_index: p2wsh(anchor_script(owner.funding_pubkey)),
        built.to_remote_anchor_index: p2wsh(anchor_script(other.funding_pubkey)),
    }
    assert all(tx.outputs[i].script_pubkey == script for i, script in expected.items() if i is not None)
    indices = [built.to_local_index, built.to_remote_index, *expected, *(o.output_index for o in built.htlcs)]
    assert {i for i in indices if i is not None} == set(range(len(tx.outputs)))


@given(channels_and_specs(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_signed_by_one_side_verifies_for_the_other_and_on_chain(
    case: tuple[CommitmentParams, CommitmentSpec, dict[bytes, bytes]], alice_owns: bool
) -> None:
    params, spec, preimages = case
    opener_msat = spec.to_local_msat if params.local_is_opener else spec.to_remote_msat
    assume(opener_msat >= 660_000)
    owner, other = (ALICE, BOB) if alice_owns else (BOB, ALICE)
    own_params, own_spec = (params, spec) if alice_owns else (mirrored_params(params), mirrored_spec(spec))
    point = owner.per_commitment_point(3)
    seen = build_commitment(mirrored_params(own_params), mirrored_spec(own_spec), "remote", 3, point)
    built = build_commitment(own_params, own_spec, "local", 3, point)
    signature, htlc_signatures = other.sign_commitment(seen)
    verify_commitment(built, signature, htlc_signatures)

    funding = TxOut(params.funding_sat, funding_script_pubkey(ALICE.keys.funding_pubkey, BOB.keys.funding_pubkey))
    if not built.tx.outputs:
        return
    signed = complete(own_params, built.tx, owner.sign_own_commitment(built), signature)
    assert script_ok(signed, 0, funding)
    assert signed.weight() <= commit_tx_weight(len(built.htlcs), params.anchors)
    if built.to_local_index is not None and built.to_remote_index is not None:
        at_least = commitment_fee_sat(own_params, own_spec, "local")
        assert built.fee_sat >= at_least
        assert built.fee_sat * 1000 >= own_spec.feerate_per_kw * signed.weight() - 1000
    secret = owner.htlc_secret(point)
    for output, htlc_signature in zip(built.htlcs, htlc_signatures, strict=True):
        preimage = b"" if output.offered_by_owner else preimages[output.htlc.payment_hash]
        own = sign(secret, output.owner_sighash())
        htlc_tx = output.htlc_tx().with_witness(0, output.witness(htlc_signature, own, preimage))
        spent = signed.outputs[output.output_index]
        assert script_ok(htlc_tx, 0, spent)
        assert htlc_tx.locktime == (output.htlc.cltv_expiry if output.offered_by_owner else 0)
        other_preimage = bytes(32) if not output.offered_by_owner else b""
        if not output.offered_by_owner:
            assert not script_ok(htlc_tx.with_witness(0, output.witness(htlc_signature, own, other_preimage)), 0, spent)


def _spec(*htlcs: Htlc, feerate_per_kw: int = 253) -> CommitmentSpec:
    used = sum(htlc.amount_msat for htlc in htlcs)
    return CommitmentSpec(frozenset(htlcs), feerate_per_kw, 6_000_000_000 - used, 4_000_000_000)


HTLCS = tuple(Htlc(i, 5_000_000 + 1000 * i, payment_hash(i), 500 + i, i % 2 == 0) for i in range(4))


@pytest.mark.parametrize("anchors", [True, False])
def test_every_wrong_signature_is_found(anchors: bool) -> None:
    params = channel(ALICE, BOB, anchors=anchors)
    point = ALICE.per_commitment_point(0)
    built = build_commitment(params, _spec(*HTLCS), "local", 0, point)
    seen = build_commitment(mirrored_params(params), mirrored_spec(_spec(*HTLCS)), "remote", 0, point)
    signature, htlc_signatures = BOB.sign_commitment(seen)
    verify_commitment(built, signature, htlc_signatures)

    with pytest.raises(InvalidSignature, match="3 HTLC signatures for 4") as error:
        verify_commitment(built, signature, htlc_signatures[:3])
    assert error.value.htlc_index is None
    high_s = signature[:32] + (CURVE_ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    for wrong in (bytes(64), htlc_signatures[0], signature[:63], high_s):
        with pytest.raises(InvalidSignature, match="signature of commitment 0"):
            verify_commitment(built, wrong, htlc_signatures)
    for index in range(4):
        changed = list(htlc_signatures)
        changed[index] = htlc_signatures[(index + 1) % 4]
        with pytest.raises(InvalidSignature) as error:
            verify_commitment(built, signature, changed)
        assert error.value.htlc_index == index
    other_number = build_commitment(params, _spec(*HTLCS), "local", 1, point)
    with pytest.raises(InvalidSignature):
        verify_commitment(other_number, signature, htlc_signatures)


@pytest.mark.parametrize("anchors", [True, False])
def test_the_most_htlcs_that_a_channel_may_have(anchors: bool) -> None:
    params = channel(ALICE, BOB, anchors=anchors, funding_sat=100_000_000)
    htlcs = frozenset(
        Htlc(i // 2, 20_000_000 + i % 7, payment_hash(i % 50), 700_000 + i, i % 2 == 0) for i in range(966)
    )
    spec = CommitmentSpec(htlcs, 253, 50_000_000_000, 50_000_000_000 - sum(htlc.amount_msat for htlc in htlcs))
    for side in SIDES:
        point = (ALICE if side == "local" else BOB).per_commitment_point(1)
        built = build_commitment(params, spec, side, 1, point)
        tx, htlc_txs = _slow_commitment(params, spec, side, 1, point)
        assert built.tx == tx
        assert len(tx.outputs) == 966 + (4 if anchors else 2)
        assert built.htlc_sighashes == [digest for _, _, digest in htlc_txs]
        found = identify_outputs(params, tx, side, point, htlcs)
        assert len(found.htlcs) == 966
        assert found.unknown == ()


def test_signing_is_only_for_the_right_side() -> None:
    params = channel(ALICE, BOB)
    ours = build_commitment(params, _spec(), "local", 0, ALICE.per_commitment_point(0))
    theirs = build_commitment(params, _spec(), "remote", 0, BOB.per_commitment_point(0))
    with pytest.raises(ValueError, match="the peer's commitment"):
        ALICE.sign_commitment(ours)
    with pytest.raises(ValueError, match="not our commitment"):
        ALICE.sign_own_commitment(theirs)
    assert (ours.side, theirs.side) == ("local", "remote")
    assert ours.params == theirs.params == params
    assert ours.tx is ours.tx


def test_what_is_no_commitment_is_refused() -> None:
    params = channel(ALICE, BOB)
    point = ALICE.per_commitment_point(0)
    prepare_commitment(params, "local", point)
    too_much = CommitmentSpec(frozenset(), 253, params.funding_sat * 1000, 1_000_000)
    with pytest.raises(ValueError, match="exceed the channel's"):
        build_commitment(params, too_much, "local", 0, point)
    for number in (-1, 2**48):
        with pytest.raises(ValueError, match="not a commitment number"):
            build_commitment(params, _spec(), "local", number, point)
    with pytest.raises(InvalidKey):
        prepare_commitment(params, "local", b"\x02" + b"\xff" * 32)


def test_a_transaction_that_is_no_commitment_has_no_number() -> None:
    params = channel(ALICE, BOB)
    tx = build_commitment(params, _spec(), "local", 5, ALICE.per_commitment_point(5)).tx
    assert commitment_number_of(params, tx) == 5
    elsewhere = (tx.inputs[0]._replace(outpoint=OutPoint(bytes(32), 0)),)
    for other in (
        tx.replace(locktime=tx.locktime ^ 0x0100_0000),
        tx.replace(inputs=(tx.inputs[0]._replace(sequence=0xFFFF_FFFD),)),
        tx.replace(inputs=(*tx.inputs, *tx.inputs)),
        tx.replace(inputs=elsewhere),
    ):
        assert commitment_number_of(params, other) is None


def test_witness_of_an_htlc_transaction_needs_what_its_kind_needs() -> None:
    built = build_commitment(channel(ALICE, BOB), _spec(*HTLCS), "local", 0, ALICE.per_commitment_point(0))
    for output in built.htlcs:
        with pytest.raises(ValueError, match="HTLC-success takes a payment preimage"):
            output.witness(bytes(64), bytes(64), bytes(32) if output.offered_by_owner else b"")


def test_values_survive_storage() -> None:
    params, spec = channel(ALICE, BOB), _spec(*HTLCS)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=CommitmentParams) == params
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=CommitmentSpec) == spec
    point = ALICE.per_commitment_point(0)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=CommitmentParams)
    assert (
        build_commitment(again, spec, "local", 0, point).txid == build_commitment(params, spec, "local", 0, point).txid
    )
