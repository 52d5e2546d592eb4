"""Two channels face to face in memory: real keys and signatures, message queues, and crashes at any point.

`Peer` is what a driver is to a node: it steps, "commits" (keeps the encoded state, the written rows, and what the
effects tell the node, which a node writes in the same transaction), and only then sends. `crash` throws away
everything but what was committed. `Pair` joins two of them. Nothing is random
here: who uses it decides what happens next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from msgspec import structs

from channeld.bolt.features import Feature, optional
from channeld.bolt.messages import Message, OpenChannel, decode, encode
from channeld.bolt.transactions.signing import ChannelSecrets
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import machine
from channeld.channel import writes as wr
from channeld.channel.env import ChannelPolicy, Env
from channeld.channel.state import AwaitingFunding, Closed, Funded, Live, Normal, OpenParams, State, Transition
from wallet.bitcoin import OutPoint, Tx, TxIn, TxOut

CHAIN_HASH = sha256(b"regtest").digest()
FEATURES = optional(
    Feature.option_static_remotekey,
    Feature.option_anchors,
    Feature.option_support_large_channel,
    Feature.option_upfront_shutdown_script,
    Feature.option_shutdown_anysegwit,
    Feature.option_channel_type,
    Feature.option_scid_alias,
    Feature.option_zeroconf,
    Feature.option_simple_close,
)
NODE_IDS = {"alice": b"\x02" + sha256(b"alice").digest(), "bob": b"\x03" + sha256(b"bob").digest()}
HEIGHT = 800_000


def seed_secrets(name: str, number: int = 0) -> ChannelSecrets:
    """The secrets of a test's channel, the same in each run."""
    return ChannelSecrets.from_seed(sha256(f"{name} {number}".encode()).digest())


def script_of(name: str) -> bytes:
    """A P2WPKH script to close to."""
    return b"\x00\x14" + sha256(name.encode()).digest()[:20]


@dataclass
class Peer:
    """One side. `outbox` holds wire messages to the other; `log` all effects in order, from their commit on."""

    name: str
    signer: ChannelSecrets
    policy: ChannelPolicy = field(default_factory=ChannelPolicy)
    features: frozenset[int] = FEATURES
    feerate_per_kw: int = 1000
    closing_feerate_per_kw: int = 1000
    height: int = HEIGHT
    time_seconds: int = 1_700_000_000
    state: State | None = None
    adds: dict[tuple[bool, int], bytes] = field(default_factory=dict)
    revocable: dict[int, wr.SaveRevocable] = field(default_factory=dict)
    outbox: deque[bytes] = field(default_factory=deque)
    log: list[fx.Effect] = field(default_factory=list)
    committed: bytes = b""
    locked_in: list[fx.HtlcLockedIn] = field(default_factory=list)
    """What the node would have to answer; not yet taken by the test."""
    broadcast: list[Tx] = field(default_factory=list)

    def env(self) -> Env:
        """The world as this side sees it."""
        return Env(
            time_seconds=self.time_seconds,
            block_height=self.height,
            feerate_per_kw=self.feerate_per_kw,
            closing_feerate_per_kw=self.closing_feerate_per_kw,
            policy=self.policy,
            signer=self.signer,
            adds=self.adds,
            local_features=self.features,
        )

    # --- stepping

    def step(self, event: ev.Event, *, dies: bool = False) -> list[fx.Effect]:
        """Steps, commits, performs. Raises what the machine raises; then nothing has changed. If it `dies`, that is
        between the commit and the effects."""
        assert self.state is not None
        transition = machine.step(self.state, event, self.env())
        if not dies:
            return self.take(transition)
        self.commit(transition)
        self.crash()
        return list(transition.effects)

    def take(self, transition: Transition) -> list[fx.Effect]:
        """Commits a transition, then performs its effects."""
        self.commit(transition)
        self.perform(transition.effects)
        return list(transition.effects)

    def commit(self, transition: Transition) -> None:
        """State and rows, as one database transaction would."""
        self.state = transition.state
        self.committed = machine.encode_state(transition.state)
        for write in transition.writes:
            match write:
                case wr.SaveAdd(offered=offered, id=id, raw=raw):
                    self.adds[offered, id] = raw
                case wr.ForgetAdd(offered=offered, id=id):
                    self.adds.pop((offered, id), None)
                case wr.SaveRevocable(index=index):
                    self.revocable[index] = write
        for effect in transition.effects:
            self.log.append(effect)
            if isinstance(effect, fx.HtlcLockedIn):
                self.locked_in.append(effect)

    def perform(self, effects: tuple[fx.Effect, ...]) -> None:
        """What comes after the commit."""
        for effect in effects:
            match effect:
                case fx.Send(message=message):
                    self.outbox.append(encode(message))
                case fx.SendRaw(data=data):
                    self.outbox.append(data)
                case fx.Broadcast(tx=tx):
                    self.broadcast.append(tx)
                case _:
                    pass

    def receive(self, raw: bytes, *, dies: bool = False) -> list[fx.Effect]:
        """A message of the peer's arrives."""
        return self.step(ev.PeerMessage(decode(raw), raw), dies=dies)

    def sign(self) -> None:
        """What the driver does after a batch."""
        assert self.state is not None
        if machine.can_sign(self.state):
            self.step(ev.Sign())

    def crash(self) -> None:
        """Everything but what was committed is lost; then the daemon starts again."""
        self.outbox.clear()
        self.locked_in.clear()
        self.take(machine.resume(machine.decode_state(self.committed), self.env()))

    # --- looking

    @property
    def funded(self) -> Funded:
        """The state, which is that of a funded channel."""
        assert isinstance(self.state, Funded)
        return self.state

    @property
    def commitments(self) -> Any:
        """The state's commitments."""
        return self.funded.commitments

    def sent(self) -> list[Message]:
        """What waits in the outbox, decoded."""
        return [decode(raw) for raw in self.outbox]

    def logged(self, kind: type) -> list[Any]:
        """All effects of a kind so far."""
        return [effect for effect in self.log if isinstance(effect, kind)]


