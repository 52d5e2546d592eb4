"""A node that comes back after more than a thousand blocks, in which its channels were closed: by a revoked commitment,
by the peer's newest with HTLCs, together. What can still be had comes home, and what was lost is explained."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from channeld.channel import events as ev
from channeld.channel.chain import signed_local_commitment
from channeld.channel.state import Normal
from channeld.node.channels import Driver
from channeld.node.interface import ClosedChannelView, OutputView
from channeld.onchain.build import build_sweep
from channeld.onchain.facts import Fact
from channeld.onchain.known import known_of
from channeld.onchain.plans import make_plan
from channeld.onchain.rates import Rates
from channeld.onchain.resolve import resolve
from tests.onchain_net import POLICY, STRANGER, Net, TestNode, preimage
from wallet.bitcoin import Tx

YEARS_BLOCKS = 1_000
EXPIRY_BLOCKS = 45


class Story(NamedTuple):
    """Channels, and ids of HTLCs that Alice offered. One that Bob offered, whose preimage she has, he took back while
    she was off."""

    cheated: bytes
    forced: bytes
    together: bytes
    claimed: int
    returned: int


async def three_channels(net: Net) -> list[tuple[Driver, Driver]]:
    """Alice's drivers and Bob's, pairwise."""
    await net.open_channel()
    bob_id = net.bob.runtime.identity.node_id
    for _ in range(2):
        await net.alice.node.open_channel(bob_id, 1_000_000, 400_000_000, announce=False)
        await net.mine(2)
    for node in net.nodes:
        await node.until(lambda node=node: all(is_usable(d) for d in node.runtime.channels.all()))  # type: ignore[misc]
    found = {}
    for driver in net.alice.runtime.channels.all():
        other = net.bob.runtime.channels.by_id(driver.channel_id)
        assert other is not None
        found[driver.channel_id] = (driver, other)
    return list(found.values())


def is_usable(driver: Driver) -> bool:
    return isinstance(driver.state, Normal) and bool(driver.state.scid)


async def add(net: Net, sender: TestNode, pair: tuple[Driver, Driver], amount_msat: int, number: int) -> int:
    driver, receiver = pair if sender is net.alice else pair[::-1]
    host = net.bob if sender is net.alice else net.alice
    assert isinstance(driver.state, Normal)
    id = driver.state.commitments.local_next_htlc_id
    payment_hash = sha256(preimage(number)).digest()
    before = len(host.held.locked)
    event = ev.AddHtlc(amount_msat, payment_hash, net.height + EXPIRY_BLOCKS, bytes(1366), b"test")
    await sender.runtime.channels.command(driver, event)
    await host.until(lambda: len(host.held.locked) > before and is_settled(driver) and is_settled(receiver))
    return id


def is_settled(driver: Driver) -> bool:
    return isinstance(driver.state, Normal) and driver.state.commitments.is_settled and not driver._busy


def theft_of(net: Net, cheater: Driver, old: Normal) -> tuple[Tx, Tx]:
    """Bob's old commitment, and what takes his balance of it after his delay."""
    tx = signed_local_commitment(old, net.bob.runtime.channels.env(cheater))
    fact = Fact(net.height + 1, tx.txid(), tx)
    known = known_of(old, cheater.secrets.per_commitment_point(old.commitments.local.index))
    close = resolve(known, (fact,))
    assert close is not None
    outputs = [output for output in close.outputs if output.kind == "to_local"]
    plan = make_plan("sweep", outputs, Rates(((1, 1000),)), net.height + 30)
    assert plan is not None
    return tx, build_sweep(plan, known, None, cheater.secrets, STRANGER)


