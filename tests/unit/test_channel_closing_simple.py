"""Closing together with `option_simple_close` (BOLT 2, "Closing Negotiation"): closing_complete and closing_sig."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from msgspec import structs

from channeld.bolt.messages import (
    ClosingComplete,
    ClosingSig,
)
from channeld.channel import events as ev
from channeld.channel.closing_scripts import MAX_CLOSING_TXS, MAX_UNSEEN_CLOSING_TXS
from channeld.channel.state import (
    NegotiatingSimple,
)
from tests.machine.harness import Pair, open_pair, script_of
from tests.unit.closing_support import OP_RETURN, P2TR, close, closed_by, paid, simple
from wallet.bitcoin import Tx


def test_simple_each_pays_its_own_transaction() -> None:
    pair = simple()
    pair.settle()
    for peer in (pair.alice, pair.bob):
        state = peer.state
        assert isinstance(state, NegotiatingSimple)
        txs = {Tx.parse(raw) for raw in state.closing_txs}
        assert {(paid(tx, "alice"), paid(tx, "bob")) for tx in txs} == {(699_324, 300_000), (700_000, 298_648)}
        assert closed_by(peer)


def test_simple_who_did_not_ask_for_the_close_offers_the_least() -> None:
    pair = simple(feerates=(2000, 0))
    (asked,) = [m for m in pair.alice.sent() if isinstance(m, ClosingComplete)]
    (answered,) = [m for m in pair.bob.sent() if isinstance(m, ClosingComplete)]
    assert answered.fee_satoshis * 2000 // 253 == pytest.approx(asked.fee_satoshis, abs=8)


def test_simple_variants_by_balance() -> None:
    pair = simple()
    (alices,) = [m for m in pair.alice.sent() if isinstance(m, ClosingComplete)]
    (bobs,) = [m for m in pair.bob.sent() if isinstance(m, ClosingComplete)]
    # who has more must offer to leave the other out, who has less cannot leave out the other
    assert alices.closer_output_only
    assert alices.closer_and_closee_outputs
    assert not alices.closee_output_only
    assert bobs.closer_and_closee_outputs
    assert not bobs.closer_output_only


def test_simple_dust_is_left_out_and_who_has_nothing_offers_nothing() -> None:
    pair = simple(push_msat=100_000)
    (alices,) = [m for m in pair.alice.sent() if isinstance(m, ClosingComplete)]
    assert alices.closer_output_only
    assert not alices.closer_and_closee_outputs
    assert not [m for m in pair.bob.sent() if isinstance(m, ClosingComplete)]
    pair.settle()
    (output,) = closed_by(pair.bob).outputs
    assert output.script_pubkey == script_of("alice")


def test_simple_fee_can_be_raised_again_and_again() -> None:
    pair = simple()
    with pytest.raises(ev.CommandRejected) as rejection:
        close(pair.alice, feerate_per_kw=2000)
    assert rejection.value.code == "not_ready"  # the peer has not answered
    pair.settle()
    fees = set()
    for feerate_per_kw in (2000, 4000, 8000):
        close(pair.alice, feerate_per_kw=feerate_per_kw)
        pair.settle()
        tx = closed_by(pair.alice)
        assert tx == closed_by(pair.bob)
        assert paid(tx, "bob") == 300_000
        fees.add(700_000 - paid(tx, "alice"))
    assert len(fees) == 3


def test_simple_another_script() -> None:
    pair = simple()
    pair.settle()
    close(pair.alice, P2TR, 3000)
    pair.settle()
    assert P2TR in {output.script_pubkey for output in closed_by(pair.bob).outputs}
    state = pair.bob.state
    assert isinstance(state, NegotiatingSimple)
    assert state.remote_script == P2TR
    close(pair.bob, feerate_per_kw=5000)  # uses Alice's last script
    pair.settle()
    assert P2TR in {output.script_pubkey for output in closed_by(pair.alice).outputs}


def test_simple_op_return_gives_everything_to_fees() -> None:
    pair = open_pair(push_msat=300_000)
    close(pair.alice)
    pair.deliver(pair.alice)
    close(pair.bob, OP_RETURN, 253)
    pair.settle()
    for tx in pair.alice.broadcast[1:]:
        assert all(output.value_sat == 0 for output in tx.outputs if output.script_pubkey == OP_RETURN)


def complete_of(pair: Pair) -> ClosingComplete:
    (message,) = [m for m in pair.alice.sent() if isinstance(m, ClosingComplete)]
    pair.alice.outbox.clear()
    return message


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"closee_scriptpubkey": P2TR}, "last script"),
        ({"closer_scriptpubkey": b"\x51"}, "cannot be closed to"),
        ({"fee_satoshis": 700_001}, "exceeds the closer's balance"),
        ({"closer_and_closee_outputs": None}, "closee_output_only is missing"),
        ({"closer_and_closee_outputs": b"\x11" * 64}, "not valid"),
        ({"locktime": 5}, "not valid"),
    ],
)
def test_simple_bad_closing_complete(changes: dict[str, Any], match: str) -> None:
    pair = simple()
    message = dataclasses.replace(complete_of(pair), **changes)
    with pytest.raises(ev.ProtocolViolation, match=match) as violation:
        pair.bob.step(ev.PeerMessage(message))
    assert violation.value.action == "warning"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fee_satoshis": 1}, "does not match"),
        ({"locktime": 1}, "does not match"),
        ({"closee_scriptpubkey": P2TR}, "does not match"),
        ({"closer_and_closee_outputs": None}, "other signatures"),
        ({"closer_output_only": bytes(64)}, "other signatures"),
        ({"closer_and_closee_outputs": None, "closee_output_only": bytes(64)}, "other signatures"),
        ({"closer_and_closee_outputs": b"\x11" * 64}, "not valid"),
    ],
)
def test_simple_bad_closing_sig(changes: dict[str, Any], match: str) -> None:
    pair = simple()
    pair.bob.outbox.clear()
    pair.bob.step(ev.PeerMessage(complete_of(pair)))
    (answer,) = pair.bob.sent()
    assert isinstance(answer, ClosingSig)
    with pytest.raises(ev.ProtocolViolation, match=match):
        pair.alice.step(ev.PeerMessage(dataclasses.replace(answer, **changes)))
    pair.alice.step(ev.PeerMessage(answer))
    with pytest.raises(ev.ProtocolViolation, match="without closing_complete"):
        pair.alice.step(ev.PeerMessage(answer))


def test_simple_scripts_changed_at_the_same_time_meet_after_a_reconnection() -> None:
    pair = simple()
    pair.settle()
    close(pair.alice, P2TR, 3000)
    close(pair.bob, script_of("bob's other"), 3000)
    with pytest.raises(ev.ProtocolViolation, match="last script"):
        pair.deliver(pair.alice)
    pair.disconnect()
    pair.connect()
    pair.settle()
    for peer in (pair.alice, pair.bob):
        scripts = {output.script_pubkey for output in closed_by(peer).outputs}
        assert scripts == {P2TR, script_of("bob's other")}


def test_simple_a_peer_does_not_get_as_many_transactions_as_it_likes() -> None:
    pair = simple()
    pair.settle()
    for feerate_per_kw in range(3000, 3000 + 2 * (MAX_CLOSING_TXS - 2), 2):
        close(pair.alice, feerate_per_kw=feerate_per_kw)
        pair.settle()
    assert isinstance(pair.bob.state, NegotiatingSimple)
    assert len(pair.bob.state.closing_txs) == MAX_CLOSING_TXS
    close(pair.alice, feerate_per_kw=10_000)
    with pytest.raises(ev.ProtocolViolation, match="more than enough") as violation:
        pair.deliver(pair.alice)
    assert violation.value.action == "warning"
    # Our own ones still find room.
    pair.alice.outbox.clear()
    assert isinstance(pair.alice.state, NegotiatingSimple)
    pair.alice.state = structs.replace(pair.alice.state, closing_txs=())
    close(pair.bob, feerate_per_kw=10_000)
    pair.settle()
    assert isinstance(pair.bob.state, NegotiatingSimple)
    assert len(pair.bob.state.closing_txs) == MAX_CLOSING_TXS + 1


def test_simple_a_channel_that_may_not_exist_has_few_transactions() -> None:
    """Each is stored, and offered to layer 1 at every block: strangers get that for nothing."""
    pair = simple()
    assert isinstance(pair.bob.state, NegotiatingSimple)
    pair.bob.state = structs.replace(pair.bob.state, scid=None, funding_depth=0)
    pair.settle()
    while len(pair.bob.state.closing_txs) < MAX_UNSEEN_CLOSING_TXS:
        close(pair.alice, feerate_per_kw=3000 + 2 * len(pair.bob.state.closing_txs))
        pair.settle()
        assert isinstance(pair.bob.state, NegotiatingSimple)
    close(pair.alice, feerate_per_kw=10_000)
    with pytest.raises(ev.ProtocolViolation, match="more than enough"):
        pair.deliver(pair.alice)
