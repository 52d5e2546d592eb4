"""Answers to an HTLC as events for its channel: refusals, and preimages with their attribution data.

Hold times are in BOLT 4's units of 100 ms. A node inside a blinded path sends none: it answers by
`update_fail_malformed_htlc`, and its preimages carry no attribution either (BOLT 4, "if `path_key` is not set in the
incoming `update_add_htlc`: MUST initialize `attribution_data`").
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from channeld.bolt.onion.attribution import HOLD_TIME_UNIT_SECONDS, add_attribution
from channeld.bolt.onion.failures import encode_failure
from channeld.bolt.onion.payment import BlindedRole, OnionContext
from channeld.bolt.onion.returns import create_failure
from channeld.bolt.onion.sphinx import BadOnion, OnionError, RefusedOnion
from channeld.channel import events as ev
from channeld.node.driver import NO_REACTION, Reaction

if TYPE_CHECKING:
    from channeld.node.channels import Driver

INTRODUCTION_DELAY_SECONDS = 0.6
"""BOLT 4, "Whenever the introduction point receives a failure from the blinded route, it should add a random delay
before forwarding the error": up to so long."""


def hold_time(seconds: float) -> int:
    """What `attribution_data` says of an HTLC that was held for so long."""
    return max(0, int(seconds / HOLD_TIME_UNIT_SECONDS))


def refusal_event(htlc_id: int, error: OnionError, held: int = 0) -> ev.Event:
    """`update_fail_malformed_htlc` for an onion that could not be read, else an error onion of ours."""
    if isinstance(error, BadOnion):
        return ev.FailMalformedHtlc(htlc_id, error.sha256_of_onion, error.failure_code)
    assert isinstance(error, RefusedOnion)
    packet = create_failure(error.shared_secret, encode_failure(error.failure), held)
    return ev.FailHtlc(htlc_id, packet.reason, {"attribution_data": packet.attribution_data})


def fulfill_event(
    htlc_id: int, payment_preimage: bytes, context: OnionContext, held: int, downstream: bytes | None = None
) -> ev.FulfillHtlc:
    """The preimage, with what came of it `downstream` (None at the recipient) and our own hold time."""
    if context.role is BlindedRole.INSIDE:
        return ev.FulfillHtlc(htlc_id, payment_preimage)
    data = add_attribution(context.shared_secret, downstream, held)
    return ev.FulfillHtlc(htlc_id, payment_preimage, {"attribution_data": data})


def refuse(driver: Driver, htlc_id: int, error: OnionError) -> Reaction:
    """Refuses an HTLC that just came: in the same batch, or after a while as introduction node."""
    if isinstance(error, RefusedOnion) and error.failure.is_bad_onion:
        after_a_while(lambda held: driver.post(refusal_event(htlc_id, error, held)))
        return NO_REACTION
    return Reaction(events=[refusal_event(htlc_id, error)])


def after_a_while(answer: Callable[[int], None]) -> None:
    """Calls `answer` with the hold time that the delay adds. After a crash the HTLC is handed out and refused again."""
    seconds = random.uniform(0, INTRODUCTION_DELAY_SECONDS)
    asyncio.get_running_loop().call_later(seconds, answer, hold_time(seconds))
