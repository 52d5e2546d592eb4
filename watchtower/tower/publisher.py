"""Publishing justice: what `breach.plan` says, stored before it is sent, sent after every block until it is mined.

What is refused because a rival in the mempool pays more is not left for the next block, which the rival may be in: it
is split and raised until it is taken, or all that it is worth has been offered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from msgspec import structs

from wallet.bitcoin import OutPoint, Tx
from wallet.chain import BroadcastResult, ChainError, ChainSource
from wallet.db import Store
from wallet.rpc import RpcError
from watchtower.tower.alerts import Alert, Alerts
from watchtower.tower.allies import ally_of, left_to
from watchtower.tower.breach import Attempt, Breach, Planned, live_attempts, plan, targets

RACE_TARGET_BLOCKS = 2
MAX_ROUNDS = 64
"""More than it takes to split, and to double the lowest fee rate until it is past all money that there is."""
MAX_LOOKS = 64
"""So many outputs are looked for in the mempool, those that hold most first."""

_log = structlog.get_logger(__name__)
Save = Callable[[Breach, list[Alert]], Awaitable[None]]


class Publisher:
    """`save` commits a breach and what to tell of it."""

    def __init__(
        self, store: Store, source: ChainSource, alerts: Alerts, save: Save, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._source = source
        self._alerts = alerts
        self._save = save
        self._clock = clock
        self.sent = 0
        self.refused = 0

    async def act(self, breach: Breach, height: int) -> None:
        """Everything that can be done for one breach now. Layer 1's absence is not an error: it will be back."""
        try:
            rate = await self._source.fee_rate_sat_per_kw(RACE_TARGET_BLOCKS)
            left = await self._left_to_allies(breach, height, rate)
            breach = await self._resend(breach, left)
            tried: dict[tuple[OutPoint, ...], int] = {}
            for _ in range(MAX_ROUNDS):
                planned = [made for made in plan(breach, height, rate, left) if _is_due(breach, made, tried)]
                if not planned:
                    return
                refused = self.refused
                for made in planned:
                    tried[made.outpoints] = made.fee_sat
                    breach = await self._send(breach, made, height)
                if self.refused > refused:  # whose is it that pays more?
                    left = await self._left_to_allies(breach, height, rate)
        except (ChainError, RpcError) as error:
            _log.warning("justice waits for layer 1", reason=str(error), txid=breach.txid[::-1].hex())

    async def _left_to_allies(self, breach: Breach, height: int, rate: int) -> frozenset[OutPoint]:
        """What the client, or another tower of its, is about to take: not to be bid for. If layer 1 cannot tell, the
        tower relies on nobody."""
        if breach.height is None:
            return frozenset()
        found = targets(breach)
        open_ = {target.outpoint: target for target in found if target.state == "open"}
        try:
            waiting = await self._unconfirmed(sorted(open_, key=lambda place: -open_[place].penalty.amount_sat))
            allies = [(ally, tx) for tx in waiting if (ally := ally_of(breach, found, tx)) is not None]
            left = left_to([ally for ally, _ in allies], open_, height, rate)
            for ally, tx in allies:
                if left.issuperset(ally.outpoints):
                    await self._source.broadcast(tx)  # whoever made it may be away: the network must not forget it
        except RpcError as error:
            _log.warning("the mempool could not be looked into", reason=str(error))
            return frozenset()
        if left:
            _log.info("justice is left to the client's own", txid=breach.txid[::-1].hex(), outputs=len(left))
        return left

    async def _unconfirmed(self, outpoints: Sequence[OutPoint]) -> list[Tx]:
        """What spends these outputs in layer 1's mempool, each once."""
        seen: set[OutPoint] = set()
        txs = []
        for outpoint in outpoints[:MAX_LOOKS]:
            tx = None if outpoint in seen else await self._source.spending_tx_in_mempool(outpoint)
            if tx is not None:
                seen.update(txin.outpoint for txin in tx.inputs)
                txs.append(tx)
        return txs

    async def _resend(self, breach: Breach, left: frozenset[OutPoint]) -> Breach:
        """Live attempts once more: a mempool may have dropped them. A refusal is noted, so that there is another."""
        if breach.height is None:
            return breach
        for attempt in live_attempts(breach, targets(breach), left):
            result = await self._source.broadcast(Tx.parse(attempt.raw))
            if not result.ok:
                breach = await self._refused(breach, attempt, result)
        return breach

    async def _send(self, breach: Breach, made: Planned, height: int) -> Breach:
        txid = made.tx.txid()
        attempt = Attempt(txid, made.tx.serialize(), made.outpoints, made.feerate_per_kw, made.fee_sat, height)
        rest = tuple(known for known in breach.attempts if known.txid != txid)
        is_new = len(rest) == len(breach.attempts)
        breach = structs.replace(breach, attempts=(*rest, attempt))
        await self._save(breach, [])
        result = await self._source.broadcast(made.tx)
        if not result.ok:
            return await self._refused(breach, attempt, result)
        self.sent += 1
        if is_new:
            amount_sat = _amount_sat(breach, made.outpoints)
            sentence = f"Justice for {amount_sat} sat was sent at {made.feerate_per_kw / 250:.1f} sat/vB."
            facts = {"breach_txid": breach.txid[::-1].hex(), "txid": txid[::-1].hex()}
            alert = self._alerts.make("justice.sent", sentence, amount_sat=amount_sat, fee_sat=made.fee_sat, **facts)
            await self._save(breach, [alert])
        return breach

    async def _refused(self, breach: Breach, attempt: Attempt, result: BroadcastResult) -> Breach:
        self.refused += 1
        known = next((known for known in breach.attempts if known.txid == attempt.txid), attempt)
        noted = structs.replace(attempt, problem=result.reason or "refused", underpaid=result.underpaid)
        bids = [other for other in breach.attempts if other.outpoints == attempt.outpoints and other.underpaid]
        others = tuple(
            other
            for other in breach.attempts
            if other.txid != attempt.txid and not (_is_lesser(other, noted) and other.problem)
        )
        breach = structs.replace(breach, attempts=(*others, noted))
        alerts = []
        if known.problem != noted.problem and not (noted.underpaid and bids):  # a race is told of once
            txid = attempt.txid[::-1].hex()
            sentence = f"Layer 1 refuses justice transaction {txid}: {noted.problem}."
            alerts.append(
                self._alerts.make("justice.refused", sentence, txid=txid, breach_txid=breach.txid[::-1].hex())
            )
        await self._save(breach, alerts)
        return breach


def _is_due(breach: Breach, made: Planned, tried: Mapping[tuple[OutPoint, ...], int]) -> bool:
    """Each set of outputs once for each block, and again if it offers more than what was refused for its fee (sat)."""
    if made.outpoints not in tried:
        return True
    underpaid = any(attempt.underpaid and attempt.outpoints == made.outpoints for attempt in breach.attempts)
    return underpaid and made.fee_sat > tried[made.outpoints]


def _is_lesser(other: Attempt, attempt: Attempt) -> bool:
    """Of the refused attempts on the same outputs, the dearest says enough."""
    return other.outpoints == attempt.outpoints and other.feerate_per_kw <= attempt.feerate_per_kw


def _amount_sat(breach: Breach, outpoints: Sequence[OutPoint]) -> int:
    wanted = set(outpoints)
    return sum(target.penalty.amount_sat for target in targets(breach) if target.outpoint in wanted)
