"""The API's services over a fake node: what goes in reaches the node, what the node says comes out whole."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from channeld.api import payments as payments_service
from channeld.node.interface import NodeError
from channeld.paths import DataPaths, data_paths
from channeld.v1 import (
    channels_pb2,
    channels_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    invoices_pb2,
    invoices_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
    peers_pb2,
    peers_pb2_grpc,
    wallet_pb2,
    wallet_pb2_grpc,
)
from tests.api_support import bearer, connected, serving
from tests.fake_invoices import PEER_ID, make_bolt11
from tests.fake_node import NODE_ID, FakeNode


class Client:
    """Stubs that show the token."""

    def __init__(self, channel: Any, token: Any) -> None:
        self._token = token
        self.node = node_pb2_grpc.NodeStub(channel)
        self.peers = peers_pb2_grpc.PeersStub(channel)
        self.wallet = wallet_pb2_grpc.WalletStub(channel)
        self.channels = channels_pb2_grpc.ChannelsStub(channel)
        self.invoices = invoices_pb2_grpc.InvoicesStub(channel)
        self.payments: Any = payments_pb2_grpc.PaymentsStub(channel)
        self.events: Any = events_pb2_grpc.EventsStub(channel)

    async def call(self, method: Any, request: Message) -> Any:
        return await method(request, metadata=self._token)

    async def refusal(self, method: Any, request: Message) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.call(method, request)
        return refused.value.code(), str(refused.value.details())

    def stream(self, method: Any, *arguments: Any) -> Any:
        return method(*arguments, metadata=self._token)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def client(node: FakeNode, tmp_path: Path) -> AsyncIterator[Client]:
    paths: DataPaths = data_paths("regtest", tmp_path)
    async with serving(node, paths) as server, connected(server, paths) as channel:
        yield Client(channel, bearer(paths))


@pytest.fixture
async def usable(node: FakeNode) -> bytes:
    """A channel of 100,000 sat that can be used."""
    await node.connect_peer(PEER_ID, "127.0.0.1", 9736)
    channel = await node.open_channel(PEER_ID, 100_000)
    node.mine(3)
    return channel.channel_id


# What the node says comes out whole


async def test_info(client: Client) -> None:
    info = await client.call(client.node.GetInfo, node_pb2.GetInfoRequest())
    assert info.node_id == NODE_ID
    assert info.block_hash == bytes(range(32))
    assert (info.network, info.block_height, info.synced_to_chain) == ("regtest", 120, True)
    assert list(info.features) == ["static_remotekey", "anchors"]
    assert info.uptime_seconds == 3_725


async def test_a_channel_from_open_to_close(client: Client, node: FakeNode) -> None:
    peer = (
        await client.call(client.peers.Connect, peers_pb2.ConnectPeerRequest(node_id=PEER_ID, host="127.0.0.1"))
    ).peer
    assert (peer.node_id, peer.address, peer.connected) == (PEER_ID, "127.0.0.1:9735", True)
    request = channels_pb2.OpenChannelRequest(
        node_id=PEER_ID, amount_sat=100_000, push_msat=7_000, private=True, idempotency_key="k"
    )
    opened = (await client.call(client.channels.Open, request)).channel
    assert opened.phase == "awaiting_funding"
    assert (opened.capacity_sat, opened.local_msat, opened.remote_msat) == (100_000, 99_993_000, 7_000)
    assert opened.opener == channels_pb2.SIDE_LOCAL
    assert not opened.announced
    assert not opened.HasField("short_channel_id")
    assert not opened.HasField("closing_txid")
    node.mine(3)
    get = channels_pb2.GetChannelRequest(channel_id=opened.channel_id)
    usable = (await client.call(client.channels.Get, get)).channel
    assert usable.active
    assert usable.short_channel_id == 123 << 40 | 1 << 16
    close = channels_pb2.CloseChannelRequest(channel_id=opened.channel_id, idempotency_key="c")
    assert (await client.call(client.channels.Close, close)).channel.HasField("closing_txid")
    node.mine(1)
    assert not (await client.call(client.channels.List, channels_pb2.ListChannelsRequest())).channels
    everything = await client.call(client.channels.List, channels_pb2.ListChannelsRequest(include_closed=True))
    assert [channel.phase for channel in everything.channels] == ["closed"]


async def test_the_wallet(client: Client, node: FakeNode) -> None:
    fresh = await client.call(
        client.wallet.NewAddress, wallet_pb2.NewAddressRequest(kind=wallet_pb2.ADDRESS_KIND_P2WPKH)
    )
    assert fresh.address.startswith("bcrt1q")
    default = await client.call(client.wallet.NewAddress, wallet_pb2.NewAddressRequest())
    assert default.address.startswith("bcrt1p")
    (coin,) = (await client.call(client.wallet.ListCoins, wallet_pb2.ListCoinsRequest())).coins
    assert (coin.amount_sat, coin.confirmations, coin.txid) == (1_000_000, 6, node.coins_[0].txid)
    send = wallet_pb2.SendRequest(address="bcrt1qsomebody", amount_sat=1_000, feerate_per_kw=1_000)
    sent = (await client.call(client.wallet.Send, send)).transaction
    assert (sent.amount_sat, sent.fee_sat, sent.confirmations) == (-1_561, 561, 0)
    bump = wallet_pb2.BumpRequest(txid=sent.txid, feerate_per_kw=2_000)
    assert (await client.call(client.wallet.Bump, bump)).transaction.fee_sat == 1_122
    listed = await client.call(client.wallet.ListTransactions, wallet_pb2.ListTransactionsRequest())
    received = listed.transactions[1]
    assert received.amount_sat == 1_000_000
    assert not received.HasField("fee_sat")
    balance = await client.call(client.wallet.GetBalance, wallet_pb2.GetBalanceRequest())
    assert balance.confirmed_sat == 998_439
    everything = (await client.call(client.wallet.Send, wallet_pb2.SendRequest(address="bcrt1qsomebody"))).transaction
    assert everything.amount_sat == -998_439


async def test_a_hold_invoice_is_settled_by_preimage_or_hash(client: Client, node: FakeNode) -> None:
    preimage = b"\x07" * 32
    payment_hash = sha256(preimage).digest()
    request = invoices_pb2.CreateInvoiceRequest(amount_msat=5_000, payment_hash=payment_hash)
    invoice = (await client.call(client.invoices.Create, request)).invoice
    assert invoice.is_hold
    assert invoice.kind == invoices_pb2.INVOICE_KIND_BOLT11
    node.accept(payment_hash, 5_000)
    get = invoices_pb2.GetInvoiceRequest(payment_hash=payment_hash)
    accepted = (await client.call(client.invoices.Get, get)).invoice
    assert accepted.state == invoices_pb2.INVOICE_STATE_ACCEPTED
    assert accepted.deadline_height == node.height + 100
    assert [(record.type, record.value) for record in accepted.custom_records] == [(65_537, b"hello")]
    for wrong in (
        invoices_pb2.SettleInvoiceRequest(),
        invoices_pb2.SettleInvoiceRequest(payment_preimage=preimage, payment_hash=payment_hash),
        invoices_pb2.SettleInvoiceRequest(payment_preimage=b"short"),
    ):
        assert (await client.refusal(client.invoices.Settle, wrong))[0] is grpc.StatusCode.INVALID_ARGUMENT
    settle = invoices_pb2.SettleInvoiceRequest(payment_preimage=preimage)
    settled = (await client.call(client.invoices.Settle, settle)).invoice
    assert (settled.state, settled.payment_preimage) == (invoices_pb2.INVOICE_STATE_SETTLED, preimage)


async def test_an_invoice_keeps_its_preimage_until_it_is_paid(client: Client, node: FakeNode) -> None:
    request = invoices_pb2.CreateInvoiceRequest(amount_msat=5_000, description="tea", expiry_seconds=60)
    invoice = (await client.call(client.invoices.Create, request)).invoice
    assert invoice.state == invoices_pb2.INVOICE_STATE_OPEN
    assert not invoice.HasField("payment_preimage")
    assert not invoice.HasField("settled_seconds")
    node.receive(invoice.payment_hash, 5_000)
    get = invoices_pb2.GetInvoiceRequest(payment_hash=invoice.payment_hash)
    paid = (await client.call(client.invoices.Get, get)).invoice
    assert paid.state == invoices_pb2.INVOICE_STATE_SETTLED
    assert (paid.received_msat, len(paid.payment_preimage)) == (5_000, 32)
    any_amount = (await client.call(client.invoices.Create, invoices_pb2.CreateInvoiceRequest(description="x"))).invoice
    assert not any_amount.HasField("amount_msat")
    cancel = invoices_pb2.CancelInvoiceRequest(payment_hash=any_amount.payment_hash)
    canceled = (await client.call(client.invoices.Cancel, cancel)).invoice
    assert canceled.state == invoices_pb2.INVOICE_STATE_CANCELED
    listed = (await client.call(client.invoices.List, invoices_pb2.ListInvoicesRequest(limit=1))).invoices
    assert [each.payment_hash for each in listed] == [any_amount.payment_hash]


async def test_decode_knows_the_scheme_and_every_field(client: Client, node: FakeNode) -> None:
    text = node.remote_invoice(21_000, "a book")
    variants = (
        *(
            text,
            f"lightning:{text}",
            f"lightning://{text}",
            f" LIGHTNING:{text.upper()} \n",
            f"{text[:60]}\n  {text[60:]}",
        ),
        *(f"bitcoin:bcrt1qx?amount=0.1&lightning={text}", f"BITCOIN:BCRT1QX?LIGHTNING={text.upper()}&AMOUNT=0.1"),
    )
    for variant in variants:
        decoded = await client.call(client.payments.Decode, payments_pb2.DecodeRequest(invoice=variant))
        assert (decoded.amount_msat, decoded.description, decoded.payee) == (21_000, "a book", PEER_ID)
    (hop,) = decoded.route_hints[0].hops
    assert hop.short_channel_id == 103 << 40 | 1 << 16
    assert (hop.fee_base_msat, hop.fee_proportional_millionths, hop.cltv_expiry_delta_blocks) == (1000, 100, 80)
    assert not decoded.HasField("description_hash")


async def test_a_payment(client: Client, node: FakeNode, usable: bytes) -> None:
    text = node.remote_invoice(21_000)
    paid = (await client.call(client.payments.Pay, payments_pb2.PayRequest(bolt11=text))).payment
    assert paid.state == payments_pb2.PAYMENT_STATE_SUCCEEDED
    assert paid.payment_preimage == node.preimages[paid.payment_hash]
    assert paid.HasField("ended_seconds")
    get = payments_pb2.GetPaymentRequest(payment_hash=paid.payment_hash)
    assert (await client.call(client.payments.Get, get)).payment == paid
    assert (await client.call(client.payments.List, payments_pb2.ListPaymentsRequest())).payments == [paid]
    again = await client.refusal(client.payments.Pay, payments_pb2.PayRequest(bolt11=text))
    assert again == (grpc.StatusCode.ALREADY_EXISTS, "This invoice is paid already; nothing was sent again.")


async def test_a_payment_that_fails_is_an_answer(client: Client, usable: bytes) -> None:
    request = payments_pb2.PayRequest(bolt11=make_bolt11(1_000, "x", b"\x07" * 32))
    failed = (await client.call(client.payments.Pay, request)).payment
    assert failed.state == payments_pb2.PAYMENT_STATE_FAILED
    assert failed.failure == "The payee does not know this payment hash."
    assert not failed.HasField("payment_preimage")


async def test_a_payment_goes_on_when_the_time_is_over(client: Client, node: FakeNode, usable: bytes) -> None:
    node.pay_gate.clear()
    request = payments_pb2.PayRequest(bolt11=node.remote_invoice(1_000), timeout_seconds=0.01)
    answer = (await client.call(client.payments.Pay, request)).payment
    assert answer.state == payments_pb2.PAYMENT_STATE_IN_FLIGHT
    outcomes = node.events()
    following = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    node.pay_gate.set()
    assert (await following).kind == "payment.succeeded"


# The same key moves money once


async def test_the_same_idempotency_key_moves_money_once(client: Client, node: FakeNode, usable: bytes) -> None:
    send = wallet_pb2.SendRequest(address="bcrt1qsomebody", amount_sat=1_000, idempotency_key="once")
    first = await client.call(client.wallet.Send, send)
    assert await client.call(client.wallet.Send, send) == first
    assert node.calls["send_coins"] == 2
    assert len(node.transactions_) == 3  # received, the channel's funding, sent
    pay = payments_pb2.PayRequest(bolt11=node.remote_invoice(1_000), idempotency_key="paid once")
    answers = await asyncio.gather(*(client.call(client.payments.Pay, pay) for _ in range(3)))
    assert answers[0] == answers[1] == answers[2]
    assert node.channels[usable].local_msat == 99_999_000
    send.amount_sat = 2_000
    code, sentence = await client.refusal(client.wallet.Send, send)
    assert code == grpc.StatusCode.ABORTED
    assert "was used with other arguments" in sentence


# Wrong requests end before they reach the node

BAD_REQUESTS: list[tuple[str, str, Message, str]] = [
    ("peers", "Connect", peers_pb2.ConnectPeerRequest(host="h"), "A node id is 33 bytes"),
    ("peers", "Connect", peers_pb2.ConnectPeerRequest(node_id=b"\x04" + b"\x01" * 32, host="h"), "begin with 02 or 03"),
    ("peers", "Connect", peers_pb2.ConnectPeerRequest(node_id=PEER_ID), "a host name or an address is missing"),
    ("peers", "Connect", peers_pb2.ConnectPeerRequest(node_id=PEER_ID, host="h", port=70_000), "A port is"),
    (
        "peers",
        "Connect",
        peers_pb2.ConnectPeerRequest(node_id=PEER_ID, host="h", timeout_seconds=math.nan),
        "The time to try must be",
    ),
    ("peers", "Disconnect", peers_pb2.DisconnectPeerRequest(node_id=b"x"), "A node id is 33 bytes"),
    ("wallet", "NewAddress", wallet_pb2.NewAddressRequest(kind=9), "no address kind 9"),  # type: ignore[arg-type]
    ("wallet", "Send", wallet_pb2.SendRequest(amount_sat=1), "the address is missing"),
    ("wallet", "Send", wallet_pb2.SendRequest(address="a", amount_sat=0), "must be more than 0 sat"),
    ("wallet", "Send", wallet_pb2.SendRequest(address="a", amount_sat=2**63), "more than there can ever be"),
    ("wallet", "Send", wallet_pb2.SendRequest(address="a", feerate_per_kw=0), "The feerate must be more than 0"),
    ("wallet", "Send", wallet_pb2.SendRequest(address="a", idempotency_key="k" * 201), "at most 200 characters"),
    ("wallet", "Bump", wallet_pb2.BumpRequest(txid=b"short", feerate_per_kw=1), "A transaction id has 32 bytes"),
    ("wallet", "Bump", wallet_pb2.BumpRequest(txid=bytes(32)), "The feerate must be more than 0"),
    ("channels", "Open", channels_pb2.OpenChannelRequest(node_id=PEER_ID), "amount must be more than 0 sat"),
    (
        "channels",
        "Open",
        channels_pb2.OpenChannelRequest(node_id=PEER_ID, amount_sat=50_000, push_msat=50_000_001),
        "cannot be pushed: the whole channel has 50,000 sat",
    ),
    ("channels", "Get", channels_pb2.GetChannelRequest(), "A channel id has 32 bytes"),
    (
        "channels",
        "Close",
        channels_pb2.CloseChannelRequest(channel_id=bytes(32), force=True, address="bcrt1q"),
        "takes no address",
    ),
    ("invoices", "Create", invoices_pb2.CreateInvoiceRequest(amount_msat=0), "must be more than 0 msat"),
    ("invoices", "Create", invoices_pb2.CreateInvoiceRequest(expiry_seconds=0), "must be payable for 1 to"),
    ("invoices", "Create", invoices_pb2.CreateInvoiceRequest(payment_preimage=b"x"), "A payment preimage has 32"),
    ("invoices", "Create", invoices_pb2.CreateInvoiceRequest(description_hash=b""), "A description hash has 32"),
    ("invoices", "List", invoices_pb2.ListInvoicesRequest(limit=0), "from 1 to 10000; it is 0"),
    ("invoices", "Get", invoices_pb2.GetInvoiceRequest(payment_hash=b"x"), "A payment hash has 32 bytes"),
    ("payments", "Decode", payments_pb2.DecodeRequest(invoice="lightning:"), "The invoice is missing"),
    ("payments", "Decode", payments_pb2.DecodeRequest(invoice="bitcoin:bcrt1qx?amount=1"), "`wallet send` pays it"),
    ("payments", "Decode", payments_pb2.DecodeRequest(invoice="nonsense"), "the checksum is wrong"),
    ("payments", "Pay", payments_pb2.PayRequest(bolt11="x", amount_msat=0), "must be more than 0 msat"),
    ("payments", "Pay", payments_pb2.PayRequest(bolt11="x", timeout_seconds=-1), "The time to wait must be"),
    ("payments", "List", payments_pb2.ListPaymentsRequest(limit=10_001), "from 1 to 10000"),
]


@pytest.mark.parametrize(("service", "method", "request_", "sentence"), BAD_REQUESTS)
async def test_a_wrong_request_gets_a_sentence(
    client: Client, service: str, method: str, request_: Message, sentence: str
) -> None:
    code, details = await client.refusal(getattr(getattr(client, service), method), request_)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in details


async def test_what_the_node_refuses_keeps_its_status(client: Client, node: FakeNode, usable: bytes) -> None:
    unknown = bytes.fromhex("02" + "33" * 32)
    expired = node.remote_invoice(1_000, created_seconds=1)
    cases: list[tuple[Any, Message, grpc.StatusCode]] = [
        (
            client.peers.Connect,
            peers_pb2.ConnectPeerRequest(node_id=unknown, host="192.0.2.1"),
            grpc.StatusCode.UNAVAILABLE,
        ),
        (client.peers.Disconnect, peers_pb2.DisconnectPeerRequest(node_id=unknown), grpc.StatusCode.NOT_FOUND),
        (
            client.peers.Disconnect,
            peers_pb2.DisconnectPeerRequest(node_id=PEER_ID),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            client.channels.Open,
            channels_pb2.OpenChannelRequest(node_id=unknown, amount_sat=50_000),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            client.channels.Open,
            channels_pb2.OpenChannelRequest(node_id=PEER_ID, amount_sat=5_000_000),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
        (client.channels.Get, channels_pb2.GetChannelRequest(channel_id=bytes(32)), grpc.StatusCode.NOT_FOUND),
        (client.invoices.Get, invoices_pb2.GetInvoiceRequest(payment_hash=bytes(32)), grpc.StatusCode.NOT_FOUND),
        (client.payments.Get, payments_pb2.GetPaymentRequest(payment_hash=bytes(32)), grpc.StatusCode.NOT_FOUND),
        (client.payments.Pay, payments_pb2.PayRequest(bolt11=expired), grpc.StatusCode.FAILED_PRECONDITION),
    ]
    for method, request, expected in cases:
        code, sentence = await client.refusal(method, request)
        assert code == expected
        assert sentence.endswith((".", "?"))


# Streams


async def test_many_payments_over_one_stream(client: Client, node: FakeNode, usable: bytes) -> None:
    texts = {number: node.remote_invoice(1_000) for number in range(20)}
    texts[99] = make_bolt11(1_000, "unknown hash", b"\x01" * 32)
    texts[100] = "nonsense"
    stream = client.stream(client.payments.PayStream)

    async def ask() -> None:
        for number, text in texts.items():
            await stream.write(
                payments_pb2.PayStreamRequest(request_id=number, pay=payments_pb2.PayRequest(bolt11=text))
            )
        await stream.done_writing()

    asking = asyncio.ensure_future(ask())
    answers = {answer.request_id: answer async for answer in stream}
    await asking
    assert set(answers) == set(texts)
    for number in range(20):
        assert answers[number].payment.state == payments_pb2.PAYMENT_STATE_SUCCEEDED
    assert answers[99].payment.state == payments_pb2.PAYMENT_STATE_FAILED
    assert answers[100].WhichOneof("outcome") == "error"
    assert answers[100].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "checksum" in answers[100].error.sentence
    assert node.channels[usable].local_msat == 100_000_000 - 20 * 1_000


async def test_a_stream_answers_while_it_is_asked(client: Client, node: FakeNode, usable: bytes) -> None:
    stream = client.stream(client.payments.PayStream)
    for number in range(3):
        pay = payments_pb2.PayRequest(bolt11=node.remote_invoice(1_000))
        await stream.write(payments_pb2.PayStreamRequest(request_id=number, pay=pay))
        assert (await stream.read()).request_id == number
    await stream.done_writing()
    assert await stream.read() == grpc.aio.EOF  # type: ignore[attr-defined]


async def test_a_stream_of_nothing_ends(client: Client) -> None:
    stream = client.stream(client.payments.PayStream)
    await stream.done_writing()
    assert await stream.read() == grpc.aio.EOF  # type: ignore[attr-defined]


async def test_a_stream_reads_no_further_than_its_room(
    client: Client, node: FakeNode, usable: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payments_service, "MAX_STREAMED_UNANSWERED", 2)
    most = under_way = 0

    async def pay(*arguments: Any) -> Any:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        for _ in range(20):
            await asyncio.sleep(0)
        under_way -= 1
        raise NodeError("not_found", "No way to the payee.")

    monkeypatch.setattr(node, "send", pay)
    stream = client.stream(client.payments.PayStream)
    for number in range(10):
        await stream.write(payments_pb2.PayStreamRequest(request_id=number, pay=payments_pb2.PayRequest(bolt11="x")))
    await stream.done_writing()
    answers = [answer.error.sentence async for answer in stream]
    assert answers == ["No way to the payee."] * 10
    assert most <= 2


async def test_payments_of_a_stream_go_on_when_the_client_goes_away(
    client: Client, node: FakeNode, usable: bytes
) -> None:
    node.pay_gate.clear()
    stream = client.stream(client.payments.PayStream)
    pay = payments_pb2.PayRequest(bolt11=node.remote_invoice(1_000))
    await stream.write(payments_pb2.PayStreamRequest(request_id=1, pay=pay))
    await node.paying.wait()
    stream.cancel()
    outcomes = node.events()
    following = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    node.pay_gate.set()
    assert (await following).kind == "payment.succeeded"


async def test_events_from_now_on_of_some_kinds(client: Client, node: FakeNode) -> None:
    node.emit("payment.succeeded", "Before.")
    request = events_pb2.SubscribeRequest(kinds=["payment", "chain.block"])
    stream = client.stream(client.events.Subscribe, request)
    await stream.initial_metadata()
    node.emit("payments.other", "A kind that only begins the same.")
    node.emit("chain.lost", "Not asked for.")
    node.emit("payment.succeeded", "Paid.", amount_msat=2**60 + 1)
    node.emit("chain.block", "A block.")
    first, second = await stream.read(), await stream.read()
    assert (first.sequence, first.kind, first.sentence) == (4, "payment.succeeded", "Paid.")
    assert json.loads(first.data_json) == {"amount_msat": 2**60 + 1}
    assert second.kind == "chain.block"
    stream.cancel()


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        (["payment.paid"], "'payment.paid', but payment.failed, payment.succeeded."),
        (
            ["chain", "pay"],
            "'pay', but backup, chain, channel, forward, graph, invoice, monitor, node, onchain, payment,",
        ),
        ([""], "'', but backup, chain, channel,"),
    ],
)
async def test_events_of_kinds_that_do_not_exist(client: Client, kinds: list[str], sentence: str) -> None:
    stream = client.stream(client.events.Subscribe, events_pb2.SubscribeRequest(kinds=kinds))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"There are no events of the kind {sentence}" in str(caught.value.details())


async def test_events_since(client: Client, node: FakeNode) -> None:
    for number in range(1, 4):
        node.emit("chain.block", f"Block {number}.")
    stream = client.stream(client.events.Subscribe, events_pb2.SubscribeRequest(since_sequence=1))
    assert [(await stream.read()).sequence for _ in range(2)] == [2, 3]
    node.emit("chain.block", "Block 4.")
    assert (await stream.read()).sequence == 4
    stream.cancel()


async def test_a_follower_that_goes_away_is_forgotten(client: Client, node: FakeNode) -> None:
    stream = client.stream(client.events.Subscribe, events_pb2.SubscribeRequest())
    await stream.initial_metadata()
    assert node.listeners == 1
    stream.cancel()
    async with asyncio.timeout(60):
        while node.listeners:
            await client.call(client.node.GetInfo, node_pb2.GetInfoRequest())
