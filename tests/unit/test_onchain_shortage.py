"""More HTLC transactions than the wallet has coins for, and coins in what nobody needs any more."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from channeld.channel import events as ev
from channeld.onchain import build
from channeld.onchain import resolution as on
from channeld.onchain.anchor import anchor_plan
from channeld.onchain.outputs import Output
from channeld.onchain.plans import Attempt, Plan, max_fee_sat, plans
from channeld.onchain.rates import FLOOR_PER_KW, Rates, fee_sat, least_bump
from channeld.onchain.shortage import with_coins_in_use
from tests.machine.harness import HEIGHT, Peer, add, preimage_of
from tests.unit.bolt3_support import script_ok
from tests.unit.onchain_support import (
    EXPIRY,
    OFFERED,
    RECEIVED,
    RECEIVED_UNKNOWN,
    channel,
    close_of,
    commitment,
    fact,
    known,
    only,
    talking,
    txout_of,
)
from wallet.bitcoin import TxIn

H = HEIGHT + 1
RATES = Rates(((1, 2000), (144, 500)))


class Scene:
    """Alice's commitment is mined; she has published an HTLC-success transaction, and learns another preimage."""

    def __init__(self) -> None:
        self.alice = channel().alice
        self.facts = (fact(commitment(self.alice), H),)
        self.first = out_already(self.htlc(RECEIVED))
        self.alice.step(ev.FulfillHtlc(RECEIVED_UNKNOWN, preimage_of(4)))
        self.close = close_of(self.alice, *self.facts)
        self.plan = self.planned((self.first,))

    def htlc(self, id: int, offered: bool = False) -> Output:
        return only(close_of(self.alice, *self.facts), "htlc", id=id, offered=offered)

    def planned(self, attempts: tuple[Attempt, ...], height: int = H) -> Plan:
        """The one new HTLC transaction."""
        found = [plan for plan in plans(self.close.outputs, attempts, RATES, height) if plan.group == "htlc"]
        (plan,) = [plan for plan in found if not plan.replaces]
        return plan

    def instead(self, *attempts: Attempt, plan: Plan | None = None, height: int = H) -> list[Plan]:
        return with_coins_in_use(plan or self.plan, attempts, self.close.outputs, RATES, height)


def out_already(*outputs: Output, fee: int = 2_000, height: int = H, txid: bytes = b"o" * 32) -> Attempt:
    outpoints = Plan("htlc", outputs, 0, 0).outpoints
    return Attempt(txid, b"", "htlc", outpoints, fee, 1_000 * len(outputs), height, reservation=7)


def test_without_a_coin_an_htlc_goes_along_in_what_is_out_already() -> None:
    """BOLT 3 signs HTLC transactions so that they can be joined: input i pays output i, whatever else there is."""
    scene = Scene()
    (joined,) = scene.instead(scene.first)
    assert joined.outpoints == (*scene.first.outpoints, *scene.plan.outpoints)
    assert joined.replaces == scene.first.txid
    assert joined.feerate_per_kw >= least_bump(scene.first.feerate_per_kw)
    assert scene.first.fee_sat < joined.min_fee_sat < joined.max_fee_sat == max_fee_sat("htlc", joined.outputs)
    tx = build.sign_htlc_inputs(joined, build.htlc_frame(joined), scene.alice.signer)
    for index, output in enumerate(joined.outputs):
        assert script_ok(tx, index, txout_of(output, scene.facts))
        assert tx.outputs[index].value_sat == output.amount_sat


def test_what_goes_along_is_forgotten_alone() -> None:
    scene = Scene()
    env = on.Env(known(scene.alice, scene.facts), scene.facts, H, RATES)
    state = on.Resolution((scene.first,))
    step = on.advance(state, on.CannotPay(scene.plan), env)
    (make,) = step.actions
    assert isinstance(make, on.Make)
    assert step.state == state
    made = replace(scene.first, txid=b"j" * 32, outpoints=make.plan.outpoints)
    after = on.advance(state, on.Made(make.plan, made), env)
    assert after.state.attempts == (made,)
    assert on.advance(after.state, on.CannotPay(make.plan), env).actions == (), "it has the coin that there is"


def test_nothing_goes_along_where_somebody_else_may_pin_it() -> None:
    scene = Scene()
    refused = replace(scene.first, problem="insufficient fee", underpaid=True)
    assert [plan for plan in scene.instead(refused) if len(plan.outputs) > 1] == []
    # The peer may time the HTLCs out from their expiry on.
    assert len(scene.instead(scene.first, height=EXPIRY - 1)[0].outputs) == 2
    for height in (EXPIRY, EXPIRY + 1):
        assert [plan for plan in scene.instead(scene.first, height=height) if len(plan.outputs) > 1] == []


def test_what_has_another_locktime_does_not_go_along() -> None:
    """The peer's signatures commit to it."""
    scene = Scene()
    success = out_already(scene.htlc(RECEIVED), scene.htlc(RECEIVED_UNKNOWN), height=EXPIRY)
    timeout = scene.planned((success,), EXPIRY)
    assert timeout.outputs == (scene.htlc(OFFERED, True),)
    assert scene.instead(success, plan=timeout, height=EXPIRY) == []


def test_what_goes_along_must_not_cost_more_than_it_brings() -> None:
    scene = Scene()
    assert scene.instead(replace(scene.first, fee_sat=118_000)) == []


