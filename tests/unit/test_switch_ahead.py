"""Onions that are peeled before their HTLCs are locked in."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace
from typing import Any, cast

import pytest

from channeld.bolt.messages import UpdateAddHtlc, encode
from channeld.bolt.onion.payment import read_payment_onion
from channeld.bolt.transactions import Htlc
from channeld.channel import events as ev
from channeld.node.channels import Driver
from channeld.node.switch import MOST_READ_AHEAD, Switch

ONION_BYTES = 1366


def garbage(fill: int) -> bytes:
    """No onion at all, as different from others as `fill` is."""
    return bytes((fill,)) * ONION_BYTES


def driver_with(*onions: bytes) -> Driver:
    """A channel over which HTLCs came, numbered from 0."""
    driver = SimpleNamespace(channel_key=1, channel_id=bytes(32), adds={})
    for number, onion in enumerate(onions):
        driver.adds[False, number] = encode(UpdateAddHtlc(bytes(32), number, 1000, bytes(32), 500, onion))
    return cast(Driver, driver)


@pytest.fixture
def switch() -> Switch:
    nobody = cast(Any, None)
    return Switch(cast(Any, SimpleNamespace(node_secret=b"\x01" * 32)), nobody, nobody, nobody, lambda: 100)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Each onion that is read, when it is."""
    seen: list[bytes] = []

    def count(packet: bytes, *rest: Any) -> Any:
        seen.append(packet)
        return read_payment_onion(packet, *rest)

    monkeypatch.setattr("channeld.node.switch.read_payment_onion", count)
    return seen


def answer(switch: Switch, driver: Driver, number: int = 0) -> ev.FailMalformedHtlc:
    """What comes of an HTLC that is locked in."""
    (event,) = switch.locked_in(driver, Htlc(number, 1000, bytes(32), 500, False), False).events
    assert isinstance(event, ev.FailMalformedHtlc)
    return event


def test_an_onion_is_read_once(switch: Switch, reads: list[bytes]) -> None:
    driver = driver_with(garbage(5))
    switch.read_ahead(driver, 0)
    assert reads == [garbage(5)]
    assert answer(switch, driver).sha256_of_onion == sha256(garbage(5)).digest()
    assert reads == [garbage(5)]
    answer(switch, driver)  # told again after a restart, say
    assert reads == [garbage(5)] * 2


def test_another_htlc_in_its_place_is_answered_for_itself(switch: Switch) -> None:
    """What was not signed for when the connection broke is forgotten, and the peer may offer something else then."""
    driver = driver_with(garbage(5))
    switch.read_ahead(driver, 0)
    driver.adds = driver_with(garbage(6)).adds
    assert answer(switch, driver).sha256_of_onion == sha256(garbage(6)).digest()


def test_what_never_is_locked_in_takes_bounded_memory(switch: Switch, reads: list[bytes]) -> None:
    driver = driver_with(*(garbage(5) for _ in range(MOST_READ_AHEAD + 3)))
    for number in range(MOST_READ_AHEAD + 3):
        switch.read_ahead(driver, number)
    assert len(switch._ahead) == MOST_READ_AHEAD
    reads.clear()
    answer(switch, driver, 2)
    answer(switch, driver, 3)
    assert reads == [garbage(5)]


def test_an_htlc_that_is_gone_is_not_read(switch: Switch, reads: list[bytes]) -> None:
    switch.read_ahead(driver_with(), 0)
    assert reads == []
