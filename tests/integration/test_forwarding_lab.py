"""Real daemons in a line: fees exact to the msat, and kill -9 of the one between while a payment is under way."""

from __future__ import annotations

import asyncio
from pathlib import Path

from channeld.lab import Lab
from channeld.v1 import channels_pb2, payments_pb2

AMOUNT_MSAT = 20_000_321


async def test_a_line_of_daemons_forwards_and_survives_the_death_of_the_middle(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        alice, bob, carol = await lab.daemons("alice", "bob", "carol")
        await asyncio.gather(lab.fund(alice, 3_000_000), lab.fund(bob, 3_000_000))
        first = await lab.open_channel(alice, bob, 1_000_000)
        second = await lab.open_channel(bob, carol, 1_000_000)
        request = channels_pb2.SetPolicyRequest(fee_base_msat=1000)
        policy = (await bob.client.channels.SetPolicy(request)).policies[0]
        await lab.wait_graph(first, second)
        payment = await alice.pay((await carol.invoice(1_000_000)).bolt11)
        assert payment.fee_msat == 1000 + 1_000_000 * policy.fee_proportional_millionths // 1_000_000
        (forward,) = await bob.forwards()
        assert forward.fee_msat == payment.fee_msat
        assert (forward.incoming_channel_id, forward.outgoing_channel_id) == (first.channel_id, second.channel_id)
        paid = 1_000_000

        for _ in range(3):
            invoice = await carol.invoice(AMOUNT_MSAT)
            paying = asyncio.ensure_future(alice.pay(invoice.bolt11))
            seen = asyncio.ensure_future(bob.wait_htlcs(True))
            await asyncio.wait((paying, seen), return_when=asyncio.FIRST_COMPLETED)
            seen.cancel()
            await asyncio.gather(seen, return_exceptions=True)
            await bob.kill()
            await bob.start()
            await asyncio.gather(alice.wait_channel(first.channel_id), carol.wait_channel(second.channel_id))
            outcome = await paying
            if outcome.state == payments_pb2.PAYMENT_STATE_IN_FLIGHT:
                outcome = await alice.wait_payment(invoice.payment_hash)
            received = (await carol.received(invoice.payment_hash)).received_msat
            succeeded = outcome.state == payments_pb2.PAYMENT_STATE_SUCCEEDED
            assert received == (AMOUNT_MSAT if succeeded else 0)
            paid += received
            await asyncio.gather(*(daemon.wait_htlcs(False) for daemon in (alice, bob, carol)))

        balances = {daemon.name: (await daemon.balance()).channels_local_msat for daemon in (alice, bob, carol)}
        earned = sum(forward.fee_msat for forward in await bob.forwards())
        assert balances == {"alice": 10**9 - paid - earned, "bob": 10**9 + earned, "carol": paid}