@pytest.mark.parametrize(
    ("waited", "problem", "gives_way"), [(0, "", False), (3, "", False), (4, "", True), (0, "x", True)]
)
def test_what_holds_less_and_gets_nowhere_gives_up_its_coin(waited: int, problem: str, gives_way: bool) -> None:
    """A small HTLC that can pay no more must not keep the only coin from a large one until that is lost."""
    pair = talking()
    add(pair.alice, 2_000_000, 11, EXPIRY - 20)
    pair.settle()
    pair.disconnect()
    facts = (fact(commitment(pair.alice), H),)
    close = close_of(pair.alice, *facts)
    height = EXPIRY + 1
    small, large = (only(close, "htlc", id=id, offered=True) for id in (2, OFFERED))
    stuck = replace(out_already(small, fee=600, height=height - waited), problem=problem)
    plan = Plan("htlc", (large,), 2_000, 45_000)
    found = with_coins_in_use(plan, (stuck,), close.outputs, RATES, height)
    assert [each.outputs for each in found] == ([(large,)] if gives_way else [])
    assert all(each.min_fee_sat > stuck.fee_sat and each.replaces == stuck.txid for each in found)
    richer = replace(out_already(large, height=height - waited), problem=problem)
    plan = Plan("htlc", (small,), 2_000, 1_800)
    assert with_coins_in_use(plan, (richer,), close.outputs, RATES, height) == []


def test_near_its_deadline_the_larger_one_does_not_wait_for_that() -> None:
    scene = Scene()
    small = replace(scene.plan.outputs[0], amount_sat=2_000)
    outputs = tuple(small if output.outpoint == small.outpoint else output for output in scene.close.outputs)
    before = out_already(small, fee=300, height=EXPIRY - 1)
    plan = Plan("htlc", (scene.htlc(RECEIVED),), 2_000, 54_000)
    (found,) = with_coins_in_use(plan, (before,), outputs, RATES, EXPIRY)
    assert found.outputs == plan.outputs


# --- children -----------------------------------------------------------------------------------------------------


def lifted() -> tuple[Peer, Attempt]:
    """Alice has published her commitment with a child."""
    alice = channel().alice
    alice.step(ev.ForceClose("test"))
    plan = anchor_plan(known(alice), (), Rates(((1, 5000),)), H)
    assert plan is not None
    return alice, Attempt(b"c" * 32, b"", "anchor", plan.outpoints, 4_000, 750, H, reservation=3)


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_child_whose_commitment_was_mined_without_it_is_let_go(whose: str) -> None:
    """Its coin is free before anything else is made, which may need it."""
    pair = channel()
    alice, child = lifted()
    facts = (fact(commitment(alice if whose == "ours" else pair.bob), H),)
    env = on.Env(known(alice, facts), facts, H, RATES)
    step = on.advance(on.Resolution((child,)), on.Looked(), env)
    asked = [type(action) for action in step.actions].index(on.AskAbout)
    assert step.actions[asked] == on.AskAbout(child)
    assert all(not isinstance(action, on.Make) for action in step.actions[:asked])
    assert on.Publish(child) not in step.actions
    gone = on.advance(step.state, on.Gone(child.txid), env)
    assert gone.state.attempts == ()
    assert gone.actions == (on.Release(3),)


def test_a_child_that_was_let_go_is_made_again_after_a_reorganisation() -> None:
    alice, _ = lifted()
    env = on.Env(known(alice), (), H + 1, Rates(((1, 5000),)))
    actions = on.advance(on.Resolution(), on.Looked(), env).actions
    assert [action.plan.group for action in actions if isinstance(action, on.Make)] == ["anchor"]


def test_a_child_that_was_mined_is_not_asked_about() -> None:
    alice, child = lifted()
    mined = commitment(alice)
    spending = mined.replace(inputs=(TxIn(child.outpoints[0], b"", 0xFFFFFFFD, (bytes(64),)),))
    facts = (fact(mined, H), fact(spending, H))
    step = on.advance(on.Resolution((child,)), on.Looked(), on.Env(known(alice, facts), facts, H, RATES))
    assert not [action for action in step.actions if isinstance(action, on.AskAbout)]


def test_an_htlc_may_take_the_coin_of_a_child_that_waits_for_nothing() -> None:
    alice, child = lifted()
    facts = (fact(commitment(alice), H),)
    close = close_of(alice, *facts)
    (plan,) = [plan for plan in plans(close.outputs, (child,), RATES, H) if plan.group == "htlc"]
    (found,) = with_coins_in_use(plan, (child,), close.outputs, RATES, H)
    assert (found.outputs, found.replaces) == (plan.outputs, child.txid)
    assert found.min_fee_sat == child.fee_sat + fee_sat(1_156, FLOOR_PER_KW)
    assert found.feerate_per_kw >= least_bump(child.feerate_per_kw)


# --- coins that went elsewhere ------------------------------------------------------------------------------------


def test_an_htlc_transaction_that_is_refused_is_made_again_at_the_next_block() -> None:
    """Its coin may be gone: it would be offered as it is for ever."""
    scene = Scene()
    refused = replace(scene.first, problem="bad-txns-inputs-missingorspent")
    outputs = (scene.htlc(RECEIVED),)
    assert [plan for plan in plans(outputs, (refused,), RATES, H) if plan.replaces] == []
    (again,) = plans(outputs, (refused,), RATES, H + 1)
    assert (again.outputs, again.replaces, again.min_fee_sat) == (outputs, refused.txid, 0)
