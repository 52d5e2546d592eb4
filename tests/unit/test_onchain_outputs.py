"""BOLT 5, requirement by requirement: what each output is, who may take it when, and what becomes of HTLCs. Every spend
goes through Bitcoin Core's engine."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from channeld.bolt.transactions import commitment_number_of
from channeld.channel import events as ev
from channeld.onchain.classify import classify
from channeld.onchain.facts import Fact, children_to_watch
from channeld.onchain.outcomes import Outcome, is_over, outcomes
from channeld.onchain.outputs import HtlcTx, NeedsPreimage, Ours, Sweep, Theirs
from channeld.onchain.resolve import resolve
from tests.machine.harness import HEIGHT, Pair, Peer, add, preimage_of, script_of
from tests.unit.onchain_support import (
    DELAY,
    EXPIRY,
    OFFERED,
    OFFERED_DUST,
    RECEIVED,
    RECEIVED_UNKNOWN,
    channel,
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
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut

both_types = pytest.mark.parametrize("anchors", [True, False], ids=["anchors", "static_remotekey"])
H = HEIGHT + 1


# --- Unilateral Close Handling: Local Commitment Transaction ------------------------------------------------------


@pytest.mark.bolt5("local.to_local", "local.delay")
@both_types
def test_local_to_local_waits_for_its_delay(anchors: bool) -> None:
    """BOLT 5, "SHOULD spend the `to_local` output to a convenient address", "MUST wait until the
    `OP_CHECKSEQUENCEVERIFY` delay has passed"."""
    alice = channel(anchors).alice
    facts = (fact(commitment(alice), H),)
    close = close_of(alice, *facts)
    assert close.kind == "local"
    to_local = only(close, "to_local")
    assert to_local.mature_height == H + DELAY
    assert to_local.deadline_height is None
    tx = sweep_of(alice, close, [to_local], facts)
    assert tx.inputs[0].sequence == DELAY
    taken = close_of(alice, *facts, fact(tx, H + DELAY))
    assert only(taken, "to_local").taker == "local"


@both_types
def test_local_to_remote_is_ignored(anchors: bool) -> None:
    """BOLT 5, "MAY ignore the `to_remote` output"."""
    alice = channel(anchors).alice
    assert isinstance(only(close_of(alice, fact(commitment(alice), H)), "to_remote", "remote").claim, Theirs)


@pytest.mark.bolt5(
    "local.offered.timeout", "local.offered.fail", "local.offered.second", "local.offered.home", "local.offered.delay"
)
@both_types
def test_local_offered_htlc_is_timed_out(anchors: bool) -> None:
    """BOLT 5, "if the commitment transaction HTLC output has *timed out* and hasn't been *resolved*: MUST *resolve* the
    output by spending it using the HTLC-timeout transaction"; "MUST resolve the output of that HTLC-timeout
    transaction"; "MUST wait until the `OP_CHECKSEQUENCEVERIFY` delay has passed"; "once the resolving transaction has
    reached reasonable depth: MUST fail the corresponding incoming HTLC (if any)"."""
    alice = channel(anchors).alice
    facts: tuple[Fact, ...] = (fact(commitment(alice), H),)
    output = only(close_of(alice, *facts), "htlc", id=OFFERED, offered=True)
    assert isinstance(output.claim, HtlcTx)
    assert output.mature_height == EXPIRY + 1
    timeout = htlc_tx(alice, output, facts)
    assert timeout.locktime == EXPIRY
    facts = (*facts, fact(timeout, EXPIRY + 1))
    close = close_of(alice, *facts)
    second = only(close, "htlc_tx")
    assert second.mature_height == EXPIRY + 1 + DELAY
    sweep_of(alice, close, [second], facts)
    facts = (facts[0], fact(timeout, EXPIRY + 1))
    told = [outcomes(known(alice), close_of(alice, *facts), EXPIRY + depth) for depth in (5, 6)]
    assert Outcome(OFFERED, None) not in told[0]
    assert Outcome(OFFERED, None) in told[1]


