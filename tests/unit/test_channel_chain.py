"""The chain and a channel: failing it, who spent the funding output, deadlines (BOLT 5, "Failing a Channel")."""

from __future__ import annotations

import pytest

from channeld.bolt.messages import ErrorMessage, WarningMessage
from channeld.bolt.transactions.commitment import build_commitment
from channeld.bolt.transactions.signing import complete
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.commitments import HtlcFulfill
from channeld.channel.state import AwaitingFunding, Closed, Closing, Normal
from tests.machine import harness
from tests.machine.harness import HEIGHT, Pair, Peer, add, both_signed, open_pair, preimage_of, script_of, seed_secrets
from tests.unit.bolt3_support import script_ok
from wallet.bitcoin import Tx, TxIn, TxOut


def commitment_of(peer: Peer) -> Tx:
    """The commitment that `peer` could publish now."""
    clone = machine.step(peer.funded, ev.ForceClose("look"), peer.env())  # type: ignore[arg-type]
    (broadcast,) = [effect for effect in clone.effects if isinstance(effect, fx.Broadcast)]
    return broadcast.tx


def with_htlcs() -> Pair:
    """Payments 0 and 1 of Alice's are locked in; Bob's answer to the first one is only half committed."""
    pair = open_pair(push_msat=300_000_000)
    add(pair.alice, 40_000_000, 0)
    add(pair.alice, 50_000_000, 1)
    pair.settle()
    return pair


# --- failing ------------------------------------------------------------------------------------------------------


@pytest.mark.bolt5("fail.broadcast")
@pytest.mark.parametrize("anchors", [True, False])
def test_our_latest_commitment_is_published_with_both_signatures(anchors: bool) -> None:
    pair = open_pair(anchors=anchors, push_msat=300_000_000)
    add(pair.alice, 40_000_000, 0)
    pair.settle()
    for peer in (pair.alice, pair.bob):
        effects = peer.step(ev.ForceClose("I want to"))
        (tx,) = [effect.tx for effect in effects if isinstance(effect, fx.Broadcast)]
        assert tx.txid() == peer.commitments.local.txid
        params = peer.funded.params
        assert script_ok(tx, 0, TxOut(params.capacity_sat, params.funding_script_pubkey))
        assert ErrorMessage(params.channel_id, b"I want to") in peer.sent()
        assert isinstance(peer.state, Closing)
        assert (peer.state.kind, peer.state.reason) == ("local", "I want to")
        peer.log.clear()
        peer.crash()
        assert [effect.tx for effect in peer.logged(fx.Broadcast)] == [tx]
        assert peer.step(ev.ForceClose("again")) == []


@pytest.mark.bolt5("revoked.ours")
def test_what_is_published_is_never_revoked() -> None:
    """At every point of an exchange of commitments: the peer does not know the secret of what we would publish."""
    pair = both_signed()
    for _ in range(40):
        for peer in (pair.alice, pair.bob):
            other = pair.other(peer)
            published = commitment_of(peer)
            index = peer.commitments.local.index
            assert published.txid() == peer.commitments.local.txid
            assert other.commitments.remote_secrets.count <= index
            peer.sign()
            if peer.outbox:
                pair.deliver(peer)


def test_an_error_from_the_peer_fails_the_channel_and_a_warning_does_not() -> None:
    pair = with_htlcs()
    channel_id = pair.alice.funded.params.channel_id
    assert pair.alice.step(ev.PeerMessage(WarningMessage(channel_id, b"hm"))) == []
    pair.alice.step(ev.PeerMessage(ErrorMessage(channel_id, b"bye\x00\x1b[2J")))
    assert isinstance(pair.alice.state, Closing)
    assert pair.alice.state.reason == "the peer failed the channel: bye..[2J"  # no control characters


def test_an_unsigned_add_is_reported_when_the_channel_fails() -> None:
    pair = with_htlcs()
    add(pair.alice, 1_000_000, 7)
    pair.alice.step(ev.ForceClose("now"))
    (failed,) = pair.alice.logged(fx.HtlcFailed)
    assert failed.never_sent
    assert failed.origin == b"payment 7"


def test_a_preimage_that_comes_after_failing_is_kept() -> None:
    pair = with_htlcs()
    pair.bob.step(ev.ForceClose("now"))
    pair.bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    assert isinstance(pair.bob.state, Closing)
    assert pair.bob.commitments.pending == (HtlcFulfill(0, preimage_of(0)),)
    assert [htlc.id for htlc in machine.unresolved_htlcs(pair.bob.state)] == [1]


