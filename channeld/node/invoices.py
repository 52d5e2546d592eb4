"""Our invoices: made, kept, and marked by whoever receives (`receive`) as accepted, paid or canceled.

In memory are those that can be paid or wait for `settle`, and settled ones until the HTLCs that paid them are gone; the
rest is only in the database.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, select

from channeld.bolt.features import Feature, optional, required
from channeld.bolt.invoice import Invoice, InvoiceError, RoutingHop, encode_invoice
from channeld.channel.env import ChannelPolicy
from channeld.node.bus import EventBus
from channeld.node.circuits import HtlcKey
from channeld.node.identity import Identity
from channeld.node.interface import InvoiceView, NodeError
from channeld.node.invoice_record import InvoiceRecord, decode, find, save
from channeld.storage import Store, Write, rows, tables
from wallet.bitcoin.address import Network

MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS = 42
"""What our invoices ask for: `fulfill_deadline_blocks` twice, and a margin for blocks found while the HTLC travels."""
HOLD_CLTV_EXPIRY_DELTA_BLOCKS = 144
"""The same for hold invoices: about a day to decide, less `LATEST_BLOCKS`."""
SETTLE_MARGIN_BLOCKS = 3
LATEST_BLOCKS = ChannelPolicy().fulfill_deadline_blocks + SETTLE_MARGIN_BLOCKS
"""A preimage is given away no later than so many blocks before an HTLC expires: at the fulfillment deadline the channel
would be closed for it at once (BOLT 2, "`cltv_expiry_delta` Selection")."""
BLOCKS_UNDER_WAY = 3
"""Blocks that may be found while an HTLC travels; what invoices ask for has room for them."""
LEAST_DELTA_BLOCKS = LATEST_BLOCKS + BLOCKS_UNDER_WAY
MOST_DELTA_BLOCKS = 1008
"""Half of what a channel on the way may accept (`max_htlc_cltv`): the route needs the rest."""
MAX_DESCRIPTION_BYTES = 639
MAX_AMOUNT_MSAT = 21_000_000 * 100_000_000_000
FEATURES = required(Feature.var_onion_optin, Feature.payment_secret) | optional(
    Feature.basic_mpp, Feature.option_route_blinding, Feature.option_attribution_data
)


@dataclass(frozen=True, slots=True)
class InvoiceRequest:
    """What is asked for; amounts in msat, the expiry in seconds, the delta in blocks.

    `hold`: the money is kept waiting until `settle` or `cancel`. With `payment_hash` instead of a preimage this node
    does not know the preimage either: that makes it a hold invoice in any case.
    """

    amount_msat: int | None
    description: str = ""
    expiry_seconds: int = 3600
    description_hash: bytes | None = None
    payment_preimage: bytes | None = None
    min_final_cltv_expiry_delta: int | None = None
    hold: bool = False
    payment_hash: bytes | None = None

    @property
    def is_hold(self) -> bool:
        """Whether somebody has to settle or cancel it."""
        return self.hold or self.payment_hash is not None

    @property
    def delta_blocks(self) -> int:
        """`min_final_cltv_expiry_delta` as it stands in the invoice."""
        default = HOLD_CLTV_EXPIRY_DELTA_BLOCKS if self.is_hold else MIN_FINAL_CLTV_EXPIRY_DELTA_BLOCKS
        return default if self.min_final_cltv_expiry_delta is None else self.min_final_cltv_expiry_delta

    @property
    def arguments(self) -> tuple[Any, ...]:
        """For an idempotency key; what an ordinary invoice does not have is left out."""
        every = astuple(self)
        return every if self.is_hold else every[:6]

    def check(self) -> None:
        """Raises NodeError."""
        if self.amount_msat is not None and not 0 < self.amount_msat <= MAX_AMOUNT_MSAT:
            _refuse("the amount must be more than zero (leave it out to let the payer choose)")
        if len(self.description.encode()) > MAX_DESCRIPTION_BYTES:
            _refuse(
                f"a description has at most {MAX_DESCRIPTION_BYTES} bytes; use a description hash for a longer text"
            )
        if not 0 < self.expiry_seconds <= 366 * 86_400:
            _refuse("the expiry must be between one second and one year")
        sizes = {
            "a description hash": self.description_hash,
            "a preimage": self.payment_preimage,
            "a payment hash": self.payment_hash,
        }
        for name, value in sizes.items():
            if value is not None and len(value) != 32:
                _refuse(f"{name} has 32 bytes")
        if self.payment_hash is not None and self.payment_preimage is not None:
            _refuse("give a preimage or a payment hash, not both: the one follows from the other")
        if not LEAST_DELTA_BLOCKS <= self.delta_blocks <= MOST_DELTA_BLOCKS:
            _refuse(f"a final expiry delta is between {LEAST_DELTA_BLOCKS} and {MOST_DELTA_BLOCKS} blocks")

    def secret(self) -> tuple[bytes | None, bytes]:
        """Preimage and payment hash; the preimage is drawn if neither was given, None if only the hash was."""
        if self.payment_hash is not None:
            return None, self.payment_hash
        preimage = os.urandom(32) if self.payment_preimage is None else self.payment_preimage
        return preimage, hashlib.sha256(preimage).digest()


def _refuse(sentence: str) -> None:
    raise NodeError("invalid_argument", sentence)


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
        """Open and accepted invoices, and those that HTLCs still in our channels may have paid."""
        table = tables.invoices
        for row in connection.execute(select(table.c.record).where(table.c.state.in_(("open", "accepted")))):
            record = decode(row.record)
            if not record.is_expired(self._now()) or record.payment_hash in incoming_hashes:
                self._live[record.payment_hash] = record
        for payment_hash in incoming_hashes:
            found = find(connection, payment_hash)
            if found is not None:
                self._live[payment_hash] = found
                self._paid_by |= dict.fromkeys(found.htlcs, payment_hash)

    # --- verbs

    async def create(
        self, request: InvoiceRequest, extra: Callable[[bytes], Sequence[Write]] = lambda _: ()
    ) -> InvoiceView:
        """A new invoice, durable when this returns. `extra(payment_hash)`: rows for the same transaction."""
        record = self._new_record(request)
        payment_hash = record.payment_hash
        if self.is_known(payment_hash):
            raise NodeError(
                "already_exists", "there is an invoice with this preimage or payment hash already: take another one"
            )
        self._live[payment_hash] = record  # before anybody else has a turn: no second one with this hash
        await self._store.commit([save(record), *extra(payment_hash)])
        self._bus.publish(
            "invoice.created",
            "an invoice was created",
            payment_hash=payment_hash.hex(),
            amount_msat=request.amount_msat,
        )
        return record.view(self._now())

    def _new_record(self, request: InvoiceRequest) -> InvoiceRecord:
        request.check()
        preimage, payment_hash = request.secret()
        created = int(self._now())
        invoice = Invoice(
            network=self._network,
            payment_hash=payment_hash,
            payment_secret=os.urandom(32),
            payee=self._identity.node_id,
            timestamp=created,
            amount_msat=request.amount_msat,
            description=None if request.description_hash else request.description,
            description_hash=request.description_hash,
            expiry_seconds=request.expiry_seconds,
            min_final_cltv_expiry_delta=request.delta_blocks,
            features=FEATURES,
            routing_hints=tuple(self._hints()),
        )
        try:
            bolt11 = encode_invoice(invoice, self._identity.node_secret)
        except InvoiceError as error:
            raise NodeError("invalid_argument", str(error)) from error
        return InvoiceRecord(
            payment_hash=payment_hash,
            payment_preimage=preimage,
            payment_secret=invoice.payment_secret,
            bolt11=bolt11,
            description=request.description,
            amount_msat=request.amount_msat,
            created_seconds=created,
            expiry_seconds=request.expiry_seconds,
            min_final_cltv_expiry_delta_blocks=request.delta_blocks,
            hold=request.is_hold,
        )

    async def enter(self, record: InvoiceRecord) -> None:
        """An invoice that was asked for by other means than BOLT 11; durable when this returns. Raises NodeError."""
        if self.is_known(record.payment_hash):
            raise NodeError("already_exists", "there is an invoice with this payment hash already: take another one")
        self._live[record.payment_hash] = record
        await self._store.commit([save(record)])

    async def views(self, limit: int, offset: int) -> list[InvoiceView]:
        """The newest first."""
        table = tables.invoices
        query = select(table.c.record).order_by(table.c.created_seconds.desc(), table.c.payment_hash)
        found = await self._store.read(lambda c: [r.record for r in c.execute(query.limit(limit).offset(offset))])
        return [decode(record).view(self._now()) for record in found]

    async def find(self, payment_hash: bytes) -> InvoiceRecord:
        """From memory or the database. Raises NodeError if there is none."""
        record = self._live.get(payment_hash)
        if record is None:
            record = await self._store.read(lambda c: find(c, payment_hash))
            record = self._live.get(payment_hash, record)
        if record is None:
            raise NodeError("not_found", f"there is no invoice with the payment hash {payment_hash.hex()}")
        return record

    async def get(self, payment_hash: bytes) -> InvoiceView:
        """Raises NodeError if there is none."""
        return (await self.find(payment_hash)).view(self._now())

    # --- for the receiver: memory changes at once, the row is the caller's to commit

    def is_known(self, payment_hash: bytes) -> bool:
        """Whether there is or was an invoice of this hash."""
        return payment_hash in self._live or bool(self._store.lookup(rows.FIND_INVOICE, payment_hash))

    def lookup(self, payment_hash: bytes) -> InvoiceRecord | None:
        """An invoice that may be paid, waits for `settle`, or was paid by HTLCs that are still there."""
        return self._live.get(payment_hash)

    def accepted(self) -> Iterable[InvoiceRecord]:
        """Those whose money waits for `settle` or `cancel`."""
        return [record for record in self._live.values() if record.state == "accepted"]

    def put(self, record: InvoiceRecord) -> Write:
        """A record of a new state; `htlcs` in it are remembered until they are gone."""
        before = self._live.get(record.payment_hash)
        for key in before.htlcs if before is not None else ():
            self._paid_by.pop(key, None)
        self._live[record.payment_hash] = record
        self._paid_by |= dict.fromkeys(record.htlcs, record.payment_hash)
        return save(record)

    def cancel(self, record: InvoiceRecord) -> Write:
        """Nobody can pay it from now on. `forget` it once that is durable."""
        return self.put(replace(record, state="canceled", htlcs=(), deadline_height=None))

    def forget(self, payment_hash: bytes) -> None:
        """A canceled invoice is in the database: it may leave memory."""
        record = self._live.get(payment_hash)
        if record is not None and record.state == "canceled":
            del self._live[payment_hash]

    def htlc_removed(self, htlc: HtlcKey) -> None:
        """An incoming HTLC is gone for good; with the last one that paid an invoice, the invoice leaves memory."""
        payment_hash = self._paid_by.pop(htlc, None)
        record = self._live.get(payment_hash) if payment_hash is not None else None
        if record is None or record.state != "settled":
            return
        if not any(key in self._paid_by for key in record.htlcs):
            del self._live[record.payment_hash]

    def forget_expired(self) -> None:
        """Drop expired invoices from memory; called with each block."""
        now = self._now()
        for payment_hash in [key for key, record in self._live.items() if record.is_expired(now)]:
            del self._live[payment_hash]
