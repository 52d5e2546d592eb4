"""Signature messages of every hash type, judged by Bitcoin Core's script verifier through its public interface."""

from __future__ import annotations

from collections.abc import Sequence

import pbk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pbk.script import PrecomputedTransactionData

from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut, hash160
from wallet.bitcoin import script as scripts
from wallet.bitcoin.encoding import tagged_hash
from wallet.bitcoin.secp import (
    compact_to_der,
    point_add_scalar,
    pubkey_of,
    sign,
    sign_schnorr,
    taproot_output_key,
    taproot_tweak_secret,
    xonly,
)
from wallet.bitcoin.sighash import (
    SIGHASH_ALL,
    SIGHASH_SINGLE,
    SegwitV0Inputs,
    SighashCache,
    segwit_v0_sighash,
    tapleaf_hash,
    taproot_sighash,
)
from wallet.regtest.legacy import legacy_sighash
from wallet.regtest.verifier import MANDATORY_FLAGS, STANDARD_FLAGS, verify

SECRET = bytes([9]) * 32
PUBKEY = pubkey_of(SECRET)
V0_TYPES = [1, 2, 3, 0x81, 0x82, 0x83, 0, 4, 0x1F, 0x42, 0x80, 0xFF]
"""The defined ones, and some that consensus allows all the same."""
TAPROOT_TYPES = [0, 1, 2, 3, 0x81, 0x82, 0x83]


def core_accepts(tx: Tx, spent: Sequence[TxOut], index: int) -> bool:
    """The verdict of the library's documented interface, under consensus rules."""
    core = pbk.Transaction(tx.serialize())
    outputs = [pbk.TransactionOutput(pbk.ScriptPubkey(out.script_pubkey), out.value_sat) for out in spent]
    data = PrecomputedTransactionData(core, outputs)
    script = pbk.ScriptPubkey(spent[index].script_pubkey)
    return bool(script.verify(spent[index].value_sat, core, data, index, pbk.ScriptVerificationFlags.ALL))


def agreed(tx: Tx, spent: Sequence[TxOut], index: int) -> bool:
    """The same verdict, by the documented interface and by the interpreter that the mempool calls."""
    accepted = core_accepts(tx, spent, index)
    assert (verify(tx.serialize(), spent, MANDATORY_FLAGS, only=index) is None) == accepted
    return accepted


@st.composite
def spends(draw: st.DrawFn) -> tuple[Tx, list[TxOut], int]:
    """An unsigned transaction, what it spends (scripts to be filled in), and the input to sign."""
    count = draw(st.integers(1, 4))
    inputs = tuple(
        TxIn(OutPoint(draw(st.binary(min_size=32, max_size=32)), draw(st.integers(0, 2**32 - 1))), b"", sequence)
        for sequence in draw(st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count))
    )
    outputs = tuple(
        TxOut(draw(st.integers(0, 21 * 10**14)), draw(st.binary(max_size=40))) for _ in range(draw(st.integers(0, 4)))
    )
    tx = Tx(draw(st.integers(-(2**31), 2**31 - 1)), inputs, outputs, draw(st.integers(0, 2**32 - 1)))
    spent = [TxOut(draw(st.integers(0, 21 * 10**14)), draw(st.binary(max_size=40))) for _ in inputs]
    return tx, spent, draw(st.integers(0, count - 1))


def der(digest: bytes, hash_type: int) -> bytes:
    return compact_to_der(sign(SECRET, digest)) + bytes((hash_type,))


@settings(deadline=None)
@given(spends(), st.sampled_from(V0_TYPES))
def test_witness_v0_key_hashes(spend: tuple[Tx, list[TxOut], int], hash_type: int) -> None:
    tx, spent, index = spend
    spent[index] = spent[index]._replace(script_pubkey=scripts.p2wpkh(PUBKEY))
    code = scripts.p2wpkh_script_code(hash160(PUBKEY))
    digest = segwit_v0_sighash(tx, index, code, spent[index].value_sat, hash_type)
    assert digest == segwit_v0_sighash(tx, index, code, spent[index].value_sat, hash_type, SighashCache(tx))
    signed = tx.with_witness(index, (der(digest, hash_type), PUBKEY))
    assert agreed(signed, spent, index)
    wrong = list(spent)
    wrong[index] = spent[index]._replace(value_sat=spent[index].value_sat + 1)
    assert not agreed(signed, wrong, index)


