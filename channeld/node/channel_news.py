"""What the operator is told of a channel: an event's kind, a sentence and details for each thing that happens to it."""

from __future__ import annotations

from typing import Any, assert_never

from channeld.channel import effects as fx
from channeld.channel import events as ev
from channeld.node.event_kinds import EventKind

News = (
    fx.PhaseChanged
    | fx.ChannelUsable
    | fx.CloseCompleted
    | fx.RemoteUnilateralClose
    | fx.FundingLost
    | fx.StateUnconfirmed
    | ev.ProtocolViolation
)
CHEAP = (fx.PhaseChanged, fx.CloseCompleted, ev.ProtocolViolation)
"""What a stranger can make happen as often as it likes."""


def told(happened: News, channel_id: bytes, peer_id: bytes) -> tuple[EventKind, str, dict[str, Any]]:
    """Kind, sentence and details of the event; `channel_id` is among the details of all of them."""
    name = channel_id.hex()
    kind, sentence, details = _told(happened, f"channel {name}", peer_id.hex())
    return kind, sentence, {"channel_id": name, **details}


def _told(happened: News, channel: str, peer: str) -> tuple[EventKind, str, dict[str, Any]]:
    match happened:
        case fx.PhaseChanged(old=old, new=new, reason=reason):
            why = f" ({reason})" if reason else ""
            details = {"node_id": peer, "old": old, "new": new, "reason": reason}
            return "channel.phase", f"{channel} with {peer}: {old} -> {new}{why}", details
        case fx.ChannelUsable():
            return "channel.usable", f"{channel} is usable", {}
        case fx.CloseCompleted(reason=reason, closing_txid=closing_txid):
            txid = closing_txid[::-1].hex() if closing_txid else None
            return "channel.closed", f"{channel} is over: {reason}", {"closing_txid": txid}
        case fx.RemoteUnilateralClose(kind=kind, tx=tx):
            sentence = f"{channel} was closed by the peer alone ({kind} commitment)"
            return "channel.alarm", sentence, {"txid": tx.txid_hex, "commitment": kind}
        case fx.FundingLost(reason=reason):
            return "channel.funding_lost", f"{channel}: {reason}", {}
        case fx.StateUnconfirmed(reason=reason):
            sentence = (
                f"{channel} is not closed yet, although {reason}: its state was not compared with the peer since the "
                "start, and may be outdated if the database is an old copy. It is closed when the peer was compared "
                "with, or later without it (after --restore-from, never without it); "
                "`channelctl channel close --force --even-if-outdated` closes it now"
            )
            return "channel.unconfirmed", sentence, {"reason": reason}
        case ev.ProtocolViolation():
            sentence = f"the peer of {channel} broke a rule: {happened.reason}"
            return "channel.violation", sentence, {"action": happened.action}
        case _:
            assert_never(happened)
