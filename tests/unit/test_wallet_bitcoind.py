"""BitcoindChainSource's questions and answers, in the shapes that bitcoind 25 to 30 give them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.wallet_fakes import FakeBitcoind, FakeError
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.address import REGTEST
from wallet.bitcoind import BitcoindChainSource, BitcoindConfig, RpcConfig
from wallet.chain import BroadcastOutcome, ChainError, ChainUnavailable

PARENT = Tx(3, (TxIn(OutPoint(b"\x11" * 32, 0), witness=(b"\x01",)),), (TxOut(1_000, b"\x51\x02\x4e\x73"),), 0)
CHILD = Tx(3, (TxIn(PARENT.outpoint(0), witness=(b"\x02",)),), (TxOut(500, b"\x00\x14" + bytes(20)),), 0)


@pytest.fixture
async def fake() -> AsyncIterator[FakeBitcoind]:
    server = FakeBitcoind()
    server.methods["gettxout"] = lambda txid, n, mempool=True: None
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def source(fake: FakeBitcoind) -> AsyncIterator[BitcoindChainSource]:
    chain_source = BitcoindChainSource(BitcoindConfig(RpcConfig(fake.url, "user", "pass")), REGTEST)
    yield chain_source
    await chain_source.close()


def failing(code: int, message: str) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise FakeError(code, message)

    return fail


async def test_broadcast_accepted(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    result = await source.broadcast(PARENT)
    assert result.ok
    assert result.outcome is BroadcastOutcome.ACCEPTED
    assert fake.calls[-1] == ("sendrawtransaction", [PARENT.serialize().hex(), 0])
    assert await source.get_tx(PARENT.txid()) == PARENT
    assert await source.get_tx(bytes(32)) is None


@pytest.mark.parametrize(
    ("code", "message", "outcome", "retriable"),
    [
        (-27, "Transaction already in block chain", BroadcastOutcome.ALREADY_MINED, False),
        (-27, "Transaction outputs already in utxo set", BroadcastOutcome.ALREADY_MINED, False),
        (-26, "txn-already-in-mempool", BroadcastOutcome.ALREADY_KNOWN, False),
        (-26, "txn-same-nonwitness-data-in-mempool", BroadcastOutcome.ALREADY_KNOWN, False),
        (-26, "min relay fee not met, 0 < 110", BroadcastOutcome.REJECTED, True),
        (-26, "mempool min fee not met, 110 < 500", BroadcastOutcome.REJECTED, True),
        (-26, "non-BIP68-final", BroadcastOutcome.REJECTED, True),
        (-26, "non-final", BroadcastOutcome.REJECTED, True),
        (-26, "txn-mempool-conflict", BroadcastOutcome.REJECTED, True),
        (-26, "insufficient fee, rejecting replacement abc; new feerate 1 <= old 2", BroadcastOutcome.REJECTED, True),
        (-25, "bad-txns-inputs-missingorspent", BroadcastOutcome.REJECTED, True),
        (-26, "mandatory-script-verify-flag-failed (Invalid Schnorr signature)", BroadcastOutcome.REJECTED, False),
        (-26, "dust", BroadcastOutcome.REJECTED, False),
        (-22, "TX decode failed. Make sure the tx has at least one input.", BroadcastOutcome.REJECTED, False),
    ],
)
async def test_broadcast_refused(
    fake: FakeBitcoind,
    source: BitcoindChainSource,
    code: int,
    message: str,
    outcome: BroadcastOutcome,
    retriable: bool,
) -> None:
    fake.methods["sendrawtransaction"] = failing(code, message)
    result = await source.broadcast(PARENT)
    assert (result.outcome, result.retriable, result.reason) == (outcome, retriable, message)
    assert result.orphaned is ("missingorspent" in message)


async def test_missing_inputs_of_a_mined_transaction(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    fake.methods["sendrawtransaction"] = failing(-25, "bad-txns-inputs-missingorspent")
    fake.methods["gettxout"] = lambda txid, n, mempool=True: {
        "bestblock": "00" * 32,
        "confirmations": 3,
        "value": 0.00001,
        "scriptPubKey": {"asm": "", "hex": "51024e73", "type": "anchor"},
        "coinbase": False,
    }
    assert (await source.broadcast(PARENT)).outcome is BroadcastOutcome.ALREADY_MINED


async def test_utxo(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    assert await source.utxo(OutPoint(bytes(32), 0)) is None
    fake.methods["gettxout"] = lambda txid, n, mempool=True: {
        "bestblock": "00" * 32,
        "confirmations": 101,
        "value": 12.34567891,
        "scriptPubKey": {"asm": "1", "hex": "51", "type": "nonstandard"},
        "coinbase": True,
    }
    found = await source.utxo(OutPoint(b"\x01" + bytes(31), 7), include_mempool=False)
    assert fake.calls[-1] == ("gettxout", ["00" * 31 + "01", 7, False])
    assert found == (TxOut(1_234_567_891, b"\x51"), 101, True)


async def test_spender_in_the_mempool(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    fake.mempool[CHILD.txid()] = CHILD
    spenders = {PARENT.txid_hex: CHILD.txid_hex}

    def answer(outpoints: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (asked,) = outpoints
        spender = spenders.get(asked["txid"])
        return [asked | ({"spendingtxid": spender} if spender else {})]

    fake.methods["gettxspendingprevout"] = answer
    assert await source.spending_tx_in_mempool(PARENT.outpoint(0)) == CHILD
    assert await source.spending_tx_in_mempool(CHILD.outpoint(0)) is None


def _entry(tx: Tx, **fields: Any) -> tuple[str, dict[str, Any]]:
    return tx.wtxid()[::-1].hex(), {"txid": tx.txid_hex, **fields}


async def test_package_accepted(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    fees = {"base": 0.00001, "effective-feerate": 0.00002, "effective-includes": []}
    fake.methods["submitpackage"] = lambda txs, maxfeerate: {
        "package_msg": "success",
        "tx-results": dict([_entry(PARENT, vsize=100, fees={"base": 0}), _entry(CHILD, vsize=110, fees=fees)]),
        "replaced-transactions": [],
    }
    results = await source.broadcast_package([PARENT, CHILD])
    assert [result.outcome for result in results] == [BroadcastOutcome.ACCEPTED] * 2
    assert fake.calls[-1] == ("submitpackage", [[PARENT.serialize().hex(), CHILD.serialize().hex()], 0])


async def test_package_goes_to_an_older_bitcoind_without_a_limit(
    fake: FakeBitcoind, source: BitcoindChainSource
) -> None:
    """The child of a large commitment pays more for its size than bitcoind takes for sane, unless told otherwise."""
    results = dict([_entry(PARENT, vsize=100, fees={}), _entry(CHILD, vsize=110, fees={})])
    fake.methods["submitpackage"] = lambda txs: {"package_msg": "success", "tx-results": results}
    assert [result.ok for result in await source.broadcast_package([PARENT, CHILD])] == [True, True]
    assert [len(params) for _, params in fake.calls] == [2, 1]


async def test_package_refused(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    error = "min relay fee not met, 0 < 100"
    fake.methods["submitpackage"] = lambda txs, maxfeerate: {
        "package_msg": "transaction failed",
        "tx-results": dict([_entry(PARENT, error=error), _entry(CHILD, error="bad-txns-inputs-missingorspent")]),
    }
    results = await source.broadcast_package([PARENT, CHILD])
    assert [(result.outcome, result.retriable) for result in results] == [(BroadcastOutcome.REJECTED, True)] * 2
    assert results[0].reason == error
    fake.methods["submitpackage"] = lambda txs, maxfeerate: {"package_msg": "package-mempool-limits", "tx-results": {}}
    results = await source.broadcast_package([PARENT, CHILD])
    assert [result.reason for result in results] == ["package-mempool-limits"] * 2


async def test_package_whose_parent_was_mined(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    fake.methods["submitpackage"] = lambda txs, maxfeerate: {
        "package_msg": "transaction failed",
        "tx-results": dict([_entry(PARENT, error="txn-already-known"), _entry(CHILD, error="package-not-validated")]),
    }
    results = await source.broadcast_package([PARENT, CHILD])
    assert [result.outcome for result in results] == [BroadcastOutcome.ALREADY_MINED, BroadcastOutcome.ACCEPTED]


async def test_package_without_submitpackage(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    results = await source.broadcast_package([PARENT, CHILD])
    assert [result.ok for result in results] == [True, True]
    assert [method for method, _ in fake.calls] == ["submitpackage", "sendrawtransaction", "sendrawtransaction"]


async def test_package_for_a_bitcoind_that_takes_packages_on_regtest_alone(
    fake: FakeBitcoind, source: BitcoindChainSource
) -> None:
    """Version 25, on any other network. A commitment's child would never be sent, and held to be of no use."""
    fake.methods["submitpackage"] = failing(-1, "submitpackage is for regression testing (-regtest mode) only")
    results = await source.broadcast_package([PARENT, CHILD])
    assert [result.ok for result in results] == [True, True]
    sent = [params[0] for method, params in fake.calls if method == "sendrawtransaction"]
    assert sent == [PARENT.serialize().hex(), CHILD.serialize().hex()]


