"""Which transactions the monitor takes for facts of which channel."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from channeld.node.monitor_facts import Facts
from channeld.node.watches import Watches
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut

SCRIPT = bytes.fromhex("0020" + "17" * 32)
OLD, NEW = 1, 2


def a_tx(spends: Sequence[OutPoint], outputs: int = 1) -> Tx:
    return Tx(2, tuple(TxIn(outpoint) for outpoint in spends), tuple(TxOut(1000, SCRIPT) for _ in range(outputs)), 0)


def an_outpoint(name: str) -> OutPoint:
    return OutPoint(sha256(name.encode()).digest(), 0)


def first(tx: Tx) -> OutPoint:
    return OutPoint(tx.txid(), 0)


class Chain:
    """Blocks of one transaction each."""

    def __init__(self) -> None:
        self.watches = Watches()
        self.facts = Facts(self.watches)
        self.height = 100

    def watch(self, channel_key: int, outpoint: OutPoint) -> None:
        self.watches.add(channel_key, outpoint, SCRIPT)

    def mine(self, tx: Tx) -> int:
        """Rows to write."""
        self.height += 1
        return len(self.facts.scan(tx, tx.txid(), self.height, 1))

    def unmine(self) -> None:
        self.facts.disconnected(self.height)
        self.height -= 1

    def txids(self, channel_key: int) -> list[bytes]:
        return [fact.txid for fact in self.facts.of(channel_key)]


def test_a_channel_whose_funds_came_out_of_an_old_one_has_its_own_facts() -> None:
    chain = Chain()
    old = an_outpoint("old")
    chain.watch(OLD, old)
    closing = a_tx([old])
    funding = a_tx([first(closing)])
    chain.watch(NEW, first(funding))
    commitment = a_tx([first(funding)], 2)
    htlc_tx = a_tx([first(commitment)])
    penalty = a_tx([first(htlc_tx)])
    for tx in (closing, funding, commitment, htlc_tx, penalty):
        assert chain.mine(tx)
    assert chain.txids(NEW) == [tx.txid() for tx in (commitment, htlc_tx, penalty)]
    assert chain.txids(OLD)[0] == closing.txid()

    chain.unmine()
    chain.unmine()
    assert chain.txids(NEW) == [commitment.txid()]
    chain.facts.forget(OLD)
    chain.mine(htlc_tx)
    assert chain.txids(NEW) == [commitment.txid(), htlc_tx.txid()]


def test_a_close_that_pays_straight_into_the_next_channel_concerns_both() -> None:
    chain = Chain()
    old = an_outpoint("old")
    chain.watch(OLD, old)
    closing = a_tx([old])
    chain.watch(NEW, first(closing))
    commitment = a_tx([first(closing)])
    chain.mine(closing)
    chain.mine(commitment)
    assert chain.txids(NEW) == [commitment.txid()]
    assert chain.txids(OLD) == [closing.txid(), commitment.txid()]


def test_one_transaction_for_two_channels_is_a_fact_of_both() -> None:
    chain = Chain()
    chain.watch(OLD, an_outpoint("one"))
    chain.watch(NEW, an_outpoint("two"))
    closes = a_tx([an_outpoint("one")]), a_tx([an_outpoint("two")])
    sweep = a_tx([first(closes[0]), first(closes[1])])
    for tx in (*closes, sweep):
        chain.mine(tx)
    assert chain.mine(sweep) == 0
    assert chain.txids(OLD) == [closes[0].txid(), sweep.txid()]
    assert chain.txids(NEW) == [closes[1].txid(), sweep.txid()]


def test_two_channels_of_one_funding_transaction_are_both_told_of_it() -> None:
    chain = Chain()
    funding = a_tx([an_outpoint("coin")], 2)
    outpoints = first(funding), OutPoint(funding.txid(), 1)
    for channel_key, outpoint in enumerate(outpoints, 1):
        chain.watch(channel_key, outpoint)
    assert len(chain.watches.scan(funding, funding.txid(), 101, 7)) == 2
    for channel_key in (OLD, NEW):
        watch = chain.watches.get(channel_key)
        assert watch is not None
        assert (watch.confirmed_height, watch.tx_index) == (101, 7)

    chain.watches.remove(OLD)
    chain.watches.disconnected(101)
    chain.watches.scan(funding, funding.txid(), 102, 8)
    watch = chain.watches.get(NEW)
    assert watch is not None
    assert (watch.confirmed_height, watch.tx_index) == (102, 8)


def test_htlcs_of_two_channels_in_one_transaction_are_followed_for_both() -> None:
    """A cheater with two channels takes the HTLCs of both with one transaction: each penalty is its channel's fact."""
    chain = Chain()
    chain.watch(OLD, an_outpoint("one"))
    chain.watch(NEW, an_outpoint("two"))
    closes = a_tx([an_outpoint("one")], 2), a_tx([an_outpoint("two")], 2)
    stolen = a_tx([first(closes[0]), first(closes[1])], 2)
    penalties = a_tx([OutPoint(stolen.txid(), 0)]), a_tx([OutPoint(stolen.txid(), 1)])
    for tx in (*closes, stolen, *penalties):
        assert chain.mine(tx)
    assert chain.txids(OLD)[:3] == [closes[0].txid(), stolen.txid(), penalties[0].txid()]
    assert chain.txids(NEW)[:2] == [closes[1].txid(), stolen.txid()]
    assert penalties[1].txid() in chain.txids(NEW)

    chain.unmine()
    chain.unmine()
    chain.facts.forget(NEW)
    chain.mine(penalties[0])
    assert chain.txids(OLD) == [closes[0].txid(), stolen.txid(), penalties[0].txid()]
