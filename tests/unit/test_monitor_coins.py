"""The wallet's coins in the monitor's transactions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from channeld.node import monitor_coins
from channeld.node.monitor_coins import CannotMake, Maker
from tests.wallet_world import STRANGER, World
from wallet.bitcoin import Tx, TxOut
from wallet.errors import InsufficientFunds
from wallet.funding import Request
from wallet.spending import FundedTx

RATE = 1_000
NOTHING: Any = None
"""In place of what `asks_for` makes nobody look at."""


async def spent(amount_sat: int) -> tuple[World, FundedTx]:
    """A wallet with one coin of 60,000 sat, which a transaction was made of."""
    world = World()
    await world.start()
    await world.receive(60_000)
    return world, await world.wallet.create_tx([TxOut(amount_sat, STRANGER)], RATE)


def asks_for(monkeypatch: pytest.MonkeyPatch, amount_sat: int) -> None:
    """The transaction that is to be made has to pay a stranger so much."""
    request = Request((TxOut(amount_sat, STRANGER),), RATE)
    monkeypatch.setattr(monitor_coins, "_htlc_request", lambda _, rate: replace(request, feerate_sat_per_kw=rate))


def plan_of(max_fee_sat: int, feerate_per_kw: int) -> Any:
    return SimpleNamespace(group="htlc", max_fee_sat=max_fee_sat, feerate_per_kw=feerate_per_kw, outpoints=())


def attempt_of(published: FundedTx, feerate_per_kw: int = RATE // 2, problem: str = "") -> Any:
    """What is to be replaced."""
    return SimpleNamespace(reservation=published.reservation, feerate_per_kw=feerate_per_kw, problem=problem)


@pytest.mark.parametrize(("amount_sat", "max_fee_sat"), [(10_000_000, 10_000), (20_000, 1)])
async def test_a_replacement_that_cannot_be_made_leaves_the_coins_to_what_is_out(
    monkeypatch: pytest.MonkeyPatch, amount_sat: int, max_fee_sat: int
) -> None:
    world, published = await spent(30_000)
    wallet = world.wallet
    held = wallet.reservations()
    assert list(held) == [published.reservation]
    asks_for(monkeypatch, amount_sat)
    plan = plan_of(max_fee_sat, RATE)
    replaced = attempt_of(published)
    with pytest.raises(CannotMake):
        Maker(wallet)._with_coins(plan, NOTHING, NOTHING, 100, replaced)
    assert wallet.reservations() == held
    with pytest.raises(InsufficientFunds):
        await wallet.create_tx([TxOut(30_000, STRANGER)], RATE)
    assert (await world.restart()).reservations() == held


async def test_a_transaction_that_is_too_dear_loses_no_script_of_the_wallet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change scripts that are looked for from then on are stored, whatever comes of the transaction."""
    world, published = await spent(20_000)
    wallet = world.wallet
    asks_for(monkeypatch, 20_000)
    plan = plan_of(1, RATE)
    replaced = attempt_of(published)
    for _ in range(3):
        with pytest.raises(CannotMake):
            Maker(wallet)._with_coins(plan, NOTHING, NOTHING, 100, replaced)
    await wallet.new_address()
    watched = set(wallet._ledger.book.by_script)
    assert set((await world.restart())._ledger.book.by_script) == watched


@pytest.mark.parametrize(("coins_sat", "max_fee_sat"), [((60_000,), 10_000_000), ((30_000, 30_000), 4_000)])
async def test_what_the_wallet_or_the_budget_cannot_pay_whole_is_paid_in_part(
    monkeypatch: pytest.MonkeyPatch, coins_sat: tuple[int, ...], max_fee_sat: int
) -> None:
    """At a deadline the rate is all that an output is worth: with little in the wallet, or many small coins, there must
    be a transaction all the same."""
    world = World()
    await world.start()
    for amount_sat in coins_sat:
        await world.receive(amount_sat)
    asks_for(monkeypatch, 40_000)
    monkeypatch.setattr(Maker, "_signed", lambda self, plan, funded, signer: funded.tx)
    plan = plan_of(max_fee_sat, 900_000)
    made = Maker(world.wallet)._with_coins(plan, NOTHING, NOTHING, 100, None)
    assert min(max_fee_sat, 20_000) // 2 < made.attempt.fee_sat <= max_fee_sat


async def test_a_replacement_spends_the_coins_of_what_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """That may be mined in its place: a channel funded with its coins meanwhile would come to nothing."""
    world = World()
    await world.start()
    for amount_sat in (50_000, 60_000, 70_000, 80_000):
        await world.receive(amount_sat)
    wallet = world.wallet
    monkeypatch.setattr(Maker, "_signed", lambda self, plan, funded, signer: funded.tx)
    maker, before, rate = Maker(wallet), None, 500
    for amount_sat in (20_000, 20_000, 90_000):
        asks_for(monkeypatch, amount_sat)
        plan = plan_of(50_000, rate)
        made = maker._with_coins(plan, NOTHING, NOTHING, 100, before)
        coins = {txin.outpoint for txin in Tx.parse(made.attempt.raw).inputs}
        if before is not None:
            assert coins >= {txin.outpoint for txin in Tx.parse(before.raw).inputs}
        assert set(*wallet.reservations().values()) == coins
        before, rate = made.attempt, rate * 2


async def test_what_layer_1_refused_needs_not_be_outbid(monkeypatch: pytest.MonkeyPatch) -> None:
    world, published = await spent(30_000)
    wallet = world.wallet
    asks_for(monkeypatch, 40_000)
    monkeypatch.setattr(Maker, "_signed", lambda self, plan, funded, signer: funded.tx)
    plan = plan_of(50_000, 90_000)
    for problem in ("", "insufficient fee"):
        before = attempt_of(published, 80_000, problem)
        if problem:
            made = Maker(wallet)._with_coins(plan, NOTHING, NOTHING, 100, before)
            assert made.attempt.feerate_per_kw < 80_000
        else:
            with pytest.raises(CannotMake):
                Maker(wallet)._with_coins(plan, NOTHING, NOTHING, 100, before)
