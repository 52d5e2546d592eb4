"""Microbenchmarks of the channel machine: a step with 100 HTLCs in flight, with and without its cryptography."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from unittest.mock import patch

from channeld.bolt.messages import decode
from channeld.channel import events as ev
from channeld.channel import machine, normal
from channeld.channel.state import State
from tests.machine.harness import HEIGHT, Pair, Peer, add, open_pair, preimage_of

IN_FLIGHT = 100


def _loaded() -> Pair:
    """A channel with 100 HTLCs, half of them each way, and one more for Bob to receive and sign for."""
    pair = open_pair(amount_sat=10_000_000, push_msat=5_000_000_000)
    for number in range(IN_FLIGHT // 2):
        add(pair.alice, 1_000_000 + number, number)
        add(pair.bob, 1_000_000 + number, 1000 + number)
    pair.settle()
    return pair


def _step(peer: Peer, event: ev.Event) -> Callable[[], object]:
    state, env = peer.state, peer.env()
    assert state is not None
    return lambda: machine.step(state, event, env)


def _without_cryptography(call: Callable[[], object]) -> Callable[[], object]:
    """The same with a signature that costs nothing and is always valid; only for what the machine itself costs."""

    def timed() -> object:
        with patch.object(normal, "verify_commitment", lambda *_: None):
            return call()

    return timed


def _incoming(sender: Peer) -> ev.PeerMessage:
    raw = sender.outbox.popleft()
    return ev.PeerMessage(decode(raw), raw)


def cases() -> list[tuple[str, Callable[[], object]]]:
    """(name, what to time)."""
    pair = _loaded()
    alice, bob = pair.alice, pair.bob
    command = ev.AddHtlc(1_000_000, sha256(preimage_of(7)).digest(), HEIGHT + 50, bytes(1366), b"origin")
    result: list[tuple[str, Callable[[], object]]] = [
        ("step: offer an HTLC", _step(alice, command)),
        ("step: fulfil an HTLC", _step(bob, ev.FulfillHtlc(0, preimage_of(0)))),
    ]
    add(alice, 2_000_000, 500)
    incoming_add = _incoming(alice)
    result.append(("step: receive update_add_htlc", _step(bob, incoming_add)))
    bob.step(incoming_add)
    result.append(("step: sign 101 HTLCs", _step(alice, ev.Sign())))
    alice.sign()
    signature = _incoming(alice)
    receive = _step(bob, signature)
    result.append(("step: receive commitment_signed of 101 HTLCs", receive))
    result.append(("step: the same without verifying", _without_cryptography(receive)))
    bob.step(signature)
    revocation = _incoming(bob)
    result.append(("step: receive revoke_and_ack", _step(alice, revocation)))
    state: State | None = alice.state
    assert state is not None
    encoded = machine.encode_state(state)
    result.append((f"encode state of {IN_FLIGHT} HTLCs, {len(encoded)} bytes", lambda: machine.encode_state(state)))
    result.append((f"decode state of {IN_FLIGHT} HTLCs", lambda: machine.decode_state(encoded)))
    return result