async def test_fee_rates(fake: FakeBitcoind) -> None:
    now = [0.0]
    config = BitcoindConfig(RpcConfig(fake.url, "user", "pass"), fallback_feerate_sat_per_kw=1_234)
    source = BitcoindChainSource(config, REGTEST, clock=lambda: now[0])
    assert await source.fee_rate_sat_per_kw(6) == 1_234
    estimates = {2: 0.0004, 6: 0.00016, 144: 0.000002}

    def estimate(target: int) -> dict[str, Any]:
        if target in estimates:
            return {"feerate": estimates[target], "blocks": target}
        return {"errors": ["Insufficient data or no feerate found"], "blocks": target}

    fake.methods["estimatesmartfee"] = estimate
    assert await source.fee_rate_sat_per_kw(6) == 1_234, "cached"
    await source.chain_state()
    assert await source.fee_rate_sat_per_kw(6) == 4_000, "a block came"
    estimates[6] = 0.00008
    assert await source.fee_rate_sat_per_kw(6) == 4_000, "cached"
    now[0] = 31.0
    assert await source.fee_rate_sat_per_kw(6) == 2_000
    estimates[6] = 0.00016
    now[0] = 62.0
    assert await source.fee_rate_sat_per_kw(1) == 10_000
    assert await source.fee_rate_sat_per_kw(3) == 4_000, "no estimate for 3: the next longer one"
    assert await source.fee_rate_sat_per_kw(100) == 253, "never below the floor"
    now[0] = 93.0
    fake.methods["getmempoolinfo"] = lambda: {"mempoolminfee": 0.0002, "minrelaytxfee": 0.00001}
    assert await source.fee_rate_sat_per_kw(100) == 5_000, "never below what the mempool takes"
    now[0] = 124.0
    await fake.stop()
    assert await source.fee_rate_sat_per_kw(100) == 5_000, "an old answer is better than none"
    with pytest.raises(ChainUnavailable):
        await source.fee_rate_sat_per_kw(9)
    await source.close()