@settings(deadline=None)
@given(spends(), st.sampled_from(V0_TYPES), st.integers(1, 300))
def test_witness_v0_scripts(spend: tuple[Tx, list[TxOut], int], hash_type: int, padding: int) -> None:
    tx, spent, index = spend
    script = scripts.push(bytes(padding)) + bytes((scripts.OP_DROP,))
    script += scripts.push(PUBKEY) + bytes((scripts.OP_CHECKSIG,))
    spent[index] = spent[index]._replace(script_pubkey=scripts.p2wsh(script))
    digest = segwit_v0_sighash(tx, index, script, spent[index].value_sat, hash_type)
    assert agreed(tx.with_witness(index, (der(digest, hash_type), script)), spent, index)
    assert not agreed(tx.with_witness(index, (der(digest, hash_type ^ 1), script)), spent, index)


@settings(deadline=None)
@given(spends(), st.sampled_from(TAPROOT_TYPES), st.binary(max_size=32).map(lambda b: b if len(b) == 32 else b""))
def test_taproot_key_paths(spend: tuple[Tx, list[TxOut], int], hash_type: int, root: bytes) -> None:
    tx, spent, index = spend
    key = taproot_output_key(xonly(PUBKEY), root)
    spent[index] = spent[index]._replace(script_pubkey=scripts.p2tr(key))
    secret = taproot_tweak_secret(SECRET, root)
    suffix = bytes((hash_type,)) if hash_type else b""
    if hash_type & 3 == SIGHASH_SINGLE and index >= len(tx.outputs):
        with pytest.raises(ValueError, match="SIGHASH_SINGLE without a matching output"):
            taproot_sighash(tx, index, spent, hash_type)
        assert not agreed(tx.with_witness(index, (bytes(64) + suffix,)), spent, index)
        return
    for cache in (None, SighashCache(tx, spent)):
        digest = taproot_sighash(tx, index, spent, hash_type, cache=cache)
        signed = tx.with_witness(index, (sign_schnorr(secret, digest) + suffix,))
        assert agreed(signed, spent, index)
    other = signed.inputs[index].witness[0][:64] + (b"" if hash_type == 1 else b"\x01")
    assert not agreed(tx.with_witness(index, (other,)), spent, index)


@settings(deadline=None)
@given(spends(), st.sampled_from(TAPROOT_TYPES), st.booleans(), st.booleans())
def test_taproot_script_paths(
    spend: tuple[Tx, list[TxOut], int], hash_type: int, with_annex: bool, separated: bool
) -> None:
    tx, spent, index = spend
    check = scripts.push(xonly(PUBKEY)) + bytes((scripts.OP_CHECKSIG,))
    script = b"\xab" + check if separated else check
    leaf = tapleaf_hash(script)
    internal = xonly(pubkey_of(bytes([3]) * 32))
    output = _full_output_key(internal, leaf)
    spent[index] = spent[index]._replace(script_pubkey=scripts.p2tr(output[1:]))
    if hash_type & 3 == SIGHASH_SINGLE and index >= len(tx.outputs):
        return
    annex = b"\x50annex" if with_annex else None
    position = 0 if separated else 0xFFFFFFFF
    digest = taproot_sighash(tx, index, spent, hash_type, leaf_hash=leaf, annex=annex, codesep_pos=position)
    signature = sign_schnorr(SECRET, digest) + (bytes((hash_type,)) if hash_type else b"")
    control = bytes((0xC0 | (output[0] & 1),)) + internal
    witness = (signature, script, control) + ((annex,) if annex else ())
    assert agreed(tx.with_witness(index, witness), spent, index)
    assert not agreed(tx.with_witness(index, (*witness[:3], b"\x50other")), spent, index)


def _full_output_key(internal: bytes, root: bytes) -> bytes:
    return point_add_scalar(b"\x02" + internal, tagged_hash(b"TapTweak", internal + root))