@pytest.mark.bolt5("local.offered.extract")
@both_types
def test_local_offered_htlc_taken_with_the_preimage(anchors: bool) -> None:
    """BOLT 5, "if the commitment transaction HTLC output is spent using the payment preimage ...: MUST extract the
    payment preimage from the transaction input witness"."""
    pair = channel(anchors)
    pair.bob.step(ev.FulfillHtlc(OFFERED, preimage_of(1)))
    facts = (fact(commitment(pair.alice), H),)
    seen_by_bob = close_of(pair.bob, *facts)
    assert seen_by_bob.kind == "remote_current"
    claim = sweep_of(pair.bob, seen_by_bob, [only(seen_by_bob, "htlc", id=OFFERED, offered=False)], facts)
    close = close_of(pair.alice, *facts, fact(claim, H + 1))
    assert only(close, "htlc", id=OFFERED, offered=True).taker == "remote"
    assert outcomes(known(pair.alice), close, H + 1) == [Outcome(OFFERED, preimage_of(1))]


@pytest.mark.bolt5("local.absent.fail")
@both_types
def test_local_htlc_without_output(anchors: bool) -> None:
    """BOLT 5, "for any committed HTLC that does NOT have an output in this commitment transaction: if the payment
    preimage is known: MUST fulfill the corresponding incoming HTLC (if any); otherwise: once the commitment transaction
    has reached reasonable depth: MUST fail the corresponding incoming HTLC (if any)"."""
    alice = channel(anchors).alice
    close = close_of(alice, fact(commitment(alice), H))
    trimmed = only(close, "trimmed_htlc", id=OFFERED_DUST, offered=True)
    assert trimmed.outpoint is None
    assert outcomes(known(alice), close, H + 4) == []
    assert outcomes(known(alice), close, H + 5) == [Outcome(OFFERED_DUST, None)]


@pytest.mark.bolt5("local.absent.fulfill")
def test_preimage_settles_htlcs_with_the_same_hash_that_have_no_output() -> None:
    """BOLT 5, "if the payment preimage is known: MUST fulfill the corresponding incoming HTLC (if any)": parts of one
    payment share the hash."""
    pair = talking()
    add(pair.alice, 100_000, 1, EXPIRY)
    pair.settle()
    pair.disconnect()
    pair.bob.step(ev.FulfillHtlc(OFFERED, preimage_of(1)))
    facts = (fact(commitment(pair.alice), H),)
    seen_by_bob = close_of(pair.bob, *facts)
    claim = sweep_of(pair.bob, seen_by_bob, [only(seen_by_bob, "htlc", id=OFFERED, offered=False)], facts)
    told = outcomes(known(pair.alice), close_of(pair.alice, *facts, fact(claim, H + 1)), H + 1)
    assert told == [Outcome(OFFERED, preimage_of(1)), Outcome(2, preimage_of(1))]


@pytest.mark.bolt5("local.received.success", "local.received.second", "local.received.home", "local.received.delay")
@both_types
def test_local_received_htlc_with_and_without_preimage(anchors: bool) -> None:
    """BOLT 5, "MUST *resolve* the output by spending it, using the HTLC-success transaction"; "otherwise: if the
    *remote node* is NOT irrevocably committed to the HTLC: MUST NOT *resolve* the output by spending it"."""
    alice = channel(anchors).alice
    facts: tuple[Fact, ...] = (fact(commitment(alice), H),)
    close = close_of(alice, *facts)
    received = only(close, "htlc", id=RECEIVED, offered=False)
    assert received.mature_height == (H + 1 if anchors else H)
    assert received.deadline_height == EXPIRY + 1
    success = htlc_tx(alice, received, facts)
    assert success.locktime == 0
    facts = (*facts, fact(success, H + 1))
    close = close_of(alice, *facts)
    second = only(close, "htlc_tx")
    assert second.mature_height == H + 1 + DELAY
    sweep_of(alice, close, [second], facts)
    unknown = only(close, "htlc", id=RECEIVED_UNKNOWN, offered=False)
    assert unknown.claim == NeedsPreimage(EXPIRY + 1)
    assert unknown.mature_height is None