def test_a_fundee_without_funds_just_forgets() -> None:
    # BOLT 5, "if a *local commitment transaction* has NOT ever contained a `to_local` or HTLC output: MAY simply
    # forget"
    pair = harness.start_open(Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")))
    harness.fund(pair)
    pair.bob.step(ev.ForceClose("no"))
    assert isinstance(pair.bob.state, Closed)
    pair.alice.step(ev.PeerMessage(ErrorMessage(pair.alice.funded.params.channel_id, b"no")))
    assert isinstance(pair.alice.state, Closing)


@pytest.mark.bolt5("fail.forget")
def test_a_channel_that_is_open_is_not_forgotten_though_nothing_of_it_is_ours() -> None:
    """BOLT 5, "until the remote node closes: MUST NOT forget the channel": whatever it held once."""
    pair = open_pair(push_msat=0)
    assert pair.bob.commitments.local.spec.to_local_msat == 0
    pair.bob.step(ev.ForceClose("no"))
    assert isinstance(pair.bob.state, Closing)
    pair.bob.crash()
    pair.bob.height += 10_000
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Closing)
    pair.bob.step(ev.FundingSpent(commitment_of(pair.alice), HEIGHT + 1, 99))
    assert isinstance(pair.bob.state, Closing)


def test_a_closed_channel_is_deaf() -> None:
    pair = open_pair()
    pair.bob.step(ev.ForceClose("enough"))
    assert pair.bob.receive(b"\x00\x26" + pair.bob.funded.params.channel_id + b"\x00\x00") == []
    with pytest.raises(ev.CommandRejected):
        pair.bob.step(ev.AddHtlc(1, bytes(32), HEIGHT + 1, bytes(1366), b""))
    with pytest.raises(ev.CommandRejected):
        pair.bob.step(ev.CloseChannel(script_of("bob"), 1000))
    with pytest.raises(ev.CommandRejected, match="close it instead"):
        pair.bob.step(ev.ForgetChannel("gone"))


# --- deadlines ----------------------------------------------------------------------------------------------------


def test_an_offered_htlc_that_expired_fails_the_channel() -> None:
    pair = with_htlcs()
    for grace, state in ((2, Normal), (3, Closing)):
        pair.alice.height = HEIGHT + 100 + grace
        pair.alice.step(ev.NewBlock())
        assert isinstance(pair.alice.state, state)


def test_a_fulfilled_htlc_that_is_about_to_expire_fails_the_channel() -> None:
    pair = with_htlcs()
    pair.bob.height = HEIGHT + 100 - 18
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Normal)  # we know no preimage: nothing is at stake
    pair.disconnect()
    pair.bob.step(ev.FulfillHtlc(1, preimage_of(1)))
    pair.bob.height = HEIGHT + 100 - 19
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Normal)
    pair.bob.height += 1
    pair.bob.step(ev.NewBlock())
    assert isinstance(pair.bob.state, Closing)


def test_an_htlc_only_in_the_peers_commitment_counts_too() -> None:
    pair = open_pair()
    add(pair.alice, 40_000_000, 0)
    pair.alice.sign()
    pair.alice.height = HEIGHT + 103
    pair.alice.step(ev.NewBlock())
    assert isinstance(pair.alice.state, Closing)


def test_an_htlc_that_ended_on_chain_is_reported_once() -> None:
    pair = with_htlcs()
    assert pair.alice.step(ev.HtlcOnChain(0)) == []  # only once the channel is closing
    pair.alice.step(ev.ForceClose("now"))
    for _ in range(2):
        pair.alice.step(ev.HtlcOnChain(0, preimage_of(0)))
        pair.alice.step(ev.HtlcOnChain(1))
        pair.alice.step(ev.HtlcOnChain(9))
        pair.alice.crash()
    (settled,) = pair.alice.logged(fx.HtlcSettled)
    assert (settled.origin, settled.payment_preimage) == (b"payment 0", preimage_of(0))
    (failed,) = pair.alice.logged(fx.HtlcFailed)
    assert (failed.origin, failed.on_chain) == (b"payment 1", True)


# --- who spent it -------------------------------------------------------------------------------------------------


def test_the_peers_current_and_next_commitment() -> None:
    pair = with_htlcs()
    current = commitment_of(pair.bob)
    add(pair.alice, 1_000_000, 5)
    pair.alice.sign()
    pair.deliver(pair.alice)
    pair.deliver(pair.alice)
    following = commitment_of(pair.bob)
    assert current.txid() != following.txid()
    index = pair.alice.commitments.remote.index
    for tx, kind, number in ((current, "current", index), (following, "next", index + 1)):
        alice = pair.clone().alice
        effects = alice.step(ev.FundingSpent(tx, HEIGHT + 1, 1))
        assert isinstance(alice.state, Closing)
        assert alice.state.kind == f"remote_{kind}"
        assert alice.state.remote_commit_index == number
        assert fx.RemoteUnilateralClose(tx, kind) in effects
        alice.log.clear()
        alice.crash()
        assert alice.logged(fx.RemoteUnilateralClose) == [fx.RemoteUnilateralClose(tx, kind)]
        assert alice.step(ev.FundingSpent(tx, HEIGHT + 1, 2)) == []
        alice.step(ev.OutputsResolved())
        assert isinstance(alice.state, Closed)
        assert alice.state.closing_txid == tx.txid()


