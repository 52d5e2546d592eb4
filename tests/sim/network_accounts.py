"""The accounts at the end of a run: every millisatoshi of every channel, every payment, every coin.

Two reckonings. The exact one: what a node has in its channels is what it put in, and was paid, and earned, less what it
paid, to the millisatoshi; for nodes none of whose channels ended on chain with something under way. The other holds for
every honest node, whatever happened: with its coins it has what it should have, less fees that can be named.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from channeld.channel.state import Closed, Closing, Funded, Normal, State
from channeld.node.interface import PaymentView
from channeld.node.invoice_record import InvoiceRecord
from channeld.node.payment_record import PaymentRecord
from tests.sim.network_checks import ChannelBook, PayBook, may_be_lost
from tests.sim.onchain_world import COIN_SCRIPT
from wallet.bitcoin import Tx
from wallet.wallet import Wallet

if TYPE_CHECKING:
    from tests.sim.network_chain import SimChain
    from tests.sim.network_node import SimNode
    from tests.sim.network_world import World

ANCHORS_SAT = 660
DUST_SAT = 360
"""An output of less is in no commitment; with what is lost by rounding."""
COMMITMENT_LOCKTIME = 0x20
_invoice = msgspec.msgpack.Decoder(InvoiceRecord).decode
_payment = msgspec.msgpack.Decoder(PaymentRecord).decode


def check_accounts(world: World) -> None:
    """Everything of this module."""
    for book in (*world.payments, *_unbooked(world)):
        _check_payment(world, book)
    for node in world.nodes.values():
        _check_reservations(world, node)
        if node.name in world.losers:
            continue
        _check_orders(world, node)
        _check_circles(world, node)
        flows_msat = _flows_msat(node)
        _check_channels(world, node, flows_msat)
        if node.name not in world.poorer and not any(book.cheater == node.name for book in world.books.values()):
            _check_wealth(world, node, flows_msat)


def _check_reservations(world: World, node: SimNode) -> None:
    """No coin is kept for a transaction that nobody needs."""
    world.checked["no coin is kept for nothing"] += 1
    needed = node.running.monitor.reservations()
    needed |= {funded.reservation for funded in node.running.coins._planned.values()}
    for number, outpoints in node.running.wallet.reservations().items():
        if number not in needed:
            world.problem(f"{node} keeps {len(outpoints)} coins for nothing (reservation {number})")
    known = {channel.channel_key for channel in node.running.channels.all()}
    for key in node.running.monitor._stored.keys() - known:
        if node.running.monitor._stored[key].resolution.attempts:
            world.problem(f"{node} keeps transactions of channel {key}, which is over")


def _records(node: SimNode, payment_hash: bytes) -> list[PaymentRecord]:
    found = node.database.rows("SELECT record FROM payments WHERE payment_hash=?", payment_hash)
    return [_payment(record) for (record,) in found]


def _unbooked(world: World) -> list[PayBook]:
    """Payments that have no invoice of somebody else's: what the payers' disks say of them."""
    known = {book.payment_hash for book in world.payments}
    every = [(node, _payment(record)) for node in world.nodes.values() for (record,) in _stored(node)]
    return [
        PayBook(node.name, world.name_of(found.destination), found.payment_hash, found.amount_msat)
        for node, found in every
        if found.payment_hash not in known and not found.is_probe
    ]


def _check_orders(world: World, node: SimNode) -> None:
    """What was asked for again with its key was done once."""
    if world.ordered[node.name]:
        world.checked["one key is one payment"] += 1
    made = sum(_payment(record).kind == "keysend" for (record,) in _stored(node))
    if made > world.ordered[node.name]:
        world.problem(f"{node} made {made} payments by keysend, and was told to make {world.ordered[node.name]}")


def _stored(node: SimNode) -> list[tuple[bytes]]:
    return [(record,) for (record,) in node.database.rows("SELECT record FROM payments")]


def _check_payment(world: World, book: PayBook) -> None:
    """It succeeded or it failed, for all concerned."""
    if world.losers & {book.payer, book.payee}:
        return
    records = _records(world.nodes[book.payer], book.payment_hash)
    found = world.nodes[book.payee].database.rows("SELECT record FROM invoices WHERE payment_hash=?", book.payment_hash)
    invoice = _invoice(found[0][0]) if found else None
    received = invoice is not None and invoice.state == "settled"
    paid = [record for record in records if record.state == "succeeded"]
    what = f"{book.payer} -> {book.payee}, {book.amount_msat} msat"
    if len(paid) > 1:
        world.problem(f"{what}: paid {len(paid)} times")
    on_chain = any(kept.fate in ("force", "cheat") for kept in world.books.values())
    world.checked["a payment is paid if and only if it was received"] += 1
    if any(kept.cheater for kept in world.books.values()):
        return  # see `may_be_lost`
    if received != bool(paid) and not may_be_lost(world, book):
        world.problem(f"{what}: {'received' if received else 'not received'}, {'paid' if paid else 'failed'}")
    if received and invoice is not None and invoice.received_msat != book.amount_msat:
        world.problem(f"{what}: received {invoice.received_msat} msat")
    for record in paid:
        ends = Counter(part.state for part in record.parts)
        world.checked["a lost part was made up for"] += bool(ends["failed"] and ends["settled"] > 1)
        delivered = sum(part.delivered_msat for part in record.parts if part.state == "settled")
        if delivered != record.amount_msat and not on_chain:
            world.problem(f"{what}: parts of {delivered} msat were settled")
    told = book.result
    if isinstance(told, PaymentView) and told.state != "in_flight" and all(r.state != told.state for r in records):
        world.problem(f"{what}: the payer was told that it {told.state}, and that is on no disk")
    if isinstance(told, Exception) and any(record.state != "failed" for record in records):
        world.problem(f"{what}: the payer was told that nothing was paid: {told}")


def _check_circles(world: World, node: SimNode) -> None:
    """Money that a node moved between its own channels arrived, all of it, or came back, all of it."""
    if any(book.fate in ("force", "cheat", "lost") or book.cheater for book in world.books.values()):
        return  # a circle that is cut on chain is settled on one side of the cut, and paid for on the other
    for (row,) in node.database.rows("SELECT record FROM payments"):
        record = _payment(row)
        if record.kind != "rebalance":
            continue
        world.checked["a circle is closed or never was"] += 1
        ((invoice,),) = node.database.rows("SELECT record FROM invoices WHERE payment_hash=?", record.payment_hash)
        settled = sum(part.delivered_msat for part in record.parts if part.state == "settled")
        moved = record.state == "succeeded"
        wanted = (record.amount_msat if moved else 0, moved)
        if record.state == "in_flight" or (settled, _invoice(invoice).state == "settled") != wanted:
            found = f"{settled} of {record.amount_msat} msat moved, the invoice is {_invoice(invoice).state}"
            world.problem(f"{node}: a circle {record.state}: {found}")


def _flows_msat(node: SimNode) -> int:
    """What was received and earned, less what was paid."""
    disk = node.database
    received = sum(
        _invoice(record).received_msat for (record,) in disk.rows("SELECT record FROM invoices WHERE state='settled'")
    )
    paid = sum(
        part.amount_msat
        for (record,) in disk.rows("SELECT record FROM payments")
        for part in _payment(record).parts
        if part.state == "settled"
    )
    ((earned,),) = disk.rows("SELECT coalesce(sum(incoming_msat - outgoing_msat), 0) FROM forwards")
    return received - paid + int(earned)


def _owned_msat(state: State) -> int | None:
    """What is ours of a channel; None if that was decided on chain."""
    if isinstance(state, Closed):
        if state.closing_txid is None:
            return 0
        return state.to_local_msat if state.kind == "mutual" else None
    if not isinstance(state, Funded):
        return 0
    c = state.commitments
    if isinstance(state, Closing) and (c.has_htlcs or not c.is_settled or state.kind == "revoked"):
        return None
    return c.local.spec.to_local_msat


def _check_channels(world: World, node: SimNode, flows_msat: int) -> None:
    expected, owned = flows_msat, 0
    durable = node.durable()
    for book in world.books.values():
        key = book.keys.get(node.name)
        if key is None or not _is_real(world, book.channel_id):
            continue
        found = _owned_msat(durable[key])
        if found is None or book.cheater:
            return
        owned += found
        expected += book.share_msat(node.name)
    world.checked["channels add up to the msat"] += 1
    if owned != expected:
        world.problem(f"{node} has {owned} msat in its channels, and should have {expected} msat")


def _is_real(world: World, channel_id: bytes) -> bool:
    """Whether a channel's funding output ever came to be."""
    return any(
        outpoint in world.chain.outputs for outpoint, book in world.by_funding.items() if book.channel_id == channel_id
    )