@dataclass
class Pair:
    """Two sides and the wire between them."""

    alice: Peer
    bob: Peer

    def other(self, peer: Peer) -> Peer:
        """Who is not `peer`."""
        return self.bob if peer is self.alice else self.alice

    def deliver(self, sender: Peer) -> None:
        """One message of `sender` arrives."""
        self.other(sender).receive(sender.outbox.popleft())

    def deliver_all(self, sender: Peer) -> None:
        """All that `sender` has said arrives. The answers stay where they are."""
        while sender.outbox:
            self.deliver(sender)

    def settle(self, rounds: int = 1000) -> None:
        """Delivers everything and signs until nothing is left to do."""
        for _ in range(rounds):
            for peer in (self.alice, self.bob):
                self.deliver_all(peer)
                peer.sign()
            if not self.alice.outbox and not self.bob.outbox:
                return
        raise AssertionError("the peers never come to rest")

    def disconnect(self) -> None:
        """The wire is cut: what was on it is lost, and both notice."""
        for peer in (self.alice, self.bob):
            peer.outbox.clear()
        for peer in (self.alice, self.bob):
            if not isinstance(peer.state, Closed):
                peer.step(ev.Disconnected())

    def connect(self) -> None:
        """`init` was exchanged; both begin to reestablish."""
        for peer in (self.alice, self.bob):
            peer.step(ev.Connected(self.other(peer).features))

    def reconnect(self) -> None:
        """Cut and joined again, and in step."""
        self.disconnect()
        self.connect()
        self.settle()

    def clone(self) -> Pair:
        """An independent copy: states are values, the rest is copied."""
        return Pair(_clone(self.alice), _clone(self.bob))


def _clone(peer: Peer) -> Peer:
    return replace(
        peer,
        adds=dict(peer.adds),
        revocable=dict(peer.revocable),
        outbox=deque(peer.outbox),
        log=list(peer.log),
        locked_in=list(peer.locked_in),
        broadcast=list(peer.broadcast),
    )


# --- opening ------------------------------------------------------------------------------------------------------


