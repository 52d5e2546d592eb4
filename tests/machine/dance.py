"""Random dances of two channels, and what must be true of them at every step and at the end. Seeded: a failure names
the seed and prints every step that was taken."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from random import Random

from msgspec.structs import replace

from channeld.bolt.transactions.spec import Htlc
from channeld.channel import chain, limits, machine
from channeld.channel import commitments as cm
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel.commitments import Spec, htlc_key
from channeld.channel.state import (
    Live,
    NegotiatingLegacy,
    NegotiatingSimple,
    Normal,
    Open,
    ShuttingDown,
    Unconfirmed,
)
from tests.machine.harness import HEIGHT, Pair, Peer, preimage_of, script_of
from wallet.bitcoin import Tx

ACTIONS = ("add", "answer", "deliver", "sign", "fee", "disconnect", "crash", "die", "burst")
WEIGHTS = (24, 16, 60, 24, 2, 4, 2, 3, 2)

LOW_FEERATE_PER_KW = 500
"""What layer 1 estimates: whatever fee rate the opener chooses is mined in time."""


class Dance:
    """One run. `decisions` is how each payment was first answered by who received it."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.random = Random(seed)
        self.payments: dict[bytes, tuple[Peer, int, int]] = {}
        self.decisions: dict[bytes, str] = {}
        self.start_msat = {peer.name: peer.commitments.local.spec.to_local_msat for peer in self.peers}
        self.steps: list[str] = []
        self.published: dict[str, dict[int, Tx]] = {peer.name: {} for peer in self.peers}
        for peer in self.peers:
            peer.log.clear()
            peer.feerate_per_kw = LOW_FEERATE_PER_KW

    @property
    def peers(self) -> tuple[Peer, Peer]:
        """Both sides."""
        return self.pair.alice, self.pair.bob

    def run(self, actions: int) -> None:
        """Random steps, then everything is brought to an end and checked."""
        for _ in range(actions):
            peer = self.random.choice(self.peers)
            (action,) = self.random.choices(ACTIONS, WEIGHTS)
            self.steps.append(f"{peer.name} {action}")
            getattr(self, action)(peer)
            self.check_always()
        self.finish()

    # --- actions

    def add(self, peer: Peer) -> None:
        """Offers an HTLC of some size: dust, ordinary, or all there is."""
        number = len(self.payments)
        c, params, policy = peer.commitments, peer.funded.params, peer.policy
        available_msat = limits.available_to_send_msat(c, params, policy)
        ordinary_msat = self.random.randint(1, max(1, available_msat // 3))
        amount_msat = self.random.choice(
            (self.random.randint(1, 600_000), ordinary_msat, ordinary_msat, available_msat)
        )
        origin = b"%d" % number
        command = ev.AddHtlc(
            amount_msat, sha256(preimage_of(number)).digest(), HEIGHT + self.random.randint(50, 60), bytes(1366), origin
        )
        try:
            peer.step(command)
        except ev.CommandRejected as rejection:
            usable = isinstance(peer.state, Normal) and isinstance(peer.state.link, Live)
            if amount_msat == available_msat > 0 and usable:
                raise AssertionError("what is available cannot be sent") from rejection
            return
        self.payments[origin] = (peer, number, amount_msat)

    def burst(self, peer: Peer) -> None:
        """Many at once."""
        for _ in range(self.random.randint(2, 12)):
            self.add(peer)

    def answer(self, peer: Peer) -> None:
        """Fulfils or fails an HTLC that is locked in; sometimes twice, sometimes in two ways."""
        if not peer.locked_in:
            return
        position = self.random.randrange(len(peer.locked_in))
        htlc = peer.locked_in.pop(position).htlc
        ways = self.random.choice(
            (["fulfill"], ["fulfill"], ["fail"], ["malformed"], ["fulfill", "fail"], ["fail"] * 2)
        )
        for way in ways:
            self.say(peer, htlc, way)

    def say(self, peer: Peer, htlc: Htlc, way: str) -> None:
        """One answer; the first one is what counts."""
        number = self.number_of(htlc)
        self.decisions.setdefault(b"%d" % number, way)
        if way == "fulfill":
            peer.step(ev.FulfillHtlc(htlc.id, preimage_of(number)))
        elif way == "fail":
            peer.step(ev.FailHtlc(htlc.id, b"no %d" % number))
        else:
            peer.step(ev.FailMalformedHtlc(htlc.id, sha256(bytes(1366)).digest(), 0x8000 | 5))

    def number_of(self, htlc: Htlc) -> int:
        """Which payment an HTLC is part of."""
        return next(n for _, n, _ in self.payments.values() if sha256(preimage_of(n)).digest() == htlc.payment_hash)

    def deliver(self, peer: Peer) -> None:
        """Some messages of `peer` arrive; the driver signs after a batch, mostly."""
        count = self.random.randint(1, 4)
        while peer.outbox and count:
            self.pair.deliver(peer)
            count -= 1
        if self.random.random() < 0.5:
            self.pair.other(peer).sign()

    def sign(self, peer: Peer) -> None:
        """The driver's batch ends."""
        peer.sign()

    def fee(self, peer: Peer) -> None:
        """The opener changes the fee rate."""
        try:
            peer.step(ev.UpdateFee(self.random.randint(253, 2000)))
        except ev.CommandRejected:
            pass

    def disconnect(self, peer: Peer) -> None:
        """The wire is cut; what was on it, half-delivered, is lost."""
        self.deliver(peer)
        self.reconnect()

    def crash(self, peer: Peer) -> None:
        """One side is killed at rest, the other one notices."""
        self.check_restart(peer)
        peer.crash()
        self.check_handed_out(peer)
        self.reconnect()

    def die(self, peer: Peer) -> None:
        """One side is killed between a commit and its effects."""
        sender = self.pair.other(peer)
        if sender.outbox:
            peer.receive(sender.outbox.popleft(), dies=True)
        elif machine.can_sign(peer.state):  # type: ignore[arg-type]
            peer.step(ev.Sign(), dies=True)
        self.check_handed_out(peer)
        self.reconnect()

    def reconnect(self) -> None:
        """Sometimes the peers stay away for a while."""
        self.pair.disconnect()
        if self.random.random() < 0.3:
            for peer in self.peers:
                self.answer(peer)
        self.pair.connect()
        if self.random.random() < 0.5:
            self.pair.settle()

    # --- what must be true

    def check_always(self) -> None:
        """After every step: no satoshi is made or lost, and what is kept ready equals what adding up gives."""
        for peer in self.peers:
            c = peer.commitments
            specs = [c.local.spec, c.remote.spec, c.latest_remote.spec, c.next_local.spec, c.next_remote.spec]
            for spec in specs:
                total_msat = spec.to_local_msat + spec.to_remote_msat
                total_msat += sum(htlc.amount_msat for htlc in spec.htlcs.values())
                assert total_msat == peer.funded.params.capacity_sat * 1000
                assert spec.to_local_msat >= 0
                assert spec.to_remote_msat >= 0
            assert cm.with_previews(c, peer.funded.params.commitment) == c
            self.check_punishable(peer)
        if self.random.random() < 0.08:
            for peer in self.peers:
                self.check_published(peer)

    def check_punishable(self, peer: Peer) -> None:
        """Whatever the peer may broadcast or has revoked can be told and punished."""
        c = peer.commitments
        assert c.remote_secrets.count == c.remote.index
        for commit in (c.remote, c.latest_remote):
            saved = peer.revocable[commit.index]
            assert saved.txid == commit.txid
            assert len(saved.htlcs) == len(commit.spec.htlcs)

    def check_published(self, peer: Peer) -> None:
        """If `peer` published its commitment now, both sides would know what it is; and every older one is known to be
        revoked, with the secret at hand."""
        other = self.pair.other(peer)
        mine, its = peer.state, other.state
        assert isinstance(mine, Normal | ShuttingDown | NegotiatingLegacy | NegotiatingSimple)
        assert isinstance(its, Normal | ShuttingDown | NegotiatingLegacy | NegotiatingSimple)
        index = mine.commitments.local.index
        tx = chain.signed_local_commitment(mine, peer.env())
        self.published[peer.name][index] = tx
        assert chain.classify(mine, tx) == ("local", None)
        for number, older in self.published[peer.name].items():
            kind, found = chain.classify(its, older)
            assert found == number
            revoked = number < its.commitments.remote.index
            assert kind in (("revoked",) if revoked else ("remote_current", "remote_next"))
            if revoked:
                secret = its.commitments.remote_secrets.secret(number)
                assert secret == peer.signer.per_commitment_secret(number)
                assert other.revocable[number].txid == older.txid()

    def check_restart(self, peer: Peer) -> None:
        """A restart is the same as a disconnection, but for the doubt whether the database was an old copy."""
        assert peer.state is not None
        decoded = machine.decode_state(machine.encode_state(peer.state))
        assert decoded == peer.state
        restarted = machine.resume(decoded, peer.env()).state
        disconnected = machine.step(peer.state, ev.Disconnected(), peer.env()).state
        if isinstance(restarted, Open):
            assert restarted.unconfirmed == Unconfirmed()
            assert isinstance(disconnected, Open)
            restarted = replace(restarted, unconfirmed=disconnected.unconfirmed)

        assert restarted == disconnected

    def check_handed_out(self, peer: Peer) -> None:
        """What is handed out again after a restart was not answered, and its onion is there."""
        for locked_in in peer.locked_in:
            assert b"%d" % self.number_of(locked_in.htlc) not in self.decisions
            assert peer.adds[False, locked_in.htlc.id]

    def finish(self) -> None:
        """All messages arrive, all HTLCs are answered, and the books are closed."""
        self.pair.reconnect()
        for _ in range(20):
            for peer in self.peers:
                while peer.locked_in:
                    self.answer(peer)
            self.pair.settle()
            if not any(peer.locked_in for peer in self.peers):
                break
        self.check_always()
        self.check_at_rest()
        self.check_outcomes()

    def check_at_rest(self) -> None:
        """Both sides agree on both commitments, and nothing is left over."""
        alice, bob = self.peers
        for one, other in ((alice, bob), (bob, alice)):
            mine, its = one.commitments, other.commitments
            assert mirrored(mine.local.spec) == its.remote.spec
            assert mine.local.txid == its.remote.txid
            assert mine.local.index == its.remote.index
            assert mine.is_settled
            assert not mine.has_htlcs
            assert not mine.pending
            assert not mine.origins
            assert not mine.learnt
            assert not one.adds, "rows of HTLCs that are gone"
            assert mine.local_next_htlc_id == its.remote_next_htlc_id

    def check_outcomes(self) -> None:
        """Every payment has exactly one outcome, the one that its receiver chose, and the money went where it says."""
        moved = Counter({peer.name: 0 for peer in self.peers})
        for peer in self.peers:
            outcomes = Counter(
                effect.origin for effect in peer.log if isinstance(effect, fx.HtlcSettled | fx.HtlcFailed)
            )
            expected = {origin for origin, (payer, _, _) in self.payments.items() if payer is peer}
            assert set(outcomes) == expected
            assert all(count == 1 for count in outcomes.values()), "an outcome was reported twice"
        for peer in self.peers:
            for effect in peer.log:
                if isinstance(effect, fx.HtlcSettled):
                    self.check_settled(peer, effect, moved)
                elif isinstance(effect, fx.HtlcFailed):
                    self.check_failed(effect)
            removed = Counter(effect.id for effect in peer.log if isinstance(effect, fx.HtlcRemoved))
            assert all(count == 1 for count in removed.values())
        for peer in self.peers:
            assert peer.commitments.local.spec.to_local_msat == self.start_msat[peer.name] + moved[peer.name]

    def check_settled(self, peer: Peer, effect: fx.HtlcSettled, moved: Counter[str]) -> None:
        """Fulfilled: the receiver said so first."""
        _, number, amount_msat = self.payments[effect.origin]
        assert effect.payment_preimage == preimage_of(number)
        assert self.decisions[effect.origin] == "fulfill"
        moved[peer.name] -= amount_msat
        moved[self.pair.other(peer).name] += amount_msat

    def check_failed(self, effect: fx.HtlcFailed) -> None:
        """Failed: the receiver said so first, or never saw it."""
        if effect.never_sent:
            assert effect.origin not in self.decisions
        elif effect.reason is not None:
            assert self.decisions[effect.origin] == "fail"
            assert effect.reason == b"no " + effect.origin
        else:
            assert self.decisions[effect.origin] == "malformed"
            assert effect.failure_code == 0x8005


def mirrored(spec: Spec) -> Spec:
    """The same commitment from the other side's view."""
    htlcs = {}
    for htlc in spec.htlcs.values():
        turned = Htlc(htlc.id, htlc.amount_msat, htlc.payment_hash, htlc.cltv_expiry, not htlc.offered)
        htlcs[htlc_key(turned.id, turned.offered)] = turned
    return Spec(spec.feerate_per_kw, spec.to_remote_msat, spec.to_local_msat, htlcs)


class ClosingDance(Dance):
    """A dance in which one side or both want to close at some point."""

    def __init__(self, pair: Pair, seed: int) -> None:
        super().__init__(pair, seed)
        self.closing: set[str] = set()
        self.closes_after = self.random.randint(0, 30)

    def run(self, actions: int) -> None:
        """HTLCs first, then the wish to close, and everything goes on until the channel is closed."""
        for number in range(actions):
            peer = self.random.choice(self.peers)
            (action,) = self.random.choices(ACTIONS, WEIGHTS)
            if number >= self.closes_after and self.random.random() < 0.15:
                action = "close"
            self.steps.append(f"{peer.name} {action}")
            getattr(self, action)(peer)
            self.give_script(peer)
            self.check_always()
        self.finish()

    def close(self, peer: Peer) -> None:
        """The operator wants to close, or another fee."""
        feerate_per_kw = self.random.randint(253, 3000)
        try:
            peer.step(ev.CloseChannel(script_of(peer.name), feerate_per_kw))
        except ev.CommandRejected as rejection:
            if rejection.code not in ("not_ready", "insufficient_balance"):
                raise
            return
        self.closing.add(peer.name)

    def give_script(self, peer: Peer) -> None:
        """The node answers `NeedShutdownScript`."""
        for one in self.peers:
            state = one.state
            if isinstance(state, ShuttingDown) and not state.local_script:
                one.step(ev.CloseChannel(script_of(one.name), one.closing_feerate_per_kw))

    def finish(self) -> None:
        """All HTLCs are answered; both sides come to hold the same closing transaction."""
        if not self.closing:
            self.pair.reconnect()
            self.close(self.random.choice(self.peers))
        self.pair.reconnect()
        for _ in range(20):
            for peer in self.peers:
                self.give_script(peer)
                while peer.locked_in:
                    self.answer(peer)
            self.pair.settle()
        self.check_always()
        self.check_at_rest()
        self.check_outcomes()
        self.check_closed()

    def check_closed(self) -> None:
        """Both broadcast the same last transaction, which pays everything to the two scripts but its fee."""
        alice, bob = self.peers
        states = [peer.state for peer in self.peers]
        assert all(isinstance(state, NegotiatingLegacy | NegotiatingSimple) for state in states), states
        known = [{Tx.parse(raw).txid(): Tx.parse(raw) for raw in state.closing_txs} for state in states]  # type: ignore[union-attr]
        shared = set(known[0]) & set(known[1])
        assert shared, "no closing transaction is known to both"
        for txid in shared:
            tx = known[0][txid]
            fee_sat = alice.funded.params.capacity_sat - sum(output.value_sat for output in tx.outputs)
            assert 0 < fee_sat < 10_000
            assert {output.script_pubkey for output in tx.outputs} <= {script_of("alice"), script_of("bob")}
            assert known[0][txid].outputs == known[1][txid].outputs
        for peer in (alice, bob):
            assert peer.broadcast