@pytest.mark.bolt5("local.received.uncommitted", "remote.received.uncommitted")
def test_not_irrevocably_committed_htlc_is_not_claimed() -> None:
    """BOLT 5, "if the *remote node* is NOT irrevocably committed to the HTLC: MUST NOT *resolve* the output by spending
    it": the channel takes no preimage for one that is not."""
    pair = talking()
    offer_unanswered(pair, pair.bob)
    with pytest.raises(ev.CommandRejected):
        pair.alice.step(ev.FulfillHtlc(2, preimage_of(9)))
    close = close_of(pair.alice, fact(commitment(pair.alice), H))
    assert isinstance(only(close, "htlc", id=2, offered=False).claim, NeedsPreimage)


def test_local_anchor_is_spent_after_the_commitment_too() -> None:
    """BOLT 5, "MUST spend any `to_local_anchor` output" (while unconfirmed, by a child; see the monitor's tests)."""
    alice = channel().alice
    facts = (fact(commitment(alice), H),)
    close = close_of(alice, *facts)
    anchor = only(close, "anchor")
    tx = sweep_of(alice, close, [anchor, only(close, "to_local")], facts)
    assert only(close_of(alice, *facts, fact(tx, H + DELAY)), "anchor").taker == "local"


# --- Unilateral Close Handling: Remote Commitment Transaction -----------------------------------------------------


@both_types
def test_remote_to_remote_is_ours_and_to_local_is_not(anchors: bool) -> None:
    """BOLT 5, "MAY take no action in regard to the associated `to_remote`": ours is brought home, for its key is the
    channel's. "MAY take no action in regard to the associated `to_local`"."""
    pair = channel(anchors)
    facts = (fact(commitment(pair.bob), H),)
    close = close_of(pair.alice, *facts)
    assert close.kind == "remote_current"
    ours = only(close, "to_remote")
    assert ours.mature_height == (H + 1 if anchors else H)
    sweep_of(pair.alice, close, [ours], facts)
    assert isinstance(only(close, "to_local", "remote").claim, Theirs)


@pytest.mark.bolt5("remote.offered.timeout")
@both_types
def test_remote_offered_by_us_is_taken_back_after_expiry(anchors: bool) -> None:
    """BOLT 5, "if the commitment transaction HTLC output has *timed out* AND NOT been *resolved*: MUST *resolve* the
    output, by spending it to a convenient address"; it is failed upstream at reasonable depth."""
    pair = channel(anchors)
    facts = (fact(commitment(pair.bob), H),)
    close = close_of(pair.alice, *facts)
    output = only(close, "htlc", id=OFFERED, offered=True)
    assert output.mature_height == EXPIRY + 1
    tx = sweep_of(pair.alice, close, [output], facts)
    assert tx.locktime == EXPIRY
    after = close_of(pair.alice, *facts, fact(tx, EXPIRY + 1))
    assert only(after, "htlc", id=OFFERED, offered=True).taker == "local"
    assert Outcome(OFFERED, None) not in outcomes(known(pair.alice), after, EXPIRY + 5)
    assert Outcome(OFFERED, None) in outcomes(known(pair.alice), after, EXPIRY + 6)


@pytest.mark.bolt5("remote.offered.extract", "remote.absent.fulfill")
@both_types
def test_remote_takes_ours_with_the_preimage(anchors: bool) -> None:
    """BOLT 5, "MUST extract the payment preimage from the HTLC-success transaction input witness"."""
    pair = channel(anchors)
    pair.bob.step(ev.FulfillHtlc(OFFERED, preimage_of(1)))
    facts = (fact(commitment(pair.bob), H),)
    of_bob = close_of(pair.bob, *facts)
    success = htlc_tx(pair.bob, only(of_bob, "htlc", id=OFFERED, offered=False), facts)
    close = close_of(pair.alice, *facts, fact(success, H + 1))
    assert only(close, "htlc", id=OFFERED, offered=True).taker == "remote"
    assert outcomes(known(pair.alice), close, H + 1) == [Outcome(OFFERED, preimage_of(1))]


