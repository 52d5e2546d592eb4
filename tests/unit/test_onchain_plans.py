"""What to do at a block: grouping, fee rates that rise with the deadline, budgets, replacing and splitting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from channeld.channel import events as ev
from channeld.onchain import build
from channeld.onchain import resolution as on
from channeld.onchain.anchor import (
    CHILD_WEIGHT,
    anchor_plan,
    commitment_of,
    deadlines_of,
    missing_fee_sat,
    stake_sat,
    urgent_stake_sat,
)
from channeld.onchain.facts import Fact
from channeld.onchain.outputs import Close, HtlcTx, Output, Sweep
from channeld.onchain.plans import (
    SECURITY_DELAY_BLOCKS,
    STUCK_BLOCKS,
    Attempt,
    budget_sat,
    deadline_of,
    is_economic,
    is_hopeless,
    make_plan,
    plan_weight,
    plans,
)
from channeld.onchain.rates import CEILING_PER_KW, FLOOR_PER_KW, RAMP_BLOCKS, Rates, fee_sat, feerate, least_bump
from channeld.onchain.report import report
from tests.machine.harness import HEIGHT, Peer, add, preimage_of
from tests.unit.onchain_support import (
    DELAY,
    EXPIRY,
    HOME,
    OFFERED,
    RECEIVED,
    RECEIVED_UNKNOWN,
    channel,
    close_of,
    commitment,
    fact,
    known,
    talking,
)
from wallet.bitcoin import Tx, TxIn, TxOut
from wallet.funding import FEERATE_CEILING_SAT_PER_KW

H = HEIGHT + 1
RATES = Rates(((1, 4000), (6, 2000), (36, 1000), (144, 500)))


# --- rates --------------------------------------------------------------------------------------------------------


def test_estimates_are_taken_for_the_longest_target_that_is_short_enough() -> None:
    assert [RATES.within(blocks) for blocks in (0, 1, 5, 6, 35, 36, 144, 5000)] == [
        4000, 4000, 4000, 2000, 2000, 1000, 500, 500,
    ]  # fmt: skip
    assert Rates().within(10) == FLOOR_PER_KW


@given(st.integers(-5, 200), st.integers(0, 100_000))
def test_a_rate_is_never_above_its_budget(left: int, max_per_kw: int) -> None:
    assert FLOOR_PER_KW <= feerate(RATES, left, max_per_kw) <= max(FLOOR_PER_KW, max_per_kw)


@given(st.integers(5_000, 1_000_000))
def test_a_rate_rises_to_its_budget_at_the_deadline(max_per_kw: int) -> None:
    rates = [feerate(RATES, left, max_per_kw) for left in range(200, -1, -1)]
    assert rates == sorted(rates)
    assert rates[-1] == max_per_kw
    assert rates[-1 - RAMP_BLOCKS] == RATES.within(RAMP_BLOCKS)


@given(st.integers(FLOOR_PER_KW, 100_000), st.integers(400, 10_000))
def test_a_bump_pays_for_its_own_relay(rate: int, weight: int) -> None:
    """BIP 125, rule 4: at least 1 sat/vB more."""
    assert fee_sat(weight, least_bump(rate)) >= fee_sat(weight, rate) + -(-weight // 4)


# --- a close to plan for ------------------------------------------------------------------------------------------


def remote_close(anchors: bool = True) -> tuple[Peer, Close, tuple[Fact, ...]]:
    pair = channel(anchors)
    facts = (fact(commitment(pair.bob), H),)
    return pair.alice, close_of(pair.alice, *facts), facts


def revoked_close() -> tuple[Peer, Close, tuple[Fact, ...]]:
    pair = channel()
    old = pair.clone().bob
    pair.connect()
    pair.settle()
    add(pair.alice, 5_000_000, 9, EXPIRY)
    pair.settle()
    pair.disconnect()
    facts = (fact(commitment(old), H),)
    return pair.alice, close_of(pair.alice, *facts), facts


def local_close() -> tuple[Peer, Close, tuple[Fact, ...]]:
    pair = channel()
    facts = (fact(commitment(pair.alice), H),)
    return pair.alice, close_of(pair.alice, *facts), facts


def kinds(outputs: tuple[Output, ...]) -> list[str]:
    return sorted(output.kind for output in outputs)


def attempt(peer: Peer, close: Close, facts: tuple[Fact, ...], group: str, height: int) -> Attempt:
    """The attempt that follows from the plan of a group."""
    (plan,) = [plan for plan in plans(close.outputs, (), RATES, height) if plan.group == group]
    tx = build.build_sweep(plan, known(peer, facts), close.commitment_number, peer.signer, b"\x00\x14" + bytes(20))
    fee = sum(output.amount_sat for output in plan.outputs) - tx.outputs[0].value_sat
    return build.attempt_of(plan, tx, fee, height)


# --- grouping -----------------------------------------------------------------------------------------------------


def test_what_has_no_deadline_waits_for_low_fees_and_htlcs_do_not() -> None:
    _, close, _ = remote_close()
    by_group = {plan.group: plan for plan in plans(close.outputs, (), RATES, H)}
    assert set(by_group) == {"sweep", "claim"}
    assert kinds(by_group["sweep"].outputs) == ["anchor", "to_remote"]
    assert by_group["sweep"].feerate_per_kw == RATES.within(144)
    assert by_group["claim"].feerate_per_kw == RATES.within(EXPIRY - H - 1)


def test_nothing_is_planned_before_it_is_mature_or_twice() -> None:
    alice, close, facts = remote_close()
    assert plans(close.outputs, (), RATES, H - 1) == []
    made = tuple(attempt(alice, close, facts, group, H) for group in ("sweep", "claim"))
    assert plans(close.outputs, made, RATES, H) == []


def test_one_justice_transaction_where_possible() -> None:
    """BOLT 5, "MAY use a single transaction to *resolve* all the outputs"."""
    _, close, _ = revoked_close()
    penalties = [plan for plan in plans(close.outputs, (), RATES, H) if plan.group == "penalty"]
    assert [kinds(plan.outputs) for plan in penalties] == [["htlc", "htlc", "htlc", "to_local"]]
    assert penalties[0].feerate_per_kw >= RATES.within(2)


@pytest.mark.bolt5("revoked.split")
def test_justice_is_split_near_the_end_of_the_delay() -> None:
    """BOLT 5, "if confirmation doesn't happen before reaching `security_delay` blocks from expiry: SHOULD *resolve*
    revoked outputs in their own, separate penalty transactions"."""
    alice, close, facts = revoked_close()
    near = H + DELAY - SECURITY_DELAY_BLOCKS
    fresh = [plan for plan in plans(close.outputs, (), RATES, near) if plan.group == "penalty"]
    assert sorted(map(kinds, [plan.outputs for plan in fresh])) == [["htlc", "htlc", "htlc"], ["to_local"]]
    before = attempt(alice, close, facts, "penalty", H)
    split = [plan for plan in plans(close.outputs, (before,), RATES, near) if plan.group == "penalty"]
    assert [len(plan.outputs) for plan in split] == [1, 1, 1, 1]
    assert {plan.replaces for plan in split} == {before.txid}
    # BIP 125, rule 3: the first pays for evicting all of them.
    assert split[0].min_fee_sat > before.fee_sat
    assert split[0].outputs[0].kind == "to_local"


