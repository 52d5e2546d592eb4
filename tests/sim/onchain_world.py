"""A chain with Bitcoin Core's script engine but nothing else of a node, and the two sides of a channel that ends on it.

Each side is the real machine and the real resolution; only database, wallet and network are stand-ins. A cheater is a
side that was given an old state of its own and believes in it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec
import pbk

from channeld.bolt.transactions.sweep import Uneconomical
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel.state import Closed, Closing
from channeld.node.monitor_facts import Facts
from channeld.onchain import build
from channeld.onchain import resolution as on
from channeld.onchain.anchor import missing_fee_sat
from channeld.onchain.classify import revoked_number
from channeld.onchain.known import Known, known_of
from channeld.onchain.outputs import Close, HtlcTx, Sweep
from channeld.onchain.plans import Plan
from channeld.onchain.rates import Rates, fee_sat
from channeld.onchain.resolve import resolve
from tests.machine.harness import Peer, script_of
from wallet.bitcoin import SEQUENCE_RBF, OutPoint, Tx, TxIn, TxOut
from wallet.bitcoin.script import p2wsh

FLAGS = pbk.ScriptVerificationFlags.ALL & ~pbk.ScriptVerificationFlags.TAPROOT
ANYONE = b"\x51"
COIN_SCRIPT = p2wsh(ANYONE)
"""The stand-in wallets' coins: nobody but their owners thinks of taking them."""
COIN_INPUT_WEIGHT = 41 * 4 + 3
CHANGE_WEIGHT = 43 * 4
COIN_SAT = 100_000_000
ENDLESS = 1_000
"""More coins than anything here needs at the same time."""
UNDERPAID = "insufficient fee"
MOST_LOOKS = 100
WITH_COIN = ("htlc", "anchor")
"""Groups of transactions that the wallet pays for."""


class Refused(Exception):
    """The mempool's word."""


@dataclass
class Entry:
    tx: Tx
    fee_sat: int

    @property
    def feerate(self) -> int:
        return self.fee_sat * 1000 // self.tx.weight()


