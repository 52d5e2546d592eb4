"""What can happen, by kind: for whoever publishes, subscribes, counts and alerts.

mypy holds publishers to these names; docs/node.md and the alerts in deploy/prometheus are held to them by tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from channeld.node.interface import NodeError
from channeld.onchain.plans import Group
from channeld.onchain.resolution import AlarmKind
from watchtower.client.values import NewsKind

EventKind = Literal[
    AlarmKind,
    NewsKind,
    "backup.failed",
    "backup.unknown_channels",
    "backup.written",
    "chain.back",
    "chain.block",
    "chain.broadcast",
    "chain.lost",
    "chain.missed",
    "chain.reorg",
    "channel.alarm",
    "channel.close_stuck",
    "channel.closed",
    "channel.frozen",
    "channel.funding_lost",
    "channel.htlc_due",
    "channel.htlc_given_up",
    "channel.htlc_stuck",
    "channel.phase",
    "channel.refused",
    "channel.unconfirmed",
    "channel.usable",
    "channel.violation",
    "forward.lost",
    "forward.settled",
    "graph.changed",
    "invoice.accepted",
    "invoice.canceled",
    "invoice.created",
    "invoice.expiring",
    "invoice.settled",
    "monitor.failed",
    "node.failed",
    "onchain.cannot_anchor",
    "onchain.cannot_claim",
    "onchain.cannot_htlc",
    "onchain.cannot_penalty",
    "onchain.cannot_presigned",
    "onchain.cannot_sweep",
    "onchain.left_to_tower",
    "onchain.output",
    "onchain.published",
    "payment.failed",
    "payment.succeeded",
    "peer.connected",
    "peer.disconnected",
    "peer.error",
    "peer.warning",
    "wallet.reserve_low",
]
Severity = Literal["info", "warning", "critical"]


class About(NamedTuple):
    """When something of a kind is told, and how much an operator should mind."""

    when: str
    severity: Severity = "info"


_CANNOT = "cannot be made now, for want of coins or because it would cost more than it brings; it is tried again"
EVENT_KINDS: Mapping[EventKind, About] = {
    "backup.failed": About("the channels' backup cannot be written, or not to this file", "warning"),
    "backup.unknown_channels": About("the channels' backup has channels that the database does not know", "critical"),
    "backup.written": About("the channels' backup has changed: copy it to where it is safe"),
    "chain.back": About("layer 1 answers again"),
    "chain.block": About("a block was processed"),
    "chain.broadcast": About("layer 1's answer to a transaction of ours"),
    "chain.lost": About("layer 1 does not answer: if that lasts, the metric `synced` has an alert"),
    "chain.missed": About("blocks were missed in which channels could be cheated; they are looked at now", "critical"),
    "chain.reorg": About("a block left the chain"),
    "channel.alarm": About("the peer closed the channel alone", "critical"),
    "channel.close_stuck": About("a cooperative close is not mined", "critical"),
    "channel.closed": About("all that was in the channel is back, or lost"),
    "channel.frozen": About("a bug stopped the channel; the chain is still watched for it", "critical"),
    "channel.funding_lost": About("the funding transaction cannot be mined any more", "critical"),
    "channel.htlc_due": About("an HTLC comes near to the block at which the channel is closed over it", "warning"),
    "channel.htlc_given_up": About("a forwarded HTLC that is stuck on chain was failed: it is worth less", "critical"),
    "channel.htlc_stuck": About(
        "a forwarded HTLC is stuck on chain; the channel it came by will be closed", "critical"
    ),
    "channel.phase": About("from opening to closed, step by step"),
    "channel.refused": About("a peer wanted to open a channel that was refused"),
    "channel.unconfirmed": About("the channel would be closed, but the database may be an old copy", "critical"),
    "channel.usable": About("payments can go over the channel"),
    "channel.violation": About("the peer broke a rule"),
    "forward.lost": About("a forwarded payment was paid for and not received", "critical"),
    "forward.settled": About("a payment was forwarded, and its fee earned"),
    "graph.changed": About("the public network has changed"),
    "invoice.accepted": About("a hold invoice is paid: settle or cancel it"),
    "invoice.canceled": About("an invoice was canceled"),
    "invoice.created": About("an invoice was made"),
    "invoice.expiring": About("a hold invoice is canceled soon, unless it is settled"),
    "invoice.settled": About("an invoice or a keysend was paid"),
    "monitor.failed": About("a bug in the enforcement of a closed channel; it is tried again", "critical"),
    "node.failed": About("the node cannot go on, and stops", "critical"),
    "onchain.cannot_anchor": About(f"a child that raises a commitment's fee {_CANNOT}", "warning"),
    "onchain.cannot_claim": About(f"a claim of HTLCs on the peer's commitment {_CANNOT}", "warning"),
    "onchain.cannot_htlc": About(f"an HTLC transaction of our commitment {_CANNOT}", "warning"),
    "onchain.cannot_penalty": About(f"a justice transaction {_CANNOT}", "critical"),
    "onchain.cannot_presigned": About(f"an HTLC transaction without anchors {_CANNOT}", "warning"),
    "onchain.cannot_sweep": About(f"a sweep of what is ours {_CANNOT}", "warning"),
    "onchain.left_to_tower": About("a tower has taken outputs, or is about to"),
    "onchain.lost": About("the peer took what was ours", "critical"),
    "onchain.output": About("an output of a closed channel went a step further"),
    "onchain.published": About("a transaction of a closed channel was published"),
    "onchain.revoked": About("the peer published a revoked commitment, and is being punished", "critical"),
    "onchain.unknown": About("a channel's funding was spent by a transaction that we do not know", "critical"),
    "payment.failed": About("a payment of ours failed for good"),
    "payment.succeeded": About("a payment of ours succeeded"),
    "peer.connected": About("a peer is there"),
    "peer.disconnected": About("a peer is gone"),
    "peer.error": About("a peer sent an `error`"),
    "peer.warning": About("a peer sent a `warning`"),
    "tower.trouble": About("a watchtower does not work, or wants no more", "warning"),
    "tower.works": About("a watchtower works again"),
    "wallet.reserve_low": About("the wallet could not pay to close all channels in a hurry", "warning"),
}
CANNOT_MAKE: Mapping[Group, EventKind] = {
    "anchor": "onchain.cannot_anchor",
    "claim": "onchain.cannot_claim",
    "htlc": "onchain.cannot_htlc",
    "penalty": "onchain.cannot_penalty",
    "presigned": "onchain.cannot_presigned",
    "sweep": "onchain.cannot_sweep",
}
"""By the group of outputs that a transaction was to take."""


def check_kinds(wanted: Iterable[str]) -> None:
    """Raises NodeError if one is neither a kind nor the beginning of some (`payment` of `payment.succeeded`)."""
    groups = sorted({kind.partition(".")[0] for kind in EVENT_KINDS})
    for kind in wanted:
        if kind not in EVENT_KINDS and kind not in groups:
            group = kind.partition(".")[0]
            there = [known for known in EVENT_KINDS if known.startswith(f"{group}.")] or groups
            raise NodeError("invalid_argument", f"There are no events of the kind {kind!r}, but {', '.join(there)}.")
