"""regtestd's methods over HTTP: bitcoind's names, shapes and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.integration.regtestd_support import Client, Refused
from wallet.bitcoin import Block, OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import REGTEST, script_of
from wallet.regtest.chain import GENESIS
from wallet.regtest.server import RegtestServer

BURN = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
GENESIS_HASH = GENESIS.header.hash()[::-1].hex()
UNKNOWN = "00" * 31 + "01"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RegtestServer]:
    async with RegtestServer(tmp_path) as running:
        yield running


@pytest.fixture
async def rpc(server: RegtestServer) -> AsyncIterator[Client]:
    async with Client.of(server) as client:
        yield client


async def refused(call: object) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        await call  # type: ignore[misc]
    return caught.value.code, caught.value.message


async def funded(rpc: Client) -> tuple[str, dict[str, object]]:
    """An address of the faucet with a mature coin, and the coin."""
    address = await rpc.getnewaddress()
    await rpc.generatetoaddress(101, address)
    (coin,) = await rpc.listunspent()
    return address, coin


# Blocks.


async def test_the_chain_at_its_start(rpc: Client) -> None:
    info = await rpc.getblockchaininfo()
    assert info["chain"] == "regtest"
    assert (info["blocks"], info["headers"], info["initialblockdownload"]) == (0, 0, False)
    assert info["bestblockhash"] == await rpc.getbestblockhash() == await rpc.getblockhash(0) == GENESIS_HASH
    assert await rpc.getblock(GENESIS_HASH, 0) == GENESIS.serialize().hex()
    assert await rpc.getchaintips() == [{"height": 0, "hash": GENESIS_HASH, "branchlen": 0, "status": "active"}]


async def test_blocks_in_all_verbosities(rpc: Client) -> None:
    address, _ = await funded(rpc)
    txid = await rpc.sendtoaddress(BURN, 1)
    (tip,) = await rpc.generatetoaddress(1, address)
    raw = Block.parse(bytes.fromhex(await rpc.getblock(tip, 0)))
    assert raw.header.hash()[::-1].hex() == tip
    assert raw.txs[1].txid_hex == txid
    one = await rpc.getblock(tip)
    assert one["tx"] == [tx.txid_hex for tx in raw.txs]
    assert one["size"] == len(raw.serialize())
    assert (one["height"], one["confirmations"], one["nTx"]) == (102, 1, 2)
    assert one["previousblockhash"] == await rpc.getblockhash(101)
    assert "nextblockhash" not in one
    assert (await rpc.getblock(one["previousblockhash"]))["nextblockhash"] == tip
    two = await rpc.getblock(tip, 2)
    assert two["tx"][1]["txid"] == txid
    assert two["tx"][1]["fee"] > 0
    assert "prevout" not in two["tx"][1]["vin"][0]
    three = await rpc.getblock(tip, 3)
    previous = three["tx"][1]["vin"][0]["prevout"]
    assert previous["value"] == 50
    assert previous["height"] == 1
    assert previous["generated"] is True
    header = await rpc.getblockheader(tip)
    assert {key: one[key] for key in header} == header
    assert await rpc.getblockheader(tip, False) == raw.header.serialize().hex()
    assert (await rpc.getdeploymentinfo())["deployments"]["taproot"]["active"] is True
    assert (await rpc.getchaintxstats(10))["window_tx_count"] == 11
    stats = await rpc.getblockstats(102, ["totalfee", "txs", "subsidy"])
    assert stats == {"totalfee": int(two["tx"][1]["fee"] * 100_000_000), "txs": 2, "subsidy": 50 * 100_000_000}


async def test_errors_about_blocks(rpc: Client) -> None:
    assert await refused(rpc.getblockhash(1)) == (-8, "Block height out of range")
    assert await refused(rpc.getblockhash(-1)) == (-8, "Block height out of range")
    assert await refused(rpc.getblock(UNKNOWN)) == (-5, "Block not found")
    assert await refused(rpc.getblock("abc")) == (-8, "blockhash must be of length 64 (not 3, for 'abc')")
    assert await refused(rpc.getblockheader("zz" * 32)) == (
        -8,
        f"blockhash must be hexadecimal string (not '{'zz' * 32}')",
    )
    assert await refused(rpc.invalidateblock(UNKNOWN)) == (-5, "Block not found")


async def test_invalidated_blocks_come_back_and_longer_branches_win(rpc: Client) -> None:
    old = await rpc.generatetoaddress(5, BURN)
    assert await rpc.invalidateblock(old[2]) is None
    assert await rpc.getblockcount() == 2
    assert (await rpc.getblockheader(old[4]))["confirmations"] == -1
    assert (await rpc.getchaintips())[0] == {"height": 5, "hash": old[4], "branchlen": 3, "status": "invalid"}
    new = await rpc.generatetoaddress(4, BURN)
    assert await rpc.getbestblockhash() == new[-1]
    await rpc.reconsiderblock(old[2])
    assert await rpc.getbestblockhash() == new[-1]
    await rpc.invalidateblock(new[0])
    assert await rpc.getbestblockhash() == old[-1]
    tips = {tip["hash"]: tip["status"] for tip in await rpc.getchaintips()}
    assert tips == {old[-1]: "active", new[-1]: "invalid"}


async def test_a_reorganisation_takes_confirmations_away(rpc: Client) -> None:
    await funded(rpc)
    txid = await rpc.sendtoaddress(BURN, 2)
    (tip,) = await rpc.generatetoaddress(1, BURN)
    assert (await rpc.getrawtransaction(txid, 1))["confirmations"] == 1
    await rpc.invalidateblock(tip)
    assert "confirmations" not in await rpc.getrawtransaction(txid, True)
    assert await rpc.getrawmempool() == [txid]
    stale = await rpc.getrawtransaction(txid, 1, tip)
    assert (stale["in_active_chain"], stale["confirmations"]) == (False, 0)
    await rpc.reconsiderblock(tip)
    assert await rpc.getrawmempool() == []


async def test_waiting_for_blocks(rpc: Client) -> None:
    waiting = [
        asyncio.ensure_future(rpc.waitfornewblock()),
        asyncio.ensure_future(rpc.waitforblockheight(3)),
    ]
    for _ in range(1000):
        if len((await rpc.getrpcinfo())["active_commands"]) == 3:
            break
    assert not any(task.done() for task in waiting)
    hashes = await rpc.generatetoaddress(3, BURN)
    assert (await waiting[0])["height"] >= 1
    assert await waiting[1] == {"hash": hashes[2], "height": 3}
    assert await rpc.waitforblockheight(2) == {"hash": hashes[2], "height": 3}
    assert await rpc.waitforblock(hashes[2]) == {"hash": hashes[2], "height": 3}
    assert await rpc.waitfornewblock(1) == {"hash": hashes[2], "height": 3}
    assert await rpc.waitfornewblock(0, hashes[0]) == {"hash": hashes[2], "height": 3}


# Transactions.


async def test_looking_transactions_up(rpc: Client) -> None:
    _, coin = await funded(rpc)
    txid = await rpc.sendtoaddress(BURN, "0.5")
    raw = await rpc.getrawtransaction(txid)
    tx = Tx.parse(bytes.fromhex(raw))
    shown = await rpc.getrawtransaction(txid, 2)
    assert shown["hex"] == raw
    assert shown["vin"][0]["txid"] == coin["txid"]
    assert shown["vin"][0]["prevout"]["value"] == 50
    assert "blockhash" not in shown
    decoded = await rpc.decoderawtransaction(raw)
    assert decoded["vsize"] == tx.vsize()
    assert {out["value"] for out in decoded["vout"]} == {out["value"] for out in shown["vout"]}
    paid = next(out for out in decoded["vout"] if out["value"] == Decimal("0.5"))
    assert paid["scriptPubKey"]["address"] == BURN
    assert paid["scriptPubKey"]["type"] == "witness_v0_keyhash"
    assert paid["scriptPubKey"]["asm"] == "0 751e76e8199196d454941c45d1b3a323f1433bd6"
    assert paid["scriptPubKey"]["desc"].startswith(f"addr({BURN})#")
    (tip,) = await rpc.generatetoaddress(1, BURN)
    confirmed = await rpc.getrawtransaction(txid, 1)
    assert (confirmed["confirmations"], confirmed["blockhash"]) == (1, tip)
    assert await rpc.getrawtransaction(txid, 0, tip) == raw
    assert (await refused(rpc.getrawtransaction(UNKNOWN)))[0] == -5
    assert (await refused(rpc.getrawtransaction(txid, 0, GENESIS_HASH)))[1].startswith("No such transaction found in")
    assert (await refused(rpc.getrawtransaction(txid, 0, UNKNOWN))) == (-5, "Block hash not found")
    assert (await rpc.gettransaction(txid))["fee"] < 0
    assert (await rpc.getindexinfo())["txindex"]["synced"] is True


async def test_coins_as_gettxout_sees_them(rpc: Client) -> None:
    _, coin = await funded(rpc)
    found = await rpc.gettxout(coin["txid"], coin["vout"])
    assert (found["value"], found["confirmations"], found["coinbase"]) == (50, 101, True)
    txid = await rpc.sendtoaddress(BURN, 1)
    assert await rpc.gettxout(coin["txid"], coin["vout"]) is None
    assert (await rpc.gettxout(coin["txid"], coin["vout"], False))["value"] == 50
    assert await rpc.gettxout(txid, 0, False) is None
    assert (await rpc.gettxout(txid, 0))["confirmations"] == 0
    (spender,) = await rpc.gettxspendingprevout([{"txid": coin["txid"], "vout": 0}])
    assert spender["spendingtxid"] == txid
    (free,) = await rpc.gettxspendingprevout([{"txid": txid, "vout": 0}])
    assert "spendingtxid" not in free
    total = await rpc.gettxoutsetinfo()
    assert (total["txouts"], total["total_amount"]) == (101, 101 * 50)


async def signed(rpc: Client, coin: dict[str, object], outputs: dict[str, object]) -> str:
    raw = await rpc.createrawtransaction([{"txid": coin["txid"], "vout": coin["vout"]}], outputs)
    answer = await rpc.signrawtransactionwithwallet(raw)
    assert answer["complete"] is True
    return str(answer["hex"])


async def test_sending_and_the_errors_that_it_meets(rpc: Client) -> None:
    _, coin = await funded(rpc)
    raw = await signed(rpc, coin, {BURN: "49.9999"})
    (verdict,) = await rpc.testmempoolaccept([raw])
    assert verdict["allowed"] is True
    assert verdict["fees"]["base"] == Decimal("0.0001")
    txid = await rpc.sendrawtransaction(raw)
    assert txid == verdict["txid"]
    assert await rpc.sendrawtransaction(raw) == txid
    entry = await rpc.getmempoolentry(txid)
    assert entry["fees"]["base"] == Decimal("0.0001")
    assert (entry["ancestorcount"], entry["descendantcount"], entry["depends"]) == (1, 1, [])
    info = await rpc.getmempoolinfo()
    assert (info["size"], info["total_fee"], info["minrelaytxfee"]) == (1, Decimal("0.0001"), Decimal("0.00001"))
    rival = await signed(rpc, coin, {BURN: "49.99995"})
    code, message = await refused(rpc.sendrawtransaction(rival))
    assert code == -26
    assert message.startswith("insufficient fee, rejecting replacement ")
    assert (await rpc.testmempoolaccept([rival]))[0]["reject-reason"] == "insufficient fee"
    await rpc.generatetoaddress(1, BURN)
    assert await refused(rpc.sendrawtransaction(raw)) == (-27, "Transaction outputs already in utxo set")
    assert await refused(rpc.sendrawtransaction(rival)) == (-25, "bad-txns-inputs-missingorspent")
    assert (await rpc.testmempoolaccept([rival]))[0]["reject-reason"] == "missing-inputs"
    assert (await refused(rpc.sendrawtransaction("00")))[0] == -22
    assert await refused(rpc.getmempoolentry(txid)) == (-5, "Transaction not in mempool")


async def test_fee_and_burn_limits_of_the_caller(rpc: Client) -> None:
    _, coin = await funded(rpc)
    costly = await signed(rpc, coin, {BURN: 40})
    assert await refused(rpc.sendrawtransaction(costly)) == (
        -25,
        "Fee exceeds maximum configured by user (e.g. -maxtxfee, maxfeerate)",
    )
    assert (await rpc.testmempoolaccept([costly]))[0]["reject-reason"] == "max-fee-exceeded"
    burning = Tx(2, (TxIn(OutPoint(bytes(32), 0)),), (TxOut(1, b"\x6a"),), 0).serialize().hex()
    assert (await refused(rpc.sendrawtransaction(burning)))[1].startswith("Unspendable output exceeds maximum")
    assert await rpc.sendrawtransaction(costly, 0)


async def test_a_package_over_rpc(rpc: Client) -> None:
    address, _ = await funded(rpc)
    await rpc.generatetoaddress(1, address)
    first, second = await rpc.listunspent()
    parent = await signed_v3(rpc, [first], [{address: 50}])
    parent_tx = Tx.parse(bytes.fromhex(parent))
    raw = await rpc.createrawtransaction(
        [{"txid": parent_tx.txid_hex, "vout": 0}, {"txid": second["txid"], "vout": second["vout"]}],
        [{BURN: "99.9999"}],
        0,
        True,
        3,
    )
    previous = {
        "txid": parent_tx.txid_hex,
        "vout": 0,
        "scriptPubKey": script_of(address, REGTEST).hex(),
        "amount": 50,
    }
    child = (await rpc.signrawtransactionwithwallet(raw, [previous]))["hex"]
    assert await refused(rpc.sendrawtransaction(parent)) == (-26, f"min relay fee not met, 0 < {parent_tx.vsize()}")
    tested = await rpc.testmempoolaccept([parent, child])
    assert tested[0]["reject-reason"] == "min relay fee not met"
    answer = await rpc.submitpackage([parent, child])
    assert answer["package_msg"] == "success"
    assert answer["replaced-transactions"] == []
    wtxid = parent_tx.wtxid()[::-1].hex()
    result = answer["tx-results"][wtxid]
    assert result["txid"] == parent_tx.txid_hex
    assert result["fees"]["base"] == 0
    assert wtxid in result["fees"]["effective-includes"]
    assert set(await rpc.getmempoolancestors(Tx.parse(bytes.fromhex(child)).txid_hex)) == {parent_tx.txid_hex}
    assert (await refused(rpc.submitpackage([child, parent])))[0] == -25


async def signed_v3(rpc: Client, coins: list[dict[str, object]], outputs: list[dict[str, object]]) -> str:
    inputs = [{"txid": coin["txid"], "vout": coin["vout"]} for coin in coins]
    raw = await rpc.createrawtransaction(inputs, outputs, 0, True, 3)
    return str((await rpc.signrawtransactionwithwallet(raw))["hex"])


async def test_scripts_and_addresses(rpc: Client) -> None:
    shown = await rpc.decodescript("76a914" + "11" * 20 + "88ac")
    assert shown["type"] == "pubkeyhash"
    assert shown["asm"] == f"OP_DUP OP_HASH160 {'11' * 20} OP_EQUALVERIFY OP_CHECKSIG"
    assert shown["segwit"]["type"] == "witness_v0_keyhash"
    anchor = await rpc.decodescript(scripts.P2A_SCRIPT.hex())
    assert (anchor["type"], anchor["asm"]) == ("anchor", "1 29518")
    assert (await rpc.validateaddress(BURN))["witness_version"] == 0
    assert (await rpc.validateaddress("nonsense"))["isvalid"] is False
    for kind, script_type in (
        ("legacy", "pubkeyhash"),
        ("p2sh-segwit", "scripthash"),
        ("bech32", "witness_v0_keyhash"),
        ("bech32m", "witness_v1_taproot"),
    ):
        address = await rpc.getnewaddress("", kind)
        info = await rpc.getaddressinfo(address)
        assert info["ismine"] is True
        assert (await rpc.decodescript(info["scriptPubKey"]))["type"] == script_type


# Mining.


async def test_generateblock_takes_what_it_is_told(rpc: Client) -> None:
    _, coin = await funded(rpc)
    raw = await signed(rpc, coin, {BURN: "49.9999"})
    rival = await signed(rpc, coin, {BURN: "49.9998"})
    other = await rpc.generateblock(BURN, [])
    assert (await rpc.getblock(other["hash"]))["nTx"] == 1
    made = await rpc.generateblock(BURN, [raw])
    assert (await rpc.getblock(made["hash"]))["nTx"] == 2
    code, message = await refused(rpc.generateblock(BURN, [rival]))
    assert code == -25
    assert message.startswith("TestBlockValidity failed: bad-txns-inputs-missingorspent")
    shown = await rpc.generateblock(BURN, [], False)
    assert await rpc.submitblock(shown["hex"]) is None
    assert await rpc.submitblock(shown["hex"]) == "duplicate"
    assert await rpc.getbestblockhash() == shown["hash"]
    assert (await refused(rpc.submitblock("00")))[0] == -22
    assert await refused(rpc.generatetoaddress(1, "x")) == (-5, "Error: Invalid address")
    template = await rpc.getblocktemplate({"rules": ["segwit"]})
    assert template["previousblockhash"] == shown["hash"]
    assert (await rpc.getmininginfo())["blocks"] == template["height"] - 1


async def test_the_miner_takes_what_pays_best_and_families_together(rpc: Client) -> None:
    await funded(rpc)
    first = await rpc.sendtoaddress(BURN, 1)
    assert await rpc.prioritisetransaction(first, 0, 5000)
    assert (await rpc.getprioritisedtransactions())[first]["fee_delta"] == 5000
    second = await rpc.sendtoaddress(BURN, 1)
    template = await rpc.getblocktemplate({"rules": ["segwit"]})
    assert [tx["txid"] for tx in template["transactions"]] == [first, second]
    assert template["transactions"][1]["depends"] == [1]
    await rpc.generatetoaddress(1, BURN)
    assert await rpc.getrawmempool() == []


async def test_fee_estimates_come_from_what_was_mined(rpc: Client) -> None:
    await funded(rpc)
    assert await rpc.estimatesmartfee(6) == {"errors": ["Insufficient data or no feerate found"], "blocks": 6}
    assert (await refused(rpc.estimatesmartfee(0)))[0] == -8
    for _ in range(12):
        await rpc.sendtoaddress(BURN, "0.1", fee_rate=7)
        await rpc.generatetoaddress(1, await rpc.getnewaddress())
    estimate = await rpc.estimatesmartfee(2)
    assert abs(estimate["feerate"] - Decimal("0.00007")) < Decimal("0.000002")
    await rpc.setestimatedfee("0.00123")
    assert (await rpc.estimatesmartfee(2))["feerate"] == Decimal("0.00123")


# The daemon.


async def test_network_and_daemon(rpc: Client, server: RegtestServer) -> None:
    network = await rpc.getnetworkinfo()
    assert network["version"] >= 280000
    assert network["subversion"].startswith("/Satoshi:")
    assert network["relayfee"] == Decimal("0.00001")
    assert await rpc.getzmqnotifications() == []
    assert await rpc.uptime() >= 0
    assert await rpc.echo(1, "a") == [1, "a"]
    assert await rpc.getconnectioncount() == 0
    assert "getblockcount" in await rpc.help()
    assert (await rpc.help("getblock")).startswith('getblock "blockhash" ( verbosity )')
    assert await rpc.help("nonsense") == "help: unknown command: nonsense\n"
    assert await rpc.stop() == "Bitcoin Core stopping"
    await server.stop_requested.wait()


async def test_mock_time(rpc: Client) -> None:
    later = (await rpc.getblockheader(GENESIS_HASH))["time"] + 10**9
    await rpc.setmocktime(later)
    try:
        (tip,) = await rpc.generatetoaddress(1, BURN)
        assert (await rpc.getblockheader(tip))["time"] == later
    finally:
        await rpc.setmocktime(0)
    assert (await refused(rpc.setmocktime(-1)))[0] == -8


async def test_wrong_calls(rpc: Client) -> None:
    with pytest.raises(Refused) as caught:
        await rpc.nonsense()
    assert (caught.value.code, caught.value.status, caught.value.message) == (-32601, 404, "Method not found")
    code, message = await refused(rpc.getblock())
    assert code == -1
    assert message.startswith('getblock "blockhash"')
    assert (await refused(rpc.getblockcount(1)))[0] == -1
    code, message = await refused(rpc.getblockhash("1"))
    assert code == -3
    assert message == (
        'Wrong type passed:\n{\n    "Position 1 (height)": '
        '"JSON value of type string is not of expected type number"\n}'
    )
    assert await refused(rpc.call("getblockhash", nonsense=1)) == (-8, "Unknown named parameter nonsense")
    assert await rpc.call("getblockhash", height=0) == GENESIS_HASH
    assert (await rpc.call("getblock", blockhash=GENESIS_HASH, verbose=False)) == GENESIS.serialize().hex()
    assert await rpc.call("getblock", args=[GENESIS_HASH], verbosity=0) == GENESIS.serialize().hex()
