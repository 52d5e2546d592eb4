"""What channels should pay: estimates of layer 1, refreshed with the chain, never awaited by a channel."""

from __future__ import annotations

import structlog

from wallet.chain import ChainSource, ChainUnavailable

log = structlog.get_logger(__name__)

FLOOR_PER_KW = 253
COMMITMENT_TARGET_BLOCKS = 6
CLOSING_TARGET_BLOCKS = 12


class FeeRates:
    """Fee rates in sat per 1,000 weight units; the floor until layer 1 was asked."""

    def __init__(self, source: ChainSource) -> None:
        self._source = source
        self.commitment_per_kw = FLOOR_PER_KW
        self.closing_per_kw = FLOOR_PER_KW

    async def refresh(self) -> None:
        """Ask layer 1; keep what we have while it is away."""
        try:
            self.commitment_per_kw = max(FLOOR_PER_KW, await self._source.fee_rate_sat_per_kw(COMMITMENT_TARGET_BLOCKS))
            self.closing_per_kw = max(FLOOR_PER_KW, await self._source.fee_rate_sat_per_kw(CLOSING_TARGET_BLOCKS))
        except ChainUnavailable as error:
            log.debug("no fee estimate", reason=str(error))

    @property
    def funding_per_kw(self) -> int:
        """For transactions of the wallet."""
        return self.commitment_per_kw
