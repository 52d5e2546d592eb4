"""What is asked for, checked and turned into a payment's first record: invoices, keysend, rebalancing, probes.

Amounts in msat. Source: BOLT 11, "Payer / Payee Interactions"; BOLT 4, "`payload` format" (custom records).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from msgspec.structs import replace

from channeld.bolt.features import unknown_required
from channeld.bolt.invoice import SUPPORTED_FEATURES, Invoice, InvoiceError, decode_invoice
from channeld.channel.state import Normal
from channeld.defaults import default_fee_limit_msat
from channeld.node import views
from channeld.node.interface import NodeError
from channeld.node.payment_record import MAX_CLTV_BLOCKS, MAX_PARTS, PaymentRecord
from channeld.node.payment_views import (
    InvoiceOrder,
    KeysendOrder,
    PaymentLimits,
    PaymentOrder,
    ProbeOrder,
    RebalanceOrder,
)
from channeld.routing.values import MAX_AMOUNT_MSAT
from wallet.bitcoin.address import Network

if TYPE_CHECKING:
    from channeld.node.channels import Channels, Driver

KEYSEND_RECORD = 5482373484
FIRST_CUSTOM_RECORD = 65536
MAX_RECORD_BYTES = 1000
FINAL_DELTA_BLOCKS = 42
"""What a payee without an invoice is left; as our own invoices ask for."""
NAMED_CHANNELS = 4
"""So many of the channels of a payment to ourselves stand in its invoice."""
INVOICE_SECONDS = 3600
"""So much longer than the payment an invoice to ourselves lasts."""


class OwnInvoices(Protocol):
    """Invoices of this node, for payments to ourselves."""

    async def make(self, amount_msat: int, description: str, expiry_seconds: int) -> str:
        """A new one (BOLT 11), durable."""
        ...

    async def withdraw(self, payment_hash: bytes) -> None:
        """Nobody can pay it any more. Raises NodeError if it was paid."""
        ...


class Draft(NamedTuple):
    """A payment before it exists: without an id and parts."""

    record: PaymentRecord
    invoice: Invoice | None


class Orders:
    """Makes drafts."""

    def __init__(
        self,
        network: Network,
        node_id: bytes,
        channels: Channels,
        invoices: OwnInvoices,
        now: Callable[[], float],
        unknown_features: Callable[[bytes], Sequence[int]] = lambda node_id: (),
    ) -> None:
        """`unknown_features`: what a node requires publicly that we do not know, as feature bits."""
        self._unknown_features = unknown_features
        self._network = network
        self._node_id = node_id
        self._channels = channels
        self._invoices = invoices
        self._now = now

    async def draft(self, order: PaymentOrder) -> Draft:
        """Raises NodeError if it cannot be paid."""
        match order:
            case InvoiceOrder():
                return self._invoice(order)
            case KeysendOrder():
                return self._keysend(order)
            case RebalanceOrder():
                return await self._rebalance(order)
            case ProbeOrder():
                return self._probe(order)

    def invoice_of(self, record: PaymentRecord) -> Invoice | None:
        """The invoice of a stored payment, which was checked when it was made."""
        return decode_invoice(record.bolt11, self._network) if record.bolt11 else None

    async def forget(self, record: PaymentRecord) -> None:
        """A payment came to nothing: an invoice that was made for it alone must not be paid by anybody else."""
        if record.kind != "rebalance":
            return
        try:
            await self._invoices.withdraw(record.payment_hash)
        except NodeError:
            pass  # it was settled meanwhile, or is gone

    # --- the sorts of payment

    def _invoice(self, order: InvoiceOrder) -> Draft:
        invoice = self._decode(order.bolt11)
        if invoice.payee == self._node_id:
            raise NodeError("invalid_argument", "this is an invoice of this very node: `rebalance` pays ourselves")
        amount = _amount(invoice, order.amount_msat)
        return self._draft(invoice, order.bolt11.strip(), amount, order.limits, kind="invoice")

    def _keysend(self, order: KeysendOrder) -> Draft:
        if order.node_id == self._node_id:
            raise NodeError("invalid_argument", "this is this very node: `rebalance` pays ourselves")
        _check_records(order.custom_records)
        preimage = os.urandom(32)
        return self._without_invoice(
            order.node_id,
            sha256(preimage).digest(),
            order.amount_msat,
            order.limits,
            kind="keysend",
            own_preimage=preimage,
            custom_records=tuple(sorted(order.custom_records)),
        )

    def _probe(self, order: ProbeOrder) -> Draft:
        secrets: dict[str, Any] = {"kind": "probe", "payment_secret": os.urandom(32)}
        payment_hash = os.urandom(32)  # nobody knows what it would be the hash of
        if not order.bolt11:
            if order.amount_msat is None:
                raise NodeError("invalid_argument", "say how much to probe for")
            if order.node_id == self._node_id:
                raise NodeError("invalid_argument", "this is this very node")
            return self._without_invoice(order.node_id, payment_hash, order.amount_msat, order.limits, **secrets)
        invoice = self._decode(order.bolt11)
        if invoice.payee == self._node_id:
            raise NodeError("invalid_argument", "this is an invoice of this very node")
        amount = order.amount_msat if order.amount_msat is not None else _amount(invoice, None)
        return self._draft(invoice, order.bolt11.strip(), amount, order.limits, payment_hash=payment_hash, **secrets)

    async def _rebalance(self, order: RebalanceOrder) -> Draft:
        outgoing = self._usable(order.outgoing_channel_ids, "leave by")
        incoming = self._usable(order.incoming_channel_ids, "come back over")
        if set(order.outgoing_channel_ids) & set(order.incoming_channel_ids):
            raise NodeError(
                "invalid_argument", "the money would leave and come back by the same channel: name one of them"
            )
        _check_amount(order.amount_msat)
        receivable_msat = sum(views.available_to_receive_msat(driver.state) for driver in incoming)
        if receivable_msat < order.amount_msat:
            what = "channel" if len(incoming) == 1 else "channels"
            raise NodeError(
                "resource_exhausted",
                f"the {what} that it should come back over can receive {receivable_msat:,} msat now, "
                f"{order.amount_msat:,} msat are wanted",
            )
        name = f"rebalance {_names(outgoing)} to {_names(incoming)}"
        expiry_seconds = int(order.limits.timeout_seconds) + INVOICE_SECONDS
        bolt11 = await self._invoices.make(order.amount_msat, name, expiry_seconds)
        return self._draft(
            decode_invoice(bolt11, self._network),
            bolt11,
            order.amount_msat,
            order.limits,
            kind="rebalance",
            outgoing_keys=tuple(self._key_of(channel_id) for channel_id in order.outgoing_channel_ids),
            incoming_keys=tuple(self._key_of(channel_id) for channel_id in order.incoming_channel_ids),
        )

    def _usable(self, channel_ids: tuple[bytes, ...], what: str) -> list[Driver]:
        """Those that can be used now; the others may be later."""
        if not channel_ids:
            raise NodeError("invalid_argument", f"name a channel for the money to {what}")
        usable = []
        for channel_id in channel_ids:
            driver = self._channels.by_id(channel_id)
            if driver is None:
                raise NodeError("not_found", f"there is no channel {channel_id.hex()} to {what}")
            if driver.failure is None and views.is_usable(driver.state) and isinstance(driver.state, Normal):
                usable.append(driver)
        if not usable:
            named = ", ".join(channel_id.hex() for channel_id in channel_ids)
            raise NodeError("unavailable", f"the channel to {what}, {named}, is not usable now")
        return usable

    # --- what they have in common

    def _decode(self, bolt11: str) -> Invoice:
        try:
            invoice = decode_invoice(bolt11, self._network)
        except InvoiceError as error:
            raise NodeError("invalid_argument", str(error)) from error
        if invoice.is_expired(self._now()):
            raise NodeError("failed_precondition", "the invoice has expired: ask for a new one")
        if unknown_required(invoice.features, SUPPORTED_FEATURES):
            raise NodeError("failed_precondition", "the invoice requires a feature that this node does not know")
        return invoice

    def _without_invoice(
        self, node_id: bytes, payment_hash: bytes, amount_msat: int, limits: PaymentLimits, **fields: Any
    ) -> Draft:
        _check_amount(amount_msat)
        # BOLT 7, "if `features` field contains _unknown even bits_: [...] Unless paying a BOLT #11 invoice which does
        # not have the same bit(s) set, MUST NOT attempt to send payments _to_ the node."
        if unknown := self._unknown_features(node_id):
            bits = ", ".join(map(str, unknown))
            raise NodeError(
                "failed_precondition",
                f"{node_id.hex()} requires a feature that this node does not know (bit {bits}): ask it for an invoice",
            )
        record = self._record(node_id, payment_hash, "", amount_msat, FINAL_DELTA_BLOCKS, limits, **fields)
        return Draft(record, None)

    def _draft(self, invoice: Invoice, bolt11: str, amount_msat: int, limits: PaymentLimits, **fields: Any) -> Draft:
        payment_hash = fields.pop("payment_hash", invoice.payment_hash)
        delta = invoice.min_final_cltv_expiry_delta
        record = self._record(invoice.payee, payment_hash, bolt11, amount_msat, delta, limits, **fields)
        # BOLT 11, "after the `timestamp` plus `expiry` has passed: SHOULD NOT attempt a payment."
        deadline = min(record.deadline_seconds, float(invoice.expires_at))
        return Draft(replace(record, deadline_seconds=deadline), invoice)

    def _record(
        self,
        destination: bytes,
        payment_hash: bytes,
        bolt11: str,
        amount_msat: int,
        final_delta_blocks: int,
        limits: PaymentLimits,
        **fields: Any,
    ) -> PaymentRecord:
        now = self._now()
        given: dict[str, Any] = {
            "max_cltv_blocks": _within(limits.max_cltv_blocks, MAX_CLTV_BLOCKS, "blocks that money may be locked for"),
            "max_parts": _within(limits.max_parts, MAX_PARTS, "parts"),
            "outgoing_keys": tuple(self._key_of(channel_id) for channel_id in limits.outgoing_channel_ids),
            "last_hops": limits.last_hops,
        }
        if limits.max_fee_msat is not None and limits.max_fee_msat < 0:
            raise NodeError("invalid_argument", "the fee limit is at least 0")
        # Also where the payee is a peer: it could keep the HTLC until then, and close the channel around it.
        most_blocks = (given | fields)["max_cltv_blocks"]
        if final_delta_blocks > most_blocks:
            raise NodeError(
                "failed_precondition",
                f"the payee asks for money to be locked for {final_delta_blocks} blocks, the limit is {most_blocks}: "
                "ask for another invoice",
            )
        return PaymentRecord(
            payment_id=0,
            payment_hash=payment_hash,
            bolt11=bolt11,
            destination=destination,
            amount_msat=amount_msat,
            created_seconds=int(now),
            parts=(),
            max_fee_msat=default_fee_limit_msat(amount_msat) if limits.max_fee_msat is None else limits.max_fee_msat,
            deadline_seconds=now + limits.timeout_seconds,
            # A few blocks more than asked for: blocks are found meanwhile, and the recipient cannot tell the last hop.
            final_delta_blocks=min(final_delta_blocks + 1 + os.urandom(1)[0] % 6, most_blocks),
            **given | fields,
        )

    def _key_of(self, channel_id: bytes) -> int:
        driver = self._channels.by_id(channel_id)
        if driver is None:
            raise NodeError("not_found", f"there is no channel {channel_id.hex()} for the payment to leave by")
        return driver.channel_key


def _names(drivers: list[Driver]) -> str:
    first = ", ".join(driver.channel_id.hex()[:8] for driver in drivers[:NAMED_CHANNELS])
    return first if len(drivers) <= NAMED_CHANNELS else f"{first} and {len(drivers) - NAMED_CHANNELS} more"


def _within(asked: int | None, most: int, what: str) -> int:
    if asked is None:
        return most
    if asked < 1:
        raise NodeError("invalid_argument", f"the limit of {what} is at least 1")
    return min(asked, most)


def _check_amount(amount_msat: int) -> None:
    if amount_msat <= 0:
        raise NodeError("invalid_argument", "the amount must be more than zero")
    if amount_msat > MAX_AMOUNT_MSAT:
        raise NodeError("invalid_argument", f"at most {MAX_AMOUNT_MSAT:,} msat can be paid at once")


def _check_records(records: tuple[tuple[int, bytes], ...]) -> None:
    types = [number for number, _ in records]
    if len(set(types)) < len(types):
        raise NodeError("invalid_argument", "a custom record's type is there twice")
    for number in types:
        if not FIRST_CUSTOM_RECORD <= number < 1 << 64:
            raise NodeError(
                "invalid_argument", f"custom records have types from {FIRST_CUSTOM_RECORD} on, not {number}"
            )
        if number == KEYSEND_RECORD:
            raise NodeError("invalid_argument", f"record {number} is the preimage, which is made here")
    if sum(len(value) for _, value in records) > MAX_RECORD_BYTES:
        raise NodeError("invalid_argument", f"custom records have at most {MAX_RECORD_BYTES} bytes together")


def _amount(invoice: Invoice, amount_msat: int | None) -> int:
    if invoice.amount_msat is None:
        if amount_msat is None:
            raise NodeError("invalid_argument", "the invoice leaves the amount to you: say how much to pay")
        _check_amount(amount_msat)
        return amount_msat
    if amount_msat is not None and amount_msat != invoice.amount_msat:
        raise NodeError(
            "invalid_argument",
            f"the invoice is for {invoice.amount_msat:,} msat: leave the amount out, or give that one",
        )
    return invoice.amount_msat
