"""Our invoices: made, kept, canceled, and marked as paid by whoever receives (`receive`).

In memory are the open ones, and settled ones until the HTLCs that paid them are gone; the rest is only in the database.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, select

from channeld.bolt.features import Feature, optional, required
from channeld.bolt.invoice import Invoice, InvoiceError, RoutingHop, encode_invoice
from channeld.node.bus import EventBus
from channeld.node.identity import Identity
from channeld.node.interface import InvoiceView, NodeError
from channeld.storage import Store, Write, rows, tables
from wallet.bitcoin.address import Network

MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS = 42
"""What our invoices ask for: `fulfill_deadline_blocks` twice, and a margin for blocks found while the HTLC travels."""
MAX_DESCRIPTION_BYTES = 639
MAX_AMOUNT_MSAT = 21_000_000 * 100_000_000_000
FEATURES = required(Feature.var_onion_optin, Feature.payment_secret) | optional(Feature.basic_mpp)

HtlcKey = tuple[int, int]
"""(channel_key, htlc id) of an incoming HTLC."""


class InvoiceRecord(Struct, frozen=True, kw_only=True):
    """An invoice as stored. `htlcs` are those that settled it."""

    payment_hash: bytes
    payment_preimage: bytes
    payment_secret: bytes
    bolt11: str
    description: str
    amount_msat: int | None
    created_seconds: int
    expiry_seconds: int
    min_final_cltv_expiry_delta_blocks: int
    state: Literal["open", "settled", "canceled"] = "open"
    received_msat: int = 0
    settled_seconds: int | None = None
    htlcs: tuple[HtlcKey, ...] = ()

    def is_expired(self, now: float) -> bool:
        """Open, but too old to be paid."""
        return self.state == "open" and now > self.created_seconds + self.expiry_seconds

    def view(self, now: float) -> InvoiceView:
        """What the API shows."""
        return InvoiceView(
            payment_hash=self.payment_hash,
            bolt11=self.bolt11,
            state="expired" if self.is_expired(now) else self.state,
            amount_msat=self.amount_msat,
            received_msat=self.received_msat,
            description=self.description,
            created_seconds=self.created_seconds,
            expiry_seconds=self.expiry_seconds,
            settled_seconds=self.settled_seconds,
            payment_preimage=self.payment_preimage if self.state == "settled" else None,
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(InvoiceRecord).decode


def save(record: InvoiceRecord) -> Write:
    """The record's row."""
    return rows.SAVE_INVOICE(record.payment_hash, record.created_seconds, record.state, _encode(record))


