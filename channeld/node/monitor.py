"""The monitor: brings home what is ours of channels that end on chain (BOLT 5).

It acts on what is in blocks and in the database alone, whether peers, the API or other channels are alive. Blocks give
facts (committed with the block), facts and the channel's knowledge give actions (`channeld.onchain`), and transactions
are stored before they are published. One task attends to one channel after the other: whenever a block came or went,
when a closing channel changed (a preimage came), and after a restart. Asking again never does harm.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import NamedTuple, assert_never

import structlog
from msgspec.structs import replace
from sqlalchemy import Connection

from channeld.channel import events as ev
from channeld.channel.state import AnyFunded, Closed, Closing, Funded
from channeld.node import monitor_store as rows
from channeld.node.bus import EventBus
from channeld.node.channels import Channels, Driver
from channeld.node.event_kinds import CANNOT_MAKE, EventKind
from channeld.node.monitor_coins import CannotMake, Maker
from channeld.node.monitor_facts import Facts
from channeld.node.monitor_publish import Publisher
from channeld.node.monitor_store import StoredClose
from channeld.node.monitor_warnings import Warnings
from channeld.node.watches import Watches
from channeld.onchain import resolution as on
from channeld.onchain.allies import ally_of, left_to
from channeld.onchain.anchor import urgent_stake_sat
from channeld.onchain.batch import Batch, Part, batches, is_joinable
from channeld.onchain.classify import ended_by, revoked_number
from channeld.onchain.facts import Fact
from channeld.onchain.known import Known, known_of
from channeld.onchain.outcomes import returns, to_look_for
from channeld.onchain.outputs import NEVER, Close
from channeld.onchain.plans import Attempt, Plan
from channeld.onchain.rates import Rates
from channeld.onchain.report import CloseReport, report
from channeld.onchain.resolve import resolve
from channeld.onchain.shortage import instead_of_child, urgent_of
from channeld.storage import Store, StoreFailed, Write
from wallet.bitcoin import OutPoint, Tx
from wallet.chain import ChainError, ChainSource, ChainUnavailable
from wallet.wallet import Wallet

log = structlog.get_logger(__name__)
TARGETS_BLOCKS = (1, 2, 3, 6, 12, 36, 144)
RACE_SECONDS = 20.0
"""So often a channel is looked at over which there is a race in the mempool."""
ABSENCE_BLOCKS = 18
"""Who missed more than these hears of it."""


class _Case:
    """A channel that ends: its driver, and its state when it was last seen to have one."""

    __slots__ = ("driver", "grumbled", "left", "orphaned", "raced", "rival", "state", "stored", "urgent_sat")

    def __init__(self, driver: Driver, state: AnyFunded, stored: StoredClose) -> None:
        self.driver = driver
        self.state = state
        self.stored = stored
        self.rival = b""
        """The peer's commitment, which layer 1 has in place of ours, in wire form."""
        self.orphaned = False
        """Layer 1 does not know the funding output: our commitment cannot be mined, whatever its child pays."""
        self.left: frozenset[OutPoint] = frozenset()
        """What towers take for us, at the last look."""
        self.raced = False
        """Something of ours is in the mempool that others may replace."""
        self.urgent_sat = 0
        """What may be lost if our commitment comes late, at the last look."""
        self.grumbled: set[EventKind] = set()
        """Troubles that were told and have not passed."""


class _Sweep(NamedTuple):
    """A plan of this round that other channels' may be joined with, and the look that it comes from."""

    case: _Case
    plan: Plan
    close: Close | None
    env: on.Env

    @property
    def channel_key(self) -> int:
        """Its channel's."""
        return self.case.driver.channel_key

    @property
    def replaced(self) -> Attempt | None:
        """What it takes the place of."""
        attempts = self.case.stored.resolution.attempts
        return next((attempt for attempt in attempts if attempt.txid == self.plan.replaces), None)

    def part(self, number: int) -> Part:
        """As a part of a batch. What layer 1 refused needs not be paid for to be evicted."""
        before = self.replaced
        return Part(number, self.plan, 0 if before is None or before.problem else before.fee_sat)


