"""Offering the monitor's transactions to layer 1: alone, or our commitment as a package with the child that pays for
it."""

from __future__ import annotations

import structlog

from channeld.node.bus import EventBus
from channeld.onchain.known import Known
from channeld.onchain.plans import Attempt
from wallet.bitcoin import Tx
from wallet.chain import BroadcastResult, ChainSource

log = structlog.get_logger(__name__)


class Publisher:
    """Both methods raise ChainUnavailable."""

    def __init__(self, source: ChainSource, bus: EventBus) -> None:
        self._source = source
        self._bus = bus
        self._last: dict[bytes, str] = {}

    async def publish(self, attempt: Attempt) -> str:
        """Layer 1's reason to refuse it, or nothing."""
        result = await self._source.broadcast(Tx.parse(attempt.raw))
        self._report(attempt.txid, attempt.group, result, attempt.feerate_per_kw)
        return "" if result.ok else result.reason or "refused"

    async def publish_commitment(self, known: Known, child: Attempt | None) -> None:
        """Our commitment alone if it is accepted so, and in any case with its child."""
        commitment = Tx.parse(known.local_tx)
        if child is None:
            result = await self._source.broadcast(commitment)
            self._report(commitment.txid(), "commitment", result, None)
            return
        results = await self._source.broadcast_package([commitment, Tx.parse(child.raw)])
        self._report(commitment.txid(), "commitment", results[0], None)
        self._report(child.txid, "anchor", results[-1], child.feerate_per_kw)

    def _report(self, txid: bytes, what: str, result: BroadcastResult, feerate_per_kw: int | None) -> None:
        answer = f"{result.outcome.value} {result.reason}".strip()
        if self._last.get(txid) == answer:
            return
        if len(self._last) > 10_000:
            self._last.clear()
        self._last[txid] = answer
        hexed = txid[::-1].hex()
        if result.ok:
            rate = "" if feerate_per_kw is None else f" at {feerate_per_kw} sat/kw"
            self._bus.publish("onchain.published", f"{what} transaction {hexed}{rate}: {answer}", txid=hexed, what=what)
        else:
            log.warning("transaction refused", txid=hexed, what=what, reason=result.reason)
