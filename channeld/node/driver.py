"""The driver of one channel: the only code around the machine that waits.

`post` puts an event into the channel's inbox. When the channel is idle, everything that waits is stepped through, one
signature covers it, state and rows are committed in one transaction, and only then are the effects performed, in order.
While a commit is under way events pile up and make the next batch: there is no task per HTLC.
What we offer while the peer's revocation is awaited cannot be signed for before that comes, so it waits for it, though
not for long: one commit instead of many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar, assert_never

import structlog

from channeld.bolt.messages import Message, WarningMessage, encode
from channeld.bolt.messages.control import told_to_peer
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.channel import writes as wr
from channeld.channel.env import Env
from channeld.storage import StoreFailed, Write
from channeld.storage.rows import channel_write

log = structlog.get_logger(__name__)
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
CommandDone = Callable[[Exception | None], None]
GATHER_SECONDS = 0.01
"""So long what we offer waits for the peer's revocation, without which it cannot be signed for."""
MOST_GATHERED = 200
REVOCATION_SECONDS = 60.0
"""So long a peer may take to answer our signature before it is asked again, on a new connection."""
MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Of a peer's messages that wait for a channel's last commit. Who keeps to the rules never has as much under way: 483
HTLCs, and the answers to 483 of ours, are less."""
MESSAGE_BYTES = 2048
"""What a message that waits takes beside its own length."""
WHILE_FROZEN = (
    ev.NewBlock,
    ev.FundingDepth,
    ev.FundingSpent,
    ev.HtlcOnChain,
    ev.OutputsResolved,
    ev.ForceClose,
    ev.FulfillHtlc,
)
"""What a frozen channel goes on taking: its money is watched over (BOLT 5) and its deadlines are kept."""


class Link(Protocol):
    """A connection to the peer, after `init`. What is sent on a closed one is dropped."""

    def send(self, data: bytes) -> None: ...
    def close(self, reason: str) -> None: ...
    def hold(self, holder: object) -> None:
        """Read nothing more from the peer until `let_go`: TCP slows it down. Each holder counts once."""
        ...

    def let_go(self, holder: object) -> None:
        """Read on, once nobody holds any more."""
        ...

    @property
    def is_held(self) -> bool:
        """Whether anybody does."""
        ...


class Transition(Protocol[S_co]):
    """What `step` returns."""

    @property
    def state(self) -> S_co: ...
    @property
    def effects(self) -> Sequence[fx.Effect]: ...
    @property
    def writes(self) -> Sequence[wr.Write]: ...


class Machine(Protocol[S]):
    """The pure functions of `channeld.channel.machine`."""

    def step(self, state: S, event: ev.Event, env: Env) -> Transition[S]: ...
    def can_sign(self, state: S) -> bool: ...
    def awaits_revocation(self, state: S) -> bool: ...
    def awaited_commitment(self, state: S) -> int | None: ...
    def preparations(self, state: S, env: Env) -> list[Callable[[], object]]: ...


class ChannelFrozen(Exception):
    """The channel takes no more messages and commands: a bug or the database stopped it. The text says what."""


class Reaction(NamedTuple):
    """What the node makes of an effect before it is durable: rows for the same transaction, and events that this
    channel steps through in the same batch (settling an HTLC that was just locked in, say)."""

    writes: Iterable[Write] = ()
    events: Iterable[ev.Event] = ()


NO_REACTION = Reaction()


class Host(Protocol[S]):
    """What the node does for its drivers."""

    def env(self, driver: ChannelDriver[S]) -> Env:
        """The world, for one batch."""
        ...

    def rows(self, driver: ChannelDriver[S], before: S | None) -> Iterable[Write]:
        """The channel's own row, if its state differs from `before` (None: at the start)."""
        ...

    def react(self, driver: ChannelDriver[S], effect: fx.Effect) -> Reaction:
        """Before the commit. May change memory: the commit follows, or the node stops."""
        ...

    def perform(self, driver: ChannelDriver[S], effect: fx.Effect) -> None:
        """After the commit, for all effects but sending and disconnecting."""
        ...

    def batch_done(self, driver: ChannelDriver[S]) -> None:
        """A batch is durable and its effects are performed."""
        ...

    def submit(self, writes: Sequence[Write], done: Callable[[StoreFailed | None], None]) -> None:
        """Commit, then `done`; in order."""
        ...

    def read_ahead(self, driver: ChannelDriver[S], htlc_id: int) -> None:
        """The peer offered this HTLC: it will be locked in. There is time to look at it."""
        ...

    def frozen(self, driver: ChannelDriver[S], event: object, error: BaseException) -> None:
        """A bug stopped this channel, over an event or an effect; tell the operator."""
        ...

    def violated(self, driver: ChannelDriver[S], violation: ev.ProtocolViolation) -> None:
        """The peer broke a rule; tell the operator."""
        ...