def test_justice_that_is_stuck_or_refused_is_split() -> None:
    """It may be pinned."""
    alice, close, facts = revoked_close()
    before = attempt(alice, close, facts, "penalty", H)
    assert len([p for p in plans(close.outputs, (before,), RATES, H + 1) if p.group == "penalty"]) <= 1
    stuck = [p for p in plans(close.outputs, (before,), RATES, H + STUCK_BLOCKS) if p.group == "penalty"]
    assert len(stuck) == 4
    refused = replace(before, problem="insufficient fee")
    assert len([p for p in plans(close.outputs, (refused,), RATES, H + 1) if p.group == "penalty"]) == 4


@pytest.mark.bolt5("revoked.raced")
def test_justice_goes_on_without_what_the_cheater_took_first() -> None:
    """BOLT 5, "MUST handle its transactions being invalidated by HTLC transactions"."""
    alice, close, facts = revoked_close()
    before = attempt(alice, close, facts, "penalty", H)
    gone = next(output for output in close.outputs if output.kind == "htlc")
    by = Tx.parse(before.raw)
    spent = [replace(output, spent=object(), taker="remote") if output is gone else output for output in close.outputs]
    left = [plan for plan in plans(spent, (before,), RATES, H + 1) if plan.group == "penalty"]
    assert by.inputs
    assert [kinds(plan.outputs) for plan in left] == [["htlc", "htlc", "to_local"]]