@pytest.mark.bolt5("remote.received.claim")
@both_types
def test_remote_offered_to_us_is_claimed_with_the_preimage_only(anchors: bool) -> None:
    """BOLT 5, "if it receives (or already possesses) a payment preimage for an unresolved HTLC output that it was
    offered AND for which it has committed to an outgoing HTLC: MUST *resolve* the output by spending it to a convenient
    address"; "If not otherwise resolved, once the HTLC output has expired, it is considered *irrevocably resolved*"."""
    pair = channel(anchors)
    facts: tuple[Fact, ...] = (fact(commitment(pair.bob), H),)
    close = close_of(pair.alice, *facts)
    received = only(close, "htlc", id=RECEIVED, offered=False)
    assert received.deadline_height == EXPIRY + 1
    tx = sweep_of(pair.alice, close, [received], facts)
    assert preimage_of(3) in tx.inputs[0].witness
    unknown = only(close, "htlc", id=RECEIVED_UNKNOWN, offered=False)
    assert unknown.claim == NeedsPreimage(EXPIRY + 1)
    of_bob = close_of(pair.bob, *facts)
    timeout = htlc_tx(pair.bob, only(of_bob, "htlc", id=RECEIVED_UNKNOWN, offered=True), facts)
    after = close_of(pair.alice, *facts, fact(timeout, EXPIRY + 2))
    assert only(after, "htlc", id=RECEIVED_UNKNOWN, offered=False).taker == "remote"


@pytest.mark.bolt5("remote.absent.fail")
def test_both_commitments_of_the_peer_are_handled() -> None:
    """BOLT 5, "either commitment may serve as the *remote node's* commitment transaction; hence, the local node is
    required to handle both"."""
    pair = talking()
    before = commitment(pair.bob)
    offer_unanswered(pair, pair.alice)
    after = commitment(pair.bob)
    current, following = close_of(pair.alice, fact(before, H)), close_of(pair.alice, fact(after, H))
    assert (current.kind, following.kind) == ("remote_current", "remote_next")
    assert only(current, "trimmed_htlc", id=2, offered=True).outpoint is None
    assert isinstance(only(following, "htlc", id=2, offered=True).claim, Sweep)
    assert Outcome(2, None) in outcomes(known(pair.alice), current, H + 5)


def moved_on() -> tuple[Pair, Peer]:
    """A channel, and Alice as she was before its last states."""
    pair = channel()
    late = pair.clone().alice
    pair.connect()
    pair.settle()
    add(pair.bob, 5_000_000, 9, EXPIRY)
    pair.settle()
    return pair, late


@pytest.mark.bolt5("remote.lost")
def test_loss_of_data_saves_to_remote() -> None:
    """BOLT 5, "otherwise (it is NOT able to handle the broadcast for some reason): MUST inform the user of potentially
    lost funds"; it "can derive its own `remotepubkey` for the transaction, in order to salvage its own funds"."""
    pair, late = moved_on()
    facts = (fact(commitment(pair.bob), H),)
    close = close_of(late, *facts)
    assert close.kind == "unknown"
    sweep_of(late, close, [only(close, "to_remote")], facts)
    assert [output.kind for output in close.outputs if isinstance(output.claim, Sweep)] == ["to_remote"]
    assert Outcome(OFFERED, None) not in outcomes(known(late), close, H + 5)
    assert Outcome(OFFERED, None) in outcomes(known(late), close, EXPIRY + 6)


