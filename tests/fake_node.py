"""A `NodeService` in memory, to test the API and `channelctl`: its money moves, its errors are the real ones."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import cached_property
from typing import Any, Literal, TypeVar

from msgspec import structs

from channeld.node.interface import (
    BalanceView,
    ChannelView,
    ClosedChannelView,
    CoinView,
    DecodedInvoice,
    ForwardView,
    HtlcView,
    InvoiceView,
    NodeError,
    NodeEvent,
    NodeInfo,
    OutputView,
    PaymentView,
    PeerView,
    PolicyView,
    RescanView,
    TransactionView,
)
from channeld.node.payment_views import PaymentOrder
from tests.fake_graph import FakeGraph
from tests.fake_invoices import decode_bolt11, make_bolt11
from tests.fake_payments import FakePayments

T = TypeVar("T")

NODE_ID = bytes.fromhex("02" + "11" * 32)
FUNDING_FEE_SAT = 154
RESERVE_SAT = 1_000


class FakeNode(FakePayments):
    """See the module. `calls` counts the verbs; the public attributes may be set to stage a situation."""

    def __init__(self, *, funds_sat: int = 1_000_000) -> None:
        self.coins_: list[CoinView] = []
        self.transactions_: list[TransactionView] = []
        self.peers: dict[bytes, PeerView] = {}
        self.channels: dict[bytes, ChannelView] = {}
        self.invoices: dict[bytes, InvoiceView] = {}
        self.preimages: dict[bytes, bytes] = {}
        self.payments: dict[bytes, PaymentView] = {}
        self.probes: dict[bytes, PaymentView] = {}
        self.orders: list[PaymentOrder] = []
        self.changed = asyncio.Event()
        self.calls: dict[str, int] = {}
        self.stopped = asyncio.Event()
        self.pay_gate = asyncio.Event()
        """Payments are decided while this is set."""
        self.pay_gate.set()
        self.paying = asyncio.Event()
        """Set when a payment has begun."""
        self.followed = 0
        """How often somebody began to follow the events."""
        self.listening = asyncio.Event()
        """Set when somebody does."""
        self.bug: Exception | None = None
        """Raised by `info`."""
        self.synced = True
        self.last_delta_blocks: int | None = None
        """What the last invoice was to leave for its last hop."""
        self.height = 120
        self._history: list[NodeEvent] = []
        self._listeners: set[asyncio.Queue[NodeEvent]] = set()
        self._answers: dict[str, tuple[Any, asyncio.Future[Any]]] = {}
        self._serial = 0
        if funds_sat:
            self.fund(funds_sat)

    # What a test does to it

    def fund(self, amount_sat: int) -> CoinView:
        coin = CoinView(self._id("coin"), 0, amount_sat, "bcrt1qfaucet", 6, False)
        self.coins_.append(coin)
        self.transactions_.insert(0, TransactionView(coin.txid, amount_sat, None, 6, "received", int(time.time())))
        return coin

    def emit(self, kind: str, sentence: str, **data: Any) -> NodeEvent:
        event = NodeEvent(len(self._history) + 1, time.time(), kind, sentence, data)
        self._history.append(event)
        for queue in self._listeners:
            queue.put_nowait(event)
        return event

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def mine(self, blocks: int = 1) -> None:
        """Blocks are found: channels that wait for them go on."""
        self.height += blocks
        for channel in list(self.channels.values()):
            if channel.phase == "awaiting_funding" and blocks >= 3:
                self._set(channel, phase="normal", active=True, scid=self.height << 40 | 1 << 16, status="")
                self.emit("channel.ready", "The channel can be used.", channel_id=channel.channel_id.hex())
            elif channel.phase == "closing":
                self._set(channel, phase="closed", status="")
                self.emit("channel.closed", "The channel is closed.", channel_id=channel.channel_id.hex())
        self.emit("chain.block", f"Block {self.height}.", block_height=self.height)

    def remote_invoice(self, amount_msat: int | None, description: str = "a coffee", **fields: Any) -> str:
        """An invoice of somebody else, which this node can pay."""
        preimage = self._id("remote invoice")
        payment_hash = hashlib.sha256(preimage).digest()
        self.preimages[payment_hash] = preimage
        return make_bolt11(amount_msat, description, payment_hash, **fields)

    def receive(self, payment_hash: bytes, amount_msat: int) -> None:
        """Somebody pays an invoice of ours."""
        invoice = self.invoices[payment_hash]
        now = int(time.time())
        self.invoices[payment_hash] = structs.replace(
            invoice, state="settled", received_msat=amount_msat, settled_seconds=now
        )
        self.emit(
            "invoice.settled",
            "An invoice was paid.",
            payment_hash=payment_hash.hex(),
            amount_msat=amount_msat,
        )

    def accept(self, payment_hash: bytes, amount_msat: int) -> None:
        """Somebody pays a hold invoice of ours."""
        self.invoices[payment_hash] = structs.replace(
            self.invoices[payment_hash],
            state="accepted",
            received_msat=amount_msat,
            deadline_height=self.height + 100,
            custom_records=((65_537, b"hello"),),
        )

    def cut_off(self) -> None:
        """All peers go away."""
        for channel in list(self.channels.values()):
            self._set(channel, connected=False, active=False)

    def come_back(self) -> None:
        """And are there again."""
        for channel in list(self.channels.values()):
            self._set(channel, connected=True, active=channel.phase == "normal")

    async def settled(self) -> None:
        """Waits until no payment is under way."""
        outcomes = self.events()
        while any(payment.state == "in_flight" for payment in self.payments.values()):
            await anext(outcomes)

    # NodeService

    @cached_property
    def graph(self) -> FakeGraph:
        return FakeGraph()

    async def info(self) -> NodeInfo:
        self._called("info")
        if self.bug is not None:
            raise self.bug
        active = sum(channel.active for channel in self.channels.values())
        pending = sum(channel.phase == "awaiting_funding" for channel in self.channels.values())
        return NodeInfo(
            node_id=NODE_ID,
            alias="fake",
            color="#336699",
            version="0.1.0",
            network="regtest",
            block_height=self.height,
            block_hash=bytes(range(32)),
            synced_to_chain=self.synced,
            chain_status="following bitcoind" if self.synced else "layer 1 is away since 12:00:00 (connection refused)",
            listen=("127.0.0.1:9735",),
            num_peers=len(self.peers),
            num_active_channels=active,
            num_pending_channels=pending,
            num_inactive_channels=0,
            features=("static_remotekey", "anchors"),
            uptime_seconds=3_725,
        )

    async def stop(self) -> None:
        self._called("stop")
        self.stopped.set()

    async def events(self, since_sequence: int | None = None) -> AsyncIterator[NodeEvent]:
        queue: asyncio.Queue[NodeEvent] = asyncio.Queue()
        for event in self._history if since_sequence is not None else ():
            if event.sequence > (since_sequence or 0):
                queue.put_nowait(event)
        self._listeners.add(queue)
        self.followed += 1
        self.listening.set()
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def connect_peer(self, node_id: bytes, host: str, port: int, timeout_seconds: float = 10) -> PeerView:
        self._called("connect_peer")
        if host == "192.0.2.1":
            raise NodeError("unavailable", f"Nobody answers at {host}:{port}; is the node running there?")
        peer = PeerView(node_id, f"{host}:{port}", True, False, ("anchors",), 0, 0.0123, "")
        self.peers[node_id] = peer
        self.emit("peer.connected", f"Connected to {node_id.hex()}.", node_id=node_id.hex())
        return peer

    async def disconnect_peer(self, node_id: bytes, force: bool = False) -> None:
        self._called("disconnect_peer")
        if node_id not in self.peers:
            raise NodeError("not_found", f"There is no connection to {node_id.hex()}.")
        if not force and any(channel.peer_id == node_id for channel in self.channels.values()):
            raise NodeError(
                "failed_precondition", "There are channels with this peer; use force to disconnect all the same."
            )
        del self.peers[node_id]

    async def list_peers(self) -> list[PeerView]:
        return list(self.peers.values())

    async def new_address(self, kind: Literal["p2tr", "p2wpkh"] = "p2tr") -> str:
        self._called("new_address")
        return f"bcrt1{'p' if kind == 'p2tr' else 'q'}{self._id('address').hex()[:38]}"

    async def balance(self) -> BalanceView:
        return BalanceView(
            confirmed_sat=self._wallet_sat(),
            unconfirmed_sat=0,
            immature_sat=0,
            reserved_sat=0,
            channels_local_msat=sum(channel.local_msat for channel in self.channels.values()),
            channels_remote_msat=sum(channel.remote_msat for channel in self.channels.values()),
            pending_htlcs_msat=0,
            closing_sat=0,
        )

    async def coins(self) -> list[CoinView]:
        return list(self.coins_)

    async def transactions(self) -> list[TransactionView]:
        return list(self.transactions_)

    async def send_coins(
        self, address: str, amount_sat: int | None, feerate_per_kw: int | None, idempotency_key: str = ""
    ) -> TransactionView:
        self._called("send_coins")

        async def send() -> TransactionView:
            if not address.startswith("bcrt1"):
                raise NodeError("invalid_argument", f"{address} is not an address of this network (regtest).")
            fee_sat = (feerate_per_kw or 250) * 561 // 1000
            spent_sat = self._wallet_sat() if amount_sat is None else amount_sat + fee_sat
            return self._spend(spent_sat, fee_sat, f"sent to {address}")

        return await self._once(idempotency_key, ("send", address, amount_sat, feerate_per_kw), send)

    async def rescan(self, from_height: int) -> AsyncIterator[RescanView]:
        self._called("rescan")
        if from_height > self.height:
            raise NodeError("invalid_argument", f"there is no block {from_height} yet: the last is {self.height}")
        for height in (from_height, self.height):
            yield RescanView(height, self.height, 1, 40_000)

    async def bump(self, txid: bytes, feerate_per_kw: int) -> TransactionView:
        self._called("bump")
        for index, view in enumerate(self.transactions_):
            if view.txid == txid:
                if view.confirmations:
                    raise NodeError("failed_precondition", "The transaction is confirmed; there is nothing to bump.")
                fee_sat = feerate_per_kw * 561 // 1000
                self.transactions_[index] = structs.replace(view, txid=self._id("bumped"), fee_sat=fee_sat)
                return self.transactions_[index]
        raise NodeError("not_found", f"The wallet has no transaction {txid[::-1].hex()}.")

    async def open_channel(
        self,
        node_id: bytes,
        amount_sat: int,
        push_msat: int = 0,
        announce: bool = True,
        zero_conf: bool = False,
        feerate_per_kw: int | None = None,
        close_to_address: str = "",
        idempotency_key: str = "",
    ) -> ChannelView:
        self._called("open_channel")

        async def open_() -> ChannelView:
            if node_id not in self.peers:
                raise NodeError("failed_precondition", f"There is no connection to {node_id.hex()}; connect first.")
            if amount_sat < 20_000:
                raise NodeError("invalid_argument", f"A channel needs at least 20,000 sat, not {amount_sat:,}.")
            funding = self._spend(amount_sat + FUNDING_FEE_SAT, FUNDING_FEE_SAT, "funding of a channel")
            channel = ChannelView(
                channel_id=funding.txid,
                peer_id=node_id,
                phase="awaiting_funding",
                active=False,
                connected=True,
                opener="local",
                announced=announce,
                channel_type=("static_remotekey", "anchors_zero_fee_htlc_tx"),
                funding_txid=funding.txid,
                funding_vout=0,
                scid=None,
                alias_scid_local=None,
                alias_scid_remote=None,
                capacity_sat=amount_sat,
                local_msat=amount_sat * 1000 - push_msat,
                remote_msat=push_msat,
                available_to_send_msat=amount_sat * 1000 - push_msat - RESERVE_SAT * 1000,
                available_to_receive_msat=push_msat,
                local_reserve_sat=RESERVE_SAT,
                remote_reserve_sat=RESERVE_SAT,
                feerate_per_kw=feerate_per_kw or 2500,
                commitment_fee_sat=2810,
                local_commitment_number=0,
                remote_commitment_number=0,
                htlcs=(),
                closing_txid=None,
                status="waiting for 3 more confirmations of the funding transaction",
            )
            self.channels[channel.channel_id] = channel
            return channel

        arguments = ("open", node_id, amount_sat, push_msat, announce, zero_conf, feerate_per_kw, close_to_address)
        return await self._once(idempotency_key, arguments, open_)

    async def list_channels(self, include_closed: bool = False) -> list[ChannelView]:
        return [channel for channel in self.channels.values() if include_closed or channel.phase != "closed"]

    async def get_channel(self, channel_id: bytes) -> ChannelView:
        channel = self.channels.get(channel_id)
        if channel is None:
            raise NodeError("not_found", f"There is no channel {channel_id.hex()}.")
        return channel

    async def closed_channel(self, channel_id: bytes) -> ClosedChannelView:
        channel = await self.get_channel(channel_id)
        if channel.closing_txid is None:
            raise NodeError("failed_precondition", "The channel's funding output is not spent.")
        ours = OutputView(
            kind="to_local",
            owner="local",
            amount_sat=channel.local_msat // 1000,
            status="waiting",
            status_text="free in 143 blocks",
            txid=channel.closing_txid,
            vout=1,
            taken_by="",
            spending_txid=None,
            spent_height=None,
            fee_sat=None,
            free_height=self.height + 143,
            deadline_height=None,
            htlc=None,
        )
        htlc = structs.replace(
            ours,
            kind="htlc",
            owner="remote",
            amount_sat=7,
            status="theirs",
            status_text="the peer took it",
            vout=2,
            taken_by="remote",
            spending_txid=bytes(range(32)),
            spent_height=self.height,
            free_height=None,
            htlc=HtlcView(3, False, 7_500, b"\x09" * 32, 500),
        )
        return ClosedChannelView(
            channel=channel,
            kind="local",
            closing_txid=channel.closing_txid,
            height=self.height,
            commitment_number=12,
            commitment_fee_sat=2_810,
            irrevocable_height=self.height + 99,
            over=False,
            outputs=(ours, htlc),
        )

    async def close_channel(
        self,
        channel_id: bytes,
        force: bool = False,
        address: str = "",
        feerate_per_kw: int | None = None,
        idempotency_key: str = "",
        even_if_outdated: bool = False,
    ) -> ChannelView:
        self._called("close_channel")

        async def close() -> ChannelView:
            channel = await self.get_channel(channel_id)
            if channel.phase == "closed":
                raise NodeError("failed_precondition", "The channel is closed already.")
            if not channel.connected and not force:
                raise NodeError("unavailable", "The peer is away; wait for it, or close with force.")
            return self._set(
                channel, phase="closing", active=False, closing_txid=self._id("closing"), status="waiting for 1 block"
            )

        return await self._once(idempotency_key, ("close", channel_id, force, address, feerate_per_kw), close)

    async def set_policy(
        self,
        channel_id: bytes | None,
        fee_base_msat: int | None = None,
        fee_proportional_millionths: int | None = None,
        cltv_expiry_delta: int | None = None,
        htlc_minimum_msat: int | None = None,
        htlc_maximum_msat: int | None = None,
    ) -> list[PolicyView]:
        channels = await self.list_channels() if channel_id is None else [await self.get_channel(channel_id)]
        return [
            PolicyView(
                channel.channel_id,
                1000 if fee_base_msat is None else fee_base_msat,
                fee_proportional_millionths or 0,
                cltv_expiry_delta or 34,
                htlc_minimum_msat or 1,
                htlc_maximum_msat or channel.capacity_sat * 1000,
            )
            for channel in channels
        ]

    async def list_forwards(self, limit: int = 100, offset: int = 0) -> list[ForwardView]:
        channel_id = b"\x11" * 32
        forward = ForwardView(
            channel_id, channel_id, b"\x22" * 32, 101_500, 100_000, 1_500, 1_700_000_000.0, 1_700_000_000.25
        )
        return [forward][offset : offset + limit]

    async def create_invoice(
        self,
        amount_msat: int | None,
        description: str,
        expiry_seconds: int = 3600,
        description_hash: bytes | None = None,
        payment_preimage: bytes | None = None,
        min_final_cltv_expiry_delta: int | None = None,
        idempotency_key: str = "",
        hold: bool = False,
        payment_hash: bytes | None = None,
    ) -> InvoiceView:
        self._called("create_invoice")
        self.last_delta_blocks = min_final_cltv_expiry_delta

        async def create() -> InvoiceView:
            preimage = payment_preimage or (self._id("invoice") if payment_hash is None else None)
            new_hash = payment_hash or hashlib.sha256(preimage or b"").digest()
            if new_hash in self.invoices:
                raise NodeError("already_exists", "There is an invoice with this preimage.")
            now = int(time.time())
            text = make_bolt11(
                amount_msat,
                description,
                new_hash,
                payee=NODE_ID,
                expiry_seconds=expiry_seconds,
                created_seconds=now,
            )
            invoice = InvoiceView(
                new_hash,
                text,
                "open",
                amount_msat,
                0,
                description,
                now,
                expiry_seconds,
                None,
                preimage,
                is_hold=hold or payment_hash is not None,
            )
            self.invoices[new_hash] = invoice
            return invoice

        return await self._once(idempotency_key, ("invoice", amount_msat, description, expiry_seconds), create)

    async def list_invoices(self, limit: int = 100, offset: int = 0) -> list[InvoiceView]:
        return list(reversed(self.invoices.values()))[offset : offset + limit]

    async def get_invoice(self, payment_hash: bytes) -> InvoiceView:
        invoice = self.invoices.get(payment_hash)
        if invoice is None:
            raise NodeError("not_found", f"There is no invoice {payment_hash.hex()}.")
        return invoice

    async def cancel_invoice(self, payment_hash: bytes) -> InvoiceView:
        invoice = await self.get_invoice(payment_hash)
        if invoice.state == "settled":
            raise NodeError("failed_precondition", "The invoice is paid; it cannot be canceled.")
        self.invoices[payment_hash] = structs.replace(invoice, state="canceled")
        return self.invoices[payment_hash]

    async def settle_invoice(self, payment_hash: bytes, payment_preimage: bytes | None = None) -> InvoiceView:
        self._called("settle_invoice")
        invoice = await self.get_invoice(payment_hash)
        preimage = payment_preimage or invoice.payment_preimage
        if preimage is None or hashlib.sha256(preimage).digest() != payment_hash:
            raise NodeError("invalid_argument", "This is not the preimage of the invoice.")
        if invoice.state != "accepted":
            raise NodeError("failed_precondition", "The invoice is not paid yet.")
        self.invoices[payment_hash] = structs.replace(
            invoice,
            state="settled",
            payment_preimage=preimage,
            settled_seconds=int(time.time()),
            deadline_height=None,
        )
        return self.invoices[payment_hash]

    async def decode(self, text: str) -> DecodedInvoice:
        return decode_bolt11(text)

    # Inside

    def _called(self, verb: str) -> None:
        self.calls[verb] = self.calls.get(verb, 0) + 1

    def _id(self, what: str) -> bytes:
        self._serial += 1
        return hashlib.sha256(f"{what} {self._serial}".encode()).digest()

    def _wallet_sat(self) -> int:
        return sum(coin.amount_sat for coin in self.coins_)

    def _set(self, channel: ChannelView, **changes: Any) -> ChannelView:
        changed = structs.replace(self.channels[channel.channel_id], **changes)
        self.channels[channel.channel_id] = changed
        return changed

    def _spend(self, amount_sat: int, fee_sat: int, label: str) -> TransactionView:
        have_sat = self._wallet_sat()
        if amount_sat > have_sat:
            raise NodeError(
                "resource_exhausted", f"The wallet has {have_sat:,} sat, and this needs {amount_sat:,} with the fee."
            )
        txid = self._id("transaction")
        self.coins_ = (
            [CoinView(txid, 1, have_sat - amount_sat, "bcrt1qchange", 0, False)] if have_sat > amount_sat else []
        )
        view = TransactionView(txid, -amount_sat, fee_sat, 0, label, int(time.time()))
        self.transactions_.insert(0, view)
        return view

    async def _once(self, key: str, arguments: Any, verb: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await asyncio.shield(self._begin(key, arguments, verb))
