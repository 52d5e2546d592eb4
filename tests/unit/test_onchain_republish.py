"""What closed a channel left the chain: it is published again only if that cannot cost us anything."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from channeld.channel import events as ev
from channeld.onchain import resolution as on
from channeld.onchain.known import Known
from tests.machine.harness import Pair, Peer, add, script_of
from tests.unit.onchain_support import EXPIRY, channel, commitment, known, offer_unanswered, talking
from tests.unit.test_onchain_plans import RATES, H
from wallet.bitcoin import Tx, TxIn, TxOut

both_types = pytest.mark.parametrize("anchors", [True, False], ids=["anchors", "static_remotekey"])


def moved_on(anchors: bool = True) -> tuple[Pair, Pair]:
    """The channel as it was, and as it is: both commitments of before are revoked."""
    pair = channel(anchors)
    before = pair.clone()
    pair.connect()
    pair.settle()
    add(pair.alice, 5_000_000, 9, EXPIRY)
    pair.settle()
    pair.disconnect()
    return before, pair


def again(peer: Peer, tx: Tx) -> list[Tx]:
    """What `peer` publishes when `tx` closed the channel and left the chain."""
    peer.step(ev.FundingSpent(tx, H, 1))
    return published(known(peer))


def published(now: Known) -> list[Tx]:
    step = on.advance(on.Resolution(), on.Looked(), on.Env(now, (), H, RATES))
    assert all(isinstance(action, on.PublishSeen) for action in step.actions)
    return [Tx.parse(action.raw) for action in step.actions if isinstance(action, on.PublishSeen)]


@pytest.mark.bolt5("revoked.ours")
@both_types
def test_our_own_revoked_commitment_is_not(anchors: bool) -> None:
    """From a backup that was started, or with leaked keys: the peer would take everything."""
    before, after = moved_on(anchors)
    assert again(after.alice, commitment(before.alice)) == []


@both_types
def test_our_own_commitment_of_a_state_that_we_lost_is_not(anchors: bool) -> None:
    """We are the old copy: what the lost state revoked is not known here."""
    before, after = moved_on(anchors)
    assert again(before.alice, commitment(after.alice)) == []


def test_our_own_latest_commitment_that_we_did_not_publish_is_not() -> None:
    """Whoever did has a copy of us, and may have gone on with it: it may be revoked for all we know."""
    alice = channel().alice
    assert again(alice, commitment(alice)) == []


@both_types
def test_the_peers_commitments_are(anchors: bool) -> None:
    before, after = moved_on(anchors)
    latest, revoked = commitment(after.bob), commitment(before.bob)
    assert again(after.clone().alice, latest) == [latest]
    assert again(after.alice, revoked) == [revoked], "everything in it is ours"


def test_both_commitments_that_the_peer_may_publish_are() -> None:
    pair = talking()
    offer_unanswered(pair, pair.alice)
    following = commitment(pair.bob)
    assert known(pair.alice).remote_next is not None
    assert again(pair.alice, following) == [following]


@both_types
def test_the_peers_commitment_of_a_state_that_we_lost_is(anchors: bool) -> None:
    """It pays our balance: there is no other way to that."""
    before, after = moved_on(anchors)
    latest = commitment(after.bob)
    assert again(before.alice, latest) == [latest]


@both_types
def test_a_revoked_commitment_of_the_peer_is_known_by_either_balance(anchors: bool) -> None:
    """One of both may be too small for an output. Without both, nothing tells whose it is."""
    before, after = moved_on(anchors)
    tx = commitment(before.bob)
    after.alice.step(ev.FundingSpent(tx, H, 1))
    base = known(after.alice)
    balances = sorted(tx.outputs, key=lambda output: output.value_sat)[-2:]
    for gone, expected in ((balances[:1], True), (balances[1:], True), (balances, False)):
        left = tx.replace(outputs=tuple(output for output in tx.outputs if output not in gone))
        assert bool(published(replace(base, seen_tx=left.serialize()))) == expected


def test_a_mutual_close_is_and_a_theft_is_not() -> None:
    alice = channel().alice
    base = replace(known(alice), shutdown_scripts=(script_of("alice"), script_of("bob")))
    funding = TxIn(base.params.funding_outpoint, b"", 0xFFFFFFFD)
    agreed = Tx(2, (funding,), (TxOut(1, script_of("alice")), TxOut(2, script_of("bob"))), 0)
    assert published(replace(base, seen_tx=agreed.serialize())) == [agreed]
    theft = Tx(2, (funding,), (TxOut(1, script_of("alice")), TxOut(2, script_of("thief"))), 0)
    assert published(replace(base, seen_tx=theft.serialize())) == []
