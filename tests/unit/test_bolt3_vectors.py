"""All of BOLT 3's appendices with test vectors."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from embit import base58

from channeld.bolt import shachain
from channeld.bolt.keys import (
    derive_commitment_keys,
    derive_privkey,
    derive_pubkey,
    derive_revocation_privkey,
    derive_revocation_pubkey,
)
from channeld.bolt.transactions import (
    ChannelSecrets,
    CommitmentParams,
    CommitmentSpec,
    Htlc,
    build_commitment,
    commitment_fee_sat,
    commitment_number_of,
    complete,
    verify_commitment,
)
from channeld.bolt.transactions.funding import contribution_fee_sat, contribution_weight, funding_script_pubkey
from channeld.bolt.transactions.scripts import funding_script
from tests.unit.bolt3_support import mirrored_params, mirrored_spec, script_ok, vectors
from wallet.bitcoin.encoding import hash160
from wallet.bitcoin.script import p2wpkh_script_code
from wallet.bitcoin.secp import compact_to_der, der_to_compact, pubkey_of, sign
from wallet.bitcoin.sighash import segwit_v0_sighash
from wallet.bitcoin.tx import OutPoint, Tx, TxIn, TxOut

COMMITMENT = vectors("commitment")
COMMON: dict[str, Any] = {
    name: bytes.fromhex(value) if isinstance(value, str) and not value.startswith("0x") else value
    for name, value in COMMITMENT["common"].items()
}
NUMBER: int = COMMON["commitment_number"]
POINT: bytes = COMMON["local_per_commitment_point"]
LOCAL = ChannelSecrets(
    funding_secret=COMMON["local_funding_privkey"],
    revocation_basepoint_secret=bytes([5] * 32),  # no commitment of local's depends on it
    payment_basepoint_secret=COMMON["local_payment_basepoint_secret"],
    delayed_payment_basepoint_secret=COMMON["local_delayed_payment_basepoint_secret"],
    htlc_basepoint_secret=COMMON["local_payment_basepoint_secret"],
    per_commitment_seed=bytes(32),
)
REMOTE = ChannelSecrets(
    funding_secret=COMMON["remote_funding_privkey"],
    revocation_basepoint_secret=COMMON["remote_revocation_basepoint_secret"],
    payment_basepoint_secret=COMMON["remote_payment_basepoint_secret"],
    delayed_payment_basepoint_secret=bytes([6] * 32),  # nor on this
    htlc_basepoint_secret=COMMON["remote_payment_basepoint_secret"],
    per_commitment_seed=bytes(32),
)
PREIMAGES = [bytes.fromhex(htlc["payment_preimage"]) for htlc in COMMITMENT["htlcs"]]
FUNDING_OUTPUT = TxOut(
    COMMON["funding_amount_satoshi"],
    funding_script_pubkey(COMMON["local_funding_pubkey"], COMMON["remote_funding_pubkey"]),
)


def _htlc(number: int) -> Htlc:
    entry = COMMITMENT["htlcs"][number]
    offered = entry["direction"] == "local->remote"
    return Htlc(number, entry["amount_msat"], sha256(PREIMAGES[number]).digest(), entry["cltv_expiry"], offered)


def _params(dust_limit_sat: int, anchors: bool) -> CommitmentParams:
    return CommitmentParams(
        funding_outpoint=OutPoint(COMMON["funding_tx_id"][::-1], COMMON["funding_output_index"]),
        funding_sat=COMMON["funding_amount_satoshi"],
        local=LOCAL.keys,
        remote=REMOTE.keys,
        local_is_opener=True,
        local_dust_limit_sat=dust_limit_sat,
        remote_dust_limit_sat=dust_limit_sat,
        local_to_self_delay=COMMON["local_delay"],
        remote_to_self_delay=COMMON["local_delay"],
        anchors=anchors,
    )


def _htlcs_of(name: str, use: bool = True) -> frozenset[Htlc]:
    numbers = () if not use or "no HTLCs" in name else (1, 5, 6) if "same amount and preimage" in name else range(5)
    return frozenset(_htlc(number) for number in numbers)


def _check_commitment(
    params: CommitmentParams,
    spec: CommitmentSpec,
    remote_signature: str,
    commit_tx: str,
    htlc_txs: list[tuple[str, str]],
) -> None:
    """Both sides build, remote signs, local verifies, completes, and Bitcoin Core's engine agrees with the vector."""
    built = build_commitment(params, spec, "local", NUMBER, POINT)
    theirs = build_commitment(mirrored_params(params), mirrored_spec(spec), "remote", NUMBER, POINT)
    assert theirs.txid == built.txid
    assert theirs.htlc_sighashes == built.htlc_sighashes
    signature, htlc_signatures = REMOTE.sign_commitment(theirs)
    assert compact_to_der(signature).hex() == remote_signature
    verify_commitment(built, signature, htlc_signatures)
    signed = complete(params, built.tx, LOCAL.sign_own_commitment(built), signature)
    assert signed.serialize().hex() == commit_tx
    assert signed.txid() == built.txid
    assert script_ok(signed, 0, FUNDING_OUTPUT)
    assert commitment_number_of(params, signed) == NUMBER
    assert built.fee_sat == params.funding_sat - sum(output.value_sat for output in signed.outputs)

    assert len(built.htlcs) == len(htlc_txs)
    local_htlc_secret = LOCAL.htlc_secret(POINT)
    for output, htlc_signature, (expected_signature, expected_tx) in zip(
        built.htlcs, htlc_signatures, htlc_txs, strict=True
    ):
        assert compact_to_der(htlc_signature).hex() == expected_signature
        preimage = b"" if output.htlc.offered else PREIMAGES[output.htlc.id]
        own_signature = sign(local_htlc_secret, output.owner_sighash())
        htlc_tx = output.htlc_tx().with_witness(0, output.witness(htlc_signature, own_signature, preimage))
        assert htlc_tx.serialize().hex() == expected_tx
        assert script_ok(htlc_tx, 0, signed.outputs[output.output_index])


