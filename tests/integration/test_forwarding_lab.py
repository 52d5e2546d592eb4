"""Real daemons in a line: fees exact to the msat, and kill -9 of the one between while a payment is under way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from channeld.lab import DaemonProcess, Lab
from channeld.v1 import channels_pb2, invoices_pb2, payments_pb2

AMOUNT_MSAT = 20_000_321


async def _wait_network(daemon: DaemonProcess, channels: int) -> None:
    """Until it has heard of so many public channels, with all their policies."""
    async with daemon.events(0) as events:
        async for event in events:
            if event.kind == "graph.changed" and f"has {channels} channels" in event.sentence:
                return


async def _wait_outcome(daemon: DaemonProcess, payment_hash: bytes) -> payments_pb2.Payment:
    async def over() -> payments_pb2.Payment | None:
        payment = (await daemon.client.payments.Get(payments_pb2.GetPaymentRequest(payment_hash=payment_hash))).payment
        return payment if payment.state != payments_pb2.PAYMENT_STATE_IN_FLIGHT else None

    found = await daemon.wait_until(over)
    assert isinstance(found, payments_pb2.Payment)
    return found


async def _wait_no_htlcs(daemon: DaemonProcess) -> None:
    """HTLCs are removed within moments of the outcome; there is no event for it."""
    async with asyncio.timeout(20):
        while any(channel.htlcs for channel in await daemon.channels()):
            pass


async def _routable(payer: DaemonProcess, payee: DaemonProcess) -> payments_pb2.Payment:
    """A first small payment, tried until the payer has heard of all policies."""
    invoice = await payee.invoice(1_000_000)

    async def paid() -> payments_pb2.Payment | None:
        try:
            return await payer.pay(invoice.bolt11)
        except grpc.aio.AioRpcError as error:
            if "no way" in (error.details() or ""):
                return None
            raise

    found = await payer.wait_until(paid)
    assert isinstance(found, payments_pb2.Payment)
    assert found.state == payments_pb2.PAYMENT_STATE_SUCCEEDED, found.failure
    return found


async def test_a_line_of_daemons_forwards_and_survives_the_death_of_the_middle(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob, carol = await lab.daemons("alice", "bob", "carol")
        await asyncio.gather(lab.fund(alice, 3_000_000), lab.fund(bob, 3_000_000))
        first = await lab.open_channel(alice, bob, 1_000_000)
        second = await lab.open_channel(bob, carol, 1_000_000)
        await _wait_network(alice, 2)
        request = channels_pb2.SetPolicyRequest(fee_base_msat=1000)
        policy = (await bob.client.channels.SetPolicy(request)).policies[0]
        payment = await _routable(alice, carol)
        assert payment.fee_msat == 1000 + 1_000_000 * policy.fee_proportional_millionths // 1_000_000
        (forward,) = (await bob.client.channels.ListForwards(channels_pb2.ListForwardsRequest())).forwards
        assert forward.fee_msat == payment.fee_msat
        assert (forward.incoming_channel_id, forward.outgoing_channel_id) == (first.channel_id, second.channel_id)
        paid = 1_000_000

        for _ in range(3):
            invoice = await carol.invoice(AMOUNT_MSAT)
            paying = asyncio.ensure_future(alice.pay(invoice.bolt11))
            seen = asyncio.ensure_future(_wait_htlc(bob))
            await asyncio.wait((paying, seen), return_when=asyncio.FIRST_COMPLETED)
            seen.cancel()
            await asyncio.gather(seen, return_exceptions=True)
            await bob.kill()
            await bob.start()
            await asyncio.gather(alice.wait_channel(first.channel_id), carol.wait_channel(second.channel_id))
            outcome = await paying
            if outcome.state == payments_pb2.PAYMENT_STATE_IN_FLIGHT:
                outcome = await _wait_outcome(alice, invoice.payment_hash)
            asked = invoices_pb2.GetInvoiceRequest(payment_hash=invoice.payment_hash)
            received = (await carol.client.invoices.Get(asked)).invoice.received_msat
            succeeded = outcome.state == payments_pb2.PAYMENT_STATE_SUCCEEDED
            assert received == (AMOUNT_MSAT if succeeded else 0)
            paid += received
            await asyncio.gather(*(_wait_no_htlcs(daemon) for daemon in (alice, bob, carol)))

        balances = {daemon.name: (await daemon.balance()).channels_local_msat for daemon in (alice, bob, carol)}
        forwards = (await bob.client.channels.ListForwards(channels_pb2.ListForwardsRequest())).forwards
        earned = sum(forward.fee_msat for forward in forwards)
        assert balances == {"alice": 10**9 - paid - earned, "bob": 10**9 + earned, "carol": paid}


async def _wait_htlc(daemon: DaemonProcess) -> None:
    """Until an HTLC is in one of its channels."""
    while not any(channel.htlcs for channel in await daemon.channels()):
        pass
