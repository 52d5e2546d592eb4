"""A forwarded HTLC that is not worth closing a channel for, and that nobody answers, or only when it is too late."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from channeld.bolt.onion.payment import build_payment_onion, final_payload, forward_payload
from channeld.channel import events as ev
from channeld.node import views
from channeld.node.driver import Reaction
from channeld.node.forwarding import names_of
from tests.integration.world import STEP_SECONDS, world_in

CHANNEL_SAT = 1_000_000
AMOUNT_MSAT = 200_000
LATE_BLOCKS = 86
PREIMAGE = bytes(32)
PAYMENT_HASH = sha256(PREIMAGE).digest()


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_small_htlc_that_is_never_answered_closes_no_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: bool
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
        onion = build_payment_onion([(bob.node_id, first), (carol.node_id, last)], bytes([7]) * 32, PAYMENT_HASH)
        (driver,) = alice.runtime.channels.all()
        add = ev.AddHtlc(AMOUNT_MSAT + 2000, PAYMENT_HASH, height + 90, onion.packet, b"a test")
        await alice.runtime.channels.command(driver, add)

        (last_hop,) = carol.runtime.channels.all()
        arrived = carol.runtime.channels.wait_until(last_hop, lambda d: len(views.htlcs(d.state)) == 1, STEP_SECONDS)
        assert await arrived
        await world.mine(LATE_BLOCKS)
        await alice.wait_no_htlcs(channels[0])
        assert (await alice.wait_active(channels[0])).phase == "normal"
        if restarts:
            await bob.restart()
            await bob.wait_active(channels[1])
        # Carol answers after all: Bob pays her and has nothing from Alice, so there is no fee that he earned.
        (htlc,) = views.htlcs(last_hop.state)
        await carol.runtime.channels.command(last_hop, ev.FulfillHtlc(htlc.id, PREIMAGE))

        async def lost() -> bool:
            return any(event.kind == "forward.lost" for event in bob.runtime.bus._kept)

        await bob.until(lost)
        await bob.wait_no_htlcs(channels[1])
        assert await bob.api.list_forwards() == []
        assert sum(c.local_msat for c in await alice.api.list_channels()) == CHANNEL_SAT * 1000
