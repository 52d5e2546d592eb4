"""The faucet over RPC: its lazily mined coins, the calls that Lightning test harnesses make, PSBTs, several wallets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.integration.regtestd_support import Client, Refused
from wallet.regtest.server import RegtestServer

BURN = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"


@pytest.fixture
async def rpc(tmp_path: Path) -> AsyncIterator[Client]:
    async with RegtestServer(tmp_path) as server, Client.of(server) as client:
        yield client


async def test_the_faucet_mines_its_first_coins_when_it_needs_them(rpc: Client) -> None:
    assert await rpc.getbalance() == 0
    assert await rpc.getblockcount() == 0
    txid = await rpc.sendtoaddress(BURN, 3)
    assert await rpc.getblockcount() == 110
    assert (await rpc.gettransaction(txid))["amount"] == -3
    await rpc.sendtoaddress(BURN, 1000)
    assert 115 < await rpc.getblockcount() < 125
    height = await rpc.getblockcount()
    with pytest.raises(Refused, match="Insufficient funds"):
        await rpc.sendtoaddress(BURN, 20_000_000)
    assert await rpc.getblockcount() == height
    assert (await rpc.gettransaction(txid))["confirmations"] > 0


async def test_many_payments_without_a_block(rpc: Client) -> None:
    for _ in range(60):
        await rpc.sendtoaddress(BURN, "0.01")
    assert len(await rpc.getrawmempool()) == 60
    await rpc.generatetoaddress(1, BURN)
    assert await rpc.getrawmempool() == []


async def test_payments_name_their_fee(rpc: Client) -> None:
    txid = await rpc.sendtoaddress(BURN, 1, fee_rate=25)
    entry = await rpc.getmempoolentry(txid)
    rate = entry["fees"]["base"] * 100_000_000 / entry["vsize"]
    assert 25 <= rate < 26
    whole = await rpc.sendtoaddress(BURN, 2, subtractfeefromamount=True)
    values = [out["value"] for out in (await rpc.getrawtransaction(whole, 1))["vout"]]
    assert 2 not in values
    assert any(Decimal("1.999") < value < 2 for value in values)
    many = await rpc.sendmany("", {BURN: 1, await rpc.getnewaddress(): 2})
    assert len((await rpc.getrawtransaction(many, 1))["vout"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nonsense", 1), -5, "Invalid Bitcoin address: nonsense"),
        ((BURN, 0), -3, "Invalid amount for send"),
        ((BURN, -1), -3, "Amount out of range"),
        ((BURN, "0.000000001"), -3, "Invalid amount"),
        ((BURN, 20_000_000), -6, "Insufficient funds"),
    ],
)
async def test_what_cannot_be_sent(rpc: Client, arguments: tuple[object, ...], code: int, words: str) -> None:
    wallet = "/wallet/poor"
    await rpc.createwallet("poor")
    with pytest.raises(Refused) as caught:
        await rpc.call("sendtoaddress", *arguments, path=wallet)
    assert (caught.value.code, caught.value.message) == (code, words)


async def test_balances_and_coins(rpc: Client) -> None:
    address = await rpc.getnewaddress("mine")
    await rpc.generatetoaddress(102, address)
    assert await rpc.getbalance() == 100
    assert (await rpc.getbalances())["mine"] == {"trusted": 100, "untrusted_pending": 0, "immature": 100 * 50}
    coins = await rpc.listunspent()
    assert sorted(coin["confirmations"] for coin in coins) == [101, 102]
    assert {coin["label"] for coin in coins} == {"mine"}
    assert await rpc.lockunspent(False, [{"txid": coins[0]["txid"], "vout": coins[0]["vout"]}])
    assert len(await rpc.listunspent()) == 1
    assert len(await rpc.listlockunspent()) == 1
    assert await rpc.lockunspent(True)
    txid = await rpc.sendtoaddress(BURN, 1)
    assert await rpc.listunspent(1, 9999, [await rpc.getnewaddress()]) == []
    unconfirmed = [coin for coin in await rpc.listunspent(0) if coin["txid"] == txid]
    assert len(unconfirmed) == 1
    assert (unconfirmed[0]["confirmations"], unconfirmed[0]["safe"]) == (0, True)
    info = await rpc.getwalletinfo()
    assert info["walletname"] == ""
    assert info["private_keys_enabled"] is True


@pytest.mark.parametrize("kind", ["legacy", "p2sh-segwit", "bech32", "bech32m"])
async def test_every_kind_of_address_is_spent_again(rpc: Client, kind: str) -> None:
    address = await rpc.getnewaddress("", kind)
    txid = await rpc.sendtoaddress(address, 7)
    await rpc.generatetoaddress(1, BURN)
    (coin,) = [coin for coin in await rpc.listunspent(1, 9999, [address]) if coin["txid"] == txid]
    raw = await rpc.createrawtransaction([{"txid": txid, "vout": coin["vout"]}], {BURN: "6.9999"})
    signed = await rpc.signrawtransactionwithwallet(raw)
    assert signed["complete"] is True
    assert await rpc.sendrawtransaction(signed["hex"])


async def test_funding_a_channel_as_harnesses_do(rpc: Client) -> None:
    script = "0020" + "ab" * 32
    address = (await rpc.decodescript(script))["address"]
    raw = await rpc.createrawtransaction([], {address: "0.001"})
    funded = await rpc.fundrawtransaction(raw, {"feeRate": "0.00002", "lockUnspents": True, "changePosition": 1})
    assert funded["changepos"] == 1
    assert funded["fee"] > 0
    assert await rpc.listlockunspent() != []
    signed = await rpc.signrawtransactionwithwallet(funded["hex"])
    assert signed["complete"] is True
    decoded = await rpc.decoderawtransaction(signed["hex"])
    assert decoded["vout"][0]["value"] == Decimal("0.001")
    txid = await rpc.sendrawtransaction(signed["hex"])
    entry = await rpc.getmempoolentry(txid)
    assert entry["fees"]["base"] == funded["fee"]
    assert abs(entry["fees"]["base"] * 100_000_000 - 2 * entry["vsize"]) <= 4


async def test_signing_says_what_is_missing(rpc: Client) -> None:
    txid = await rpc.sendtoaddress(BURN, 1)
    vout = next(out["n"] for out in (await rpc.getrawtransaction(txid, 1))["vout"] if out["value"] == 1)
    foreign = await rpc.createrawtransaction([{"txid": txid, "vout": vout}], {BURN: "0.9"})
    answer = await rpc.signrawtransactionwithwallet(foreign)
    assert answer["complete"] is False
    assert answer["errors"][0]["txid"] == txid
    unknown = await rpc.createrawtransaction([{"txid": "11" * 32, "vout": 0}], {BURN: "0.9"})
    answer = await rpc.signrawtransactionwithwallet(unknown)
    assert answer["errors"][0]["error"] == "Input not found or already spent"


# Partially signed transactions.


async def test_a_psbt_from_creation_to_the_mempool(rpc: Client) -> None:
    for kind in ("legacy", "p2sh-segwit", "bech32", "bech32m"):
        await rpc.sendtoaddress(await rpc.getnewaddress("", kind), 5)
    await rpc.generatetoaddress(1, BURN)
    coins = [coin for coin in await rpc.listunspent() if coin["amount"] == 5]
    inputs = [{"txid": coin["txid"], "vout": coin["vout"], "sequence": 0} for coin in coins]
    psbt = await rpc.createpsbt(inputs, {BURN: "19.999"})
    shown = await rpc.decodepsbt(psbt)
    assert [item["sequence"] for item in shown["tx"]["vin"]] == [0] * 4
    assert "fee" not in shown
    updated = await rpc.walletprocesspsbt(psbt, False)
    shown = await rpc.decodepsbt(updated["psbt"])
    assert shown["fee"] == Decimal("0.001")
    derived = [item.get("bip32_derivs") or item["taproot_bip32_derivs"] for item in shown["inputs"]]
    assert sorted(paths[0]["path"].split("/")[1] for paths in derived) == ["44h", "49h", "84h", "86h"]
    signed = await rpc.walletprocesspsbt(updated["psbt"], True, "ALL", True, False)
    assert signed["complete"] is False
    final = await rpc.finalizepsbt(signed["psbt"])
    assert final["complete"] is True
    assert (await rpc.testmempoolaccept([final["hex"]]))[0]["allowed"] is True
    at_once = await rpc.walletprocesspsbt(psbt)
    assert at_once["complete"] is True
    assert (await rpc.testmempoolaccept([at_once["hex"]]))[0]["allowed"] is True
    witnesses = [item.get("final_scriptwitness") for item in (await rpc.decodepsbt(at_once["psbt"]))["inputs"]]
    assert sum(witness is not None for witness in witnesses) == 3
    assert await rpc.sendrawtransaction(at_once["hex"])


async def test_a_psbt_that_others_sign_too(rpc: Client) -> None:
    await rpc.createwallet("alice")
    await rpc.createwallet("bob")
    inputs = []
    for name in ("alice", "bob"):
        address = await rpc.call("getnewaddress", path=f"/wallet/{name}")
        await rpc.call("generatetoaddress", 1, address)
    await rpc.generatetoaddress(100, BURN)
    for name in ("alice", "bob"):
        (coin,) = await rpc.call("listunspent", path=f"/wallet/{name}")
        inputs.append({"txid": coin["txid"], "vout": coin["vout"]})
    psbt = await rpc.createpsbt(inputs, {BURN: "99.999"})
    halves = []
    for name in ("alice", "bob"):
        answer = await rpc.call("walletprocesspsbt", psbt, path=f"/wallet/{name}")
        assert answer["complete"] is False
        halves.append(answer["psbt"])
    combined = await rpc.combinepsbt(halves)
    final = await rpc.finalizepsbt(combined)
    assert final["complete"] is True
    assert await rpc.sendrawtransaction(final["hex"])


async def test_a_funded_psbt(rpc: Client) -> None:
    created = await rpc.walletcreatefundedpsbt([], [{BURN: "1.5"}], 0, {"fee_rate": 10})
    assert created["fee"] > 0
    processed = await rpc.walletprocesspsbt(created["psbt"])
    assert processed["complete"] is True
    txid = await rpc.sendrawtransaction(processed["hex"])
    entry = await rpc.getmempoolentry(txid)
    assert 10 <= entry["fees"]["base"] * 100_000_000 / entry["vsize"] < Decimal("10.2")
    with pytest.raises(Refused) as caught:
        await rpc.decodepsbt("nonsense")
    assert caught.value.code == -22


# Several wallets.


async def test_wallets_by_name(rpc: Client) -> None:
    assert await rpc.listwallets() == []
    assert await rpc.createwallet("first") == {"name": "first"}
    await rpc.getnewaddress()
    assert await rpc.listwallets() == ["first"]
    await rpc.createwallet("second")
    with pytest.raises(Refused) as caught:
        await rpc.getbalance()
    assert caught.value.code == -19
    assert await rpc.call("getbalance", path="/wallet/second") == 0
    with pytest.raises(Refused) as caught:
        await rpc.call("getbalance", path="/wallet/third")
    assert (caught.value.code, caught.value.message) == (-18, "Requested wallet does not exist or is not loaded")
    with pytest.raises(Refused) as caught:
        await rpc.createwallet("first")
    assert caught.value.code == -36
    await rpc.unloadwallet("second")
    assert await rpc.listwallets() == ["first"]
    assert await rpc.loadwallet("second") == {"name": "second"}
    with pytest.raises(Refused) as caught:
        await rpc.loadwallet("second")
    assert caught.value.code == -35
    assert {wallet["name"] for wallet in (await rpc.listwalletdir())["wallets"]} == {"first", "second"}


async def test_keys_survive_a_restart(tmp_path: Path) -> None:
    async with RegtestServer(tmp_path) as server, Client.of(server) as rpc:
        address = await rpc.getnewaddress()
        await rpc.generatetoaddress(101, address)
    async with RegtestServer(tmp_path) as server, Client.of(server) as rpc:
        assert await rpc.getbalance() == 50
        assert await rpc.getnewaddress() != address
        assert (await rpc.getaddressinfo(address))["ismine"] is True
        assert await rpc.sendtoaddress(BURN, 49)