@settings(deadline=None)
@given(spends(), st.sampled_from(V0_TYPES))
def test_messages_from_before_segregated_witness(spend: tuple[Tx, list[TxOut], int], hash_type: int) -> None:
    tx, spent, index = spend
    script = scripts.p2pkh(hash160(PUBKEY))
    spent[index] = spent[index]._replace(script_pubkey=script)
    signature = der(legacy_sighash(tx, index, script, hash_type), hash_type)
    inputs = list(tx.inputs)
    inputs[index] = inputs[index]._replace(script_sig=scripts.push(signature) + scripts.push(PUBKEY))
    assert agreed(tx.replace(inputs=tuple(inputs)), spent, index)


def test_types_that_bip_341_does_not_define_are_refused() -> None:
    tx = Tx(2, (TxIn(OutPoint(bytes(32), 0)),), (TxOut(1, b""),), 0)
    for hash_type in set(range(256)) - set(TAPROOT_TYPES):
        with pytest.raises(ValueError, match="no signature hash type"):
            taproot_sighash(tx, 0, [TxOut(1, b"")], hash_type)
    with pytest.raises(ValueError, match="one for each input"):
        taproot_sighash(tx, 0, [])


# The mempool's flags, which the public interface does not offer.


@pytest.mark.parametrize(
    ("script", "stack", "error"),
    [
        (b"\x51", (), None),
        (b"\x00", (), "Script evaluated without error but finished with a false/empty top stack element"),
        (b"\x63\x51\x67\x00\x68", (b"\x02",), "OP_IF/NOTIF argument must be minimal"),
        (b"\x01\x05\x75\x51", (), "Data push larger than necessary"),
        (b"\xb0\x51", (), "NOPx reserved for soft-fork upgrades"),
        (
            b"\x21" + PUBKEY + b"\xac\x91",
            (b"\x30\x06\x02\x01\x01\x02\x01\x01\x01",),
            "Signature must be zero for failed",
        ),
        (b"\x51\x51", (), "Stack size must be exactly one after execution"),
        (b"\x69\x51", (), "Operation not valid with the current stack size"),
        (b"\x6a", (), "OP_RETURN was encountered"),
        (b"\x51\x69\x00\x69", (), "Script failed an OP_VERIFY operation"),
    ],
)
def test_errors_are_named(script: bytes, stack: tuple[bytes, ...], error: str | None) -> None:
    spent = [TxOut(1000, scripts.p2wsh(script))]
    tx = Tx(2, (TxIn(OutPoint(bytes(32), 0), b"", 0, (*stack, script)),), (TxOut(1, b"\x51"),), 0)
    failure = verify(tx.serialize(), spent, STANDARD_FLAGS)
    if error is None:
        assert failure is None
    else:
        assert failure is not None
        assert failure.error.startswith(error)
        assert failure.mandatory == (not core_accepts(tx, spent, 0))


def test_hash_types_that_are_valid_but_not_standard() -> None:
    script = scripts.p2wpkh(PUBKEY)
    tx = Tx(2, (TxIn(OutPoint(bytes(32), 0)),), (TxOut(1, b"\x51"),), 0)
    for hash_type, error in ((SIGHASH_ALL, None), (4, "Signature hash type missing or not understood")):
        digest = segwit_v0_sighash(tx, 0, scripts.p2wpkh_script_code(hash160(PUBKEY)), 1000, hash_type)
        signed = tx.with_witness(0, (der(digest, hash_type), PUBKEY))
        failure = verify(signed.serialize(), [TxOut(1000, script)])
        assert (failure and failure.error) == error
        assert core_accepts(signed, [TxOut(1000, script)], 0)


def test_bytes_that_are_no_transaction() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        verify(b"\x00" * 5, [])


def test_variants_of_the_outputs_sign_what_each_transaction_alone_would() -> None:
    inputs = tuple(TxIn(OutPoint(bytes((place,)) * 32, place), b"", place) for place in range(3))
    spent = [(bytes((place,)) * (30 + 120 * place), 1_000 + place) for place in range(3)]
    variants = [(TxOut(5, b"\x00\x14" + bytes(20)),), (TxOut(7, b"\x51"), TxOut(9, b"\x52"))]
    shared = SegwitV0Inputs(Tx(2, inputs, variants[0], 11), spent)
    for outputs in variants:
        tx = Tx(2, inputs, outputs, 11)
        assert shared.sighashes(outputs) == [segwit_v0_sighash(tx, place, *spent[place]) for place in range(3)]