def test_htlc_transactions_are_grouped_by_locktime() -> None:
    """The peer's signatures commit to it."""
    pair = talking()
    add(pair.alice, 20_000_000, 11, EXPIRY)
    add(pair.alice, 20_000_000, 12, EXPIRY + 1)
    pair.settle()
    pair.disconnect()
    pair.alice.step(ev.FulfillHtlc(RECEIVED_UNKNOWN, preimage_of(4)))
    close = close_of(pair.alice, fact(commitment(pair.alice), H))
    found = [plan for plan in plans(close.outputs, (), RATES, EXPIRY + 1) if plan.group == "htlc"]
    assert sorted(len(plan.outputs) for plan in found) == [1, 1, 2]
    for plan in found:
        build.htlc_frame(plan)


# --- fees ---------------------------------------------------------------------------------------------------------


def test_a_deadline_raises_the_fee_but_never_above_what_is_at_stake() -> None:
    alice, close, facts = remote_close()
    before = attempt(alice, close, facts, "claim", H)
    paid = [before.fee_sat]
    for height in range(H + 1, EXPIRY + 5):
        found = [plan for plan in plans(close.outputs, (before,), RATES, height) if plan.replaces == before.txid]
        for plan in found:
            tx = build.build_sweep(plan, known(alice, facts), close.commitment_number, alice.signer, bytes(22))
            fee = sum(output.amount_sat for output in plan.outputs) - tx.outputs[0].value_sat
            assert fee >= before.fee_sat + tx.weight() // 4
            assert fee <= plan.max_fee_sat == sum(map(budget_sat, plan.outputs))
            before = build.attempt_of(plan, tx, fee, height)
            paid.append(fee)
    assert len(paid) > 3
    assert paid[-1] > 20 * paid[0]
    assert paid[-1] < 60_000


def test_what_costs_more_than_it_holds_is_left_and_named() -> None:
    alice, close, _ = remote_close()
    dear = Rates(((1, 4_000_000),))
    assert [plan.group for plan in plans(close.outputs, (), dear, H)] == ["claim"]  # at most its budget, in time
    told = report(close, 1_000_000, (), {}, dear)
    assert {output.status for output in told.outputs if output.owner == "local" and output.kind == "to_remote"} == {
        "uneconomic"
    }
    small = [output for output in close.outputs if output.is_anchor and output.owner == "local"]
    assert all(is_hopeless(output) for output in small)
    assert make_plan("sweep", small, RATES, H) is None
    assert alice.funded.params.anchors


def test_small_outputs_are_dropped_from_a_batch_one_by_one() -> None:
    _, close, _ = remote_close()
    (plan,) = [plan for plan in plans(close.outputs, (), Rates(((1, 1000),)), H) if plan.group == "sweep"]
    assert kinds(plan.outputs) == ["to_remote"]  # 330 sat of the anchor are less than its input costs
    assert all(is_economic(output, plan.feerate_per_kw) for output in plan.outputs)
    spends = [output.claim.spend for output in plan.outputs if isinstance(output.claim, Sweep)]
    assert plan_weight("sweep", plan.outputs) > sum(spend.input_weight for spend in spends)


# --- our commitment and its anchor --------------------------------------------------------------------------------


def closing(anchors: bool = True) -> Peer:
    alice = channel(anchors).alice
    alice.step(ev.ForceClose("test"))
    return alice


def test_commitment_that_pays_enough_goes_alone() -> None:
    alice = closing()
    commitment = commitment_of(known(alice))
    assert commitment is not None
    assert anchor_plan(known(alice), (), Rates(((1, commitment.feerate_per_kw),)), H) is None
    assert anchor_plan(known(closing(False)), (), RATES, H) is None