@pytest.mark.bolt5("remote.lost")
@pytest.mark.parametrize("revoked", [False, True])
def test_loss_of_data_saves_to_local_of_what_we_had_published(revoked: bool) -> None:
    """Alice published a commitment, and then lost all states from some time before it on."""
    pair, late = moved_on()
    facts = [fact(commitment(pair.alice), H)]
    number = pair.alice.funded.commitments.local.index
    lost = replace(known(late), own_point=late.signer.per_commitment_point(number))
    close = resolve(lost, tuple(facts))
    assert close is not None
    assert (close.kind, close.commitment_number) == ("unknown", number)
    to_local = only(close, "to_local")
    assert to_local.mature_height == H + DELAY
    sweep_of(late, close, [to_local], tuple(facts))
    assert to_local.outpoint is not None
    witness = (b"", b"\x01") if revoked else (b"", b"")
    taking = Tx(2, (TxIn(to_local.outpoint, b"", 0, (*witness, b"script")),), (TxOut(1, script_of("taker")),), 0)
    facts.append(fact(taking, H + 1 if revoked else H + DELAY))
    taken = resolve(lost, tuple(facts))
    assert taken is not None
    assert only(taken, "to_local").taker == ("remote" if revoked else "local")


@pytest.mark.bolt5("remote.lost")
@both_types
def test_loss_of_data_saves_what_our_htlc_transactions_had_brought(anchors: bool) -> None:
    """Alice published a commitment and an HTLC-timeout transaction, and then lost all states from before them on."""
    pair = channel(anchors)
    late = pair.clone().alice
    pair.connect()
    pair.settle()
    add(pair.bob, 5_000_000, 9, EXPIRY)
    pair.settle()
    facts: tuple[Fact, ...] = (fact(commitment(pair.alice), H),)
    timeout = htlc_tx(pair.alice, only(close_of(pair.alice, *facts), "htlc", id=OFFERED, offered=True), facts)
    facts = (*facts, fact(timeout, EXPIRY + 1))
    number = pair.alice.funded.commitments.local.index
    lost = replace(known(late), own_point=late.signer.per_commitment_point(number))
    close = resolve(lost, facts)
    assert close is not None
    second = only(close, "htlc_tx")
    assert second.mature_height == EXPIRY + 1 + DELAY
    tx = sweep_of(late, close, [only(close, "to_local"), second], facts)
    taken = resolve(lost, (*facts, fact(tx, EXPIRY + 1 + DELAY)))
    assert taken is not None
    assert only(taken, "htlc_tx").taker == "local"
    assert not is_over(lost, close, EXPIRY + 500)


@pytest.mark.bolt5("remote.lost")
@pytest.mark.parametrize("is_kept", [True, False], ids=["revocable", "nothing"])
def test_loss_of_data_saves_to_local_where_the_peer_had_revoked_that_number(is_kept: bool) -> None:
    """The sides' numbers are not the same: the peer had revoked more commitments than Alice's number."""
    pair, late = moved_on()
    published = commitment(pair.alice)
    number = pair.alice.funded.commitments.local.index
    add(pair.bob, 5_000_000, 10, EXPIRY)
    pair.settle()
    lost = replace(
        known(late),
        secrets=known(pair.alice).secrets,
        revocable=pair.alice.revocable[number] if is_kept else None,
        own_point=late.signer.per_commitment_point(number),
    )
    assert number < lost.secrets.count
    facts = (fact(published, H),)
    close = resolve(lost, facts)
    assert close is not None
    assert (close.kind, close.commitment_number) == ("unknown", number)
    sweep_of(late, close, [only(close, "to_local")], facts)


# --- Revoked Transaction Close Handling ---------------------------------------------------------------------------


def _cheat(anchors: bool) -> tuple[Peer, Peer, Tx]:
    """(Alice, Bob as he was, his revoked commitment)."""
    pair = channel(anchors)
    old = pair.clone().bob
    old.step(ev.FulfillHtlc(OFFERED, preimage_of(1)))
    pair.connect()
    pair.settle()
    add(pair.alice, 5_000_000, 9, EXPIRY)
    pair.settle()
    pair.disconnect()
    return pair.alice, old, commitment(old)


