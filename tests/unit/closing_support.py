"""Closing together: steps that the tests of both protocols take."""

from __future__ import annotations

from channeld.bolt.features import Feature
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.state import (
    NegotiatingSimple,
)
from tests.machine.harness import FEATURES, Pair, Peer, open_pair, script_of
from tests.unit.bolt3_support import script_ok
from wallet.bitcoin import Tx, TxOut

P2TR = b"\x51\x20" + b"\x05" * 32
OP_RETURN = b"\x6a\x06nobody"


def close(peer: Peer, script: bytes | None = None, feerate_per_kw: int = 1000) -> None:
    peer.step(ev.CloseChannel(script_of(peer.name) if script is None else script, feerate_per_kw))


def shut(pair: Pair, feerates: tuple[int, int] = (1000, 1000)) -> None:
    """Alice closes, Bob's node answers with a script; nothing is delivered that follows."""
    close(pair.alice, feerate_per_kw=feerates[0])
    pair.deliver(pair.alice)
    close(pair.bob, feerate_per_kw=feerates[1])
    pair.deliver(pair.bob)


def closed_by(peer: Peer) -> Tx:
    """The last closing transaction that `peer` broadcast; Bitcoin Core's engine accepts it."""
    tx = peer.logged(fx.Broadcast)[-1].tx
    params = peer.funded.params
    assert script_ok(tx, 0, TxOut(params.capacity_sat, params.funding_script_pubkey))
    assert isinstance(tx, Tx)
    return tx


def paid(tx: Tx, name: str) -> int:
    """What `tx` pays to a side's script."""
    return sum(output.value_sat for output in tx.outputs if output.script_pubkey == script_of(name))


def simple(push_msat: int = 300_000_000, feerates: tuple[int, int] = (1000, 2000)) -> Pair:
    """Both `closing_complete` are on the wire."""
    pair = open_pair(push_msat=push_msat)
    shut(pair, feerates)
    while not isinstance(pair.bob.state, NegotiatingSimple):
        pair.deliver(pair.alice)
    return pair


def closed_together(*, simple: bool) -> tuple[Pair, Tx]:
    """A channel that both sides closed, and the transaction that both have published."""
    features = FEATURES if simple else FEATURES - {Feature.option_simple_close | 1}
    pair = open_pair(push_msat=300_000_000, features=features)
    shut(pair, (1000, 2000))
    pair.settle()
    tx = closed_by(pair.alice)
    assert tx in [effect.tx for effect in pair.bob.logged(fx.Broadcast)]
    return pair, tx
