"""Faults that other implementations had on chain and that were disclosed: HTLCs that are alike, preimages of HTLCs that
only the peer's commitment has, HTLCs that were settled and then failed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from channeld.channel import events as ev
from channeld.onchain.outcomes import Outcome, outcomes
from channeld.onchain.outputs import Output
from channeld.onchain.resolve import resolve
from tests.machine.harness import Pair, add, open_pair, preimage_of
from tests.unit.onchain_support import (
    EXPIRY,
    OFFERED,
    POLICY,
    close_of,
    commitment,
    fact,
    htlc_tx,
    known,
    offer_unanswered,
    only,
    sweep_of,
    talking,
)

H = EXPIRY - 50
TWINS = 3


def twins(*, anchors: bool = True) -> Pair:
    """Alice offered three HTLCs that nothing but their ids tells apart, and one that expires later."""
    pair = open_pair(anchors=anchors, push_msat=400_000_000, policy=POLICY)
    for _ in range(TWINS):
        add(pair.alice, 50_000_000, 1, EXPIRY)
    add(pair.alice, 50_000_000, 1, EXPIRY + 1)
    pair.settle()
    return pair


def htlcs(outputs: tuple[Output, ...]) -> list[Output]:
    return [output for output in outputs if output.kind == "htlc"]


def check_apart(found: list[Output]) -> None:
    """Each HTLC has an output of its own."""
    assert sorted(output.htlc.id for output in found if output.htlc) == list(range(TWINS + 1))
    assert len({output.outpoint for output in found}) == TWINS + 1


@pytest.mark.parametrize("anchors", [True, False])
def test_htlcs_that_are_alike_are_all_taken_back(anchors: bool) -> None:
    """One that was mixed up with another would have a signature that does not fit: the channel would be closed over it,
    and the money stay (LDK, "duplicate HTLC force close griefing")."""
    pair = twins(anchors=anchors)
    facts = (fact(commitment(pair.alice), H),)
    found = htlcs(close_of(pair.alice, *facts).outputs)
    check_apart(found)
    txs = [htlc_tx(pair.alice, output, facts) for output in found]  # Bitcoin Core's engine takes them
    after = close_of(pair.alice, *facts, *(fact(tx, EXPIRY + 2) for tx in txs))
    assert {output.taker for output in htlcs(after.outputs)} == {"local"}
    back = [Outcome(id, None) for id in range(TWINS + 1)]
    assert outcomes(known(pair.alice), after, EXPIRY + 7) == back

    facts = (fact(commitment(pair.bob), H),)
    close = close_of(pair.alice, *facts)
    found = htlcs(close.outputs)
    check_apart(found)
    tx = sweep_of(pair.alice, close, found, facts)
    assert outcomes(known(pair.alice), close_of(pair.alice, *facts, fact(tx, EXPIRY + 2)), EXPIRY + 7) == back


def test_a_preimage_settles_all_that_are_alike() -> None:
    pair = twins()
    pair.bob.step(ev.FulfillHtlc(1, preimage_of(1)))
    facts = (fact(commitment(pair.bob), H),)
    success = htlc_tx(pair.bob, only(close_of(pair.bob, *facts), "htlc", id=1, offered=False), facts)
    close = close_of(pair.alice, *facts, fact(success, H + 1))
    settled = [Outcome(id, preimage_of(1)) for id in range(TWINS + 1)]
    assert outcomes(known(pair.alice), close, H + 1) == settled
    assert outcomes(known(pair.alice), close, EXPIRY + 100) == settled


def test_revoked_htlcs_that_are_alike_are_all_punished() -> None:
    pair = twins()
    old = pair.clone().bob
    add(pair.alice, 5_000_000, 9, EXPIRY)
    pair.settle()
    facts = (fact(commitment(old), H),)
    close = close_of(pair.alice, *facts)
    assert close.kind == "revoked"
    found = htlcs(close.outputs)
    check_apart(found)
    justice = sweep_of(pair.alice, close, [only(close, "to_local"), *found], facts)
    after = close_of(pair.alice, *facts, fact(justice, H + 1))
    assert {output.taker for output in htlcs(after.outputs)} == {"local"}


def test_a_preimage_is_learnt_from_an_htlc_that_only_the_peers_commitment_has() -> None:
    """Ours never had it: whoever looks for preimages of its own commitment's HTLCs alone pays for it (Eclair, "preimage
    extraction")."""
    pair = talking()
    offer_unanswered(pair, pair.alice)
    facts = (fact(commitment(pair.bob), H),)
    assert 2 not in [htlc.id for htlc in pair.alice.commitments.local.spec.htlcs.values() if htlc.offered]
    of_bob = resolve(replace(known(pair.bob), preimages={2: preimage_of(9)}), facts)
    assert of_bob is not None
    success = htlc_tx(pair.bob, only(of_bob, "htlc", id=2, offered=False), facts)
    close = close_of(pair.alice, *facts, fact(success, H + 1))
    assert close.kind == "remote_next"
    assert Outcome(2, preimage_of(9)) in outcomes(known(pair.alice), close, H + 1)


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_what_was_settled_is_never_failed(whose: str) -> None:
    """Whichever commitment is mined, with the HTLC or without: the incoming side was fulfilled (LND, "excessive
    failback")."""
    pair = talking()
    with_it = commitment(pair.alice if whose == "ours" else pair.bob)
    pair.bob.step(ev.FulfillHtlc(OFFERED, preimage_of(1)))
    pair.deliver_all(pair.bob)
    settled = known(pair.alice)
    pair.settle()
    without = commitment(pair.alice if whose == "ours" else pair.bob)
    assert with_it != without
    for close in (close_of(pair.alice, fact(without, H)), resolve(settled, (fact(with_it, H),))):
        assert close is not None
        told = outcomes(settled, close, EXPIRY + 100)
        assert OFFERED not in [outcome.id for outcome in told]
