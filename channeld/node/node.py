"""The node as the API sees it: every verb of `NodeService`, handed to the part that does it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Literal

from channeld.bolt.features import describe
from channeld.channel.state import AwaitingFunding, Closing, Funded, Normal, Opening
from channeld.node import views
from channeld.node.decoding import decoded_invoice
from channeld.node.features import LOCAL_FEATURES
from channeld.node.graph import GraphVerbs
from channeld.node.interface import (
    BalanceView,
    ChannelView,
    ClosedChannelView,
    CoinView,
    DecodedInvoice,
    ForwardView,
    InvoiceView,
    NodeError,
    NodeEvent,
    NodeInfo,
    PaymentView,
    PeerView,
    PolicyView,
    RescanView,
    TransactionView,
)
from channeld.node.invoices import InvoiceRequest
from channeld.node.monitor_views import closed_channel_view
from channeld.node.payment_views import AttemptView, InvoiceOrder, PaymentLimits, PaymentOrder, PaymentUpdate
from channeld.node.policies import StoredPolicy
from channeld.node.runtime import Runtime
from wallet.version import VERSION


class Node:
    """`NodeService` over a running node."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @property
    def graph(self) -> GraphVerbs:
        """The public network, ways through it, and what payments have taught."""
        return self.runtime.graph

    # --- the node

    async def info(self) -> NodeInfo:
        """The node at a glance."""
        runtime = self.runtime
        drivers = list(runtime.channels.all())
        active = sum(views.is_usable(driver.state) and driver.failure is None for driver in drivers)
        pending = sum(isinstance(driver.state, Opening | AwaitingFunding) for driver in drivers)
        tip = runtime.wallet.tip
        return NodeInfo(
            node_id=runtime.identity.node_id,
            alias=runtime.settings.alias,
            color=runtime.settings.color,
            version=VERSION,
            network=runtime.keys.network.name,
            block_height=runtime.wallet.height,
            block_hash=tip.hash if tip else bytes(32),
            synced_to_chain=runtime.chain.synced,
            chain_status=runtime.chain.status,
            listen=tuple(runtime.listening),
            num_peers=runtime.peers.num_connected(),
            num_active_channels=active,
            num_pending_channels=pending,
            num_inactive_channels=len(drivers) - active - pending,
            features=describe(LOCAL_FEATURES),
            uptime_seconds=int(time.time() - runtime.started),
        )

    async def stop(self) -> None:
        """Ask for the end; whoever runs the node waits for `runtime.stopped`."""
        self.runtime.stopped.set()

    def events(self, since_sequence: int | None = None) -> AsyncIterator[NodeEvent]:
        """See EventBus."""
        return self.runtime.bus.stream(since_sequence)

    # --- peers

    async def connect_peer(self, node_id: bytes, host: str, port: int, timeout_seconds: float = 10) -> PeerView:
        """See Peers."""
        return await self.runtime.peers.connect(node_id, host, port, timeout_seconds)

    async def disconnect_peer(self, node_id: bytes, force: bool = False) -> None:
        """See Peers."""
        await self.runtime.peers.disconnect(node_id, force)

    async def list_peers(self) -> list[PeerView]:
        """See Peers."""
        return self.runtime.peers.views()

    # --- the wallet

    async def new_address(self, kind: Literal["p2tr", "p2wpkh"] = "p2tr") -> str:
        """A fresh address."""
        return await self.runtime.coins.new_address(kind)

    async def balance(self) -> BalanceView:
        """Everything that is owned, on chain and in channels."""
        wallet = self.runtime.wallet.balance()
        local = remote = htlcs = closing = 0
        for driver in self.runtime.channels.all():
            state = driver.state
            ours, theirs = views.balances_msat(state)
            if isinstance(state, Closing):
                unclaimed = self.runtime.monitor.unclaimed_sat(driver.channel_key)
                closing += ours // 1000 if unclaimed is None else unclaimed
            elif isinstance(state, Funded):
                local += ours
                remote += theirs
                htlcs += sum(htlc.amount_msat for htlc in views.htlcs(state))
        return BalanceView(
            confirmed_sat=wallet.confirmed_sat,
            unconfirmed_sat=wallet.unconfirmed_sat,
            immature_sat=wallet.immature_sat,
            reserved_sat=wallet.reserved_sat,
            channels_local_msat=local,
            channels_remote_msat=remote,
            pending_htlcs_msat=htlcs,
            closing_sat=closing,
        )

    async def coins(self) -> list[CoinView]:
        """All unspent outputs."""
        return self.runtime.coins.coins()

    async def transactions(self) -> list[TransactionView]:
        """The newest first."""
        return self.runtime.coins.transactions()

    async def send_coins(
        self, address: str, amount_sat: int | None, feerate_per_kw: int | None, idempotency_key: str = ""
    ) -> TransactionView:
        """`amount_sat` None sends everything."""
        runtime = self.runtime
        return await runtime.coins.send(address, amount_sat, feerate_per_kw, runtime.idempotency, idempotency_key)

    async def bump(self, txid: bytes, feerate_per_kw: int) -> TransactionView:
        """Raise a transaction's fee rate."""
        return await self.runtime.coins.bump(txid, feerate_per_kw)

    def rescan(self, from_height: int) -> AsyncIterator[RescanView]:
        """Look for the wallet's money in old blocks."""
        return self.runtime.coins.rescan(from_height)

    # --- channels

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
        """See ChannelVerbs."""
        return await self.runtime.verbs.open(
            node_id, amount_sat, push_msat, announce, zero_conf, feerate_per_kw, close_to_address, idempotency_key
        )

    async def list_channels(self, include_closed: bool = False) -> list[ChannelView]:
        """See ChannelVerbs."""
        return await self.runtime.verbs.list_all(include_closed)

    async def get_channel(self, channel_id: bytes) -> ChannelView:
        """See ChannelVerbs."""
        return await self.runtime.verbs.get(channel_id)

    async def closed_channel(self, channel_id: bytes) -> ClosedChannelView:
        """How a channel ended, or is ending on chain."""
        channel = await self.runtime.verbs.get(channel_id)
        told = await self.runtime.monitor.explain(channel_id)
        if told is None and channel.phase == "closing" and channel.closing_txid is not None:
            raise NodeError(
                "failed_precondition",
                f"the close of channel {channel_id.hex()} was not looked at yet: {channel.status}",
            )
        if told is None:
            raise NodeError(
                "failed_precondition", f"channel {channel_id.hex()} is not closed on chain: {channel.status}"
            )
        return closed_channel_view(channel, told)

    async def close_channel(
        self,
        channel_id: bytes,
        force: bool = False,
        address: str = "",
        feerate_per_kw: int | None = None,
        idempotency_key: str = "",
        even_if_outdated: bool = False,
    ) -> ChannelView:
        """See ChannelVerbs."""
        return await self.runtime.verbs.close(
            channel_id, force, address, feerate_per_kw, idempotency_key, even_if_outdated
        )

    # --- forwarding

    async def set_policy(
        self,
        channel_id: bytes | None,
        fee_base_msat: int | None = None,
        fee_proportional_millionths: int | None = None,
        cltv_expiry_delta: int | None = None,
        htlc_minimum_msat: int | None = None,
        htlc_maximum_msat: int | None = None,
    ) -> list[PolicyView]:
        """What to ask for forwarding over a channel, or (None) over all of them; what is None stays as it is."""
        channels = self.runtime.channels
        if channel_id is None:
            drivers = [driver for driver in channels.all() if isinstance(driver.state, AwaitingFunding | Normal)]
        else:
            found = channels.by_id(channel_id)
            if found is None:
                raise NodeError("not_found", f"there is no channel {channel_id.hex()} that is open")
            drivers = [found]
        wanted = StoredPolicy(
            fee_base_msat, fee_proportional_millionths, cltv_expiry_delta, htlc_minimum_msat, htlc_maximum_msat
        )
        return [
            PolicyView(driver.channel_id, *await self.runtime.policies.change(driver, wanted)) for driver in drivers
        ]

    async def list_forwards(self, limit: int = 100, offset: int = 0) -> list[ForwardView]:
        """What was forwarded, the newest first."""
        return await self.runtime.forwarder.history(limit, offset)

    # --- invoices and payments

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
        """See InvoiceBook."""
        book = self.runtime.invoices
        request = InvoiceRequest(
            amount_msat,
            description,
            expiry_seconds,
            description_hash,
            payment_preimage,
            min_final_cltv_expiry_delta,
            hold,
            payment_hash,
        )
        return await self.runtime.idempotency.once(
            idempotency_key, "create_invoice", request.arguments, lambda mark: book.create(request, mark), book.get
        )

    async def list_invoices(self, limit: int = 100, offset: int = 0) -> list[InvoiceView]:
        """The newest first."""
        return await self.runtime.invoices.views(limit, offset)

    async def get_invoice(self, payment_hash: bytes) -> InvoiceView:
        """See InvoiceBook."""
        return await self.runtime.invoices.get(payment_hash)

    async def cancel_invoice(self, payment_hash: bytes) -> InvoiceView:
        """See Receiver."""
        return await self.runtime.receiver.cancel(payment_hash)

    async def settle_invoice(self, payment_hash: bytes, payment_preimage: bytes | None = None) -> InvoiceView:
        """See Receiver."""
        return await self.runtime.receiver.settle(payment_hash, payment_preimage)

    async def decode(self, text: str) -> DecodedInvoice:
        """What an invoice of any network says."""
        return decoded_invoice(text, time.time())

    async def pay(
        self,
        bolt11: str,
        amount_msat: int | None = None,
        max_fee_msat: int | None = None,
        timeout_seconds: float = 60,
        idempotency_key: str = "",
    ) -> PaymentView:
        """See PaymentVerbs."""
        limits = PaymentLimits(max_fee_msat, timeout_seconds)
        return await self.send(InvoiceOrder(bolt11, amount_msat, limits), idempotency_key)

    async def send(self, order: PaymentOrder, idempotency_key: str = "") -> PaymentView:
        """See PaymentVerbs."""
        return await self.runtime.payment_verbs.send(order, idempotency_key)

    async def start_payment(self, order: PaymentOrder, idempotency_key: str = "") -> PaymentView:
        """See PaymentVerbs."""
        return await self.runtime.payment_verbs.start(order, idempotency_key)

    def track_payment(self, payment_hash: bytes) -> AsyncIterator[PaymentUpdate]:
        """See Payments."""
        return self.runtime.payment_verbs.track(payment_hash)

    async def cancel_payment(self, payment_hash: bytes) -> PaymentView:
        """See Payments."""
        return await self.runtime.payment_verbs.cancel(payment_hash)

    async def list_attempts(self, payment_hash: bytes) -> list[AttemptView]:
        """See Payments."""
        return await self.runtime.payment_verbs.attempts(payment_hash)

    async def list_payments(self, limit: int = 100, offset: int = 0) -> list[PaymentView]:
        """The newest first."""
        return await self.runtime.payments.views(limit, offset)

    async def get_payment(self, payment_hash: bytes) -> PaymentView:
        """See Payments."""
        return await self.runtime.payments.get(payment_hash)
