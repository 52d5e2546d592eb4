"""A payer whose onions are the test's own, and who hears what became of each HTLC."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from channeld.bolt.onion.attribution import Attribution, verify_fulfill_attribution
from channeld.bolt.onion.failures import Failure, decode_failure
from channeld.bolt.onion.payment import PaymentPayload, build_payment_onion
from channeld.bolt.onion.returns import ReturnPacket, read_failure
from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.node.channels import Driver
from channeld.node.driver import Reaction
from tests.integration.world import STEP_SECONDS, TestNode

ORIGIN = b"T"


@dataclass(frozen=True)
class Outcome:
    """`failure` and `erring_hop` (0 is the first after the payer) if it failed; `code` if by a malformed onion."""

    preimage: bytes | None = None
    failure: Failure | None = None
    erring_hop: int | None = None
    code: int | None = None
    sha256_of_onion: bytes | None = None
    attribution: Attribution | None = None


class RawPayer:
    """Over the switch of a running node."""

    def __init__(self, node: TestNode) -> None:
        self.node = node
        self._count = 0
        self._waiting: dict[bytes, tuple[asyncio.Future[Outcome], tuple[bytes, ...]]] = {}
        switch: Any = node.runtime.channels.switch
        self._settled, self._failed = switch.settled, switch.failed
        switch.settled, switch.failed = self._on_settled, self._on_failed

    def driver(self, channel_id: bytes) -> Driver:
        found = self.node.runtime.channels.by_id(channel_id)
        assert found is not None
        return found

    def offer(
        self,
        channel_id: bytes,
        hops: Sequence[tuple[bytes, PaymentPayload]],
        payment_hash: bytes,
        amount_msat: int,
        cltv_expiry: int,
        *,
        packet: bytes | None = None,
        path_key: bytes | None = None,
        session_key: bytes | None = None,
    ) -> asyncio.Future[Outcome]:
        """An HTLC on its way; `packet` instead of the onion for `hops`."""
        onion = build_payment_onion(hops, session_key or os.urandom(32), payment_hash)
        self._count += 1
        origin = ORIGIN + self._count.to_bytes(4, "big")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[origin] = (outcome, onion.shared_secrets)

        def done(error: Exception | None) -> None:
            if error is not None and not outcome.done():
                outcome.set_exception(error)

        tlvs = {} if path_key is None else {"path_key": path_key}
        add = ev.AddHtlc(amount_msat, payment_hash, cltv_expiry, packet or onion.packet, origin, tlvs)
        self.driver(channel_id).post(add, (), done)
        return outcome

    async def pay(self, *arguments: Any, **options: Any) -> Outcome:
        async with asyncio.timeout(STEP_SECONDS):
            return await self.offer(*arguments, **options)

    def _on_settled(self, driver: Driver, effect: fx.HtlcSettled) -> Reaction:
        waiting = self._waiting.pop(effect.origin, None)
        if waiting is not None:
            outcome, secrets = waiting
            data = effect.attribution_data
            attribution = None if data is None else verify_fulfill_attribution(secrets, data)
            outcome.set_result(Outcome(preimage=effect.payment_preimage, attribution=attribution))
        reaction: Reaction = self._settled(driver, effect)
        return reaction

    def _on_failed(self, driver: Driver, effect: fx.HtlcFailed) -> Reaction:
        waiting = self._waiting.pop(effect.origin, None)
        if waiting is not None:
            outcome, secrets = waiting
            if effect.reason is None:
                outcome.set_result(Outcome(code=effect.failure_code, sha256_of_onion=effect.sha256_of_onion))
            else:
                read = read_failure(secrets, ReturnPacket(effect.reason, effect.attribution_data))
                failure = decode_failure(read.failure_message)
                outcome.set_result(Outcome(None, failure, read.erring_hop, attribution=read.attribution))
        reaction: Reaction = self._failed(driver, effect)
        return reaction