@pytest.mark.bolt5("revoked.main", "revoked.received", "revoked.offered")
@both_types
def test_revoked_everything_is_taken(anchors: bool) -> None:
    """BOLT 5, "MUST *resolve* the _remote node's main output_ by spending it using the revocation private key"; "MUST
    *resolve* the _remote node's offered HTLCs_", "MUST *resolve* the _local node's offered HTLCs_": "spend the
    *commitment tx* using the payment revocation private key"; "MAY use a single transaction to *resolve* all the
    outputs"."""
    alice, _, tx = _cheat(anchors)
    facts = (fact(tx, H),)
    close = close_of(alice, *facts)
    assert (close.kind, close.commitment_number) == ("revoked", commitment_number_of(known(alice).params, tx))
    to_local = only(close, "to_local")
    assert to_local.deadline_height == H + DELAY
    htlcs = [output for output in close.outputs if output.kind == "htlc"]
    assert len(htlcs) == 3
    assert not any(output.final for output in htlcs)
    justice = sweep_of(alice, close, [to_local, *htlcs], facts)
    after = close_of(alice, *facts, fact(justice, H + 1))
    assert {output.taker for output in after.outputs if output.kind in ("to_local", "htlc")} == {"local"}


@pytest.mark.bolt5("revoked.timeout", "revoked.success", "revoked.extract")
@both_types
def test_revoked_second_stage_is_taken(anchors: bool) -> None:
    """BOLT 5, "MUST *resolve* the _remote node's HTLC-timeout transaction_ by spending it using the revocation private
    key", the same for HTLC-success; "SHOULD extract the payment preimage from the transaction input witness, if it's
    not already known"; "MUST handle its transactions being invalidated by HTLC transactions"."""
    alice, old, tx = _cheat(anchors)
    facts: tuple[Fact, ...] = (fact(tx, H),)
    of_cheater = close_of(old, *facts)
    assert of_cheater.kind == "local"
    success = htlc_tx(old, only(of_cheater, "htlc", id=OFFERED, offered=False), facts)
    timeout = htlc_tx(old, only(of_cheater, "htlc", id=RECEIVED_UNKNOWN, offered=True), facts)
    facts = (*facts, fact(success, H + 1), fact(timeout, EXPIRY + 2))
    close = close_of(alice, *facts)
    seconds = [output for output in close.outputs if output.kind == "htlc_tx"]
    assert {output.deadline_height for output in seconds} == {H + 1 + DELAY, EXPIRY + 2 + DELAY}
    assert all(output.final for output in seconds)
    assert close.preimages[known(alice).offered[OFFERED].payment_hash] == preimage_of(1)
    assert Outcome(OFFERED, preimage_of(1)) in outcomes(known(alice), close, H + 1)
    justice = sweep_of(alice, close, seconds, facts)
    after = close_of(alice, *facts, fact(justice, EXPIRY + 3))
    assert {output.taker for output in after.outputs if output.kind == "htlc_tx"} == {"local"}


def test_revoked_output_that_the_cheater_keeps_is_lost() -> None:
    """Told by the branch of the script that its witness took."""
    alice, old, tx = _cheat(True)
    facts = (fact(tx, H),)
    of_cheater = close_of(old, *facts)
    stolen = sweep_of(old, of_cheater, [only(of_cheater, "to_local")], facts)
    assert only(close_of(alice, *facts, fact(stolen, H + DELAY)), "to_local").taker == "remote"


@pytest.mark.bolt5("revoked.ours")
def test_our_revoked_commitment_is_never_broadcast() -> None:
    """BOLT 5, "MUST NOT broadcast a commitment transaction for which *it* has exposed the `per_commitment_secret`":
    what is published is always the latest."""
    pair = channel()
    pair.alice.step(ev.ForceClose("test"))
    tx = pair.alice.broadcast[-1]
    assert tx.txid() == pair.alice.commitments.local.txid
    assert commitment_number_of(known(pair.alice).params, tx) == pair.alice.commitments.local.index