def test_common_parameters() -> None:
    keys = derive_commitment_keys(LOCAL.keys, REMOTE.keys, POINT)
    assert pubkey_of(COMMON["local_per_commitment_secret"]) == POINT
    assert keys.revocation_pubkey == COMMON["local_revocation_pubkey"]
    assert keys.owner_delayed_pubkey == COMMON["local_delayedpubkey"]
    assert keys.owner_htlc_pubkey == COMMON["local_htlcpubkey"]
    assert keys.other_htlc_pubkey == COMMON["remote_htlcpubkey"]
    assert LOCAL.keys.payment_basepoint == COMMON["local_payment_basepoint"]
    assert REMOTE.keys.payment_basepoint == COMMON["remote_payment_basepoint"]
    assert LOCAL.keys.htlc_basepoint == COMMON["local_htlc_basepoint"]
    assert REMOTE.keys.htlc_basepoint == COMMON["remote_htlc_basepoint"]
    assert REMOTE.keys.revocation_basepoint == COMMON["remote_revocation_basepoint"]
    assert LOCAL.keys.delayed_payment_basepoint == COMMON["local_delayed_payment_basepoint"]
    assert LOCAL.htlc_secret(POINT) == COMMON["local_privkey"]
    assert REMOTE.htlc_secret(POINT) == COMMON["remote_privkey"]
    assert LOCAL.delayed_secret(POINT) == COMMON["local_delayed_privkey"]
    assert _params(546, False).obscuring_factor() == int(COMMON["obscuring_factor"], 16)


