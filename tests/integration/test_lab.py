"""Two daemons as processes on a regtest chain: open, pay both ways, kill -9, go on, close; every satoshi counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from channeld.lab import DaemonProcess, Lab
from channeld.v1 import channels_pb2, payments_pb2, wallet_pb2
from wallet.rpc import btc_to_sat

SUCCEEDED = payments_pb2.PAYMENT_STATE_SUCCEEDED


@pytest.mark.usefixtures("cold_starts")
async def test_a_channel_from_opening_to_closing(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob = await lab.daemons("alice", "bob")
        await lab.fund(alice, 2_000_000)
        channel = await lab.open_channel(alice, bob, 1_000_000, push_msat=100_000_000)
        for amount_msat in (1_000, 50_000_000, 123_456_789):
            payment = await alice.pay((await bob.invoice(amount_msat, "goods")).bolt11)
            assert payment.state == SUCCEEDED, payment.failure
        assert (await bob.pay((await alice.invoice(20_000_000)).bolt11)).state == SUCCEEDED

        await bob.kill()
        await bob.start()
        await alice.wait_channel(channel.channel_id)
        assert (await alice.pay((await bob.invoice(7_000)).bolt11)).state == SUCCEEDED

        paid_msat = 1_000 + 50_000_000 + 123_456_789 - 20_000_000 + 7_000
        mine = await alice.wait_channel(channel.channel_id)
        assert mine.local_msat == 900_000_000 - paid_msat
        assert mine.remote_msat == 100_000_000 + paid_msat

        await alice.close_channel(channel.channel_id)
        await lab.mine(6)
        await alice.wait_closed(channel.channel_id)
        await bob.wait_closed(channel.channel_id)
        alices, bobs = await alice.balance(), await bob.balance()
        funding_fee_sat = await _fee_of(alice, channel.funding_txid)
        alice_due_sat = 2_000_000 - 1_000_000 - funding_fee_sat + (900_000_000 - paid_msat) // 1000
        bob_due_sat = (100_000_000 + paid_msat) // 1000
        closing_fee_sat = await _closing_fee(lab, channel)
        # One side pays the fee of the closing transaction that was mined; a fraction of a satoshi goes to it, too.
        fractions_sat = 1 if paid_msat % 1000 else 0
        assert (alice_due_sat - alices.confirmed_sat, bob_due_sat - bobs.confirmed_sat) in (
            (closing_fee_sat - fractions_sat, 0),
            (0, closing_fee_sat - fractions_sat),
        )


async def _fee_of(daemon: DaemonProcess, txid: bytes) -> int:
    listed = await daemon.client.wallet.ListTransactions(wallet_pb2.ListTransactionsRequest())
    return next(t.fee_sat for t in listed.transactions if t.txid == txid)


async def _closing_fee(lab: Lab, channel: channels_pb2.Channel) -> int:
    """What the transaction that spends the funding output paid."""
    funding_txid = channel.funding_txid[::-1].hex()
    for height in range(await lab.height(), 0, -1):
        block = await lab.rpc.call("getblock", await lab.rpc.call("getblockhash", height), 2)
        for tx in block["tx"]:
            if any(txin.get("txid") == funding_txid for txin in tx["vin"]):
                return int(channel.capacity_sat) - sum(btc_to_sat(output["value"]) for output in tx["vout"])
    raise AssertionError("nothing spends the funding output")
