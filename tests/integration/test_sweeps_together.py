"""Several channels that end at once, between two nodes over a regtest layer 1: what can be swept together is, and what
goes wrong with one holds up none of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channeld.bolt.transactions import ChannelSecrets
from channeld.bolt.transactions.sweep import Spend
from channeld.channel import events as ev
from channeld.channel.chain import signed_local_commitment
from channeld.channel.state import Normal
from channeld.node import monitor
from channeld.node.channels import Driver
from channeld.node.interface import ClosedChannelView
from channeld.onchain.build import build_sweep
from channeld.onchain.plans import PATIENCE_BLOCKS, make_plan
from channeld.onchain.resolution import Answered
from channeld.onchain.resolve import resolve
from tests.onchain_net import STRANGER, Net, TestNode
from wallet.bitcoin import Tx
from wallet.chain import ChainUnavailable

CHANNELS = 3
DELAY = 20


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with Net(tmp_path) as net:
        await net.open_channel()
        bob_id = net.bob.runtime.identity.node_id
        for _ in range(CHANNELS - 1):
            await net.alice.node.open_channel(bob_id, 1_000_000, 400_000_000, announce=False)
            await net.mine(2)
        for node in net.nodes:
            await node.until(lambda node=node: all_normal(node))  # type: ignore[misc]
        await net.disconnect()
        yield net


def drivers(node: TestNode) -> list[Driver]:
    return sorted(node.runtime.channels.all(), key=lambda driver: driver.channel_id)


def all_normal(node: TestNode) -> bool:
    states = [driver.state for driver in drivers(node)]
    return len(states) == CHANNELS and all(isinstance(state, Normal) and bool(state.scid) for state in states)


async def close_all(net: Net) -> None:
    """Alice publishes all her commitments; returns when they are in one block."""
    for driver in drivers(net.alice):
        await net.alice.runtime.channels.command(driver, ev.ForceClose("test"))
    await net.mine(1)


async def told(node: TestNode, ids: list[bytes]) -> list[ClosedChannelView]:
    return [await node.node.closed_channel(channel_id) for channel_id in ids]


async def takers(node: TestNode, ids: list[bytes], kind: str) -> list[bytes | None]:
    """Per channel, which transaction took the output of a kind."""
    views = await told(node, ids)
    return [next(output.spending_txid for output in view.outputs if output.kind == kind) for view in views]


def commitments(node: TestNode) -> list[Tx]:
    env = node.runtime.channels.env
    return [signed_local_commitment(driver.state, env(driver)) for driver in drivers(node)]  # type: ignore[arg-type]


def fee_of(node: TestNode, txid: bytes, inputs_sat: int) -> int:
    """By the chain alone."""
    facts = node.runtime.monitor._facts.of(drivers(node)[0].channel_key)
    (tx,) = [fact.tx for fact in facts if fact.txid == txid]
    return inputs_sat - sum(output.value_sat for output in tx.outputs)


async def test_one_transaction_for_all_and_each_report_names_its_share(net: Net) -> None:
    before = {node.name: node.balance_sat() for node in net.nodes}
    ids = [driver.channel_id for driver in drivers(net.alice)]
    await close_all(net)
    await net.mine(1)
    (theirs,) = set(await takers(net.bob, ids, "to_remote"))
    await net.skip(DELAY - 2)
    await net.mine(1)
    (ours,) = set(await takers(net.alice, ids, "to_local"))
    assert None not in (ours, theirs)
    for node, kind, txid in ((net.alice, "to_local", ours), (net.bob, "to_remote", theirs)):
        assert txid is not None
        views = await told(node, ids)
        taken = [output for view in views for output in view.outputs if output.spending_txid == txid]
        shares = [output.fee_sat or 0 for output in taken]
        paid = fee_of(node, txid, sum(output.amount_sat for output in taken))
        assert paid - len(taken) <= sum(shares) <= paid
        assert all(0 <= share <= output.amount_sat // 2 for share, output in zip(shares, taken, strict=True))
        for view in views:
            (own,) = [output for output in view.outputs if output.kind == kind]
            assert own.status_text.endswith("together with what is ours of 2 other channels")
        gained = node.balance_sat() - before[node.name]
        assert gained == sum(output.amount_sat for output in taken) - paid
    await net.skip(100)
    for node in net.nodes:
        assert all(view.over for view in await told(node, ids))


async def test_crashes_fees_that_rise_outputs_that_go_elsewhere_and_reorganisations(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {node.name: [driver.channel_id for driver in drivers(node)] for node in net.nodes}
    pool = net.server.node.mempool.pool
    published = commitments(net.alice)
    await close_all(net)
    height = net.height

    # Another copy of Bob's wallet took one channel's output: the others' are taken in the next block.
    (batch,) = pool.entries
    elsewhere = await lone_sweep(net.bob, net.height)
    await net.mine(1, txs=[elsewhere])
    await net.mine(1)
    found = await takers(net.bob, ids["bob"], "to_remote")
    assert found.count(elsewhere.txid()) == 1
    assert len(set(found) - {None, batch}) == CHANNELS  # each went by itself

    # Alice crashes when it is durable and not published.
    await net.skip(DELAY - 4)

    async def silent(attempt: object) -> Answered:
        raise ChainUnavailable("gone")

    monkeypatch.setattr(net.alice.runtime.monitor._publisher, "publish", silent)
    await net.mine(1)
    stored = [stored.resolution.attempts for stored in net.alice.runtime.monitor._stored.values()]
    (first,) = {attempt.txid for attempts in stored for attempt in attempts}
    assert [len(attempts) for attempts in stored] == [1] * CHANNELS
    assert first not in pool.entries
    await net.restart(net.alice)
    assert set(pool.entries) == {first}

    # Nobody mines it, and fees rise.
    net.alice.set_feerate(3_000)
    for _ in range(PATIENCE_BLOCKS):
        assert set(pool.entries) == {first}
        await net.mine(1, txs=[])
    (second,) = pool.entries
    assert second != first
    await net.mine(1)
    assert set(await takers(net.alice, ids["alice"], "to_local")) == {second}
    for view in await told(net.alice, ids["alice"]):
        (own,) = [output for output in view.outputs if output.kind == "to_local"]
        assert 1_000 < (own.fee_sat or 0) < 3_000

    # All is undone, and one channel's commitment does not come again with the others'.
    await net.reorganise(net.height - height + 1, first=published[1:], forget=True)
    await net.skip(DELAY)
    await net.mine(2)
    again = await takers(net.alice, ids["alice"], "to_local")
    assert None not in again
    assert second not in again


async def lone_sweep(node: TestNode, height: int) -> Tx:
    """What a node would make of `to_remote` of its first channel, paying to somebody else."""
    watching = node.runtime.monitor
    case = watching._cases[drivers(node)[0].channel_key]
    facts = watching._facts.of(case.driver.channel_key)
    known = await watching._know(case.driver, case.state, facts)
    close = resolve(known, facts)
    assert close is not None
    plan = make_plan("sweep", [o for o in close.outputs if o.kind == "to_remote"], watching._rates, height)
    assert plan is not None
    return build_sweep(plan, known, close.commitment_number, case.driver.secrets, STRANGER)


async def test_trouble_with_one_channel_holds_up_none_of_the_others(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug while one channel's part is made, and a witness that spoils the whole transaction."""
    ids = {node.name: [driver.channel_id for driver in drivers(node)] for node in net.nodes}

    failing, spoiling = drivers(net.alice)[1].secrets, drivers(net.bob)[0].secrets
    secret_for = ChannelSecrets.secret_for

    def with_trouble(secrets: ChannelSecrets, spend: Spend, per_commitment_secret: bytes = b"") -> bytes:
        assert secrets is not failing, "a bug"
        return b"\x01" * 32 if secrets is spoiling else secret_for(secrets, spend, per_commitment_secret)

    monkeypatch.setattr(ChannelSecrets, "secret_for", with_trouble)
    heard: list[str] = []
    monkeypatch.setattr(monitor.log, "critical", lambda sentence, **_: heard.append(sentence), raising=False)
    monkeypatch.setattr(monitor.log, "error", lambda sentence, **_: heard.append(sentence), raising=False)
    await close_all(net)
    await net.mine(1)
    assert [txid is None for txid in await takers(net.bob, ids["bob"], "to_remote")] == [True, False, False]
    await net.skip(DELAY - 3)
    await net.mine(2)
    assert [txid is None for txid in await takers(net.alice, ids["alice"], "to_local")] == [False, True, False]
    assert set(heard) == {"sweeping several channels together failed: each goes by itself", "the monitor failed"}
    monkeypatch.undo()
    await net.mine(2)
    assert None not in await takers(net.alice, ids["alice"], "to_local")