class _Item(NamedTuple):
    event: ev.Event
    link: Link | None
    """The connection that a message or `Connected` came with."""
    writes: Iterable[Write]
    done: CommandDone | None


class _Batch:
    """What one run through the inbox collects."""

    __slots__ = ("done", "effects", "received", "writes")

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.effects: list[tuple[fx.Effect, Link | None]] = []
        self.done: list[CommandDone] = []
        self.received: list[int] = []


class ChannelDriver(Generic[S]):
    """One channel: its state in memory, its inbox, its connection if there is one."""

    def __init__(
        self,
        machine: Machine[S],
        host: Host[S],
        state: S,
        channel_key: int,
        channel_id: bytes,
        adds: MutableMapping[tuple[bool, int], bytes] | None = None,
    ) -> None:
        self.state = state
        self.settled: S | None = None
        """The state whose batch was performed last: durable, and what follows from it was said. Whoever speaks of the
        channel beside its driver must not know more."""
        self.channel_key = channel_key
        self.channel_id = channel_id
        self.adds = adds if adds is not None else {}
        self.link: Link | None = None
        self.failure: str | None = None
        """Why the channel is frozen, if it is."""
        self._machine = machine
        self._host = host
        self._inbox: deque[_Item] = deque()
        self._waiting_bytes = 0
        self._held: set[Link] = set()
        """Connections that are not read, because too much of what came over them waits."""
        self._busy = False
        self._has_time = True
        """Everything in the inbox is an HTLC to offer."""
        self._gathering: asyncio.TimerHandle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        """When the peer's revocation is looked for."""
        self._deaf_to: Link | None = None
        self._unstorable = False
        """The database failed: memory is ahead of it, the node stops."""
        self._loop = asyncio.get_running_loop()

    # --- the inbox

    def post(self, event: ev.Event, writes: Iterable[Write] = (), done: CommandDone | None = None) -> None:
        """Queue an event. `writes` are read when the channel accepts it, and committed with it. `done(None)` is called
        when that is durable, `done(error)` when the channel refused it (CommandRejected), cannot take it
        (ChannelFrozen), or took it and the commit failed (StoreFailed: the node stops, and knows more at its next
        start)."""
        self._put(_Item(event, None, writes, done))

    def post_message(self, message: Message, raw: bytes, link: Link) -> None:
        """Queue a message of the peer's. It is dropped if `link` is not the channel's connection by then. With
        MAX_WAITING_BYTES in the inbox the peer is not read any more, until the channel takes them."""
        self.post_caused(ev.PeerMessage(message, raw), len(raw), link)

    def post_caused(self, event: ev.Event, size_bytes: int, link: Link) -> None:
        """Queue an event that a message of the peer's is, or led to, which came over `link`."""
        if self._put(_Item(event, link, (), None)):
            self._waiting_bytes += size_bytes + MESSAGE_BYTES
            if self._waiting_bytes > MAX_WAITING_BYTES and link not in self._held:
                self._held.add(link)
                link.hold(self)

    def post_connected(self, link: Link, remote_features: frozenset[int]) -> None:
        """From this event on, messages go out over `link`."""
        self._put(_Item(ev.Connected(remote_features), link, (), None))

    def post_disconnected(self, link: Link) -> None:
        """The connection is gone. One that came and went while the channel was busy is as if it never was: whoever
        calls again and again does not fill the inbox."""
        if any(item.link is link and isinstance(item.event, ev.Connected) for item in self._inbox):
            self._inbox = deque(item for item in self._inbox if item.link is not link)
        else:
            self.post(ev.Disconnected())

    def _put(self, item: _Item) -> bool:
        """Whether the item is in the inbox now."""
        if not self._takes(item):
            if item.done is not None:
                item.done(ChannelFrozen(str(self.failure)))
            return False
        self._inbox.append(item)
        self._has_time = self._has_time and isinstance(item.event, ev.AddHtlc)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin)
        elif self._gathering is not None and not self._may_gather():
            self._gathering.cancel()
            self._gathering = None
            self._loop.call_soon(self._run)
        return True

    def _may_gather(self) -> bool:
        return self._has_time and len(self._inbox) < MOST_GATHERED

    def _begin(self) -> None:
        """Runs the batch, or lets it gather: whatever else comes than what we offer ends that."""
        if self._may_gather() and self.link is not None and self._machine.awaits_revocation(self.state):
            self._gathering = self._loop.call_later(GATHER_SECONDS, self._run)
        else:
            self._run()

    def _read_on(self) -> None:
        """The inbox is about to be empty."""
        self._waiting_bytes = 0
        while self._held:
            self._held.pop().let_go(self)

    def _takes(self, item: _Item) -> bool:
        return self.failure is None or (isinstance(item.event, WHILE_FROZEN) and not self._unstorable)

    def start(self, effects: Sequence[fx.Effect], writes: Sequence[wr.Write], extra: Sequence[Write] = ()) -> None:
        """Commit and perform what `machine.initiate`, `accept` or `resume` led to; the state is set already. `extra`
        rows go into the same transaction. A bug in what the node makes of it stops this channel, not the others."""
        batch = _Batch()
        batch.writes.extend(extra)
        self._busy = True
        env = self._host.env(self)
        self._keep(writes, batch)
        self._react(effects, env, batch, starts=True)
        batch.writes.extend(self._host.rows(self, None))
        self._host.submit(batch.writes, lambda error: self._committed(batch, error))

    # --- a batch

    def _run(self) -> None:
        batch = _Batch()
        before = self.state
        self._gathering = None
        self._has_time = True
        self._read_on()
        try:
            env = self._host.env(self)
            while self._inbox:
                self._take(self._inbox.popleft(), env, batch)
            if self.failure is None and self.link is not None and self._machine.can_sign(self.state):
                self._take(_Item(ev.Sign(), None, (), None), env, batch)
            batch.writes.extend(self._host.rows(self, before))
        except Exception as error:
            # It cannot even be stored: what is on the disk is what counts.
            self.state = before
            self._freeze("batch", error)
            for done in batch.done:
                done(ChannelFrozen(str(self.failure)))
            self._next()
            return
        self._host.submit(batch.writes, lambda error: self._committed(batch, error))
        if self.failure is None:
            read_ahead = [partial(self._host.read_ahead, self, htlc_id) for htlc_id in batch.received]
            jobs: deque[Callable[[], object]] = deque((*self._machine.preparations(self.state, env), *read_ahead))
            # What is durable already is said in the next turn of the event loop, and goes out in the one after that.
            self._loop.call_soon(lambda: self._loop.call_soon(self._work_ahead, jobs))

    def _work_ahead(self, jobs: deque[Callable[[], object]]) -> None:
        """While the writer writes and the peer computes: one job a turn of the event loop, because what has become
        durable comes first. They only fill caches."""
        if not jobs:
            return
        try:
            jobs.popleft()()
        except Exception:  # it shows again where it counts
            log.warning("nothing came of working ahead", channel=self.channel_id.hex(), exc_info=True)
        if jobs:
            self._loop.call_soon(self._work_ahead, jobs)

    def _take(self, item: _Item, env: Env, batch: _Batch) -> None:
        event = item.event
        if isinstance(event, ev.PeerMessage) and (item.link is not self.link or item.link is self._deaf_to):
            return
        checkpoint = (self.state, len(batch.writes), len(batch.effects))
        if isinstance(event, ev.Connected):
            self.link = item.link
        try:
            try:
                self._step(event, env, batch)
            except ev.ProtocolViolation as violation:
                self._violated(violation, env, batch)
        except ev.CommandRejected as rejection:
            if item.done is not None:
                item.done(rejection)
            else:
                log.warning(
                    "command rejected", channel=self.channel_id.hex(), refused=repr(event), reason=str(rejection)
                )
            return
        except Exception as error:
            self.state, writes, effects = checkpoint
            del batch.writes[writes:], batch.effects[effects:]
            self._freeze(event, error)
            if item.done is not None:
                item.done(ChannelFrozen(str(self.failure)))
            return
        if isinstance(event, ev.Disconnected):
            self.link = None
        batch.writes.extend(item.writes)
        if item.done is not None:
            batch.done.append(item.done)

    def _step(self, event: ev.Event, env: Env, batch: _Batch) -> None:
        """One transition, and the node's reactions to its effects, which may be further events."""
        transition = self._machine.step(self.state, event, env)
        self.state = transition.state
        self._keep(transition.writes, batch)
        self._react(transition.effects, env, batch)

    def _keep(self, writes: Sequence[wr.Write], batch: _Batch) -> None:
        for write in writes:
            if isinstance(write, wr.SaveAdd):
                self.adds[write.offered, write.id] = write.raw
                if not write.offered:
                    batch.received.append(write.id)
            elif isinstance(write, wr.ForgetAdd):
                self.adds.pop((write.offered, write.id), None)
            batch.writes.append(channel_write(self.channel_key, write))

    def _react(self, effects: Iterable[fx.Effect], env: Env, batch: _Batch, starts: bool = False) -> None:
        further: list[ev.Event] = []
        for effect in effects:
            batch.effects.append((effect, self.link))
            try:
                reaction = self._host.react(self, effect)
            except Exception as error:
                if self.failure is None and not starts:
                    raise
                # It must not keep the channel from being closed, or from what it promised before a restart.
                self._freeze(effect, error)
                batch.effects.pop()
                continue
            batch.writes.extend(reaction.writes)
            further.extend(reaction.events)
        for event in further:
            try:
                self._step(event, env, batch)
            except ev.CommandRejected as rejection:
                log.warning(
                    "answer rejected", channel=self.channel_id.hex(), refused=repr(event), reason=str(rejection)
                )
            except Exception as error:
                if not starts:
                    raise
                self._freeze(event, error)

    def _violated(self, violation: ev.ProtocolViolation, env: Env, batch: _Batch) -> None:
        """The one place where a peer's mistake becomes a message (BOLT 1, "The error and warning Messages")."""
        self._host.violated(self, violation)
        self._deaf_to = self.link
        data = told_to_peer(violation.reason, violation.tx).encode()
        match violation.action:
            case "warning":
                batch.effects.append((fx.Send(WarningMessage(self.channel_id, data)), self.link))
                batch.effects.append((fx.Disconnect(violation.reason), self.link))
            case "error":  # the machine sends `error` itself, when it fails the channel
                try:
                    self._step(ev.ForceClose(violation.reason, tx=violation.tx), env, batch)
                except ev.CommandRejected:
                    self._step(ev.ForgetChannel(violation.reason, violation.tx), env, batch)
            case "disconnect":
                batch.effects.append((fx.Disconnect(violation.reason), self.link))
            case _:
                assert_never(violation.action)

    def _freeze(self, cause: object, error: BaseException) -> None:
        if self.failure is not None:
            log.critical("bug in a frozen channel", channel=self.channel_id.hex(), cause=repr(cause), exc_info=error)
            return
        self.failure = f"{type(error).__name__}: {error}"
        self._host.frozen(self, cause, error)
        waiting, self._inbox = self._inbox, deque()
        self._read_on()
        for item in waiting:  # nobody comes back to the others: whoever asked must hear it now
            self._put(item)

    # --- after the commit

    def _committed(self, batch: _Batch, error: StoreFailed | None) -> None:
        if error is not None:
            self.failure, self._unstorable = str(error), True
            for done in batch.done:
                done(error)
            return
        for effect, link in batch.effects:
            try:
                self._perform(effect, link)
            except Exception as bug:  # the other effects were promised too
                self._freeze(effect, bug)
        for done in batch.done:
            done(None)
        self.settled = self.state
        self._host.batch_done(self)
        self._expect_revocation()
        self._next()

    def _expect_revocation(self) -> None:
        """A peer that answers pings and does not revoke would keep what we offer from ever being signed for, and what
        was to be forwarded with it. What got lost is said again on a new connection, and what was not signed for goes
        another way. One timer for many signatures: nothing is cancelled when a revocation comes."""
        if self._overdue is not None or self.link is None or self.failure is not None:
            return
        number = self._machine.awaited_commitment(self.state)
        if number is not None:
            look = partial(self._look_for_revocation, self.link, number)
            self._overdue = self._loop.call_later(REVOCATION_SECONDS, look)

    def _look_for_revocation(self, link: Link, number: int) -> None:
        self._overdue = None
        is_owed = self.link is link and self._machine.awaited_commitment(self.state) == number
        if not is_owed or self._busy or link.is_held:  # it may have come, and not been looked at
            self._expect_revocation()
            return
        reason = f"no revoke_and_ack came in {REVOCATION_SECONDS:g} seconds"
        link.send(encode(WarningMessage(self.channel_id, reason.encode())))
        link.close(reason)

    def _perform(self, effect: fx.Effect, link: Link | None) -> None:
        match effect:
            case fx.Send(message):
                if link is not None:
                    link.send(encode(message))
            case fx.SendRaw(data):
                if link is not None:
                    link.send(data)
            case fx.Disconnect(reason):
                if link is not None:
                    link.close(reason)
            case _:
                self._host.perform(self, effect)

    def _next(self) -> None:
        if self._inbox:
            self._loop.call_soon(self._begin)
        else:
            self._busy = False
