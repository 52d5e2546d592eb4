"""Signatures and revocations in normal operation (BOLT 2, "Committing Updates So Far", "Completing the Transition")."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import Any

import pytest
from msgspec.structs import replace

from channeld.bolt.messages import (
    CommitmentSigned,
    ErrorMessage,
    RevokeAndAck,
    Stfu,
    decode,
    encode,
)
from channeld.bolt.messages.control import MAX_REASON_BYTES, MAX_TOLD_BYTES, told_to_peer
from channeld.bolt.transactions.commitment import _keyed
from channeld.channel import commitments as cm
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import machine, normal
from channeld.channel.state import Normal
from tests.machine.harness import FEATURES, HEIGHT, Pair, Peer, add, both_signed, open_pair, preimage_of
from tests.unit.operation_support import command, rejected, violates, with_htlc
from wallet.bitcoin import Tx
from wallet.bitcoin.secp import pubkey_of


def test_no_signature_without_changes() -> None:
    pair = open_pair()
    assert not machine.can_sign(pair.alice.state)  # type: ignore[arg-type]
    assert pair.alice.step(ev.Sign()) == []
    empty = CommitmentSigned(pair.bob.funded.params.channel_id, bytes(64), ())
    assert violates(pair.bob, empty, "without any updates").action == "warning"


@pytest.mark.parametrize("lost", [False, True])
def test_a_signature_without_changes_is_answered_all_the_same(lost: bool) -> None:
    """BOLT 2 has the receiver of any valid `commitment_signed` respond with `revoke_and_ack`. A peer that was refused
    would say it again on each connection, and the channel could never be used again."""
    pair = with_htlc()
    alice, bob = pair.alice, pair.bob
    c, params = alice.commitments, alice.funded.params
    assert alice.state is not None
    assert not machine.can_sign(alice.state)
    spec, point = cm.next_remote(c).spec, c.remote_next.next_point
    message, commit, _ = normal.sign_remote(params, spec, c.remote.index + 1, point, alice.env())
    alice.state = replace(alice.state, commitments=cm.sign(c, commit))
    alice.outbox.append(encode(message))
    if lost:
        alice.committed = machine.encode_state(alice.state)
        pair.reconnect()
    pair.settle()
    assert bob.commitments.local.index == c.remote.index + 1
    assert alice.commitments.remote.index == c.remote.index + 1
    bob.step(ev.FulfillHtlc(0, preimage_of(0)))
    pair.settle()
    assert alice.commitments.is_settled
    assert not alice.commitments.has_htlcs


def test_one_signature_at_a_time() -> None:
    pair = open_pair()
    add(pair.alice, 5_000_000)
    pair.alice.sign()
    add(pair.alice, 5_000_000)
    assert not machine.can_sign(pair.alice.state)  # type: ignore[arg-type]
    pair.settle()
    assert len(pair.bob.locked_in) == 2


def owed_to(peer: Peer) -> int | None:
    """The number of the commitment that waits for the other side's revocation."""
    assert peer.state is not None
    return machine.awaited_commitment(peer.state)


def test_what_revocation_is_owed() -> None:
    pair = open_pair()
    assert owed_to(pair.alice) is None
    add(pair.alice, 5_000_000)
    assert owed_to(pair.alice) is None
    pair.alice.sign()
    assert owed_to(pair.alice) == 1
    assert owed_to(pair.bob) is None
    offline = pair.clone()
    offline.disconnect()
    assert owed_to(offline.alice) is None
    pair.settle()
    assert owed_to(pair.alice) is None


def signed(**changes: Any) -> tuple[Pair, CommitmentSigned]:
    """Bob is about to receive a signature that covers one HTLC."""
    pair = open_pair()
    add(pair.alice, 5_000_000)
    pair.deliver(pair.alice)
    pair.alice.sign()
    message = decode(pair.alice.outbox.popleft())
    assert isinstance(message, CommitmentSigned)
    assert message.funding_txid == pair.bob.funded.params.funding_outpoint.txid
    return pair, dataclasses.replace(message, **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"signature": b"\x11" * 64}, "signature of commitment 1 is not valid"),
        ({"htlc_signature": ()}, "0 HTLC signatures for 1"),
        ({"htlc_signature": (b"\x11" * 64,)}, "HTLC signature 0"),
        ({"htlc_signature": (b"\x11" * 64,) * 2}, "2 HTLC signatures for 1"),
    ],
)
def test_bad_signatures(changes: dict[str, Any], match: str) -> None:
    pair, message = signed(**changes)
    violation = violates(pair.bob, message, match)
    assert violation.action == "error"
    # BOLT 1, "SHOULD include the raw, hex-encoded transaction": all of it, now and after a reconnection.
    assert Tx.parse(violation.tx).spends() == (pair.bob.funded.params.funding_outpoint,)
    assert violation.tx.hex() not in violation.reason, "people do not read it"
    effects = pair.bob.step(ev.ForceClose(violation.reason, tx=violation.tx))
    for told in (effects, pair.bob.step(ev.Disconnected()) + pair.bob.step(ev.Connected(FEATURES))):
        (data,) = [e.message.data for e in told if isinstance(e, fx.Send) and isinstance(e.message, ErrorMessage)]
        assert data.decode() == f"{violation.reason}: {violation.tx.hex()}"