def open_params(bob: Peer, **changes: Any) -> OpenParams:
    """What Alice asks for."""
    wanted = OpenParams(
        remote_node_id=NODE_IDS[bob.name],
        remote_features=bob.features,
        chain_hash=CHAIN_HASH,
        temporary_channel_id=sha256(b"temporary").digest(),
        local_alias=16_000_000 << 40 | 1,
        amount_sat=1_000_000,
    )
    return structs.replace(wanted, **changes)


def start_open(alice: Peer, bob: Peer, **wanted: Any) -> Pair:
    """`open_channel` and `accept_channel` were exchanged; Alice's wallet is asked for a transaction."""
    alice.take(machine.initiate(open_params(bob, **wanted), alice.env()))
    proposal = decode(alice.outbox.popleft())
    assert isinstance(proposal, OpenChannel)
    bob.take(
        machine.accept(
            proposal,
            NODE_IDS[alice.name],
            alice.features,
            bob.env(),
            chain_hash=CHAIN_HASH,
            local_alias=16_000_001 << 40 | 1,
        )
    )
    alice.receive(bob.outbox.popleft())
    return Pair(alice, bob)


def funding_tx(alice: Peer) -> Tx:
    """What the wallet would build for the last `NeedFunding`."""
    need = alice.logged(fx.NeedFunding)[-1]
    spent = OutPoint(sha256(b"a coin").digest(), 0)
    return Tx(
        2,
        (TxIn(spent, b"", 0xFFFFFFFD, (b"\x30" * 71, b"\x02" * 33)),),
        (TxOut(5_000, script_of("change")), TxOut(need.amount_sat, need.script_pubkey)),
        0,
    )


def fund(pair: Pair) -> None:
    """Alice's wallet answers; `funding_created` and `funding_signed` are exchanged."""
    pair.alice.step(ev.FundingTxReady(funding_tx(pair.alice), 1))
    pair.settle()


def confirm(pair: Pair, depth: int = 6) -> None:
    """The funding transaction gets `depth` confirmations on both sides."""
    for peer in (pair.alice, pair.bob):
        peer.step(ev.FundingDepth(depth, HEIGHT, 7, peer.funded.params.capacity_sat))
    pair.settle()


def open_pair(
    *,
    anchors: bool = True,
    push_msat: int = 0,
    amount_sat: int = 1_000_000,
    policy: ChannelPolicy | None = None,
    number: int = 0,
    feerate_per_kw: int = 1000,
    features: frozenset[int] = FEATURES,
    **wanted: Any,
) -> Pair:
    """A channel that Alice opened, ready for use."""
    if not anchors:
        features = features - {Feature.option_anchors | 1}
    peers = [
        Peer(
            name,
            seed_secrets(name, number),
            policy or ChannelPolicy(),
            features=features,
            feerate_per_kw=feerate_per_kw,
        )
        for name in ("alice", "bob")
    ]
    pair = start_open(*peers, push_msat=push_msat, amount_sat=amount_sat, **wanted)
    fund(pair)
    assert isinstance(pair.alice.state, AwaitingFunding | Normal)
    confirm(pair)
    assert isinstance(pair.alice.state, Normal)
    assert isinstance(pair.bob.state, Normal)
    for peer in peers:
        assert isinstance(peer.funded.link, Live)
        peer.locked_in.clear()
    return pair


# --- HTLCs --------------------------------------------------------------------------------------------------------


def both_signed(amount_msat: int = 40_000_000) -> Pair:
    """Each side offers an HTLC, and signs for its own before it hears of the other's."""
    pair = open_pair(push_msat=500_000_000)
    for number, peer in enumerate((pair.alice, pair.bob)):
        add(peer, amount_msat, number)
    pair.alice.sign()
    pair.bob.sign()
    return pair


def preimage_of(number: int) -> bytes:
    """The preimage of payment `number`."""
    return sha256(b"preimage %d" % number).digest()


def add(peer: Peer, amount_msat: int, number: int = 0, cltv_expiry: int = HEIGHT + 100) -> list[fx.Effect]:
    """Offers an HTLC for payment `number`; its origin says so too."""
    payment_hash = sha256(preimage_of(number)).digest()
    origin = b"payment %d" % number
    return peer.step(ev.AddHtlc(amount_msat, payment_hash, cltv_expiry, bytes(1366), origin))
