"""A forwarded HTLC that nobody answers and that is not worth closing a channel for."""

from __future__ import annotations

from pathlib import Path

import pytest

from channeld.bolt.onion.payment import build_payment_onion, final_payload, forward_payload
from channeld.channel import events as ev
from channeld.node.driver import Reaction
from channeld.node.forwarding import names_of
from tests.integration.world import world_in

CHANNEL_SAT = 1_000_000
AMOUNT_MSAT = 200_000
LATE_BLOCKS = 86


async def test_a_small_htlc_that_is_never_answered_closes_no_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_in(tmp_path) as world:
        alice, bob, carol = [await world.node(name) for name in ("alice", "bob", "carol")]
        for node in (alice, bob):
            await world.fund(node, 20_000_000)
        channels = [
            await world.open(alice, bob, CHANNEL_SAT),
            await world.open(bob, carol, CHANNEL_SAT, announce=False),
        ]
        await world.mine(6)
        monkeypatch.setattr(carol.runtime.receiver, "receive", lambda *_: Reaction())
        height = alice.runtime.wallet.height
        (outgoing,) = (d for d in bob.runtime.channels.all() if d.peer_id == carol.node_id)
        scid, *_ = names_of(outgoing)
        last = final_payload(AMOUNT_MSAT, height + 50, bytes(32), AMOUNT_MSAT, None)
        first = forward_payload(AMOUNT_MSAT, height + 50, scid)
        onion = build_payment_onion([(bob.node_id, first), (carol.node_id, last)], bytes([7]) * 32, bytes(32))
        (driver,) = alice.runtime.channels.all()
        add = ev.AddHtlc(AMOUNT_MSAT + 2000, bytes(32), height + 90, onion.packet, b"a test")
        await alice.runtime.channels.command(driver, add)

        async def arrived() -> bool:
            channel = await carol.channel(channels[1])
            return channel is not None and len(channel.htlcs) == 1

        await carol.until(arrived)
        await world.mine(LATE_BLOCKS)
        await alice.wait_no_htlcs(channels[0])
        assert (await alice.wait_active(channels[0])).phase == "normal"