# --- General ------------------------------------------------------------------------------------------------------


def test_mutual_close_needs_nothing() -> None:
    """BOLT 5, "Mutual Close Handling"."""
    pair = channel()
    base = known(pair.alice)
    mine, theirs = script_of("alice"), script_of("bob")
    state = replace(base, shutdown_scripts=(mine, theirs))
    tx = Tx(2, (TxIn(base.params.funding_outpoint, b"", 0xFFFFFFFD),), (TxOut(1, mine), TxOut(2, theirs)), 0)
    close = resolve(state, (fact(tx, H),))
    assert close is not None
    assert close.kind == "mutual"
    assert [type(output.claim) for output in close.outputs] == [Ours, Theirs]


@pytest.mark.bolt5("rogue")
def test_rogue_spend_is_unknown() -> None:
    """BOLT 5, "upon discovering a transaction that spends a funding transaction output which does not fall into one of
    the above categories ...: MUST warn the user of potentially lost funds"."""
    base = known(channel().alice)
    tx = Tx(2, (TxIn(base.params.funding_outpoint, b"", 0xFFFFFFFD),), (TxOut(1, script_of("thief")),), 0)
    assert classify(base, tx) == ("unknown", None)


@pytest.mark.bolt5("monitor")
def test_over_only_when_irrevocable() -> None:
    """BOLT 5, "until all outputs are *irrevocably resolved*: MUST monitor the blockchain"; "at least 100 deep"."""
    alice = channel().alice
    facts: tuple[Fact, ...] = (fact(commitment(alice), H),)
    close = close_of(alice, *facts)
    mature = EXPIRY + 20
    steps = [only(close, "htlc", id=OFFERED, offered=True), only(close, "htlc", id=RECEIVED, offered=False)]
    facts += tuple(fact(htlc_tx(alice, output, facts), mature) for output in steps)
    close = close_of(alice, *facts)
    ours = [output for output in close.outputs if output.kind in ("to_local", "htlc_tx")]
    facts += (fact(sweep_of(alice, close, ours, facts), mature + DELAY),)
    close = close_of(alice, *facts)
    last = mature + DELAY + 99
    assert not is_over(known(alice), close, last)  # not all HTLCs were told
    for outcome in outcomes(known(alice), close, last):
        alice.step(ev.FundingSpent(facts[0].tx, H, 1))
        alice.step(ev.HtlcOnChain(outcome.id, outcome.payment_preimage))
    assert not is_over(known(alice), close, last - 1)
    assert is_over(known(alice), close, last)
    assert not is_over(known(alice), close_of(alice, *facts[:-1]), last + 1000)


@pytest.mark.bolt5("reorganisation")
def test_reorganisation_derives_everything_again() -> None:
    """BOLT 5, "MUST be prepared to resolve outputs multiple times, in case of blockchain reorganizations"."""
    pair = channel()
    facts = (fact(commitment(pair.alice), H),)
    success = htlc_tx(pair.alice, only(close_of(pair.alice, *facts), "htlc", id=RECEIVED, offered=False), facts)
    before = close_of(pair.alice, *facts)
    with_success = close_of(pair.alice, *facts, fact(success, H + 1))
    assert with_success != before
    assert close_of(pair.alice, *facts) == before
    other = close_of(pair.alice, fact(commitment(pair.bob), H + 3))
    assert other.kind == "remote_current"
    assert resolve(known(pair.alice), ()) is None


def test_children_to_watch_are_the_outputs_beside_htlc_inputs() -> None:
    """With anchors an HTLC transaction may have more inputs and outputs: output i belongs to input i."""
    spent, coin = OutPoint(bytes(32), 1), OutPoint(bytes(32), 2)
    tx = Tx(2, (TxIn(coin), TxIn(spent)), (TxOut(1, b""), TxOut(2, b""), TxOut(3, b"")), 0)
    assert children_to_watch(tx, [spent]) == [1]