def _check_wealth(world: World, node: SimNode, flows_msat: int) -> None:
    """An honest node is no poorer than it should be, but for fees with names."""
    world.checked["no honest node is poorer but for fees with names"] += 1
    wealth = node.owned_sat() * 1000
    expected = world.granted_sat[node.name] * 1000 + flows_msat
    durable = node.durable()
    for book in world.books.values():
        key = book.keys.get(node.name)
        if key is None or not _is_real(world, book.channel_id):
            continue
        expected += book.gift_msat if book.opener != node.name else -book.gift_msat
        state = durable[key]
        if isinstance(state, Funded) and not isinstance(state, Closing):
            wealth += state.commitments.local.spec.to_local_msat
    fees = _fees_sat(world, node) + _given_up_sat(node)
    if wealth < expected - fees * 1000 - 1000:
        lost = expected - wealth
        world.problem(f"{node} has {wealth} msat instead of {expected} msat: {lost} msat lost, {fees} sat in fees")


def _fees_sat(world: World, node: SimNode) -> int:
    """Of transactions that were this node's to pay for: what spends its coins, or brings money home to it, and what
    closed its channels. BOLT 3: the opener pays for a commitment and its anchors."""
    chain, wallet = world.chain, node.running.wallet
    fundings = {outpoint: book for outpoint, book in world.by_funding.items() if node.name in book.names}
    total = 0
    for height in sorted(chain.blocks):
        for tx in chain.blocks[height]:
            closed = next((fundings[i.outpoint] for i in tx.inputs if i.outpoint in fundings), None)
            if closed is not None and tx.locktime >> 24 == COMMITMENT_LOCKTIME:
                total += DUST_SAT
                total += chain.fee_sat(tx) + ANCHORS_SAT if closed.opener == node.name else 0
            elif closed is not None or _is_of(wallet, chain, tx):
                total += chain.fee_sat(tx)
    return total


