"""Steps that tests of normal operation take."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import Any

import pytest

from channeld.bolt.messages import (
    UpdateAddHtlc,
)
from channeld.channel import events as ev
from tests.machine.harness import HEIGHT, Pair, Peer, add, open_pair, preimage_of


def rejected(peer: Peer, event: ev.Event) -> ev.CommandRejected:
    """The command is rejected and nothing changes."""
    before = peer.state
    with pytest.raises(ev.CommandRejected) as info:
        peer.step(event)
    assert peer.state is before
    return info.value


def violates(peer: Peer, message: Any, match: str) -> ev.ProtocolViolation:
    """The message breaks a rule and nothing changes."""
    before = peer.state
    with pytest.raises(ev.ProtocolViolation, match=match) as info:
        peer.step(ev.PeerMessage(message))
    assert peer.state is before
    return info.value


def an_add(peer: Peer, **changes: Any) -> UpdateAddHtlc:
    """An `update_add_htlc` from the other side, changed."""
    message = UpdateAddHtlc(
        channel_id=peer.funded.params.channel_id,
        id=peer.commitments.remote_next_htlc_id,
        amount_msat=5_000_000,
        payment_hash=sha256(preimage_of(0)).digest(),
        cltv_expiry=HEIGHT + 100,
        onion_routing_packet=bytes(1366),
    )
    return dataclasses.replace(message, **changes)


def command(amount_msat: int, cltv_expiry: int = HEIGHT + 100, number: int = 0) -> ev.AddHtlc:
    return ev.AddHtlc(amount_msat, sha256(preimage_of(number)).digest(), cltv_expiry, bytes(1366), b"origin")


def with_htlc(amount_msat: int = 50_000_000, **options: Any) -> Pair:
    """An HTLC of Alice's (payment 0) is locked in at Bob's."""
    pair = open_pair(**options)
    add(pair.alice, amount_msat)
    pair.settle()
    assert len(pair.bob.locked_in) == 1
    return pair