def test_commitment_that_pays_too_little_gets_a_child() -> None:
    """BOLT 5, "MUST spend any `to_local_anchor` output, providing sufficient fees as incentive to include the
    commitment transaction in a block"; "SHOULD use [replace-by-fee]"."""
    alice = closing()
    rates = Rates(((1, 5000),))
    plan = anchor_plan(known(alice), (), rates, H)
    assert plan is not None
    assert plan.feerate_per_kw == 5000
    assert plan.max_fee_sat < stake_sat(known(alice))
    assert missing_fee_sat(known(alice), 5000) > 0
    child = Attempt(b"c" * 32, b"", "anchor", plan.outpoints, 12_000, 700, H)
    assert anchor_plan(known(alice), (child,), rates, H + 1) is None
    better = anchor_plan(known(alice), (child,), Rates(((1, 9000),)), H + 1)
    assert better is not None
    assert better.replaces == child.txid
    assert better.min_fee_sat > child.fee_sat
    last = anchor_plan(known(alice), (child,), rates, EXPIRY + 9)
    assert last is not None
    assert last.feerate_per_kw > 25_000


def test_the_hurry_of_an_htlc_costs_no_more_than_the_htlc() -> None:
    """Not a share of the whole channel."""
    alice = closing()
    stake = known(alice)
    rich = replace(stake.local.spec, to_local_msat=100_000_000_000)
    stake = replace(stake, local=replace(stake.local, spec=rich))
    assert urgent_stake_sat(stake) == 50_000 + 60_000  # not the 200 sat of dust
    for height in range(EXPIRY - 9, EXPIRY + 20):
        plan = anchor_plan(stake, (), Rates(((1, 5000),)), height)
        assert plan is not None
        assert missing_fee_sat(stake, plan.feerate_per_kw) + fee_sat(CHILD_WEIGHT, plan.feerate_per_kw) < 110_000
        assert plan.feerate_per_kw >= 5000


def test_however_much_is_at_stake_the_wallet_pays_no_absurd_rate() -> None:
    """It would refuse to, and then nothing would go out at all."""
    alice = closing()
    stake = known(alice)
    htlcs = {key: replace(htlc, amount_msat=10**12) for key, htlc in stake.local.spec.htlcs.items()}
    rich = replace(stake.local.spec, htlcs=htlcs)
    stake = replace(stake, local=replace(stake.local, spec=rich))
    plan = anchor_plan(stake, (), RATES, EXPIRY + 10)
    assert plan is not None
    assert plan.feerate_per_kw == CEILING_PER_KW < FEERATE_CEILING_SAT_PER_KW

    _, close, _ = local_close()
    (htlc,) = [output for output in close.outputs if isinstance(output.claim, HtlcTx) and not output.claim.preimage]
    huge = replace(htlc, amount_sat=10**9)
    (made,) = plans((huge,), (), RATES, EXPIRY + 10)
    assert made.feerate_per_kw == CEILING_PER_KW
    assert Rates(((1, 10**9),)).within(1) == CEILING_PER_KW


# --- the step -----------------------------------------------------------------------------------------------------


def test_looking_again_changes_nothing_and_repeats_what_was_promised() -> None:
    """Crash anywhere, start again."""
    alice, _, facts = remote_close()
    env = on.Env(known(alice), facts, H, RATES)
    first = on.advance(on.Resolution(), on.Looked(), env)
    makes = [action for action in first.actions if isinstance(action, on.Make)]
    assert len(makes) == 2
    assert on.advance(on.Resolution(), on.Looked(), env) == first
    state = first.state
    assert first.close is not None
    for make in makes:
        made = attempt(alice, first.close, facts, make.plan.group, H)
        step = on.advance(state, on.Made(make.plan, made), env)
        assert step.actions == (on.Publish(made),)
        state = step.state
    again = on.advance(state, on.Looked(), env)
    assert [type(action) for action in again.actions] == [on.Publish, on.Publish]
    assert again.state == state


def test_attempts_that_can_never_confirm_free_their_coins() -> None:
    alice, close, facts = local_close()
    lost = Attempt(b"x" * 32, b"", "htlc", (close.outputs[0].outpoint or facts[0].tx.inputs[0].outpoint,), 1, 1, H, 7)
    state = on.Resolution((replace(lost, outpoints=(facts[0].tx.inputs[0].outpoint,)),))
    early = on.advance(state, on.Looked(), on.Env(known(alice), facts, H, RATES))
    assert on.Release(7) not in early.actions
    late = on.advance(state, on.Looked(), on.Env(known(alice), facts, H + 5, RATES))
    assert on.Release(7) in late.actions
    assert late.state.attempts == ()


