"""A toy machine, and what a driver speaks to: a host that holds commits back, and a connection that keeps what is
sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

from channeld.bolt.messages import ErrorMessage, Message, Ping, decode
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import writes as wr
from channeld.channel.env import Env
from channeld.node.driver import NO_REACTION, ChannelDriver, Reaction
from channeld.storage import Statement, StoreFailed, Write, rows
from wallet.bitcoin import Tx

State = tuple[str, ...]
BUG = ev.FundingTxReady(Tx(2, (), (), 0), 0)


class Transition(NamedTuple):
    state: State
    effects: Sequence[fx.Effect] = ()
    writes: Sequence[wr.Write] = ()


class ToyMachine:
    """Notes every event. Messages are `ping`s whose payload says what to do; a `Sign` is due after each one."""

    def step(self, state: State, event: ev.Event, env: Env) -> Transition:
        match event:
            case ev.PeerMessage(message=Ping(ignored=word)):
                return self._on_word(state, word.decode())
            case ev.Sign():
                return Transition((*state, "signed"), [fx.Send(Ping(0, b"signature"))])
            case ev.FundingTxReady():
                raise AssertionError("a bug")
            case ev.NewBlock():
                return Transition((*state, "block"), [fx.HtlcRemoved(8, True), fx.CloseCompleted(None, "over")])
            case ev.UpdateFee():
                raise ev.CommandRejected("not_opener", "the peer pays the fee")
            case ev.ForceClose(reason):
                return Transition((*state, f"closed: {reason}"), [fx.Send(ErrorMessage(bytes(32), reason.encode()))])
            case ev.FulfillHtlc():
                return Transition((*state, "fulfilled"), [fx.Send(Ping(0, b"fulfill"))])
            case _:
                return Transition((*state, type(event).__name__))

    def _on_word(self, state: State, word: str) -> Transition:
        if word in ("warning", "error", "disconnect"):
            raise ev.ProtocolViolation(f"{word} please", word)  # type: ignore[arg-type]
        if word == "add":
            return Transition((*state, word), (), [wr.SaveAdd(False, 7, b"raw add")])
        if word == "lock":
            return Transition((*state, word), [fx.HtlcRemoved(7, True)], [wr.ForgetAdd(False, 7)])
        return Transition((*state, word), [fx.Send(Ping(0, word.encode()))])

    def __init__(self) -> None:
        self.jobs: list[Callable[[], object]] = []

    def preparations(self, state: State, env: Env) -> list[Callable[[], object]]:
        jobs, self.jobs = self.jobs, []
        return jobs

    is_waiting = False

    def awaits_revocation(self, state: State) -> bool:
        return self.is_waiting

    awaited: int | None = None

    def awaited_commitment(self, state: State) -> int | None:
        return self.awaited

    def can_sign(self, state: State) -> bool:
        return (
            not self.is_waiting
            and bool(state)
            and state[-1] not in ("signed", "Connected")
            and not state[-1].startswith("closed")
        )


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.closed = ""
        self.holders: set[object] = set()

    def send(self, data: bytes) -> None:
        self.sent.append(decode(data))

    def close(self, reason: str) -> None:
        self.closed = reason

    def hold(self, holder: object) -> None:
        assert holder not in self.holders
        self.holders.add(holder)

    def let_go(self, holder: object) -> None:
        self.holders.remove(holder)

    @property
    def is_held(self) -> bool:
        return bool(self.holders)

    def words(self) -> list[bytes]:
        return [message.ignored for message in self.sent if isinstance(message, Ping)]


class FakeHost:
    """Holds commits back until the test lets them through."""

    def __init__(self) -> None:
        self.commits: list[tuple[list[Write], Callable[[StoreFailed | None], None]]] = []
        self.performed: list[fx.Effect] = []
        self.frozen_by: list[BaseException] = []
        self.reactions: dict[type, Reaction] = {}
        self.broken: set[type] = set()
        """Effects to which a reaction fails."""
        self.broken_later: set[type] = set()
        self.unstorable = False
        self.read: list[int] = []

    def env(self, driver: ChannelDriver[State]) -> Env:
        return cast(Env, None)

    def rows(self, driver: ChannelDriver[State], before: State | None) -> Iterable[Write]:
        assert not self.unstorable, "a bug"
        return [] if driver.state is before else [rows.SET_META("state", repr(driver.state).encode())]

    def read_ahead(self, driver: ChannelDriver[State], htlc_id: int) -> None:
        self.read.append(htlc_id)

    def react(self, driver: ChannelDriver[State], effect: fx.Effect) -> Reaction:
        assert type(effect) not in self.broken, "a bug"
        return self.reactions.get(type(effect), NO_REACTION)

    def perform(self, driver: ChannelDriver[State], effect: fx.Effect) -> None:
        assert type(effect) not in self.broken_later | self.broken, "a bug"
        self.performed.append(effect)

    def submit(self, writes: Sequence[Write], done: Callable[[StoreFailed | None], None]) -> None:
        self.commits.append((list(writes), done))

    def batch_done(self, driver: ChannelDriver[State]) -> None:
        pass

    def frozen(self, driver: ChannelDriver[State], event: object, error: BaseException) -> None:
        self.frozen_by.append(error)

    def violated(self, driver: ChannelDriver[State], violation: ev.ProtocolViolation) -> None:
        pass

    async def commit(self, error: StoreFailed | None = None) -> list[Write]:
        """Let the oldest commit through; what was in it."""
        await asyncio.sleep(0)
        writes, done = self.commits.pop(0)
        done(error)
        await asyncio.sleep(0)
        return writes

    def statements(self, writes: list[Write]) -> list[Statement]:
        return [write.statement for write in writes]


def say(driver: ChannelDriver[State], link: FakeLink, word: str) -> None:
    driver.post_message(Ping(0, word.encode()), b"", link)
