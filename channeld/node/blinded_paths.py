"""Blinded paths for payments to this node: made from our channels and what their peers ask, paid as blinded invoices.

A path leads through one peer, who is its introduction node; the payer learns neither us nor the channel. A node without
such a peer is its own introduction node. Source: BOLT 4, "Route Blinding"; BOLT 12, "Invoices" (`blinded_payinfo`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from channeld.bolt.features import Feature, has
from channeld.bolt.onion.blinding import (
    BlindedPath,
    BlindedPayInfo,
    EncryptedData,
    PaymentConstraints,
    PaymentRelay,
    aggregate_relay,
    create_blinded_path,
    pad_alike,
)
from channeld.channel.state import Live, Normal
from channeld.node import views
from channeld.node.interface import NodeError
from channeld.node.invoice_record import InvoiceRecord
from channeld.node.invoices import InvoiceBook, InvoiceRequest

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

MOST_PATHS = 3
SECONDS_PER_BLOCK = 600
SHADOW_BLOCKS = 144
"""How far beyond the least expiry a payer may go (BOLT 7, "Recommendations for Routing")."""
MAX_U64_MSAT = 21_000_000 * 100_000_000_000


class PaymentPath(NamedTuple):
    """A path, and what a payer has to know to use it."""

    path: BlindedPath
    payinfo: BlindedPayInfo


class BlindedPaths:
    """Makes paths to this node, and invoices that are paid over them."""

    def __init__(
        self,
        node_id: bytes,
        channels: Channels,
        book: InvoiceBook,
        height: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._node_id = node_id
        self._channels = channels
        self._book = book
        self._height = height
        self._now = now

    async def ask(self, request: InvoiceRequest) -> tuple[InvoiceRecord, list[PaymentPath]]:
        """A blinded invoice, durable when this returns, and the paths to it. What the caller makes of them (an offer's
        invoice, say) is its own business. Raises NodeError."""
        request.check()
        preimage, payment_hash = request.secret()
        path_id = os.urandom(32)
        paths = self.paths_to_us(path_id, request.amount_msat, request.delta_blocks, request.expiry_seconds)
        record = InvoiceRecord(
            payment_hash=payment_hash,
            payment_preimage=preimage,
            payment_secret=path_id,
            bolt11="",
            description=request.description,
            amount_msat=request.amount_msat,
            created_seconds=int(self._now()),
            expiry_seconds=request.expiry_seconds,
            min_final_cltv_expiry_delta_blocks=request.delta_blocks,
            hold=request.is_hold,
            kind="blinded",
        )
        await self._book.enter(record)
        return record, paths

    def paths_to_us(
        self, path_id: bytes, amount_msat: int | None, min_final_delta_blocks: int, expiry_seconds: int
    ) -> list[PaymentPath]:
        """Up to three, those first that can carry most. `path_id` is secret: it proves that a payment came by them.

        `max_cltv_expiry` follows BOLT 4: when the paths expire, then each node's delta from the end. Raises NodeError.
        """
        lifetime_blocks = -(-expiry_seconds // SECONDS_PER_BLOCK) + SHADOW_BLOCKS
        last_height = self._height() + lifetime_blocks + min_final_delta_blocks
        usable = sorted(filter(_leads_here, self._channels.all()), key=_most_msat, reverse=True)
        fitting = [driver for driver in usable if amount_msat is None or _most_msat(driver) >= amount_msat]
        paths = [self._through(driver, path_id, last_height, min_final_delta_blocks) for driver in fitting or usable]
        found = [path for path in paths if path is not None][:MOST_PATHS]
        if found:
            return found
        if any(isinstance(d.state, Normal) and d.state.params.announce for d in self._channels.all()):
            return [self._ourselves(path_id, last_height, min_final_delta_blocks)]
        raise NodeError("failed_precondition", "no peer can lead a payment here: open a channel to one that knows how")

    def _through(
        self, driver: Driver, path_id: bytes, last_height: int, min_final_delta_blocks: int
    ) -> PaymentPath | None:
        """Through a channel's peer, on the terms of its last `channel_update`."""
        state = driver.state
        update = self._channels.update_of_peer(driver.channel_id)
        assert isinstance(state, Normal)
        scid = state.remote_alias if state.remote_alias is not None else state.scid
        if scid is None or update is None:
            return None
        relay = PaymentRelay(update.cltv_expiry_delta, update.fee_proportional_millionths, update.fee_base_msat)
        minimum_msat = max(update.htlc_minimum_msat, 1)
        height = last_height + relay.cltv_expiry_delta
        first = EncryptedData(
            short_channel_id=scid,
            payment_relay=relay,
            payment_constraints=PaymentConstraints(height, minimum_msat),
        )
        last = EncryptedData(path_id=path_id, payment_constraints=PaymentConstraints(last_height, minimum_msat))
        datas = pad_alike([first, last])
        path = create_blinded_path([(driver.peer_id, datas[0]), (self._node_id, datas[1])], os.urandom(32)).path
        total = aggregate_relay([relay], min_final_delta_blocks)
        return PaymentPath(path, _payinfo(total, minimum_msat, update.htlc_maximum_msat))

    def _ourselves(self, path_id: bytes, last_height: int, min_final_delta_blocks: int) -> PaymentPath:
        data = EncryptedData(path_id=path_id, payment_constraints=PaymentConstraints(last_height, 1))
        path = create_blinded_path([(self._node_id, data)], os.urandom(32)).path
        return PaymentPath(path, _payinfo(aggregate_relay([], min_final_delta_blocks), 1, MAX_U64_MSAT))


def _payinfo(total: PaymentRelay, minimum_msat: int, maximum_msat: int) -> BlindedPayInfo:
    fees = total.fee_base_msat, total.fee_proportional_millionths
    return BlindedPayInfo(*fees, total.cltv_expiry_delta, minimum_msat, maximum_msat)


def _leads_here(driver: Driver) -> bool:
    """Whether the peer is there, and forwards inside blinded paths."""
    state = driver.state
    if not isinstance(state, Normal) or not isinstance(state.link, Live) or driver.failure is not None:
        return False
    return has(state.link.remote_features, Feature.option_route_blinding)


def _most_msat(driver: Driver) -> int:
    return views.available_to_receive_msat(driver.state)