class Monitor:
    """All channels that end."""

    def __init__(
        self, store: Store, source: ChainSource, wallet: Wallet, channels: Channels, watches: Watches, bus: EventBus
    ) -> None:
        self._store = store
        self._source = source
        self._channels = channels
        self._bus = bus
        self._facts = Facts(watches)
        self._maker = Maker(wallet)
        self._publisher = Publisher(source, bus)
        self._warnings = Warnings(wallet, channels, bus)
        self._cases: dict[int, _Case] = {}
        self._stored: dict[int, StoredClose] = {}
        self._due: dict[int, None] = {}
        self._sweeps: dict[int, list[_Sweep]] = {}
        """Put aside until all channels that are due were looked at."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._rates = Rates()
        self._wallet = wallet
        self._height = 0
        self._is_on = False
        """It was in step with layer 1 since the start."""
        self._away = NEVER
        """Blocks that were caught up with at once: this node was off, or layer 1 away."""
        self._in_step = False
        """The last block that was looked at is layer 1's tip."""
        self.justice_script: Callable[[int], bytes] = lambda channel_key: b""
        """Where towers pay what they take for a channel, empty if it has none: so do our own penalties, by which each
        can tell that the other's are not a rival's."""
        self.on_looked: Callable[[Driver, Mapping[int, int]], None] = lambda driver, returns: None
        """After a channel was told all that the chain says of its HTLCs: with how deep the return of each is that came
        back, by its id."""

    # --- start

    def load(self, connection: Connection) -> None:
        """As it was when the node stopped; the channels are loaded."""
        self._facts.load(connection)
        closes = rows.load_closes(connection)
        # Of a channel that came to nothing right before that, nothing is kept.
        self._stored = {key: stored for key, stored in closes.items() if self._channels.by_key(key) is not None}
        if self._wallet.tip is not None:
            self._height = self._wallet.tip.height

    def reservations(self) -> set[int]:
        """Numbers of the wallet's coins that are in our transactions."""
        attempts = (a for stored in self._stored.values() for a in stored.resolution.attempts)
        return {attempt.reservation for attempt in attempts if attempt.reservation}

    # --- what happens around it

    def scan(self, tx: Tx, txid: bytes, height: int, position: int) -> list[Write]:
        """A transaction is in the block at `height`: rows to commit with the block."""
        return self._facts.scan(tx, txid, height, position)

    def moved(self) -> None:
        """A block came or went, and more may follow."""
        self._in_step = False

    def disconnected(self, height: int) -> list[Write]:
        """The block at `height` left the chain: rows to commit with that."""
        self._in_step = False
        return self._facts.disconnected(height)

    async def synced(self, height: int, was_away: bool) -> None:
        """The node is at layer 1's tip: time to look at every channel that ends. `was_away`: layer 1 was, before."""
        self._note_absence(height, was_away)
        self._height = height
        await self._refresh_rates()
        self._in_step = True
        self._warnings.look(self._rates, height)
        concerned = set(self._facts.channels()) | self._cases.keys()
        for driver in self._channels.all():
            if isinstance(driver.state, Closing) or driver.channel_key in concerned:
                self.touched(driver)
        for channel_key in concerned:
            if channel_key in self._cases:
                self._now_due(channel_key)
            elif self._channels.by_key(channel_key) is None:
                await self._store.commit(self._facts.forget(channel_key))  # we stopped right after it was over

    def _note_absence(self, height: int, was_away: bool) -> None:
        missed = height - self._height
        away, self._is_on = was_away or not self._is_on, True
        if self._height and away and missed > ABSENCE_BLOCKS:
            first, last = self._away = (self._height + 1, height)
            self._bus.publish(
                "chain.missed",
                f"{missed} blocks ({first} to {last}) came while this node was off or layer 1 away: what happened to "
                "channels in them is looked at now",
                first_height=first,
                last_height=last,
            )

    def touched(self, driver: Driver) -> None:
        """A channel that ends has changed; its rows are on their way to the database."""
        case = self._cases.get(driver.channel_key)
        if isinstance(driver.state, Closed) and case is not None:
            self._now_due(driver.channel_key)
        if not isinstance(driver.state, Funded):
            return
        if case is None:
            stored = self._stored.get(driver.channel_key) or StoredClose(on.Resolution(), None, False)
            case = self._cases[driver.channel_key] = _Case(driver, driver.state, stored)
        case.state = driver.state
        self._now_due(driver.channel_key)

    def forgotten(self, channel_key: int) -> list[Write]:
        """A channel never held anything of ours, and its row goes: the rows about it that have to go with it."""
        self._cases.pop(channel_key, None)
        self._stored.pop(channel_key, None)
        self._due.pop(channel_key, None)
        return self._facts.forget(channel_key)

    async def _refresh_rates(self) -> None:
        try:
            found = [(target, await self._source.fee_rate_sat_per_kw(target)) for target in TARGETS_BLOCKS]
        except ChainUnavailable as error:
            log.debug("no fee estimates", reason=str(error))
            return
        self._rates = Rates(tuple(found))

    def unclaimed_sat(self, channel_key: int) -> int | None:
        """What is ours of a channel that ended and not in the wallet yet; None while nothing is in the chain."""
        stored = self._stored.get(channel_key)
        if stored is None or stored.report is None:
            return None
        return sum(o.amount_sat for o in stored.report.outputs if o.status in ("waiting", "pending"))

    async def explain(self, channel_id: bytes) -> CloseReport | None:
        """What there is to tell of a channel's end, also long after it is over."""
        return await self._store.read(lambda connection: rows.load_report(connection, channel_id))

    # --- the task

    async def run(self) -> None:
        """Attends to channels, for ever. What fails for one does not stop the others, and is tried again at the next
        block."""
        while True:
            if not self._due:
                self._idle.set()
            await self._woken()
            while self._due and self._in_step:
                await self._round()

    async def _woken(self) -> None:
        """Until something is due. Races are looked at between blocks, too: whoever has replaced a transaction of ours
        in the mempool, and then replaced that by something else, has to do it again and again."""
        is_racing = any(case.raced for case in self._cases.values())
        try:
            async with asyncio.timeout(RACE_SECONDS if is_racing else None):
                await self._wake.wait()
        except TimeoutError:
            for channel_key, case in self._cases.items():
                if case.raced:
                    self._now_due(channel_key)
        self._wake.clear()

    async def _round(self) -> None:
        """Each channel that is due, by itself, those with HTLCs that expire soon first: the wallet may not have coins
        for all. Then what they want to sweep, together where that is cheaper."""
        for channel_key in sorted(self._due, key=self._first_expiry):
            if not self._in_step:
                break  # what was planned may be wrong now: a look at the new tip follows
            self._due.pop(channel_key, None)
            case = self._cases.get(channel_key)
            if case is not None:
                await self._guarded(case, self._attend(case))
        sweeps = [sweep for planned in self._sweeps.values() for sweep in planned]
        self._sweeps.clear()
        if self._in_step:
            await self._sweep_all([sweep for sweep in sweeps if self._cases.get(sweep.channel_key) is sweep.case])

    def _first_expiry(self, channel_key: int) -> float:
        case = self._cases.get(channel_key)
        htlcs = () if case is None else case.state.commitments.local.spec.htlcs.values()
        return min((htlc.cltv_expiry for htlc in htlcs), default=math.inf)

    async def _guarded(self, case: _Case, work: Coroutine[None, None, None]) -> None:
        """What fails for one channel is heard of, and does not stop the others."""
        try:
            await work
        except ChainUnavailable as error:
            log.warning("layer 1 is away: closing goes on when it is back", reason=str(error))
        except StoreFailed:
            raise  # the node stops: nothing may be done any more that is not stored first
        except Exception as error:
            self._failed(case, error)

    def _failed(self, case: _Case, error: Exception) -> None:
        """A bug must not keep the money of other channels waiting, and must be heard."""
        log.critical("the monitor failed", channel=case.driver.channel_id.hex(), exc_info=error)
        self._grumble(case, "monitor.failed", f"closing channel {case.driver.channel_id.hex()} failed: {error!r}")

    async def wait_idle(self) -> None:
        """Until nothing is due: after a block, until everything was done that it led to."""
        await self._idle.wait()

    def _now_due(self, channel_key: int) -> None:
        self._due[channel_key] = None
        self._idle.clear()
        self._wake.set()

    async def _attend(self, case: _Case) -> None:
        """One look at one channel."""
        driver, state = case.driver, case.state
        self._sweeps.pop(driver.channel_key, None)
        ended = isinstance(driver.state, Closed)
        if not isinstance(state, Closing) and driver.failure is None and not ended:
            return  # it will be, as soon as it has heard of the spend, and then comes back here
        if ended and case.stored.over:
            await self._forget(driver.channel_key)
            return
        facts = self._facts.of(driver.channel_key)
        if ended and not facts:
            await self._came_to_nothing(case)
            return
        known = replace(await self._know(driver, state, facts), rival_tx=case.rival)
        case.urgent_sat = urgent_stake_sat(known)
        left = await self._left_to_towers(case, known, facts)
        env = on.Env(known, facts, self._height, self._rates, self._away, left)
        step = on.advance(case.stored.resolution, on.Looked(), env)
        # Also what this look was based on (a preimage, say) is durable after this: commits come in order.
        await self._keep(case, case.stored._replace(resolution=step.state))
        await self._act(case, step, env)
        case.raced = step.close is not None and on.is_raced(case.stored.resolution, step.close)
        await self._look_into_mempool(driver, step, env)
        self.on_looked(driver, {} if step.close is None else returns(known, step.close, env.height))
        over = ended or on.Over() in step.actions
        if step.close is not None and (over or driver.channel_key not in self._sweeps):
            await self._explain(case, step.close, env, over)
        if ended:
            await self._forget(driver.channel_key)
        elif over:
            # If we crash before the channel has heard of it, this comes again.
            driver.post(ev.OutputsResolved())

    async def _came_to_nothing(self, case: _Case) -> None:
        """The funding output will never exist: what was to lift our commitment is not needed."""
        reservations = {attempt.reservation for attempt in case.stored.resolution.attempts}
        writes = [row for number in sorted(reservations) for row in self._maker.release(number)]
        await self._keep(case, StoredClose(on.Resolution(), None, True), *writes)
        await self._forget(case.driver.channel_key)

    async def _left_to_towers(self, case: _Case, known: Known, facts: tuple[Fact, ...]) -> frozenset[OutPoint]:
        """Of a cheater's outputs, those that a tower of ours is about to take, and should."""
        script = self.justice_script(case.driver.channel_key)
        close = resolve(known, facts) if script and revoked_number(known, facts) is not None else None
        if close is None:
            return frozenset()
        outpoints = [output.outpoint for output in close.outputs if output.claimable and output.outpoint is not None]
        ours = case.stored.resolution.fees
        try:
            txs = await self._publisher.unconfirmed(outpoints)
            found = (ally_of(known, facts, tx, script, self._height) for tx in txs if tx.txid() not in ours)
            allies = [ally for ally in found if ally is not None]
            left = left_to(allies, self._rates, self._height)
            for ally in allies:
                if left >= ally.outpoints:
                    await self._source.broadcast(ally.tx)  # the tower may be away: the network must not forget it
        except ChainError as error:
            log.warning("the mempool could not be looked into", reason=str(error))
            return frozenset()
        if left and not case.left:
            channel_id = case.driver.channel_id.hex()
            self._bus.publish(
                "onchain.left_to_tower",
                f"channel {channel_id}: a watchtower's transaction takes {len(left)} of the cheater's outputs for us, "
                "at a fee rate that will do: it is left at that",
                channel_id=channel_id,
                outputs=len(left),
            )
        case.left = left
        return left

    async def _look_into_mempool(self, driver: Driver, step: on.Step, env: on.Env) -> None:
        """Where our own claims of expired HTLCs do not get through, the peer's may wait there to outlast the incoming
        side."""
        outputs = [] if step.close is None else to_look_for(env.known, step.close, env.height)
        try:
            preimages = await self._publisher.preimages(outputs)
        except ChainError as error:
            log.warning("the mempool could not be looked into", reason=str(error))
            return
        for id, htlc in env.known.offered.items():
            if htlc.payment_hash in preimages:
                driver.post(ev.HtlcOnChain(id, preimages[htlc.payment_hash]))

    async def _know(self, driver: Driver, state: AnyFunded, facts: tuple[Fact, ...]) -> Known:
        point = driver.secrets.per_commitment_point(state.commitments.local.index)
        known = known_of(state, point)
        kind, number = ended_by(known, facts)
        if number is None or kind not in ("revoked", "unknown"):
            return known
        key = driver.channel_key
        kept = await self._store.read(lambda connection: rows.load_revocable(connection, key, number))
        # Its number does not tell whose it is: after a loss of data ours may be among those that the peer has revoked.
        return replace(known_of(state, point, kept), own_point=driver.secrets.per_commitment_point(number))

    async def _keep(self, case: _Case, now: StoredClose, *writes: Write) -> None:
        """Store what has changed, and wait until that and all before it is durable."""
        await self._store.commit([*writes, *self._changed(case, now)])

    def _changed(self, case: _Case, now: StoredClose) -> list[Write]:
        """What there is to store, to be committed at once."""
        if now == case.stored:
            return []
        case.stored = self._stored[case.driver.channel_key] = now
        return [rows.save_close(case.driver.channel_key, now)]

    async def _explain(self, case: _Case, close: Close, env: on.Env, over: bool) -> None:
        """What there is to tell now."""
        before, resolution = case.stored.report, case.stored.resolution
        funding_sat = env.known.params.funding_sat
        told = report(
            close, funding_sat, resolution.attempts, resolution.fees, env.rates, over=over, away=resolution.away
        )
        await self._keep(case, StoredClose(resolution, told, over))
        self._tell(case.driver, before, told)

    def _tell(self, driver: Driver, before: CloseReport | None, now: CloseReport) -> None:
        """Events for what changed in a report, once it can be read."""
        statuses = {} if before is None else {output.outpoint: output.status for output in before.outputs}
        for output in now.outputs:
            if output.outpoint is not None and statuses.get(output.outpoint) != output.status:
                self._bus.publish(
                    "onchain.output",
                    f"{output.kind} of channel {driver.channel_id.hex()}, {output.amount_sat} sat: "
                    f"{output.status_text}",
                    channel_id=driver.channel_id.hex(),
                    outpoint=str(output.outpoint),
                    status=output.status,
                    amount_sat=output.amount_sat,
                )

    async def _act(self, case: _Case, step: on.Step, env: on.Env) -> None:
        """Carries out what a look led to, in order."""
        driver = case.driver
        for action in step.actions:
            match action:
                case on.Tell(outcome=outcome):
                    driver.post(ev.HtlcOnChain(outcome.id, outcome.payment_preimage))
                case on.Alarm(kind=kind, sentence=sentence):
                    channel_id = driver.channel_id.hex()
                    self._bus.publish(kind, f"channel {channel_id}: {sentence}", channel_id=channel_id)
                case on.Release(reservation=reservation):
                    await self._store.commit(self._maker.release(reservation))
                case on.Publish(attempt=attempt):
                    await self._answered(case, attempt, await self._publisher.publish(attempt), env)
                case on.PublishCommitment(child=child):
                    await self._publish_commitment(case, child, env)
                case on.AskAbout(attempt=attempt):
                    await self._ask_about(case, attempt, env)
                case on.PublishSeen(raw=raw):
                    await self._source.broadcast(Tx.parse(raw))
                case on.Make(plan=plan) if case.orphaned and plan.group == "anchor":
                    pass  # it would keep a coin of the wallet's for nothing, as long as the peer likes
                case on.Make(plan=plan):
                    sweep = _Sweep(case, plan, step.close, env)
                    if is_joinable(plan):
                        self._sweeps.setdefault(driver.channel_key, []).append(sweep)
                    else:
                        await self._make(sweep)
                case on.Over():
                    pass  # the report goes first
                case _:
                    assert_never(action)

    async def _publish_commitment(self, case: _Case, child: Attempt | None, env: on.Env) -> None:
        offered = await self._publisher.publish_commitment(env.known, child)
        case.orphaned = offered.orphaned
        if offered.rival != case.rival:
            case.rival = offered.rival
            self._now_due(case.driver.channel_key)
        if child is not None and offered.useless_child:
            await self._ask_about(case, child, env)

    async def _ask_about(self, case: _Case, attempt: Attempt, env: on.Env) -> None:
        if not await self._publisher.has(attempt):
            await self._fold(case, on.Gone(attempt.txid), env)

    async def _fold(self, case: _Case, event: on.Event, env: on.Env) -> None:
        """Store what an event leads to, then do it."""
        step = on.advance(case.stored.resolution, event, env)
        await self._keep(case, case.stored._replace(resolution=step.state))
        await self._act(case, step, env)

    async def _answered(self, case: _Case, attempt: Attempt, answer: on.Answered, env: on.Env) -> None:
        if (answer.problem, answer.underpaid) == (attempt.problem, attempt.underpaid):
            return
        step = on.advance(case.stored.resolution, answer, env)
        await self._keep(case, case.stored._replace(resolution=step.state))
        if answer.underpaid or (attempt.others and not attempt.problem):
            # A rival may have to be outbid before the next block, or the channel has to go on alone.
            self._now_due(case.driver.channel_key)

    async def _sweep_all(self, sweeps: Sequence[_Sweep]) -> None:
        """One transaction for several channels where they can share one, else each by itself. What there is to tell of
        them waited for that."""
        for batch in batches([sweep.part(number) for number, sweep in enumerate(sweeps)]):
            members = [sweeps[part.number] for part in batch.parts]
            attempts = await self._make_together(batch, members) if len(members) > 1 else None
            if attempts is not None:
                await self._guarded(members[0].case, self._publish_together(members, attempts))
                continue
            for sweep in members:
                await self._guarded(sweep.case, self._sweep_alone(sweep))
        for sweep in sweeps:
            if sweep.close is not None:
                await self._guarded(sweep.case, self._explain(sweep.case, sweep.close, sweep.env, False))

    async def _sweep_alone(self, sweep: _Sweep) -> None:
        alone = next(batches([sweep.part(0)]), None)
        if alone is not None:
            await self._make(sweep._replace(plan=replace(sweep.plan, min_fee_sat=alone.min_fee_sat)))

    async def _make_together(self, batch: Batch, members: Sequence[_Sweep]) -> list[Attempt] | None:
        """None if it cannot be made, for whatever reason: one channel's must not keep the others' money waiting."""
        try:
            return await self._maker.make_batch(batch, [m.case.driver.secrets for m in members], self._height)
        except Exception as error:
            log.error("sweeping several channels together failed: each goes by itself", exc_info=error)
            return None

    async def _publish_together(self, members: Sequence[_Sweep], attempts: Sequence[Attempt]) -> None:
        """It is durable for all channels before it is published for any."""
        changed: list[Write] = []
        for sweep, attempt in zip(members, attempts, strict=True):
            stored = sweep.case.stored
            step = on.advance(stored.resolution, on.Made(sweep.plan, attempt), sweep.env)
            changed += self._changed(sweep.case, stored._replace(resolution=step.state))
        await self._store.commit(changed)
        answer = await self._publisher.publish(attempts[0])
        for sweep, attempt in zip(members, attempts, strict=True):
            await self._guarded(sweep.case, self._answered(sweep.case, attempt, answer, sweep.env))

    async def _make(self, sweep: _Sweep) -> bool:
        """Whether it came about."""
        case, plan, close, env = sweep
        if plan.group == "penalty" and not plan.script_pubkey:
            plan = replace(plan, script_pubkey=self.justice_script(case.driver.channel_key))
        resolution = case.stored.resolution
        number = None if close is None else close.commitment_number
        try:
            made = await self._maker.make(plan, env.known, number, case.driver.secrets, self._height, sweep.replaced)
        except CannotMake as error:
            if error.short_sat and await self._make_with_coins_in_use(sweep):
                return True
            if error.short_sat and await self._make_with_anothers_coin(sweep, error.short_sat):
                return True
            self._grumble(case, CANNOT_MAKE[plan.group], f"{plan.group} transaction not made: {error}")
            return False
        case.grumbled.discard(CANNOT_MAKE[plan.group])
        step = on.advance(resolution, on.Made(plan, made.attempt), env)
        await self._keep(case, case.stored._replace(resolution=step.state), *made.writes)
        if plan.group == "anchor" and not env.known.rival_tx:
            await self._publish_commitment(case, made.attempt, env)
        else:
            await self._answered(case, made.attempt, await self._publisher.publish(made.attempt), env)
        return True

    async def _make_with_coins_in_use(self, sweep: _Sweep) -> bool:
        """Something in place of a plan that the wallet has no coins for."""
        step = on.advance(sweep.case.stored.resolution, on.CannotPay(sweep.plan), sweep.env)
        for action in step.actions:
            if isinstance(action, on.Make) and await self._make(sweep._replace(plan=action.plan)):
                return True
        return False

    async def _make_with_anothers_coin(self, sweep: _Sweep, short_sat: int) -> bool:
        """With the coin of another channel's child that waits for less than this plan does."""
        urgent_sat = urgent_of(sweep.plan, sweep.env.known)
        waiting = [
            (case, child)
            for case in self._cases.values()
            if case is not sweep.case and case.urgent_sat < urgent_sat
            for child in case.stored.resolution.attempts
            if child.group == "anchor" and self._maker.reserved_sat(child.reservation) >= short_sat
        ]
        for case, child in sorted(waiting, key=lambda found: (found[0].urgent_sat, found[1].fee_sat)):
            plan = instead_of_child(sweep.plan, child)
            # BIP 125, rule 2: a child of another commitment that is in no block cannot replace it.
            is_stuck = sweep.plan.group == "anchor" and await self._publisher.has(child)
            if plan is not None and not is_stuck:
                await self._fold(case, on.Gone(child.txid), sweep.env)
                return await self._make(sweep._replace(plan=plan))
        return False

    def _grumble(self, case: _Case, kind: EventKind, sentence: str) -> None:
        """Tell a trouble once until it has passed."""
        if kind not in case.grumbled:
            case.grumbled.add(kind)
            channel_id = case.driver.channel_id.hex()
            self._bus.publish(kind, f"channel {channel_id}: {sentence}", channel_id=channel_id)

    async def _forget(self, channel_key: int) -> None:
        """The channel is over: only the report stays."""
        del self._cases[channel_key]
        self._stored.pop(channel_key, None)
        await self._store.commit(self._facts.forget(channel_key))
