"""A recipient under random parts, decisions, blocks and crashes: all of a set is taken or none of it, in time, once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, cast

import pytest

from channeld.bolt.onion.payment import BlindedRole, OnionContext, Receive
from channeld.bolt.transactions import Htlc
from channeld.channel import events as ev
from channeld.node.bus import EventBus
from channeld.node.interface import NodeError
from channeld.node.invoice_record import InvoiceRecord, decode
from channeld.node.invoices import LATEST_BLOCKS, InvoiceBook
from channeld.node.receive import Receiver
from channeld.storage import Write

PREIMAGE = b"\x11" * 32
HASH = sha256(PREIMAGE).digest()
SECRET = b"\x22" * 32
WANTED_MSAT = 1_000
Key = tuple[int, int]


class FakeStore:
    """Jobs are durable at the next `flush`, in order; a crash forgets those that wait."""

    def __init__(self) -> None:
        self.record: InvoiceRecord | None = None
        self.answers: dict[Key, ev.Event] = {}
        self.jobs: list[tuple[Sequence[Write], list[tuple[Key, ev.Event]], Callable[[None], None] | None]] = []

    def submit(self, writes: Sequence[Write], done: Callable[[None], None]) -> None:
        self.jobs.append((writes, [], done))

    def lookup(self, *_: object) -> list[Any]:
        return []

    async def read(self, _: object) -> InvoiceRecord | None:
        return self.record

    def flush(self) -> None:
        while self.jobs:
            writes, answers, done = self.jobs.pop(0)
            for write in writes:
                self.record = decode(write.parameters[3])
            for key, event in answers:
                assert key not in self.answers or type(self.answers[key]) is type(event), "two answers"
                self.answers.setdefault(key, event)
            if done is not None:
                done(None)


class FakeDriver:
    def __init__(self, store: FakeStore, channel_key: int) -> None:
        self.store, self.channel_key, self.state = store, channel_key, None

    def post(self, event: ev.Event, writes: Iterable[Write] = (), done: Callable[[None], None] | None = None) -> None:
        assert isinstance(event, ev.FulfillHtlc | ev.FailHtlc)
        self.store.jobs.append((tuple(writes), [((self.channel_key, event.id), event)], done))


class Story:
    """One recipient's life; `luck` decides."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.height = 100
        self.hold = self.luck.random() < 0.6
        self.store = FakeStore()
        self.htlcs: dict[Key, tuple[Htlc, Receive]] = {}
        self.revealed_at: dict[Key, int] = {}
        record = InvoiceRecord(
            payment_hash=HASH,
            payment_preimage=None if self.hold and self.luck.random() < 0.5 else PREIMAGE,
            payment_secret=SECRET,
            bolt11="",
            description="",
            amount_msat=WANTED_MSAT,
            created_seconds=0,
            expiry_seconds=3600,
            min_final_cltv_expiry_delta_blocks=42,
            hold=self.hold,
        )
        self.store.record = record
        self.start()

    def start(self) -> None:
        """A new process on what is durable; what is unanswered is handed out again."""
        self.store.jobs.clear()
        self.drivers = [FakeDriver(self.store, number) for number in range(2)]
        nothing = cast(Any, None)  # what only new invoices need
        self.book = InvoiceBook(cast(Any, self.store), nothing, nothing, EventBus(), lambda: 1.0, lambda: ())
        assert self.store.record is not None
        self.book.put(self.store.record)
        self.known = self.luck.random() < 0.5
        self.receiver = Receiver(
            cast(Any, self.store), self.book, EventBus(), lambda: self.height, lambda: self.known, lambda: 1.0
        )
        for key in sorted(self.htlcs):
            if key not in self.store.answers:
                self.hand_out(key)

    def hand_out(self, key: Key) -> None:
        htlc, onion = self.htlcs[key]
        reaction = self.receiver.receive(cast(Any, self.drivers[key[0]]), htlc, onion)
        answers = [(key, event) for event in reaction.events]
        self.store.jobs.append((tuple(reaction.writes), answers, None))

    def part(self) -> None:
        key = (self.luck.randrange(2), len(self.htlcs))
        amount_msat = self.luck.choice((300, 500, 700, 1000))
        total_msat = self.luck.choice((1000, 1000, 1000, 1000, 900, 1500, 2100))
        expiry = self.height + self.luck.choice((20, 39, 42, 42, 60))
        secret = SECRET if self.luck.random() < 0.9 else bytes(32)
        context = OnionContext(bytes(32), bytes(32), BlindedRole.NONE)
        onion = Receive(amount_msat, expiry, total_msat, secret, None, None, None, (), context)
        self.htlcs[key] = Htlc(key[1], amount_msat, HASH, expiry, False), onion
        self.hand_out(key)

    async def step(self) -> None:
        match self.luck.choices(
            ("part", "flush", "block", "settle", "cancel", "timeout", "crash", "known"), (8, 6, 4, 2, 1, 1, 2, 2)
        )[0]:
            case "part":
                self.part()
            case "flush":
                self.flush()
            case "block":
                self.height += self.luck.choice((1, 1, 3, 12))
                self.receiver.expire(self.height)
            case "settle":
                await self.decide(self.receiver.settle(HASH, PREIMAGE))
            case "cancel":
                await self.decide(self.receiver.cancel(HASH))
            case "timeout":
                for payment_hash in list(self.receiver._sets):
                    self.receiver._fail_set(payment_hash, self.receiver._details(1))
            case "crash":
                self.receiver.close()
                self.start()
            case "known":
                self.known = True
                self.receiver.height_known()

    async def decide(self, verb: Any) -> None:
        """A verb that may be refused; it ends when its row is durable, or the process dies before."""
        deciding = asyncio.ensure_future(verb)
        await asyncio.sleep(0)
        self.flush()
        await asyncio.wait({deciding})
        error = deciding.exception()
        if error is not None:
            assert isinstance(error, NodeError)
            assert error.kind in ("failed_precondition", "unavailable")

    def flush(self) -> None:
        self.store.flush()
        for key, event in self.store.answers.items():
            if isinstance(event, ev.FulfillHtlc):
                self.revealed_at.setdefault(key, self.height)

    def check(self) -> None:
        """At rest: everybody was answered the same way, with enough, and nobody too late."""
        record = self.store.record
        assert record is not None
        taken = set(self.revealed_at)
        assert taken == (set(record.htlcs) if record.state == "settled" else set())
        if not taken:
            return
        totals = {self.htlcs[key][1].total_msat for key in taken}
        assert len(totals) == 1
        assert sum(self.htlcs[key][0].amount_msat for key in taken) >= max(totals) >= WANTED_MSAT
        assert all(self.htlcs[key][1].payment_secret == SECRET for key in taken)


