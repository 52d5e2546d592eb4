"""Races in the mempool: what layer 1 refuses because a rival pays more is outbid at once, as far as it is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pytest
from msgspec.structs import replace

from channeld.channel import events as ev
from channeld.node.bus import EventBus
from channeld.node.monitor_publish import Publisher
from channeld.onchain import build
from channeld.onchain.anchor import anchor_plan
from channeld.onchain.facts import Fact
from channeld.onchain.outputs import Close
from channeld.onchain.plans import Attempt, Plan, budget_sat, plans
from channeld.onchain.rates import FLOOR_PER_KW, Rates, fee_sat
from channeld.onchain.resolve import resolve
from tests.machine.harness import Peer, add
from tests.unit.onchain_support import (
    DELAY,
    EXPIRY,
    HOME,
    OFFERED,
    RECEIVED,
    channel,
    close_of,
    commitment,
    fact,
    known,
)
from tests.unit.test_onchain_plans import RATES, H, attempt, kinds, local_close, revoked_close
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from wallet.chain import BroadcastOutcome, BroadcastResult


def made(peer: Peer, close: Close, facts: tuple[Fact, ...], plan: Plan, height: int) -> Attempt:
    tx = build.build_sweep(plan, known(peer, facts), close.commitment_number, peer.signer, HOME)
    fee = sum(output.amount_sat for output in plan.outputs) - tx.outputs[0].value_sat
    return build.attempt_of(plan, tx, fee, height)


def refused(before: Attempt) -> Attempt:
    return replace(before, problem="insufficient fee", underpaid=True)


def test_a_batch_with_a_rival_is_split_at_once() -> None:
    """Not at the next block: the rival may be in that. What has no rival must not wait for what has one."""
    alice, close, facts = revoked_close()
    together = attempt(alice, close, facts, "penalty", H)
    assert not [plan for plan in plans(close.outputs, (together,), RATES, H) if plan.group == "penalty"]
    apart = [plan for plan in plans(close.outputs, (refused(together),), RATES, H) if plan.group == "penalty"]
    assert [len(plan.outputs) for plan in apart] == [1, 1, 1, 1]
    otherwise = replace(together, problem="missing inputs")
    assert not [plan for plan in plans(close.outputs, (otherwise,), RATES, H) if plan.group == "penalty"]


def test_a_rival_is_outbid_in_a_few_tries_and_up_to_the_budget() -> None:
    alice, close, facts = revoked_close()
    together = attempt(alice, close, facts, "penalty", H)
    first = next(p for p in plans(close.outputs, (refused(together),), RATES, H) if p.group == "penalty")
    bid = made(alice, close, facts, first, H)
    bids = [bid.feerate_per_kw]
    while more := [p for p in plans(close.outputs, (refused(bid),), RATES, H) if p.replaces == bid.txid]:
        assert bid.fee_sat < more[0].min_fee_sat <= more[0].max_fee_sat
        bid = made(alice, close, facts, more[0], H)
        bids.append(bid.feerate_per_kw)
    assert all(after > before * 6 // 5 for before, after in pairwise(bids))
    assert len(bids) < 12
    most = budget_sat(first.outputs[0])
    assert most * 9 // 10 < bid.fee_sat <= most
    assert fee_sat(bid.weight, bids[-1]) <= most


def test_what_is_lost_with_the_race_is_fought_for_and_the_rest_is_not() -> None:
    """An HTLC that we offered is no loss: whoever takes it shows the preimage, which settles the incoming side."""
    pair = channel()
    facts = (fact(commitment(pair.bob), H),)
    close = close_of(pair.alice, *facts)
    height = EXPIRY + 1
    again = {}
    for output in close.outputs:
        if output.kind != "htlc" or not output.claimable:
            continue
        (plan,) = [p for p in plans([output], (), RATES, height) if p.group == "claim"]
        bid = refused(made(pair.alice, close, facts, plan, height))
        assert output.htlc is not None
        again[output.htlc.offered, output.htlc.id] = bool(plans([output], (bid,), RATES, height))
    assert again == {(True, OFFERED): False, (False, RECEIVED): True}


def test_htlcs_do_not_wait_for_one_that_the_peer_claims_in_the_mempool() -> None:
    """Our HTLC-timeout transactions are one batch; the peer pins one of its outputs, with a preimage that settles its
    incoming side. The rest goes without it, and it is not fought for."""
    pair = channel()
    pair.connect()
    pair.settle()
    for number in (11, 12):
        add(pair.alice, 20_000_000, number, EXPIRY)
    pair.settle()
    pair.disconnect()
    facts = (fact(commitment(pair.alice), H),)
    height = EXPIRY + 1
    before = close_of(pair.alice, *facts)
    (together,) = [
        plan for plan in plans(before.outputs, (), RATES, height) if plan.group == "htlc" and len(plan.outputs) > 1
    ]
    assert len(together.outputs) == 3
    batch = Attempt(b"b" * 32, b"", "htlc", together.outpoints, 5_000, 2_600, height)

    knowing = known(pair.alice, facts)
    offered = {id: htlc for id, htlc in knowing.offered.items() if id != OFFERED}
    after = resolve(replace(knowing, offered=offered), facts)
    assert after is not None
    (contested,) = [output for output in after.outputs if output.settled and output.kind == "htlc"]
    assert contested.htlc is not None
    assert contested.htlc.id == OFFERED
    assert not [p for p in plans(after.outputs, (batch,), RATES, height) if p.replaces]
    (rest,) = [p for p in plans(after.outputs, (refused(batch),), RATES, height) if p.replaces == batch.txid]
    assert rest.outpoints == tuple(point for point in batch.outpoints if point != contested.outpoint)
    others = Attempt(b"o" * 32, b"", "htlc", rest.outpoints, 5_000, 2_000, height)
    (alone,) = [p for p in plans(after.outputs, (others,), RATES, height) if p.outputs[0].settled]
    assert alone.outpoints == (contested.outpoint,)
    assert alone.feerate_per_kw == RATES.within(144)


def test_a_sweep_does_not_wait_for_an_anchor_that_a_stranger_takes() -> None:
    _, close, _ = local_close()
    height = H + DELAY
    cheap = Rates(((1, FLOOR_PER_KW),))
    (together,) = [plan for plan in plans(close.outputs, (), cheap, height) if plan.group == "sweep"]
    assert kinds(together.outputs) == ["anchor", "to_local"]
    raw = Tx(2, tuple(map(TxIn, together.outpoints)), (TxOut(1, HOME),), 0).serialize()
    out = Attempt(b"s" * 32, raw, "sweep", together.outpoints, 300, 800, height)
    assert not [plan for plan in plans(close.outputs, (out,), cheap, height) if plan.group == "sweep"]
    (alone,) = [plan for plan in plans(close.outputs, (refused(out),), cheap, height) if plan.group == "sweep"]
    assert kinds(alone.outputs) == ["to_local"]
    assert (alone.replaces, alone.script_pubkey) == (out.txid, HOME)


class FullMempool:
    """Layer 1 that refuses all, because `waiting` is there."""

    def __init__(self, waiting: Tx) -> None:
        self.waiting = waiting

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        return BroadcastResult(BroadcastOutcome.REJECTED, "insufficient fee", True, True)

    async def spending_tx_in_mempool(self, outpoint: OutPoint) -> Tx | None:
        return self.waiting if outpoint in self.waiting.spends() else None


async def test_a_revoked_commitment_that_keeps_ours_out_is_lifted() -> None:
    """A cheater may pin it: with our anchor in it, it is mined, and punished."""
    pair = channel()
    old = commitment(pair.clone().bob)
    pair.connect()
    pair.settle()
    add(pair.alice, 5_000_000, 9, EXPIRY)
    pair.settle()
    pair.disconnect()
    pair.alice.step(ev.ForceClose("test"))
    publisher = Publisher(cast(Any, FullMempool(old)), EventBus())
    rival = (await publisher.publish_commitment(known(pair.alice), None)).rival
    assert rival == old.serialize()
    plan = anchor_plan(replace(known(pair.alice), rival_tx=rival), (), Rates(((1, 8000),)), H)
    assert plan is not None
    assert plan.outpoints[0].txid == old.txid()


class NoPackages:
    """Layer 1 that refuses packages as a whole, with these words, and takes what is good alone."""

    def __init__(self, refusal: BroadcastResult) -> None:
        self.refusal = refusal
        self.taken: list[Tx] = []

    async def broadcast(self, tx: Tx) -> BroadcastResult:
        self.taken.append(tx)
        return BroadcastResult(BroadcastOutcome.ACCEPTED)

    async def broadcast_package(self, txs: Sequence[Tx]) -> list[BroadcastResult]:
        return [self.refusal] * len(txs)


@pytest.mark.parametrize("underpaid", [False, True])
async def test_a_child_that_spoils_the_package_does_not_keep_our_commitment_back(underpaid: bool) -> None:
    """Its coin may be gone: another one is made then, unless it only pays too little."""
    pair = channel()
    pair.disconnect()
    pair.alice.step(ev.ForceClose("test"))
    knowing = known(pair.alice)
    child = Attempt(b"c" * 32, knowing.local_tx, "anchor", (OutPoint(b"d" * 32, 0),), 500, 800, H)
    layer1 = NoPackages(BroadcastResult(BroadcastOutcome.REJECTED, "package-not-validated", True, underpaid))
    offered = await Publisher(cast(Any, layer1), EventBus()).publish_commitment(knowing, child)
    assert [tx.serialize() for tx in layer1.taken] == [knowing.local_tx]
    assert (offered.rival, offered.orphaned, offered.useless_child) == (b"", False, not underpaid)