def test_a_revoked_commitment_is_told_by_its_number() -> None:
    pair = with_htlcs()
    old = commitment_of(pair.bob)
    number = pair.bob.commitments.local.index
    add(pair.alice, 1_000_000, 5)
    pair.settle()
    effects = pair.alice.step(ev.FundingSpent(old, HEIGHT + 1, 1))
    assert isinstance(pair.alice.state, Closing)
    assert (pair.alice.state.kind, pair.alice.state.remote_commit_index) == ("revoked", number)
    assert fx.RemoteUnilateralClose(old, "revoked") in effects
    # everything that punishing takes is there
    saved = pair.alice.revocable[number]
    assert saved.txid == old.txid()
    assert len(saved.htlcs) == 2
    secret = pair.alice.commitments.remote_secrets.secret(number)
    assert secret == pair.bob.signer.per_commitment_secret(number)


def test_our_own_commitment() -> None:
    pair = with_htlcs()
    tx = commitment_of(pair.alice)
    pair.alice.step(ev.FundingSpent(tx, None, 0))
    assert isinstance(pair.alice.state, Closing)
    assert pair.alice.state.kind == "local"
    assert not pair.alice.logged(fx.RemoteUnilateralClose)


def test_the_peer_wins_the_race() -> None:
    pair = with_htlcs()
    theirs = commitment_of(pair.bob)
    pair.alice.step(ev.ForceClose("now"))
    effects = pair.alice.step(ev.FundingSpent(theirs, HEIGHT + 1, 1))
    assert isinstance(pair.alice.state, Closing)
    assert pair.alice.state.kind == "remote_current"
    assert pair.alice.state.reason == "now"
    assert fx.RemoteUnilateralClose(theirs, "current") in effects


def test_an_unknown_transaction() -> None:
    pair = with_htlcs()
    params = pair.alice.funded.params
    tx = Tx(2, (TxIn(params.funding_outpoint),), (TxOut(1000, script_of("thief")),), 0)
    pair.alice.step(ev.FundingSpent(tx, HEIGHT + 1, 1))
    assert isinstance(pair.alice.state, Closing)
    assert pair.alice.state.kind == "unknown"


def test_a_commitment_from_the_future_is_unknown() -> None:
    pair = with_htlcs()
    state = pair.bob.funded
    spec = state.commitments.local.spec.commitment_spec()
    index = state.commitments.local.index + 5
    built = build_commitment(state.params.commitment, spec, "local", index, pair.bob.signer.per_commitment_point(index))
    tx = complete(state.params.commitment, built.tx, bytes(64), bytes(64))
    pair.alice.step(ev.FundingSpent(tx, HEIGHT + 1, 1))
    assert isinstance(pair.alice.state, Closing)
    assert (pair.alice.state.kind, pair.alice.state.remote_commit_index) == ("unknown", index)


@pytest.mark.bolt5("spent")
def test_a_spend_before_the_channel_is_ready() -> None:
    pair = harness.start_open(Peer("alice", seed_secrets("alice")), Peer("bob", seed_secrets("bob")))
    harness.fund(pair)
    assert isinstance(pair.bob.state, AwaitingFunding)
    tx = commitment_of(pair.alice)
    pair.bob.step(ev.FundingSpent(tx, HEIGHT + 1, 1))
    assert isinstance(pair.bob.state, Closing)
    assert pair.bob.state.kind == "remote_current"


def test_a_reorganisation_moves_the_scid() -> None:
    pair = open_pair()
    pair.alice.step(ev.FundingDepth(0, 0, 0, 1_000_000))
    assert isinstance(pair.alice.state, Normal)
    assert pair.alice.state.funding_depth == 0
    pair.alice.step(ev.FundingDepth(1, HEIGHT + 1, 3, 1_000_000))
    assert isinstance(pair.alice.state, Normal)
    assert pair.alice.state.scid == (HEIGHT + 1) << 40 | 3 << 16 | 1


def test_phases_are_announced() -> None:
    pair = open_pair()
    pair.alice.step(ev.ForceClose("now"))
    changes = [(c.old, c.new, c.reason) for c in pair.alice.logged(fx.PhaseChanged)]
    assert changes == [
        ("opening", "awaiting_funding", ""),
        ("awaiting_funding", "normal", "channel_ready went both ways"),
        ("normal", "closing", "now"),
    ]
