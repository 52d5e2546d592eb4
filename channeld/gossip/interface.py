"""What gossip needs of the rest of the node, and what it tells it: protocols and values, no behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from channeld.bolt.messages import ChannelUpdate, NodeAnnouncement


class GossipConfig(NamedTuple):
    """How gossip behaves. Times in seconds; the defaults are for the public network."""

    flush_seconds: float = 60.0
    """BOLT 7, "Rebroadcasting": outgoing gossip goes out once in this time."""
    stale_seconds: int = 14 * 24 * 3600
    keep_alive_seconds: int = 7 * 24 * 3600
    """Our own updates and announcement are repeated when they are this old."""
    future_seconds: int = 24 * 3600
    """A timestamp further ahead of our clock is not believed."""
    update_burst: int = 10
    update_refill_seconds: float = 60.0
    """A direction of a channel may be updated `update_burst` times at once, and once more each `update_refill_seconds`;
    the same holds for a node's announcement."""
    redundant_seconds: int = 24 * 3600
    """An update that changes nothing is ignored if it is younger than the one before by less than this."""
    active_syncers: int = 3
    """So many peers send us what is new; the others send only what is their own."""
    rotate_seconds: float = 20 * 60.0
    historical_seconds: float = 3600.0
    """Once in this time one peer is asked for everything it has."""
    query_timeout_seconds: float = 60.0
    orphan_seconds: float = 600.0
    disable_after_seconds: float = 20 * 60.0
    """A channel whose peer is away for this long is announced as disabled."""
    own_update_seconds: float = 60.0
    """Own updates of one channel are at least this far apart (a policy that changes twice is announced once)."""
    announce_depth_blocks: int = 6
    forget_spent_blocks: int = 72


class Funding(NamedTuple):
    """The unspent output behind a short_channel_id."""

    txid: bytes
    amount_sat: int
    script_pubkey: bytes
    confirmations: int


class FundingSource(Protocol):
    """Layer 1, as far as gossip looks at it."""

    async def lookup(self, scids: Sequence[int]) -> list[Funding | None]:
        """For each short_channel_id (ascending) its output, None if there is none or it is spent.

        Raises `FundingUnknown` when layer 1 cannot answer now; nothing is concluded then.
        """
        ...


class FundingUnknown(Exception):
    """Layer 1 is away, or does not have the block any more. The text is a sentence."""


class GraphSink(Protocol):
    """Whoever keeps a graph for path finding. Calls come in order, on the event loop's thread."""

    def channel_added(self, scid: int, node_id_1: bytes, node_id_2: bytes, capacity_sat: int, routable: bool) -> None:
        """A public channel. `routable` is False if its features have an unknown even bit."""
        ...

    def channel_updated(self, update: ChannelUpdate, usable: bool) -> None:
        """One direction's policy. `usable` is False if it is disabled or contradicts itself or the capacity."""
        ...

    def channel_removed(self, scid: int) -> None:
        """The channel is spent and forgotten, stale, or its nodes are blacklisted."""
        ...

    def node_announced(self, announcement: NodeAnnouncement) -> None:
        """New features, addresses, alias of a node that has a public channel."""
        ...

    def node_removed(self, node_id: bytes) -> None:
        """Its last channel is gone."""
        ...


class PeerPort(Protocol):
    """A connection to a peer, after `init`."""

    @property
    def node_id(self) -> bytes: ...
    @property
    def remote_features(self) -> frozenset[int]: ...
    @property
    def is_congested(self) -> bool:
        """The peer reads more slowly than we write: bulk data waits."""
        ...

    def send(self, data: bytes) -> None:
        """Queue a message; dropped if the connection is gone."""
        ...


class Refusal(NamedTuple):
    """Why a gossip message is not taken. `blame`: the sender should have known; it is warned and marked down."""

    reason: str
    blame: bool = False
