"""What is asked for, before anything is paid."""

from __future__ import annotations

from typing import Any, cast

import pytest

from channeld.bolt.invoice import Invoice, encode_invoice
from channeld.node.interface import NodeError
from channeld.node.payment_orders import Orders
from channeld.node.payment_record import MAX_CLTV_BLOCKS
from channeld.node.payment_views import InvoiceOrder, KeysendOrder, PaymentLimits, ProbeOrder
from wallet.bitcoin.address import REGTEST
from wallet.bitcoin.secp import pubkey_of

PAYEE_SECRET = b"\x05" * 32
NOW = 1_700_000_000


def orders(*unknown_features: int) -> Orders:
    nobody = cast(Any, None)
    own_id = pubkey_of(b"\x06" * 32)
    return Orders(REGTEST, own_id, nobody, nobody, lambda: float(NOW), lambda node_id: unknown_features)


def invoice(delta_blocks: int) -> str:
    wanted = Invoice(
        network=REGTEST,
        payment_hash=bytes(32),
        payment_secret=bytes(32),
        payee=pubkey_of(PAYEE_SECRET),
        timestamp=NOW,
        amount_msat=1000,
        description="",
        min_final_cltv_expiry_delta=delta_blocks,
    )
    return encode_invoice(wanted, PAYEE_SECRET)


@pytest.mark.parametrize(("blocks", "limit"), [(2_001, None), (100_000, None), (0xFFFF_FFFF, None), (145, 144)])
async def test_a_payee_may_not_lock_money_for_as_long_as_it_likes(blocks: int, limit: int | None) -> None:
    order = InvoiceOrder(invoice(blocks), limits=PaymentLimits(max_cltv_blocks=limit))
    with pytest.raises(NodeError, match=f"{blocks} blocks"):
        await orders().draft(order)


@pytest.mark.parametrize("kind", [KeysendOrder, ProbeOrder])
async def test_who_requires_what_we_do_not_know_is_paid_by_invoice_only(kind: Any) -> None:
    # BOLT 7, "Unless paying a BOLT #11 invoice which does not have the same bit(s) set, MUST NOT attempt to send
    # payments _to_ the node."
    payee = pubkey_of(PAYEE_SECRET)
    with pytest.raises(NodeError, match="bit 100, 102"):
        await orders(100, 102).draft(kind(node_id=payee, amount_msat=1000))
    assert (await orders().draft(kind(node_id=payee, amount_msat=1000))).record.destination == payee
    assert (await orders(100).draft(InvoiceOrder(invoice(18)))).record.destination == payee


@pytest.mark.parametrize(("blocks", "limit"), [(18, None), (MAX_CLTV_BLOCKS, None), (144, 144), (144, 146)])
async def test_what_is_added_to_the_last_delta_stays_within_the_limit(blocks: int, limit: int | None) -> None:
    order = InvoiceOrder(invoice(blocks), limits=PaymentLimits(max_cltv_blocks=limit))
    record = (await orders().draft(order)).record
    assert blocks <= record.final_delta_blocks <= min(limit or MAX_CLTV_BLOCKS, blocks + 6)