class Chain:
    """Blocks, the unspent outputs, and a mempool with replacement by fee."""

    def __init__(self, height: int, rng: random.Random) -> None:
        self.height = height
        self.rng = rng
        self.blocks: dict[int, list[Tx]] = {}
        self.outputs: dict[OutPoint, tuple[TxOut, int]] = {}
        self.spent: dict[OutPoint, Tx] = {}
        self.pool: dict[bytes, Entry] = {}
        self.level = 253
        self.slow = False
        """The next block's miner has heard of nothing, or of parents only."""

    def grant(self, outpoint: OutPoint, txout: TxOut) -> None:
        """An output that was always there."""
        self.outputs[outpoint] = (txout, self.height - 1000)

    def txout(self, outpoint: OutPoint) -> TxOut:
        if outpoint in self.outputs:
            return self.outputs[outpoint][0]
        entry = self.pool.get(outpoint.txid)
        if entry is None or outpoint.vout >= len(entry.tx.outputs):
            raise Refused("missing inputs")
        return entry.tx.outputs[outpoint.vout]

    def offer(self, tx: Tx) -> None:
        """To the mempool. Raises Refused."""
        txid = tx.txid()
        if txid in self.pool:
            return
        spent = [self._input(txin) for txin in tx.inputs]
        if self.height < tx.locktime < 500_000_000:
            raise Refused("non-final")
        fee = sum(txout.value_sat for txout in spent) - sum(output.value_sat for output in tx.outputs)
        assert fee >= 0, "money out of nothing"
        rivals = self._rivals(tx)
        if rivals:
            paid = sum(self.pool[rival].fee_sat for rival in rivals)
            if fee < paid + tx.weight() // 4 or fee * 1000 // tx.weight() <= max(self.pool[r].feerate for r in rivals):
                raise Refused(UNDERPAID)
        check_scripts(tx, spent)
        for rival in rivals:
            self.pool.pop(rival, None)
        self.pool[txid] = Entry(tx, fee)

    def _input(self, txin: TxIn) -> TxOut:
        if txin.outpoint in self.spent:
            raise Refused("missing inputs: spent")
        txout = self.txout(txin.outpoint)
        if txin.sequence < 1 << 16:
            known = self.outputs.get(txin.outpoint)
            if known is None or known[1] + txin.sequence > self.height + 1:
                raise Refused("non-BIP68-final")
        return txout

    def _rivals(self, tx: Tx) -> set[bytes]:
        """What it conflicts with, and all that builds on that."""
        wanted = {txin.outpoint for txin in tx.inputs}
        found = {txid for txid, e in self.pool.items() if any(i.outpoint in wanted for i in e.tx.inputs)}
        while True:
            more = {t for t, e in self.pool.items() if any(i.outpoint.txid in found for i in e.tx.inputs)} - found
            if not more:
                return found
            found |= more

    def mine(self, forced: Tx | None = None) -> None:
        """A block of what pays the level, alone or with its child."""
        self.height += 1
        txs: list[Tx] = []
        self.blocks[self.height] = txs
        if forced is not None:
            self._connect(forced, txs)
        waiting = sorted(self.pool.values(), key=lambda entry: -self._package_rate(entry))
        if self.slow:
            heard = self.pool if self.rng.random() < 0.5 else {}
            waiting = [e for e in waiting if e.tx.txid() in heard and self._ready(e.tx)]
        for entry in waiting:
            txid = entry.tx.txid()
            if txid not in self.pool or self._package_rate(entry) < self.level:
                continue
            if self._ready(entry.tx):
                self._connect(entry.tx, txs)
        for entry in waiting:  # children of what was just mined
            if entry.tx.txid() in self.pool and entry.feerate >= self.level and self._ready(entry.tx):
                self._connect(entry.tx, txs)

    def _ready(self, tx: Tx) -> bool:
        for txin in tx.inputs:
            known = self.outputs.get(txin.outpoint)
            if known is None or txin.outpoint in self.spent:
                return False
            if txin.sequence < 1 << 16 and known[1] + txin.sequence > self.height:
                return False
        return not self.height <= tx.locktime < 500_000_000  # a time beyond, and then long ago

    def _package_rate(self, entry: Entry) -> int:
        txid = entry.tx.txid()
        fee, weight = entry.fee_sat, entry.tx.weight()
        best = fee * 1000 // weight
        for child in self.pool.values():
            if any(txin.outpoint.txid == txid for txin in child.tx.inputs):
                best = max(best, (fee + child.fee_sat) * 1000 // (weight + child.tx.weight()))
        return best

    def _connect(self, tx: Tx, txs: list[Tx]) -> None:
        txid = tx.txid()
        self.pool.pop(txid, None)
        for rival in self._rivals(tx):
            self.pool.pop(rival, None)
        spent = [self.outputs[txin.outpoint][0] for txin in tx.inputs]
        check_scripts(tx, spent)
        for txin in tx.inputs:
            assert txin.outpoint not in self.spent
            self.spent[txin.outpoint] = tx
        for vout, output in enumerate(tx.outputs):
            self.outputs[OutPoint(txid, vout)] = (output, self.height)
        txs.append(tx)

    def undo(self) -> list[Tx]:
        """The last block leaves the chain; what was in it may come again."""
        txs = self.blocks.pop(self.height)
        for tx in reversed(txs):
            for txin in tx.inputs:
                del self.spent[txin.outpoint]
            txid = tx.txid()
            for vout in range(len(tx.outputs)):
                del self.outputs[OutPoint(txid, vout)]
        self.height -= 1
        return txs


def check_scripts(tx: Tx, spent: list[TxOut]) -> None:
    """Bitcoin Core's engine accepts every input."""
    raw = pbk.Transaction(tx.serialize())
    for index, output in enumerate(spent):
        assert pbk.ScriptPubkey(output.script_pubkey).verify(output.value_sat, raw, None, index, FLAGS), index


class _OneFunding:
    """Watches for `Facts`: one channel."""

    def __init__(self, outpoint: OutPoint) -> None:
        self.outpoint = outpoint

    def channel_of(self, outpoint: OutPoint) -> int | None:
        return 1 if outpoint == self.outpoint else None


@dataclass
class Side:
    """One side with its monitor. `paid` are coins of its own that went into mined transactions, by txid."""

    peer: Peer
    chain: Chain
    stored: bytes = msgspec.msgpack.encode(on.Resolution())
    facts: Facts = field(init=False)
    home: bytes = field(init=False)
    seen_height: int = 0
    over: bool = False
    alarms: list[str] = field(default_factory=list)
    coins: int = 0
    coins_made: dict[OutPoint, int] = field(default_factory=dict)
    made: dict[bytes, Tx] = field(default_factory=dict)
    mortality: float = 0.0
    most_coins: int = ENDLESS
    """So many confirmed coins the stand-in wallet has at the same time."""
    outbid: bool = False
    """Something was refused for what it pays."""

    def __post_init__(self) -> None:
        self.home = script_of(f"home of {self.peer.name}")
        self.facts = Facts(_OneFunding(self.peer.funded.params.funding_outpoint))  # type: ignore[arg-type]
        self.seen_height = self.chain.height

    # --- following the chain

    def catch_up(self) -> None:
        """All blocks that were missed, then a look."""
        for height in range(self.seen_height + 1, self.chain.height + 1):
            for position, tx in enumerate(self.chain.blocks[height]):
                self.facts.scan(tx, tx.txid(), height, position)
        self.seen_height = self.chain.height
        self.peer.height = self.chain.height
        if isinstance(self.peer.state, Closed) or self.over:
            return
        self.peer.step(ev.NewBlock())
        spend = self.chain.spent.get(self.peer.funded.params.funding_outpoint)
        if spend is not None:
            height = next(fact.height for fact in self.facts.of(1) if fact.tx == spend)
            self.peer.step(ev.FundingSpent(spend, height, self.chain.height - height + 1))
        self.look()

    def undone(self, height: int) -> None:
        """A block left the chain."""
        self.facts.disconnected(height)
        self.seen_height = min(self.seen_height, height - 1)

    # --- the monitor's work

    def resolution(self) -> on.Resolution:
        return msgspec.msgpack.decode(self.stored, type=on.Resolution)

    def known(self) -> Known:
        state = self.peer.funded
        point = self.peer.signer.per_commitment_point(state.commitments.local.index)
        known = known_of(state, point)  # type: ignore[arg-type]
        number = revoked_number(known, self.facts.of(1))
        if number is None:
            return known
        return known_of(state, point, self.peer.revocable.get(number))  # type: ignore[arg-type]

    def env(self) -> on.Env:
        level = self.chain.level
        rates = Rates(
            ((1, level + level // 4), (6, level), (36, max(253, level * 3 // 4)), (144, max(253, level // 2)))
        )
        return on.Env(self.known(), self.facts.of(1), self.chain.height, rates)

    def close(self) -> Close | None:
        return resolve(self.known(), self.facts.of(1))

    def look(self) -> None:
        """As the node's monitor does it: again, as long as there is a rival to outbid."""
        for _ in range(MOST_LOOKS):
            self.outbid = False
            self._look()
            if not self.outbid:
                return
        raise AssertionError("bidding for ever")

    def _look(self) -> None:
        if not isinstance(self.peer.state, Closing):
            return
        env = self.env()
        step = on.advance(self.resolution(), on.Looked(), env)
        self._keep(step)
        for action in step.actions:
            if self.dies():
                self.crash()
                return
            match action:
                case on.Tell(outcome=outcome):
                    self.peer.step(ev.HtlcOnChain(outcome.id, outcome.payment_preimage))
                case on.Alarm(kind=kind):
                    self.alarms.append(kind)
                case on.Publish(attempt=attempt):
                    self._publish(attempt, env)
                case on.PublishCommitment(child=child):
                    self._offer(Tx.parse(env.known.local_tx))
                    if child is not None:
                        self._offer(Tx.parse(child.raw))
                case on.PublishSeen(raw=raw):
                    self._offer(Tx.parse(raw))
                case on.AskAbout(attempt=attempt):
                    if attempt.txid not in self.chain.pool:
                        self._keep(on.advance(self.resolution(), on.Gone(attempt.txid), env))
                case on.Make(plan=plan):
                    self._make(plan, step.close, env)
                case on.Over():
                    self.over = True
                case on.Release():
                    pass

    def _keep(self, step: on.Step) -> None:
        self.stored = msgspec.msgpack.encode(step.state)

    def _publish(self, attempt: Any, env: on.Env) -> None:
        problem = self._offer(Tx.parse(attempt.raw))
        answer = on.Answered(attempt.txid, problem, problem == UNDERPAID)
        if (answer.problem, answer.underpaid) != (attempt.problem, attempt.underpaid):
            self._keep(on.advance(self.resolution(), answer, env))
            self.outbid = self.outbid or answer.underpaid

    def _offer(self, tx: Tx) -> str:
        try:
            self.chain.offer(tx)
        except Refused as refused:
            return str(refused)
        return ""

    def _make(self, plan: Plan, close: Close | None, env: on.Env) -> bool:
        """Whether it came about."""
        signer = self.peer.signer
        if plan.group == "presigned":
            tx, fee = build.build_presigned(plan, signer)
        elif plan.group in ("htlc", "anchor"):
            coin = self._coin_for(plan)
            if coin is None:
                step = on.advance(self.resolution(), on.CannotPay(plan), env)
                return any(self._make(each.plan, close, env) for each in step.actions if isinstance(each, on.Make))
            made = self._with_coin(plan, env.known, coin)
            if made is None:
                return False
            tx, fee = made
        else:
            number = None if close is None else close.commitment_number
            try:
                tx = build.build_sweep(plan, env.known, number, signer, plan.script_pubkey or self.home)
            except Uneconomical:
                return False
            fee = sum(output.amount_sat for output in plan.outputs) - tx.outputs[0].value_sat
            assert fee <= plan.max_fee_sat, "more than it is worth"
        self.made[tx.txid()] = tx
        attempt = build.attempt_of(plan, tx, fee, self.chain.height)
        step = on.advance(self.resolution(), on.Made(plan, attempt), env)
        self._keep(step)
        if self.dies():
            return True  # it is stored, and will be published after the restart
        if plan.group == "anchor":
            self._offer(Tx.parse(env.known.local_tx))
            self._offer(tx)
            return True
        self._publish(attempt, env)
        return True

    def _coin_for(self, plan: Plan) -> OutPoint | None:
        """That of what it replaces, if that is still there, else one that no attempt has, if the wallet has one."""
        used = {a.txid: self._coin_in(Tx.parse(a.raw)) for a in self.resolution().attempts if a.group in WITH_COIN}
        same = used.pop(plan.replaces, None)
        if same is not None and same not in self.chain.spent:
            return same
        left = [coin for coin in self.coins_made if coin not in self.chain.spent]
        free = next((coin for coin in left if coin not in used.values()), None)
        if free is not None or len(left) >= self.most_coins:
            return free
        self.coins += 1
        coin = OutPoint(sha256(f"coin {self.peer.name} {self.coins}".encode()).digest(), 0)
        self.chain.grant(coin, TxOut(COIN_SAT, COIN_SCRIPT))
        self.coins_made[coin] = COIN_SAT
        return coin

    def _coin_in(self, tx: Tx) -> OutPoint | None:
        return next((txin.outpoint for txin in tx.inputs if txin.outpoint in self.coins_made), None)

    def _with_coin(self, plan: Plan, known: Known, coin: OutPoint) -> tuple[Tx, int] | None:
        """One coin of the stand-in wallet pays the fee."""
        signer = self.peer.signer
        if plan.group == "anchor":
            (output,) = plan.outputs
            assert isinstance(output.claim, Sweep)
            spend = output.claim.spend
            base = Tx(2, (spend.txin(),), (), 0)
            weight = 10 * 4 + 2 + spend.input_weight
            extra = missing_fee_sat(known, plan.feerate_per_kw)
            given = output.amount_sat
        else:
            base = build.htlc_frame(plan)
            weight = 10 * 4 + 2 + sum(build.htlc_input_weight(o) + 43 * 4 for o in plan.outputs)
            assert all(isinstance(o.claim, HtlcTx) for o in plan.outputs)
            extra = given = 0
        weight += COIN_INPUT_WEIGHT + CHANGE_WEIGHT
        fee = max(fee_sat(weight, plan.feerate_per_kw) + extra, plan.min_fee_sat)
        if fee > plan.max_fee_sat:
            return None
        change = TxOut(given + COIN_SAT - fee, self.home)
        tx = base.replace(
            inputs=(*base.inputs, TxIn(coin, b"", SEQUENCE_RBF, (ANYONE,))), outputs=(*base.outputs, change)
        )
        if plan.group == "anchor":
            return build.sign_spend_input(tx, plan.outputs[0], signer), fee
        return build.sign_htlc_inputs(plan, tx, signer), fee

    def dies(self) -> bool:
        """Whether the daemon crashes right here."""
        return self.chain.rng.random() < self.mortality

    # --- accounts

    def crash(self) -> None:
        """Only what was stored is left."""
        self.peer.crash()

    def brought_home_sat(self) -> int:
        """Unspent at home, less the coins that were put in."""
        chain = self.chain
        total = sum(
            txout.value_sat
            for outpoint, (txout, _) in chain.outputs.items()
            if txout.script_pubkey == self.home and outpoint not in chain.spent
        )
        return total - sum(value for coin, value in self.coins_made.items() if coin in chain.spent)


def decode_again(peer: Peer) -> None:
    """The state as the database would give it back."""
    assert peer.state is not None
    peer.state = machine.decode_state(machine.encode_state(peer.state))
