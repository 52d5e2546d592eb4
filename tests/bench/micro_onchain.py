"""Microbenchmarks of closing: a block that concerns nobody, resolving a close, planning, justice."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from channeld.channel.chain import signed_local_commitment
from channeld.node.monitor_facts import Facts
from channeld.node.watches import Watches
from channeld.onchain import build
from channeld.onchain.facts import Fact
from channeld.onchain.known import known_of
from channeld.onchain.plans import plans
from channeld.onchain.rates import Rates
from channeld.onchain.resolve import resolve
from tests.machine.harness import HEIGHT, Pair, add, open_pair
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut

CHANNELS = 1_000
BLOCK_TXS = 4_000
HTLCS = 100
RATES = Rates(((1, 2_000), (144, 500)))
HOME = b"\x00\x14" + bytes(20)


def _id(kind: bytes, number: int) -> bytes:
    return sha256(b"%s %d" % (kind, number)).digest()


def _block() -> list[tuple[Tx, bytes]]:
    """Transactions with two inputs and two outputs, and their ids."""
    txs = []
    for number in range(BLOCK_TXS):
        inputs = tuple(TxIn(OutPoint(_id(b"input", 2 * number + index), index)) for index in range(2))
        tx = Tx(2, inputs, (TxOut(1_000, HOME), TxOut(2_000, HOME)), 0)
        txs.append((Tx.parse(tx.serialize()), tx.txid()))
    return txs


def _scan() -> Callable[[], object]:
    watches = Watches()
    for number in range(CHANNELS):
        watches.add(number, OutPoint(_id(b"funding", number), 0), b"\x00\x20" + _id(b"script", number))
    facts = Facts(watches)
    block = _block()

    def scan() -> None:
        for position, (tx, txid) in enumerate(block):
            facts.scan(tx, txid, HEIGHT, position)

    return scan


def _busy() -> tuple[Pair, Fact]:
    """Alice with HTLCs both ways, and Bob's commitment, revoked since."""
    pair = open_pair(amount_sat=100_000_000, push_msat=50_000_000_000)
    for number in range(HTLCS // 2):
        add(pair.alice, 5_000_000, number, HEIGHT + 100)
        add(pair.bob, 5_000_000, HTLCS + number, HEIGHT + 100)
    pair.settle()
    tx = signed_local_commitment(pair.bob.funded, pair.bob.env())  # type: ignore[arg-type]
    add(pair.alice, 5_000_000, 1_000, HEIGHT + 100)
    pair.settle()
    return pair, Fact(HEIGHT + 1, tx.txid(), tx)


def cases() -> list[tuple[str, Callable[[], object]]]:
    """(name, what to time)."""
    pair, fact = _busy()
    alice = pair.alice
    state = alice.funded
    point = alice.signer.per_commitment_point(state.commitments.local.index)
    bob_index = state.commitments.remote.index - 1
    known = known_of(state, point, alice.revocable[bob_index])  # type: ignore[arg-type]
    close = resolve(known, (fact,))
    assert close is not None
    assert close.kind == "revoked"
    outputs, number = close.outputs, close.commitment_number
    justice = max(plans(outputs, (), RATES, HEIGHT + 1), key=lambda plan: len(plan.outputs))
    return [
        (f"scan a block of {BLOCK_TXS} transactions for {CHANNELS} channels", _scan()),
        (f"resolve a revoked commitment with {HTLCS} HTLCs", lambda: resolve(known, (fact,))),
        (f"plan for {HTLCS} HTLCs", lambda: plans(outputs, (), RATES, HEIGHT + 1)),
        (
            f"build and sign justice over {len(justice.outputs)} outputs",
            lambda: build.build_sweep(justice, known, number, alice.signer, HOME),
        ),
    ]
