"""What the operator is told of a channel."""

from __future__ import annotations

import pytest

from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.node import channel_news

CHANNEL, PEER = b"\x0c" * 32, b"\x02" * 33
NAME = f"channel {CHANNEL.hex()}"


@pytest.mark.parametrize(
    ("happened", "kind", "sentence", "details"),
    [
        (
            fx.PhaseChanged("normal", "closing", "the peer closed"),
            "channel.phase",
            f"{NAME} with {PEER.hex()}: normal -> closing (the peer closed)",
            {"node_id": PEER.hex(), "old": "normal", "new": "closing", "reason": "the peer closed"},
        ),
        (fx.FundingLost("it is spent otherwise"), "channel.funding_lost", f"{NAME}: it is spent otherwise", {}),
        (
            ev.ProtocolViolation("no HTLC 7"),
            "channel.violation",
            f"the peer of {NAME} broke a rule: no HTLC 7",
            {"action": ev.ProtocolViolation("no HTLC 7").action},
        ),
    ],
)
def test_each_has_its_event(happened: channel_news.News, kind: str, sentence: str, details: dict[str, object]) -> None:
    told = channel_news.told(happened, CHANNEL, PEER)
    assert told == (kind, sentence, {"channel_id": CHANNEL.hex(), **details})


def test_a_state_that_was_not_compared_says_what_closes_it_now() -> None:
    kind, sentence, details = channel_news.told(fx.StateUnconfirmed("an HTLC is due"), CHANNEL, PEER)
    assert (kind, details["reason"]) == ("channel.unconfirmed", "an HTLC is due")
    assert "--force --even-if-outdated" in sentence
    assert isinstance(fx.StateUnconfirmed("x"), channel_news.News)
    assert not isinstance(fx.StateUnconfirmed("x"), channel_news.CHEAP), "an alarm is never left out"
