"""Sweeps of several channels in one transaction: who pays what, what goes alone, and what becomes of one that fails."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from channeld.channel import events as ev
from channeld.onchain import build
from channeld.onchain import resolution as on
from channeld.onchain.batch import MAX_BATCH_INPUTS, Batch, Part, batches, is_joinable
from channeld.onchain.facts import Fact
from channeld.onchain.outputs import Close
from channeld.onchain.plans import PATIENCE_BLOCKS, Attempt, Plan, is_live, plans
from channeld.onchain.rates import FLOOR_PER_KW, Rates, fee_sat
from channeld.onchain.report import report
from tests.machine.harness import HEIGHT, Peer, open_pair
from tests.unit.bolt3_support import script_ok
from tests.unit.onchain_support import (
    DELAY,
    HOME,
    POLICY,
    channel,
    close_of,
    commitment,
    fact,
    known,
    txout_of,
)
from wallet.bitcoin import Tx

H = HEIGHT + 1
CALM = Rates(((1, 1000), (144, 500)))
BUSY = Rates(((1, 9000), (144, 2000)))


class Ended(NamedTuple):
    """A channel whose close is in the chain, as its monitor has it, and what it wants to sweep."""

    peer: Peer
    close: Close
    facts: tuple[Fact, ...]
    plan: Plan


@lru_cache
def ended(count: int = 3, anchors: bool = True, local: bool = True) -> tuple[Ended, ...]:
    """Channels that were all closed in block H, and whose outputs are mature."""
    found = []
    for number in range(count):
        pair = open_pair(anchors=anchors, push_msat=(100 + number) * 1_000_000, policy=POLICY, number=number + 70)
        for peer in (pair.alice, pair.bob):
            peer.step(ev.Disconnected())
        facts = (fact(commitment(pair.alice if local else pair.bob), H),)
        close = close_of(pair.alice, *facts)
        (plan,) = plans(close.outputs, (), CALM, H + DELAY - 1)
        found.append(Ended(pair.alice, close, facts, plan))
    return tuple(found)


def joined(channels: tuple[Ended, ...]) -> tuple[Batch, Tx, list[Attempt]]:
    (batch,) = batches([Part(number, channel.plan) for number, channel in enumerate(channels)])
    tx = build.build_batch(batch, [channel.peer.signer for channel in channels], HOME)
    return batch, tx, build.attempts_of(batch, tx, H + DELAY - 1)


def made(channel: Ended, attempt: Attempt) -> on.Resolution:
    env = on.Env(known(channel.peer, channel.facts), channel.facts, attempt.height, CALM)
    return on.advance(on.Resolution(), on.Made(channel.plan, attempt), env).state


# --- one transaction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_sweeps_of_several_channels_go_together_and_cost_each_less(anchors: bool, local: bool) -> None:
    channels = ended(3, anchors, local)
    _, tx, attempts = joined(channels)
    spent = [(output, channel.facts) for channel in channels for output in channel.plan.outputs]
    assert [txin.outpoint for txin in tx.inputs] == [output.outpoint for output, _ in spent]
    for index, (output, facts) in enumerate(spent):
        assert script_ok(tx, index, txout_of(output, facts))
    (home,) = tx.outputs
    paid = sum(output.amount_sat for output, _ in spent) - home.value_sat
    assert sum(attempt.own_fee_sat for attempt in attempts) == paid
    for one, attempt in zip(channels, attempts, strict=True):
        alone = build.build_sweep(one.plan, known(one.peer, one.facts), None, one.peer.signer, HOME)
        cost = sum(output.amount_sat for output in one.plan.outputs) - alone.outputs[0].value_sat
        assert 0 < attempt.own_fee_sat < cost
        assert attempt.feerate_per_kw == pytest.approx(one.plan.feerate_per_kw, abs=5)
        assert (attempt.txid, attempt.others) == (tx.txid(), 2)
        assert attempt.outpoints == one.plan.outpoints
        assert is_live(attempt, one.close.outputs)


def test_each_channels_report_names_its_share() -> None:
    channels = ended()
    _, tx, attempts = joined(channels)
    mined = fact(tx, H + DELAY)
    for one, attempt in zip(channels, attempts, strict=True):
        state = made(one, attempt)
        before = report(one.close, 10**6, state.attempts, state.fees, CALM)
        (waiting,) = [output for output in before.outputs if output.kind == "to_local"]
        assert waiting.status_text.endswith("waits to be mined, together with what is ours of 2 other channels")
        close = close_of(one.peer, *one.facts, mined)
        told = report(close, 10**6, state.attempts, state.fees, CALM)
        taken = [output for output in told.outputs if output.status == "taken"]
        shares = [output.fee_sat for output in taken if output.fee_sat is not None]
        assert len(shares) == len(one.plan.outputs)
        assert attempt.own_fee_sat - len(shares) < sum(shares) <= attempt.own_fee_sat
        assert all("with what is ours of 2 other channels" in output.status_text for output in taken)


def test_what_somebody_may_race_for_goes_alone() -> None:
    pair = channel()
    facts = (fact(commitment(pair.bob), H),)
    close = close_of(pair.alice, *facts)
    planned = plans(close.outputs, (), CALM, H + 70)
    assert {plan.group: is_joinable(plan) for plan in planned} == {"sweep": True, "claim": False}
    ours = close_of(pair.alice, fact(commitment(pair.alice), H))
    planned = plans(ours.outputs, (), CALM, H + 70)
    assert {plan.group: is_joinable(plan) for plan in planned} == {"sweep": True, "htlc": False}


# --- shares -------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 10_000_000))
def test_shares_are_the_whole_fee_and_fair(which: list[int], fee: int) -> None:
    channels = ended()
    parts = tuple(Part(number, channels[index].plan) for number, index in enumerate(which))
    shares = Batch(parts, 500).shares_sat(fee)
    assert sum(shares) == fee
    assert max(shares) - min(shares) <= 1  # all the same size here


@settings(max_examples=30)
@given(st.integers(FLOOR_PER_KW, 20_000), st.integers(2, 3))
def test_no_share_is_more_than_the_channel_would_pay_alone(rate: int, count: int) -> None:
    channels = ended(count)
    (batch,) = batches([Part(n, replace(c.plan, feerate_per_kw=rate)) for n, c in enumerate(channels)])
    assert len(batch.parts) == count
    for part, share in zip(batch.parts, batch.shares_sat(batch.wanted_fee_sat), strict=True):
        assert share <= Batch((part,), rate).wanted_fee_sat


def test_a_batch_is_not_too_big_and_divides_no_plan() -> None:
    plan = ended()[0].plan
    size = len(plan.outputs)
    found = list(batches([Part(number, plan) for number in range(MAX_BATCH_INPUTS)]))
    assert [part.number for batch in found for part in batch.parts] == list(range(MAX_BATCH_INPUTS))
    assert all(sum(len(part.plan.outputs) for part in batch.parts) <= MAX_BATCH_INPUTS for batch in found)
    assert len(found) == size


# --- replacing ----------------------------------------------------------------------------------------------------


def test_a_replacement_pays_for_what_it_evicts_and_leaves_out_who_cannot_afford_it() -> None:
    channels = ended()
    _, tx, attempts = joined(channels)
    later = H + DELAY - 1 + PATIENCE_BLOCKS
    parts = []
    for number, (one, attempt) in enumerate(zip(channels, attempts, strict=True)):
        assert plans(one.close.outputs, (attempt,), BUSY, later - 1) == []
        (plan,) = plans(one.close.outputs, (attempt,), BUSY, later)
        assert (plan.replaces, plan.feerate_per_kw, plan.script_pubkey) == (tx.txid(), 2000, HOME)
        assert is_joinable(plan)
        parts.append(Part(number, plan, attempt.fee_sat))
    (whole,) = batches(parts)
    assert len(whole.parts) == 3
    poor = replace(parts[1], plan=replace(parts[1].plan, max_fee_sat=100))
    (rest,) = batches([parts[0], poor, parts[2]])
    assert [part.number for part in rest.parts] == [0, 2]
    better = build.build_batch(rest, [channels[0].peer.signer, channels[2].peer.signer], HOME)
    shares = [attempt.own_fee_sat for attempt in build.attempts_of(rest, better, later)]
    assert sum(shares) >= attempts[0].fee_sat + fee_sat(better.weight(), FLOOR_PER_KW)
    assert list(batches([poor])) == []


def test_who_is_refused_in_company_goes_alone_without_what_strangers_may_take() -> None:
    channels = ended()
    _, tx, attempts = joined(channels)
    channel, attempt = channels[0], attempts[0]
    assert {output.kind for output in channel.plan.outputs} == {"to_local", "anchor"}
    for underpaid in (False, True):
        refused = replace(attempt, problem="bad-txns-inputs-missingorspent", underpaid=underpaid)
        (plan,) = plans(channel.close.outputs, (refused,), CALM, attempt.height)
        assert plan.alone
        assert not is_joinable(plan)
        assert [output.kind for output in plan.outputs] == ["to_local"]
        assert (plan.replaces, plan.feerate_per_kw) == (tx.txid(), CALM.within(144))
        single = build.build_sweep(plan, known(channel.peer, channel.facts), None, channel.peer.signer, HOME)
        after = on.advance(
            made(channel, refused),
            on.Made(plan, build.attempt_of(plan, single, 100, attempt.height)),
            on.Env(known(channel.peer, channel.facts), channel.facts, attempt.height, CALM),
        ).state
        assert [kept.txid for kept in after.attempts] == [single.txid()]
        # The transaction that was left may be mined after all: what it cost is known.
        assert after.fees == {tx.txid(): attempt.own_fee_sat, single.txid(): 100}


def test_one_that_the_mempool_has_no_room_for_is_raised_together() -> None:
    channels = ended()
    _, tx, attempts = joined(channels)
    refused = replace(attempts[0], problem="mempool min fee not met", underpaid=True)
    (plan,) = plans(channels[0].close.outputs, (refused,), BUSY, attempts[0].height)
    assert is_joinable(plan)
    assert (plan.replaces, plan.feerate_per_kw) == (tx.txid(), 2000)