class InvoiceBook:
    """All invoices. `hints` gives the route hints that new ones carry."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        network: Network,
        bus: EventBus,
        now: Callable[[], float],
        hints: Callable[[], Sequence[tuple[RoutingHop, ...]]],
    ) -> None:
        self._store = store
        self._identity = identity
        self._network = network
        self._bus = bus
        self._now = now
        self._hints = hints
        self._live: dict[bytes, InvoiceRecord] = {}
        self._paid_by: dict[HtlcKey, bytes] = {}

    def load(self, connection: Connection, incoming_hashes: Sequence[bytes]) -> None:
        """Open invoices, and those that HTLCs still in our channels may have paid."""
        table = tables.invoices
        for row in connection.execute(select(table.c.record).where(table.c.state == "open")):
            record = _decode(row.record)
            if not record.is_expired(self._now()) or record.payment_hash in incoming_hashes:
                self._live[record.payment_hash] = record
        for payment_hash in incoming_hashes:
            found = _find(connection, payment_hash)
            if found is not None:
                self._live[payment_hash] = found
                self._paid_by |= dict.fromkeys(found.htlcs, payment_hash)

    # --- verbs

    async def create(
        self,
        amount_msat: int | None,
        description: str,
        expiry_seconds: int = 3600,
        description_hash: bytes | None = None,
        payment_preimage: bytes | None = None,
        min_final_cltv_expiry_delta: int | None = None,
        extra: Callable[[bytes], Sequence[Write]] = lambda _: (),
    ) -> InvoiceView:
        """A new invoice, durable when this returns. `extra(payment_hash)`: rows for the same transaction."""
        record = self._new_record(
            amount_msat, description, expiry_seconds, description_hash, payment_preimage, min_final_cltv_expiry_delta
        )
        payment_hash = record.payment_hash
        if payment_hash in self._live or (payment_preimage is not None and await self.find(payment_hash)):
            raise NodeError("already_exists", "there is an invoice with this preimage already: take another preimage")
        self._live[payment_hash] = record
        await self._store.commit([save(record), *extra(payment_hash)])
        self._bus.publish(
            "invoice.created", "an invoice was created", payment_hash=payment_hash.hex(), amount_msat=amount_msat
        )
        return record.view(self._now())

    def _new_record(
        self,
        amount_msat: int | None,
        description: str,
        expiry_seconds: int,
        description_hash: bytes | None,
        payment_preimage: bytes | None,
        min_final_cltv_expiry_delta: int | None,
    ) -> InvoiceRecord:
        _check_request(amount_msat, description, expiry_seconds, description_hash, payment_preimage)
        preimage = payment_preimage if payment_preimage is not None else os.urandom(32)
        delta = min_final_cltv_expiry_delta or MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS
        if not MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS // 2 <= delta <= 2016:
            raise NodeError(
                "invalid_argument",
                f"a final expiry delta is between {MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS // 2} and 2016 blocks",
            )
        created = int(self._now())
        invoice = Invoice(
            network=self._network,
            payment_hash=hashlib.sha256(preimage).digest(),
            payment_secret=os.urandom(32),
            payee=self._identity.node_id,
            timestamp=created,
            amount_msat=amount_msat,
            description=None if description_hash else description,
            description_hash=description_hash,
            expiry_seconds=expiry_seconds,
            min_final_cltv_expiry_delta=delta,
            features=FEATURES,
            routing_hints=tuple(self._hints()),
        )
        try:
            bolt11 = encode_invoice(invoice, self._identity.node_secret)
        except InvoiceError as error:
            raise NodeError("invalid_argument", str(error)) from error
        return InvoiceRecord(
            payment_hash=invoice.payment_hash,
            payment_preimage=preimage,
            payment_secret=invoice.payment_secret,
            bolt11=bolt11,
            description=description,
            amount_msat=amount_msat,
            created_seconds=created,
            expiry_seconds=expiry_seconds,
            min_final_cltv_expiry_delta_blocks=delta,
        )

    async def views(self, limit: int, offset: int) -> list[InvoiceView]:
        """The newest first."""
        table = tables.invoices
        query = select(table.c.record).order_by(table.c.created_seconds.desc(), table.c.payment_hash)
        found = await self._store.read(lambda c: [r.record for r in c.execute(query.limit(limit).offset(offset))])
        return [_decode(record).view(self._now()) for record in found]

    async def find(self, payment_hash: bytes) -> InvoiceRecord | None:
        """From memory or the database."""
        record = self._live.get(payment_hash)
        if record is None:
            record = await self._store.read(lambda c: _find(c, payment_hash))
        return record

    async def get(self, payment_hash: bytes) -> InvoiceView:
        """Raises NodeError if there is none."""
        record = await self.find(payment_hash)
        if record is None:
            raise NodeError("not_found", f"there is no invoice with the payment hash {payment_hash.hex()}")
        return record.view(self._now())

    async def cancel(self, payment_hash: bytes) -> InvoiceView:
        """An open invoice that is not being paid will not be paid any more."""
        record = await self.find(payment_hash)
        if record is None:
            raise NodeError("not_found", f"there is no invoice with the payment hash {payment_hash.hex()}")
        if record.state == "settled":
            raise NodeError("failed_precondition", "this invoice was paid; it cannot be canceled")
        if record.state == "open":
            record = replace(record, state="canceled")
            self._live.pop(payment_hash, None)
            await self._store.commit([save(record)])
            self._bus.publish("invoice.canceled", "an invoice was canceled", payment_hash=payment_hash.hex())
        return record.view(self._now())

    # --- for the receiver

    def lookup(self, payment_hash: bytes) -> InvoiceRecord | None:
        """An invoice that may be paid, or was paid by HTLCs that are still there."""
        return self._live.get(payment_hash)

    def settle(self, record: InvoiceRecord, received_msat: int, htlcs: tuple[HtlcKey, ...]) -> Write:
        """Mark as paid, in memory; the row must go into the transaction that settles the first HTLC."""
        settled = replace(
            record, state="settled", received_msat=received_msat, settled_seconds=int(self._now()), htlcs=htlcs
        )
        self._live[record.payment_hash] = settled
        self._paid_by |= dict.fromkeys(htlcs, record.payment_hash)
        return save(settled)

    def htlc_removed(self, htlc: HtlcKey) -> None:
        """An incoming HTLC is gone for good; with the last one that paid an invoice, the invoice leaves memory."""
        payment_hash = self._paid_by.pop(htlc, None)
        if payment_hash is not None and not any(key in self._paid_by for key in self._live[payment_hash].htlcs):
            del self._live[payment_hash]

    def forget_expired(self) -> None:
        """Drop expired invoices from memory; called with each block."""
        now = self._now()
        for payment_hash in [key for key, record in self._live.items() if record.is_expired(now)]:
            del self._live[payment_hash]


def _find(connection: Connection, payment_hash: bytes) -> InvoiceRecord | None:
    table = tables.invoices
    found = connection.execute(select(table.c.record).where(table.c.payment_hash == payment_hash)).scalar()
    return None if found is None else _decode(found)


def _check_request(
    amount_msat: int | None,
    description: str,
    expiry_seconds: int,
    description_hash: bytes | None,
    payment_preimage: bytes | None,
) -> None:
    if amount_msat is not None and not 0 < amount_msat <= MAX_AMOUNT_MSAT:
        raise NodeError("invalid_argument", "the amount must be more than zero (leave it out to let the payer choose)")
    if len(description.encode()) > MAX_DESCRIPTION_BYTES:
        raise NodeError(
            "invalid_argument",
            f"a description has at most {MAX_DESCRIPTION_BYTES} bytes; use a description hash for a longer text",
        )
    if not 0 < expiry_seconds <= 366 * 86_400:
        raise NodeError("invalid_argument", "the expiry must be between one second and one year")
    if description_hash is not None and len(description_hash) != 32:
        raise NodeError("invalid_argument", "a description hash has 32 bytes")
    if payment_preimage is not None and len(payment_preimage) != 32:
        raise NodeError("invalid_argument", "a preimage has 32 bytes")
