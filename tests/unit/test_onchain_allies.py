"""Which transactions in the mempool are a tower's justice for us, and for how long they are left alone."""

from __future__ import annotations

from functools import lru_cache

import pytest
from msgspec.structs import replace

from channeld.onchain import build
from channeld.onchain.allies import ally_of, left_to
from channeld.onchain.facts import Fact
from channeld.onchain.outputs import Close
from channeld.onchain.plans import Attempt, Plan, is_penalty
from channeld.onchain.rates import Rates
from channeld.onchain.resolution import Env, Looked, Make, Publish, Resolution, advance
from tests.machine.harness import Peer
from tests.unit.onchain_support import DELAY, HOME, known
from tests.unit.test_onchain_plans import RATES, H, revoked_close
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut
from watchtower.justice import ELSEWHERE_PERMILLE, NEAR_BLOCKS

STRANGER = b"\x00\x14" + bytes(20)
ESTIMATE = RATES.within(2)


@lru_cache(maxsize=1)
def cheated() -> tuple[Peer, Close, tuple[Fact, ...]]:
    return revoked_close()


def justice(feerate_per_kw: int = ESTIMATE, script: bytes = HOME) -> Tx:
    """All penalties in one: as a tower of ours makes it."""
    alice, close, facts = cheated()
    outputs = tuple(output for output in close.outputs if is_penalty(output))
    plan = Plan("penalty", outputs, feerate_per_kw, 10**9)
    return build.build_sweep(plan, known(alice, facts), close.commitment_number, alice.signer, script)


def left(tx: Tx, height: int = H, rates: Rates = RATES) -> frozenset[OutPoint]:
    alice, _, facts = cheated()
    ally = ally_of(known(alice, facts), facts, tx, HOME, height)
    return left_to([] if ally is None else [ally], rates, height)


def outpoints(tx: Tx) -> frozenset[OutPoint]:
    return frozenset(txin.outpoint for txin in tx.inputs)


def flat(feerate_per_kw: int) -> Rates:
    return Rates(((1, feerate_per_kw),))


def test_a_towers_justice_is_left_alone_as_long_as_it_pays_what_we_would_pay() -> None:
    tx = justice(2_000)
    assert left(tx, rates=flat(2_000)) == outpoints(tx)
    assert left(tx, rates=flat(2_450)) == outpoints(tx)
    assert left(tx, rates=flat(2_550)) == frozenset()


def test_near_the_deadline_nobody_is_relied_upon() -> None:
    dear = justice(100_000)
    assert left(dear, H + DELAY - NEAR_BLOCKS - 1) == outpoints(dear)
    assert left(dear, H + DELAY - NEAR_BLOCKS) == frozenset()


def test_who_has_a_key_but_pays_elsewhere_is_a_thief() -> None:
    assert left(justice(script=STRANGER)) == frozenset()


@pytest.mark.parametrize(("permille", "leaves"), [(ELSEWHERE_PERMILLE - 5, True), (ELSEWHERE_PERMILLE + 5, False)])
def test_a_tower_may_have_its_reward(permille: int, leaves: bool) -> None:
    tx = justice()
    _, close, _ = cheated()
    share = sum(output.amount_sat for output in close.outputs if is_penalty(output)) * permille // 1000
    shared = tx.replace(outputs=(TxOut(tx.outputs[0].value_sat - share, HOME), TxOut(share, STRANGER)))
    assert bool(left(shared)) == leaves


def test_the_cheaters_transactions_and_mixtures_are_rivals() -> None:
    tx = justice()
    other = TxIn(OutPoint(b"\x05" * 32, 0), b"", 0)
    assert left(tx.replace(inputs=(*tx.inputs, other))) == frozenset()
    # With the witness of an HTLC transaction, which the cheater has, though it pays us something.
    htlc = next(i for i, txin in enumerate(tx.inputs) if len(txin.witness[1]) == 33)
    stolen = tx.with_witness(htlc, (b"", b"\x30", b"\x30", b"", tx.inputs[htlc].witness[-1]))
    assert left(stolen) == frozenset()


def test_what_is_left_is_neither_planned_nor_offered_again_until_it_is_not() -> None:
    alice, close, facts = cheated()
    view, tx = known(alice, facts), justice()
    first = advance(Resolution(), Looked(), Env(view, facts, H, RATES))
    (plan,) = [a.plan for a in first.actions if isinstance(a, Make) and a.plan.group == "penalty"]
    mine = build.build_sweep(plan, view, close.commitment_number, alice.signer, STRANGER)
    attempt = replace(build.attempt_of(plan, mine, 1_000, H), problem="insufficient fee", underpaid=True)
    state = Resolution(attempts=(attempt,), fees={attempt.txid: 1_000})

    def penalties(left: frozenset[OutPoint]) -> tuple[list[Plan], list[Attempt]]:
        step = advance(state, Looked(), Env(view, facts, H, RATES, left=left))
        makes = [a.plan for a in step.actions if isinstance(a, Make) and a.plan.group == "penalty"]
        return makes, [a.attempt for a in step.actions if isinstance(a, Publish)]

    assert penalties(outpoints(tx)) == ([], [])
    bids, offered = penalties(frozenset())
    assert len(bids) == len(outpoints(tx))
    assert offered == [attempt]
    # Of what is left in part, the rest is taken.
    some = frozenset(list(outpoints(tx))[:2])
    (rest,), offered = penalties(some)
    assert set(rest.outpoints) == outpoints(tx) - some
    assert offered == []