def test_alarms_are_told_once() -> None:
    alice, _, facts = revoked_close()
    env = on.Env(known(alice, facts), facts, H, RATES)
    step = on.advance(on.Resolution(), on.Looked(), env)
    assert [action.kind for action in step.actions if isinstance(action, on.Alarm)] == ["onchain.revoked"]
    again = on.advance(step.state, on.Looked(), env)
    assert not [action for action in again.actions if isinstance(action, on.Alarm)]


@pytest.mark.bolt5("remote.lost", "rogue")
def test_the_operator_hears_of_what_nobody_can_explain() -> None:
    """BOLT 5, "MUST inform the user of potentially lost funds", "MUST warn the user of potentially lost funds"."""
    pair = channel()
    late = pair.clone().alice
    pair.connect()
    pair.settle()
    add(pair.bob, 5_000_000, 9, EXPIRY)
    pair.settle()
    rogue = Tx(2, (TxIn(late.funded.params.funding_outpoint, b"", 0),), (TxOut(1_000, HOME),), 0)
    for tx in (commitment(pair.bob), rogue):
        facts = (fact(tx, H),)
        step = on.advance(on.Resolution(), on.Looked(), on.Env(known(late, facts), facts, H, RATES))
        (alarm,) = [action for action in step.actions if isinstance(action, on.Alarm)]
        assert alarm.kind == "onchain.unknown"
        assert "may be lost" in alarm.sentence


def test_outcome_is_told_until_the_channel_has_taken_it() -> None:
    pair = channel()
    pair.bob.step(ev.FulfillHtlc(OFFERED, preimage_of(1)))
    facts: tuple[Fact, ...] = (fact(commitment(pair.alice), H),)
    seen = close_of(pair.bob, *facts)
    (plan,) = [plan for plan in plans(seen.outputs, (), RATES, H) if plan.group == "claim"]
    claim = build.build_sweep(plan, known(pair.bob), seen.commitment_number, pair.bob.signer, bytes(22))
    facts = (*facts, fact(claim, H + 1))
    env = on.Env(known(pair.alice), facts, H + 1, RATES)
    for _ in range(2):
        told = [a.outcome for a in on.advance(on.Resolution(), on.Looked(), env).actions if isinstance(a, on.Tell)]
        assert [(outcome.id, outcome.payment_preimage) for outcome in told] == [(OFFERED, preimage_of(1))]
    pair.alice.step(ev.FundingSpent(facts[0].tx, H, 2))
    pair.alice.step(ev.HtlcOnChain(OFFERED, preimage_of(1)))
    env = on.Env(known(pair.alice), facts, H + 1, RATES)
    assert not [a for a in on.advance(on.Resolution(), on.Looked(), env).actions if isinstance(a, on.Tell)]


def test_the_most_urgent_comes_first() -> None:
    """The wallet may have coins for one transaction only."""
    pair = talking()
    add(pair.alice, 20_000_000, 12, EXPIRY - 20)
    add(pair.alice, 30_000_000, 11, EXPIRY - 40)
    pair.settle()
    pair.disconnect()
    close = close_of(pair.alice, fact(commitment(pair.alice), H))
    found = [plan for plan in plans(close.outputs, (), RATES, EXPIRY - 5) if plan.group == "htlc"]
    deadlines = [min(deadline for o in plan.outputs if (deadline := deadline_of(o)) is not None) for plan in found]
    assert deadlines == sorted(deadlines)
    assert len(deadlines) == 2


def test_a_commitment_leaves_time_for_the_htlc_that_it_is_for() -> None:
    """An HTLC-success transaction is mined a block later at the earliest, and the peer may take the HTLC then."""
    alice = closing()
    spec = known(alice).local.spec
    received = {key: htlc for key, htlc in spec.htlcs.items() if not htlc.offered and htlc.id == RECEIVED}
    stake = replace(known(alice), local=replace(known(alice).local, spec=replace(spec, htlcs=received)))
    rates = [anchor_plan(stake, (), Rates(((1, 5000),)), height) for height in range(EXPIRY - 18, EXPIRY)]
    found = [plan.feerate_per_kw for plan in rates if plan is not None]
    assert len(found) == 18
    assert found == sorted(found)
    assert found[0] == 5000  # there is time
    most = found[-1]
    assert found[-4] == most > 4 * 5000  # everything, with four blocks left
    assert found[-9] > 5000
    assert deadlines_of(stake, EXPIRY) == {EXPIRY}