@pytest.mark.parametrize("block", range(4))
async def test_all_of_a_set_or_none_of_it(block: int) -> None:
    settled = accepted = 0
    for seed in range(40 * block, 40 * block + 40):
        story = Story(seed)
        for _ in range(60):
            before = {key for key, event in story.store.answers.items() if isinstance(event, ev.FulfillHtlc)}
            was = story.store.record
            await story.step()
            assert was is not None
            now = story.store.record
            assert now is not None
            if was.state == "open" and now.state in ("accepted", "settled"):
                accepted += 1
            if was.state in ("settled", "canceled"):
                assert now.state == was.state, "a decision was taken back"
            if was.state != "settled" and now.state == "settled":
                assert not before
                left = min(story.htlcs[key][0].cltv_expiry for key in now.htlcs) - story.height
                # decided in time; one step of blocks may lie between that and the commit
                assert left >= LATEST_BLOCKS - 12, "a preimage was decided on too late"
        story.flush()
        story.receiver.close()
        story.start()  # whatever was under way is done at the next start
        story.known = True
        story.receiver.height_known()
        story.flush()
        story.receiver.close()
        story.check()
        settled += story.store.record is not None and story.store.record.state == "settled"
    assert settled > 3, "these stories tell nothing"
    assert accepted > settled // 2
