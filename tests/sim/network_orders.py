"""Actions that pay in other ways than by an invoice that is settled at once: hold invoices, which somebody settles or
cancels later; keysend, probes; a client that asks again, with and without its key; a payer that stops."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from channeld.node.interface import NodeError, PaymentView
from channeld.node.payment_views import (
    InvoiceOrder,
    KeysendOrder,
    PaymentLimits,
    PaymentOrder,
    ProbeOrder,
)
from channeld.storage import StoreFailed
from tests.sim.network_checks import HoldBook, PayBook
from tests.sim.network_node import SimNode

if TYPE_CHECKING:
    from tests.sim.network_world import World

LIMITS = PaymentLimits(timeout_seconds=20)
AGAIN_SECONDS = (0.0, 0.03, 0.3, 1.5, 5.0)
DECIDE_SECONDS = (0.3, 1.0, 4.0)
RECORD = (70_001, b"for you")


async def _send(node: SimNode, order: PaymentOrder, key: str = "") -> PaymentView | NodeError | None:
    """What the caller is told."""
    try:
        return await node.api.send(order, key)
    except NodeError as error:
        return error
    except StoreFailed:
        return None


# --- hold invoices -------------------------------------------------------------------------------------------------


def hold(world: World, payer: str, payee: str, amount_msat: int, how: int, delta_blocks: int | None = None) -> HoldBook:
    """A hold invoice of the payee's, made and paid if both live long enough. Its fate is settled by `how`."""
    preimage = world.luck.urandom(32)
    book = HoldBook(payee, sha256(preimage).digest(), preimage, settles=how % 3 > 0)
    world.holds.append(book)

    async def ask() -> None:
        try:
            if how % 2:
                invoice = await world.nodes[payee].api.create_invoice(
                    amount_msat, "held", payment_hash=book.payment_hash, min_final_cltv_expiry_delta=delta_blocks
                )
            else:
                invoice = await world.nodes[payee].api.create_invoice(
                    amount_msat,
                    "held",
                    payment_preimage=preimage,
                    hold=True,
                    min_final_cltv_expiry_delta=delta_blocks,
                )
        except (NodeError, StoreFailed):
            return
        paying = PayBook(payer, payee, book.payment_hash, amount_msat)
        world.payments.append(paying)
        if world.nodes[payer].up:
            world.nodes[payer].spawn(_pay(paying, invoice.bolt11))

    async def _pay(paying: PayBook, bolt11: str) -> None:
        paying.result = await _send(world.nodes[payer], InvoiceOrder(bolt11, None, LIMITS))

    world.nodes[payee].spawn(ask())
    return book


def held(world: World, payer: str, payee: str, amount_msat: int, how: int) -> bool:
    """A payment that its payee holds, and decides about after a while, or when all trouble is over."""
    if not world.nodes[payer].up or not world.nodes[payee].up:
        return False
    book = hold(world, payer, payee, amount_msat, how)
    if how // 4 % 4:
        world.loop.call_later(DECIDE_SECONDS[how // 16 % 3], world.decide, book, context=world.context)
    return True


# --- without an invoice of somebody else's -------------------------------------------------------------------------


def keysend(world: World, payer: str, payee: str, amount_msat: int, how: int) -> bool:
    """A payment that nobody asked for."""
    records = (RECORD,) if how % 2 else ()
    return _order(world, payer, KeysendOrder(world.node_ids[payee], amount_msat, records, LIMITS), how)


def probe(world: World, payer: str, payee: str, amount_msat: int, how: int) -> bool:
    """Would it arrive?"""
    return _order(world, payer, ProbeOrder(world.node_ids[payee], "", amount_msat, LIMITS), how)


def _order(world: World, name: str, order: PaymentOrder, how: int) -> bool:
    """Now and then with a key, and asked for twice."""
    node = world.nodes[name]
    if not node.up:
        return False
    world.ordered[name] += not isinstance(order, ProbeOrder)
    key = f"order {name} {world.ordered[name]}" if how % 4 and not isinstance(order, ProbeOrder) else ""
    node.spawn(_send(node, order, key))
    if key and how // 4 % 2:
        _again(world, name, order, key, how // 8)
    return True


def _again(world: World, name: str, order: PaymentOrder, key: str, how: int) -> None:
    """The client heard nothing, or was started again, and asks once more, whatever life the node is in."""

    def ask() -> None:
        node = world.nodes[name]
        if node.up:
            world.done["asked again"] += 1
            node.spawn(_send(node, order, key))

    seconds = AGAIN_SECONDS[how % len(AGAIN_SECONDS)]
    world.asking_until = max(world.asking_until, world.loop.time() + seconds)
    world.loop.call_later(seconds, ask, context=world.context)


# --- asked twice, and stopped --------------------------------------------------------------------------------------


def twice(world: World, payer: str, payee: str, amount_msat: int, how: int) -> bool:
    """One invoice, which the payer is asked to pay more than once: with a key (that is one payment) or without (the
    second is refused, or pays what did not arrive)."""
    if not world.nodes[payer].up or not world.nodes[payee].up:
        return False
    key = f"twice {len(world.payments)}" if how % 3 else ""

    async def ask() -> None:
        try:
            invoice = await world.nodes[payee].api.create_invoice(amount_msat, "twice")
        except (NodeError, StoreFailed):
            return
        world.payments.append(PayBook(payer, payee, invoice.payment_hash, amount_msat))
        node, order = world.nodes[payer], InvoiceOrder(invoice.bolt11, None, LIMITS)
        if not node.up:
            return
        node.spawn(_send(node, order, key))
        for again in _times(how // 8):
            _again(world, payer, order, key, again)

    world.nodes[payee].spawn(ask())
    return True


def _times(how: int) -> Sequence[int]:
    return (how, how // 8)[: 1 + how % 2]


def stop(world: World, number: int) -> bool:
    """A payer gives up one of its payments: nothing more is tried."""
    books = [book for book in world.payments if world.nodes[book.payer].up]
    if not books:
        return False
    book = books[number % len(books)]
    node = world.nodes[book.payer]
    under_way = node.database.rows(
        "SELECT 1 FROM payments WHERE payment_hash=? AND state='in_flight'", book.payment_hash
    )

    async def cancel() -> None:
        try:
            await node.api.cancel_payment(book.payment_hash)
        except (NodeError, StoreFailed):
            return

    node.spawn(cancel())
    return bool(under_way)
