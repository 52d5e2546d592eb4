"""What people get wrong, through `channelctl` and the API of a real daemon: a sentence, a status, and nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from channeld.bolt.invoice import Invoice, encode_invoice
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2, peers_pb2, wallet_pb2
from tests.bad_input_support import CAPACITY_SAT, SUCCEEDED, Net, ctl, ctl_fails, net_in, peer_address, refused
from wallet.bitcoin.address import MAINNET, REGTEST
from wallet.bitcoin.secp import pubkey_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

USAGE, NOT_ENOUGH, AWAY, ALREADY, NOT_NOW, KEY_REUSED = 2, 4, 5, 6, 7, 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Net]:
    async with net_in(tmp_path_factory.mktemp("lab")) as made:
        yield made


def stranger_invoice() -> tuple[Invoice, bytes]:
    """A good invoice of a node that nobody knows, and what signs it."""
    secret = os.urandom(32)
    invoice = Invoice(
        network=REGTEST,
        payment_hash=os.urandom(32),
        payment_secret=os.urandom(32),
        payee=pubkey_of(secret),
        timestamp=int(time.time()),
        amount_msat=5_000_000,
        description="goods",
    )
    return invoice, secret


async def pay_fails(net: Net, bolt11: str, code: str, status: int, words: str, amount_msat: int | None = None) -> None:
    """By gRPC and by `channelctl`, and no payment is on record."""
    payments = net.alice.client.payments
    before = await payments.List(payments_pb2.ListPaymentsRequest())
    await refused(net.alice.pay(bolt11, amount_msat=amount_msat), code, words)
    amount = ["--amount", f"{amount_msat}msat"] if amount_msat else []
    await ctl_fails(net.alice, status, words, "pay", "--yes", *amount, bolt11)
    assert await payments.List(payments_pb2.ListPaymentsRequest()) == before


# --- invoices -----------------------------------------------------------------------------------------------------


async def test_a_wrong_invoice(net: Net) -> None:
    async with net.nothing_lost():
        good = (await net.bob.invoice(5_000_000)).bolt11
        wrong = good[:-1] + ("q" if good[-1] != "q" else "p")
        await pay_fails(net, wrong, "INVALID_ARGUMENT", USAGE, "checksum is wrong")
        for text, words in (
            ("nonsense", "not a Lightning invoice"),
            (good[:60] + good[60:].upper(), "not mixed"),
            (good[:-40], "checksum is wrong"),
            ("lnbcrt1" + "q" * 8000, "at most"),
            ("", "is missing"),
        ):
            await refused(net.alice.pay(text), "INVALID_ARGUMENT", words)
            await refused(
                net.alice.client.payments.Decode(payments_pb2.DecodeRequest(invoice=text)), "INVALID_ARGUMENT", words
            )
        await ctl_fails(net.alice, USAGE, "checksum is wrong", "decode", wrong)


async def test_an_expired_invoice(net: Net) -> None:
    async with net.nothing_lost():
        invoice, secret = stranger_invoice()
        expired = encode_invoice(replace(invoice, timestamp=int(time.time()) - 3_700, expiry_seconds=3_600), secret)
        await pay_fails(net, expired, "FAILED_PRECONDITION", NOT_NOW, "the invoice has expired")
        shown = await ctl(net.alice, "decode", expired)
        assert shown.status == 0
        assert "(expired)" in shown.stdout


async def test_another_networks_invoice(net: Net) -> None:
    async with net.nothing_lost():
        invoice, secret = stranger_invoice()
        foreign = encode_invoice(replace(invoice, network=MAINNET), secret)
        await pay_fails(
            net, foreign, "INVALID_ARGUMENT", USAGE, "this invoice is for mainnet, this node runs on regtest"
        )


async def test_an_invoice_of_ones_own(net: Net) -> None:
    async with net.nothing_lost():
        own = (await net.alice.invoice(5_000_000)).bolt11
        await pay_fails(net, own, "INVALID_ARGUMENT", USAGE, "this very node")


async def test_a_second_payment_of_a_paid_invoice(net: Net) -> None:
    bolt11 = (await net.bob.invoice(5_000_000)).bolt11
    assert (await net.alice.pay(bolt11)).state == SUCCEEDED
    async with net.nothing_lost():
        await pay_fails(net, bolt11, "ALREADY_EXISTS", ALREADY, "has been paid already")


# --- amounts ------------------------------------------------------------------------------------------------------


async def test_an_amount_of_zero(net: Net) -> None:
    async with net.nothing_lost():
        invoices, wallet = net.alice.client.invoices, net.alice.client.wallet
        zero = invoices_pb2.CreateInvoiceRequest(amount_msat=0)
        await refused(invoices.Create(zero), "INVALID_ARGUMENT", "amount")
        await ctl_fails(net.alice, USAGE, "more than nothing", "invoice", "create", "0")
        open_amount = (await net.bob.invoice(None)).bolt11
        await refused(net.alice.pay(open_amount, amount_msat=0), "INVALID_ARGUMENT", "amount")
        await ctl_fails(net.alice, USAGE, "more than nothing", "pay", "--yes", "--amount", "0", open_amount)
        await ctl_fails(net.alice, USAGE, "leaves the amount open", "pay", "--yes", open_amount)
        await refused(net.alice.pay(open_amount), "INVALID_ARGUMENT", "amount")
        address = await net.bob.new_address()
        nothing = wallet_pb2.SendRequest(address=address, amount_sat=0)
        await refused(wallet.Send(nothing), "INVALID_ARGUMENT", "amount")
        await ctl_fails(net.alice, USAGE, "more than nothing", "wallet", "send", "--yes", address, "0")


async def test_an_amount_beyond_the_balance(net: Net) -> None:
    async with net.nothing_lost():
        too_much = (await net.bob.invoice(CAPACITY_SAT * 900)).bolt11
        await pay_fails(net, too_much, "RESOURCE_EXHAUSTED", NOT_ENOUGH, "missing")
        open_amount = (await net.bob.invoice(None)).bolt11
        await pay_fails(net, open_amount, "RESOURCE_EXHAUSTED", NOT_ENOUGH, "missing", CAPACITY_SAT * 1000)
        address = await net.bob.new_address()
        send = wallet_pb2.SendRequest(address=address, amount_sat=50_000_000)
        await refused(net.alice.client.wallet.Send(send), "RESOURCE_EXHAUSTED", "not enough")
        await ctl_fails(net.alice, NOT_ENOUGH, "not enough", "wallet", "send", "--yes", address, "0.5btc")


# --- channels and peers -------------------------------------------------------------------------------------------


async def test_a_channel_below_dust_or_the_minimum(net: Net) -> None:
    async with net.nothing_lost():
        await refused(net.alice.open_channel(net.bob, 0), "INVALID_ARGUMENT", "more than 0 sat")
        for amount_sat in (300, 19_999):
            await refused(net.alice.open_channel(net.bob, amount_sat), "INVALID_ARGUMENT", "at least 20,000 sat")
        node = net.bob.node_id.hex()
        await ctl_fails(net.alice, USAGE, "at least 20,000 sat", "channel", "open", "--yes", node, "300")
        assert len(await net.alice.channels(include_closed=True)) == 1


async def test_a_channel_above_the_wallet(net: Net) -> None:
    async with net.nothing_lost():
        await refused(net.alice.open_channel(net.bob, 3_000_000), "RESOURCE_EXHAUSTED", "the wallet can fund")
        node = net.bob.node_id.hex()
        await ctl_fails(net.alice, NOT_ENOUGH, "the wallet can fund", "channel", "open", "--yes", node, "0.03btc")
        assert len(await net.alice.channels(include_closed=True)) == 1
        assert (await net.alice.balance()).reserved_sat == 0


async def test_an_unknown_peer(net: Net) -> None:
    async with net.nothing_lost():
        nobody = pubkey_of(os.urandom(32))
        request = channels_pb2.OpenChannelRequest(node_id=nobody, amount_sat=100_000)
        await refused(net.alice.client.channels.Open(request), "FAILED_PRECONDITION", "is not connected")
        await ctl_fails(net.alice, NOT_NOW, "is not connected", "channel", "open", "--yes", nobody.hex(), "100000")
        # Bob's address, but it is not Bob who is asked for: his answer to the handshake is not the right one.
        await ctl_fails(net.alice, AWAY, "no connection to", "peer", "connect", f"{nobody.hex()}@{net.bob.address}")
        await ctl_fails(net.alice, AWAY, "no connection to", "peer", "connect", f"{nobody.hex()}@127.0.0.1:1")
        no_key = peers_pb2.ConnectPeerRequest(node_id=b"\x05" * 33, host="127.0.0.1", port=1)
        await refused(net.alice.client.peers.Connect(no_key), "INVALID_ARGUMENT", "node id")
        invoice, secret = stranger_invoice()
        bolt11 = encode_invoice(invoice, secret)
        payments = net.alice.client.payments
        before = await payments.List(payments_pb2.ListPaymentsRequest())
        await refused(net.alice.pay(bolt11), "FAILED_PRECONDITION", "")
        assert await payments.List(payments_pb2.ListPaymentsRequest()) == before
        assert (await net.alice.info()).num_peers == 1


async def test_a_wrong_address_of_a_connected_peer_does_not_replace_the_good_one(net: Net) -> None:
    async with net.nothing_lost():
        good = await peer_address(net.alice, net.bob.node_id)
        assert good == net.bob.address
        wrong = peers_pb2.ConnectPeerRequest(node_id=net.bob.node_id, host="127.0.0.1", port=1)
        await net.alice.client.peers.Connect(wrong)
        assert await peer_address(net.alice, net.bob.node_id) == good
    await net.alice.restart()  # it calls the address that is stored
    await net.alice.wait_channel(net.channel_id)
    assert await peer_address(net.alice, net.bob.node_id) == good


# --- the same key again -------------------------------------------------------------------------------------------


async def test_the_same_idempotency_key_pays_once_and_gives_the_same_answer(net: Net) -> None:
    key = os.urandom(8).hex()
    bolt11 = (await net.bob.invoice(5_000_000)).bolt11
    before = await net.alice.balance()
    first, *others = await asyncio.gather(*(net.alice.pay(bolt11, idempotency_key=key) for _ in range(3)))
    assert first.state == SUCCEEDED
    assert all(other == first for other in others)
    async with net.nothing_lost():
        after = await net.alice.balance()
        assert before.channels_local_msat - after.channels_local_msat == 5_000_000
        other = (await net.bob.invoice(5_000_000)).bolt11
        await refused(net.alice.pay(other, idempotency_key=key), "ABORTED", "key")
        await ctl_fails(net.alice, KEY_REUSED, "key", "pay", "--yes", "--idempotency-key", key, other)
        assert await net.alice.pay(bolt11, idempotency_key=key) == first
    await net.alice.restart()
    assert await net.alice.pay(bolt11, idempotency_key=key) == first


async def test_the_same_command_with_the_same_idempotency_key_pays_once(net: Net) -> None:
    bolt11 = (await net.bob.invoice(3_000_000)).bolt11
    command = ("pay", "--yes", "--json", "--idempotency-key", os.urandom(8).hex(), bolt11)
    before = await net.alice.balance()
    first = await ctl(net.alice, *command)
    assert first.status == 0, first
    async with net.nothing_lost():
        assert await ctl(net.alice, *command) == first
        after = await net.alice.balance()
        assert before.channels_local_msat - after.channels_local_msat == 3_000_000


async def test_the_same_idempotency_key_sends_coins_once(net: Net) -> None:
    key = os.urandom(8).hex()
    address = await net.bob.new_address()
    command = ("wallet", "send", "--yes", "--json", "--sat-per-vbyte", "2", "--idempotency-key", key, address)
    first = await ctl(net.alice, *command, "10000")
    assert first.status == 0, first
    await net.lab.mine(1)
    async with net.nothing_lost():
        again = await ctl(net.alice, *command, "10000")
        assert again.status == 0, again
        assert json.loads(again.stdout)["transaction"]["txid"] == json.loads(first.stdout)["transaction"]["txid"]
        await ctl_fails(net.alice, KEY_REUSED, "key", *command, "10001")
    assert (await net.bob.balance()).confirmed_sat == 10_000