async def until_alice_goes(net: Net) -> tuple[Story, Tx, Tx]:
    cheated, forced, together = await three_channels(net)
    old = cheated[1].state
    assert isinstance(old, Normal)
    await add(net, net.bob, cheated, 30_000_000, 1)
    claimed = await add(net, net.alice, forced, 50_000_000, 2)
    returned = await add(net, net.alice, forced, 51_000_000, 3)
    lost = await add(net, net.bob, forced, 52_000_000, 4)
    await net.alice.node.close_channel(together[0].channel_id)
    breach, theft = theft_of(net, cheated[1], old)
    await net.disconnect()
    await net.alice.runtime.channels.command(forced[0], ev.FulfillHtlc(lost, preimage(4)))
    await net.settle()
    await net.alice.stop()
    await net.bob.runtime.channels.command(forced[1], ev.FulfillHtlc(claimed, preimage(2)))
    await net.bob.runtime.channels.command(forced[1], ev.ForceClose("Alice is gone"))
    ids = [pair[0].channel_id for pair in (cheated, forced, together)]
    return Story(ids[0], ids[1], ids[2], claimed, returned), breach, theft


async def while_she_is_off(net: Net, breach: Tx, theft: Tx) -> None:
    await net.mine(1)
    await net.mine(1, txs=[breach])
    for _ in range(POLICY.to_self_delay_blocks):
        await net.server.node.mine(STRANGER)
    await net.mine(1, txs=[theft])
    for _ in range(EXPIRY_BLOCKS):
        await net.server.node.mine(STRANGER)
    await net.mine(2)
    await net.bob.stop()
    for _ in range(YEARS_BLOCKS):
        await net.server.node.mine(STRANGER)


def of_kind(view: ClosedChannelView, kind: str, incoming: bool | None = None) -> list[OutputView]:
    return [
        output
        for output in view.outputs
        if output.kind == kind and (incoming is None or (output.htlc is not None and output.htlc.incoming == incoming))
    ]


async def test_what_can_be_had_is_and_what_is_lost_is_explained(tmp_path: Path) -> None:
    async with Net(tmp_path) as net:
        story, breach, theft = await until_alice_goes(net)
        before = net.alice.balance_sat()
        await while_she_is_off(net, breach, theft)
        started = time.monotonic()
        await net.alice.start()
        await net.settle()
        seconds = time.monotonic() - started
        print(f"caught up with {net.height} blocks in {seconds:.2f} s")
        assert seconds < 60
        heard = net.alice.runtime.bus.counts
        assert (heard["chain.missed"], heard["onchain.revoked"], heard["onchain.lost"]) == (1, 1, 2)
        assert heard["monitor.failed"] == 0
        # BOLT 5, "MUST extract the payment preimage": the incoming side is settled though years have passed.
        assert net.alice.held.settled_ids == {story.claimed: preimage(2)}
        await net.mine(1)

        together = await net.alice.node.closed_channel(story.together)
        assert (together.kind, together.over) == ("mutual", True)
        assert {output.status for output in together.outputs} == {"ours", "theirs"}

        cheated = await net.alice.node.closed_channel(story.cheated)
        assert cheated.kind == "revoked"
        (main,) = of_kind(cheated, "to_local")
        assert (main.status, main.spending_txid) == ("lost", theft.txid())
        assert "when this node was off (it missed blocks" in main.status_text
        (ours,) = of_kind(cheated, "to_remote")
        assert ours.status == "taken"

        forced = await net.alice.node.closed_channel(story.forced)
        assert forced.kind == "remote_current"
        assert [output.status for output in of_kind(forced, "to_remote")] == ["taken"]
        (theirs,) = of_kind(forced, "htlc", incoming=True)
        assert theirs.status == "lost"
        assert sorted(output.status for output in of_kind(forced, "htlc", incoming=False)) == ["taken", "theirs"]

        await net.mine(6)
        assert set(net.alice.held.failed_ids) == {story.returned}
        home = ours.amount_sat + sum(o.amount_sat for o in forced.outputs if o.status == "taken")
        mutual = sum(output.amount_sat for output in together.outputs if output.status == "ours")
        assert home + mutual - 3_000 < net.alice.balance_sat() - before <= home + mutual
        await net.skip(101)
        assert not list(net.alice.runtime.channels.all())
