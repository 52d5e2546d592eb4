"""What was learnt of channels and nodes, as values: to be stored, exported and imported. Without numpy."""

from __future__ import annotations

import math

from msgspec import Struct

from channeld.bolt.primitives import format_short_channel_id


class ChannelKnowledge(Struct, frozen=True, array_like=True):
    """Bounds in msat on what direction 0 could send, as of `learnt_seconds` (Unix). `capacity_msat` is what they refer
    to."""

    short_channel_id: int
    lower_msat: int
    upper_msat: int
    capacity_msat: int
    learnt_seconds: float

    def check(self) -> None:
        """Raises ValueError, a sentence, for what cannot be."""
        if not 0 <= self.lower_msat <= self.upper_msat <= self.capacity_msat < 2**63:
            raise ValueError(
                f"scores of channel {format_short_channel_id(self.short_channel_id)} contradict themselves"
            )
        if not 0 <= self.short_channel_id < 2**64 or not math.isfinite(self.learnt_seconds):
            raise ValueError(f"scores of channel {format_short_channel_id(self.short_channel_id)} cannot be")


class NodeKnowledge(Struct, frozen=True, array_like=True):
    """A node that failed: how bad (nats) at which time (Unix seconds)."""

    node_id: bytes
    nats: float
    learnt_seconds: float

    def check(self) -> None:
        """Raises ValueError, a sentence, for what cannot be."""
        good = math.isfinite(self.nats) and self.nats >= 0 and math.isfinite(self.learnt_seconds)
        if len(self.node_id) != 33 or not good:
            raise ValueError(f"the score of node {self.node_id.hex()} cannot be")
