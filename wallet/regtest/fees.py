"""Fee rates from what was mined: how long transactions of a rate waited in the mempool."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from wallet.regtest.chain import Chain, TipChange
from wallet.regtest.pool import Entry, Pool

MAX_TARGET_BLOCKS = 1008
_REMEMBERED_BLOCKS = 100
_ENOUGH_SAMPLES = 10
_SUCCESS = 0.85
_BUCKET_SPACING = 1.05


class _Sample(NamedTuple):
    rate: float
    waited_blocks: int


class FeeEstimator:
    """Answers `estimatesmartfee`. Knows only what it saw itself, as bitcoind after a start without saved estimates."""

    def __init__(self, chain: Chain, pool: Pool) -> None:
        self.chain = chain
        self.pool = pool
        self.fixed_rate: int | None = None
        """What to answer whatever was seen, in sat per 1000 virtual bytes."""
        self._blocks: deque[list[_Sample]] = deque(maxlen=_REMEMBERED_BLOCKS)
        self._mined: list[_Sample] = []
        pool.on_removed.append(self._on_removed)
        chain.on_change.append(self._on_change)

    def _on_removed(self, entry: Entry, reason: str, _sequence: int) -> None:
        # Transactions with unconfirmed parents are paid for by others or pay for them: they say nothing.
        if reason == "block" and not entry.parents:
            waited = max(1, self.chain.height - entry.height)
            self._mined.append(_Sample(entry.fee_sat * 1000 / entry.vsize, waited))

    def _on_change(self, change: TipChange) -> None:
        if change.connected:
            self._blocks.append(self._mined)
            self._mined = []

    def estimate(self, target_blocks: int) -> int | None:
        """A rate (sat per 1000 virtual bytes) at which most were mined in `target_blocks`; None: too little seen."""
        if self.fixed_rate is not None:
            return self.fixed_rate
        samples = sorted((s for block in self._blocks for s in block), reverse=True)
        best: float | None = None
        seen = quick = 0
        for index, sample in enumerate(samples):
            seen += 1
            quick += sample.waited_blocks <= target_blocks
            following = samples[index + 1].rate if index + 1 < len(samples) else 0.0
            if seen >= _ENOUGH_SAMPLES and sample.rate > following * _BUCKET_SPACING:
                if quick < _SUCCESS * seen:
                    break
                best = sample.rate
                seen = quick = 0
        return None if best is None else max(round(best), self.pool.policy.min_relay_fee)
