"""Offering the monitor's transactions to layer 1: alone, or our commitment as a package with the child that pays for
it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import structlog

from channeld.node.bus import EventBus
from channeld.onchain.classify import classify
from channeld.onchain.known import Known
from channeld.onchain.plans import Attempt
from channeld.onchain.resolution import Answered
from wallet.bitcoin import OutPoint, Tx, sha256
from wallet.chain import BroadcastResult, ChainError, ChainSource

log = structlog.get_logger(__name__)


class Offered(NamedTuple):
    """What became of our commitment. `rival`: the peer's, if layer 1 has that in place of it, in wire form. `orphaned`:
    layer 1 does not know what it spends. `useless_child`: the child was refused, and not for what it pays."""

    rival: bytes = b""
    orphaned: bool = False
    useless_child: bool = False


class Publisher:
    """All methods raise ChainUnavailable."""

    def __init__(self, source: ChainSource, bus: EventBus) -> None:
        self._source = source
        self._bus = bus
        self._last: dict[bytes, str] = {}

    async def publish(self, attempt: Attempt) -> Answered:
        """What layer 1 says."""
        result = await self._source.broadcast(Tx.parse(attempt.raw))
        self._report(attempt.txid, attempt.group, result, attempt.feerate_per_kw)
        return Answered(attempt.txid, "" if result.ok else result.reason or "refused", result.underpaid)

    async def publish_commitment(self, known: Known, child: Attempt | None) -> Offered:
        """Our commitment, with its child if it has one."""
        commitment = Tx.parse(known.local_tx)
        useless = False
        if child is None:
            result = await self._source.broadcast(commitment)
        else:
            result, *_, last = await self._source.broadcast_package([commitment, Tx.parse(child.raw)])
            self._report(child.txid, "anchor", last, child.feerate_per_kw)
            useless = not last.ok and not last.underpaid
            if not result.ok:
                # A package can be refused as a whole, for a coin of the child's that a reorganisation took, say.
                result = await self._source.broadcast(commitment)
        self._report(commitment.txid(), "commitment", result, None)
        if result.ok:
            return Offered(useless_child=useless)
        return Offered(await self._rival(known), result.orphaned, useless)

    async def has(self, attempt: Attempt) -> bool:
        """Whether layer 1 keeps an attempt in its mempool, or cannot tell."""
        try:
            waiting = await self._source.spending_tx_in_mempool(attempt.outpoints[0])
        except ChainError as error:
            log.warning("the mempool could not be looked into", reason=str(error))
            return True
        return waiting is not None and waiting.txid() == attempt.txid

    async def unconfirmed(self, outpoints: Iterable[OutPoint]) -> list[Tx]:
        """What spends these outputs in layer 1's mempool, each once."""
        found: list[Tx] = []
        seen: set[OutPoint] = set()
        for outpoint in outpoints:
            tx = None if outpoint in seen else await self._source.spending_tx_in_mempool(outpoint)
            if tx is not None:
                found.append(tx)
                seen.update(txin.outpoint for txin in tx.inputs)
        return found

    async def preimages(self, outputs: Iterable[tuple[OutPoint, bytes]]) -> dict[bytes, bytes]:
        """By payment hash: preimages that unconfirmed spends of these outputs show. They prove themselves, whatever
        becomes of the transactions."""
        found: dict[bytes, bytes] = {}
        for outpoint, payment_hash in outputs:
            tx = await self._source.spending_tx_in_mempool(outpoint)
            items = [] if tx is None else [item for txin in tx.inputs for item in txin.witness]
            shown = next((item for item in items if sha256(item) == payment_hash), None)
            if shown is not None:
                found[payment_hash] = shown
        return found

    async def _rival(self, known: Known) -> bytes:
        waiting = await self._source.spending_tx_in_mempool(known.params.funding_outpoint)
        if waiting is None:
            return b""
        kind, _ = classify(known, waiting)
        # A revoked one, too: what keeps ours out is better mined and punished than left to wait.
        return waiting.serialize() if kind in ("remote_current", "remote_next", "revoked") else b""

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
