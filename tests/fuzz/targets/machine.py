"""Sequences of messages into a channel: an honest side against a peer that says anything at any time.

The peer is an honest machine too, so that signatures are right and the sequence gets deep; but what it says may be
changed, repeated, held back or made up on its way. Whatever comes, no satoshi may appear or vanish on our side, our
commitment stays publishable, the state survives a restart, and the only answers are those that the machine promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256

from channeld.bolt.messages import MESSAGES, DecodeError, UnknownMessage, decode
from channeld.channel import chain, machine
from channeld.channel import events as ev
from channeld.channel.commitments import LocalCommit
from channeld.channel.state import AwaitingFunding, Closed, Closing, Funded, Normal, ShuttingDown, State
from tests.fuzz.target import Reader, target
from tests.machine.harness import HEIGHT, Pair, Peer, open_pair, preimage_of, script_of, seed_secrets, start_open

AMOUNTS_MSAT = (1, 999, 353_999, 354_000, 1_000_000, 40_000_000, 300_000_000, 999_999_999_999, (1 << 64) - 1)
TYPES = sorted(MESSAGES)


@cache
def _starts() -> list[Pair]:
    """Where a sequence may begin."""
    made = [
        open_pair(push_msat=400_000_000),
        open_pair(anchors=False, push_msat=400_000_000, number=1),
        start_open(Peer("alice", seed_secrets("alice", 2)), Peer("bob", seed_secrets("bob", 2))),
    ]
    closing = open_pair(push_msat=300_000_000, number=3)
    closing.alice.step(ev.CloseChannel(script_of("alice"), 1000))
    return [*made, closing]


class Attack:
    """One sequence; `alice` is the side whose funds count."""

    def __init__(self, pair: Pair, reader: Reader) -> None:
        self.pair = pair
        self.alice, self.bob = pair.alice, pair.bob
        self.reader = reader
        self.payments = 0
        self.checked: State | None = None
        self.published: LocalCommit | None = None

    def run(self) -> None:
        """Until the input ends, or the channel."""
        actions = (
            self.deliver,
            self.deliver,
            self.bend,
            self.invent,
            self.peer_acts,
            self.we_act,
            self.link,
            self.flow,
        )
        while self.reader.left and not isinstance(self.alice.state, Closing | Closed):
            actions[self.reader.below(len(actions))]()
            self.check()

    def hear(self, raw: bytes) -> None:
        """A message arrives at our side."""
        try:
            message = decode(raw)
        except (DecodeError, UnknownMessage):
            return
        before = self.alice.state
        try:
            self.alice.step(ev.PeerMessage(message, raw))
        except ev.ProtocolViolation as violation:
            assert violation.args
            assert self.alice.state is before

    def deliver(self) -> None:
        """The peer's next message, as it was sent."""
        if self.bob.outbox:
            self.hear(self.bob.outbox.popleft())

    def bend(self) -> None:
        """The same with some bytes changed, kept for later or not."""
        if not self.bob.outbox:
            return
        raw = bytearray(self.bob.outbox[0])
        if self.reader.below(2):
            self.bob.outbox.popleft()
        place = self.reader.number(2) % len(raw)
        new = self.reader.take(1 + self.reader.below(8))
        raw[place : place + len(new)] = new
        self.hear(bytes(raw))

    def invent(self) -> None:
        """A message of any type, with our channel's id."""
        type_ = TYPES[self.reader.below(len(TYPES))]
        channel_id = self.alice.funded.params.channel_id if isinstance(self.alice.state, Funded) else bytes(32)
        self.hear(type_.to_bytes(2, "big") + channel_id + self.reader.chunk())

    def peer_acts(self) -> None:
        """The peer does something that it may."""
        self.act(self.bob)

    def we_act(self) -> None:
        """Our side does something."""
        self.act(self.alice)

    def act(self, peer: Peer) -> None:
        """A command that the machine may refuse."""
        if peer.state is None:
            return
        try:
            match self.reader.below(6):
                case 0:
                    self.payments += 1
                    amount = AMOUNTS_MSAT[self.reader.below(len(AMOUNTS_MSAT))]
                    digest = sha256(preimage_of(self.payments)).digest()
                    expiry = HEIGHT + 50 + self.reader.below(100)
                    peer.step(ev.AddHtlc(amount, digest, expiry, bytes(1366), b"%d" % self.payments))
                case 1:
                    peer.sign()
                case 2 if peer.locked_in:
                    htlc = peer.locked_in.pop().htlc
                    known = {sha256(preimage_of(number)).digest(): number for number in range(self.payments + 1)}
                    number = known.get(htlc.payment_hash)
                    if number is not None and self.reader.below(2):
                        peer.step(ev.FulfillHtlc(htlc.id, preimage_of(number)))
                    else:
                        peer.step(ev.FailHtlc(htlc.id, b"no"))
                case 3:
                    peer.step(ev.UpdateFee(253 + self.reader.number(2)))
                case 4:
                    peer.step(ev.CloseChannel(script_of(peer.name), 1000))
                case _:
                    peer.step(ev.NewBlock())
        except ev.CommandRejected as error:
            assert error.sentence

    def link(self) -> None:
        """The connection goes, and comes back."""
        if not isinstance(self.alice.state, Funded):
            return
        for peer in (self.alice, self.bob):
            peer.outbox.clear()
            if isinstance(peer.state, Funded):
                peer.step(ev.Disconnected())
        if self.reader.below(2):
            self.alice.crash()
        for peer in (self.alice, self.bob):
            if isinstance(peer.state, Funded):
                peer.step(ev.Connected(self.pair.other(peer).features))

    def flow(self) -> None:
        """Some rounds go as they should; the peer's machine may give up on what it was told."""
        for _ in range(1 + self.reader.below(4)):
            self.deliver()
            while self.alice.outbox:
                raw = self.alice.outbox.popleft()
                if self.bob.state is None:
                    continue
                try:
                    self.bob.receive(raw)
                except (ev.ProtocolViolation, AssertionError):
                    return  # a bent message left the peer's side in another state than ours: nothing is promised to it

    def check(self) -> None:
        """What must be true of our side."""
        state = self.alice.state
        assert state is not None
        if state is self.checked:
            return
        self.checked = state
        assert machine.decode_state(machine.encode_state(state)) == state
        if not isinstance(state, Normal | ShuttingDown | AwaitingFunding):
            return
        c = state.commitments
        capacity_msat = state.params.capacity_sat * 1000
        assert c.next_local is not None
        assert c.next_remote is not None
        for spec in (c.local.spec, c.remote.spec, c.latest_remote.spec, c.next_local.spec, c.next_remote.spec):
            parts = [spec.to_local_msat, spec.to_remote_msat, *(htlc.amount_msat for htlc in spec.htlcs.values())]
            assert min(parts) >= 0
            assert sum(parts) == capacity_msat
        assert c.remote_secrets.count == c.remote.index
        if isinstance(state, Normal | ShuttingDown) and c.local is not self.published:
            self.published = c.local
            tx = chain.signed_local_commitment(state, self.alice.env())
            assert chain.classify(state, tx) == ("local", None)


def _seeds() -> Iterator[bytes]:
    for start in range(4):
        yield bytes((start,)) + bytes((4, 0, 4, 50, 4, 1, 7, 3, 7, 3, 7, 3, 5, 2, 1, 7, 3, 7, 3))
        yield bytes((start,)) + bytes((5, 0, 4, 50, 5, 1, 7, 3, 7, 3, 2, 1, 0, 40, 3, 9, 9, 9, 6, 1, 7, 3))
        yield bytes((start,)) + b"".join(bytes((3, index)) + b"\x00\x40" + bytes(64) for index in range(0, 40, 5))


@target("channel", _seeds, 1500)
def channel(data: bytes) -> None:
    """See the module."""
    reader = Reader(data)
    starts = _starts()
    Attack(starts[reader.below(len(starts))].clone(), reader).run()
