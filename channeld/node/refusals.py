"""Refusals of an HTLC as events for its channel."""

from __future__ import annotations

from channeld.bolt.onion.failures import encode_failure
from channeld.bolt.onion.returns import create_failure
from channeld.bolt.onion.sphinx import BadOnion, OnionError, RefusedOnion
from channeld.channel import events as ev


def refusal_event(htlc_id: int, error: OnionError) -> ev.Event:
    """`update_fail_malformed_htlc` for an onion that could not be read, else an error onion of ours."""
    if isinstance(error, BadOnion):
        return ev.FailMalformedHtlc(htlc_id, error.sha256_of_onion, error.failure_code)
    assert isinstance(error, RefusedOnion)
    return ev.FailHtlc(htlc_id, create_failure(error.shared_secret, encode_failure(error.failure)).reason)