@pytest.mark.parametrize("case", COMMITMENT["cases"], ids=lambda case: case["name"])
def test_appendix_c(case: dict[str, Any]) -> None:
    params = _params(COMMON["local_dust_limit_satoshi"], anchors=False)
    spec = CommitmentSpec(
        _htlcs_of(case["name"]), case["local_feerate_per_kw"], case["to_local_msat"], case["to_remote_msat"]
    )
    htlc_txs = [(htlc_tx["remote_htlc_signature"], htlc_tx["tx"]) for htlc_tx in case["htlc_txs"]]
    _check_commitment(params, spec, case["remote_signature"], case["commit_tx"], htlc_txs)

    built = build_commitment(params, spec, "local", NUMBER, POINT)
    if case["base_fee_sat"] is not None:
        assert commitment_fee_sat(params, spec, "local") == case["base_fee_sat"]
        assert built.fee_sat == case["actual_fee_sat"]
        for index, expected in ((built.to_local_index, case["to_local"]), (built.to_remote_index, case["to_remote"])):
            assert (None if index is None else built.tx.outputs[index].value_sat) == (
                expected["amount_sat"] if expected else None
            )
        if case["to_local"]:
            assert built.to_local_script.hex() == case["to_local"]["witness_script"]
    scripts = {entry["htlc"]: entry for entry in case["htlc_scripts"]}
    assert {output.htlc.id for output in built.htlcs} == scripts.keys()
    for output, htlc_tx in zip(built.htlcs, case["htlc_txs"], strict=True):
        assert output.htlc.id == htlc_tx["htlc"]
        entry = scripts[output.htlc.id]
        assert output.witness_script.hex() == entry["witness_script"]
        assert output.amount_sat == entry["amount_sat"]
        assert output.offered_by_owner == (entry["direction"] == "offered") == (htlc_tx["kind"] == "timeout")
    assert {htlc.id for htlc in built.trimmed} == {htlc.id for htlc in spec.htlcs} - scripts.keys()


@pytest.mark.parametrize("case", vectors("anchors")["cases"], ids=lambda case: case["Name"])
def test_appendix_f(case: dict[str, Any]) -> None:
    params = _params(case["DustLimitSatoshis"], anchors=True)
    spec = CommitmentSpec(
        _htlcs_of(case["Name"], case["UseTestHtlcs"]), case["FeePerKw"], case["LocalBalance"], case["RemoteBalance"]
    )
    htlc_txs = [(htlc["RemoteSigHex"], htlc["ResolutionTxHex"]) for htlc in case["HtlcDescs"]]
    _check_commitment(params, spec, case["RemoteSigHex"], case["ExpectedCommitmentTxHex"], htlc_txs)


@pytest.mark.parametrize("case", vectors("shachain")["generation"], ids=lambda case: case["name"])
def test_appendix_d_generation(case: dict[str, Any]) -> None:
    seed = bytes.fromhex(case["seed"])
    assert shachain.generate_from_seed(seed, case["I"]).hex() == case["output"]
    assert shachain.SecretGenerator(seed).secret(shachain.MAX_INDEX - case["I"]).hex() == case["output"]


@pytest.mark.parametrize("case", vectors("shachain")["storage"], ids=lambda case: case["name"])
def test_appendix_d_storage(case: dict[str, Any]) -> None:
    store = shachain.SecretStore()
    secrets: list[bytes] = []
    for entry in case["secrets"]:
        number = shachain.MAX_INDEX - entry["I"]
        secret = bytes.fromhex(entry["secret"])
        if entry["output"] == "ERROR":
            with pytest.raises(shachain.InconsistentSecret):
                store.insert(number, secret)
            assert entry is case["secrets"][-1]
            return
        store = store.insert(number, secret)
        secrets.append(secret)
    assert [store.secret(number) for number in range(len(secrets))] == secrets


def test_appendix_e() -> None:
    v = {name: bytes.fromhex(value) for name, value in vectors("keys").items() if name != "source"}
    point = pubkey_of(v["per_commitment_secret"])
    base = pubkey_of(v["base_secret"])
    assert point == v["per_commitment_point"]
    assert base == v["base_point"]
    assert derive_pubkey(base, point) == v["localpubkey"]
    assert derive_privkey(v["base_secret"], base, point) == v["localprivkey"]
    assert pubkey_of(v["localprivkey"]) == v["localpubkey"]
    assert derive_revocation_pubkey(base, point) == v["revocationpubkey"]
    assert derive_revocation_privkey(v["base_secret"], base, v["per_commitment_secret"]) == v["revocationprivkey"]
    assert pubkey_of(v["revocationprivkey"]) == v["revocationpubkey"]


