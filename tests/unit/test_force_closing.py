"""What closed a channel left the chain again: when our own commitment may be the way out (BOLT 5)."""

from __future__ import annotations

import pytest

from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.chain import signed_local_commitment
from channeld.channel.state import Closing, Funded, Normal, Standing
from channeld.node.channel_verbs import COPIED, doubt_of
from tests.machine.harness import HEIGHT, Pair, Peer, add, open_pair, script_of
from tests.unit.bolt3_support import script_ok
from tests.unit.closing_support import closed_together
from wallet.bitcoin import Tx, TxIn, TxOut

FORCED = ev.ForceClose("out")


def left_the_chain(peer: Peer, tx: Tx) -> Closing:
    """`tx` was in a block that is not in the chain any more."""
    peer.step(ev.FundingSpent(tx, HEIGHT + 1, 1))
    peer.step(ev.FundingSpent(tx, None, 0))
    assert isinstance(peer.state, Closing)
    assert peer.state.confirmed_height is None
    return peer.state


def commitment(peer: Peer) -> Tx:
    return signed_local_commitment(peer.funded, peer.env())  # type: ignore[arg-type]


def channel() -> Pair:
    pair = open_pair(push_msat=300_000_000)
    add(pair.alice, 40_000_000, 0)
    pair.settle()
    return pair


def is_published(peer: Peer) -> None:
    """Our latest commitment, and it stays known over a restart."""
    state = peer.state
    assert isinstance(state, Closing)
    (tx,) = [effect.tx for effect in peer.step(FORCED) if isinstance(effect, fx.Broadcast)]
    assert tx.txid() == state.commitments.local.txid
    assert script_ok(tx, 0, TxOut(state.params.capacity_sat, state.params.funding_script_pubkey))
    after = peer.state
    assert isinstance(after, Closing)
    assert (after.kind, after.local_tx, after.closing_tx, after.reason) == (
        "local",
        tx.serialize(),
        tx.serialize(),
        "out",
    )
    assert peer.step(FORCED) == []
    peer.crash()
    assert tx in [effect.tx for effect in peer.logged(fx.Broadcast)]


@pytest.mark.parametrize("simple", [True, False])
def test_a_mutual_close_that_left_the_chain_leaves_a_way_out(simple: bool) -> None:
    pair, tx = closed_together(simple=simple)
    for peer in (pair.alice, pair.bob):
        state = left_the_chain(peer, tx)
        assert (state.kind, state.standing, doubt_of(state)) == ("mutual", "latest", "")
        is_published(peer)
        # It may be mined after all, and is no surprise then.
        peer.step(ev.FundingSpent(tx, HEIGHT + 5, 1))
        assert isinstance(peer.state, Closing)
        assert peer.state.kind == "mutual"


def test_what_is_in_a_block_leaves_nothing_to_force() -> None:
    pair = channel()
    pair.alice.step(ev.FundingSpent(commitment(pair.bob), HEIGHT + 1, 1))
    before = pair.alice.state
    with pytest.raises(ev.CommandRejected, match=f"in block {HEIGHT + 1}: nothing is left to force"):
        pair.alice.step(FORCED)
    assert pair.alice.state == before


def test_the_peers_commitments_leave_a_way_out() -> None:
    pair = channel()
    old = commitment(pair.bob)
    add(pair.alice, 1_000_000, 5)
    pair.settle()
    for tx, kind in ((commitment(pair.bob), "remote_current"), (old, "revoked")):
        twin = pair.clone()
        state = left_the_chain(twin.alice, tx)
        assert (state.kind, state.standing) == (kind, "latest")
        is_published(twin.alice)


def test_our_commitment_by_a_foreign_hand_is_for_the_operator_to_decide() -> None:
    pair = channel()
    assert left_the_chain(pair.alice, commitment(pair.alice)).standing == "doubtful"
    assert pair.alice.state is not None
    assert doubt_of(pair.alice.state) == COPIED
    with pytest.raises(ev.CommandRejected, match="may be revoked"):
        pair.alice.step(FORCED)
    published = pair.alice.step(ev.ForceClose("I am sure", even_if_outdated=True))
    assert any(isinstance(effect, fx.Broadcast) for effect in published)
    assert doubt_of(pair.alice.state) == ""


def test_doubts_from_before_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started, perhaps from an old copy, and not yet compared with the peer."""
    pair = channel()
    pair.alice.crash()
    assert left_the_chain(pair.alice, commitment(pair.bob)).standing == "doubtful"
    with pytest.raises(ev.CommandRejected, match="may be revoked"):
        pair.alice.step(FORCED)


def test_a_theft_leaves_a_doubt() -> None:
    pair = channel()
    params = pair.alice.funded.params
    thief = Tx(2, (TxIn(params.funding_outpoint),), (TxOut(1000, script_of("thief")),), 0)
    assert left_the_chain(pair.alice, thief).standing == "doubtful"


@pytest.mark.bolt5("fail.outdated", "revoked.ours")
def test_an_outdated_commitment_is_never_published_whoever_asks() -> None:
    """Alice's is an old copy; Bob's commitment, or what he said, proved it."""
    pair = channel()
    old: Funded = pair.alice.funded
    assert isinstance(old, Normal)
    for _ in range(2):
        add(pair.alice, 1_000_000, 5)
        pair.settle()
    theirs = commitment(pair.bob)
    pair.alice.state = old
    assert left_the_chain(pair.alice, theirs).standing == "outdated"
    for sure in (False, True):
        with pytest.raises(ev.CommandRejected, match="would lose everything"):
            pair.alice.step(ev.ForceClose("I am sure", even_if_outdated=sure))
    # Whatever is seen later: what is proved stays proved.
    pair.alice.step(ev.FundingSpent(commitment_of_old(old, pair.alice), None, 0))
    assert standing(pair.alice) == "outdated"
    restored = machine.decode_state(machine.encode_state(pair.alice.funded))  # type: ignore[arg-type]
    assert isinstance(restored, Closing)
    assert restored.standing == "outdated"


def commitment_of_old(state: Normal, peer: Peer) -> Tx:
    return signed_local_commitment(state, peer.env())


def standing(peer: Peer) -> Standing:
    assert isinstance(peer.state, Closing)
    return peer.state.standing
