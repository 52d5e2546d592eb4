"""The vectors published with BIP 143, BIP 341, BIP 173 and BIP 350."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wallet.bitcoin import Tx, TxOut
from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import MAINNET, TESTNET, AddressError, address_of, script_of
from wallet.bitcoin.secp import (
    compact_to_der,
    pubkey_of,
    sign,
    sign_low_r,
    sign_schnorr,
    taproot_output_key,
    taproot_tweak_secret,
    verify_schnorr,
    xonly,
)
from wallet.bitcoin.sighash import SighashCache, segwit_v0_sighash, tapleaf_hash, taproot_sighash
from wallet.regtest.verifier import MANDATORY_FLAGS, verify

VECTORS = Path(__file__).parent.parent / "vectors" / "bips"
BIP143 = json.loads((VECTORS / "bip143.json").read_text())["cases"]
BIP341 = json.loads((VECTORS / "bip341.json").read_text())


def outputs(pairs: list[list[Any]]) -> list[TxOut]:
    return [TxOut(value, bytes.fromhex(script)) for script, value in pairs]


@pytest.mark.parametrize("case", BIP143, ids=[case["name"] for case in BIP143])
def test_bip_143(case: dict[str, Any]) -> None:
    tx = Tx.parse(bytes.fromhex(case["unsigned"]))
    signed = Tx.parse(bytes.fromhex(case["signed"]))
    spent = outputs(case["spent"])
    assert signed.txid() == tx.txid() or any(txin.script_sig for txin in signed.inputs)
    assert verify(signed.serialize(), spent, MANDATORY_FLAGS) is None
    for item in case["signatures"]:
        digest = segwit_v0_sighash(
            tx, item["input"], bytes.fromhex(item["script_code"]), spent[item["input"]].value_sat, item["hash_type"]
        )
        assert digest.hex() == item["sighash"]
        secret = bytes.fromhex(item["secret"])
        made = [compact_to_der(s(secret, digest)) + bytes((item["hash_type"],)) for s in (sign, sign_low_r)]
        assert bytes.fromhex(item["signature"]) in made
        assert bytes.fromhex(item["signature"]) in signed.inputs[item["input"]].witness


def test_bip_341_outputs() -> None:
    for internal, root, output in BIP341["outputs"]:
        assert taproot_output_key(bytes.fromhex(internal), bytes.fromhex(root)).hex() == output
    for script, version, digest in BIP341["leaves"]:
        assert tapleaf_hash(bytes.fromhex(script), version).hex() == digest


@pytest.mark.parametrize("item", BIP341["spends"], ids=[str(item["input"]) for item in BIP341["spends"]])
def test_bip_341_key_paths(item: dict[str, Any]) -> None:
    tx = Tx.parse(bytes.fromhex(BIP341["unsigned"]))
    spent = outputs(BIP341["spent"])
    cache = SighashCache(tx, spent)
    for shared in (None, cache, cache):
        digest = taproot_sighash(tx, item["input"], spent, item["hash_type"], cache=shared)
        assert digest.hex() == item["sighash"]
    root = bytes.fromhex(item["merkle_root"])
    secret = taproot_tweak_secret(bytes.fromhex(item["secret"]), root)
    assert secret.hex() == item["tweaked_secret"]
    key = xonly(pubkey_of(secret))
    assert scripts.p2tr(key) == spent[item["input"]].script_pubkey
    signature = bytes.fromhex(item["signature"])
    assert sign_schnorr(secret, digest) == signature[:64]
    assert verify_schnorr(key, digest, signature[:64])


def test_bip_341s_transaction_is_valid() -> None:
    signed = Tx.parse(bytes.fromhex(BIP341["signed"]))
    assert signed.serialize().hex() == BIP341["signed"]
    assert verify(signed.serialize(), outputs(BIP341["spent"]), MANDATORY_FLAGS) is None


# Addresses: valid ones with their scripts, and invalid ones, of BIP 173 as amended by BIP 350.

VALID = [
    ("BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4", "0014751e76e8199196d454941c45d1b3a323f1433bd6"),
    (
        "bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y",
        "5128751e76e8199196d454941c45d1b3a323f1433bd6751e76e8199196d454941c45d1b3a323f1433bd6",
    ),
    ("BC1SW50QGDZ25J", "6002751e"),
    ("bc1zw508d6qejxtdg4y5r3zarvaryvaxxpcs", "5210751e76e8199196d454941c45d1b3a323"),
    (
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
        "512079be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
    ),
]
INVALID = [
    "tc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq5zuyut",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd",
    "BC1S0XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ54WELL",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kemeawh",
    "bc1p38j9r5y49hruaue7wxjce0updqjuyyx0kh56v8s25huc6995vvpql3jow4",
    "BC130XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ7ZWS8R",
    "bc1pw5dgrnzv",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v8n0nx0muaewav253zgeav",
    "BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v07qwwzcrf",
    "bc1gmk9yu",
    "tb1q0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq24jc47",
    "tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vpggkg4j",
]


@pytest.mark.parametrize(("address", "script"), VALID)
def test_bip_350_valid_addresses(address: str, script: str) -> None:
    assert script_of(address, MAINNET).hex() == script
    assert address_of(bytes.fromhex(script), MAINNET) == address.lower()


@pytest.mark.parametrize("address", INVALID)
def test_bip_350_invalid_addresses(address: str) -> None:
    for network in (MAINNET, TESTNET):
        with pytest.raises(AddressError):
            script_of(address, network)
