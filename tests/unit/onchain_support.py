"""A channel with HTLCs both ways, its commitments on chain, and what follows: for tests of `channeld.onchain`."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

from channeld.channel import events as ev
from channeld.channel.chain import signed_local_commitment
from channeld.channel.env import ChannelPolicy
from channeld.onchain import build
from channeld.onchain.classify import revoked_number
from channeld.onchain.facts import Fact
from channeld.onchain.known import Known, known_of
from channeld.onchain.outputs import Close, Output
from channeld.onchain.plans import Plan
from channeld.onchain.resolve import resolve
from tests.machine.harness import HEIGHT, Pair, Peer, add, open_pair, preimage_of
from tests.unit.bolt3_support import script_ok
from wallet.bitcoin import Tx, TxOut

DELAY = 30
EXPIRY = HEIGHT + 60
HOME = b"\x00\x14" + sha256(b"home").digest()[:20]
POLICY = ChannelPolicy(to_self_delay_blocks=DELAY)
OFFERED, OFFERED_DUST, RECEIVED, RECEIVED_UNKNOWN = 0, 1, 0, 1
"""Ids of Alice's HTLCs: what she offered, and what she was offered with and without knowing the preimage."""


@lru_cache(maxsize=4)
def _prepared(anchors: bool) -> Pair:
    pair = open_pair(anchors=anchors, push_msat=400_000_000, policy=POLICY, feerate_per_kw=1000)
    add(pair.alice, 50_000_000, 1, EXPIRY)
    add(pair.alice, 200_000, 2, EXPIRY)
    add(pair.bob, 60_000_000, 3, EXPIRY)
    add(pair.bob, 70_000_000, 4, EXPIRY + 1)
    pair.settle()
    return pair


def channel(anchors: bool = True) -> Pair:
    """Alice offered 50,000 sat and a dust HTLC of 200 sat; Bob offered 60,000 sat, which Alice can claim, and 70,000,
    which she cannot. They do not talk any more."""
    pair = _prepared(anchors).clone()
    for peer in (pair.alice, pair.bob):
        peer.step(ev.Disconnected())
    pair.alice.step(ev.FulfillHtlc(RECEIVED, preimage_of(3)))
    return pair


def talking() -> Pair:
    """`channel`, connected again, with all that was decided meanwhile committed."""
    pair = channel()
    pair.connect()
    pair.settle()
    return pair


def offer_unanswered(pair: Pair, offerer: Peer) -> None:
    """An HTLC of `offerer` comes into the other side's commitment; `offerer` never hears that, for the wire is cut."""
    add(offerer, 80_000_000, 9, EXPIRY)
    offerer.sign()
    pair.deliver_all(offerer)
    pair.disconnect()


def commitment(peer: Peer) -> Tx:
    """A side's latest commitment, with both signatures."""
    return signed_local_commitment(peer.funded, peer.env())  # type: ignore[arg-type]


def known(peer: Peer, facts: tuple[Fact, ...] = ()) -> Known:
    """As the monitor has it."""
    state = peer.funded
    point = peer.signer.per_commitment_point(state.commitments.local.index)
    without = known_of(state, point)  # type: ignore[arg-type]
    number = revoked_number(without, facts)
    return without if number is None else known_of(state, point, peer.revocable[number])  # type: ignore[arg-type]


def fact(tx: Tx, height: int) -> Fact:
    """`tx` is in a block."""
    return Fact(height, tx.txid(), tx)


def close_of(peer: Peer, *facts: Fact) -> Close:
    """What `peer` makes of these facts."""
    close = resolve(known(peer, facts), facts)
    assert close is not None
    return close


def only(close: Close, kind: str, owner: str = "local", id: int | None = None, offered: bool | None = None) -> Output:
    """The one output of a kind."""
    (found,) = [
        output
        for output in close.outputs
        if output.kind == kind
        and (id is None or (output.htlc is not None and output.htlc.id == id))
        and (offered is None or (output.htlc is not None and output.htlc.offered == offered))
        and (id is not None or offered is not None or output.owner == owner)
    ]
    return found


def sweep_of(peer: Peer, close: Close, outputs: list[Output], facts: tuple[Fact, ...], feerate: int = 300) -> Tx:
    """A transaction that takes `outputs`, accepted by Bitcoin Core's engine."""
    plan = Plan("sweep", tuple(outputs), feerate, 10**9)
    tx = build.build_sweep(plan, known(peer, facts), close.commitment_number, peer.signer, HOME)
    for index, output in enumerate(outputs):
        assert script_ok(tx, index, txout_of(output, facts))
    return tx


def txout_of(output: Output, facts: tuple[Fact, ...]) -> TxOut:
    """What is in the chain at an output's place."""
    assert output.outpoint is not None
    parents = {f.txid: f.tx for f in facts}
    return parents[output.outpoint.txid].outputs[output.outpoint.vout]


def htlc_tx(peer: Peer, output: Output, facts: tuple[Fact, ...]) -> Tx:
    """The HTLC transaction of an output, without more inputs, accepted by Bitcoin Core's engine."""
    plan = Plan("htlc", (output,), 0, 0)
    claim_output = output.claim.output  # type: ignore[union-attr]
    tx = build.sign_htlc_inputs(plan, claim_output.htlc_tx(), peer.signer)
    assert script_ok(tx, 0, txout_of(output, facts))
    return tx