def test_what_a_peer_is_told_has_whole_transactions_only() -> None:
    assert told_to_peer("no", b"\x12\x34") == "no: 1234"
    assert told_to_peer("\N{EURO SIGN}" * 400) == "\N{EURO SIGN}" * (MAX_REASON_BYTES // 3)
    assert told_to_peer("too large", bytes(MAX_TOLD_BYTES // 2)) == "too large"


def test_high_s_signatures_are_refused() -> None:
    pair, message = signed()
    order = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
    s = int.from_bytes(message.signature[32:], "big")
    high = message.signature[:32] + (order - s).to_bytes(32, "big")
    violates(pair.bob, dataclasses.replace(message, signature=high), "not valid")


def test_what_punishes_is_saved_with_the_signature() -> None:
    pair = with_htlc()
    saved = pair.alice.revocable
    assert sorted(saved) == [0, 1]
    assert saved[1].htlcs == ((True, 50_000_000, sha256(preimage_of(0)).digest(), HEIGHT + 100),)
    assert saved[1].txid == pair.bob.commitments.local.txid
    assert saved[0].to_local_msat == 1_000_000_000


def revocation() -> tuple[Pair, RevokeAndAck]:
    """Alice is about to receive a revocation."""
    pair, message = signed()
    pair.bob.step(ev.PeerMessage(message))
    answer = decode(pair.bob.outbox.popleft())
    assert isinstance(answer, RevokeAndAck)
    return pair, answer


def test_bad_revocations() -> None:
    pair, answer = revocation()
    for changed in (
        dataclasses.replace(answer, per_commitment_secret=bytes(32)),
        dataclasses.replace(answer, per_commitment_secret=b"\x01" * 32),
        dataclasses.replace(answer, next_per_commitment_point=b"\x02" + b"\xff" * 32),
    ):
        assert violates(pair.alice, changed, "revoke_and_ack").action == "error"
    pair.alice.step(ev.PeerMessage(answer))
    violates(pair.alice, answer, "without a signature")


def test_a_secret_that_does_not_fit_the_others() -> None:
    pair, answer = revocation()
    pair.alice.step(ev.PeerMessage(answer))
    pair.settle()
    # A peer that draws its secrets at random: the second one fits its point, but not the first secret.
    c = pair.alice.commitments
    add(pair.alice, 5_000_000)
    pair.alice.sign()
    secret = b"\x22" * 32
    remote = cm.RemoteCommit(c.remote.index, c.remote.spec, c.remote.txid, pubkey_of(secret))
    state = pair.alice.state
    assert isinstance(state, Normal)
    pair.alice.state = replace(state, commitments=replace(state.commitments, remote=remote))
    message = RevokeAndAck(state.params.channel_id, secret, pubkey_of(secret))
    violates(pair.alice, message, "does not fit those before it")


def test_what_was_not_negotiated_gets_a_warning() -> None:
    pair = open_pair()
    assert violates(pair.bob, Stfu(pair.bob.funded.params.channel_id, 1), "not negotiated").action == "warning"


def test_both_sides_sign_at_the_same_time() -> None:
    pair = both_signed()
    pair.settle()
    assert len(pair.alice.locked_in) == 1
    assert len(pair.bob.locked_in) == 1
    assert pair.alice.commitments.local.txid == pair.bob.commitments.remote.txid


def test_483_htlcs_each_way() -> None:
    pair = open_pair(amount_sat=10_000_000, push_msat=5_000_000_000)
    for number in range(483):
        add(pair.alice, 1_000_000, number)
        add(pair.bob, 1_000_000, number)
    pair.settle()
    assert len(pair.alice.locked_in) == len(pair.bob.locked_in) == 483
    assert rejected(pair.alice, command(1_000_000)).code == "too_many_htlcs"


@pytest.mark.parametrize("prepared", [True, False])
def test_the_keys_that_come_next_can_be_derived_ahead(prepared: bool) -> None:
    pair = open_pair()
    alice, bob = pair.alice, pair.bob
    add(alice, 5_000_000)
    _keyed.cache_clear()
    for peer in (alice, bob) if prepared else ():
        before = peer.state
        assert before is not None
        for job in machine.preparations(before, peer.env()):
            job()
        assert peer.state is before
    ahead = _keyed.cache_info().misses
    alice.sign()
    for sender in (alice, alice):  # the HTLC, the signature
        pair.deliver(sender)
    bob.sign()
    for sender in (bob, bob):  # the revocation, the signature
        pair.deliver(sender)
    derived = _keyed.cache_info().misses - ahead
    assert (ahead > 0, derived > 0) == (prepared, not prepared)


def test_without_a_connection_there_is_nothing_to_prepare() -> None:
    pair = open_pair()
    pair.disconnect()
    assert pair.alice.state is not None
    assert machine.preparations(pair.alice.state, pair.alice.env()) == []