async def test_all_fee_rates_are_asked_for_at_once(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    fake.methods["estimatesmartfee"] = lambda target: {"feerate": 0.001 / target, "blocks": target}
    targets = (1, 6, 144)
    before = [await source.fee_rate_sat_per_kw(target) for target in targets]
    assert before == [12_500, 4_167, 253]
    await source.chain_state()
    fake.calls.clear()
    assert [await source.fee_rate_sat_per_kw(target) for target in targets] == before
    asked = [params for method, params in fake.calls if method == "estimatesmartfee"]
    assert [method for method, _ in fake.calls].count("getmempoolinfo") == 1
    assert len(asked) == len(set(map(tuple, asked))), "each target once"


async def test_pruned_and_unknown_blocks(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    with pytest.raises(ChainError, match="does not know block"):
        await source.get_block(bytes(32))
    fake.methods["getblock"] = failing(-1, "Block not available (pruned data)")
    with pytest.raises(ChainError, match="prune=0"):
        await source.get_block(fake.chain.active[0])
    assert await source.get_block_hash(0) == REGTEST.genesis_hash
    assert await source.get_block_hash(1) is None


async def test_not_a_bitcoind_at_all(fake: FakeBitcoind, source: BitcoindChainSource) -> None:
    with pytest.raises(ChainUnavailable, match="not answered yet"):
        source.tip()
    fake.methods["getblockchaininfo"] = failing(-28, "Verifying blocks…")
    with pytest.raises(ChainUnavailable, match="starting: Verifying"):
        await source.chain_state()
