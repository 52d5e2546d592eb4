"""Random closes on a fake chain: either side's commitment, current, next or revoked, HTLCs both ways, second-stage
races, reorganisations, restarts, blocks missed, fee spikes. An honest side never ends below what it owned, less the
fees that its report names.

`ONCHAIN_RUNS=5000` plays more than the usual number; a failure prints its seed.
"""

from __future__ import annotations

import os
import random
from hashlib import sha256

import pytest

from channeld.bolt.transactions import commitment_fee_sat
from channeld.bolt.transactions.fees import ANCHOR_SAT
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.commitments import AwaitingRevocation, HtlcFulfill
from channeld.channel.env import ChannelPolicy
from channeld.channel.state import Closing, Funded, Normal
from channeld.onchain.outcomes import REASONABLE_DEPTH_BLOCKS, outcomes, returns
from channeld.onchain.outputs import Close, Output
from channeld.onchain.plans import is_hopeless
from tests.machine.harness import HEIGHT, Pair, Peer, add, open_pair, preimage_of
from tests.sim.onchain_world import ENDLESS, Chain, Side, decode_again
from wallet.bitcoin import Tx, TxOut

RUNS = int(os.environ.get("ONCHAIN_RUNS", "40"))
FIRST = int(os.environ.get("ONCHAIN_FIRST_SEED", "1"))
DELAY = 40
SMALL_SAT = 2_000
"""What holds less may not be worth its fee."""
PATIENCE_BLOCKS = 24
"""An HTLC-timeout transaction is mined so soon, in spite of absence, reorganisations and slow miners."""
RELAY_PER_KW = 250
"""1 sat/vB: what a transaction has to pay at least to be mined when blocks are not full."""
POLICY = ChannelPolicy(to_self_delay_blocks=DELAY, max_dust_exposure_msat=500_000_000)


