"""Transactions and blocks: round trips, sizes, and the same verdict over bytes as Bitcoin Core's own parser."""

from __future__ import annotations

import pbk
import pbk.capi.bindings as capi
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pbk.writer import ByteWriter

from tests.unit.regtest_support import SCRIPT
from wallet.bitcoin import Block, BlockHeader, OutPoint, SerializationError, Tx, TxIn, TxOut, hash160, sha256d
from wallet.bitcoin import script as scripts
from wallet.bitcoin.encoding import compact_size, read_bytes, read_compact_size, read_var_bytes, ripemd160, var_bytes
from wallet.bitcoin.tx import merkle_root
from wallet.regtest.chain import GENESIS
from wallet.regtest.miner import solve
from wallet.regtest.policy import is_push_only, script_ops
from wallet.regtest.verifier import STANDARD_FLAGS, verify

outpoints = st.builds(OutPoint, st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1))
witnesses = st.lists(st.binary(max_size=80), max_size=4).map(tuple)
txins = st.builds(TxIn, outpoints, st.binary(max_size=60), st.integers(0, 2**32 - 1), witnesses)
txouts = st.builds(TxOut, st.integers(-(2**63), 2**63 - 1), st.binary(max_size=60))
txs = st.builds(
    Tx,
    st.integers(-(2**31), 2**31 - 1),
    st.lists(txins, min_size=1, max_size=4).map(tuple),
    st.lists(txouts, max_size=4).map(tuple),
    st.integers(0, 2**32 - 1),
)


def core_parse(raw: bytes) -> pbk.Transaction | None:
    """Bitcoin Core's parser; None if it refuses."""
    pointer = capi.btck_transaction_create(raw, len(raw))
    return pbk.Transaction._from_handle(pointer) if pointer else None


def core_bytes(tx: pbk.Transaction) -> bytes:
    return bytes(ByteWriter().write(capi.btck_transaction_to_bytes, tx))


@given(txs)
def test_transactions_survive_and_core_reads_the_same(tx: Tx) -> None:
    raw = tx.serialize()
    assert Tx.parse(raw) == tx
    core = core_parse(raw)
    assert core is not None
    assert core_bytes(core) == raw
    assert bytes(core.txid) == tx.txid() == sha256d(tx.serialize_stripped())
    assert core.locktime == tx.locktime
    assert [(o.amount, bytes(o.script_pubkey)) for o in core.outputs] == [tuple(output) for output in tx.outputs]
    points = [(bytes(i.out_point.txid), i.out_point.index, i.sequence) for i in core.inputs]
    assert points == [(*txin.outpoint, txin.sequence) for txin in tx.inputs]


