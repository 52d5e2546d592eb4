"""What a running daemon knows of the public network: read from a copy of its gossip file."""

from __future__ import annotations

from typing import NamedTuple

from channeld.gossip.store import GossipStore
from channeld.gossip.view import NetworkView, PublicChannel
from channeld.paths import DataPaths
from wallet.bitcoin.address import BY_NAME


class KnownNetwork(NamedTuple):
    """Public channels by short_channel_id, and the ids of nodes that announced themselves."""

    channels: dict[int, PublicChannel]
    nodes: frozenset[bytes]


def known_network(paths: DataPaths) -> KnownNetwork:
    """Nothing before the daemon has written its file."""
    if not paths.gossip.exists():
        return KnownNetwork({}, frozenset())
    store = GossipStore(None, BY_NAME[paths.network].chain_hash, paths.gossip.read_bytes())
    view = NetworkView(store)
    try:
        view.load()
        channels = {channel.scid: channel for channel in view.channels()}
        return KnownNetwork(channels, frozenset(announcement.node_id for announcement in view.nodes()))
    finally:
        store.close()