class Run:
    """One seed's life of a channel."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.anchors = rng.random() < 0.7
        self.pair: Pair = open_pair(
            anchors=self.anchors,
            push_msat=rng.choice((0, 400_000_000, 900_000_000)),
            policy=POLICY,
            feerate_per_kw=rng.choice((253, 1000, 2500)),
            number=seed,
        )
        self.numbers: list[tuple[Peer, int, int]] = []
        self.old: dict[str, list[Funded]] = {"alice": [], "bob": []}
        self.next_number = 0
        self.honest: Side
        self.other: Side
        self.cheats = False
        self.busy = rng.choice((1, 1, 1, 4)) if self.anchors else 1
        """How many times the least fee rate blocks usually cost. Without anchors a commitment's fee is what it is."""
        self.most_coins = random.Random(~seed).choice((ENDLESS, ENDLESS, 1, 2))
        """What the honest side has to pay fees with. Drawn apart: what a seed plays otherwise does not depend on it."""

    @property
    def is_poor(self) -> bool:
        """Coins are short: then there is more to pay for, and it waits longer."""
        return self.most_coins < ENDLESS

    # --- a life before the end

    def live(self) -> None:
        for _ in range(self.rng.randrange(1, 12) + (8 if self.is_poor else 0)):
            for peer in (self.pair.alice, self.pair.bob):
                self.old[peer.name].append(peer.funded)
            self._do_something()
            self.pair.settle()
        if self.rng.random() < 0.4:
            self._leave_something_half_done()

    def _do_something(self) -> None:
        sender = self.rng.choice((self.pair.alice, self.pair.bob))
        if self.numbers and self.rng.random() < 0.3:
            sender, id, number = self.numbers.pop(self.rng.randrange(len(self.numbers)))
            receiver = self.pair.other(sender)
            try:
                if self.rng.random() < 0.6:
                    receiver.step(ev.FulfillHtlc(id, preimage_of(number)))
                else:
                    receiver.step(ev.FailHtlc(id, b"reason"))
            except ev.CommandRejected:
                self.numbers.append((sender, id, number))  # not yet irrevocable
            return
        self._add(sender)

    def _add(self, sender: Peer) -> None:
        amount = self.rng.choice((1_000, 300_000, 700_000, 5_000_000, 20_000_000, 50_000_000))
        number = self.next_number if self.rng.random() < 0.85 else max(0, self.next_number - 1)
        id = sender.commitments.local_next_htlc_id
        try:
            add(sender, amount, number, HEIGHT + self.rng.randrange(40, 90))
        except ev.CommandRejected:
            return
        self.numbers.append((sender, id, number))
        self.next_number += 1

    def _leave_something_half_done(self) -> None:
        """Messages stay on the wire: a side may have two valid commitments."""
        for _ in range(self.rng.randrange(1, 4)):
            self._do_something()
        for _ in range(self.rng.randrange(0, 6)):
            peer = self.rng.choice((self.pair.alice, self.pair.bob))
            peer.sign()
            if peer.outbox:
                self.pair.deliver(peer)
        for peer in (self.pair.alice, self.pair.bob):
            peer.outbox.clear()

    # --- the end

    def end(self) -> None:
        chain = Chain(HEIGHT, self.rng)
        honest, other = self.rng.sample((self.pair.alice, self.pair.bob), 2)
        params = honest.funded.params
        chain.grant(params.funding_outpoint, TxOut(params.capacity_sat, params.funding_script_pubkey))
        for peer in (honest, other):
            peer.step(ev.Disconnected())
        self._decide_preimages(honest, other)
        old = [s for s in self.old[other.name] if s.commitments.local.index < other.commitments.local.index]
        self.cheats = bool(old) and self.rng.random() < 0.5
        if self.cheats:
            state = self.rng.choice(old)
            assert isinstance(state, Normal)
            other.state = state
            other.step(ev.Disconnected())
            for htlc in [h for h in other.commitments.remote.spec.htlcs.values() if not h.offered]:
                self._try_fulfil(other, htlc.id)
        self.honest, self.other = Side(honest, chain), Side(other, chain)
        self.honest.most_coins = self.most_coins
        self.honest.mortality = self.rng.choice((0.0, 0.0, 0.1))
        self.chain = chain
        closer = other if self.cheats or self.rng.random() < 0.5 else honest
        closer.step(ev.ForceClose("the end"))
        if not self.cheats and self.rng.random() < 0.15:
            self.pair.other(closer).step(ev.ForceClose("both at once"))
        self._play()

    def _decide_preimages(self, honest: Peer, other: Peer) -> None:
        self.late: list[tuple[Peer, int]] = []
        for peer in (honest, other):
            for htlc in [h for h in peer.commitments.remote.spec.htlcs.values() if not h.offered]:
                luck = self.rng.random()
                if luck < 0.4:
                    self._try_fulfil(peer, htlc.id)
                elif luck < (0.9 if self.is_poor else 0.6):
                    self.late.append((peer, htlc.id))

    def _try_fulfil(self, peer: Peer, id: int) -> None:
        htlc = peer.commitments.remote.spec.htlcs.get(id << 1)
        for number in range(self.next_number + 1):
            if htlc is not None and sha256(preimage_of(number)).digest() == htlc.payment_hash:
                try:
                    peer.step(ev.FulfillHtlc(id, preimage_of(number)))
                except ev.CommandRejected:
                    return
                return

    def _play(self) -> None:
        away = 0
        spike = 0
        for turn in range(400):
            if self.rng.random() < 0.03 and spike == 0:
                spike = self.rng.randrange(2, 10)
            usual = self.busy if turn < 130 else 1
            self.chain.level = RELAY_PER_KW * (
                self.rng.choice((4, 8, 20)) if spike else usual * self.rng.choice((1, 2))
            )
            spike = max(0, spike - 1)
            if turn < 130:
                self._disturb()
            if away:
                away -= 1
            elif self.rng.random() < 0.04 and turn < 130:
                away = self.rng.randrange(1, 6)
            for side in self.rng.sample((self.honest, self.other), 2):
                if side is self.honest and away:
                    continue
                if self.rng.random() < 0.1:
                    side.crash()
                side.catch_up()
            if self.rng.random() < (0.2 if self.is_poor else 0.05) and self.late:
                peer, id = self.late.pop()
                htlc = peer.commitments.remote.spec.htlcs.get(id << 1)
                in_time = htlc is not None and htlc.cltv_expiry - self.chain.height > POLICY.fulfill_deadline_blocks
                if in_time and not (self.cheats and peer is self.other.peer):
                    self._try_fulfil(peer, id)
            self.chain.slow = self.is_poor and turn < 130 and self.rng.random() < 0.5
            if turn % 16 == 0:
                self._check_returns()
            self.chain.mine()
            if self.honest.over and turn > 150:
                return

    def _check_returns(self) -> None:
        """What is said to have come back already is never what the peer has the preimage of, and is told when it is
        deep."""
        close, height = self.honest.close(), self.chain.height
        if close is None or self.honest.seen_height != height:
            return
        known = self.honest.known()
        depths = returns(known, close, height)
        told = {outcome.id: outcome.payment_preimage for outcome in outcomes(known, close, height)}
        for id, depth in depths.items():
            assert told.get(id) is None
            assert (id in told) == (depth >= REASONABLE_DEPTH_BLOCKS)

    def _disturb(self) -> None:
        if self.rng.random() < 0.04 and self.chain.height > HEIGHT + 6:
            txs = []
            for _ in range(self.rng.randrange(1, 5)):
                height = self.chain.height
                txs += self.chain.undo()
                for side in (self.honest, self.other):
                    side.undone(height)
            self.chain.pool.clear()
            for tx in txs:
                if self.rng.random() < 0.7:
                    for side in (self.honest,):
                        side._offer(tx)

    # --- the reckoning

    def check(self) -> None:
        honest = self.honest
        decode_again(honest.peer)
        state = honest.peer.state
        assert isinstance(state, Closing)
        close = honest.close()
        assert close is not None, "nothing was ever mined"
        assert close.kind != "unknown"
        if self.cheats and close.kind != "local":
            assert close.kind == "revoked" or close.commitment_number is not None
        for output in close.outputs:
            self._check_output(close, output)
        self._check_outcomes(close)
        self._check_money(close)
        assert self.busy > 1 or not any(kind == "onchain.lost" for kind in honest.alarms), honest.alarms
        assert honest.over

    def _check_output(self, close: Close, output: Output) -> None:
        if output.owner != "local" or output.kind in ("trimmed_htlc", "anchor"):
            return
        if output.taker == "local":
            self._check_wait(close, output)
            return
        if output.taker == "remote" and self.busy > 1 and output.amount_sat < SMALL_SAT:
            return  # it was not worth its fee in time
        if output.taker == "remote":
            if close.kind == "revoked":
                assert output.kind == "htlc", output
                return  # taken again one stage later
            assert output.htlc is not None
            if output.htlc.offered:
                assert output.htlc.payment_hash in close.preimages
            return
        assert is_hopeless(output), output

    def _check_wait(self, close: Close, output: Output) -> None:
        """What is worth something does not wait for coins that what is worth less has."""
        timeout = output.kind == "htlc" and output.htlc is not None and output.htlc.offered
        if timeout and self.is_poor and output.amount_sat >= SMALL_SAT and close.kind == "local":
            assert output.spent is not None
            assert output.mature_height is not None
            waited = output.spent.height - max(output.mature_height, close.height + 1)
            assert waited <= PATIENCE_BLOCKS, output

    def _check_outcomes(self, close: Close) -> None:
        """Every HTLC that we offered has exactly one outcome, the right one."""
        log = self.honest.peer.log
        settled = [e.id for e in log if isinstance(e, fx.HtlcSettled)]
        failed = [e.id for e in log if isinstance(e, fx.HtlcFailed)]
        assert len(settled) == len(set(settled))
        assert len(failed) == len(set(failed))
        assert not set(settled) & set(failed)
        c = self.honest.peer.commitments
        left = set(c.origins) - c.learnt
        assert not left, left
        for output in close.outputs:
            htlc = output.htlc
            if output.kind == "htlc" and htlc is not None and htlc.offered and htlc.id >= 0 and htlc.id in failed:
                assert output.taker == "local" or is_hopeless(output)

    def _check_money(self, close: Close) -> None:
        """What came home is what we took less the fees that we can name."""
        resolution = self.honest.resolution()
        taken = sum(o.amount_sat for o in close.outputs if o.taker == "local")
        # An output that only passed through our own HTLC transaction is taken twice.
        taken -= sum(o.amount_sat for o in close.outputs if o.kind == "htlc_tx" and close.kind == "local")
        mined = {tx.txid() for txs in self.chain.blocks.values() for tx in txs}
        fees = sum(fee for txid, fee in resolution.fees.items() if txid in mined)
        assert self.honest.brought_home_sat() == taken - fees
        assert self.honest.brought_home_sat() >= self._owned_sat(close) - fees
        if close.kind == "revoked":
            assert self.other.brought_home_sat() <= ANCHOR_SAT  # a cheater keeps nothing

    def _burnt_sat(self, close: Close, tx: Tx) -> int:
        """What the fees inside a cheater's HTLC transactions took: without anchors, both sides signed them."""
        burnt = 0
        for spend in (tx for txs in self.chain.blocks.values() for tx in txs if not self.anchors):
            for txin in spend.inputs:
                if txin.outpoint.txid == close.txid and len(txin.witness) == 5:
                    burnt += tx.outputs[txin.outpoint.vout].value_sat - spend.outputs[0].value_sat
        return burnt

    def _owned_sat(self, close: Close) -> int:
        """What is ours by the commitment that confirmed, told without the code under test: our balance, HTLCs of ours
        whose preimage was not revealed, HTLCs that we could claim in time. Of a revoked one, everything."""
        state = self.honest.peer.funded
        c, params = state.commitments, state.params.commitment
        tx = next(tx for txs in self.chain.blocks.values() for tx in txs if tx.txid() == close.txid)
        if close.kind == "revoked":
            return sum(o.value_sat for o in tx.outputs if o.value_sat >= SMALL_SAT) - self._burnt_sat(close, tx)
        commits = {c.local.txid: ("local", c.local.spec), c.remote.txid: ("remote", c.remote.spec)}
        if isinstance(c.remote_next, AwaitingRevocation):
            commits[c.remote_next.commit.txid] = ("remote", c.remote_next.commit.spec)
        side, spec = commits[close.txid]
        settled = {e.id for e in self.honest.peer.log if isinstance(e, fx.HtlcSettled)} | c.learnt
        claimed = {r.id for r in c.removals() if isinstance(r, HtlcFulfill)}
        fee_sat = commitment_fee_sat(params, spec.commitment_spec(), side) + 2 * ANCHOR_SAT  # type: ignore[arg-type]
        owned = spec.to_local_msat // 1000 - (fee_sat if params.local_is_opener else 0)
        if owned < SMALL_SAT:
            owned = 0
        for htlc in spec.htlcs.values():
            ours = htlc.id not in settled if htlc.offered else htlc.id in claimed
            if ours and htlc.amount_msat // 1000 >= SMALL_SAT:
                owned += htlc.amount_msat // 1000
        return owned


def play(seed: int) -> Run:
    run = Run(seed)
    try:
        run.live()
        run.end()
        run.check()
    except BaseException:
        print(f"seed {seed}")
        raise
    return run


@pytest.mark.parametrize("chunk", range(4))
def test_an_honest_side_never_loses(chunk: int) -> None:
    for seed in range(FIRST + chunk, FIRST + RUNS, 4):
        play(seed)


def test_a_small_htlc_does_not_keep_the_only_coin() -> None:
    """It could pay no more, and a large one with another locktime waited for 39 blocks."""
    assert play(5324).is_poor