@given(txs)
def test_sizes(tx: Tx) -> None:
    stripped, whole = len(tx.serialize_stripped()), len(tx.serialize())
    assert tx.weight() == 3 * stripped + whole
    assert tx.vsize() == -(-tx.weight() // 4)
    if tx.has_witness:
        assert whole == stripped + 2 + sum(
            len(compact_size(len(txin.witness))) + sum(len(var_bytes(item)) for item in txin.witness)
            for txin in tx.inputs
        )
        assert tx.wtxid() != tx.txid()
    else:
        assert (whole, tx.wtxid()) == (stripped, tx.txid())


@given(txs, st.data())
def test_damaged_transactions_meet_the_same_verdict_as_in_core(tx: Tx, data: st.DataObject) -> None:
    raw = bytearray(tx.serialize())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    core = core_parse(damaged)
    try:
        ours, end = Tx.read(damaged, 0)
    except SerializationError:
        # Core takes transactions without inputs, which nothing here ever makes or meets.
        assert core is None or len(core.inputs) == 0
        return
    assume(ours.inputs)
    assert core is not None
    assert core_bytes(core) == ours.serialize() == damaged[:end]


@given(st.binary(max_size=300))
def test_garbage_never_raises_anything_else(raw: bytes) -> None:
    for parse in (Tx.parse, Block.parse, BlockHeader.parse):
        try:
            parse(raw)
        except SerializationError:
            continue


def test_witnesses_that_are_none_at_all_are_refused() -> None:
    tx = Tx(2, (TxIn(OutPoint(bytes(32), 0)),), (TxOut(1, b""),), 0)
    stripped = tx.serialize_stripped()
    superfluous = stripped[:4] + b"\x00\x01" + stripped[4:-4] + b"\x00" + stripped[-4:]
    assert core_parse(superfluous) is None
    with pytest.raises(SerializationError):
        Tx.parse(superfluous)
    with pytest.raises(SerializationError):
        Tx.parse(stripped + b"\x00")


def test_outpoints_as_text() -> None:
    outpoint = OutPoint(bytes(range(32)), 5)
    assert OutPoint.parse(str(outpoint)) == outpoint
    assert str(outpoint).startswith("1f1e1d")
    for text in ("", "00:1", "zz" * 32 + ":0", "00" * 32, "00" * 32 + ":-1", "00" * 32 + ":x", "00" * 32 + ":²"):
        with pytest.raises(ValueError):
            OutPoint.parse(text)


# Compact sizes.


@given(st.integers(0, 2**64 - 1))
def test_compact_sizes(n: int) -> None:
    raw = compact_size(n)
    assert len(raw) == (1 if n < 0xFD else 3 if n <= 0xFFFF else 5 if n <= 0xFFFFFFFF else 9)
    assert read_compact_size(b"x" + raw + b"y", 1) == (n, 1 + len(raw))
    for cut in range(len(raw)):
        with pytest.raises(SerializationError):
            read_compact_size(raw[:cut], 0)


@pytest.mark.parametrize("raw", ["fdfc00", "feffff0000", "ffffffffff00000000", "fd0000"])
def test_compact_sizes_must_be_minimal(raw: str) -> None:
    with pytest.raises(SerializationError):
        read_compact_size(bytes.fromhex(raw), 0)


@given(st.binary(max_size=70_000))
def test_bytes_behind_their_length(data: bytes) -> None:
    assert read_var_bytes(var_bytes(data), 0) == (data, len(var_bytes(data)))
    with pytest.raises(SerializationError):
        read_bytes(data, 0, len(data) + 1)


def test_ripemd160() -> None:
    assert ripemd160(b"").hex() == "9c1185a5c5e9fc54612808977ee8f548b2258d31"
    assert hash160(bytes.fromhex("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798")).hex() == (
        "751e76e8199196d454941c45d1b3a323f1433bd6"
    )


# Scripts.


@given(st.binary(max_size=600))
def test_pushes_come_back(data: bytes) -> None:
    script = scripts.push(data)
    ((_, pushed),) = script_ops(script)
    assert pushed == data
    assert is_push_only(script)


@given(st.integers(-(2**31) + 1, 2**31 - 1))
def test_script_numbers_are_what_core_counts_with(n: int) -> None:
    """Core's interpreter, which wants minimal pushes and numbers here, finds `0 + n` equal to `n`."""
    script = b"\x00" + scripts.script_num(n) + b"\x93" + scripts.script_num(n) + bytes((scripts.OP_EQUAL,))
    tx = Tx(2, (TxIn(OutPoint(bytes(32), 0), b"", 0, (script,)),), (TxOut(1, b"\x51"),), 0)
    assert verify(tx.serialize(), [TxOut(1000, scripts.p2wsh(script))], STANDARD_FLAGS) is None


@given(st.binary(max_size=50))
def test_templates_recognise_only_themselves(data: bytes) -> None:
    key, digest = (data * 33 + bytes(33))[:33], (data * 32 + bytes(32))[:32]
    made = {
        scripts.is_p2pkh: scripts.p2pkh(digest[:20]),
        scripts.is_p2sh: scripts.p2sh(digest[:20]),
        scripts.is_p2wpkh: scripts.p2wpkh(key),
        scripts.is_p2wsh: scripts.p2wsh(data),
        scripts.is_p2tr: scripts.p2tr(digest),
    }
    for check, script in made.items():
        assert [other for other in made if other(script)] == [check]
    assert scripts.witness_program(scripts.P2A_SCRIPT) == (1, b"\x4e\x73")
    assert scripts.witness_program(made[scripts.is_p2sh]) is None


# Blocks.


@given(st.lists(txs, min_size=1, max_size=4))
def test_blocks_survive(body: list[Tx]) -> None:
    header = BlockHeader(1, bytes(32), merkle_root([tx.txid() for tx in body]), 1, 0x207FFFFF, 0)
    block = Block(header, tuple(body))
    raw = block.serialize()
    assert Block.parse(raw) == block
    core = pbk.Block(raw)
    assert bytes(core.block_hash) == header.hash()
    with pytest.raises(SerializationError):
        Block.parse(raw + b"\x00")


def test_the_merkle_root_is_the_one_that_core_computes() -> None:
    parameters = pbk.ChainParameters(pbk.ChainType.REGTEST)
    coinbase = GENESIS.txs[0]
    for count in range(9):
        others = [Tx(2, (TxIn(OutPoint(bytes((n,)) * 32, 0)),), (TxOut(n, SCRIPT),), 0) for n in range(1, count + 1)]
        body = (coinbase, *others)
        root = merkle_root([tx.txid() for tx in body])
        header = GENESIS.header._replace(merkle_root=root, bits=0x207FFFFF)
        block = pbk.Block(Block(solve(header), body).serialize())
        assert block.check(parameters.consensus_params).validation_mode == pbk.ValidationMode.VALID
    assert merkle_root([]) == bytes(32)