def test_appendix_b() -> None:
    v = vectors("funding")
    local, remote = bytes.fromhex(v["local_funding_pubkey"]), bytes.fromhex(v["remote_funding_pubkey"])
    assert funding_script(local, remote) == funding_script(remote, local)
    assert funding_script(local, remote).hex() == v["funding_witness_script"]
    tx = Tx.parse(bytes.fromhex(v["funding_tx"]))
    assert tx.txid_hex == v["txid"]
    assert tx.outputs[v["funding_output"]] == TxOut(v["funding_satoshis"], funding_script_pubkey(local, remote))
    assert tx.outputs[1].value_sat == v["change_satoshis"]
    assert tx.inputs[0].outpoint == OutPoint.parse(f"{v['input_txid']}:{v['input_index']}")
    coinbase = Tx.parse(bytes.fromhex(v["coinbase_tx"]))
    assert coinbase.txid_hex == v["input_txid"]
    assert bytes.fromhex(v["coinbase_tx"]) in bytes.fromhex(v["block_1"])
    assert hash160(pubkey_of(bytes.fromhex(v["coinbase_privkey"]))) in coinbase.outputs[0].script_pubkey
    assert coinbase.outputs[0].value_sat == v["input_satoshis"]
    assert script_ok(tx, 0, coinbase.outputs[0])


def test_appendix_g() -> None:
    v = vectors("dual_funding")
    parent = Tx.parse(bytes.fromhex(v["parent_tx"]))
    keys = bytes.fromhex(v["funding"]["pubkey1"]), bytes.fromhex(v["funding"]["pubkey2"])
    assert funding_script(*keys).hex() == v["funding"]["script"]
    assert funding_script_pubkey(*keys).hex() == v["funding"]["script_pubkey"]

    inputs, outputs = [], [(v["funding"]["serial_id"], TxOut(v["funding"]["sats"], funding_script_pubkey(*keys)))]
    witness_weights = {"opener": 74, "accepter": 107}
    for role, witness_weight in witness_weights.items():
        side = v[role]
        change_script = bytes.fromhex(side["change"]["script_pubkey"])
        assert len(side["witness_data"]) == 2 * witness_weight
        weight = contribution_weight([b""], [witness_weight], [change_script], initiator=role == "opener")
        assert weight == side["weight"]
        assert contribution_fee_sat(weight, v["feerate_per_kw"]) == side["fee_sat"]
        spent = parent.outputs[side["input"]["vout"]]
        change_sat = spent.value_sat - v[f"{role}_funding_sat"] - side["fee_sat"]
        assert change_sat == side["change"]["sats"]
        txin = TxIn(parent.outpoint(side["input"]["vout"]), b"", side["input"]["sequence"])
        inputs.append((side["input"]["serial_id"], txin))
        outputs.append((side["change"]["serial_id"], TxOut(change_sat, change_script)))
    tx = Tx(2, tuple(txin for _, txin in sorted(inputs)), tuple(txout for _, txout in sorted(outputs)), v["locktime"])
    unsigned = Tx.parse(bytes.fromhex(v["unsigned_tx"]))
    assert tx == unsigned
    assert unsigned.txid_hex == v["txid"]

    privkey = base58.decode_check(v["accepter"]["input"]["privkey"])[1:33]
    pubkey = pubkey_of(privkey)
    assert pubkey.hex() == v["accepter"]["input"]["pubkey"]
    accepter_spent, opener_spent = parent.outputs[2], parent.outputs[0]
    digest = segwit_v0_sighash(unsigned, 0, p2wpkh_script_code(hash160(pubkey)), accepter_spent.value_sat)
    witness = (compact_to_der(sign(privkey, digest)) + b"\x01", pubkey)
    opener_input = v["opener"]["input"]
    opener_witness = bytes.fromhex(opener_input["preimage"]), bytes.fromhex(opener_input["witness_script"])
    signed = unsigned.with_witness(0, witness).with_witness(1, opener_witness)
    assert signed.serialize().hex() == v["signed_tx"]
    assert script_ok(signed, 0, accepter_spent)
    assert script_ok(signed, 1, opener_spent)
    assert der_to_compact(witness[0][:-1]) == sign(privkey, digest)
