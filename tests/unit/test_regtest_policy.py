"""Kinds of scripts, signature operations, numbers in words; what the miner chooses; when flags are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.regtest_support import COIN, PUBKEY, SCRIPT, Bench
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut, hash160
from wallet.bitcoin import script as scripts
from wallet.regtest import forms, verifier
from wallet.regtest.asm import disassemble
from wallet.regtest.legacy import legacy_sighash
from wallet.regtest.miner import Miner, subsidy
from wallet.regtest.policy import (
    Rejection,
    fee_for,
    format_money,
    format_rate,
    is_push_only,
    script_ops,
    script_sigops,
    script_type,
    sigops_cost,
    virtual_size,
)

KEY65 = b"\x04" + bytes(64)
MULTISIG = bytes((scripts.OP_1,)) + scripts.push(PUBKEY) * 2 + bytes((scripts.OP_2, scripts.OP_CHECKMULTISIG))


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (b"", "nonstandard"),
        (b"\x51", "nonstandard"),
        (scripts.p2pkh(bytes(20)), "pubkeyhash"),
        (scripts.p2sh(bytes(20)), "scripthash"),
        (scripts.p2wpkh(PUBKEY), "witness_v0_keyhash"),
        (scripts.p2wsh(b""), "witness_v0_scripthash"),
        (scripts.p2tr(bytes(32)), "witness_v1_taproot"),
        (scripts.P2A_SCRIPT, "anchor"),
        (b"\x00\x15" + bytes(21), "nonstandard"),
        (b"\x52\x20" + bytes(32), "witness_unknown"),
        (b"\x51\x03" + bytes(3), "witness_unknown"),
        (scripts.push(PUBKEY) + b"\xac", "pubkey"),
        (scripts.push(KEY65) + b"\xac", "pubkey"),
        (b"\x6a", "nulldata"),
        (b"\x6a" + scripts.push(b"hello") + b"\x51", "nulldata"),
        (b"\x6a\xac", "nonstandard"),
        (b"\x6a\x05\x01", "nonstandard"),
        (MULTISIG, "multisig"),
        (MULTISIG[:-2] + bytes((scripts.OP_1 + 2, scripts.OP_CHECKMULTISIG)), "nonstandard"),
        (bytes((scripts.OP_1 + 2,)) + MULTISIG[1:], "nonstandard"),
    ],
)
def test_kinds_of_scripts(script: bytes, kind: str) -> None:
    assert script_type(script) == kind
    assert forms.script_pubkey(script)["type"] == kind


@given(st.binary(max_size=80))
def test_any_bytes_can_be_shown_as_a_script(script: bytes) -> None:
    form = forms.script_pubkey(script)
    assert form["hex"] == script.hex()
    broken = False
    try:
        list(script_ops(script))
    except ValueError:
        broken = True
    assert form["asm"].endswith("[error]") == broken
    assert not (broken and is_push_only(script))


def test_scripts_in_words() -> None:
    assert disassemble(b"\x00\x4f\x51\x60\x61") == "0 -1 1 16 OP_NOP"
    assert disassemble(scripts.script_num(-1000) + scripts.script_num(70_000)) == "-1000 70000"
    assert disassemble(b"\xb1\xb2\xba\xbb\xff\x50") == (
        "OP_CHECKLOCKTIMEVERIFY OP_CHECKSEQUENCEVERIFY OP_CHECKSIGADD OP_UNKNOWN OP_INVALIDOPCODE OP_RESERVED"
    )
    assert disassemble(b"\x05\x01") == "[error]"
    signature = bytes.fromhex("3006020101020101") + b"\x83"
    assert disassemble(scripts.push(signature), signatures=True) == "3006020101020101[SINGLE|ANYONECANPAY]"
    assert disassemble(scripts.push(signature)) == signature.hex()


def test_signature_operations() -> None:
    assert script_sigops(b"\xac\xad", accurate=False) == 2
    assert script_sigops(MULTISIG, accurate=False) == 20
    assert script_sigops(MULTISIG, accurate=True) == 2
    assert script_sigops(b"\xac\x05", accurate=True) == 1
    key_hash, script_hash = scripts.p2wpkh(PUBKEY), scripts.p2wsh(MULTISIG)
    outpoint = OutPoint(bytes(32), 0)

    def cost(spent: bytes, script_sig: bytes = b"", *witness: bytes) -> int:
        tx = Tx(2, (TxIn(outpoint, script_sig, 0, witness),), (TxOut(0, b"\x6a"),), 0)
        return sigops_cost(tx, [TxOut(0, spent)])

    assert cost(key_hash) == 1
    assert cost(script_hash, b"", MULTISIG) == 2
    assert cost(scripts.p2sh(hash160(key_hash)), scripts.push(key_hash)) == 1
    assert cost(scripts.p2sh(hash160(script_hash)), scripts.push(script_hash), MULTISIG) == 2
    assert cost(scripts.p2sh(hash160(MULTISIG)), scripts.push(MULTISIG)) == 8
    assert cost(scripts.p2sh(hash160(MULTISIG)), b"\x76") == 0
    assert cost(scripts.p2tr(bytes(32))) == 0
    payer = Tx(2, (TxIn(outpoint),), (TxOut(0, scripts.p2pkh(bytes(20))),), 0)
    assert sigops_cost(payer, [TxOut(0, key_hash)]) == 5
    assert virtual_size(400, 0) == 100
    assert virtual_size(401, 4) == 101
    assert virtual_size(400, 40) == 200


def test_numbers_in_words() -> None:
    assert [format_money(n) for n in (0, 1, 100_000_000, 150_000_000, -5, 123_456_789_012)] == [
        "0.00",
        "0.00000001",
        "1.00",
        "1.50",
        "-0.00000005",
        "1234.56789012",
    ]
    assert format_rate(110, 110) == "0.00001000 BTC/kvB"
    assert [fee_for(1000, 110), fee_for(1, 110), fee_for(0, 110), fee_for(2500, 110)] == [110, 1, 0, 275]
    assert bytes(forms.amount(-123)) == b"-0.00000123"
    assert bytes(forms.amount(21 * 10**14)) == b"21000000.00000000"


async def test_scripts_with_too_many_signature_operations(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (coin,) = await bench.mature()
    heavy = bytes((scripts.OP_1,)) + scripts.push(PUBKEY) + bytes((scripts.OP_1, scripts.OP_CHECKMULTISIG))
    many = bench.spend([coin], outputs=[TxOut(COIN // 10, heavy)] * 201)
    with pytest.raises(Rejection, match="bad-txns-too-many-sigops, 16081"):
        bench.submit(many)
    redeem = b"\xac" * 16
    fund = bench.spend([coin], outputs=[TxOut(49 * COIN, scripts.p2sh(hash160(redeem)))])
    bench.submit(fund)
    spend = Tx(2, (TxIn(fund.outpoint(0), scripts.push(redeem), 0),), (TxOut(COIN, SCRIPT),), 0)
    with pytest.raises(Rejection, match="bad-txns-nonstandard-inputs"):
        bench.submit(spend)
    bench.close()


# The miner.


async def test_a_full_block_takes_what_pays_best(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    coins = await bench.mature(8)
    txs = [bench.spend([coin], 1000 * (number + 1)) for number, coin in enumerate(coins)]
    for tx in txs:
        bench.submit(tx)
    room = 8000 + 3 * txs[0].weight() + 50
    template = Miner(bench.node.chain, bench.node.mempool, bench.node.clock, room).template()
    assert {entry.txid for entry in template.entries} == {tx.txid() for tx in txs[5:]}
    assert template.fees_sat == 6000 + 7000 + 8000
    assert template.weight <= room
    bench.close()


async def test_children_pull_their_parents_in_front_of_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    coin, other = await bench.mature(2)
    parent = bench.spend([coin], 200)
    child = bench.spend([OutPoint(parent.txid(), 0)], 20_000)
    middle = bench.spend([other], 2000)
    for tx in (parent, middle, child):
        bench.submit(tx)
    order = [entry.txid for entry in bench.node.miner.template().entries]
    assert order == [parent.txid(), child.txid(), middle.txid()]
    block = await bench.node.mine(SCRIPT)
    assert block.txs[0].outputs[0].value_sat == subsidy(bench.node.chain.height) + 22_200
    bench.close()


async def test_a_prioritised_transaction_comes_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    coin, other = await bench.mature(2)
    poor, rich = bench.spend([coin], 500), bench.spend([other], 5000)
    bench.submit(poor)
    bench.submit(rich)
    bench.node.mempool.pool.prioritise(poor.txid(), 10_000)
    assert [entry.txid for entry in bench.node.miner.template().entries] == [poor.txid(), rich.txid()]
    bench.node.mempool.pool.prioritise(poor.txid(), -10_000)
    assert bench.node.mempool.pool.deltas == {}
    assert [entry.txid for entry in bench.node.miner.template().entries] == [rich.txid(), poor.txid()]
    bench.close()


# Without the interpreter.


def test_consensus_flags_must_do_where_the_interpreter_cannot_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    script = bytes((scripts.OP_IF, scripts.OP_1, scripts.OP_ELSE, scripts.OP_0, scripts.OP_ENDIF))
    spent = [TxOut(1000, scripts.p2wsh(script))]

    def failure(argument: bytes) -> verifier.ScriptFailure | None:
        tx = Tx(2, (TxIn(OutPoint(bytes(32), 0), b"", 0, (argument, script)),), (TxOut(1, b"\x51"),), 0)
        return verifier.verify(tx.serialize(), spent)

    found = failure(b"\x02")
    assert found is not None
    assert not found.mandatory
    monkeypatch.setattr(verifier, "_interpreter", lambda: None)
    assert failure(b"\x02") is None
    assert failure(b"") == verifier.ScriptFailure(0, "unknown error", True)


def test_the_legacy_message_of_a_single_without_output_is_one() -> None:
    tx = Tx(2, (TxIn(OutPoint(bytes(32), 0)), TxIn(OutPoint(bytes(32), 1))), (TxOut(1, b""),), 0)
    assert legacy_sighash(tx, 1, b"\x51", 3) == (1).to_bytes(32, "little")