def _is_of(wallet: Wallet, chain: SimChain, tx: Tx) -> bool:
    spent = [chain.txout(txin.outpoint).script_pubkey for txin in tx.inputs]
    if COIN_SCRIPT in spent:
        return False  # the faucet's
    return any(map(wallet.is_ours, spent)) or any(wallet.is_ours(output.script_pubkey) for output in tx.outputs)


def _given_up_sat(node: SimNode) -> int:
    """Outputs that cost more to take than they hold."""
    reports = [stored.report for stored in node.running.monitor._stored.values() if stored.report is not None]
    return sum(output.amount_sat for report in reports for output in report.outputs if output.status == "uneconomic")


def check_lost(world: World) -> None:
    """Who lost its data published nothing that was revoked (see `Tap.broadcast`), and has its share of each channel
    that its peer closed for it."""
    for name in world.losers:
        loser = world.nodes[name]
        for book in world.books.values():
            if name in book.names:
                _check_share(world, loser, book)


def _check_share(world: World, loser: SimNode, book: ChannelBook) -> None:
    peer = world.nodes[next(other for other in book.names if other != loser.name)]
    theirs = peer.durable().get(book.keys.get(peer.name, -1))
    funding = next(outpoint for outpoint, found in world.by_funding.items() if found is book)
    closing = world.chain.spent.get(funding)
    if closing is None or not isinstance(theirs, Funded) or isinstance(theirs, Normal):
        return
    if closing.txid() != theirs.commitments.local.txid:
        return
    share_sat = theirs.commitments.local.spec.to_remote_msat // 1000
    world.checked["who lost data has its share"] += 1
    ours_sat = 0
    for vout, output in enumerate(closing.outputs):
        spender = world.chain.spent.get(closing.outpoint(vout))
        came_to = (output, *(spender.outputs if spender is not None else ()))
        if any(loser.running.wallet.is_ours(txout.script_pubkey) for txout in came_to):
            ours_sat += output.value_sat
    fee_sat = world.chain.fee_sat(closing) + 1_000 if book.opener == loser.name else 1_000
    if share_sat > 20_000 and ours_sat < share_sat - fee_sat:
        world.problem(f"{loser}, who lost data, has {ours_sat} sat of its {share_sat} sat of {book.names}")
